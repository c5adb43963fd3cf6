"""Training's passes in C, which float32 takes, against NumPy's in float64, by which gradients are checked."""

import numpy as np
import pytest

from cq import CqError, _core
from cq.train.fake import extremes, find_outside
from cq.train.passes import activate, adamw, exponents, norm, norm_back, rescale, softmax_back, to_codes


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "relu"])
def test_activations(rng, name):
    x = np.concatenate((rng.normal(size=3000) * 3, np.linspace(-20, 20, 4001), (0, -1e30, 1e30, -90, 90))).astype(
        np.float32
    )[None]
    for got, expected in zip(activate(x, name), activate(x.astype(np.float64), name)):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("shape", [(), (7, 1), (1, 45)], ids=["one", "rows", "columns"])
def test_codes(rng, shape):
    """To the bit, halves to even, and what was clipped is found."""
    scale = np.exp2(rng.integers(-4, 2, shape)).astype(np.float32)[()]
    low, high, shift = (rng.integers(*ends, shape) for ends in ((-9, -3), (3, 9), (-5, 5)))
    x = (np.rint(rng.normal(size=(7, 45)) * 20) / 8).astype(np.float32)
    codes, stored, clipped = to_codes(x, scale, low, high, shift)
    whole = np.rint(x.astype(np.float64) / scale)
    assert codes.dtype == np.float32 and (codes == np.clip(whole, low, high) + shift).all()
    assert stored.dtype == np.uint8 and (stored == np.clip(whole, low, high) - low).all()
    outside = np.flatnonzero((whole < low) | (whole > high))
    assert outside.size and (clipped == ((whole < low) | (whole > high)).any(axis=1)).all()
    np.testing.assert_array_equal(find_outside(x, clipped, scale, low, high), outside)
    wide = to_codes(x.astype(np.float64), scale, low, high, shift)
    assert (wide[0] == codes).all() and wide[1] is None and (wide[2] == clipped).all()


def test_one_row_has_one_scale_or_one_for_each_column(rng):
    x = rng.normal(size=(1, 5)).astype(np.float32)
    assert (to_codes(x, np.float32([[0.5]]), -9, 9)[0] == np.rint(x / 0.5)).all()
    own = np.float32([[0.5, 1, 2, 4, 8]])
    assert (to_codes(x, own, -9, 9)[0] == np.rint(x / own)).all()


@pytest.mark.parametrize("coded", [False, True])
def test_softmax_and_its_reverse(rng, coded):
    scores = np.rint(rng.normal(size=(2, 3, 37)) * 40).astype(np.float32)
    scores[1, 1, 5:] = -np.inf
    wide, gradient = scores.astype(np.float64), rng.normal(size=scores.shape)
    sums, expected = exponents(scores, 0.11, coded), exponents(wide, 0.11, coded)
    assert (scores[1, 1, 5:] == 0).all() and sums.shape == (2, 3, 1)
    if coded:
        assert np.abs(scores - wide).max() <= 1 and (scores == wide).mean() > 0.98  # another rounding near a half
        wide, expected = scores.astype(np.float64), scores.sum(axis=-1, keepdims=True, dtype=np.float64)
    np.testing.assert_allclose(scores, wide, rtol=1e-6, atol=2e-38)
    np.testing.assert_allclose(sums, expected, rtol=1e-6)
    got = gradient.astype(np.float32)
    softmax_back(got, scores, 1 / sums, 0.7)
    softmax_back(gradient, wide, 1 / expected, 0.7)
    np.testing.assert_allclose(got, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rms", [False, True])
def test_norms_and_their_reverse(rng, rms):
    x, g, weight, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((9, 45), (9, 45), 45, 45))
    x += 3
    wide = [a.astype(np.float64) for a in (x, weight, bias)]
    for bias_too in (True, False):
        got, expected = (
            norm(x, weight, bias if bias_too else None, 1e-5, rms),
            norm(*wide[:2], wide[2] if bias_too else None, 1e-5, rms),
        )
        for a, b in zip(got, expected):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
    for a, b in zip(norm_back(g, weight, *got[1:], rms), norm_back(g.astype(np.float64), wide[1], *expected[1:], rms)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6)


def test_what_follows_a_product(rng):
    """In the order of the integer kernels' epilogue: their bits."""
    x, before, scales, after, of_rows = (rng.normal(size=s).astype(np.float32) for s in ((5, 37), 37, 37, 37, 5))
    same = np.float32(0.3)
    for args in (
        (same,),
        (scales, before),
        (scales, None, of_rows),
        (same, before, of_rows, after),
        (scales, None, None, after),
    ):
        given = dict(zip(("scales", "before", "row_scales", "after"), args))
        expected = x + before if given.get("before") is not None else x
        expected = expected * (
            given["scales"] if given.get("row_scales") is None else of_rows[:, None] * given["scales"]
        )
        expected = expected + after if given.get("after") is not None else expected
        assert (rescale(x, *args) == expected).all()
        target = x.copy()
        assert rescale(target, *args, out=target) is target and (target == expected).all()


def test_extremes_name_what_is_not_finite():
    x = np.ones((3, 4), np.float32)
    assert extremes(x * np.float32([[-2], [1], [7]]), "x") == (-2, 7)
    x[1, 2] = np.nan
    with pytest.raises(CqError, match=r"layers.0: NaN at index \(1, 2\)"):
        extremes(x, "layers.0")


def test_the_door_refuses_what_does_not_fit():
    x, one = np.ones((3, 4), np.float32), np.ones(1, np.float32)
    for call in (
        lambda: _core.run_pass("slope_gelu", [x.astype(np.float64)]),
        lambda: activate(x, "tanh"),
        lambda: activate(x.T, "gelu"),
        lambda: _core.run_pass("round_by_row", [x, np.ones(2, np.float32), x[:, 0].copy(), x[:, 0].copy()]),
        lambda: _core.run_pass("round_by_row", [x, one, one, x]),
        lambda: exponents(x[:, ::2], 1.0, False),
        lambda: _core.run_pass("exponents", [x], [1.0]),
        lambda: _core.run_pass("exponents", [x], [1.0, False, 1.0]),
        lambda: softmax_back(x, x[:2], np.ones((3, 1), np.float32), 1.0),
        lambda: softmax_back(x, x, np.ones((2, 1), np.float32), 1.0),
        lambda: _core.run_pass("softmax_back", [x, x[:2], x[:, 0].copy()], [1.0]),
        lambda: _core.run_pass("softmax_back", [x, x], [1.0]),
        lambda: _core.run_pass("rescale", [x, one]),
        lambda: rescale(x, x[0], out=x[:, :2]),
        lambda: norm(x, one, None, 1e-5, False),
        lambda: norm_back(x, x[0], x, one, False),
        lambda: adamw(one, one, one, x[0], None, (0,) * 8),
        lambda: _core.run_pass("adamw", [x, x, x, x], (0,) * 9),
        lambda: _core.run_pass("no such pass", [x]),
    ):
        with pytest.raises(CqError):
            call()


def test_results_may_be_given_where_they_can_be_written():
    x = np.ones((3, 4), np.float32)
    x.flags.writeable = False
    for arrays in ([x, x[0], None, None, None, x], [x.copy(), x[0], None, None, None, x]):
        with pytest.raises(CqError, match="out: need .* that can be written"):
            _core.run_pass("rescale", arrays)
