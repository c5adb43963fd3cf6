"""Static codes with scales and shifts of each feature's own, chosen by the error of the layers that read them, and
biases that take back what error is constant. Runs no model: it works on the tokens that calibration kept.

A feature's scale moves into the rows of the reading layers' weights (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438),
its strength searched for each site, and its shift into their biases (Outlier Suppression+, Wei et al. 2023,
arXiv:2304.09145). What makes the codes, be it a norm or an activation, takes the scales along when it rounds, so its
float32 result, which BERT's residual stream goes on with, stays as it is, and neither costs work at inference. Scales
of values go through attention. Biases are corrected as by Nagel et al. 2019 (arXiv:1906.04721), from the kept
tokens."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .. import _core, affine, functions
from ..calibrate import Calibration, Progress
from ..coding import quantize_weight
from ..errors import CalibrationError
from ..model import Transformer
from ..model.forms import Columns, Fixed, PerHead, Smoothed, Stretched
from ..model.linear import Linear
from ..observers.tokens import Tokens
from ..plan import Fold, Plan, scaled
from ..strategies import Static

# the exponent of a feature's range in its scale; the rest is its weights'
STRENGTHS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# a feature's half range is at least this share of the widest one's: what calibration saw at rest may move
NARROWEST = 0.01
OUTLIER = 64  # times the median output's squared size makes an outlier token
FITTING = 1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0  # shares of the other tokens that codes fit as they are
_OUTPUTS = 1024  # evenly spread over a site's layers: the error of these decides
_ROWS = 1024  # of a weight, worked on at once


def folds(strategy: Static) -> bool:
    """Whether there is anything to fold. A weight's zero point, or a scale shared by all outputs, would undo what
    features of their own gain."""
    return (
        (strategy.smooth or strategy.correct_bias or strategy.stretch)
        and strategy.scheme.weight_symmetric
        and strategy.scheme.weight_granularity == "per_channel"
    )


class _Task(NamedTuple):
    """A site to look at. smooths: whether its codes may take scales of their own. values: the site of the values that
    attention mixes into it, where those are coded too, and the block that they belong to; None elsewhere."""

    site: str
    smooths: bool = True
    values: str | None = None
    block: str = ""


def smoothed(
    model: Transformer, plan: Plan, calibration: Calibration, strategy: Static, progress: Progress | None = None
) -> Plan:
    """A static plan with features' own scales, and corrected biases, where they lessen the error of the layers that
    read them. progress(done, total) is called as sites are done. Raises CalibrationError where `calibration` kept no
    tokens."""
    layers, attention = dict(plan.layers), dict(plan.attention)
    linears, tasks = dict(model.float_linears()), list(_tasks(model, plan, strategy))
    for done, task in enumerate(tasks, 1):
        if progress is not None:
            progress(done, len(tasks))
        read = [name for name in model.graph.sites[task.site].readers if _fits(plan, name, linears[name])]
        if not read:
            continue
        weights = [linears[name].weight for name in read]
        plain = layers[read[0]].input
        assert isinstance(plain, Fixed), "static codes, before they are smoothed"
        search = _Search(_tokens(calibration, task.site), weights, plain, strategy.stretch)
        mixed = None if task.values is None else _values(model, _tokens(calibration, task.values))
        best = search.best(mixed, strategy.smooth) if task.smooths else search.plain()
        for name, weight in zip(read, weights):
            fold = Fold(best.factor, search.offset(best, weight, strategy.correct_bias))
            layers[name] = replace(layers[name], input=best.form, fold=fold)
        if best.value is not None:
            forms = attention[task.block]
            assert not isinstance(forms, PerHead), "static attention has fixed codes"
            attention[task.block] = forms[0], forms[1], best.value
    return replace(plan, layers=layers, attention=attention)


def _tasks(model: Transformer, plan: Plan, strategy: Static) -> Iterator[_Task]:
    """Every site of the trunk, in the order of work."""
    linears = dict(model.float_linears())
    # a norm's codes are the residual stream's too
    streamed = strategy.residual == "int8" and not model.config.ends_normed
    if model.projection is not None:
        yield _Task("embed.input")
    for block in model.graph.blocks:
        part, feed_forward = block.attention, block.ffn
        in_codes = block.name in plan.attention and all(_fits(plan, n, linears[n]) for n in part.projections)
        yield _Task(part.input, not streamed)
        yield _Task(part.context, values=part.value if in_codes else None, block=block.name)
        yield _Task(feed_forward.input, not streamed)
        yield _Task(feed_forward.hidden)
    if "head" in model.graph.trunk[-1].readers:
        yield _Task("head.input", not model.config.tied)  # the word table shares the tied head's codes


def _fits(plan: Plan, name: str, layer: Linear) -> bool:
    """Whether the layer is to become int8 and can."""
    return plan.coded(name) and layer.shape[0] <= _core.MAX_K


def _tokens(calibration: Calibration, site: str) -> Tokens:
    if site not in calibration.tokens:
        raise CalibrationError(
            f"calibration: it kept no tokens of {site!r}, which smooth and correct_bias choose by; "
            "calibrate this model with tokens=256, or use Static(smooth=False, correct_bias=False)"
        )
    return calibration.tokens[site]


class _Values(NamedTuple):
    """Values that attention mixes: their extremes, how many query heads share one of their heads, and its width."""

    lo: np.ndarray
    hi: np.ndarray
    group: int
    dim: int


def _values(model: Transformer, tokens: Tokens) -> _Values:
    return _Values(*_ends(tokens), model.config.num_heads // model.config.num_kv_heads, model.config.head_dim)


def _ends(tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Each channel's smallest and largest element, float64."""
    assert tokens.lo is not None and tokens.hi is not None, "calibration saw some"
    return tokens.lo.astype(np.float64), tokens.hi.astype(np.float64)


