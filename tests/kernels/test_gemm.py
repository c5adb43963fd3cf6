"""Matrix products: the int32 GEMM is the mathematical sum, and the layer around it is the formula of cq.affine."""

from itertools import product

import numpy as np
import pytest

import cq
from cq import _core, affine
from cq.model.deferred import Deferred
from cq.weights import pack

ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]
K_WITH_ZERO_POINTS = 33_025  # the longest sum of 255 * 255 that int32 holds


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def codes(rng, dtype, *shape):
    low, high = affine.RANGES[dtype]
    return rng.integers(low, high + 1, shape).astype(dtype)


def exact(a, b, a_zero_point=0, b_zero_point=0):
    a = a.astype(np.int64) - np.reshape(a_zero_point, (-1, 1))
    return a @ (b.astype(np.int64) - np.reshape(b_zero_point, (1, -1)))


def assert_sum(a, b, a_zero_point=0, b_zero_point=0):
    got = cq.matmul_integer(a, cq.pack(b, b_zero_point), a_zero_point)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, exact(a, b, a_zero_point, b_zero_point))


def compare_block(rng, dtype, k, a_zero_point, b_zero_point, rows=range(1, 18), columns=range(1, 66)):
    """All M x N corners of one product of 17 x K x 65 against its exact sum."""
    a, b = codes(rng, dtype, 17, k), codes(rng, "int8", k, 65)
    expected = exact(a, b, a_zero_point, b_zero_point)
    for n in columns:
        w = cq.pack(b[:, :n], b_zero_point if np.ndim(b_zero_point) == 0 else b_zero_point[:n])
        for m in rows:
            got = cq.matmul_integer(a[:m], w, a_zero_point if np.ndim(a_zero_point) == 0 else a_zero_point[:m])
            if not np.array_equal(got, expected[:m, :n]):
                pytest.fail(f"{dtype} {m}x{k}x{n}: {np.argwhere(got != expected[:m, :n])[:3].tolist()} differ")


def zero_points(rng, dtype, kind):
    """The zero points (of a, of b) that `kind` names."""
    rows, columns = codes(rng, dtype, 17).astype(int), codes(rng, "int8", 65).astype(int)
    return {
        "none": (0, 0),
        "scalar": (int(rows[0]), int(columns[0])),
        "per-row": (rows, 0),
        "per-column": (0, columns),
        "both": (rows, columns),
    }[kind]


KINDS = ["none", "scalar", "per-row", "per-column", "both"]


@pytest.mark.parametrize("dtype, kind", [*product(["uint8", "int8"], KINDS)])
def test_the_product_is_the_sum(dtype, kind, rng):
    for k in (*range(1, 20), 31, 32, 33, 63, 64, 65, 66, 67, 127, 128, 130):
        a_zero, b_zero = zero_points(rng, dtype, kind)
        rows, columns = (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 17), (1, 7, 15, 16, 17, 32, 33, 48, 63, 64, 65)
        compare_block(rng, dtype, k, a_zero, b_zero, rows, columns)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype, kind", [*product(["uint8", "int8"], KINDS)])
def test_the_product_is_the_sum_for_every_shape(dtype, kind, rng):
    for k in range(1, 131):
        compare_block(rng, dtype, k, *zero_points(rng, dtype, kind))


@pytest.mark.parametrize(
    "m, k, n", [(1, 768, 3072), (130, 384, 100), (144, 65, 64), (145, 64, 65), (289, 130, 257), (300, 1, 300)]
)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_large_products(dtype, m, k, n, rng):
    assert_sum(codes(rng, dtype, m, k), codes(rng, "int8", k, n), codes(rng, dtype, m), codes(rng, "int8", n))


