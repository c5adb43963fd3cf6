"""Side by side with ONNX Runtime on the CPU: MatMulInteger, QuantizeLinear and DynamicQuantizeLinear to the bit,
QLinearMatMul within one code. Products are compared with NumPy first, and with ONNX Runtime in the forms in which it is
exact on every CPU (`onnx_node` in conftest.py). test_isa.py runs this file again under every instruction set."""

from itertools import product

import numpy as np
import pytest

import cq
from cq import _core, affine
from cq.model.forms import Fixed, PerToken


@pytest.fixture
def rng():
    return np.random.default_rng(17)


def codes(rng, dtype, *shape):
    """Uniform, or only the codes at the ends."""
    low, high = affine.RANGES[dtype]
    if rng.random() < 0.25:
        return rng.choice([low, low + 1, -1 % 256 if low == 0 else -1, 0, 1, high - 1, high], shape).astype(dtype)
    if rng.random() < 0.1:
        return np.full(shape, rng.choice([low, high])).astype(dtype)
    return rng.integers(low, high + 1, shape).astype(dtype)


def shape(rng):
    """(M, K, N) of all sizes up to 17, 130, 65, small ones as often as large ones."""
    return tuple(int(np.exp(rng.uniform(0, np.log(top + 0.99)))) for top in (17, 130, 65))


def product_of_codes(rng, dtype, i, m, k, n):
    """(a, b, zero point of a, zero point or points of b, their exact product): one zero point for all of a, since ONNX
    Runtime takes no more, and none, one or one per column for b."""
    a, b = codes(rng, dtype, m, k), codes(rng, "int8", k, n)
    a_zero = codes(rng, dtype) if i % 2 else np.array(0, dtype)
    b_zero = [np.array(0, np.int8), codes(rng, "int8"), codes(rng, "int8", n)][i % 3]
    return a, b, a_zero, b_zero, (a.astype(np.int64) - a_zero) @ (b.astype(np.int64) - b_zero)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_matmul_integer(dtype, rng, onnx_node, as_uint8):
    """2,000 products each."""
    b_dtype, moved = ("uint8", as_uint8) if dtype == "uint8" else ("int8", np.asarray)
    run = onnx_node("MatMulInteger", f"a:{dtype} b:{b_dtype} az:{dtype} bz:{b_dtype}", "c:int32").run
    for i in range(2000):
        a, b, a_zero, b_zero, expected = product_of_codes(rng, dtype, i, *shape(rng))
        got, what = cq.matmul_integer(a, cq.pack(b, b_zero), a_zero), (a.shape, b.shape, a_zero, b_zero)
        assert got.dtype == np.int32 and np.array_equal(got, expected), what
        assert np.array_equal(got, run(None, {"a": a, "b": moved(b), "az": a_zero, "bz": moved(b_zero)})[0]), what


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_matmul_integer_of_a_constant(dtype, rng, onnx_node):
    """As models hold it: an int8 weight that is an initializer, of sizes that leave every kind of tail."""
    inputs = f"a:{dtype} b:int8 az:{dtype} bz:int8"
    for i, (m, k, n) in enumerate(product((1, 7, 33), (1, 4, 67, 256), (1, 16, 65))):
        a, b, a_zero, b_zero, expected = product_of_codes(rng, dtype, i, m, k, n)
        got = cq.matmul_integer(a, cq.pack(b, b_zero), a_zero)
        assert np.array_equal(got, expected), (m, k, n, a_zero, b_zero)
        run = onnx_node("MatMulInteger", inputs, "c:int32", {"b": b, "bz": b_zero}).run
        assert np.array_equal(got, run(None, {"a": a, "az": a_zero})[0]), (m, k, n, a_zero, b_zero)


