"""Generation: prompts in, tokens out, one step of all sequences at a time. Knows of a model what runs a batch, and of
sampling that it chooses."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from .. import _core
from ..door import own_errors
from ..errors import CqError, UnsupportedError
from .activation import Activation, finite
from .batch import Batch, check_row
from .block import Block
from .cache import KVCache, most_tokens
from .chat import is_conversation, render
from .config import Config
from .linear import Linear, QuantizedLinear
from .replay import recordable
from .rope import turning_point
from .sampling import Sampling

MAX_NEW_TOKENS = 128  # where neither a call nor the checkpoint says
# what ends a turn or a text, in the words of the families; llama.cpp knows them so too (llama-vocab.cpp)
TURN_ENDS = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "<|end_of_turn|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    )
)
CACHES = (None, "float32", "int8")
PREFILL = 2048  # tokens of one pass over prompts, which bounds the memory of what lies between layers


class Writer(Protocol):
    """What generation knows of a model."""

    config: Config
    tokenizer: Tokenizer | None
    blocks: list[Block]
    head: Linear | QuantizedLinear | None

    def hidden(self, batch: Batch, readers: tuple[Linear | QuantizedLinear, ...] = ()) -> Activation: ...
    def scores_of(self, hidden: Activation) -> np.ndarray: ...
    def tokenize(self, text: str, special_tokens: bool = True) -> np.ndarray: ...


class Generator:
    """Sequences that grow. steps() gives, in turn, (sequence, token) for each token that a sequence gains, until all
    have ended: by stop(sequence, token), by their number of new tokens, or by the model's positions."""

    def __init__(
        self,
        model: Writer,
        prompts: list[np.ndarray],
        max_new_tokens: int | None,
        sampling: Sampling,
        cache: str | None,
        ends: list[set[int]] | None = None,
    ):
        """prompts: checked ids. ends: of each, the ids that end it. Raises UnsupportedError for a model without a head,
        or not causal; CqError for prompts that leave no room, and bad arguments."""
        if model.head is None or not model.config.causal:
            raise UnsupportedError(
                f"generate: this {model.config.family} model does not continue texts; use forward or embed"
            )
        whole = isinstance(max_new_tokens, (int, np.integer)) and not isinstance(max_new_tokens, bool)
        if max_new_tokens is not None and (not whole or max_new_tokens < 1):
            raise CqError(f"max_new_tokens: need a whole number of at least 1, got {max_new_tokens!r}")
        if cache not in CACHES:
            raise CqError(
                f"cache: need 'float32', 'int8', or None for what the model's attention computes in; got {cache!r}"
            )
        self.model, self.head, self.sampling = model, model.head, sampling
        self.attentions = {f"{block.name}.attention.": block.attention for block in model.blocks}
        most = most_tokens(self.attentions, cache, model.config.max_positions)
        for i, prompt in enumerate(prompts):
            if len(prompt) >= most:
                raise CqError(
                    f"prompt {i}: {len(prompt)} tokens leave no room for a new one, the model takes {most}; cut it"
                )
        turn = turning_point(model.config.rope_scaling)
        longer = [turn is not None and len(prompt) >= turn for prompt in prompts]
        if any(longer) and not all(longer):
            raise CqError(f"prompt: this model turns positions otherwise from {turn} tokens on; call it for each kind")
        most = turn if turn is not None and not any(longer) else most
        self.tokens = [prompt.astype(np.int64) for prompt in prompts]
        self.ends, self.before = (
            [sorted(end) for end in ends or [set[int]()] * len(prompts)],
            [len(prompt) for prompt in prompts],
        )
        room = _room(max_new_tokens, model.config.generation or {})
        self.bounds = [min(room(len(prompt)), most) for prompt in prompts]
        self.cache = KVCache(self.attentions, cache, self.bounds)

    def steps(self, stop: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
        draws, alive = self.sampling.generators(len(self.tokens)), list(range(len(self.tokens)))
        scores, step = self.prefill(), None
        while alive:
            finite(scores, "logits")
            kept = []
            for row, i in enumerate(alive):
                tokens = self.tokens[i]
                allowed = self.sampling.allowed(scores[row], tokens, len(tokens) - self.before[i], self.ends[i])
                token = self.sampling.next(allowed, tokens, draws[i])
                self.tokens[i] = np.append(self.tokens[i], token)
                yield i, token
                if len(self.tokens[i]) < self.bounds[i] and not stop(i, token):
                    kept.append(row)
            if len(kept) < len(alive):
                self.cache.keep(kept)
                alive, step = [alive[row] for row in kept], None
            if alive:
                step = step or Step(self.model, self.head, self.cache)
                scores = step(np.array([self.tokens[i][-1] for i in alive], np.int32))

    def prefill(self) -> np.ndarray:
        """The prompts' keys and values into the cache, as many tokens of them at a time as a pass may have. Scores
        (sequences, vocabulary) of what follows each."""
        done, hidden = [0] * len(self.tokens), [np.empty(0, np.float32)] * len(self.tokens)
        while any(n < len(prompt) for n, prompt in zip(done, self.tokens)):
            room = PREFILL
            parts: list[np.ndarray] = []
            for n, prompt in zip(done, self.tokens):
                parts.append(prompt[n : n + room])
                room -= len(parts[-1])
            last = _pass(self.model, self.cache, parts)
            for i, part in enumerate(parts):
                done[i] += len(part)
                hidden[i] = last[i] if len(part) and done[i] == len(self.tokens[i]) else hidden[i]
        return self.model.scores_of(Activation(np.stack(hidden))) if hidden else np.empty((0, 0), np.float32)


def _pass(model: Writer, cache: KVCache, parts: list[np.ndarray]) -> np.ndarray:
    """Final states (sequences, hidden) of the last token of each part."""
    batch, more = Batch(parts, None, cache), [len(part) for part in parts]
    cache.reserve(more)
    hidden: np.ndarray = model.hidden(batch).floats()[np.maximum(batch.offsets[1:] - 1, 0)]
    cache.advance(more)
    return hidden


class Step:
    """One more token of every sequence. The calls of the first are recorded and made again for those that follow,
    without the Python between them, where nothing between them is NumPy's."""

    def __init__(self, model: Writer, head: Linear | QuantizedLinear, cache: KVCache):
        self.model, self.head, self.cache, self.more = model, head, cache, [1] * len(cache.lengths)
        self.batch = Batch([np.zeros(1, np.int32)] * len(self.more), None, cache)
        self.tape = _core.Tape() if recordable(model.blocks, head) else None
        self.scores: np.ndarray | None = None

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """ids int32 (sequences,) → scores float32 (sequences, vocabulary), valid until the next call."""
        self.batch.ids[:], self.batch.positions[:] = ids, self.cache.lengths
        self.cache.reserve(self.more)
        if self.tape is None:
            self.scores = self._run()
        elif self.scores is None:
            with self.tape:
                self.scores = self._run()
        else:
            self.tape.replay()
        self.cache.advance(self.more)
        return self.scores

    def _run(self) -> np.ndarray:
        return self.model.scores_of(self.model.hidden(self.batch, (self.head,)))


def _room(max_new_tokens: int | None, defaults: dict) -> Callable[[int], int]:
    """From the length of a prompt to the most tokens with those that follow."""
    new = max_new_tokens or defaults.get("max_new_tokens")
    if new is None and "max_length" in defaults:
        return lambda length: max(defaults["max_length"], length + 1)
    return lambda length: length + int(new or MAX_NEW_TOKENS)


class Text:
    """The text of tokens as they come: pieces in which no character is half, and no stop string begun. Special tokens
    are no part of it, but stop strings may hold them."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...], special: dict[int, str] | None = None):
        """special: the texts of special tokens by their ids."""
        self.tokenizer, self.stops, self.special = tokenizer, stops, special or {}
        self.ids: list[int] = []  # since where the text was last sure
        self.known = 0  # of them, those whose text has been taken
        self.held, self.shown, self.ended = "", "", False  # shown: "1" for each character of held that is text

    def add(self, token: int) -> str:
        """What can be said for sure now. `ended` tells of a stop string, which, like what follows it, is left out."""
        if token in self.special:
            return self._release(self._rest(), self.special[token])
        self.ids.append(token)
        before, after = self._decode(self.ids[: self.known]), self._decode(self.ids)
        if after.endswith("\ufffd"):
            return ""
        self.ids, self.known = self.ids[self.known :], len(self.ids) - self.known
        return self._release(after[len(before) :])

    def rest(self) -> str:
        """At the end: what was held back."""
        piece = "" if self.ended else self._release(self._rest())
        piece, self.held, self.shown = piece + self._visible(len(self.held)), "", ""
        return piece

    def _rest(self) -> str:
        """The text of tokens that was not sure yet; it is now."""
        after = self._decode(self.ids)[len(self._decode(self.ids[: self.known])) :]
        self.known = len(self.ids)
        return after

    def _decode(self, ids: list[int]) -> str:
        with own_errors("generate: the tokenizer fails"):
            return self.tokenizer.decode(ids, skip_special_tokens=True) if ids else ""

    def _visible(self, end: int) -> str:
        return "".join(c for c, shown in zip(self.held[:end], self.shown) if shown == "1")

    def _release(self, more: str, hidden: str = "") -> str:
        """hidden: the text of a special token after it."""
        self.held, self.shown = self.held + more + hidden, self.shown + "1" * len(more) + "0" * len(hidden)
        text = self.held
        found = min((at for at in (text.find(stop) for stop in self.stops) if at >= 0), default=-1)
        if found >= 0:
            piece, self.ended = self._visible(found), True
            self.held = self.shown = ""
            return piece
        kept = max(_begun(stop, text) for stop in self.stops) if self.stops else 0
        sure = len(text) - kept
        piece = self._visible(sure)
        self.held, self.shown = text[sure:], self.shown[sure:]
        return piece


def _begun(stop: str, text: str) -> int:
    """How many characters of `stop` the text ends in, not all of them."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def answers(
    model: Writer,
    prompts: list,
    max_new_tokens: int | None,
    sampling: dict[str, object],
    stop: object,
    cache: str | None,
) -> Iterator[tuple[int, int | str]]:
    """(prompt, piece) as they come: a str where the prompt is a text or a conversation, an id where it is ids.
    Everything is checked before the first. Raises as `Writing.generate`."""
    config = model.config
    chosen = Sampling.of(config.generation, sampling)
    strings, ends = _stops(stop, config.vocab_size)
    spoken = [isinstance(prompt, str) or is_conversation(prompt) for prompt in prompts]
    if strings and not all(spoken):
        raise CqError("stop: texts end texts; for prompts of ids give ids")
    ids = [_ids(model, prompt, i) for i, prompt in enumerate(prompts)]
    ends, turns = ends | set(config.eos_token_ids), turn_ends(model.tokenizer)
    every = [ends | turns if is_conversation(prompt) else ends for prompt in prompts]
    tokens = [check_row(row, f"tokens[{i}]", config.vocab_size, config.max_positions) for i, row in enumerate(ids)]
    generator = Generator(model, tokens, max_new_tokens, chosen, cache, every)
    strings += tuple(text for text in (config.generation or {}).get("stop_strings", ()) if text)
    tokenizer, special = model.tokenizer, _special(model.tokenizer) if any(spoken) else {}
    texts = [Text(tokenizer, strings, special) if speaks and tokenizer is not None else None for speaks in spoken]
    return _pieces(generator, texts, every)


