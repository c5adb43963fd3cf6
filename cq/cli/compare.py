"""The command `cq compare`."""

from collections.abc import Sequence
from pathlib import Path

import click

from ..report import samples
from ..report.compare import compare, default_strategies
from ..report.expected_order import check_order
from ..report.inputs import Chosen
from ..report.plot import check_plot, plot
from ..report.trials import best_of
from ..strategies import QAT, STRATEGIES
from . import terminal
from .options import (
    CALIBRATION_SAMPLES,
    calibration_of,
    check_target,
    learning_rate_option,
    opened,
    rotated_option,
    write,
)


@click.command("compare", short_help="Measure float32 and every strategy side by side.")
@click.argument("model", required=False)
@click.option(
    "--data",
    multiple=True,
    metavar="FILE",
    help=".tsv of sentence pairs (score, sentence, sentence) or .txt; a "
    "folder or a glob of them. Without it: the text that ships with cq.",
)
@click.option(
    "--calibration",
    multiple=True,
    metavar="FILE",
    help="Such files again, others than the data, to calibrate "
    f"static on, and to train on; at most {CALIBRATION_SAMPLES} samples are taken, evenly spread.",
)
@click.option(
    "--metric",
    type=click.Choice(["perplexity", "bits_per_token", "top1", "kl", "flips", "spearman", "cosine"]),
    help="Accuracy to report.",
)
@click.option(
    "--strategy", "names", multiple=True, type=click.Choice(list(STRATEGIES)), help="Only these; may be repeated."
)
@click.option(
    "--qat",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Also train behind static int8, for so many steps on the calibration samples: minutes rather than seconds.",
)
@learning_rate_option
@click.option(
    "--mix", "mix_file", metavar="FILE", help="Also the mix in the record that `cq quantize --strategy mixed` wrote."
)
@click.option(
    "--with",
    "ready",
    multiple=True,
    metavar="FILE",
    help="Also this checkpoint, which `cq quantize` made of MODEL; may be repeated.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N samples of the data, evenly spread.")
@click.option(
    "--full",
    is_flag=True,
    help="Evaluate a language model on all of the data, also where part of it gives the perplexity to 0.1 %.",
)
@click.option(
    "--layers",
    is_flag=False,
    flag_value="worst",
    type=click.Choice(["worst", "all"]),
    help="Also quantize each layer alone: what it costs and what would help. Shows the layers that are worth a change "
    "[default], or all.",
)
@click.option(
    "--plot",
    "plot_file",
    metavar="FILE",
    help="Draw accuracy against speed and memory, and the layers, as .svg, .png or .pdf; needs the extra cquant[plot].",
)
@click.option(
    "--check-order",
    "ordered",
    is_flag=True,
    help="Fail unless accuracy falls from weight-only to dynamic to static "
    "where schemes are equal, in SQNR, and rises with --qat.",
)
@rotated_option
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - is stdout.")
@click.option("--markdown", "markdown_file", metavar="FILE", help="Write the report as Markdown; - is stdout.")
def compare_command(
    model: str | None,
    data: Sequence[str | Path],
    calibration: Sequence[str | Path],
    metric: str | None,
    names: tuple[str, ...],
    qat: int | None,
    learning_rate: float | None,
    mix_file: str | None,
    ready: tuple[str | Path, ...],
    limit: int | None,
    full: bool,
    layers: str | None,
    plot_file: str | None,
    ordered: bool,
    rotated: bool,
    json_file: str | None,
    markdown_file: str | None,
) -> None:
    """float32 and every strategy side by side: size, memory, speed and accuracy.

    MODEL is a Hugging Face folder, owner/name on its hub, .safetensors, .npz, .gguf or a cq checkpoint; without it, the
    small model in the wheel, beside which lies what quantization-aware training made of it."""
    if json_file == markdown_file == "-":
        raise click.UsageError("only one of --json and --markdown can go to stdout")
    if learning_rate is not None and not qat:
        raise click.UsageError("--learning-rate is for --qat")
    for target in (json_file, markdown_file, plot_file):
        check_target(target)
    if plot_file:
        check_plot(plot_file)
    name = Path(model).name if model else samples.shipped_model().name
    if model is None or not data:
        calibration = calibration or [samples.shipped_model() / "calibration.txt"]
    data = data or [samples.shipped_model() / "evaluation.txt"]
    if model is None and not (names or qat or rotated):
        ready = (samples.shipped_model() / "qat.safetensors", *ready)
    float32 = opened(model or samples.shipped_model(), rotated)
    chosen: list[Chosen | Path] = [
        s
        for s in default_strategies(qat, QAT.learning_rate if learning_rate is None else learning_rate)
        if not names or s.name in names or isinstance(s, QAT)
    ]
    chosen += [best_of(mix_file)] if mix_file else []
    chosen += map(Path, ready)
    with terminal.progress() as progress:
        judged = samples.read([Path(path) for path in data], float32)
        judged = judged.limit(limit) if limit else judged
        given = calibration_of(calibration, float32)
        alone = bool(layers or plot_file)
        report = compare(float32, judged, chosen, given, metric, progress, layers=alone, full=full).named(name)
    write(json_file, report.to_json() + "\n")
    write(markdown_file, report.to_markdown())
    if plot_file:
        plot(report, plot_file)
    if "-" not in (json_file, markdown_file):
        terminal.console().print(
            report.table(), *([report.layers.show(layers == "all")] if layers and report.layers else [])
        )
    if ordered:
        click.echo(check_order(report, chosen), err="-" in (json_file, markdown_file))
