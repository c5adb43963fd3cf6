"""cq.functions against extended precision: errors in units in the last place at dense random points, and the edges."""

import math

import mpmath
import numpy as np
import pytest

from cq import _core, functions
from cq.errors import CqError

N = 200_000
BOUNDS = {"exp": 0.9, "log": 0.6, "sin": 0.9, "cos": 0.9, "tanh": 1.5, "power": 0.9}
pytestmark = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no extended precision to compare with")


def ulps(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest distance of float64 from extended precision, where float64 holds the result."""
    with np.errstate(over="ignore"):
        unit = np.spacing(np.abs(wanted.astype(np.float64)))
    inside = np.isfinite(unit)
    assert inside.mean() > 0.9 and np.isfinite(got[inside]).all()
    return float((np.abs(got.astype(np.longdouble) - wanted)[inside] / unit[inside]).max())


def points(rng) -> dict[str, list[np.ndarray]]:
    def even(lo, hi):
        return rng.uniform(lo, hi, N)

    def powers(lo, hi):
        return 2.0 ** rng.uniform(lo, hi, N)

    near_one = 1 + rng.choice([-1, 1], N) * powers(-52, -4)
    angles = [even(-4, 4), even(-1e6, 1e6), powers(-1000, 20), np.arange(1.0, N), np.rint(even(0, 6e5)) * (np.pi / 2)]
    return {
        "exp": [even(-1, 1), even(-40, 40), even(-745.2, 709.7), even(-710, -708), powers(-1000, 2)],
        "log": [even(0.5, 2), near_one, powers(-1074, 1023.9), 2.0 ** np.arange(-1074, 1024)],
        "sin": angles,
        "cos": angles,
        "tanh": [even(-0.02, 0.02), even(-1, 1), even(-25, 25), powers(-1000, 0)],
    }


@pytest.mark.parametrize("name", ["exp", "log", "sin", "cos", "tanh"])
def test_dense_points(name):
    for x in points(np.random.default_rng(1))[name]:
        assert ulps(getattr(functions, name)(x), getattr(np, name)(x.astype(np.longdouble))) < BOUNDS[name]


def test_dense_powers():
    rng = np.random.default_rng(2)
    bases = [
        rng.uniform(0.1, 10, N),
        2.0 ** rng.uniform(-1074, 1023.9, N),
        1 + rng.choice([-1, 1], N) * 2.0 ** rng.uniform(-52, -4, N),
    ]
    for x in bases:
        for y in (rng.uniform(-700, 700, N) / np.log(x), rng.uniform(-1, 1, N)):
            wanted = np.power(x.astype(np.longdouble), y.astype(np.longdouble))
            assert ulps(functions.power(x, y), wanted) < BOUNDS["power"]


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_angles_of_any_size(name):
    """Against 1,200 bits. The first of the listed numbers is the float64 nearest to a multiple of pi / 2."""
    rng = np.random.default_rng(3)
    x = np.concatenate(
        [
            2.0 ** rng.uniform(19.9, 1023.9, 1500) * rng.choice([-1, 1], 1500),
            2.0 ** np.arange(18, 1024),
            [math.ldexp(6381956970095103, 797), 5706674932067741.0, 1e22, 2.0**20, np.finfo(float).max],
        ]
    )
    with mpmath.workprec(1200):
        for number, got in zip(x.tolist(), getattr(functions, name)(x).tolist()):
            wanted = getattr(mpmath, name)(mpmath.mpf(number))
            assert abs(mpmath.mpf(got) - wanted) < BOUNDS[name] * math.ulp(float(wanted)), number


def test_edges():
    inf, nan, tiny = math.inf, math.nan, 5e-324
    edges = {
        "exp": [
            (0, 1),
            (-0.0, 1),
            (inf, inf),
            (-inf, 0),
            (709.79, inf),
            (-745.14, 0),
            (-745, tiny),
            (1e308, inf),
            (tiny, 1),
        ],
        "log": [(0, -inf), (-0.0, -inf), (1, 0), (inf, inf), (-1, nan), (-inf, nan), (tiny, -744.4400719213812)],
        "sin": [(0, 0), (-0.0, -0.0), (inf, nan), (-inf, nan), (tiny, tiny), (-tiny, -tiny)],
        "cos": [(0, 1), (-0.0, 1), (inf, nan), (tiny, 1)],
        "tanh": [
            (0, 0),
            (-0.0, -0.0),
            (inf, 1),
            (-inf, -1),
            (1e300, 1),
            (19.1, 1),
            (-30, -1),
            (tiny, tiny),
            (-1e-310, -1e-310),
        ],
    }
    for name, pairs in edges.items():
        for x, wanted in [*pairs, (nan, nan)]:
            got = getattr(functions, name)(x)
            assert np.array_equal(got, wanted, equal_nan=True), (name, x)
            assert math.isnan(wanted) or np.signbit(got) == np.signbit(wanted), (name, x)
    for x, y, wanted in [
        (2, 10, 1024),
        (10, 2, 100),
        (2, -1074, tiny),
        (2, -1080, 0),
        (2, 1024, inf),
        (0, 2, 0),
        (0, -2, inf),
        (0, 0, 1),
        (nan, 0, 1),
        (1, nan, 1),
        (1, inf, 1),
        (inf, 2, inf),
        (inf, -2, 0),
        (0.5, inf, 0),
        (2, inf, inf),
        (0.5, -inf, inf),
        (-2, 2, nan),
        (2, nan, nan),
        (1 + 2**-52, 1e300, inf),
        (7, 1, 7),
        (9, 0.5, 3),
    ]:
        assert np.array_equal(functions.power(x, y), wanted, equal_nan=True), (x, y)


def test_whole_powers_are_exact():
    exponents = np.arange(-1074.0, 1024)
    assert (functions.power(2, exponents) == np.ldexp(1.0, exponents.astype(int))).all()
    bases = np.arange(1, 1000)[:, None]
    assert (functions.power(bases, [1, 2, 3]) == bases ** [1, 2, 3]).all()


def test_arrays(monkeypatch):
    rng = np.random.default_rng(4)
    x = rng.uniform(0.1, 9, (7, 3001))
    for name in ("exp", "log", "sin", "cos", "tanh"):
        function, before = getattr(functions, name), x.copy()
        whole = function(x)
        assert whole.dtype == np.float64 and whole.shape == x.shape and (x == before).all()
        assert (function(x.T) == whole.T).all() and (function(x[:, ::3]) == whole[:, ::3]).all()
        assert function(x[:0]).shape == (0, 3001) and function(2).dtype == np.float64 and np.ndim(function(2.0)) == 0
        single = x.astype(np.float32)
        assert function(single).dtype == np.float32
        assert (function(single) == function(single.astype(np.float64)).astype(np.float32)).all()
        threads = _core.get_threads()
        try:
            for count in (1, 2, 5):
                _core.set_threads(count)
                assert (function(x) == whole).all()
        finally:
            _core.set_threads(threads)
    assert (functions.power(x, x[0]) == functions.power(x, np.broadcast_to(x[0], x.shape))).all()
    assert functions.power(x.astype(np.float32), 0.5).dtype == np.float32
    assert functions.power(2.0, x[0, :1]).shape == (1,)


def test_refusals():
    column = np.ones((3, 1))
    for name, arrays in (
        ("erf", [column]),
        ("power", [column]),
        ("power", [column, column[:2]]),
        ("exp", [np.ones((4, 4))[:, ::2]]),
        ("exp", [np.ones((3, 1), np.int64)]),
        ("exp_f32", [column]),
    ):
        with pytest.raises(CqError):
            _core.run_pass(name, arrays)


def test_totals_are_not_compensated():
    """As Python's sum is from version 3.12 on, so that a checkpoint depends on the version."""
    terms = [1e16, 1.0, 1.0, -1e16]
    assert functions.total(iter(terms)) == ((1e16 + 1.0) + 1.0) - 1e16 == 0.0
    assert functions.total([]) == 0.0
