"""Whether weights are those that a configuration asks for. Knows no files."""

from collections.abc import Mapping

import numpy as np

from ..errors import CqError
from .config import Config
from .deferred import Deferred


def check_weights(config: Config, weights: Mapping[str, np.ndarray | Deferred]) -> None:
    """Raises CqError unless these are the float32 weights and biases of the configuration, by canonical name."""
    shapes = config.shapes()
    missing = [name for name in shapes if name not in weights]
    if missing:
        raise CqError(f"weights: no {missing[0]!r} of shape {shapes[missing[0]]}")
    shapes |= {
        name.removesuffix("weight") + "bias": shape[:1] for name, shape in shapes.items() if name.endswith(".weight")
    }
    if config.lm_head:
        shapes["head.bias"] = (config.vocab_size,)  # of a tied head too
    for name, array in weights.items():
        if name not in shapes:
            raise CqError(f"weights: {name!r} has no place in this configuration; Config.shapes() names what has")
        if not isinstance(array, np.ndarray | Deferred) or array.dtype != np.float32 or array.shape != shapes[name]:
            got = (
                f"{array.dtype} of shape {array.shape}"
                if isinstance(array, np.ndarray | Deferred)
                else type(array).__name__
            )
            raise CqError(f"weights: {name!r}: need a float32 array of shape {shapes[name]}, got {got}")
