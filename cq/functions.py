"""Elementary functions that give the same bits on every CPU: exp, log, sin, cos, tanh, power; products of matrices;
and sums, the same under every Python. Knows nothing else.

NumPy and the C library choose their code by CPU, and its results differ in the last bit. So whatever decides a bit of a
model is computed here; +, -, *, / and square roots are correctly rounded everywhere.

Each function takes a number or an array of any shape. float32 arrays are computed in float64 and rounded once to
float32; anything else gives float64. The error in float64 is below 0.9 units in the last place, tanh's below 1.5.
Results at 0, Inf and NaN are those of IEEE 754, without a warning."""

import operator
from collections.abc import Iterable
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike

from . import _core
from .errors import CqError


def exp(x: ArrayLike) -> np.ndarray:
    """e to the power of x; 0 or Inf where float64 ends."""
    return _of("exp", x)


def log(x: ArrayLike) -> np.ndarray:
    """The natural logarithm of x; -Inf for 0, NaN for negative x."""
    return _of("log", x)


def sin(x: ArrayLike) -> np.ndarray:
    """The sine of x in radians, of any finite size; NaN for Inf."""
    return _of("sin", x)


def cos(x: ArrayLike) -> np.ndarray:
    """The cosine of x in radians, of any finite size; NaN for Inf."""
    return _of("cos", x)


def tanh(x: ArrayLike) -> np.ndarray:
    """The hyperbolic tangent of x."""
    return _of("tanh", x)


def power(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """x to the power of y, broadcast against each other; float32 where x is. NaN for negative x."""
    x, y = _floats(x), np.asarray(y, np.float64)
    x, y = (np.array(array, order="C") for array in np.broadcast_arrays(x, y))
    return _of("power", x, y)


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None, add: bool = False) -> np.ndarray:
    """The product of float32 or float64 matrices a (..., m, k) and b (..., k, n), summed in order of k on every CPU:
    float32 by fused multiply-adds, float64 with each product rounded. Leading axes, at most 4, broadcast as NumPy's
    do. out: an array for the result, which shares no memory with a or b; add: the
    product is added to what it holds."""
    if a.dtype != b.dtype or a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise CqError(
            f"a, b: need matrices that fit, got {a.dtype} of shape {a.shape} and {b.dtype} of shape {b.shape}"
        )
    pairs = () if a.ndim == b.ndim == 2 else np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*pairs, a.shape[-2], b.shape[-1])
    if out is None:
        if add:
            raise CqError("add: is for a result that is given")
        out = np.empty(shape, a.dtype)
    elif out.shape != shape or out.dtype != a.dtype:
        raise CqError(f"out: need {a.dtype} of shape {shape}, got {out.dtype} of shape {out.shape}")
    _core.multiply(_one_axis_contiguous(a), _one_axis_contiguous(b), out, add)
    return out


def total(terms: Iterable[float]) -> float:
    """Their sum, one added after another. Python's own sum adds what rounding lost from version 3.12 on."""
    return reduce(operator.add, terms, 0.0)


def _of(name: str, x: ArrayLike, *y: np.ndarray) -> np.ndarray:
    x = _floats(x)
    kind = "_f32" if x.dtype == np.float32 else ""
    (found,) = _core.run_pass(name + kind, [array.reshape(-1, 1) for array in (x, *y)])
    return found.reshape(x.shape)[()]  # a number for a number


def _one_axis_contiguous(x: np.ndarray) -> np.ndarray:
    return x if x.itemsize in x.strides[-2:] else np.ascontiguousarray(x)


def _floats(x: ArrayLike) -> np.ndarray:
    x = np.asarray(x)
    return np.asarray(x, np.float32 if x.dtype == np.float32 else np.float64, "C")
