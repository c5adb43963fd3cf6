"""quantize(model, strategy) → a new model with its linear layers and word table in int8. The only file that swaps
layers."""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from fnmatch import fnmatchcase

import numpy as np

from .. import _core, affine
from ..affine import check_finite
from ..calibrate import KEEP, Calibration, Progress, calibrate
from ..errors import CalibrationError, CqError, UnsupportedError
from ..model import Transformer
from ..model.activation import Fixed, Form, PerHead, PerTensor, PerToken, Smoothed
from ..model.attention import MAX_KEYS
from ..model.deferred import read
from ..model.linear import Linear, QuantizedLinear, pack_weight, quantize_bias, quantize_weight
from ..model.overflow import check_attention
from ..model.sites import Graph
from ..prepare.equalize import equalize_values, split_outliers
from ..qtensor import QTensor
from ..strategies import QAT, Dynamic, Mixed, Scheme, Static, WeightOnly, parts
from ..train import fit
from .smooth import NO_PLAN, Fold, Plan, plan, scaled, wanted

_FIRST_RANGES = 500  # samples that ranges to be learned begin from


def quantize(
    model: Transformer,
    strategy: WeightOnly | Dynamic | Static | Mixed | QAT,
    calibration: Iterable | Calibration | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
    strict: bool = False,
) -> Transformer:
    """A new model under `strategy`; `model` (float32) is not changed, and float32 parts are shared with it.

    calibration: for Static, alone or in a mix, any iterable of samples: a text, a 1-D int array of token ids, or a list
    of either (a batch); 100-500 typical ones; or what cq.calibrate.calibrate made of them with this model and the
    strategy's observer. For QAT, the samples to train on, thousands where there are, and for its loss "pairs" tuples
    (text or ids, text or ids, score -1 … 1); the result is its target's, `strategy` included.
    progress(done, total or None) is called as samples pass, or steps; for Static then as places between layers are
    smoothed; and at last as layers are converted. Weights still in their file are read one at a time and not kept, but
    where calibration or training runs the float32 model.
    executor: for Static, any concurrent.futures.Executor; it runs the samples, and the result has the same bits.
    Raises CalibrationError (Static without samples), UnsupportedError (a layer that int8 cannot hold), CqError."""
    if not isinstance(model, Transformer):
        raise CqError(f"model: need a cq.Transformer (cq.load gives one), got {type(model).__name__}")
    if not isinstance(strategy, (WeightOnly, Dynamic, Static, Mixed, QAT)):
        raise CqError(
            f"strategy: need cq.WeightOnly(), cq.Dynamic(), cq.Static(), cq.Mixed(...) or cq.QAT(), got {strategy!r}"
        )
    if model.strategy is not None:
        raise CqError(f"model: already quantized ({model.strategy.name}); quantize the float32 model instead")
    if progress is not None and not callable(progress):
        raise CqError(f"progress: need a function of (done, total), got {type(progress).__name__}")
    if type(strict) is not bool:
        raise CqError(f"strict: need True or False, got {strict!r}")
    if isinstance(strategy, QAT):
        if executor is not None:
            raise CqError("executor: QAT trains in this process; leave it out")
        return _trained(model, strategy, calibration, progress, strict)
    if isinstance(strategy, Mixed):
        return _mixed(model, strategy, calibration, progress, executor, strict)
    if isinstance(strategy, Static):
        if calibration is None:
            raise CalibrationError(
                "calibration: Static fixes its scales from samples; give 100-500 typical texts or token "
                "arrays as calibration=, or use Dynamic(), which needs none"
            )
        if not isinstance(calibration, Calibration):
            calibration = calibrate(
                model, calibration, strategy.observer, progress, executor, KEEP if wanted(strategy) else 0
            )
        elif calibration.observer != strategy.observer:
            raise CqError(
                f"calibration: made by observer {calibration.observer!r}, the strategy wants {strategy.observer!r}"
            )
    elif calibration is not None or executor is not None:
        name = "executor" if calibration is None else "calibration"
        raise CqError(f"{name}: only Static uses samples; leave it out for {type(strategy).__name__}")

    folds = _folds(model, strategy, calibration, progress) if isinstance(strategy, Static) else NO_PLAN
    return _convert(
        model, strategy, lambda site: _fixed(calibration, site, strategy.scheme), strict, folds=folds, progress=progress
    )


def _folds(model: Transformer, strategy: Static, calibration: Calibration, progress: Progress | None = None) -> Plan:
    if not wanted(strategy):
        return NO_PLAN
    return plan(
        model,
        calibration,
        strategy,
        lambda site: _fixed(calibration, site, strategy.scheme),
        lambda name: not _chosen(name, strategy),
        progress,
    )


