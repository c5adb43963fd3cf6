"""From hidden states to embeddings in an ONNX graph."""

import numpy as np

from ...errors import UnsupportedError
from ...model import Transformer
from ...model.linear import Linear
from ...model.norm import Norm
from .flow import Flow
from .graph import Graph
from .linear import activated, linear
from .norm import normed

_LENGTH = np.array([1])  # the axis of tokens


def first_tokens(graph: Graph, hidden: str, mask: str) -> str:
    """hidden (batch, length, n) → (batch, n): of each sequence's first token that `mask` (batch, length) counts."""
    return graph.add("GatherND", hidden, graph.add("ArgMax", mask, axis=1, keepdims=1), batch_dims=1)


def last_tokens(graph: Graph, hidden: str, mask: str) -> str:
    """The same of the last one."""
    places = graph.add("ArgMax", mask, axis=1, keepdims=1, select_last_index=1)
    return graph.add("GatherND", hidden, places, batch_dims=1)


def embedding(graph: Graph, model: Transformer, hidden: str, mask: str, prompt: str | None) -> str:
    """hidden (batch, length, hidden size) → (batch, embedding size): what the model's pooling, the modules after it and
    its normalization make of the tokens that `mask` (batch, length) counts. prompt: how many of a sequence's first
    tokens are left out, of sequences that are longer; None: none."""
    with graph.inside("pooling"):
        weights = mask
        if prompt is not None or "weightedmean" in model.config.modes:
            weights = graph.add("CumSum", mask, np.array(1))
        if prompt is not None:
            mask = _behind(graph, mask, graph.add("Greater", weights, prompt))
        parts = [_pooled(graph, mode, hidden, mask, weights) for mode in model.config.modes]
        rows = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
    for i, part, activation in model.tail.modules:
        with graph.inside(f"tail.{i}"):
            rows = _module(graph, f"tail.{i}", part, activation, rows)
    with graph.inside("pooling"):
        rows = normalized(graph, rows) if model.config.normalize else rows
        if model.config.truncate_dim is not None:
            end = np.array([model.config.embedding_size])
            rows = graph.add("Slice", rows, np.array([0]), end, np.array([1]))
    return rows


def _behind(graph: Graph, mask: str, later: str) -> str:
    """mask of those that are `later` as well; where there are none, as it is."""
    rest = graph.add("Mul", mask, graph.add("Cast", later, to=graph.onnx.TensorProto.INT64))
    some = graph.add("Greater", graph.add("ReduceMax", rest, _LENGTH, keepdims=1), np.array(0))
    return graph.add("Where", some, rest, mask)


def _pooled(graph: Graph, mode: str, hidden: str, mask: str, weights: str) -> str:
    """weights: of the tokens in a weighted mean, before the mask."""
    if mode == "cls":
        return first_tokens(graph, hidden, mask)
    if mode == "last":
        return last_tokens(graph, hidden, mask)
    counted = graph.add("Mul", weights, mask) if mode == "weightedmean" else mask
    counts = graph.add("Unsqueeze", graph.add("Cast", counted, to=graph.onnx.TensorProto.FLOAT), np.array([2]))
    if mode == "max":
        kept = graph.add("Where", graph.add("Greater", counts, np.float32(0)), hidden, np.float32(-np.inf))
        return graph.add("ReduceMax", kept, _LENGTH, keepdims=0)
    if mode not in ("mean", "mean_sqrt_len", "weightedmean"):
        raise UnsupportedError(f"export to ONNX: no graph for pooling by {mode!r}")
    total = graph.add("ReduceSum", graph.add("Mul", hidden, counts), _LENGTH, keepdims=0)
    count = graph.add("ReduceSum", counts, _LENGTH, keepdims=0)
    return graph.add("Div", total, graph.add("Sqrt", count) if mode == "mean_sqrt_len" else count)


def _module(graph: Graph, name: str, part: Linear | Norm | None, activation: str, rows: str) -> str:
    """A module after pooling."""
    if part is None:
        return normalized(graph, rows)
    if isinstance(part, Norm):
        return normed(graph, rows, part)
    return activated(graph, linear(graph, part, Flow(graph, rows), name), activation)


def normalized(graph: Graph, rows: str) -> str:
    """Rows, along the last axis, of length 1; a row of zeros stays."""
    length = graph.add("ReduceL2", rows, np.array([-1]), keepdims=1)
    return graph.add("Div", rows, graph.add("Max", length, np.float32(1e-12)))
