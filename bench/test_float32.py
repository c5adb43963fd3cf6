"""float32 products beside NumPy's BLAS: a layer's forward product over a packed weight, and the two products of its
gradients. run.py runs them twice: with the CPU's best instructions, and with cq and BLAS held to AVX2."""

import os

import numpy as np
import pytest

from cq import _core, functions
from cq.weights import pack_floats

from . import card
from .measure import Entry, contest
from .test_gemm import LARGE, LAYERS

ROWS, GRADIENT_ROWS = (8, 16, 32, 128, 512, 1024), (512, 1024)  # a step of training has hundreds of tokens
FORWARD, OF_INPUT, OF_WEIGHT = "x wᵀ", "g w", "gᵀ x"
ROUNDS, TURN_S = 5, 0.03


@pytest.fixture(scope="module", autouse=True)
def same_instructions() -> None:
    core = card.blas()["core"]
    if os.environ.get("CQ_ISA") == "avx2" and core not in (None, "Haswell"):
        pytest.exit(f"cq is held to AVX2 and BLAS runs as on {core}: set OPENBLAS_CORETYPE=Haswell")


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("model, k, n", [(model, k, n) for model, sizes in LAYERS.items() for k, n in sizes])
def test_products(benchmark, threads, model, k, n, m):
    rng = np.random.default_rng(0)
    w, x, g = (rng.standard_normal(shape, np.float32) for shape in ((n, k), (m, k), (m, n)))
    packed = pack_floats(w.T)
    works = {FORWARD: (lambda: _core.linear(x, packed), lambda: x @ w.T)}
    if m in GRADIENT_ROWS and model != LARGE:
        works |= {
            OF_INPUT: (lambda: functions.matmul(g, w), lambda: g @ w),
            OF_WEIGHT: (lambda: functions.matmul(g.T, x), lambda: g.T @ x),
        }
    entries = []
    for work, (ours, blas) in works.items():
        np.testing.assert_allclose(ours(), blas(), atol=1e-4 * np.sqrt(max(k, n, m)))
        entries += [
            Entry(work, "cq float32", ours, 2.0 * m * k * n, "float32", {"model": model}),
            Entry(work, "NumPy float32", blas, 2.0 * m * k * n, "float32", {"model": model}),
        ]
    contest(benchmark, f"{m}×{k}×{n}", entries, threads, ROUNDS, TURN_S)
