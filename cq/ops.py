"""int8 building blocks for use without a model: pack a weight, multiply, apply a linear layer. Arguments are checked
here."""

import reprlib
from functools import lru_cache

import numpy as np

from . import _core
from .affine import check_finite, check_unmasked
from .coding import pack_weight
from .errors import CqError
from .model.forms import Fixed, PerToken
from .model.overflow import check_layer
from .qtensor import QTensor
from .weights import Weight
from .weights import pack as pack_codes

PackedWeight = Weight
INT8, UINT8, FLOAT32 = np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.float32)
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)  # normal float32


def pack(b: np.ndarray | QTensor, zero_point: int | np.ndarray = 0) -> PackedWeight:
    """Reorders a weight into the layout that the kernels read, once, and sums its columns.

    Args:
        b: int8 array (K, N) of any strides; or a `QTensor` of int8 codes (K, N) with its own parameters, per tensor,
            per column (axis 1) or in groups along K, which `linear` needs. K is at most 65,793, so that no int32 sum
            can overflow.
        zero_point: Zero point of an int8 array: an integer from -128 to 127, or one for each column (N,). Leave it out
            for a `QTensor`.

    Returns:
        The packed weight. It can be pickled, and used by several threads at once.

    Raises:
        CqError: An argument has another type, shape or range.
    """
    if isinstance(b, QTensor):
        if b.data.ndim != 2 or b.data.dtype != np.int8 or b.axis not in (None, 1):
            raise CqError(
                f"b: need a QTensor of int8 (K, N), per tensor or with axis=1; got {b.data.dtype} {b.shape}, "
                f"axis={b.axis}"
            )
        if np.any(zero_point):
            raise CqError("zero_point: the QTensor has its own; leave this argument out")
        flip = None if b.axis is None else 0
        return pack_weight(QTensor(b.data.T, b.scale.T, b.zero_point.T, flip, b.group_size))
    b = _matrix(b, "b", (INT8,))
    if b.shape[0] > _core.MAX_K:
        raise CqError(f"b: K = {b.shape[0]:,} is above {_core.MAX_K:,}, where int32 sums may overflow; split K and add")
    zero_points = _zero_points(zero_point, "zero_point", (b.shape[1],), -128, 127)
    return pack_codes(b, np.ascontiguousarray(zero_points[None]) if zero_points.any() else None)


def matmul_integer(a: np.ndarray, w: PackedWeight, a_zero_point: int | np.ndarray = 0) -> np.ndarray:
    """Multiplies codes exactly: int32 (M, N) = (a - a_zero_point) (b - b_zero_point), as ONNX MatMulInteger.

    Args:
        a: uint8 or int8 array (M, K).
        w: Packed weight (K, N) from `pack`.
        a_zero_point: An integer in the range of `a`'s type, or one for each row (M,).

    Returns:
        int32 array (M, N).

    Raises:
        CqError: An argument has another type or shape, or a sum does not fit in int32, which needs a weight with zero
            points and K above 33,025.

    Example:
        >>> import numpy as np, cq
        >>> a, b = np.array([[1, 2]], np.uint8), np.array([[3], [4]], np.int8)
        >>> cq.matmul_integer(a, cq.pack(b)).item()
        11
    """
    a = _matrix(a, "a", (UINT8, INT8))
    _packed(w)
    low, high = (-128, 127) if a.dtype == INT8 else (0, 255)
    one = type(a_zero_point) is int and low <= a_zero_point <= high
    zero_points = a_zero_point if one else _zero_points(a_zero_point, "a_zero_point", (a.shape[0],), low, high)
    return _core.matmul_integer(_core.Coded(np.ascontiguousarray(a), 1.0, zero_points), w)


def linear(
    x: np.ndarray | QTensor,
    w: PackedWeight,
    bias: np.ndarray | None = None,
    activation: str | None = None,
    residual: np.ndarray | QTensor | None = None,
    out_scale: float | None = None,
    out_zero_point: int = 0,
    out_dtype: str = "int8",
) -> np.ndarray | QTensor:
    """Applies a linear layer with a quantized weight: act(x w + bias) + residual.

    Args:
        x: float32 array (M, K), which is multiplied in float32 by the weight dequantized on the fly; or a `QTensor` of
            int8 or uint8 codes (M, K), per tensor or per row (axis 0), which is multiplied in int8.
        w: Packed weight (K, N) from `pack` of a `QTensor`.
        bias: float32 array (N,), or None.
        activation: None, "relu", "gelu", "gelu_tanh" or "silu".
        residual: float32 array (M, N) or a `QTensor` of that shape, added after the activation; or None.
        out_scale: Scale of the result's codes, a positive normal float32. None returns float32.
        out_zero_point: Zero point of the result's codes.
        out_dtype: Type of the result's codes, "int8" or "uint8".

    Returns:
        float32 array (M, N), or, with `out_scale`, a `QTensor` of codes.

    Raises:
        CqError: An argument has another type, shape or range, or a result is not finite.
    """
    _packed(w)
    form = None
    if out_scale is not None:
        if out_dtype not in ("int8", "uint8"):
            raise CqError(f"out_dtype: need 'int8' or 'uint8', got {out_dtype!r}")
        low, high = (-128, 127) if out_dtype == "int8" else (0, 255)
        one = type(out_zero_point) is int and low <= out_zero_point <= high
        zero = out_zero_point if one else int(_zero_points(out_zero_point, "out_zero_point", (), low, high))
        form, scale, zero_point = _result(out_dtype, _scale(out_scale), zero)
    given: np.ndarray | _core.Coded
    if isinstance(x, QTensor):
        if w.group_size != w.k:
            raise CqError("w: int8 products take one scale per column; this weight has groups, so give x in float32")
        if w.zero_points is not None:  # without, no K that packs can overflow
            check_layer(w, PerToken("uint8", False))
        given = _coded(x, "x")
    else:
        given = _floats(x, "x", 2)
    added: np.ndarray | _core.Coded | None = None
    if isinstance(residual, QTensor):
        added = _coded(residual, "residual")
    elif residual is not None:
        added = _floats(residual, "residual", 2)
    bias = None if bias is None else _floats(bias, "bias", 1)
    stays = (form is not None or isinstance(given, _core.Coded)) and _stays_finite(given, w)
    if form is not None and not stays:  # as a code, Inf or NaN could not be told from a number
        raise CqError("x: with this weight, sums may pass the largest float32; scale the inputs down")
    y = _core.linear(given, w, bias, None, activation, added, form)
    if isinstance(y, _core.Coded):
        return QTensor.known(y.codes, scale, zero_point)
    if not stays or bias is not None or residual is not None:
        _check_finite(y, "the result of linear")
    return y


