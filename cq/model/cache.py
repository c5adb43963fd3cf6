"""What a sequence's tokens leave for those that follow: keys and values, layer by layer. Knows how they grow, and not
how they are read: src/cache.c does."""

import numpy as np

from .. import _core
from ..errors import UnsupportedError
from .attention import MAX_KEYS, Attention
from .forms import PerHead, Smoothed

BLOCK = 64  # tokens that a layout holds together: capacities are multiples


class LayerCache:
    """One attention's keys and values for some sequences, and the form in which they, and the queries, are kept: None,
    float32; PerHead, int8 symmetric with a scale for every token and head; or the attention's own static forms as
    one."""

    def __init__(self, attention: Attention, form: PerHead | Smoothed | None, sequences: int):
        self.attention, self.form = attention, form
        self._arrays: list[tuple[np.ndarray, ...]] = [()] * sequences
        self.firsts, self.capacities = [0] * sequences, [0] * sequences  # of what is kept, and room for
        self.kept = self._new(sequences)

    def _new(self, sequences: int) -> _core.Kept:
        kind = "float32" if self.form is None else "int8"
        return _core.Kept(sequences, self.attention.kv_heads, self.attention.dim, kind)

    def _shapes(self, tokens: int) -> list[tuple]:
        """As cq_kept says; tokens stand along one axis."""
        heads, dim = self.attention.kv_heads, self.attention.dim
        fours, sixteens = -(-dim // 4), -(-dim // 16)
        if self.form is None:
            return [(heads, tokens // BLOCK, dim * BLOCK), (heads, tokens, 16 * sixteens)]
        found = [(heads, tokens // 16, 64 * fours), (heads * sixteens, tokens // 4, 64), (heads, tokens)]
        return found + [(heads * 3, tokens)] if isinstance(self.form, PerHead) else found

    def reserve(self, sequence: int, length: int, more: int, bound: int) -> None:
        """Room behind a sequence's `length` tokens for so many more, of at most `bound`. With a window what no token to
        come sees goes as room is made."""
        first, old, window = self.firsts[sequence], self.capacities[sequence], self.attention.window
        if length + more - first <= old:
            return
        if window is not None:
            self.firsts[sequence] = max(0, length + 1 - window) // BLOCK * BLOCK
        needed = length + more - self.firsts[sequence]
        # twice the room, or, where that holds a window, as much again as makes moving it cheap
        most = min(2 * old, bound - self.firsts[sequence])
        most = most if window is None else min(most, window + max(more, window // 8) + BLOCK)
        self.capacities[sequence] = -(-max(needed, most) // BLOCK) * BLOCK
        self._grow(sequence, length, old, self.firsts[sequence] - first)

    def _grow(self, sequence: int, length: int, old: int, gone: int) -> None:
        """New arrays for the sequence, without the `gone` first ones of the `old` tokens that there was room for."""
        dtypes = (np.float32,) * 2 if self.form is None else (np.int8, np.int8, np.int32, np.float32)
        arrays = [np.zeros(shape, dtype) for shape, dtype in zip(self._shapes(self.capacities[sequence]), dtypes)]
        if old:
            for array, before, shape in zip(arrays, self._arrays[sequence], self._shapes(old)):
                left = before.reshape(shape)[:, gone * shape[1] // old :][:, : array.shape[1]]
                array[:, : left.shape[1]] = left
        self._arrays[sequence] = tuple(array.reshape(-1) for array in arrays)
        self._put(sequence, length)

    def _put(self, sequence: int, length: int) -> None:
        arrays = self._arrays[sequence]
        named = dict(zip(("keys", "values", "start", "scales"), arrays))
        self.kept.put(sequence, length, self.capacities[sequence], first=self.firsts[sequence], **named)

    def keep(self, sequences: list[int], lengths: list[int]) -> None:
        """Only these remain, in this order, each of so many tokens."""
        self._arrays, self.kept = [self._arrays[i] for i in sequences], self._new(len(sequences))
        self.firsts, self.capacities = ([of[i] for i in sequences] for of in (self.firsts, self.capacities))
        for i, length in enumerate(lengths):
            self._put(i, length)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for arrays in self._arrays for array in arrays)


class KVCache:
    """Keys and values of sequences in all layers. Room doubles as they grow, so that a token costs no copy but the one
    into its place, in the mean, and never passes `bounds`, the tokens that each sequence may come to, nor much more
    than its window in a layer that has one."""

    def __init__(self, attentions: dict[str, Attention], kind: str | None, bounds: list[int]):
        """attentions: site → the attention there. kind: "float32", "int8", or None: each as its attention computes."""
        self.bounds, self.lengths = list(bounds), [0] * len(bounds)
        self.layers = {
            site: LayerCache(attention, _form(attention, kind), len(bounds)) for site, attention in attentions.items()
        }

    def reserve(self, more: list[int]) -> None:
        """Room for so many more tokens of each sequence."""
        for i, (length, count, bound) in enumerate(zip(self.lengths, more, self.bounds)):
            for layer in self.layers.values():
                layer.reserve(i, length, count, bound)

    def advance(self, more: list[int]) -> None:
        """So many new tokens of each sequence have passed all layers."""
        for i, count in enumerate(more):
            self.lengths[i] += count
            if count:
                for layer in self.layers.values():
                    layer.kept.move(i, self.lengths[i])

    def keep(self, sequences: list[int]) -> None:
        """Only these sequences go on, in this order."""
        self.bounds, self.lengths = ([values[i] for i in sequences] for values in (self.bounds, self.lengths))
        for layer in self.layers.values():
            layer.keep(sequences, self.lengths)

    @property
    def capacities(self) -> list[int]:
        """Room for so many tokens of each sequence, in the layer that keeps most."""
        return [max(rooms) for rooms in zip(*(layer.capacities for layer in self.layers.values()))]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers.values())


def _form(attention: Attention, kind: str | None) -> PerHead | Smoothed | None:
    own = attention.form
    if kind == "float32":
        if isinstance(own, Smoothed):
            raise UnsupportedError(
                "cache: a static model keeps its own codes, which the layers behind them are made for; leave "
                "it out, or use a Scheme with attention='float32'"
            )
        return None
    return PerHead("int8", True, attention.dim) if own is None and kind == "int8" else own


def most_tokens(attentions: dict[str, Attention], kind: str | None, positions: int) -> int:
    """The longest sequence that a cache of this kind serves."""
    return min(positions, MAX_KEYS) if any(_form(attention, kind) for attention in attentions.values()) else positions
