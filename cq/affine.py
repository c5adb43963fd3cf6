"""The affine map q = clip(rint(x / s) + z) in plain NumPy, the executable specification that kernels are tested
against.

It must not know tensors' names, files, models or the compiled core. Formulas: Jacob et al. 2018 (arXiv:1712.05877),
with the rounding of ONNX QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear and MatMulInteger.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from cq.errors import CqError

RANGES = {"int8": (-128, 127), "uint8": (0, 255)}
SMALLEST_SCALE = np.finfo(np.float32).tiny  # 2**-126, the smallest normal: below it a division loses its precision
LARGEST = np.finfo(np.float32).max
# of a zero point of a feature's own, from the middle of the codes' range: what src/README.md's rounding allows
FARTHEST = 207
MAX_K = 65_793  # the longest sum of products 255 * 128 that int32 holds


def middle(dtype: DTypeLike) -> int:
    """The code in the middle of the range of `dtype`."""
    return 128 if np.dtype(dtype) == np.uint8 else 0


def code_range(dtype: DTypeLike, symmetric: bool = False) -> tuple[int, int]:
    """Smallest and largest code of `dtype` ("int8" or "uint8"); symmetric int8 leaves out -128. Else CqError."""
    try:
        name = np.dtype(dtype).name
    except (TypeError, ValueError, SyntaxError):
        name = None
    if name not in RANGES:
        raise CqError(f"dtype: got {dtype!r}, wanted one of {', '.join(map(repr, RANGES))}")
    if not symmetric:
        return RANGES[name]
    if name != "int8":
        raise CqError("symmetric: uint8 codes cannot be symmetric around 0; use dtype='int8' or symmetric=False")
    return -127, 127


def check_finite(x: np.ndarray, name: str) -> None:
    """Raise CqError with the first index of a NaN or Inf in `x` (a float array of any shape); empty arrays pass."""
    index = first_not_finite(x)
    if index is None:
        return
    what = {np.inf: "Inf", -np.inf: "-Inf"}.get(float(x[index]), "NaN")
    raise CqError(f"{name}: {what} at index {index}; wanted finite numbers, so look at what produced this array")


def first_not_finite(x: np.ndarray) -> tuple[int, ...] | None:
    """Index of the first NaN or Inf in `x` (a float array of any shape); None where all numbers are finite."""
    with np.errstate(invalid="ignore"):
        # min and max carry NaN and Inf along: two fast passes and no temporary array
        if x.size == 0 or (np.isfinite(x.min()) and np.isfinite(x.max())):
            return None
    return _first(~np.isfinite(x))


def check_unmasked(x: object, name: str) -> None:
    """Raises CqError for an array of numpy.ma of which values are masked: what lies under a mask is no number."""
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise CqError(f"{name}: a masked array, and masked values are missing; fill them first: x.filled(0)")


def as_float32(x: ArrayLike, name: str = "x") -> np.ndarray:
    """`x`, real floats of any width and shape, as float32: the very array where it is one already, so do not write to
    it.

    Raises CqError for other types, for NaN and Inf, and for numbers beyond the float32 range.
    """
    check_unmasked(x, name)
    try:
        given = np.asarray(x)
    except ValueError as error:
        raise CqError(f"{name}: cannot become an array: {error}") from None
    if given.dtype.kind != "f":
        raise CqError(f"{name}: got dtype {given.dtype}, wanted real floats; convert with .astype('float32')")
    check_finite(given, name)
    with np.errstate(over="ignore"):
        result = given.astype(np.float32, copy=False)
    if given.dtype.itemsize > 4 and not np.isfinite(result).all():
        index = _first(~np.isfinite(result))
        raise CqError(f"{name}: {given[index]} at index {index} does not fit in float32; scale the array down")
    return result


def qparams(
    lo: ArrayLike, hi: ArrayLike, dtype: DTypeLike = "int8", symmetric: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Scale (float32) and zero point (int32) that spread the codes of `dtype` over [lo, hi], widened to hold 0.

    lo, hi: numbers or arrays that broadcast, finite, lo <= hi. Worked out in float64:
    s = (hi - lo) / (qmax - qmin), z = clip(rint(qmin - lo / s)); symmetric: s = max(-lo, hi) / 127, z = 0.
    lo = hi = 0 gives (1, 0); a scale below 2**-126 becomes 2**-126. Scalars in, NumPy scalars out.
    """
    qmin, qmax = code_range(dtype, symmetric)
    lo, hi = _widened(lo, hi, np.float64)
    span = np.maximum(-lo, hi) / qmax if symmetric else (hi - lo) / (qmax - qmin)
    return _params(lo, hi, span, qmin, qmax, symmetric)


