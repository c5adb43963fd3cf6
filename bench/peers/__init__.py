"""The rivals, where they are installed, each in the fastest form that it offers. Times nothing.

One file per rival. Each has HAVE and `encoders(source, threads)`: name → function (ids, mask int64 (batch, length),
often) → call without arguments → hidden states float32 (batch, length, hidden), in which only real tokens count. What
the first function does is not timed: it turns the arrays into what the rival takes and, where they are to be run
`often`, may compile for them. HELD_BY: the variable that holds it to an instruction set, or None: such a rival is left
out where cq is held to less than the CPU has. Those that run language models have
`language_models(file, scratch, threads)`: name → LanguageModel."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..card import is_held


@dataclass(frozen=True)
class Source:
    """What rivals are made from. folder: the model in Hugging Face's form; onnx: the same as an ONNX graph;
    calibration: token ids that static int8 may look at, 1-D int32 each; scratch: a folder for files."""

    folder: Path
    onnx: Path
    calibration: list[np.ndarray]
    scratch: Path

    def feeds(self) -> Iterator[dict[str, np.ndarray]]:
        """The calibration's sequences as inputs of the graph, one at a time."""
        for ids in self.calibration:
            yield {"ids": ids[None].astype(np.int64), "mask": np.ones((1, len(ids)), np.int64)}


@dataclass(frozen=True)
class LanguageModel:
    """A rival that continues texts. logits: ids int32 (n,) → float32 (n, vocab). prefill: ids → call that runs them
    anew and finds the likeliest next token, which it returns. generate: ids, count → call that returns that many
    likeliest tokens after them, one after another, whatever they are. nbytes: of its file."""

    logits: Callable[[np.ndarray], np.ndarray]
    prefill: Callable[[np.ndarray], Callable[[], int]]
    generate: Callable[[np.ndarray, int], Callable[[], list[int]]]
    nbytes: int


def runs_the_same(rival) -> bool:
    """Whether a rival is installed, and runs the instructions that cq runs."""
    return rival.HAVE and (rival.HELD_BY is not None or not is_held())


def encoders(source: Source, threads: int) -> dict[str, Callable]:
    """All that are installed."""
    from . import ct2, ort, pytorch, vino

    found = {}
    for rival in (pytorch, ort, vino, ct2):
        if runs_the_same(rival):
            found |= rival.encoders(source, threads)
    return found


def language_models(file: Path, scratch: Path, threads: int) -> dict[str, LanguageModel]:
    """All that are installed, of a Llama-type model in a GGUF file. scratch: a folder for files."""
    from . import ct2, llamacpp

    found = {}
    for rival in (llamacpp, ct2):
        if runs_the_same(rival):
            found |= rival.language_models(file, scratch, threads)
    return found
