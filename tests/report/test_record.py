"""A report as JSON, Markdown and a table: the same numbers in each, and nothing that JSON cannot hold."""

import io
import json
import math

import pytest
from rich.console import Console

from cq.report.record import Report, Row


@pytest.fixture
def report():
    def row(name, file_bytes, speed, spearman, sqnr):
        strategy, _, scheme = name.partition(" ")
        return Row(
            name,
            strategy,
            scheme or "default",
            "",
            file_bytes,
            file_bytes + 10**6,
            0.012 / speed,
            speed,
            8765.4 * speed,
            speed,
            {"spearman": spearman, "cosine": 0.99987},
            sqnr,
        )

    return Report(
        "mini [bold]|model",
        ("spearman", "cosine"),
        (
            row("float32", 90_870_000, 1.0, 80.6, math.inf),
            row("weight-only textbook", 23_000_000, 2.5, math.nan, 31.25),
        ),
        {"cpu": "A CPU", "cores": 2, "threads": 1, "isa": "avx2", "version": "0.1.0"},
        {"files": ["a.tsv", "b.tsv", "c.tsv"], "samples": 3000, "tokens": 40_000},
        {"files": [], "samples": 500, "tokens": 6_000},
        {"latency_tokens": 11, "batch_sequences": 32, "batch_tokens": 466, "repeats": 7},
    )


def test_json_is_strict_and_whole(report):
    found = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == report.to_dict()
    assert found["rows"][0]["sqnr_db"] is None and found["rows"][1]["accuracy"]["spearman"] is None
    assert found["rows"][1]["throughput_speedup"] == 2.5 and found["data"]["files"] == ["a.tsv", "b.tsv", "c.tsv"]


def test_markdown(report):
    lines = report.to_markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 4
    assert table[0] == (
        "|  | file MB | memory MB | latency ms | speed up | tokens per s | speed up | Spearman ×100 ↑ "
        "| cosine ↑ | SQNR dB |"
    )
    assert table[2] == "| float32 | 90.87 | 91.87 | 12.00 | 1.00× | 8,765 | 1.00× | 80.60 | 0.99987 | ∞ |"
    assert table[3] == "| weight-only textbook | 23.00 | 24.00 | 4.80 | 2.50× | 21,914 | 2.50× | – | 0.99987 | 31.2 |"
    assert any("3,000 sequences, 40,000 tokens of a.tsv and 2 more files" in line for line in lines)
    assert lines[-1] == "A CPU, 2 cores, 1 thread, avx2, cq 0.1.0."


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_a_terminal(report, width):
    out = io.StringIO()
    Console(file=out, width=width).print(report.table())
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for cell in ("mini [bold]|model", "90.87", "21,914", "0.99987", "80.60", "31.2", "∞"):
        assert cell in text