def _trained(
    model: Transformer, strategy: QAT, samples: Iterable | None, progress: Progress | None, strict: bool
) -> Transformer:
    """Trained behind fake quantization, then converted with the ranges and scales that it was trained with."""
    if samples is None:
        raise CalibrationError("calibration: QAT trains on samples; give typical texts or token arrays as calibration=")
    if isinstance(samples, (str, bytes)) or not isinstance(samples, Iterable):
        raise CqError(f"calibration: need an iterable of texts or token arrays, got {type(samples).__name__}")
    target, samples, ranges, folded, smoothed = strategy.target, list(samples), {}, None, {}
    texts = [list(row[:2]) for row in samples] if strategy.loss == "pairs" else samples
    coarse = target.scheme.weight_granularity == "per_tensor"
    model = _equalized(model, target) if coarse else model
    smooths = isinstance(target, Static) and wanted(target)
    if coarse or smooths or (isinstance(target, Static) and strategy.ranges == "learned"):
        kind = target.observer if isinstance(target, Static) else "minmax"
        found = calibrate(model, texts[:_FIRST_RANGES], kind, tokens=KEEP if coarse or smooths else 0)
        if isinstance(target, Static):
            ranges = {site: _params(observer, target.scheme) for site, observer in found.sites.items()}
            folded, smoothed = _folded(model, target, found, ranges)
        if coarse:
            folded = _split(folded or model.weights(), model.graph, target, found)
    network = fit(
        model,
        samples,
        strategy,
        ranges if strategy.ranges == "learned" else None,
        progress=progress and (lambda done, total, loss: progress(done, total)),
        folded=folded,
        smoothed=smoothed,
    )
    trained = Transformer(model.config, network.weights(), model.tokenizer)
    forms = network.forms()
    if isinstance(target, Static) and model.classifier is not None:  # whose head is not trained, only calibrated
        found = calibrate(trained, texts[:_FIRST_RANGES], target.observer, tokens=0)
        forms |= {site: _fixed(found, site, target.scheme) for site in ("classifier.input", "classifier.hidden")}
    return _convert(trained, target, forms.get, strict, network.scales())


def _folded(
    model: Transformer, target: Static, calibration: Calibration, ranges: dict[str, tuple[float, int]]
) -> tuple[dict[str, np.ndarray], dict[str, Smoothed]]:
    """Weights by canonical name, with what smoothing and bias correction change folded in, and place → form where
    features have scales of their own; elsewhere `ranges` are set to what goes with it."""
    folds, smoothed, weights = _folds(model, target, calibration), {}, model.weights()
    for name, fold in folds.layers.items():
        bias = fold.bias(weights.get(f"{name}.bias"))
        weights |= {} if bias is None else {f"{name}.bias": bias}
        weights |= {} if fold.factor is None else {f"{name}.weight": scaled(weights[f"{name}.weight"], fold.factor)}
        site = model.graph.reads[name]
        if isinstance(fold.form, Smoothed):
            smoothed[site] = fold.form
        else:
            ranges[site] = fold.form.scale, fold.form.zero_point
    return weights, smoothed | folds.values


def _equalized(model: Transformer, target: WeightOnly | Dynamic | Static) -> Transformer:
    """The same function, with values and what reads them in one range where both will have one scale."""
    weights = model.weights()
    for block in model.graph.blocks:
        if not any(_chosen(layer, target) for layer in (block.attention.value, block.attention.output)):
            weights |= equalize_values(weights, block.attention, model.config)
    return Transformer(model.config, weights, model.tokenizer)


def _split(
    weights: dict[str, np.ndarray], graph: Graph, target: WeightOnly | Dynamic | Static, calibration: Calibration
) -> dict[str, np.ndarray]:
    """Weights by canonical name, with the outliers split of feed-forward layers that will have one scale."""
    changed = [
        split_outliers(weights, block.ffn, calibration.tokens[block.ffn.hidden])
        for block in graph.blocks
        if not _chosen(block.ffn.down, target)
    ]
    return weights | {name: array for part in changed for name, array in part.items()}


