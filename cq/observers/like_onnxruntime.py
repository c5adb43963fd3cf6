"""Observers that give the parameters of ONNX Runtime's calibrators (onnxruntime.quantization.calibrate, read at 1.32),
for those who compare or move from there. MinMax needs none of its own: cq.observers.MinMax is ONNX Runtime's.

Theirs depend on the order of the arrays, because their bins follow the first one: they cannot merge. One update() here
is one collect() there, which is given all batches of one collect_data() call together. Scales below 2**-126 become
2**-126 here and 1 there.
"""

from typing import cast

import numpy as np
from numpy.typing import DTypeLike

from cq import functions
from cq.observers.base import Ordered, number, whole


class _Collected(Ordered):
    """A histogram of even bins over [-t, t] or, of magnitudes, [0, t], that grows by whole bins where a later t is
    larger."""

    def __init__(self, bins: int, magnitudes: bool) -> None:
        super().__init__()
        self.bins, self._magnitudes = whole(bins, "bins", 2, 1 << 24, "a whole number from 2 to 2**24"), magnitudes
        self._lo: np.ndarray = np.array(np.inf, np.float32)
        self._hi: np.ndarray = np.array(-np.inf, np.float32)
        self._threshold: np.ndarray = np.array(0, np.float32)
        self._counts: np.ndarray = np.zeros(0, np.int64)
        self._edges: np.ndarray = np.zeros(0, np.float32)

    def _update(self, x: np.ndarray, lo: np.ndarray, hi: np.ndarray, order: int | None) -> None:
        self._lo, self._hi = np.minimum(self._lo, lo), np.maximum(self._hi, hi)
        if self._magnitudes:
            self._count_magnitudes(np.abs(x).ravel())
        else:
            self._count(x.ravel(), np.maximum(np.abs(lo), np.abs(hi)))

    def _count_magnitudes(self, x: np.ndarray) -> None:
        if not len(self._edges):
            self._counts, edges = np.histogram(x, bins=self.bins)
            self._edges = edges.astype(np.float32)
            return
        edges, largest = self._edges, x.max()
        if largest > edges[-1]:
            width = edges[1] - edges[0]
            edges = np.hstack((edges, np.arange(edges[-1] + width, largest + width, width)))
        counts, edges = np.histogram(x, bins=edges)
        counts[: len(self._counts)] += self._counts
        self._counts, self._edges = counts, edges.astype(np.float32)

    def _count(self, x: np.ndarray, threshold: np.ndarray) -> None:
        if not len(self._edges):
            self._counts, self._edges = np.histogram(x, self.bins, range=_around_zero(threshold))
            self._threshold = threshold
            return
        old, more = self._threshold, 0
        if threshold <= old:
            threshold = old
        elif old != 0:
            width = 2 * old / len(self._counts)
            more = int((threshold - old) // width + 1)
            threshold = more * width + old
        counts, edges = np.histogram(x, len(self._counts) + 2 * more, range=_around_zero(threshold))
        counts[more : len(counts) - more] += self._counts
        if threshold != old:
            self._edges, self._threshold = edges, threshold
        self._counts = counts

    def _inside(self, lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return max(lo, self._lo), min(hi, self._hi)


class Percentile(_Collected):
    """PercentileCalibrater: the edges of the bins at the percentiles, inside the extremes seen.

    percentile: 50 < percentile <= 100. symmetric: of magnitudes, as its option of this name; else half of the rest is
    cut at each end. bins: of the first array.
    """

    def __init__(self, percentile: float = 99.999, symmetric: bool = True, bins: int = 2048) -> None:
        super().__init__(bins, bool(symmetric))
        self.percentile = number(percentile, "percentile", "50 < percentile <= 100", 50, 100)

    def _settings(self) -> dict[str, object]:
        return {"percentile": self.percentile, "symmetric": self._magnitudes, "bins": self.bins}

    def _range(self, dtype: DTypeLike, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
        cumulative = np.cumsum(self._counts / self._counts.sum())
        if self._magnitudes:
            end = self._edges[np.searchsorted(cumulative, self.percentile / 100.0)]
            return self._inside(-end, end)
        cut = (100.0 - self.percentile) / 200.0
        left, right = np.searchsorted(cumulative, cut), np.searchsorted(cumulative, 1.0 - cut)
        return self._inside(self._edges[left], self._edges[right])


class Entropy(_Collected):
    """EntropyCalibrater: of the thresholds around the middle bin, the one of least Kullback-Leibler divergence.

    bins: of the first array; levels: its num_quantized_bins. Its default of 128 bins and 128 levels has one candidate
    only, the full range. The divergence is worked out in float32 from whole numbers, as there. A search over 2,048 bins
    takes about 100 ms (there, seconds).
    """

    def __init__(self, bins: int = 128, levels: int = 128) -> None:
        super().__init__(bins, False)
        self.levels = whole(levels, "levels", 2, self.bins, f"a whole number from 2 to the number of bins, {bins}")

    def _settings(self) -> dict[str, object]:
        return {"bins": self.bins, "levels": self.levels}

    def _range(self, dtype: DTypeLike, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
        bins = len(self._counts)
        middle, half = bins // 2, self.levels // 2
        candidates = [(middle - i, min(middle + i + 1, bins)) for i in range(half, middle + 1)]
        start, stop = candidates[int(np.argmin([self._divergence(*ends) for ends in candidates]))]
        return self._inside(self._edges[start], self._edges[stop])

    def _divergence(self, start: int, stop: int) -> np.float32:
        inside = self._counts[start:stop]
        p = inside.copy()
        p[0] += self._counts[:start].sum()
        p[-1] += self._counts[stop:].sum()
        filled, size = p != 0, len(p) // self.levels
        parts = (self.levels, size)
        totals = inside[: self.levels * size].reshape(parts).sum(axis=1)
        totals[-1] += inside[self.levels * size :].sum()
        norms = filled[: self.levels * size].reshape(parts).sum(axis=1)
        # whole numbers: the share of a bin is cut to one, and bins after the last level hold 0
        q = np.zeros(len(p), np.int64)
        q[: self.levels * size] = np.repeat(np.where(norms, totals / np.maximum(norms, 1), 0).astype(np.int64), size)
        if not p.any() or not q.any():
            return np.float32(np.inf)
        p, q = (smoothed / smoothed.sum() for smoothed in (_smoothed(p), _smoothed(q)))
        return np.float32((p * functions.log(p / q)).sum())


def _around_zero(threshold: np.ndarray) -> tuple[float, float]:
    """[-threshold, threshold] in the threshold's own precision, in which NumPy then works out the edges of bins; its
    types know Python's floats alone."""
    return cast(tuple[float, float], (-threshold, threshold))


def _smoothed(counts: np.ndarray, floor: float = 0.0001) -> np.ndarray:
    """Empty bins hold `floor`, taken evenly from the others."""
    empty = (counts == 0).astype(np.float32)
    share = floor * float(empty.sum()) / float(counts.size - empty.sum())
    smoothed = counts.astype(np.float32)
    smoothed += floor * empty + (-share) * (counts != 0).astype(np.float32)
    return smoothed
