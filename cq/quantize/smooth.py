"""Static codes with scales and shifts of each feature's own, chosen by the error of the layers that read them, and
biases that take back what error is constant. Runs no model: it works on the tokens that calibration kept.

A feature's scale moves into the rows of the reading layers' weights (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438),
its strength searched for each place, and its shift into their biases (Outlier Suppression+, Wei et al. 2023,
arXiv:2304.09145). What makes the codes, be it a norm or an activation, takes the scales along when it rounds, so its
float32 result, which BERT's residual stream goes on with, stays as it is, and neither costs work at inference. Scales
of values go through attention. Biases are corrected as by Nagel et al. 2019 (arXiv:1906.04721), from the kept
tokens."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .. import _core, affine, functions
from ..calibrate import Calibration, Progress
from ..errors import CalibrationError
from ..model import Transformer
from ..model.activation import Columns, Fixed, Smoothed
from ..model.linear import Linear, quantize_weight
from ..observers.tokens import Tokens
from ..strategies import Static

# the exponent of a feature's range in its scale; the rest is its weights'
STRENGTHS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# a feature's half range is at least this share of the widest one's: what calibration saw at rest may move
NARROWEST = 0.01
_OUTPUTS = 1024  # evenly spread over a place's layers: the error of these decides
_ROWS = 1024  # of a weight, worked on at once


class Fold(NamedTuple):
    """How a layer reads codes. form: its input's; factor: what multiplies each input's weights (k,), or None; offset:
    what is added to its bias (n,), float64."""

    form: Fixed | Smoothed
    factor: np.ndarray | None
    offset: np.ndarray

    def bias(self, bias: np.ndarray | None) -> np.ndarray | None:
        """The layer's bias with the offset in it."""
        return (
            bias if not self.offset.any() else (self.offset if bias is None else bias + self.offset).astype(np.float32)
        )


class Plan(NamedTuple):
    """layers: name → Fold. values: site of a block's values → their form."""

    layers: dict[str, Fold]
    values: dict[str, Smoothed]


NO_PLAN = Plan({}, {})


def wanted(strategy: Static) -> bool:
    """Whether there is anything to plan. A weight's zero point, or a scale shared by all outputs, would undo what
    features of their own gain."""
    return (
        (strategy.smooth or strategy.correct_bias)
        and strategy.scheme.weight_symmetric
        and strategy.scheme.weight_granularity == "per_channel"
    )


def plan(
    model: Transformer,
    calibration: Calibration,
    strategy: Static,
    form_at: Callable[[str], Fixed],
    chosen: Callable[[str], bool],
    progress: Progress | None = None,
) -> Plan:
    """What to fold where, for the layers that are `chosen` by name; form_at(site) gives the plain form of a place.
    progress(done, total) is called as places are done. Raises CalibrationError where `calibration` kept no tokens."""
    found, scheme = Plan({}, {}), strategy.scheme
    done, total = 0, 4 * len(model.blocks) + (model.head is not None)
    # a norm's codes are the residual stream's too
    streamed = strategy.residual == "int8" and not model.config.norm_first

    def fits(name: str, layer: Linear) -> bool:
        return chosen(name) and layer.shape[0] <= _core.MAX_K

    def tokens_at(site: str) -> Tokens:
        if site not in calibration.tokens:
            raise CalibrationError(
                f"calibration: it kept no tokens of {site!r}, which smooth and correct_bias choose by; "
                "calibrate this model with tokens=256, or use Static(smooth=False, correct_bias=False)"
            )
        return calibration.tokens[site]

    linears = dict(model.linears())

    def add(site: str, smooth: bool = True, values: tuple = ()) -> "_Candidate | None":
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)
        layers = {name: linears[name] for name in model.graph.sites[site].readers if fits(name, linears[name])}
        if not layers:
            return None
        search = _Search(tokens_at(site), [layer.weight for layer in layers.values()], form_at(site))
        best = search.best(*values) if strategy.smooth and smooth else search.plain()
        for name, layer in layers.items():
            offset = search.offset(best, layer.weight, strategy.correct_bias)
            found.layers[name] = Fold(best.form, best.factor, offset)
        return best

    heads = model.config.num_heads // model.config.num_kv_heads, model.config.head_dim
    for block in model.graph.blocks:
        attention, ffn = block.attention, block.ffn
        add(attention.input, not streamed)
        in_codes = scheme.attention == "int8" and all(fits(name, linears[name]) for name in attention.projections)
        best = add(attention.context, values=(tokens_at(attention.value), *heads) if in_codes else ())
        if best is not None and best.value is not None:
            found.values[attention.value] = best.value
        add(ffn.input, not streamed)
        add(ffn.hidden)
    if model.head is not None:
        add("head.input", not model.config.tied)  # the word table shares the tied head's codes
    return found


def _half(half: np.ndarray) -> np.ndarray:
    """Half ranges of features, widened where they are next to nothing."""
    return np.maximum(half, max(NARROWEST * half.max(), float(affine.SMALLEST_SCALE) * 2.0**20))


class _Candidate(NamedTuple):
    """Codes q of one place for which sum of weight * factor * (form's scale) * (q - form's zero point) is what a layer
    reads, but for the constant `shift` (k,) of the inputs."""

    form: Fixed | Smoothed
    factor: np.ndarray | None
    shift: np.ndarray
    value: Smoothed | None = None


