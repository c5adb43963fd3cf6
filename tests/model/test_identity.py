"""Models give the same bits on every instruction set, with any number of threads, beside any NumPy and BLAS."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import cq

SHIPPED = Path(cq.__file__).parent / "data" / "shakespeare"
TEXTBOOK = cq.Scheme.textbook()
STRATEGIES = {
    "float32": None,
    "weight-only": cq.WeightOnly(),
    "weight-only textbook": cq.WeightOnly(TEXTBOOK),
    "dynamic": cq.Dynamic(),
    "groups": cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=8)),
    "dynamic textbook": cq.Dynamic(TEXTBOOK),
    "static": cq.Static(),
    "static textbook": cq.Static(TEXTBOOK),
    "stream": cq.Static(residual="int8"),
    "float attention": cq.Dynamic(cq.Scheme(attention="float32")),
}
# A process of its own, as the instruction set is chosen at import: loads each checkpoint, prints a digest of each
# result.
CHILD = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
import cq
result = {"isa": cq.info()["isa"], "threads": cq.info()["threads"]}
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    model, rng = cq.load(path), np.random.default_rng(3)
    c = model.config
    sentences = ["A cat sat on the mat.", "Sixteen birds sang."]
    tokens = [model.tokenize(s) for s in sentences] if c.vocab_size > 1000 else [
        rng.integers(0, c.vocab_size, n) for n in (9, 1, min(c.max_positions, 130))]
    arrays = {"forward": model.forward(tokens)}
    if c.lm_head:
        arrays["logits"] = model.logits(tokens)
    if c.pooling:
        arrays["embed"] = [model.embed(tokens)]
    for name, parts in arrays.items():
        result[f"{path.stem} {name}"] = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
print(json.dumps(result))
"""


def digests(folder, isa: str, threads: int, **environment) -> dict[str, str]:
    environment = os.environ | {"CQ_ISA": isa, "OMP_NUM_THREADS": str(threads)} | environment
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result.pop("isa"), result.pop("threads")) == (isa, threads)
    return result


@pytest.fixture(scope="module")
def checkpoints(random_model, tmp_path_factory):
    """A folder of models, each under every strategy."""
    folder, rng = tmp_path_factory.mktemp("identity"), np.random.default_rng(2)
    even = dict(hidden_size=64, num_heads=4, head_dim=16, intermediate_size=128, tied=False, activation="gelu_tanh")
    models = {
        "bert": random_model("bert", max_positions=130)[0],
        "llama": random_model("llama", max_positions=130)[0],
        "even": random_model("llama", max_positions=130, **even)[0],
        "relu": random_model("bert", max_positions=130, activation="relu", pooling="max")[0],
        "shakespeare": cq.load(SHIPPED),
    }
    for name, model in models.items():
        samples = [rng.integers(0, model.config.vocab_size, 100) for _ in range(4)]
        for kind, strategy in STRATEGIES.items():
            given = samples if isinstance(strategy, cq.Static) else None
            cq.save(
                model if strategy is None else cq.quantize(model, strategy, given),
                folder / f"{name} {kind}.safetensors",
            )
    return folder


@pytest.fixture(scope="module")
def expected(checkpoints):
    return digests(checkpoints, cq.info()["isa_available"][-1], 1)


@pytest.mark.parametrize("isa, threads", [(isa, threads) for isa in cq.info()["isa_available"] for threads in (1, 2)])
def test_same_bits(checkpoints, expected, isa, threads):
    assert len(expected) == len(STRATEGIES) * 5 * 2 and len(set(expected.values())) == len(expected)
    assert digests(checkpoints, isa, threads) == expected


def test_same_bits_beside_the_numpy_of_an_older_cpu(checkpoints, expected):
    """NumPy and BLAS choose kernels by the CPU too, and theirs do not agree to the bit: none that differs may be
    used."""
    features = getattr(np, "_core", None) or np.core
    disabled = " ".join(features._multiarray_umath.__cpu_dispatch__)
    older = digests(checkpoints, "scalar", 1, NPY_DISABLE_CPU_FEATURES=disabled, OPENBLAS_CORETYPE="Prescott")
    assert older == expected


@pytest.mark.parametrize("kind", STRATEGIES)
def test_same_bits_call_after_call_and_for_any_team(checkpoints, kind):
    model, tokens, threads = (
        cq.load(checkpoints / f"shakespeare {kind}.safetensors"),
        [np.arange(170)],
        cq.info()["threads"],
    )
    first = model.logits(tokens)[0]
    try:
        for n in (1, 2, 3, 7):
            cq.set_num_threads(n)
            assert np.array_equal(model.logits(tokens)[0], first)
    finally:
        cq.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["weight-only", "dynamic", "static", "stream"])
def test_same_bits_from_many_python_threads_at_once(checkpoints, kind):
    calls = [np.arange(n) for n in (3, 200, 50, 120)] * 4
    expected = [cq.load(checkpoints / f"shakespeare {kind}.safetensors").logits([ids])[0] for ids in calls]
    model = cq.load(checkpoints / f"shakespeare {kind}.safetensors")
    with ThreadPoolExecutor(4) as pool:
        assert all(map(np.array_equal, pool.map(lambda ids: model.logits([ids])[0], calls), expected))


def test_same_bits_of_a_real_encoder(minilm_folder, tmp_path):
    """Two short sentences: portable code is slow."""
    model = cq.load(minilm_folder)
    cq.save(model, tmp_path / "float32.safetensors")
    for strategy in (cq.WeightOnly(), cq.Dynamic(), cq.Static(), cq.Static(TEXTBOOK)):
        samples = ["A man is playing a guitar.", "The cat sleeps."] if isinstance(strategy, cq.Static) else None
        cq.save(cq.quantize(model, strategy, samples), tmp_path / f"{strategy.name} {strategy.scheme.bias}.safetensors")
    results = [digests(tmp_path, isa, 2) for isa in cq.info()["isa_available"]]
    assert len(results[0]) == 10 and all(result == results[0] for result in results)
