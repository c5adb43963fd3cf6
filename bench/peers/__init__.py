"""The rivals, where they are installed, each in the fastest form that it offers. Times nothing.

One file per rival. Each has HAVE and `encoders(source, threads)`: name → function (ids, mask int64 (batch, length), often) →
call without arguments → hidden states float32 (batch, length, hidden), in which only real tokens count. What the first function
does is not timed: it turns the arrays into what the rival takes and, where they are to be run `often`, may compile for them."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Source:
    """What rivals are made from. folder: the model in Hugging Face's form; onnx: the same as an ONNX graph; calibration: token
    ids that static int8 may look at, 1-D int32 each; scratch: a folder for files."""
    folder: Path
    onnx: Path
    calibration: list[np.ndarray]
    scratch: Path

    def feeds(self) -> Iterator[dict[str, np.ndarray]]:
        """The calibration's sequences as inputs of the graph, one at a time."""
        for ids in self.calibration:
            yield {"ids": ids[None].astype(np.int64), "mask": np.ones((1, len(ids)), np.int64)}


def encoders(source: Source, threads: int) -> dict[str, Callable]:
    """All that are installed."""
    from . import ct2, ort, pytorch, vino
    found = {}
    for rival in (pytorch, ort, vino, ct2):
        if rival.HAVE:
            found |= rival.encoders(source, threads)
    return found
