"""A convolution over neighbouring tokens beside the first layer (He et al. 2020, DeBERTa-v2). Knows no strategy: it is
in float32 in all of them."""

import numpy as np

from .. import _core
from ..errors import FormatError
from .activation import Activation, decode
from .batch import Batch
from .forms import Fixed
from .linear import Linear, QuantizedLinear
from .norm import Norm

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")


def check_convolution(convolution: dict | None, hidden: int) -> None:
    """Raises FormatError unless `convolution` is None or {"kernel": how many tokens, an odd number; "activation": one
    of ACTIVATIONS}."""
    if convolution is None:
        return
    if not isinstance(convolution, dict) or set(convolution) != {"kernel", "activation"}:
        raise FormatError(f"config: convolution: need null or kernel and activation, got {convolution!r:.200}")
    kernel, activation = convolution["kernel"], convolution["activation"]
    if type(kernel) is not int or not 1 <= kernel * hidden < 2**31 or kernel % 2 == 0:
        raise FormatError(f"config: convolution: need an odd number of tokens as kernel, got {kernel!r:.100}")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise FormatError(f"config: convolution: need an activation of {', '.join(ACTIVATIONS)}, got {activation!r}")


def convolution_shapes(convolution: dict | None, hidden: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of its weights. Columns are those of the first token of the kernel, then those of the next one."""
    if convolution is None:
        return {}
    return {"convolution.weight": (hidden, convolution["kernel"] * hidden), "convolution.norm.weight": (hidden,)}


def neighbours(offsets: np.ndarray, kernel: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, kernel) each: the tokens that the kernel meets around every token, and whether they are of the same
    sequence."""
    lengths = np.diff(offsets)
    first, end = (np.repeat(x, lengths)[:, None] for x in (offsets[:-1], offsets[1:]))
    places = np.arange(offsets[-1])[:, None] + np.arange(-(kernel // 2), kernel // 2 + 1)
    inside = (places >= first) & (places < end)
    return np.where(inside, places, 0), inside


class Convolution:
    """norm(y + act(convolution of x)): x is what the first layer reads, y what it gives. product: (kernel * hidden) →
    hidden features, with the activation."""

    def __init__(self, product: Linear, norm: Norm):
        self.product, self.norm = product, norm

    def __call__(
        self,
        x: np.ndarray | _core.Coded,
        y: np.ndarray,
        batch: Batch,
        readers: tuple[Linear | QuantizedLinear, ...],
        form: Fixed | None,
    ) -> tuple[Activation, np.ndarray | _core.Coded]:
        """x, y (tokens, hidden) → the same for `readers`, and the residual stream that goes on beside it in `form`."""
        floats = decode(x) if isinstance(x, _core.Coded) else x
        places, inside = neighbours(batch.offsets, self.product.shape[0] // floats.shape[1])
        rows = np.where(inside[:, :, None], floats[places], np.float32(0))
        total = y + self.product(Activation(rows.reshape(len(floats), -1)))
        result = self.norm(total, readers, keep_float=True)
        return result, result.take(form)