def _mixed(
    model: Transformer,
    strategy: Mixed,
    calibration: Iterable | Calibration | None,
    progress: Progress | None,
    executor: Executor | None,
    strict: bool,
) -> Transformer:
    """Each layer from the model quantized by its own strategy alone, and what flows between layers of one strategy with
    them."""
    static = [part for part in parts(strategy) if isinstance(part, Static)]
    if not static and (calibration is not None or executor is not None):
        raise CqError(
            "calibration: only Static uses samples, and this mix has none; leave calibration and executor out"
        )
    if len(static) > 1 and calibration is not None and not isinstance(calibration, (str, Calibration)):
        calibration = list(calibration)  # gone over once for each
    names = ["embed.word", *(name for name, _ in model.linears())]
    chosen = {
        name: _part("head" if name == "embed.word" and model.config.tied and model.head is not None else name, strategy)
        for name in names
    }
    result = _copied(model, strategy)
    for (owner, attribute, name), (_, layer) in zip(list(result.linear_places()), model.linears()):
        setattr(owner, attribute, Linear(layer.source, layer.bias, layer.activation, chosen[name][1]))
    result.embedding.reason = chosen["embed.word"][1]
    for part in parts(strategy):
        mine = tuple(name for name in names if chosen[name][0] == part)
        if not mine:
            continue
        samples = (calibration, progress, executor) if isinstance(part, Static) else ()
        whole = quantize(model, dataclasses.replace(part, include=mine), *samples, strict=strict)
        for (owner, attribute, name), (_, layer) in zip(list(result.linear_places()), whole.linears()):
            if name in mine:
                setattr(owner, attribute, layer)
        if "embed.word" in mine:
            result.embedding.source, result.embedding.reason = whole.embedding.source, whole.embedding.reason
        for block, given in zip(result.blocks, whole.blocks):
            block.attention.forms = block.attention.forms or given.attention.forms
    return result


def _part(name: str, strategy: Mixed) -> tuple[WeightOnly | Dynamic | Static | None, str]:
    """The strategy of a layer in a mix, or why it stays in float32."""
    for pattern, part in strategy.choices:
        if fnmatchcase(name, pattern):
            return part, "" if part else f"float32 by {pattern!r}"
    return None, "matches no pattern of the mix"


def _params(observer, scheme: Scheme) -> tuple[float, int]:
    scale, zero_point = observer.qparams(scheme.activation_dtype, scheme.activation_symmetric)
    return float(scale), int(zero_point)


def _fixed(calibration: Calibration, site: str, scheme: Scheme) -> Fixed:
    if site not in calibration.sites:
        raise CalibrationError(f"calibration: it knows no place {site!r}; it was made with another model")
    return Fixed(scheme.activation_dtype, scheme.activation_symmetric, *_params(calibration.sites[site], scheme))


def _convert(
    model: Transformer,
    strategy,
    form_at: Callable[[str], Fixed],
    strict: bool,
    scales: dict | None = None,
    folds: Plan = NO_PLAN,
    progress: Progress | None = None,
) -> Transformer:
    """A copy of the model's structure with layers swapped, whose weights are read one at a time; form_at(site) gives
    static forms, scales the learned scale and zero point of a layer's weight where its own extremes do not give them,
    folds what takes the place of either where it is smoothed."""
    result = _copied(model, strategy)
    places = list(result.linear_places())
    for done, (owner, attribute, name) in enumerate(places, 1):
        learned, fold, site = (scales or {}).get(name), folds.layers.get(name), model.graph.reads[name]
        setattr(owner, attribute, _swap(getattr(owner, attribute), name, strategy, site, form_at, learned, fold))
        if progress is not None:
            progress(done, len(places))
    _join(result, strategy, form_at, folds)
    _swap_word(result, strategy)
    if strict:
        _check_fallbacks(result, strategy)
    return result


def _copied(model: Transformer, strategy) -> Transformer:
    """The same layers in a structure of its own, where they can be swapped."""
    result = copy.copy(model)
    result.strategy = strategy
    result.embedding = copy.copy(model.embedding)
    result.blocks = []
    for block in model.blocks:
        block = copy.copy(block)
        block.attention, block.ffn = copy.copy(block.attention), copy.copy(block.ffn)
        result.blocks.append(block)
    result.classifier = copy.copy(model.classifier)
    return result


def _check_fallbacks(model: Transformer, strategy) -> None:
    """Raises UnsupportedError where a weight stayed in float32 that the user did not leave there. The rest of what runs
    in float32 does so by the strategy, or because such a weight does."""
    weights = [("embed.word", model.embedding), *model.linears()]
    found = [
        f"{name}: {part.reason}"
        for name, part in weights
        if part.runs_in == "float32"
        and not _chosen(name, strategy)
        and not (name == "embed.word" and model.config.tied and _chosen("head", strategy))
    ]
    if found:
        raise UnsupportedError(f"strict: {len(found)} of {len(weights)} weights cannot be int8: " + "; ".join(found))


def _chosen(name: str, strategy) -> str:
    """Why the layer stays in float32, or "" where it does not."""
    for pattern in strategy.exclude:
        if fnmatchcase(name, pattern):
            return f"excluded by {pattern!r}"
    return "" if any(fnmatchcase(name, pattern) for pattern in strategy.include) else "matches no include pattern"


