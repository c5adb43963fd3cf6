"""A configuration and float32 weights by canonical name → the parts of a transformer. Runs nothing."""

from collections.abc import Mapping

import numpy as np

from .attention import Attention, Rotary
from .block import Block, FeedForward
from .classifier import Classifier
from .config import Config
from .deferred import Deferred, keep
from .embedding import Embedding
from .linear import Linear
from .norm import Norm
from .transform import Transform

Weights = Mapping[str, np.ndarray | Deferred]


def norm(config: Config, weights: Weights, name: str) -> Norm:
    """The norm of that name."""
    weight, bias = keep(weights[name + ".weight"]), _bias(weights, name)
    return Norm(weight, bias, config.norm_eps, config.norm == "rms")


def embedding(config: Config, weights: Weights) -> Embedding:
    """The tables, and the norm after them where norms stand after what they norm."""
    position, type = (keep(weights[name]) if name in weights else None for name in ("embed.position", "embed.type"))
    after = None if config.norm_first else norm(config, weights, "embed.norm")
    return Embedding(weights["embed.word"], position, type, after, config.position_offset)


def blocks(config: Config, weights: Weights) -> list[Block]:
    """Every block, in the order of work; they share the tables of rotary positions."""
    rotary = None if config.rope_theta is None else Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
    return [_block(config, weights, f"layers.{i}", rotary) for i in range(config.num_layers)]


def _block(config: Config, weights: Weights, name: str, rotary: Rotary | None) -> Block:
    attention_norm, ffn_norm = (norm(config, weights, f"{name}.{part}_norm") for part in ("attention", "ffn"))
    attention, ffn = (
        _attention(config, weights, name + ".attention", rotary),
        _feed_forward(config, weights, name + ".ffn"),
    )
    return Block(attention, attention_norm, ffn, ffn_norm, name)


def _attention(config: Config, weights: Weights, name: str, rotary: Rotary | None) -> Attention:
    query, key, value, output = (_linear(weights, f"{name}.{part}") for part in ("query", "key", "value", "output"))
    sizes = config.num_heads, config.num_kv_heads, config.head_dim
    attention = Attention(query, key, value, output, *sizes, config.causal, rotary)
    if config.qk_norm:
        attention.query_norm = norm(config, weights, name + ".query_norm")
        attention.key_norm = norm(config, weights, name + ".key_norm")
    return attention


def _feed_forward(config: Config, weights: Weights, name: str) -> FeedForward:
    up = _linear(weights, name + ".up", None if config.gated else config.activation)
    gate = _linear(weights, name + ".gate") if config.gated else None
    return FeedForward(up, _linear(weights, name + ".down"), gate, config.activation)


def _linear(weights: Weights, name: str, activation: str | None = None) -> Linear:
    return Linear(weights[name + ".weight"], _bias(weights, name), activation)


def _bias(weights: Weights, name: str) -> np.ndarray | None:
    return keep(weights[name + ".bias"]) if name + ".bias" in weights else None


def head(config: Config, weights: Weights) -> Linear | None:
    """The head that reads every token."""
    if not config.head_size:
        return None
    return Linear(weights["embed.word" if config.tied else "head.weight"], _bias(weights, "head"))


def transform(config: Config, weights: Weights) -> Transform | None:
    """What stands between a masked language model's trunk and its head."""
    if config.head_transform is None:
        return None
    dense = _linear(weights, "transform.dense", config.head_transform)
    return Transform(dense, norm(config, weights, "transform.norm"))


def classifier(config: Config, weights: Weights) -> Classifier | None:
    """The head of a sequence classifier."""
    if config.classifier is None:
        return None
    dense = None if config.classifier == "linear" else _linear(weights, "classifier.dense")
    return Classifier(dense, _linear(weights, "classifier.scores"), config.classifier)
