"""What may be drawn, beside its formula in NumPy; draws by seed."""

import numpy as np
import pytest

from cq.model.sampling import Sampling


def by_formula(scores, temperature, top_k, top_p):
    """Probabilities (vocabulary,), by sorting everything."""
    x = scores.astype(np.float64) / temperature
    if top_k is not None:
        x = np.where(x >= np.sort(x)[::-1][:top_k][-1], x, -np.inf)
    p = np.exp(x - x.max())
    p /= p.sum()
    if top_p is not None:
        order = np.argsort(-p, kind="stable")
        before = np.concatenate(([0], p[order].cumsum()[:-1]))
        p[order[before >= top_p]] = 0
        p /= p.sum()
    return p


@pytest.mark.parametrize("size", (1, 7, 500, 5000))
@pytest.mark.parametrize(
    "temperature, top_k, top_p",
    [
        (1, None, None),
        (0.7, 5, None),
        (1.5, 400, None),
        (1, None, 0.9),
        (1, None, 0.02),
        (2, 300, 0.95),
        (1, 1, 0.5),
        (0.01, None, 0.5),
        (1, 10**6, 1.0),
    ],
)
def test_candidates_are_the_formulas(size, temperature, top_k, top_p):
    for spread in (0.1, 3):
        scores = (spread * np.random.default_rng(size).standard_normal(size)).astype(np.float32)
        tokens, chances = Sampling(temperature, top_k, top_p).candidates(scores)
        found = np.zeros(size)
        found[tokens] = chances
        np.testing.assert_allclose(found, by_formula(scores, temperature, top_k, top_p), atol=1e-6)
        assert abs(chances.sum() - 1) < 1e-9


def test_equals_stay_together_in_top_k_and_come_in_order_in_top_p():
    scores = np.zeros(10, np.float32)
    assert len(Sampling(1.0, 3).candidates(scores)[0]) == 10
    assert list(Sampling(1.0, None, 0.35).candidates(scores)[0]) == [0, 1, 2, 3]


def test_draws_follow_the_probabilities_and_the_seed():
    scores, seen = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32)), np.zeros(1, int)

    def draws(seed, sequence=0, n=4000):
        sampling = Sampling(1.0, seed=seed)
        generator = sampling.generators(sequence + 1)[sequence]
        return [sampling.next(scores, seen, generator) for _ in range(n)]

    np.testing.assert_allclose(np.bincount(draws(5)) / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    assert draws(5, n=50) == draws(5, n=50) and draws(5, n=50) != draws(6, n=50) != draws(6, 1, n=50)
    assert draws(None, n=50) != draws(None, n=50)


def test_repetition_costs_and_scores_stay():
    scores = np.array([2.0, 1.9, -1.0, -1.05], np.float32)
    before = scores.copy()
    assert Sampling(repetition_penalty=1.2).next(scores, np.array([0, 0]), None) == 1
    assert Sampling(repetition_penalty=1.2).next(scores[2:], np.array([0]), None) == 1
    assert Sampling().next(scores, np.array([0]), None) == 0
    assert np.array_equal(scores, before)
