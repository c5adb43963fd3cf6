"""Each layer alone: every number again by a plain formula, what is planted is found and said in words, what is
refused."""

import json
import re

import numpy as np
import pytest
from scipy import stats

import cq
from cq import Dynamic, Static, WeightOnly
from cq.errors import CalibrationError, CqError
from cq.model.forms import Smoothed
from cq.report import samples

TOKENS = 400  # all of them are looked at
LAYERS = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.scores",
    "attention.output",
    "ffn.up",
    "ffn.down",
)


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return cq.load(tiny_encoder)


@pytest.fixture(scope="module")
def found(encoder, pairs, prose):
    return cq.sensitivity(encoder, pairs, calibration=prose, max_tokens=TOKENS)


def sqnr(model, quantized, data) -> float:
    both = zip(model.forward(data.tokens), quantized.forward(data.tokens))
    both = [(x.astype(float), y.astype(float)) for x, y in both]
    return float(np.mean([10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()) for x, y in both]))


def test_every_layer_alone(encoder, found, pairs, prose):
    assert [layer.name for layer in found.layers] == [
        "embed.word",
        *(f"layers.{i}.{part}" for i in range(2) for part in LAYERS),
    ]
    data, given = samples.read(pairs, encoder).fewer(TOKENS), samples.read(prose, encoder)
    layers = {layer.name: layer for layer in found.layers}
    for name, include in (
        ("layers.0.ffn.down", ("layers.0.ffn.down",)),
        ("layers.1.attention.scores", ("layers.1.attention.[qkv]*",)),
    ):
        for strategy in (Dynamic(include=include), Static(include=include)):
            one = cq.quantize(encoder, strategy, given.tokens if isinstance(strategy, Static) else None)
            alone = layers[name].alone[strategy.name]
            assert alone.sqnr_db == pytest.approx(sqnr(encoder, one, data), rel=1e-6)
            a, b = encoder.embed(data.tokens), one.embed(data.tokens)  # of length 1
            assert alone.cosine == pytest.approx((a * b).sum(1).mean(), abs=1e-6)
            scored = np.isfinite(data.scores)
            expected = stats.spearmanr((b[::2] * b[1::2]).sum(1)[scored].astype(float), data.scores[scored]).statistic
            assert alone.accuracy["spearman"] == pytest.approx(100 * expected, abs=1e-9)
    assert list(layers["layers.0.attention.scores"].alone) == ["dynamic", "static"]
    assert found.float32["cosine"] == pytest.approx(1) and found.metrics == ("spearman", "cosine")


def test_shares_are_of_all_noise(found):
    for kind in ("weight-only", "dynamic", "static"):
        alone = [(layer.name, layer.alone[kind]) for layer in found.layers if kind in layer.alone]
        assert sum(one.share for _, one in alone) == pytest.approx(1)
        plain = [(one.share, one.sqnr_db) for name, one in alone if not name.endswith("scores")]
        assert np.diff([db for _, db in sorted(plain)]).max() <= 0  # the larger the share, the lower the SQNR
    for layer in found.layers:
        assert 0 < layer.alone[list(layer.alone)[0]].sqnr_db < 100


def test_clipping_and_unused_codes_are_those_of_the_static_range(encoder, found, pairs, prose):
    layers = {layer.name: layer for layer in found.layers}
    static = cq.quantize(encoder, Static(), samples.read(prose, encoder).tokens)
    seen = {}
    encoder.observe(
        samples.read(pairs, encoder).fewer(TOKENS).tokens, lambda site, x: seen.setdefault(site, []).append(np.array(x))
    )
    for name, site in (
        ("layers.0.ffn.down", "layers.0.ffn.hidden"),
        ("layers.1.attention.key", "layers.1.attention.input"),
    ):
        form, x = dict(static.linears())[name].input_form, np.concatenate(seen[site]).astype(float)
        own = form.columns if isinstance(form, Smoothed) else form
        codes = np.rint(np.float32(x) / np.float32(own.scale)) + own.zero_point
        assert layers[name].unused_codes == 256 - len(np.unique(np.clip(codes, 0, 255)))
        assert layers[name].clipped == pytest.approx(((codes < 0) | (codes > 255)).mean(), abs=2 / x.size)


