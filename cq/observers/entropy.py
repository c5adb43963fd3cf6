"""The clipping range that loses the least information about the distribution."""

from typing import Self

import numpy as np
from numpy.typing import DTypeLike

from cq import functions
from cq.observers.counting import HALF, Counting, coarser

LEVELS = 128
COARSE = 32  # candidates for each end in the joint search over both
FLOOR = 1e-4  # elements in a bin
NOISE = 1e-12  # differences of divergence below this are rounding


class Entropy(Counting):
    """The range whose quantized distribution has the least Kullback-Leibler divergence from the observed one (Migacz,
    "8-bit inference with TensorRT", GTC 2017).

    The observed range is cut into 2,048 to 4,095 bins. For a candidate, P is the histogram inside it, with what lies
    outside added to its end bins; Q spreads what each of 128 even levels holds inside it over that level's bins where P
    is not 0; the candidate costs KL(P || Q). Where a level holds nothing but P's end bin does, Q is 0.0001 elements, as
    in MXNet and ONNX Runtime. Candidates hold 0 and span at least 128 bins.
    Symmetric codes: magnitudes are counted, and every threshold is tried. Affine codes: the ends move apart from each
    other; from the best of 32 x 32 pairs, all positions of one end are tried and then all of the other, until neither
    improves. Among equals the widest range wins. Exact zeros are left out, as every range represents them without loss.
    A histogram of few elements says little: give 10,000 or more. Merging is exact in any order and partition. A search
    takes about 30 ms, per channel for each.
    """

    def __init__(self, axis: int | None = None) -> None:
        super().__init__(axis)
        self._zeros = np.zeros(1, np.int64)

    def _update(self, x: np.ndarray, lo: np.ndarray, hi: np.ndarray, order: int | None) -> None:
        super()._update(x, lo, hi, order)
        axis = None if self.axis is None else 0
        self._zeros = self._zeros + np.count_nonzero(x == 0, axis)

    def _merge(self, other: Self) -> None:
        super()._merge(other)
        self._zeros = self._zeros + other._zeros

    def _choose(self, channel: int, lo: float, hi: float, dtype: DTypeLike, symmetric: bool) -> tuple[float, float]:
        constant = lo == hi
        lo, hi = min(lo, 0.0), max(hi, 0.0)
        if constant:
            return lo, hi
        exponent = int(self._grid.exponents[channel])
        counts = self._grid.counts[channel].copy()
        counts[HALF] -= self._zeros[channel]
        if symmetric:
            counts[HALF:] += counts[HALF - 1 :: -1]
            counts[:HALF] = 0
            lo, hi = 0.0, max(-lo, hi)
        if np.ldexp(hi, -exponent) - np.ldexp(lo, -exponent) >= 4096:
            counts, exponent = coarser(counts, 1), exponent + 1
        start = HALF + int(np.floor(np.ldexp(lo, -exponent)))
        stop = HALF + int(np.floor(np.ldexp(hi, -exponent))) + 1 if hi else HALF
        if stop - start < LEVELS:  # only where all magnitudes are far below the smallest scale
            return (-hi, hi) if symmetric else (lo, hi)
        start, stop = _search(counts, start, stop)
        lo = max(np.ldexp(start - HALF, exponent), lo)
        hi = min(np.ldexp(stop - HALF, exponent), hi)
        return (-hi, hi) if symmetric else (lo, hi)


def _search(counts: np.ndarray, first: int, last: int) -> tuple[int, int]:
    """The bins [start, stop) of least divergence inside the observed [first, last), start <= HALF <= stop."""
    prefixes = _prefixes(counts)
    # the widest first, as it wins among equals
    starts, stops = np.arange(first, HALF + 1), np.arange(last, HALF - 1, -1)
    pairs = np.meshgrid(_spread(starts), _spread(stops), indexing="ij")
    start, stop, cost = _best(counts, prefixes, *(ends.ravel() for ends in pairs))
    while True:
        before = cost
        if len(starts) > 1:
            start, stop, cost = _best(counts, prefixes, starts, np.full(len(starts), stop))
        if len(stops) > 1:
            start, stop, cost = _best(counts, prefixes, np.full(len(stops), start), stops)
        if cost >= before - NOISE:
            return start, stop


def _spread(ends: np.ndarray) -> np.ndarray:
    return ends if len(ends) <= COARSE else ends[np.linspace(0, len(ends) - 1, COARSE).astype(int)]


def _best(counts: np.ndarray, prefixes: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[int, int, float]:
    wide = stops - starts >= LEVELS
    starts, stops = starts[wide], stops[wide]
    costs = divergences(counts, prefixes, starts, stops)
    best = int(np.argmax(costs <= costs.min() + NOISE))
    return int(starts[best]), int(stops[best]), float(costs[best])


def _prefixes(counts: np.ndarray) -> np.ndarray:
    """(3, bins + 1): sums over the bins below of counts, of bins that are not empty, and of count * log(count)."""
    values = counts.astype(np.float64)
    rows = np.stack([values, values > 0, values * functions.log(np.maximum(values, 1))])
    return np.concatenate([np.zeros((3, 1)), np.cumsum(rows, axis=1)], axis=1)


def divergences(counts: np.ndarray, prefixes: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """KL(P || Q) in nats of each candidate [starts[i], stops[i]) of at least LEVELS bins; float64 (candidates,).

    With all sums over bins taken from prefixes, a candidate costs its 128 levels and not its bins:
    sum of P log P - sum over levels of P log(S / bins) - N log N + N log(N inside), S being what a level holds inside
    and bins those of its bins where P is not 0.
    """
    total, filled, logs = prefixes
    everything = total[-1]
    # (candidates, LEVELS + 1): the first bin of each level, rounded up
    edges = starts[:, None] + -(-np.arange(LEVELS + 1) * (stops - starts)[:, None] // LEVELS)
    inside, bins = np.diff(total[edges]), np.diff(filled[edges])
    below, above = total[starts], everything - total[stops]
    reference = inside.copy()
    entropy = logs[stops] - logs[starts]
    for level, end, outside in ((0, starts, below), (-1, stops - 1, above)):
        held = counts[end].astype(np.float64)
        entropy += _x_log_x(held + outside) - _x_log_x(held)
        bins[:, level] += (held == 0) & (outside > 0)
        reference[:, level] += outside
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(reference > 0, reference * functions.log(np.maximum(inside / bins, FLOOR)), 0).sum(axis=1)
        within = total[stops] - total[starts]
        costs = (entropy - expected - _x_log_x(everything) + everything * functions.log(within)) / everything
    return np.where(within > 0, costs, np.inf)


def _x_log_x(x: np.ndarray) -> np.ndarray:
    product: np.ndarray = x * functions.log(np.maximum(x, 1))  # of whole numbers
    return product