def _special(tokenizer: Tokenizer | None) -> dict[int, str]:
    added = {} if tokenizer is None else tokenizer.get_added_tokens_decoder()
    return {i: token.content for i, token in added.items() if token.special}


def turn_ends(tokenizer: Tokenizer | None) -> set[int]:
    """Ids of the tokenizer's added tokens that by their text end a turn or a text (TURN_ENDS)."""
    added = {} if tokenizer is None else tokenizer.get_added_tokens_decoder()
    return {i for i, token in added.items() if token.content in TURN_ENDS}


def _pieces(generator: Generator, texts: list[Text | None], ends: list[set[int]]) -> Iterator[tuple[int, int | str]]:
    def stop(i: int, token: int) -> bool:
        text = texts[i]
        return token in ends[i] or text is not None and text.ended

    for i, token in generator.steps(stop):
        if token in ends[i]:
            continue
        text = texts[i]
        piece = token if text is None else text.add(token)
        if piece != "":
            yield i, piece
    for i, text in enumerate(texts):
        if text is not None and (piece := text.rest()):
            yield i, piece


def render_for(model: Writer, messages: list[dict], **arguments: Any) -> str:
    """The prompt that the model's chat template makes of messages; arguments: as for chat.render."""
    config, tokens = model.config, model.config.special_tokens
    if tokens is None and model.tokenizer is not None:  # nothing but ids says them
        ids = {"bos_token": config.bos_token_id, "eos_token": next(iter(config.eos_token_ids), None)}
        tokens = {name: model.tokenizer.id_to_token(i) or "" for name, i in ids.items() if i is not None}
    return render(config.chat_template, messages, **(tokens or {}) | arguments)


