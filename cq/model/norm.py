"""Layer norm and RMS norm, one pass with the residual before and the codes after. Knows no layers."""

from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from .activation import Activation
from .forms import common_form

if TYPE_CHECKING:
    from .linear import Linear, QuantizedLinear


class Norm:
    """(x + residual - mean) / sqrt(var + eps) * weight + bias (Ba et al. 2016), or x / rms(x) * weight (Zhang, Sennrich
    2019)."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None, eps: float, rms: bool):
        self.weight, self.bias, self.eps, self.rms = weight, bias, eps, rms

    def arrays(self) -> list[np.ndarray]:
        return [a for a in (self.weight, self.bias) if a is not None]

    def __call__(
        self, x: np.ndarray, readers: "tuple[Linear | QuantizedLinear, ...]" = (), keep_float: bool = False
    ) -> Activation:
        """x float32 (tokens, hidden). The codes that all readers want are made in the same pass, and float32 is left
        out where nobody reads it."""
        form = common_form(readers)
        y, codes, _ = _core.norm(x, self, form=form, keep_float=keep_float or form is None)
        return Activation(y, None if codes is None else {form: codes})
