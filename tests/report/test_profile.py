"""The profile of one pass: every moment lands in one part, whatever places a model shows, in float32 and in codes."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import cq
from cq.report.profile import profile

BERT = [
    "layers.0.attention.input",
    "layers.0.attention.query",
    "layers.0.attention.key",
    "layers.0.attention.value",
    "layers.0.attention.context",
    "layers.0.ffn.input",
    "layers.0.ffn.hidden",
    "layers.1.attention.input",
    "layers.1.attention.query",
    "layers.1.attention.key",
    "layers.1.attention.value",
    "layers.1.attention.context",
    "layers.1.ffn.input",
    "layers.1.ffn.hidden",
    "head.input",
]
TOKENS = [np.arange(5, dtype=np.int32), np.arange(9, dtype=np.int32)]


@pytest.fixture
def clockwork(monkeypatch):
    """clockwork(places) → a model that shows given places, each after so many milliseconds of a clock that nothing else
    moves."""
    now = [0.0]
    monkeypatch.setattr(sys.modules["cq.report.profile"], "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Clockwork:
        def __init__(self, places: dict[str, float], turns: int = 1):
            self.places = list(places.items()) * turns

        def forward(self, tokens):
            self.observe(tokens, lambda site, x: None)

        def observe(self, tokens, observe):
            for site, milliseconds in self.places:
                now[0] += milliseconds / 1e3
                observe(site, None)  # codes, or anything: a profile must not look

    return Clockwork


def test_time_goes_to_the_part_that_ends_there(clockwork):
    slow = {"layers.0.ffn.hidden": 4, "layers.1.ffn.hidden": 6, "head.input": 3}
    found = profile(clockwork({place: slow.get(place, 0) for place in BERT}), TOKENS, passes=3)
    parts = {part.name: part for part in found.parts}
    assert list(parts)[0] == "embedding" and list(parts)[-1] == "leaving"
    up, down = parts["feed-forward's up, activation"], parts["feed-forward's down, residual, norm"]
    assert up.by_layer == pytest.approx({0: 0.004, 1: 0.006}) and up.seconds == pytest.approx(0.010)
    assert down.by_layer == pytest.approx({0: 0, 1: 0.003})  # the work after a place is its layer's
    assert found.layers == pytest.approx({0: 0.004, 1: 0.009}) and found.forward_s == pytest.approx(0.013)
    assert sum(part.seconds for part in found.parts) == pytest.approx(found.seconds) == pytest.approx(0.013)
    assert sum(part.percent for part in found.parts) == pytest.approx(100)


def test_places_it_has_never_seen_are_named_as_they_are(clockwork):
    places = {"layers.0.attention.qkv": 1, "layers.0.mixer.out": 2, "layers.1.attention.qkv": 0}
    found = profile(clockwork(places), TOKENS, 2)
    assert [part.name for part in found.parts] == [
        "start → attention.qkv",
        "attention.qkv → mixer.out",
        "mixer.out → attention.qkv",
        "attention.qkv → end",
    ]
    assert found.parts[0].by_layer == {} and set(found.layers) == {0, 1}


def test_a_place_shown_more_than_once_in_a_pass_adds_up(clockwork):
    found = profile(clockwork({"layers.0.ffn.input": 0, "layers.0.ffn.hidden": 2}, turns=2), TOKENS, 2)
    up = next(part for part in found.parts if part.name == "feed-forward's up, activation")
    assert up.seconds == pytest.approx(0.004)


def test_passes_must_be_alike():
    class Moody:
        calls = 0

        def forward(self, tokens):
            pass

        def observe(self, tokens, observe):
            self.calls += 1
            observe(f"layers.{self.calls}.ffn.input", None)

    with pytest.raises(cq.CqError, match="other sites"):
        profile(Moody(), TOKENS, 2)
    with pytest.raises(cq.CqError, match="at least 1"):
        profile(Moody(), TOKENS, 0)


@pytest.mark.parametrize("kind", ["encoder", "lm"])
@pytest.mark.parametrize(
    "strategy",
    [None, cq.WeightOnly(), cq.Dynamic(), cq.Static()],
    ids=lambda strategy: strategy.name if strategy else "float32",
)
def test_every_strategy_can_be_profiled(request, kind, strategy):
    model = cq.load(request.getfixturevalue(f"tiny_{kind}"))
    if strategy:
        model = cq.quantize(model, strategy, calibration=TOKENS if strategy.name == "static" else None)
    before = [hidden.copy() for hidden in model.forward(TOKENS)]
    found = profile(model, TOKENS, passes=2)
    assert set(found.layers) == {0, 1} and found.seconds > 0 and all(part.seconds >= 0 for part in found.parts)
    assert found.parts[0].by_layer == {} and any(set(part.by_layer) == {0, 1} for part in found.parts)
    for one, other in zip(before, model.forward(TOKENS)):
        np.testing.assert_array_equal(one, other)
