"""A synthetic Llama-type folder of 1.5 billion parameters, 6 GB in float32, in several files: what quantizing it by `cq
quantize` takes, and how soon the result answers."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from cq.formats.huggingface import read_settings
from cq.formats.names import foreign
from cq.formats.tensors import write_safetensors
from cq.model.deferred import Deferred

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
SHARDS = 4
PEAK = 'print(next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM")))'
RUN = f"from cq.cli import main; main(standalone_mode=False); {PEAK}"
LOAD = (
    """
import sys, time
import numpy as np
start = time.perf_counter()
import cq
imported = time.perf_counter()
model = cq.load(sys.argv[1])
loaded = time.perf_counter()
ids = np.arange(8, dtype=np.int32)
one = model.generate(ids, max_new_tokens=1)
first = time.perf_counter()
model.generate(ids, max_new_tokens=9)
print(loaded - imported, first - loaded, (time.perf_counter() - first) / 9)
"""
    + PEAK
)


@pytest.fixture(scope="module")
def folder():
    """Random weights, a block over and over; the folder goes when all is measured."""
    path = Path(tempfile.mkdtemp(prefix="cq-large-"))
    if shutil.disk_usage(path).free < 10e9:
        pytest.skip(f"it writes 8 GB under {path.parent}; set TMPDIR to where they fit")
    block = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32)
    (path / "config.json").write_text(json.dumps(CONFIG))
    shapes, places = read_settings(path).config.shapes(), {}
    weights = {
        name: Deferred(shape, np.float32, lambda shape=shape: np.resize(block, shape)) for name, shape in shapes.items()
    }
    named = list(foreign(weights, "llama").items())
    for i in range(SHARDS):
        name, part = f"model-{i + 1:05}-of-{SHARDS:05}.safetensors", dict(named[i::SHARDS])
        write_safetensors(path / name, part, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    yield path
    shutil.rmtree(path)


def run(code: str, *arguments) -> tuple[float, list[float], int]:
    """Seconds, the numbers that were printed, and the most bytes in memory at once, those of mapped files included."""
    start = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True
    )
    *lines, peak = ended.stdout.splitlines()
    return time.perf_counter() - start, [float(word) for word in lines[-1].split()] if code == LOAD else [], int(peak)


@pytest.mark.parametrize("strategy", ["weight-only", "dynamic"])
def test_large(benchmark, threads, folder, strategy):
    shapes = read_settings(folder).config.shapes()
    counts = [int(np.prod(shape)) for shape in shapes.values()]
    out = folder / f"{strategy}.safetensors"
    found = []
    benchmark.pedantic(lambda: found.append(run(RUN, "quantize", folder, out, "--strategy", strategy)), rounds=1)
    (seconds, _, peak), (_, (load, first, token), loaded) = found[0], run(LOAD, out)
    size, largest = out.stat().st_size, 4 * max(counts)
    benchmark.extra_info["rows"] = [
        {
            "case": "quantize",
            "work": "quantize",
            "name": f"cq {strategy}",
            "threads": threads,
            "parameters": sum(counts),
            "file_bytes": 4 * sum(counts),
            "result_bytes": size,
            "largest_tensor_bytes": largest,
            "seconds": seconds,
            "peak_bytes": peak,
            "allowed_bytes": size + 2 * largest,
            "load_seconds": load,
            "first_token_seconds": first,
            "token_seconds": token,
            "loaded_bytes": loaded,
        }
    ]
    out.unlink()
