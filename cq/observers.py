"""Range finders: streaming, mergeable accumulators that see arrays go by and then name the range worth quantizing.

They must not know layers, models or who feeds them. State is of constant size; update() never modifies its argument,
and changes nothing where it raises.
"""

import math
from abc import ABC, abstractmethod
from fractions import Fraction
from numbers import Real
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from cq import affine
from cq.errors import CalibrationError, CqError

HALF = 4096  # bins on either side of 0
CHUNK = 1 << 15  # elements counted at a time: all temporaries stay in the level-2 cache
SMALLEST_EXPONENT = -160  # the grid that ends at the smallest float32 above 0
# the clipping search: log2 of the ends' fractions of the observed extremes, coarse over all, then ever finer around the best
COARSE = -np.arange(48) / 4
FINER = [np.arange(6, -7, -1) / 6 * step for step in (1 / 4, 1 / 24, 1 / 144)]


class Observer(ABC):
    """What all range finders share. update(x) with float arrays of any shape; NaN and Inf raise CqError."""

    def update(self, x: ArrayLike) -> None:
        """Take in the elements of `x`; an empty array changes nothing."""
        x = affine.as_float32(x)
        if x.size:
            self._update(x.ravel(order="K"), float(x.min()), float(x.max()))

    def merge(self, other: Self) -> Self:
        """Take in, in place, all that `other` has seen; returns self. Another class or other settings raise CqError."""
        if type(other) is not type(self) or other._settings() != self._settings():
            raise CqError(f"other: got {other!r}, wanted another {self!r}, as only equal observers can merge")
        if other._seen():
            self._merge(other)
        return self

    def range(self) -> tuple[float, float]:
        """The range (lo, hi) that this observer names, not yet widened to hold 0. No data raises CalibrationError."""
        if not self._seen():
            raise CalibrationError(f"{self!r} has seen no data; call update() with samples first")
        return self._range()

    def qparams(self, dtype: DTypeLike = "uint8", symmetric: bool = False) -> tuple[np.float32, np.int32]:
        """Scale and zero point for range(), by affine.qparams. No data raises CalibrationError."""
        return affine.qparams(*self.range(), dtype, symmetric)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self._settings().items())})"

    def _settings(self) -> dict[str, float]:
        return {}

    @abstractmethod
    def _seen(self) -> bool: ...

    @abstractmethod
    def _update(self, x: np.ndarray, lo: float, hi: float) -> None: ...

    @abstractmethod
    def _merge(self, other: Self) -> None: ...

    @abstractmethod
    def _range(self) -> tuple[float, float]: ...


class MinMax(Observer):
    """The smallest and the largest element seen: nothing is ever clipped. Merging is exact, in any order."""

    def __init__(self) -> None:
        self._lo, self._hi = math.inf, -math.inf

    def _seen(self) -> bool:
        return self._lo <= self._hi

    def _update(self, x: np.ndarray, lo: float, hi: float) -> None:
        self._widen(lo, hi)

    def _merge(self, other: Self) -> None:
        self._widen(other._lo, other._hi)

    def _widen(self, lo: float, hi: float) -> None:
        self._lo, self._hi = min(self._lo, lo), max(self._hi, hi)

    def _range(self) -> tuple[float, float]:
        return self._lo, self._hi


class MovingAverage(Observer):
    """Exponential moving averages of each array's smallest and largest element, beginning at the first array's.

    lo += momentum * (min(x) - lo), and so for hi; 0 < momentum <= 1. The order of updates counts. Merging has no
    order to go by, and averages both observers' ends, weighted with the number of arrays each has seen.
    """

    def __init__(self, momentum: float = 0.01) -> None:
        if not (isinstance(momentum, Real) and 0 < momentum <= 1):
            raise CqError(f"momentum: got {momentum!r}, wanted 0 < momentum <= 1")
        self.momentum = float(momentum)
        self._lo = self._hi = 0.0
        self._arrays = 0

    def _settings(self) -> dict[str, float]:
        return {"momentum": self.momentum}

    def _seen(self) -> bool:
        return self._arrays > 0

    def _update(self, x: np.ndarray, lo: float, hi: float) -> None:
        self._blend(lo, hi, self.momentum if self._arrays else 1.0)
        self._arrays += 1

    def _merge(self, other: Self) -> None:
        arrays = self._arrays + other._arrays
        self._blend(other._lo, other._hi, other._arrays / arrays)
        self._arrays = arrays

    def _blend(self, lo: float, hi: float, weight: float) -> None:
        self._lo = (1 - weight) * self._lo + weight * lo
        self._hi = (1 - weight) * self._hi + weight * hi

    def _range(self) -> tuple[float, float]:
        return self._lo, self._hi


