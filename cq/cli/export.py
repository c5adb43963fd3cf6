"""The command `cq export`."""

from pathlib import Path

import click

from ..errors import CqError
from ..formats import export, load
from ..formats.compressed_config import METHOD
from . import terminal
from .options import check_target, size_of


@click.command("export", short_help="Write a model for other runtimes.")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format", "kind", type=click.Choice(["onnx", METHOD]), default="onnx", show_default=True, help="Format of OUT."
)
@click.option("--force", is_flag=True, help="Overwrite OUT if it exists; for ONNX.")
def export_command(model: str, out: Path, kind: str, force: bool) -> None:
    """Write MODEL for other runtimes.

    onnx writes a float32 or quantized model as an ONNX graph, a file that ends in .onnx, which onnxruntime and OpenVINO
    run. compressed-tensors writes a quantized model as a new folder, which vLLM and transformers run."""
    if kind == METHOD:
        export(load(model), out, kind)
        terminal.console().print(f"{out}: {size_of(out) / 1e6:.2f} MB")
        return
    check_target(out)
    if out.exists() and not force:
        raise CqError(f"{out} exists: choose another name or add --force")
    export(load(model), out)
    data = out.with_name(out.name + ".data")
    beside = f", with its weights in {data}" if size_of(out) < 1 << 20 and data.exists() else ""
    terminal.console().print(f"{out}: {size_of(out) / 1e6:.2f} MB{beside}")
