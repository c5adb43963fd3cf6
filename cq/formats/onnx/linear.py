"""Linear layers in an ONNX graph, as each strategy codes them. Knows no attention and no norms."""

import math
from typing import NamedTuple

import numpy as np

from ...errors import UnsupportedError
from ...model.deferred import Deferred, read
from ...model.forms import Fixed, PerTensor, PerToken, Smoothed, Stretched, has_one_scale
from ...model.linear import Linear, QuantizedLinear
from ...weights import Weight
from .flow import Coded, Flow
from .graph import Graph


class Fold(NamedTuple):
    """What a layer's outputs become: y * factor + shift, float64, one for each output or one for all."""

    factor: np.ndarray
    shift: np.ndarray


class Codes(NamedTuple):
    """A weight's codes int8 (inputs, outputs), or (outputs, inputs) where `by_output`, and its parameters: scalars, for
    each output (outputs,), or for groups of inputs (groups, outputs); zero_point int8, or None where it is 0."""

    name: str
    scale: np.ndarray
    zero_point: np.ndarray | None
    group_size: int
    by_output: bool

    def decoded(self, graph: Graph) -> str:
        """The weight in float32, for products that kernels may compute in codes."""
        attributes = {"axis": 0 if self.by_output or self.group_size else 1}
        if self.group_size:
            attributes["block_size"] = self.group_size
        return graph.add("DequantizeLinear", self.name, self.scale, self.zeros, **attributes)

    @property
    def zeros(self) -> np.ndarray:
        """The zero point, said even where it is 0: where it is left out, onnxruntime takes the codes to be uint8."""
        return np.zeros(self.scale.shape, np.int8) if self.zero_point is None else self.zero_point

    def scaled(self, factor: np.ndarray) -> "Codes":
        """With another factor for each output."""
        scale = np.asarray(self.scale * factor, np.float32)
        zero_point = self.zero_point
        if zero_point is not None and zero_point.shape != scale.shape:
            zero_point = np.broadcast_to(zero_point, scale.shape).copy()
        return self._replace(scale=scale, zero_point=zero_point)

    def turned(self, graph: Graph) -> "Codes":
        """As (inputs, outputs)."""
        if not self.by_output:
            return self
        return self._replace(name=graph.add("Transpose", self.name, perm=[1, 0]), by_output=False)


def codes_of(graph: Graph, weight: Weight, name: str, by_output: bool = False) -> Codes:
    """The codes of a packed weight as a constant called `name`.weight, or, where they are a word table's, `name`."""
    assert weight.scales is not None, "a model's weights have scales"
    k, n = weight.shape
    if by_output:
        graph.constant(name, Deferred((n, k), np.int8, lambda: weight.unpack().T))
    else:
        name = graph.constant(f"{name}.weight", Deferred((k, n), np.int8, weight.unpack), weight)
    scale, zero_point = weight.scales, weight.zero_points
    if all(a is None or (a == a[:1, :1]).all() for a in (scale, zero_point)):
        scale, zero_point = scale[0, 0], None if zero_point is None else zero_point[0, 0]
    elif len(scale) == 1:
        scale, zero_point = scale[0], None if zero_point is None else zero_point[0]
    group = 0
    if scale.ndim == 2:  # groups of one size, which OpenVINO wants, are parts of cq's, whose last may be shorter
        group = math.gcd(k, weight.group_size)
        of_part = np.arange(0, k, group) // weight.group_size
        scale, zero_point = scale[of_part], None if zero_point is None else zero_point[of_part]
    return Codes(name, scale, None if zero_point is None else zero_point.astype(np.int8), group, by_output)


