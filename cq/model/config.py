"""What a transformer is made of, in one record; the rest of the model reads it and nothing else. Knows no files and no
names of any model hub."""

import math
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from ..errors import FormatError
from .multi_vector import check_multi_vector
from .pooling import MODES, check_tail, tail_shapes, tail_width
from .position_bias import bias_shapes, check_bias
from .rope import check_scaling
from .sampling import check_defaults

_CHOICES = {
    "norm": ("layer", "rms"),
    "activation": ("gelu", "gelu_tanh", "silu", "relu"),
    "classifier": ("tanh", "relu", "gelu", "linear", None),
    "token_head": ("labels", "spans", "vectors", None),
    "head_transform": ("gelu", "gelu_tanh", "silu", "relu", None),
    "text_activation": ("identity", "sigmoid"),
    "truncation_side": ("right", "left"),
    "pair_activation": ("identity", "sigmoid", "tanh"),
}
_MAY_BE_0 = ("type_vocab_size", "position_offset")
_REALS = ("norm_eps", "embedding_scale", "residual_scale", "logits_scale")
_OPTIONAL_REALS = ("rope_theta", "local_rope_theta", "attention_scale", "attention_cap", "logits_cap")


class Layer(NamedTuple):
    """What one layer has of its own. window: as Config's, or None: it sees everything; rope_theta, rope_scaling: of its
    rotary positions; theta None: it has none."""

    window: int | None
    rope_theta: float | None
    rope_scaling: dict | None


