"""Each layer alone quantized, the others in float32: what it costs, why, and what would help. Changes no model."""

import dataclasses
import os
from collections.abc import Callable, Iterable

import numpy as np

from .. import functions
from ..calibrate import Calibration, calibrate
from ..convert import convert
from ..errors import CqError
from ..model import Transformer
from ..model.activation import encode
from ..model.forms import Fixed, Smoothed
from ..model.linear import QuantizedLinear
from ..quantize import plan_of
from ..strategies import Dynamic, Scheme, Single, Static, WeightOnly
from .evaluate import Evaluation, metric_names
from .inputs import calibration_for, checked, opened
from .layers import Alone, Layer, Sensitivity
from .samples import Progress, Samples, Source, listed, read

KEPT_BYTES = 2**27  # of float32 outputs, held for all the models that are compared with them
_LOOKED_AT = 512  # tokens whose values are held, of every layer's input
_OUTLIER, _OUTLIERS = 8.0, 3  # times the median channel that a channel must reach to be named; named at most
_SPREAD = 4.0  # of weights' channels, from which a scale of each one's own pays
_GAIN_DB = 3.0  # half of the noise gone is worth mentioning
_HIGH = 3.0  # times the mean share of noise, from which a layer is worth treating
_INAUDIBLE_DB = 50.0  # of one layer alone: not worth treating whatever its share


def sensitivity(
    model: str | os.PathLike | Transformer,
    data: Source,
    strategies: Iterable | None = None,
    calibration: Source | None = None,
    metric: str | Callable | None = None,
    progress: Progress | None = None,
    max_tokens: int = 2048,
) -> Sensitivity:
    """Quantizes each layer of a model alone and measures what that does to the model's outputs.

    Where int8 attention is chosen, "layers.0.attention.scores" is measured together with its query, key and value. A
    head tied to the word table is measured together with it.

    Args:
        model: As for `compare`.
        data: As for `compare`.
        strategies: `WeightOnly`, `Dynamic` and `Static` objects, one of each at most; their include and exclude are not
            used. None: one of each.
        calibration: As for `compare`.
        metric: As for `compare`.
        progress: As for `compare`.
        max_tokens: Number of tokens of the data to use, evenly spread. Each layer and strategy is one pass over them.

    Returns:
        A `Sensitivity` with a `Layer` for each layer: its SQNR, its share of the noise, why, and what would help.

    Raises:
        CalibrationError: A static strategy has nothing to calibrate on.
        CqError: Data or metric do not fit the model.
    """
    progress = progress or (lambda what, done, total: None)
    name, float32, own_calibration = opened(model, "sensitivity")
    chosen = by_name((WeightOnly(), Dynamic(), Static()) if strategies is None else strategies, "sensitivity")
    if type(max_tokens) is not int or max_tokens < 1:
        raise CqError(f"max_tokens must be a positive whole number, got {max_tokens!r}")
    samples = read(data if isinstance(data, (str, os.PathLike, Samples)) else listed(data), float32)
    names = metric_names(metric, float32, samples)
    calibration = own_calibration if calibration is None else calibration
    calibrated_on = calibration_for(chosen.values(), calibration, float32, samples)
    samples = samples.fewer(max_tokens)
    seen = ranges(float32, chosen.values(), calibrated_on, progress)
    judge = _Judge(float32, samples, names, metric)
    values, groups = judge(float32), _groups(float32, chosen)
    scores = {group: members for group, members in groups.items() if group not in members}
    layers = _shared(_alone(judge, groups, chosen, seen, progress), list(chosen), scores)
    return Sensitivity(
        name,
        names,
        {key: values[key] for key in names},
        {kind: repr(strategy) for kind, strategy in chosen.items()},
        tuple(
            dataclasses.replace(layer, help=_help(layer, chosen, len(layers), layer.name in scores)) for layer in layers
        ),
        samples.described(),
        None if calibrated_on is None else calibrated_on.described(),
    )


class _Judge:
    """Calls give a model's accuracies on the samples, beside those of the float32 model."""

    def __init__(self, float32: Transformer, samples: Samples, names: tuple[str, ...], metric: str | Callable | None):
        self.float32, self.samples, self.names, self.metric = float32, samples, names, metric
        every = tuple(dict.fromkeys([*names, "cosine", "sqnr_db"]))
        self._evaluation = Evaluation(float32, samples, every, KEPT_BYTES)

    def __call__(self, model: Transformer) -> dict[str, float]:
        found = self._evaluation([model])[0]
        if callable(self.metric):
            found[self.names[0]] = float(self.metric(model, self.samples))
        return found


