"""rotate(model) → the same language model with its hidden features turned, so that outliers of single ones are spread
over all of them before they become codes. Knows no strategy."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from .. import _core, functions
from ..errors import CqError, UnsupportedError
from ..model import Transformer
from ..model.config_checks import SMALLEST_BLOCK
from ..model.deferred import Deferred, read
from ..weights import Weight

_ROWS = 4096  # of a weight, turned at once


def rotate(model: Transformer, online: bool = False) -> Transformer:
    """Rotates the hidden features of a decoder, which spreads outliers, so that it quantizes better.

    One rotation of the residual stream and one of each head's values fold into the weights, so they cost nothing at
    inference (QuaRot, arXiv:2404.00456; R1 and R2 of SpinQuant, arXiv:2405.16406). Logits stay the same up to float
    rounding; what `forward` gives is rotated. A head that was tied to the word table gets a weight of its own. Weights
    are rotated when they are read.

    Args:
        model: A float32 decoder with a language-model head whose RMS norms stand before each part alone and have no
            biases, such as Llama.
        online: Whether Hadamard transforms at inference rotate what no weight can: queries and keys after their rotary
            positions, and the hidden features of gated feed-forward parts (R3 and R4 of SpinQuant). Both have large
            outliers, so that activations in codes lose less. Each transform of n features costs n log n additions a
            token, together up to 5 % of the model's time.

    Returns:
        A new float32 model, to be quantized in the place of `model`.

    Raises:
        UnsupportedError: The model does not go through a rotation unchanged.
        CqError: An argument is wrong, or the model is not float32.
    """
    if not isinstance(model, Transformer):
        raise CqError(f"model: need a cq.Transformer (cq.load gives one), got {type(model).__name__}")
    if model.strategy is not None:
        raise CqError(f"model: already quantized ({model.strategy.name}); rotate the float32 model first")
    if type(online) is not bool:
        raise CqError(f"online: need True or False, got {online!r:.100}")
    config = model.config
    if not rotates(model):
        raise UnsupportedError(
            f"rotate: {config.family} models do not go through a rotation unchanged; it takes decoders with "
            "a language-model head whose RMS norms stand before each part alone and have no biases, such as Llama's"
        )
    turn, head_turn = _Rotation(config.hidden_size), _Rotation(config.head_dim)
    block = None
    if online:
        block = _block(config.intermediate_size) if config.gated and config.hadamard is None else None
        head_block = _block(config.head_dim) if config.rope_theta is not None else None
        config = replace(config, hadamard=block or config.hadamard, head_hadamard=head_block)
    weights: dict[str, np.ndarray | Deferred] = {
        f"{name}.weight": norm.weight if name.endswith(("query_norm", "key_norm")) else np.ones_like(norm.weight)
        for name, norm in model.norms()
    }
    word = model.embedding.source
    assert not isinstance(word, Weight), "the model is float32"
    weights["embed.word"] = _deferred(word, turn)
    weights |= {name: turn(table) for name, table in model.tables().items()}
    norms, graph = dict(model.norms()), model.graph
    values, attended = ({getattr(part.attention, name) for part in graph.blocks} for name in ("value", "output"))
    downs = {part.ffn.down for part in graph.blocks}
    for name, layer in model.float_linears():
        weight, bias, before = layer.source, layer.bias, graph.sites[graph.reads[name]].norm
        if before is not None:
            weight = _deferred(weight, partial(_after_norm, turn, norms[before].weight))
        if name in values:
            weight = _deferred(weight, lambda w: _heads_turned(w.T, head_turn).T)
            bias = None if bias is None else _heads_turned(bias[None], head_turn)[0]
        if name in attended:
            weight = _deferred(weight, lambda w: _heads_turned(w, head_turn))
        if name in graph.residual_writers:
            weight = _deferred(weight, lambda w: turn(w.T).T)
            bias = None if bias is None else turn(bias[None])[0]
        if name in downs and block is not None:
            weight = _deferred(weight, partial(_hidden_turned, block))
        weights |= {f"{name}.weight": weight} | ({} if bias is None else {f"{name}.bias": bias})
    return Transformer(replace(config, tied=False), weights, model.tokenizer)


def rotates(model: Transformer) -> bool:
    """Whether the model goes through a rotation unchanged: every norm's result is read by layers alone, which can take
    the norm's weight in."""
    config = model.config
    before = config.norm_first and not config.norm_outputs and not config.embedding_norm
    plain = config.norm == "rms" and all(norm.bias is None for _, norm in model.norms())
    return before and plain and config.lm_head and config.causal


def _block(size: int) -> int | None:
    """The largest power of two that divides so many features, where the core transforms so few."""
    block = size & -size
    return block if block >= SMALLEST_BLOCK else None


def _hidden_turned(block: int, weight: np.ndarray) -> np.ndarray:
    """What reads transformed features as `weight` reads them as they were."""
    return _core.hadamard(np.array(weight), block)


def _after_norm(turn: "_Rotation", norm: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The weight that reads a norm's result, turned, with the norm's own in it."""
    return turn(weight * norm)


def _deferred(source: np.ndarray | Deferred, change: Callable[[np.ndarray], np.ndarray]) -> Deferred:
    return Deferred(source.shape, np.float32, lambda: np.ascontiguousarray(change(read(source))))


class _Rotation:
    """An orthogonal map of `size` features that spreads each over all: random signs, then a cosine transform of as many
    features as the largest odd divisor has, then a Hadamard transform of the rest, whose sums and differences are n log
    n (Fino, Algazi 1976). All in float64, one rounding at the end."""

    def __init__(self, size: int):
        self.size, self.odd = size, size // (size & -size)
        row, column = np.ogrid[: self.odd, : self.odd]
        angles = np.pi * row * (2 * column + 1) / (2 * self.odd)
        self.cosines = functions.cos(angles) * np.sqrt(np.where(row, 2, 1) / size)
        self.signs = np.where(np.random.default_rng(0).random(size) < 0.5, -1.0, 1.0)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """rows (n, size) float32 → turned, float32."""
        result = np.empty(rows.shape, np.float32)
        for at in range(0, len(rows), _ROWS):
            x = (rows[at : at + _ROWS] * self.signs).reshape(-1, self.odd)
            x = functions.matmul(x, self.cosines).reshape(-1, self.size)
            width = self.odd
            while width < self.size:
                first, second = np.moveaxis(x.reshape(len(x), -1, 2, width), 2, 0)
                x = np.stack((first + second, first - second), axis=2).reshape(len(x), self.size)
                width *= 2
            result[at : at + _ROWS] = x
        return result


def _heads_turned(rows: np.ndarray, turn: _Rotation) -> np.ndarray:
    """rows (n, heads * dim), each head's columns turned."""
    return turn(np.ascontiguousarray(rows).reshape(-1, turn.size)).reshape(rows.shape)
