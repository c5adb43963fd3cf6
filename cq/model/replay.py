"""Forward passes over few tokens, where Python between the kernels takes as long as many of them: recorded once, then
run again as one list of calls. Runs no layers itself."""

import operator
from collections.abc import Callable
from threading import Lock

import numpy as np

from .. import _core
from ..errors import CqError
from .batch import Batch
from .block import Block
from .forms import PerTensor
from .linear import Linear, QuantizedLinear

MOST_TOKENS = 64  # of a batch: on MiniLM Python takes 20 % of the time of 16 tokens, 5 % of 64


def recordable(blocks: list[Block], *layers: Linear | QuantizedLinear) -> bool:
    """Whether a tape records all work of these blocks and layers: NumPy has no part in products, unless a range is that
    of all tokens of a call; it norms heads, and lays queries, keys and values that could not be joined side by side."""
    every = [
        *layers,
        *(part for block in blocks for part in block.parts() if isinstance(part, (Linear, QuantizedLinear))),
    ]
    return all(not isinstance(layer.input_form, PerTensor) for layer in every) and all(
        len(block.attention.readers()) == 1 and block.attention.query_norm is None for block in blocks
    )


class Replay:
    """What `hidden` (a function of a Batch → float32 (tokens, n)) does, without Python where a tape records all of its
    work. Before a recording is used it must give the bits of `hidden` on the first tokens that come, which it has not
    seen. One thread at a time replays; another that comes meanwhile takes the long way."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._recording: _Recording | None = None
        self._possible = True
        self._parts: list = []  # what was recorded, or tried

    def __reduce__(self) -> tuple:
        return Replay, ()

    def __call__(
        self, batch: Batch, hidden: Callable[[Batch], np.ndarray], blocks: list[Block], *others: object
    ) -> np.ndarray:
        """hidden(batch). Raises what that raises. blocks, others: what hidden works with; where any part was replaced,
        it is recorded anew."""
        marked = batch.types is not None or batch.unseen is not None or batch.span > batch.longest
        if (
            len(batch.ids) > MOST_TOKENS
            or marked
            or batch.observe is not None
            or not self._lock.acquire(blocking=False)
        ):
            return hidden(batch)
        try:
            parts = [*others, *(part for block in blocks for part in block.parts())]
            if len(parts) != len(self._parts) or not all(map(operator.is_, parts, self._parts)):
                self._parts, self._recording, self._possible = (
                    parts,
                    None,
                    recordable(blocks, *(part for part in others if isinstance(part, (Linear, QuantizedLinear)))),
                )
            if self._recording is not None:
                return self._recording(batch)
            return self._record(batch, hidden) if self._possible else hidden(batch)
        finally:
            self._lock.release()

    def _record(self, batch: Batch, hidden: Callable[[Batch], np.ndarray]) -> np.ndarray:
        wanted = hidden(batch)
        if batch.ids.any():  # a recording is made of zeros
            try:
                recording = _Recording(hidden)
                self._possible = recording(batch).tobytes() == wanted.tobytes()
            except CqError:  # of the zeros' states, which nobody asked for
                self._possible = False
            self._recording = recording if self._possible else None
        return wanted


class _Recording:
    """A tape, and the arrays that its calls read and fill."""

    def __init__(self, hidden: Callable[[Batch], np.ndarray]):
        self._tape = _core.Tape(MOST_TOKENS)
        self._inputs = Batch([np.zeros(1, np.int32)] * MOST_TOKENS)
        with self._tape:
            self._result = hidden(self._inputs)

    def __call__(self, batch: Batch) -> np.ndarray:
        tokens, ends, inputs = len(batch.ids), len(batch.offsets), self._inputs
        inputs.ids[:tokens], inputs.positions[:tokens], inputs.offsets[:ends] = (
            batch.ids,
            batch.positions,
            batch.offsets,
        )
        self._tape.replay(tokens, ends - 1)
        return self._result[:tokens].copy()
