"""What both suites need: equal threads for all, and the machine's card in pytest-benchmark's JSON."""
import pytest

import cq

from . import card, minilm

CARD = card.card()  # before anything runs, for the load average


@pytest.fixture(scope="session")
def threads() -> int:
    """The one number of threads for cq, BLAS, onnxruntime and torch. Start with OMP_NUM_THREADS set to choose it."""
    n, blas = cq.info()["threads"], card.blas()["threads"]
    if blas not in (None, n):
        pytest.exit(f"cq would run on {n} threads and NumPy's BLAS on {blas}: set OMP_NUM_THREADS")
    return n


@pytest.fixture(scope="session")
def minilm_folder():
    """all-MiniLM-L6-v2 as a Hugging Face folder."""
    return minilm.folder()


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info["card"] = CARD
