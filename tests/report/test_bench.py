"""Speed beside the machine's peak: operations counted as on paper, numbers that belong together, shapes that cannot
run."""

import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

import cq
from cq.report import timing
from cq.report.bench import activation_bytes, bench, operations, peak_speeds

module = sys.modules["cq.report.bench"]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "_ROUNDS", 1)
    monkeypatch.setattr(timing, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr(module, "_PEAK_TRIES", 1)


def test_operations_of_an_encoder(tiny_encoder):
    model, lengths = cq.load(tiny_encoder), (3, 10)  # hidden 64, intermediate 128, 2 layers, 4 heads of 16
    linear = 13 * (4 * 64 * 64 + 2 * 64 * 128)
    attention = (3 * 3 + 10 * 10) * 2 * 64
    tokens = [np.zeros(n, np.int32) for n in lengths]
    assert operations(model, tokens) == 2 * 2 * (linear + attention)
    assert operations(cq.quantize(model, cq.Dynamic()), tokens) == 2 * 2 * (linear + attention)


def test_operations_of_a_causal_model_stop_at_the_diagonal(tiny_lm):
    # two key and value heads of 16; gated; the head does not run
    linear = 10 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    attention = 10 * 11 // 2 * 2 * 64
    assert operations(cq.load(tiny_lm), [np.zeros(10, np.int32)]) == 2 * 2 * (linear + attention)


def test_peaks_are_of_this_machine():
    peaks = peak_speeds()
    assert set(peaks) == {"int8", "float32"} and min(peaks.values()) > 1e8


def test_activation_memory_grows_with_the_batch(tiny_encoder):
    model = cq.load(tiny_encoder)
    few, many = (activation_bytes(model, [np.zeros(64, np.int32)] * n) for n in (1, 16))
    assert few >= 64 * 64 * 4 and many > 8 * few


def test_rows_belong_together(quick, tiny_encoder):
    model, seen = cq.load(tiny_encoder), []
    models = {"float32": model, "dynamic": cq.quantize(model, cq.Dynamic())}
    report = bench("tiny", models, [(1, 8), (2, 64)], progress=lambda *step: seen.append(step))
    assert [(row.name, row.shape, row.kind) for row in report.rows] == [
        ("float32", (1, 8), "float32"),
        ("dynamic", (1, 8), "int8"),
        ("float32", (2, 64), "float32"),
        ("dynamic", (2, 64), "int8"),
    ]
    for row in report.rows:
        count = row.shape[0] * row.shape[1]
        assert row.tokens_per_s == pytest.approx(count / row.seconds) and row.profile is None
        assert row.percent_of_peak == pytest.approx(100 * row.gops / report.peak_gops[row.kind])
        tokens = [np.zeros(row.shape[1], np.int32)] * row.shape[0]
        assert row.gops == pytest.approx(operations(model, tokens) / row.seconds / 1e9)
    assert seen[0] == ("time", 0, 2) and seen[-1] == ("time", 2, 2)


def test_json_and_table_say_the_same(quick, tiny_encoder):
    report = bench("tiny [bold]", {"float32": cq.load(tiny_encoder)}, [(2, 16)], profiled=True)
    found = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (row,) = found["rows"]
    assert row["shape"] == [2, 16] and row["profile"]["parts"][0]["name"] == "embedding"
    assert set(row["profile"]["layers"]) == {"0", "1"} and found["machine"] == cq.info()
    out = io.StringIO()
    Console(file=out, width=100).print(report.show())
    for words in (
        "tiny [bold]",
        "2×16",
        f"{report.rows[0].seconds * 1e3:.2f}",
        "% of",
        "feed-forward's up, activation",
        "an unwatched pass",
    ):
        assert words in out.getvalue()


@pytest.mark.parametrize("shape", [(0, 8), (1, 0), (1, 65)])
def test_shapes_that_cannot_run(quick, tiny_encoder, shape):
    with pytest.raises(cq.CqError, match="1 to 64 tokens"):
        bench("tiny", {"float32": cq.load(tiny_encoder)}, [shape])
