"""Static codes with scales and shifts of each feature's own, chosen by the error of the layers that read them, and biases that take
back what error is constant. Runs no model: it works on the tokens that calibration kept.

A feature's scale moves into the rows of the reading layers' weights (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438) and its shift
into their biases (Outlier Suppression+, Wei et al. 2023, arXiv:2304.09145). What makes the codes takes the scales along when it
rounds, be it a norm, an activation or a gating, so its float32 result, which BERT's residual stream goes on with, stays as it is,
and neither costs any work at inference. What attention hands on comes from values whose scales cancel in the same way. Biases are
corrected as by Nagel et al. 2019 (arXiv:1906.04721), from the kept tokens."""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import _core, affine
from .calibrate import Calibration
from .model import Transformer
from .model.activation import Columns, Fixed, Smoothed
from .model.linear import Linear, quantize_weight
from .observers.tokens import Tokens
from .strategies import Static

STRENGTHS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # the exponent of a feature's range in its scale; the rest is its weights'
CLIPS = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the whole range, tried after 1
NARROWEST = 0.01  # a feature's half range is at least this share of the widest one's: what calibration saw at rest may move
LARGEST_SHIFT = 2.0 ** 13  # in half ranges, so that zero points stay below affine.FARTHEST


class Fold(NamedTuple):
    """How a layer reads codes. form: its input's; factor: what multiplies each input's weights (k,), or None; offset: what is added
    to its bias (n,), float64."""
    form: Fixed | Smoothed
    factor: np.ndarray | None
    offset: np.ndarray

    def bias(self, bias: np.ndarray | None) -> np.ndarray | None:
        """The layer's bias with the offset in it."""
        return bias if not self.offset.any() else (self.offset if bias is None else bias + self.offset).astype(np.float32)


class Plan(NamedTuple):
    """layers: name → Fold. values: name of a block → the form of its attention's values."""
    layers: dict[str, Fold]
    values: dict[str, Smoothed]


