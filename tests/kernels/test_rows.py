"""Work on rows: codes against cq.affine to the bit; norm, gate, positions and tables against their formulas in float64,
within stated bounds over the whole range of float32; and NaN or Inf is an error wherever it comes in."""

from itertools import product

import numpy as np
import pytest
from scipy import special

import cq
from cq import _core, affine
from cq.model.forms import Fixed, PerToken
from cq.model.norm import Norm
from cq.weights import pack_floats

CODES = [("uint8", False), ("int8", False), ("int8", True)]
WIDTHS = (1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 100, 257)
LARGEST = np.finfo(np.float32).max
TINY = np.finfo(np.float32).tiny


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def special_rows(rng, columns):
    """Rows of every kind of number that is finite."""
    x = rng.integers(0, 2**32, (40, columns), np.uint32).view(np.float32)
    x = np.where(np.isfinite(x), x, np.float32(-0.0))  # any pattern of bits
    scales = np.float32([1, -0.0, 3e38 / 6, 1e-45, 1e-38, 2**-126, 100, 1e-3, 1e20, 1e-30])
    x[:10] = np.clip(normal(rng, 10, columns), -6, 6) * scales[:, None]
    x[10:16] = np.float32([0, -0.0, 0.3, -0.3, LARGEST, -1e-45])[:, None]
    x[16:20] = np.abs(x[:4])
    x[20:24] = -np.abs(x[:4])
    x[24] = np.where(np.arange(columns) % 2, LARGEST, -LARGEST)
    x[25] = np.rint(normal(rng, columns) * 50) + np.float32(0.5)  # halves go to even
    return x


def assert_codes(got, codes, scale, zero_point):
    assert np.asarray(got.scale, np.float32).tobytes() == np.asarray(scale, np.float32).tobytes()
    np.testing.assert_array_equal(got.zero_point, zero_point)
    assert got.codes.dtype == codes.dtype
    np.testing.assert_array_equal(got.codes, codes)


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, symmetric", CODES)
def test_dynamic_codes(dtype, symmetric, rng):
    for columns in WIDTHS:
        x, sums = special_rows(rng, columns), np.empty(40, np.int32)
        scale, zero_point = affine.row_params(x, dtype, symmetric)
        codes = affine.quantize(x, scale[:, None], zero_point[:, None], dtype, symmetric)
        assert_codes(_core.quantize(x, PerToken(dtype, symmetric), sums), codes, scale, zero_point)
        np.testing.assert_array_equal(sums, codes.astype(int).sum(1))


@pytest.mark.parametrize("dtype, symmetric", CODES)
def test_static_codes(dtype, symmetric, rng):
    low, high = affine.code_range(dtype, symmetric)
    for columns, scale in product(WIDTHS, np.float32([TINY, 1e-20, 0.037, 0.5, 1, 3e36])):
        x, sums = special_rows(rng, columns), np.empty(40, np.int32)
        zero_point = 0 if symmetric else int(rng.integers(low, high + 1))
        codes = affine.quantize(x, scale, zero_point, dtype, symmetric)
        assert_codes(
            _core.quantize(x, Fixed(dtype, symmetric, float(scale), zero_point), sums), codes, scale, zero_point
        )
        np.testing.assert_array_equal(sums, codes.astype(int).sum(1))