def _swap(
    layer: Linear,
    name: str,
    strategy,
    site: str,
    form_at: Callable[[str], Fixed],
    learned: tuple | None,
    fold: Fold | None,
) -> Linear | QuantizedLinear:
    """site: what the layer reads."""
    reason = _chosen(name, strategy)
    if reason:
        return _left(layer, reason)
    scheme = strategy.scheme
    weight = _packed(name, scaled(layer.weight, fold and fold.factor), scheme, scheme.weight_granularity, learned)
    if isinstance(weight, str):
        return _left(layer, weight)
    if layer.bias is not None:
        check_finite(layer.bias, f"{name}.bias")
    form, bias = (
        (_input_form(site, strategy, form_at), layer.bias) if fold is None else (fold.form, fold.bias(layer.bias))
    )
    bias = quantize_bias(bias, scheme.bias, form, weight)
    try:
        return QuantizedLinear(weight, bias, layer.activation, form, strategy.name)
    except UnsupportedError as error:
        if fold is not None:
            raise UnsupportedError(f"{name}: {error}; or use smooth=False and correct_bias=False") from None
        return _left(layer, str(error))


def _left(layer: Linear, reason: str) -> Linear:
    """The layer in float32, and why."""
    return Linear(layer.source, layer.bias, layer.activation, reason)


def _packed(
    name: str, weight: np.ndarray, scheme: Scheme, granularity: str, learned: tuple | None = None
) -> _core.Weight | str:
    """The weight in codes, by its own extremes or at learned (scale, zero point); or why int8 cannot hold it."""
    try:
        if learned is not None:
            scale, zero_point = learned
            spread = [p[:, None] if p.ndim else p for p in learned]
            codes = np.clip(
                affine.quantize(weight, *spread, "int8"), *affine.code_range("int8", scheme.weight_symmetric)
            )
            return pack_weight(QTensor(codes, scale, zero_point, 0 if scale.ndim else None))
        group_size = scheme.group_size if granularity == "per_group" else None
        return pack_weight(quantize_weight(weight, scheme.weight_symmetric, granularity, group_size))
    except UnsupportedError as error:
        return str(error)
    except CqError as error:
        raise CqError(f"{name}: {error}") from None


def _input_form(site: str, strategy, form_at: Callable[[str], Fixed]) -> Form:
    scheme = strategy.scheme
    if isinstance(strategy, WeightOnly):
        return None
    if isinstance(strategy, Static):
        return form_at(site)
    kind = PerToken if scheme.activation_granularity == "per_token" else PerTensor
    return kind(scheme.activation_dtype, scheme.activation_symmetric)


def _join(model: Transformer, strategy, form_at: Callable[[str], Fixed], folds: Plan) -> None:
    """Where neighbours are in int8, what flows between them is too."""
    for block, names in zip(model.blocks, model.graph.blocks):
        attention = block.attention
        kinds = {layer.runs_in for layer in (attention.query, attention.key, attention.value)}
        attention.forms = None
        if strategy.scheme.attention == "int8" and kinds == {"static"}:
            query, key, value = map(form_at, names.attention.projections)
            attention.forms = query, key, folds.values.get(names.attention.value, value)
        elif strategy.scheme.attention == "int8" and kinds == {"dynamic"}:
            attention.forms = PerHead("int8", True, attention.dim)
        if attention.forms is not None:
            check_attention(attention.forms, attention.dim, min(model.config.max_positions, MAX_KEYS))
    if isinstance(strategy, Static) and strategy.residual == "int8":
        _join_stream(model, form_at)


def _join_stream(model: Transformer, form_at: Callable[[str], Fixed]) -> None:
    """The residual stream in int8: after a norm the very codes that the next layers read, before one the sum's."""
    parts = [part for block in model.graph.blocks for part in (block.attention, block.ffn)]
    if model.config.norm_first:
        forms = [form_at(part.sum) for part in parts[:-1]] + [None]
    else:
        model.embedding.stream, *forms = [form_at(part.input) for part in parts] + [None]
    for block, after_attention, after_ffn in zip(model.blocks, forms[::2], forms[1::2]):
        block.streams = after_attention, after_ffn


def _swap_word(model: Transformer, strategy) -> None:
    """The word table: the tied head's own codes where they have one scale per word, else int8 with its own."""
    word, head = model.embedding, model.head
    tied = model.config.tied and head is not None
    reason = _chosen("embed.word", strategy) or (head.reason if tied else "")
    if not reason and tied and head.weight.group_size >= head.weight.k:
        word.source = head.weight
    elif not reason:
        granularity = "per_tensor" if strategy.scheme.weight_granularity == "per_tensor" else "per_channel"
        table = _packed("embed.word", read(word.source), strategy.scheme, granularity)
        if isinstance(table, str):
            reason = table
        else:
            word.source = table
    word.reason = reason
