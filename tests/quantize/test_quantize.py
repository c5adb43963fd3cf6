"""quantize's arguments: the ways in which calibration samples may come, choices that make no sense, and records of
both."""

import json
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, asdict
from functools import cache
from itertools import product

import numpy as np
import pytest

import cq
from cq import strategies
from cq.calibrate import calibrate

TEXTS = ["a cat sat on a mat", "the dog", "x", "birds of a feather flock together", "to be, or not to be"]
SET_OBSERVERS = ("minmax", "percentile", "mse")  # those that count sets, not orders
OBSERVERS = pytest.mark.parametrize("observer", SET_OBSERVERS)


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return cq.load(tiny_encoder)


@pytest.fixture(scope="module")
def lm(tiny_lm):
    return cq.load(tiny_lm)


def ids(model) -> list[np.ndarray]:
    return [model.tokenize(text) for text in TEXTS]


FORMS = {
    "list of texts": lambda model: TEXTS,
    "tuple of texts": lambda model: tuple(TEXTS),
    "generator of texts": lambda model: (text for text in TEXTS),
    "arrays": ids,
    "generator of arrays": lambda model: iter(ids(model)),
    "int64 arrays": lambda model: [a.astype(np.int64) for a in ids(model)],
    "lists of ids": lambda model: [a.tolist() for a in ids(model)],
    "batch of texts": lambda model: [TEXTS],
    "batches of texts": lambda model: [TEXTS[:2], TEXTS[2:]],
    "batches of both": lambda model: [[TEXTS[0], ids(model)[1]], tuple(TEXTS[2:])],
    "batches of arrays": lambda model: (ids(model)[i : i + 2] for i in (0, 2, 4)),
    "batches of lists": lambda model: [[a.tolist() for a in ids(model)]],
    "a batch of nothing too": lambda model: [[], TEXTS],
}


@pytest.fixture(scope="module")
def of_arrays(encoder):
    """of_arrays(strategy) → the encoder calibrated on one array after another, quantized once for each strategy."""
    return cache(lambda strategy: cq.quantize(encoder, strategy, ids(encoder)))


PLAIN = [cq.Static(observer=observer, smooth=False, correct_bias=False) for observer in SET_OBSERVERS]


@pytest.mark.parametrize(
    "form, strategy",
    [
        *(pytest.param(FORMS[name], plain, id=f"{name}, {plain.observer}") for name, plain in product(FORMS, PLAIN)),
        *(
            pytest.param(FORMS[name], cq.Static(), id=f"{name}, default")
            for name in ("generator of texts", "batches of both", "a batch of nothing too")
        ),
    ],
)
def test_samples_come_in_many_forms_and_mean_the_same(encoder, of_arrays, form, strategy):
    """Every form is tried with every way to find a range; scales of each feature's own and corrected biases, which take
    more time, with some forms."""
    one_by_one, given = of_arrays(strategy), cq.quantize(encoder, strategy, form(encoder))
    for (name, a), (_, b) in zip(one_by_one.linears(), given.linears(), strict=True):
        assert (a.input_form.scale, a.input_form.zero_point) == (b.input_form.scale, b.input_form.zero_point), name


def test_a_rectangle_is_a_list_of_samples(lm):
    tokens = np.random.default_rng(0).integers(0, 256, (4, 9))
    a, b = (
        {site: observer.range() for site, observer in calibrate(lm, samples, "minmax").sites.items()}
        for samples in (tokens, list(tokens))
    )
    assert a == b


def test_every_place_is_watched(lm):
    seen = calibrate(lm, TEXTS, "minmax")
    assert set(seen.sites) == {"head.input"} | {
        f"layers.{i}.{site}"
        for i in range(2)
        for site in (
            "attention.input",
            "attention.query",
            "attention.key",
            "attention.value",
            "attention.context",
            "attention.sum",
            "ffn.input",
            "ffn.hidden",
            "ffn.sum",
        )
    } - {"layers.1.ffn.sum"}


def test_large_samples_go_through_in_parts(lm, monkeypatch):
    """A sample may be a whole data set; memory must not grow with it."""
    whole, largest = calibrate(lm, [TEXTS], "minmax").sites, []
    monkeypatch.setattr("cq.model.batch.MAX_TOKENS", 20)
    hidden = cq.Transformer.hidden
    monkeypatch.setattr(
        cq.Transformer,
        "hidden",
        lambda self, batch, *readers: largest.append(len(batch.ids)) or hidden(self, batch, *readers),
    )
    parts = calibrate(lm, [TEXTS], "minmax").sites
    assert len(largest) > 2 and all(n <= 20 or n == len(TEXTS[3]) for n in largest)
    for site in whole:
        np.testing.assert_allclose(parts[site].range(), whole[site].range(), rtol=1e-5)


