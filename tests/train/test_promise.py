"""The integer model gives what the fake-quantized one promised: codes equal at every place, outputs within float
rounding."""

import itertools
import sys

import numpy as np
import pytest

import cq
from cq import _core
from cq.model.batch import Batch
from cq.train import layers
from cq.train.batch import Packed
from cq.train.loop import fit
from cq.train.network import Network

TEXTBOOK = cq.Scheme.textbook()
TARGETS = {
    "static": cq.Static(),
    "static textbook": cq.Static(TEXTBOOK),
    "static stretched": cq.Static(stretch=True),
    "dynamic": cq.Dynamic(),
    "dynamic textbook": cq.Dynamic(TEXTBOOK),
    "weight-only": cq.WeightOnly(),
    "static float32 scores": cq.Static(cq.Scheme(attention="float32")),
    "dynamic float32 scores": cq.Dynamic(cq.Scheme(attention="float32")),
    "groups": cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=4)),
    "some static": cq.Static(exclude=("*.key", "layers.0.ffn.*", "embed.word")),
    "no head": cq.Static(exclude=("head",)),
}


def wide(p, shape) -> np.ndarray:
    """A scale or zero point, of whatever it is one for, as one for each element."""
    p = np.reshape(p, (-1, 1)) if np.ndim(p) < 2 else np.repeat(p, shape[1] // p.shape[1], axis=1)
    return np.broadcast_to(p, shape)


def watch_kernels(model, monkeypatch) -> dict[str, list]:
    """Place → the codes that reach the kernels there, as they come."""
    joints = [(f"{block.name}.attention.query", block.attention.readers()[0]) for block in model.blocks]
    joints += [
        (f"{block.name}.ffn.gate", joint) for block in model.blocks if (joint := block.ffn._joined()) is not None
    ]
    names = {id(layer.weight): name for name, layer in (*joints, *model.linears())}
    reads, seen = {name: site for name, site in model.graph.reads.items() if model.plan.layers[name].input}, {}
    attentions = itertools.count()

    def keep(site, x, columns=slice(None)):
        if isinstance(x, _core.Coded):
            scale, zero_point = (wide(p, x.shape)[:, columns] for p in (x.scale, x.zero_point))
            seen.setdefault(site, []).append((x.codes[:, columns].astype(np.int64) - zero_point, scale))

    def linear(x, w, *rest, coding=None, **gated):
        if id(w) in names and names[id(w)] in reads:
            keep(reads[names[id(w)]], x if coding is None else _core.quantize(x, coding))
        return real_linear(x, w, *rest, coding=coding, **gated)

    def attention(qkv, *rest):
        part, first = model.blocks[number := next(attentions)].attention, 0
        for name, heads in (("query", part.heads), ("key", part.kv_heads), ("value", part.kv_heads)):
            keep(f"layers.{number}.attention.{name}", qkv, slice(first, first := first + heads * part.dim))
        return real_attention(qkv, *rest)

    real_linear, real_attention = _core.linear, _core.attention
    for name, watched in (("linear", linear), ("attention", attention)):
        monkeypatch.setattr(_core, name, watched)
    return seen


@pytest.mark.parametrize("learned", [False, True], ids=["ranges", "learned"])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("family", ["bert", "llama", "transformed", "mixed"])
def test_codes_and_outputs(small, ragged, monkeypatch, family, target, learned):
    """Kernels and NumPy sum in other orders, so a value that lies next to a boundary between two codes may fall to its
    other side; what follows it may differ too, and is not compared."""
    config, weights = small(family)
    model = cq.Transformer(config, weights)
    sequences = ragged(config.vocab_size)
    if isinstance(target, cq.Dynamic) and target.scheme.activation_granularity == "per_tensor":
        sequences = sequences[:1]
    qat = cq.QAT(
        target=target,
        steps=3,
        batch_size=5,
        learning_rate=1e-2,
        warmup=0,
        ranges="learned" if learned else "moving_average",
    )
    kept = []
    monkeypatch.setattr(sys.modules["cq.quantize.qat"], "fit", lambda *a: kept.append(a[3]) or fit(*a))
    q = cq.quantize(model, qat, sequences)
    network = kept[0]
    network.observe(False)
    promised = {}
    code = network.reading.code

    def promise(site, x):
        promised[site] = code(site, x), x
        return promised[site][0]

    monkeypatch.setattr(network.reading, "code", promise)
    batch = Packed(sequences)
    hidden = network.forward(batch)
    outputs = network.logits(hidden) if config.lm_head else hidden
    seen = watch_kernels(q, monkeypatch)
    ordered = [sequences[i] for i in batch.order]
    actual = np.concatenate(q.logits(ordered)) if config.lm_head else q.hidden(Batch(ordered)).floats()  # not replayed
    assert set(network.sites) <= set(seen)
    for site in [site for site in promised if site in network.sites]:  # in the order of work
        (values, scale, _), x = promised[site]
        scale = wide(scale, x.shape)
        for codes, their_scale in seen[site]:
            np.testing.assert_allclose(scale, their_scale, rtol=1e-5 if target.name == "dynamic" else 0)
            apart = codes != values
            if apart.any():
                exact = np.abs(x / scale)[apart]
                assert np.abs(exact % 1 - 0.5).max() < 1e-3 and np.abs(codes - values).max() == 1, site
                return
    np.testing.assert_allclose(outputs, actual, atol=1e-5 * max(1, np.abs(actual).max()))


@pytest.mark.parametrize(
    "target",
    [target for name, target in TARGETS.items() if name != "groups"],
    ids=[name for name in TARGETS if name != "groups"],
)
def test_products_of_bytes_are_those_of_floats(small, ragged, plan_for, monkeypatch, target):
    """Layers deeper than int32 allows multiply their codes as floats."""
    config, weights = small("llama")
    outputs, batch = [], Packed(ragged(config.vocab_size))
    for depth in (layers.INTEGER_K, 0):
        monkeypatch.setattr(layers, "INTEGER_K", depth)
        network = Network(config, plan_for(config, target), weights)
        outputs.append(network.logits(network.forward(batch)))
        assert any(linear.packed is not None for linear in network.linears.values()) == (depth > 0)
    np.testing.assert_allclose(*outputs, atol=1e-5 * np.abs(outputs[0]).max())
