"""What Static costs to make: a random model of BERT-base's size, calibrated on sequences of 64 tokens."""

import time

import numpy as np
import pytest

import cq
from cq.train import random_weights

CONFIG = cq.Config(
    family="bert",
    vocab_size=30_522,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
    intermediate_size=3072,
    max_positions=512,
    type_vocab_size=2,
)
LENGTH = 64
pytestmark = pytest.mark.timeout(0)


@pytest.mark.parametrize("count", [100, 500])
def test_static(benchmark, threads, count):
    rng = np.random.default_rng(1)
    model = cq.Transformer(CONFIG, random_weights(CONFIG, 0))
    samples = [rng.integers(0, CONFIG.vocab_size, LENGTH) for _ in range(count)]
    moments: list[float] = []
    benchmark.pedantic(
        lambda: cq.quantize(model, cq.Static(), samples, lambda *_: moments.append(time.perf_counter())), rounds=1
    )
    benchmark.extra_info["rows"] = [
        {
            "case": f"{count} × {LENGTH} tokens",
            "work": "static",
            "name": "cq static",
            "threads": threads,
            "samples": count,
            "tokens": count * LENGTH,
            "seconds": benchmark.stats.stats.max,
            "longest_pause": float(np.diff(moments).max()),
        }
    ]
