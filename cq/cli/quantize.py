"""The command `cq quantize`."""

from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from ..calibrate import Calibration, calibrate
from ..errors import CqError
from ..formats import save
from ..formats.hub import located
from ..model import Transformer
from ..prepare.compensate import compensate
from ..quantize import quantize
from ..report import samples
from ..report.evaluate import ENCODER, LM
from ..report.inputs import needs_samples
from ..report.mix import mix
from ..report.trials import Mix
from ..strategies import OBSERVERS, QAT, STRATEGIES, Scheme, Single, Static, Strategy
from . import terminal
from .options import (
    CALIBRATION_SAMPLES,
    calibration_of,
    check_target,
    effort_option,
    learning_rate_option,
    opened,
    rotated_option,
    size_of,
)

_STABLE = 0.05  # of a range, in the median over sites: a step of the scale that is 5 % off costs 10 % of error, 0.4 dB


@click.command("quantize", short_help="Quantize a model and save it.")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--strategy",
    required=True,
    type=click.Choice([*STRATEGIES, "qat", "mixed"]),
    help="mixed searches for the fastest strategy of each layer within --budget.",
)
@click.option(
    "--target", type=click.Choice(list(STRATEGIES)), help="QAT: the strategy to convert to [default: static]."
)
@click.option("--steps", type=click.IntRange(min=1), help=f"QAT: number of optimizer steps [default: {QAT.steps}].")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help=f"QAT: number of samples in a step; for a language model 1, a window of text [default: {QAT.batch_size}].",
)
@learning_rate_option
@click.option(
    "--checkpoint",
    metavar="FILE",
    help="QAT: .safetensors file that is saved every 100 steps; an interrupted training continues from it.",
)
@click.option(
    "--textbook",
    is_flag=True,
    help="Use the textbook scheme: int8, affine and per tensor for weights, bias and activations, with min-max ranges.",
)
@click.option(
    "--calibration",
    multiple=True,
    metavar="FILE",
    help="Samples for static, or to train QAT on: .tsv or .txt files, folders or globs. Static uses at most "
    f"{CALIBRATION_SAMPLES} evenly spread samples, QAT all of them. May be repeated.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="FILE",
    help="Mixed: files to judge accuracy on, other than those of --calibration.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0),
    help="Mixed: how much of the metric may be lost against float32, in its units, such as 0.1 of Spearman ×100.",
)
@click.option(
    "--metric", type=click.Choice([*LM, *ENCODER]), help="Mixed: accuracy metric [default: as in `cq compare`]."
)
@click.option(
    "--record",
    metavar="FILE",
    help="Mixed: JSON file that records every trial; a search continues from it "
    "[default: OUT with the suffix .mix.json].",
)
@click.option(
    "--observer",
    metavar="NAME",
    help=f"Static: how ranges are found: {', '.join(OBSERVERS)}. Some take a setting, as in percentile:99.9 "
    f"[default: {Static.observer}, or minmax with --textbook].",
)
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Quantize only layers whose name matches, such as 'layers.*.ffn.*'. May be repeated.",
)
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Keep layers whose name matches in float32. May be repeated."
)
@rotated_option
@click.option(
    "--compensate",
    "compensated",
    is_flag=True,
    help="Round weights so that they compensate each other's errors on the samples of --calibration (GPTQ). For "
    "weight-only, dynamic and static.",
)
@effort_option
@click.option(
    "--strict", is_flag=True, help="Fail if a layer that should be quantized cannot be, and say which and why."
)
@click.option("--force", is_flag=True, help="Overwrite OUT if it exists.")
def quantize_command(
    model: str,
    out: Path,
    strategy: str,
    target: str | None,
    steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    checkpoint: str | None,
    textbook: bool,
    calibration: tuple[str, ...],
    data: tuple[str, ...],
    budget: float | None,
    metric: str | None,
    record: str | Path | None,
    observer: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    rotated: bool,
    compensated: bool,
    effort: str | None,
    strict: bool,
    force: bool,
) -> None:
    """Quantize MODEL and save it as OUT, a .safetensors file.

    MODEL is a Hugging Face folder, a name such as owner/name on the Hub, or a .safetensors, .npz or .gguf file, in
    float32."""
    _check_out(out, Path(model), force)
    _check_choices(strategy, data, metric, record, budget, compensated, calibration)
    if effort == "best" and (compensated or rotated or strategy == "mixed" or not calibration):
        raise click.UsageError(
            "--effort best rotates and compensates by itself, needs --calibration, and is not for mixed"
        )
    record = record or out.with_suffix(".mix.json")
    options = _Options(
        target,
        _training(steps=steps, batch_size=batch_size, learning_rate=learning_rate),
        textbook,
        include,
        exclude,
        effort,
    )
    seen = () if compensated and strategy != "static" else calibration
    chosen: Strategy | QAT | None = None if strategy == "mixed" else _strategy(strategy, options, seen, observer)
    parts = _parts(options, calibration, observer) if chosen is None else []
    if checkpoint and strategy != "qat":
        raise click.UsageError(f"--checkpoint is for qat, not for {strategy}")
    check_target(record)
    source, found = located(model), None
    before = size_of(source)
    float32 = opened(source, rotated)
    with terminal.progress() as progress:
        given = calibration_of(calibration, float32, None if isinstance(chosen, QAT) else CALIBRATION_SAMPLES)
        if compensated and given is not None:
            float32 = compensate(float32, given, lambda done, total: progress("compensate", done, total))
            given = given if strategy == "static" else None
        if chosen is None and budget is not None:
            judged = samples.read([Path(path) for path in data], float32)
            found = mix(float32, judged, budget, parts, given, metric, record, progress=progress)
            chosen, given = found.strategy, given if needs_samples(found.strategy) else None
        assert chosen is not None, "mixed comes with a budget"
        ranges: Calibration | samples.Samples | None = given
        if isinstance(chosen, Static) and given is not None and effort != "best":
            ranges = calibrate(float32, given, chosen.observer, lambda done, total: progress("calibrate", done, total))
        what = "train" if isinstance(chosen, QAT) else "quantize"
        quantized = quantize(
            float32,
            chosen,
            ranges,
            lambda done, total: progress(what, done, total),
            strict=strict,
            checkpoint=checkpoint,
        )
    save(quantized, out)
    _show(quantized, found, record, ranges)
    terminal.console().print(f"{out}: {before / 1e6:.2f} MB → {size_of(out) / 1e6:.2f} MB")


