"""Whether the values of a configuration are of their types and fit one another."""

from dataclasses import fields
from typing import TYPE_CHECKING

from ..errors import FormatError
from .convolution import check_convolution
from .multi_vector import check_multi_vector
from .pooling import MODES, check_tail
from .position_bias import check_bias
from .rope import check_scaling
from .sampling import check_defaults

if TYPE_CHECKING:
    from .config import Config

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
SMALLEST_BLOCK = 16  # of a Hadamard transform
_MAY_BE_0 = ("type_vocab_size", "position_offset")
_REALS = ("norm_eps", "embedding_scale", "residual_scale", "logits_scale")
_OPTIONAL_REALS = ("rope_theta", "local_rope_theta", "attention_scale", "attention_cap", "logits_cap")


def check_config(config: "Config") -> None:
    """Raises FormatError for a value of another type, out of range, or that does not go with another one. Lists, which
    JSON has in place of tuples, become tuples."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is int and (type(value) is not int or value < (field.name not in _MAY_BE_0) or value > 2**31 - 1):
            raise FormatError(f"config: {field.name} must be a positive integer below 2**31, got {value!r}")
        if field.type is bool and type(value) is not bool:
            raise FormatError(f"config: {field.name} must be true or false, got {value!r}")
        if field.name in _CHOICES and value not in _CHOICES[field.name]:
            raise FormatError(f"config: {field.name} must be one of {_CHOICES[field.name]}, got {value!r}")
    for name in _REALS + _OPTIONAL_REALS:
        value = getattr(config, name)
        if (value is not None or name in _REALS) and not (type(value) in (int, float) and 0 < value < 1e12):
            raise FormatError(f"config: {name} must be a positive number, got {value!r}")
    _check_layers(config)
    _check_positions(config)
    _check_transforms(config)
    width = config.embedding_width
    if width is not None and not (type(width) is int and 0 < width < 2**31 and not config.ends_normed):
        raise FormatError(f"config: embedding_width must be null or a size before an embed.norm, got {width!r}")
    _check_pooling(config)
    _check_text(config)
    _check_labels(config)
    if config.num_heads % config.num_kv_heads:
        raise FormatError(
            f"config: num_heads {config.num_heads} is not a multiple of num_kv_heads {config.num_kv_heads}"
        )


def _check_layers(config: "Config") -> None:
    for name in ("local", "rotated"):
        given = getattr(config, name)
        if not isinstance(given, (tuple, list)) or not all(type(one) is bool for one in given):
            raise FormatError(f"config: {name} must be a list of true and false, got {given!r:.200}")
        if given and len(given) != config.num_layers:
            raise FormatError(f"config: {name} must have an entry for each of {config.num_layers} layers")
        object.__setattr__(config, name, tuple(given))  # JSON has lists only
    for name, most in (("window", 2**31 - 1), ("rotary_dim", config.head_dim)):
        value = getattr(config, name)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise FormatError(f"config: {name} must be a whole number from 1 to {most} or null, got {value!r}")
    if config.parallel and not config.norm_first:
        raise FormatError("config: parallel parts need norm_first")
    if config.embedding_norm and (not config.norm_first or config.parallel):
        raise FormatError("config: embedding_norm needs norm_first, and parts one after another")


def _check_transforms(config: "Config") -> None:
    """The sizes of blocks of Hadamard transforms."""
    for name, width, possible, what in (
        ("hadamard", config.intermediate_size, config.gated, "beside gates"),
        ("head_hadamard", config.head_dim, config.rope_theta is not None, "beside rotary positions"),
    ):
        block = getattr(config, name)
        if block is None:
            continue
        if not (possible and type(block) is int and block >= SMALLEST_BLOCK and not block & (block - 1)):
            raise FormatError(
                f"config: {name} must be null or a power of two from {SMALLEST_BLOCK} {what}, got {block!r:.100}"
            )
        if width % block:
            raise FormatError(f"config: {name} {block} does not divide {width} features")


def _check_positions(config: "Config") -> None:
    check_scaling(config.rope_scaling, config.turned)
    check_bias(config.position_bias)
    check_convolution(config.convolution, config.hidden_size)
    if config.convolution is not None and (config.causal or config.ends_normed or config.multi_vector is not None):
        raise FormatError("config: convolution goes with encoders whose norms follow sums, and without multi_vector")
    if config.position_bias is not None and (config.causal or config.attention_cap):
        raise FormatError("config: position_bias goes with encoders alone, not with causal or a cap")
    if config.rope_theta is not None and config.turned % 2:
        raise FormatError(f"config: rotary positions need an even number of features, got {config.turned}")
    if config.position_offset and not (config.rope_theta is None and config.position_table):
        raise FormatError(f"config: position_offset {config.position_offset} needs a table, which there is not")
    if config.rope_scaling is not None and (config.rope_theta or 0) <= 1:
        raise FormatError(f"config: rope_scaling needs a rope_theta above 1, got {config.rope_theta!r}")


def _check_pooling(config: "Config") -> None:
    if isinstance(config.pooling, list):  # JSON's
        object.__setattr__(config, "pooling", tuple(config.pooling))
    modes = config.modes
    if config.pooling is not None and not (modes and all(mode in MODES for mode in modes)):
        raise FormatError(f"config: pooling must be one of {MODES}, several of them or null, got {config.pooling!r}")
    if not isinstance(config.tail, (tuple, list)) or config.tail and config.pooling is None:
        raise FormatError(f"config: tail must be a list of modules after pooling, got {config.tail!r:.200}")
    check_tail(config.tail)
    object.__setattr__(config, "tail", tuple(config.tail))
    dim = config.truncate_dim
    if dim is not None and not (type(dim) is int and 0 < dim < 2**31):
        raise FormatError(f"config: truncate_dim must be a positive integer or null, got {dim!r}")


def _check_text(config: "Config") -> None:
    if not isinstance(config.eos_token_ids, (tuple, list)):
        raise FormatError(f"config: eos_token_ids must be a list of token ids, got {config.eos_token_ids!r}")
    object.__setattr__(config, "eos_token_ids", tuple(config.eos_token_ids))  # JSON has lists only
    answers = config.answers
    if not isinstance(answers, (tuple, list)) or len(answers) > 2 or answers and not config.lm_head:
        raise FormatError(f"config: answers must be one or two token ids of a language model, got {answers!r}")
    object.__setattr__(config, "answers", tuple(answers))
    singles = ("bos_token_id", "pad_token_id")
    for name, ids in (
        *((name, (getattr(config, name),)) for name in singles),
        *((name, getattr(config, name)) for name in ("eos_token_ids", "answers")),
    ):
        for i in ids:
            if not (i is None and name in singles) and (type(i) is not int or not 0 <= i < config.vocab_size):
                raise FormatError(f"config: {name}: {i!r} is no token id below {config.vocab_size}")
    for name in ("special_tokens", "prompts", "chat_template"):
        texts = getattr(config, name)
        if name == "chat_template" and isinstance(texts, str):
            continue
        if texts is not None and not (
            isinstance(texts, dict) and all(isinstance(text, str) for pair in texts.items() for text in pair)
        ):
            raise FormatError(f"config: {name} must map names to texts, got {texts!r:.200}")
    if config.default_prompt is not None and config.default_prompt not in (config.prompts or {}):
        raise FormatError(f"config: default_prompt {config.default_prompt!r:.200} is none of the prompts")
    if config.generation is not None:
        check_defaults(config.generation, config.vocab_size)


def _check_labels(config: "Config") -> None:
    if not isinstance(config.labels, (tuple, list)) or not all(isinstance(label, str) for label in config.labels):
        raise FormatError(f"config: labels must be a list of strings, got {config.labels!r:.200}")
    object.__setattr__(config, "labels", tuple(config.labels))
    if bool(config.labels) != (config.classifier is not None or config.token_head == "labels"):
        raise FormatError(
            f"config: labels come with a classifier, or with a token_head 'labels'; got {config.labels!r:.200}, "
            f"{config.classifier!r} and {config.token_head!r}"
        )
    if (config.token_head == "vectors") != (config.multi_vector is not None):
        raise FormatError("config: multi_vector comes with a token_head 'vectors'")
    if config.multi_vector is not None:
        check_multi_vector(config.multi_vector)
    heads = (config.lm_head, config.classifier is not None, config.token_head is not None)
    if sum(heads) > 1 or (config.head_transform is not None and not config.masked_lm):
        raise FormatError(
            f"config: one head at most: lm_head {config.lm_head}, classifier {config.classifier!r}, token_head "
            f"{config.token_head!r}; head_transform {config.head_transform!r} goes before a masked language model's"
        )
