"""QTensor and quantize_tensor against five-line NumPy formulas, one channel or group at a time."""

import numpy as np
import pytest

from cq import affine
from cq.errors import CqError
from cq.qtensor import QTensor, quantize_tensor

KINDS = [("int8", False), ("int8", True), ("uint8", False)]


@pytest.fixture
def rng():
    return np.random.default_rng(21)


def by_hand(x, dtype, symmetric):
    """(codes, scale, zero point) of one set of elements, in float64."""
    qmin, qmax = (-127, 127) if symmetric else (-128, 127) if dtype == "int8" else (0, 255)
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    s = max(-lo, hi) / 127 if symmetric else (hi - lo) / 255
    z = 0 if symmetric else np.clip(np.rint(qmin - lo / s), qmin, qmax)
    return np.clip(np.rint(x / np.float32(s)) + z, qmin, qmax).astype(dtype), np.float32(s), np.int32(z)


@pytest.mark.parametrize(("dtype", "symmetric"), KINDS)
def test_per_tensor(rng, dtype, symmetric):
    for shape in ((), (1,), (7,), (5, 6), (2, 3, 4)):
        x = (rng.standard_normal(shape) * 3 + 1).astype(np.float32)
        t = quantize_tensor(x, dtype, symmetric)
        codes, scale, zero_point = by_hand(x, dtype, symmetric)
        np.testing.assert_array_equal(t.data, codes)
        assert t.data.dtype == t.dtype == dtype and t.shape == shape
        assert (t.scale, t.zero_point, t.axis, t.group_size) == (scale, zero_point, None, None)
        assert t.scale.shape == t.zero_point.shape == ()
        assert t.nbytes == x.size + 8


@pytest.mark.parametrize(("dtype", "symmetric"), KINDS)
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_per_channel_is_each_channel_alone(rng, dtype, symmetric, axis):
    x = (rng.standard_normal((4, 5, 6)) * 10.0 ** rng.uniform(-6, 6, (4, 5, 6))).astype(np.float32)
    t = quantize_tensor(x, dtype, symmetric, axis=axis)
    assert t.axis == axis % 3 and t.scale.shape == t.zero_point.shape == (x.shape[axis],)
    back = t.dequantize()
    for i in range(x.shape[axis]):
        channel = x.take(i, axis)
        codes, scale, zero_point = by_hand(channel, dtype, symmetric)
        np.testing.assert_array_equal(t.data.take(i, axis), codes)
        assert (t.scale[i], t.zero_point[i]) == (scale, zero_point)
        np.testing.assert_array_equal(
            back.take(i, axis), scale * (codes.astype(np.int32) - zero_point).astype(np.float32)
        )


