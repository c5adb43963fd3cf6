"""The command `cq bench`."""

from collections.abc import Sequence
from pathlib import Path

import click

from ..formats import load
from ..model import Transformer
from ..quantize import quantize
from ..report import samples
from ..report.bench import bench
from ..strategies import STRATEGIES
from . import terminal
from .options import calibration_of, check_target, write


@click.command("bench", short_help="Time a model, as a share of the machine's peak.")
@click.argument("model", required=False)
@click.option(
    "--strategy",
    "names",
    multiple=True,
    type=click.Choice(["float32", *STRATEGIES]),
    help="Time only this strategy. May be repeated [default: all; static only with something to calibrate on].",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    type=terminal.Shape(),
    metavar="SEQUENCESxLENGTH",
    help="Shape of a batch of random tokens to time. May be repeated [default: 1x16 and 8x128].",
)
@click.option(
    "--calibration",
    multiple=True,
    metavar="FILE",
    help="Samples for static: .tsv or .txt files, folders or globs. May be repeated.",
)
@click.option("--profile", "profiled", is_flag=True, help="Also show how long each part of a forward pass takes.")
@click.option("--json", "json_file", metavar="FILE", help="Write the numbers as JSON to FILE; - writes to stdout.")
def bench_command(
    model: str | None,
    names: tuple[str, ...],
    shapes: tuple[tuple[int, int], ...],
    calibration: Sequence[str | Path],
    profiled: bool,
    json_file: str | None,
) -> None:
    """Show milliseconds, tokens per second and the percentage of the machine's peak for each strategy.

    MODEL is a Hugging Face folder, a name on the Hub, a .safetensors, .npz or .gguf file, or a checkpoint, which is
    timed as it is [default: the small model that comes with cq]. OMP_NUM_THREADS sets the number of threads."""
    check_target(json_file)
    title = model or samples.shipped_model().name
    calibration = calibration or (() if model else [samples.shipped_model() / "calibration.txt"])
    given = load(model or samples.shipped_model())
    if given.strategy and (names or calibration):
        raise click.UsageError(
            f"{title} is already quantized ({given.strategy.name}): --strategy and --calibration are for "
            "its float32 original"
        )
    with terminal.progress() as progress:
        models = {given.strategy.name: given} if given.strategy else _strategies(given, names, calibration, progress)
        report = bench(title, models, shapes or [(1, 16), (8, 128)], profiled, progress)
    write(json_file, report.to_json() + "\n")
    if json_file != "-":
        terminal.console().print(report.show())


def _strategies(
    model: Transformer, names: tuple[str, ...], calibration: Sequence[str | Path], progress: samples.Progress
) -> dict[str, Transformer]:
    """Name → the float32 model, and it quantized by each strategy named, or by all that can be."""
    names = names or ("float32", *(name for name in STRATEGIES if name != "static" or calibration))
    if calibration and "static" not in names:
        raise click.UsageError("--calibration is for static, which --strategy leaves out")
    found = {}
    for name in dict.fromkeys(names):
        given = calibration_of(calibration, model) if name == "static" else None
        found[name] = (
            model
            if name == "float32"
            else quantize(model, STRATEGIES[name](), given, lambda done, total: progress("calibrate", done, total))
        )
    return found
