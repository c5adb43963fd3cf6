"""Quantization-aware training: a plan by calibration, a network trained behind it, and the plan with what it
learned."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from ..calibrate import KEEP, Calibration, Progress, beginning, calibrate
from ..errors import CalibrationError
from ..model import Transformer
from ..model.forms import Fixed
from ..model.inputs import as_items, check_samples
from ..plan import Plan
from ..prepare.compensate import compensate
from ..prepare.equalize import equalize_values, split_outliers
from ..strategies import QAT, Dynamic, Single, Static, WeightOnly
from ..train import Network, fit
from .dynamic import plan_dynamic
from .effort import compensates
from .smooth import folds
from .static import fixed, plan_fixed, plan_static
from .weight_only import plan_weight_only

_FIRST, _FIRST_TOKENS = 500, 1 << 15  # samples that preparation and first ranges go over, and tokens of them


def trained(
    model: Transformer,
    strategy: QAT,
    samples: Iterable | Calibration | None,
    progress: Progress | None,
    checkpoint: str | os.PathLike | None = None,
) -> tuple[Transformer, Plan]:
    """The model trained in float32 behind fake quantization, and the plan to convert it by, with the ranges and scales
    that it was trained with. checkpoint: as for cq.train. Raises CalibrationError where there are no samples, CqError
    where they are none."""
    given, texts = _checked(samples, strategy)
    texts = beginning(model, texts[:_FIRST], _FIRST_TOKENS)
    target = strategy.target
    teacher = _equalized(model, target) if _coarse(target) else model
    network = _begun(teacher, strategy, texts)
    fit(teacher, given, strategy, network, checkpoint, _without_loss(progress))
    result, plan = Transformer(network.config, network.weights(), model.tokenizer), network.trained_plan()
    if isinstance(target, Static) and len(network.graph.sites) > len(network.graph.trunk):
        found = calibrate(result, texts, target.observer, tokens=0)
        plan = _calibrated_heads(plan, result, found, target)
    return result, plan


def _coarse(target: Single) -> bool:
    """Whether each weight has one scale."""
    return target.scheme.weight_granularity == "per_tensor"


def _begun(model: Transformer, strategy: QAT, texts: list) -> Network:
    """The network that training begins with. What it is made of, as large as itself, is freed before that."""
    target, learns, found = strategy.target, strategy.ranges == "learned", None
    static = target if isinstance(target, Static) else None
    tokens = KEEP if _coarse(target) or (static and folds(static)) else 0
    if compensates(target):
        model = compensate(model, texts, group_size=target.scheme.group_size)
    if tokens or (static and learns):
        found = calibrate(model, texts, static.observer if static else "minmax", tokens=tokens)
    plan, weights = _folded(_first_plan(model, target, found), model.weights())
    if _coarse(target) and found is not None:
        weights = _split(weights, model, plan, found)
    return Network(model.config, plan, weights, learns, alike=compensates(target))


def _without_loss(progress: Progress | None) -> Callable[[int, int, float], None] | None:
    """What training calls, with the loss too."""
    if progress is None:
        return None
    return lambda done, total, loss: progress(done, total)


def _checked(samples: Iterable | Calibration | None, strategy: QAT) -> tuple[list, list]:
    """(the samples, and the same without scores)."""
    if samples is None:
        raise CalibrationError("calibration: QAT trains on samples; give typical texts or token arrays as calibration=")
    check_samples(samples, "calibration")
    samples = list(as_items(samples))
    texts = [list(row[:2]) for row in samples] if strategy.loss == "pairs" else samples
    return samples, texts


def _first_plan(model: Transformer, target: Single, found: Calibration | None) -> Plan:
    """The plan that training begins with. Parameters of sites that training finds by itself (moving averages of
    extremes, without calibration) are placeholders."""
    if isinstance(target, WeightOnly):
        return plan_weight_only(model.config, target)
    if isinstance(target, Dynamic):
        return plan_dynamic(model.config, target)
    if found is not None:
        return plan_static(model, target, found)
    unknown = Fixed(target.scheme.activation_dtype, target.scheme.activation_symmetric, 1.0, 0)
    return plan_fixed(model.config, target, lambda site: unknown)


def _folded(plan: Plan, weights: dict[str, np.ndarray]) -> tuple[Plan, dict[str, np.ndarray]]:
    """The plan without folds, and weights by canonical name that have them in."""
    layers, weights = dict(plan.layers), dict(weights)
    for name, layer in plan.layers.items():
        if layer.fold is None:
            continue
        bias = layer.fold.bias(weights.get(f"{name}.bias"))
        weights |= {} if bias is None else {f"{name}.bias": bias}
        if layer.fold.factor is not None:
            weights[f"{name}.weight"] = layer.fold.weight(weights[f"{name}.weight"])
        layers[name] = replace(layer, fold=None)
    return replace(plan, layers=layers), weights


def _equalized(model: Transformer, target: Single) -> Transformer:
    """The same function, with values and what reads them in one range where both will have one scale."""
    plan, weights = _first_plan(model, target, None), model.weights()
    for block in model.graph.blocks:
        if plan.coded(block.attention.value) and plan.coded(block.attention.output):
            weights |= equalize_values(weights, block.attention, model.config)
    return Transformer(model.config, weights, model.tokenizer)


def _split(
    weights: dict[str, np.ndarray], model: Transformer, plan: Plan, calibration: Calibration
) -> dict[str, np.ndarray]:
    """Weights by canonical name, with the outliers split of feed-forward layers that will have one scale."""
    changed = [
        split_outliers(weights, block.ffn, calibration.tokens[block.ffn.hidden])
        for block in model.graph.blocks
        if plan.coded(block.ffn.down) and model.config.hadamard is None  # which mixes outliers with others
    ]
    return weights | {name: array for part in changed for name, array in part.items()}


def _calibrated_heads(plan: Plan, model: Transformer, found: Calibration, target: Static) -> Plan:
    """The plan with the sites of heads that are not trained as calibration found them."""
    trunk = {name for site in model.graph.trunk for name in site.readers}
    layers = {
        name: layer
        if name in trunk or layer.input is None
        else replace(layer, input=fixed(found, model.graph.reads[name], target.scheme))
        for name, layer in plan.layers.items()
    }
    return replace(plan, layers=layers)
