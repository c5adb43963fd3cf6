"""A configuration and float32 weights by canonical name → the parts of a transformer. Runs nothing."""

from collections.abc import Mapping

import numpy as np

from .attention import Attention, Rotary
from .block import Block, FeedForward, share
from .classifier import Classifier
from .config import Config
from .convolution import Convolution
from .deferred import Deferred, keep
from .embedding import Embedding
from .linear import Linear
from .norm import Norm
from .position_bias import PositionBias, RelativePositions
from .sites import BlockPart, Graph
from .transform import Transform

Weights = Mapping[str, np.ndarray | Deferred]


def norm(config: Config, weights: Weights, name: str) -> Norm:
    """The norm of that name."""
    weight, bias = keep(weights[name + ".weight"]), _bias(weights, name)
    return Norm(weight, bias, config.norm_eps, config.norm == "rms")


def embedding(config: Config, weights: Weights) -> Embedding:
    """The tables, and the norm after them where norms stand after what they norm."""
    position, type = (keep(weights[name]) if name in weights else None for name in ("embed.position", "embed.type"))
    after = norm(config, weights, "embed.norm") if config.starts_normed else None
    return Embedding(
        weights["embed.word"], position, type, after, config.position_offset, float(np.float32(config.embedding_scale))
    )


def projection(config: Config, weights: Weights) -> Linear | None:
    """From the tables' width to the model's, where they differ."""
    return None if config.embedding_width is None else _linear(weights, "embed.project")


def blocks(config: Config, weights: Weights) -> list[Block]:
    """Every block, in the order of work; they share the tables of biases by distance, those that turn alike the tables
    of rotary positions, and those of the same arrays their parts."""
    rotaries: dict[tuple[float, bool], Rotary] = {}
    made, bias = [], None
    if config.position_bias is not None and config.position_bias["kind"] != "disentangled":
        buckets = keep(weights["embed.buckets"]) if "embed.buckets" in weights else None
        bias = PositionBias(config.position_bias, buckets, config.num_heads)
    for i, names in enumerate(Graph(config).blocks):
        layer, rotary = config.layer(i), None
        if layer.rope_theta is not None:
            own = Rotary(config.turned, layer.rope_theta, layer.rope_scaling, config.head_hadamard)
            rotary = rotaries.setdefault((layer.rope_theta, layer.rope_scaling is None), own)
        made.append(_block(config, weights, names, layer.window, rotary))
        made[-1].attention.bias = bias
    share(made)
    return made


def convolution(config: Config, weights: Weights) -> Convolution | None:
    """What stands beside the first layer."""
    if config.convolution is None:
        return None
    product = _linear(weights, "convolution", config.convolution["activation"])
    return Convolution(product, norm(config, weights, "convolution.norm"))


def _block(config: Config, weights: Weights, names: BlockPart, window: int | None, rotary: Rotary | None) -> Block:
    def named(name: str | None) -> Norm | None:
        return None if name is None else norm(config, weights, name)

    return Block(
        _attention(config, weights, names.name + ".attention", window, rotary),
        _feed_forward(config, weights, names.name + ".ffn"),
        named(names.attention_norm),
        named(names.ffn_norm),
        named(names.attention_output_norm),
        named(names.ffn_output_norm),
        names.name,
    )


def _attention(config: Config, weights: Weights, name: str, window: int | None, rotary: Rotary | None) -> Attention:
    query, key, value, output = (_linear(weights, f"{name}.{part}") for part in ("query", "key", "value", "output"))
    attention = Attention(
        query,
        key,
        value,
        output,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.causal,
        rotary,
        window,
        config.score_scale,
        config.attention_cap,
    )
    if config.qk_norm:
        attention.query_norm = norm(config, weights, name + ".query_norm")
        attention.key_norm = norm(config, weights, name + ".key_norm")
    if config.position_bias is not None and config.position_bias["kind"] == "disentangled":
        keys, queries = (
            keep(weights[f"{name}.relative_{part}"]) if config.position_bias[part] else None
            for part in ("keys", "queries")
        )
        attention.relative = RelativePositions(config.position_bias, keys, queries)
    return attention


def _feed_forward(config: Config, weights: Weights, name: str) -> FeedForward:
    up = _linear(weights, name + ".up", None if config.gated else config.activation)
    gate = _linear(weights, name + ".gate") if config.gated else None
    return FeedForward(up, _linear(weights, name + ".down"), gate, config.activation, config.hadamard)


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
    dense = None
    if config.classifier != "linear":
        dense = _linear(weights, "classifier.dense", "gelu" if config.classifier == "gelu" else None)
    return Classifier(dense, _linear(weights, "classifier.scores"), config.classifier)
