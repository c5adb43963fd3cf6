"""Elementary functions that give the same bits on every CPU. NumPy's and the C library's choose their code by CPU, and differ in the
last bit. What decides a bit of a model is worked out here; +, -, *, / and square roots are exact anywhere.

Each takes a number or an array of any shape. float32 arrays are worked out in float64 and rounded once to float32; all else gives
float64. Errors in float64 are at most 1 unit in the last place, 2 for tanh. At 0, Inf and NaN results are IEEE 754's, without a
warning."""
import numpy as np
from numpy.typing import ArrayLike

from . import _core


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
    if y.size != 1 or y.ndim > x.ndim:
        x, y = (np.ascontiguousarray(array) for array in np.broadcast_arrays(x, y))
    return _core.elementary("power", x, y.reshape(-1))[()]


def _of(name: str, x: ArrayLike) -> np.ndarray:
    return _core.elementary(name, _floats(x))[()]  # a number for a number


def _floats(x: ArrayLike) -> np.ndarray:
    x = np.asarray(x)
    return np.asarray(x, np.float32 if x.dtype == np.float32 else np.float64, "C")
