"""compare on tiny real models: every number again by a plain formula, the order of timing, and what must be refused."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import cq
from cq.errors import CalibrationError, CqError
from cq.report import evaluate, samples
from cq.report import timing as timing_of
from cq.strategies import Dynamic, Scheme, Static, WeightOnly

pytestmark = pytest.mark.usefixtures("short_turns")


@pytest.fixture
def encoder(tiny_encoder):
    return cq.load(tiny_encoder)


@pytest.fixture
def lm(tiny_lm):
    return cq.load(tiny_lm)


def test_all_strategies_side_by_side_on_an_encoder(encoder, pairs, prose):
    seen = []
    report = cq.compare(
        encoder, str(pairs), calibration=str(prose), repeats=2, progress=lambda *step: seen.append(step)
    )
    assert [row.name for row in report.rows] == [
        "float32",
        "weight-only",
        "dynamic",
        "static",
        "weight-only textbook",
        "dynamic textbook",
        "static textbook",
    ]
    float32, *quantized = report.rows
    assert float32.latency_speedup == float32.throughput_speedup == 1 and float32.sqnr_db == math.inf
    assert float32.weight_bytes == encoder.nbytes and float32.accuracy["cosine"] == pytest.approx(1)
    for row in quantized:
        assert row.file_bytes < float32.file_bytes and row.weight_bytes < float32.weight_bytes
        assert 0 < row.latency_s < 1 and row.tokens_per_s > 0
        assert row.latency_speedup == float32.latency_s / row.latency_s
        assert row.throughput_speedup == pytest.approx(row.tokens_per_s / float32.tokens_per_s)
        assert 5 < row.sqnr_db < 80 and 0.8 < row.accuracy["cosine"] < 1
    by_name = {row.name: row for row in report.rows}
    assert by_name["weight-only"].sqnr_db > by_name["dynamic"].sqnr_db > by_name["dynamic textbook"].sqnr_db
    assert report.metrics == ("spearman", "cosine") and report.data == {
        "files": [pairs.name],
        "samples": 80,
        "tokens": samples.read(pairs, encoder).num_tokens,
    }
    assert report.calibration["files"] == [prose.name] and report.timing["repeats"] == 2
    assert {"cpu", "cores", "threads", "isa", "version"} == set(report.machine)
    assert {what for what, _, _ in seen} == {"quantize", "calibrate", "time", "evaluate"}
    assert ("quantize", 6, 6) in seen and ("time", 2, 2) in seen and seen[-1] == ("evaluate", 80, 80)


def test_the_accuracy_of_an_encoder_is_what_its_own_embeddings_give(encoder, pairs):
    report = cq.compare(encoder, pairs, strategies=[Dynamic()], repeats=1)
    rows = [line.split("\t") for line in pairs.read_text().splitlines()]
    models = [encoder, cq.quantize(encoder, Dynamic())]
    both = [(m.embed([row[1] for row in rows]), m.embed([row[2] for row in rows])) for m in models]
    for row, (a, b) in zip(report.rows, both):
        scored = [i for i, line in enumerate(rows) if line[0]]
        expected = stats.spearmanr((a * b).sum(1)[scored].astype(float), [float(rows[i][0]) for i in scored]).statistic
        assert row.accuracy["spearman"] == pytest.approx(100 * expected, abs=1e-9)
    cosines = [(p * q).sum(1) for p, q in zip(*both)]  # embeddings of this model have length 1
    assert report.rows[1].accuracy["cosine"] == pytest.approx(np.concatenate(cosines).mean(), abs=1e-6)
    hidden = [[h for line in rows for h in m.forward([m.tokenize(line[1]), m.tokenize(line[2])])] for m in models]
    hidden = [[h.astype(float) for h in each] for each in hidden]
    sqnr = [10 * math.log10((x**2).sum() / ((x - y) ** 2).sum()) for x, y in zip(*hidden)]
    assert report.rows[1].sqnr_db == pytest.approx(np.mean(sqnr), rel=1e-6)  # float32 bits differ with the batch


def test_the_accuracy_of_a_language_model_is_what_its_own_logits_give(lm, prose):
    report = cq.compare(lm, prose, strategies=[WeightOnly()], repeats=1)
    assert report.metrics == ("perplexity", "bits_per_token")
    windows = np.frombuffer(prose.read_bytes(), np.uint8)[: 2000 // 64 * 64].reshape(-1, 64)
    windows = [lm.tokenize(bytes(window).decode()) for window in windows]
    assert report.data["samples"] == 31 and report.data["tokens"] == 31 * 64
    for row, model in zip(report.rows, [lm, cq.quantize(lm, WeightOnly())]):
        nll = []
        for window, logits in zip(windows, model.logits(windows)):
            p = np.exp(logits.astype(float))
            nll += list(-np.log(p[np.arange(63), window[1:]] / p[:-1].sum(1)))
        assert row.accuracy["perplexity"] == pytest.approx(math.exp(np.mean(nll)), rel=1e-9)
        assert row.accuracy["bits_per_token"] == pytest.approx(math.log2(row.accuracy["perplexity"]), rel=1e-9)


@pytest.mark.parametrize("metric, perfect", [("top1", 1.0), ("kl", 0.0), ("flips", 0.0)])
def test_agreement_with_float32(lm, prose, metric, perfect):
    report = cq.compare(lm, prose, strategies=Dynamic(scheme=Scheme.textbook()), metric=metric, repeats=1)
    assert report.metrics == (metric,) and report.rows[0].accuracy == {metric: perfect}
    assert report.rows[1].accuracy[metric] != perfect and 0 < report.rows[1].accuracy[metric] < 1


def test_a_metric_of_the_callers(encoder):
    data = ["some text", "and some more"]
    called = []

    def length(model, given):
        called.append((model.strategy, given))
        return sum(map(len, given))

    report = cq.compare(encoder, iter(data), strategies=[Dynamic()], metric=length, repeats=1)
    assert report.metrics == ("length",) and [row.accuracy["length"] for row in report.rows] == [22.0, 22.0]
    assert called == [(None, data), (Dynamic(), data)]


def test_without_scores_the_cosine_is_left(encoder, tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("\tone\ttwo\n1\tthree\tfour\n")
    report = cq.compare(encoder, path, strategies=[Dynamic()], repeats=1)
    assert report.metrics == ("cosine",)
    with pytest.raises(CqError, match="spearman needs at least 2 scored pairs"):
        cq.compare(encoder, path, strategies=[Dynamic()], metric="spearman")


def test_static_needs_calibration_other_than_the_data(encoder, pairs, prose, tmp_path):
    with pytest.raises(CalibrationError, match="static needs samples to calibrate on: give calibration"):
        cq.compare(encoder, pairs)
    link = tmp_path / "link.tsv"
    link.symlink_to(pairs)
    with pytest.raises(CqError, match="share .*pairs.tsv: never calibrate on what is reported"):
        cq.compare(encoder, pairs, calibration=link)
    texts = ["one text", "another"]
    with pytest.raises(CqError, match="the same samples: never calibrate on what is reported"):
        cq.compare(encoder, texts, calibration=texts[::-1])
    report = cq.compare(encoder, pairs, strategies=[Static()], calibration=["one text", "another"], repeats=1)
    assert report.calibration == {"files": [], "samples": 2, "tokens": 15}
    assert cq.compare(encoder, pairs, strategies=[WeightOnly()], calibration=prose, repeats=1).calibration is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(metric="perplexity"), "metric 'perplexity': the metric does not fit; for this model and data: cosine"),
        (dict(strategies=["dynamic"]), "strategies must be .* or paths of models quantized before, got 'dynamic'"),
        (
            dict(strategies=[7]),
            "strategies must be .* Mixed or QAT objects, or paths of models quantized before, got 7",
        ),
        (dict(repeats=0), "repeats must be a positive integer, got 0"),
        (dict(data=[]), "no samples"),
        (dict(data=7), "data must be a path or an iterable of samples, got int"),
    ],
)
def test_what_does_not_fit_is_refused(encoder, arguments, message):
    with pytest.raises(CqError, match=message):
        cq.compare(encoder, **{"data": ["a text"], "strategies": [Dynamic()]} | arguments)


def test_training_for_each_strategy_has_a_row(encoder, pairs, prose):
    strategies = [
        cq.QAT(target=target, steps=1) for target in (cq.Static(), cq.Dynamic(), cq.WeightOnly(cq.Scheme.textbook()))
    ]
    rows = cq.compare(encoder, pairs, strategies, prose, repeats=1).rows
    assert [row.name for row in rows] == ["float32", "qat", "qat dynamic", "qat weight-only textbook"]
    assert {row.strategy for row in rows[1:]} == {"qat"} and rows[1].weight_bytes < rows[0].weight_bytes / 2


def test_a_model_quantized_before_is_measured_as_it_is(tiny_encoder, tiny_lm, pairs, tmp_path):
    """Beside the strategy that made it: the same accuracy and bytes, under the name of its file."""
    file = tmp_path / "made before.safetensors"
    cq.save(cq.quantize(cq.load(tiny_encoder), Dynamic()), file)
    report = cq.compare(tiny_encoder, pairs, [Dynamic(), file, str(file)], repeats=1)
    _, made, *before = report.rows
    assert [row.name for row in before] == [file.name] * 2
    for row in before:
        assert (row.strategy, row.scheme, row.choices) == ("file", made.scheme, made.choices)
        assert (row.accuracy, row.sqnr_db, row.file_bytes) == (made.accuracy, made.sqnr_db, made.file_bytes)
    with pytest.raises(CqError, match="encoder.* is a float32 model"):
        cq.compare(tiny_encoder, pairs, [tiny_encoder])
    with pytest.raises(CqError, match="made before.safetensors was made of a model with another configuration"):
        cq.compare(tiny_lm, pairs, [file])
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        cq.compare(tiny_encoder, pairs, [tmp_path / "none.safetensors"])
    with pytest.raises(CqError, match="Mixed or QAT objects, got"):
        cq.sensitivity(cq.load(tiny_encoder), pairs, strategies=[file])


def test_the_best_made_before_is_measured_beside_its_original(random_model, tmp_path):
    """Rotated, online too: its configuration says so, and it still is the original's."""
    model, weights = random_model("llama", head_dim=16, intermediate_size=32)
    plain = {name: array for name, array in weights.items() if not name.endswith("norm.bias")}
    model = cq.Transformer(model.config, plain)
    ids = [np.arange(start, start + 12) % model.config.vocab_size for start in range(0, 40, 5)]
    best = cq.quantize(model, Dynamic(), calibration=ids)
    assert best.config.hadamard == 32 and best.config.head_hadamard == 16
    cq.save(best, tmp_path / "best.safetensors")
    _, fast, row = cq.compare(model, ids, [Dynamic(effort="fast"), tmp_path / "best.safetensors"], repeats=1).rows
    assert row.strategy == "file" and row.sqnr_db > fast.sqnr_db - 3


