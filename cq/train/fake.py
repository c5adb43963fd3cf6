"""Fake quantization: floats rounded to the codes that int8 will hold, and gradients that pass straight through the
rounding but not outside the range (Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877). Knows no
layers.

Codes stay centered, q - z, in floats, which gradients need; beside them lie the same in bytes, whose products are the
integer model's own: what it will give, and several times as fast as in floats."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .. import _core, affine, observers
from ..errors import CqError
from ..model.forms import Fixed, PerTensor, PerToken, Smoothed, Stretched
from ..plan import WeightCoding
from .passes import dot, dot_rows, to_codes


class Codes(NamedTuple):
    """values (rows, n): centered codes q - z, which stand for scale * values; scale a number, one per row (rows, 1),
    per row and head (rows, heads) or, for weights, per output (rows,). scale None: the values are the numbers
    themselves. stored: the same in bytes, for integer products; None: there are none."""

    values: np.ndarray
    scale: float | np.ndarray | None = None
    stored: _core.Coded | None = None

    def floats(self) -> np.ndarray:
        """Of all but codes per head."""
        return self.values if self.scale is None else self.values * self.scale

    @property
    def scales(self) -> np.ndarray:
        """The scale, where there are several."""
        assert isinstance(self.scale, np.ndarray), f"codes have {self.scale!r} for a scale"
        return self.scale

    @property
    def one_scale(self) -> float:
        """The scale, where it is one number."""
        assert self.scale is not None and not isinstance(self.scale, np.ndarray), "codes have several scales"
        return self.scale


def in_bytes(stored: np.ndarray | None, scale: ArrayLike, low: ArrayLike) -> _core.Coded | None:
    """Codes from `low` on, uint8 (rows, n), as integer products take them: scale and low are numbers or one per row."""
    if stored is None:
        return None
    scales, zero_points = np.ravel(np.asarray(scale, np.float32)), np.ravel(-np.asarray(low)).astype(np.int32)
    return _core.Coded(
        stored,
        np.array(np.broadcast_to(scales, len(stored))) if scales.size > 1 else scales[0],
        np.array(np.broadcast_to(zero_points, len(stored))) if zero_points.size > 1 else zero_points[0],
    )


def find_outside(x: np.ndarray, clipped: np.ndarray, scale: ArrayLike, low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """Flat indices of what `to_codes` clipped; the same parameters."""
    rows = np.flatnonzero(clipped)
    parameters = (np.asarray(p, x.dtype) for p in (scale, low, high))
    scales, lows, highs = (p[rows] if p.ndim and len(p) == len(x) else p for p in parameters)
    codes = np.rint(x[rows] / scales)
    at, columns = np.nonzero((codes < lows) | (codes > highs))
    return np.asarray(rows[at] * x.shape[1] + columns)


def extremes(x: np.ndarray, name: str) -> tuple[float, float]:
    """Smallest and largest element. Raises CqError naming `name` for NaN and Inf."""
    if x.dtype == np.float32:
        try:
            return _core.min_max(x)
        except CqError:
            affine.check_finite(x, name)
            raise
    affine.check_finite(x, name)
    return float(x.min()), float(x.max())


class Exact:
    """Parameters from the very values, per token or per tensor, as dynamic quantization finds them: nothing is clipped,
    so gradients pass unchanged."""

    def __init__(self, name: str, form: PerToken | PerTensor):
        self.name, self.form = name, form

    def __call__(self, x: np.ndarray) -> Codes:
        ends = extremes(x, self.name)
        dtype, symmetric = self.form.dtype, self.form.symmetric
        per_token = isinstance(self.form, PerToken)
        if per_token:
            ends = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
        scale, zero_point = affine.dynamic_qparams(*ends, dtype, symmetric)
        qmin, qmax = affine.code_range(dtype, symmetric)
        scale, low, high = (np.asarray(p).astype(x.dtype)[()] for p in (scale, qmin - zero_point, qmax - zero_point))
        codes, stored, _ = to_codes(x, scale, low, high)
        return Codes(codes, scale if per_token else float(scale), in_bytes(stored, scale, low))

    def backward(self, g: np.ndarray) -> np.ndarray:
        return g


class ExactHeads(Exact):
    """int8 symmetric, by the largest magnitude of each token's part of each head, as dynamic attention has queries,
    keys and values."""

    def __init__(self, name: str, dim: int):
        self.name, self.dim = name, dim

    def __call__(self, x: np.ndarray) -> Codes:
        rows = x.reshape(-1, self.dim)
        extremes(x, self.name)
        scale, _ = affine.dynamic_qparams(
            rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True), "int8", True
        )
        scale = scale.astype(x.dtype)
        return Codes(to_codes(rows, scale, -127, 127)[0].reshape(x.shape), scale.reshape(len(x), -1))


class Clipping:
    """What sites of a fixed range share: gradients stop where the latest array was clipped."""

    _outside: np.ndarray = np.empty(0, np.int64)

    def backward(self, g: np.ndarray) -> np.ndarray:
        """The gradient of what was coded from that of the codes' values, in place: none outside the range."""
        g.reshape(-1)[self._outside] = 0
        return g

    def forget(self) -> None:
        """Frees what the reverse needs."""
        self._outside = Clipping._outside

    def _encode(self, x: np.ndarray, form: Fixed, scale: float, zero_point: int) -> Codes:
        qmin, qmax = affine.code_range(form.dtype, form.symmetric)
        ends = x.dtype.type(scale), qmin - zero_point, qmax - zero_point
        codes, stored, clipped = to_codes(x, *ends)
        self._outside = find_outside(x, clipped, *ends)
        return Codes(codes, scale, in_bytes(stored, scale, ends[1]))


