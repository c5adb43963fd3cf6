"""The transformer: configuration and float32 weights in, hidden states, embeddings and logits out. Knows no files and
no strategies; convert.py makes others of its layers."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from .. import _core
from ..errors import CqError, UnsupportedError
from . import build
from .activation import Activation
from .attention import Attention
from .batch import Batch, batches, check_tokens
from .block import FeedForward
from .chat import is_conversation
from .classifier import Classifier
from .config import Config, check_weights
from .coverage import Coverage, coverage_of, headroom_of
from .deferred import Deferred, read
from .forms import Fixed
from .generate import answers
from .linear import Linear, QuantizedLinear, Then
from .norm import Norm
from .pooling import pool
from .replay import Replay
from .sampling import Sampling
from .sites import Graph


class _Step(NamedTuple):
    part: Attention | FeedForward
    norm: Norm
    readers: tuple  # the layers that read the norm's result
    keep: str  # see Then
    site: str
    stream: Fixed | None


class Transformer:
    """A BERT-type encoder or Llama-type decoder. plan: what cq.convert made its layers by; None: they are float32."""

    def __init__(self, config: Config, weights: dict[str, np.ndarray | Deferred], tokenizer: Tokenizer | None = None):
        """weights: canonical name → float32 array (see Config.shapes), and biases; kept, never written to, and copied
        only where layers that read the same are laid side by side. Raises CqError where they do not fit the
        configuration."""
        check_weights(config, weights)
        self.config, self.graph, self.tokenizer, self.plan = config, Graph(config), tokenizer, None
        self.embedding = build.embedding(config, weights)
        self.blocks = build.blocks(config, weights)
        self.final_norm = build.norm(config, weights, "final_norm") if config.norm_first else None
        self.head: Linear | QuantizedLinear | None = build.head(config, weights)
        self.classifier: Classifier | None = build.classifier(config, weights)
        self._cutter, self._replay = None, Replay()
        if tokenizer is not None and (config.pooling or not config.causal):
            self._cutter = Tokenizer.from_str(tokenizer.to_str())
            self._cutter.enable_truncation(min(config.max_length, config.max_positions))

    def __getstate__(self) -> dict:
        """Of a copy, pickled or not: its layers may be swapped, so it records anew."""
        return self.__dict__ | {"_replay": Replay()}

    # --- running ------------------------------------------------------------------------------------------------------

    def forward(self, tokens: Iterable) -> list[np.ndarray]:
        """Final hidden states: list of (len, hidden) float32, one for each sequence.

        tokens: list of 1-D integer arrays (ragged), or one 2-D array. A sequence's result does not depend on the
        others. Raises CqError for ids out of range, empty or too long sequences, and where an activation becomes NaN or
        Inf."""
        return self._run(tokens, self._replayed)

    def logits(self, tokens: Iterable) -> list[np.ndarray]:
        """Scores of the next token after each position: list of (len, vocab) float32. Raises UnsupportedError where the
        model has no language-model head, else as `forward`."""
        if self.head is None:
            raise UnsupportedError(
                f"logits: this {self.config.family} model has no language-model head; use forward or embed"
            )
        return self._run(tokens, self._scores)

    def embed(self, texts_or_tokens: Iterable, batch_size: int = 32) -> np.ndarray:
        """Sentence embeddings (n, hidden) float32, pooled and normalized as the checkpoint's folder says.

        texts_or_tokens: a list of texts (cut to config.max_length tokens), or tokens as `forward` takes; a single text
        gives one row. batch_size: sequences in one pass. Raises UnsupportedError where the model does not pool."""
        if self.config.pooling is None:
            raise UnsupportedError(f"embed: this {self.config.family} model says no pooling; use forward or logits")
        _check_batch_size(batch_size)
        tokens = self.tokens_of(texts_or_tokens)
        rows = [
            pool(h, self.config)
            for i in range(0, len(tokens), batch_size)
            for h in self.forward(tokens[i : i + batch_size])
        ]
        return np.stack(rows) if rows else np.empty((0, self.config.hidden_size), np.float32)

    def classify(self, texts_or_tokens: Iterable, batch_size: int = 32) -> np.ndarray:
        """Scores of each label, float32 (n, labels), before any softmax or sigmoid; config.labels names the columns.

        texts_or_tokens, batch_size: as for `embed`. Raises UnsupportedError where the model has no sequence
        classifier's head."""
        if self.classifier is None:
            raise UnsupportedError(
                f"classify: this {self.config.family} model has no sequence classifier's head; use forward or embed"
            )
        _check_batch_size(batch_size)
        tokens = self.tokens_of(texts_or_tokens)
        parts = [
            self._classes(batch)
            for i in range(0, len(tokens), batch_size)
            for batch in batches(tokens[i : i + batch_size])
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.config.labels)), np.float32)

    def generate(
        self,
        prompt,
        max_new_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop=(),
        cache: str | None = None,
    ):
        """What the model says after `prompt`: a text → the text that follows; a conversation, a list of messages
        {"role": …, "content": …}, which the checkpoint's chat template makes a prompt of → the answer; a 1-D integer
        array of ids → the ids that follow, int32; a list of such prompts → a list. Prompts of different lengths run
        together, without padding, and none changes another's result.

        It ends after max_new_tokens, with the model's positions, with a token that the checkpoint says ends a text, or
        with one of `stop`, texts or token ids; none of these is part of the result. temperature 0 takes the best token
        each time; else one is drawn, among the top_k best and the fewest best that make up top_p, by `seed`
        (cq/model/sampling.py says how).

        Keys and values of all tokens are kept, and grow by doubling. cache: "float32", "int8" (symmetric, a scale for
        each token and head; a static model keeps its own codes), or None, what the model's attention computes in: then
        a quantized model's scores have the bits of a whole forward pass, unless a scheme takes one range for all tokens
        of a call.

        Raises UnsupportedError where the model does not continue texts, has no chat template for a conversation, or
        jinja2 is missing for it; CqError for bad arguments, a prompt that leaves no room, and where a score becomes NaN
        or Inf."""
        one = isinstance(prompt, (str, np.ndarray)) or is_conversation(prompt)
        if not one and not isinstance(prompt, (list, tuple)):
            raise CqError(
                f"prompt: need a text, a conversation, a 1-D integer array, or a list of such, got "
                f"{type(prompt).__name__}"
            )
        prompts = [prompt] if one else list(prompt)
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
        pieces: list[list] = [[] for _ in prompts]
        for i, piece in answers(self, prompts, max_new_tokens, sampling, stop, cache):
            pieces[i].append(piece)
        results = [
            np.array(found, np.int32) if isinstance(given, np.ndarray) else "".join(found)
            for given, found in zip(prompts, pieces)
        ]
        return results[0] if one else results

    def stream(
        self,
        prompt,
        max_new_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop=(),
        cache: str | None = None,
    ) -> Iterator:
        """`generate` of one prompt, as it comes: pieces of text, whole characters each, or ids for a prompt of ids.
        Arguments are checked at once."""
        if not isinstance(prompt, (str, np.ndarray)) and not is_conversation(prompt):
            raise CqError(f"prompt: need one text, conversation or 1-D integer array, got {type(prompt).__name__}")
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
        found = answers(self, [prompt], max_new_tokens, sampling, stop, cache)
        return (piece for _, piece in found)

    def tokenize(self, text: str, special_tokens: bool = True) -> np.ndarray:
        """Token ids of a text, int32 (len,); cut to config.max_length where the model pools or is an encoder.
        special_tokens: with those that the tokenizer puts around a text; a chat template's result has its own."""
        if self.tokenizer is None:
            raise CqError(
                "tokenize: the model was loaded without a tokenizer; give arrays of token ids, or put its "
                "tokenizer.json beside the weights"
            )
        if not isinstance(text, str):
            raise CqError(f"text: need a str, got {type(text).__name__}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise CqError(f"text: character {error.start} is half of a surrogate pair, not a character") from None
        return np.array((self._cutter or self.tokenizer).encode(text, add_special_tokens=special_tokens).ids, np.int32)

    def _run(self, tokens: Iterable, work: Callable[[Batch], np.ndarray]) -> list[np.ndarray]:
        sequences = check_tokens(tokens, self.config.vocab_size, self.config.max_positions)
        return [rows for batch in batches(sequences) for rows in batch.split(work(batch))]

    def _replayed(self, batch: Batch) -> np.ndarray:
        """Final states (tokens, hidden) float32."""
        others = self.embedding.word(self._sharing_head()), self.embedding.stream, self.final_norm
        return self._replay(batch, lambda given: self.hidden(given).floats(), self.blocks, *others)

    def _classes(self, batch: Batch) -> np.ndarray:
        scores = self.classifier(self.hidden(batch).floats()[batch.offsets[:-1]], batch)
        try:
            _core.min_max(scores)
        except CqError as error:
            raise CqError(f"classify: {error}") from None
        return scores

    def _scores(self, batch: Batch) -> np.ndarray:
        scores = self.head(self.hidden(batch, (self.head,)))
        try:
            _core.min_max(scores)
        except CqError as error:
            raise CqError(f"logits: {error}") from None
        return scores

    def hidden(self, batch: Batch, readers: tuple = ()) -> Activation:
        """Final states (tokens, hidden) for `readers`, or in float32. Norms stand before each part (Llama), where the
        sum goes on beside them, or after it (BERT), where their result does."""
        steps = self._steps(readers)
        if self.config.norm_first:
            stream = self.embedding(batch.ids, batch.positions, (), self._sharing_head()).values
            x = self.blocks[0].attention_norm(stream, steps[0].part.readers(), keep_float=batch.observe is not None)
        else:
            x = self.embedding(batch.ids, batch.positions, steps[0].part.readers(), self._sharing_head())
            stream = x.values if self.embedding.stream is None else x.take(self.embedding.stream)
        for step in steps:
            batch.tap(step.site + "input", x.values)
            x, stream = step.part(x, batch, step.site, Then(stream, step.norm, step.readers, step.keep, step.stream))
            if step.keep == "sum":
                batch.tap(step.site + "sum", stream)
        batch.tap("head.input", x.values)
        return x

    def _sharing_head(self) -> Linear | None:
        """The head where it shares the word table in float32."""
        shares = self.config.tied and isinstance(self.head, Linear) and self.embedding.runs_in == "float32"
        return self.head if shares else None

    def _steps(self, last_readers: tuple) -> list["_Step"]:
        """Every attention and feed-forward part in the order of work, with the norm that follows it."""
        parts = [(block, name) for block in self.blocks for name in ("attention", "ffn")]
        norms = [getattr(block, name + "_norm") for block, name in parts]
        if self.config.norm_first:
            norms = norms[1:] + [self.final_norm]
        readers = [getattr(block, name).readers() for block, name in parts[1:]] + [last_readers]
        keep = ["sum" if self.config.norm_first else "normed"] * (len(parts) - 1) + ["normed"]
        return [
            _Step(getattr(block, name), norm, reading, kept, f"{block.name}.{name}.", block.streams[name == "ffn"])
            for (block, name), norm, reading, kept in zip(parts, norms, readers, keep)
        ]

    def tokens_of(self, samples) -> list[np.ndarray]:
        """Texts or ids, or one text → checked ids, one array for each."""
        if isinstance(samples, str):
            samples = [samples]
        if not isinstance(samples, np.ndarray) and isinstance(samples, Iterable):
            samples = [self.tokenize(s) if isinstance(s, str) else s for s in samples]
        return check_tokens(samples, self.config.vocab_size, self.config.max_positions)

    def observe(self, samples: Iterable, observe: Callable[[str, np.ndarray], None]) -> None:
        """Runs texts or ids and shows `observe(site, float32 (rows, n))` what flows where: a row for each token, or for
        each sequence in a classifier's head. At most MAX_TOKENS go through together; more come in parts."""
        for batch in batches(self.tokens_of(samples), observe):
            self.hidden(batch) if self.classifier is None else self._classes(batch)

    # --- looking inside -----------------------------------------------------------------------------------------------

    @property
    def strategy(self):
        """What cq.quantize was given; None: the model is float32."""
        return self.plan and self.plan.strategy

    def linears(self) -> Iterator[tuple[str, Linear | QuantizedLinear]]:
        """Every linear layer by name, in the order of work."""
        for owner, attribute, name in self.linear_places():
            yield name, getattr(owner, attribute)

    def linear_places(self) -> Iterator[tuple[object, str, str]]:
        """(owner, attribute, name) of every linear layer, so that it can be swapped."""
        for block in self.blocks:
            for part in ("query", "key", "value", "output"):
                yield block.attention, part, f"{block.name}.attention.{part}"
            for part in ("up", "down") if block.ffn.gate is None else ("gate", "up", "down"):
                yield block.ffn, part, f"{block.name}.ffn.{part}"
        if self.head is not None:
            yield self, "head", "head"
        if self.classifier is not None:
            yield self.classifier, "dense", "classifier.dense"
            yield self.classifier, "scores", "classifier.scores"

    def weights(self) -> dict[str, np.ndarray]:
        """A float32 model's weights and biases by canonical name, as the constructor takes them; must not be written
        to."""
        embedding = self.embedding
        named = {
            "embed.word": read(embedding.source),
            "embed.position": embedding.position,
            "embed.type": embedding.type,
        }
        named |= {
            f"{name}.{leaf}": getattr(part, leaf)
            for name, part in (*self.norms(), *self.linears())
            for leaf in ("weight", "bias")
            if not (leaf == "weight" and name == "head" and self.config.tied)
        }
        return {name: array for name, array in named.items() if array is not None}

    def norms(self) -> Iterator[tuple[str, Norm]]:
        """Every norm by name."""
        if self.embedding.norm is not None:
            yield "embed.norm", self.embedding.norm
        for block in self.blocks:
            if block.attention.query_norm is not None:
                yield f"{block.name}.attention.query_norm", block.attention.query_norm
                yield f"{block.name}.attention.key_norm", block.attention.key_norm
            yield f"{block.name}.attention_norm", block.attention_norm
            yield f"{block.name}.ffn_norm", block.ffn_norm
        if self.final_norm is not None:
            yield "final_norm", self.final_norm

    @property
    def nbytes(self) -> int:
        """Resident bytes of all weights, scales and tables; what two layers share counts once."""
        arrays = self.embedding.arrays() + [a for _, layer in self.linears() for a in layer.arrays()]
        arrays += [a for _, norm in self.norms() for a in norm.arrays()]
        return sum({id(a): a.nbytes for a in arrays}.values())

    def coverage(self, tokens: int | None = None) -> Coverage:
        """Where each part runs and why not in int8 where it does not, and the shares of multiply-adds and of bytes in
        int8. tokens: the length of the one sequence whose multiply-adds count; None: 128, or all positions where they
        are fewer. Raises CqError for a length that the model does not take."""
        tokens = min(128, self.config.max_positions) if tokens is None else tokens
        if type(tokens) is not int or not 1 <= tokens <= self.config.max_positions:
            raise CqError(f"tokens: need a length from 1 to {self.config.max_positions:,}, got {tokens!r}")
        return coverage_of(self, tokens)

    def headroom(self) -> dict[str, float]:
        """Name → the bits by which int32 is larger than any sum that the layer's own weights allow, intermediate ones
        included; for attention's products ("layers.0.attention.scores") over as many tokens as the model takes. What
        had none would have been refused when it was quantized or loaded. Layers without integer products are left
        out."""
        return headroom_of(self)

    def __repr__(self) -> str:
        c, quantized = self.config, [layer for _, layer in self.linears() if layer.runs_in != "float32"]
        kind = self.strategy.name if self.strategy else "float32"
        return (
            f"Transformer({c.family}, {c.num_layers} layers, hidden {c.hidden_size}, {kind}: {len(quantized)} of "
            f"{sum(1 for _ in self.linears())} linear layers in int8, {self.nbytes / 1e6:.1f} MB)"
        )


def _check_batch_size(batch_size) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise CqError(f"batch_size: need a positive whole number, got {batch_size!r}")
