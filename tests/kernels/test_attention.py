"""Attention over ragged sequences, three ways: float32 against the formula in float64; codes, static and with a scale
per token and head, against an emulation in NumPy to the bit and against float64 within what half a code of a weight can
do; and no token that sees another sequence or its own future."""

from itertools import product

import numpy as np
import pytest
from scipy import special

import cq
from cq import _core, affine
from cq.model.activation import decode
from cq.model.forms import Fixed, PerHead, PerToken

F = np.float32
SHAPES = [(dim, heads, kv) for dim, (heads, kv) in product((8, 20, 32, 64, 80, 128), ((4, 4), (4, 2), (3, 1)))]
LENGTHS = [(1,), (5, 1, 17), (24, 25, 1, 6), (70,)]
SHAPED = pytest.mark.parametrize("dim, heads, kv", SHAPES)
CAUSAL = pytest.mark.parametrize("causal", [False, True])
KINDS = ("float32", "static", "dynamic")


@pytest.fixture
def rng():
    return np.random.default_rng(13)


def offsets_of(lengths):
    return np.cumsum((0, *lengths)).astype(np.int32)


def parts(qkv, heads, kv):
    """(..., (heads + 2 kv) dim) → q, k and v (..., heads or kv, dim)."""
    split = qkv.reshape(*qkv.shape[:-1], heads + 2 * kv, -1)
    return np.split(split, (heads, heads + kv), axis=-2)


def each_head(offsets, heads, kv, causal, window=None):
    """(tokens of a sequence, query head, the head of keys and values, which keys a query sees)."""
    for (a, b), h in product(zip(offsets[:-1], offsets[1:]), range(heads)):
        back = np.arange(b - a)[:, None] - np.arange(b - a)
        seen = back >= 0 if causal else back == back
        if window is not None:
            seen &= back < window if causal else np.abs(back) <= window
        yield slice(a, b), h, h * kv // heads, seen


def capped(scores, cap):
    return cap * np.tanh(scores / cap) if cap else scores


def biased(rng, offsets, heads, dim):
    """A bias (heads, 2 n - 1) by distance, for sequences of up to n tokens; some are as long."""
    return rng.standard_normal((heads, 2 * (int(np.diff(offsets).max()) + dim % 7) - 1), np.float32)


def bias_at(bias, h, n):
    """(n, n): what is added to scores of head h; a bias (heads, n, n) is that of one sequence."""
    if bias is None:
        return np.zeros((n, n))
    if bias.ndim == 3:
        return bias[h]
    return bias[h][bias.shape[1] // 2 + np.arange(n) - np.arange(n)[:, None]].astype(float)


def exact(qkv, offsets, heads, kv, causal, scale, bias=None, window=None, cap=0):
    q, k, v = parts(qkv.astype(float), heads, kv)
    y = np.empty(q.shape)
    for at, h, g, seen in each_head(offsets, heads, kv, causal, window):
        scores = capped(scale * q[at, h] @ k[at, g].T, cap) + bias_at(bias, h, len(seen))
        y[at, h] = special.softmax(np.where(seen, scores, -np.inf), 1) @ v[at, g]
    return y.reshape(len(y), -1)


@CAUSAL
@SHAPED
def test_float32(dim, heads, kv, causal, rng):
    """Within 2e-6 of values around 1, for scores around 1 and around 30."""
    for lengths, sharp in product(LENGTHS, (1, 30)):
        offsets, scale = offsets_of(lengths), sharp * dim**-0.5
        qkv = rng.standard_normal((offsets[-1], (heads + 2 * kv) * dim), np.float32)
        # a score's rounding error, some 1e-7 of the sum of its terms' magnitudes, is the relative error of its exp
        size = scale * max(np.abs(qkv).max() ** 2 * dim**0.5, 1)
        for bias in (None, biased(rng, offsets, heads, dim)):
            got = _core.attention(qkv, offsets, heads, kv, causal, scale, None, bias)
            assert got.shape == (len(qkv), heads * dim) and got.dtype == np.float32
            wanted = exact(qkv, offsets, heads, kv, causal, scale, bias)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 + 1e-7 * size * 4)