@lru_cache(256)
def _result(dtype: str, scale: float, zero_point: int) -> tuple[Fixed, np.ndarray, np.ndarray]:
    """The form of codes, and its parameters as a QTensor holds them: shared by results, hence not to be written. Kept,
    as making them takes longer than a small product."""
    parts = np.array(scale, np.float32), np.array(zero_point, np.int32)
    for part in parts:
        part.flags.writeable = False
    return Fixed(dtype, False, float(parts[0]), zero_point), *parts


def _check_finite(x: np.ndarray, name: str) -> None:
    """Raises where x, float32 and contiguous, holds NaN or Inf: one fast pass, and a slow one only to say where."""
    try:
        if x.size:
            _core.min_max(x)
    except CqError:
        check_finite(x, name)


def _stays_finite(x: np.ndarray | _core.Coded, w: PackedWeight) -> bool:
    """Whether no product can leave float32, whatever the codes."""
    if isinstance(x, _core.Coded):
        scale = x.scale
        largest = 255 * (float(scale.max(initial=0)) if isinstance(scale, np.ndarray) else scale)
    else:
        largest = float(np.abs(x).max(initial=0))
    return w.scales is None or largest * 255 * w.largest_scale * w.k <= LARGEST


def _packed(w: object) -> None:
    if not isinstance(w, PackedWeight):
        raise CqError(f"w: need a packed weight (cq.pack gives one), got {type(w).__name__}")


def _matrix(x: object, name: str, dtypes: tuple[np.dtype, ...]) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.dtype not in dtypes or x.ndim != 2:
        what = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise CqError(f"{name}: need a two-dimensional array of {' or '.join(map(str, dtypes))}, got {what}")
    check_unmasked(x, name)
    return np.asarray(x)  # a plain array: a class of its own may say other shapes than its memory has


def _floats(x: object, name: str, ndim: int) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.dtype != FLOAT32 or x.ndim != ndim:
        what = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise CqError(f"{name}: need a float32 array of {ndim} dimension{'s' * (ndim > 1)}, got {what}")
    check_unmasked(x, name)
    x = np.ascontiguousarray(np.asarray(x))
    _check_finite(x, name)
    return x


def _scale(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (float, int, np.floating)) or not SMALLEST <= value <= LARGEST:
        raise CqError(f"out_scale: need a positive normal float32, got {reprlib.repr(value)}")
    return float(value)


def _zero_points(value: object, name: str, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """int32 of `shape`, from an integer or an array of it."""
    try:
        array = np.array(np.asarray(value))  # a copy, which nobody changes once it is checked
    except ValueError:
        array = np.empty(0, object)
    fits = array.dtype.kind in "iu" and array.shape in ((), shape)
    if not fits or (array.size and (array.min() < low or array.max() > high)):
        raise CqError(
            f"{name}: need an integer from {low} to {high}{f' or an array of shape {shape}' if shape else ''}, "
            f"got {reprlib.repr(value)}"
        )
    return np.array(np.broadcast_to(array, shape), np.int32, order="C")


def _coded(x: QTensor, name: str) -> _core.Coded:
    """A QTensor (M, K), per tensor or per row, as the kernels read it."""
    if x.data.ndim != 2 or x.axis not in (None, 0) or x.group_size:
        raise CqError(
            f"{name}: need a two-dimensional QTensor, per tensor or with axis=0; got shape {x.shape}, axis={x.axis}"
        )
    low, high = (-128, 127) if x.dtype == INT8 else (0, 255)  # a QTensor keeps arrays that others may have written to
    if x.axis is None:
        zero_point = int(x.zero_point)
        if not low <= zero_point <= high:
            raise CqError(f"{name}.zero_point: need an integer from {low} to {high}, got {zero_point}")
        return _core.Coded(np.ascontiguousarray(x.data), float(x.scale), zero_point)
    zero_points = _zero_points(x.zero_point, f"{name}.zero_point", x.shape[:1], low, high)
    return _core.Coded(np.ascontiguousarray(x.data), np.array(x.scale), zero_points)
