"""The clipping range of least error in a norm of one's choice, on a histogram."""

import numpy as np
from numpy.typing import DTypeLike

from cq import affine, functions
from cq.observers.base import number
from cq.observers.counting import HALF, Counting
from cq.observers.mse import COARSE, FINER


class Histogram(Counting):
    """The clipping range of least mean |x - dequantized x| ** norm over all elements, found by search over both its
    ends.

    norm: 1 < norm <= 8. The higher, the dearer is one large clipping error beside many small rounding errors, and the
    wider the range: 2 is MSE's criterion, 8 hardly clips. 2.4 is usual where outliers carry meaning (Li et al. 2021,
    BRECQ, arXiv:2102.05426, code). The error of a candidate is that of the scale and zero point it leads to, with
    elements spread evenly inside each bin; each end is searched in turn on ever finer steps. The full range is a
    candidate, and the range of a constant is never clipped. Merging is exact in any order and partition. A search takes
    about 30 ms, per channel for each.
    """

    def __init__(self, norm: float = 2.4, axis: int | None = None) -> None:
        super().__init__(axis)
        self.norm = number(norm, "norm", "1 < norm <= 8", 1, 8)

    def _settings(self) -> dict[str, object]:
        return {"norm": self.norm} | super()._settings()

    def _choose(self, channel: int, lo: float, hi: float, dtype: DTypeLike, symmetric: bool) -> tuple[float, float]:
        constant = lo == hi
        lo, hi = min(lo, 0.0), max(hi, 0.0)
        if constant:
            return lo, hi
        if symmetric:
            hi = max(-lo, hi)
        counts = self._grid.counts[channel]
        held = np.flatnonzero(counts)
        edges = np.ldexp(np.arange(held[0], held[-1] + 2) - float(HALF), int(self._grid.exponents[channel]))
        counts = counts[held[0] : held[-1] + 1]
        fractions = [0.0, 0.0]  # log2 of lo's and hi's share of the extremes

        def ends(end: int, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            tried = np.minimum(fractions[end] + steps, 0)
            los, his = (tried, fractions[1]) if end == 0 else (fractions[0], tried)
            his = hi * functions.power(2.0, np.broadcast_to(his, tried.shape))
            return -his if symmetric else lo * functions.power(2.0, np.broadcast_to(los, tried.shape)), his

        turns = [0] if not hi else [1, 0, 1]
        if symmetric or not lo:
            turns = [1]
        for steps in (COARSE, *FINER):
            for end in turns:
                cost = [
                    self.error(counts, edges, *pair, dtype, symmetric) for pair in zip(*ends(end, steps), strict=True)
                ]
                fractions[end] = min(fractions[end] + steps[int(np.argmin(cost))], 0.0)
        los, his = ends(1, np.zeros(1))
        return float(los[0]), float(his[0])

    def error(
        self, counts: np.ndarray, edges: np.ndarray, lo: float, hi: float, dtype: DTypeLike, symmetric: bool
    ) -> float:
        """Sum of |error| ** norm for the range (lo, hi), of elements counted between `edges` (bins + 1,), over their
        number.

        In steps of the scale, u = n + r with n the code of u: the integral of |u - n| ** norm from 0 to u is
        n 2 (1/2) ** (norm + 1) / (norm + 1) + sign(r) |r| ** (norm + 1) / (norm + 1), beyond the last code too.
        """
        scale, zero_point = affine.qparams(lo, hi, dtype, symmetric)
        qmin, qmax = affine.code_range(dtype, symmetric)
        u = edges / np.float64(scale)
        n = np.clip(np.rint(u), qmin - float(zero_point), qmax - float(zero_point))
        u -= n
        power = self.norm + 1
        integral = n * functions.power(0.5, self.norm) + np.copysign(functions.power(np.abs(u), power), u)
        mean = (np.diff(integral) * counts).sum() / counts.sum() / power  # over a bin's width in steps
        return float(mean * functions.power(np.float64(scale), power) / (edges[1] - edges[0]))