# --- codes ------------------------------------------------------------------------------------------------------------


def exp2(t):
    """2^t, exact at whole t, elsewhere a polynomial of degree 3 on [-1/2, 1/2]; t 0 or below, or a little above."""
    whole = np.rint(t)
    return np.exp2(whole) * np.polyval([0.0550090745, 0.242210984, 0.693282902, 1], t - whole)


def emulate_static(qkv, offsets, heads, kv, causal, scale, bias=None, window=None, cap=0):
    """exp in codes of 1/255, whose own exact sum normalizes; the step that one code off would make, and the
    relative error of a score in float32."""
    qs, ks, vs = (float(p[0, 0, 0]) for p in parts(qkv.scale, heads, kv))
    q, k, v = parts(qkv.codes.astype(np.int64) - qkv.zero_point, heads, kv)
    y, step, fuzzy = (np.empty(q.shape) for _ in range(3))
    for at, h, g, seen in each_head(offsets, heads, kv, causal, window):
        scores = np.log2(np.e) * capped(scale * qs * ks * (q[at, h] @ k[at, g].T), cap)
        scores = np.where(seen, scores + np.log2(np.e) * bias_at(bias, h, len(seen)), -1e30)
        weights = seen * np.rint(255 * exp2(np.maximum(scores - scores.max(1, keepdims=True), -125)))
        y[at, h] = weights @ v[at, g] * vs / weights.sum(1, keepdims=True)
        step[at, h], fuzzy[at, h] = 2 * vs * np.abs(v[at, g]).max() / weights.sum(1, keepdims=True), 1e-6 + 1e-6 * cap
        if bias is not None:  # scores round before their largest is taken off
            fuzzy[at, h] += 2.0**-22 * np.abs(np.where(seen, scores, 0)).max(1, keepdims=True)
    return [x.reshape(len(x), -1) for x in (y, step, fuzzy)]


def log2_above(x):
    """At least log2(x), by 0.087 at most: x's exponent and mantissa read as one number."""
    return np.ascontiguousarray(x).view(np.int32) * 2.0**-23 - 126.913


def emulate_dynamic(qkv, offsets, heads, kv, causal, scale, bias=None, window=None, cap=0):
    """Weights take the values' scales along: codes rint(255 * value scale * 2^(score - top)), normalized by the sum."""
    (q, k, v), (qs, ks, vs) = (parts(x.astype(float), heads, kv) for x in (qkv.codes, qkv.scale))
    logs = log2_above(parts(qkv.scale, heads, kv)[2][..., 0])
    y, step, fuzzy = (np.empty(q.shape) for _ in range(3))
    for at, h, g, seen in each_head(offsets, heads, kv, causal, window):
        scores = capped(q[at, h] @ k[at, g].T * ks[at, g, 0] * qs[at, h] * scale, cap) * np.log2(np.e)
        scores = np.where(seen, scores + np.log2(np.e) * bias_at(bias, h, len(seen)), -1e30)
        weights = seen * exp2(np.maximum(scores - (scores + logs[at, g]).max(1, keepdims=True), -100))
        codes, whole = np.rint(255 * vs[at, g, 0] * weights), 255 * weights.sum(1, keepdims=True)
        assert codes.max() <= 255
        y[at, h], step[at, h] = codes @ v[at, g] / whole, 2 * 127 / whole
        fuzzy[at, h] = 5e-6 + 1e-6 * cap + 2.0**-22 * np.abs(np.where(seen, scores, 0)).max(1, keepdims=True)
    return [x.reshape(len(x), -1) for x in (y, step, fuzzy)]


def assert_emulated(got, y, step, fuzzy):
    """The emulation's numbers within what float32 leaves of a score (`fuzzy`), but where a weight lies so near a half
    that it takes the other code. Returns how many do."""
    error = np.abs(got - y)
    assert (error <= 2 * step + fuzzy * np.abs(y)).all()
    return (error > fuzzy * np.abs(y)).sum()


