"""A transformer as an ONNX graph: what forward, logits, classify and embed compute, in standard operators."""

from dataclasses import MISSING, fields

import numpy as np

from ... import _core
from ...errors import UnsupportedError
from ...model import Transformer
from ...model.block import Block, FeedForward
from ...model.forms import Fixed, PerTensor, PerToken, Smoothed, common_form
from ...model.linear import Linear, QuantizedLinear
from ...model.norm import Norm
from ...model.sites import BlockPart
from .attention import Tokens, attention, mask
from .flow import Flow, affine_of, folded, quantized
from .graph import Graph
from .linear import Fold, activated, codes_of, linear
from .norm import normed
from .pooling import embedding, first_tokens, last_tokens

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
    "answers",  # what `rank` reads of logits
}


def check(model: Transformer) -> None:
    """Raises UnsupportedError for what the graph could not express."""
    config = model.config
    for form in {layer.input_form for _, layer in model.linears()}:
        if form is not None and type(form) not in (PerToken, PerTensor, Fixed, Smoothed):
            raise UnsupportedError(f"export to ONNX: no graph for codes of the kind {type(form).__name__}")
    for field in fields(config):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name not in _DRAWN and getattr(config, field.name) != default:
            raise UnsupportedError(
                f"export to ONNX: no graph for {field.name}={getattr(config, field.name)!r:.100} of this "
                f"{config.family} model"
            )
    if (config.rope_scaling or {}).get("kind") == "longrope":
        raise UnsupportedError(
            "export to ONNX: longrope's positions turn by the length of each sequence, no graph does"
        )