def test_a_quantized_model_cannot_be_the_original(encoder):
    with pytest.raises(CqError, match=r"float32 model, got one already quantized \(dynamic\)"):
        cq.compare(cq.quantize(encoder, Dynamic()), ["a text"])


def test_the_original_is_not_changed(encoder, prose):
    before = encoder.forward([np.arange(9)])[0].copy()
    cq.compare(encoder, prose, calibration=["some other text"], repeats=1)
    np.testing.assert_array_equal(encoder.forward([np.arange(9)])[0], before)


def test_timing_takes_turns(monkeypatch):
    monkeypatch.setattr(timing_of, "_TURN_SECONDS", 0)
    order = []
    models = [SimpleNamespace(forward=lambda tokens, i=i: order.append((i, len(tokens)))) for i in range(3)]
    data = samples.Samples([np.zeros(n, np.int32) for n in (5, 9, 7)])
    latency, throughput, timing = timing_of.timed(models, data, 4, lambda *step: None)
    assert order[-24:] == [(0, 1), (0, 3), (1, 1), (1, 3), (2, 1), (2, 3)] * 4
    assert timing == {"latency_tokens": 7, "batch_sequences": 3, "batch_tokens": 21, "repeats": 4}
    assert len(latency) == len(throughput) == 3 and min(latency + throughput) > 0