def test_progress_counts_samples_and_layers(encoder):
    calls = []
    cq.quantize(encoder, cq.Static(), TEXTS, lambda *now: calls.append(now))
    cq.quantize(encoder, cq.Static(), iter(TEXTS[:2]), lambda *now: calls.append(now))
    after = [(done, 8) for done in range(1, 9)] + [(done, 12) for done in range(1, 13)]  # places and layers
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5), *after, (1, None), (2, None), *after]


@pytest.mark.parametrize(
    "samples, error, message",
    [
        (None, cq.CalibrationError, "100-500"),
        ([], cq.CalibrationError, "no samples"),
        ([[]], cq.CalibrationError, "no samples"),
        (iter(()), cq.CalibrationError, "no samples"),
        ("a text", cq.CqError, "str"),
        (5, cq.CqError, "int"),
        (b"ab", cq.CqError, "bytes"),
        ([5], cq.CqError, "tokens"),
        ([None], cq.CqError, "tokens"),
        ([[999]], cq.CqError, "999"),
        ([1.5], cq.CqError, "float64"),
        ([np.zeros((2, 3))], cq.CqError, "float64"),
        ([[[1.5]]], cq.CqError, "float64"),
        ([""], cq.CqError, "empty"),
        ([np.zeros(65, int)], cq.CqError, "65 tokens"),
        ([{"text": "a"}], cq.CqError, "tokens"),
    ],
)
def test_bad_samples(lm, samples, error, message):
    with pytest.raises(error, match=message):
        cq.quantize(lm, cq.Static(), samples)


def test_a_sample_generator_that_fails_is_heard(lm):
    def samples():
        yield TEXTS[0]
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        cq.quantize(lm, cq.Static(), samples())


def test_samples_for_a_strategy_that_takes_none(lm):
    with pytest.raises(cq.CqError, match="effort='best' changes the model"):
        cq.quantize(lm, cq.Dynamic(), calibrate(lm, TEXTS, "mse"))
    for strategy in (cq.WeightOnly(effort="fast"), cq.Dynamic(effort="fast")):
        with pytest.raises(cq.CqError, match="only Static"):
            cq.quantize(lm, strategy, TEXTS)


def test_calibration_made_before(lm):
    """The same model as from the samples; not for another observer, another model or another strategy."""
    made = calibrate(lm, TEXTS, "mse")
    a, b = (cq.quantize(lm, cq.Static(), calibration) for calibration in (TEXTS, made))
    assert pickle.dumps([layer.input_form for _, layer in a.linears()]) == pickle.dumps(
        [layer.input_form for _, layer in b.linears()]
    )
    with pytest.raises(cq.CqError, match="made by observer 'mse', the strategy wants 'minmax'"):
        cq.quantize(lm, cq.Static(observer="minmax"), made)
    del made.sites["head.input"]
    with pytest.raises(cq.CalibrationError, match="knows no site 'head.input'"):
        cq.quantize(lm, cq.Static(), made)
    with pytest.raises(cq.CqError, match="only Static"):
        cq.quantize(lm, cq.Dynamic(), executor=ThreadPoolExecutor(1))


def test_static_takes_every_observer(lm):
    scales = {
        observer: cq.quantize(lm, cq.Static(observer=observer), TEXTS).head.input_form.scale
        for observer in (*strategies.OBSERVERS, "percentile:90", "histogram:8")
    }
    assert scales["percentile:90"] < scales["percentile"] <= scales["minmax"] >= scales["histogram:8"] > scales["mse"]


@pytest.mark.parametrize("strategy", [None, "dynamic", cq.Dynamic, cq.Scheme(), {}], ids=str)
def test_what_is_no_strategy(lm, strategy):
    with pytest.raises(cq.CqError, match="strategy"):
        cq.quantize(lm, strategy)