def linear(
    graph: Graph, layer: Linear | QuantizedLinear, x: Flow, name: str, fold: Fold | None = None, table: str = ""
) -> str:
    """float32 (tokens, outputs) of a layer. fold: of what it gives, of a layer without activation. table: the
    constant that holds its weight (outputs, inputs), float32 or in codes, where others read it too."""
    with graph.inside(name):
        if isinstance(layer, Linear):
            y, bias = _float(graph, layer, x.floats(), name, table), layer.bias
            y = y if fold is None else graph.add("Mul", y, fold.factor.astype(np.float32))
        else:
            codes, bias = codes_of(graph, layer.weight, table or name, bool(table)), layer.bias_floats
            y = _product(graph, layer, x, codes if fold is None else codes.scaled(fold.factor))
        if fold is not None:
            bias = fold.shift if bias is None else bias * fold.factor + fold.shift
        y = graph.add("Add", y, bias.astype(np.float32)) if bias is not None and bias.any() else y
        return activated(graph, y, layer.activation)


def _float(graph: Graph, layer: Linear, x: str, name: str, table: str) -> str:
    if table:  # which stays as it lies
        return graph.add("Gemm", x, graph.constant(table, layer.source), transB=1)
    source = layer.source
    turned = Deferred(layer.shape, np.float32, lambda: read(source).T)
    return graph.add("MatMul", x, graph.constant(f"{name}.weight", turned, layer))


def _product(graph: Graph, layer: QuantizedLinear, x: Flow, codes: Codes) -> str:
    """x times a weight in codes, in float32."""
    form, weight = layer.input_form, codes.turned(graph)
    if has_one_scale(form):
        return _fixed(graph, layer, x.fixed(form), weight, form)
    if isinstance(form, (PerToken, PerTensor)):
        return _dynamic(graph, x.coded(form), weight, layer.weight)
    if isinstance(form, Stretched):
        decoded, power = x.stretched(form)
        return graph.add("Mul", graph.add("MatMul", decoded, weight.decoded(graph)), power)
    return graph.add("MatMul", x.floats(), weight.decoded(graph))


def _fixed(graph: Graph, layer: QuantizedLinear, x: str, codes: Codes, form: Fixed | Smoothed) -> str:
    """The same of codes with one scale that is known beforehand. A bias in codes is a part of their sum, as in cq, and
    in onnxruntime, whose kernel for this wants two axes: what it gives is the same float32."""
    bias = None
    if layer.bias_codes is not None:
        scale = np.float32(form.scale) * codes.scale
        bias = graph.add("DequantizeLinear", layer.bias_codes, scale, **{"axis": 0} if scale.ndim else {})
    return graph.add("Gemm", x, codes.decoded(graph), bias)


def _dynamic(graph: Graph, x: Coded, codes: Codes, weight: Weight) -> str:
    """A product of codes whose scale is known at inference. Where each token has parameters of its own, which kernels
    for MatMulInteger do not take, the columns' sums times zero points are taken off afterwards."""
    if x.per_token:
        zero = None if codes.zero_point is None else np.uint8(0)  # OpenVINO takes none that is left out before another
        total = graph.add("MatMulInteger", x.codes, codes.name, zero, codes.zero_point)
        total = graph.add("Sub", total, graph.add("Mul", x.zero_point, weight.column_sums))
    else:
        total = graph.add("MatMulInteger", x.codes, codes.name, x.zero_point, codes.zero_point)
    total = graph.add("Cast", total, to=graph.onnx.TensorProto.FLOAT)
    return graph.add("Mul", total, graph.add("Mul", x.scale, codes.scale))


def activated(graph: Graph, x: str, activation: str | None) -> str:
    """An activation by the name that cq has for it."""
    if activation in (None, "identity"):
        return x
    if activation == "silu":
        return graph.add("Mul", x, graph.add("Sigmoid", x))
    if activation in ("gelu", "gelu_tanh"):
        return graph.add("Gelu", x, approximate="tanh" if activation == "gelu_tanh" else "none")
    operators = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
    if activation not in operators:
        raise UnsupportedError(f"export to ONNX: no operator for the activation {activation!r}")
    return graph.add(operators[activation], x)


def capped(graph: Graph, x: str, cap: float | None) -> str:
    """cap * tanh(x / cap); without a cap x."""
    if not cap:
        return x
    return graph.add("Mul", graph.add("Tanh", graph.add("Div", x, np.float32(cap))), np.float32(cap))