@pytest.mark.parametrize("a, b", [*product([0, 1, 127, 128, 255, -128, -127, -1], [-128, -127, -1, 0, 1, 127])])
def test_extremes(a, b, rng):
    """Codes that are all as large as can be: no product saturates."""
    for k, n in product((1, 2, 3, 4, 63, 1000), (20, 64)):
        a_codes, b_codes = (np.full((5, k), a, "uint8" if a >= 0 else "int8"), np.full((k, n), b, np.int8))
        assert_sum(a_codes, b_codes)
        assert_sum(a_codes, b_codes, a, -128)
        b_codes[::2] = -b_codes[::2] // 2
        assert_sum(a_codes, b_codes, 127, 127)


def around(rng, dtype, deviation, zero_point, *shape):
    """Codes that lie around their zero points, as real ones do. AVX2 clips them and adds what it clipped off."""
    low, high = affine.RANGES[dtype]
    return np.clip(np.rint(rng.standard_normal(shape) * deviation) + zero_point, low, high).astype(dtype)


DEVIATIONS = (0, 3, 20, 30, 36, 40, 45, 50, 60, 80, 300)  # nothing to clip, more and more, too much to clip, extremes


@pytest.mark.parametrize("dtype, deviation", [*product(["uint8", "int8"], DEVIATIONS)])
def test_codes_around_their_zero_point(dtype, deviation, rng):
    low, high = affine.RANGES[dtype]
    for i, (m, k) in enumerate(product((1, 3, 8, 13, 50, 150), (1, 7, 64, 130, 384, 1025, 2051))):
        n = (64, 70, 144)[i % 3]
        a_zero = [low, high, (low + high) // 2, rng.integers(low, high + 1, m)][i % 4]
        b_zero = codes(rng, "int8", n) if i % 5 == 0 else 0
        a = around(rng, dtype, deviation, np.reshape(a_zero, (-1, 1)), m, k)
        a[rng.random((m, k)) < 0.001] = (low, high)[i % 2]
        assert_sum(a, codes(rng, "int8", k, n), a_zero, b_zero)


@pytest.mark.parametrize("dtype, deviation", [*product(["uint8", "int8"], DEVIATIONS)])
def test_codes_above_their_zero_point(dtype, deviation, rng):
    """As an activation function leaves them: few lie below the zero point, and not far. AVX2 counts them from there."""
    low, high = affine.RANGES[dtype]
    for i, (m, k) in enumerate(product((1, 3, 8, 13, 50, 150), (1, 7, 64, 130, 384, 1025, 2051))):
        n = (64, 70, 144)[i % 3]
        a_zero = low + [0, 5, 32, rng.integers(20, 28, m), rng.integers(0, 40, m)][i % 5]
        x = np.abs(rng.standard_normal((m, k))) * deviation * (rng.random((m, k)) < 0.7) - rng.random((m, k)) * 16
        a = np.clip(np.rint(x) + np.reshape(a_zero, (-1, 1)), low, high).astype(dtype)
        assert_sum(a, codes(rng, "int8", k, n), a_zero, codes(rng, "int8", n) if i % 2 else 0)


@pytest.mark.parametrize("b, zero_point", [*product([-128, 127], [0, 128, 255])])
def test_clipped_sums_do_not_saturate(b, zero_point):
    """Any four codes that are added in int16, around what is clipped, where the weight is as large as can be."""
    some = np.array([-255, -128, -127, -126, -64, -63, -1, 0, 1, 63, 64, 126, 127, 128, 255])
    some = np.unique(np.clip(some, -zero_point, 255 - zero_point))
    a = np.full((len(some) ** 4, 100), zero_point)
    a[:, [0, 1, 52, 53]] += np.array([*product(some, repeat=4)])
    assert_sum(a.astype(np.uint8), np.full((100, 64), b, np.int8), zero_point)


# --- the longest sums -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "a, b, zero", [(255, -128, 0), (255, 127, 0), (0, -128, 255), (-128, -128, 127), (127, -128, -128)]
)
def test_the_longest_sum_fits(a, b, zero):
    k = _core.MAX_K
    a_codes = np.full((2, k), a, "uint8" if max(a, zero) > 127 else "int8")
    assert_sum(a_codes, np.full((k, 3), b, np.int8), zero)


