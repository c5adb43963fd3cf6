"""Softmax attention over ragged sequences, forward and in reverse: in floats, and as int8 attention computes it
(src/attention.c), static and dynamic. Knows no projections."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .. import functions
from ..model import Config
from ..model.forms import Form, PerHead
from ..model.position_bias import bucket_of, by_distance
from .batch import Packed
from .fake import Codes
from .parameters import Parameters
from .passes import exp2, exponents, matmul, softmax_back
from .relative import RelativePositions

SCORES = 1 << 18  # scores worked on at a time: one megabyte, which stays in cache through softmax's passes
LOG2_E = 1.4426950408889634


class Sight(NamedTuple):
    """What queries see, and how products of queries and keys become scores: see Config's window, attention_scale and
    attention_cap."""

    causal: bool
    window: int | None
    scale: float
    cap: float | None

    @classmethod
    def of(cls, config: Config, i: int) -> "Sight":
        """Layer i's."""
        return cls(config.causal, config.layer(i).window, config.score_scale, config.attention_cap)

    def hidden(self, length: int) -> np.ndarray | None:
        """-Inf (queries, keys) where a key is not seen, else 0; None where all are."""
        back = np.arange(length)[:, None] - np.arange(length)
        unseen = back < 0 if self.causal else np.zeros(back.shape, bool)
        if self.window is not None:
            unseen |= back >= self.window if self.causal else np.abs(back) > self.window
        return np.where(unseen, -np.inf, 0.0) if unseen.any() else None


class PositionBias:
    """What is added to scores by distance, and the way back to buckets, where there are any."""

    def __init__(self, parameters: Parameters, kind: dict, heads: int):
        self.parameters, self.kind, self.heads = parameters, kind, heads

    @classmethod
    def of(cls, parameters: Parameters, config: Config) -> "PositionBias | None":
        """What the configuration has of it; products with positions are not of this kind."""
        kind = config.position_bias
        return None if kind is None or kind["kind"] == "disentangled" else cls(parameters, kind, config.num_heads)

    def rows(self, length: int) -> np.ndarray:
        """(heads, queries, keys), a view."""
        buckets = self.parameters.values.get("embed.buckets")
        table = by_distance(self.kind, buckets, self.heads, length)
        return np.lib.stride_tricks.sliding_window_view(table, length, axis=1)[:, ::-1]

    def backward(self, g: np.ndarray) -> None:
        """From the gradient of scores (sequences, heads, queries, keys)."""
        if "embed.buckets" not in self.parameters.values:
            return
        length = g.shape[-1]
        rows = np.zeros((self.heads, length, 2 * length), g.dtype)
        rows[..., :length] = g.sum(axis=0)[..., ::-1]
        # read with one column less in each row, those of one distance stand one above the other
        flat = rows.reshape(self.heads, -1)[:, :-length].reshape(self.heads, -1, 2 * length - 1)
        sums = flat.sum(axis=1)[:, ::-1].T
        bucket = bucket_of(np.arange(1 - length, length), self.kind["buckets"], self.kind["distance"])
        self.parameters.add_rows("embed.buckets", bucket, sums)


