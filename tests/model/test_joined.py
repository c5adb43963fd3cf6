"""Queries, keys and values as one product, and a gate and what it gates: the same bits as apart, in the memory of the
parts, for every strategy and mixture."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cq
from cq.model.linear import Linear, QuantizedLinear, joined
from cq.model.replay import Replay

TEXTBOOK = cq.Scheme.textbook()
STRATEGIES = {
    "float32": None,
    "weight-only": cq.WeightOnly(),
    "weight-only textbook": cq.WeightOnly(TEXTBOOK),
    "groups": cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=8)),
    "dynamic": cq.Dynamic(),
    "dynamic textbook": cq.Dynamic(TEXTBOOK),
    "static": cq.Static(),
    "static textbook": cq.Static(TEXTBOOK),
    "stream": cq.Static(residual="int8"),
    "float attention": cq.Dynamic(cq.Scheme(attention="float32")),
}
MIXED = {
    "no query": cq.Static(exclude="*.query"),
    "no value": cq.Dynamic(exclude="*.value"),
    "only keys": cq.Dynamic(include="*.key"),
    "first layer": cq.Static(include="layers.0.*"),
    "only one query": cq.WeightOnly(include="layers.1.attention.query"),
}
EVEN = dict(hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=96)
ODD = {"bert": dict(hidden_size=40), "llama": {}}  # keys do not begin with a panel
FAMILIES = pytest.mark.parametrize("family", ["bert", "llama"])


def tokens():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 53, n) for n in (9, 1, 24)]


def quantized(model, strategy):
    if strategy is None:
        return model
    return cq.quantize(model, strategy, [tokens()] if isinstance(strategy, cq.Static) else None)


def run(model):
    return np.concatenate(model.forward(tokens()))


def parts(attention):
    return attention.query, attention.key, attention.value


@pytest.mark.parametrize("sizes", [EVEN, None], ids=["even", "odd"])
@FAMILIES
@pytest.mark.parametrize("strategy", [*STRATEGIES.values(), *MIXED.values()], ids=[*STRATEGIES, *MIXED])
def test_the_same_bits_as_apart(random_model, monkeypatch, family, strategy, sizes):
    model = quantized(random_model(family, **sizes or ODD[family])[0], strategy)
    together = run(model)
    for place in ("attention", "block"):
        monkeypatch.setattr(f"cq.model.{place}.joined", lambda layers: None)
    for block in model.blocks:
        block.attention._derived, block.ffn._derived = (None,) * 5, (None,) * 3
    model._replay = Replay()
    apart = run(model)
    assert together.tobytes() == apart.tobytes()


@pytest.mark.parametrize("strategy", [*STRATEGIES.values(), *MIXED.values()], ids=[*STRATEGIES, *MIXED])
def test_what_is_joined(random_model, strategy):
    """Layers of one kind are, wherever codes fill whole panels; a mixture is not."""
    model = quantized(random_model("llama", **EVEN)[0], strategy)
    run(model)
    for block in model.blocks:
        alike = len({(layer.runs_in, layer.input_form) for layer in parts(block.attention)}) == 1
        assert len(block.attention.readers()) == (1 if alike else 3)
    odd = quantized(random_model("bert", **ODD["bert"])[0], strategy)
    kinds = {len(block.attention.readers()) for block in odd.blocks}
    assert strategy is None or strategy in MIXED.values() or kinds == {3}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_one_memory(random_model, strategy):
    """The three layers are views of the joint one: no byte of codes or weights lies there twice."""
    model = quantized(random_model("llama", **EVEN)[0], strategy)
    before, rows = model.nbytes, model.coverage()
    run(model)
    assert (model.nbytes, model.coverage()) == (before, rows)
    for block in model.blocks:
        (joint,) = block.attention.readers()
        for layer in parts(block.attention):
            ours, all_of_it = ((x.packed if isinstance(x, Linear) else x.weight).panels for x in (layer, joint))
            assert np.shares_memory(ours, all_of_it)


def test_the_float32_weights_are_let_go(random_model):
    """Once joined, nothing of the model holds the arrays that it was made of."""
    model, weights = random_model("bert", **EVEN | dict(num_kv_heads=4))
    run(model)
    name = "layers.0.attention.key.weight"
    assert np.array_equal(model.blocks[0].attention.key.weight, weights[name])
    holders = sys.getrefcount(weights[name])
    assert holders <= 2  # the dictionary, and the call itself


@FAMILIES
@pytest.mark.parametrize("strategy", [*STRATEGIES.values(), *MIXED.values()], ids=[*STRATEGIES, *MIXED])
def test_checkpoints_know_nothing_of_it(random_model, tmp_path, family, strategy):
    """Saved before the first run, after it, and after a round trip: the same bytes, and the same results from all."""
    model = quantized(random_model(family, **EVEN)[0], strategy)
    cq.save(model, tmp_path / "before.safetensors")
    first = run(model)
    cq.save(model, tmp_path / "after.safetensors")
    again = cq.load(tmp_path / "after.safetensors")
    assert run(again).tobytes() == first.tobytes() == run(model).tobytes()
    cq.save(again, tmp_path / "again.safetensors")
    before, after, second = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("before", "after", "again"))
    assert before == after == second and again.nbytes == model.nbytes
    assert again.coverage() == model.coverage()


def test_replaced_layers_and_forms_are_seen(random_model):
    model = quantized(random_model("bert", **EVEN | dict(num_kv_heads=4))[0], cq.Dynamic())
    first = run(model)
    attention = model.blocks[0].attention
    forms, attention.forms = attention.forms, None
    floats = run(model)
    assert not np.array_equal(floats, first)
    attention.forms = forms
    assert np.array_equal(run(model), first)
    attention.key, attention.value = attention.value, attention.key
    assert not np.array_equal(run(model), first)


def test_many_threads_join_at_once(random_model):
    for _ in range(10):
        model = quantized(random_model("llama", **EVEN)[0], cq.Dynamic())
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _: run(model), range(8)))
        assert all(np.array_equal(result, results[0]) for result in results)


def layer(rng, k, n, bias="float32", zeros=False, group_size=None):
    from cq.coding import pack_weight, quantize_weight

    granularity = "per_channel" if group_size is None else "per_group"
    weight = pack_weight(
        quantize_weight(rng.standard_normal((n, k)).astype(np.float32), not zeros, granularity, group_size)
    )
    given = {
        None: None,
        "float32": rng.standard_normal(n).astype(np.float32),
        "int32": rng.integers(-99, 99, n).astype(np.int32),
        "int8": cq.quantize_tensor(rng.standard_normal(n).astype(np.float32)),
    }[bias]
    return QuantizedLinear(weight, given, None, None, "weight-only")


def test_which_layers_may_be_joined():
    rng = np.random.default_rng(0)
    for n in (16, 32, 48):
        # the last may end anywhere
        assert joined((layer(rng, 20, n), layer(rng, 20, 16), layer(rng, 20, 7))) is not None
    assert joined((layer(rng, 20, 7), layer(rng, 20, 16), layer(rng, 20, 16))) is None
    assert joined((layer(rng, 20, 16), layer(rng, 20, 16, None), layer(rng, 20, 16))) is None
    assert joined((layer(rng, 20, 16), layer(rng, 20, 16, "int8"), layer(rng, 20, 16))) is not None  # both add float32
    assert joined((layer(rng, 20, 16), layer(rng, 20, 16, "int32"), layer(rng, 20, 16))) is None
    assert joined((layer(rng, 20, 16), layer(rng, 20, 16, group_size=4), layer(rng, 20, 16))) is None
    assert joined((layer(rng, 20, 16), Linear(np.ones((16, 20), np.float32)), layer(rng, 20, 16))) is None
    some = [layer(rng, 20, 16, zeros=zeros) for zeros in (False, True, False)]
    zero_points = joined(tuple(some)).weight.zero_points
    assert np.array_equal(zero_points[:, 16:32], some[1].weight.zero_points) and not zero_points[:, :16].any()