def plan(model: Transformer, calibration: Calibration, strategy: Static, form_at: Callable[[str], Fixed],
         chosen: Callable[[str], bool]) -> Plan:
    """What to fold where, for the layers that are `chosen` by name; form_at(site) gives the plain form of a place."""
    found = Plan({}, {})
    scheme = strategy.scheme
    if not scheme.weight_symmetric or scheme.weight_granularity != "per_channel":
        return found  # a weight's zero point or a scale shared by all outputs would undo what features of their own gain

    def add(site: str, layers: dict[str, Linear], values: tuple[Tokens, int] | None = None) -> Smoothed | None:
        layers = {name: layer for name, layer in layers.items() if chosen(name) and layer.shape[0] <= _core.MAX_K}
        tokens = calibration.tokens.get(site)
        if not layers or tokens is None:
            return None
        search = _Search(tokens, [layer.weight for layer in layers.values()], form_at(site))
        best = search.plain()
        if strategy.smooth:
            if values is not None:
                best = search.best(best, *values)
            elif strategy.residual == "float32" or model.config.norm_first or not site.endswith(".input"):
                best = search.best(best)
        offsets = np.split(search.offset(best), np.cumsum([layer.shape[1] for layer in layers.values()]))
        for name, offset in zip(layers, offsets):
            found.layers[name] = Fold(best.form, best.factor, offset)
        return best.value

    for block in model.blocks:
        attention, ffn, name = block.attention, block.ffn, block.name + ".attention."
        inputs = {name + part: getattr(attention, part) for part in ("query", "key", "value")}
        add(name + "input", inputs)
        values = calibration.tokens.get(name + "value")
        in_codes = scheme.attention == "int8" and all(map(chosen, inputs)) and attention.query.shape[0] <= _core.MAX_K
        grouped = (values, attention.heads // attention.kv_heads, attention.dim) if in_codes and values else None
        value = add(name + "context", {name + "output": attention.output}, grouped)
        if value is not None:
            found.values[block.name] = value
        name = block.name + ".ffn."
        add(name + "input", {name + part: getattr(ffn, part) for part in ("gate", "up") if getattr(ffn, part) is not None})
        add(name + "hidden", {name + "down": ffn.down})
    if model.head is not None and not model.config.tied:
        add("head.input", {"head": model.head})
    return found


class _Candidate(NamedTuple):
    """Codes q of one place for which sum of weight * factor * (form's scale) * (q - form's zero point) is what a layer reads, but
    for the constant `shift` (k,) of the inputs."""
    form: Fixed | Smoothed
    factor: np.ndarray | None
    shift: np.ndarray
    value: Smoothed | None = None


class _Search:
    """One place: its kept tokens, and the weights (n, k) of the layers that read it, one above the other."""

    def __init__(self, tokens: Tokens, weights: list[np.ndarray], plain: Fixed):
        self.x, self.lo, self.hi = tokens.rows, tokens.lo.astype(np.float64), tokens.hi.astype(np.float64)
        self.weight = np.concatenate(weights)
        self.y = self.x @ self.weight.T
        self.form = plain
        self.middle = 128 if plain.dtype == "uint8" else 0  # what codes are shifted to
        self.reach = np.abs(self.weight).max(0).astype(np.float64)
        self.reach = np.maximum(self.reach, 1e-3 * self.reach.max() or 1.0)

    def plain(self) -> _Candidate:
        return _Candidate(self.form, None, np.zeros(len(self.lo)))

    def best(self, best: _Candidate, *values) -> _Candidate:
        """The candidate of least error, `best` among them: first over strengths, then over clipped ranges."""
        make = self._context if values else self._inputs
        least, strength = self.error(best), None
        tried = [(s, 1.0) for s in STRENGTHS]
        while tried:
            s, clip = tried.pop(0)
            candidate = make(s, clip, *values)
            error = self.error(candidate)
            if error < least:
                least, best, strength = error, candidate, s
            if not tried and clip == 1.0 and strength is not None:
                tried = [(strength, c) for c in CLIPS]
        return best

    def _inputs(self, strength: float, clip: float) -> _Candidate:
        scale, columns, shift = self._columns(self.lo, self.hi, self.reach, strength, clip)
        form = Smoothed(self.form.dtype, self.form.symmetric, scale, self.middle, columns)
        return _Candidate(form, columns.scale[0] / np.float64(scale), shift)

    def _context(self, strength: float, clip: float, values: Tokens, group: int, dim: int) -> _Candidate:
        """What attention mixes from values: `group` query heads share one of the values', `dim` wide."""
        def of_values(x):  # the largest over the heads that share them
            return x.reshape(-1, group, dim).max(1).reshape(-1)

        def of_context(x):
            return np.repeat(x.reshape(-1, 1, dim), group, 1).reshape(-1)

        lo, hi = values.lo.astype(np.float64), values.hi.astype(np.float64)
        scale, columns, shift = self._columns(lo, hi, of_values(self.reach), strength, 1.0)
        value = Smoothed(self.form.dtype, self.form.symmetric, scale, self.middle, columns)
        factor, shift = of_context(columns.scale[0] / np.float64(scale)), of_context(shift)
        ends = [((end - shift) / factor) for end in (self.lo, self.hi)]
        own, zero = affine.qparams(clip * ends[0].min(), clip * ends[1].max(), self.form.dtype, self.form.symmetric)
        form = Fixed(self.form.dtype, self.form.symmetric, float(own), int(zero))
        return _Candidate(form, factor, shift, value)

    def _columns(self, lo, hi, reach, strength: float, clip: float) -> tuple[float, Columns, np.ndarray]:
        """(the scale that products see, the features' own, their shifts)."""
        center = np.zeros(len(lo)) if self.form.symmetric else (lo + hi) / 2
        half = np.maximum(hi - center, center - lo)
        half = np.maximum(half, max(NARROWEST * half.max(), float(affine.SMALLEST_SCALE) * 2.0 ** 20))
        half = np.maximum(half, np.abs(center) / LARGEST_SHIFT)
        share = half ** strength * reach ** (strength - 1)
        scale = np.float32((half / share).max() * clip / 127)
        own = (share * np.float64(scale)).astype(np.float32)
        zero_point = self.middle - np.rint(center / own).astype(np.int32)
        return float(scale), Columns(own[None], zero_point[None]), own.astype(np.float64) * (self.middle - zero_point)

    def error(self, candidate: _Candidate) -> float:
        """Of the layers' outputs: what a bias cannot take back, summed over outputs and averaged over tokens."""
        return float(self._errors(candidate).var(0, dtype=np.float64).sum())

    def offset(self, candidate: _Candidate) -> np.ndarray:
        """What the biases (n,) need: the mean error taken back, in which the shifts' share is, and what their codes, which lie
        far from the zero point for an input that rests, make of the weights' own rounding."""
        return -self._errors(candidate).mean(0, dtype=np.float64)

    def _errors(self, candidate: _Candidate) -> np.ndarray:
        """(tokens, n): product of codes, without shifts, minus the float32 product."""
        form, weight, x = candidate.form, self.weight, self.x
        if isinstance(form, Smoothed):
            scale, zero_point = form.columns.scale, form.columns.zero_point
        else:
            scale, zero_point = np.float32(form.scale), form.zero_point
            if candidate.factor is not None:
                x = ((x - candidate.shift) / candidate.factor).astype(np.float32)
        qmin, qmax = affine.code_range(form.dtype, form.symmetric)
        codes = np.rint(x / scale)
        codes += np.float32(zero_point)
        np.clip(codes, qmin, qmax, out=codes)
        codes -= np.float32(form.zero_point)
        codes *= np.float32(form.scale)
        return codes @ rounded(weight, candidate.factor).T - self.y


def scaled(weight: np.ndarray, factor: np.ndarray | None) -> np.ndarray:
    """weight (n, k) float32 with its inputs' factors (k,) folded in."""
    return weight if factor is None else (weight * factor).astype(np.float32)


def rounded(weight: np.ndarray, factor: np.ndarray | None) -> np.ndarray:
    """What the codes of the folded weight stand for."""
    return quantize_weight(scaled(weight, factor), True, "per_channel", None).dequantize()