class Attention:
    """In floats. Sequences of equal lengths are taken together."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        dim: int,
        sight: Sight,
        bias: PositionBias | None = None,
        relative: RelativePositions | None = None,
    ):
        self.heads, self.kv_heads, self.dim, self.sight = heads, kv_heads, dim, sight
        self.bias, self.relative = bias, relative
        self.factor = sight.scale

    def _blocks(self, batch: Packed) -> Iterator[tuple[slice, int]]:
        """(slice of tokens, length) of sequences of one length, about SCORES scores together."""
        for rows, length in batch.groups:
            step = max(1, SCORES // (self.heads * length * length)) * length
            for start in range(rows.start, rows.stop, step):
                yield slice(start, min(start + step, rows.stop)), length

    def forward(self, q: Codes, k: Codes, v: Codes, batch: Packed) -> np.ndarray:
        """q (tokens, heads * dim), k, v (tokens, kv_heads * dim) → (tokens, heads * dim)."""
        self.coded, self.batch = (q, k, v), batch
        result, self.weights = np.empty_like(q.values), []
        self.tanhs: list[np.ndarray] = []
        for rows, length in self._blocks(batch):
            scores = self._products(q.values, k.values, rows, length)
            self.weights.append(self._attend(scores, self._heads(result, rows, length), rows, length))
        return result

    def _products(self, a: np.ndarray, b: np.ndarray, rows: slice, length: int) -> np.ndarray:
        """Of each head's queries with its keys, or the like: (sequences, kv_heads, query heads of each, length,
        length)."""
        a, b = self._heads(a, rows, length), self._heads(b, rows, length, True)
        return matmul(a, b.swapaxes(-1, -2), np.empty((*a.shape[:4], length), a.dtype))

    def _attend(
        self, scores: np.ndarray, context: np.ndarray, rows: slice, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Writes what the scores of some sequences make of their values; gives weights, and what they are to be
        multiplied by to add up to 1."""
        self._add_bias(scores, rows, length, 1 / self._unit())
        factor = self._cap(scores, self._unit(), 1.0)
        self._hide(scores, length)
        inverse = 1 / self._exponents(scores, factor)
        v = self.coded[2]
        matmul(scores, self._heads(v.values, rows, length, True), context)
        context *= inverse if v.scale is None else inverse * v.scale
        return scores, inverse

    def _add_bias(self, scores: np.ndarray, rows: slice, length: int, factor: float) -> None:
        if self.bias is not None:
            more = self.bias.rows(length) * np.asarray(factor, scores.dtype)
            scores += more.reshape(self.kv_heads, -1, length, length)
        if self.relative is not None:
            scores += self.relative.forward(*self._met(rows, length)) * np.asarray(self.factor * factor, scores.dtype)

    def _met(self, rows: slice, length: int) -> tuple[np.ndarray, np.ndarray]:
        """What the queries and keys of some sequences stand for, which meet relative positions."""
        q, k, _ = self.coded
        return self._heads(self._floats(q), rows, length), self._heads(self._floats(k), rows, length, True)

    def _floats(self, x: Codes) -> np.ndarray:
        return x.floats()

    def _cap(self, scores: np.ndarray, unit: float, most: float) -> float:
        """Caps products of which 1 adds `unit` to a score; in place, to what `unit` of it, which is returned, are
        multiples of. most: what 1 is of scores in the cap's place."""
        cap = self.sight.cap
        if cap is None:
            return unit
        scores *= np.asarray(unit / (cap * most), scores.dtype)
        scores[...] = functions.tanh(scores)
        self.tanhs.append(scores.copy())
        return cap * most

    def _hide(self, scores: np.ndarray, length: int) -> None:
        """-Inf where a key is not seen."""
        hidden = self.sight.hidden(length)
        if hidden is not None:
            scores += hidden.astype(scores.dtype)

    def _unit(self) -> float:
        """What 1 in products of queries and keys adds to a score."""
        return self.factor

    def _exponents(self, scores: np.ndarray, unit: float) -> np.ndarray:
        return exponents(scores, unit, False)

    def backward(self, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradients of q, k and v (their rounded values, where they are codes)."""
        q, k, v = self.coded
        dq, dk, dv = np.empty_like(q.values), np.empty_like(k.values), np.empty_like(v.values)
        by_positions = []
        for i, ((rows, length), (weights, inverse)) in enumerate(zip(self._blocks(self.batch), self.weights)):
            self._over_groups(weights.swapaxes(-1, -2), self._heads(g, rows, length) * inverse, dv, rows, length)
            scores = self._products(g, v.values, rows, length)
            softmax_back(scores, weights, inverse, self.factor if v.scale is None else v.one_scale * self.factor)
            if self.tanhs:
                scores *= 1 - np.square(self.tanhs[i])
            if self.bias is not None:
                self.bias.backward(scores.reshape(-1, self.heads, length, length) / self.factor)
            if self.relative is not None:
                by_positions.append((rows, length, self.relative.backward(scores, *self._met(rows, length))))
            matmul(scores, self._heads(k.values, rows, length, True), self._heads(dq, rows, length))
            self._over_groups(scores.swapaxes(-1, -2), self._heads(q.values, rows, length), dk, rows, length)
        for gradient, other in ((dq, k), (dk, q)):
            if other.scale is not None:
                gradient *= other.scale
        for rows, length, (of_q, of_k) in by_positions:
            self._heads(dq, rows, length)[...] += of_q
            self._heads(dk, rows, length, True)[...] += of_k
        if self.relative is not None:
            self.relative.settle()
        self.forget()
        return dq, dk, dv

    def forget(self) -> None:
        """Frees what the reverse needs."""
        for name in ("coded", "weights", "tanhs", "v_scale"):
            self.__dict__.pop(name, None)

    def _heads(self, x: np.ndarray, rows: slice, length: int, keys: bool = False) -> np.ndarray:
        """A view (sequences, kv_heads, query heads of each, length, x's columns of a head); of keys and values the
        third is 1."""
        shared = 1 if keys else self.heads // self.kv_heads
        return (
            x[rows]
            .reshape(-1, length, self.kv_heads, shared, x.shape[1] // (self.kv_heads * shared))
            .transpose(0, 2, 3, 1, 4)
        )

    def _over_groups(self, a: np.ndarray, b: np.ndarray, out: np.ndarray, rows: slice, length: int) -> None:
        """out of keys or values: products of all query heads that read the same one, summed."""
        target = self._heads(out, rows, length, True)
        for head in range(self.heads // self.kv_heads):
            matmul(a[:, :, head : head + 1], b[:, :, head : head + 1], target, head > 0)


class CodedAttention(Attention):
    """Static: of codes with one scale for each of q, k and v; weights are 255ths of the largest."""

    def _unit(self) -> float:
        q, k, _ = self.coded
        return self.factor * q.one_scale * k.one_scale

    def _exponents(self, scores: np.ndarray, unit: float) -> np.ndarray:
        q, k, _ = self.coded
        if self.sight.cap is None:
            unit = self.factor * LOG2_E * q.one_scale * k.one_scale
        else:
            unit *= LOG2_E
        return exponents(scores, unit, True)


class ScaledAttention(Attention):
    """Dynamic: of codes per head (fake.ExactHeads). A weight is the exponent times the scale of its key's value, as a
    code of which 255 is no less than the largest. The reverse passes straight through its rounding."""

    def forward(self, q: Codes, k: Codes, v: Codes, batch: Packed) -> np.ndarray:
        some = v.values.reshape(len(v.values), self.kv_heads, -1).any(axis=2)
        self.v_scale = np.where(some, v.scales, 0)  # a value of zeros takes no room in its query's codes
        return super().forward(q, k, v, batch)

    def _attend(
        self, scores: np.ndarray, context: np.ndarray, rows: slice, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        q, k, v = self.coded
        k_scale, v_scale = (self._heads(s, rows, length, True).swapaxes(-1, -2) for s in (k.scales, self.v_scale))
        scores *= k_scale
        scores *= np.asarray(self._heads(q.scales, rows, length) * (self.factor * LOG2_E))
        self._add_bias(scores, rows, length, LOG2_E)
        factor = self._cap(scores, 1.0, LOG2_E)
        if factor != 1:
            scores *= np.asarray(factor, scores.dtype)
        self._hide(scores, length)
        scores -= (scores + _log2_above(v_scale)).max(axis=-1, keepdims=True)
        exp2(scores)
        inverse = 1 / scores.sum(axis=-1, keepdims=True)
        codes = scores * (255 * v_scale)
        np.minimum(np.rint(codes, out=codes), 255, out=codes)
        matmul(codes, self._heads(v.values, rows, length, True), context)
        context *= inverse / 255
        return scores, inverse

    def _floats(self, x: Codes) -> np.ndarray:
        return x.values if x.scale is None else x.values * np.repeat(x.scales, self.dim, axis=1)

    def backward(self, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q, k, v = (Codes(self._floats(x)) for x in self.coded)
        self.coded = q, k, v
        return super().backward(g)


def kind_of(form: Form | PerHead) -> type[Attention]:
    """The class for queries in this form; None: float32."""
    if form is None:
        return Attention
    return ScaledAttention if isinstance(form, PerHead) else CodedAttention


def _log2_above(x: np.ndarray) -> np.ndarray:
    """At least log2(x), by 0.0861 at most: an exponent and its mantissa read as one number. At least -60."""
    bits = np.ascontiguousarray(x, np.float32).view(np.int32).astype(np.float32)
    log: np.ndarray = np.maximum(bits * np.float32(2**-23) - np.float32(126.913), np.float32(-60))
    return log.astype(x.dtype)
