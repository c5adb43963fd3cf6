"""What a GGUF file's entries say of a model, as Config. Must not know where weights lie."""

import math
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError, brief
from ..model.config import Config
from ..model.deferred import Deferred
from ..model.generate import TURN_ENDS
from ..model.rope import yarn_attention
from .decoders import MOST_LAYERS
from .keys import check_keys
from .untrusted import real_of, size_of

_DECODER: dict[str, Any] = {"norm_first": True, "causal": True, "lm_head": True}
_LLAMA = _DECODER | {"norm": "rms", "norm_eps": 1e-6, "activation": "silu", "gated": True, "rope_theta": 10000.0}
# general.architecture → what it alone says, as entries of Config; epsilon and theta: where the file does not
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA | {"family": "llama"},
    "mistral3": _LLAMA | {"family": "mistral"},
    "qwen2": _LLAMA | {"family": "qwen2"},
    "qwen3": _LLAMA | {"family": "qwen3", "qk_norm": True},
    "granite": _LLAMA | {"family": "granite"},
    "olmo2": _LLAMA
    | {"family": "olmo2", "norm_first": False, "norm_outputs": True, "qk_norm": True, "qk_norm_joint": True},
    "gemma2": _LLAMA
    | {"family": "gemma2", "norm_outputs": True, "activation": "gelu_tanh", "attention_cap": 50.0, "logits_cap": 30.0},
    "gpt2": _DECODER | {"family": "gpt2", "norm": "layer", "norm_eps": 1e-5, "activation": "gelu_tanh"},
    "bert": {"family": "bert", "norm": "layer", "norm_eps": 1e-12, "activation": "gelu", "causal": False},
}
# keys of numbers → the entry of Config, whether it is the key's inverse, and the architectures that have it
_NUMBERS = {
    "embedding_scale": ("embedding_scale", False, ("granite",)),
    "residual_scale": ("residual_scale", False, ("granite",)),
    "logit_scale": ("logits_scale", True, ("granite",)),
    "attention.scale": ("attention_scale", False, ("granite",)),
    "attn_logit_softcapping": ("attention_cap", False, ("gemma2",)),
    "final_logit_softcapping": ("logits_cap", False, ("gemma2",)),
}
_EPSILON = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
_SPECIAL = (3, 4)  # of tokenizer.ggml.token_type: control tokens, and those that a user defined
_POOLINGS = {0: None, 1: "mean", 2: "cls", 3: "last"}  # of pooling_type
_SCALINGS = ("none", "linear", "yarn")  # of rope.scaling.type


