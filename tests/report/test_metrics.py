"""The metrics against SciPy and against five-line formulas written out beside them."""

import math

import numpy as np
import pytest
from scipy import special, stats

from cq.errors import CqError
from cq.report import metrics


@pytest.mark.parametrize("levels", [2, 5, 26, 10**9])
@pytest.mark.parametrize("n", [2, 3, 50, 2000])
def test_spearman_equals_scipy_with_and_without_ties(n, levels):
    rng = np.random.default_rng(n + levels)
    x, y = rng.integers(0, levels, n) / 5.0, rng.standard_normal(n).round(1)
    x[0], x[1], y[0], y[1] = 0, 1, 3, 4  # never constant
    assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_spearman_sees_order_only():
    x = np.array([0.1, 3.0, 2.0, 5.0])
    assert metrics.spearman(x, np.exp(x)) == 1.0
    assert metrics.spearman(x, -x) == -1.0
    # ranks 1, 2.5, 2.5, 4
    assert metrics.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_spearman_of_a_constant_is_nan():
    assert math.isnan(metrics.spearman([1, 1, 1], [1, 2, 3]))


@pytest.mark.parametrize(
    "x, y",
    [([1], [2]), ([], []), ([1, 2], [1, 2, 3]), ([[1, 2]], [[1, 2]]), ([1, math.nan], [1, 2]), ([1, 2], [math.inf, 2])],
)
def test_spearman_rejects(x, y):
    with pytest.raises(CqError, match="spearman"):
        metrics.spearman(x, y)


def test_cosine_row_by_row():
    a, b = np.random.default_rng(0).standard_normal((2, 40, 7)).astype(np.float32)
    expected = [float(p @ q) / math.sqrt(float(p @ p) * float(q @ q)) for p, q in zip(a.astype(float), b.astype(float))]
    np.testing.assert_allclose(metrics.cosine(a, b), expected, rtol=1e-12)
    assert metrics.cosine([[3.0, 4.0]], [[-6.0, -8.0]])[0] == pytest.approx(-1.0)
    assert metrics.cosine([[0.0, 0.0]], [[1.0, 2.0]])[0] == 0.0
    assert metrics.cosine(a, a).max() <= 1.0


def test_sqnr_is_ten_log10_of_signal_over_noise():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 300)).astype(np.float32)
    q = x + 0.01 * rng.standard_normal(x.shape).astype(np.float32)
    signal = sum(float(v) ** 2 for v in x.ravel())
    noise = sum((float(v) - float(w)) ** 2 for v, w in zip(x.ravel(), q.ravel()))
    assert metrics.sqnr_db(x, q) == pytest.approx(10 * math.log10(signal / noise), rel=1e-12)
    assert metrics.sqnr_db([1.0], [1.1]) == pytest.approx(20.0)
    assert metrics.sqnr_db(x, x) == math.inf
    assert metrics.sqnr_db([0.0], [1.0]) == -math.inf


def test_one_more_bit_is_six_decibels():
    x = np.random.default_rng(2).uniform(-1, 1, 100_000)
    at = [metrics.sqnr_db(x, np.rint(x * 2**bits) / 2**bits) for bits in (6, 7)]
    assert at[1] - at[0] == pytest.approx(6.02, abs=0.05)


@pytest.mark.parametrize("vocab", [3, 256, 50_000])
def test_nll_equals_scipy_log_softmax(vocab):
    rng = np.random.default_rng(vocab)
    logits = (20 * rng.standard_normal((100, vocab))).astype(np.float32)  # 50,000 columns take several blocks
    tokens = rng.integers(0, vocab, 100).astype(np.int32)
    expected = -special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(99), tokens[1:]]
    nll = metrics.token_nll(logits, tokens)
    np.testing.assert_allclose(nll, expected, rtol=1e-12)
    assert metrics.perplexity(nll) == pytest.approx(math.exp(expected.mean()))
    assert metrics.bits_per_token(nll) == pytest.approx(math.log2(metrics.perplexity(nll)))


def test_a_blind_guess_has_the_vocabulary_as_perplexity():
    nll = metrics.token_nll(np.zeros((9, 256), np.float32), np.arange(9))
    assert metrics.perplexity(nll) == pytest.approx(256)
    assert metrics.bits_per_token(nll) == pytest.approx(8)


def test_perplexity_overflows_to_infinity_and_needs_a_token():
    assert metrics.perplexity([1e6]) == math.inf
    with pytest.raises(CqError, match="at least one scored token"):
        metrics.perplexity(metrics.token_nll(np.zeros((1, 4)), np.array([2])))


@pytest.mark.parametrize(
    "shape, tokens", [((3, 4), [0, 1]), ((3, 4), [0, 1, 4]), ((3, 4), [0, -1, 2]), ((4,), [0]), ((2, 4), [0.0, 1.0])]
)
def test_nll_rejects(shape, tokens):
    with pytest.raises(CqError, match="token_nll"):
        metrics.token_nll(np.zeros(shape), tokens)


def test_kl_equals_scipy():
    p, q = np.random.default_rng(3).standard_normal((2, 200, 40)).astype(np.float32) * 3
    expected = special.rel_entr(special.softmax(p.astype(float), 1), special.softmax(q.astype(float), 1)).sum(1)
    np.testing.assert_allclose(metrics.kl_divergence(p, q), expected, rtol=1e-9)
    assert (metrics.kl_divergence(p, p) == 0).all()
    assert metrics.kl_divergence(p, p + 7).max() < 1e-12  # a shift of all logits is the same distribution


def test_top1():
    reference = np.array([[1, 2, 0], [5, 1, 1], [0, 0, 0]])
    assert metrics.top1_match(reference, [[0, 9, 1], [0, 9, 1], [1, 1, 0]]).tolist() == [True, False, True]


def test_flips_are_answers_that_became_right_or_wrong():
    tokens = np.array([0, 1, 2, 0, 1])
    # the last row predicts nothing that is known
    reference, logits = np.eye(3)[[1, 2, 1, 1, 0]], np.eye(3)[[1, 0, 0, 2, 0]]
    assert metrics.flips(reference, logits, tokens).tolist() == [False, True, True, True]
    assert metrics.flips(logits, reference, tokens).tolist() == [False, True, True, True]
    assert not metrics.flips(np.eye(3)[[2, 0]], np.eye(3)[[0, 0]], tokens[:2]).any()  # wrong in another way
    for bad in (tokens[:4], tokens.astype(float)):
        with pytest.raises(CqError, match="flips: wanted 5 integer tokens"):
            metrics.flips(reference, logits, bad)


@pytest.mark.parametrize("metric", [metrics.cosine, metrics.sqnr_db, metrics.kl_divergence, metrics.top1_match])
def test_unequal_or_empty_arrays_are_refused(metric):
    for a, b in [((2, 3), (2, 4)), ((0, 3), (0, 3)), ((2, 3), (6,))]:
        with pytest.raises(CqError, match=metric.__name__):
            metric(np.zeros(a), np.zeros(b))


@pytest.mark.parametrize("metric", [metrics.cosine, metrics.sqnr_db])
def test_nan_and_inf_are_named_with_their_index(metric):
    bad = np.ones((2, 3))
    bad[1, 2] = np.nan
    with pytest.raises(CqError, match=r"second array holds nan at index \(1, 2\)"):
        metric(np.ones((2, 3)), bad)
