"""The affine map against ONNX Runtime, bit for bit, over random shapes and the whole range of float32."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cq import affine

TINY = np.float32(2.0**-126)
LARGEST = np.finfo(np.float32).max
EXTREMES = np.float32(
    [
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        1e-40,
        -1e-40,
        TINY,
        -TINY,
        3e-38,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        254.5,
        255.5,
        1e6,
        2**24 + 2,
        -(2**31),
        1e20,
        -1e20,
        3e38,
        -3e38,
        LARGEST,
        -LARGEST,
    ]
)
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def same_bits(got, wanted):
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    assert got.tobytes() == wanted.tobytes()


@pytest.fixture(scope="session")
def onnx_quantize(onnx_node):
    def quantize(x, scale, zero_point, axis=0):
        codes = str(zero_point.dtype)
        node = onnx_node("QuantizeLinear", f"x:float32 s:float32 z:{codes}", f"q:{codes}", axis=axis)
        return node.run(None, {"x": x, "s": np.asarray(scale), "z": zero_point})[0]

    return quantize


@pytest.fixture(scope="session")
def onnx_dynamic(onnx_node):
    return lambda x: onnx_node("DynamicQuantizeLinear", "x:float32", "q:uint8 s:float32 z:uint8").run(None, {"x": x})


def arrays(rng, count):
    """Random shapes of normal, uniform, log-uniform over all exponents, halves, constants, raw bits and extremes."""
    for i in range(count):
        shape = tuple(rng.integers(1, 40, rng.integers(1, 4)))
        size = math.prod(shape)
        kinds = [
            rng.standard_normal(size) * 10.0 ** rng.uniform(-44, 36),
            rng.uniform(-1, 3, size) * 10.0 ** rng.uniform(-3, 3),
            rng.choice([-1, 1], size) * 2.0 ** rng.uniform(-149, 127.9, size),
            rng.integers(-600, 600, size) / 2,
            np.full(size, rng.standard_normal() * 10.0 ** rng.uniform(-3, 3)),
            rng.integers(0, 2**32, size, dtype=np.uint32).view(np.float32),
            rng.choice(EXTREMES, size),
        ]
        x = kinds[i % len(kinds)].astype(np.float32)
        yield np.where(np.isfinite(x), x, np.float32(0)).reshape(shape)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_quantize_is_onnx_quantize_linear(rng, dtype, onnx_quantize):
    qmin, qmax = affine.code_range(dtype)
    scales = np.float32([TINY, 1e-30, 0.5, 1, 2, 1 / 3, 0.017, 1e30, LARGEST])
    for x in arrays(rng, 700):
        scale = rng.choice([np.abs(x).max() / np.float32(rng.integers(20, 400)), rng.choice(scales)])
        scale = np.maximum(scale, TINY).astype(np.float32)
        zero_point = np.asarray(rng.choice([qmin, qmax, 0, rng.integers(qmin, qmax + 1)]), dtype)
        same_bits(affine.quantize(x, scale, zero_point, dtype), onnx_quantize(x, scale, zero_point))


def test_quantize_per_channel_is_onnx_quantize_linear(rng, onnx_quantize):
    for x in arrays(rng, 150):
        scale = np.maximum(2.0 ** rng.uniform(-126, 127, x.shape[-1]), TINY).astype(np.float32)
        zero_point = rng.integers(0, 256, x.shape[-1]).astype(np.uint8)
        same_bits(affine.quantize(x, scale, zero_point, "uint8"), onnx_quantize(x, scale, zero_point, x.ndim - 1))


def test_dynamic_is_onnx_dynamic_quantize_linear(rng, onnx_dynamic):
    overflowed = underflowed = 0
    for x in arrays(rng, 1500):
        scale, zero_point = affine.dynamic_qparams(x.min(), x.max())
        codes, onnx_scale, onnx_zero_point = onnx_dynamic(x)
        overflowed += bool(np.isinf(onnx_scale))
        underflowed += bool(onnx_scale < TINY)
        if np.isinf(onnx_scale) or onnx_scale < TINY:
            # ONNX Runtime breaks here: it divides by Inf, by a denormal or by 0; cq answers with a usable scale
            assert TINY <= scale < np.inf and scale.dtype == np.float32
            continue
        same_bits(scale, onnx_scale)
        same_bits(zero_point, onnx_zero_point.astype(np.int32))
        same_bits(affine.quantize(x, scale, zero_point, "uint8"), codes)
    assert overflowed and underflowed


@settings(max_examples=300, deadline=None, derandomize=True)
@given(values=st.lists(finite32, min_size=1, max_size=8))
def test_dynamic_is_onnx_wherever_onnx_holds(values, onnx_dynamic):
    x = np.float32(values)
    scale, zero_point = affine.dynamic_qparams(x.min(), x.max())
    codes, onnx_scale, onnx_zero_point = onnx_dynamic(x)
    if TINY <= onnx_scale < np.inf:
        same_bits(scale, onnx_scale)
        assert zero_point == onnx_zero_point
        same_bits(affine.quantize(x, scale, zero_point, "uint8"), codes)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_dequantize_is_onnx_dequantize_linear(rng, dtype, onnx_node):
    node = onnx_node("DequantizeLinear", f"q:{dtype} s:float32 z:{dtype}", "x:float32", axis=1)
    qmin, qmax = affine.code_range(dtype)
    for _ in range(200):
        codes = rng.integers(qmin, qmax + 1, rng.integers(1, 50, 2)).astype(dtype)
        scale = np.float32(2.0 ** rng.uniform(-126, 119, codes.shape[1]))
        zero_point = rng.integers(qmin, qmax + 1, codes.shape[1]).astype(dtype)
        wanted = node.run(None, {"q": codes, "s": scale, "z": zero_point})[0]
        same_bits(affine.dequantize(codes, scale, zero_point) + np.float32(0), wanted + np.float32(0))


@pytest.mark.parametrize(("a_dtype", "b_dtype"), [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8")])
def test_matmul_integer_is_onnx_matmul_integer(rng, a_dtype, b_dtype, onnx_node, as_uint8):
    """NumPy first; ONNX Runtime in a form that is exact on every CPU, see `onnx_node`."""
    onnx_dtype, moved = ("uint8", as_uint8) if (a_dtype, b_dtype) == ("uint8", "int8") else (b_dtype, np.asarray)
    node = onnx_node("MatMulInteger", f"a:{a_dtype} b:{onnx_dtype} za:{a_dtype} zb:{onnx_dtype}", "c:int32")
    (a_min, a_max), (b_min, b_max) = affine.RANGES[a_dtype], affine.RANGES[b_dtype]
    for _ in range(60):
        m, k, n = rng.integers(1, 60, 3)
        a = rng.integers(a_min, a_max + 1, (m, k)).astype(a_dtype)
        b = rng.integers(b_min, b_max + 1, (k, n)).astype(b_dtype)
        za = np.asarray(rng.integers(a_min, a_max + 1), a_dtype)
        zb = rng.integers(b_min, b_max + 1, n).astype(b_dtype)
        got = affine.matmul_integer(a, b, za, zb)
        same_bits(got, (a.astype(np.int64) - za) @ (b.astype(np.int64) - zb))
        same_bits(got, node.run(None, {"a": a, "b": moved(b), "za": za, "zb": moved(zb)})[0].astype(np.int64))
