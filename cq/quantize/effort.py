"""What effort="best" does to a model before its plan is made: rotation, where the model goes through one unchanged, and
rounding that compensates its own errors, where a scale of the strategy's weights is an output's own. Makes no plan."""

from collections.abc import Iterable
from dataclasses import replace

from ..calibrate import Calibration, Progress
from ..errors import CalibrationError, CqError
from ..model import Transformer
from ..model.inputs import as_items, check_samples
from ..prepare.compensate import compensate
from ..prepare.rotate import rotate, rotates
from ..strategies import QAT, Dynamic, Mixed, Single, Static, Strategy, WeightOnly
from .smooth import folds

Samples = Iterable | Calibration | None


def prepared(
    model: Transformer, strategy: Strategy | QAT, samples: Samples, progress: Progress | None = None
) -> tuple[Transformer, Strategy | QAT, Samples]:
    """The model to quantize, the strategy with its effort decided, and the samples that it still needs. Nothing changes
    where the effort is "fast". Raises CalibrationError where there are no samples to prepare on, CqError where they
    are a calibration of the model as it was."""
    target = strategy.target if isinstance(strategy, QAT) else strategy
    if isinstance(target, Mixed) or not _is_best(strategy, target, samples):
        return model, strategy, samples
    if samples is None:
        raise CalibrationError(
            "calibration: effort='best' prepares the model on samples; give 100-500 typical texts or token arrays as "
            "calibration=, or use effort='fast'"
        )
    if isinstance(samples, Calibration):
        raise CqError("calibration: effort='best' changes the model before it is calibrated; give samples")
    check_samples(samples, "calibration")
    samples = list(as_items(samples))
    model = rotate(model, online=not isinstance(target, WeightOnly)) if rotates(model) else model
    best = replace(target, effort="best")
    if isinstance(best, Static) and folds(stretched := replace(best, stretch=True)):
        best = stretched
    if compensates(best) and isinstance(best, Static):
        best = replace(best, smooth=False)  # scales of features' own would round the weights anew
    if isinstance(strategy, QAT):  # which compensates by itself, for it learns from the logits of the model before
        return model, replace(strategy, target=best), samples
    if compensates(best):
        model = compensate(model, samples, progress, group_size=target.scheme.group_size)
    return model, best, samples if isinstance(best, Static) else None


def compensates(target: Single) -> bool:
    """Whether the strategy's weights are rounded so that they compensate each other's errors."""
    scheme = target.scheme
    return target.effort == "best" and scheme.weight_symmetric and scheme.weight_granularity != "per_tensor"


def _is_best(strategy: Strategy | QAT, target: Single, samples: Samples) -> bool:
    if target.effort is None:
        return samples is not None and isinstance(strategy, (WeightOnly, Dynamic))
    return target.effort == "best"