def static_codes(rng, dtype, tokens, heads, kv, dim):
    """Codes with parameters of their own for queries, keys and values, laid out by column."""
    low, high = affine.RANGES[dtype]
    codes = rng.normal((low + high) / 2, 45, (tokens, (heads + 2 * kv) * dim)).clip(low, high).astype(dtype)
    scale, zero_point = rng.uniform(0.01, 0.04, 3).astype(F), rng.integers(low + 100, high - 100, 3).astype(np.int32)
    widths = [n * dim for n in (heads, kv, kv)]
    return _core.Coded(codes, np.repeat(scale, widths)[None], np.repeat(zero_point, widths)[None])


def dynamic_codes(rng, tokens, heads, kv, dim, spread=1.0):
    """Codes with a scale per token and head, far apart where `spread` is large."""
    x = rng.standard_normal((tokens, heads + 2 * kv, dim)) * np.exp(rng.normal(0, spread, (tokens, heads + 2 * kv, 1)))
    return _core.quantize(x.astype(F).reshape(tokens, -1), PerHead("int8", True, dim))


@CAUSAL
@SHAPED
def test_static(dim, heads, kv, causal, rng):
    off = total = 0
    for lengths, dtype in product(LENGTHS, ("uint8", "int8")):
        offsets = offsets_of(lengths)
        qkv = static_codes(rng, dtype, offsets[-1], heads, kv, dim)
        arguments = (qkv, offsets, heads, kv, causal, 0.5 * dim**-0.5)
        bias = biased(rng, offsets, heads, dim) if dtype == "int8" else None
        got = _core.attention(*arguments, None, bias)
        off, total = off + assert_emulated(got, *emulate_static(*arguments, bias)), total + got.size
        for form in (Fixed("uint8", False, 0.02, 99), Fixed("int8", True, 0.01, 0)):
            codes = _core.attention(*arguments, form, bias)
            np.testing.assert_array_equal(
                codes.codes, affine.quantize(got, form.scale, form.zero_point, form.dtype, form.symmetric)
            )
    assert off <= 0.02 * total


@CAUSAL
@SHAPED
def test_dynamic(dim, heads, kv, causal, rng):
    off = total = 0
    for lengths, spread in product(LENGTHS, (0, 0.3, 0.6)):
        offsets = offsets_of(lengths)
        qkv = dynamic_codes(rng, offsets[-1], heads, kv, dim, spread)
        arguments = (qkv, offsets, heads, kv, causal, 0.5 * dim**-0.5)
        bias = biased(rng, offsets, heads, dim) if spread else None
        got = _core.attention(*arguments, None, bias)
        off, total = off + assert_emulated(got, *emulate_dynamic(*arguments, bias)), total + got.size
        form = Fixed("int8", False, 0.02, -9)
        codes = _core.attention(*arguments, form, bias)
        np.testing.assert_array_equal(
            codes.codes, affine.quantize(got, form.scale, form.zero_point, form.dtype, form.symmetric)
        )
    assert off <= 0.02 * total


@CAUSAL
@pytest.mark.parametrize("kind", KINDS[1:])
def test_codes_are_near_the_formula(kind, causal, rng):
    """A weight is half a code off at most, and 2^t by 1.1e-4 of itself: that much of the values, no more."""
    heads, kv, dim = 4, 2, 32
    for lengths, sharp in product(LENGTHS, (0.2, 1, 5)):
        offsets, scale = offsets_of(lengths), sharp * dim**-0.5
        static = kind == "static"
        qkv = made(kind, rng, offsets[-1], heads, kv, dim)
        x = decode(qkv)
        got = _core.attention(qkv, offsets, heads, kv, causal, scale)
        error = np.abs(got - exact(x, offsets, heads, kv, causal, scale)).reshape(len(x), heads, dim)
        q, k, v = parts(x.astype(float), heads, kv)
        step = np.ones(v.shape[:2]) if static else parts(qkv.scale, heads, kv)[2][..., 0]  # of the values' scales
        for at, h, g, seen in each_head(offsets, heads, kv, causal):
            scores = np.where(seen, scale * q[at, h] @ k[at, g].T, -np.inf)
            top = (scores + np.log(step[at, g])).max(1, keepdims=True)
            whole = np.exp(scores - top).sum(1, keepdims=True)
            half_codes = 0.55 / 255 * seen @ np.abs(v[at, g] / step[at, g][:, None]) / whole
            if static:  # their sum is off too
                half_codes *= 2 / (1 - np.minimum(0.5, 0.5 / 255 * seen.sum(1, keepdims=True) / whole))
                half_codes = half_codes.max(1, keepdims=True)
            assert (error[at, h] <= 1.1 * half_codes + 4e-4 * np.abs(v[at, g]).max()).all()


