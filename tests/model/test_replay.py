"""Few tokens run a recording of the model's calls: the same bits as the layers one by one, or the layers one by one."""

import copy
import pickle
import threading

import numpy as np
import pytest

import cq
from cq.model.batch import Batch
from cq.model.replay import MOST_TOKENS

FAMILIES = ["bert", "llama"]
STRATEGIES = {
    "weight-only": cq.WeightOnly(),
    "dynamic": cq.Dynamic(),
    "static": cq.Static(),
    "static, int8 stream": cq.Static(residual="int8"),
    "float attention": cq.Dynamic(cq.Scheme(attention="float32")),
    "float32": None,
    "mixed": cq.Dynamic(exclude="layers.1.ffn.*"),
}
SHAPES = [(1,), (7,), (3, 1, 5), (1,) * 9, (30, 34), (65,), (40, 40)]


# so that q, k and v are joined
EVEN = {"bert": dict(hidden_size=48, num_heads=3, num_kv_heads=3, head_dim=16), "llama": {}}


def quantized(random_model, family: str, strategy) -> cq.Transformer:
    model, _ = random_model(family, max_positions=80, **EVEN[family])
    samples = [np.arange(1, 9, dtype=np.int32)] * 4 if isinstance(strategy, cq.Static) else None
    return model if strategy is None else cq.quantize(model, strategy, calibration=samples)


def tokens(model, lengths) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(1, model.config.vocab_size, n) for n in lengths]


def long_way(model, given) -> list[np.ndarray]:
    batch = Batch(given)
    return batch.split(model.hidden(batch).floats())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_the_same_bits_as_layer_by_layer(random_model, family, strategy):
    model = quantized(random_model, family, strategy)
    for lengths in SHAPES * 2:
        given = tokens(model, lengths)
        for found, wanted in zip(model.forward(given), long_way(model, given), strict=True):
            assert found.tobytes() == wanted.tobytes()
    assert model._replay._recording is not None


@pytest.mark.parametrize("kind", ["a range per call", "apart"])
def test_work_outside_of_the_core_is_not_recorded(random_model, kind):
    """One range for all tokens of a call; queries, keys and values that fill no whole panels."""
    if kind == "apart":
        model = cq.quantize(random_model("bert", max_positions=80)[0], cq.Dynamic())
    else:
        model = quantized(random_model, "bert", cq.Dynamic(cq.Scheme.textbook()))
    for lengths in [(5,), (7,), (2, 3)]:
        given = tokens(model, lengths)
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(model.forward(given), long_way(model, given)))
    assert not model._replay._possible and model._replay._recording is None


def test_results_are_the_callers(random_model):
    model = quantized(random_model, "bert", cq.Dynamic())
    given = tokens(model, (4, 6))
    model.forward(given)
    first = model.forward(given)
    kept = [array.copy() for array in first]
    model.forward(tokens(model, (9, 1)))
    assert all(np.array_equal(a, b) for a, b in zip(first, kept))


def test_copies_start_anew(random_model):
    model = quantized(random_model, "bert", cq.Dynamic())
    given = tokens(model, (4,))
    wanted = model.forward(given)[0]
    assert model._replay._recording is not None
    for other in (copy.copy(model)._replay, copy.deepcopy(model._replay), pickle.loads(pickle.dumps(model._replay))):
        assert other._recording is None and other is not model._replay
    assert model.forward(given)[0].tobytes() == wanted.tobytes()


def test_many_threads_at_once(random_model):
    model = quantized(random_model, "llama", cq.Static())
    jobs = [tokens(model, (n, 3)) for n in range(1, 9)]
    wanted, failures = [long_way(model, job) for job in jobs], []

    def work(i: int) -> None:
        for _ in range(20):
            if any(a.tobytes() != b.tobytes() for a, b in zip(model.forward(jobs[i]), wanted[i])):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_what_is_not_finite_is_as_loud(random_model):
    model = quantized(random_model, "bert", cq.Dynamic())
    word = model.embedding.source
    model.forward(tokens(model, (3,)))
    assert model._replay._recording is not None
    word.scales[0, 5] = np.inf
    with pytest.raises(cq.CqError, match="NaN or Inf"):
        model.forward([np.array([1, 5, 2])])


def test_longer_batches_are_not_recorded(random_model):
    model = quantized(random_model, "bert", cq.Dynamic())
    model.forward(tokens(model, (MOST_TOKENS, 1)))
    assert model._replay._recording is None
