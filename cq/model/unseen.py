"""Attention where some tokens are seen by none: the mask tokens that fill up a query of late interaction read the
text's tokens, and neither each other nor themselves. Knows no layers."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..errors import UnsupportedError
from ..weights import pack_floats
from .batch import Batch
from .forms import PerHead, Smoothed
from .pooling import softmax

if TYPE_CHECKING:
    from .attention import Attention


def attend(attention: "Attention", qkv: np.ndarray, form: PerHead | Smoothed | None, batch: Batch) -> np.ndarray:
    """The context (tokens, heads · dim) float32. qkv float32: queries, keys and values side by side. form: in which the
    text's tokens meet; those that are not seen attend in float32."""
    windowed = attention.window is not None and batch.longest > attention.window
    biased = attention.bias is not None or attention.relative is not None
    if attention.causal or biased or attention.cap or windowed:
        raise UnsupportedError(
            "queries filled up with masks that no token sees are for encoders without biases, caps, or windows "
            "shorter than the query"
        )
    assert batch.unseen is not None, "whoever calls has seen some"
    heads, kv_heads, dim, seen = attention.heads, attention.kv_heads, attention.dim, ~batch.unseen
    counts = np.add.reduceat(seen, batch.offsets[:-1], dtype=np.int32)
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    plain = np.ascontiguousarray(qkv[seen])
    met: np.ndarray | _core.Coded = plain if form is None else _core.quantize(plain, form)
    context = np.empty((len(qkv), heads * dim), np.float32)
    among: Any = _core.attention(met, offsets, heads, kv_heads, False, attention.scale, None)
    context[seen] = among
    for i in range(len(counts)):
        places = np.flatnonzero(batch.unseen[batch.offsets[i] : batch.offsets[i + 1]]) + batch.offsets[i]
        if len(places):
            rows = plain[offsets[i] : offsets[i + 1]]
            context[places] = _read(qkv[places], rows, heads, kv_heads, dim, attention.scale)
    return context


def _read(asking: np.ndarray, rows: np.ndarray, heads: int, kv_heads: int, dim: int, scale: float) -> np.ndarray:
    """What queries of `asking` read of the keys and values of `rows`."""
    parts = []
    for head in range(heads):
        shared = head * kv_heads // heads
        query = asking[:, head * dim : (head + 1) * dim]
        key, value = (
            np.ascontiguousarray(rows[:, start : start + dim])
            for start in ((heads + shared) * dim, (heads + kv_heads + shared) * dim)
        )
        scores = _core.linear(np.ascontiguousarray(query), pack_floats(key.T), None)
        parts.append(_core.linear(softmax(scores * np.float32(scale)), pack_floats(value), None))
    return np.concatenate(parts, 1)
