"""Attention over ragged sequences: float32 against the formula in float64, int8 against an emulation in NumPy, and no token
that sees another sequence or its own future."""
from itertools import product

import numpy as np
import pytest
from scipy import special

from cq import _core, affine

SHAPES = [(dim, heads, kv) for dim, (heads, kv) in product((8, 20, 32, 64, 80, 128), ((4, 4), (4, 2), (3, 1)))]
LENGTHS = [(1,), (5, 1, 17), (24, 25, 1, 6), (70,)]


@pytest.fixture
def rng():
    return np.random.default_rng(13)


def offsets_of(lengths):
    return np.cumsum((0, *lengths)).astype(np.int32)


def each_head(q, k, v, offsets, heads, kv, causal):
    """(rows, columns) of the result, and q, k, v (length, dim) and which keys a query sees, for each sequence and head."""
    dim = q.shape[1] // heads
    for (a, b), h in product(zip(offsets[:-1], offsets[1:]), range(heads)):
        g = h * kv // heads
        seen = np.tril(np.ones((b - a, b - a), bool)) if causal else np.ones((b - a, b - a), bool)
        own, shared = slice(h * dim, (h + 1) * dim), slice(g * dim, (g + 1) * dim)
        yield (slice(a, b), own), q[a:b, own], k[a:b, shared], v[a:b, shared], seen


def exact(q, k, v, offsets, heads, kv, causal, scale):
    y = np.empty(q.shape)
    for at, q_, k_, v_, seen in each_head(*(x.astype(float) for x in (q, k, v)), offsets, heads, kv, causal):
        y[at] = special.softmax(np.where(seen, scale * q_ @ k_.T, -np.inf), 1) @ v_
    return y


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dim, heads, kv", SHAPES)
def test_float32(dim, heads, kv, causal, rng):
    """Within 2e-6 of values around 1, for scores around 1 and around 30."""
    for lengths, sharp in product(LENGTHS, (1, 30)):
        offsets, scale = offsets_of(lengths), sharp * dim ** -0.5
        q, k, v = (rng.standard_normal((offsets[-1], n * dim), np.float32) for n in (heads, kv, kv))
        got = _core.attention(q, k, v, offsets, heads, kv, causal, scale)
        assert got.shape == q.shape and got.dtype == np.float32
        # a score's rounding error, some 1e-7 of the sum of its terms' magnitudes, is the relative error of its exp
        size = scale * max(np.abs(q).max() * np.abs(k).max() * dim ** 0.5, 1)
        np.testing.assert_allclose(got, exact(q, k, v, offsets, heads, kv, causal, scale), rtol=0, atol=1e-6 + 1e-7 * size * 4)


