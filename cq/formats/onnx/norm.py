"""Norms in an ONNX graph."""

import numpy as np

from ...model.forms import Smoothed
from ...model.norm import Norm
from .flow import folded
from .graph import Graph


def normed(graph: Graph, x: str, norm: Norm, form: Smoothed | None = None) -> str:
    """x over its last axis, with weight and bias; form: with what stands before these codes folded into both."""
    weight, bias = norm.weight, norm.bias
    if form is not None:
        factor, shift = folded(form)
        weight = (weight * factor).astype(np.float32)
        moved = shift if bias is None else bias * factor + shift
        bias = moved.astype(np.float32) if moved.any() else None
    if not norm.rms:
        return graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)
    square = graph.add("ReduceMean", graph.add("Pow", x, np.float32(2)), np.array([-1]), keepdims=1)
    length = graph.add("Sqrt", graph.add("Add", square, np.float32(norm.eps)))
    y = graph.add("Mul", graph.add("Div", x, length), weight)
    return y if bias is None else graph.add("Add", y, bias)
