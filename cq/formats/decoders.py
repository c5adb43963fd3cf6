"""config.json of decoders as entries of Config: a row for each family of what its code says alone, and the keys that it
reads, which are those that it has defaults for. Must not know weights and their names."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ..errors import FormatError, UnsupportedError, brief
from .defaults import DEFAULTS
from .families import activation_of, basics, renamed
from .heads import architectures_of
from .rotary import rope_of
from .untrusted import flag_of, real_of, size_of

MOST_LAYERS = 1 << 16  # that a number alone may ask for
NAMES: dict[str, dict[str, str]] = {  # as families.NAMES
    "gpt2": {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
    },
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}
_NUMBERS: dict[str, tuple[str, Callable[[float], float]]] = {  # key → the entry of Config, and how it comes of it
    "embedding_multiplier": ("embedding_scale", float),
    "residual_multiplier": ("residual_scale", float),
    "logits_scaling": ("logits_scale", lambda value: 1 / value),
    "attention_multiplier": ("attention_scale", float),
    "query_pre_attn_scalar": ("attention_scale", lambda value: 1 / math.sqrt(value)),
    "attn_logit_softcapping": ("attention_cap", float),
    "final_logit_softcapping": ("logits_cap", float),
}
_TYPES = {"full_attention": False, "sliding_attention": True}
_LLAMA = {"norm": "rms", "norm_first": True, "gated": True}


@dataclass(frozen=True)
class _Row:
    """fixed: entries of Config that the family's code says alone. theta: of rotary positions, where nothing says it;
    share: of a head's features that turn, likewise; None: all do. windows: from config.json and its name, which layers
    have a window, by their number, where `layer_types` does not say it; None: none may. typed: whether layer_types is
    read. activation: the key that says it. scaled: embeddings are multiplied by the square root of their width.
    local_theta: of layers with a window, whose positions are never stretched, where nothing says it; None: as others'.
    stretches: the kinds of rope_scaling that the family has; None: all."""

    fixed: dict = field(default_factory=lambda: _LLAMA)
    theta: float = 10000.0
    share: float | None = None
    windows: Callable[[dict, str], Callable[[int], bool]] | None = None
    typed: bool = False
    activation: str = "hidden_act"
    scaled: bool = False
    local_theta: float | None = None
    stretches: tuple[str, ...] | None = None


def _decoder(row: _Row, values: dict, where: str) -> dict:
    """Entries of Config; what early checkpoints leave out counts as transformers counts it."""
    family = values["model_type"]
    values = renamed(values, NAMES.get(family, {}))
    entries, lm_head = basics(values, where) | row.fixed, _lm_head(values, where)
    positions, layers = entries["max_positions"], entries["num_layers"]
    rope = rope_of(values, positions, where, row.theta, row.share, "full_attention")
    scaling = rope.scaling
    if scaling is not None and row.stretches is not None and scaling["kind"] not in row.stretches:
        raise UnsupportedError(
            f"{where}: rope_type {scaling['kind']!r} is not implemented for {family} models, only "
            + ", ".join(row.stretches)
        )
    if scaling is not None and scaling["kind"] == "yarn":
        positions = max(positions, min(int(scaling["factor"] * scaling["original_positions"]), 2**31 - 1))
    said = {} if values.get(row.activation) is None else {"hidden_act": values[row.activation]}
    eps = ("rms_norm_eps", 1e-6) if entries["norm"] == "rms" else ("layer_norm_eps", 1e-5)
    entries |= {
        "max_positions": positions,
        "max_length": positions,
        "num_kv_heads": size_of(values, "num_key_value_heads", where, entries["num_heads"]),
        "norm_eps": real_of(values, eps[0], where, eps[1]),
        "activation": activation_of(said, "silu", where),
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
        "causal": True,
        "lm_head": lm_head,
        "tied": lm_head and flag_of(values, "tie_word_embeddings", where),
    }
    if row.share is not None:
        entries["rotary_dim"] = int(entries["head_dim"] * rope.share)
    if row.scaled:
        entries["embedding_scale"] = math.sqrt(entries["hidden_size"])
    for key, (entry, change) in _NUMBERS.items():
        if key in DEFAULTS[family] and values.get(key) is not None:
            entries[entry] = change(real_of(values, key, where, None))
    entries |= (rotated := _rotated(values, layers, where))
    entries |= _windows(row, values | rotated, layers, where)
    if row.local_theta is not None:
        entries["local_rope_theta"] = _local_theta(values, row.local_theta, positions, where)
    return entries | _sides(values, entries, where)


def _rotated(values: dict, layers: int, where: str) -> dict:
    """Which layers have rotary positions: 1 in no_rope_layers, or all but every so many."""
    if "no_rope_layer_interval" not in DEFAULTS[values["model_type"]]:
        return {}
    given = values.get("no_rope_layers")
    if given is None:
        interval = size_of(values, "no_rope_layer_interval", where)
        return {"rotated": tuple((i + 1) % interval != 0 for i in range(count_of(layers, where)))}
    if not isinstance(given, list) or len(given) != layers or not all(one in (0, 1) for one in given):
        raise FormatError(f"{where}: no_rope_layers must hold 0 or 1 for each of {layers} layers, got {brief(given)}")
    return {"rotated": tuple(map(bool, given))}


def _windows(row: _Row, values: dict, layers: int, where: str) -> dict:
    """The window, and which layers have it."""
    gated = "use_sliding_window" in DEFAULTS[values["model_type"]]
    if row.windows is None or values.get("sliding_window") is None:
        return {}
    if gated and not flag_of(values, "use_sliding_window", where):
        return {}
    window, local = size_of(values, "sliding_window", where), layer_types(values, layers, where) if row.typed else None
    if local is None:
        local = tuple(map(row.windows(values, where), range(count_of(layers, where))))
    if not any(local):
        return {}
    return {"window": window, "local": () if all(local) else local}


def layer_types(values: dict, layers: int, where: str) -> tuple[bool, ...] | None:
    """Which layers see a window alone, or None where layer_types does not say."""
    types = values.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers or not all(isinstance(one, str) for one in types):
        raise FormatError(f"{where}: layer_types must name each of {layers} layers, got {brief(types)}")
    if not all(one in _TYPES for one in types):
        raise UnsupportedError(f"{where}: layer_types {brief(types)}: only {' and '.join(_TYPES)} are implemented")
    return tuple(_TYPES[one] for one in types)


def _local_theta(values: dict, usual: float, positions: int, where: str) -> float:
    """Of layers with a window: what rope_parameters says of them, or rope_local_base_freq."""
    said = values.get("rope_parameters")
    nested = {"rope_parameters": said} if isinstance(said, dict) and "sliding_attention" in said else {}
    usual = real_of(values, "rope_local_base_freq", where, usual)
    return local_theta_of(nested, positions, where, usual)


def local_theta_of(values: dict, positions: int, where: str, usual: float) -> float:
    """theta of layers with a window, whose positions nothing may stretch; usual: where nothing says it."""
    rope = rope_of(values, positions, where, usual, None, "sliding_attention")
    if rope.scaling is not None:
        raise UnsupportedError(
            f"{where}: rope_scaling {brief(rope.scaling['kind'])} of layers with a window is not implemented"
        )
    return rope.theta


def half_window(window: int, key: str, where: str) -> int:
    """How many tokens a layer sees on either side whose window, the entry `key`, counts those of both."""
    if window < 2:
        raise UnsupportedError(f"{where}: {key} {window} is not implemented, only 2 and more")
    return window // 2


def _sides(values: dict, entries: dict, where: str) -> dict:
    """Of a decoder made an encoder, which sees both sides, and half of its window on either."""
    key = "use_bidirectional_attention"
    if not flag_of(values, key, where):
        return {}
    if key not in DEFAULTS[values["model_type"]]:
        raise UnsupportedError(f"{where}: {key} true is not implemented for {values['model_type']} models")
    window = entries.get("window")
    return {"causal": False, "lm_head": False, "tied": False, "pooling": "mean"} | (
        {} if window is None else {"window": half_window(window, "sliding_window", where)}
    )


def count_of(layers: int, where: str) -> int:
    if layers > MOST_LAYERS:
        raise FormatError(f"{where}: num_hidden_layers {layers}; at most {MOST_LAYERS} are read")
    return layers


def _gpt2(values: dict, where: str) -> dict:
    values = renamed(values, NAMES["gpt2"])
    for key, only in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if flag_of(values, key, where, only) is not only:
            raise UnsupportedError(f"{where}: {key} {not only} is not implemented, only {only}")
    if values.get("intermediate_size") is None:
        values["intermediate_size"] = 4 * size_of(values, "hidden_size", where)
    lm_head = _lm_head(values, where)
    return basics(values, where) | {
        "norm": "layer",
        "norm_eps": real_of(values, "layer_norm_epsilon", where, 1e-5),
        "norm_first": True,
        "activation": activation_of(values, "gelu_new", where),
        "causal": True,
        "lm_head": lm_head,
        "tied": lm_head and flag_of(values, "tie_word_embeddings", where, True),
    }


def _lm_head(values: dict, where: str) -> bool:
    """LlamaModel has no head, LlamaForCausalLM has; where config.json does not say, the family is one of language
    models."""
    names = architectures_of(values, where)
    return not names or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def _neox(values: dict, where: str) -> dict:
    return _decoder(_NEOX, values, where) | {"parallel": flag_of(values, "use_parallel_residual", where, True)}


def _every(values: dict, where: str) -> Callable[[int], bool]:
    return lambda i: True


def _from_a_layer(values: dict, where: str) -> Callable[[int], bool]:
    first = size_of(values, "max_window_layers", where, least=0)
    return lambda i: i >= first


def _but_each(interval: int) -> Callable[[dict, str], Callable[[int], bool]]:
    """All layers but each so many'th."""
    return lambda values, where: lambda i: (i + 1) % interval != 0


