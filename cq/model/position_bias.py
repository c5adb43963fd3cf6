"""Biases of attention's scores by the distance from query to key: buckets of distances (Raffel et al. 2020) and lines
(Press et al. 2022). Knows no attention."""

import numpy as np

from .. import functions
from ..errors import FormatError

KINDS = {"buckets": ("buckets", "distance"), "alibi": ()}  # kind → the numbers that it takes


def check_bias(bias: dict | None) -> None:
    """Raises FormatError unless `bias` is None or {"kind": one of KINDS, and each of its numbers}: of "buckets" how
    many there are, a multiple of 4, and the distance from which on the last one counts."""
    if bias is None:
        return
    kind = bias.get("kind") if isinstance(bias, dict) else None
    if not isinstance(kind, str) or kind not in KINDS or set(bias) != {"kind", *KINDS[kind]}:
        raise FormatError(
            f"config: position_bias: need null or a kind of {', '.join(KINDS)} and its numbers, got {bias!r:.200}"
        )
    if kind == "buckets":
        buckets, distance = bias["buckets"], bias["distance"]
        if not all(type(number) is int and 0 < number < 2**31 for number in (buckets, distance)):
            raise FormatError(f"config: position_bias: need positive integers, got {bias!r:.200}")
        if buckets % 4 or distance <= buckets // 4:
            raise FormatError(
                "config: position_bias: buckets must be a multiple of 4, and distance more than a quarter of them, got "
                f"{buckets} and {distance}"
            )


def bias_shapes(bias: dict | None, heads: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of the weights that a bias has."""
    return {"embed.buckets": (bias["buckets"], heads)} if bias is not None and bias["kind"] == "buckets" else {}


def bucket_of(distance: np.ndarray, buckets: int, most: int) -> np.ndarray:
    """The bucket of each distance, key minus query: half of the buckets for each direction; in each of these half for
    single distances, and the rest for ranges that grow by one factor up to `most`. Steps round to float32, as in common
    implementations; logarithms are rounded from float64."""
    half = buckets // 2
    single, far = half // 2, np.abs(distance)
    ratio = functions.log(np.maximum(far, 1).astype(np.float32).astype(np.float64) / single).astype(np.float32)
    growth = ratio / np.float32(functions.log(most / single)) * np.float32(half - single)
    ranged = np.minimum(single + growth.astype(np.int64), half - 1)
    return np.asarray(np.where(distance > 0, half, 0) + np.where(far < single, far, ranged))


def slopes(heads: int) -> np.ndarray:
    """float32 (heads,): a geometric sequence that ends at 2^-8; where the number of heads is no power of two, that of
    the next smaller one, and then every other one of the next larger."""
    whole = 1 << (heads.bit_length() - 1)
    exponents = [8 * (i + 1) / whole for i in range(whole)]
    exponents += [4 * (2 * i + 1) / whole for i in range(heads - whole)]
    return functions.power(2.0, -np.array(exponents)).astype(np.float32)


class PositionBias:
    """The biases of all heads, laid out by distance for sequences of any length; grown as longer ones come."""

    def __init__(self, bias: dict, buckets: np.ndarray | None, heads: int):
        """buckets: float32 (buckets, heads) where the kind has them."""
        self.kind, self.buckets, self.heads = bias, buckets, heads
        self._table = np.empty((heads, 0), np.float32)

    def table(self, length: int) -> np.ndarray:
        """float32 (heads, 2 n - 1), n at least `length`: that of query i and key j is at n - 1 + j - i."""
        table = self._table  # read and replaced as one: other threads may do so at the same time
        if 2 * length - 1 > table.shape[1]:
            n = max(length, table.shape[1] + 1, 256)
            self._table = table = by_distance(self.kind, self.buckets, self.heads, n)
        return table


def by_distance(bias: dict, buckets: np.ndarray | None, heads: int, length: int) -> np.ndarray:
    """(heads, 2 length - 1), distances ascending, in the precision of `buckets`."""
    distance = np.arange(1 - length, length)
    if buckets is None:
        return -slopes(heads)[:, None] * np.abs(distance).astype(np.float32)
    return np.ascontiguousarray(buckets[bucket_of(distance, bias["buckets"], bias["distance"])].T)
