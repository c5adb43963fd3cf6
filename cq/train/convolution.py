"""The convolution beside the first layer (He et al. 2020), forward and in reverse. Knows no other layers."""

import numpy as np

from ..model import Config
from ..model.convolution import neighbours
from .batch import Packed
from .fake import Codes
from .layers import Linear, Norm
from .parameters import Parameters
from .passes import activate


class Convolution:
    """As the model's: norm(y + act(convolution of x)), in float32."""

    def __init__(self, parameters: Parameters, config: Config, norm: Norm):
        assert config.convolution is not None, "asked for where there is one"
        self.kernel, self.activation = config.convolution["kernel"], config.convolution["activation"]
        self.product = Linear(parameters, "convolution.weight", "convolution.bias", None, "float32", False)
        self.norm = norm

    @classmethod
    def of(cls, parameters: Parameters, config: Config, norms: dict[str, Norm]) -> "Convolution | None":
        return None if config.convolution is None else cls(parameters, config, norms["convolution.norm"])

    def forward(self, x: np.ndarray, y: np.ndarray, batch: Packed) -> np.ndarray:
        """x: what the first layer reads, y: what it gives, (tokens, hidden)."""
        self.places, self.inside = neighbours(batch.starts, self.kernel)
        rows = np.where(self.inside[:, :, None], x[self.places], x.dtype.type(0))
        self.product.refresh()
        activated, self.slope = activate(self.product.forward(Codes(rows.reshape(len(x), -1))), self.activation)
        return self.norm.forward(y + activated)

    def backward(self, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gradients of x and y, of that of what `forward` gave."""
        g = self.norm.backward(g)
        rows = self.product.backward(g * self.slope).reshape(*self.places.shape, -1)
        x = np.zeros_like(g)
        for tap, (places, inside) in enumerate(zip(self.places.T, self.inside.T)):
            x[places[inside]] += rows[inside, tap]  # each of these tokens once
        return x, g

    def forget(self) -> None:
        """Frees what the reverse needs."""
        self.places = self.inside = self.slope = np.empty(0)
        self.product.forget()
        self.norm.forget()