def _half(half: np.ndarray) -> np.ndarray:
    """Half ranges of features, widened where they are next to nothing."""
    return np.asarray(np.maximum(half, max(NARROWEST * half.max(), float(affine.SMALLEST_SCALE) * 2.0**20)))


class _Candidate(NamedTuple):
    """Codes q of one site for which sum of weight * factor * (form's scale) * (q - form's zero point) is what a layer
    reads, but for the constant `shift` (k,) of the inputs."""

    form: Fixed | Smoothed
    factor: np.ndarray | None
    shift: np.ndarray
    value: Smoothed | None = None


class _Search:
    """One site: its kept tokens, and the weights (n, k) of the layers that read it."""

    def __init__(self, tokens: Tokens, weights: list[np.ndarray], plain: Fixed, stretch: bool):
        self.x, (self.lo, self.hi), self.form, self.stretch = tokens.rows, _ends(tokens), plain, stretch
        step = -(-sum(map(len, weights)) // _OUTPUTS)
        self.weight = np.concatenate([weight[::step] for weight in weights])
        self.y = functions.matmul(self.x, self.weight.T)
        if stretch:  # outlier tokens must not decide for all others
            size = np.square(self.y).sum(1)
            usual = size <= OUTLIER * np.median(size)
            self.x, self.y = self.x[usual], self.y[usual]
        reach = np.max([np.maximum(weight.max(0), -weight.min(0)) for weight in weights], 0).astype(np.float64)
        self.reach = np.maximum(reach, 1e-3 * reach.max() or 1.0)

    def plain(self) -> _Candidate:
        return _Candidate(self.form, None, np.zeros(len(self.lo)))

    def best(self, values: _Values | None, smooth: bool) -> _Candidate:
        """The candidate of least error, the plain one among them. values: what attention mixes into the site, where
        those are coded too. smooth: whether features may have scales of their own."""
        strengths = STRENGTHS if smooth else ()
        tried = [self._inputs(s) if values is None else self._context(s, values) for s in strengths]
        if self.stretch and values is None:
            tried += [self._stretched(s, share) for s in (None, *strengths) for share in FITTING]
        return min((self.plain(), *tried), key=self.error) if tried else self.plain()

    def _inputs(self, strength: float) -> _Candidate:
        scale, columns, shift = self._columns(self.lo, self.hi, self.reach, strength)
        form = Smoothed(self.form.dtype, self.form.symmetric, scale, affine.middle(self.form.dtype), columns)
        return _Candidate(form, columns.scale[0].astype(np.float64) / scale, shift)

    def _stretched(self, strength: float | None, fitting: float) -> _Candidate:
        """Features' scales at which this share of the tokens fits. strength None: one for all, so that weights stay as
        they are."""
        half = _half(np.abs(self.x).max(0).astype(np.float64))
        share = np.ones_like(half)
        if strength is not None:
            share = functions.power(half, strength) * functions.power(self.reach, strength - 1)
        largest = np.sort((np.abs(self.x) / share).max(1))
        scale = np.float32(largest[round(fitting * (len(largest) - 1))] / 127)
        own = np.maximum(share * np.float64(scale), affine.SMALLEST_SCALE).astype(np.float32)
        middle = affine.middle(self.form.dtype)
        columns = Columns(own[None], np.full((1, len(own)), middle, np.int32))
        form = Stretched(self.form.dtype, self.form.symmetric, float(scale), middle, columns)
        return _Candidate(form, own.astype(np.float64) / scale, np.zeros(len(own)))

    def _context(self, strength: float, values: _Values) -> _Candidate:
        """What attention mixes from values."""

        def of_context(x: np.ndarray) -> np.ndarray:
            return np.repeat(x.reshape(-1, 1, values.dim), values.group, 1).reshape(-1)

        # the largest over the heads that share them
        reach = self.reach.reshape(-1, values.group, values.dim).max(1).reshape(-1)
        scale, columns, shift = self._columns(values.lo, values.hi, reach, strength)
        value = Smoothed(self.form.dtype, self.form.symmetric, scale, affine.middle(self.form.dtype), columns)
        factor, shift = of_context(columns.scale[0].astype(np.float64) / scale), of_context(shift)
        lo, hi = ((end - shift) / factor for end in (self.lo, self.hi))
        own, zero_point = affine.qparams(lo.min(), hi.max(), self.form.dtype, self.form.symmetric)
        form = Fixed(self.form.dtype, self.form.symmetric, float(own), int(zero_point))
        return _Candidate(form, factor, shift, value)

    def _columns(
        self, lo: np.ndarray, hi: np.ndarray, reach: np.ndarray, strength: float
    ) -> tuple[float, Columns, np.ndarray]:
        """(the scale that products see, the features' own, their shifts)."""
        center, farthest = np.zeros_like(lo) if self.form.symmetric else (lo + hi) / 2, np.maximum(hi, -lo)
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
        errors = functions.matmul(self._codes(candidate), rounded(self.weight, candidate.factor).T) - self.y
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
        if isinstance(form, Stretched):
            coded = _core.quantize(x, form)
            assert isinstance(coded.scale, np.ndarray), "stretched codes have a scale for each token"
            return np.asarray((coded.codes.astype(np.float32) - np.float32(form.zero_point)) * coded.scale[:, None])
        own = form.columns if isinstance(form, Smoothed) else form
        scale, zero_point = np.asarray(own.scale, np.float32), np.asarray(own.zero_point, np.float32)
        if candidate.factor is not None and not isinstance(form, Smoothed):
            x = ((x - candidate.shift) / candidate.factor).astype(np.float32)
        codes = np.clip(np.rint(x / scale) + zero_point, *affine.code_range(form.dtype, form.symmetric))
        seen: np.ndarray = (codes - np.float32(form.zero_point)) * np.float32(form.scale)
        return seen


def _times(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """weight (n, k) float32 times x (k,) float64, each row's products summed in float64."""
    return np.asarray((weight * x).sum(axis=1))


def rounded(weight: np.ndarray, factor: np.ndarray | None) -> np.ndarray:
    """What the codes of the folded weight stand for."""
    return quantize_weight(scaled(weight, factor), True, "per_channel", None).dequantize()
