"""int8 products and layers beside NumPy's BLAS, onnxruntime and torch, on the layers of four transformers."""

import functools

import numpy as np
import pytest

import cq
from cq.model.activation import Activation
from cq.model.forms import PerToken
from cq.model.linear import QuantizedLinear

from . import peers
from .measure import Entry, contest, sqnr_db
from .peers import ort, pytorch

ROWS = (1, 2, 4, 8, 16, 32, 128, 512)
FEW_ROWS = 4  # so few are bound by reading the weight
LAYERS = {
    "BERT-base": ((768, 768), (768, 3072), (3072, 768)),
    "MiniLM-L6": ((384, 384), (384, 1536), (1536, 384)),
    "SmolLM2-135M": ((576, 576), (576, 192), (576, 1536), (1536, 576)),
    "Llama-7B": ((4096, 4096), (4096, 11008), (11008, 4096)),
}
PRODUCT, TO_FLOAT, TO_CODES = "codes → int32", "codes → float32", "codes → codes"
INSIDE, FLOAT = "float32, int8 inside", "float32"
LARGE, LARGE_WORKS = "Llama-7B", (PRODUCT, INSIDE, FLOAT)  # the rest would take minutes and say nothing new
ROUNDS, LARGE_ROUNDS, TURN_S = 4, 3, 0.015
# Activations and results are normally distributed with a deviation of 1, of which these steps hold all but the odd
# value.
X_SCALE, X_ZERO_POINT = np.float32(10 / 255), 121
Y_SCALE, Y_ZERO_POINT = np.float32(11 / 255), 128


class Layer:
    """One layer's weight in every form that a contestant wants, made once for all numbers of rows."""

    def __init__(self, k: int, n: int, threads: int):
        rng = np.random.default_rng(0)
        self.weight = rng.standard_normal((n, k), np.float32) / np.float32(np.sqrt(k))  # (N, K), as models store it
        self.coded = cq.quantize_tensor(self.weight.T, "int8", symmetric=True, axis=1)
        self.packed = cq.pack(self.coded)
        self.dynamic = QuantizedLinear(self.packed, None, None, PerToken("uint8", False), "dynamic")
        self.operators = _operators(self.coded, threads) if peers.runs_the_same(ort) else []
        self.torch = pytorch.linear(self.weight, threads) if peers.runs_the_same(pytorch) else {}


layer_of = functools.lru_cache(maxsize=1)(Layer)


def _operators(weight: cq.QTensor, threads: int) -> list[tuple]:
    """(Work, name, function of the input), of onnxruntime."""
    w = {
        "w": weight.data,
        "w_scale": weight.scale,
        "w_zero": np.zeros(len(weight.scale), np.int8),
        "x_scale": X_SCALE,
        "x_zero": np.uint8(X_ZERO_POINT),
        "y_scale": Y_SCALE,
        "y_zero": np.uint8(Y_ZERO_POINT),
    }

    def operators(work: str, op: str, order: str, domain: str = "") -> list[tuple]:
        constants = {name: w[name] for name in order.split() if name in w}
        return [
            (work, f"onnxruntime {op}{suffix}", ort.one_operator(op, order, constants, threads, domain, exact))
            for suffix, exact in ort.modes().items()
        ]

    return [
        *operators(PRODUCT, "MatMulInteger", "x w x_zero"),
        *operators(TO_FLOAT, "MatMulIntegerToFloat", "x w x_scale w_scale x_zero", "com.microsoft"),
        *operators(TO_CODES, "QLinearMatMul", "x x_scale x_zero w w_scale w_zero y_scale y_zero"),
        *operators(INSIDE, "DynamicQuantizeMatMul", "x w w_scale", "com.microsoft"),
    ]


def codes_of(x: np.ndarray) -> np.ndarray:
    return cq.affine.quantize(x, X_SCALE, np.int32(X_ZERO_POINT), "uint8")


def contestants(layer: Layer, x: np.ndarray) -> list[tuple[str, str, str, object, object]]:
    """(work, name, kind, function without arguments, its result → float32 (M, N))."""
    codes = codes_of(x)
    coded, packed = cq.QTensor(codes, X_SCALE, np.int32(X_ZERO_POINT)), layer.packed
    from_codes = lambda y: (
        y.dequantize() if isinstance(y, cq.QTensor) else (y.astype(np.float32) - Y_ZERO_POINT) * Y_SCALE
    )
    decode = {PRODUCT: lambda y: y.astype(np.float32) * layer.coded.scale * X_SCALE, TO_CODES: from_codes}
    found = [
        (PRODUCT, "cq matmul_integer", "int8", lambda: cq.matmul_integer(codes, packed, X_ZERO_POINT)),
        (TO_FLOAT, "cq linear", "int8", lambda: cq.linear(coded, packed)),
        (
            TO_CODES,
            "cq linear",
            "int8",
            lambda: cq.linear(coded, packed, out_scale=float(Y_SCALE), out_zero_point=Y_ZERO_POINT, out_dtype="uint8"),
        ),
        (INSIDE, "cq dynamic layer", "int8", lambda: layer.dynamic(Activation(x))),
        (FLOAT, "cq linear, weight-only int8", "float32", lambda: cq.linear(x, packed)),
        (FLOAT, "NumPy float32", "float32", lambda: x @ layer.weight.T),
    ]
    found += [
        (work, name, "int8", lambda run=run, given=x if work == INSIDE else codes: run(given))
        for work, name, run in layer.operators
    ]
    found += [(INSIDE, name, "int8", lambda run=run: run(x).numpy()) for name, run in layer.torch.items()]
    return [(*entry, decode.get(entry[0], lambda y: y)) for entry in found]


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("model, k, n", [(model, k, n) for model, sizes in LAYERS.items() for k, n in sizes])
def test_gemm(benchmark, threads, model, k, n, m):
    layer, operations = layer_of(k, n, threads), 2.0 * m * k * n
    x = np.random.default_rng(1).standard_normal((m, k), np.float32)
    y, exact, entries = x @ layer.weight.T, cq.matmul_integer(codes_of(x), layer.packed, X_ZERO_POINT), []
    for work, name, kind, call, decode in contestants(layer, x):
        if model == LARGE and work not in LARGE_WORKS:
            continue
        accuracy = sqnr_db([y], [decode(call())])
        assert accuracy > 25, f"{name} ({work}) computes something else: {accuracy} dB from float32"
        weight_bytes = 0 if m > FEW_ROWS else k * n * (4 if name == "NumPy float32" else 1)
        more = {"model": model, "sqnr_db": accuracy}
        if work == PRODUCT and not name.startswith("cq"):
            more["percent_wrong"] = round(100 * float(np.mean(call() != exact)), 2)
        entries.append(Entry(work, name, call, operations, kind, more, weight_bytes))
    contest(benchmark, f"{m}×{k}×{n}", entries, threads, LARGE_ROUNDS if model == LARGE else ROUNDS, TURN_S)
