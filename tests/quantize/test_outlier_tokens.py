"""Tokens thousands of times as large as the others, planted in a small decoder: stretched codes against a formula in
NumPy, on every instruction set alike, and what they gain; and effort="best", which chooses them."""

import sys

import numpy as np
import pytest

import cq
from cq import _core
from cq.calibrate import calibrate
from cq.errors import CalibrationError
from cq.model.activation import decode
from cq.model.forms import Columns, Fixed, Stretched
from cq.model.generate import Generator
from cq.model.sampling import Sampling
from cq.weights import pack

F = np.float32
FIRST = 7  # the planted token's id


@pytest.fixture(scope="module")
def planted(random_model):
    """A decoder in whose first block one token's hidden units are a thousand times the others', and samples that begin
    with it."""
    model, weights = random_model("llama", tied=False)
    rng = np.random.default_rng(2)
    weights["embed.word"][:, 3] = 0
    weights["embed.word"][FIRST, 3] = 40
    for name in ("gate", "up"):
        weight = weights[f"layers.0.ffn.{name}.weight"]
        weight[:, 3] = 8 + rng.random(len(weight), F)
    for name in weights:  # the feature stays that token's
        if name.endswith(("output.weight", "down.weight")):
            weights[name][3] = 0
    plain = {name: w for name, w in weights.items() if not name.endswith("norm.bias")}
    samples = [np.append(FIRST, rng.integers(8, 61, 40)) for _ in range(16)]
    return cq.Transformer(model.config, plain), samples


def error(model, q, samples) -> float:
    """Of all tokens but the first, against float32."""
    pairs = [(a[1:], b[1:]) for a, b in zip(model.logits(samples), q.logits(samples))]
    return sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs)


@pytest.mark.parametrize("dtype, symmetric", [("uint8", False), ("int8", False), ("int8", True)])
@pytest.mark.parametrize("n", [3, 64, 100])
def test_codes_are_the_formulas(n, dtype, symmetric):
    rng, middle = np.random.default_rng(n), 128 if dtype == "uint8" else 0
    own = ((rng.random((1, n)) + 0.1) * 0.01).astype(F)
    x = rng.standard_normal((6, n)).astype(F) * np.array([0.1, 1, 1, 3000, 1e20, 0], F)[:, None]
    form = Stretched(dtype, symmetric, 0.5, middle, Columns(own, np.full((1, n), middle, np.int32)))
    coded = _core.quantize(x, form)
    steps = np.abs(x * (F(1) / own)).max(1)
    power = np.exp2(np.ceil(np.log2(np.maximum(steps / F(127.5), 1), dtype=np.float64))).astype(F)
    least, most = (0, 255) if middle else (-128 + symmetric, 127)
    wanted = np.clip(np.rint(x / power[:, None] / own) + middle, least, most)
    np.testing.assert_array_equal(coded.codes, wanted)
    np.testing.assert_array_equal(coded.scale, power * F(0.5))
    near = own * power[:, None] * (127.5 / 127 if symmetric else 1)
    assert (np.abs(decode(coded) - x) <= near * 1.01).all()
    with pytest.raises(cq.CqError, match="NaN or Inf"):
        _core.quantize(np.full((1, n), np.inf, F), form)


def test_a_product_takes_the_rows_scales():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 48)).astype(F), rng.standard_normal((20, 48)).astype(F)
    x[2] *= 1000
    packed = pack((codes := np.clip(np.rint(w * 40), -127, 127).astype(np.int8)).T, None, np.full((1, 20), 0.025, F))
    form = Stretched("uint8", False, 0.01, 128, Columns(np.full((1, 48), 0.01, F), np.full((1, 48), 128, np.int32)))
    coded = _core.quantize(x, form)
    sums = (coded.codes.astype(int) - 128) @ codes.T.astype(int)
    got = _core.linear(coded, packed, None)
    np.testing.assert_array_equal(got, sums.astype(F) * (coded.scale[:, None] * F(0.025)))


def test_outlier_tokens_cost_the_others_nothing(planted):
    model, samples = planted
    static, stretched, dynamic = (
        error(model, cq.quantize(model, strategy, given), samples[12:])
        for strategy, given in (
            (cq.Static(), samples[:12]),
            (cq.Static(stretch=True), samples[:12]),
            (cq.Dynamic(), None),
        )
    )
    assert stretched < static / 10 and stretched < 3 * dynamic


