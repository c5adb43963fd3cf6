"""Proof that no int32 sum of a layer can overflow: the largest magnitude that any accumulator of the kernels reaches,
whatever codes the activations take. Knows no strategy.

What is bounded is not only the result but all that stands in a register on the way (src/gemm.c, tiles_*.h, epilogue.h).
A sum starts at the int32 bias, with or without the activation's zero-point correction; products come in any order, in
twos and fours; the corrections follow. Kernels read activations as uint8, a code from 0 to 255 with zero point z, so
with P and N the sums of a column's positive weights and of its negative ones' magnitudes any part of the products lies
in -255 N ... 255 P, and reaches both ends."""

import numpy as np

from .. import _core
from ..errors import UnsupportedError
from ..weights import Weight
from .forms import Fixed, PerHead, PerTensor, PerToken, Smoothed

INT32_MAX = 2**31 - 1


def layer_reach(weight: Weight, form: PerToken | PerTensor | Fixed | Smoothed, bias: np.ndarray | None = None) -> int:
    """The largest magnitude of any int32 in products of activations in `form` with these very weights. bias: int32
    codes (n,)."""
    k, zeros = weight.k, np.zeros(weight.n, np.int64)
    zero_points = zeros if weight.zero_points is None else weight.zero_points[0].astype(np.int64)
    start = zeros if bias is None else bias.astype(np.int64)
    positive, total = _sum_of_largest(weight, zeros), weight.column_sums + k * zero_points
    negative = positive - total
    values = [start - 255 * negative, start + 255 * positive]
    for z in _zero_points(form):
        correction = z * weight.column_sums.astype(np.int64)
        begin = start - correction
        values += [correction, begin, begin - 255 * negative, begin + 255 * positive]
        if zero_points.any():
            above = _sum_of_largest(weight, zero_points) - k * zero_points  # as `positive`, of w - zero point
            below = above - weight.column_sums
            values += [
                255 * k * zero_points,
                start - z * above - (255 - z) * below,
                start + (255 - z) * above + z * below,
            ]
    return max(int(np.abs(value).max(initial=0)) for value in values)


def check_layer(weight: Weight, form: PerToken | PerTensor | Fixed | Smoothed, bias: np.ndarray | None = None) -> None:
    """Raises UnsupportedError where an int32 sum may overflow. Depth alone proves most layers, whatever their int8
    weights are; where it does not, the weights themselves are summed."""
    zero_points = np.zeros(1, np.int32) if weight.zero_points is None else weight.zero_points
    widest = max(127 - int(zero_points.min(initial=0)), int(zero_points.max(initial=0)) + 128)
    largest = 0 if bias is None else int(np.abs(bias.astype(np.int64)).max(initial=0))
    if 255 * widest * weight.k + largest > INT32_MAX:
        reach = layer_reach(weight, form, bias)
        if reach > INT32_MAX:
            raise UnsupportedError(
                f"weight: sums over its {weight.k:,} inputs may reach {reach:,}, int32 ends at {INT32_MAX:,}; "
                "use symmetric weights, split the layer or leave it in float32"
            )


def attention_reach(forms: tuple[Fixed, Fixed, Fixed | Smoothed] | PerHead, dim: int, length: int) -> int:
    """The same of int8 attention over `length` keys in heads of `dim`: scores, what softmax subtracts from them, the
    sum of its codes, and their products with values."""
    if isinstance(forms, PerHead):  # all symmetric, -127 ... 127
        return max(255 * 127 * dim, 255 * 127 * length)
    query, _, value = forms
    (z_query,) = set(_zero_points(query))
    z_value = int(value.zero_point) - (128 if value.dtype == "uint8" else 0)
    difference = max(z_query, 255 - z_query) * 255 * dim  # of two keys' scores with one query
    return max(255 * 128 * dim, difference, 255 * max(128, 127 - z_value, 128 + z_value) * length)


def check_attention(forms: tuple[Fixed, Fixed, Fixed | Smoothed] | PerHead, dim: int, length: int) -> None:
    """Raises UnsupportedError where an int32 sum of int8 attention may overflow."""
    reach = attention_reach(forms, dim, length)
    if reach > INT32_MAX:
        raise UnsupportedError(
            f"int8 attention: sums over heads of {dim:,} and {length:,} tokens may reach {reach:,}, int32 "
            f"ends at {INT32_MAX:,}; use a Scheme with attention='float32'"
        )


def headroom(reach: int) -> float:
    """Bits by which int32 is larger: 1.0 where twice as much would fit."""
    return float(np.log2(INT32_MAX / max(reach, 1)))


def _zero_points(form: PerToken | PerTensor | Fixed | Smoothed) -> tuple[int, ...]:
    """The ends of the zero points that activations in `form` may have, as kernels see them: of uint8 codes."""
    if isinstance(form, (Fixed, Smoothed)):
        zero_point = int(form.zero_point)
        return (zero_point + 128 if form.dtype == "int8" else zero_point,)
    return (128,) if form.symmetric else (0, 255)


def _sum_of_largest(weight: Weight, floor: np.ndarray) -> np.ndarray:
    """Column sums of max(w, floor), int64 (n,), of the panels as they lie."""
    padded = np.zeros(-(-weight.n // _core.PANEL) * _core.PANEL, np.int8)
    padded[: weight.n] = floor
    shape = len(padded) // _core.PANEL, -1, _core.PANEL, 4  # panels, groups of 4 rows, columns, rows
    raised = np.maximum(weight.panels.reshape(shape), padded.reshape(-1, 1, _core.PANEL, 1))
    # rows that fill a group up are 0, above a floor that is below it
    padding = -weight.k % 4 * np.maximum(padded, 0)[: weight.n].astype(np.int64)
    sums: np.ndarray = raised.reshape(shape[0], -1, 4 * _core.PANEL).sum(1, np.int64).reshape(-1, 4).sum(1)
    return sums[: weight.n] - padding
