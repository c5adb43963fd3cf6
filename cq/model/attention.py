"""Self-attention over ragged sequences: projections, rotary positions, softmax. Knows no strategy, only its forms."""
import numpy as np

from .. import _core
from ..errors import UnsupportedError
from .activation import Activation, Fixed, encode
from .linear import INT32_MAX, Linear, QuantizedLinear

MAX_KEYS = INT32_MAX // (255 * 255)  # of int8 attention: a sum of so many weights times values fits int32


class Rotary:
    """Cosine and sine tables of rotary positions (Su et al. 2021), grown as longer sequences come.

    Angles round to float32 at each step, as in common implementations. Powers, cosines and sines are rounded from float64:
    NumPy's float32 ones differ in the last bit from one CPU to the next."""

    def __init__(self, dim: int, theta: float):
        exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        self.frequency = np.float32(1) / np.power(theta, exponent, dtype=np.float64).astype(np.float32)
        self._tables = (np.empty((0, dim // 2), np.float32),) * 2

    def tables(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """float32 (at least length, dim / 2) each."""
        tables = self._tables  # read and replaced as one: other threads may do so at the same time
        if length > len(tables[0]):
            angle = np.outer(np.arange(max(length, 2 * len(tables[0]), 256), dtype=np.float32), self.frequency)
            tables = self._tables = tuple(f(angle, dtype=np.float64).astype(np.float32) for f in (np.cos, np.sin))
        return tables


class Attention:
    """query, key, value, output: linear layers. forms: None (float32 scores), or the Fixed forms of q, k and v (int8 scores)."""

    def __init__(self, query, key, value, output, heads: int, kv_heads: int, dim: int, causal: bool, rotary: Rotary | None):
        self.query: Linear | QuantizedLinear = query
        self.key: Linear | QuantizedLinear = key
        self.value: Linear | QuantizedLinear = value
        self.output: Linear | QuantizedLinear = output
        self.heads, self.kv_heads, self.causal, self.rotary = heads, kv_heads, causal, rotary
        self.scale = float(np.float32(dim ** -0.5))
        self.forms: tuple[Fixed, Fixed, Fixed] | None = None

    def readers(self) -> tuple:
        """The layers that read this part's input."""
        return self.query, self.key, self.value

    def __call__(self, x: Activation, batch, residual: np.ndarray, site: str) -> np.ndarray:
        """x (tokens, hidden) → output projection + residual, float32 (tokens, hidden). Raises UnsupportedError for sequences
        longer than MAX_KEYS where scores are int8."""
        if self.forms and batch.longest > MAX_KEYS:
            raise UnsupportedError(f"static attention sums at most {MAX_KEYS:,} tokens in int32, this sequence has "
                                   f"{batch.longest:,}; cut it, or use Dynamic(), whose scores are float32")
        q, k, v = self._project(x, batch)
        batch.tap(site + "query", q), batch.tap(site + "key", k), batch.tap(site + "value", v)
        reads = self.output.input_form
        form = reads if self.forms and isinstance(reads, Fixed) else None
        context = _core.attention(q, k, v, batch.offsets, self.heads, self.kv_heads, self.causal, self.scale, form)
        batch.tap(site + "context", context)
        return self.output(Activation.of(context, form), residual).values

    def _project(self, x: Activation, batch) -> list:
        """q, k, v: float32, or codes where this part has forms. Rotation needs float32, so q and k pass through it."""
        parts = []
        for layer, form, heads in zip((self.query, self.key, self.value), self.forms or (None,) * 3,
                                      (self.heads, self.kv_heads, None)):
            if self.rotary is None or heads is None:
                parts.append(layer(x, form=form).take(form))
                continue
            y = layer(x).values
            _core.rope(y, heads, *self.rotary.tables(batch.longest), batch.positions)
            parts.append(y if form is None else encode(y, form))
        return parts