def test_codes_on_both_sides_of_every_half(rng):
    """The float32 next to each boundary between two codes: here a product with 1 / scale would give other codes."""
    for scale in np.exp(rng.uniform(-20, 20, 50)).astype(np.float32):
        near = ((np.arange(-300, 300) + 0.5) * scale).astype(np.float32)
        x = np.stack((near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))))
        for dtype, symmetric in CODES:
            zero_point = 0 if symmetric else int(rng.integers(*affine.RANGES[dtype]))
            got = _core.quantize(x, Fixed(dtype, symmetric, float(scale), zero_point))
            np.testing.assert_array_equal(got.codes, affine.quantize(x, scale, zero_point, dtype, symmetric))
            ends = np.float32([-140, 115] if not symmetric else [-127, 127]) * scale
            row = np.concatenate((ends, x[(x > ends[0]) & (x < ends[1])]))[None]
            found, zero = affine.row_params(row, dtype, symmetric)
            codes = affine.quantize(row, found[:, None], zero[:, None], dtype, symmetric)
            assert_codes(_core.quantize(row, PerToken(dtype, symmetric)), codes, found, zero)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_dequantize(dtype, rng):
    low, high = affine.RANGES[dtype]
    for columns in WIDTHS:
        codes = rng.integers(low, high + 1, (9, columns)).astype(dtype)
        scale = np.float32([TINY, 1e-30, 0.01, 1, 3.3, 1e30, 1e36, LARGEST, 0.5])
        zero_point = rng.integers(low, high + 1, 9).astype(np.int32)
        expected = affine.dequantize(codes, scale[:, None], zero_point[:, None])
        assert _core.Coded(codes, scale, zero_point).dequantize().tobytes() == expected.tobytes()
        one = _core.Coded(codes, float(scale[2]), int(zero_point[0])).dequantize()
        assert one.tobytes() == affine.dequantize(codes, scale[2], zero_point[0]).tobytes()


def test_min_max(rng):
    for n in WIDTHS:
        for x in special_rows(rng, n):
            assert _core.min_max(x) == (x.min(), x.max())


def test_pack_and_unpack(rng):
    for k, n in product((1, 2, 3, 4, 5, 31, 64, 130), (1, 15, 16, 17, 64, 65)):
        b, zeros = rng.integers(-128, 128, (k, n)).astype(np.int8), rng.integers(-128, 128, n).astype(np.int32)
        w = cq.pack(b, zeros)
        np.testing.assert_array_equal(w.unpack(), b)
        np.testing.assert_array_equal(w.column_sums, (b - zeros).sum(0))


# --- norm, gate, positions, tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rms, added, biased", [*product([False, True], repeat=3)])
def test_norm(rms, added, biased, rng):
    """Within 2e-6 of the largest magnitude in the row's exact result, and what the last bit of x's mean is worth in
    it."""
    for columns, offset, scale in product((*WIDTHS, 768), (0, 30), (1e-10, 1, 1e10)):
        x = (normal(rng, 4, columns) + np.float32(offset)) * np.float32(scale)
        residual = normal(rng, 4, columns) * np.float32(scale) if added else None
        weight, bias, eps = normal(rng, columns), normal(rng, columns) if biased else None, 1e-5
        norm = Norm(weight, bias, eps, rms)
        y, codes, total = _core.norm(x, norm, residual, keep_sum=True)
        assert codes is None
        np.testing.assert_array_equal(total, x if residual is None else x + residual)
        v = total.astype(float)
        center = 0 if rms else v.mean(1, keepdims=True)
        factor = 1 / np.sqrt(((v - center) ** 2).mean(1, keepdims=True) + eps)
        exact = (v - center) * factor * weight + (0 if bias is None else bias)
        last_bit = 0 if rms else 2.0**-23 * np.abs(v).max(1, keepdims=True) * factor * np.abs(weight).max()
        bound = 2e-6 * (np.abs(exact).max(1, keepdims=True) + 1e-3) + 4 * last_bit
        assert (np.abs(y - exact) <= bound).all()
        for form in (PerToken("uint8", False), Fixed("int8", False, 0.03, 5)):
            for keep in (True, False):
                again, coded, _ = _core.norm(x, norm, residual, form, keep)
                assert coded.codes.tobytes() == _core.quantize(y, form).codes.tobytes()
                assert (again is None) if not keep else again.tobytes() == y.tobytes()


def exact_activation(name, x):
    x = x.astype(float)
    return {
        None: lambda: x,
        "relu": lambda: np.maximum(x, 0),
        "gelu": lambda: x * special.ndtr(x),
        "silu": lambda: x * special.expit(x),
        "gelu_tanh": lambda: x * special.expit(np.sqrt(8 / np.pi) * (x + 0.044715 * x**3)),
    }[name]()


