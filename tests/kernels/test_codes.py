"""Codes are found by multiplying with the inverse scale, and divided only near the middle between two codes: they must
be those of the division, to the bit, for every float32 beside a middle, for scales of every size, in every place that
makes codes. And the forms that codes come in: per group and per column."""

from itertools import product

import numpy as np
import pytest

import cq
from cq import _core, affine
from cq.model.activation import decode
from cq.model.forms import Columns, Fixed, PerHead, PerToken, Smoothed
from cq.weights import pack, pack_floats

F = np.float32
CODES = [("uint8", False), ("int8", False), ("int8", True)]
TINY, LARGEST = np.finfo(F).tiny, np.finfo(F).max


@pytest.fixture
def rng():
    return np.random.default_rng(17)


def ulps(x, n):
    """x moved by n steps of float32, staying finite."""
    bits = x.view(np.int32)
    magnitude = (bits & 0x7FFFFFFF).astype(np.int64)
    moved = np.clip(np.where(bits < 0, -magnitude, magnitude) + n, -0x7F7FFFFF, 0x7F7FFFFF)
    return np.abs(moved).astype(np.int32).view(F) * np.where(moved < 0, F(-1), F(1))


def around_middles(scale):
    """float32 (9, 680): (c + 0.5) * scale for all codes and some beyond, and what lies up to 4 ulps away."""
    with np.errstate(over="ignore", under="ignore"):
        middles = np.clip((np.arange(-340, 340) + 0.5) * float(scale), -LARGEST, LARGEST).astype(F)
    return np.stack([ulps(middles, n) for n in range(-4, 5)])


def scales(rng):
    """Of every size: the least that there is, powers of two and their neighbours, those whose inverse is no normal
    number."""
    powers = F(2.0) ** np.arange(-126, 128, 7).astype(F)
    near = np.concatenate(
        (powers, np.nextafter(powers, F(0)), np.nextafter(powers, F(np.inf)), F([TINY, 2.0**126, LARGEST]))
    )
    spread = np.exp2(rng.uniform(-126, 127.9, 60)).astype(F)
    edge = np.concatenate((np.exp2(rng.uniform(-126, -120, 20)), np.exp2(rng.uniform(124, 128, 30)))).astype(F)
    return [s for s in np.concatenate((near, spread, edge)) if TINY <= s <= LARGEST]


def test_ulps():
    x = F([1, -1, 0, 1e-45, -1e-45, LARGEST])
    for n, step in ((1, np.inf), (-1, -np.inf)):
        with np.errstate(over="ignore"):
            expected = np.clip(np.nextafter(x, F(step)), -LARGEST, LARGEST)
        np.testing.assert_array_equal(ulps(x, n), expected)
    np.testing.assert_array_equal(ulps(F([0]), -1), F([-1e-45]))


def by_column(dtype, symmetric, scale, zero_point):
    return Smoothed(dtype, symmetric, 0.5, 3, Columns(np.atleast_2d(scale), np.atleast_2d(zero_point)))


def codes(x, scale, zero_point, dtype, symmetric=False):
    """affine.quantize for zero points beyond the codes, which columns may have."""
    with np.errstate(over="ignore", under="ignore"):
        return np.clip(np.rint(x / scale) + F(zero_point), *affine.code_range(dtype, symmetric)).astype(dtype)


def far(rng, dtype, size=None):
    """Zero points as far from the middle of the codes as columns may have them."""
    return (128 if dtype == "uint8" else 0) + rng.integers(-affine.FARTHEST, affine.FARTHEST + 1, size).astype(np.int32)


def after_product(x, form):
    """x times 1, in `form`."""
    return _core.linear(x, pack_floats(np.eye(x.shape[1], dtype=F)), form=form)


@pytest.mark.parametrize("dtype, symmetric", CODES)
def test_around_every_middle(dtype, symmetric, rng):
    """Through quantize (whole vectors and tails), through what follows a float32 product, and a column at a time."""
    for scale in scales(rng):
        x = around_middles(scale)
        zero_point = 0 if symmetric else int(rng.integers(*affine.RANGES[dtype]))
        expected = affine.quantize(x, scale, zero_point, dtype, symmetric)
        form = Fixed(dtype, symmetric, float(scale), zero_point)
        np.testing.assert_array_equal(_core.quantize(x, form).codes, expected)
        np.testing.assert_array_equal(after_product(x, form).codes, expected)
        zero_point = np.int32(0) if symmetric else far(rng, dtype)
        expected = codes(x, scale, zero_point, dtype, symmetric)
        form = by_column(dtype, symmetric, np.full(680, scale), np.full(680, zero_point, np.int32))
        np.testing.assert_array_equal(_core.quantize(x, form).codes, expected)
        np.testing.assert_array_equal(after_product(x, form).codes, expected)


def test_around_the_middles_of_columns_of_every_size(rng):
    """Scales above 2^126, whose inverse is denormal, beside small ones in one vector."""
    every = np.array(scales(rng), F)
    for _ in range(20):
        scale = rng.permutation(every)[:100]
        x = np.stack([around_middles(s)[rng.integers(9, size=50), rng.integers(680, size=50)] for s in scale], 1)
        zero_point = far(rng, "uint8", 100)
        form = by_column("uint8", False, scale, zero_point)
        expected = codes(x, scale, zero_point, "uint8")
        np.testing.assert_array_equal(_core.quantize(x, form).codes, expected)
        np.testing.assert_array_equal(after_product(x, form).codes, expected)