def test_chunks_and_the_timed_batch_are_bounded():
    data = samples.Samples([np.zeros(n, np.int32) for n in [3000, 1000, 200, 5000, 10] + [1] * 90])
    assert [sum(map(len, chunk)) for chunk in evaluate._chunks(data, 1)] == [4000, 200, 5000, 100]
    assert [len(chunk) for chunk in evaluate._chunks(data, 2**25)] == [1] * 95
    _, batch = timing_of.timing_inputs(samples.Samples([np.zeros(512, np.int32)] * 50))
    assert len(batch) == 4
    _, batch = timing_of.timing_inputs(samples.Samples([np.zeros(5, np.int32)] * 50))
    assert len(batch) == 32
    _, batch = timing_of.timing_inputs(samples.Samples([np.zeros(9000, np.int32)]))
    assert len(batch) == 1


def test_the_shipped_model_brings_its_own_calibration(less_that_ships):
    folder = samples.shipped_model()
    data = samples.read(folder / "evaluation.txt", cq.load(folder)).limit(8)
    report = cq.compare(folder, data, strategies=[Static()], repeats=1)
    assert report.calibration["files"] == ["calibration.txt"]
    float32, static = (row.accuracy["bits_per_token"] for row in report.rows)
    assert 1.5 < float32 < 3 and abs(static - float32) < 0.1


