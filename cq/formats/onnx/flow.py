"""What flows between layers in an ONNX graph, and how it becomes codes. All are uint8: codes of int8 are moved up by
128, with their zero points, which gives the same sums and is what fast kernels take."""

from typing import NamedTuple, TypeGuard

import numpy as np

from ... import _core, affine
from ...model.forms import Fixed, Form, PerTensor, PerToken, Smoothed, Stretched
from .graph import Graph, Operand

MOVED = {"uint8": 0, "int8": 128}  # how far codes of each type are moved to be uint8
_LAST = np.array([-1])
_NONE = np.float32(0)
_POWERS = np.ldexp(np.float32(1), np.arange(121))  # by which a token may stretch its scales


class Coded(NamedTuple):
    """uint8 codes (tokens, n) with parameters found at inference: scale and zero point, scalars, or, where
    `per_token`, (tokens, 1). A zero point is uint8, or int32 where scales are per token."""

    codes: str
    scale: Operand
    zero_point: Operand
    per_token: bool


def folds(form: Form) -> TypeGuard[Smoothed]:
    """Whether codes have features' own parameters that may be folded into what stands before them."""
    return isinstance(form, Smoothed) and not isinstance(form, Stretched)


def folded(form: Smoothed) -> tuple[np.ndarray, np.ndarray]:
    """What stands before codes by features' own parameters, float64 (features,): x * factor + shift has the codes that
    x has, by one scale and one zero point for all."""
    own, scale = form.columns, float(form.scale)
    factor = scale / own.scale[0].astype(np.float64)
    return factor, (own.zero_point[0].astype(np.float64) - int(form.zero_point)) * scale


class Flow:
    """An activation (tokens of all sequences, padding among them, n): float32 and, made where they are first asked for,
    its codes."""

    def __init__(self, graph: Graph, values: str = "", keep: str | None = None):
        """values: in float32; "" where it comes in one form alone, see `add`. keep: bool (tokens, 1), which of its
        rows are no padding; None: all."""
        self.graph, self.values, self._keep = graph, values, keep
        self._decoded: dict[Form, str] = {}
        self._coded: dict[Form, Coded] = {}
        self._stretched: dict[Form, tuple[str, str]] = {}

    def add(self, form: Form, decoded: str) -> "Flow":
        """What its fixed codes stand for is known already."""
        self._decoded[form] = decoded
        return self

    def floats(self) -> str:
        """float32; what codes stand for where only they exist."""
        return self.values or next(iter(self._decoded.values()))

    def fixed(self, form: Fixed | Smoothed) -> str:
        """What fixed codes stand for, in float32: quantized and dequantized."""
        if form not in self._decoded:
            x = self.values
            if isinstance(form, Smoothed):
                x = affine_of(self.graph, x, *folded(form))
            self._decoded[form] = quantized(self.graph, x, form)
        return self._decoded[form]

    def stretched(self, form: Stretched) -> tuple[str, str]:
        """As the function `stretched`."""
        if form not in self._stretched:
            self._stretched[form] = stretched(self.graph, self.floats(), form)
        return self._stretched[form]

    def coded(self, form: PerToken | PerTensor) -> Coded:
        """Codes by parameters that are found at inference."""
        if form not in self._coded:
            self._coded[form] = found(self.graph, self.floats(), form, self._keep)
        return self._coded[form]


def affine_of(graph: Graph, x: str, factor: np.ndarray, shift: np.ndarray) -> str:
    """x * factor + shift, where they say anything."""
    if (factor != 1).any():
        x = graph.add("Mul", x, factor.astype(np.float32))
    return graph.add("Add", x, shift.astype(np.float32)) if shift.any() else x


def transformed(graph: Graph, x: str, features: int, block: int, axes: int) -> str:
    """x, of so many axes, the last of which are features, with Hadamard transforms taken of their blocks."""
    matrix = graph.constant(f"hadamard.{block}", _core.hadamard(np.eye(block, dtype=np.float32), block))
    if features == block:
        return graph.add("MatMul", x, matrix)
    blocks = graph.add("Reshape", x, np.array([0] * (axes - 1) + [-1, block]))
    return graph.add("Reshape", graph.add("MatMul", blocks, matrix), np.array([0] * (axes - 1) + [features]))