class _Counting(MinMax):
    """Counts elements in 2 * HALF bins of width 2**exponent, bin k holding [(k - HALF) * width, (k - HALF + 1) * width).

    The exponent follows from the largest magnitude seen alone, and coarser bins are exact unions of finer ones, so the
    state after any updates and merges depends on the set of elements only, not on their order or partition.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exponent = SMALLEST_EXPONENT
        self._counts = np.zeros(2 * HALF, np.int64)

    def _update(self, x: np.ndarray, lo: float, hi: float) -> None:
        self._widen(lo, hi)
        largest = max(-lo, hi)
        if largest:
            self._coarsen(math.frexp(largest)[1] - HALF.bit_length() + 1)
        per_width = math.ldexp(1.0, -self._exponent)
        scaled = np.empty(min(CHUNK, x.size), np.float64)  # float64: the product is exact and never underflows to -0
        for start in range(0, x.size, CHUNK):
            part = x[start : start + CHUNK]
            bins = scaled[: part.size]
            np.multiply(part, per_width, out=bins, dtype=np.float64)
            np.floor(bins, out=bins)
            bins += HALF
            self._counts += np.bincount(bins.astype(np.intp), minlength=2 * HALF)

    def _coarsen(self, exponent: int) -> None:
        if exponent > self._exponent:
            self._counts = _coarser(self._counts, exponent - self._exponent)
            self._exponent = exponent

    def _merge(self, other: Self) -> None:
        self._widen(other._lo, other._hi)
        self._coarsen(other._exponent)
        self._counts = self._counts + _coarser(other._counts, self._exponent - other._exponent)


class Percentile(_Counting):
    """The range that holds the [100 - percentile, percentile] percentiles of all elements; 50 < percentile <= 100.

    Each end is the outer edge of the bin in which the element of that rank lies, and never beyond the extremes seen:
    at most 1/2048 of the largest magnitude too wide, and never too narrow. 100 gives the exact extremes.
    """

    def __init__(self, percentile: float = 99.99) -> None:
        if not (isinstance(percentile, Real) and 50 < percentile <= 100):
            raise CqError(f"percentile: got {percentile!r}, wanted 50 < percentile <= 100")
        super().__init__()
        self.percentile = float(percentile)

    def _settings(self) -> dict[str, float]:
        return {"percentile": self.percentile}

    def _range(self) -> tuple[float, float]:
        cumulative = np.cumsum(self._counts)
        total = int(cumulative[-1])
        rank = math.ceil(Fraction(repr(self.percentile)) * total / 100)  # exact: 99.9 % of 1000 is 999, not 1000
        last = int(np.searchsorted(cumulative, rank)) + 1 - HALF
        first = int(np.searchsorted(cumulative, total - rank, side="right")) - HALF
        return max(math.ldexp(first, self._exponent), self._lo), min(math.ldexp(last, self._exponent), self._hi)


class Histogram(_Counting):
    """The clipping range of least squared quantization error over all elements, found by search over both its ends.

    The error of a candidate is that of the scale and zero point it leads to, clipping and rounding together, with
    elements spread evenly inside each bin. The full range is a candidate, so a range is clipped only where that helps;
    the range of a constant is never clipped. A search takes about 15 ms.
    """

    def range(self, dtype: DTypeLike = "uint8", symmetric: bool = False) -> tuple[float, float]:
        """The best range (lo, hi), lo <= 0 <= hi, for codes of this kind. No data raises CalibrationError."""
        affine.code_range(dtype, symmetric)
        lo, hi = super().range()
        ends = min(lo, 0.0), max(hi, 0.0)
        return ends if lo == hi else self._search(*ends, dtype, symmetric)

    def qparams(self, dtype: DTypeLike = "uint8", symmetric: bool = False) -> tuple[np.float32, np.int32]:
        """Scale and zero point of least squared error. No data raises CalibrationError."""
        return affine.qparams(*self.range(dtype, symmetric), dtype, symmetric)

    def _search(self, lo: float, hi: float, dtype: DTypeLike, symmetric: bool) -> tuple[float, float]:
        """Full grid of both ends' fractions on a logarithmic scale, then three ever finer ones around the best so far."""
        if symmetric:
            lo, hi = 0.0, max(-lo, hi)
        table = _tail_table(self._counts)
        best_lo, best_hi = 0.0, 0.0
        for steps in (COARSE, *FINER):
            los = np.minimum(best_lo + steps, 0) if lo else np.zeros(1)
            his = np.minimum(best_hi + steps, 0) if hi else np.zeros(1)
            los, his = (grid.ravel() for grid in np.meshgrid(los, his))
            ends_lo, ends_hi = lo * 2.0**los, hi * 2.0**his
            if symmetric:
                ends_lo = -ends_hi
            best = int(np.argmin(self._errors(table, ends_lo, ends_hi, dtype, symmetric)))
            best_lo, best_hi = los[best], his[best]
        return float(ends_lo[best]), float(ends_hi[best])

    def _errors(self, table: np.ndarray, lo: np.ndarray, hi: np.ndarray, dtype: DTypeLike, symmetric: bool) -> np.ndarray:
        """Sum of squared errors, up to a constant term and factor, of each candidate range (lo[i], hi[i]).

        Q(y), the real that y is rounded to, steps by s at the thresholds t between codes, so for y > 0
        (y - Q(y))**2 = y**2 - 2 s sum over t > 0 of max(y - t, 0), and mirrored below 0: all that a candidate needs
        is the tail T(t), the sum of max(|y| - |t|, 0) over elements beyond t, at its 255 thresholds.
        """
        scale, zero_point = affine.qparams(lo, hi, dtype, symmetric)
        step = np.ldexp(scale.astype(np.float64), -self._exponent)[:, None]  # in bin widths
        thresholds = np.arange(*affine.code_range(dtype, symmetric)) + 0.5  # (254 or 255,)
        position = (thresholds - zero_point[:, None]) * step + HALF  # (candidates, thresholds)
        np.clip(position, 0, 2 * HALF, out=position)
        below = position.astype(np.intp)
        position -= below
        tail, slope, bend = (column.take(below) for column in table)
        return -step[:, 0] * (tail + position * (slope + position * bend)).sum(axis=1)