def _check_out(out: Path, model: Path, force: bool) -> None:
    """Fails before the work is done rather than after it."""
    check_target(out)
    if out.suffix != ".safetensors":
        raise click.UsageError(f"OUT must end in .safetensors, got {out}")
    if out.exists() and not force:
        raise CqError(f"{out} exists: choose another name or add --force")
    source, goal = model.resolve(), out.resolve()
    if out.exists() and (source.is_relative_to(goal) or goal.is_relative_to(source)):
        raise CqError(f"{out} is the model itself or a part of it: choose another name")


def _check_choices(
    strategy: str,
    data: tuple[str, ...],
    metric: str | None,
    record: str | Path | None,
    budget: float | None,
    compensated: bool,
    calibration: tuple[str, ...],
) -> None:
    """Options that go together."""
    if strategy == "mixed" and (not data or budget is None):
        raise click.UsageError("mixed needs --data to judge by, and a --budget")
    if strategy != "mixed" and (data or metric or record or budget is not None):
        raise click.UsageError(f"--data, --budget, --metric and --record are for mixed, not for {strategy}")
    if compensated and (not calibration or strategy not in STRATEGIES):
        raise click.UsageError("--compensate needs --calibration, and one of " + ", ".join(STRATEGIES))


def _show(
    model: Transformer, found: Mix | None, record: str | Path, calibration: Calibration | samples.Samples | None
) -> None:
    """Where each layer runs, what a search found, and whether the samples were enough."""
    console, coverage = terminal.console(), model.coverage()
    console.print(terminal.placements(coverage))
    console.print(coverage.summary)
    if found:
        console.print(found.table())
        console.print(f"{record}: every trial; cq compare --mix takes it")
    if isinstance(calibration, Calibration) and isinstance(model.strategy, Static):
        console.print(_movement(calibration, model.strategy.scheme))


class _Options(NamedTuple):
    """Those of `cq quantize` that every strategy is asked about. training: QAT's fields that were given."""

    target: str | None
    training: dict[str, Any]
    textbook: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    effort: str | None


def _training(**fields: float | None) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _parts(options: _Options, calibration: tuple[str, ...], observer: str | None) -> list[Single | QAT]:
    """What a mix is made of."""
    if options.include or options.exclude:
        raise click.UsageError("--include and --exclude are not for mixed, which chooses for every layer")
    static = {"static": (calibration, observer)} if calibration else {}
    return [
        _strategy(kind, options, *static.get(kind, ((), None))) for kind in STRATEGIES if kind != "static" or static
    ]


def _strategy(name: str, options: _Options, calibration: tuple[str, ...], observer: str | None) -> Single | QAT:
    """The strategy that the options ask for."""
    if name != "qat" and (options.target or options.training):
        raise click.UsageError(f"--target, --steps, --batch-size and --learning-rate are for qat, not for {name}")
    becomes = (options.target or "static") if name == "qat" else name
    needed = name in ("static", "qat") or options.effort == "best"
    if (observer and becomes != "static") or (calibration and not needed):
        raise click.UsageError(f"--calibration or --observer is for static; {becomes} needs no samples")
    choices: dict[str, Any] = {"include": options.include or ("*",), "exclude": options.exclude}
    choices |= {"effort": options.effort} if options.effort else {}
    if options.textbook:
        choices["scheme"] = Scheme.textbook()
    if observer or (options.textbook and becomes == "static"):
        choices["observer"] = observer or "minmax"
    strategy = STRATEGIES[becomes](**choices)
    return QAT(target=strategy, **options.training) if name == "qat" else strategy


def _movement(calibration: Calibration, scheme: Scheme) -> str:
    """Whether the samples were enough, in a sentence."""
    moved = calibration.movement(scheme.activation_dtype, scheme.activation_symmetric)
    if not moved:
        return "calibrated on 1 sample: too few to say whether the ranges are stable"
    median, site = float(np.median(list(moved.values()))), max(moved, key=lambda site: moved[site])
    advice = "stable" if median <= _STABLE else "not stable yet: more samples would help"
    return (
        f"calibrated on {calibration.samples} samples: half of them give ranges that differ by {median:.1%} in the "
        f"median and by {moved[site]:.1%} at {site}; {advice}"
    )
