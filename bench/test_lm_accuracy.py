"""What int8 costs SmolLM2-135M-Instruct: perplexity of real text and agreement with float32 on it, and how long greedy
texts stay the same; cq's strategies and peers alike. No time is measured."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest

import cq
from cq.report.samples import Samples

from . import greedy, smollm

LONG, LONG_WINDOWS = 2048, 4
LONG_ONES = "cq float32", "cq weight-only, best", "cq dynamic, best", "cq static, best"
# dynamic's and static's attention computes with what an int8 cache keeps
CACHED = "cq float32", "cq weight-only", "cq weight-only, best"


@pytest.fixture(scope="module")
def sets(lm) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return smollm.windows(lm)


@pytest.fixture(scope="module")
def models(lm, sets) -> dict[str, cq.Transformer]:
    return smollm.plain(lm, sets[1]) | smollm.best(lm, sets[1]) | smollm.textbook(lm, sets[1])


def test_accuracy(benchmark, threads, models, lm_rivals, sets):
    """Windows of 512 tokens without overlap, evenly spread."""
    contestants = {name: lambda ids, model=model: model.logits([ids])[0] for name, model in models.items()}
    contestants |= cached(models, CACHED)
    contestants |= {name: rival.logits for name, rival in lm_rivals.items()}
    sizes = {name: one.nbytes for name, one in (models | lm_rivals).items()}
    tokens = Samples(sets[0]).limit(smollm.WINDOWS).tokens
    smollm.scored(
        benchmark, contestants, tokens, {"case": "WikiText-2 validation", "work": "accuracy", "threads": threads}, sizes
    )


def test_long(benchmark, threads, models, sets):
    """Windows of LONG tokens: the same text, four windows joined."""
    contestants = {name: lambda ids, model=models[name]: model.logits([ids])[0] for name in LONG_ONES}
    contestants |= cached(models, [name for name in LONG_ONES if name in CACHED])
    joined = [np.concatenate(sets[0][at : at + 4]) for at in range(0, len(sets[0]) - 4, 4)]
    tokens = Samples(joined).limit(LONG_WINDOWS).tokens
    assert {len(ids) for ids in tokens} == {LONG}
    smollm.scored(
        benchmark, contestants, tokens, {"case": f"windows of {LONG:,}", "work": "long", "threads": threads}, {}
    )


def cached(models: dict[str, cq.Transformer], names: Iterable[str]) -> dict[str, Callable]:
    return {
        f"{name}, int8 cache": lambda ids, model=models[name]: smollm.through_cache(model, ids, "int8")
        for name in names
    }


def test_greedy(benchmark, threads, lm, models, lm_rivals):
    """Texts that go on greedily from ten prompts, beside float32's."""
    prompts = [lm.tokenize(prompt) for prompt in greedy.PROMPTS]
    others = {
        "cq float32, rotated": (cq.rotate(lm, online=True), None),
        f"cq weight-only, groups of {smollm.GROUP}": (cq.quantize(lm, cq.WeightOnly(smollm.FINE)), None),
        "cq weight-only, int8 cache": (models["cq weight-only"], "int8"),
    }
    others |= {
        name: (models[name], None)
        for kind in ("weight-only", "dynamic", "static")
        for name in (f"cq {kind}", f"cq {kind}, best")
    }
    rows = []

    def measured() -> None:
        wanted = greedy.texts(lm, prompts)
        found = {name: greedy.texts(model, prompts, cache) for name, (model, cache) in others.items()}
        found |= {
            name: [np.array(rival.generate(ids, greedy.TOKENS)()) for ids in prompts]
            for name, rival in lm_rivals.items()
        }
        for name, texts in found.items():
            rows.append(
                {"case": "greedy text", "work": "greedy", "name": name, "threads": threads, "kind": "accuracy"}
                | greedy.compared(prompts, wanted, texts, lambda ids: lm.logits([ids])[0])
            )

    benchmark.pedantic(measured, rounds=1, iterations=1)
    assert rows[0]["equal"] == len(prompts), "float32 itself says something else when its features are turned"
    benchmark.extra_info["rows"] = rows
