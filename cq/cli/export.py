"""The command `cq export`."""

from pathlib import Path

import click

from ..errors import CqError
from ..formats import export, load
from . import terminal
from .options import check_target, size_of


@click.command("export")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite OUT.")
def export_command(model: str, out: Path, force: bool) -> None:
    """MODEL, float32 or quantized, as an ONNX graph (OUT.onnx) that onnxruntime and OpenVINO run."""
    check_target(out)
    if out.exists() and not force:
        raise CqError(f"{out} exists: choose another name or add --force")
    export(load(model), out)
    data = out.with_name(out.name + ".data")
    beside = f", with its weights in {data}" if size_of(out) < 1 << 20 and data.exists() else ""
    terminal.console().print(f"{out}: {size_of(out) / 1e6:.2f} MB{beside}")