@pytest.mark.parametrize(("dtype", "symmetric"), KINDS)
@pytest.mark.parametrize(
    ("axis", "group_size"), [(None, 4), (1, 3), (1, 10), (1, 99), (1, 1), (0, 4), (-2, 7), (-1, 5)]
)
def test_per_group_is_each_group_alone(rng, dtype, symmetric, axis, group_size):
    x = (rng.standard_normal((10, 14)) * 10.0 ** rng.uniform(-3, 3, (10, 14))).astype(np.float32)
    t = quantize_tensor(x, dtype, symmetric, axis, group_size)
    assert t.axis == (1 if axis is None else axis % 2) and t.group_size == group_size
    # along the rows, whichever way the groups run
    flip = (lambda a: a) if t.axis == 1 else (lambda a: a.T)
    x, data, scale, zero_point, back = map(flip, (x, t.data, t.scale, t.zero_point, t.dequantize()))
    assert scale.shape == zero_point.shape == (-(-x.shape[0] // group_size), x.shape[1])
    for group in range(scale.shape[0]):
        rows = slice(group * group_size, (group + 1) * group_size)
        for column in range(x.shape[1]):
            codes, s, z = by_hand(x[rows, column], dtype, symmetric)
            np.testing.assert_array_equal(data[rows, column], codes)
            assert (scale[group, column], zero_point[group, column]) == (s, z)
            np.testing.assert_array_equal(back[rows, column], s * (codes.astype(np.int32) - z).astype(np.float32))


@pytest.mark.parametrize(("dtype", "symmetric"), KINDS)
@pytest.mark.parametrize("layout", [{}, {"axis": 0}, {"axis": 1}, {"group_size": 8}])
def test_error_is_at_most_one_step_and_half_a_step_when_symmetric(rng, dtype, symmetric, layout):
    x = rng.uniform(-2, 5, (33, 20)).astype(np.float32)
    t = quantize_tensor(x, dtype, symmetric, **layout)
    error = np.abs(t.dequantize().astype(np.float64) - x).max()
    assert error <= t.scale.max() * (0.5 if symmetric else 1.0) * (1 + 1e-5)


def test_symmetric_never_holds_minus_128_and_zero_is_exact(rng):
    x = rng.standard_normal((200, 300)).astype(np.float32)
    x[::7] = 0
    assert quantize_tensor(x, symmetric=True, axis=1).data.min() == -127
    for dtype, symmetric in KINDS:
        assert (quantize_tensor(x, dtype, symmetric, axis=1).dequantize()[::7] == 0).all()


@pytest.mark.parametrize(("dtype", "symmetric"), KINDS)
def test_zeros_constants_and_extremes(dtype, symmetric):
    zeros = quantize_tensor(np.zeros((3, 4), np.float32), dtype, symmetric, axis=0)
    assert (zeros.scale == 1).all() and (zeros.zero_point == 0).all() and (zeros.data == 0).all()
    for constant in (2.5, -1e-30, 3.4e38, -3.4e38):
        back = quantize_tensor(np.full((3, 4), constant, np.float32), dtype, symmetric).dequantize()
        np.testing.assert_allclose(back, np.float32(constant), rtol=2e-7)
    wide = np.float32([[-3.4e38, 3.4e38, 1e-45, 0.0]])
    assert np.isfinite(quantize_tensor(wide, dtype, symmetric).dequantize()).all()
    denormal = quantize_tensor(np.float32([1e-45, -3e-45]), dtype, symmetric)
    assert denormal.scale == np.float32(2.0**-126) and (denormal.data == denormal.zero_point).all()


def test_every_float_width_gives_the_float32_result(rng):
    x = rng.standard_normal((6, 7)).astype(np.float16)
    wanted = quantize_tensor(x.astype(np.float32), axis=1)
    for dtype in (np.float16, np.float64, np.longdouble, ">f4", ">f8"):
        t = quantize_tensor(x.astype(dtype), axis=1)
        np.testing.assert_array_equal(t.data, wanted.data)
        np.testing.assert_array_equal(t.scale, wanted.scale)
    assert quantize_tensor([[0.5, -1.0]]).shape == (1, 2)


def test_input_is_neither_modified_nor_aliased(rng):
    x = rng.standard_normal((6, 8)).astype(np.float32)[::2, ::-1]
    x.setflags(write=False)
    before = x.copy()
    t = quantize_tensor(x, group_size=2)
    np.testing.assert_array_equal(x, before)
    assert not any(np.shares_memory(x, part) for part in (t.data, t.scale, t.zero_point, t.dequantize()))
    np.testing.assert_array_equal(t.data, quantize_tensor(before, group_size=2).data)


def test_a_qtensor_keeps_the_arrays_it_is_given():
    data, scale, zero_point = np.int8([[1, 2], [3, 4]]), np.float32([0.5, 2.0]), np.int32([0, 1])
    t = QTensor(data, scale, zero_point, axis=-1)
    assert t.data is data and t.scale is scale and t.zero_point is zero_point and t.axis == 1
    np.testing.assert_array_equal(t.dequantize(), np.float32([[0.5, 2.0], [1.5, 6.0]]))
    with pytest.raises(AttributeError):
        t.axis = 0
    assert t != QTensor(data, scale, zero_point, axis=1)  # compared by identity, and hashable
    assert len({t}) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_named(bad):
    x = np.zeros((4, 6), np.float32)
    x[3, 5] = bad
    for layout in ({}, {"axis": 1}, {"group_size": 2}):
        with pytest.raises(CqError, match=r"^x: (NaN|Inf|-Inf) at index \(3, 5\)"):
            quantize_tensor(x, **layout)


X = np.ones((4, 6), np.float32)
CODES, SCALE, ZERO = np.ones((4, 6), np.int8), np.ones(6, np.float32), np.zeros(6, np.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_tensor(X[:0]), r"x: got shape \(0, 6\), wanted at least one element"),
        (lambda: quantize_tensor(X.astype(int)), "x: got dtype int64"),
        (lambda: quantize_tensor(X, "int16"), "dtype: got 'int16'"),
        (lambda: quantize_tensor(X, "uint8", symmetric=True), "symmetric"),
        (lambda: quantize_tensor(X, axis=2), r"axis: got 2, wanted None or an axis of x with shape \(4, 6\)"),
        (lambda: quantize_tensor(X, axis=-3), "axis"),
        (lambda: quantize_tensor(X, axis=True), "axis: got True, wanted an int"),
        (lambda: quantize_tensor(X, axis=1.0), "axis: got 1.0, wanted an int"),
        (lambda: quantize_tensor(X[0, 0], axis=0), "axis"),
        (lambda: quantize_tensor(X, group_size=0), "group_size: got 0, wanted at least 1"),
        (lambda: quantize_tensor(X, group_size=2.5), "group_size: got 2.5, wanted an int"),
        (lambda: quantize_tensor(X[0], axis=0, group_size=2), "group_size: wanted 2-D x"),
        (lambda: QTensor(X, SCALE, ZERO, 1), "dtype: got dtype"),
        (lambda: QTensor(CODES, SCALE, ZERO), r"scale: got shape \(6,\), wanted \(\)"),
        (lambda: QTensor(CODES, SCALE, ZERO, 0), r"scale: got shape \(6,\), wanted \(4,\)"),
        (lambda: QTensor(CODES, SCALE, ZERO, 1, 2), r"scale: got shape \(6,\), wanted \(2, 6\)"),
        (lambda: QTensor(CODES, SCALE, ZERO[:1], 1), "zero_point: got shape"),
        (lambda: QTensor(CODES, SCALE.astype(int), ZERO, 1), "scale: got dtype int64"),
        (lambda: QTensor(CODES, SCALE * np.nan, ZERO, 1), "scale: NaN"),
        (lambda: QTensor(CODES, SCALE * 0, ZERO, 1), "scale: the smallest is 0.0"),
        (lambda: QTensor(CODES, SCALE, ZERO + 128, 1), "zero_point: wanted integers from -128 to 127"),
        (lambda: QTensor(CODES, SCALE, ZERO + 0.0, 1), "zero_point: wanted integers"),
        (lambda: QTensor(CODES, np.float32(1), np.int32(0), None, 2), "group_size: wanted 2-D data and an axis"),
    ],
)
def test_bad_arguments_say_what_was_wanted(call, message):
    with pytest.raises(CqError, match=message):
        call()


def test_dequantize_is_the_affine_one(rng):
    t = quantize_tensor(rng.standard_normal((9, 4)).astype(np.float32), "uint8", axis=0)
    np.testing.assert_array_equal(t.dequantize(), affine.dequantize(t.data, t.scale[:, None], t.zero_point[:, None]))