class Ranged(Clipping):
    """One fixed range for a tensor, as static quantization has it: a moving average of each array's smallest and
    largest element (as observers.MovingAverage, beginning at the first array's) while `observing`, at rest afterwards.

    state: float64 (lo, hi, arrays seen)."""

    momentum = 0.01

    def __init__(self, name: str, form: Fixed):
        """form: says the codes; its parameters are not looked at."""
        self.name, self.form, self.observing = name, form, True
        self.state: np.ndarray = np.zeros(3)
        self._params, self._of = (1.0, 0), (np.nan, np.nan)

    def params(self) -> tuple[float, int]:
        """Scale (a float32's value) and zero point of the range, by affine.qparams."""
        lo, hi, _ = self.state
        if self._of != (lo, hi):
            scale, zero_point = affine.qparams(lo, hi, self.form.dtype, self.form.symmetric)
            self._params, self._of = (float(scale), int(zero_point)), (lo, hi)
        return self._params

    def __call__(self, x: np.ndarray) -> Codes:
        lo, hi = extremes(x, self.name)
        if self.observing:
            weight = self.momentum if self.state[2] else 1.0
            self.state[:2] += weight * (np.array((lo, hi)) - self.state[:2])
            self.state[2] += 1
        return self._encode(x, self.form, *self.params())


class Learned(Clipping):
    """A range whose scale is a parameter, learned step size quantization (Esser et al. 2020, arXiv:1902.08153); the
    zero point rests. scale, gradient: (1,) views of the parameter and of its gradient, which `backward` adds to."""

    def __init__(self, name: str, form: Fixed, scale: np.ndarray, add_gradient: Callable[[np.ndarray], None]):
        """form: where the range begins, its scale in `scale` already."""
        self.name, self.form, self.scale, self.zero_point = name, form, scale, form.zero_point
        self.add_gradient = add_gradient
        self._kept: tuple[np.ndarray, Codes] | None = None  # of the latest array: what its reverse needs

    def params(self) -> tuple[float, int]:
        return float(np.float32(self.scale[0])), self.zero_point

    def ends(self) -> tuple[float, float]:
        """The range, as numbers."""
        codes = affine.code_range(self.form.dtype, self.form.symmetric)
        lo, hi = (float(self.scale[0]) * (code - self.zero_point) for code in codes)
        return lo, hi

    def span(self, lo: float, hi: float) -> None:
        """Sets scale and zero point to the range lo … hi."""
        scale, zero_point = affine.qparams(lo, hi, self.form.dtype, self.form.symmetric)
        self.scale[...], self.zero_point = scale, int(zero_point)

    def __call__(self, x: np.ndarray) -> Codes:
        extremes(x, self.name)
        codes = self._encode(x, self.form, *self.params())
        self._kept = x, codes
        return codes

    def backward(self, g: np.ndarray) -> np.ndarray:
        """As Ranged; the step's own gradient is sum(g * (codes - x / s inside the range)), times 1 / sqrt(n * largest
        code) for n features, which balances its steps with those of the weights."""
        assert self._kept is not None, "backward comes after a forward"
        (x, codes), self._kept = self._kept, None
        qmin, qmax = affine.code_range(self.form.dtype, self.form.symmetric)
        largest = max(self.zero_point - qmin, qmax - self.zero_point)
        total = dot(g, codes.values)
        super().backward(g)
        total -= dot(g, x) / self.params()[0]
        self.add_gradient(np.array([total / np.sqrt(g.shape[1] * largest)]))
        return g

    def forget(self) -> None:
        super().forget()
        self._kept = None


