"""Where tokens become vectors: word, position and token-type tables, and the norm after them. Knows no tokenizer."""

import numpy as np

from .. import _core
from ..weights import FloatWeight, Weight
from .activation import Activation
from .deferred import Deferred, keep
from .forms import Fixed
from .linear import Linear, QuantizedLinear
from .norm import Norm


class Embedding:
    """word: float32 (vocabulary, hidden), or an int8 packed weight (hidden, vocabulary), shared with a tied head.
    offset: rows of `position` before the first token's. scale: multiplies the word's row."""

    def __init__(
        self,
        word: np.ndarray | Deferred | Weight,
        position: np.ndarray | None,
        type: np.ndarray | None,
        norm: Norm | None,
        offset: int = 0,
        scale: float = 1.0,
    ):
        self.source, self.position, self.type, self.norm, self.offset = word, position, type, norm, offset
        self.scale = scale
        self.reason = ""
        self.stream: Fixed | None = None  # the form in which the residual stream begins; None: float32

    @property
    def runs_in(self) -> str:
        return "weight-only" if isinstance(self.source, Weight) else "float32"

    @property
    def shape(self) -> tuple[int, int]:
        """(hidden, vocabulary)."""
        if isinstance(self.source, Weight):
            return self.source.shape
        return self.source.shape[1], self.source.shape[0]

    def word_arrays(self) -> list[np.ndarray | Deferred]:
        word = self.source
        if not isinstance(word, Weight):
            return [word]
        return [a for a in (word.panels, word.column_sums, word.zero_points, word.scales) if a is not None]

    def word(self, head: Linear | None = None) -> np.ndarray | Weight | FloatWeight:
        """The table as tokens read it. head: a float32 head that shares it, whose packed weight serves both."""
        if head is None:
            return self.source if isinstance(self.source, Weight) else keep(self.source)
        packed = head.packed
        self.source = head.source
        return packed

    def __call__(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        readers: tuple[Linear | QuantizedLinear, ...],
        head: Linear | None = None,
        types: np.ndarray | None = None,
    ) -> Activation:
        """ids, positions int32 (tokens,) → (tokens, hidden). types: int32 (tokens,); None: all are 0. head: as for
        `word`."""
        table = self.position
        if table is not None and self.offset:
            table = table[self.offset :]
        x = _core.embed(ids, self.word(head), positions, table, types, self.type, self.scale)
        return self.norm(x, readers, keep_float=self.stream is None) if self.norm else Activation(x)