# |error| <= absolute + relative * |exact|: what a float32 function of a polynomial or two can give
BOUNDS = {None: (0, 0), "relu": (0, 0), "gelu": (3.5e-7, 1.3e-7), "silu": (3e-37, 4e-7), "gelu_tanh": (5e-8, 4e-7)}


@pytest.mark.parametrize("name", BOUNDS)
def test_activations_over_the_whole_range(name):
    """Every 4,099th float32 that there is, every kind of edge, and the interval that matters densely."""
    bits = np.arange(0, 2**32, 4099, np.uint64).astype(np.uint32).view(np.float32)
    edges = np.float32([0, 1e-45, TINY, 1, 5.41, 87.3, 88.4, 88.7, 88.73, 89, 104, 1e13, 1e19, 2e19, 3e38, LARGEST])
    x = np.concatenate((bits[np.isfinite(bits)], edges, -edges, np.linspace(-110, 110, 300_001, dtype=np.float32)))[
        None
    ]
    got, exact = _core.gate(x, np.ones_like(x), name), exact_activation(name, x)
    absolute, relative = BOUNDS[name]
    error = np.abs(got - exact)
    worst = (error - absolute - relative * np.abs(exact)).argmax()
    assert (error <= absolute + relative * np.abs(exact)).all(), (x[0, worst], got[0, worst], exact[0, worst])
    whole = x.size // 16 * 16
    after_product = _core.linear(
        x[0, :whole].reshape(-1, 16), pack_floats(np.eye(16, dtype=np.float32)), activation=name
    )
    np.testing.assert_array_equal(after_product.reshape(-1), got[0, :whole])


@pytest.mark.parametrize("name", BOUNDS)
def test_gate(name, rng):
    for columns in WIDTHS:
        g, u = 3 * normal(rng, 5, columns), normal(rng, 5, columns)
        plain = _core.gate(g, u, name)
        act = _core.gate(g, np.ones_like(u), name)
        np.testing.assert_array_equal(plain, act * u)
        for form in (PerToken("uint8", False), PerToken("int8", True), Fixed("uint8", False, 0.02, 100)):
            expected, got = _core.quantize(plain, form), _core.gate(g, u, name, form)
            assert_codes(got, expected.codes, expected.scale, expected.zero_point)


@pytest.mark.parametrize("dim", [2, 8, 20, 32, 64, 80, 128])
def test_rope(dim, rng):
    tokens, heads = 11, 3
    whole, position = normal(rng, tokens, heads * dim + 5), rng.integers(0, 50, tokens).astype(np.int32)
    x, beside = whole[:, : heads * dim], whole[:, heads * dim :].copy()
    angle = np.outer(np.arange(50), 1e4 ** -(np.arange(0, dim, 2) / dim))
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = np.split(x.reshape(tokens, heads, dim).astype(float), 2, 2)
    c, s = (table[position][:, None].astype(float) for table in (cosine, sine))
    exact = np.concatenate((a * c - b * s, b * c + a * s), 2).reshape(tokens, -1)
    _core.rope(whole, heads, dim, cosine, sine, position)
    np.testing.assert_allclose(x, exact, rtol=0, atol=2.0**-23 * 4)
    np.testing.assert_array_equal(whole[:, heads * dim :], beside)  # values follow in the same rows
    with pytest.raises(cq.CqError, match=f"{heads + 1} heads of {dim + 5} columns"):
        _core.rope(whole, heads + 1, dim + 5, cosine, sine, position)


