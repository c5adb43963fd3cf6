"""What a decoder's best effort costs to make: random Llama-type models of three sizes, each strategy in a process
of its own, whose memory is measured."""

import json
import subprocess
import sys

import pytest

LENGTH = 512
# name → hidden features, layers, hidden features of feed-forward parts
SIZES = {"10 million": (256, 8, 768), "40 million": (448, 14, 1280), "130 million": (640, 24, 1792)}
CASES = [*((size, 16) for size in SIZES), ("40 million", 32)]  # size, sequences
STEPS = 3  # of QAT
RUN = """
import json, resource, sys, time
import numpy as np
import cq
from cq.train import random_weights
(hidden, layers, ffn), count, length, steps = json.loads(sys.argv[1])
config = cq.Config(
    family="llama", vocab_size=16384, hidden_size=hidden, num_layers=layers, num_heads=hidden // 64,
    num_kv_heads=hidden // 64, head_dim=64, intermediate_size=ffn, max_positions=2048, norm="rms", norm_eps=1e-5,
    norm_first=True, activation="silu", gated=True, rope_theta=1e4, causal=True, lm_head=True, tied=True,
)
model = cq.Transformer(config, random_weights(config, 0))
rng = np.random.default_rng(1)
samples = [rng.integers(0, config.vocab_size, length) for _ in range(count)]
strategies = {
    "weight-only": cq.WeightOnly(effort="best"),
    "dynamic": cq.Dynamic(effort="best"),
    "static": cq.Static(effort="best"),
    "QAT": cq.QAT(target=cq.Static(effort="best"), steps=steps, batch_size=1),
}
moments = [time.perf_counter()]
cq.quantize(model, strategies[sys.argv[2]], samples, lambda *_: moments.append(time.perf_counter()))
print(json.dumps({
    "seconds": time.perf_counter() - moments[0],
    "step_seconds": moments[-1] - moments[-2],
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    "parameters": sum(int(np.prod(shape)) for shape in config.shapes().values()),
}))
"""
pytestmark = pytest.mark.timeout(0)


@pytest.mark.parametrize("strategy", ["weight-only", "dynamic", "static", "QAT"])
@pytest.mark.parametrize("size, count", CASES)
def test_preparation(benchmark, threads, size, count, strategy):
    given = json.dumps([SIZES[size], count, LENGTH, STEPS])

    def run() -> dict:
        done = subprocess.run([sys.executable, "-c", RUN, given, strategy], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    found = benchmark.pedantic(run, rounds=1)
    if strategy != "QAT":
        found.pop("step_seconds")
    case = f"{size}, {count * LENGTH:,} tokens"
    row = {"case": case, "work": strategy, "name": f"cq {strategy}", "threads": threads, "tokens": count * LENGTH}
    benchmark.extra_info["rows"] = [row | found]