@dataclass(frozen=True)
class Config:
    """The shape of a transformer. Sizes are in elements, lengths in tokens; `rope_theta=None` means learned positions,
    whose table has `position_offset` rows before the first token's, unless there is no `position_table`. `rope_scaling`
    is as rope.check_scaling wants it; `position_bias`, what scores get by distance, as position_bias.check_bias.
    `embedding_width`: features of the tables' rows, where a layer projects them to hidden_size after their norm.
    `rotary_dim`: the features of a head that turn, its first; None: all. `qk_norm`: each head's queries and keys are
    normed before they are rotated, or, `qk_norm_joint`, those of all heads together.

    Where norms stand: `norm_first` before each part (attention and feed-forward), else after the sum of part and
    residual stream; `embedding_norm`: with `norm_first`, where the stream begins, instead of before the first layer's
    attention; `norm_outputs`: after each part, before that sum, and with `norm_first` on both sides. `parallel`:
    both parts read the same residual stream. Numbers that multiply: the embeddings, queries' products with keys (None:
    1 / sqrt(head_dim)), what is added to the residual stream, logits. Caps: x becomes cap * tanh(x / cap).

    Layers of their own kind: `window`, of the `local` layers (those of which it holds true; (): all), is how many
    tokens a causal model's token sees, itself included, or how many on either side another's; `local_rope_theta`: of
    local layers, whose positions are not scaled then. `rotated`: which layers have rotary positions; (): all.

    Of models that pool: `pooling`, one of pooling.MODES or several that are joined; `normalize`, at the end;
    `include_prompt`, whether a prompt's tokens are pooled; `prompts` by name and which of them is the default; how many
    features are kept; `strip`, whether white space around texts is left out; `tail`, modules between pooling and
    `normalize`, as pooling.check_tail wants them. Of sequence classifiers, the labels' names, what stands between the
    head's two layers ("linear": there is but one), and what scores go through, of pairs and of single texts.
    `token_head`: what a linear layer gives of every token: a score for each of the labels, or for the begin and the end
    of an answer, or the vectors of late interaction. `multi_vector`: how those vectors are made, as
    multi_vector.check_multi_vector wants it. `head_transform`: the activation between a masked language model's
    trunk and its head. `token_types`: whether the tokenizer's types of tokens reach
    the model; `truncation_side`: which end of long texts is cut. Of language models, where their files say so: the ids
    that begin a text, end one and fill a batch, the Jinja template that makes a prompt of a conversation, the special
    tokens that it sees by name, and what counts in generation where a call says nothing (sampling.DEFAULTS);
    `answers`: of one that judges pairs of texts, the id of yes, and that of no where it counts."""

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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (
                type(value) is not int or value < (field.name not in _MAY_BE_0) or value > 2**31 - 1
            ):
                raise FormatError(f"config: {field.name} must be a positive integer below 2**31, got {value!r}")
            if field.type is bool and type(value) is not bool:
                raise FormatError(f"config: {field.name} must be true or false, got {value!r}")
            if field.name in _CHOICES and value not in _CHOICES[field.name]:
                raise FormatError(f"config: {field.name} must be one of {_CHOICES[field.name]}, got {value!r}")
        for name in _REALS + _OPTIONAL_REALS:
            value = getattr(self, name)
            if (value is not None or name in _REALS) and not (type(value) in (int, float) and 0 < value < 1e12):
                raise FormatError(f"config: {name} must be a positive number, got {value!r}")
        self._check_layers()
        self._check_positions()
        width = self.embedding_width
        if width is not None and not (type(width) is int and 0 < width < 2**31 and not self.ends_normed):
            raise FormatError(f"config: embedding_width must be null or a size before an embed.norm, got {width!r}")
        self._check_pooling()
        self._check_text()
        self._check_labels()
        if self.num_heads % self.num_kv_heads:
            raise FormatError(
                f"config: num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )

    def _check_positions(self) -> None:
        check_scaling(self.rope_scaling, self.turned)
        check_bias(self.position_bias)
        if self.position_bias is not None and (self.causal or self.attention_cap):
            raise FormatError("config: position_bias goes with encoders alone, not with causal or a cap")
        if self.rope_theta is not None and self.turned % 2:
            raise FormatError(f"config: rotary positions need an even number of features, got {self.turned}")
        if self.position_offset and not (self.rope_theta is None and self.position_table):
            raise FormatError(f"config: position_offset {self.position_offset} needs a table, which there is not")
        if self.rope_scaling is not None and (self.rope_theta or 0) <= 1:
            raise FormatError(f"config: rope_scaling needs a rope_theta above 1, got {self.rope_theta!r}")

    def _check_layers(self) -> None:
        for name in ("local", "rotated"):
            given = getattr(self, name)
            if not isinstance(given, (tuple, list)) or not all(type(one) is bool for one in given):
                raise FormatError(f"config: {name} must be a list of true and false, got {given!r:.200}")
            if given and len(given) != self.num_layers:
                raise FormatError(f"config: {name} must have an entry for each of {self.num_layers} layers")
            object.__setattr__(self, name, tuple(given))  # JSON has lists only
        for name, most in (("window", 2**31 - 1), ("rotary_dim", self.head_dim)):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and 1 <= value <= most):
                raise FormatError(f"config: {name} must be a whole number from 1 to {most} or null, got {value!r}")
        if self.parallel and not self.norm_first:
            raise FormatError("config: parallel parts need norm_first")
        if self.embedding_norm and (not self.norm_first or self.parallel):
            raise FormatError("config: embedding_norm needs norm_first, and parts one after another")

    def _check_text(self) -> None:
        if not isinstance(self.eos_token_ids, (tuple, list)):
            raise FormatError(f"config: eos_token_ids must be a list of token ids, got {self.eos_token_ids!r}")
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))  # JSON has lists only
        if not isinstance(self.answers, (tuple, list)) or len(self.answers) > 2 or self.answers and not self.lm_head:
            raise FormatError(f"config: answers must be one or two token ids of a language model, got {self.answers!r}")
        object.__setattr__(self, "answers", tuple(self.answers))
        singles = ("bos_token_id", "pad_token_id")
        for name, ids in (
            *((name, (getattr(self, name),)) for name in singles),
            *((name, getattr(self, name)) for name in ("eos_token_ids", "answers")),
        ):
            for i in ids:
                if not (i is None and name in singles) and (type(i) is not int or not 0 <= i < self.vocab_size):
                    raise FormatError(f"config: {name}: {i!r} is no token id below {self.vocab_size}")
        for name in ("special_tokens", "prompts", "chat_template"):
            texts = getattr(self, name)
            if name == "chat_template" and isinstance(texts, str):
                continue
            if texts is not None and not (
                isinstance(texts, dict) and all(isinstance(text, str) for pair in texts.items() for text in pair)
            ):
                raise FormatError(f"config: {name} must map names to texts, got {texts!r:.200}")
        if self.default_prompt is not None and self.default_prompt not in (self.prompts or {}):
            raise FormatError(f"config: default_prompt {self.default_prompt!r:.200} is none of the prompts")
        if self.generation is not None:
            check_defaults(self.generation, self.vocab_size)

    def _check_pooling(self) -> None:
        if isinstance(self.pooling, list):  # JSON's
            object.__setattr__(self, "pooling", tuple(self.pooling))
        modes = self.modes
        if self.pooling is not None and not (modes and all(mode in MODES for mode in modes)):
            raise FormatError(f"config: pooling must be one of {MODES}, several of them or null, got {self.pooling!r}")
        if not isinstance(self.tail, (tuple, list)) or self.tail and self.pooling is None:
            raise FormatError(f"config: tail must be a list of modules after pooling, got {self.tail!r:.200}")
        check_tail(self.tail)
        object.__setattr__(self, "tail", tuple(self.tail))
        dim = self.truncate_dim
        if dim is not None and not (type(dim) is int and 0 < dim < 2**31):
            raise FormatError(f"config: truncate_dim must be a positive integer or null, got {dim!r}")

    def _check_labels(self) -> None:
        if not isinstance(self.labels, (tuple, list)) or not all(isinstance(label, str) for label in self.labels):
            raise FormatError(f"config: labels must be a list of strings, got {self.labels!r:.200}")
        object.__setattr__(self, "labels", tuple(self.labels))
        if bool(self.labels) != (self.classifier is not None or self.token_head == "labels"):
            raise FormatError(
                f"config: labels come with a classifier, or with a token_head 'labels'; got {self.labels!r:.200}, "
                f"{self.classifier!r} and {self.token_head!r}"
            )
        if (self.token_head == "vectors") != (self.multi_vector is not None):
            raise FormatError("config: multi_vector comes with a token_head 'vectors'")
        if self.multi_vector is not None:
            check_multi_vector(self.multi_vector)
        heads = (self.lm_head, self.classifier is not None, self.token_head is not None)
        if sum(heads) > 1 or (self.head_transform is not None and not self.masked_lm):
            raise FormatError(
                f"config: one head at most: lm_head {self.lm_head}, classifier {self.classifier!r}, token_head "
                f"{self.token_head!r}; head_transform {self.head_transform!r} goes before a masked language model's"
            )

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
        shapes |= bias_shapes(self.position_bias, self.num_heads)
        for i in range(self.num_layers):
            at = f"layers.{i}."
            shapes |= {
                at + "attention.query.weight": (q, h),
                at + "attention.key.weight": (kv, h),
                at + "attention.value.weight": (kv, h),
                at + "attention.output.weight": (h, q),
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
