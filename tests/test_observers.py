"""Observers against plain definitions on all the data at once, and the promise that merging loses nothing."""

import copy
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cq import affine, observers
from cq.errors import CalibrationError, CqError
from cq.observers import Histogram, MinMax, MovingAverage, Percentile

NAMES = ["minmax", "moving_average", "percentile", "histogram"]
KINDS = [("uint8", False), ("int8", False), ("int8", True)]
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture
def rng():
    return np.random.default_rng(22)


def fed(observer, *arrays):
    for x in arrays:
        observer.update(np.asarray(x, np.float32))
    return observer


def state(observer):
    return {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in vars(observer).items()}


def squared_error(x, scale, zero_point, dtype, symmetric):
    codes = affine.quantize(x, scale, zero_point, dtype, symmetric)
    return np.square(affine.dequantize(codes, scale, zero_point).astype(np.float64) - x).sum()


def test_minmax_is_min_and_max(rng):
    parts = [rng.standard_normal(shape).astype(np.float32) for shape in ((), (3,), (2, 0), (4, 5), (2, 3, 4))]
    observer = fed(MinMax(), *parts)
    everything = np.concatenate([part.ravel() for part in parts])
    assert observer.range() == (everything.min(), everything.max())
    for dtype, symmetric in KINDS:
        assert observer.qparams(dtype, symmetric) == affine.qparams(*observer.range(), dtype, symmetric)
    assert observer.qparams() == observer.qparams("uint8", False)


@pytest.mark.parametrize("momentum", [0.01, 0.3, 1.0])
def test_moving_average_is_its_recurrence(rng, momentum):
    parts = [rng.standard_normal(50).astype(np.float32) * scale for scale in (1, 5, 2, 9)]
    lo, hi = parts[0].min(), parts[0].max()
    for x in parts[1:]:
        lo, hi = lo + momentum * (x.min() - lo), hi + momentum * (x.max() - hi)
    np.testing.assert_allclose(fed(MovingAverage(momentum), *parts).range(), (lo, hi), rtol=1e-5)


def test_moving_averages_merge_by_the_number_of_arrays():
    a, b = fed(MovingAverage(), [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]), fed(MovingAverage(), [-3.0, 6.0])
    assert copy.copy(a).merge(b).range() == b.merge(a).range() == (0.0, 3.0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(finite32, min_size=1, max_size=60), st.sampled_from([50.5, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0]))
def test_percentile_holds_the_percentiles_and_little_more(values, percentile):
    x = np.sort(np.float32(values).astype(np.float64))
    lo, hi = fed(Percentile(percentile), values).range()
    wanted = [np.percentile(x, p, method="inverted_cdf") for p in (percentile,)]
    wanted.insert(0, -np.percentile(-x, percentile, method="inverted_cdf"))
    assert lo <= wanted[0] and wanted[1] <= hi
    width = np.abs(x).max() / 2048
    assert lo >= max(wanted[0] - width, x[0]) and hi <= min(wanted[1] + width, x[-1])


def test_percentile_ranks_are_exact_and_two_sided():
    x = np.arange(1000) / 1000
    for percentile, cut in ((99.9, 1), (99.99, 0), (99.0, 10), (100.0, 0)):
        lo, hi = fed(Percentile(percentile), x).range()
        assert lo <= np.float32(x[cut]) < lo + 2.0**-12 and hi - 2.0**-12 <= np.float32(x[-1 - cut]) <= hi


@pytest.mark.parametrize("kind", [MinMax, Percentile, Histogram])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(finite32, max_size=6), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_merging_is_exact_in_any_order_and_partition(kind, parts, random):
    whole = fed(kind(), [value for part in parts for value in part])
    pieces = [fed(kind(), part) for part in parts]
    random.shuffle(pieces)
    while len(pieces) > 1:
        pieces.append(pieces.pop(0).merge(pieces.pop(0)))
    assert state(pieces[0]) == state(whole)
    random.shuffle(parts)
    assert state(fed(kind(), *parts)) == state(whole)


