"""What a measurement is given, checked at the door: a float32 model, strategies, samples to calibrate on. Measures nothing."""
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import CalibrationError, CqError
from ..formats import load
from ..strategies import QAT, STRATEGIES, Mixed, Static, parts
from .samples import Samples, read, shipped_model


def opened(model, what: str) -> tuple[str, object, Path | None]:
    """Name, float32 model and, for the shipped one, the file to calibrate on. what: the work that needs it, for messages."""
    if isinstance(model, (str, os.PathLike)):
        path, model = Path(model), load(model)
        shipped = path.resolve() == shipped_model()
        name, calibration = (path.name, shipped_model() / "calibration.txt") if shipped else (str(path), None)
    else:
        name, calibration = getattr(model.config, "family", "model"), None
    if model.strategy is not None:
        raise CqError(f"{what} needs a float32 model, got one already quantized ({model.strategy.name}): load its original")
    return name, model, calibration


def checked(strategies) -> tuple:
    """Strategy objects of any kind, one or several."""
    strategies = tuple(strategies) if isinstance(strategies, Iterable) else (strategies,)
    for strategy in strategies:
        if not isinstance(strategy, (*STRATEGIES.values(), Mixed, QAT)):
            raise CqError(f"strategies must be WeightOnly, Dynamic, Static, Mixed or QAT objects, got {strategy!r}")
    return strategies


def needs_samples(strategy) -> bool:
    return isinstance(strategy, QAT) or any(isinstance(part, Static) for part in parts(strategy))


def calibration_for(strategies, calibration, model, samples: Samples) -> Samples | None:
    """The samples to calibrate on, or None where no strategy needs any."""
    needs = next((strategy.name for strategy in strategies if needs_samples(strategy)), None)
    if needs is None:
        return None
    if calibration is None:
        raise CalibrationError(f"{needs} needs samples to calibrate on: give calibration (--calibration on the command line), "
                               f"100–500 unlabeled samples that are not in the data, or leave {needs} out of the strategies")
    calibration = read(calibration, model)
    shared = {path.resolve() for path in calibration.sources} & {path.resolve() for path in samples.sources}
    if shared:
        raise CqError(f"calibration and data share {min(shared)}: never calibrate on what is reported; give other samples")
    if {ids.tobytes() for ids in calibration} == {ids.tobytes() for ids in samples}:
        raise CqError("calibration and data are the same samples: never calibrate on what is reported; give other samples")
    return calibration