def _by_pattern(values: dict, where: str) -> Callable[[int], bool]:
    return _but_each(size_of(values, "sliding_window_pattern", where, 6))(values, where)


def _unrotated(values: dict, where: str) -> Callable[[int], bool]:
    return lambda i: not values["rotated"][i]


_NEOX = _Row({"norm": "layer", "norm_first": True}, share=0.25)
_GEMMA = _LLAMA | {"norm_outputs": True}
_OLMO = _LLAMA | {"norm_first": False, "norm_outputs": True, "qk_norm": True, "qk_norm_joint": True}
_ROWS = {
    "llama": _Row(),
    "mistral": _Row(windows=_every),
    "qwen2": _Row(windows=_from_a_layer, typed=True),
    "qwen3": _Row(_LLAMA | {"qk_norm": True}, windows=_from_a_layer, typed=True),
    "phi3": _Row(share=1.0, windows=_every, stretches=("longrope",)),
    "granite": _Row(),
    "smollm3": _Row(theta=2e6, windows=_unrotated, typed=True),
    "olmo2": _Row(_OLMO),
    "olmo3": _Row(_OLMO, theta=5e5, windows=_but_each(4), typed=True, local_theta=5e5),
    "gemma2": _Row(_GEMMA, windows=_but_each(2), typed=True, activation="hidden_activation", scaled=True),
    "gemma3_text": _Row(
        _GEMMA | {"qk_norm": True},
        theta=1e6,
        windows=_by_pattern,
        typed=True,
        activation="hidden_activation",
        scaled=True,
        local_theta=1e4,
    ),
}
WINDOWED = {family for family, row in _ROWS.items() if row.windows is not None}
READERS = {family: partial(_decoder, row) for family, row in _ROWS.items()} | {"gpt2": _gpt2, "gpt_neox": _neox}
