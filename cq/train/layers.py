"""The layers of the transformer but attention, forward and in reverse. Products of codes run on the integer kernels. A
layer keeps what its reverse needs from one forward to the next. It works in its inputs' precision: float32 to train,
float64 to check gradients. Knows no whole model.

backward(g) takes the gradient of the output and returns that of the input; gradients of parameters go to
`parameters`."""

import numpy as np

from .. import _core, functions
from ..errors import UnsupportedError
from ..model.rope import frequencies, turning_point
from ..weights import Weight, pack
from .batch import Packed
from .fake import Codes, LearnedWeight, WeightRange, fake_bias
from .parameters import Parameters
from .passes import column_sums, hadamard, matmul, norm, norm_back, rescale

# So many products of codes, which reach 255 * 255, add up to half of int32's end at most; the rest is for a bias.
INTEGER_K, INTEGER_BIAS = 2**30 // 255**2, 2**30 - 1
MOST_COPIED = 1 << 22  # elements of a weight


class Linear:
    """y = x w.T + b of activations x (tokens, inputs), coded or not. fake: how the weight becomes codes, None: it does
    not."""

    def __init__(
        self, parameters: Parameters, weight: str, bias: str, fake: WeightRange | None, bias_kind: str, fixed: bool
    ):
        self.parameters, self.name, self.fake, self.bias_kind, self.fixed = parameters, weight, fake, bias_kind, fixed
        self.bias = bias if bias in parameters.values else None
        self.x: Codes | None = None  # what the reverse needs
        self._coded: tuple[Codes, Weight | None] | None = None

    @property
    def weight(self) -> np.ndarray:
        """(outputs, inputs)."""
        return self.parameters.values[self.name]

    @property
    def codes(self) -> Codes:
        """Of the weight, as it was when they were first asked for since `refresh`."""
        return self._code()[0]

    @property
    def packed(self) -> Weight | None:
        """The same as integer products take it, None where they cannot."""
        return self._code()[1]

    def _code(self) -> tuple[Codes, Weight | None]:
        if self._coded is None:
            codes = Codes(self.weight) if self.fake is None else self.fake(self.weight)
            stored = codes.stored
            self._coded = codes, None if stored is None or stored.columns > INTEGER_K else packed(stored)
        return self._coded

    def refresh(self) -> None:
        """Forgets the weight's codes, which are made anew when asked for; to be called whenever it has changed."""
        self._coded = None
        if isinstance(self.fake, LearnedWeight):
            self.fake.forget()

    def forget(self) -> None:
        """Forgets what the reverse needs, too."""
        self.x = None
        self.refresh()

    def forward(self, x: Codes) -> np.ndarray:
        """(tokens, outputs)."""
        self.x = x
        before, after = self._biases(x)
        if x.stored is not None and self.packed is not None:
            before = None if before is None else before.clip(-INTEGER_BIAS, INTEGER_BIAS).astype(np.int32)
            product = _core.linear(x.stored, self.packed, after, before)
            assert isinstance(product, np.ndarray), "no form was asked for"
            return product
        y = matmul(x.values, self.codes.values.T)
        before = None if before is None else before.astype(y.dtype)
        row_scales = x.scale[:, 0] if isinstance(x.scale, np.ndarray) else None
        scale = self._scale(x)
        if scale is None and after is None:
            return y
        return rescale(y, 1 if scale is None else scale, before, row_scales, after, out=y)

    def _biases(self, x: Codes) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What is added to the product of codes, and to what it stands for."""
        if self.bias is None:
            return None, None
        bias = self.parameters.values[self.bias]
        if self.fake is None:
            return None, bias
        return fake_bias(bias, self.bias_kind, self.fixed, x, self.codes)

    def _scale(self, x: Codes) -> np.ndarray | float | None:
        """What multiplies the product of codes, apart from tokens' own scales; None: 1."""
        own = self.codes.scale
        if x.scale is None or isinstance(x.scale, np.ndarray):
            return own
        return x.scale if own is None else x.scale * own

    def backward(self, g: np.ndarray) -> np.ndarray:
        """(tokens, inputs). g is left as it is. Of the rounded values of x and w, not of their codes."""
        assert self.x is not None, "backward comes after forward"
        x, self.x = self.x, None
        if self.bias is not None:
            self.parameters.add(self.bias, column_sums(g))
        dx = self._inputs_back(g)
        if isinstance(x.scale, np.ndarray):
            scaled = rescale(g, 1, row_scales=x.scale[:, 0])
            self.parameters.add_product(self.name, scaled.T, x.values)
        else:
            self.parameters.add_product(self.name, g.T, x.values, x.scale)
        return dx

    def _inputs_back(self, g: np.ndarray) -> np.ndarray:
        """The gradient of the inputs' rounded values. Products copy what they multiply, so a word table takes part in
        several, which continue one sum."""
        w = self.codes
        dx: np.ndarray | None = None
        step = max(1, MOST_COPIED // w.values.shape[1])
        for start in range(0, len(w.values), step):
            some = slice(start, start + step)
            part = np.ascontiguousarray(g[:, some])
            if w.scale is not None:
                part = rescale(part, w.scale[some] if isinstance(w.scale, np.ndarray) and w.scale.ndim else w.scale)
            dx = matmul(part, w.values[some], dx, dx is not None)
        assert dx is not None, "a layer has outputs"
        return dx


def packed(stored: _core.Coded) -> Weight:
    """A weight (outputs, inputs) in bytes as integer products take it."""
    scales, zero_points = (
        np.array(np.broadcast_to(p, (1, stored.rows)), kind)
        for p, kind in ((stored.scale, np.float32), (stored.zero_point, np.int32))
    )
    zero_points -= 128
    return pack((stored.codes ^ 128).view(np.int8).T, zero_points if zero_points.any() else None, scales)


class Norm:
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang, Sennrich 2019)."""

    def __init__(self, parameters: Parameters, name: str, eps: float, rms: bool):
        self.parameters, self.eps, self.rms, self.name = parameters, eps, rms, name + ".weight"
        self.bias = name + ".bias" if name + ".bias" in parameters.values else None
        self.kept: list[np.ndarray] = []  # what the reverse needs: what weight and bias follow, and rows' divisors

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(tokens, hidden) → the same."""
        bias = None if self.bias is None else self.parameters.values[self.bias]
        y, *self.kept = norm(x, self.parameters.values[self.name], bias, self.eps, self.rms)
        return y

    def backward(self, g: np.ndarray) -> np.ndarray:
        (kept, factor), self.kept = self.kept, []
        dx, of_weight = norm_back(g, self.parameters.values[self.name], kept, factor, self.rms)
        self.parameters.add(self.name, column_sums(of_weight))
        if self.bias is not None:
            self.parameters.add(self.bias, column_sums(g))
        return dx

    def forget(self) -> None:
        self.kept = []


