"""What training does to arrays: in C for float32, which trains (src/training.h, src/products.c), so that every CPU
gives the same bits, and by plain formulas for float64, in which gradients are checked. Knows no layers."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike

from .. import _core, functions
from ..errors import CqError

_SPAN, _PART = 4096, 1 << 20
_trainings: list[None] = []  # one for each that runs
_counting = threading.Lock()
# erfc(x) = exp(-x * x) * (a1 t + ... + a5 t**5), t = 1 / (1 + p x), x >= 0, to 1.5e-7: Abramowitz, Stegun 1964, 7.1.26
_P, _A = 0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Freed memory stays at hand for the next step, which makes the same arrays: with pages new from the system a step
    takes a sixth longer. It does so for the whole process, until the last training ends."""
    with _counting:
        _trainings.append(None)
        _core.keep_freed(True)
    try:
        yield
    finally:
        with _counting:
            _trainings.pop()
            _core.keep_freed(bool(_trainings))


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None, add: bool = False) -> np.ndarray:
    """a (..., m, k) @ b (..., k, n); add: added to `out`."""
    if a.dtype == np.float32:
        return functions.matmul(a, b, out, add)
    if add and out is not None:
        return np.asarray(np.add(out, a @ b, out=out))
    return np.asarray(np.matmul(a, b, out=out))


def column_sums(g: np.ndarray) -> np.ndarray:
    """(rows, n) → (n,)."""
    if g.dtype == np.float32:
        return _core.run_pass("column_sums", [np.ascontiguousarray(g)])[0]
    return np.asarray(g.sum(axis=0))


def dot_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(rows, n) each → (rows,)."""
    if x.dtype == np.float32:
        return _core.run_pass("dot_rows", [np.ascontiguousarray(x), np.ascontiguousarray(y)])[0]
    return np.asarray((x * y).sum(axis=1))


def dot(x: np.ndarray, y: np.ndarray) -> float:
    """Of all elements of two arrays of one shape: sums of _SPAN products in their precision, added in float64."""
    return dot_parts([(x, y)])


def dot_parts(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """`dot` of arrays that come in parts, one after another: each but the last of `whole_spans` rows."""
    sums, last = [], 0.0
    for x, y in parts:
        if x.dtype != np.float32:
            last += float((x * y).sum())
            continue
        x, y = x.reshape(-1), y.reshape(-1)
        whole = x.size // _SPAN * _SPAN
        sums.append(dot_rows(x[:whole].reshape(-1, _SPAN), y[:whole].reshape(-1, _SPAN)))
        last = float(dot_rows(x[None, whole:], y[None, whole:])[0])
    return float(np.concatenate(sums).sum(dtype=np.float64)) + last if sums else last


def whole_spans(columns: int) -> int:
    """So many rows, or a multiple, of an array are whole spans of `dot`: some _PART elements, or more where need be."""
    rows = _SPAN // math.gcd(columns, _SPAN)
    return max(1, _PART // (rows * columns)) * rows


def hadamard(x: np.ndarray, block: int | None) -> np.ndarray:
    """x (rows, n) with Hadamard transforms taken of its blocks of neighbours, in place or new; block None: as it is."""
    if block is None:
        return x
    if x.dtype == np.float32:
        return _core.hadamard(np.ascontiguousarray(x), block)
    matrix = np.ones((1, 1))
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(x.reshape(len(x), -1, block) @ (matrix / np.sqrt(block))).reshape(x.shape)


def activate(x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(act(x), its derivative) of x (rows, n): "gelu" (by erf, to 2e-7), "gelu_tanh", "silu" or "relu"."""
    if x.dtype == np.float32:
        y, slope = _core.run_pass(f"slope_{name}", [x])
        return y, slope
    return _BY_NAME[name](x)


def exponents(x: np.ndarray, factor: float, coded: bool) -> np.ndarray:
    """Scores (..., n) to exp(factor * (x - max)) or, `coded`, rint(255 * 2**(factor * (x - max))) as static int8
    attention has it, in place. Gives the sums (..., 1)."""
    if x.dtype == np.float32:
        (sums,) = _core.run_pass("exponents", [_rows(x)], [factor, coded])
        return sums.reshape(*x.shape[:-1], 1)
    x -= x.max(axis=-1, keepdims=True)
    x *= factor
    if coded:
        exp2(x)
        x *= 255
        np.rint(x, out=x)
    else:
        x[...] = functions.exp(x)
    return np.asarray(x.sum(axis=-1, keepdims=True))


def softmax_back(g: np.ndarray, p: np.ndarray, inverse: np.ndarray, factor: float) -> None:
    """g (..., n), the gradient of the weights p * inverse (..., 1), to that of the scores times `factor`, in place."""
    if g.dtype == np.float32:
        if g.shape != p.shape or inverse.shape != (*g.shape[:-1], 1):
            raise CqError(f"softmax_back: shapes do not match: g {g.shape}, p {p.shape}, inverses {inverse.shape}")
        _core.run_pass("softmax_back", [_rows(g), _rows(p), inverse.reshape(-1)], [factor])
        return
    p = p * inverse
    g -= np.einsum("...i,...i->...", g, p)[..., None]
    g *= p
    g *= factor