def read_entries(values: dict, tensors: dict[str, Deferred], where: str) -> Config:
    """The configuration in a GGUF file's metadata; of tensors only shapes are read, and rope_freqs.weight. What is
    absent counts as llama.cpp counts it. Raises FormatError, UnsupportedError naming the entry; messages start with
    `where`."""
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        raise UnsupportedError(
            f"{where}: general.architecture {brief(architecture)} is not implemented; these are: "
            + ", ".join(_ARCHITECTURES)
        )
    if values.get("split.count", 1) not in (0, 1):
        raise UnsupportedError(
            f"{where}: one of {brief(values['split.count'])} files that a model was split into; "
            "merge them first: llama-gguf-split --merge"
        )
    check_keys(values, "GGUF", where, architecture)
    own = {
        key.removeprefix(architecture + "."): value
        for key, value in values.items()
        if key.startswith(architecture + ".")
    }
    at, known = f"{where}: {architecture}", _ARCHITECTURES[architecture]
    if own.get("attention.causal", known["causal"]) != known["causal"]:
        raise UnsupportedError(
            f"{at}.attention.causal {brief(own['attention.causal'])} is not implemented, only {known['causal']}"
        )
    heads, hidden = size_of(own, "attention.head_count", at), size_of(own, "embedding_length", at)
    head_dim = size_of(own, "attention.key_length", at, max(hidden // heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if size_of(own, key, at, head_dim) != head_dim:
            raise UnsupportedError(
                f"{at}.{key} {brief(own[key])} is not implemented, only that of the head, {head_dim}"
            )
    positions = size_of(own, "context_length", at)
    windowed = architecture == "gemma2"
    if (
        not windowed
        and own.get("attention.sliding_window")
        and size_of(own, "attention.sliding_window", at) < positions
    ):
        raise UnsupportedError(f"{at}.attention.sliding_window {own['attention.sliding_window']} is not implemented")
    if "token_embd.weight" not in tensors:
        raise FormatError(f"{where}: no tensor token_embd.weight")
    entries = known | {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "num_layers": size_of(own, "block_count", at),
        "num_heads": heads,
        "num_kv_heads": size_of(own, "attention.head_count_kv", at, heads),
        "head_dim": head_dim,
        "intermediate_size": size_of(own, "feed_forward_length", at),
        "max_positions": positions,
        "max_length": positions,
        "norm_eps": real_of(own, _EPSILON[known["norm"]], at, known["norm_eps"]),
    }
    entries |= _numbers(own, architecture, at)
    if windowed:
        entries |= _gemma2(own, entries, at)
    padding = values.get("tokenizer.ggml.padding_token_id")
    if type(padding) is int and 0 <= padding < entries["vocab_size"]:
        entries["pad_token_id"] = padding
    if "rope_theta" in known:
        entries |= {
            "rope_theta": real_of(own, "rope.freq_base", at, known["rope_theta"]),
            "rope_scaling": _scaling(own, tensors, positions, head_dim, at),
        }
    if known["causal"]:
        entries |= {
            "tied": "output.weight" not in tensors,
            "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
            "eos_token_ids": _ends(values),
            "chat_template": _templates(values),
            "generation": _sampling(values),
        }
    else:
        entries |= _pooled(own, at) | {"type_vocab_size": _rows(tensors, "token_types.weight")}
    try:
        return Config(**entries)
    except FormatError as error:
        raise FormatError(f"{where}: {str(error).removeprefix('config: ')}") from None


def _numbers(own: dict, architecture: str, at: str) -> dict:
    """Multipliers and caps; 0 says none."""
    found = {}
    for key, (entry, inverse, architectures) in _NUMBERS.items():
        if not own.get(key) or own[key] == 1 and architecture not in architectures:
            continue
        if architecture not in architectures:
            raise UnsupportedError(f"{at}.{key} {brief(own[key])} is not implemented for this architecture")
        value = real_of(own, key, at, None)
        found[entry] = 1 / value if inverse else value
    return found


def _gemma2(own: dict, entries: dict, at: str) -> dict:
    """Every other layer has a window; the scale of scores of the model of 46 layers is that of its width, as llama.cpp
    has them."""
    layers, width = entries["num_layers"], entries["hidden_size"]
    if layers > MOST_LAYERS:
        raise FormatError(f"{at}.block_count {layers}; at most {MOST_LAYERS} are read")
    return {
        "embedding_scale": math.sqrt(width),
        "attention_scale": 1 / math.sqrt(width / entries["num_heads"]) if layers == 46 else None,
        "window": size_of(own, "attention.sliding_window", at, 4096),
        "local": tuple(i % 2 == 0 for i in range(layers)),
    }


def _rows(tensors: dict[str, Deferred], name: str) -> int:
    return tensors[name].shape[0] if name in tensors else 0


def _pooled(own: dict, at: str) -> dict:
    """An encoder pools by mean where the file says nothing, and embeddings are normalized, as llama.cpp's own tools
    do."""
    kind = own.get("pooling_type", 1)
    if type(kind) is not int or kind not in _POOLINGS:
        raise UnsupportedError(
            f"{at}.pooling_type {brief(kind)} is not implemented; these are: "
            + ", ".join(f"{i} ({name or 'none'})" for i, name in _POOLINGS.items())
        )
    return {"pooling": _POOLINGS[kind], "normalize": _POOLINGS[kind] is not None}


def _ends(values: dict) -> tuple:
    """Ids that end a text or a turn of a conversation; of special tokens also those whose text says so."""
    found = [values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens, kinds = (values.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if isinstance(tokens, list) and isinstance(kinds, list):
        pairs = enumerate(zip(tokens, kinds))
        found += [i for i, (token, kind) in pairs if kind in _SPECIAL and token in TURN_ENDS]
    return tuple(i for n, i in enumerate(found) if i is not None and i not in found[:n])


def _templates(values: dict) -> str | dict | None:
    """The chat template, or several by name."""
    first, begin = values.get("tokenizer.chat_template"), "tokenizer.chat_template."
    named = {key.removeprefix(begin): value for key, value in values.items() if key.startswith(begin)}
    if named and first is not None:
        return {"default": first} | named
    return named or first


def _sampling(values: dict) -> dict | None:
    """Defaults of generation, as far as the file says them."""
    names = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
    found = {ours: values.get(f"general.sampling.{theirs}") for theirs, ours in names.items()}
    found = {name: value for name, value in found.items() if value is not None}
    return found | {"do_sample": True} if found.get("temperature") else found or None


def _scaling(own: dict, tensors: dict[str, Deferred], positions: int, head_dim: int, at: str) -> dict | None:
    """Config.rope_scaling. A llama3 scaling lies in the file as the factors that it comes to, one per frequency."""
    kind, factor = own.get("rope.scaling.type", "linear"), 1.0
    if kind not in _SCALINGS:
        raise UnsupportedError(
            f"{at}.rope.scaling.type {brief(kind)} is not implemented; these are: {', '.join(_SCALINGS)}"
        )
    for key in ("rope.scale_linear", "rope.scaling.factor"):
        if kind != "none" and own.get(key):  # 0 says none
            factor = real_of(own, key, at, 1.0)
    attention = real_of(own, "rope.scaling.attn_factor", at, 1.0)
    if kind != "yarn" and attention != 1:
        raise UnsupportedError(f"{at}.rope.scaling.attn_factor {attention} is not implemented, only 1 without yarn")
    if "rope_freqs.weight" in tensors:
        if factor != 1 or kind == "yarn":
            raise UnsupportedError(f"{at}.rope.scaling.type {kind} with rope_freqs.weight is not implemented")
        return _factors(tensors["rope_freqs.weight"], head_dim, at)
    if kind == "yarn":
        return _yarn(own, factor, attention, positions, at)
    return None if factor == 1 else {"kind": "linear", "factor": factor}


def _yarn(own: dict, factor: float, attention: float, positions: int, at: str) -> dict:
    key, by = "rope.scaling.yarn_attn_factor", own.get("rope.scaling.yarn_log_multiplier")
    whole = yarn_attention(factor)
    if by:  # 0 says none
        whole /= yarn_attention(factor, real_of(own, "rope.scaling.yarn_log_multiplier", at, 1.0))
    whole *= attention
    # converters and llama.cpp read this entry in different ways
    if abs(real_of(own, key, at, whole) / whole - 1) > 1e-4:
        raise UnsupportedError(
            f"{at}.{key} {brief(own[key])} is not implemented, only {whole:.6g}, which the factor asks for"
        )
    return {
        "kind": "yarn",
        "factor": factor,
        "attention_factor": whole,
        "original_positions": size_of(own, "rope.scaling.original_context_length", at, positions),
        "beta_fast": real_of(own, "rope.scaling.yarn_beta_fast", at, 32.0),
        "beta_slow": real_of(own, "rope.scaling.yarn_beta_slow", at, 1.0),
    }


def _factors(tensor: Deferred, head_dim: int, at: str) -> dict:
    if tensor.shape != (head_dim // 2,):
        raise FormatError(
            f"{at}: rope_freqs.weight has shape {tensor.shape}; wanted {(head_dim // 2,)}, half of a head"
        )
    factors = tensor.read()
    if not np.all((factors > 1e-6) & (factors < 1e12)):  # NaN is neither
        raise FormatError(f"{at}: rope_freqs.weight must be positive numbers, got {brief(factors.tolist())}")
    return {"kind": "factors", "factors": factors.tolist()}