def test_a_planted_outlier_is_found_and_treated(tiny_encoder, pairs, prose):
    model = cq.load(tiny_encoder)
    norm = model.blocks[0].attention_norm
    norm.weight = norm.weight.copy()
    norm.weight[7] *= 200
    strategies = WeightOnly(), Static(smooth=False, correct_bias=False)
    report = cq.sensitivity(model, pairs, strategies, calibration=prose, max_tokens=TOKENS)
    layer = {layer.name: layer for layer in report.layers}["layers.0.ffn.up"]
    assert "smoothing its outlier channels (Static(smooth=True))" in layer.help
    assert layer.outliers[0][0] == 7 and layer.outliers[0][1] > 50
    assert re.search(r"outlier channels 7 \(\d+× the median\)", layer.explained())
    assert layer.help and layer.help[-1] == "keep in float32" and "would help: " in layer.explained()
    assert layer.alone["weight-only"].sqnr_db > layer.alone["static"].sqnr_db + 10


def test_weights_of_unlike_channels_want_scales_of_their_own(tiny_encoder):
    model = cq.load(tiny_encoder)
    layer = model.blocks[0].ffn.up
    layer.source = layer.weight.copy()
    layer.weight[3] *= 60
    report = cq.sensitivity(model, [np.arange(3, 30)], WeightOnly(cq.Scheme(weight_granularity="per_tensor")))
    layer = {layer.name: layer for layer in report.layers}["layers.0.ffn.up"]
    assert layer.weight_spread > 20 and layer.clipped is None
    assert layer.help[0].startswith("per-channel weights") and "widest weight channel" in layer.explained()


def test_a_language_model(tiny_lm, prose):
    report = cq.sensitivity(cq.load(tiny_lm), prose, strategies=[Dynamic(), WeightOnly()], metric="kl", max_tokens=200)
    assert report.data["samples"] == 3 and report.metrics == ("kl",) and report.float32 == {"kl": 0.0}
    names = [layer.name for layer in report.layers]
    assert "head" in names and "embed.word" not in names and "layers.1.ffn.gate" in names  # tied: one with the head
    assert list(report.strategies) == ["weight-only", "dynamic"] and report.calibration is None
    head = report.layers[-1]
    assert head.alone["dynamic"].accuracy["kl"] > 0 and 0.9 < head.alone["dynamic"].cosine < 1 and head.clipped is None


def test_a_metric_of_the_callers(encoder):
    report = cq.sensitivity(encoder, ["one text"], Dynamic(), metric=lambda model, data: float(len(data)))
    assert {layer.alone["dynamic"].accuracy["<lambda>"] for layer in report.layers} == {1.0}


def test_it_is_shown(found):
    text = found.to_markdown()
    assert "| layers.1.ffn.down |" in text and "- layers.1.ffn.down: " in text and "Static calibrated on" in text
    assert json.loads(found.to_json())["layers"][1]["alone"]["static"]["share"] == found.layers[1].alone["static"].share


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(strategies=[Dynamic(), Dynamic()]), "one of each at most"),
        (dict(strategies=[cq.QAT()]), "takes WeightOnly, Dynamic"),
        (dict(strategies=[]), "one of each at most"),
        (dict(max_tokens=0), "max_tokens must be a positive"),
        (dict(metric="perplexity"), "does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(encoder, arguments, message):
    with pytest.raises(CqError, match=message):
        cq.sensitivity(encoder, ["a text"], **{"strategies": Dynamic()} | arguments)
    with pytest.raises(CalibrationError):
        cq.sensitivity(encoder, ["a text"])
