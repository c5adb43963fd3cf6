"""A transformer as an ONNX graph: what forward, logits, classify and embed compute, in standard operators."""

from dataclasses import MISSING, fields

import numpy as np

from ...errors import UnsupportedError
from ...model import Transformer
from ...model.block import Block, FeedForward
from ...model.forms import Fixed, Smoothed, common_form
from ...model.linear import Linear, QuantizedLinear
from ...model.norm import Norm
from ...model.sites import BlockPart
from ...weights import Weight
from .attention import attention
from .convolution import convolved
from .flow import Flow, affine_of, folded, folds, quantized, transformed
from .graph import Graph
from .linear import Fold, activated, capped, codes_of, linear
from .norm import normed
from .places import Places
from .pooling import embedding, first_tokens, last_tokens, normalized

_WORD = "embed.word"
# what the graph is drawn by, and what concerns texts before they are ids and scores after they are computed; any other
# setting that is not its default is refused
_DRAWN = {
    *("family", "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    *("intermediate_size", "max_positions", "type_vocab_size", "position_offset", "norm", "norm_eps", "norm_first"),
    *("activation", "gated", "rope_theta", "rope_scaling", "qk_norm", "causal", "lm_head", "tied", "pooling"),
    *("normalize", "labels", "classifier", "token_types", "truncate_dim", "tail", "max_length", "bos_token_id"),
    *("eos_token_ids", "chat_template", "pad_token_id", "special_tokens", "generation", "truncation_side"),
    *("pair_activation", "text_activation", "prompts", "default_prompt", "strip", "token_head", "head_transform"),
    *("answers", "multi_vector", "include_prompt"),  # the first: what `rank` reads of logits
    *("position_table", "position_bias", "embedding_width", "embedding_norm", "window", "local", "local_rope_theta"),
    *("rotated", "rotary_dim", "qk_norm_joint", "norm_outputs", "parallel", "embedding_scale", "residual_scale"),
    *("logits_scale", "attention_scale", "attention_cap", "logits_cap", "convolution", "hadamard", "head_hadamard"),
}


def check(model: Transformer) -> None:
    """Raises UnsupportedError for a setting that the graph does not express."""
    config = model.config
    for field in fields(config):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name not in _DRAWN and getattr(config, field.name) != default:
            raise UnsupportedError(
                f"export to ONNX: no graph for {field.name}={getattr(config, field.name)!r:.100} of this "
                f"{config.family} model"
            )


def drawn(model: Transformer) -> Graph:
    """The graph of a model. Inputs: input_ids, attention_mask, token_type_ids where there are several types,
    prompt_length where a prompt's tokens are not pooled, and past_key_values of decoders that write. Outputs: the
    logits of a head, and present keys and values; the token_embeddings of late interaction; or last_hidden_state and,
    where the model pools, sentence_embedding. Raises UnsupportedError."""
    check(model)
    return _Drawing(model).graph


class _Drawing:
    """Draws a model from its inputs to its outputs."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config, self.graph = model, model.config, Graph()
        graph, config = self.graph, model.config
        self.ids = graph.input("input_ids", np.int64, ("batch", "length"))
        self.writes = config.lm_head and config.causal
        self.given = graph.input("attention_mask", np.int64, ("batch", "total" if self.writes else "length"))
        several = config.type_vocab_size > 1 and config.token_types
        self.types = graph.input("token_type_ids", np.int64, ("batch", "length")) if several else None
        self.sizes = graph.add("Shape", self.ids)
        self.places = Places(graph, config, self.given, self.sizes, self.writes)
        self.named = {id(norm): name for name, norm in model.norms()}
        self.keep: str | None = None
        if not self.writes:
            kept = graph.add("Cast", self.given, to=graph.onnx.TensorProto.BOOL)
            self.keep = graph.add("Reshape", kept, np.array([-1, 1]))
        self._outputs(self._hidden())

    def _flow(self, values: str = "") -> Flow:
        return Flow(self.graph, values, self.keep)

    # --- the pass -----------------------------------------------------------------------------------------------------

    def _hidden(self) -> Flow:
        """As Transformer.hidden."""
        graph, model, ends_normed = self.graph, self.model, self.config.ends_normed
        x, stream = self._begin()
        first, convolution = stream, model.convolution
        for block, names, after in zip(model.blocks, model.graph.blocks, [*model.blocks[1:], None]):
            beside = None
            if self.config.parallel:
                assert block.ffn_norm is not None, "Config says so"
                beside = self._normed(stream, block.ffn_norm, block.ffn.readers())
            norms = block.attention_norm, block.ffn_norm
            if ends_normed:
                last = model.final_norm if after is None else after.attention_norm
                norms = None if beside else block.ffn_norm, last
            part = self._attention(block, names, x)
            part = part if block.attention_output_norm is None else self._norm(part, block.attention_output_norm)
            readers = block.ffn.readers()
            x, stream = self._after(part, stream, names.attention.sum, norms[0], readers, block.streams[0])
            part = self._feed_forward(block.ffn, names, beside or x)
            part = part if block.ffn_output_norm is None else self._norm(part, block.ffn_output_norm)
            readers = self._readers() if after is None else after.attention.readers()
            if convolution is None:
                x, stream = self._after(part, stream, names.ffn.sum, norms[1], readers, block.streams[1])
                continue
            x, _ = self._after(part, stream, names.ffn.sum, norms[1], (), None)
            total = graph.add("Add", x.floats(), convolved(graph, convolution, first, self.keep, self.places))
            x, convolution = self._flow(self._norm(total, convolution.norm)), None
            stream = x.floats() if block.streams[1] is None else x.fixed(block.streams[1])
        return x

    def _readers(self) -> tuple[Linear | QuantizedLinear, ...]:
        """What reads the final states."""
        if self.model.transform is not None:
            return (self.model.transform.dense,)
        return () if self.model.head is None else (self.model.head,)

    def _begin(self) -> tuple[Flow, str]:
        """What the first block reads, and the residual stream beside it."""
        model, embed, norm = self.model, self.model.embedding, self.model.blocks[0].attention_norm
        with self.graph.inside("embed"):
            x = self._embedded()
            x = self.graph.add("Reshape", x, np.array([-1, model.config.embedding_width or model.config.hidden_size]))
        if not self.config.starts_normed:
            return self._flow(x) if norm is None else self._normed(x, norm, model.blocks[0].attention.readers()), x
        assert embed.norm is not None, "what starts normed has this norm"
        readers = model.blocks[0].attention.readers() if model.projection is None else ()
        flow = self._normed_in_stream(x, embed.norm, readers)
        if model.projection is not None:
            flow = self._flow(linear(self.graph, model.projection, flow, "embed.project"))
        return flow, flow.floats() if embed.stream is None else flow.fixed(embed.stream)

    def _embedded(self) -> str:
        """The rows of the tables, summed, (batch, length, width)."""
        graph, embed = self.graph, self.model.embedding
        x = self._word()
        x = x if embed.scale == 1 else graph.add("Mul", x, np.float32(embed.scale))
        if embed.position is not None:
            table = graph.constant("embed.position", embed.position[embed.offset :])
            x = graph.add("Add", x, self.places.rows(table))
        if embed.type is None:
            return x
        if self.types is None:
            return graph.add("Add", x, embed.type[0])
        return graph.add("Add", x, graph.add("Gather", graph.constant("embed.type", embed.type), self.types))

    def _after(
        self, part: str, stream: str, place: str, norm: Norm | None, readers: tuple, form: Fixed | None
    ) -> tuple[Flow, str]:
        """As Then: the residual, the norm for `readers`, and the stream that goes on, in `form`."""
        graph, factor = self.graph, self.config.residual_scale
        with graph.inside(place):
            part = part if factor == 1 else graph.add("Mul", part, np.float32(factor))
            total = graph.add("Add", part, stream)
            kept = total if form is None or not self.config.ends_normed else quantized(graph, total, form)
        if self.config.ends_normed:
            return self._flow(total) if norm is None else self._normed(total, norm, readers), kept
        assert norm is not None, "norms stand in the stream"
        flow = self._normed_in_stream(total, norm, readers)
        return flow, flow.floats() if form is None else flow.fixed(form)

    def _norm(self, x: str, norm: Norm, form: Smoothed | None = None) -> str:
        with self.graph.inside(self.named[id(norm)]):
            return normed(self.graph, x, norm, form)

    def _normed(self, x: str, norm: Norm, readers: tuple) -> Flow:
        """A norm whose result is only read by `readers`: where features have scales of their own, these go into it."""
        form = common_form(readers)
        if not folds(form):
            return self._flow(self._norm(x, norm))
        return self._flow().add(form, quantized(self.graph, self._norm(x, norm, form), form))

    def _normed_in_stream(self, x: str, norm: Norm, readers: tuple) -> Flow:
        """A norm whose result goes on as it is, too. Two norms take less time than what they spare, a product and a
        sum."""
        flow, form = self._flow(self._norm(x, norm)), common_form(readers)
        if folds(form) and not norm.rms:
            flow.add(form, quantized(self.graph, self._norm(x, norm, form), form))
        return flow

    # --- parts --------------------------------------------------------------------------------------------------------

    def _attention(self, block: Block, names: BlockPart, x: Flow) -> str:
        """As Attention, up to the output projection."""
        graph, part, past = self.graph, block.attention, None
        if self.writes:
            shape = "batch", part.kv_heads, "past", part.dim
            at = f"past_key_values.{names.name.rpartition('.')[2]}"
            past = graph.input(f"{at}.key", np.float32, shape), graph.input(f"{at}.value", np.float32, shape)
        heads = attention(graph, part, names.attention, x, self.places, past)
        if past is not None:
            shape = "batch", part.kv_heads, "total", part.dim
            for kind, value in (("key", heads.key), ("value", heads.value)):
                graph.output(f"present.{names.name.rpartition('.')[2]}.{kind}", value, shape)
        return linear(graph, part.output, self._flow(heads.context), names.attention.output)

    def _feed_forward(self, part: FeedForward, names: BlockPart, x: Flow) -> str:
        """As FeedForward, up to the down projection."""
        graph, form = self.graph, part.down.input_form
        if part.gate is None:
            hidden = self._flow(linear(graph, part.up, x, names.ffn.up))
            return linear(graph, part.down, hidden, names.ffn.down)
        gate = linear(graph, part.gate, x, str(names.ffn.gate))
        factor, shift = folded(form) if folds(form) else (np.ones(1), None)
        fold = None
        if shift is not None and not part.hadamard:  # which mixes what the factors are of
            fold, factor = Fold(factor, np.zeros_like(factor)), np.ones(1)
        up = linear(graph, part.up, x, names.ffn.up, fold)
        with graph.inside(names.ffn.hidden):
            product = graph.add("Mul", activated(graph, gate, part.activation), up)
            if part.hadamard:
                product = transformed(graph, product, self.config.intermediate_size, part.hadamard, 2)
            hidden = self._flow(product)
            if folds(form) and shift is not None:
                moved = affine_of(graph, product, factor, shift)
                hidden = self._flow().add(form, quantized(graph, moved, form))
        return linear(graph, part.down, hidden, names.ffn.down)

    def _word(self) -> str:
        """The rows of the word table, (batch, length, hidden)."""
        graph, embed = self.graph, self.model.embedding
        if not isinstance(embed.source, Weight):
            return graph.add("Gather", graph.constant(_WORD, embed.source), self.ids)
        codes = codes_of(graph, embed.source, _WORD, by_output=True)
        if codes.scale.ndim == 0:
            rows = graph.add("Gather", codes.name, self.ids)
            return graph.add("DequantizeLinear", rows, codes.scale, codes.zeros)
        rows = graph.add("Cast", graph.add("Gather", codes.name, self.ids), to=graph.onnx.TensorProto.FLOAT)
        if codes.zero_point is not None:
            zeros = graph.constant(f"{_WORD}.zero_point", codes.zero_point.astype(np.float32)[:, None])
            rows = graph.add("Sub", rows, graph.add("Gather", zeros, self.ids))
        scales = graph.constant(f"{_WORD}.scale", codes.scale[:, None])
        return graph.add("Mul", rows, graph.add("Gather", scales, self.ids))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _outputs(self, x: Flow) -> None:
        graph, model, config = self.graph, self.model, self.config
        if model.head is not None:
            if model.transform is not None:
                dense = linear(graph, model.transform.dense, x, "transform.dense")
                x = self._normed(dense, model.transform.norm, (model.head,))
            self._scores(x, model.head)
            return
        hidden = self.places.apart(x.floats(), config.hidden_size)
        if model.classifier is not None:
            graph.output("logits", self._classes(hidden), ("batch", len(config.labels)))
            return
        graph.output("last_hidden_state", hidden, ("batch", "length", config.hidden_size))
        if config.pooling is not None:
            prompt = None if config.include_prompt else graph.input("prompt_length", np.int64, ())
            vectors = embedding(graph, model, hidden, self.given, prompt)
            graph.output("sentence_embedding", vectors, ("batch", config.embedding_size))

    def _scores(self, x: Flow, head: Linear | QuantizedLinear) -> None:
        """The output of a head that reads every token."""
        graph, config = self.graph, self.config
        shares = config.tied and (isinstance(head, Linear) or self.model.embedding.source is head.weight)
        scores, shape = linear(graph, head, x, "head", table=_WORD if shares else ""), ("batch", "length")
        scores = self.places.apart(scores, config.head_size)
        if config.multi_vector is not None:
            vectors = normalized(graph, scores) if config.multi_vector["normalize"] else scores
            graph.output("token_embeddings", vectors, (*shape, config.head_size))
            return
        if config.lm_head:
            scores = scores if config.logits_scale == 1 else graph.add("Mul", scores, np.float32(config.logits_scale))
            scores = capped(graph, scores, config.logits_cap)
        graph.output("logits", scores, (*shape, config.head_size))

    def _classes(self, hidden: str) -> str:
        head = self.model.classifier
        assert head is not None, "asked for where there is one"
        graph = self.graph
        x = Flow(graph, self._read_by_classifier(hidden))
        if head.dense is not None:
            dense = linear(graph, head.dense, x, "classifier.dense")
            own = head.dense.activation is None  # else the layer had it
            x = Flow(graph, activated(graph, dense, head.activation) if own else dense)
        return linear(graph, head.scores, x, "classifier.scores")

    def _read_by_classifier(self, hidden: str) -> str:
        """As Transformer._read_by_classifier."""
        graph, pad = self.graph, self.config.pad_token_id
        if not self.config.causal:
            return first_tokens(graph, hidden, self.given)
        if pad is None:
            return last_tokens(graph, hidden, self.given)
        said = graph.add("Not", graph.add("Equal", self.ids, np.array(pad)))
        return last_tokens(
            graph, hidden, graph.add("Mul", self.given, graph.add("Cast", said, to=graph.onnx.TensorProto.INT64))
        )
