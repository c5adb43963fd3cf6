"""What all observers promise: merging loses nothing, only what counts is seen, bad input is loud and changes
nothing."""

import copy
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cq import affine, observers, strategies
from cq.errors import CalibrationError, CqError, UnsupportedError
from cq.observers import MSE, Entropy, Histogram, MinMax, MovingAverage, Percentile, like_onnxruntime, like_torch

NAMES = list(strategies.OBSERVERS)
KINDS = [("uint8", False), ("int8", False), ("int8", True)]
# those that see a set, not a stream
SETS = [MinMax, Percentile, lambda: Percentile(99, of="tokens"), Histogram, MSE, Entropy]
PER_CHANNEL = [MinMax, MovingAverage, Percentile, Histogram, MSE, Entropy]
LIKE = [
    like_torch.MinMax,
    like_torch.MovingAverage,
    like_torch.Histogram,
    like_onnxruntime.Percentile,
    like_onnxruntime.Entropy,
]
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture
def rng():
    return np.random.default_rng(22)


def fed(observer, *arrays, **arguments):
    for x in arrays:
        observer.update(np.asarray(x, np.float32), **arguments)
    return observer


def state(thing):
    """All that an observer holds, to the bit."""
    if isinstance(thing, (np.ndarray, np.generic)):
        return thing.dtype.str, thing.shape, thing.tobytes()
    return {key: state(value) for key, value in vars(thing).items()} if hasattr(thing, "__dict__") else thing


def test_strategies_name_every_observer():
    assert NAMES == list(observers._KINDS)
    for name in NAMES:
        assert isinstance(observers.make(name), observers.Observer)
    assert observers.make("percentile:99.5").percentile == 99.5 and observers.make("histogram:3").norm == 3
    assert observers.make("moving_average:0.5").momentum == 0.5 and observers.make("token_percentile:99").of == "tokens"


@pytest.mark.parametrize("kind", SETS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.lists(finite32, max_size=6), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_merging_is_exact_in_any_order_and_partition(kind, parts, random):
    whole = fed(kind(), *([part] for part in parts))
    pieces = [fed(kind(), [part]) for part in parts]
    random.shuffle(pieces)
    while len(pieces) > 1:
        pieces.append(pieces.pop(0).merge(pieces.pop(0)))
    assert state(pieces[0]) == state(whole)
    random.shuffle(parts)
    assert state(fed(kind(), *([part] for part in parts))) == state(whole)


@pytest.mark.parametrize("axis", [None, -1])
def test_a_thousand_partitions(rng, axis):
    """Tokens of very different sizes, dealt to workers at random and merged in random order: the same bits each
    time."""
    x = (rng.standard_normal((30, 3)) * 10.0 ** rng.integers(-6, 6, (30, 1))).astype(np.float32)
    kinds = SETS[:1] + SETS[3:] if axis else SETS
    make = [(lambda kind=kind: kind() if axis is None else kind(axis=axis)) for kind in kinds]
    make.append(lambda: MovingAverage(0.1, axis=axis))
    wholes = [new() for new in make]
    for place, token in enumerate(x):
        for observer in wholes:
            observer.update(token[None], order=place)
    wanted = [state(observer) for observer in wholes]
    for _ in range(1000 if axis is None else 30):
        workers = rng.integers(0, rng.integers(1, 6) + 1, len(x))
        pieces = []
        for worker in rng.permutation(np.unique(workers)):
            piece = [new() for new in make]
            places = rng.permutation(np.flatnonzero(workers == worker))
            for observer in piece[:-1]:
                observer.update(x[places])
            for place in places:
                piece[-1].update(x[place, None], order=int(place))
            pieces.append(piece)
        merged = [new() for new in make]
        for piece in pieces:
            for mine, theirs in zip(merged, piece, strict=True):
                mine.merge(theirs)
        assert [state(observer) for observer in merged] == wanted


@pytest.mark.parametrize("name", NAMES)
def test_merge_changes_only_self_and_pickles(rng, name):
    a = fed(observers.make(name), rng.standard_normal((9, 11)))
    b = fed(observers.make(name), rng.standard_normal((9, 11)) * 1e5)
    before = state(b)
    sent = pickle.loads(pickle.dumps(b))
    assert a.merge(b) is a and state(b) == before == state(sent)
    assert a.merge(observers.make(name)).range() == observers.make(name).merge(a).range() == a.range()
    a.update(np.ones((2, 2), np.float32))
    assert state(b) == before


@pytest.mark.parametrize("kind", [*SETS, MovingAverage, *LIKE])
@pytest.mark.parametrize("keep", ["mask", "rows"])
def test_only_what_counts_is_seen(rng, kind, keep):
    """Padding may hold anything, NaN too; a batch with a mask says what its tokens say."""
    x = rng.standard_normal((4, 6, 8)).astype(np.float32)
    if keep == "mask":
        chosen = rng.random((4, 6)) < 0.6
        kept = x[chosen]
        x[~chosen] = np.nan
    else:
        chosen = [3, 1]
        kept = x[chosen]
        x[[0, 2]] = np.inf
    observer, wanted = kind(), kind()
    observer.update(x, keep=chosen)
    wanted.update(kept)
    assert state(observer) == state(wanted)
    observer.update(x, keep=np.zeros((4, 6), bool))
    assert state(observer) == state(wanted)


@pytest.mark.parametrize("kind", [*PER_CHANNEL, like_torch.MinMax, like_torch.MovingAverage])
@pytest.mark.parametrize("axis", [-1, 2, 1])
def test_each_channel_has_the_range_it_would_have_alone(rng, kind, axis):
    parts = [(rng.standard_normal((5, 3, 3)) * [1, 100, 0]).astype(np.float32) for _ in range(3)]
    observer = fed(kind(axis=axis), *parts)
    alone = [fed(kind(), *(part.take(channel, axis) for part in parts)) for channel in range(3)]
    for dtype, symmetric in KINDS:
        for got, wanted in ((observer.range, "range"), (observer.qparams, "qparams")):
            expected = np.stack([getattr(one, wanted)(dtype, symmetric) for one in alone], axis=1)
            np.testing.assert_array_equal(np.stack(got(dtype, symmetric)), expected)


def test_masks_beside_channels(rng):
    x = rng.standard_normal((4, 6, 8)).astype(np.float32)
    mask = rng.random((4, 6)) < 0.5
    for axis in (-1, 2):
        observer = MSE(axis=axis)
        observer.update(x, keep=mask)
        assert state(observer._grid) == state(fed(MSE(axis=-1), x[mask])._grid)
    with pytest.raises(CqError, match="it chooses along the axis that holds the channels"):
        MinMax(axis=1).update(x, keep=mask)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "symmetric"), KINDS)
