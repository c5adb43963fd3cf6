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
    help="Data to judge accuracy on: .tsv with sentence pairs (score, sentence, sentence) or .txt, a folder or a glob. "
    "May be repeated [default: the text that comes with cq].",
)
@click.option(
    "--calibration",
    multiple=True,
    metavar="FILE",
    help="Other files of the same kinds, to calibrate static and to train QAT on. At most "
    f"{CALIBRATION_SAMPLES} evenly spread samples are used. May be repeated.",
)
@click.option(
    "--metric",
    type=click.Choice(["perplexity", "bits_per_token", "top1", "kl", "flips", "spearman", "cosine"]),
    help="Accuracy metric [default: perplexity for a language model, Spearman or cosine for an encoder].",
)
@click.option(
    "--strategy",
    "names",
    multiple=True,
    type=click.Choice(list(STRATEGIES)),
    help="Compare only this strategy. May be repeated [default: all].",
)
@click.option(
    "--qat",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Add rows that are trained behind static int8 for STEPS steps on the calibration samples. Takes minutes.",
)
@learning_rate_option
@click.option(
    "--mix",
    "mix_file",
    metavar="FILE",
    help="Add a row for the mix in the record that `cq quantize --strategy mixed` wrote.",
)
@click.option(
    "--with",
    "ready",
    multiple=True,
    metavar="FILE",
    help="Add a row for a checkpoint that `cq quantize` made from MODEL. May be repeated.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Use at most N evenly spread samples of the data."
)
@click.option(
    "--full",
    is_flag=True,
    help="Evaluate all of the data. By default a language model is evaluated on as much of it as brings the standard "
    "error of each perplexity difference down to 0.1 %.",
)
@click.option(
    "--layers",
    is_flag=False,
    flag_value="worst",
    type=click.Choice(["worst", "all"]),
    help="Also quantize each layer alone, and show what it costs and what would help: for the layers that are worth a "
    "change (worst, the default) or for all.",
)
@click.option(
    "--plot",
    "plot_file",
    metavar="FILE",
    help="Draw accuracy against speed and memory as .svg, .png or .pdf. Needs the extra cquant[plot].",
)
@click.option(
    "--check-order",
    "ordered",
    is_flag=True,
    help="Fail unless the SQNR falls from weight-only to dynamic to static in each scheme, and QAT is more accurate "
    "than its target.",
)
@rotated_option
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON to FILE; - writes to stdout.")
@click.option(
    "--markdown", "markdown_file", metavar="FILE", help="Write the report as Markdown to FILE; - writes to stdout."
)
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
    """Measure float32 and every strategy side by side: size, memory, speed and accuracy.

    MODEL is a Hugging Face folder, a name such as owner/name on the Hub, or a .safetensors, .npz or .gguf file, in
    float32. Without MODEL, the small language model that comes with cq is compared, and its checkpoint made by QAT."""
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