def test_the_plan_says_so_and_its_checkpoint_too(planted, tmp_path):
    """The same bits come back, in whole passes and token by token."""
    model, samples = planted
    q = cq.quantize(model, cq.Static(stretch=True), samples[:12])
    assert isinstance(q.plan.layers["layers.0.ffn.down"].input, Stretched)
    cq.save(q, tmp_path / "q.safetensors")
    back = cq.load(tmp_path / "q.safetensors")
    assert back.strategy == q.strategy and back.strategy.stretch
    ids = samples[12].astype(np.int32)
    whole = q.logits([ids])[0]
    np.testing.assert_array_equal(back.logits([ids])[0], whole)
    generator = Generator(back, [ids[:20]], 30, Sampling(), None)
    for i, (_, token) in enumerate(generator.steps(lambda i, token: False)):
        assert token == q.logits([generator.tokens[0][: 20 + i]])[0][-1].argmax()


def test_a_choice_that_is_not_made_leaves_the_plan_as_it_was(planted):
    model, samples = planted
    found = calibrate(model, samples[:12], "mse")
    plain = cq.quantize(model, cq.Static(), found)
    assert not any(isinstance(layer.input, Stretched) for layer in plain.plan.layers.values())
    assert "stretch" not in plain.strategy.to_dict() and "effort" not in plain.strategy.to_dict()


def test_best_is_rotated_and_compensated(planted):
    model, samples = planted
    prepared = {
        kind: cq.compensate(cq.rotate(model, online=kind is cq.Dynamic), samples[:12])
        for kind in (cq.WeightOnly, cq.Dynamic)
    }
    for strategy, chosen in ((cq.WeightOnly(), cq.WeightOnly(effort="best")), (cq.Dynamic(), cq.Dynamic())):
        q = cq.quantize(model, chosen, calibration=samples[:12])
        assert q.strategy == type(chosen)(effort="best")
        for a, b in zip(q.logits(samples[12:]), cq.quantize(prepared[type(strategy)], strategy).logits(samples[12:])):
            np.testing.assert_array_equal(a, b)
    q = cq.quantize(model, cq.Static(effort="best"), samples[:12])
    assert q.strategy == cq.Static(effort="best", smooth=False, stretch=True)
    assert not any(isinstance(layer.input, Fixed) and "down" in name for name, layer in q.plan.layers.items())


def test_best_needs_samples_and_says_so(planted):
    model, samples = planted
    with pytest.raises(CalibrationError, match="effort='best'"):
        cq.quantize(model, cq.Dynamic(effort="best"))
    with pytest.raises(cq.CqError, match="effort"):
        cq.Dynamic(effort="worst")
    with pytest.raises(cq.CqError, match="effort='best' changes the model"):
        cq.quantize(model, cq.Static(effort="best"), calibrate(model, samples, "mse"))
    with pytest.raises(cq.CqError, match="takes the model as it is"):
        cq.Mixed((("*", cq.Dynamic(effort="best")),))


def test_qat_of_the_best_begins_where_the_best_is(planted):
    """A step too small for any float32: what is converted is what calibration alone gives."""
    model, samples = planted
    for target in (cq.Dynamic(effort="best"), cq.WeightOnly(effort="best")):
        still = cq.quantize(model, cq.QAT(target=target, steps=1, batch_size=2, learning_rate=1e-30), samples[:12])
        best = cq.quantize(model, target, samples[:12])
        for a, b in zip(still.logits(samples[12:]), best.logits(samples[12:])):
            np.testing.assert_array_equal(a, b)


def test_qat_prepares_on_some_of_its_samples(planted, monkeypatch):
    model, samples = planted
    qat, seen = sys.modules["cq.quantize.qat"], []
    for name in ("compensate", "calibrate"):
        real = getattr(qat, name)
        monkeypatch.setattr(qat, name, lambda m, s, *a, real=real, **k: seen.append(len(s)) or real(m, s, *a, **k))
    most = len(samples[0]) + len(samples[1]) + 1
    monkeypatch.setattr(qat, "_FIRST_TOKENS", most)
    strategy = cq.QAT(target=cq.Static(effort="best"), steps=1, batch_size=2)
    cq.quantize(model, strategy, samples)
    assert seen == [3, 3]
