"""The head of a sequence classifier: from the first token's last hidden state to a score for each label. Knows no strategy."""
import numpy as np

from .activation import Activation
from .linear import Linear, QuantizedLinear


class Classifier:
    """scores(act(dense(x))). activation: "tanh" (Devlin et al. 2019) or "relu" (Sanh et al. 2019)."""

    def __init__(self, dense: Linear, scores: Linear, activation: str):
        self.dense: Linear | QuantizedLinear = dense
        self.scores: Linear | QuantizedLinear = scores
        self.activation = activation

    def __call__(self, x: np.ndarray, batch) -> np.ndarray:
        """x float32 (sequences, hidden) → float32 (sequences, labels)."""
        batch.tap("classifier.input", x)
        hidden = self.dense(Activation(x))
        if self.activation == "relu":
            hidden = np.maximum(hidden, np.float32(0))
        else:  # rounded from float64: NumPy's float32 one differs in the last bit from one CPU to the next
            hidden = np.tanh(hidden, dtype=np.float64).astype(np.float32)
        batch.tap("classifier.hidden", hidden)
        return self.scores(Activation(hidden))
