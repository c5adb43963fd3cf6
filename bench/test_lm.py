"""SmolLM2-135M-Instruct in every strategy of cq beside its peers: the next token after 512, and decoding."""

import numpy as np
import pytest

from cq.report.bench import operations

from . import smollm
from .measure import Entry, contest, sqnr_db

NEW, ROUNDS = 64, 12
CALIBRATED_ON = 2  # windows: static's speed does not depend on them, its accuracy is measured by lm_accuracy
FLOATS = ("cq float32", "cq weight-only", "cq weight-only, best", smollm.FINEST)


@pytest.fixture(scope="module")
def lm_strategies(lm) -> dict:
    calibration = smollm.windows(lm)[1][:CALIBRATED_ON]
    return smollm.plain(lm, calibration) | smollm.as_fast_as_best(lm, calibration)


@pytest.fixture(scope="module")
def prompt(lm) -> np.ndarray:
    return smollm.windows(lm)[0][0]


def kind(name: str) -> str:
    return "float32" if name in FLOATS else "int8"


def test_prefill(benchmark, threads, lm, lm_strategies, lm_rivals, prompt):
    """Each runs the prompt anew and finds the next token. What its scores are worth is measured at all positions."""
    reference, work = (
        lm.logits([prompt])[0],
        operations(lm, [prompt]) + 2.0 * lm.config.vocab_size * lm.config.hidden_size,
    )
    calls = {
        name: (lambda model=model: list(smollm.tokens_of(model, prompt, 1)), model.logits([prompt])[0])
        for name, model in lm_strategies.items()
    }
    calls |= {name: (rival.prefill(prompt), rival.logits(prompt)) for name, rival in lm_rivals.items()}
    entries = []
    for name, (call, scores) in calls.items():
        top1 = round(float((scores.argmax(1) == reference.argmax(1)).mean()), 4)
        assert top1 > 0.5, f"{name} computes something else: its likeliest token is float32's in {top1:.0%}"
        facts = {"sqnr_db": sqnr_db([reference], [scores]), "top1": top1, "tokens": len(prompt)}
        entries.append(Entry("prefill", name, call, work, kind(name), facts))
    contest(benchmark, f"prefill of {len(prompt)} tokens", entries, threads, ROUNDS, turn_s=0, warm=False)


def test_decode(benchmark, threads, lm, lm_strategies, lm_rivals, prompt):
    """A token after another, the likeliest each time, from a prompt of one; a step's time is a token's. A step must
    read the weights."""
    first = prompt[:1]
    calls = {
        name: lambda model=model: list(smollm.tokens_of(model, first, NEW)) for name, model in lm_strategies.items()
    }
    calls |= {name: rival.generate(first, NEW) for name, rival in lm_rivals.items()}
    entries = []
    for name, call in calls.items():
        found = np.array([*first, *call()], np.int32)
        top1 = round(float((found[1:] == lm.logits([found[:-1]])[0].argmax(1)).mean()), 4)
        assert len(found) == NEW + 1 and top1 > 0.5, (
            f"{name} continues another way: {top1:.0%} of {len(found) - 1} tokens"
        )
        weights = smollm.step_bytes(lm_strategies[name]) if name in lm_strategies else 0
        entries.append(
            Entry("decode", name, call, operations(lm, [first]), kind(name), {"top1": top1, "tokens": 1}, weights, NEW)
        )
    contest(benchmark, "decode", entries, threads, ROUNDS, turn_s=0, warm=False)
