"""Channels made alike: the same function with narrower weights; splitting at the price of the units that matter
least."""

import numpy as np
import pytest

import cq
from cq.calibrate import calibrate
from cq.model.sites import Graph
from cq.prepare.equalize import OUTLIER, SHARE, equalize_values, split_outliers

UNITS = 3 * SHARE  # three of which may give up their places


def model(family: str, loud: float) -> cq.Transformer:
    """One weight of `loud`, three dead units."""
    gated = family == "llama"
    config = cq.Config(
        family=family,
        vocab_size=19,
        hidden_size=12,
        num_layers=1,
        num_heads=3,
        num_kv_heads=3,
        head_dim=4,
        intermediate_size=UNITS,
        max_positions=16,
        type_vocab_size=0 if gated else 1,
        activation="silu",
        gated=gated,
        **dict(norm="rms", norm_first=True, rope_theta=1e4, causal=True, lm_head=True) if gated else {},
    )
    rng = np.random.default_rng(3)
    shapes = config.shapes() | ({} if gated else {"layers.0.ffn.up.bias": (UNITS,), "layers.0.ffn.down.bias": (12,)})
    weights = {
        name: rng.normal(name.endswith("norm.weight"), 0.2, shape).astype(np.float32) for name, shape in shapes.items()
    }
    down = weights["layers.0.ffn.down.weight"]
    down[:, [7, 100, 300]] = 0
    down[4, 50] = loud
    return cq.Transformer(config, weights)


def split(model: cq.Transformer, data: list) -> tuple[dict, dict]:
    weights = model.weights()
    return weights, split_outliers(
        weights, model.graph.blocks[0].ffn, calibrate(model, data, "minmax").tokens["layers.0.ffn.hidden"]
    )


@pytest.fixture
def data() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 19, (8, 12)))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_function_stays_and_the_range_shrinks(family, data):
    before = model(family, 64.0)
    weights, changed = split(before, data)
    down = changed["layers.0.ffn.down.weight"]
    assert weights["layers.0.ffn.down.weight"].max() == 64 and down[4].max() == 16  # halved twice, once for each copy
    assert (down[4] == 16).sum() == 4 and set(np.flatnonzero(down[4] == 16)) == {7, 50, 100, 300}
    assert all(array.shape == weights[name].shape and array is not weights[name] for name, array in changed.items())
    after = cq.Transformer(before.config, weights | changed)
    for a, b in zip(before.forward(data), after.forward(data)):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max())


def test_a_unit_that_is_given_up_leaves_its_mean(data):
    before = model("bert", 64.0)
    before.blocks[0].ffn.down.weight[:, 7] = 1e-3
    weights, changed = split(before, data)
    kept = calibrate(before, data, "minmax").tokens["layers.0.ffn.hidden"].rows[:, 7]
    np.testing.assert_allclose(
        changed["layers.0.ffn.down.bias"] - weights["layers.0.ffn.down.bias"], 1e-3 * kept.mean(), rtol=1e-2
    )


@pytest.mark.parametrize("family, kv_heads", [("bert", 4), ("llama", 2)])
def test_values_are_equalized_with_what_reads_them(family, kv_heads, data):
    config = cq.Config(
        family=family,
        vocab_size=19,
        hidden_size=16,
        num_layers=1,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=4,
        intermediate_size=9,
        max_positions=16,
        type_vocab_size=1 if family == "bert" else 0,
        **dict(norm="rms", norm_first=True, rope_theta=1e4, causal=True, lm_head=True) if family == "llama" else {},
    )
    rng = np.random.default_rng(3)
    shapes = config.shapes() | ({"layers.0.attention.value.bias": (4 * kv_heads,)} if family == "bert" else {})
    weights = {
        name: rng.normal(name.endswith("norm.weight"), 0.4, shape).astype(np.float32) for name, shape in shapes.items()
    }
    value, output = (weights[f"layers.0.attention.{part}.weight"] for part in ("value", "output"))
    value[2] *= 50
    output[:, -1] *= 30
    before = [w.copy() for w in (value, output)]
    changed = equalize_values(weights, Graph(config).blocks[0].attention, config)
    assert (value == before[0]).all() and (output == before[1]).all()
    after = [changed[f"layers.0.attention.{part}.weight"] for part in ("value", "output")]
    for wide, narrow in zip(before, after):
        assert np.abs(narrow).max() / narrow.std() < 0.85 * np.abs(wide).max() / wide.std()
    given, taken = np.abs(after[0]).max(1), np.abs(after[1]).reshape(16, kv_heads, -1, 4).max((0, 2)).reshape(-1)
    assert np.ptp(np.log(given / taken)) < 1e-5
    for a, b in zip(
        cq.Transformer(config, weights).forward(data), cq.Transformer(config, weights | changed).forward(data)
    ):
        np.testing.assert_allclose(a, b, atol=3e-6 * np.abs(a).max())


def test_a_feature_without_values_stays(data):
    given = model("bert", 1.0)
    weights = given.weights()
    weights["layers.0.attention.value.weight"][3] = 0
    weights["layers.0.attention.output.weight"][:, 5] = 0
    assert all(
        np.isfinite(array).all()
        for array in equalize_values(weights, given.graph.blocks[0].attention, given.config).values()
    )


def test_nothing_stands_out(data):
    weights, changed = split(model("bert", 0.2), data)
    down = weights["layers.0.ffn.down.weight"]
    assert changed == {} and np.abs(down).max() < OUTLIER * np.sqrt(np.mean(down**2))


def test_qat_begins_with_it(data):
    """One scale for each weight: before a step that moves anything, codes of the outlier leave the others theirs."""
    loud, choices = (
        model("bert", 64.0),
        cq.QAT(
            target=cq.WeightOnly(cq.Scheme.textbook(), include=("*.ffn.down",)),
            steps=1,
            learning_rate=1e-12,
            ranges="moving_average",
        ),
    )
    exact = np.concatenate(loud.forward(data))

    def off(q):
        return np.square(np.concatenate(q.forward(data)) - exact).mean()

    assert off(cq.quantize(loud, choices, data)) < 0.2 * off(cq.quantize(loud, choices.target))
