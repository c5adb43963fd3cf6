"""SmolLM2-135M over prompts of many lengths, and one token behind contexts of many lengths, beside the time that it
takes to read what such a token must read: weights, and what is kept. Its peers are in test_lm.py."""

import numpy as np
import pytest

import cq
from cq.model.generate import Generator, Step
from cq.model.sampling import Sampling
from cq.report.bench import operations

from . import smollm
from .measure import Entry, contest

PROMPTS, CONTEXTS = (128, 512, 2048), (16, 512, 1024, 2048, 4096)
CACHES = {"weight-only": ("float32", "int8"), "dynamic": ("int8",)}
MORE = 1000  # tokens that a timed sequence has room for
ROUNDS = 5


@pytest.fixture(scope="module")
def models(lm) -> dict[str, cq.Transformer]:
    return {"weight-only": cq.quantize(lm, cq.WeightOnly()), "dynamic": cq.quantize(lm, cq.Dynamic())}


def prompt(model: cq.Transformer, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, model.config.vocab_size, length).astype(np.int32)


@pytest.mark.parametrize("length", PROMPTS)
def test_prefill(benchmark, threads, models, length):
    entries = []
    for name, model in models.items():
        ids = prompt(model, length)
        entries.append(
            Entry(
                f"prefill {length}",
                f"cq {name}",
                lambda model=model, ids=ids: Generator(model, [ids], 1, Sampling(), None).prefill(),
                operations(model, [ids]),
                "int8" if name == "dynamic" else "float32",
                {"what": "prefill", "tokens": length},
            )
        )
    contest(benchmark, f"prefill {length}", entries, threads, ROUNDS)


@pytest.mark.parametrize("context", CONTEXTS)
def test_decode(benchmark, threads, models, context):
    """Each call decodes one token, whose place the next one takes again."""
    entries = []
    for name, caches in CACHES.items():
        for kind in caches:
            model = models[name]
            generator = Generator(model, [prompt(model, context)], MORE, Sampling(), kind)
            generator.prefill()
            step, ids, cache = Step(model, generator.cache), np.array([7], np.int32), generator.cache

            def decode(step=step, ids=ids, cache=cache):
                step(ids)
                cache.advance([-1])

            decode()
            kept = cache.nbytes * context // cache.capacities[0]
            entries.append(
                Entry(
                    f"decode {context}",
                    f"cq {name}, {kind} cache",
                    decode,
                    0.0,
                    "int8",
                    {"what": "decode", "tokens": 1, "context": context, "cache_bytes": kept},
                    smollm.step_bytes(model) + kept,
                )
            )
    contest(benchmark, f"decode {context}", entries, threads, ROUNDS)
