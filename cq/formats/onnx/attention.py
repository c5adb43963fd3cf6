"""Self-attention in an ONNX graph: heads, rotary and relative positions, softmax, and keys and values that came before.

Of a static model queries, keys, values and the softmax's exponentials go through the codes that cq's int8 attention
has for them, and their products may be computed in codes. Of a dynamic model, whose codes have a scale for each token
and head, attention is in float32, as it is of all others."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ...model.attention import Attention
from ...model.forms import PerHead, Smoothed
from ...model.linear import QuantizedLinear
from ...model.norm import Norm
from ...model.sites import AttentionPart
from .flow import Flow, decoded, encoded, folded, quantized, transformed
from .graph import Graph
from .linear import Fold, capped, linear
from .norm import normed
from .places import Places, Tokens


class Heads(NamedTuple):
    """What attention leaves: context (tokens, heads * dim), and keys and values with those that came before."""

    context: str
    key: str
    value: str


def attention(
    graph: Graph, part: Attention, names: AttentionPart, x: Flow, places: Places, past: tuple[str, str] | None
) -> Heads:
    """past: names of keys and values (batch, kv heads, past, dim) that came before, or None."""
    late = part.rotary is not None or part.query_norm is not None  # queries and keys change before they are coded
    forms = None if isinstance(part.forms, PerHead) else part.forms
    query, key, value = _projected(graph, part, names, x, places, late)
    tokens = places.tokens(part)
    with graph.inside(name := names.scores.rpartition(".")[0]):
        if part.rotary is not None and tokens.cosine is not None and tokens.sine is not None:
            pairs = len(part.rotary.frequencies[0][0])
            parts = np.array([pairs, pairs, part.dim - 2 * pairs][: 2 + (2 * pairs < part.dim)])
            query, key = (_turned(graph, one, tokens.cosine, tokens.sine, parts) for one in (query, key))
            if block := part.rotary.hadamard:
                query, key = (transformed(graph, one, part.dim, block, 4) for one in (query, key))
        if late and forms is not None:
            query, key = quantized(graph, query, forms[0], part.scale), quantized(graph, key, forms[1])
        if past is not None:
            key = graph.add("Concat", past[0], key, axis=2)
            value = graph.add("Concat", past[1], value, axis=2)
        relative = None
        if tokens.relative is not None:
            relative = tokens.relative.bias(part, name, query, key, 1.0 if forms is None else part.scale)
        return Heads(_context(graph, part, query, key, value, tokens, relative), key, value)


def _projected(graph: Graph, part: Attention, names: AttentionPart, x: Flow, places: Places, late: bool) -> list[str]:
    """Queries, keys and values, (batch, heads, length, dim); those of a static model through their codes, unless they
    are coded `late`, and then queries have the scale of the scores too."""
    joint, form = part.readers()[0], part.form
    if len(part.readers()) == 1 and isinstance(joint, QuantizedLinear) and isinstance(form, Smoothed) and not late:
        return _projected_as_one(graph, part, names, x, places, joint, form)
    layers, found = (part.query, part.key, part.value), []
    forms = (None,) * 3 if part.forms is None or isinstance(part.forms, PerHead) else part.forms
    heads, norms = (part.heads, part.kv_heads, part.kv_heads), (part.query_norm, part.key_norm, None)
    for i, (layer, name, own) in enumerate(zip(layers, names.projections, forms)):
        y = linear(graph, layer, x, name, Fold(*folded(own)) if isinstance(own, Smoothed) else None)
        with graph.inside(name):
            if own is not None and (i == 2 or not late):
                y = quantized(graph, y, own, 1.0 if i else part.scale)
            found.append(_split(graph, y, places, heads[i], part.dim, norms[i]))
    return found


def _projected_as_one(
    graph: Graph, part: Attention, names: AttentionPart, x: Flow, places: Places, joint: QuantizedLinear, form: Smoothed
) -> list[str]:
    """One product for the three, whose columns are scaled and shifted so that one scale and one zero point make the
    codes of all. What a code stands for is each one's own."""
    assert part.forms is not None and not isinstance(part.forms, PerHead), "static codes are joined"
    alike = replace(form, scale=float(part.forms[2].scale), zero_point=int(part.forms[2].zero_point))
    name, heads = names.query + ", key, value", np.array([part.heads, part.kv_heads, part.kv_heads])
    y = linear(graph, joint, x, name, Fold(*folded(alike)))
    with graph.inside(name):
        codes = _split(graph, encoded(graph, y, alike), places, int(heads.sum()), part.dim, None)
        factors = part.scale, 1.0, 1.0
        each = zip(graph.add_several("Split", 3, codes, heads, axis=1), part.forms, factors)
        return [decoded(graph, some, own, by) for some, own, by in each]


def _split(graph: Graph, x: str, places: Places, heads: int, dim: int, norm: Norm | None) -> str:
    """(tokens, heads * dim) → (batch, heads, length, dim). norm: of each head, or of all as one."""
    jointly = norm is not None and len(norm.weight) != dim
    x = normed(graph, x, norm) if norm is not None and jointly else x
    x = places.apart(x, heads, dim)
    x = normed(graph, x, norm) if norm is not None and not jointly else x
    return graph.add("Transpose", x, perm=[0, 2, 1, 3])


def _turned(graph: Graph, x: str, cosine: str, sine: str, parts: np.ndarray) -> str:
    """x (batch, heads, length, dim), each pair of a feature of the first part and one of the second turned by its
    position; what follows these stays. parts: how many features they have."""
    first, second, *rest = graph.add_several("Split", len(parts), x, parts, axis=-1)

    def of(op: str, a: str, b: str) -> str:
        return graph.add(op, graph.add("Mul", a, cosine), graph.add("Mul", b, sine))

    return graph.add("Concat", of("Sub", first, second), of("Add", second, first), *rest, axis=-1)


def _context(
    graph: Graph, part: Attention, query: str, key: str, value: str, tokens: Tokens, relative: str | None
) -> str:
    """softmax((query keyᵀ + relative) * scale + mask) value, heads side by side again; in codes the queries and
    `relative` have the scale already. Query heads that share a kv head are rows of one product."""
    shared = part.heads // part.kv_heads
    if shared > 1:
        query = graph.add("Reshape", query, np.array([0, part.kv_heads, -1, part.dim]))
    scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 1, 3, 2]))
    scores = scores if relative is None else graph.add("Add", scores, relative)
    scores = scores if tokens.ones is not None else graph.add("Mul", scores, np.float32(part.scale))
    scores = graph.add("Add", capped(graph, scores, part.cap), tokens.mask)
    if tokens.ones is not None:
        mixed = _mixed_in_codes(graph, scores, value, tokens.ones)
    else:
        mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
    if shared > 1:
        mixed = graph.add("Reshape", mixed, np.array([0, part.heads, -1, part.dim]))
    mixed = graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
    return graph.add("Reshape", mixed, np.array([-1, part.heads * part.dim]))


def _mixed_in_codes(graph: Graph, scores: str, value: str, ones: str) -> str:
    """The values mixed by softmax's exponentials in steps of 1/255 of the largest, and divided by the sum of these,
    which is a product in codes as well."""
    step, zero, last = np.float32(1 / 255), np.uint8(0), np.array([-1])
    shares = graph.add("Exp", graph.add("Sub", scores, graph.add("ReduceMax", scores, last, keepdims=1)))
    shares = graph.add("DequantizeLinear", graph.add("QuantizeLinear", shares, step, zero), step, zero)
    return graph.add("Div", graph.add("MatMul", shares, value), graph.add("MatMul", shares, ones))