def dynamic_qparams(
    lo: ArrayLike, hi: ArrayLike, dtype: DTypeLike = "uint8", symmetric: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """As qparams, but worked out step by step in float32: for uint8 bit-equal to ONNX DynamicQuantizeLinear.

    lo, hi: smallest and largest element, float32. A range hi - lo beyond float32 is divided before it is subtracted.
    """
    qmin, qmax = code_range(dtype, symmetric)
    lo, hi = _widened(lo, hi, np.float32)
    steps = np.float32(qmax if symmetric else qmax - qmin)
    if symmetric:
        return _params(lo, hi, np.maximum(-lo, hi) / steps, qmin, qmax, symmetric)
    with np.errstate(over="ignore"):
        span = hi - lo
    scale = np.where(np.isfinite(span), span / steps, hi / steps - lo / steps)
    return _params(lo, hi, scale, qmin, qmax, symmetric)


def row_params(x: ArrayLike, dtype: DTypeLike = "uint8", symmetric: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Per-token dynamic parameters of x (M, K): scale (M,) float32, zero point (M,) int32, each row as
    dynamic_qparams."""
    x = as_float32(x)
    if x.ndim != 2 or x.shape[1] == 0:
        raise CqError(f"x: got shape {x.shape}, wanted (M, K) with K >= 1")
    return dynamic_qparams(x.min(axis=1), x.max(axis=1), dtype, symmetric)


def quantize(
    x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, dtype: DTypeLike = "int8", symmetric: bool = False
) -> np.ndarray:
    """Codes clip(rint(x / scale) + zero_point) of `dtype`, in float32 with halves to even: ONNX QuantizeLinear's bits.

    scale (float32, >= 2**-126) and zero_point (a code) broadcast to x's shape. NaN and Inf in x raise CqError.
    """
    qmin, qmax = code_range(dtype, symmetric)
    x = as_float32(x)
    scale = _checked_scale(scale, x.shape)
    zero_point = _checked_zero_point(zero_point, dtype, x.shape)
    result = np.empty(x.shape, np.float32)
    with np.errstate(over="ignore", under="ignore"):  # an overflowing quotient is +-Inf and clips as it should
        np.divide(x, scale, out=result)
    np.rint(result, out=result)
    np.add(result, zero_point.astype(np.float32), out=result)  # exact: beyond 2**24 it clips anyway
    np.clip(result, qmin, qmax, out=result)
    return result.astype(dtype)


def dequantize(codes: np.ndarray, scale: ArrayLike, zero_point: ArrayLike) -> np.ndarray:
    """float32 scale * (codes - zero_point): an int32 subtraction and one float32 product, as ONNX DequantizeLinear.

    codes: int8 or uint8; scale and zero_point broadcast to its shape. A product beyond float32, possible only at the
    outermost codes of a range near +-3.4e38, becomes the largest float32 and not Inf.
    """
    codes = _checked_codes(codes, "codes")
    scale = _checked_scale(scale, codes.shape)
    zero_point = _checked_zero_point(zero_point, codes.dtype, codes.shape)
    result = np.empty(codes.shape, np.float32)
    np.subtract(codes, zero_point, out=result, dtype=np.int32, casting="unsafe")
    with np.errstate(over="ignore"):
        np.multiply(result, scale, out=result)
    np.clip(result, -LARGEST, LARGEST, out=result)
    return result


def matmul_integer(
    a: np.ndarray, b: np.ndarray, a_zero_point: ArrayLike = 0, b_zero_point: ArrayLike = 0
) -> np.ndarray:
    """The exact int64 (M, N) product (a - a_zero_point) @ (b - b_zero_point) of codes a (M, K) and b (K, N).

    a_zero_point: a code or one per row (M,); b_zero_point: a code or one per column (N,), as in ONNX MatMulInteger.
    """
    a, b = _checked_codes(a, "a"), _checked_codes(b, "b")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise CqError(f"a, b: got shapes {a.shape} and {b.shape}, wanted (M, K) and (K, N)")
    rows = _checked_zero_point(a_zero_point, a.dtype, a.shape[:1], "a_zero_point").reshape(-1, 1)
    columns = _checked_zero_point(b_zero_point, b.dtype, b.shape[1:], "b_zero_point").reshape(1, -1)
    # float64 sums of products up to 255 * 255 are exact while K < 2**37, and BLAS makes them fast
    return np.asarray(np.matmul(a - rows.astype(np.float64), b - columns.astype(np.float64)), np.int64)


def layer(
    x_codes: np.ndarray,
    w_codes: np.ndarray,
    x_scale: ArrayLike,
    x_zero_point: ArrayLike,
    w_scale: ArrayLike,
    w_zero_point: ArrayLike,
    bias_i32: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    residual: ArrayLike | None = None,
) -> np.ndarray:
    """One quantized linear layer: float32 (M, N) act((t + bias_i32) * (x_scale * w_scale) + bias) + residual.

    x_codes (M, K) with x_scale, x_zero_point one or (M,); w_codes (K, N) with w_scale, w_zero_point one or (N,); t
    their exact integer product; bias_i32 (N,) in units of x_scale * w_scale; bias (N,), residual (M, N) float32;
    activation None, "relu", "gelu", "gelu_tanh" or "silu". Every step rounds once to float32. K > 65793 or a sum beyond
    int32: CqError.
    """
    total = matmul_integer(x_codes, w_codes, x_zero_point, w_zero_point)
    if w_codes.shape[0] > MAX_K:
        raise CqError(
            f"w_codes: K = {w_codes.shape[0]}, wanted at most {MAX_K}, beyond which int32 sums overflow; split K"
        )
    if bias_i32 is not None:
        limits = np.iinfo(np.int32)
        total = total + _checked_integers(bias_i32, limits.min, limits.max, total.shape[1:], "bias_i32")
    if (total != total.astype(np.int32)).any():
        raise CqError("x_codes, w_codes: a sum does not fit in int32; split K or use symmetric weights")
    rows = _checked_scale(x_scale, total.shape[:1], "x_scale").reshape(-1, 1)
    columns = _checked_scale(w_scale, total.shape[1:], "w_scale").reshape(1, -1)
    y = np.asarray(total.astype(np.float32) * (rows * columns))
    if bias is not None:
        y = y + _fits(as_float32(bias, "bias"), y.shape[1:], "bias")
    y = _activated(y, activation)
    if residual is None:
        return y
    return np.asarray(y + _fits(as_float32(residual, "residual"), y.shape, "residual"))


def _activated(y: np.ndarray, activation: str | None) -> np.ndarray:
    """Correctly rounded to float32 (up to float64's own error); kernels may differ from it by their stated bound."""
    if activation is None:
        return y
    if activation == "relu":
        return np.asarray(np.maximum(y, np.float32(0)))
    y = y.astype(np.float64)
    gate: np.ndarray
    if activation == "gelu":
        gate = np.asarray(np.frompyfunc(math.erfc, 1, 1)(-y * math.sqrt(0.5)), np.float64) / 2
    elif activation in ("gelu_tanh", "silu"):
        # (1 + tanh(u)) / 2 is the logistic function of 2u, which keeps its precision far below 0
        inner = y if activation == "silu" else math.sqrt(8 / math.pi) * (y + 0.044715 * y**3)
        with np.errstate(over="ignore"):
            gate = 1 / (1 + np.exp(-inner))
    else:
        raise CqError(f"activation: got {activation!r}, wanted None, 'relu', 'gelu', 'gelu_tanh' or 'silu'")
    return (y * gate).astype(np.float32)


def _widened(lo: ArrayLike, hi: ArrayLike, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """lo and hi as arrays of `dtype` that both have the broadcast shape and hold 0 between them."""
    ends: list[np.ndarray] = []
    for name, value in (("lo", lo), ("hi", hi)):
        value = np.asarray(value)
        if value.dtype.kind not in "iuf":
            raise CqError(f"{name}: got dtype {value.dtype}, wanted real numbers")
        check_finite(as_float32(value.astype(np.float64), name), name)
        ends.append(value.astype(dtype))
    try:
        lo, hi = np.broadcast_arrays(*ends)
    except ValueError:
        raise CqError(f"lo, hi: got shapes {ends[0].shape} and {ends[1].shape}, which do not broadcast") from None
    if (lo > hi).any():
        index = _first(lo > hi)
        raise CqError(f"lo, hi: lo {lo[index]} > hi {hi[index]} at index {index}; wanted lo <= hi")
    return np.minimum(lo, dtype(0)), np.maximum(hi, dtype(0))


def _params(
    lo: np.ndarray, hi: np.ndarray, scale: np.ndarray, qmin: int, qmax: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Bound the scale, find the zero point in lo's precision, answer the all-zero range, round to float32 and int32."""
    scale = np.maximum(scale, lo.dtype.type(SMALLEST_SCALE))
    empty = lo == hi
    if symmetric:
        zero_point = np.zeros(lo.shape)
    else:
        zero_point = np.rint(np.clip(lo.dtype.type(qmin) - lo / scale, qmin, qmax))
    scale = np.where(empty, 1, scale).astype(np.float32)
    return scale[()], np.where(empty, 0, zero_point).astype(np.int32)[()]


def _checked_scale(scale: ArrayLike, shape: tuple[int, ...], name: str = "scale") -> np.ndarray:
    scale = np.asarray(scale)
    scale = as_float32(scale.astype(np.float64) if scale.dtype.kind in "iu" else scale, name)
    if (scale < SMALLEST_SCALE).any():
        index = _first(scale < SMALLEST_SCALE)
        raise CqError(f"{name}: {scale[index]} at index {index}, wanted at least 2**-126; find it with qparams")
    return _fits(scale, shape, name)


def _checked_zero_point(
    zero_point: ArrayLike, dtype: DTypeLike, shape: tuple[int, ...], name: str = "zero_point"
) -> np.ndarray:
    return _checked_integers(zero_point, *code_range(dtype), shape, name)


def _checked_integers(values: ArrayLike, smallest: int, largest: int, shape: tuple[int, ...], name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise CqError(f"{name}: got dtype {values.dtype}, wanted integers")
    outside = (values < smallest) | (values > largest)
    if outside.any():
        index = _first(outside)
        raise CqError(f"{name}: {values[index]} at index {index}, wanted {smallest} to {largest}")
    return _fits(values.astype(np.int64), shape, name)


def _checked_codes(codes: np.ndarray, name: str) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.dtype.name not in RANGES:
        raise CqError(f"{name}: got dtype {codes.dtype}, wanted codes of dtype int8 or uint8; make them with quantize")
    return codes


def _fits(parameter: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    try:
        fits = np.broadcast_shapes(parameter.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise CqError(f"{name}: got shape {parameter.shape}, wanted one number or a shape that broadcasts to {shape}")
    return parameter


def _first(mask: np.ndarray) -> tuple[int, ...]:
    """Index, in plain ints, of the first true element of `mask`, which has one."""
    return tuple(map(int, np.unravel_index(int(np.argmax(mask)), mask.shape)))
