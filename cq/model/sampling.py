"""From scores to the next token: greedy, temperature, top-k, top-p, repetition penalty. Knows no model."""

import math
from dataclasses import dataclass

import numpy as np

from .. import functions
from ..errors import CqError

_FIRST = 256  # candidates that top-p looks at first: a sort of a whole vocabulary costs more than a small model's token


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from its scores, in this order:

    repetition_penalty: scores of tokens that prompt or result hold are divided by it where positive, else multiplied
    (Keskar et al. 2019); 1: off. temperature: scores are divided by it; 0: the best token is taken, the first of
    equals, and what follows is of no use. top_k: the k best stay, and their equals. top_p: of these, as probabilities,
    the fewest that make up p (Holtzman et al. 2019). One of what stays is drawn, by its probability; seed: of the
    draws, sequence i of a call drawing by (seed, i), or None: another each time. Raises CqError for values out of
    range."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self):
        _check(
            _is_number(self.temperature) and 0 <= self.temperature < math.inf,
            "temperature",
            self.temperature,
            "a number of at least 0; 0 takes the best token",
        )
        _check(
            self.top_k is None or _is_whole(self.top_k) and self.top_k >= 1,
            "top_k",
            self.top_k,
            "a whole number of at least 1, or None",
        )
        _check(
            self.top_p is None or _is_number(self.top_p) and 0 < self.top_p <= 1,
            "top_p",
            self.top_p,
            "a number above 0 and at most 1, or None",
        )
        _check(
            _is_number(self.repetition_penalty) and 0 < self.repetition_penalty < math.inf,
            "repetition_penalty",
            self.repetition_penalty,
            "a positive number; 1 changes nothing",
        )
        _check(
            self.seed is None or _is_whole(self.seed) and self.seed >= 0,
            "seed",
            self.seed,
            "a whole number of at least 0, or None",
        )
        unused = [name for name in ("top_k", "top_p", "seed") if getattr(self, name) is not None]
        _check(
            self.temperature > 0 or not unused,
            unused[0] if unused else "",
            getattr(self, unused[0]) if unused else None,
            "temperature above 0 with it: at 0 the best token is taken and nothing is drawn",
        )

    def generators(self, sequences: int) -> list[np.random.Generator]:
        """The draws of each sequence."""
        seed = np.random.SeedSequence().entropy if self.seed is None else int(self.seed)
        return [np.random.default_rng([seed, i]) for i in range(sequences)]

    def next(self, scores: np.ndarray, seen: np.ndarray, draws: np.random.Generator) -> int:
        """The token after `seen`, ids (n,), by scores float32 (vocabulary,), which are not changed."""
        if self.repetition_penalty != 1:
            scores = scores.copy()
            some = scores[seen]
            scores[seen] = np.where(
                some > 0, some / np.float32(self.repetition_penalty), some * np.float32(self.repetition_penalty)
            )
        if self.temperature == 0:
            return int(scores.argmax())
        tokens, probabilities = self.candidates(scores)
        place = np.searchsorted(probabilities.cumsum(), draws.random() * probabilities.sum(), "right")
        return int(tokens[min(place, len(tokens) - 1)])

    def candidates(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What may be drawn, ids (n,), and with which probabilities float64 (n,), whose sum is 1."""
        tokens = np.arange(len(scores))
        if self.top_k is not None and self.top_k < len(scores):
            tokens = np.flatnonzero(scores >= np.partition(scores, -self.top_k)[-self.top_k])
        chances = functions.exp((scores[tokens] - scores.max()).astype(np.float64) / self.temperature)
        chances /= chances.sum()
        if self.top_p is not None and self.top_p < 1:
            best = _nucleus(chances, self.top_p)
            tokens, chances = tokens[best], chances[best]
            chances /= chances.sum()
        return tokens, chances


def _nucleus(chances: np.ndarray, p: float) -> np.ndarray:
    """Places of the fewest largest chances whose sum reaches p, the largest first, equals by place."""
    n = _FIRST
    while True:
        few = n < len(chances)
        places = np.flatnonzero(chances >= np.partition(chances, -n)[-n]) if few else np.arange(len(chances))
        places = places[np.argsort(-chances[places], kind="stable")]
        sums = chances[places].cumsum()
        if sums[-1] >= p or not few:
            return places[: np.searchsorted(sums, p) + 1]
        n *= 8


def _check(good: bool, name: str, got, wanted: str) -> None:
    if not good:
        raise CqError(f"{name}: need {wanted}; got {got!r}")


def _is_number(value) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _is_whole(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
