"""What a GGUF file's entries say of a model, as Config. Must not know where weights lie."""

import math
from typing import Any

from ..errors import FormatError, UnsupportedError, brief
from ..model.config import Config
from ..model.deferred import Deferred
from ..model.generate import TURN_ENDS
from .decoders import MOST_LAYERS, half_window
from .families import activation_of
from .gguf_architectures import ARCHITECTURES, Architecture, Windows
from .gguf_rotary import scaling_of
from .keys import check_keys
from .untrusted import flag_of, real_of, size_of

# keys of numbers → the entry of Config, whether it is the key's inverse, and the architectures that have it
_NUMBERS = {
    "embedding_scale": ("embedding_scale", False, ("granite",)),
    "residual_scale": ("residual_scale", False, ("granite",)),
    "logit_scale": ("logits_scale", True, ("granite",)),
    "attention.scale": ("attention_scale", False, ("granite",)),
    "attn_logit_softcapping": ("attention_cap", False, ("gemma2",)),
    "final_logit_softcapping": ("logits_cap", False, ("gemma2", "gemma3")),
}
_EPSILON = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
_SPECIAL = (3, 4)  # of tokenizer.ggml.token_type: control tokens, and those that a user defined
_POOLINGS = {0: None, 1: "mean", 2: "cls", 3: "last"}  # of pooling_type
_DENSE = ("dense_2", "dense_3")  # after pooling, one after another


def read_entries(values: dict, tensors: dict[str, Deferred], where: str) -> Config:
    """The configuration in a GGUF file's metadata; of tensors only shapes are read, and factors of rotary positions.
    What is absent counts as llama.cpp counts it. Raises FormatError, UnsupportedError naming the entry; messages start
    with `where`."""
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"{where}: general.architecture {brief(architecture)} is not implemented; these are: "
            + ", ".join(ARCHITECTURES)
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
    at, row = f"{where}: {architecture}", ARCHITECTURES[architecture]
    causal = row.fixed["causal"]
    if own.get("attention.causal", causal) != causal:
        raise UnsupportedError(
            f"{at}.attention.causal {brief(own['attention.causal'])} is not implemented, only {causal}"
        )
    if "token_embd.weight" not in tensors:
        raise FormatError(f"{where}: no tensor token_embd.weight")
    entries = row.fixed | _sizes(row, own, tensors, at) | _numbers(own, architecture, at)
    entries |= _parts(row, own, entries, tensors, architecture, at)
    if "rope_theta" in row.fixed:
        entries |= _rotary(row, own, entries, tensors, at)
    entries |= _windows(row, own, entries, at)
    padding = values.get("tokenizer.ggml.padding_token_id")
    if type(padding) is int and 0 <= padding < entries["vocab_size"]:
        entries["pad_token_id"] = padding
    if causal:
        entries |= {
            "tied": "output.weight" not in tensors,
            "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
            "eos_token_ids": _ends(values),
            "chat_template": _templates(values),
            "generation": _sampling(values),
        }
    else:
        entries |= {"type_vocab_size": _rows(tensors, "token_types.weight"), "tail": _tail(tensors)}
    if not causal or "pooling_type" in own:
        entries |= _pooled(own, at)
    try:
        return Config(**entries)
    except FormatError as error:
        raise FormatError(f"{where}: {str(error).removeprefix('config: ')}") from None