class _Search:
    """One place: its kept tokens, and the weights (n, k) of the layers that read it."""

    def __init__(self, tokens: Tokens, weights: list[np.ndarray], plain: Fixed):
        self.x, self.lo, self.hi = tokens.rows, tokens.lo.astype(np.float64), tokens.hi.astype(np.float64)
        self.form = plain
        step = -(-sum(map(len, weights)) // _OUTPUTS)
        self.weight = np.concatenate([weight[::step] for weight in weights])
        self.y = _core.matmul(self.x, self.weight.T)
        reach = np.max([np.maximum(weight.max(0), -weight.min(0)) for weight in weights], 0).astype(np.float64)
        self.reach = np.maximum(reach, 1e-3 * reach.max() or 1.0)

    def plain(self) -> _Candidate:
        return _Candidate(self.form, None, np.zeros(len(self.lo)))

    def best(self, *values) -> _Candidate:
        """The candidate of least error, the plain one among them."""
        make = self._context if values else self._inputs
        return min((self.plain(), *(make(strength, *values) for strength in STRENGTHS)), key=self.error)

    def _inputs(self, strength: float) -> _Candidate:
        scale, columns, shift = self._columns(self.lo, self.hi, self.reach, strength)
        form = Smoothed(self.form.dtype, self.form.symmetric, scale, affine.middle(self.form.dtype), columns)
        return _Candidate(form, columns.scale[0].astype(np.float64) / scale, shift)

    def _context(self, strength: float, values: Tokens, group: int, dim: int) -> _Candidate:
        """What attention mixes from values: `group` query heads share one of the values', `dim` wide."""

        def of_context(x):
            return np.repeat(x.reshape(-1, 1, dim), group, 1).reshape(-1)

        lo, hi = values.lo.astype(np.float64), values.hi.astype(np.float64)
        reach = self.reach.reshape(-1, group, dim).max(1).reshape(-1)  # the largest over the heads that share them
        scale, columns, shift = self._columns(lo, hi, reach, strength)
        value = Smoothed(self.form.dtype, self.form.symmetric, scale, affine.middle(self.form.dtype), columns)
        factor, shift = of_context(columns.scale[0].astype(np.float64) / scale), of_context(shift)
        lo, hi = ((end - shift) / factor for end in (self.lo, self.hi))
        own, zero_point = affine.qparams(lo.min(), hi.max(), self.form.dtype, self.form.symmetric)
        form = Fixed(self.form.dtype, self.form.symmetric, float(own), int(zero_point))
        return _Candidate(form, factor, shift, value)

    def _columns(self, lo, hi, reach, strength: float) -> tuple[float, Columns, np.ndarray]:
        """(the scale that products see, the features' own, their shifts)."""
        center, farthest = (0.0 if self.form.symmetric else (lo + hi) / 2), np.maximum(hi, -lo)
        limit = (affine.FARTHEST - 1) / 127  # of a shift, in half ranges
        half = _half(np.maximum(farthest - np.abs(center), farthest / (1 + limit)))
        center = np.clip(center, -limit * half, limit * half)
        share = functions.power(half, strength) * functions.power(reach, strength - 1)
        scale = np.float32((half / share).max() / 127)
        own = np.maximum(share * np.float64(scale), affine.SMALLEST_SCALE).astype(np.float32)
        steps = np.rint(center / own).astype(np.int32)
        columns = Columns(own[None], (affine.middle(self.form.dtype) - steps)[None])
        return float(scale), columns, own.astype(np.float64) * steps

    def error(self, candidate: _Candidate) -> float:
        """Of the layers' outputs: what a bias cannot take back, summed over outputs and averaged over tokens."""
        errors = _core.matmul(self._codes(candidate), rounded(self.weight, candidate.factor).T) - self.y
        return float(errors.var(0, dtype=np.float64).sum())

    def offset(self, candidate: _Candidate, weight: np.ndarray, correct: bool) -> np.ndarray:
        """What the bias of one of the layers needs (n,): the shifts' share; with `correct`, so much that its outputs'
        mean over the kept tokens is that of float32."""
        if correct:
            mean, coded = self.x.mean(0, dtype=np.float64), self._codes(candidate).mean(0, dtype=np.float64)
        else:
            mean, coded = (
                0.0 * candidate.shift,
                -candidate.shift / (1.0 if candidate.factor is None else candidate.factor),
            )
        parts = [weight[at : at + _ROWS] for at in range(0, len(weight), _ROWS)]
        return np.concatenate([_times(part, mean) - _times(rounded(part, candidate.factor), coded) for part in parts])

    def _codes(self, candidate: _Candidate) -> np.ndarray:
        """What products see of the kept tokens, (tokens, k) float32."""
        form, x = candidate.form, self.x
        scale, zero_point = np.float32(form.scale), form.zero_point
        if isinstance(form, Smoothed):
            scale, zero_point = form.columns.scale, form.columns.zero_point
        elif candidate.factor is not None:
            x = ((x - candidate.shift) / candidate.factor).astype(np.float32)
        codes = np.clip(np.rint(x / scale) + np.float32(zero_point), *affine.code_range(form.dtype, form.symmetric))
        return (codes - np.float32(form.zero_point)) * np.float32(form.scale)


def _times(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """weight (n, k) float32 times x (k,) float64, each row's products summed in float64."""
    return (weight * x).sum(axis=1)


def scaled(weight: np.ndarray, factor: np.ndarray | None) -> np.ndarray:
    """weight (n, k) float32 with its inputs' factors (k,) folded in."""
    return weight if factor is None else (weight * factor).astype(np.float32)


def rounded(weight: np.ndarray, factor: np.ndarray | None) -> np.ndarray:
    """What the codes of the folded weight stand for."""
    return quantize_weight(scaled(weight, factor), True, "per_channel", None).dequantize()
