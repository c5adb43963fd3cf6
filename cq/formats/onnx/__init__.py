"""ONNX out: a model, float32 or quantized, as a graph of standard operators that other runtimes run."""

from pathlib import Path

from ...model import Transformer
from .network import drawn


def export_onnx(model: Transformer, path: Path) -> None:
    """Writes the model's graph (opset 21) whole or not at all; see `cq.export`."""
    drawn(model).write(path)
