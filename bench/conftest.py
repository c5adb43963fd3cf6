"""What the suites need: equal threads for all, the model and its rivals, and the machine's card in pytest-benchmark's
JSON."""

import pytest

import cq

from . import card, encoder, minilm, peers, smollm
from .peers import ort, vino

CARD = card.card()  # before anything runs, for the load average


@pytest.fixture(scope="session")
def threads() -> int:
    """The one number of threads for cq, BLAS and every peer. Start with OMP_NUM_THREADS set to choose it."""
    n, blas = cq.info()["threads"], card.blas()["threads"]
    if blas not in (None, n):
        pytest.exit(f"cq would run on {n} threads and NumPy's BLAS on {blas}: set OMP_NUM_THREADS")
    return n


@pytest.fixture(scope="session")
def minilm_folder():
    """all-MiniLM-L6-v2 as a Hugging Face folder."""
    return minilm.folder()


@pytest.fixture(scope="session")
def float_model(minilm_folder) -> cq.Transformer:
    return cq.load(minilm_folder)


@pytest.fixture(scope="session")
def calibration(float_model) -> list:
    if not minilm.DATA.is_dir():
        pytest.skip(f"static is calibrated on STS, and the data is not there: {minilm.DATA}")
    return encoder.calibration(float_model)


@pytest.fixture(scope="module")
def source(float_model, calibration, minilm_folder, tmp_path_factory) -> peers.Source:
    """What peers' encoders are made from."""
    scratch = tmp_path_factory.mktemp("peers")
    graph = scratch / "float32.onnx"
    if ort.HAVE or vino.HAVE:
        import onnx
        from safetensors.numpy import load_file

        from cq.formats.names import canonical

        from .bert_onnx import encoder as graph_of

        weights = canonical(load_file(minilm_folder / "model.safetensors"), "bert", str(minilm_folder))
        onnx.save(graph_of(float_model.config, weights), graph)
    return peers.Source(minilm_folder, graph, calibration, scratch)


@pytest.fixture(scope="module")
def rivals(source, threads) -> dict:
    """Name → a peer's encoder, as `peers` describes them."""
    return peers.encoders(source, threads)


@pytest.fixture(scope="module")
def lm() -> cq.Transformer:
    """SmolLM2-135M-Instruct in float32."""
    if not smollm.TEXT.is_file():
        pytest.skip(f"language models run on WikiText-2, and it is not there: {smollm.TEXT}")
    return cq.load(smollm.file())


@pytest.fixture(scope="module")
def lm_rivals(threads, tmp_path_factory) -> dict:
    """Name → a peer's language model, as `peers` describes them."""
    return peers.language_models(smollm.file(), tmp_path_factory.mktemp("language-models"), threads)


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info["card"] = CARD
