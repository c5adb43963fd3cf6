"""Where a CPU has AVX2 and nothing newer: int8 beside a BLAS that is held to AVX2 too. `run.py` starts it with
CQ_ISA=avx2 and OPENBLAS_CORETYPE=Haswell."""

import numpy as np
import pytest

import cq
from cq.report.bench import operations

from . import card, encoder
from .measure import Entry, contest
from .test_gemm import LAYERS, X_SCALE, X_ZERO_POINT, contestants, layer_of
from .test_model import WORK

MODELS, ROWS, SHAPE = ("BERT-base", "MiniLM-L6"), (32, 128, 512), (8, 128)
WANTED = ("cq matmul_integer", "cq dynamic layer", "NumPy float32")
SPREAD, SPREAD_SHAPE, SPREADS = "spread", (32, 768, 3072), (15, 25, 36, 45, None)
ROUNDS, TURN_S = 4, 0.03


@pytest.fixture(scope="module", autouse=True)
def avx2_only() -> None:
    core = card.blas()["core"]
    if cq.info()["isa"] != "avx2" or core not in (None, "Haswell"):
        pytest.exit(
            f"cq runs on {cq.info()['isa']} and BLAS as on {core}: set CQ_ISA=avx2 and OPENBLAS_CORETYPE=Haswell"
        )


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("model, k, n", [(model, k, n) for model in MODELS for k, n in LAYERS[model]])
def test_gemm(benchmark, threads, model, k, n, m):
    x = np.random.default_rng(1).standard_normal((m, k), np.float32)
    layer = layer_of(k, n, threads)
    codes = cq.affine.quantize(x, X_SCALE, np.int32(X_ZERO_POINT), "uint8")
    exact = (codes.astype(np.float64) - X_ZERO_POINT) @ layer.coded.data  # float64 holds every sum
    np.testing.assert_array_equal(cq.matmul_integer(codes, layer.packed, X_ZERO_POINT), exact)
    entries = [
        Entry("product", name, call, 2.0 * m * k * n, kind, {"model": model})
        for _, name, kind, call, _ in contestants(layer, x)
        if name in WANTED
    ]
    contest(benchmark, f"{m}×{k}×{n}", entries, threads, ROUNDS, TURN_S)


@pytest.mark.parametrize("deviation", SPREADS, ids=str)
def test_spread(benchmark, threads, deviation):
    """Codes of different standard deviations around the zero point, None: evenly spread over all 256 values. The more
    of them lie far off, the more excess a product of clipped codes has."""
    m, k, n = SPREAD_SHAPE
    layer, rng = layer_of(k, n, threads), np.random.default_rng(2)
    codes = rng.integers(0, 256, (m, k), np.uint8)
    if deviation is not None:
        codes = np.clip(np.rint(rng.normal(X_ZERO_POINT, deviation, (m, k))), 0, 255).astype(np.uint8)
    entry = Entry(
        SPREAD,
        "cq matmul_integer",
        lambda: cq.matmul_integer(codes, layer.packed, X_ZERO_POINT),
        2.0 * m * k * n,
        "int8",
        {"deviation": deviation},
    )
    contest(benchmark, f"{m}×{k}×{n}, {deviation or 'even'}", [entry], threads, ROUNDS, TURN_S)


def test_model(benchmark, threads, float_model, calibration):
    tokens = encoder.random(float_model, *SHAPE)
    entries = [
        Entry(
            WORK,
            f"cq {name}",
            lambda model=model: model.forward(tokens),
            operations(float_model, tokens),
            "float32" if name in ("float32", "weight-only") else "int8",
        )
        for name, model in encoder.strategies(float_model, calibration).items()
    ]
    contest(benchmark, "8×128", entries, threads, ROUNDS)
