"""Forward passes over few tokens, where Python between the kernels takes as long as many of them: recorded once, then run again
as one list of calls. Knows no layers."""
import operator
from collections.abc import Callable
from threading import Lock

import numpy as np

from .. import _core
from ..errors import CqError
from .batch import Batch

MOST_TOKENS = 64  # of a batch: on MiniLM Python takes 20 % of the time of 16 tokens, 5 % of 64


class Replay:
    """What `hidden` (a function of a Batch → float32 (tokens, n)) does, without Python where all of its work is done by calls of
    the core that a tape records. Trial finds that out: a recording must give the bits of `hidden` on the first tokens that come,
    which it has not seen, before it is used. One thread at a time replays; another that comes meanwhile takes the long way."""

    def __init__(self):
        self._lock = Lock()
        self._recording: _Recording | None = None
        self._impossible = False
        self._layers: list = []  # what was tried

    def __reduce__(self) -> tuple:
        return Replay, ()

    def __call__(self, batch: Batch, hidden: Callable[[Batch], np.ndarray], layers: list) -> np.ndarray:
        """hidden(batch). Raises what that raises. layers: what hidden works with; where one was replaced, trial begins anew."""
        if len(batch.ids) > MOST_TOKENS or batch.observe is not None or not self._lock.acquire(blocking=False):
            return hidden(batch)
        try:
            if len(layers) != len(self._layers) or not all(map(operator.is_, layers, self._layers)):
                self._layers, self._recording, self._impossible = layers, None, False
            if self._impossible:
                return hidden(batch)
            return self._try(batch, hidden) if self._recording is None else self._recording(batch)
        finally:
            self._lock.release()

    def _try(self, batch: Batch, hidden: Callable[[Batch], np.ndarray]) -> np.ndarray:
        wanted = hidden(batch)
        if batch.ids.any():  # a recording is made of zeros
            try:
                recording = _Recording(hidden)
                self._impossible = recording(batch).tobytes() != wanted.tobytes()
            except CqError:
                self._impossible = True
            self._recording = None if self._impossible else recording
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
        inputs.ids[:tokens], inputs.positions[:tokens], inputs.offsets[:ends] = batch.ids, batch.positions, batch.offsets
        self._tape.replay(tokens, ends - 1)
        return self._result[:tokens].copy()