@pytest.mark.parametrize("name", NAMES)
def test_merge_changes_only_self_and_pickles(rng, name):
    a = fed(observers.make(name), rng.standard_normal(99))
    b = fed(observers.make(name), rng.standard_normal(99) * 1e5)
    before = state(b)
    sent = pickle.loads(pickle.dumps(b))
    assert a.merge(b) is a and state(b) == before == state(sent)
    assert a.merge(observers.make(name)).range() == observers.make(name).merge(a).range() == a.range()


@pytest.mark.parametrize("kind", [Percentile, Histogram])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(finite32, min_size=1, max_size=40))
def test_every_element_is_counted_in_its_bin(kind, values):
    observer = fed(kind(), *([value] for value in values))
    largest = max(map(abs, values))
    width = 2.0**observer._exponent
    assert not largest or 2048 * width <= largest < 4096 * width
    wanted = np.bincount([int(np.floor(value / width)) + 4096 for value in values], minlength=8192)
    np.testing.assert_array_equal(observer._counts, wanted)


DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "shifted": lambda rng, n: rng.standard_normal(n) * 0.3 + 2,
    "below zero": lambda rng, n: -rng.gamma(2, 1, n),
    "relu": lambda rng, n: rng.standard_normal(n).clip(0),
    "gelu": lambda rng, n: (v := rng.standard_normal(n) * 2) / (1 + np.exp(-1.702 * v)),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "heavy tail": lambda rng, n: rng.standard_t(3, n),
    "one outlier": lambda rng, n: np.append(rng.standard_normal(n), 300),
    "outliers below": lambda rng, n: np.append(rng.standard_normal(n), [-40, -41, 35]),
    "uniform": lambda rng, n: rng.uniform(-1, 3, n),
    "two clusters": lambda rng, n: np.append(rng.normal(0, 0.1, n), rng.normal(50, 0.5, n // 50)),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("dtype", "symmetric"), KINDS)
def test_histogram_is_as_good_as_brute_force(rng, name, dtype, symmetric):
    x = DISTRIBUTIONS[name](rng, 4000).astype(np.float32)
    lo, hi = min(x.min(), 0), max(x.max(), 0)
    if symmetric:
        ranges = [(-m, m) for m in max(-lo, hi) * 2.0 ** -np.arange(0, 10, 0.05)]
    else:
        fractions = 2.0 ** -np.arange(0, 9, 0.4)
        ranges = [(lo * a, hi * b) for a in (fractions if lo else [1.0]) for b in (fractions if hi else [1.0])]
    errors = [squared_error(x, *affine.qparams(*ends, dtype, symmetric), dtype, symmetric) for ends in ranges]
    got = squared_error(x, *fed(Histogram(), x).qparams(dtype, symmetric), dtype, symmetric)
    assert got <= min(errors) * 1.01


@pytest.mark.parametrize(("dtype", "symmetric"), KINDS)
def test_histogram_error_table_is_the_error_it_stands_for(rng, dtype, symmetric):
    observer = fed(Histogram(), rng.standard_normal(3000), rng.laplace(size=3000) * 2)
    # the same elements as the histogram sees them: spread evenly, 64 to a bin
    inside = (np.arange(observer._counts.size * 64) + 0.5) / 64 - 4096
    spread = inside * 2.0**observer._exponent
    weight = np.repeat(observer._counts / 64, 64)
    lo, hi = np.float64([-9, -3, -1, -0.1, 0]), np.float64([9, 2, 4, 0.3, 5])
    if symmetric:
        lo = -hi
    got = observer._errors(observers._tail_table(observer._counts), lo, hi, dtype, symmetric) * 2 * 4.0**observer._exponent
    wanted = []
    for scale, zero_point in zip(*affine.qparams(lo, hi, dtype, symmetric), strict=True):
        codes = np.clip(np.rint(spread / scale) + zero_point, *affine.code_range(dtype, symmetric))
        wanted.append((weight * (spread - scale.astype(np.float64) * (codes - zero_point)) ** 2).sum())
    np.testing.assert_allclose(got + (weight * spread**2).sum(), wanted, rtol=2e-3)


def test_histogram_clips_a_lonely_outlier_and_keeps_a_uniform_range(rng):
    lo, hi = fed(Histogram(), rng.standard_normal(100_000), [300.0]).range()
    # 100000 (c / 255)**2 / 12 + (300 - c)**2 is least at c = 266; the true step is a little larger, as lo takes its share
    assert 255 < hi < 270 and -6 < lo < -1
    lo, hi = fed(Histogram(), rng.uniform(-1, 3, 100_000)).range()
    np.testing.assert_allclose((lo, hi), (-1, 3), rtol=0.01)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "symmetric"), KINDS)
