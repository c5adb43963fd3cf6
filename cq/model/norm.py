"""Layer norm and RMS norm, one pass with the residual before and the codes after. Knows no layers."""
import numpy as np

from .. import _core
from .activation import Activation, Fixed, Form, PerToken


class Norm:
    """(x + residual - mean) / sqrt(var + eps) * weight + bias (Ba et al. 2016), or x / rms(x) * weight (Zhang, Sennrich 2019)."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None, eps: float, rms: bool):
        self.weight, self.bias, self.eps, self.rms = weight, bias, eps, rms

    def arrays(self) -> list[np.ndarray]:
        return [a for a in (self.weight, self.bias) if a is not None]

    def __call__(self, x: np.ndarray, readers: tuple = (), keep_float: bool = False) -> Activation:
        """x float32 (tokens, hidden). The codes that all `readers` (linear layers) want alike are made in the same pass, and
        float32 is left out where nobody reads it."""
        forms = {reader.input_form for reader in readers}
        form: Form = next(iter(forms)) if len(forms) == 1 else None
        fused = form if isinstance(form, (PerToken, Fixed)) else None
        y, codes, _ = _core.norm(x, self.weight, self.bias, self.eps, self.rms, None, fused, keep_float or fused is None)
        return Activation(y, {fused: codes} if fused is not None else None)