# --- windows and caps -------------------------------------------------------------------------------------------------

WINDOWS = pytest.mark.parametrize("window, cap", [(1, 0), (7, 0), (20, 3.0), (64, 0), (None, 3.0)])


@WINDOWS
@CAUSAL
@pytest.mark.parametrize("kind", KINDS)
def test_windows_and_caps(kind, causal, window, cap, rng):
    """Against the formula; where no sequence is longer than the window, the bits are those without a window."""
    off = total = 0
    for (dim, heads, kv), lengths in product([(8, 4, 2), (20, 3, 1), (80, 4, 4)], ((1,), (5, 1, 17), (70, 9), (150,))):
        offsets = offsets_of(lengths)
        qkv = made(kind, rng, offsets[-1], heads, kv, dim)
        arguments = (qkv, offsets, heads, kv, causal, (3 if kind == "float32" else 0.5) * dim**-0.5)
        got = _core.attention(*arguments, None, None, window, cap)
        if kind == "float32":
            np.testing.assert_allclose(got, exact(*arguments, None, window, cap), rtol=0, atol=6e-6)
        else:
            emulate = emulate_static if kind == "static" else emulate_dynamic
            off, total = off + assert_emulated(got, *emulate(*arguments, None, window, cap)), total + got.size
        if window is not None and max(lengths) <= window:
            assert got.tobytes() == _core.attention(*arguments, None, None, None, cap).tobytes()
    assert off <= 0.02 * total


@CAUSAL
@pytest.mark.parametrize("kind", KINDS)
def test_what_no_window_shows_changes_nothing(kind, causal, rng):
    """Tokens beyond its window are no part of a token's bits."""
    window, at = 9, 70
    qkv = made(kind, rng, 130, 4, 2, 20)
    arguments = (np.int32([0, 130]), 4, 2, causal, 0.3, None, None, window)
    before = _core.attention(qkv, *arguments)
    x = qkv if kind == "float32" else qkv.codes
    x[:50] = x[-50:]
    x[at + window + 1 :] = 3
    assert before[at].tobytes() == _core.attention(qkv, *arguments)[at].tobytes()


def test_windows_of_nothing_are_refused(rng):
    x = rng.standard_normal((6, 48), np.float32)
    for causal, window in ((True, 0), (False, -1)):
        with pytest.raises(cq.CqError, match="window: need at least"):
            _core.attention(x, np.int32([0, 6]), 2, 2, causal, 0.3, None, None, window)


# --- relative positions -----------------------------------------------------------------------------------------------


