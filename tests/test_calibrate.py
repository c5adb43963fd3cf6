"""Calibration: the same bits from any executor, memory that does not grow, how far ranges still move, failures by
name."""

import multiprocessing
import os
import pickle
import tracemalloc
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import distributed
import numpy as np
import pytest

import cq
from cq import calibrate as module
from cq.calibrate import calibrate
from cq.observers import MSE, MinMax, like_torch

STREAMED = ["minmax", "moving_average", "token_percentile", "mse", "entropy"]


@pytest.fixture(scope="module")
def lm(tiny_lm):
    return cq.load(tiny_lm)


@pytest.fixture(scope="module")
def samples() -> list:
    """Arrays, lists of ids, texts and batches, of many lengths."""
    rng = np.random.default_rng(3)
    arrays = [rng.integers(0, 256, rng.integers(1, 60)).astype(np.int32) for _ in range(60)]
    return (
        arrays
        + [array.tolist() for array in arrays[:5]]
        + ["to be", "or not to be"]
        + [arrays[:3], ["that", arrays[7]]]
    )


def bits(calibration) -> dict:
    """All that the observers of the whole and of both halves hold."""
    return {
        (i, site): state(observer)
        for i, sites in enumerate((calibration.sites, *calibration.halves))
        for site, observer in sites.items()
    }


def state(thing):
    if isinstance(thing, (np.ndarray, np.generic)):
        return thing.dtype.str, thing.shape, thing.tobytes()
    return {key: state(value) for key, value in vars(thing).items()} if hasattr(thing, "__dict__") else thing


class Source:
    """A model of two places and no layers, which makes 10,000 samples affordable."""

    graph = SimpleNamespace(sites={}, blocks=())

    def tokens_of(self, samples):
        return list(samples)

    def observe(self, batch, watch):
        ids = np.concatenate(batch)
        watch("a", np.outer(ids, np.linspace(-1, 3, 8, dtype=np.float32)).astype(np.float32))
        watch("b", np.float32(1) / (1 + np.float32(ids))[:, None])


def peak(model, samples, observer: str) -> int:
    """Bytes that calibration held at most."""
    tracemalloc.start()
    try:
        calibrate(model, samples, observer)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("observer", ["moving_average", "mse"])
def test_memory_is_flat_from_500_to_10_000_samples(observer):
    """500 fill several batches."""

    def drawn(n: int):
        rng = np.random.default_rng(5)
        return (rng.integers(0, 256, 12) for _ in range(n))

    peak(Source(), drawn(500), observer)
    few, many = peak(Source(), drawn(500), observer), peak(Source(), drawn(10_000), observer)
    assert many <= 1.05 * few, (few, many)


