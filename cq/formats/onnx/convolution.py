"""The convolution beside a model's first layer in an ONNX graph."""

import numpy as np

from ...model.convolution import Convolution
from ...model.deferred import Deferred
from .graph import Graph
from .linear import activated
from .places import Places


def convolved(graph: Graph, convolution: Convolution, x: str, keep: str | None, places: Places) -> str:
    """act(convolution of x), float32 (tokens, hidden). keep: bool (tokens, 1), which of x's rows are no padding; the
    others are 0 to their neighbours."""
    product = convolution.product
    inputs, outputs = product.shape
    hidden, kernel = outputs, inputs // outputs

    def turned() -> np.ndarray:
        return np.ascontiguousarray(product.weight.reshape(hidden, kernel, hidden).swapaxes(1, 2))

    with graph.inside("convolution"):
        x = x if keep is None else graph.add("Where", keep, x, np.float32(0))
        x = graph.add("Transpose", places.apart(x, hidden), perm=[0, 2, 1])
        weight = graph.constant("convolution.weight", Deferred((hidden, hidden, kernel), np.float32, turned))
        x = graph.add("Conv", x, weight, product.bias, pads=[kernel // 2, kernel // 2])
        x = graph.add("Reshape", graph.add("Transpose", x, perm=[0, 2, 1]), np.array([-1, hidden]))
        return activated(graph, x, product.activation)
