"""What a transformer is made of, in one record; the rest of the model reads it and nothing else. Knows no files and no
names of any model hub."""

import math
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from ..errors import FormatError
from .config_checks import check_config
from .convolution import convolution_shapes
from .pooling import tail_shapes, tail_width
from .position_bias import bias_shapes, layer_bias_shapes


class Layer(NamedTuple):
    """What one layer has of its own. window: as Config's, or None: it sees everything; rope_theta, rope_scaling: of its
    rotary positions; theta None: it has none."""

    window: int | None
    rope_theta: float | None
    rope_scaling: dict | None


@dataclass(frozen=True)
class Config:
    """What a transformer is made of, and what its checkpoint says of its use.

    Sizes are in elements, lengths in tokens. `cq.load` makes it of a checkpoint's files.

    Args:
        family: Name of the architecture.
        vocab_size: Rows of the word table.
        hidden_size: Features of a token between layers.
        num_layers: Number of blocks.
        num_heads: Heads of queries; a multiple of `num_kv_heads`.
        num_kv_heads: Heads of keys and values.
        head_dim: Features of a head.
        intermediate_size: Hidden features of a feed-forward part.
        max_positions: Length of the longest sequence.
        type_vocab_size: Rows of the table of token types; 0: there is none.
        position_offset: Rows of the table of learned positions before the first token's.
        norm: "layer" or "rms".
        norm_eps: What norms add to the variance.
        norm_first: Whether norms stand before each part (attention and feed-forward), instead of after the sum of part
            and residual stream.
        activation: "gelu", "gelu_tanh", "silu" or "relu", of feed-forward parts.
        gated: Whether a gate multiplies the hidden features.
        rope_theta: Base of rotary positions. None: positions are learned.
        rope_scaling: How rotary positions are scaled, see `cq.model.rope.check_scaling`; None: not.
        qk_norm: Whether queries and keys are normed before they are rotated, each head by itself.
        causal: Whether a token sees nothing after itself.
        lm_head: Whether a head gives scores of all words.
        tied: Whether that head shares the word table.
        pooling: One of "mean", "cls", "max", "mean_sqrt_len", "last" and "weightedmean", or several, whose results are
            joined; None: the model does not pool.
        normalize: Whether embeddings are divided by their length.
        max_length: Tokens to which texts are cut.
        labels: Names of the labels of a classifier, of sequences or of tokens.
        classifier: What stands between the two layers of a sequence classifier's head: "tanh", "relu" or "gelu";
            "linear": it has one layer; None: there is no such head.
        bos_token_id: Id that begins a text, or None.
        eos_token_ids: Ids that end a text.
        chat_template: Jinja template that makes a prompt of a conversation, or several by name.
        pad_token_id: Id that fills a batch, or None.
        special_tokens: Texts of special tokens by name.
        generation: What holds in generation where a call says nothing, see `cq.model.sampling.DEFAULTS`.
        token_types: Whether the token types that the tokenizer gives reach the model.
        truncation_side: "right" or "left", the end at which long texts are cut.
        pair_activation: What scores of pairs of texts go through: "identity", "sigmoid" or "tanh".
        include_prompt: Whether the tokens of a prompt are pooled.
        prompts: Prompts by name.
        default_prompt: The name of the prompt that is used where a call names none.
        strip: Whether white space around texts is left out.
        truncate_dim: Number of features of an embedding that are kept; None: all.
        tail: Modules between pooling and normalization, see `cq.model.pooling.check_tail`.
        text_activation: What scores of single texts go through: "identity" or "sigmoid".
        token_head: What a head gives of every token: "labels", scores of `labels`; "spans", scores of the begin and the
            end of an answer; "vectors", those of late interaction; None: there is no such head.
        head_transform: Activation of the layer before a masked language model's head; None: there is no such layer.
        multi_vector: How the vectors of late interaction are made, see `cq.model.multi_vector.check_multi_vector`.
        answers: Of a language model that judges pairs, the id of yes and, where it counts, that of no.
        position_table: Whether there is a table of learned positions where `rope_theta` is None.
        position_bias: What is added to scores by distance, see `cq.model.position_bias.check_bias`; None: nothing.
        embedding_width: Features of the tables' rows, which a layer projects to `hidden_size`; None: `hidden_size`.
        embedding_norm: With `norm_first`: whether the first norm stands where the residual stream begins, instead of
            before the first layer's attention.
        window: How many tokens a causal model's token sees, itself included, or how many on either side that of another
            model; None: all.
        local: Which layers have the window; (): all.
        local_rope_theta: Base of rotary positions in layers with the window, where they are not scaled; None:
            `rope_theta`, scaled as elsewhere.
        rotated: Which layers have rotary positions; (): all.
        rotary_dim: How many features of a head, its first, are rotated; None: all.
        qk_norm_joint: Whether `qk_norm` norms all heads together.
        norm_outputs: Whether norms stand after each part, before its sum with the residual stream; with `norm_first`
            on both sides of a part.
        parallel: Whether attention and feed-forward read the same residual stream.
        embedding_scale: Factor of the words' rows.
        residual_scale: Factor of what is added to the residual stream.
        logits_scale: Factor of the scores of words.
        attention_scale: Factor of queries' products with keys; None: 1 / sqrt(head_dim).
        attention_cap: Attention's scores x become cap * tanh(x / cap); None: they stay.
        logits_cap: The same of the scores of words.
        convolution: What stands beside the first layer, see `cq.model.convolution.check_convolution`; None: nothing.
        hadamard: Size of the blocks of neighbouring hidden features of gated feed-forward parts that a Hadamard
            transform mixes before the down projection, a power of two from 16; None: there is none.
        head_hadamard: The same of each head's queries and keys, after their rotary positions.

    Raises:
        FormatError: A value is of another type or out of range, or two do not go together.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    type_vocab_size: int = 0
    position_offset: int = 0
    norm: str = "layer"
    norm_eps: float = 1e-12
    norm_first: bool = False
    activation: str = "gelu"
    gated: bool = False
    rope_theta: float | None = None
    rope_scaling: dict | None = None
    qk_norm: bool = False
    causal: bool = False
    lm_head: bool = False
    tied: bool = False
    pooling: str | tuple[str, ...] | None = None
    normalize: bool = False
    max_length: int = 512
    labels: tuple[str, ...] = ()
    classifier: str | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    chat_template: str | dict[str, str] | None = None
    pad_token_id: int | None = None
    special_tokens: dict[str, str] | None = None
    generation: dict | None = None
    token_types: bool = True
    truncation_side: str = "right"
    pair_activation: str = "identity"
    include_prompt: bool = True
    prompts: dict[str, str] | None = None
    default_prompt: str | None = None
    strip: bool = False
    truncate_dim: int | None = None
    tail: tuple[dict, ...] = ()
    text_activation: str = "identity"
    token_head: str | None = None
    head_transform: str | None = None
    multi_vector: dict | None = None
    answers: tuple[int, ...] = ()
    position_table: bool = True
    position_bias: dict | None = None
    embedding_width: int | None = None
    embedding_norm: bool = False
    window: int | None = None
    local: tuple[bool, ...] = ()
    local_rope_theta: float | None = None
    rotated: tuple[bool, ...] = ()
    rotary_dim: int | None = None
    qk_norm_joint: bool = False
    norm_outputs: bool = False
    parallel: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    attention_scale: float | None = None
    attention_cap: float | None = None
    logits_cap: float | None = None
    convolution: dict | None = None
    hadamard: int | None = None
    head_hadamard: int | None = None

    def __post_init__(self) -> None:
        check_config(self)

    @property
    def masked_lm(self) -> bool:
        """Whether the head says which token stands at a place, rather than which one follows."""
        return self.lm_head and not self.causal

    @property
    def head_size(self) -> int:
        """Outputs of the head that reads every token; 0: there is none."""
        if self.lm_head:
            return self.vocab_size
        if self.multi_vector is not None:
            return int(self.multi_vector["features"])
        return {"labels": len(self.labels), "spans": 2, None: 0}[self.token_head]

    @property
    def turned(self) -> int:
        """The features of a head that rotary positions turn."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def starts_normed(self) -> bool:
        """Whether the sum of the tables is normed, and the first layer's attention reads what comes of it."""
        return self.embedding_norm or not self.ends_normed

    @property
    def ends_normed(self) -> bool:
        """Whether the residual stream is a plain sum, which the last norm norms; else norms stand in the stream."""
        return self.norm_first or self.norm_outputs

    @property
    def score_scale(self) -> float:
        """What multiplies queries' products with keys."""
        return 1 / math.sqrt(self.head_dim) if self.attention_scale is None else self.attention_scale

    def layer(self, i: int) -> Layer:
        """What layer i has of its own."""
        local = self.window is not None and (not self.local or self.local[i])
        theta, scaling = self.rope_theta, self.rope_scaling
        if local and self.local_rope_theta is not None:
            theta, scaling = self.local_rope_theta, None
        if self.rotated and not self.rotated[i]:
            theta = scaling = None
        return Layer(self.window if local else None, theta, scaling)

    @property
    def modes(self) -> tuple[str, ...]:
        """What is pooled, side by side."""
        if self.pooling is None:
            return ()
        return self.pooling if isinstance(self.pooling, tuple) else (self.pooling,)

    @property
    def embedding_size(self) -> int:
        """Features of an embedding, of a model that pools."""
        width = tail_width(self.tail, len(self.modes) * self.hidden_size)
        return width if self.truncate_dim is None else min(width, self.truncate_dim)

    def to_dict(self) -> dict:
        """As JSON has it; entries that came after `tail` only where they are not the default, so that versions before
        them read it."""
        names = [field.name for field in fields(self)]
        later = fields(self)[names.index("tail") + 1 :]
        usual = {field.name for field in later if getattr(self, field.name) == field.default}
        return {name: value for name, value in asdict(self).items() if name not in usual}

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """The inverse of `to_dict`. Raises FormatError for a missing or unknown entry."""
        names = {field.name for field in fields(cls)}
        unknown = set(values) - names
        if unknown:
            raise FormatError(
                f"config: unknown entries {sorted(map(str, unknown))!r:.200}; cq.Config documents the known"
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise FormatError(f"config: {error}") from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name → shape of every float weight that this configuration requires, without biases."""
        h, f = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        width = h if self.embedding_width is None else self.embedding_width
        shapes: dict[str, tuple[int, ...]] = {"embed.word": (self.vocab_size, width)}
        if self.rope_theta is None and self.position_table:
            shapes["embed.position"] = (self.position_offset + self.max_positions, width)
        if self.type_vocab_size:
            shapes["embed.type"] = (self.type_vocab_size, width)
        if self.embedding_width is not None:
            shapes["embed.project.weight"] = (h, width)
        shapes |= bias_shapes(self.position_bias, self.num_heads) | convolution_shapes(self.convolution, h)
        for i in range(self.num_layers):
            at = f"layers.{i}."
            shapes |= {
                at + "attention.query.weight": (q, h),
                at + "attention.key.weight": (kv, h),
                at + "attention.value.weight": (kv, h),
                at + "attention.output.weight": (h, q),
            }
            shapes |= {
                at + f"attention.{name}": shape for name, shape in layer_bias_shapes(self.position_bias, q).items()
            }
            if self.norm_first or not self.norm_outputs:
                normed = ("ffn",) if self.embedding_norm and i == 0 else ("attention", "ffn")
                shapes |= {at + f"{part}_norm.weight": (h,) for part in normed}
            shapes |= {at + "ffn.up.weight": (f, h), at + "ffn.down.weight": (h, f)}
            if self.norm_outputs:
                shapes |= {at + f"{part}.output_norm.weight": (h,) for part in ("attention", "ffn")}
            if self.qk_norm:
                widths = (q, kv) if self.qk_norm_joint else (self.head_dim,) * 2
                shapes |= {at + f"attention.{part}_norm.weight": (n,) for part, n in zip(("query", "key"), widths)}
            if self.gated:
                shapes[at + "ffn.gate.weight"] = (f, h)
        shapes |= {"final_norm.weight": (h,)} if self.ends_normed else {}
        shapes |= {"embed.norm.weight": (width,)} if self.starts_normed else {}
        if self.head_transform is not None:
            shapes |= {"transform.dense.weight": (h, h), "transform.norm.weight": (h,)}
        if self.head_size and not self.tied:
            shapes["head.weight"] = (self.head_size, h)
        if self.classifier is not None:
            shapes |= {} if self.classifier == "linear" else {"classifier.dense.weight": (h, h)}
            shapes["classifier.scores.weight"] = len(self.labels), h
        return shapes | tail_shapes(self.tail, len(self.modes) * h)