def quantized(graph: Graph, x: str, form: Fixed | Smoothed, factor: float = 1.0) -> str:
    """x * factor, through codes of one scale and one zero point for x, and back."""
    return decoded(graph, encoded(graph, x, form), form, factor)


def encoded(graph: Graph, x: str, form: Fixed | Smoothed) -> str:
    """x in codes of one scale and one zero point."""
    if form.symmetric:  # without the code -128
        x = graph.add("Max", x, np.float32(-127) * np.float32(form.scale))
    return graph.add("QuantizeLinear", x, np.float32(form.scale), _zero_point(form))


def decoded(graph: Graph, codes: str, form: Fixed | Smoothed, factor: float = 1.0) -> str:
    """What such codes stand for, times `factor`."""
    return graph.add("DequantizeLinear", codes, np.float32(form.scale) * np.float32(factor), _zero_point(form))


def stretched(graph: Graph, x: str, form: Stretched) -> tuple[str, str]:
    """x through codes that a token may stretch, and back: what they stand for before it is multiplied by the token's
    power of two, and that power (tokens, 1)."""
    scale, inverse = form.columns.scale, form.columns.inverse
    steps = graph.add("Div", x, scale)
    reach = steps if np.isnan(inverse).any() else graph.add("Mul", x, inverse)  # as the kernels find the power
    most = graph.add("ReduceMax", graph.add("Abs", reach), _LAST, keepdims=1)
    passed = graph.add("Greater", most, np.float32(127.5) * _POWERS[:-1])
    doublings = graph.add("ReduceSum", graph.add("Cast", passed, to=graph.onnx.TensorProto.INT32), _LAST, keepdims=1)
    power = graph.add("Gather", _POWERS, doublings)
    steps = graph.add("Div", steps, power)
    if form.symmetric:  # without the code -128
        steps = graph.add("Max", steps, np.float32(-127))
    codes = graph.add("QuantizeLinear", steps, np.float32(1), _zero_point(form))
    return decoded(graph, codes, form), power


def _zero_point(form: Fixed | Smoothed) -> np.uint8:
    return np.uint8(int(form.zero_point) + MOVED[form.dtype])


def found(graph: Graph, x: str, form: PerToken | PerTensor, keep: str | None) -> Coded:
    """x in codes by parameters of its own: cq.affine.dynamic_qparams in the operators of ONNX, step by step."""
    if isinstance(form, PerTensor):
        if keep is not None:
            x = graph.add("Where", keep, x, _NONE)  # every range holds 0
        if form.dtype == "uint8":
            codes, scale, zero_point = graph.add_several("DynamicQuantizeLinear", 3, x)
            return Coded(codes, scale, zero_point, False)
    axes, each = (_LAST, 1) if isinstance(form, PerToken) else (None, 0)
    lo = graph.add("Min", graph.add("ReduceMin", x, axes, keepdims=each), _NONE)
    hi = graph.add("Max", graph.add("ReduceMax", x, axes, keepdims=each), _NONE)
    steps = np.float32(127 if form.symmetric else 255)
    span = graph.add("Max", graph.add("Neg", lo), hi) if form.symmetric else graph.add("Sub", hi, lo)
    scale = graph.add("Max", graph.add("Div", span, steps), np.float32(affine.SMALLEST_SCALE))
    nothing = graph.add("Equal", lo, hi)
    scale = graph.add("Where", nothing, np.float32(1), scale)
    moved = np.float32(MOVED[form.dtype])
    zero: Operand = moved
    if not form.symmetric:
        start = np.float32(affine.RANGES[form.dtype][0])
        place = graph.add("Clip", graph.add("Sub", start, graph.add("Div", lo, scale)), start, start + steps)
        place = graph.add("Round", place)
        zero = graph.add("Where", nothing, moved, graph.add("Add", place, moved) if moved else place)
    places = graph.add("Add", graph.add("Round", graph.add("Div", x, scale)), zero)
    codes = graph.add("QuantizeLinear", places, np.float32(1), np.uint8(0))
    if form.symmetric:
        return Coded(codes, scale, np.int32(moved) if each else np.uint8(moved), bool(each))
    kind = graph.onnx.TensorProto.INT32 if each else graph.onnx.TensorProto.UINT8
    return Coded(codes, scale, graph.add("Cast", zero, to=kind), bool(each))
