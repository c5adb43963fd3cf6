"""A sample of the tokens that go by and the extremes of every channel: what choices that look at a layer's outputs
need. Finds no range itself."""

from typing import Self

import numpy as np


class Tokens:
    """The rows of `keep` tokens, drawn evenly from all that came, and each channel's smallest and largest element.

    keep: 0 for the extremes alone. A token's rank is a hash of its place in the stream, and those of smallest rank stay
    (bottom-k sampling, Cohen, Kaplan 2007), so merging gives the same rows in any order and any partition; the same
    tokens stay at every place that sees them all."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.lo: np.ndarray | None = None  # (channels,) float32
        self.hi: np.ndarray | None = None
        # rows and their ranks, at most a quarter more than are kept
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        # tokens in parts; the rank one must be below
        self._waiting, self._worst = 0, np.uint64(2**64 - 1 if keep else 0)

    def update(self, x: np.ndarray, order: int, start: int = 0) -> None:
        """Take in x (tokens, channels), finite float32: tokens start, start + 1, ... of sample `order`."""
        ranks = _hash((np.uint64(order) << np.uint64(24)) + np.arange(start, start + len(x), dtype=np.uint64))
        self._take(x, ranks, x.min(0), x.max(0))

    def merge(self, other: Self) -> Self:
        """Take in what `other` saw; returns self."""
        if other.lo is not None and other.hi is not None:
            nothing = [(np.empty((0, len(other.lo)), np.float32), np.empty(0, np.uint64))]
            for rows, ranks in other._parts or nothing:
                self._take(rows, ranks, other.lo, other.hi)
        return self

    @property
    def rows(self) -> np.ndarray:
        """(at most keep, channels) float32, in order of rank."""
        self._sort()
        return self._parts[0][0]

    def _take(self, x: np.ndarray, ranks: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> None:
        if self.lo is not None and self.hi is not None:
            lo, hi = np.minimum(self.lo, lo), np.maximum(self.hi, hi)
        self.lo, self.hi = lo, hi
        fits = ranks < self._worst
        if fits.any():
            self._parts.append((x[fits], ranks[fits]))
            self._waiting += int(fits.sum())
        if self._waiting > self.keep + self.keep // 4:
            self._sort()

    def _sort(self) -> None:
        rows, ranks = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
        first = np.argsort(ranks, kind="stable")[: self.keep]
        self._parts, self._waiting = [(rows[first], ranks[first])], len(first)
        if len(first) == self.keep:
            self._worst = ranks[first[-1]]


def _hash(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that mixes all bits (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return x