def test_a_longer_sum_is_refused():
    with pytest.raises(cq.CqError, match="65,793.*split K"):
        cq.pack(np.zeros((_core.MAX_K + 1, 1), np.int8))


def test_both_zero_points_fit_to_their_limit():
    for k in (_core.MAX_K // 2, _core.MAX_K // 2 + 1, K_WITH_ZERO_POINTS):
        assert_sum(np.full((1, k), 255, np.uint8), np.full((k, 2), -128, np.int8), 0, [127, 126])


def test_beyond_it_a_sum_fits_or_is_an_error(rng):
    k = K_WITH_ZERO_POINTS + 1
    a, b = np.full((3, k), 255, np.uint8), np.full((k, 17), -128, np.int8)
    with pytest.raises(cq.CqError, match="int32.*zero point"):
        cq.matmul_integer(a, cq.pack(b, 127))
    b[: k // 2] = 127  # now the sum fits, through int64
    assert_sum(a, b, 0, 127)
    assert_sum(
        codes(rng, "uint8", 7, 65_000), codes(rng, "int8", 65_000, 18), codes(rng, "uint8", 7), codes(rng, "int8", 18)
    )
    assert_sum(codes(rng, "int8", 7, 65_000), codes(rng, "int8", 65_000, 18), codes(rng, "int8", 7), -128)


@pytest.mark.parametrize("m, k, n", [(0, 4, 3), (3, 0, 4), (3, 4, 0), (0, 0, 0), (0, 0, 5), (1, 0, 17)])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_empty(dtype, m, k, n):
    assert_sum(np.zeros((m, k), dtype), np.zeros((k, n), np.int8), 5, 7)


# --- layers -----------------------------------------------------------------------------------------------------------


def layer(rng, m, k, n, dtype="uint8", symmetric=True, axis=1, per_row=False):
    """A QTensor (M, K) and one (K, N)."""
    x = cq.quantize_tensor(rng.standard_normal((m, k)), dtype, axis=0 if per_row else None)
    return x, cq.quantize_tensor(rng.standard_normal((k, n)), symmetric=symmetric, axis=axis)


def reference(x, w, **after):
    return affine.layer(x.data, w.data, x.scale, x.zero_point, w.scale, w.zero_point, **after)


CASES = list(product(["uint8", "int8"], [True, False], [None, 1], [False, True]))
LAYERS = pytest.mark.parametrize("dtype, symmetric, axis, per_row", CASES)


@LAYERS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_is_the_layer_formula(dtype, symmetric, axis, per_row, activation, rng):
    ms, ks, ns = (1, 6, 13), (3, 64, 130), (1, 16, 67)
    for i, j in product(range(3), range(3)):  # all pairs of sizes
        m, k, n = ms[i], ks[j], ns[(i + j) % 3]
        x, w = layer(rng, m, k, n, dtype, symmetric, axis, per_row)
        bias, residual = rng.standard_normal(n, np.float32), rng.standard_normal((m, n), np.float32)
        packed = cq.pack(w)
        for after in ({}, {"bias": bias}, {"residual": residual}, {"bias": bias, "residual": residual}):
            got = cq.linear(x, packed, activation=activation, **after)
            expected = reference(x, w, activation=activation, **after)
            if activation in (None, "relu"):
                np.testing.assert_array_equal(got, expected)
            else:  # the polynomials of the kernels: an absolute and relative error of some 1e-7
                np.testing.assert_allclose(got, expected, rtol=4e-7, atol=4e-7)


@LAYERS
def test_coded_residual_and_result(dtype, symmetric, axis, per_row, rng):
    """A residual in codes adds its dequantized value; a requantized result is the code of the float32 one, to the
    bit."""
    for (m, k, n), out_dtype, activation in product([(1, 30, 17), (13, 67, 80)], ["uint8", "int8"], ACTIVATIONS):
        x, w = layer(rng, m, k, n, dtype, symmetric, axis, per_row)
        residual = cq.quantize_tensor(rng.standard_normal((m, n)), out_dtype, axis=0 if per_row else None)
        packed, bias = cq.pack(w), rng.standard_normal(n, np.float32)
        expected = cq.linear(x, packed, bias, activation, residual.dequantize())
        np.testing.assert_array_equal(cq.linear(x, packed, bias, activation, residual), expected)
        got = cq.linear(x, packed, bias, activation, residual, 0.05, 3, out_dtype)
        np.testing.assert_array_equal(got.data, affine.quantize(expected, 0.05, 3, out_dtype))
        assert (got.dtype, got.scale, got.zero_point) == (out_dtype, np.float32(0.05), 3)


def test_int32_bias(rng):
    """Added to the exact sum, before any rounding."""
    x, w = layer(rng, 7, 65, 33, symmetric=False)
    bias = rng.integers(-(10**6), 10**6, 33).astype(np.int32)
    got = _core.linear(_core.Coded(x.data, float(x.scale), int(x.zero_point)), cq.pack(w), bias_i32=bias)
    np.testing.assert_array_equal(got, reference(x, w, bias_i32=bias))


# --- weight-only ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "symmetric, axis, group",
    [
        (True, 1, None),
        (False, 1, None),
        (False, None, None),
        (True, 1, 4),
        (False, 1, 32),
        (True, 1, 64),
        (False, 1, 256),
        (True, 1, 500),
    ],
)
def test_weight_only(symmetric, axis, group, rng):
    """Within the rounding of K float32 steps of the float64 product with the dequantized weight."""
    for m, k, n in product((1, 4, 5, 13), (1, 5, 66, 300), (1, 16, 67)):
        x = rng.standard_normal((m, k), np.float32)
        w = cq.quantize_tensor(rng.standard_normal((k, n)), symmetric=symmetric, axis=axis, group_size=group)
        weight, residual = w.dequantize().astype(float), rng.standard_normal((m, n), np.float32)
        got = cq.linear(x, cq.pack(w), residual=residual)
        bound = (k + 4) * 2.0**-24 * (np.abs(x) @ np.abs(weight) + np.abs(residual)) + 2**-24 * np.abs(got)
        assert (np.abs(got - (x.astype(float) @ weight + residual)) <= bound).all()


@pytest.mark.parametrize("group", [2, 6, 10, 30])
def test_groups_that_panels_cannot_hold_are_refused(group, rng):
    with pytest.raises(cq.CqError, match=f"group_size: {group} is not a multiple of 4"):
        cq.pack(cq.quantize_tensor(rng.standard_normal((60, 5)), group_size=group))


def test_groups_of_a_weight_that_is_read_when_it_is_wanted(rng):
    codes, zero_points = rng.integers(-128, 128, (16, 5), np.int8), rng.integers(-9, 9, (4, 5), np.int32)
    x, scales = rng.standard_normal((3, 16), np.float32), rng.random((4, 5), np.float32)
    now, later = (pack(b, zero_points, scales, 4) for b in (codes, Deferred(codes.shape, np.int8, lambda: codes)))
    assert _core.linear(x, later).tobytes() == _core.linear(x, now).tobytes()
    assert later.panels.tobytes() == now.panels.tobytes() and (later.unpack() == codes).all()


@pytest.mark.parametrize("kind", ["weight-only", "grouped", "int8", "per-row int8"])
def test_a_row_does_not_depend_on_its_neighbours(kind, rng):
    """One row alone, and among any number of others, has the same bits."""
    for k, n in product((5, 64, 300), (1, 17, 130)):
        w = cq.pack(
            cq.quantize_tensor(
                rng.standard_normal((k, n)),
                symmetric=kind == "int8",
                axis=1,
                group_size=32 if kind == "grouped" else None,
            )
        )
        x = rng.standard_normal((160, k), np.float32)
        if "int8" in kind:
            x = cq.quantize_tensor(x, "uint8", axis=0 if "row" in kind else None)

        def rows(which, x=x):
            if isinstance(x, np.ndarray):
                return x[which]
            pick = which if x.axis == 0 else ()
            return cq.QTensor(x.data[which], x.scale[pick], x.zero_point[pick], x.axis)

        together = cq.linear(x, w, activation="gelu")
        for m in (1, 2, 3, 4, 5, 7, 20, 150):
            some = rng.permutation(160)[:m]
            assert cq.linear(rows(some), w, activation="gelu").tobytes() == together[some].tobytes()


# --- arrays as they come ----------------------------------------------------------------------------------------------


def views(array):
    """The same numbers behind other strides."""
    wide = np.zeros((2 * array.shape[0] + 1, 3 * array.shape[1] + 2), array.dtype)
    wide[1::2, 2::3] = array
    return {
        "fortran": np.asfortranarray(array),
        "strided": wide[1::2, 2::3],
        "backwards": np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    }


@pytest.mark.parametrize("kind", ["fortran", "strided", "backwards"])
def test_any_strides(kind, rng):
    a, b, x = codes(rng, "uint8", 7, 33), codes(rng, "int8", 33, 18), rng.standard_normal((7, 33), np.float32)
    for view in (views(a)[kind], views(a.view(np.int8))[kind]):
        np.testing.assert_array_equal(cq.matmul_integer(view, cq.pack(views(b)[kind])), exact(view, b))
    q, residual = cq.quantize_tensor(rng.standard_normal((33, 18)), axis=1), rng.standard_normal((7, 18), np.float32)
    strange = cq.QTensor(views(q.data)[kind], q.scale, q.zero_point, 1)
    bias = np.repeat(rng.standard_normal(18, np.float32), 2)[::2]
    got = cq.linear(views(x)[kind], cq.pack(strange), bias, residual=views(residual)[kind])
    np.testing.assert_array_equal(got, cq.linear(x, cq.pack(q), bias.copy(), residual=residual))
    t = cq.quantize_tensor(x, "uint8")
    got = cq.linear(cq.QTensor(views(t.data)[kind], t.scale, t.zero_point), cq.pack(q), residual=residual)
    np.testing.assert_array_equal(got, cq.linear(t, cq.pack(q), residual=residual))


def test_a_repeated_row_needs_no_memory():
    """Strides of 0."""
    a, b = np.broadcast_to(np.uint8(3), (5, 40)), np.broadcast_to(np.int8(-2), (40, 9))
    np.testing.assert_array_equal(cq.matmul_integer(a, cq.pack(b)), np.full((5, 9), -240))


def test_arguments_stay_and_results_are_new(rng):
    a, b = codes(rng, "uint8", 9, 20), codes(rng, "int8", 20, 20)
    x, bias, residual = rng.standard_normal((9, 20), np.float32), np.ones(20, np.float32), np.ones((9, 20), np.float32)
    zero_a, zero_b, q = codes(rng, "uint8", 9), codes(rng, "int8", 20), cq.quantize_tensor(x, "uint8")
    arguments = [a, b, x, bias, residual, zero_a, zero_b, q.data, q.scale, q.zero_point]
    for array in arguments:
        array.setflags(write=False)  # read-only arrays are welcome
    before = [array.tobytes() for array in arguments]
    packed = cq.pack(b, zero_b)
    results = [cq.matmul_integer(a, packed, zero_a)]
    for given, after in product((x, q), ({}, {"out_scale": 0.1})):
        w = cq.pack(cq.quantize_tensor(b.astype(np.float32)))
        y = cq.linear(given, w, bias, "silu", residual, **after)
        results.append(y if isinstance(y, np.ndarray) else y.data)
    assert [array.tobytes() for array in arguments] == before
    assert not any(np.shares_memory(result, array) for result in results for array in arguments)
    assert all(result.flags.writeable and result.flags.owndata for result in results)
    b.setflags(write=True)
    expected = cq.matmul_integer(a, packed, zero_a)
    b[:] = 0  # the packed weight is a copy
    np.testing.assert_array_equal(cq.matmul_integer(a, packed, zero_a), expected)
