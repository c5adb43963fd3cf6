"""Ranges from the smallest and largest elements alone: over everything, or averaged along the stream."""

import math
from typing import Self

import numpy as np
from numpy.typing import DTypeLike

from cq import functions
from cq.observers.base import Observer, number

# a weight of 2**-40 is far below float32's last bit, and 2**16 arrays are more than anybody calibrates on
_FORGOTTEN, _LONGEST = 2.0**-40, 1 << 16


class MinMax(Observer):
    """The smallest and the largest element seen (Jacob et al. 2018, arXiv:1712.05877): nothing is ever clipped.

    Merging is exact in any order and partition. These are ONNX Runtime's MinMaxCalibrater's parameters too.
    """

    def __init__(self, axis: int | None = None) -> None:
        super().__init__(axis)
        self._lo: np.ndarray = np.array(np.inf, np.float32)
        self._hi: np.ndarray = np.array(-np.inf, np.float32)

    def _update(self, x: np.ndarray, lo: np.ndarray, hi: np.ndarray, order: int | None) -> None:
        self._widen(lo, hi)

    def _merge(self, other: Self) -> None:
        self._widen(other._lo, other._hi)

    def _widen(self, lo: np.ndarray, hi: np.ndarray) -> None:
        self._lo, self._hi = np.minimum(self._lo, lo), np.maximum(self._hi, hi)

    def _range(self, dtype: DTypeLike, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
        return self._lo, self._hi


class MovingAverage(Observer):
    """Exponential moving averages of each array's smallest and largest element, beginning at the first array's:
    lo += momentum * (min(x) - lo) in float32, and so for hi (Jacob et al. 2018, arXiv:1712.05877, section 3.1).

    momentum: 0 < momentum <= 1. Here order matters, so each array has a place in the stream: the `order` of update(),
    or one after the last that this observer has seen. What comes with the same place counts as parts of one array, so
    merging is exact in any order and any partition, of arrays into updates too, where the places are the true ones;
    observers that counted for themselves merge as workers that shared each batch among them. Kept are the extremes of
    the arrays whose weight is at least 2**-40, at most 65,536 arrays; the average begins at the oldest of them.
    """

    def __init__(self, momentum: float = 0.01, axis: int | None = None) -> None:
        super().__init__(axis)
        self.momentum = number(momentum, "momentum", "0 < momentum <= 1", 0, 1)
        # place p lies in slot p % window: what a later place overwrites is older than the window, whatever came first
        self._window = _window(self.momentum)
        self._places = np.full(self._window, -1, np.int64)
        # (2, window) or (2, window, channels) float32: -lo and hi, to widen by maximum
        self._ends: np.ndarray | None = None

    def _settings(self) -> dict[str, object]:
        return {"momentum": self.momentum} | super()._settings()

    def _update(self, x: np.ndarray, lo: np.ndarray, hi: np.ndarray, order: int | None) -> None:
        if order is None:
            order = int(self._places.max()) + 1
        kept, slot = self._room(lo.shape), order % self._window
        ends = np.stack([-lo, hi])
        if order == self._places[slot]:
            kept[:, slot] = np.maximum(kept[:, slot], ends)
        elif order > self._places[slot]:
            kept[:, slot], self._places[slot] = ends, order

    def _merge(self, other: Self) -> None:
        if other._ends is None:
            return
        kept = self._room(other._ends.shape[2:])
        per_end = (self._window, *(1 for _ in kept.shape[2:]))
        same = (self._places == other._places).reshape(per_end)  # empty slots too, which hold 0
        later = other._places > self._places
        np.maximum(kept, other._ends, out=kept, where=same)
        np.copyto(kept, other._ends, where=later.reshape(per_end))
        np.copyto(self._places, other._places, where=later)

    def _room(self, shape: tuple[int, ...]) -> np.ndarray:
        """The ends kept so far, of ranges of this shape."""
        if self._ends is None:
            self._ends = np.zeros((2, self._window, *shape), np.float32)
        return self._ends

    def _range(self, dtype: DTypeLike, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
        slots = np.argsort(self._places, kind="stable")
        slots = slots[self._places[slots] > max(self._places.max() - self._window, -1)]
        momentum = np.float32(self.momentum)
        kept = self._room(())  # which is there, as something was seen
        average = kept[:, slots[0]]
        for slot in slots[1:]:
            average = average + momentum * (kept[:, slot] - average)
        return -average[0], average[1]


def _window(momentum: float) -> int:
    """Arrays until a weight falls to 2**-40."""
    if momentum == 1:
        return 1
    if momentum < 20 / _LONGEST:  # 40 log 2 is 27.7
        return _LONGEST
    return min(math.ceil(float(functions.log(_FORGOTTEN) / functions.log(1 - momentum))), _LONGEST)
