"""config.json of each family as entries of Config. Must not know weights and their names."""

from ..errors import FormatError, UnsupportedError
from ..model.rope import longrope_attention, yarn_attention
from .defaults import DEFAULTS
from .generation import read_defaults, read_ids, read_padding
from .heads import architectures_of as _architectures
from .heads import read_classifier as _classifier
from .heads import read_head
from .keys import check_keys
from .untrusted import brief, flag_of, real_of, size_of

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
_ATTENTION = ("attention.query", "attention.key", "attention.value", "attention.output")
_WINDOWED = ("mistral", "qwen2", "qwen3")  # families that may let a token see only so many before it
_NAMES = {  # name of most families → the family's own
    "distilbert": {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
    "gpt2": {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
    },
}
# kind of scaling → each of its numbers and what counts where it is absent; None: it must be there
_ROPE: dict[str, dict[str, float | None]] = {
    "linear": {"factor": None},
    "llama3": {"factor": None, "low_freq_factor": None, "high_freq_factor": None},
    "yarn": {"factor": None, "beta_fast": 32.0, "beta_slow": 1.0},
    "longrope": {},
    "dynamic": {},
}


def read_config(values: dict, family: str, where: str) -> tuple[dict, tuple[str, ...] | None]:
    """Entries of Config from those of config.json, and which modules have biases (see names.check_weights). Raises
    FormatError, UnsupportedError naming the entry; messages start with `where`."""
    check_keys(values, "config.json", where)
    if family not in _WINDOWED and values.get("sliding_window") is not None:
        raise UnsupportedError(f"{where}: sliding_window {brief(values['sliding_window'])} is not implemented")
    usual = _NAMES.get(family, {})
    given = {own for name, own in usual.items() if name in values}
    values = {key: value for key, value in DEFAULTS[family].items() if key not in given} | values
    biases = None
    if family in ("llama", "qwen3"):
        biases = tuple(
            module
            for modules, key in ((_ATTENTION, "attention_bias"), (("ffn",), "mlp_bias"))
            if flag_of(values, key, where)
            for module in modules
        )
    entries = _READERS[family](values, where)
    entries |= read_head(values, entries, where)
    vocab_size = entries["vocab_size"]
    entries |= read_padding(values, vocab_size, where)
    if entries.get("lm_head") and entries.get("causal"):
        entries |= read_ids(values, vocab_size, where) | read_defaults(values, vocab_size, where)
    return entries, biases


def _bert(values: dict, where: str) -> dict:
    """Entries of Config of the BERT type."""
    return (
        _common(values, where)
        | {
            "type_vocab_size": size_of(values, "type_vocab_size", where, 2),
            "norm": "layer",
            "norm_eps": real_of(values, "layer_norm_eps", where, 1e-12),
            "activation": _activation(values, "gelu", where),
            "pooling": "mean",
        }
        | _classifier(values, "tanh", where)
    )


def _roberta(values: dict, where: str) -> dict:
    """As a BERT, but for positions, which are counted from after that of padding."""
    padding = 1 if values.get("pad_token_id") is None else values["pad_token_id"]
    entries = _bert(values, where)
    positions = entries["max_positions"] - padding - 1 if type(padding) is int and padding >= 0 else 0
    if positions < 1:
        raise FormatError(
            f"{where}: pad_token_id {brief(padding)} leaves no positions of max_position_embeddings "
            f"{entries['max_positions']}"
        )
    return entries | {"position_offset": padding + 1, "max_positions": positions, "max_length": positions}


def _distilbert(values: dict, where: str) -> dict:
    return (
        _bert(_renamed(values, _NAMES["distilbert"]), where)
        | {"type_vocab_size": 0}
        | _classifier(values, "relu", where)
    )


def _renamed(values: dict, names: dict[str, str]) -> dict:
    """With what a family calls otherwise (name of most families → its own) under the name of most."""
    return values | {usual: values[own] for usual, own in names.items() if own in values}


def _llama(values: dict, where: str) -> dict:
    """Entries of Config of the Llama type; what early checkpoints leave out counts as transformers counts it."""
    common, lm_head = _common(values, where), _lm_head(values, where)
    theta, scaling = _rope(values, common["max_positions"], where)
    positions = common["max_positions"]
    if scaling is not None and scaling["kind"] == "yarn":
        positions = max(positions, min(int(scaling["factor"] * scaling["original_positions"]), 2**31 - 1))
    common["max_positions"] = common["max_length"] = min(positions, _window(values, positions, where))
    return common | {
        "num_kv_heads": size_of(values, "num_key_value_heads", where, common["num_heads"]),
        "norm": "rms",
        "norm_eps": real_of(values, "rms_norm_eps", where, 1e-6),
        "norm_first": True,
        "activation": _activation(values, "silu", where),
        "gated": True,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "causal": True,
        "lm_head": lm_head,
        "tied": lm_head and flag_of(values, "tie_word_embeddings", where),
    }


def _qwen3(values: dict, where: str) -> dict:
    return _llama(values, where) | {"qk_norm": True}


def _gpt2(values: dict, where: str) -> dict:
    values = _renamed(values, _NAMES["gpt2"])
    for key, only in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if flag_of(values, key, where, only) is not only:
            raise UnsupportedError(f"{where}: {key} {not only} is not implemented, only {only}")
    if values.get("intermediate_size") is None:
        values["intermediate_size"] = 4 * size_of(values, "hidden_size", where)
    lm_head = _lm_head(values, where)
    return _common(values, where) | {
        "norm": "layer",
        "norm_eps": real_of(values, "layer_norm_epsilon", where, 1e-5),
        "norm_first": True,
        "activation": _activation(values, "gelu_new", where),
        "causal": True,
        "lm_head": lm_head,
        "tied": lm_head and flag_of(values, "tie_word_embeddings", where, True),
    }


def _window(values: dict, positions: int, where: str) -> int:
    """How many tokens see each other: texts within the sliding window are as if there were none, and longer ones are
    refused."""
    used = flag_of(values, "use_sliding_window", where, values["model_type"] == "mistral")
    return size_of(values, "sliding_window", where, positions) if used else positions


def _common(values: dict, where: str) -> dict:
    heads, hidden = size_of(values, "num_attention_heads", where), size_of(values, "hidden_size", where)
    if values.get("head_dim") is None and hidden % heads:
        raise FormatError(f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    positions = size_of(values, "max_position_embeddings", where)
    return {
        "family": values["model_type"],
        "vocab_size": size_of(values, "vocab_size", where),
        "hidden_size": hidden,
        "num_layers": size_of(values, "num_hidden_layers", where),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": size_of(values, "head_dim", where, hidden // heads),
        "intermediate_size": size_of(values, "intermediate_size", where),
        "max_positions": positions,
        "max_length": positions,
    }


def _lm_head(values: dict, where: str) -> bool:
    """LlamaModel has no head, LlamaForCausalLM has; where config.json does not say, the family is one of language
    models."""
    names = _architectures(values, where)
    return not names or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def _rope(values: dict, positions: int, where: str) -> tuple[float, dict | None]:
    """rope_theta and Config.rope_scaling, from rope_theta and rope_scaling, or from rope_parameters, where transformers
    5 writes both. `positions`: the longest text, where nothing says which the model was trained on before."""
    theta, scaling = real_of(values, "rope_theta", where, 10000.0), None
    for key in ("rope_scaling", "rope_parameters"):
        rope, at = values.get(key), f"{where}: {key}"
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise FormatError(f"{at} must be an object or null, got {brief(rope)}")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if rope.get("partial_rotary_factor") not in (None, 1.0):
            raise UnsupportedError(f"{at} {brief(rope)} is not implemented, only with a partial_rotary_factor of 1")
        if kind != "default" and (not isinstance(kind, str) or kind not in _ROPE):
            raise UnsupportedError(
                f"{at}: rope_type {brief(kind)} is not implemented; these are: default, {', '.join(_ROPE)}"
            )
        theta = real_of(rope, "rope_theta", at, theta)
        if values.get("original_max_position_embeddings") is not None:
            rope = rope | {"original_max_position_embeddings": values["original_max_position_embeddings"]}
        scaling = scaling if kind == "default" else _scaling(rope, kind, positions, at)
    return theta, scaling


def _scaling(rope: dict, kind: str, positions: int, at: str) -> dict | None:
    """positions: the longest text, max_position_embeddings."""
    if kind == "dynamic":
        return None  # within the positions trained on, where cq ends, it changes nothing
    if kind == "longrope":
        return _longrope(rope, positions, at)
    for name, default in _ROPE[kind].items():
        if default is None and rope.get(name) is None:
            raise FormatError(f"{at}: {name} must be a positive number, and is missing")
    numbers = {name: real_of(rope, name, at, default) for name, default in _ROPE[kind].items()}
    scaling: dict[str, object] = {"kind": kind, **numbers}
    if kind != "linear":
        scaling["original_positions"] = size_of(rope, "original_max_position_embeddings", at, positions)
    if kind == "yarn":
        if rope.get("truncate", True) is not True:
            raise UnsupportedError(f"{at}: truncate {brief(rope['truncate'])} is not implemented, only true")
        scaling["attention_factor"] = real_of(
            rope, "attention_factor", at, _attention_factor(rope, numbers["factor"], at)
        )
    return scaling


def _longrope(rope: dict, positions: int, at: str) -> dict:
    original = size_of(rope, "original_max_position_embeddings", at, positions)
    found = {"kind": "longrope", "original_positions": original}
    for theirs, ours in (("short_factor", "short_factors"), ("long_factor", "long_factors")):
        if not isinstance(rope.get(theirs), list):
            raise FormatError(f"{at}: {theirs} must be a list of positive numbers, got {brief(rope.get(theirs))}")
        found[ours] = rope[theirs]
    factor = real_of(rope, "factor", at, positions / original)
    usual = longrope_attention(factor, original)
    return found | {"attention_factor": real_of(rope, "attention_factor", at, usual)}


def _attention_factor(rope: dict, factor: float, at: str) -> float:
    """YaRN's factor of cosines and sines, where nothing says it."""
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return yarn_attention(factor, real_of(rope, "mscale", at, 1.0)) / yarn_attention(
            factor, real_of(rope, "mscale_all_dim", at, 1.0)
        )
    return yarn_attention(factor)


def _activation(values: dict, default: str, where: str) -> str:
    name = values.get("hidden_act", default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UnsupportedError(
            f"{where}: hidden_act {brief(name)} is not implemented; these are: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


_READERS = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "camembert": _roberta,
    "distilbert": _distilbert,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _qwen3,
    "gpt2": _gpt2,
}