def test_zeros_and_constants(name, dtype, symmetric):
    assert fed(observers.make(name), [0.0, -0.0], [0.0]).qparams(dtype, symmetric) == (1, 0)
    for constant in (0.9999, -7.3, 1e-30, 3.4e38):
        observer = fed(observers.make(name), np.full((3, 4), constant), [constant])
        np.testing.assert_allclose(observer.qparams(dtype, symmetric)[0], affine.qparams(*[np.float32(constant)] * 2, dtype,
                                   symmetric)[0], rtol=1e-6)  # fmt: skip
    for values in ([1e-45, -1e-45], [3.4e38, -3.4e38], [1e-45, 3.4e38]):
        scale, _ = fed(observers.make(name), values).qparams(dtype, symmetric)
        assert 2.0**-126 <= scale < np.inf


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "-Inf")])
def test_nan_and_inf_are_loud_and_change_nothing(name, bad, word):
    observer = fed(observers.make(name), [1.0, 2.0])
    before = state(observer)
    with pytest.raises(CqError, match=rf"x: {word} at index \(1, 0\)"):
        observer.update(np.float32([[50.0], [bad]]))
    assert state(observer) == before


@pytest.mark.parametrize("name", NAMES)
def test_any_layout_and_width_counts_the_same_and_stays_unmodified(rng, name):
    x = rng.standard_normal((64, 48)).astype(np.float16)
    wanted = state(fed(observers.make(name), x))
    backwards = np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    for other in (x.astype(np.float32), x.astype(np.float64), np.asfortranarray(x), backwards, x.astype(">f4")):
        other.setflags(write=False)
        observer = observers.make(name)
        observer.update(other)
        assert state(observer) == wanted
        np.testing.assert_array_equal(other, x)


@pytest.mark.parametrize("name", NAMES)
def test_without_data_there_is_no_range(name):
    observer = observers.make(name)
    observer.update(np.zeros((0, 4), np.float32))
    for ask in (observer.range, observer.qparams):
        with pytest.raises(CalibrationError, match="has seen no data"):
            ask()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: observers.make("entropic"), "observer: got 'entropic', wanted one of 'minmax'"),
        (lambda: MinMax().merge(Histogram()), r"other: got Histogram\(\), wanted another MinMax\(\)"),
        (lambda: Histogram().merge(None), "other: got None"),
        (lambda: Percentile(99).merge(Percentile(99.9)), r"wanted another Percentile\(percentile=99.0\)"),
        (lambda: MovingAverage(0.1).merge(MovingAverage(0.2)), "momentum=0.1"),
        (lambda: MovingAverage(0), "momentum: got 0"),
        (lambda: MovingAverage(float("nan")), "momentum: got nan"),
        (lambda: Percentile(50), "percentile: got 50, wanted 50 < percentile <= 100"),
        (lambda: Percentile("99"), "percentile: got '99'"),
        (lambda: MinMax().update(np.arange(3)), "x: got dtype int64"),
        (lambda: fed(MinMax(), [1.0]).qparams("int4"), "dtype: got 'int4'"),
        (lambda: fed(Histogram(), [1.0]).qparams("uint8", True), "symmetric"),
    ],
)
def test_bad_arguments_say_what_was_wanted(call, message):
    with pytest.raises(CqError, match=message):
        call()


def test_calibration_is_quick(rng):
    x = rng.standard_normal((1000, 2000)).astype(np.float32)
    # ten times the time expected on one core, so that a busy machine passes
    for name, seconds in (("minmax", 0.01), ("percentile", 0.07), ("histogram", 0.07)):
        observer = observers.make(name)
        start = time.perf_counter()
        observer.update(x)
        updated = time.perf_counter()
        observer.qparams()
        assert updated - start < 10 * seconds and time.perf_counter() - updated < 0.2
