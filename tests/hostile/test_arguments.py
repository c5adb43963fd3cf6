"""Arrays and numbers that are wrong, lie or mean harm, given to products and tensors: each gives one clear error
that names the argument, and none ends the process."""

from functools import cache

import numpy as np
import pytest
from fuzz import Unnameable

import cq
from cq import CalibrationError, CqError
from cq.door import guarded

F32, I8, U8 = np.float32, np.int8, np.uint8
B, A = np.ones((8, 5), I8), np.ones((3, 8), U8)
W = np.ones((8, 5), F32)
X = np.ones((3, 8), F32)
BIAS, RESIDUAL = np.ones(5, F32), np.ones((3, 5), F32)
SWAPPED = np.dtype(F32).newbyteorder()


def q(x=W, **how):
    return cq.quantize_tensor(x, **how)


@cache
def packed():
    return cq.pack(q())


def linear(x=X, **how):
    return cq.linear(x, packed(), **how)


def spoiled(x, value):
    x = x.copy()
    x.flat[x.size // 2] = value
    return x


PACK = [
    ("a list", lambda: cq.pack([[1, 2]]), CqError, "b: .*int8.*list"),
    ("None", lambda: cq.pack(None), CqError, "b: .*NoneType"),
    ("a text", lambda: cq.pack("weights"), CqError, "b: .*str"),
    ("uint8", lambda: cq.pack(B.view(U8)), CqError, "b: .*int8.*got uint8"),
    ("float32", lambda: cq.pack(W), CqError, "b: .*int8.*got float32"),
    ("objects", lambda: cq.pack(B.astype(object)), CqError, "b: .*got object"),
    ("records", lambda: cq.pack(B.view([("a", I8)])), CqError, "b: .*int8"),
    ("0 dimensions", lambda: cq.pack(np.array(1, I8)), CqError, r"b: .*two-dim"),
    ("1 dimension", lambda: cq.pack(B[0]), CqError, r"b: .*two-dim.*\(5,\)"),
    ("3 dimensions", lambda: cq.pack(B[None]), CqError, r"b: .*two-dim.*\(1, 8, 5\)"),
    ("too deep", lambda: cq.pack(np.broadcast_to(I8(1), (65_794, 1))), CqError, "b: K = 65,794.*65,793.*split"),
    ("zero point above", lambda: cq.pack(B, 128), CqError, "zero_point: .*-128 to 127.*128"),
    ("zero point, float", lambda: cq.pack(B, 0.5), CqError, "zero_point: .*integer.*0.5"),
    ("zero point, NaN", lambda: cq.pack(B, np.nan), CqError, "zero_point: .*nan"),
    ("zero point, None", lambda: cq.pack(B, None), CqError, "zero_point: .*None"),
    ("zero point, huge", lambda: cq.pack(B, 2**80), CqError, "zero_point: "),
    ("zero points, too few", lambda: cq.pack(B, [1, 2]), CqError, r"zero_point: .*shape \(5,\)"),
    ("zero points, ragged", lambda: cq.pack(B, [[1], [1, 2]]), CqError, r"zero_point: .*shape \(5,\)"),
    ("QTensor of uint8", lambda: cq.pack(q(dtype="uint8")), CqError, "b: .*int8.*uint8"),
    ("QTensor by rows", lambda: cq.pack(q(axis=0)), CqError, "b: .*axis=1.*axis=0"),
    ("QTensor of 3 dimensions", lambda: cq.pack(q(W[None])), CqError, "b: .*"),
    ("QTensor and zero point", lambda: cq.pack(q(), 3), CqError, "zero_point: .*its own"),
    ("groups of 6", lambda: cq.pack(q(group_size=6)), CqError, "group_size: 6 .*multiple of 4"),
    (
        "a weight of no size",
        lambda: cq.PackedWeight(B[0], BIAS.view(np.int32), None, None, -1, 5, 8),
        CqError,
        "k, n, group_size: -1",
    ),
    (
        "a weight of no groups",
        lambda: cq.PackedWeight(np.ones(128, I8), BIAS.view(np.int32), None, None, 8, 5, 0),
        CqError,
        "group_size: 8, 5, 0",
    ),
    (
        "a weight's panels",
        lambda: cq.PackedWeight(np.ones(127, I8), BIAS.view(np.int32), None, None, 8, 5, 8),
        CqError,
        r"panels: .*\(128\).*\(127,\)",
    ),
]

MATMUL = [
    ("float32", lambda: cq.matmul_integer(X, packed()), CqError, "a: .*uint8 or int8.*float32"),
    ("int32", lambda: cq.matmul_integer(A.astype(np.int32), packed()), CqError, "a: .*got int32"),
    ("bool", lambda: cq.matmul_integer(A.astype(bool), packed()), CqError, "a: .*got bool"),
    ("swapped bytes", lambda: cq.matmul_integer(A.astype(">i2"), packed()), CqError, "a: .*got .*i(nt16|2)"),
    ("None", lambda: cq.matmul_integer(None, packed()), CqError, "a: .*NoneType"),
    ("1 dimension", lambda: cq.matmul_integer(A[0], packed()), CqError, r"a: .*two-dim.*\(8,\)"),
    ("another K", lambda: cq.matmul_integer(A[:, :7], packed()), CqError, "a: 7 columns.* 8 rows"),
    ("bare weight", lambda: cq.matmul_integer(A, B), CqError, "w: .*cq.pack.*ndarray"),
    ("no weight", lambda: cq.matmul_integer(A, None), CqError, "w: .*cq.pack.*NoneType"),
    ("zero point below", lambda: cq.matmul_integer(A, packed(), -1), CqError, "a_zero_point: .*0 to 255.*-1"),
    ("zero point above", lambda: cq.matmul_integer(A.view(I8), packed(), 128), CqError, "a_zero_point: .*-128 to 127"),
    ("zero point, text", lambda: cq.matmul_integer(A, packed(), "3"), CqError, "a_zero_point: .*'3'"),
    (
        "zero points, columns",
        lambda: cq.matmul_integer(A, packed(), np.zeros(8, int)),
        CqError,
        r"a_zero_point: .*shape \(3,\)",
    ),
    (
        "a sum beyond int32",
        lambda: cq.matmul_integer(np.full((1, 33_026), 255, U8), cq.pack(np.full((33_026, 1), -128, I8), 127)),
        CqError,
        "int32.*zero points.*split K",
    ),
]

LINEAR = [
    ("float64", lambda: linear(X.astype(float)), CqError, "x: .*float32.*float64"),
    ("swapped bytes", lambda: linear(X.astype(SWAPPED)), CqError, "x: .*float32"),
    ("codes without parameters", lambda: linear(A), CqError, "x: .*float32.*uint8"),
    ("a list", lambda: linear([[1.0] * 8]), CqError, "x: .*list"),
    ("1 dimension", lambda: linear(X[0]), CqError, "x: .*2 dimensions"),
    ("NaN", lambda: linear(spoiled(X, np.nan)), CqError, r"x: NaN at index \(1, 4\)"),
    ("Inf", lambda: linear(spoiled(X, -np.inf)), CqError, r"x: -Inf at index \(1, 4\)"),
    ("another K", lambda: linear(X[:, :6].copy()), CqError, "x: 6 columns.* 8 rows"),
    ("QTensor by columns", lambda: linear(q(X, axis=1)), CqError, "x: .*axis=0.*axis=1"),
    ("QTensor in groups", lambda: linear(q(X, axis=0, group_size=4)), CqError, "x: .*axis=0"),
    (
        "codes and groups",
        lambda: cq.linear(q(X), cq.pack(q(group_size=4))),
        CqError,
        "w: .*one scale per column.*groups",
    ),
    ("no scales", lambda: cq.linear(X, cq.pack(B)), CqError, "w: .*no scales.*QTensor"),
    ("bare weight", lambda: cq.linear(X, W), CqError, "w: .*cq.pack"),
    (
        "too deep for its zero points",
        lambda: cq.linear(q(np.ones((1, 65_700), F32)), cq.pack(q(np.linspace(0, 1, 65_700).reshape(-1, 1)))),
        CqError,
        "may reach.*int32 ends.*symmetric weights",
    ),
    ("bias, length", lambda: linear(bias=np.ones(4, F32)), CqError, r"bias: .*\(5\).*\(4,\)"),
    ("bias, float64", lambda: linear(bias=np.ones(5)), CqError, "bias: .*float32.*float64"),
    ("bias, number", lambda: linear(bias=1.0), CqError, "bias: .*float"),
    ("bias, NaN", lambda: linear(bias=spoiled(BIAS, np.nan)), CqError, r"bias: NaN at index \(2,\)"),
    ("activation, unknown", lambda: linear(activation="tanh"), CqError, "activation: 'tanh'.*gelu_tanh"),
    ("activation, list", lambda: linear(activation=["relu"]), CqError, r"activation: \['relu'\]"),
    ("activation, without a name", lambda: linear(activation=Unnameable()), CqError, "linear: no name"),
    ("activation, function", lambda: linear(activation=np.tanh), CqError, "activation: "),
    ("residual, shape", lambda: linear(residual=X), CqError, r"residual: .*\(3, 5\).*\(3, 8\)"),
    ("residual, QTensor's shape", lambda: linear(residual=q(X)), CqError, r"residual: .*\(3, 5\).*\(3, 8\)"),
    ("residual, QTensor by columns", lambda: linear(residual=q(RESIDUAL, axis=1)), CqError, "residual: .*axis=0"),
    ("residual, Inf", lambda: linear(residual=spoiled(RESIDUAL, np.inf)), CqError, "residual: Inf at"),
    ("residual, list", lambda: linear(residual=[[0.0]]), CqError, "residual: .*list"),
    (
        "out_zero_point above",
        lambda: linear(out_scale=0.1, out_zero_point=128),
        CqError,
        "out_zero_point: .*-128 to 127",
    ),
    ("out_zero_point, float", lambda: linear(out_scale=0.1, out_zero_point=2.5), CqError, "out_zero_point: .*2.5"),
    (
        "out_zero_point, many",
        lambda: linear(out_scale=0.1, out_zero_point=[1, 2]),
        CqError,
        r"out_zero_point: .*\[1, 2\]",
    ),
    ("out_dtype", lambda: linear(out_scale=0.1, out_dtype="int16"), CqError, "out_dtype: .*'int16'"),
    ("out_dtype, None", lambda: linear(out_scale=0.1, out_dtype=None), CqError, "out_dtype: .*None"),
    ("a result beyond float32", lambda: cq.linear(X * F32(3e38), packed()), CqError, "the result of linear: Inf"),
    (
        "a code beyond float32",
        lambda: cq.linear(X * F32(3e38), packed(), out_scale=1.0),
        CqError,
        "x: .*largest float32",
    ),
    (
        "scales beyond float32",
        lambda: cq.linear(q(X * F32(1e30)), cq.pack(q(W * F32(1e30))), out_scale=1.0),
        CqError,
        "x: .*largest float32",
    ),
] + [
    (f"out_scale, {value!r:.9}", lambda value=value: linear(out_scale=value), CqError, "out_scale: .*positive")
    for value in (0, -1.0, np.nan, np.inf, "1", True, 1e-50, 1e300, 10**400, BIAS)
]

TENSOR = [
    ("a text", lambda: q("abc"), CqError, "x: .*real floats"),
    ("None", lambda: q(None), CqError, "x: .*real floats"),
    ("integers", lambda: q(A), CqError, "x: .*uint8.*astype"),
    ("complex", lambda: q(W.astype(complex)), CqError, "x: .*complex"),
    ("ragged", lambda: q([[1.0], [1.0, 2.0]]), CqError, "x: "),
    ("NaN", lambda: q(spoiled(W, np.nan)), CqError, r"x: NaN at index \(4, 0\)"),
    ("Inf", lambda: q(spoiled(W, np.inf)), CqError, r"x: Inf at index \(4, 0\)"),
    ("empty", lambda: q(W[:0]), CqError, r"x: .*\(0, 5\).*at least one"),
    ("beyond float32", lambda: q(np.full((2, 2), 1e300)), CqError, r"x: 1e\+300.*does not fit"),
    ("dtype, int4", lambda: q(dtype="int4"), CqError, "dtype: .*'int4'"),
    ("dtype, None", lambda: q(dtype=None), CqError, "dtype: .*None"),
    ("dtype, list", lambda: q(dtype=["int8"]), CqError, "dtype: "),
    ("symmetric uint8", lambda: q(dtype="uint8", symmetric=True), CqError, "symmetric: .*uint8"),
    ("axis beyond", lambda: q(axis=2), CqError, r"axis: got 2.*\(8, 5\)"),
    ("axis, float", lambda: q(axis=1.0), CqError, "axis: got 1.0"),
    ("axis, bool", lambda: q(axis=True), CqError, "axis: got True"),
    ("group_size, 0", lambda: q(group_size=0), CqError, "group_size: got 0"),
    ("group_size, text", lambda: q(group_size="4"), CqError, "group_size: got '4'"),
    ("group_size, 3 dimensions", lambda: q(W[None], group_size=4), CqError, "group_size: .*2-D"),
    ("QTensor, float data", lambda: cq.QTensor(W, F32(1), np.int32(0)), CqError, "dtype: .*float32"),
    ("QTensor, scale of 0", lambda: cq.QTensor(B, F32(0), np.int32(0)), CqError, "scale: "),
    (
        "QTensor, shapes",
        lambda: cq.QTensor(B, np.ones(3, F32), np.zeros(3, np.int32), 1),
        CqError,
        r"scale: .*\(3,\).*\(5,\)",
    ),
    ("QTensor, zero point", lambda: cq.QTensor(B, F32(1), np.int32(200)), CqError, "zero_point: .*-128 to 127"),
    ("observer, NaN", lambda: cq.observers.MinMax().update(spoiled(W, np.nan)), CqError, "x: NaN"),
    ("observer, no data", lambda: cq.observers.Histogram().qparams(), CalibrationError, "Histogram.*no data"),
    ("observer, another", lambda: cq.observers.MinMax().merge(cq.observers.Histogram()), CqError, "other: "),
]


def masked(x):
    return np.ma.masked_array(x, np.arange(x.size).reshape(x.shape) == 1)


MASKED = [
    ("masked weights", lambda: cq.pack(masked(B)), CqError, "b: a masked array"),
    ("masked codes", lambda: cq.matmul_integer(masked(A), packed()), CqError, "a: a masked array"),
    ("masked rows", lambda: linear(masked(X)), CqError, "x: a masked array"),
    ("masked bias", lambda: linear(bias=masked(BIAS)), CqError, "bias: a masked array"),
    ("masked residual", lambda: linear(residual=masked(RESIDUAL)), CqError, "residual: a masked array"),
    ("masked tensor", lambda: cq.quantize_tensor(masked(W)), CqError, "x: a masked array.*filled"),
    ("masked QTensor", lambda: cq.QTensor(masked(B), F32(1), np.int32(0)), CqError, "data: a masked array"),
    ("masked samples", lambda: cq.observers.MinMax().update(masked(W)), CqError, "x: a masked array"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", PACK + MATMUL + LINEAR + TENSOR + MASKED, ids=lambda case: case[0])
def test_one_clear_error(case, assert_clear):
    assert_clear(*case)


def test_compiled_functions_of_libraries_are_behind_the_door():
    choice = guarded(np.random.default_rng(0).choice, "choice")
    with pytest.raises(CqError, match="choice: Cannot take a larger sample"):
        choice(3, 5, replace=False)


def test_strange_but_right():
    """What looks odd and is meant so: no error."""
    assert linear(np.empty((0, 8), F32)).shape == (0, 5)
    assert linear(q(X), out_scale=np.float64(0.1), out_zero_point=np.int64(3), out_dtype="uint8").dtype == U8
    assert cq.matmul_integer(A, cq.pack(B, np.zeros(5, np.uint8)), np.int64(3)).shape == (3, 5)
    assert cq.quantize_tensor([[1.0, 2.0]], np.dtype("uint8"), axis=-1).axis == 1
    assert cq.quantize_tensor(np.ma.masked_array(W, False)).shape == W.shape
    cq.set_num_threads(np.int64(cq.info()["threads"]))
