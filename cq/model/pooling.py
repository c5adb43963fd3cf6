"""From the hidden states of a sequence to its embedding: pooling, and the modules that sentence-transformers puts after
it. Knows no tokens."""

import math
from collections.abc import Mapping

import numpy as np

from .. import functions
from ..errors import FormatError
from .activation import Activation
from .deferred import Deferred, keep
from .linear import Linear
from .norm import Norm

MODES = ("mean", "cls", "max", "mean_sqrt_len", "last", "weightedmean")
_FUSED = ("relu", "gelu", "gelu_tanh", "silu")  # computed with the product
ACTIVATIONS = ("identity", "tanh", "sigmoid", *_FUSED)
_NORM_EPS = 1e-5  # of torch.nn.LayerNorm, which the LayerNorm module never sets otherwise
_KINDS = {"dense": {"kind", "features", "activation"}, "norm": {"kind"}, "normalize": {"kind"}}


def check_tail(tail: tuple) -> None:
    """Raises FormatError unless each module is {"kind": "dense", "features": outputs, "activation": one of
    ACTIVATIONS}, {"kind": "norm"} or {"kind": "normalize"}."""
    for module in tail:
        kind = module.get("kind") if isinstance(module, dict) else None
        good = isinstance(kind, str) and kind in _KINDS and set(module) == _KINDS[kind]
        if good and kind == "dense":
            good = type(module["features"]) is int and 0 < module["features"] < 2**31
            good = good and module["activation"] in ACTIVATIONS
        if not good:
            raise FormatError(f"config: tail: {module!r:.200} is no module; there are {', '.join(_KINDS)}")


def tail_shapes(tail: tuple, width: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of the weights of the modules after pooling, which gives `width` features."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, module in enumerate(tail):
        if module["kind"] == "dense":
            shapes[f"tail.{i}.weight"] = module["features"], width
            width = module["features"]
        elif module["kind"] == "norm":
            shapes[f"tail.{i}.weight"] = (width,)
    return shapes


def tail_width(tail: tuple, width: int) -> int:
    """Features after the modules."""
    return next((module["features"] for module in reversed(tail) if module["kind"] == "dense"), width)


def pool(hidden: np.ndarray, modes: tuple[str, ...], first: int = 0) -> np.ndarray:
    """The modes (see MODES) side by side, (len(modes) · hidden,), of one sequence's final hidden states (len, hidden).
    first: tokens at the beginning, a prompt's, that are left out; where no others are left, none is."""
    first = first if first < len(hidden) else 0
    rest = hidden[first:]
    parts = [_pooled(rest, mode, first) for mode in modes]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _pooled(hidden: np.ndarray, mode: str, first: int) -> np.ndarray:
    """first: of the first row, its place in the sequence."""
    found: np.ndarray
    if mode in ("cls", "last"):
        found = hidden[0 if mode == "cls" else -1]
    elif mode == "max":
        found = hidden.max(0)
    elif mode == "weightedmean":
        places = np.arange(first + 1, first + 1 + len(hidden), dtype=np.float32)
        found = (hidden * places[:, None]).sum(0) / np.float32(places.sum(dtype=np.float64))
    else:
        found = hidden.sum(0) / np.float32(len(hidden) if mode == "mean" else math.sqrt(len(hidden)))
    return found


class Tail:
    """The modules after pooling, in float32: Dense, LayerNorm, Normalize."""

    def __init__(self, tail: tuple, weights: Mapping[str, np.ndarray | Deferred]):
        """weights: by the names of `tail_shapes`, with biases."""
        self.modules: list[tuple[int, Linear | Norm | None, str]] = []
        for i, module in enumerate(tail):
            bias = keep(weights[f"tail.{i}.bias"]) if f"tail.{i}.bias" in weights else None
            if module["kind"] == "dense":
                name = module["activation"]
                layer = Linear(weights[f"tail.{i}.weight"], bias, name if name in _FUSED else None)
                self.modules.append((i, layer, "identity" if name in _FUSED else name))
            elif module["kind"] == "norm":
                self.modules.append((i, Norm(keep(weights[f"tail.{i}.weight"]), bias, _NORM_EPS, False), ""))
            else:
                self.modules.append((i, None, ""))

    def parts(self) -> list[tuple[str, Linear | Norm]]:
        """What has weights, by name."""
        return [(f"tail.{i}", part) for i, part, _ in self.modules if part is not None]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """float32 (n, pooled) → (n, embedding)."""
        for _, part, activation in self.modules:
            if part is None:
                rows = normalized(rows)
            elif isinstance(part, Norm):
                rows = part(np.ascontiguousarray(rows), keep_float=True).floats()
            else:
                rows = activate(part(Activation(np.ascontiguousarray(rows))), activation)
        return rows


def normalized(rows: np.ndarray) -> np.ndarray:
    """Rows (n, dim) of length 1; a row of zeros stays."""
    lengths = np.sqrt(np.square(rows, dtype=np.float64).sum(1, keepdims=True))
    result: np.ndarray = rows / np.maximum(lengths, 1e-12).astype(np.float32)
    return result


def activate(x: np.ndarray, name: str) -> np.ndarray:
    """ "tanh", "sigmoid" or "identity" of float32 values of any shape."""
    if name == "tanh":
        return functions.tanh(x)
    if name == "sigmoid":
        result: np.ndarray = (1 / (1 + functions.exp(-x.astype(np.float64)))).astype(np.float32)
        return result
    return x


def softmax(x: np.ndarray) -> np.ndarray:
    """Probabilities of float32 scores, along the last axis."""
    powers = functions.exp((x - x.max(-1, keepdims=True)).astype(np.float64))
    return (powers / np.add.accumulate(powers, -1)[..., -1:]).astype(np.float32)  # in one order on every CPU
