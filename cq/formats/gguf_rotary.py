"""How a GGUF file stretches rotary positions, as Config.rope_scaling. Must not know architectures."""

import numpy as np

from ..errors import FormatError, UnsupportedError, brief
from ..model.deferred import Deferred
from ..model.rope import yarn_attention
from .untrusted import real_of, size_of

_SCALINGS = ("none", "linear", "yarn", "longrope")  # of rope.scaling.type
_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")


def scaling_of(own: dict, tensors: dict[str, Deferred], positions: int, turned: int, at: str) -> dict | None:
    """Config.rope_scaling. A llama3 scaling lies in the file as the factors that it comes to, one per frequency, and a
    longrope as the factors of short and of long texts. turned: features of a head that turn."""
    kind, factor = own.get("rope.scaling.type", "linear"), 1.0
    if kind not in _SCALINGS:
        raise UnsupportedError(
            f"{at}.rope.scaling.type {brief(kind)} is not implemented; these are: {', '.join(_SCALINGS)}"
        )
    for key in ("rope.scale_linear", "rope.scaling.factor"):
        if kind != "none" and own.get(key):  # 0 says none
            factor = real_of(own, key, at, 1.0)
    attention = real_of(own, "rope.scaling.attn_factor", at, 1.0)
    if kind == "longrope" or any(name in tensors for name in _FACTORS):
        return _longrope(own, tensors, kind, factor, attention, positions, turned, at)
    if kind != "yarn" and attention != 1:
        raise UnsupportedError(f"{at}.rope.scaling.attn_factor {attention} is not implemented, only 1 without yarn")
    if "rope_freqs.weight" in tensors:
        if factor != 1 or kind == "yarn":
            raise UnsupportedError(f"{at}.rope.scaling.type {kind} with rope_freqs.weight is not implemented")
        return {"kind": "factors", "factors": _factors(tensors, "rope_freqs.weight", turned, at)}
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


def _longrope(
    own: dict,
    tensors: dict[str, Deferred],
    kind: str,
    factor: float,
    attention: float,
    positions: int,
    turned: int,
    at: str,
) -> dict:
    missing = [name for name in _FACTORS if name not in tensors]
    if missing:
        raise UnsupportedError(f"{at}.rope.scaling.type 'longrope' without {missing[0]} is not implemented")
    if kind == "yarn" or factor != 1 or "rope_freqs.weight" in tensors:
        raise UnsupportedError(
            f"{at}.rope.scaling.type {kind!r} with factor {factor:g} beside {_FACTORS[0]} is not implemented"
        )
    short, long = (_factors(tensors, name, turned, at) for name in _FACTORS)
    return {
        "kind": "longrope",
        "short_factors": short,
        "long_factors": long,
        "original_positions": size_of(own, "rope.scaling.original_context_length", at, positions),
        "attention_factor": attention,
    }


def _factors(tensors: dict[str, Deferred], name: str, turned: int, at: str) -> list[float]:
    """What each pair of features is divided by."""
    tensor, wanted = tensors[name], (turned // 2,)
    if tensor.shape != wanted:
        raise FormatError(f"{at}: {name} has shape {tensor.shape}; wanted {wanted}, half of a head")
    factors = tensor.read()
    if not np.all((factors > 1e-6) & (factors < 1e12)):  # NaN is neither
        raise FormatError(f"{at}: {name} must be positive numbers, got {brief(factors.tolist())}")
    found: list[float] = factors.tolist()
    return found
