"""int8 products and layers beside NumPy's BLAS, onnxruntime and torch, on the layers of BERT-base and MiniLM-L6."""
import numpy as np
import pytest

import cq
from cq.model.activation import Activation, PerToken
from cq.model.linear import QuantizedLinear

from . import peers
from .measure import Entry, contest, sqnr_db

ROWS = (1, 8, 128, 1024)
LAYERS = {"BERT-base": ((768, 768), (768, 3072), (3072, 768)), "MiniLM-L6": ((384, 384), (384, 1536), (1536, 384))}
PRODUCT, TO_FLOAT, TO_CODES = "codes → int32", "codes → float32", "codes → codes"
INSIDE, FLOAT = "float32, int8 inside", "float32"
X_ZERO_POINT, Y_ZERO_POINT = 121, 128


class Layer:
    """One layer's numbers in every form that a contestant wants."""

    def __init__(self, m: int, k: int, n: int):
        rng = np.random.default_rng(0)
        self.weight = (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)  # (N, K), as models store it
        self.x = rng.standard_normal((m, k)).astype(np.float32)
        self.y = self.x @ self.weight.T
        self.coded_weight = cq.quantize_tensor(self.weight.T, "int8", symmetric=True, axis=1)
        self.packed = cq.pack(self.coded_weight)
        self.x_scale, self.y_scale = np.float32(np.ptp(self.x) / 255), np.float32(2 * np.abs(self.y).max() / 255)
        codes = cq.affine.quantize(self.x, self.x_scale, np.int32(X_ZERO_POINT), "uint8")
        self.coded = cq.QTensor(codes, self.x_scale, np.int32(X_ZERO_POINT))
        self.codes = codes


def contestants(c: Layer, threads: int) -> list[tuple[str, str, str, object, object]]:
    """(work, name, kind, function without arguments, its result → float32 (M, N))."""
    as_is, product = (lambda y: y), (lambda y: y.astype(np.float32) * c.coded_weight.scale * c.x_scale)
    decoded = lambda y: (y.dequantize() if isinstance(y, cq.QTensor)  # noqa: E731
                         else (y.astype(np.float32) - Y_ZERO_POINT) * c.y_scale)
    dynamic = QuantizedLinear(c.packed, None, None, PerToken("uint8", False), "dynamic")
    found = [
        (PRODUCT, "cq matmul_integer", "int8", lambda: cq.matmul_integer(c.codes, c.packed, X_ZERO_POINT), product),
        (TO_FLOAT, "cq linear", "int8", lambda: cq.linear(c.coded, c.packed), as_is),
        (TO_CODES, "cq linear", "int8", lambda: cq.linear(c.coded, c.packed, out_scale=float(c.y_scale),
                                                          out_zero_point=Y_ZERO_POINT, out_dtype="uint8"), decoded),
        (INSIDE, "cq dynamic layer", "int8", lambda: dynamic(Activation(c.x)).values, as_is),
        (FLOAT, "cq linear, weight-only int8", "float32", lambda: cq.linear(c.x, c.packed), as_is),
        (FLOAT, "NumPy float32", "float32", lambda: c.x @ c.weight.T, as_is),
    ]
    if peers.HAVE_ONNXRUNTIME:
        found += onnxruntime_contestants(c, threads, product, as_is, decoded)
    if peers.HAVE_TORCH:
        found += [(INSIDE, name, "int8", lambda run=run: run(c.x), lambda y: y.numpy())
                  for name, run in peers.torch_linear(c.weight, threads).items()]
    return found


def onnxruntime_contestants(c: Layer, threads: int, product, as_is, decoded) -> list[tuple]:
    """One operator for each work."""
    w = {"w": c.coded_weight.data, "w_scale": c.coded_weight.scale, "w_zero": np.zeros(len(c.coded_weight.scale), np.int8),
         "x_scale": c.x_scale, "x_zero": np.uint8(X_ZERO_POINT), "y_scale": c.y_scale, "y_zero": np.uint8(Y_ZERO_POINT)}

    def operator(work: str, op: str, order: str, domain: str, x: np.ndarray, decode) -> tuple:
        constants = {name: w[name] for name in order.split() if name in w}
        run = peers.one_operator(op, order, constants, threads, domain)
        return work, f"onnxruntime {op}", "int8", lambda: run(x), decode
    return [operator(PRODUCT, "MatMulInteger", "x w x_zero", "", c.codes, product),
            operator(TO_FLOAT, "MatMulIntegerToFloat", "x w x_scale w_scale x_zero", "com.microsoft", c.codes, as_is),
            operator(TO_CODES, "QLinearMatMul", "x x_scale x_zero w w_scale w_zero y_scale y_zero", "", c.codes, decoded),
            operator(INSIDE, "DynamicQuantizeMatMul", "x w w_scale", "com.microsoft", c.x, as_is)]


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("model, k, n", [(model, k, n) for model, sizes in LAYERS.items() for k, n in sizes])
def test_gemm(benchmark, threads, model, k, n, m):
    layer, operations = Layer(m, k, n), 2.0 * m * k * n
    entries = []
    for work, name, kind, call, decode in contestants(layer, threads):
        accuracy = sqnr_db([layer.y], [decode(call())])
        assert accuracy > 25, f"{name} ({work}) computes something else: {accuracy} dB from float32"
        entries.append(Entry(work, name, call, operations, kind, {"model": model, "sqnr_db": accuracy}))
    contest(benchmark, f"{m}×{k}×{n}", entries, threads)
