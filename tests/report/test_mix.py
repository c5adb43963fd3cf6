"""The search for a mix, with time that is a sum over layers so that it is known: budgets, order, and records that are
whole."""

import json
import sys

import numpy as np
import pytest

import cq
from cq import Dynamic, Mixed, Static, WeightOnly
from cq.errors import CalibrationError, CqError, FormatError
from cq.report import trials

mixing = sys.modules["cq.report.mix"]  # the name leads to the function
CHEAP = Static(observer="minmax", smooth=False, correct_bias=False)  # to quantize; where only the search matters
COST = {"static": 1.0, "dynamic": 2.0, "weight-only": 4.0, "float32": 6.0}
CALIBRATION = [np.random.default_rng(i).integers(0, 256, 30) for i in range(8)]
DATA = [np.random.default_rng(i).integers(0, 256, 20) for i in range(100, 108)]


def cost(model) -> float:
    return sum(COST[layer.runs_in] for _, layer in model.linears())


@pytest.fixture
def timed(monkeypatch):
    """The number of models that were timed."""
    found = []

    def fastest(models, run, repeats):
        found.append(len(models))
        return [cost(model) for model in models]

    monkeypatch.setattr(mixing, "fastest", fastest)
    return found


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return cq.load(tiny_encoder)


def loss(model, strategy) -> float:
    static = any(isinstance(part, Static) for _, part in strategy.choices)
    quantized = cq.quantize(model, strategy, CALIBRATION if static else None)
    return 1 - float((model.embed(DATA) * quantized.embed(DATA)).sum(1).mean())  # of length 1


def test_the_fastest_within_the_budget(encoder, timed):
    static, dynamic = (loss(encoder, Mixed([("*", strategy)])) for strategy in (CHEAP, Dynamic()))
    assert static > dynamic > 0
    times = []
    for budget in (1.0, (static + dynamic) / 2, dynamic / 2):
        found = cq.mix(encoder, DATA, budget, [CHEAP, Dynamic(), WeightOnly()], CALIBRATION)
        assert found.metric == "cosine" and found.float32 == pytest.approx(1) and found.reference == "static"
        assert found.best.loss == pytest.approx(loss(encoder, found.strategy), abs=1e-6) and found.best.loss <= budget
        quantized = cq.quantize(encoder, found.strategy, CALIBRATION if "Static" in repr(found.strategy) else None)
        assert found.best.time == pytest.approx(cost(quantized) / cost(cq.quantize(encoder, CHEAP, CALIBRATION)))
        assert all(trial.time >= found.best.time for trial in found.trials if trial.loss <= budget)
        times.append(found.best.time)
    assert times[0] == 1.0 < times[1] < 2.0 < times[2]  # all static; some static; some slower than dynamic


def test_no_budget_at_all_is_float32(encoder, timed):
    found = cq.mix(encoder, DATA, 0, strategies=[Dynamic()])
    assert {place.runs_in for place in cq.quantize(encoder, found.strategy).coverage()} == {"float32"}
    assert found.best.loss <= 1e-12 and found.reference == "dynamic" and found.best.time == 3.0


def test_a_search_that_was_cut_short_goes_on(encoder, timed, tmp_path):
    budget = loss(encoder, Mixed([("*", Dynamic())])) / 2
    given = dict(strategies=[CHEAP, Dynamic(), WeightOnly()], calibration=CALIBRATION)
    record, whole = tmp_path / "mix.json", cq.mix(encoder, DATA, budget, **given)
    complete = len(timed)

    def stop(what, done, total):
        if what == "trials" and done == 7:
            raise KeyboardInterrupt

    timed.clear()
    with pytest.raises(KeyboardInterrupt):
        cq.mix(encoder, DATA, budget, **given, record=record, progress=stop)
    before, saved = len(timed), json.loads(record.read_text())
    assert 0 < before < complete and 0 < len(saved["trials"]) < len(whole.trials) and saved["best"]["loss"] <= budget
    assert isinstance(trials.best_of(record), Mixed) and [path.name for path in tmp_path.iterdir()] == ["mix.json"]
    timed.clear()
    found = cq.mix(encoder, DATA, budget, **given, record=record)
    assert found == whole and len(timed) == complete - before and trials.best_of(record) == found.strategy
    timed.clear()
    assert cq.mix(encoder, DATA, budget, **given, record=record) == found and not timed


def test_a_record_of_something_else(encoder, timed, tmp_path):
    record = tmp_path / "mix.json"
    cq.mix(encoder, DATA, 1, strategies=[Dynamic()], record=record)
    cq.mix(encoder, DATA, 0.5, strategies=[Dynamic()], record=record)  # another budget is no other search
    with pytest.raises(CqError, match=r"record of another search \(its data differ"):
        cq.mix(encoder, DATA[1:], 1, strategies=[Dynamic()], record=record)
    with pytest.raises(CqError, match="strategies differ"):
        cq.mix(encoder, DATA, 1, strategies=[WeightOnly()], record=record)
    for text, message in (
        ("[]", "mix.json"),
        ('{"version": 9}', "version 9"),
        ('{"version": 1}', "not the record"),
        (record.read_text().replace('"mixed"', '"other"'), "not"),
    ):
        record.write_text(text)
        with pytest.raises(FormatError, match=message):
            trials.best_of(record)


def test_a_language_model(tiny_lm, prose, timed):
    model = cq.load(tiny_lm)
    found = cq.mix(model, prose, 0.001, strategies=[Dynamic(), WeightOnly()], metric="kl", max_trials=6)
    assert found.metric == "kl" and found.float32 == 0 and found.best.loss <= 0.001 and len(found.trials) <= 8
    assert "ffn" in trials.in_words(found.strategy) or len(found.strategy.choices) == 1
    cq.quantize(model, found.strategy)


def test_patterns_say_it_shortly():
    units = [
        mixing._Unit(kind, f"layers.{i}.{kind}", ()) for i in range(3) for kind in ("ffn.down", "attention.output")
    ]
    choices = {unit: "dynamic" if unit.kind == "ffn.down" else "static" for unit in units} | {units[1]: "float32"}
    parts = {"static": Static(), "dynamic": Dynamic()}
    assert (
        trials.in_words(mixing._mixed(choices, parts))
        == "layers.0.attention.output: float32; layers.*.attention.output: static; *: dynamic"
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(budget=-1), "budget must be a number from 0"),
        (dict(budget=float("nan")), "budget must be"),
        (dict(budget="0.1"), "budget must be"),
        (dict(max_trials=0), "max_trials must be"),
        (dict(strategies=[Dynamic(), Dynamic()]), "one of each at most"),
        (dict(metric="perplexity"), "does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(encoder, arguments, message):
    with pytest.raises(CqError, match=message):
        cq.mix(encoder, **{"data": DATA, "budget": 1, "strategies": [Dynamic()]} | arguments)
    with pytest.raises(CalibrationError, match="static needs samples"):
        cq.mix(encoder, DATA, 1)