def make(name: str) -> Observer:
    """A new observer with its default settings: "minmax", "moving_average", "percentile" or "histogram"."""
    kinds = {"minmax": MinMax, "moving_average": MovingAverage, "percentile": Percentile, "histogram": Histogram}
    if name not in kinds:
        raise CqError(f"observer: got {name!r}, wanted one of {', '.join(map(repr, kinds))}")
    return kinds[name]()


def _coarser(counts: np.ndarray, doublings: int) -> np.ndarray:
    """`counts` on bins 2**doublings times as wide: floor(k / 2**doublings) of bins counted from 0; exact integers."""
    result = np.zeros_like(counts)
    target = np.arange(-HALF, HALF) >> min(doublings, HALF.bit_length())
    np.add.at(result, target + HALF, counts)
    return result


def _tail_table(counts: np.ndarray) -> np.ndarray:
    """(3, 2 * HALF + 1) float64 a, b, c: T at the fraction f of bin k is a[k] + b[k] f + c[k] f**2, in bin widths.

    T(t) is the sum of max(|y| - |t|, 0) over the elements y beyond t, seen from 0. The last column, above all, is 0.
    """
    above = counts[HALF:].astype(np.float64)
    below = counts[:HALF].astype(np.float64)
    more = np.cumsum(above[::-1])[::-1]  # elements above the lower edge of bins 0, 1, ...
    less = np.cumsum(below) - below  # elements below the lower edge of bins -HALF, -HALF + 1, ...
    table = np.zeros((3, 2 * HALF + 1))
    table[0, HALF:-1] = np.cumsum((more - above / 2)[::-1])[::-1]
    table[0, 1:HALF] = np.cumsum(less + below / 2)[:-1]
    table[1, HALF:-1], table[1, :HALF] = -more, less
    table[2, :-1] = np.concatenate([below, above]) / 2
    return table