def _alone(
    judge: _Judge,
    groups: dict[str, tuple[str, ...]],
    strategies: dict[str, Single],
    seen: Calibration | None,
    progress: Progress,
) -> list[Layer]:
    """Every group quantized alone, by each strategy that makes codes of it."""
    inputs, layers, done = _Inputs(judge.float32, judge.samples.fewer(_LOOKED_AT)), [], 0
    progress("layers", 0, len(groups) * len(strategies))
    for group, members in groups.items():
        alone: dict[str, Alone] = {}
        inside: dict[str, object] = {}
        for kind, strategy in strategies.items():
            done += 1
            if group in members or (strategy.scheme.attention == "int8" and not isinstance(strategy, WeightOnly)):
                one = quantize_only(judge.float32, members, strategy, seen)
                found = judge(one)
                alone[kind] = Alone(found["sqnr_db"], found["cosine"], {key: found[key] for key in judge.names})
                inside[kind] = dict(one.linears()).get(group)
            progress("layers", done, len(groups) * len(strategies))
        layers.append(Layer(group, alone, **inputs.seen_by(group, inside)))
    return layers


def by_name(strategies: object, what: str) -> dict[str, Single]:
    """Name → strategy, the cheapest in accuracy first: weight-only, dynamic, static. what: the work, for messages."""
    given = checked(strategies)
    found = {strategy.name: strategy for strategy in given if isinstance(strategy, (WeightOnly, Dynamic, Static))}
    if len(found) < len(given) or not found:
        raise CqError(f"strategies: {what} takes WeightOnly, Dynamic and Static, one of each at most, got {given!r}")
    return {kind: found[kind] for kind in ("weight-only", "dynamic", "static") if kind in found}


def ranges(
    model: Transformer, strategies: Iterable[Single], calibration: Samples | None, progress: Progress
) -> Calibration | None:
    """What static's observer saw of the samples."""
    observer = next((strategy.observer for strategy in strategies if isinstance(strategy, Static)), None)
    if observer is None or calibration is None:
        return None
    return calibrate(model, calibration.tokens, observer, lambda done, total: progress("calibrate", done, total))


def quantize_only(model: Transformer, names: Iterable[str], strategy: Single, seen: Calibration | None) -> Transformer:
    """The model by a plan that has only these layers in int8."""
    only = dataclasses.replace(strategy, include=tuple(names), exclude=())
    return convert(model, plan_of(model, only, seen if isinstance(strategy, Static) else None))


def _groups(model: Transformer, strategies: dict[str, Single]) -> dict[str, tuple[str, ...]]:
    """What is measured, in the order of work → the layers that are quantized for it."""
    tied = model.config.tied and model.head is not None
    groups: dict[str, tuple[str, ...]] = {} if tied else {"embed.word": ("embed.word",)}
    scores = any(not isinstance(s, WeightOnly) and s.scheme.attention == "int8" for s in strategies.values())
    after = {block.attention.value: block.attention for block in model.graph.blocks} if scores else {}
    for name, _ in model.linears():
        groups[name] = (name, "embed.word") if tied and name == "head" else (name,)
        if name in after:
            groups[after[name].scores] = after[name].projections
    return groups


class _Inputs:
    """What the float32 model's layers read on the data, once through."""

    def __init__(self, model: Transformer, samples: Samples):
        self.model, self.samples = model, samples
        found: dict[str, list[np.ndarray]] = {}
        wanted = model.graph.sites
        model.observe(
            samples.tokens, lambda site, x: found.setdefault(site, []).append(np.array(x)) if site in wanted else None
        )
        self.values = {site: np.concatenate(parts) for site, parts in found.items()}  # (tokens, features)

    def seen_by(self, name: str, layers: dict[str, object]) -> dict:
        """Fields of a Layer. layers: name of a strategy → the layer under it."""
        coded = {kind: layer for kind, layer in layers.items() if isinstance(layer, QuantizedLinear)}
        if not coded:
            return {}
        x = self.values[self.model.graph.reads[name]]
        facts = {"outliers": _outliers(x)} | _weights(
            dict(self.model.float_linears())[name].weight, list(coded.values())
        )
        form = coded["static"].input_form if "static" in coded else None
        if isinstance(form, (Fixed, Smoothed)):
            facts |= _coding(x, form)
        return facts