@pytest.mark.parametrize("dtype, symmetric", CODES)
def test_around_the_middles_of_dynamic_parameters(dtype, symmetric, rng):
    """Rows, and groups of a row, whose ends fix the scale, with numbers beside its middles between them."""
    rows = []
    for top in np.exp2(rng.uniform(-118, 126, 60)).astype(F):
        low = F(0) if dtype == "uint8" else F(-top)
        scale, _ = affine.dynamic_qparams(low, top, dtype, symmetric)
        inside = around_middles(scale)[:, ::7].ravel()
        inside = rng.permutation(inside[(inside > low) & (inside < top)])[:126]
        rows.append(np.concatenate(([low, top], inside, np.zeros(126 - len(inside), F))))
    x = np.array(rows, F)
    found, zero = affine.row_params(x, dtype, symmetric)
    expected = affine.quantize(x, found[:, None], zero[:, None], dtype, symmetric)
    got = _core.quantize(x, PerToken(dtype, symmetric))
    np.testing.assert_array_equal(got.codes, expected)
    np.testing.assert_array_equal(got.scale, found)
    grouped = _core.quantize(x.reshape(20, -1), PerHead(dtype, symmetric, 128))
    np.testing.assert_array_equal(grouped.codes.reshape(x.shape), expected)
    np.testing.assert_array_equal(grouped.scale.ravel(), found)
    through = after_product(x, PerToken(dtype, symmetric))
    np.testing.assert_array_equal(through.codes, expected)


@pytest.mark.parametrize("dtype, symmetric", CODES)
def test_middles_after_integer_products(dtype, symmetric, rng):
    """y is a whole number of steps, the result's scale an even number of them or a fraction: many y lie at middles, or
    beside."""
    x, w = np.arange(256, dtype=np.uint8)[:, None], np.arange(-50, 50, dtype=np.int8)[None]
    for _ in range(30):
        step, zero_point = (
            np.exp2(rng.uniform(-20, 10)).astype(F),
            0 if symmetric else int(rng.integers(*affine.RANGES[dtype])),
        )
        packed, given = pack(w, None, np.full((1, 100), step)), _core.Coded(x, 1.0, 128)
        scale = (
            F(step * 2 * rng.integers(1, 30))
            if rng.random() < 0.5
            else F(step * rng.integers(1, 90) / rng.integers(1, 9))
        )
        y = _core.linear(given, packed)
        got = _core.linear(given, packed, form=Fixed(dtype, symmetric, float(scale), zero_point))
        np.testing.assert_array_equal(got.codes, affine.quantize(y, scale, zero_point, dtype, symmetric))


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, symmetric", CODES)
def test_groups_are_rows_of_their_own(dtype, symmetric, rng):
    """The last group may be shorter."""
    for columns, group in product((1, 15, 16, 64, 100, 128, 192, 384), (1, 3, 8, 16, 20, 32, 64, 128, 500)):
        x = rng.standard_normal((7, columns), F) * F([[1], [0], [1e-42], [5e37], [-1], [30], [1e-3]])
        x[5] = np.abs(x[5])
        got = _core.quantize(x, PerHead(dtype, symmetric, group))
        groups = -(-columns // group)
        assert got.scale.shape == got.zero_point.shape == (7, groups) and got.codes.dtype == dtype
        for g in range(groups):
            part = x[:, g * group : (g + 1) * group]
            scale, zero_point = affine.row_params(part, dtype, symmetric)
            np.testing.assert_array_equal(got.scale[:, g], scale)
            np.testing.assert_array_equal(got.zero_point[:, g], zero_point)
            expected = affine.quantize(part, scale[:, None], zero_point[:, None], dtype, symmetric)
            np.testing.assert_array_equal(got.codes[:, g * group : (g + 1) * group], expected)
        if columns % group == 0:
            wide = [np.repeat(p, group, 1) for p in (got.scale, got.zero_point)]
            np.testing.assert_array_equal(decode(got), affine.dequantize(got.codes, *wide))


@pytest.mark.parametrize("dtype, symmetric", CODES)
def test_columns(dtype, symmetric, rng):
    for columns in (1, 7, 16, 17, 63, 64, 65, 200):
        scale = np.exp(rng.normal(-3, 3, (1, columns))).astype(F)
        zero_point = far(rng, dtype, (1, columns)) * (not symmetric)
        x, sums = rng.standard_normal((9, columns), F), np.empty(9, np.int32)
        x *= scale * 150
        got = _core.quantize(x, by_column(dtype, symmetric, scale, zero_point), sums)
        assert (got.scale, got.zero_point) == (0.5, 3)
        np.testing.assert_array_equal(got.codes, codes(x, scale, zero_point, dtype, symmetric))
        np.testing.assert_array_equal(sums, got.codes.astype(int).sum(1))
        np.testing.assert_array_equal(decode(got), scale * (got.codes - zero_point).astype(F))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_in_any_form(value, rng):
    """In any group or column, wherever it lies in a vector."""
    ones, zeros = np.ones((1, 192), F), np.zeros((1, 192), np.int32)
    forms = [
        PerHead("int8", True, 32),
        PerHead("int8", True, 64),
        PerHead("uint8", False, 5),
        PerHead("int8", False, 1),
        by_column("int8", True, ones, zeros),
    ]
    for form, column, row in product(forms, (0, 15, 16, 63, 64, 100, 191), (0, 3)):
        x = rng.standard_normal((5, 192), F)
        x[row, column] = x[4, 1] = value
        with pytest.raises(cq.CqError, match=f"x: NaN or Inf in row {row}$"):
            _core.quantize(x, form)