class Resting(Clipping):
    """Scales and shifts of each feature's own (cq.smooth), which rest: clip(rint(x / own) + own zero point), centered.
    What reads them has them folded in its weights and bias, and sees one scale: the codes stand for (x - shift) /
    factor."""

    def __init__(self, name: str, form: Smoothed):
        self.name, self.form = name, form

    def __call__(self, x: np.ndarray) -> Codes:
        extremes(x, self.name)
        qmin, qmax = affine.code_range(self.form.dtype, self.form.symmetric)
        own, zero_points = (p.astype(x.dtype) for p in (self.form.columns.scale, self.form.columns.zero_point))
        limits = own, qmin - zero_points, qmax - zero_points
        codes, stored, clipped = to_codes(x, *limits, zero_points - self.form.zero_point)
        self._outside = find_outside(x, clipped, *limits)
        return Codes(codes, self.form.scale, in_bytes(stored, self.form.scale, qmin - self.form.zero_point))

    def backward(self, g: np.ndarray) -> np.ndarray:
        super().backward(g)
        g *= (self.form.scale / self.form.columns.scale).astype(g.dtype)
        return g


class Stretching:
    """The same of codes that a token may stretch: without shifts, and nothing is clipped, so gradients pass
    unchanged but for the scales."""

    def __init__(self, name: str, form: Stretched):
        self.name, self.form = name, form

    def __call__(self, x: np.ndarray) -> Codes:
        extremes(x, self.name)
        form, columns = self.form, self.form.columns
        steps = np.abs(x * columns.inverse).max(axis=1, keepdims=True).astype(np.float64)
        mantissa, exponent = np.frexp(steps / 127.5)
        power = np.ldexp(1.0, np.maximum(exponent - (mantissa == 0.5), 0)).astype(x.dtype)
        qmin, qmax = affine.code_range(form.dtype, form.symmetric)
        low, high = qmin - form.zero_point, qmax - form.zero_point
        codes, stored, _ = to_codes(x / power, columns.scale.astype(x.dtype), low, high)
        scale = power * x.dtype.type(form.scale)
        return Codes(codes, scale, in_bytes(stored, scale, low))

    def backward(self, g: np.ndarray) -> np.ndarray:
        g *= (self.form.scale / self.form.columns.scale).astype(g.dtype)
        return g