def _outliers(x: np.ndarray) -> tuple[tuple[int, float], ...]:
    """Channels of x (tokens, features) whose largest magnitude is many times the median one's."""
    largest = np.abs(x).max(0)
    times = largest / max(float(np.median(largest)), float(np.finfo(np.float32).tiny))
    first = np.argsort(-times, kind="stable")[:_OUTLIERS]
    return tuple((int(channel), float(times[channel])) for channel in first if times[channel] >= _OUTLIER)


def _weights(weight: np.ndarray, coded: list[QuantizedLinear]) -> dict:
    """weight: float32 (out, in)."""
    used = min(len(np.unique(layer.weight.unpack())) for layer in coded)
    largest = np.abs(weight).max(1)
    median = max(float(np.median(largest)), float(np.finfo(np.float32).tiny))
    return {"unused_weight_codes": max(0, 255 - used), "weight_spread": float(largest.max()) / median}


def _coding(x: np.ndarray, form: Fixed | Smoothed) -> dict:
    """How the fixed form suits x (tokens, features): what lies beyond its range, and the codes that nothing takes."""
    codes = encode(x, form).codes
    own = form.columns if isinstance(form, Smoothed) else form  # scales: one, or each feature's
    step = np.abs(x / own.scale + own.zero_point - codes)
    edge = (codes == codes.dtype.type(np.iinfo(codes.dtype).max)) | (
        codes <= np.iinfo(codes.dtype).min + form.symmetric
    )
    return {
        "clipped": float(np.mean(edge & (step > 0.501))),
        "unused_codes": 256 - form.symmetric - len(np.unique(codes)),
    }


def _shared(layers: list[Layer], kinds: list[str], scores: dict[str, tuple[str, ...]]) -> list[Layer]:
    """With the share of the noise that each makes; scores make what they add to the three layers measured with them."""
    for kind in kinds:
        noise = {
            layer.name: float(functions.power(10, -layer.alone[kind].sqnr_db / 10))
            for layer in layers
            if kind in layer.alone
        }
        for name in scores.keys() & noise.keys():
            noise[name] = max(0.0, noise[name] - functions.total(noise[member] for member in scores[name]))
        whole = functions.total(noise.values()) or 1.0
        layers = [
            dataclasses.replace(
                layer,
                alone=layer.alone | {kind: dataclasses.replace(layer.alone[kind], share=noise[layer.name] / whole)},
            )
            if layer.name in noise
            else layer
            for layer in layers
        ]
    return layers


def _help(layer: Layer, strategies: dict[str, Single], count: int, is_scores: bool) -> tuple[str, ...]:
    """What would lessen the noise of the last strategy that was measured, where the layer makes much of it."""
    kind = list(layer.alone)[-1]
    worst, strategy = layer.alone[kind], strategies[kind]
    scheme = strategy.scheme
    if worst.sqnr_db >= _INAUDIBLE_DB or worst.share * count < _HIGH:
        return ()
    if is_scores:
        return ("float32 scores (Scheme(attention='float32'))",)
    found = []
    weights_only = layer.alone.get("weight-only")
    from_input = kind != "weight-only" and (weights_only is None or weights_only.sqnr_db - worst.sqnr_db >= _GAIN_DB)
    if not from_input and scheme.weight_granularity == "per_tensor" and (layer.weight_spread or 0) >= _SPREAD:
        found.append("per-channel weights (Scheme(weight_granularity='per_channel'))")
    elif not from_input and kind == "weight-only" and scheme.weight_granularity != "per_group":
        found.append("weights in groups (Scheme(weight_granularity='per_group', group_size=32))")
    if kind == "static" and "dynamic" in layer.alone and layer.alone["dynamic"].sqnr_db - worst.sqnr_db >= _GAIN_DB:
        found.append(f"dynamic (+{layer.alone['dynamic'].sqnr_db - worst.sqnr_db:.1f} dB)")
    plain = isinstance(strategy, Static) and scheme == Scheme() and not strategy.smooth
    if from_input and layer.outliers and plain:
        found.append("smoothing its outlier channels (Static(smooth=True))")
    if from_input and weights_only is not None and not found:
        found.append(f"weight-only (+{weights_only.sqnr_db - worst.sqnr_db:.1f} dB)")
    return (*found, "keep in float32")
