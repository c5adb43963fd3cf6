"""Self-attention over ragged sequences: projections, rotary positions, softmax. Knows no strategy, only its forms."""

from typing import TYPE_CHECKING, ClassVar, overload

import numpy as np

from .. import _core, functions
from ..errors import UnsupportedError
from . import unseen
from .activation import Activation
from .batch import Batch
from .forms import Fixed, PerHead, Smoothed
from .linear import Linear, QuantizedLinear, Then, joined
from .norm import Norm
from .overflow import INT32_MAX
from .position_bias import PositionBias, RelativePositions
from .rope import frequencies, turning_point

if TYPE_CHECKING:
    from .cache import KVCache

_Joint = tuple[Linear | QuantizedLinear | None, PerHead | Smoothed | None]

MAX_KEYS = INT32_MAX // (255 * 255)  # of int8 attention: a sum of so many weights times values fits int32


class Rotary:
    """Cosine and sine tables of rotary positions (Su et al. 2021), grown as longer sequences come.

    Angles round to float32, as in common implementations. Cosines and sines are rounded from float64. hadamard: the
    size of blocks that are transformed of each head that was rotated (Config.head_hadamard); 0: none."""

    def __init__(self, dim: int, theta: float, scaling: dict | None = None, hadamard: int | None = None):
        self.hadamard = hadamard or 0
        self.turning_point = turning_point(scaling)
        kinds = (False,) if self.turning_point is None else (False, True)
        self.frequencies = [frequencies(dim, theta, scaling, long) for long in kinds]
        none = np.empty((0, dim // 2), np.float32)
        self._tables: list[tuple[np.ndarray, np.ndarray]] = [(none, none) for _ in kinds]

    def tables(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """float32 (at least length, dim / 2) each, for sequences whose longest is `length`."""
        kind = int(self.turning_point is not None and length > self.turning_point)
        tables = self._tables[kind]  # read and replaced as one: other threads may do so at the same time
        if length > len(tables[0]):
            frequency, factor = self.frequencies[kind]
            angle = np.outer(np.arange(max(length, 2 * len(tables[0]), 256), dtype=np.float32), frequency)
            cosine, sine = (f(angle.astype(np.float64)) * factor for f in (functions.cos, functions.sin))
            tables = cosine.astype(np.float32), sine.astype(np.float32)
            self._tables[kind] = tables
        return tables


class Attention:
    """query, key, value, output: linear layers. window: how many tokens a causal one's token sees, itself included, or
    another's on either side; None: all. scale: of queries' products with keys; cap: scores become cap * tanh(score /
    cap), or None. forms: of q, k and v where scores are int8: three Fixed ones (static),
    the last of which may be Smoothed, or PerHead; None: float32 scores."""

    _NOT_JOINED: ClassVar[tuple[None, None, None, None, _Joint]] = (None, None, None, None, (None, None))

    def __init__(
        self,
        query: Linear,
        key: Linear,
        value: Linear,
        output: Linear,
        heads: int,
        kv_heads: int,
        dim: int,
        causal: bool,
        rotary: Rotary | None,
        window: int | None,
        scale: float,
        cap: float | None,
    ):
        self.query: Linear | QuantizedLinear = query
        self.key: Linear | QuantizedLinear = key
        self.value: Linear | QuantizedLinear = value
        self.output: Linear | QuantizedLinear = output
        self.heads, self.kv_heads, self.dim, self.causal, self.rotary = heads, kv_heads, dim, causal, rotary
        self.window, self.scale, self.cap = window, float(np.float32(scale)), float(np.float32(cap or 0.0))
        self.forms: tuple[Fixed, Fixed, Fixed | Smoothed] | PerHead | None = None
        self.query_norm: Norm | None = None  # of each head's queries and keys, or all heads', before they turn
        self.key_norm: Norm | None = None
        self.bias: PositionBias | None = None  # of scores, by distance
        self.relative: RelativePositions | None = None  # which queries and keys meet
        self._derived: tuple[object, object, object, object, _Joint] = self._NOT_JOINED

    def __getstate__(self) -> dict:
        """Of a copy, pickled or not: it joins its own layers."""
        return self.__dict__ | {"_derived": self._NOT_JOINED}

    def _joined(self) -> _Joint:
        """(the three layers as one, or None; the form of all three), made again where a layer or the forms were
        replaced."""
        query, key, value, forms, result = self._derived
        if query is not self.query or key is not self.key or value is not self.value or forms is not self.forms:
            form = Smoothed.of(self.forms, self._widths()) if isinstance(self.forms, tuple) else self.forms
            result = joined((self.query, self.key, self.value)), form
            # after joining, which other threads may do as well: either's result will do
            self._derived = self.query, self.key, self.value, self.forms, result
        return result

    @property
    def form(self) -> PerHead | Smoothed | None:
        """The form in which queries, keys and values, side by side, meet; None: float32."""
        return self._joined()[1]

    def _widths(self) -> tuple[int, int, int]:
        return self.heads * self.dim, self.kv_heads * self.dim, self.kv_heads * self.dim

    def pairs(self, tokens: int) -> int:
        """How many pairs of query and key a sequence of so many tokens has."""
        back = tokens - 1 if self.window is None else min(tokens - 1, self.window - self.causal)
        before = (back + 1) * tokens - back * (back + 1) // 2  # itself, and up to `back` before it
        return before if self.causal else 2 * before - tokens

    def readers(self) -> tuple[Linear | QuantizedLinear, ...]:
        """The layers that read this part's input."""
        joint, _ = self._joined()
        return (self.query, self.key, self.value) if joint is None else (joint,)

    def __call__(
        self, x: Activation, batch: Batch, site: str, then: Then
    ) -> tuple[Activation, np.ndarray | _core.Coded]:
        """x (tokens, hidden) → what follows the output projection. Raises UnsupportedError for sequences longer than
        MAX_KEYS where scores are int8."""
        if batch.cache is not None:
            return self._cached(x, batch, batch.cache, site, then)
        if self.forms and batch.longest > MAX_KEYS:
            raise UnsupportedError(
                f"int8 attention sums at most {MAX_KEYS:,} tokens in int32, this sequence has "
                f"{batch.longest:,}; cut it, or use a Scheme with attention='float32'"
            )
        joint, joint_form = self._joined()
        as_codes = self.rotary is None and self.query_norm is None and batch.unseen is None
        qkv = self._project(x, joint, joint_form if as_codes else None)
        if self.query_norm is not None:
            self._norm_heads(qkv)
        if self.rotary is not None:
            assert isinstance(qkv, np.ndarray), "no form was asked for"
            turns, block = self.rotary.tables(batch.span), self.rotary.hadamard
            _core.rope(qkv, self.heads + self.kv_heads, self.dim, *turns, batch.positions, block)
        if batch.observe is not None:
            self._tap(batch, qkv, site)
        if batch.unseen is not None and isinstance(qkv, np.ndarray):
            among = unseen.attend(self, qkv, joint_form, batch)
            batch.tap(site + "context", among)
            return self.output(Activation(among), None, then)
        if joint_form is not None and not isinstance(qkv, _core.Coded):
            qkv = _core.quantize(qkv, joint_form)
        reads = self.output.input_form
        form = reads if self.forms and isinstance(reads, Fixed) else None
        bias = None if self.bias is None else self.bias.table(batch.longest)
        relative = None if self.relative is None else self.relative.laid(batch.longest)
        shown = bias, self.window, self.cap, relative
        context = _core.attention(qkv, batch.offsets, self.heads, self.kv_heads, self.causal, self.scale, form, *shown)
        batch.tap(site + "context", context)
        return self.output(Activation.of(context, form), None, then)

    def _cached(
        self, x: Activation, batch: Batch, past: "KVCache", site: str, then: Then
    ) -> tuple[Activation, np.ndarray | _core.Coded]:
        """The same where the tokens' keys and values join those that the cache holds."""
        cache = past.layers[site]
        qkv = self._project(x, self._joined()[0], None)
        if self.query_norm is not None:
            self._norm_heads(qkv)
        cosine, sine = (None, None) if self.rotary is None else self.rotary.tables(max(past.bounds))
        reads = self.output.input_form
        form = reads if cache.form is not None and isinstance(reads, Fixed) else None
        context = _core.attention_kept(
            qkv,
            batch.offsets,
            cache.kept,
            self.heads,
            self.scale,
            cosine,
            sine,
            cache.form,
            form,
            self.window,
            self.cap,
            0 if self.rotary is None else self.rotary.hadamard,
        )
        return self.output(Activation.of(context, form), None, then)

    @overload
    def _project(self, x: Activation, joint: Linear | QuantizedLinear | None, form: None) -> np.ndarray: ...
    @overload
    def _project(
        self, x: Activation, joint: Linear | QuantizedLinear | None, form: PerHead | Smoothed | None
    ) -> np.ndarray | _core.Coded: ...
    def _project(
        self, x: Activation, joint: Linear | QuantizedLinear | None, form: PerHead | Smoothed | None
    ) -> np.ndarray | _core.Coded:
        """Queries, keys and values side by side in `form`, or in float32: norms and rotation need that."""
        if joint is not None:
            return joint(x, form)
        return np.concatenate([layer(x) for layer in (self.query, self.key, self.value)], axis=1)

    def _norm_heads(self, qkv: np.ndarray | _core.Coded) -> None:
        assert isinstance(qkv, np.ndarray), "no form was asked for"
        start = 0
        for norm, heads in ((self.query_norm, self.heads), (self.key_norm, self.kv_heads)):
            assert norm is not None, "queries and keys are normed alike"
            part = qkv[:, start : start + heads * self.dim]
            rows = np.ascontiguousarray(part).reshape(-1, len(norm.weight))  # of one head it is a view of rows
            part[...] = norm(rows).floats().reshape(part.shape)
            start += heads * self.dim

    def _tap(self, batch: Batch, qkv: np.ndarray | _core.Coded, site: str) -> None:
        if isinstance(qkv, _core.Coded):
            batch.tap(site + "query, key, value", qkv)
            return
        start = 0
        for name, width in zip(("query", "key", "value"), self._widths()):
            batch.tap(site + name, qkv[:, start : start + width])
            start += width
