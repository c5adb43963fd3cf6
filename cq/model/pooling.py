"""From the hidden states of a sequence to its embedding. Knows no tokens."""

import math

import numpy as np

from .config import Config


def pool(hidden: np.ndarray, config: Config) -> np.ndarray:
    """The embedding (hidden,) of one sequence from its final hidden states (len, hidden), for a model that pools."""
    kind = config.pooling
    if kind in ("cls", "last"):
        row = hidden[0 if kind == "cls" else -1]
    elif kind == "max":
        row = hidden.max(0)
    else:
        row = hidden.sum(0) / np.float32(len(hidden) if kind == "mean" else math.sqrt(len(hidden)))
    if not config.normalize:
        return row
    length = np.sqrt(np.square(row, dtype=np.float64).sum())
    return row / np.float32(max(length, 1e-12))
