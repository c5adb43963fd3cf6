"""How fast rotary positions turn, and the ways to stretch them over texts longer than those trained on. Knows no
tables."""

import math

import numpy as np

from .. import functions
from ..errors import FormatError

SCALINGS = {  # kind → the numbers that it takes
    "linear": ("factor",),
    "ntk": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_positions"),
    "yarn": ("factor", "original_positions", "beta_fast", "beta_slow", "attention_factor"),
    "factors": ("factors",),
    "longrope": ("short_factors", "long_factors", "original_positions", "attention_factor"),
}


def check_scaling(scaling: dict | None, dim: int) -> None:
    """Raises FormatError unless `scaling` is None or {"kind": one of SCALINGS, and each of its numbers, positive};
    those called factors are lists of dim / 2."""
    if scaling is None:
        return
    if not isinstance(scaling, dict) or scaling.get("kind") not in SCALINGS:
        raise FormatError(
            f"config: rope_scaling must be null or have a kind of {', '.join(SCALINGS)}, got {scaling!r:.200}"
        )
    wanted = {"kind", *SCALINGS[scaling["kind"]]}
    if set(scaling) != wanted:
        raise FormatError(f"config: rope_scaling must have the entries {sorted(wanted)}, got {sorted(scaling)!r:.200}")
    for name in SCALINGS[scaling["kind"]]:
        several = name.endswith("factors")
        numbers = scaling[name] if several else [scaling[name]]
        if not isinstance(numbers, list) or not all(type(one) in (int, float) and 1e-6 < one < 1e12 for one in numbers):
            kind = "a list of positive numbers" if several else "a positive number"
            raise FormatError(f"config: rope_scaling: {name} must be {kind}, got {scaling[name]!r:.200}")
        if several and len(numbers) != dim // 2:
            raise FormatError(f"config: rope_scaling: {name} must be {dim // 2}, half of head_dim; got {len(numbers)}")
    if scaling["kind"] == "llama3" and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        raise FormatError(
            "config: rope_scaling: low_freq_factor must be less than high_freq_factor, got "
            f"{scaling['low_freq_factor']} and {scaling['high_freq_factor']}"
        )


def turning_point(scaling: dict | None) -> int | None:
    """The length of a sequence above which all its positions turn otherwise, or None where none does."""
    return int(scaling["original_positions"]) if scaling is not None and scaling["kind"] == "longrope" else None


def frequencies(dim: int, theta: float, scaling: dict | None = None, long: bool = False) -> tuple[np.ndarray, float]:
    """(radians by which each of dim / 2 pairs turns per position, float32; a factor of cosines and sines).

    Su et al. 2021. scaling (see check_scaling): "linear" divides all by `factor` (Chen et al. 2023); "ntk" by
    factor^((2 i + 2) / dim) of pair i, so that the first turn nearly as fast as before; "llama3" only
    those that turn less than low_freq_factor times in original_positions, leaves those above high_freq_factor, and goes
    from one to the other in between (Llama 3.1's model card); "yarn" likewise, along a ramp over the pairs from
    beta_fast to beta_slow turns, with cosines and sines times attention_factor (Peng et al. 2023); "factors" divides
    each by its own; "longrope" likewise, by others in sequences longer than its original_positions, `long`, with
    cosines and sines times attention_factor (Ding et al. 2024).

    Each step rounds to float32, as in common implementations. Powers are rounded from float64."""
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    if scaling is not None and scaling["kind"] == "ntk":
        turns = np.float32(1) / functions.power(theta * scaling["factor"], exponent).astype(np.float32)
        return turns / np.float32(functions.power(scaling["factor"], 2 / dim)), 1.0
    plain = np.float32(1) / functions.power(theta, exponent).astype(np.float32)
    if scaling is None:
        return plain, 1.0
    if scaling["kind"] == "factors":
        return plain / np.array(scaling["factors"], np.float32), 1.0
    if scaling["kind"] == "longrope":
        factors = np.array(scaling["long_factors" if long else "short_factors"], np.float32)
        exponent_of = functions.power(theta, exponent).astype(np.float32)
        return np.float32(1) / (factors * exponent_of), float(scaling["attention_factor"])
    slow = plain / np.float32(scaling["factor"])
    if scaling["kind"] == "linear":
        return slow, 1.0
    if scaling["kind"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_positions"] * plain.astype(np.float64) / (2 * math.pi)
        keep = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
        return slow * (1 - keep) + plain * keep, 1.0
    keep = (1 - _ramp(dim, theta, scaling)).astype(np.float32)
    return slow * (1 - keep) + plain * keep, float(scaling["attention_factor"])


def yarn_attention(factor: float, by: float = 1.0) -> float:
    """YaRN's factor of cosines and sines for positions stretched by `factor`, where nothing else says it (Peng et al.
    2023)."""
    return float(0.1 * by * functions.log(factor) + 1) if factor > 1 else 1.0


def longrope_attention(factor: float, original: int) -> float:
    """LongRoPE's factor of cosines and sines for positions stretched by `factor` from `original` on, where nothing else
    says it (Ding et al. 2024)."""
    return math.sqrt(1 + float(functions.log(factor) / functions.log(original))) if factor > 1 < original else 1.0


def _ramp(dim: int, theta: float, scaling: dict) -> np.ndarray:
    """YaRN's share of interpolation for each pair, 0 … 1."""

    def pair(turns: float) -> float:
        """The pair that turns so often in original_positions."""
        positions = float(functions.log(scaling["original_positions"] / (turns * 2 * math.pi)))
        return dim * positions / (2 * float(functions.log(theta)))

    first, last = max(math.floor(pair(scaling["beta_fast"])), 0), min(math.ceil(pair(scaling["beta_slow"])), dim - 1)
    end = last + (0.001 if first == last else 0)
    return np.clip((np.arange(dim // 2) - first) / (end - first), 0, 1)
