"""From scores to the next token: greedy, temperature, top-k, top-p, repetition penalty. Knows no model."""

import math
from dataclasses import dataclass

import numpy as np

from .. import functions
from ..errors import CqError, FormatError

_FIRST = 256  # candidates that top-p looks at first: a sort of a whole vocabulary costs more than a small model's token


# what a checkpoint may say of generation where a call says nothing
DEFAULTS = {
    "do_sample": bool,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "no_repeat_ngram_size": int,
    "suppress_tokens": list,
    "begin_suppress_tokens": list,
    "bad_words_ids": list,
    "min_new_tokens": int,
    "min_length": int,
    "max_new_tokens": int,
    "max_length": int,
    "stop_strings": list,
}


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from its scores, in this order:

    repetition_penalty: scores of tokens that prompt or result hold are divided by it where positive, else multiplied
    (Keskar et al. 2019); 1: off. no_repeat_ngram_size: no token that would make a run of so many tokens that was there
    before; 0: off. min_new_tokens, min_length: no token that ends a text before so many new ones, or so many in all.
    suppress_tokens: ids that are never taken; begin_suppress_tokens: as the first. bad_words_ids: runs of ids that
    never come, but for those that alone end a text. temperature: scores are divided by it; 0: the best token is taken,
    the first of equals, and what follows is of no use. top_k: the k best stay, and their equals; 0: off. top_p: of
    these, as probabilities, the fewest that make up p (Holtzman et al. 2019). min_p: of these, those of at least p
    times the largest. One of what stays is drawn, by its probability; seed: of the draws,
    sequence i of a call drawing by (seed, i), or None: another each time. Raises CqError for values out of range."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    min_p: float | None = None
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    min_length: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("temperature", lambda x: _is_number(x) and 0 <= x < math.inf, "a number of at least 0; 0 takes the best"),
            ("top_k", lambda x: x is None or is_whole(x), "a whole number of at least 0, or None; 0: all"),
            ("top_p", lambda x: x is None or _is_number(x) and 0 < x <= 1, "a number above 0 and at most 1, or None"),
            ("min_p", lambda x: x is None or _is_number(x) and 0 <= x <= 1, "a number from 0 to 1, or None"),
            (
                "repetition_penalty",
                lambda x: _is_number(x) and 0 < x < math.inf,
                "a positive number; 1 changes nothing",
            ),
            ("seed", lambda x: x is None or is_whole(x), "a whole number of at least 0, or None"),
            ("no_repeat_ngram_size", is_whole, "a whole number of at least 0; 0: off"),
            ("min_new_tokens", is_whole, "a whole number of at least 0"),
            ("min_length", is_whole, "a whole number of at least 0"),
            ("suppress_tokens", _are_ids, "a list of token ids"),
            ("begin_suppress_tokens", _are_ids, "a list of token ids"),
            ("bad_words_ids", _are_words, "a list of lists of token ids, none of them empty"),
        ):
            if not good(getattr(self, name)):
                raise CqError(f"{name}: need {wanted}; got {_brief(getattr(self, name))}")
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            object.__setattr__(self, name, tuple(map(int, getattr(self, name))))
        object.__setattr__(self, "bad_words_ids", tuple(map(tuple, self.bad_words_ids)))
        unused = [name for name in ("top_k", "top_p", "min_p", "seed") if getattr(self, name) is not None]
        if self.temperature == 0 and unused:
            raise CqError(
                f"{unused[0]}: need temperature above 0 with it: at 0 the best token is taken and nothing is drawn; "
                f"got {_brief(getattr(self, unused[0]))}"
            )

    @classmethod
    def of(cls, defaults: dict | None, given: dict) -> "Sampling":
        """Of what a call gives, by name, None counting as nothing, and for the rest of a checkpoint's defaults (see
        DEFAULTS). Raises CqError for what is no field of this class."""
        unknown = sorted(set(given) - set(cls.__dataclass_fields__))
        if unknown:
            raise CqError(
                f"generate: no argument {_brief(unknown[0])}; there are {', '.join(cls.__dataclass_fields__)}"
            )
        given = {name: value for name, value in given.items() if value is not None}
        known = {name: value for name, value in (defaults or {}).items() if name in cls.__dataclass_fields__}
        temperature = given.get(
            "temperature", known.get("temperature", 1.0) if (defaults or {}).get("do_sample") else 0
        )
        if _is_number(temperature) and temperature == 0:
            known = {name: value for name, value in known.items() if name not in ("top_k", "top_p", "min_p")}
        return cls(**known | given | {"temperature": temperature})

    def generators(self, sequences: int) -> list[np.random.Generator]:
        """The draws of each sequence."""
        seed = np.random.SeedSequence().entropy if self.seed is None else int(self.seed)
        assert isinstance(seed, int), "SeedSequence() draws one number"
        return [np.random.default_rng([seed, i]) for i in range(sequences)]

    def allowed(self, scores: np.ndarray, seen: np.ndarray, new: int, ends: list[int]) -> np.ndarray:
        """Scores float32 (vocabulary,), not changed, with −Inf for what must not follow `seen`, ids (n,), of which
        `new` are new. ends: ids that end a text."""
        never = [*self.suppress_tokens, *(self.begin_suppress_tokens if new == 0 else ())]
        if new < self.min_new_tokens or len(seen) < self.min_length:
            never += ends
        if self.no_repeat_ngram_size:
            never += _repeating(seen, self.no_repeat_ngram_size)
        words = (word for word in self.bad_words_ids if len(word) > 1 or word[0] not in ends)
        never += [word[-1] for word in words if _would_end(seen, word)]
        if never:
            scores = scores.copy()
            scores[[token for token in never if token < len(scores)]] = -np.inf
        return scores

    def next(self, scores: np.ndarray, seen: np.ndarray, draws: np.random.Generator) -> int:
        """The token after `seen`, ids (n,), by scores float32 (vocabulary,), which are not changed."""
        if self.repetition_penalty != 1:
            scores = scores.copy()
            some, penalty = scores[seen], np.float32(self.repetition_penalty)
            scores[seen] = np.where(some > 0, some / penalty, some * penalty)
        if self.temperature == 0:
            return int(scores.argmax())
        tokens, probabilities = self.candidates(scores)
        place = np.searchsorted(probabilities.cumsum(), draws.random() * probabilities.sum(), "right")
        return int(tokens[min(place, len(tokens) - 1)])

    def candidates(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What may be drawn, ids (n,), and with which probabilities float64 (n,), whose sum is 1."""
        tokens = np.arange(len(scores))
        if self.top_k and self.top_k < len(scores):
            tokens = np.flatnonzero(scores >= np.partition(scores, -self.top_k)[-self.top_k])
        chances = functions.exp((scores[tokens] - scores.max()).astype(np.float64) / self.temperature)
        chances /= chances.sum()
        if self.top_p is not None and self.top_p < 1:
            best = _nucleus(chances, self.top_p)
            tokens, chances = tokens[best], chances[best]
            chances /= chances.sum()
        if self.min_p:
            best = chances >= self.min_p * chances.max()
            tokens, chances = tokens[best], chances[best] / chances[best].sum()
        return tokens, chances


def check_defaults(defaults: dict, vocab_size: int) -> None:
    """Raises FormatError unless these are DEFAULTS of the right types, and of values that Sampling takes."""
    if not isinstance(defaults, dict):
        raise FormatError(f"config: generation must map names to values, got {_brief(defaults)}")
    for name, value in defaults.items():
        kind = DEFAULTS.get(name)
        good = kind is not None and isinstance(value, kind | int if kind is float else kind)
        good = good and (kind is bool or not isinstance(value, bool))
        if good and kind is int:
            good = 0 <= value < 2**31
        if good and kind is list:
            wanted = str if name == "stop_strings" else int
            flat = value
            if name == "bad_words_ids" and _are_words(value):
                flat = [i for word in value for i in word]
            good = all(type(one) is wanted for one in flat) and (
                wanted is str or all(0 <= i < vocab_size for i in flat)
            )
        if not good:
            raise FormatError(f"config: generation: {_brief(name)} cannot be {_brief(value)}")
    try:
        Sampling.of(defaults, {})
    except CqError as error:
        raise FormatError(f"config: generation: {error}") from None


def _repeating(seen: np.ndarray, size: int) -> list[int]:
    """Tokens that would make the last size − 1 tokens and themselves a run that `seen` holds."""
    if len(seen) < size:
        return []
    runs = np.lib.stride_tricks.sliding_window_view(seen, size)
    tokens: list[int] = runs[(runs[:, :-1] == seen[len(seen) - size + 1 :]).all(1), -1].tolist()
    return tokens


def _would_end(seen: np.ndarray, word: tuple[int, ...]) -> bool:
    """Whether the last of the word's ids would make it whole, as transformers looks at it: of shorter texts it never
    would."""
    before = len(word) - 1
    return not before or len(word) <= len(seen) and seen[len(seen) - before :].tolist() == list(word[:-1])


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


def _brief(value: object) -> str:
    return f"{value!r:.200}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def is_whole(value: object, least: int = 0) -> bool:
    """Whether it is a whole number, Python's or NumPy's, of at least so much."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= least)


def _are_words(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(_are_ids(word) and word for word in value)


def _are_ids(value: object) -> bool:
    if not isinstance(value, (list, tuple, range, np.ndarray)) or isinstance(value, np.ndarray) and value.ndim != 1:
        return False
    return all(is_whole(one) for one in value)
