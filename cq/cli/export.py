"""The command `cq export`."""

from pathlib import Path

import click

from ..errors import CqError
from ..formats import export, load
from . import terminal
from .options import check_target, size_of

_FOLDER = "compressed-tensors"


@click.command("export")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format", "kind", type=click.Choice(["onnx", _FOLDER]), default="onnx", help="What to write [default: onnx]."
)
@click.option("--force", is_flag=True, help="Overwrite OUT, of ONNX.")
def export_command(model: str, out: Path, kind: str, force: bool) -> None:
    """MODEL for other runtimes: float32 or quantized as an ONNX graph (OUT.onnx) that onnxruntime and OpenVINO run;
    quantized as a folder OUT in the codes of compressed-tensors, which vLLM and transformers run."""
    if kind == _FOLDER:
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