def _ids(model: Writer, prompt: object, i: int) -> np.ndarray:
    if is_conversation(prompt):
        return model.tokenize(render_for(model, prompt), special_tokens=False)
    if not isinstance(prompt, (str, np.ndarray)):
        raise CqError(
            f"prompt {i}: need a text, a conversation (a list of messages) or a 1-D integer array, got "
            f"{type(prompt).__name__}"
        )
    return model.tokenize(prompt) if isinstance(prompt, str) else prompt


def _stops(stop: object, vocab_size: int) -> tuple[tuple[str, ...], set[int]]:
    """The texts and the ids of `stop`, one or several of either."""
    given: object = [stop] if isinstance(stop, (str, int, np.integer)) else stop
    if not isinstance(given, Iterable) or isinstance(given, (bytes, bytearray, memoryview, Mapping)):
        raise CqError(f"stop: need texts or token ids, one or a list of them, got {type(stop).__name__}")
    strings, ends = [], set()
    for one in given:
        if isinstance(one, str) and one:
            strings.append(one)
        elif isinstance(one, (int, np.integer)) and not isinstance(one, bool) and 0 <= one < vocab_size:
            ends.add(int(one))
        else:
            raise CqError(f"stop: need texts that are not empty, or token ids of 0 … {vocab_size - 1}, got {one!r}")
    return tuple(strings), ends
