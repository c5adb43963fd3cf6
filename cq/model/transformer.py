"""The transformer: configuration and float32 weights in, hidden states and logits out. What takes texts stands in
classes of their own: texts.py (embed, classify), encoding.py, heads.py, late_interaction.py, ranking.py, writing.py.
Knows no files and no strategies; convert.py makes others of its layers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from .. import _core
from ..errors import CqError, UnsupportedError
from ..weights import Weight
from . import build
from .activation import Activation, decode, finite
from .attention import Attention
from .batch import Batch, Observe, batches
from .block import Block, FeedForward
from .classifier import Classifier
from .config import Config
from .coverage import Coverage, coverage_of, headroom_of
from .deferred import Deferred, read
from .encoding import SentenceEncoding
from .heads import Heads
from .inputs import sequences_of
from .linear import Linear, QuantizedLinear, Then
from .norm import Norm
from .pooling import Tail
from .ranking import Ranking
from .replay import Replay
from .rope import turning_point
from .sampling import is_whole
from .sites import Graph
from .tokenizer_bounds import check_given
from .transform import Transform
from .weights import check_weights
from .writing import Writing

if TYPE_CHECKING:
    from ..plan import Plan
    from ..strategies import Strategy


class Transformer(SentenceEncoding, Heads, Ranking, Writing):
    """A transformer: an encoder or a decoder, in float32 or quantized. `cq.load` and `cq.quantize` make them.

    Attributes:
        config: The `Config`.
        tokenizer: The tokenizer, or None.
        plan: What the layers were converted by. None: they are float32.
    """

    def __init__(
        self, config: Config, weights: Mapping[str, np.ndarray | Deferred], tokenizer: Tokenizer | None = None
    ):
        """weights: canonical name → float32 array (see Config.shapes), and biases; kept, never written to, and copied
        only where layers that read the same are laid side by side. tokenizer: of the library tokenizers; one that
        could exhaust memory or fail on a text is refused. Raises CqError where they do not fit the configuration, or
        for such a tokenizer."""
        check_weights(config, weights)
        self.config, self.graph = config, Graph(config)
        self.plan: Plan | None = None  # of a quantized model, what convert made it by
        self.embedding = build.embedding(config, weights)
        self.projection: Linear | QuantizedLinear | None = build.projection(config, weights)
        self.blocks = build.blocks(config, weights)
        self.convolution = build.convolution(config, weights)
        self.final_norm = build.norm(config, weights, "final_norm") if config.ends_normed else None
        self.transform: Transform | None = build.transform(config, weights)
        self.head: Linear | QuantizedLinear | None = build.head(config, weights)
        self.classifier: Classifier | None = build.classifier(config, weights)
        self.tail = Tail(config.tail, weights)
        self._replay = Replay()
        if tokenizer is not None:
            check_given(tokenizer)
        self.take_tokenizer(tokenizer)

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
        """What the head gives at each position, list of (len, outputs) float32: of a causal language model the scores
        of the next token, (len, vocab); of a masked one those of the token at that place; of a token classifier those
        of config.labels; of a model that finds answers, those of their begin and end, (len, 2). Raises UnsupportedError
        where no head reads every token, else as `forward`."""
        if self.head is None:
            raise UnsupportedError(
                f"logits: this {self.config.family} model has no head that reads every token; use forward or embed"
            )
        return self._run(tokens, self._scores)

    def _run(self, tokens: Iterable, work: Callable[[Batch], np.ndarray]) -> list[np.ndarray]:
        return [rows for batch in self.batches(tokens) for rows in batch.split(work(batch))]

    def batches(self, tokens: Iterable, observe: Observe | None = None) -> Iterator[Batch]:
        """Tokens as `forward` takes them, as they go through together."""
        return batches(sequences_of(tokens, self.config), observe, turning_point(self.config.rope_scaling))

    def _replayed(self, batch: Batch) -> np.ndarray:
        """Final states (tokens, hidden) float32."""
        if turning_point(self.config.rope_scaling) is not None or self.convolution is not None:
            return self.hidden(batch).floats()  # a tape is recorded with the tables of one length, of C's work alone
        others = self.embedding.word(self._sharing_head()), self.embedding.stream, self.projection, self.final_norm
        return self._replay(batch, lambda given: self.hidden(given).floats(), self.blocks, *others)

    def _classes(self, batch: Batch) -> np.ndarray:
        assert self.classifier is not None, "whoever calls has seen one"
        states = self.hidden(batch).floats()[self._read_by_classifier(batch)]
        return finite(self.classifier(states, batch), "classify")

    def _read_by_classifier(self, batch: Batch) -> np.ndarray:
        """Of each sequence the place of the token that says its class: the first, or, since a decoder looks back, its
        last that is no padding."""
        first, last = batch.offsets[:-1], batch.offsets[1:] - 1
        if not self.config.causal:
            return first
        places = np.where(batch.ids == self.config.pad_token_id, -1, np.arange(len(batch.ids)))  # None equals no id
        found = np.maximum.reduceat(places, first)
        return np.where(found < first, last if self.config.pad_token_id is None else first, found)

    def _transformed(self, batch: Batch, readers: tuple = ()) -> Activation:
        """What the head reads."""
        if self.transform is None:
            return self.hidden(batch, readers)
        return self.transform(self.hidden(batch, (self.transform.dense,)), readers, batch)

    def _scores(self, batch: Batch) -> np.ndarray:
        assert self.head is not None, "logits has seen one"
        return finite(self.scores_of(self._transformed(batch, (self.head,))), "logits")

    def head_scores(self, states: np.ndarray) -> np.ndarray:
        """What the head, of a model that has one, gives of final states: float32 (n, hidden) → (n, outputs)."""
        assert self.head is not None, "whoever calls has seen one"
        x = Activation(np.ascontiguousarray(states))
        return finite(self.scores_of(x if self.transform is None else self.transform(x, (self.head,))), "logits")

    def scores_of(self, hidden: Activation) -> np.ndarray:
        """What the head, of a model that has one, gives of what it reads (tokens, …): those of words are multiplied and
        capped as the configuration says."""
        assert self.head is not None, "whoever calls has seen one"
        scores, scale, cap = self.head(hidden), self.config.logits_scale, self.config.logits_cap
        if not self.config.lm_head or scale == 1 and cap is None:
            return scores
        return _core.cap(scores, scale, cap or 0.0)

    def hidden(self, batch: Batch, readers: tuple[Linear | QuantizedLinear, ...] = ()) -> Activation:
        """Final states (tokens, hidden) for `readers`, or in float32. Norms stand before or after parts, and the sum
        goes on beside them (Llama, OLMo 2, Gemma), or after the sum, and their result goes on (BERT)."""
        x, stream = self._begin(batch)
        first, beside_first = stream, self.convolution
        factor, keep = self.config.residual_scale, "sum" if self.config.ends_normed else "normed"
        for block, after in zip(self.blocks, [*self.blocks[1:], None]):
            beside = self._beside(block, stream, batch)
            attention_norm, ffn_norm = self._following_norms(block, after)
            next_readers = block.ffn.readers() if beside is None else ()
            output = block.attention_output_norm
            then = Then(stream, attention_norm, next_readers, keep, block.streams[0], output, factor)
            x, stream = self._part(block.attention, x, batch, f"{block.name}.attention.", then)
            kept, next_readers = ("normed", readers) if after is None else (keep, after.attention.readers())
            here = (next_readers, block.streams[1]) if beside_first is None else ((), None)
            then = Then(stream, ffn_norm, here[0], kept, here[1], block.ffn_output_norm, factor)
            x, stream = self._part(block.ffn, beside or x, batch, f"{block.name}.ffn.", then)
            if beside_first is not None:
                x, stream = beside_first(first, x.floats(), batch, next_readers, block.streams[1])
                beside_first = None
        batch.tap("head.input" if self.transform is None else "transform.input", x.values)
        return x

    def _begin(self, batch: Batch) -> tuple[Activation, np.ndarray | _core.Coded]:
        """What the first block reads, and the residual stream that begins beside it."""
        readers = self.blocks[0].attention.readers()
        if self.config.starts_normed:
            first = readers if self.projection is None else (self.projection,)
            x = self.embedding(batch.ids, batch.positions, first, self._sharing_head(), batch.types)
            if self.projection is not None:
                batch.tap("embed.input", x.values)
                x = Activation(self.projection(x))
            return x, x.take(self.embedding.stream)
        stream = self.embedding(batch.ids, batch.positions, (), self._sharing_head(), batch.types).floats()
        norm = self.blocks[0].attention_norm
        return Activation(stream) if norm is None else norm(stream, readers, batch.observe is not None), stream

    def _beside(self, block: Block, stream: np.ndarray | _core.Coded, batch: Batch) -> Activation | None:
        """What a block's feed-forward part reads where it runs beside attention; None: it follows it."""
        if not self.config.parallel:
            return None
        assert block.ffn_norm is not None, "Config says so"
        floats = decode(stream) if isinstance(stream, _core.Coded) else stream
        return block.ffn_norm(floats, block.ffn.readers(), batch.observe is not None)

    def _following_norms(self, block: Block, after: Block | None) -> tuple[Norm | None, Norm | None]:
        """The norms of the sums that a block's two parts are added to."""
        if not self.config.ends_normed:
            return block.attention_norm, block.ffn_norm
        last = self.final_norm if after is None else after.attention_norm
        return None if self.config.parallel else block.ffn_norm, last

    def _part(
        self, part: Attention | FeedForward, x: Activation, batch: Batch, site: str, then: Then
    ) -> tuple[Activation, np.ndarray | _core.Coded]:
        """A part of a block and what follows it; `site` begins the names of its sites."""
        batch.tap(site + "input", x.values)
        x, stream = part(x, batch, site, then)
        if then.keep == "sum":
            batch.tap(site + "sum", stream)
        return x, stream

    def _sharing_head(self) -> Linear | None:
        """The head where it shares the word table in float32."""
        head = self.head if self.config.tied and self.embedding.runs_in == "float32" else None
        return head if isinstance(head, Linear) else None

    def observe(self, samples: Iterable, observe: Observe) -> None:
        """Runs texts or ids and shows `observe(site, float32 (rows, n))` what flows where: a row for each token, or for
        each sequence in a classifier's head. At most MAX_TOKENS go through together; more come in parts."""
        for batch in self.batches(self.tokens_of(samples), observe):
            self._transformed(batch) if self.classifier is None else self._classes(batch)

    # --- looking inside -----------------------------------------------------------------------------------------------

    @property
    def strategy(self) -> "Strategy | None":
        """What cq.quantize was given; None: the model is float32."""
        return None if self.plan is None else self.plan.strategy

    def linears(self) -> Iterator[tuple[str, Linear | QuantizedLinear]]:
        """Every linear layer by name, in the order of work."""
        for owner, attribute, name in self.linear_places():
            yield name, getattr(owner, attribute)

    def float_linears(self) -> Iterator[tuple[str, Linear]]:
        """Those of them that are in float32."""
        for name, layer in self.linears():
            if isinstance(layer, Linear):
                yield name, layer

    def linear_places(self) -> Iterator[tuple[object, str, str]]:
        """(owner, attribute, name) of every linear layer, so that it can be swapped."""
        if self.projection is not None:
            yield self, "projection", "embed.project"
        for block in self.blocks:
            for part in ("query", "key", "value", "output"):
                yield block.attention, part, f"{block.name}.attention.{part}"
            for part in ("up", "down") if block.ffn.gate is None else ("gate", "up", "down"):
                yield block.ffn, part, f"{block.name}.ffn.{part}"
        if self.transform is not None:
            yield self.transform, "dense", "transform.dense"
        if self.head is not None:
            yield self, "head", "head"
        if self.classifier is not None:
            if self.classifier.dense is not None:
                yield self.classifier, "dense", "classifier.dense"
            yield self.classifier, "scores", "classifier.scores"

    def weights(self) -> dict[str, np.ndarray]:
        """A float32 model's weights and biases by canonical name, as the constructor takes them; must not be written
        to."""
        embedding = self.embedding
        assert not isinstance(embedding.source, Weight), "a float32 model's table is in float32"
        named = {"embed.word": read(embedding.source)} | self.tables()
        named |= {
            f"{name}.{leaf}": getattr(part, leaf)
            for name, part in (*self.norms(), *self.linears(), *self.beside())
            for leaf in ("weight", "bias")
            if not (leaf == "weight" and name == "head" and self.config.tied)
        }
        return {name: array for name, array in named.items() if array is not None}

    def tables(self) -> dict[str, np.ndarray]:
        """The float32 tables beside the words', by canonical name: positions, token types, buckets of distances, and
        layers' keys and queries of relative positions."""
        bias = self.blocks[0].attention.bias
        named = {
            "embed.position": self.embedding.position,
            "embed.type": self.embedding.type,
            "embed.buckets": None if bias is None else bias.buckets,
        }
        for block in self.blocks:
            if block.attention.relative is not None:
                at, relative = f"{block.name}.attention.relative_", block.attention.relative
                named |= {at + "keys": relative.keys, at + "queries": relative.queries}
        return {name: table for name, table in named.items() if table is not None}

    def norms(self) -> Iterator[tuple[str, Norm]]:
        """Every norm by name."""
        if self.embedding.norm is not None:
            yield "embed.norm", self.embedding.norm
        for block in self.blocks:
            if block.attention.query_norm is not None and block.attention.key_norm is not None:
                yield f"{block.name}.attention.query_norm", block.attention.query_norm
                yield f"{block.name}.attention.key_norm", block.attention.key_norm
            for part, norm in (
                ("attention_norm", block.attention_norm),
                ("attention.output_norm", block.attention_output_norm),
                ("ffn_norm", block.ffn_norm),
                ("ffn.output_norm", block.ffn_output_norm),
            ):
                if norm is not None:
                    yield f"{block.name}.{part}", norm
        if self.convolution is not None:
            yield "convolution.norm", self.convolution.norm
        if self.final_norm is not None:
            yield "final_norm", self.final_norm
        if self.transform is not None:
            yield "transform.norm", self.transform.norm

    def beside(self) -> Iterator[tuple[str, Linear | Norm]]:
        """By name what has weights beside `linears` and `norms`, float32 in every strategy: the convolution, and what
        follows pooling."""
        if self.convolution is not None:
            yield "convolution", self.convolution.product
        yield from self.tail.parts()

    @property
    def nbytes(self) -> int:
        """Resident bytes of all weights, scales and tables; what two layers share counts once."""
        arrays = self.embedding.word_arrays() + list(self.tables().values())
        arrays += [a for _, layer in self.linears() for a in layer.arrays()]
        arrays += [a for _, part in (*self.norms(), *self.beside()) for a in part.arrays()]
        return sum({id(a): a.nbytes for a in arrays}.values())

    def coverage(self, tokens: int | None = None) -> Coverage:
        """Where each part runs and why not in int8 where it does not, and the shares of multiply-adds and of bytes in
        int8. tokens: the length of the one sequence whose multiply-adds count; None: 128, or all positions where they
        are fewer. Raises CqError for a length that the model does not take."""
        tokens = min(128, self.config.max_positions) if tokens is None else tokens
        if not is_whole(tokens, 1) or tokens > self.config.max_positions:
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
