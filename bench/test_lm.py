"""SmolLM2-135M-Instruct in every strategy of cq beside its peers: the next token after 512, from the same token ids."""
import numpy as np
import pytest

from cq.report.bench import operations

from . import smollm
from .measure import Entry, contest, sqnr_db

PROMPT, NEW, ROUNDS = 512, 32, 6
PREFILL, DECODE = f"prefill of {PROMPT} tokens", "decode"
CALIBRATED_ON = 2  # windows: static's speed does not depend on them, its accuracy is measured by lm_accuracy


@pytest.fixture(scope="module")
def lm_strategies(lm) -> dict:
    return smollm.strategies(lm, smollm.windows(lm)[1][:CALIBRATED_ON])


@pytest.fixture(scope="module")
def prompt(lm) -> np.ndarray:
    return smollm.windows(lm)[0][0]


def checked(name: str, scores: np.ndarray, reference: np.ndarray) -> dict:
    """What a contestant's row says, once its scores (n, vocab) are those of this model."""
    facts = {"sqnr_db": sqnr_db([reference], [scores]), "top1": round(float((scores.argmax(1) == reference.argmax(1)).mean()), 4)}
    assert facts["top1"] > 0.5, f"{name} computes something else: {facts}"
    return facts


def test_prefill(benchmark, threads, lm, lm_strategies, lm_rivals, prompt):
    """Each runs the prompt anew and finds the scores of the next token only."""
    reference, work = lm.logits([prompt])[0], operations(lm, [prompt]) + 2.0 * lm.config.vocab_size * lm.config.hidden_size
    calls = {name: (lambda model=model: smollm.next_scores(model, prompt), model.logits([prompt])[0])
             for name, model in lm_strategies.items()}
    calls |= {name: (rival.prefill(prompt), rival.logits(prompt)) for name, rival in lm_rivals.items()}
    entries = [Entry("prefill", name, call, work, "float32" if name in ("cq float32", "cq weight-only") else "int8",
                     checked(name, scores, reference) | {"tokens": len(prompt)}) for name, (call, scores) in calls.items()]
    contest(benchmark, PREFILL, entries, threads, ROUNDS, turn_s=0, warm=False)


def test_decode(benchmark, threads, lm, lm_rivals, prompt):
    """A token after another, the likeliest each time, from a prompt of one; a step's time is a token's."""
    entries = []
    for name, rival in lm_rivals.items():
        call = rival.generate(prompt[:1], NEW)
        text = np.array([prompt[0], *call()], np.int32)
        likeliest = lm.logits([text[:-1]])[0].argmax(1)
        facts = {"top1": round(float((text[1:] == likeliest).mean()), 4), "tokens": 1}
        assert facts["top1"] > 0.5, f"{name} continues another way: {facts}"
        entries.append(Entry("decode", name, call, operations(lm, [text[:1]]), "int8", facts, steps=NEW))
    contest(benchmark, DECODE, entries, threads, ROUNDS, turn_s=0, warm=False)