class WeightRange:
    """Codes of a weight (outputs, inputs) by its own smallest and largest elements, as the conversion makes them: per
    tensor, per output, or per group of inputs. Nothing is clipped (affine, the two ends' half steps are), so gradients
    pass unchanged."""

    def __init__(self, name: str, coding: WeightCoding):
        self.name, self.coding = name, coding

    def __call__(self, w: np.ndarray, whole: np.ndarray | None = None) -> Codes:
        """whole: the weight of which `w` are some outputs."""
        if self.coding.granularity == "per_group":
            return Codes(self._grouped(w))
        if self.coding.granularity == "per_channel":
            lo, hi = w.min(axis=1), w.max(axis=1)
            affine.check_finite(np.array((lo, hi)), self.name)
        else:
            lo, hi = extremes(w if whole is None else whole, self.name)
        scale, zero_point = affine.qparams(lo, hi, "int8", self.coding.symmetric)
        scale = scale.astype(w.dtype)
        limits = self._limits(scale, zero_point)
        codes, stored, _ = to_codes(w, *limits)
        return Codes(codes, scale, in_bytes(stored, scale, limits[1]))

    def _limits(self, scale: np.ndarray, zero_point: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As to_codes takes it."""
        qmin, qmax = affine.code_range("int8", self.coding.symmetric)
        limits = scale, qmin - zero_point, qmax - zero_point
        if scale.ndim:
            return scale[:, None], limits[1][:, None], limits[2][:, None]
        return limits

    def _grouped(self, w: np.ndarray) -> np.ndarray:
        """The weight dequantized: with several scales to a row, sums are no whole numbers anyway."""
        result, size = np.empty_like(w), self.coding.group_size
        assert size is not None, "a weight with a scale per group says the group's size"
        for start in range(0, w.shape[1], size):
            part = np.ascontiguousarray(w[:, start : start + size])
            codes = WeightRange(self.name, WeightCoding(self.coding.symmetric))(part)
            np.multiply(codes.values, codes.scales[:, None], out=result[:, start : start + size])
        return result


class LearnedWeight(WeightRange):
    """A weight's codes at learned scales, () or one per output (outputs,); zero points rest."""

    def __init__(self, name: str, coding: WeightCoding, scale: np.ndarray, zero_point: np.ndarray):
        super().__init__(name, coding)
        self.scale, self.zero_point = scale, zero_point
        self._latest: tuple[np.ndarray, np.ndarray] | None = None  # of the weight: its codes, and what was clipped

    def params(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 scale and int32 zero point, of the scale's shape."""
        return self.scale.astype(np.float32), self.zero_point

    def ends(self) -> tuple[float, float]:
        """The range of a weight with one scale, as numbers."""
        codes = affine.code_range("int8", self.coding.symmetric)
        lo, hi = (float(self.scale) * (code - int(self.zero_point)) for code in codes)
        return lo, hi

    def span(self, lo: float, hi: float) -> None:
        """Sets its scale and zero point to the range lo … hi."""
        self.scale[...], self.zero_point = affine.qparams(lo, hi, "int8", self.coding.symmetric)

    def __call__(self, w: np.ndarray, whole: np.ndarray | None = None) -> Codes:
        """w: the whole weight, whose outputs have scales of their own."""
        scale = self.params()[0].astype(w.dtype)
        limits = self._limits(scale, self.zero_point)
        codes, stored, clipped = to_codes(w, *limits)
        self._latest = codes, find_outside(w, clipped, *limits)
        return Codes(codes, scale, in_bytes(stored, scale, limits[1]))

    def forget(self) -> None:
        """Frees what the reverse would have to find again."""
        self._latest = None

    def backward(self, w: np.ndarray, g: np.ndarray) -> np.ndarray:
        """g: the gradient of the weight's rounded values, made in place that of the weight. Returns the scales'
        gradient, as in Learned, n being the number of weights that share a scale."""
        if self._latest is None:
            self(w)
        assert self._latest is not None, "a call keeps them"
        codes, outside = self._latest
        largest = 127 if self.coding.symmetric else np.maximum(128 + self.zero_point, 127 - self.zero_point)
        over = dot_rows if self.scale.ndim else dot
        total = np.asarray(over(g, codes), g.dtype)
        g.reshape(-1)[outside] = 0
        total = total - np.asarray(over(g, w), g.dtype) / self.params()[0]
        return np.asarray(np.asarray(total, np.float64) / np.sqrt(w.size // self.scale.size * largest))


def fake_bias(
    bias: np.ndarray, kind: str, fixed: bool, x: Codes, w: Codes
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(codes to add to the integer sums, floats to add after scaling), one of them None, as the conversion stores the
    bias: int32 at x's scale * w's where x's is fixed, int8 affine, or float32."""
    if kind == "int32" and fixed:
        return np.rint(bias.astype(np.float64) / (x.one_scale * np.asarray(w.scale, np.float64))), None
    if kind == "int8":
        scale, zero_point = affine.qparams(bias.min(), bias.max(), "int8")
        codes = affine.quantize(bias, scale, zero_point, "int8")
        return None, affine.dequantize(codes, scale, zero_point).astype(bias.dtype)
    return None, bias


def first_scale(weight: np.ndarray, coding: WeightCoding) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point that a weight's learning begins with."""
    if coding.granularity == "per_channel":
        scale, zero_point = affine.qparams(weight.min(axis=1), weight.max(axis=1), "int8", coding.symmetric)
    else:
        # one range for all is wide for a few: MiniLM's textbook weights alone keep 0.987 of cosine, 0.995 by error
        observer = observers.MSE()
        observer.update(weight)
        scale, zero_point = observer.qparams("int8", coding.symmetric)
    return np.asarray(scale), np.asarray(zero_point)
