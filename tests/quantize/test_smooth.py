"""Smoothing and bias correction against their algebra in NumPy, where there are outliers and where means are off."""

import numpy as np
import pytest

import cq
from cq import affine
from cq.calibrate import calibrate
from cq.model.activation import Activation
from cq.model.forms import Smoothed
from cq.observers.tokens import Tokens
from cq.plan import scaled
from cq.quantize.smooth import rounded
from cq.quantize.static import plan_static

F = np.float32


def bare(**choices):
    return cq.Static(smooth=False, correct_bias=False, **choices)


@pytest.fixture(scope="module")
def outliers(random_model):
    """A decoder whose norms give two features a hundred times the range of the others, and samples of it."""
    model, weights = random_model("llama")
    for name in weights:
        if name.endswith("norm.weight") and name.startswith("layers"):
            weights[name][[3, 17]] *= 100
        elif name.endswith(("query.weight", "key.weight", "value.weight", "gate.weight", "up.weight")):
            weights[name][:, [3, 17]] /= 100
    rng = np.random.default_rng(4)
    return cq.Transformer(model.config, weights), [rng.integers(0, 61, 40) for _ in range(12)]


def error(model, q, samples) -> float:
    return sum(np.square(a - b).sum() for a, b in zip(model.forward(samples), q.forward(samples))) / sum(
        np.square(a).sum() for a in model.forward(samples)
    )


def test_outlier_channels_cost_less(outliers):
    model, samples = outliers
    errors = [
        error(model, cq.quantize(model, strategy, samples[:8]), samples[8:])
        for strategy in (bare(), cq.Static(correct_bias=False), cq.Static())
    ]
    assert errors[1] < errors[0] / 3 and errors[2] < errors[0] / 3


@pytest.mark.parametrize(
    "scheme",
    [cq.Scheme(), cq.Scheme(activation_dtype="int8"), cq.Scheme(activation_dtype="int8", activation_symmetric=True)],
)
def test_the_fold_is_its_algebra(outliers, scheme):
    """Codes as products see them, times the folded weight, plus the offset, are the rounded weight times the decoded
    input."""
    model, samples = outliers
    strategy = cq.Static(scheme, correct_bias=False)
    found = calibrate(model, samples, strategy.observer)

    plan = plan_static(model, strategy, found)
    seen = 0
    for name, layer in model.linears():
        form, fold = plan.layers[name].input, plan.layers[name].fold
        if not isinstance(form, Smoothed):
            continue
        seen += 1
        columns, site = form.columns, name.rsplit(".", 1)[0] + (".hidden" if name.endswith("down") else ".input")
        assert np.abs(columns.zero_point - affine.middle(scheme.activation_dtype)).max() <= affine.FARTHEST
        x = found.tokens[site].rows
        codes = np.clip(np.rint(x / columns.scale) + columns.zero_point, *affine.code_range(form.dtype, form.symmetric))
        decoded = columns.scale.astype(float) * (codes - columns.zero_point)
        weight = rounded(layer.weight, fold.factor).astype(float)
        got = form.scale * (codes - form.zero_point) @ weight.T + fold.offset
        expected = decoded @ (weight / fold.factor).T
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_allclose(scaled(layer.weight, fold.factor) / fold.factor, layer.weight, rtol=1e-5)
        inside = np.abs(decoded - x) <= columns.scale * 1.01  # every kept token lies within its feature's range
        assert inside.all()
    assert seen >= 5


def test_a_mean_error_is_taken_back(random_model):
    """Inputs that never change leave a constant error, and nothing else, to a layer."""
    model, _ = random_model("bert")
    layer, sample = model.blocks[0].attention.query, [np.full(1, 7)]
    seen = {}
    model.observe(sample, lambda site, x: seen.setdefault(site, x.copy()))
    exact = seen["layers.0.attention.input"] @ layer.weight.T + layer.bias
    off = {}
    for correct in (False, True):
        q = cq.quantize(model, cq.Static(cq.Scheme(bias="float32"), smooth=False, correct_bias=correct), [sample])
        given = q.blocks[0].attention.query
        off[correct] = np.abs(given(Activation(seen["layers.0.attention.input"])) - exact).max()
    assert off[False] > 1e-3 and off[True] < 1e-5


def test_tokens_merge_in_any_partition():
    rng = np.random.default_rng(2)
    samples = [rng.standard_normal((n, 5), F) for n in rng.integers(1, 90, 70)]
    whole = Tokens(64)
    for i, x in enumerate(samples):
        whole.update(x, i)
    assert whole.rows.shape == (64, 5) and sum(len(rows) for rows, _ in whole._parts) == 64
    every = np.concatenate(samples)
    np.testing.assert_array_equal((whole.lo, whole.hi), (every.min(0), every.max(0)))
    for parts in (2, 3, 30):
        found, order = [Tokens(64) for _ in range(parts)], rng.permutation(len(samples))
        for i in order:
            half = len(samples[i]) // 2
            found[i % parts].update(samples[i][half:], i, half)
            if half:
                found[(i + 1) % parts].update(samples[i][:half], i)
        merged = Tokens(64)
        for i in rng.permutation(parts):
            merged.merge(found[i])
        np.testing.assert_array_equal(merged.rows, whole.rows)
        np.testing.assert_array_equal((merged.lo, merged.hi), (whole.lo, whole.hi))
    extremes = Tokens(0).merge(Tokens(0))
    extremes.update(samples[0], 0)
    assert np.array_equal(Tokens(0).merge(extremes).hi, samples[0].max(0))


def test_textbook_goes_without(outliers):
    """And so does what excludes the layers; a calibration without tokens says what to do."""
    model, samples = outliers
    textbook = cq.quantize(model, cq.Static(cq.Scheme.textbook()), samples)
    plain = cq.quantize(model, bare(scheme=cq.Scheme.textbook()), samples)
    assert all(map(np.array_equal, textbook.forward(samples), plain.forward(samples)))
    assert not any(isinstance(layer.input_form, Smoothed) for _, layer in textbook.linears())
    with pytest.raises(cq.errors.CalibrationError, match="kept no tokens.*tokens=256"):
        cq.quantize(model, cq.Static(), calibrate(model, samples, "mse", tokens=0))
