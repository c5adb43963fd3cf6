"""The head of a sequence classifier: from one token's last hidden state, the first one's or of a decoder the last
one's, to a score for each label. Knows no strategy."""

import numpy as np

from .. import functions
from .activation import Activation
from .batch import Batch
from .linear import Linear, QuantizedLinear


class Classifier:
    """scores(act(dense(x))), or scores(x) where dense is None. activation: "tanh" (Devlin et al. 2019), "relu" (Sanh
    et al. 2019) or "gelu" (Clark et al. 2020), which `dense` has in its own pass."""

    def __init__(self, dense: Linear | None, scores: Linear, activation: str):
        self.dense: Linear | QuantizedLinear | None = dense
        self.scores: Linear | QuantizedLinear = scores
        self.activation = activation

    def __call__(self, x: np.ndarray, batch: Batch) -> np.ndarray:
        """x float32 (sequences, hidden) → float32 (sequences, labels)."""
        batch.tap("classifier.input", x)
        if self.dense is None:
            return self.scores(Activation(np.ascontiguousarray(x)))
        hidden = self.dense(Activation(x))
        if self.activation == "relu":
            hidden = np.maximum(hidden, np.float32(0))
        elif self.activation == "tanh":
            hidden = functions.tanh(hidden)
        batch.tap("classifier.hidden", hidden)
        return self.scores(Activation(hidden))
