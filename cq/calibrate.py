"""Runs a float32 model over samples and lets one observer watch each place where static int8 needs a range. Knows no schemes."""
from collections.abc import Callable, Iterable

import numpy as np

from . import observers
from .errors import CalibrationError, CqError
from .model import Transformer


def calibrate(model: Transformer, samples: Iterable, observer: str,
              progress: Callable[[int, int | None], None] | None = None) -> dict[str, observers.Observer]:
    """Site name → the observer that saw all of its values. Sites: "layers.0.attention.input", ".query", ".key", ".value",
    ".context", "layers.0.ffn.input", ".gate", ".up", ".hidden", "head.input".

    samples: any iterable of samples, each a text, a 1-D int array of token ids, or a list of either (a batch); 100-500 are
    usual. `progress(done, total or None)` is called after each. Raises CalibrationError where there are none."""
    if isinstance(samples, (str, bytes)) or not isinstance(samples, Iterable):
        raise CqError(f"calibration: need an iterable of texts or token arrays, got {type(samples).__name__}")
    seen: dict[str, observers.Observer] = {}

    def watch(site: str, x: np.ndarray) -> None:
        if site not in seen:
            seen[site] = observers.make(observer)
        seen[site].update(x)

    total = len(samples) if hasattr(samples, "__len__") else None
    for done, sample in enumerate(samples, 1):
        batch = sample if isinstance(sample, (list, tuple)) and not _is_ids(sample) else [sample]
        model.observe(batch, watch)
        if progress is not None:
            progress(done, total)
    if not seen:
        raise CalibrationError("calibration: no samples came; give 100-500 typical texts or token arrays")
    return seen


def _is_ids(sample: list | tuple) -> bool:
    """A list of plain numbers is one sequence of ids, not a batch."""
    return bool(sample) and all(isinstance(item, (int, np.integer)) for item in sample)