def test_zeros_and_constants(name, dtype, symmetric):
    assert fed(observers.make(name), [0.0, -0.0], [0.0]).qparams(dtype, symmetric) == (1, 0)
    for constant in (0.9999, -7.3, 1e-30, 3.4e38):
        observer = fed(observers.make(name), np.full((3, 4), constant), [constant])
        np.testing.assert_allclose(
            observer.qparams(dtype, symmetric)[0],
            affine.qparams(*[np.float32(constant)] * 2, dtype, symmetric)[0],
            rtol=1e-6,
        )
    for values in ([1e-45, -1e-45], [3.4e38, -3.4e38], [1e-45, 3.4e38], [-1e-45, 0, 3e-39], [1e-45] * 300 + [2e-38]):
        scale, _ = fed(observers.make(name), values).qparams(dtype, symmetric)
        assert 2.0**-126 <= scale < np.inf


@pytest.mark.parametrize("kind", [*SETS, MovingAverage, *LIKE, lambda: MSE(axis=1), lambda: MovingAverage(axis=0)])
@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "-Inf")])
def test_nan_and_inf_are_loud_and_change_nothing(kind, bad, word):
    observer = fed(kind(), [[1.0, 3.0], [2.0, 4.0]])
    before = state(observer)
    with pytest.raises(CqError, match=rf"x: {word} at index \(1, 0\)"):
        observer.update(np.float32([[50.0, 1.0], [bad, 1.0]]))
    assert state(observer) == before


@pytest.mark.parametrize("name", [name for name in NAMES if name != "token_percentile"])
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


@pytest.mark.parametrize("kind", [*SETS, MovingAverage, *LIKE, lambda: MSE(axis=1)])
def test_without_data_there_is_no_range(kind):
    observer = kind()
    observer.update(np.zeros((0, 4), np.float32))
    observer.update(np.ones((3, 4), np.float32), keep=[False] * 3)
    assert not observer.seen
    for ask in (observer.range, observer.qparams):
        with pytest.raises(CalibrationError, match="has seen no data"):
            ask()