def test_memory_of_a_real_model_is_flat_too(lm, samples):
    sample = samples[0]
    peak(lm, [sample], "mse")
    full = -(-2 * module._BATCH // len(sample))  # some batches, and as many tokens are kept as ever will be
    few, many = peak(lm, (sample for _ in range(full)), "mse"), peak(lm, (sample for _ in range(10 * full)), "mse")
    assert many <= 1.05 * few, (few, many)


@pytest.fixture(scope="module", params=["threads", "processes", "dask"])
def executor(request, local_cluster):
    """Real workers of each kind."""
    if request.param == "threads":
        with ThreadPoolExecutor(2) as pool:
            yield pool
    elif request.param == "processes":
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool
    else:
        with local_cluster(processes=True) as cluster, distributed.Client(cluster) as client:
            pids = client.run(os.getpid)
            assert len(set(pids.values()) | {os.getpid()}) == 3
            yield client.get_executor()


@pytest.mark.parametrize("observer", STREAMED)
def test_any_executor_gives_the_same_bits(lm, samples, executor, observer):
    done = []
    spread = calibrate(lm, iter(samples), observer, lambda *now: done.append(now), executor)
    assert bits(spread) == bits(calibrate(lm, samples, observer)) and spread.samples == len(samples)
    assert done[-1] == (len(samples), None) and done == sorted(done) and len(done) == -(-len(samples) // 8)


def test_quantize_over_an_executor(lm, samples, executor):
    alone, spread = (cq.quantize(lm, cq.Static(), samples, executor=e) for e in (None, executor))
    for (name, a), (_, b) in zip(alone.linears(), spread.linears(), strict=True):
        assert pickle.dumps(a.input_form) == pickle.dumps(b.input_form), name
    assert not module._models  # nothing stays behind in this process


@pytest.mark.parametrize("bad, message", [(np.array([999]), "token id 999"), (1.5, "float64"), ("", "empty")])
def test_a_bad_sample_is_named_wherever_it_runs(lm, samples, executor, bad, message):
    for e in (None, executor):
        with pytest.raises(cq.CqError, match=rf"^calibration: sample 41: .*{message}"):
            calibrate(lm, samples[:41] + [bad] + samples[41:], "minmax", executor=e)
    assert bits(calibrate(lm, samples, "minmax", executor=executor)) == bits(calibrate(lm, samples, "minmax"))


def test_nan_is_named_with_its_site(tiny_lm, samples):
    model = cq.load(tiny_lm)
    value = model.blocks[1].attention.value
    value.source = value.weight.copy()
    value.source[3, 5] = np.nan
    with pytest.raises(cq.CqError, match=r"^calibration: sample 0: layers.1.attention.value: x: NaN at index \(0, 3\)"):
        calibrate(model, samples, "mse")


def test_any_other_failure_carries_the_sample(lm, samples, monkeypatch):
    observe = cq.Transformer.observe
    monkeypatch.setattr(
        cq.Transformer,
        "observe",
        lambda self, batch, watch: (
            1 / 0 if any(np.array_equal(ids, samples[9]) for ids in batch) else observe(self, batch, watch)
        ),
    )
    with ThreadPoolExecutor(2) as pool:
        for executor in (None, pool):
            with pytest.raises(ZeroDivisionError) as error:
                calibrate(lm, samples, "minmax", executor=executor)
            assert error.value.__notes__ == ["calibration: sample 9"]


class Counted(Executor):
    """Runs what it is given, at once; its two workers know only what they were sent, arrays read-only and unaligned
    as Dask's may be: views into its message."""

    def __init__(self):
        self.models, self.sent, self.calls = ({}, {}), 0, 0

    def submit(self, function, *arguments):
        worker = self.models[self.calls % 2]
        self.calls += 1
        self.sent += arguments[1] is not None
        future, kept = Future(), dict(module._models)
        module._models.clear()
        module._models.update(worker)
        buffers = []
        sent = pickle.dumps(arguments, 5, buffer_callback=buffers.append)
        future.set_result(
            function(*pickle.loads(sent, buffers=[memoryview(b"0" + bytes(buffer))[1:] for buffer in buffers]))
        )
        worker.update(module._models)
        module._models.clear()
        module._models.update(kept)
        return future


def test_the_model_travels_about_once_to_each_worker(lm, samples):
    workers = Counted()
    assert bits(calibrate(lm, samples, "minmax", executor=workers)) == bits(calibrate(lm, samples, "minmax"))
    assert 2 <= workers.sent <= 4 and workers.calls == 9 + workers.sent


def test_endless_samples_are_drawn_as_workers_take_them(lm, samples):
    """No more than the tasks in flight: a generator is never listed."""
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield samples[0]

    class Stop(Exception):
        pass

    def progress(done, total):
        if done == 80:
            raise Stop

    with ThreadPoolExecutor(1) as pool, pytest.raises(Stop):
        calibrate(lm, endless(), "minmax", progress, pool)
    assert len(drawn) <= 80 + 8 * 13


def test_an_executor_that_cannot(lm, samples):
    for wrong in (2, "processes", ThreadPoolExecutor, map):
        with pytest.raises(cq.CqError, match="executor: need a concurrent.futures.Executor"):
            calibrate(lm, samples, "minmax", executor=wrong)
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(cq.CqError, match="executor: it takes no more work"):
        calibrate(lm, samples, "minmax", executor=pool)

    class Dead(Executor):
        def submit(self, function, *arguments):
            future = Future()
            future.set_exception(BrokenProcessPool("a process was killed"))
            return future

    with pytest.raises(cq.CqError, match="a worker died while samples 0 to 7 were under way .a process was killed"):
        calibrate(lm, samples, "minmax", executor=Dead())


@pytest.mark.parametrize(
    "observer, error, message",
    [
        ("entropic", cq.CqError, "observer: got 'entropic'"),
        (3, cq.CqError, "need a name or a cq.observers object"),
        (MinMax, cq.CqError, "need a name"),
        (like_torch.Histogram(), cq.UnsupportedError, "cannot merge"),
    ],
)
def test_bad_observers_are_refused_before_the_work(lm, observer, error, message):
    def never():
        raise AssertionError("a sample was drawn")
        yield

    with pytest.raises(error, match=message):
        calibrate(lm, never(), observer)
    used = MinMax()
    used.update([1.0])
    with pytest.raises(cq.CqError, match="has seen nothing yet"):
        calibrate(lm, never(), used)


def test_an_observer_may_be_given_as_an_object(lm, samples):
    given = MSE()
    assert bits(calibrate(lm, samples, given)) == bits(calibrate(lm, samples, "mse")) and not given.seen
    channels, whole = calibrate(lm, samples, MinMax(axis=-1)), calibrate(lm, samples, "minmax")
    lo, hi = channels.sites["head.input"].range()
    assert lo.shape == (64,) and (lo.min(), hi.max()) == whole.sites["head.input"].range()
    assert set(channels.movement()) == set(channels.sites)


def test_movement_says_whether_the_set_is_large_enough(lm, samples):
    few, many = calibrate(lm, samples[:4], "minmax"), calibrate(lm, samples[:60], "minmax")
    assert set(few.movement()) == set(few.sites)
    assert np.median(list(many.movement().values())) < np.median(list(few.movement().values())) < 1
    assert max(calibrate(lm, [samples[0]] * 2, "mse").movement("int8", True).values()) == 0
    assert calibrate(lm, samples[:1], "minmax").movement() == {}
    for site, moved in many.movement().items():
        (lo, hi), halves = many.sites[site].range(), [half[site].range() for half in many.halves]
        lo, hi = min(lo, 0), max(hi, 0)
        assert moved == max(max(abs(min(a, 0) - lo), abs(max(b, 0) - hi)) for a, b in halves) / (hi - lo)


def test_few_samples_give_a_warning(tiny_encoder):
    model = cq.load(tiny_encoder)
    for samples in (["one"], ["one", "two"]):
        with pytest.warns(UserWarning, match=f"ranges come from {len(samples)} sample.*100-500 typical ones"):
            cq.quantize(model, cq.Static(), calibration=samples)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cq.quantize(model, cq.Static(), calibration=["one", "two", "three"])


def test_columns_are_samples_and_mappings_are_not(tiny_encoder):
    model, texts = cq.load(tiny_encoder), ["one", "two", "three"]
    wanted = calibrate(model, texts, "minmax").sites
    found = calibrate(model, np.array(texts), "minmax").sites
    assert {site: one.range("uint8", False) for site, one in found.items()} == {
        site: one.range("uint8", False) for site, one in wanted.items()
    }
    rows = {"input_ids": [[1, 2], [3, 0]], "attention_mask": [[1, 1], [1, 0]]}
    with pytest.raises(cq.CqError, match="calibration: got a mapping"):
        calibrate(model, rows, "minmax")
    assert calibrate(model, model.tokens_of(rows), "minmax").samples == 2


def test_mappings_are_refused_at_every_door_for_samples(tiny_lm):
    """Their keys would be taken for texts."""
    model, rows = cq.load(tiny_lm), {"input_ids": [[1, 2], [3, 4]]}
    for name, door in {
        "calibration": [
            lambda: calibrate(model, rows, "minmax"),
            lambda: cq.quantize(model, cq.Static(), rows),
            lambda: cq.quantize(model, cq.QAT(steps=1), rows),
            lambda: cq.quantize(model, cq.Mixed((("*", cq.Static()),)), rows),
            lambda: cq.compensate(model, rows),
        ],
        "data": [lambda: cq.train(model, rows, cq.Training(steps=1)), lambda: cq.compare(model, rows)],
    }.items():
        for call in door:
            with pytest.raises(cq.CqError, match=f"^{name}: got a mapping"):
                call()