@pytest.mark.parametrize("kind", ["float32", "symmetric", "affine", "per-tensor"])
def test_embed(kind, rng):
    for columns in WIDTHS:
        table = normal(rng, columns, 37)
        ids, position, types = (rng.integers(0, top, 30).astype(np.int32) for top in (37, 9, 2))
        q = cq.quantize_tensor(table, symmetric=kind == "symmetric", axis=None if kind == "per-tensor" else 1)
        word = np.ascontiguousarray(table.T) if kind == "float32" else cq.pack(q)
        expected = (table if kind == "float32" else q.dequantize()).T[ids]
        np.testing.assert_array_equal(_core.embed(ids, word), expected)
        places, kinds = normal(rng, 9, columns), normal(rng, 2, columns)
        got = _core.embed(ids, word, position, places, types, kinds)
        np.testing.assert_array_equal(got, (expected + places[position]) + kinds[types])


# --- NaN and Inf ------------------------------------------------------------------------------------------------------

BAD = [np.nan, -np.nan, np.inf, -np.inf]


def poisoned(rng, value, row, columns):
    """Rows of numbers with one that is none, at any place of a vector."""
    for column in sorted({0, columns // 2, columns - 1}):
        x = normal(rng, 5, columns)
        x[row, column] = x[4, column] = value
        yield x


@pytest.mark.parametrize("value", BAD)
def test_not_finite_is_an_error_that_names_the_first_row(value, rng):
    for columns, row in product(WIDTHS, (0, 3)):
        ones, fine = np.ones(columns, np.float32), normal(rng, 5, columns)
        for x in poisoned(rng, value, row, columns):
            for form in (
                *(PerToken(*codes) for codes in CODES),
                Fixed("uint8", False, 0.1, 3),
                Fixed("int8", True, 0.1, 0),
            ):
                with pytest.raises(cq.CqError, match=f"x: NaN or Inf in row {row}"):
                    _core.quantize(x, form)
            for rms, form in product((False, True), (None, PerToken("uint8", False), Fixed("int8", False, 0.1, 3))):
                with pytest.raises(cq.CqError, match=f"NaN or Inf in row {row}"):
                    _core.norm(x, Norm(ones, ones, 1e-5, rms), form=form)
                with pytest.raises(cq.CqError, match=f"NaN or Inf in row {row}"):
                    _core.norm(fine, Norm(ones, None, 1e-5, rms), x, form, form is None)
            with pytest.raises(cq.CqError, match=f"x: NaN or Inf at index {int(np.flatnonzero(~np.isfinite(x))[0])}"):
                _core.min_max(x)
            for name, form in product(BOUNDS, (None, PerToken("uint8", False), Fixed("int8", False, 0.1, 3))):
                with pytest.raises(cq.CqError, match=f"gate: NaN or Inf in row {row}"):
                    _core.gate(np.ones_like(fine), x, name, form)
                if not (name == "relu" and value == -np.inf):  # its relu is 0, and so it should be
                    with pytest.raises(cq.CqError, match=f"gate: NaN or Inf in row {row}"):
                        _core.gate(x, fine, name, form)


@pytest.mark.parametrize("name", BOUNDS)
def test_an_activation_lets_nan_pass(name):
    """None of them turns it into a number that hides it."""
    x = np.full((2, 20), np.nan, np.float32)
    assert np.isnan(_core.linear(x, pack_floats(np.eye(20, dtype=np.float32)), activation=name)).all()


@pytest.mark.parametrize("rms", [False, True])
def test_a_norm_whose_squares_overflow_is_an_error(rms, rng):
    """1 / sqrt(Inf) would make a row of zeros."""
    x = normal(rng, 3, 40)
    x[1] *= np.float32(1e20)
    with pytest.raises(cq.CqError, match="row 1"):
        _core.norm(x, Norm(np.ones(40, np.float32), None, 1e-5, rms))


def test_the_first_bad_row_is_named_by_every_team(rng):
    x = normal(rng, 300, 300)
    x[120:, 7] = np.nan
    before = _core.get_threads()
    try:
        for threads in (1, 2, 4):
            _core.set_threads(threads)
            for _ in range(20):
                with pytest.raises(cq.CqError, match="row 120"):
                    _core.quantize(x, PerToken("uint8", False))
    finally:
        _core.set_threads(before)