def to_codes(
    x: np.ndarray, scale: ArrayLike, low: ArrayLike, high: ArrayLike, shift: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Centered codes clip(rint(x / scale), low, high) + shift of finite x (rows, n); of float32 the same from low on as
    uint8, else None; and which rows hold something clipped, bool (rows,). Parameters: numbers, (rows, 1) or (1, n)."""
    own = [scale, low, high, *(() if shift is None else (shift,))]
    by_column = np.broadcast_shapes(*map(np.shape, own)) == (1, x.shape[1])
    shape = (1, x.shape[1]) if by_column else (len(x), 1)
    scales, lows, highs, *shifts = (np.array(np.broadcast_to(p, shape), x.dtype) for p in own)
    if x.dtype == np.float32:
        flat = [p.reshape(-1) for p in (scales, lows, highs, *shifts)]
        codes, stored, clipped = _core.run_pass("round_by_column" if by_column else "round_by_row", [x, *flat])
        return codes, stored, clipped.view(np.bool_)
    codes = np.rint(x / scales)
    clipped = ((codes < lows) | (codes > highs)).any(axis=1)
    centered = np.clip(codes, lows, highs)
    return centered + shifts[0] if shifts else centered, None, clipped


def rescale(
    x: np.ndarray,
    scales: float | np.ndarray,
    before: np.ndarray | None = None,
    row_scales: np.ndarray | None = None,
    after: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """(x + before) * row_scales * scales + after of x (rows, n): scales a number or (n,), before and after (n,),
    row_scales (rows,). out may be x."""
    if x.dtype == np.float32:
        of_columns = np.array(np.broadcast_to(scales, x.shape[1]), np.float32)
        return _core.run_pass("rescale", [x, of_columns, before, row_scales, after, out])[0]
    y = x if before is None else x + before
    y = y * (scales if row_scales is None else row_scales[:, None] * scales)
    return np.asarray(np.add(y, 0 if after is None else after, out=out))


def norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float, rms: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Layer or RMS norm of x (rows, n); what weight and bias follow; and the inverse (rows,) of what rows were divided
    by."""
    if x.dtype == np.float32:
        y, kept, factor = _core.run_pass("norm_kept", [x, weight, bias], [eps, rms])
        return y, kept, factor
    centered = x if rms else x - x.mean(axis=1, keepdims=True)
    factor = 1 / np.sqrt(np.square(centered).mean(axis=1) + eps)
    kept = centered * factor[:, None]
    return kept * weight + (0 if bias is None else bias), kept, factor


def norm_back(
    g: np.ndarray, weight: np.ndarray, kept: np.ndarray, factor: np.ndarray, rms: bool
) -> tuple[np.ndarray, np.ndarray]:
    """From g, the gradient of a norm: that of x, and g * kept, whose column sums are the weight's."""
    if g.dtype == np.float32:
        dx, of_weight = _core.run_pass("norm_back", [g, weight, kept, factor], [rms])
        return dx, of_weight
    d = g * weight
    dx = d - (0 if rms else d.mean(axis=1, keepdims=True)) - kept * (d * kept).mean(axis=1, keepdims=True)
    return dx * factor[:, None], g * kept


def adamw(
    p: np.ndarray,
    g: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    units: np.ndarray | None,
    choices: Sequence[float],
    row_rates: np.ndarray | None = None,
) -> None:
    """A step of AdamW over flat float32 arrays (n,), of which p, mean and square change; units (n,) or None. choices:
    beta1, beta2, gradient, gradient_square, root, epsilon, rate, keep (see cq_adamw). row_rates (rows,): what the rate
    is multiplied by in each of so many equal parts."""
    rows = 1 if row_rates is None else len(row_rates)
    if rows == 0 or p.size % rows:
        raise CqError(f"row_rates: {p.size} parameters are not {rows} equal rows")
    parts = (array if array is None else array.reshape(rows, -1) for array in (p, g, mean, square, units))
    _core.run_pass("adamw", [*parts, row_rates], choices)


def _rows(x: np.ndarray) -> np.ndarray:
    """(..., n) as (rows, n): the same memory."""
    if not x.flags.c_contiguous:
        raise CqError(f"x: need a C-contiguous array, got strides {x.strides}")
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x * P(x), with slope P(x) + x p(x), P the normal distribution and p its density (Hendrycks, Gimpel 2016)."""
    bell = np.exp(-0.5 * x * x)
    tail = 0.5 * bell * np.polyval((*_A[::-1], 0), 1 / (1 + _P * 0.5**0.5 * np.abs(x)))  # P(-|x|)
    p = np.where(x < 0, tail, 1 - tail)
    return x * p, p + x * bell * (2 * np.pi) ** -0.5


def _gelu_tanh(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x * s, s the logistic function of 2 u, u = sqrt(2 / pi) (x + 0.044715 x**3); slope s + 2 x s (1 - s) u'."""
    c = (2 / np.pi) ** 0.5
    s = _logistic(2 * c * (x + 0.044715 * x**3))
    return x * s, s + 2 * x * s * (1 - s) * c * (1 + 3 * 0.044715 * x * x)


def _silu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x * s, s the logistic function of x; slope s (1 + x (1 - s))."""
    s = _logistic(x)
    return x * s, s * (1 + x * (1 - s))


def _logistic(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # then 1 / inf is 0, as it should be
        return np.asarray(1 / (1 + np.exp(-x)))


def _relu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(x, 0), (x > 0).astype(x.dtype)


def exp2(t: np.ndarray) -> None:
    """t → 2**t for t up to 127, in place: the polynomial of int8 attention (src/softmax.h), to 1.1e-4, exact at whole
    t."""
    np.maximum(t, -125, out=t)
    whole = np.rint(t)
    t -= whole
    p = np.multiply(t, 0.0550090745)
    for c in (0.242210984, 0.693282902):
        p += c
        p *= t
    kind = np.finfo(t.dtype)
    bits = whole.astype(f"i{t.itemsize}")  # 2**whole: an exponent's bits and no others
    bits += kind.maxexp - 1
    bits <<= kind.nmant
    np.multiply(np.add(p, 1, out=p), bits.view(t.dtype), out=t)


_BY_NAME: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu": _relu,
}
