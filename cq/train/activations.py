"""Activation functions and their derivatives, in chunks that stay in cache. Knows no layers."""
from collections.abc import Callable

import numpy as np

from .fake import chunks

# erfc(x) = exp(-x * x) * (a1 t + ... + a5 t**5), t = 1 / (1 + p x), x >= 0, to 1.5e-7: Abramowitz, Stegun 1964, 7.1.26
_P, _A = 0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def activate(x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(act(x), its derivative) of x (rows, n): "gelu" (by erf, to 2e-7), "gelu_tanh", "silu" or "relu"."""
    y, slope = np.empty_like(x), np.empty_like(x)
    for rows in chunks(x):
        _BY_NAME[name](x[rows], y[rows], slope[rows])
    return y, slope


def _gelu(x: np.ndarray, y: np.ndarray, slope: np.ndarray) -> None:
    """x * P(x), with slope P(x) + x p(x), P the normal distribution and p its density (Hendrycks, Gimpel 2016)."""
    density = np.multiply(x, x)
    density *= -0.5
    np.exp(density, out=density)
    t = np.abs(x)
    t *= _P * 0.5 ** 0.5
    t += 1
    np.reciprocal(t, out=t)
    np.multiply(t, _A[4] / 2, out=y)
    for a in _A[3::-1]:
        y += a / 2
        y *= t
    y *= density  # P(-|x|)
    np.subtract(0.5, y, out=y)
    np.multiply(x, 1e25, out=t)
    y *= np.clip(t, -1, 1, out=t)  # the sign of x, faster than by any mask
    y += 0.5
    density *= (2 * np.pi) ** -0.5
    density *= x
    np.add(y, density, out=slope)
    y *= x


def _gelu_tanh(x: np.ndarray, y: np.ndarray, slope: np.ndarray) -> None:
    """x * s, s the logistic function of 2 u, u = sqrt(2 / pi) (x + 0.044715 x**3); slope s + 2 x s (1 - s) u'."""
    c = (2 / np.pi) ** 0.5
    square = x * x
    np.multiply(square, -2 * c * 0.044715, out=y)
    y -= 2 * c
    y *= x
    _logistic_of_minus(y)
    np.subtract(1, y, out=slope)
    slope *= y
    slope *= x
    square *= 6 * c * 0.044715
    square += 2 * c
    slope *= square
    slope += y
    y *= x


def _silu(x: np.ndarray, y: np.ndarray, slope: np.ndarray) -> None:
    """x * s, s the logistic function of x; slope s (1 + x (1 - s))."""
    np.negative(x, out=y)
    _logistic_of_minus(y)
    np.subtract(1, y, out=slope)
    slope *= x
    slope += 1
    slope *= y
    y *= x


def _logistic_of_minus(y: np.ndarray) -> None:
    """y → 1 / (1 + exp(y)), in place; where exp overflows that is 0, as it should be."""
    with np.errstate(over="ignore"):
        np.exp(y, out=y)
    y += 1
    np.reciprocal(y, out=y)


def _relu(x: np.ndarray, y: np.ndarray, slope: np.ndarray) -> None:
    np.maximum(x, 0, out=y)
    np.greater(x, 0, out=slope, casting="unsafe")


def exp2(t: np.ndarray) -> None:
    """t → 2**t for t up to 127, in place: the polynomial of int8 attention (src/rows.h), to 1.1e-4, exact at whole t."""
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


_BY_NAME: dict[str, Callable] = {"gelu": _gelu, "gelu_tanh": _gelu_tanh, "silu": _silu, "relu": _relu}