def test_a_part_of_a_language_models_data_is_enough_where_its_error_says_so(tiny_lm, monkeypatch):
    """Windows from all over are evaluated until the standard error is small; the rows then say of how many."""
    rng, model = np.random.default_rng(0), cq.load(tiny_lm)
    data = [rng.integers(0, 256, 64) for _ in range(300)]
    monkeypatch.setattr("cq.report.evaluate._CHUNK_TOKENS", 640)
    strategies = [cq.WeightOnly()]
    part = cq.compare(model, data, strategies, repeats=1)
    whole = cq.compare(model, data, strategies, repeats=1, full=True)
    assert part.data["samples"] == 40 and part.data["of"] == 300, "the first chunk that ends beyond 32 windows"
    assert "of 300 evenly spread" in part.to_markdown() and "--full" not in whole.to_markdown()
    assert whole.data == {"files": [], "samples": 300, "tokens": 300 * 64}
    ratios = [report.rows[1].accuracy["perplexity"] / report.rows[0].accuracy["perplexity"] for report in (part, whole)]
    assert abs(ratios[0] / ratios[1] - 1) < 4e-3, "within four standard errors"
    monkeypatch.setattr(sys.modules["cq.report.compare"], "_ENOUGH", 0.0)  # the package's own name is the function
    assert cq.compare(model, data, strategies, repeats=1).data == whole.data, "an error that is never reached"


@pytest.mark.parametrize("count", [1, 2, 3, 8, 217])
def test_samples_spread(count):
    spread = samples.Samples([np.array([i]) for i in range(count)]).spread()
    places = np.concatenate(spread.tokens)
    assert sorted(places) == list(range(count))
    assert count < 8 or np.ptp(places[:3]) >= count // 4
