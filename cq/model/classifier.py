"""The head of a sequence classifier: from the first token's last hidden state to a score for each label. Knows no
strategy."""

import numpy as np

from .. import functions
from .activation import Activation
from .batch import Batch
from .linear import Linear, QuantizedLinear


class Classifier:
    """scores(act(dense(x))). activation: "tanh" (Devlin et al. 2019) or "relu" (Sanh et al. 2019)."""

    def __init__(self, dense: Linear, scores: Linear, activation: str):
        self.dense: Linear | QuantizedLinear = dense
        self.scores: Linear | QuantizedLinear = scores
        self.activation = activation

    def __call__(self, x: np.ndarray, batch: Batch) -> np.ndarray:
        """x float32 (sequences, hidden) → float32 (sequences, labels)."""
        batch.tap("classifier.input", x)
        hidden = self.dense(Activation(x))
        if self.activation == "relu":
            hidden = np.maximum(hidden, np.float32(0))
        else:
            hidden = functions.tanh(hidden)
        batch.tap("classifier.hidden", hidden)
        return self.scores(Activation(hidden))