def numbers(rng, *size):
    """float32 of every magnitude, or as a layer would give them; a scale and rows that are all alike."""
    kind = rng.integers(0, 6)
    x = rng.standard_normal(size, np.float32)
    if kind == 0:
        x = rng.integers(0, 2**32, size, np.uint32).view(np.float32)
        return np.where(np.isfinite(x) & (np.abs(x) < 1e37), x, np.float32(0))
    if kind == 1:
        x *= np.float32(10) ** rng.integers(-37, 37)
    if kind == 2:
        x = np.abs(x) * np.float32(rng.choice([-1, 1]))
    if kind == 3:
        x = np.full(size, rng.choice(np.float32([0, -0.0, 1, -0.3, 1e-30, 3e37])), np.float32)
    if kind == 4:
        x = np.rint(x * 60) / 2  # halves between two codes
    return x


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_quantize_linear(dtype, rng, onnx_node):
    run = onnx_node("QuantizeLinear", f"x:float32 s:float32 z:{dtype}", f"y:{dtype}").run
    for _ in range(1000):
        x, zero_point = numbers(rng, *shape(rng)[:2]), codes(rng, dtype)
        scale = np.float32(rng.choice([0.5, 1, 0.1, 1e-3, 2.0**-126, 1e30, abs(rng.standard_normal()) + 1e-9]))
        expected = run(None, {"x": x, "s": np.array(scale), "z": zero_point})[0]
        got = _core.quantize(x, Fixed(dtype, False, float(scale), int(zero_point))).codes
        assert got.dtype == expected.dtype and np.array_equal(got, expected), (scale, zero_point)


def test_dynamic_quantize_linear(rng, onnx_node):
    """Each row of cq's per-token codes and parameters is what ONNX Runtime gives for that row."""
    run = onnx_node("DynamicQuantizeLinear", "x:float32", "y:uint8 s:float32 z:uint8").run
    rows = 0
    while rows < 3000:
        x = numbers(rng, *shape(rng)[:2])
        span = x.max(1).clip(0).astype(float) - x.min(1).clip(None, 0)
        x = x[(span == 0) | (span / 255 >= 2.0**-126)]  # below, ONNX Runtime divides by a denormal or by 0
        if not x.size:
            continue
        got = _core.quantize(x, PerToken("uint8", False))
        for i, row in enumerate(x):
            y, scale, zero_point = run(None, {"x": row})
            assert got.scale[i] == scale and got.zero_point[i] == zero_point
            assert np.array_equal(got.codes[i], y)
        rows += len(x)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_qlinear_matmul(dtype, rng, onnx_node, as_uint8):
    """cq rounds float32(sum) * (s_x * s_w) / s_y in three steps, ONNX Runtime in others: a code apart at most, 1 in
    1,000."""
    b_dtype, moved = ("uint8", as_uint8) if dtype == "uint8" else ("int8", lambda codes: np.asarray(codes, np.int8))
    names = f"a:{dtype} as:float32 az:{dtype} b:{b_dtype} bs:float32 bz:{b_dtype} ys:float32 yz:{dtype}"
    run = onnx_node("QLinearMatMul", names, f"y:{dtype}").run
    apart = total = 0
    for i in range(1000):
        m, k, n = shape(rng)
        x = cq.quantize_tensor(rng.standard_normal((m, k)), dtype)
        w = cq.quantize_tensor(rng.standard_normal((k, n)), symmetric=i % 2 == 0)
        y_scale, y_zero = np.float32(k**0.5 * rng.uniform(0.005, 0.03)), codes(rng, dtype)
        given = {
            "a": x.data,
            "as": x.scale,
            "az": x.zero_point.astype(dtype),
            "b": moved(w.data),
            "bs": w.scale,
            "bz": moved(w.zero_point),
            "ys": np.array(y_scale),
            "yz": y_zero,
        }
        expected = run(None, given)[0].astype(int)
        got = cq.linear(x, cq.pack(w), out_scale=float(y_scale), out_zero_point=int(y_zero), out_dtype=dtype).data
        assert np.abs(got - expected).max() <= 1, (m, k, n)
        apart, total = apart + (got != expected).sum(), total + got.size
    assert total > 50_000 and apart <= 0.001 * total