def positioned(rng, heads, dim, far, length, parts=(True, True)):
    """Keys and queries of positions for distances of up to `far`, and the rows of sequences of up to `length`."""
    shape = heads * dim, -(-2 * far // 16) * 16
    keys, queries = (0.3 * rng.standard_normal(shape, np.float32) if has else None for has in parts)
    return keys, queries, np.clip(np.arange(length - 1, -length, -1) + far, 0, 2 * far - 1).astype(np.int32)


def met(x, relative, heads, kv, scale):
    """(heads, n, n): what one sequence's products with positions add to its scores, by the formula in float64."""
    (q, k, _), (keys, queries, rows), n = parts(x.astype(float), heads, kv), relative, len(x)
    row = rows[len(rows) // 2 + np.arange(n) - np.arange(n)[:, None]]
    total = np.zeros((heads, n, n))
    for h in range(heads):
        head = slice(h * q.shape[2], (h + 1) * q.shape[2])
        if keys is not None:
            total[h] += np.take_along_axis(q[:, h] @ keys[head], row, 1)
        if queries is not None:
            total[h] += np.take_along_axis(k[:, h * kv // heads] @ queries[head], row.T, 1).T
    return scale * total


@pytest.mark.parametrize("has", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_relative_positions(kind, has, rng):
    """As a bias that was worked out before; a sequence's alone are the same bits."""
    off = total = 0
    for (dim, heads, kv), lengths, far in product([(8, 4, 2), (20, 3, 1), (64, 2, 2)], LENGTHS, (5, 80)):
        offsets, scale = offsets_of(lengths), 0.5 * dim**-0.5
        qkv = made(kind, rng, offsets[-1], heads, kv, dim)
        relative = positioned(rng, heads, dim, far, max(lengths) + dim % 7, has)
        got = _core.attention(qkv, offsets, heads, kv, False, scale, None, None, None, 0.0, relative)
        for a, b in zip(offsets[:-1], offsets[1:]):
            one, alone = rows(qkv, a, b), (np.int32([0, b - a]), heads, kv, False, scale)
            again = _core.attention(one, *alone, None, None, None, 0.0, relative)
            assert again.tobytes() == got[a:b].tobytes()
            bias = met(one if kind == "float32" else decode(one), relative, heads, kv, scale)
            if kind == "float32":
                np.testing.assert_allclose(again, exact(one, *alone, bias), rtol=0, atol=3e-6)
            else:
                emulate = emulate_static if kind == "static" else emulate_dynamic
                off, total = off + assert_emulated(again, *emulate(one, *alone, bias)), total + again.size
    assert off <= 0.02 * total


def test_relative_positions_that_do_not_fit_are_refused(rng):
    x, (keys, queries, rows) = rng.standard_normal((6, 48), np.float32), positioned(rng, 2, 8, 8, 6)
    bias = np.zeros((2, 11), np.float32)
    for relative, words in (
        ((keys[:, :15], queries, rows), "relative keys: need a C-contiguous"),
        ((keys, queries[:-1], rows), r"relative queries: need a float32 array of shape \(16, 16\)"),
        ((keys[:, :8].copy(), None, rows), "need a multiple of 16 positions"),
        ((keys, queries, rows[::-1].copy()), "rows must descend"),
        ((keys, queries, rows + np.int32(3)), "rows among them"),
        ((keys, queries, rows - np.int32(4)), "rows among them"),
        ((keys, queries, rows[:-1]), "an odd number of rows"),
        ((keys, queries, rows[1:-1]), "sequence 0 .* is longer than the bias or the relative positions reach"),
        ((None, None, rows[:0]), "an odd number of rows"),
    ):
        with pytest.raises(cq.CqError, match=words):
            _core.attention(x, np.int32([0, 6]), 2, 2, False, 0.3, None, None, None, 0.0, relative)
    for more in (dict(bias=bias), dict(cap=2.0)):
        with pytest.raises(cq.CqError, match="scores take one of them"):
            _core.attention(x, np.int32([0, 6]), 2, 2, False, 0.3, relative=(keys, queries, rows), **more)


# --- promises of all three --------------------------------------------------------------------------------------------


def made(kind, rng, tokens, heads, kv, dim):
    if kind == "float32":
        return rng.standard_normal((tokens, (heads + 2 * kv) * dim), np.float32)
    return (
        static_codes(rng, "int8", tokens, heads, kv, dim)
        if kind == "static"
        else dynamic_codes(rng, tokens, heads, kv, dim)
    )


def rows(qkv, a, b):
    if isinstance(qkv, np.ndarray):
        return qkv[a:b].copy()
    own = slice(None) if len(qkv.scale) == 1 else slice(a, b)
    return _core.Coded(qkv.codes[a:b].copy(), qkv.scale[own].copy(), qkv.zero_point[own].copy())


@CAUSAL
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_does_not_depend_on_its_neighbours(kind, biases, causal, rng):
    offsets = offsets_of((30, 2, 7, 55, 6))
    qkv = made(kind, rng, 100, 4, 2, 20)
    bias = biased(rng, offsets, 4, 20) if biases else None
    together = _core.attention(qkv, offsets, 4, 2, causal, 0.3, None, bias)
    for a, b in zip(offsets[:-1], offsets[1:]):
        alone = _core.attention(rows(qkv, a, b), np.int32([0, b - a]), 4, 2, causal, 0.3, None, bias)
        assert alone.tobytes() == together[a:b].tobytes()
        if causal and b - a > 6:  # nor on its future
            begun = _core.attention(rows(qkv, a, a + 5), np.int32([0, 5]), 4, 2, True, 0.3, None, bias)
            assert begun.tobytes() == alone[:5].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_attends_to_itself(kind, rng):
    """Its values come back; in codes to half a step of 1/255."""
    for dim in (2, 8, 33):
        qkv = made(kind, rng, 1, 4, 2, dim)
        v = parts(qkv if kind == "float32" else decode(qkv), 4, 2)[2][:, [0, 0, 1, 1]].reshape(1, -1)
        got = _core.attention(qkv, np.int32([0, 1]), 4, 2, False, 0.3)
        np.testing.assert_allclose(got, v, rtol=0.003, atol=0)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_is_not_hidden(where, rng):
    """It spoils what sees it, and nothing else."""
    qkv = rng.standard_normal((9, 24), np.float32)
    qkv[6, 3 + 8 * "qkv".index(where)] = np.nan
    y = _core.attention(qkv, np.int32([0, 4, 9]), 1, 1, False, 1.0)
    assert np.isfinite(y[:4]).all()
    spoiled = {"q": y[6], "k": y[4:], "v": y[4:, 3]}[where]
    assert np.isnan(spoiled).all()


def of_two_keys(score, kind="float32"):
    """Of two keys one scores 0 and the other -score; with values 1 and 0 the result is e^-score / (1 + e^-score)."""
    qkv = F([[score, 0, 0, 0, 0, 0], [score, 0, -1, 0, 1, 0]])
    qkv = qkv if kind == "float32" else _core.quantize(qkv, PerHead("int8", True, 2))
    return _core.attention(qkv, np.int32([0, 2]), 1, 1, False, 1.0)[0, 0]


def test_exp_over_its_range():
    x = np.concatenate((np.linspace(0, 87, 2001), 2.0 ** np.arange(-40, 7), [87.3, 87.4, 100, 1e4, 3e38])).astype(F)
    for score in x:
        assert abs(of_two_keys(score) - special.expit(-float(score))) <= 4e-7 * special.expit(-float(score)) + 1.3e-38


def test_exp_in_codes_over_its_range():
    for score in np.concatenate((np.linspace(0, 30, 601), [50, 87, 100, 1e4, 1e30])).astype(F):
        assert abs(of_two_keys(score, "dynamic") - special.expit(-float(score))) <= 0.5 / 255 + 4e-4


# --- numbers of any size ----------------------------------------------------------------------------------------------


def of_values(v, dim):
    """Attention of one head with equal scores over values (tokens, dim): their mean."""
    x = np.concatenate((np.zeros((len(v), 2 * dim)), v), 1).astype(F)
    return _core.attention(_core.quantize(x, PerHead("int8", True, dim)), np.int32([0, len(v)]), 1, 1, False, 1.0)[0]


@pytest.mark.parametrize("size", [1e-15, 1e-10, 1e-3, 1, 1e3, 1e10, 1e17, 1e19, 1e25, 1e30])
def test_values_of_any_size(size, rng):
    v = rng.uniform(0.5, 1, (20, 8)) * size
    np.testing.assert_allclose(of_values(v, 8), v.mean(0), rtol=0.01)


def test_a_token_without_values_takes_nothing_from_the_others(rng):
    """All zero has the scale 1, which must not count as large values."""
    for size in (1e-12, 1e-4, 1, 1e4):
        v = rng.uniform(0.5, 1, (20, 8)) * size
        v[3] = 0
        np.testing.assert_allclose(of_values(v, 8), v.mean(0), rtol=0.01)


def test_large_scores(rng):
    """Where one key wins by far its values come back. From some ten thousand on a score's own rounding passes the room
    that there is above the largest weight: it must not wrap around to none."""
    for size in (1e2, 1e3, 1e4, 1e5, 1e6):
        x = (
            rng.standard_normal((150, 3, 8))
            * np.sqrt([[[size], [size], [1]]])
            * np.exp(rng.normal(0, 0.5, (150, 3, 1)))
        )
        qkv = _core.quantize(x.astype(F).reshape(150, 24), PerHead("int8", True, 8))
        q, k, v = np.split(decode(qkv).astype(float), 3, 1)
        first, second = np.sort(q @ k.T, 1)[:, :-3:-1].T
        clear = first - second > 20
        got = _core.attention(qkv, np.int32([0, 150]), 1, 1, False, 1.0)
        assert clear.sum() > 50
        bound = (0.004 + first * 2.0**-22)[clear, None] * np.abs(v).max()
        assert (np.abs(got - v[(q @ k.T).argmax(1)])[clear] <= bound).all()


# --- the door ---------------------------------------------------------------------------------------------------------


def test_new_tokens_without_room_angles_or_scales_are_refused(rng):
    """Before anything is written; the sequence is named."""
    x, offsets = rng.standard_normal((6, 48), np.float32), np.int32([0, 2, 6])
    angles = np.ones((70, 4), np.float32)

    def kept(dtype, second, scaled):
        found, dtypes = _core.Kept(2, 2, 8, dtype), (np.float32,) * 2 if dtype == "float32" else (np.int8,) * 2
        for s, length in enumerate((0, second)):
            arrays = [np.zeros(2 * 64 * width, dtype) for width, dtype in zip((8, 16), dtypes)]
            arrays += [] if dtype == "float32" else [np.zeros(128, np.int32)]
            found.put(s, length, 64, *arrays, *([np.zeros(3 * 128, np.float32)] if scaled and s == 0 else []))
        return found

    for dtype, second, coding, tables in (
        ("float32", 61, None, ()),
        ("float32", 50, None, (angles[:53], angles[:53])),
        ("int8", 0, PerHead("int8", True, 8), ()),
    ):
        given = x.copy()
        with pytest.raises(cq.CqError, match="attention: sequence 1 has kept no room, no angles or no scales"):
            _core.attention_kept(given, offsets, kept(dtype, second, True), 2, 0.3, *tables or (None, None), coding)
        np.testing.assert_array_equal(given, x)
    with pytest.raises(cq.CqError, match="offsets, heads"):
        _core.attention_kept(x[:0].copy(), offsets, kept("float32", 0, False), 2, 0.3)


def test_a_bias_that_does_not_fit_is_refused(rng):
    x, offsets = rng.standard_normal((6, 48), np.float32), np.int32([0, 2, 6])
    with pytest.raises(cq.CqError, match="sequence 1 has .* longer than the bias or the relative positions reach"):
        _core.attention(x, offsets, 2, 2, False, 0.3, None, np.zeros((2, 5), np.float32))
    for shape in ((3, 7), (2, 8)):
        with pytest.raises(cq.CqError, match="bias: need a float32 array"):
            _core.attention(x, offsets, 2, 2, False, 0.3, None, np.zeros(shape, np.float32))


def test_codes_of_other_forms_are_refused(rng):
    x, offsets = rng.standard_normal((6, 48), np.float32), np.int32([0, 6])
    for form, message in (
        (PerToken("uint8", False), "per column or per head"),
        (PerHead("int8", True, 16), "per head"),
        (Fixed("int8", True, 0.1, 0), "per column or per head"),
        (PerHead("uint8", False, 8), "per head"),
        (PerHead("int8", True, 5), "per head"),
    ):
        with pytest.raises(cq.CqError, match=message):
            _core.attention(_core.quantize(x, form), offsets, 2, 2, False, 0.3)
    with pytest.raises(cq.CqError, match="48 columns are not 7 heads"):
        _core.attention(x, offsets, 3, 2, False, 0.3)
    with pytest.raises(cq.CqError, match="quantize the result"):
        _core.attention(x, offsets, 2, 2, False, 0.3, Fixed("uint8", False, 0.1, 3))
    with pytest.raises(cq.CqError, match="given scale"):
        _core.attention(
            _core.quantize(x, PerHead("int8", True, 8)), offsets, 2, 2, False, 0.3, PerToken("uint8", False)
        )