def _sizes(row: Architecture, own: dict, tensors: dict[str, Deferred], at: str) -> dict:
    heads, hidden = size_of(own, "attention.head_count", at), size_of(own, "embedding_length", at)
    head_dim = size_of(own, "attention.key_length", at, max(hidden // heads, 1))
    for key in ("attention.value_length", *(() if row.partial else ("rope.dimension_count",))):
        if size_of(own, key, at, head_dim) != head_dim:
            raise UnsupportedError(
                f"{at}.{key} {brief(own[key])} is not implemented, only that of the head, {head_dim}"
            )
    positions, layers = size_of(own, "context_length", at), size_of(own, "block_count", at)
    if layers > MOST_LAYERS:
        raise FormatError(f"{at}.block_count: {layers} layers; at most {MOST_LAYERS} are read")
    return {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": size_of(own, "attention.head_count_kv", at, heads),
        "head_dim": head_dim,
        "intermediate_size": size_of(own, "feed_forward_length", at),
        "max_positions": positions,
        "max_length": positions,
        "norm_eps": real_of(own, _EPSILON[row.fixed["norm"]], at, row.fixed["norm_eps"]),
    }


def _parts(
    row: Architecture, own: dict, entries: dict, tensors: dict[str, Deferred], architecture: str, at: str
) -> dict:
    """What the parts of a layer compute, and the scale of embeddings."""
    found: dict[str, Any] = {"embedding_scale": math.sqrt(entries["hidden_size"])} if row.scaled else {}
    if entries["num_layers"] == row.by_width:
        found["attention_scale"] = 1 / math.sqrt(entries["hidden_size"] / entries["num_heads"])
    parallel = flag_of(own, "use_parallel_residual", at, architecture == "gptneox")
    if parallel and architecture != "gptneox":
        raise UnsupportedError(f"{at}.use_parallel_residual True is not implemented for this architecture")
    found["parallel"] = parallel
    if architecture == "modern-bert":
        found["activation"] = activation_of(own, entries["activation"], at, "hidden_activation")
    if row.buckets:
        buckets = size_of(own, "attention.relative_buckets_count", at)
        found["position_bias"] = {"kind": "buckets", "buckets": buckets, "distance": 128}
        if "enc.blk.0.ffn_gate.weight" in tensors:
            found |= {"family": "t5-gated", "gated": True, "activation": "gelu_tanh"}
    return found


def _rotary(row: Architecture, own: dict, entries: dict, tensors: dict[str, Deferred], at: str) -> dict:
    turned, layers = entries["head_dim"], entries["num_layers"]
    if row.partial:
        turned = size_of(own, "rope.dimension_count", at, turned)
    found: dict[str, Any] = {
        "rope_theta": real_of(own, "rope.freq_base", at, row.fixed["rope_theta"]),
        "rope_scaling": scaling_of(own, tensors, entries["max_positions"], turned, at),
    }
    if row.unrotated:
        found["rotated"] = tuple((i + 1) % row.unrotated != 0 for i in range(layers))
    return found | ({"rotary_dim": turned} if row.partial else {})


def _windows(row: Architecture, own: dict, entries: dict, at: str) -> dict:
    """The window, which layers have it, and how fast their rotary positions turn."""
    key, windows = "attention.sliding_window", row.windows
    if windows is None:
        if own.get(key) and size_of(own, key, at) < entries["max_positions"]:
            raise UnsupportedError(f"{at}.{key} {own[key]} is not implemented")
        return {}
    if windows.width is None and not own.get(key):  # 0 says none
        return {}
    window = size_of(own, key, at, windows.width)
    local = _local(windows, own, entries["num_layers"], at)
    if not any(local):
        return {}
    found: dict[str, Any] = {"window": half_window(window, key, at) if windows.sides else window}
    found["local"] = () if all(local) else local
    theta = real_of(own, "rope.freq_base_swa", at, windows.theta or entries["rope_theta"])
    if windows.unscaled or theta != entries["rope_theta"]:
        found["local_rope_theta"] = theta
    return found | ({} if row.windowed is None else {"family": row.windowed})


def _local(windows: Windows, own: dict, layers: int, at: str) -> tuple[bool, ...]:
    """Which layers have the window: a truth value for each, or all but one of so many; 0: all."""
    key = "attention.sliding_window_pattern"
    given = own.get(key)
    if isinstance(given, list):
        if len(given) != layers or not all(one in (0, 1) for one in given):
            raise FormatError(f"{at}.{key} must have a truth value for each of {layers} layers, got {brief(given)}")
        return tuple(map(bool, given))
    period = size_of(own, key, at, windows.period, least=0)
    return tuple(not period or (i % period != 0 if windows.first else (i + 1) % period != 0) for i in range(layers))


def _tail(tensors: dict[str, Deferred]) -> tuple[dict, ...]:
    """The layers after pooling, as far as there are some."""
    found = [tensors[f"{name}.weight"] for name in _DENSE if f"{name}.weight" in tensors]
    return tuple({"kind": "dense", "features": tensor.shape[0], "activation": "identity"} for tensor in found)


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