class Rotary:
    """Rotary positions (Su et al. 2021) over the first `turned` features of heads of `dim`: first half and second half
    of these are the two coordinates. Angles round to float32 and their cosines from float64, as the model's own do.
    hadamard: as of the model's Rotary, or None."""

    def __init__(self, dim: int, turned: int, theta: float, scaling: dict | None = None, hadamard: int | None = None):
        self.hadamard = hadamard
        if turning_point(scaling) is not None:
            raise UnsupportedError("train: rotary positions scaled by longrope are not implemented here")
        self.dim, (self.frequency, self.factor) = dim, frequencies(turned, theta, scaling)
        self._last: tuple = (None, None, None)  # the tables that were asked for last, and by what

    def tables(self, positions: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines (tokens, 1, turned / 2) of positions (tokens,)."""
        if self._last[0] is not positions or self._last[1] != dtype:
            self._last = positions, dtype, self._tables(positions, dtype)
        found: tuple[np.ndarray, np.ndarray] = self._last[2]
        return found

    def _tables(self, positions: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        angle = np.outer(positions.astype(np.float32), self.frequency).astype(np.float64)[:, None]
        turns = functions.cos(angle), functions.sin(angle)
        cosine, sine = ((turn * self.factor).astype(np.float32).astype(dtype) for turn in turns)
        return cosine, sine

    def forward(self, x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
        """x (tokens, heads * dim) turned by the angles, a new array."""
        return hadamard(self._turned(x, cosine, sine), self.hadamard)

    def backward(self, g: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
        """Turned back: both steps are orthogonal, and the transform is symmetric. g may be changed."""
        return self._turned(hadamard(g, self.hadamard), cosine, -sine)

    def _turned(self, x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
        half = cosine.shape[2]
        heads = x.reshape(len(x), -1, self.dim)
        a, b = heads[:, :, :half], heads[:, :, half : 2 * half]
        y = np.empty_like(heads)
        y[:, :, 2 * half :] = heads[:, :, 2 * half :]
        np.multiply(a, cosine, out=y[:, :, :half])
        y[:, :, :half] -= b * sine
        np.multiply(b, cosine, out=y[:, :, half : 2 * half])
        y[:, :, half : 2 * half] += a * sine
        return y.reshape(x.shape)


class Embedding:
    """Word, position and type rows, summed in this order; all tokens are of type 0. word: how the table becomes codes,
    a Linear that shares it (a tied head), or None. offset: rows of the position table before the first token's. scale:
    multiplies word rows."""

    def __init__(self, parameters: Parameters, fake: WeightRange | Linear | None, offset: int = 0, scale: float = 1.0):
        self.parameters, self.fake, self.offset, self.scale = parameters, fake, offset, scale

    def forward(self, batch: Packed) -> np.ndarray:
        """(tokens, hidden)."""
        self.batch = batch
        values = self.parameters.values
        x = self._words(values["embed.word"], batch.ids)
        if self.scale != 1:
            x *= np.asarray(self.scale, x.dtype)
        if "embed.position" in values:
            x += values["embed.position"][batch.positions + self.offset]
        if "embed.type" in values:
            x += values["embed.type"][0]
        return x

    def _words(self, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if self.fake is None:
            return np.asarray(table[ids])
        if isinstance(self.fake, Linear):
            codes = self.fake.codes
            rows, scale = codes.values[ids], np.asarray(codes.scale)
            scale = scale[ids] if scale.ndim else scale
        else:  # the words at hand, in the whole table's range where that is one
            codes = self.fake(table[ids], table)
            rows, scale = codes.values, np.asarray(codes.scale)
        rows *= scale[:, None] if scale.ndim else scale
        return np.asarray(rows)

    def backward(self, g: np.ndarray) -> None:
        words = g if self.scale == 1 else g * np.asarray(self.scale, g.dtype)
        self.parameters.add_rows("embed.word", self.batch.ids, words)
        if "embed.position" in self.parameters.values:
            self.parameters.add_rows("embed.position", self.batch.positions + self.offset, g)
        if "embed.type" in self.parameters.values:
            self.parameters.add_rows("embed.type", np.zeros(1, np.int64), column_sums(g)[None])
