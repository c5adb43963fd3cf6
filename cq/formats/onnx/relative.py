"""Disentangled attention in an ONNX graph: queries and keys meet the keys and queries of relative positions (He et al.
2020)."""

import numpy as np

from ...model.attention import Attention
from ...model.config import Config
from ...model.deferred import Deferred
from ...model.position_bias import position_of
from .graph import Graph

_ONE, _TOKENS, _LAST = np.array([1]), np.array([2]), np.array([3])


class Relative:
    """What all layers share, which depends on the number of tokens n alone. By 2 n distances in order, products with
    positions are rows in which every token's keys begin one column before those of the token before it; what lies
    between rows of 2 n - 1 columns that begin at column n - 1 has them one below the other."""

    def __init__(self, graph: Graph, config: Config, length: str):
        """length: int64 (1,)."""
        self.graph, self.heads = graph, config.num_heads
        kind, most = config.position_bias, config.max_positions
        assert kind is not None, "asked for where positions meet"
        count, one = graph.add("Squeeze", length), np.array(1)
        first = graph.add("Sub", count, one)
        far = graph.add("Range", first, graph.add("Sub", graph.add("Neg", count), one), np.array(-1))
        reach, (least, furthest) = 1, position_of(np.array([-most, most]), kind)
        while reach < most and position_of(np.array([-reach, reach]), kind).tolist() != [least, furthest]:
            reach = min(2 * reach, most)  # beyond which nothing changes, or sequences end
        table = position_of(np.arange(-reach, reach + 1), kind)
        # of query i that of key i - n + 1, and on; of key j, by the same steps, that of query j - n + 1
        self._of_queries, self._of_keys = (self._positions(table, reach, d) for d in (far, graph.add("Neg", far)))
        self._first = graph.add("Sub", length, _ONE)
        cells = graph.add("Mul", graph.add("Mul", length, length), np.array([2]))
        self._end, self._length = graph.add("Sub", cells, _ONE), length
        self._square = graph.add("Concat", np.array([0, self.heads]), length, np.array([-1]), axis=0)

    def _positions(self, table: np.ndarray, reach: int, distance: str) -> str:
        graph = self.graph
        near = graph.add("Min", graph.add("Max", distance, np.array(-reach)), np.array(reach))
        return graph.add("Gather", table, graph.add("Add", near, np.array(reach)))

    def bias(self, part: Attention, name: str, query: str, key: str, factor: float) -> str:
        """What positions add to scores (batch, kv heads, queries of all that share a kv head, keys). query, key:
        (batch, heads, length, dim); factor: what the queries have been multiplied by."""
        graph, relative, shared = self.graph, part.relative, part.heads // part.kv_heads
        assert relative is not None, "asked for where positions meet"
        parts = []
        if relative.keys is not None:
            table = self._table(f"{name}.relative_keys", relative.keys, (part.heads, part.dim), 1.0)
            parts.append(self._met(query, table, self._of_queries))
        if relative.queries is not None:
            heads = (part.kv_heads, shared) if shared > 1 else (part.heads,)
            table = self._table(f"{name}.relative_queries", relative.queries, (*heads, part.dim), factor)
            key = graph.add("Unsqueeze", key, _TOKENS) if shared > 1 else key
            parts.append(graph.add("Transpose", self._met(key, table, self._of_keys), perm=[0, 1, 3, 2]))
        total = parts[0] if len(parts) == 1 else graph.add("Add", *parts)
        if shared == 1:
            return total
        shape = graph.add("Concat", np.array([0, part.kv_heads, -1]), self._length, axis=0)
        return graph.add("Reshape", total, shape)

    def _table(self, name: str, array: np.ndarray, split: tuple[int, ...], factor: float) -> str:
        """float32 (heads * dim, positions) as a constant (heads, positions, dim)."""
        shape = *split[:-1], array.shape[1], split[-1]
        turned = Deferred(
            shape, np.float32, lambda: np.swapaxes(array.reshape(*split, -1), -1, -2) * np.float32(factor)
        )
        return self.graph.constant(name, turned)

    def _met(self, x: str, table: str, positions: str) -> str:
        """Products of each token and the positions of all others, (batch, heads, length, length)."""
        graph = self.graph
        rows = graph.add("Gather", table, positions, axis=-2)
        rank = len(graph.constants[table].shape)
        rows = graph.add("Transpose", rows, perm=[*range(rank - 2), rank - 1, rank - 2])
        met = graph.add("Reshape", graph.add("MatMul", x, rows), np.array([0, self.heads, -1]))
        met = graph.add("Reshape", graph.add("Slice", met, self._first, self._end, _TOKENS), self._square)
        return graph.add("Slice", met, np.array([0]), self._length, _LAST)
