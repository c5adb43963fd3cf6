"""quantize(model, strategy): a strategy's module makes a plan, convert makes the model of it."""

import os
from collections.abc import Iterable
from concurrent.futures import Executor

from ..calibrate import Calibration, Progress
from ..convert import convert
from ..errors import CqError
from ..model import Transformer
from ..plan import Plan
from ..strategies import QAT, Dynamic, Mixed, Single, Static, Strategy, WeightOnly, parts
from . import qat
from .dynamic import plan_dynamic
from .effort import prepared
from .mixed import plan_mixed
from .static import calibrated, plan_static
from .weight_only import plan_weight_only


def quantize(
    model: Transformer,
    strategy: Strategy | QAT,
    calibration: Iterable | Calibration | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
    strict: bool = False,
    checkpoint: str | os.PathLike | None = None,
) -> Transformer:
    """Quantizes a model.

    Args:
        model: A float32 `Transformer`. It is not changed; float32 parts are shared with the result. Weights that are
            still in their file are read one at a time.
        strategy: `WeightOnly()`, `Dynamic()`, `Static()`, `Mixed(...)` or `QAT()`.
        calibration: Any iterable of samples, each a text, a 1-D int array of token ids, or a list of either (a batch).
            `Static` needs 100 to 500 typical ones, or a `Calibration` made with this model and observer. `QAT` trains
            on them: thousands where there are, for its loss "pairs" tuples (text or ids, text or ids, score).
            `WeightOnly` and `Dynamic` need none; with some thousand tokens of samples the model is prepared on them
            (effort="best").
        progress: Called with (done, total or None) as work proceeds.
        executor: For `Static`: any `concurrent.futures.Executor`, which runs the samples. The result has the same bits.
        strict: Whether a layer that should be quantized and that int8 cannot hold is an error.
        checkpoint: For `QAT`: a .safetensors file that is saved every 100 steps and at the end. If it exists, the
            training continues from it, to the same bits as without the break.

    Returns:
        A new `Transformer`, which says with `coverage()` what runs in int8.

    Raises:
        CalibrationError: Samples are missing.
        UnsupportedError: With `strict`, a layer cannot be quantized.
        CqError: An argument is wrong.
    """
    _check(model, strategy, progress, strict)
    if executor is None or isinstance(strategy, (Static, QAT)):  # else plan_of says what is wrong
        model, strategy, calibration = prepared(model, strategy, calibration, progress)
    if isinstance(strategy, QAT):
        if executor is not None:
            raise CqError("executor: QAT trains in this process; leave it out")
        trained, plan = qat.trained(model, strategy, calibration, progress, checkpoint)
        return convert(trained, plan, strict=strict)
    if checkpoint is not None:
        raise CqError(f"checkpoint: QAT alone trains; leave it out for {type(strategy).__name__}")
    plan = plan_of(model, strategy, calibration, progress, executor)
    return convert(model, plan, progress=progress, strict=strict)


def plan_of(
    model: Transformer,
    strategy: Strategy,
    calibration: Iterable | Calibration | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Plan:
    """What `quantize` converts the model by; the same arguments and errors."""
    static = [part for part in parts(strategy) if isinstance(part, Static)]
    if not static and (calibration is not None or executor is not None):
        name = "executor" if calibration is None else "calibration"
        if isinstance(strategy, Mixed):
            raise CqError(f"{name}: only Static uses samples, and this mix has none; leave it out")
        raise CqError(f"{name}: only Static uses samples in a plan; leave it out for {type(strategy).__name__}")
    if len(static) > 1 and isinstance(calibration, Iterable) and not isinstance(calibration, str):
        calibration = list(calibration)  # gone over once for each

    def of(part: Single) -> Plan:
        if isinstance(part, WeightOnly):
            return plan_weight_only(model.config, part)
        if isinstance(part, Dynamic):
            return plan_dynamic(model.config, part)
        return plan_static(model, part, calibrated(model, part, calibration, progress, executor), progress)

    return plan_mixed(model.config, strategy, of) if isinstance(strategy, Mixed) else of(strategy)


def _check(model: object, strategy: object, progress: object, strict: object) -> None:
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
