"""What a measurement is given, checked at the door: a float32 model, strategies, samples to calibrate on. Measures
nothing."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CalibrationError, CqError
from ..formats import load
from ..model import Transformer
from ..strategies import QAT, Dynamic, Mixed, Static, Strategy, WeightOnly, parts
from .samples import Samples, Source, read, shipped_model


@dataclass(frozen=True, eq=False)
class Ready:
    """A model that was quantized before, by the name of its file."""

    name: str
    model: Transformer


Chosen = Strategy | QAT | Ready


def opened(model: str | os.PathLike | Transformer, what: str) -> tuple[str, Transformer, Path | None]:
    """Name, float32 model and, for the shipped one, the file to calibrate on. what: the work that needs it, for
    messages."""
    if isinstance(model, (str, os.PathLike)):
        path, model = Path(model), load(model)
        shipped = path.resolve() == shipped_model()
        name, calibration = (path.name, shipped_model() / "calibration.txt") if shipped else (str(path), None)
    elif isinstance(model, Transformer):
        name, calibration = model.config.family, None
    else:
        raise CqError(f"model: need a cq.Transformer or the path of one for {what}, got {type(model).__name__}")
    if model.strategy is not None:
        raise CqError(
            f"{what} needs a float32 model, got one already quantized ({model.strategy.name}): load its original"
        )
    return name, model, calibration


def checked(strategies: object, original: Transformer | None = None) -> tuple[Chosen, ...]:
    """Strategy objects of any kind, one or several; beside a model also paths of what was quantized from it before,
    loaded."""
    if isinstance(strategies, Iterable) and not isinstance(strategies, str):
        return tuple(_checked(strategy, original) for strategy in strategies)
    return (_checked(strategies, original),)


def _checked(strategy: object, original: Transformer | None) -> Chosen:
    if isinstance(strategy, (WeightOnly, Dynamic, Static, Mixed, QAT)):
        return strategy
    text = isinstance(strategy, str) and not strategy.endswith(".safetensors")
    if original is None or text or not isinstance(strategy, (str, os.PathLike)):
        more = "" if original is None else ", or paths of models quantized before"
        raise CqError(f"strategies must be WeightOnly, Dynamic, Static, Mixed or QAT objects{more}, got {strategy!r}")
    model = load(strategy)
    if model.strategy is None:
        raise CqError(
            f"strategies: {strategy} is a float32 model; give one that cq.quantize made of the model compared"
        )
    changed = {name: getattr(original.config, name) for name in ("tied", "hadamard", "head_hadamard")}  # by rotate
    if replace(model.config, **changed) != original.config:
        raise CqError(f"strategies: {strategy} was made of a model with another configuration than the one compared")
    return Ready(Path(strategy).name, model)


def needs_samples(strategy: Chosen) -> bool:
    if isinstance(strategy, Ready):
        return False
    if isinstance(strategy, QAT) or any(isinstance(part, Static) for part in parts(strategy)):
        return True
    return not isinstance(strategy, Mixed) and strategy.effort == "best"


def calibration_for(
    strategies: Iterable[Chosen], calibration: Source | None, model: Transformer, samples: Samples
) -> Samples | None:
    """The samples to calibrate on, or None where no strategy needs any."""
    needs = next((strategy.name for strategy in strategies if needs_samples(strategy)), None)
    if needs is None:
        return None
    if calibration is None:
        raise CalibrationError(
            f"{needs} needs samples to calibrate on: give calibration (--calibration on the command line), "
            f"100–500 unlabeled samples that are not in the data, or leave {needs} out of the strategies"
        )
    calibration = read(calibration, model)
    shared = {path.resolve() for path in calibration.sources} & {path.resolve() for path in samples.sources}
    if shared:
        raise CqError(
            f"calibration and data share {min(shared)}: never calibrate on what is reported; give other samples"
        )
    if {ids.tobytes() for ids in calibration} == {ids.tobytes() for ids in samples}:
        raise CqError(
            "calibration and data are the same samples: never calibrate on what is reported; give other samples"
        )
    return calibration
