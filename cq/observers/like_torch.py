"""Observers that give the parameters of torch.ao.quantization's (read at torch 2.13), for those who compare or move
from there.

They share torch's arithmetic: float32 throughout, no scale below 2**-23, symmetric codes from -128 on with a scale of
absmax / 127.5, and uint8 codes that are symmetric around 128.
"""

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import DTypeLike

from cq import affine
from cq.observers import extremes
from cq.observers.base import Observer, Ordered, whole

EPS = np.finfo(np.float32).eps


class _TorchParameters(Observer):
    def qparams(self, dtype: DTypeLike = "uint8", symmetric: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Scale (float32) and zero point (int32) by torch's UniformQuantizationObserverBase; raises as
        Observer.range."""
        qmin, qmax = affine.code_range(dtype)
        lo, hi = (np.float32(end) for end in self.range(dtype))
        lo, hi = np.minimum(lo, np.float32(0)), np.maximum(hi, np.float32(0))
        if symmetric:
            scale = np.maximum(np.maximum(-lo, hi) / np.float32((qmax - qmin) / 2), EPS)
            return scale, np.full(scale.shape, 0 if qmin else 128, np.int32)[()]
        scale = np.maximum((hi - lo) / np.float32(qmax - qmin), EPS)
        return scale, np.clip(qmin - np.rint(lo / scale), qmin, qmax).astype(np.int32)[()]


class MinMax(_TorchParameters, extremes.MinMax):
    """MinMaxObserver, and with an axis PerChannelMinMaxObserver. Merging is exact in any order and partition."""


class MovingAverage(_TorchParameters, extremes.MovingAverage):
    """MovingAverageMinMaxObserver (its averaging_constant is momentum here), and with an axis the one per channel.
    Merging as cq.observers.MovingAverage."""


class Histogram(_TorchParameters, Ordered):
    """HistogramObserver, per tensor: even bins over the range so far, mapped onto wider ones when that grows; from both
    ends quantiles are cut off, in steps of 1e-5, until the squared error of 256 codes rises.

    bins: from 2. The result depends on the order of the arrays, so it cannot merge. Sums over bins are taken in
    float64, which may choose otherwise than torch where two errors are equal to float32's last bit. A search takes
    about 0.1 s.
    """

    CODES, FINER = 256, 16

    def __init__(self, bins: int = 2048) -> None:
        super().__init__()
        self.bins = whole(bins, "bins", 2, 1 << 20, "a whole number from 2 to 2**20")
        self._lo: np.ndarray = np.array(np.inf, np.float32)
        self._hi: np.ndarray = np.array(-np.inf, np.float32)
        self._counts: np.ndarray = np.zeros(bins, np.float32)

    def _settings(self) -> dict[str, object]:
        return {"bins": self.bins}

    def _update(self, x: np.ndarray, lo: np.ndarray, hi: np.ndarray, order: int | None) -> None:
        new_lo, new_hi = np.minimum(self._lo, lo), np.maximum(self._hi, hi)
        counts = self._count(x, new_lo, new_hi)
        if self._lo <= self._hi:
            counts += self._counts if (new_lo, new_hi) == (self._lo, self._hi) else self._stretched(new_lo, new_hi)
        self._counts, self._lo, self._hi = counts, new_lo, new_hi

    def _count(self, x: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        """torch.histc: float32 counts of even bins, [lo - 1, hi + 1] for a single value."""
        if lo == hi:
            lo, hi = lo - np.float32(1), hi + np.float32(1)
        where = ((x.ravel() - lo) * np.float32(self.bins) / (hi - lo)).astype(np.int64)
        return np.bincount(np.minimum(where, self.bins - 1), minlength=self.bins).astype(np.float32)

    def _stretched(self, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        """The counts so far on bins over the wider [lo, hi]: a sixteenth of each bin goes where its middle lies."""
        if self._lo == self._hi:
            counts: np.ndarray = self._count(self._lo, lo, hi) * self._counts.sum()
            return counts
        parts = self.bins * self.FINER
        middles = _linspace(self._lo, self._hi, parts + 1)[:-1] + np.float32(0.5) * (
            (self._hi - self._lo) / np.float32(parts)
        )
        where = np.searchsorted(_linspace(lo, hi, self.bins + 1), middles, side="right") - 1
        result = np.zeros(self.bins, np.float32)
        np.add.at(
            result, np.clip(where, 0, self.bins - 1), np.repeat(self._counts, self.FINER) / np.float32(self.FINER)
        )
        return result

    def _range(self, dtype: DTypeLike, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
        total = float(self._counts.sum())
        cumulative = np.cumsum(self._counts, dtype=np.float64).astype(np.float32).tolist()
        start, stop, least = 0, self.bins - 1, np.inf
        low, high, step = 0.0, 1.0, 1e-5
        while low < high:
            left = bisect_left(cumulative, np.float32((low + step) * total), start, stop)
            right = max(bisect_right(cumulative, np.float32((high - step) * total), start, stop + 1) - 1, start)
            if left - start > stop - right:
                low += step
                tried = left, stop
            else:
                high -= step
                tried = start, right
            if tried == (start, stop):
                continue
            with np.errstate(over="ignore", invalid="ignore"):  # cubes of huge ranges: NaN compares as it does there
                error = self._error(*tried)
            if error > least:
                break
            least, (start, stop) = error, tried
        width = (self._hi - self._lo) / np.float32(self.bins)
        return self._lo + width * np.float32(start), self._lo + width * np.float32(stop + 1)

    def _error(self, start: int, stop: int) -> float:
        """Squared error of 256 codes over bins start to stop, elements spread evenly inside each bin."""
        exact_width = (float(self._hi) - float(self._lo)) / self.bins
        exact_code = exact_width * (stop - start + 1) / self.CODES
        if exact_code == 0:
            return 0.0
        width, code, half = np.float32(exact_width), np.float32(exact_code), np.float32(exact_code / 2)
        begin = (np.arange(self.bins) - start).astype(np.float32) * width
        end = begin + width
        first, last = (np.clip(np.floor(edge / code), 0, self.CODES - 1) for edge in (begin, end))
        density = self._counts / width
        error = density * _third_of_cubes(begin - (first + np.float32(0.5)) * code, half)
        error += (last - first - 1) * (density * _third_of_cubes(-half, half))
        error += density * _third_of_cubes(-half, end - (last * code + half))
        return float(error.sum(dtype=np.float64))


def _third_of_cubes(begin: np.ndarray | np.float32, end: np.ndarray | np.float32) -> np.ndarray:
    return np.asarray((end * end * end - begin * begin * begin) / np.float32(3))[()]


def _linspace(lo: np.ndarray, hi: np.ndarray, points: int) -> np.ndarray:
    """torch.linspace: float32 steps from the nearer end."""
    # in float64 the product is exact: one rounding, as a fused step has
    step = np.float64((hi - lo) / np.float32(points - 1))
    i = np.arange(points)
    return np.where(i < points // 2, lo + step * i, hi - step * (points - 1 - i)).astype(np.float32)
