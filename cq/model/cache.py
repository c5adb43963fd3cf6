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
        self.kept = self._new(sequences)

    def _new(self, sequences: int) -> _core.Kept:
        kind = "float32" if self.form is None else "int8"
        return _core.Kept(sequences, self.attention.kv_heads, self.attention.dim, kind)

    def grow(self, sequence: int, length: int, old: int, capacity: int) -> None:
        """Room for `capacity` tokens instead of `old`, of which there are `length`."""
        heads, dim = self.attention.kv_heads, self.attention.dim
        fours, sixteens = -(-dim // 4), -(-dim // 16)

        def shapes(tokens: int) -> list[tuple]:
            """As cq_kept says; tokens stand along one axis."""
            if self.form is None:
                return [(heads, tokens // BLOCK, dim * BLOCK), (heads, tokens, 16 * sixteens)]
            found = [(heads, tokens // 16, 64 * fours), (heads * sixteens, tokens // 4, 64), (heads, tokens)]
            return found + [(heads * 3, tokens)] if isinstance(self.form, PerHead) else found

        dtypes = (np.float32,) * 2 if self.form is None else (np.int8, np.int8, np.int32, np.float32)
        arrays = [np.zeros(shape, dtype) for shape, dtype in zip(shapes(capacity), dtypes)]
        if old:
            for array, before, shape in zip(arrays, self._arrays[sequence], shapes(old)):
                array[:, : shape[1]] = before.reshape(shape)
        self._arrays[sequence] = tuple(array.reshape(-1) for array in arrays)
        self.kept.put(sequence, length, capacity, *self._arrays[sequence])

    def keep(self, sequences: list[int], lengths: list[int], capacities: list[int]) -> None:
        """Only these remain, in this order."""
        self._arrays, self.kept = [self._arrays[i] for i in sequences], self._new(len(sequences))
        for i, (arrays, length, capacity) in enumerate(zip(self._arrays, lengths, capacities)):
            self.kept.put(i, length, capacity, *arrays)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for arrays in self._arrays for array in arrays)


class KVCache:
    """Keys and values of sequences in all layers. Room doubles as they grow, so that a token costs no copy but the one
    into its place, in the mean, and never passes `bounds`, the tokens that each sequence may come to."""

    def __init__(self, attentions: dict[str, Attention], kind: str | None, bounds: list[int]):
        """attentions: site → the attention there. kind: "float32", "int8", or None: each as its attention computes."""
        self.bounds, self.lengths, self.capacities = list(bounds), [0] * len(bounds), [0] * len(bounds)
        self.layers = {
            site: LayerCache(attention, _form(attention, kind), len(bounds)) for site, attention in attentions.items()
        }

    def reserve(self, more: list[int]) -> None:
        """Room for so many more tokens of each sequence."""
        for i, count in enumerate(more):
            length, old = self.lengths[i], self.capacities[i]
            if length + count > old:
                capacity = -(-max(length + count, min(2 * old, self.bounds[i])) // BLOCK) * BLOCK
                for layer in self.layers.values():
                    layer.grow(i, length, old, capacity)
                self.capacities[i] = capacity

    def advance(self, more: list[int]) -> None:
        """So many new tokens of each sequence have passed all layers."""
        for i, count in enumerate(more):
            self.lengths[i] += count
            if count:
                for layer in self.layers.values():
                    layer.kept.move(i, self.lengths[i])

    def keep(self, sequences: list[int]) -> None:
        """Only these sequences go on, in this order."""
        self.bounds, self.lengths, self.capacities = (
            [values[i] for i in sequences] for values in (self.bounds, self.lengths, self.capacities)
        )
        for layer in self.layers.values():
            layer.keep(sequences, self.lengths, self.capacities)

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