ROWS = np.ones((3, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: observers.make("entropic"), "observer: got 'entropic', wanted one of 'minmax'"),
        (lambda: observers.make(None), "observer: got None"),
        (lambda: observers.make("minmax:3"), "minmax has no setting"),
        (lambda: observers.make("percentile:most"), "a number after the colon"),
        (lambda: observers.make("percentile:nan"), "percentile: got nan"),
        (lambda: MinMax().merge(Histogram()), r"other: got Histogram\(norm=2.4\), wanted another MinMax\(\)"),
        (lambda: Histogram().merge(None), "other: got None"),
        (lambda: MinMax().merge(MinMax(axis=0)), r"got MinMax\(axis=0\)"),
        (lambda: fed(MinMax(1), ROWS).merge(fed(MinMax(1), ROWS.T)), "got 3 channels, wanted 4"),
        (lambda: fed(MinMax(axis=1), ROWS, ROWS.T), "got 3 channels along axis 1, wanted 4"),
        (lambda: MinMax(axis=2).update(ROWS), "wanted one that has an axis 2"),
        (lambda: MinMax(axis=1.0), "axis: got 1.0"),
        (lambda: MinMax(axis=True), "axis: got True"),
        (
            lambda: Percentile(99).merge(Percentile(99.9)),
            r"wanted another Percentile\(percentile=99.0, of='elements'\)",
        ),
        (lambda: Percentile().merge(Percentile(of="tokens")), "of='tokens'"),
        (lambda: Percentile(of="words"), "of: got 'words'"),
        (lambda: Percentile(of="tokens", axis=0), "tokens go across channels"),
        (lambda: MovingAverage(0.1).merge(MovingAverage(0.2)), "momentum=0.1"),
        (lambda: MovingAverage(0), "momentum: got 0"),
        (lambda: MovingAverage(float("nan")), "momentum: got nan"),
        (lambda: Histogram(1), "norm: got 1, wanted 1 < norm <= 8"),
        (lambda: Percentile(50), "percentile: got 50, wanted 50 < percentile <= 100"),
        (lambda: Percentile("99"), "percentile: got '99'"),
        (lambda: Percentile(True), "percentile: got True"),
        (lambda: MinMax().update(np.arange(3)), "x: got dtype int64"),
        (lambda: MinMax().update("ab"), "x: got dtype"),
        (lambda: MinMax().update([[1.0], [1.0, 2.0]]), "x: cannot become an array"),
        (lambda: MinMax().update([1e39]), "x: 1e[+]39 at index"),
        (lambda: MinMax().update(ROWS, order=-1), "order: got -1"),
        (lambda: MinMax().update(ROWS, order=1.0), "order: got 1.0"),
        (lambda: MinMax().update(ROWS, keep=[True]), r"keep: got shape \(1,\)"),
        (lambda: MinMax().update(ROWS, keep=True), r"keep: got shape \(\)"),
        (lambda: MinMax().update(ROWS, keep=[0, 3]), "keep: got rows 0 to 3, wanted 0 to 2"),
        (lambda: MinMax().update(ROWS, keep=[-1]), "keep: got rows -1"),
        (lambda: MinMax().update(ROWS, keep=[0.5]), "keep: got float64"),
        (lambda: MinMax().update(ROWS, keep=[[0]]), "keep: got int64"),
        (lambda: fed(MinMax(), [1.0]).qparams("int4"), "dtype: got 'int4'"),
        (lambda: fed(MSE(), [1.0]).qparams("uint8", True), "symmetric"),
        (lambda: like_onnxruntime.Entropy(levels=1), "levels: got 1"),
        (lambda: like_onnxruntime.Percentile(bins=1.5), "bins: got 1.5"),
        (lambda: like_torch.Histogram(bins=1), "bins: got 1"),
    ],
)
def test_bad_arguments_say_what_was_wanted(call, message):
    with pytest.raises(CqError, match=message):
        call()


@pytest.mark.parametrize("kind", [like_torch.Histogram, like_onnxruntime.Percentile, like_onnxruntime.Entropy])
def test_what_depends_on_order_does_not_merge(kind):
    with pytest.raises(UnsupportedError, match="depend on the order"):
        kind().merge(fed(kind(), [1.0]))


@pytest.mark.parametrize("kind", [*SETS, MovingAverage])
def test_state_is_of_constant_size(rng, kind):
    observer = fed(kind(), *rng.standard_normal((10, 4, 8)))
    before = len(pickle.dumps(observer))
    fed(observer, *rng.standard_normal((5000, 2, 8)) * 1e9)
    assert len(pickle.dumps(observer)) <= before + 16


def test_calibration_is_quick(rng):
    x = rng.standard_normal((1000, 2000)).astype(np.float32)
    # ten times the CPU time expected, so that a slower machine passes
    for name, update, search in (
        ("minmax", 0.0003, 0.001),
        ("token_percentile", 0.001, 0.001),
        ("percentile", 0.005, 0.001),
        ("histogram", 0.005, 0.03),
        ("mse", 0.005, 0.03),
        ("entropy", 0.005, 0.05),
    ):
        observer = observers.make(name)
        observer.update(x[:10])
        start = time.thread_time()
        observer.update(x)
        updated = time.thread_time()
        observer.qparams()
        assert updated - start < 10 * update and time.thread_time() - updated < 10 * search


def test_copies_are_independent(rng):
    a = fed(MovingAverage(), rng.standard_normal(5))
    b = copy.deepcopy(a)
    assert fed(b, [100.0]).range() != a.range()