def emulate(q, k, v, offsets, heads, kv, causal, scale):
    """exp in codes of 1/255, and the largest step that one code off would make."""
    y, step = np.empty(q.codes.shape), np.empty(q.codes.shape)
    numbers = [x.codes.astype(np.int64) - x.zero_point for x in (q, k, v)]
    factor = np.float32(np.float32(np.float32(scale) * np.float32(q.scale)) * np.float32(k.scale))
    for at, q_, k_, v_, seen in each_head(*numbers, offsets, heads, kv, causal):
        scores = np.where(seen, q_ @ k_.T, np.iinfo(np.int64).min // 2)
        weights = np.rint(255 * np.exp((scores - scores.max(1, keepdims=True)) * float(factor))).astype(np.int64)
        sums = weights.sum(1, keepdims=True)
        y[at] = (weights @ v_).astype(np.float32) * (np.float32(v.scale) * (np.float32(1) / sums.astype(np.float32)))
        step[at] = 2 * float(v.scale) * np.abs(v_).max() / sums
    return y, step


def coded(rng, dtype, tokens, width):
    low, high = affine.RANGES[dtype]
    codes = rng.normal((low + high) / 2, 45, (tokens, width)).clip(low, high).astype(dtype)
    return _core.Coded(codes, 0.021, int(rng.integers(low + 100, high - 100)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dim, heads, kv", SHAPES)
def test_int8(dim, heads, kv, causal, rng):
    """The emulation's very numbers, but where exp lies so near a half that another exp rounds it to the other code."""
    off = total = 0
    for lengths, (dtype_q, dtype_k, dtype_v) in product(LENGTHS, product(("uint8", "int8"), repeat=3)):
        offsets = offsets_of(lengths)
        q, k, v = (coded(rng, d, offsets[-1], n * dim) for d, n in ((dtype_q, heads), (dtype_k, kv), (dtype_v, kv)))
        arguments = (q, k, v, offsets, heads, kv, causal, 0.5 * dim ** -0.5)
        got, (expected, step) = _core.attention(*arguments), emulate(*arguments)
        assert (np.abs(got - expected) <= step).all()
        off, total = off + (got != expected.astype(np.float32)).sum(), total + got.size
        for form in (("uint8", False, 0.02, 99), ("int8", True, 0.01, 0)):
            codes = _core.attention(*arguments, form)
            np.testing.assert_array_equal(codes.codes, affine.quantize(got, form[2], form[3], form[0], form[1]))
    assert off <= 0.002 * total


def test_int8_is_near_float32(rng):
    offsets, dim = offsets_of((40, 3)), 32
    q, k, v = (coded(rng, "uint8", 43, 2 * dim) for _ in range(3))
    got = _core.attention(q, k, v, offsets, 2, 2, False, dim ** -0.5 / 4)
    expected = exact(*(x.dequantize() for x in (q, k, v)), offsets, 2, 2, False, dim ** -0.5 / 4)
    assert np.abs(got - expected).max() <= 0.01 * np.abs(v.dequantize()).max()


@pytest.mark.parametrize("causal, int8", [*product([False, True], repeat=2)])
def test_a_sequence_does_not_depend_on_its_neighbours(causal, int8, rng):
    lengths, dim = (30, 1, 7, 55, 7), 20
    offsets = offsets_of(lengths)
    q, k, v = (coded(rng, "int8", 100, n * dim) if int8 else rng.standard_normal((100, n * dim), np.float32) for n in (4, 2, 2))
    together = _core.attention(q, k, v, offsets, 4, 2, causal, 0.3)
    for a, b in zip(offsets[:-1], offsets[1:]):
        part = [_core.Coded(x.codes[a:b].copy(), x.scale, x.zero_point) if int8 else x[a:b].copy() for x in (q, k, v)]
        alone = _core.attention(*part, np.int32([0, b - a]), 4, 2, causal, 0.3)
        assert alone.tobytes() == together[a:b].tobytes()
        if causal and b - a > 6:  # nor on its future
            part = [_core.Coded(x.codes[:5].copy(), x.scale, x.zero_point) if int8 else x[:5].copy() for x in part]
            begun = _core.attention(*part, np.int32([0, 5]), 4, 2, True, 0.3)
            assert begun.tobytes() == alone[:5].tobytes()


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_is_not_hidden(where, rng):
    """It spoils what sees it, and nothing else."""
    parts = {name: rng.standard_normal((9, 8), np.float32) for name in "qkv"}
    parts[where][6, 3] = np.nan
    y = _core.attention(*parts.values(), np.int32([0, 4, 9]), 1, 1, False, 1.0)
    assert np.isfinite(y[:4]).all()
    spoiled = {"q": y[6], "k": y[4:], "v": y[4:, 3]}[where]
    assert np.isnan(spoiled).all()


def test_exp_over_its_range():
    """Of two keys one scores 0 and the other -x; with values 1 and 0 the result is e^-x / (1 + e^-x)."""
    x = np.concatenate((np.linspace(0, 87, 2001), 2.0 ** np.arange(-40, 7), [87.3, 87.4, 100, 1e4, 3e38])).astype(np.float32)
    for score in x:
        q, k, v = np.float32([[score, 0], [score, 0]]), np.float32([[0, 0], [-1, 0]]), np.float32([[0, 0], [1, 0]])
        got = _core.attention(q, k, v, np.int32([0, 2]), 1, 1, False, 1.0)[0, 0]
        assert abs(got - special.expit(-float(score))) <= 4e-7 * special.expit(-float(score)) + 1.3e-38
