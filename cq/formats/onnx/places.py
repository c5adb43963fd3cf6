"""Where tokens stand in an ONNX graph, and what attention makes of it: which keys a query sees, biases by distance,
relative positions, the angles of rotary ones."""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...model.attention import Attention, Rotary
from ...model.config import Config
from ...model.position_bias import PositionBias, by_distance, slopes
from .graph import Graph
from .relative import Relative

_FARAWAY = np.float32(np.finfo(np.float32).min / 2)  # what is added to scores that do not count: finite beside others
_LENGTH = np.array([1])  # the axis of tokens


class Tokens(NamedTuple):
    """Names of what a layer's attention needs to know of its tokens. mask: float32, added to scores
    (batch, kv heads, queries of all that share a kv head, keys): broadcasts. cosine, sine: (batch or 1, 1, length,
    turned / 2), or None where no position turns. ones: (keys, 1), through codes, where attention is in codes; else
    None. relative: what layers share of the positions that they meet, or None where they meet none."""

    mask: str
    cosine: str | None
    sine: str | None
    ones: str | None
    relative: Relative | None


class Places:
    """The places of a call's tokens; what layers need of them is drawn when the first one asks, and shared by all."""

    def __init__(self, graph: Graph, config: Config, given: str, sizes: str, past: bool):
        """given: attention_mask (batch, keys). sizes: the shape (batch, length) of the tokens. past: whether keys may
        stand before the first of these."""
        self.graph, self.config, self.given, self._past = graph, config, given, past
        self._sizes = sizes
        with graph.inside("positions"):
            self._length = graph.add("Slice", sizes, np.array([1]), np.array([2]))
        self._masks: dict[int | None, str] = {}
        self._angles: dict[int, tuple[str, str]] = {}
        self._shapes: dict[tuple[int, ...], str] = {}

    def apart(self, x: str, *features: int) -> str:
        """x (tokens of all sequences, n) → (batch, length, *features)."""
        if features not in self._shapes:
            with self.graph.inside("positions"):
                self._shapes[features] = self.graph.add("Concat", self._sizes, np.array(features), axis=0)
        return self.graph.add("Reshape", x, self._shapes[features])

    def tokens(self, part: Attention) -> Tokens:
        """Of a layer's attention."""
        if part.window not in self._masks:
            with self.graph.inside("mask"):
                self._masks[part.window] = self._mask(part)
        relative = None if part.relative is None else self._relative
        ones = self._ones if isinstance(part.forms, tuple) else None
        if part.rotary is None:
            return Tokens(self._masks[part.window], None, None, ones, relative)
        if id(part.rotary) not in self._angles:
            with self.graph.inside("rotary"):
                self._angles[id(part.rotary)] = self._turns(part.rotary)
        return Tokens(self._masks[part.window], *self._angles[id(part.rotary)], ones, relative)

    @cached_property
    def _ones(self) -> str:
        graph, one = self.graph, np.uint8(1)
        with graph.inside("ones"):
            keys = graph.add("Slice", graph.add("Shape", self.given), np.array([1]), np.array([2]))
            shape = graph.add("Concat", keys, np.array([1]), axis=0)
            return graph.add("DequantizeLinear", graph.add("Expand", one, shape), np.float32(1), np.uint8(0))

    @cached_property
    def _relative(self) -> Relative:
        with self.graph.inside("relative"):
            return Relative(self.graph, self.config, self._length)

    def rows(self, table: str) -> str:
        """The rows of `table` that the tokens' positions say, (batch, length, n) or (length, n)."""
        if self._counted:
            return self.graph.add("Gather", table, self._positions)
        return self.graph.add("Slice", table, np.array([0]), self._length, np.array([0]))

    @property
    def _counted(self) -> bool:
        """Whether the mask says which position a sequence's first token has."""
        return bool(self._past or self.config.position_offset and not self._reads_unseen)

    @cached_property
    def _positions(self) -> str:
        """int64 (batch or 1, length)."""
        with self.graph.inside("positions"):
            return self._numbered()

    def _numbered(self) -> str:
        graph, length = self.graph, self._length
        if not self._counted:
            places = graph.add("Range", np.array(0), graph.add("Squeeze", length), np.array(1))
            return graph.add("Unsqueeze", places, np.array([0]))
        places = graph.add("CumSum", self.given, np.array(1))
        places = graph.add("Max", graph.add("Sub", places, np.array(1)), np.array(0))
        return graph.add("Slice", places, graph.add("Neg", length), np.array([2**62]), _LENGTH)

    @property
    def _reads_unseen(self) -> bool:
        """Whether the mask leaves out tokens that are read: those that fill up a query of late interaction."""
        expansion = (self.config.multi_vector or {}).get("expansion")
        return expansion is not None and not expansion["attend"]

    # --- what a query sees --------------------------------------------------------------------------------------------

    @cached_property
    def _counts(self) -> str:
        """bool (batch, 1, 1, keys): which keys are tokens."""
        kept = self.graph.add("Cast", self.given, to=self.graph.onnx.TensorProto.BOOL)
        return self.graph.add("Unsqueeze", kept, np.array([1, 2]))

    @cached_property
    def _distance(self) -> str:
        """int64 (length, keys): from query to key."""
        graph, one = self.graph, np.array(1)
        keys = graph.add("Squeeze", graph.add("Slice", graph.add("Shape", self.given), np.array([1]), np.array([2])))
        first = graph.add("Sub", keys, graph.add("Squeeze", self._length))
        queries = graph.add("Unsqueeze", graph.add("Range", first, keys, one), np.array([1]))
        return graph.add("Sub", graph.add("Range", np.array(0), keys, one), queries)

    def _mask(self, part: Attention) -> str:
        """What is added to scores: 0 or the bias, or far below everything where a key does not count. Query heads that
        share a kv head have their rows one after another."""
        graph, counts, seen = self.graph, self._counts, self._seen(part)
        if seen is not None:
            shared = part.heads // part.kv_heads
            seen = graph.add("Tile", seen, np.array([shared, 1])) if shared > 1 else seen
            counts = graph.add("And", counts, seen)
        shown = graph.add("Where", counts, np.float32(0), _FARAWAY)
        return shown if part.bias is None else graph.add("Add", shown, self._bias(part.bias, part.kv_heads))

    def _seen(self, part: Attention) -> str | None:
        """bool (length, keys): what a query sees by its place; None: everything."""
        graph, window = self.graph, part.window
        if not part.causal:
            if window is None:
                return None
            return graph.add("LessOrEqual", graph.add("Abs", self._distance), np.array(window))
        seen = graph.add("LessOrEqual", self._distance, np.array(0))
        if window is None:
            return seen
        return graph.add("And", seen, graph.add("Greater", self._distance, np.array(-window)))

    def _bias(self, bias: PositionBias, kv_heads: int) -> str:
        """float32 (kv heads, queries of all that share one, keys). Beyond the last bucket's distance nothing changes,
        so a table that ends there serves all lengths."""
        graph = self.graph
        if bias.kind["kind"] == "alibi":
            far = graph.add("Cast", graph.add("Abs", self._distance), to=graph.onnx.TensorProto.FLOAT)
            by_head = graph.add("Mul", far, -slopes(bias.heads)[:, None, None])
        else:
            reach = min(bias.kind["distance"], self.config.max_positions)
            table = graph.constant("embed.buckets", by_distance(bias.kind, bias.buckets, bias.heads, reach + 1))
            near = graph.add("Min", graph.add("Max", self._distance, np.array(-reach)), np.array(reach))
            by_head = graph.add("Gather", table, graph.add("Add", near, np.array(reach)), axis=1)
        return by_head if kv_heads == bias.heads else graph.add("Reshape", by_head, np.array([kv_heads, -1, 0]))

    # --- rotary positions ---------------------------------------------------------------------------------------------

    def _turns(self, rotary: Rotary) -> tuple[str, str]:
        """Cosines and sines (batch or 1, 1, length, turned / 2)."""
        graph, (plain, factor) = self.graph, rotary.frequencies[0]
        frequencies: str | np.ndarray = plain
        if rotary.turning_point is not None:  # each sequence by its own length
            total = graph.add("Unsqueeze", graph.add("ReduceSum", self.given, _LENGTH, keepdims=1), np.array([2, 3]))
            longer = graph.add("Greater", total, np.array(rotary.turning_point))
            frequencies = graph.add("Where", longer, rotary.frequencies[1][0], plain)
        places = graph.add("Cast", self._positions, to=graph.onnx.TensorProto.FLOAT)
        angles = graph.add("Mul", graph.add("Unsqueeze", places, np.array([1, 3])), frequencies)
        cosine, sine = (graph.add(op, angles) for op in ("Cos", "Sin"))
        if factor == 1:
            return cosine, sine
        return graph.add("Mul", cosine, np.float32(factor)), graph.add("Mul", sine, np.float32(factor))
