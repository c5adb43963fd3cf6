"""What a masked language model does with final states before its head: a layer, its activation, a norm. Knows no
strategy."""

from .activation import Activation
from .batch import Batch
from .linear import Linear, QuantizedLinear
from .norm import Norm


class Transform:
    """norm(act(dense(x))) (Devlin et al. 2019); the activation is the layer's."""

    def __init__(self, dense: Linear, norm: Norm):
        self.dense: Linear | QuantizedLinear = dense
        self.norm = norm

    def __call__(self, x: Activation, readers: tuple, batch: Batch | None = None) -> Activation:
        """x (tokens, hidden) → the same for `readers`, and in float32 for whoever observes the batch."""
        if batch is None or batch.observe is None:
            return self.norm(self.dense(x), readers)
        result = self.norm(self.dense(x), readers, keep_float=True)
        batch.tap("head.input", result.values)
        return result