def drawn(model: Transformer) -> Graph:
    """The graph of a model. Inputs: input_ids, attention_mask, token_type_ids where there are several types, and
    past_key_values of decoders that write. Outputs: the logits of a head, and present keys and values, or
    last_hidden_state and, where the model pools, sentence_embedding. Raises UnsupportedError."""
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
        self.keep: str | None = None
        if not self.writes:
            kept = graph.add("Cast", self.given, to=graph.onnx.TensorProto.BOOL)
            self.keep = graph.add("Unsqueeze", kept, np.array([2]))
        self._outputs(self._hidden())

    def _flow(self, values: str = "") -> Flow:
        return Flow(self.graph, values, self.keep)

    # --- the pass -----------------------------------------------------------------------------------------------------

    def _hidden(self) -> Flow:
        """As Transformer.hidden."""
        model, first = self.model, self.config.norm_first
        positions = self._positions()
        tokens = self._tokens(positions)
        x, stream = self._begin(positions)
        for block, names, after in zip(model.blocks, model.graph.blocks, [*model.blocks[1:], None]):
            readers = self._readers() if after is None else after.attention.readers()
            if first:
                norms = block.ffn_norm, model.final_norm if after is None else after.attention_norm
            else:
                norms = block.attention_norm, block.ffn_norm
            part = self._attention(block, names, x, tokens)
            x, stream = self._after(part, stream, norms[0], names.attention_norm, block.ffn.readers(), block.streams[0])
            part = self._feed_forward(block.ffn, names, x)
            x, stream = self._after(part, stream, norms[1], names.ffn_norm, readers, block.streams[1])
        return x

    def _readers(self) -> tuple[Linear | QuantizedLinear, ...]:
        """What reads the final states."""
        if self.model.transform is not None:
            return (self.model.transform.dense,)
        return () if self.model.head is None else (self.model.head,)

    def _begin(self, positions: str) -> tuple[Flow, str]:
        """What the first block reads, and the residual stream beside it."""
        graph, model = self.graph, self.model
        first, embed = model.blocks[0], model.embedding
        with graph.inside("embed"):
            x = self._word()
            if embed.position is not None:
                table = graph.constant("embed.position", embed.position[embed.offset :])
                x = graph.add("Add", x, graph.add("Gather", table, positions))
            if embed.type is not None and self.types is not None:
                table = graph.constant("embed.type", embed.type)
                x = graph.add("Add", x, graph.add("Gather", table, self.types))
            elif embed.type is not None:
                x = graph.add("Add", x, embed.type[0])
        if embed.norm is None:
            assert first.attention_norm is not None, "norms stand first"
            return self._normed(x, first.attention_norm, f"{first.name}.attention_norm", first.attention.readers()), x
        flow = self._flow(self._norm(x, embed.norm, "embed.norm"))
        return flow, flow.floats() if embed.stream is None else flow.fixed(embed.stream)

    def _after(
        self, part: str, stream: str, norm: Norm | None, name: str | None, readers: tuple, form: Fixed | None
    ) -> tuple[Flow, str]:
        """The residual, the norm, and the stream that goes on, in `form`."""
        assert norm is not None and name is not None, "every part has a norm behind it"
        with self.graph.inside(name):
            total = self.graph.add("Add", part, stream)
        if self.config.norm_first:
            flow = self._normed(total, norm, name, readers)
            return flow, total if form is None else quantized(self.graph, total, form)
        flow = self._flow(self._norm(total, norm, name))
        return flow, flow.floats() if form is None else flow.fixed(form)

    def _norm(self, x: str, norm: Norm, name: str, form: Smoothed | None = None) -> str:
        with self.graph.inside(name):
            return normed(self.graph, x, norm, form)

    def _normed(self, x: str, norm: Norm, name: str, readers: tuple) -> Flow:
        """A norm whose result is only read by `readers`: where features have scales of their own, these go into it."""
        form = common_form(readers)
        if not isinstance(form, Smoothed):
            return self._flow(self._norm(x, norm, name))
        return self._flow().add(form, quantized(self.graph, self._norm(x, norm, name, form), form))

    # --- parts --------------------------------------------------------------------------------------------------------

    def _attention(self, block: Block, names: BlockPart, x: Flow, tokens: Tokens) -> str:
        """As Attention, up to the output projection."""
        graph, part, past = self.graph, block.attention, None
        if self.writes:
            shape = "batch", part.kv_heads, "past", part.dim
            at = f"past_key_values.{names.name.rpartition('.')[2]}"
            past = graph.input(f"{at}.key", np.float32, shape), graph.input(f"{at}.value", np.float32, shape)
        heads = attention(graph, part, names.attention, x, tokens, past)
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
        gate, fold, shift = linear(graph, part.gate, x, str(names.ffn.gate)), None, None
        if isinstance(form, Smoothed):
            factor, shift = folded(form)
            fold = Fold(factor, np.zeros_like(factor))
        up = linear(graph, part.up, x, names.ffn.up, fold)
        with graph.inside(names.ffn.hidden):
            product = graph.add("Mul", activated(graph, gate, part.activation), up)
            hidden = self._flow(product)
            if isinstance(form, Smoothed) and shift is not None:
                moved = affine_of(graph, product, np.ones(1), shift)
                hidden = self._flow().add(form, quantized(graph, moved, form))
        return linear(graph, part.down, hidden, names.ffn.down)

    def _word(self) -> str:
        """The rows of the word table, (batch, length, hidden)."""
        graph, embed = self.graph, self.model.embedding
        if not isinstance(embed.source, _core.Weight):
            return graph.add("Gather", graph.constant(_WORD, embed.source), self.ids)
        codes = codes_of(graph, embed.source, _WORD, by_output=True)
        if codes.scale.ndim == 0:
            rows = graph.add("Gather", codes.name, self.ids)
            return graph.add("DequantizeLinear", rows, codes.scale, codes.zeros)
        ids = graph.add("Reshape", self.ids, np.array([-1]))  # since parameters of an axis are one row
        parameters = {f"{_WORD}.scale": codes.scale, f"{_WORD}.zero_point": codes.zeros}
        of_ids = [graph.add("Gather", graph.constant(name, array), ids) for name, array in parameters.items()]
        rows = graph.add("DequantizeLinear", graph.add("Gather", codes.name, ids), *of_ids, axis=0)
        return graph.add("Reshape", rows, graph.add("Concat", self.sizes, np.array([-1]), axis=0))

    def _positions(self) -> str:
        """int64 (batch or 1, length)."""
        graph, config = self.graph, self.config
        with graph.inside("positions"):
            length = graph.add("Slice", self.sizes, np.array([1]), np.array([2]))
            if not (self.writes or config.position_offset):
                places = graph.add("Range", np.array(0), graph.add("Squeeze", length), np.array(1))
                return graph.add("Unsqueeze", places, np.array([0]))
            places = graph.add("CumSum", self.given, np.array(1))
            places = graph.add("Max", graph.add("Sub", places, np.array(1)), np.array(0))
            return graph.add("Slice", places, graph.add("Neg", length), np.array([2**62]), np.array([1]))

    def _tokens(self, positions: str) -> Tokens:
        """The mask, and cosines and sines of rotary positions."""
        graph, part, cosine, sine = self.graph, self.model.blocks[0].attention, None, None
        with graph.inside("mask"):
            shown = mask(graph, self.given, self.sizes, part.causal, part.heads // part.kv_heads)
        if part.rotary is not None:
            frequencies, factor = part.rotary.frequencies[0]
            with graph.inside("rotary"):
                places = graph.add("Cast", positions, to=graph.onnx.TensorProto.FLOAT)
                angles = graph.add("Mul", graph.add("Unsqueeze", places, np.array([1, 3])), frequencies)
                cosine, sine = (graph.add(op, angles) for op in ("Cos", "Sin"))
                if factor != 1:
                    cosine, sine = (graph.add("Mul", x, np.float32(factor)) for x in (cosine, sine))
        return Tokens(shown, cosine, sine)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _outputs(self, x: Flow) -> None:
        graph, model, config = self.graph, self.model, self.config
        if model.head is not None:
            if model.transform is not None:
                dense = linear(graph, model.transform.dense, x, "transform.dense")
                x = self._normed(dense, model.transform.norm, "transform.norm", (model.head,))
            shares = config.tied and (isinstance(model.head, Linear) or model.embedding.source is model.head.weight)
            scores = linear(graph, model.head, x, "head", table=_WORD if shares else "")
            graph.output("logits", scores, ("batch", "length", config.head_size))
            return
        hidden = x.floats()
        if model.classifier is not None:
            graph.output("logits", self._classes(hidden), ("batch", len(config.labels)))
            return
        graph.output("last_hidden_state", hidden, ("batch", "length", config.hidden_size))
        if config.pooling is not None:
            vectors = embedding(graph, model, hidden, self.given)
            graph.output("sentence_embedding", vectors, ("batch", config.embedding_size))

    def _classes(self, hidden: str) -> str:
        head = self.model.classifier
        assert head is not None, "asked for where there is one"
        graph, one = self.graph, np.array([1])  # as sequences of one token: kernels in codes want three axes
        x = Flow(graph, graph.add("Unsqueeze", self._read_by_classifier(hidden), one))
        if head.dense is not None:
            dense = linear(graph, head.dense, x, "classifier.dense")
            x = Flow(graph, activated(graph, dense, head.activation))
        return graph.add("Squeeze", linear(graph, head.scores, x, "classifier.scores"), one)

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
