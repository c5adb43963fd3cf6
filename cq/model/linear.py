"""Linear layers: the float32 one and the one in codes that all strategies share. A layer knows the form that it reads; its
caller says the form that the next one reads. Knows no strategy: cq/quantize.py makes the layers."""
import numpy as np

from .. import _core, affine
from ..errors import CqError, UnsupportedError
from ..qtensor import QTensor, quantize_tensor
from .activation import Activation, Fixed, Form

INT32_MAX = 2**31 - 1


class Linear:
    """y = act(x weight.T + bias) in float32 through NumPy's BLAS; weight (out, in)."""
    runs_in = "float32"
    input_form: Form = None

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None = None, activation: str | None = None, reason: str = ""):
        self.weight, self.bias, self.activation, self.reason = weight, bias, activation, reason

    @property
    def shape(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        return self.weight.shape[1], self.weight.shape[0]

    def arrays(self) -> list[np.ndarray]:
        return [a for a in (self.weight, self.bias) if a is not None]

    def __call__(self, x: Activation, residual: np.ndarray | None = None, form: Form = None) -> Activation:
        y = x.floats() @ self.weight.T
        if self.bias is None and self.activation is None and residual is None and form is None:
            return Activation(y)
        return Activation.of(_core.finish(y, self.bias, self.activation, residual, form), form)


class QuantizedLinear:
    """The same with int8 weights. input_form None: float32 products (weight-only); else integer products of x's codes.

    weight: packed, one scale per output (or per group and output, weight-only). bias: float32, or a QTensor of int8 (per
    tensor) or int32 codes (at x_scale * w_scale, for a Fixed input)."""

    def __init__(self, weight: _core.Weight, bias: np.ndarray | QTensor | None, activation: str | None, input_form: Form,
                 runs_in: str):
        self.weight, self.bias, self.activation, self.input_form, self.runs_in = weight, bias, activation, input_form, runs_in
        self.reason = ""
        self._bias = self._bias_i32 = None
        if isinstance(bias, QTensor):
            self._bias = bias.dequantize()
        elif bias is not None and bias.dtype == np.int32:
            self._bias_i32 = bias
        else:
            self._bias = bias

    @property
    def shape(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        return self.weight.shape

    def arrays(self) -> list[np.ndarray]:
        weight = self.weight
        return [a for a in (weight.panels, weight.column_sums, weight.zero_points, weight.scales, self._bias, self._bias_i32)
                if a is not None]

    def __call__(self, x: Activation, residual: np.ndarray | None = None, form: Form = None) -> Activation:
        y = _core.linear(x.take(self.input_form), self.weight, self._bias, self._bias_i32, self.activation, residual, form)
        return Activation.of(y, form)


def pack_weight(weight: QTensor) -> _core.Weight:
    """QTensor int8 (out, in), per tensor, along axis 0, or in groups along the inputs → packed (in, out)."""
    n, k = weight.shape
    if k > _core.MAX_K:
        raise UnsupportedError(f"weight: {k:,} inputs are more than the {_core.MAX_K:,} whose products always fit int32; "
                               "split the layer or leave it in float32")
    scale, zero_point = weight.scale, weight.zero_point
    if weight.axis is None:
        scale, zero_point = np.full((1, n), scale), np.full((1, n), zero_point)
    else:
        scale, zero_point = (np.ascontiguousarray(p.reshape(n, -1).T) for p in (scale, zero_point))
    check_depth(k, zero_point)
    return _core.pack(weight.data.T, zero_point.astype(np.int32) if zero_point.any() else None, scale.astype(np.float32),
                      weight.group_size or 0)


def check_depth(k: int, zero_point: np.ndarray) -> None:
    """Raises UnsupportedError where k products of codes with these weight zero points may overflow int32."""
    widest = max(127 - int(zero_point.min(initial=0)), int(zero_point.max(initial=0)) + 128)
    if k > INT32_MAX // (255 * widest):
        raise UnsupportedError(f"weight: with zero points, sums over {k:,} inputs may overflow int32 (limit "
                               f"{INT32_MAX // (255 * widest):,}); use symmetric weights")


def quantize_weight(weight: np.ndarray, symmetric: bool, granularity: str, group_size: int | None) -> QTensor:
    """weight float32 (out, in) → int8 codes, per tensor, per output channel, or per group of inputs."""
    axis = None if granularity == "per_tensor" else 0
    return quantize_tensor(weight, "int8", symmetric, axis, group_size)


def quantize_bias(bias: np.ndarray | None, kind: str, input_form: Form, weight: _core.Weight) -> np.ndarray | QTensor | None:
    """The bias as the scheme wants it: int8 affine, int32 codes where the input's scale is fixed, float32 elsewhere."""
    if bias is None:
        return None
    if kind == "int8":
        return quantize_tensor(bias, "int8")
    if kind == "float32" or not isinstance(input_form, Fixed):
        return bias
    codes = np.rint(bias.astype(np.float64) / (np.float64(input_form.scale) * weight.scales[0]))
    return codes.astype(np.int32) if np.abs(codes).max() <= bias_room(weight.k) else bias


def bias_room(k: int) -> int:
    """The largest int32 bias that fits beside any sum of k products of codes."""
    return INT32_MAX - min(INT32_MAX, k * 255 * 255)
