"""Rotary positions as config.json says them. Must not know families."""

from typing import NamedTuple

from ..errors import FormatError, UnsupportedError, brief
from ..model.rope import longrope_attention, yarn_attention
from .untrusted import real_of, size_of

# kind of scaling → each of its numbers and what counts where it is absent; None: it must be there
_ROPE: dict[str, dict[str, float | None]] = {
    "linear": {"factor": None},
    "ntk": {"factor": None},
    "llama3": {"factor": None, "low_freq_factor": None, "high_freq_factor": None},
    "yarn": {"factor": None, "beta_fast": 32.0, "beta_slow": 1.0},
    "longrope": {},
    "dynamic": {},
}


class Rope(NamedTuple):
    """Rotary positions: theta, Config.rope_scaling, and the share of a head's features that turn."""

    theta: float
    scaling: dict | None
    share: float


def rope_of(
    values: dict, positions: int, where: str, theta: float = 10000.0, share: float | None = None, kind: str = ""
) -> Rope:
    """From rope_theta, partial_rotary_factor and rope_scaling, or from rope_parameters, where transformers 5 writes all
    of them; of several kinds of layers those of `kind`. positions: the longest text, where nothing says which the model
    was trained on before. theta, share: where nothing says them; share None: the family knows no share but 1."""
    found = Rope(
        real_of(values, "rope_theta", where, theta),
        None,
        1.0 if share is None else real_of(values, "partial_rotary_factor", where, share),
    )
    said = {key: values[key] for key in ("rope_scaling", "rope_parameters") if values.get(key) is not None}
    for key, rope in said.items():
        at = f"{where}: {key}"
        if isinstance(rope, dict) and kind in rope:
            rope, at = rope[kind], f"{at}: {kind}"
        if not isinstance(rope, dict):
            raise FormatError(f"{at} must be an object or null, got {brief(rope)}")
        found = _said(found, rope, values, positions, share, at)
    if len(said) == 2 and said["rope_scaling"] != said["rope_parameters"]:
        raise UnsupportedError(
            f"{where}: rope_scaling {brief(said['rope_scaling'])} beside other rope_parameters is not implemented"
        )
    if found.share > 1 or share is None and values.get("partial_rotary_factor") not in (None, 1):
        wanted = values.get("partial_rotary_factor", found.share)
        raise UnsupportedError(f"{where}: partial_rotary_factor {brief(wanted)} is not implemented for this family")
    return found


def _said(found: Rope, rope: dict, values: dict, positions: int, share: float | None, at: str) -> Rope:
    """With what `rope`, one of the objects, says."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if share is None and rope.get("partial_rotary_factor") not in (None, 1.0):
        raise UnsupportedError(f"{at} {brief(rope)} is not implemented, only with a partial_rotary_factor of 1")
    kind = "longrope" if kind == "su" else kind
    if kind != "default" and (not isinstance(kind, str) or kind not in _ROPE):
        raise UnsupportedError(
            f"{at}: rope_type {brief(kind)} is not implemented; these are: default, {', '.join(_ROPE)}"
        )
    original = values.get("original_max_position_embeddings")
    scaled = rope if original is None else rope | {"original_max_position_embeddings": original}
    return Rope(
        real_of(rope, "rope_theta", at, found.theta),
        found.scaling if kind == "default" else _scaling(scaled, kind, positions, at),
        1.0 if share is None else real_of(rope, "partial_rotary_factor", at, found.share),
    )


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
    if kind == "ntk" and rope.get("mixed_b") is not None:
        raise UnsupportedError(f"{at} {brief(rope)} is not implemented, only without mixed_b")
    if kind not in ("linear", "ntk"):
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