def test_what_is_no_float32_model(lm, tiny_lm):
    with pytest.raises(cq.CqError, match="model"):
        cq.quantize(tiny_lm, cq.Dynamic())
    with pytest.raises(cq.CqError, match="already quantized .dynamic."):
        cq.quantize(cq.quantize(lm, cq.Dynamic()), cq.WeightOnly())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(weight_granularity="per_row"), "per_channel"),
        (dict(activation_granularity="per_channel"), "per_token"),
        (dict(activation_dtype="int4"), "uint8"),
        (dict(activation_dtype=np.int8), "uint8"),
        (dict(bias="float16"), "int32"),
        (dict(attention="int4"), "int8, float32"),
        (dict(attention=None), "float32"),
        (dict(bias=None), "int32"),
        (dict(weight_granularity=[]), "per_channel"),
        (dict(activation_symmetric=True), "int8"),
        (dict(weight_symmetric="yes"), "True or False"),
        (dict(activation_symmetric=1), "True or False"),
        (dict(group_size=32), "per_group"),
        (dict(weight_granularity="per_group"), "group_size"),
        (dict(weight_granularity="per_group", group_size=0), "multiple of 4"),
        (dict(weight_granularity="per_group", group_size=6), "multiple of 4"),
        (dict(weight_granularity="per_group", group_size=-4), "multiple of 4"),
        (dict(weight_granularity="per_group", group_size=32.0), "multiple of 4"),
        (dict(weight_granularity="per_group", group_size=True), "multiple of 4"),
    ],
)
def test_schemes_that_make_no_sense(arguments, message):
    with pytest.raises(cq.CqError, match=message):
        cq.Scheme(**arguments)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: cq.Dynamic("textbook"), "cq.Scheme"),
        (lambda: cq.Dynamic(include=5), "name patterns"),
        (lambda: cq.Dynamic(exclude=[5]), "name patterns"),
        (lambda: cq.Static(exclude=None), "name patterns"),
        (lambda: cq.Static(observer="entropic"), "observer"),
        (lambda: cq.Static(observer=None), "observer"),
        (lambda: cq.Static(residual="int4"), "residual"),
        (lambda: cq.Static(residual=None), "residual"),
        (lambda: cq.Dynamic(cq.Scheme(weight_granularity="per_group", group_size=32)), "WeightOnly"),
        (lambda: cq.Static(cq.Scheme(weight_granularity="per_group", group_size=32)), "WeightOnly"),
    ],
)
def test_strategies_that_make_no_sense(make, message):
    with pytest.raises(cq.CqError, match=message):
        make()


def test_choices_are_frozen_and_comparable():
    assert cq.Static() == cq.Static() and hash(cq.Static()) == hash(cq.Static()) and cq.Dynamic() != cq.WeightOnly()
    assert cq.Dynamic(include=["a"]) == cq.Dynamic(include="a") == cq.Dynamic(include=iter("a"))
    with pytest.raises(FrozenInstanceError):
        cq.Dynamic().scheme = cq.Scheme.textbook()


def test_textbook_is_what_the_literature_teaches_first():
    assert asdict(cq.Scheme.textbook()) == dict(
        weight_symmetric=False,
        weight_granularity="per_tensor",
        group_size=None,
        activation_dtype="int8",
        activation_symmetric=False,
        activation_granularity="per_tensor",
        bias="int8",
        attention="int8",
    )


@pytest.mark.parametrize(
    "strategy",
    [
        cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=32), exclude="head"),
        cq.Dynamic(cq.Scheme.textbook()),
        cq.Static(observer="percentile:99.9", include=("layers.*", "head"), residual="int8"),
        cq.Static(cq.Scheme(attention="float32")),
    ],
    ids=lambda s: s.name,
)
def test_records_of_strategies(strategy):
    values = json.loads(json.dumps(strategy.to_dict()))
    assert strategies.from_dict(values) == strategy
    for broken in (
        values | {"name": "qat"},
        values | {"more": 1},
        {k: v for k, v in values.items() if k != "include"},
        values | {"scheme": None},
        values | {"scheme": values["scheme"] | {"bits": 4}},
        values | {"include": 5},
    ):
        with pytest.raises(cq.CqError):
            strategies.from_dict(broken)


def test_quantizing_warns_of_nothing(encoder, lm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (encoder, lm):
            for scheme in (cq.Scheme(), cq.Scheme.textbook()):
                cq.quantize(model, cq.WeightOnly(scheme))
                cq.quantize(model, cq.Dynamic(scheme)).forward([[1, 2]])
                cq.quantize(model, cq.Static(scheme), TEXTS).forward([[1, 2]])
