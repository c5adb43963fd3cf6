"""The range that holds a given share of what was seen."""

import math
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import DTypeLike

from cq.errors import CqError
from cq.observers.base import number
from cq.observers.counting import HALF, Counting, Grid


class Percentile(Counting):
    """The range [100 - percentile, percentile] in percentiles, of all elements or of the tokens' extremes.

    percentile: 50 < percentile <= 100; 100 gives the exact extremes. of: "elements", or "tokens": the lower end is then
    a percentile of each token's smallest element and the upper end of each token's largest, so that a share of tokens,
    and not of elements, is clipped anywhere (Wei et al. 2022, arXiv:2209.13325, section 4.2); a token is a row along
    the last axis, and there are no channels (axis).
    Each end is the outer edge of the bin in which the element of that rank lies, and never beyond the extremes seen:
    at most 1/2048 of the largest magnitude too wide, and never too narrow. Merging is exact in any order and partition.
    """

    def __init__(self, percentile: float = 99.99, of: str = "elements", axis: int | None = None) -> None:
        super().__init__(axis)
        self.percentile = number(percentile, "percentile", "50 < percentile <= 100", 50, 100)
        if of not in ("elements", "tokens"):
            raise CqError(f"of: got {of!r}, wanted 'elements' or 'tokens'")
        if of == "tokens" and axis is not None:
            raise CqError("of: tokens go across channels; wanted axis=None beside of='tokens'")
        self.of = of
        self._minima = self._grid if of == "elements" else Grid()

    def _settings(self) -> dict[str, object]:
        return {"percentile": self.percentile, "of": self.of} | super()._settings()

    def _update(self, x: np.ndarray, lo: np.ndarray, hi: np.ndarray, order: int | None) -> None:
        if self.of == "elements":
            super()._update(x, lo, hi, order)
            return
        self._widen(lo, hi)
        tokens = np.atleast_2d(x)
        for grid, ends in ((self._minima, tokens.min(axis=-1)), (self._grid, tokens.max(axis=-1))):
            grid.add(ends, np.abs(ends).max())

    def _merge(self, other: Self) -> None:
        super()._merge(other)
        if self.of == "tokens":
            self._minima.merge(other._minima)

    def _choose(self, channel: int, lo: float, hi: float, dtype: DTypeLike, symmetric: bool) -> tuple[float, float]:
        above, below = self._grid.counts[channel], self._minima.counts[channel]
        last = _rank(above, self.percentile) + 1 - HALF
        first = HALF - 1 - _rank(below[::-1], self.percentile)
        return (
            max(math.ldexp(first, int(self._minima.exponents[channel])), lo),
            min(math.ldexp(last, int(self._grid.exponents[channel])), hi),
        )


def _rank(counts: np.ndarray, percentile: float) -> int:
    """The bin that holds the element at this percentile, counted from the first bin on."""
    cumulative = np.cumsum(counts)
    wanted = math.ceil(Fraction(repr(percentile)) * int(cumulative[-1]) / 100)  # exact: 99.9 % of 1000 is 999, not 1000
    return int(np.searchsorted(cumulative, wanted))
