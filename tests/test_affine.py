"""The affine map against formulas that fit on a line, at its edges and where it must refuse."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cq import affine
from cq.errors import CqError

TINY = np.float32(2.0**-126)
LARGEST = np.finfo(np.float32).max
KINDS = [("uint8", False), ("int8", False), ("int8", True)]
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def same_bits(got, wanted):
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    assert got.tobytes() == wanted.tobytes()


def test_matmul_integer_is_exact_at_the_largest_products():
    a, b = np.full((2, 70_000), 255, np.uint8), np.full((70_000, 3), -128, np.int8)
    same_bits(
        affine.matmul_integer(a, b, 0, [0, 1, 127]), np.int64([[255 * 70_000 * w for w in (-128, -129, -255)]] * 2)
    )
    same_bits(affine.matmul_integer(a, b, [255, 0])[:, 0], np.int64([0, -255 * 128 * 70_000]))


@pytest.mark.parametrize(("dtype", "symmetric"), KINDS)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(finite32, finite32)
def test_parameters_hold_their_promises(dtype, symmetric, a, b):
    lo, hi = min(a, b), max(a, b)
    qmin, qmax = affine.code_range(dtype, symmetric)
    for find, slack in ((affine.qparams, 2e-7), (affine.dynamic_qparams, 4e-5)):
        scale, zero_point = find(lo, hi, dtype, symmetric)
        assert (type(scale), type(zero_point)) == (np.float32, np.int32)
        assert TINY <= scale < np.inf and qmin <= zero_point <= qmax
        assert affine.dequantize(np.asarray(zero_point, dtype), scale, zero_point) == 0
        ends = np.float32([min(lo, 0), 0, max(hi, 0)])
        codes = affine.quantize(ends, scale, zero_point, dtype, symmetric)
        error = np.abs(affine.dequantize(codes, scale, zero_point).astype(np.float64) - ends)
        # half a step for rounding the end, half a step for rounding the zero point
        assert (error <= float(scale) * (1 + 256 * slack)).all()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30))
def test_qparams_is_the_float64_formula(a, b):
    lo, hi = min(a, b, 0.0), max(a, b, 0.0)
    for dtype, (qmin, qmax) in affine.RANGES.items():
        wanted = max((hi - lo) / (qmax - qmin), float(TINY)) if hi > lo else 1.0
        scale, zero_point = affine.qparams(min(a, b), max(a, b), dtype)
        assert scale == np.float32(wanted)
        assert zero_point == (min(max(round(qmin - lo / wanted), qmin), qmax) if hi > lo else 0)
    assert affine.qparams(lo, hi, symmetric=True) == (np.float32(max(max(-lo, hi) / 127, TINY)) if hi > lo else 1, 0)


@pytest.mark.parametrize("find", [affine.qparams, affine.dynamic_qparams])
def test_special_ranges(find):
    for dtype, symmetric in KINDS:
        qmin, qmax = affine.code_range(dtype, symmetric)
        assert find(0.0, -0.0, dtype, symmetric) == (1, 0)
        assert find(np.float32(1e-45), np.float32(1e-45), dtype, symmetric)[0] == TINY
        for constant in (3.0, -7.5):
            scale, zero_point = find(constant, constant, dtype, symmetric)
            code = affine.quantize(np.float32(constant), scale, zero_point, dtype, symmetric)
            assert code == (qmax if constant > 0 else qmin)
            np.testing.assert_allclose(affine.dequantize(code, scale, zero_point), constant, rtol=2e-7)
        ends = np.float32([-LARGEST, LARGEST])  # LARGEST + LARGEST is beyond float32
        scale, zero_point = find(*ends, dtype, symmetric)
        values = affine.dequantize(affine.quantize(ends, scale, zero_point, dtype, symmetric), scale, zero_point)
        assert np.isfinite(values).all() and (np.abs(values / 2 - ends / 2) <= scale / 2).all()


def test_parameters_broadcast():
    lo, hi = np.float32([[-1.0], [-2.0]]), np.float32([0.5, 1.0, 0.0])
    for find in (affine.qparams, affine.dynamic_qparams):
        scale, zero_point = find(lo, hi, "uint8")
        assert scale.shape == zero_point.shape == (2, 3)
        one_by_one = [[find(a, b, "uint8") for b in hi] for a in lo[:, 0]]
        same_bits(scale, np.float32([[s for s, _ in row] for row in one_by_one]))
        same_bits(zero_point, np.int32([[z for _, z in row] for row in one_by_one]))


@pytest.mark.parametrize(("dtype", "symmetric"), KINDS)
def test_row_params_are_each_rows_dynamic_parameters(rng, dtype, symmetric):
    x = np.stack([rng.standard_normal(17) * 10.0 ** rng.uniform(-40, 37) for _ in range(30)]).astype(np.float32)
    x[3] = 0
    scale, zero_point = affine.row_params(x, dtype, symmetric)
    wanted = [affine.dynamic_qparams(row.min(), row.max(), dtype, symmetric) for row in x]
    same_bits(scale, np.float32([s for s, _ in wanted]))
    same_bits(zero_point, np.int32([z for _, z in wanted]))
    assert affine.row_params(x[:0])[0].shape == (0,)


def test_symmetric_codes_never_hold_minus_128():
    codes = affine.quantize(np.float32([-1e9, -128, 0.5, 1.5, 1e9]), 1.0, 0, "int8", symmetric=True)
    same_bits(codes, np.int8([-127, -127, 0, 2, 127]))


def test_inputs_stay_and_shapes_of_any_rank_pass(rng):
    for shape in ((), (0,), (3,), (2, 0, 4), (2, 3, 4)):
        x = rng.standard_normal(shape).astype(np.float32)
        x.setflags(write=False)
        codes = affine.quantize(x, 0.1, 3)
        assert codes.shape == affine.dequantize(codes, 0.1, 3).shape == shape
    strided = rng.standard_normal((6, 8)).astype(np.float32)[::2, ::-1]
    same_bits(affine.quantize(strided, 0.1, 0), affine.quantize(strided.copy(), 0.1, 0))


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        (None, lambda v: v),
        ("relu", lambda v: max(v, 0.0)),
        ("gelu", lambda v: v * (1 + math.erf(v / 2**0.5)) / 2),
        ("gelu_tanh", lambda v: v * (1 + math.tanh((2 / math.pi) ** 0.5 * (v + 0.044715 * v**3))) / 2),
        ("silu", lambda v: v / (1 + math.exp(-v))),
    ],
)
def test_layer_is_the_float_layer_of_the_dequantized_operands(rng, activation, function):
    x, w = rng.standard_normal((5, 40)).astype(np.float32), rng.standard_normal((40, 7)).astype(np.float32)
    x_scale, x_zero_point = affine.row_params(x)
    w_scale, w_zero_point = affine.qparams(w.min(axis=0), w.max(axis=0))
    x_codes = affine.quantize(x, x_scale[:, None], x_zero_point[:, None], "uint8")
    w_codes = affine.quantize(w, w_scale, w_zero_point)
    bias, residual = rng.standard_normal(7).astype(np.float32), rng.standard_normal((5, 7)).astype(np.float32)
    got = affine.layer(
        x_codes,
        w_codes,
        x_scale,
        x_zero_point,
        w_scale,
        w_zero_point,
        bias_i32=np.arange(7),
        bias=bias,
        activation=activation,
        residual=residual,
    )
    x_back = affine.dequantize(x_codes, x_scale[:, None], x_zero_point[:, None]).astype(np.float64)
    y = x_back @ affine.dequantize(w_codes, w_scale, w_zero_point) + np.outer(x_scale, w_scale * np.arange(7)) + bias
    np.testing.assert_allclose(got, np.vectorize(function)(y) + residual, rtol=3e-6, atol=3e-6)
    assert got.dtype == np.float32


def test_layer_steps_are_float32_in_the_stated_order():
    x, w = np.uint8([[200, 3, 255]]), np.int8([[100, -127], [5, 7], [-127, 99]])
    scales, bias = np.float32([0.013]), np.float32([0.1, -7e3])
    t = np.int32([[(200 - 9) * 100 + (3 - 9) * 5 + 246 * -127, 191 * -127 - 6 * 7 + 246 * 99]])
    wanted = (t.astype(np.float32) * (np.float32(0.013) * np.float32(0.7)) + bias).clip(0) + np.float32(1e-3)
    residual = np.full((1, 2), 1e-3, np.float32)
    same_bits(affine.layer(x, w, scales, 9, 0.7, 0, bias=bias, activation="relu", residual=residual), wanted)


def test_activations_at_extremes():
    x, w = np.uint8([[255], [0], [128]]), np.int8([[127]])
    for activation in ("relu", "gelu", "gelu_tanh", "silu"):
        y = affine.layer(x, w, 1e15, 128, 1e15, 0, activation=activation)[:, 0]
        assert y[0] == np.float32(127 * 127) * (np.float32(1e15) * np.float32(1e15)) and y[1] == y[2] == 0


def test_a_sum_beyond_int32_is_an_error():
    a, b = np.full((1, 65_793), 255, np.uint8), np.full((65_793, 1), -128, np.int8)
    total = -255 * 128 * 65_793
    assert affine.layer(a, b, 1.0, 0, 1.0, 0) == np.float32(total)
    assert affine.layer(a, b, 1.0, 0, 1.0, 0, bias_i32=[-(2**31) - total]) == -(2.0**31)
    with pytest.raises(CqError, match="does not fit in int32"):
        affine.layer(a, b, 1.0, 0, 1.0, 0, bias_i32=[-(2**31) - total - 1])
    with pytest.raises(CqError, match="does not fit in int32"):
        affine.layer(a, b, 1.0, 0, 1.0, 127)
    with pytest.raises(CqError, match="65793"):
        affine.layer(np.zeros((1, 65_794), np.uint8), np.zeros((65_794, 1), np.int8), 1.0, 0, 1.0, 0)


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "-Inf")])
def test_nan_and_inf_are_named_with_their_index(bad, word):
    x = np.zeros((4, 6), np.float32)
    x[3, 5] = bad
    for call in (affine.check_finite, affine.as_float32):
        with pytest.raises(CqError, match=rf"^weights: {word} at index \(3, 5\)"):
            call(x, "weights")
    for call in (lambda: affine.quantize(x, 1.0, 0), lambda: affine.row_params(x)):
        with pytest.raises(CqError, match=rf"^x: {word} at index \(3, 5\)"):
            call()
    with pytest.raises(CqError, match=r"^x: "):
        affine.quantize(np.float64(bad), 1.0, 0)
    for find in (affine.qparams, affine.dynamic_qparams):
        with pytest.raises(CqError, match="lo: |hi: "):
            find(min(bad, 0.0), bad)


X, CODES = np.ones((2, 3), np.float32), np.ones((2, 3), np.int8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: affine.code_range("int4"), "dtype: got 'int4', wanted one of 'int8', 'uint8'"),
        (lambda: affine.code_range(None), "dtype"),
        (lambda: affine.code_range("no such"), "dtype"),
        (lambda: affine.qparams(-1, 1, "uint8", symmetric=True), "uint8 codes cannot be symmetric"),
        (lambda: affine.qparams(2, 1), "wanted lo <= hi"),
        (lambda: affine.qparams(0, 1e39), "hi: .* does not fit in float32"),
        (lambda: affine.qparams("a", 1), "lo: got dtype"),
        (lambda: affine.qparams(np.zeros(2), np.ones(3)), "do not broadcast"),
        (lambda: affine.as_float32([1, 2]), "convert with"),
        (lambda: affine.as_float32([[1.0], []]), "cannot become an array"),
        (lambda: affine.as_float32([1e300]), r"x: 1e\+300 at index \(0,\) does not fit in float32"),
        (lambda: affine.quantize(X, 0.0, 0), r"scale: 0.0 at index \(\), wanted at least 2\*\*-126"),
        (lambda: affine.quantize(X, 1e-40, 0), "scale: "),
        (lambda: affine.quantize(X, np.nan, 0), "scale: NaN"),
        (lambda: affine.quantize(X, 1.0, 128), "zero_point: 128 at index .*, wanted -128 to 127"),
        (lambda: affine.quantize(X, 1.0, np.uint64(2**64 - 1)), "zero_point: 18446744073709551615"),
        (lambda: affine.quantize(X, 1.0, 0.5), "zero_point: got dtype float64, wanted integers"),
        (lambda: affine.quantize(X, np.ones(2, np.float32), 0), "scale: got shape"),
        (lambda: affine.quantize(X, np.ones((4, 2, 3), np.float32), 0), "scale: got shape"),
        (lambda: affine.quantize(np.complex64(1), 1.0, 0), "x: got dtype complex64"),
        (lambda: affine.dequantize(CODES.astype(np.int16), 1.0, 0), "codes: got dtype int16"),
        (lambda: affine.row_params(X[0]), r"wanted \(M, K\)"),
        (lambda: affine.row_params(X[:, :0]), r"wanted \(M, K\)"),
        (lambda: affine.matmul_integer(CODES, CODES), r"wanted \(M, K\) and \(K, N\)"),
        (lambda: affine.matmul_integer(CODES, CODES.T, [0, 0, 0]), "a_zero_point: got shape"),
        (lambda: affine.layer(CODES, CODES.T, 1.0, 0, 1.0, 0, activation="tanh"), "activation: got 'tanh'"),
        (lambda: affine.layer(CODES, CODES.T, 1.0, 0, 1.0, 0, bias=np.ones(3)), "bias: got shape"),
        (lambda: affine.layer(CODES, CODES.T, 1.0, 0, 1.0, 0, bias_i32=[0.5, 1]), "bias_i32: got dtype"),
        (lambda: affine.layer(CODES, CODES.T, 1.0, 0, 1.0, 0, residual=np.ones((3, 2))), "residual: got shape"),
    ],
)
def test_bad_arguments_say_what_was_wanted(call, message):
    with pytest.raises(CqError, match=message):
        call()
