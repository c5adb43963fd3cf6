"""Biases of attention's scores by the distance from query to key: buckets of distances (Raffel et al. 2020), lines
(Press et al. 2022), and positions that queries and keys meet (He et al. 2020). Knows no attention."""

from typing import NamedTuple

import numpy as np

from .. import functions
from ..errors import FormatError

# kind → the numbers that it takes, and its flags
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "buckets": (("buckets", "distance"), ()),
    "alibi": ((), ()),
    "disentangled": (("buckets", "distance"), ("keys", "queries")),
}


def check_bias(bias: dict | None) -> None:
    """Raises FormatError unless `bias` is None or {"kind": one of KINDS, and each of its numbers and flags}. Of
    "buckets" how many there are, a multiple of 4, and the distance from which on the last one counts. Of
    "disentangled" the same, in each direction, buckets 0: every distance up to `distance` is a position of its own; and
    whether a position has a key for queries, a query for keys, or both."""
    if bias is None:
        return
    kind = bias.get("kind") if isinstance(bias, dict) else None
    if not isinstance(kind, str) or kind not in KINDS or set(bias) != {"kind", *KINDS[kind][0], *KINDS[kind][1]}:
        raise FormatError(
            f"config: position_bias: need null or a kind of {', '.join(KINDS)} and its numbers, got {bias!r:.200}"
        )
    numbers, flags = ([bias[name] for name in names] for names in KINDS[kind])
    least = 0 if kind == "disentangled" else 1  # of buckets
    if not all(type(number) is int and low <= number < 2**31 for number, low in zip(numbers, (least, 1))):
        raise FormatError(f"config: position_bias: need positive integers, got {bias!r:.200}")
    if not all(type(flag) is bool for flag in flags) or flags and not any(flags):
        raise FormatError(f"config: position_bias: need true or false, and one of them true, got {bias!r:.200}")
    if kind == "buckets" and (bias["buckets"] % 4 or bias["distance"] <= bias["buckets"] // 4):
        raise FormatError(
            "config: position_bias: buckets must be a multiple of 4, and distance more than a quarter of them, got "
            f"{bias['buckets']} and {bias['distance']}"
        )
    if kind == "disentangled" and bias["buckets"] and not 2 <= bias["buckets"] <= 2 * bias["distance"] - 3:
        raise FormatError(
            "config: position_bias: buckets must be 0, or at least 2 with distance more than half of them and 1, got "
            f"{bias['buckets']} and {bias['distance']}"
        )


def bias_shapes(bias: dict | None, heads: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of the weights that a bias has, outside layers."""
    return {"embed.buckets": (bias["buckets"], heads)} if bias is not None and bias["kind"] == "buckets" else {}


def layer_bias_shapes(bias: dict | None, features: int) -> dict[str, tuple[int, ...]]:
    """The same within a layer's attention. features: of all heads."""
    if bias is None or bias["kind"] != "disentangled":
        return {}
    positions = 2 * (bias["buckets"] or bias["distance"])
    return {f"relative_{part}": (features, positions) for part in ("keys", "queries") if bias[part]}


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


def position_of(distance: np.ndarray, bias: dict) -> np.ndarray:
    """The relative position of each distance, query minus key, in "disentangled" biases: the middle one is distance 0;
    half of the buckets on either side are single distances, the rest are ranges that grow by one factor up to the last
    distance (He et al. 2021). Steps round to float32, as in common implementations; logarithms are rounded from
    float64."""
    buckets, most = bias["buckets"], bias["distance"]
    half = buckets or most
    if buckets:
        single, far = buckets // 2, np.abs(distance)
        ratio = functions.log(np.maximum(far, single).astype(np.float32) / np.float32(single))
        growth = ratio / functions.log(np.float32((most - 1) / single))
        ranged = np.ceil(growth * np.float32(single - 1)).astype(np.int64) + single
        distance = np.where(far <= single, distance, np.sign(distance) * ranged)
    return np.asarray(np.clip(distance + half, 0, 2 * half - 1))


class Laid(NamedTuple):
    """What `_core.attention` takes of relative positions. keys, queries: float32 (heads * dim, positions as a multiple
    of 16), or None; rows: int32 (2 n - 1,)."""

    keys: np.ndarray | None
    queries: np.ndarray | None
    rows: np.ndarray


class RelativePositions:
    """Keys and queries of relative positions in one layer, and the row of every distance; rows grow as longer sequences
    come."""

    def __init__(self, bias: dict, keys: np.ndarray | None, queries: np.ndarray | None):
        """keys, queries: float32 (heads * dim, positions), of those that the bias has."""
        self.kind, self.keys, self.queries = bias, keys, queries
        self._laid = Laid(_whole_panels(keys), _whole_panels(queries), np.empty(0, np.int32))

    def laid(self, length: int) -> Laid:
        """For sequences of up to `length` tokens."""
        laid = self._laid  # read and replaced as one: other threads may do so at the same time
        if 2 * length - 1 > len(laid.rows):
            n = max(length, len(laid.rows) + 1, 256)
            rows = position_of(np.arange(n - 1, -n, -1), self.kind).astype(np.int32)
            self._laid = laid = laid._replace(rows=rows)
        return laid

    def products(self, tokens: int) -> int:
        """How many pairs of a token and a position a sequence of so many tokens has."""
        first, last = position_of(np.array([1 - tokens, tokens - 1]), self.kind).tolist()
        return int(tokens * (last + 1 - first) * (self.kind["keys"] + self.kind["queries"]))


def _whole_panels(table: np.ndarray | None) -> np.ndarray | None:
    """With zeros up to a multiple of 16 positions; the table itself where that is one."""
    if table is None or table.shape[1] % 16 == 0:
        return table
    return np.pad(table, ((0, 0), (0, -table.shape[1] % 16)))
