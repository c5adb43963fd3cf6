"""The plan of Static: codes by parameters that calibration found, and what smoothing and bias correction fold in."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import replace

from ..calibrate import KEEP, Calibration, Progress, calibrate
from ..errors import CalibrationError, CqError
from ..model import Config, Transformer
from ..model.forms import Fixed, PerHead
from ..model.sites import Graph
from ..plan import Plan, QkvForms
from ..strategies import Scheme, Static
from .layers import attends_in_int8, plan_layers
from .smooth import folds, smoothed


def plan_static(
    model: Transformer, strategy: Static, calibration: Calibration, progress: Progress | None = None
) -> Plan:
    """The plan of `model` with parameters from `calibration`. progress(done, total) is called as sites are smoothed.
    Raises CalibrationError where the calibration is of another model, or kept no tokens that smoothing needs."""
    plan = plan_fixed(model.config, strategy, lambda site: fixed(calibration, site, strategy.scheme))
    return smoothed(model, plan, calibration, strategy, progress) if folds(strategy) else plan


def plan_fixed(config: Config, strategy: Static, form_at: Callable[[str], Fixed]) -> Plan:
    """The plan with the form of each site as form_at(site) has it."""
    plan = plan_layers(config, strategy, form_at)
    attention: dict[str, QkvForms | PerHead] = {
        block.name: (form_at(block.attention.query), form_at(block.attention.key), form_at(block.attention.value))
        for block in Graph(config).blocks
        if attends_in_int8(plan, strategy, block.attention.projections)
    }
    residual = _residual(config, form_at) if strategy.residual == "int8" else ()
    return replace(plan, attention=attention, residual=residual)


def _residual(config: Config, form_at: Callable[[str], Fixed]) -> tuple[Fixed | None, ...]:
    """The residual stream in int8: after a norm the very codes that the next layers read, before one the sum's."""
    parts = [part for block in Graph(config).blocks for part in (block.attention, block.ffn)]
    if config.ends_normed:
        return (None, *(form_at(part.sum) for part in parts[:-1]), None)
    return (*(form_at(part.input) for part in parts), None)


def fixed(calibration: Calibration, site: str, scheme: Scheme) -> Fixed:
    """The form of a site whose activations calibration has seen."""
    scale, zero_point = calibration.qparams(site, scheme.activation_dtype, scheme.activation_symmetric)
    return Fixed(scheme.activation_dtype, scheme.activation_symmetric, float(scale), int(zero_point))


def calibrated(
    model: Transformer,
    strategy: Static,
    samples: Iterable | Calibration | None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Calibration:
    """What calibration found for the strategy: `samples` where they are a Calibration already. Raises CalibrationError
    where there are none, CqError where the calibration is another observer's."""
    if samples is None:
        raise CalibrationError(
            "calibration: Static fixes its scales from samples; give 100-500 typical texts or token arrays as "
            "calibration=, or use Dynamic(), which needs none"
        )
    if not isinstance(samples, Calibration):
        return calibrate(model, samples, strategy.observer, progress, executor, KEEP if folds(strategy) else 0)
    if samples.observer != strategy.observer:
        raise CqError(f"calibration: made by observer {samples.observer!r}, the strategy wants {strategy.observer!r}")
    return samples
