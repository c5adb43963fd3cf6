"""The picture of a comparison, and the check of its order: rows are named, and what breaks the order is said."""

import dataclasses
import sys

import pytest

import cq
from cq.errors import CqError, UnsupportedError
from cq.report.expected_order import check_order
from cq.report.layers import Alone, Layer, Sensitivity
from cq.report.plot import check_plot, plot
from cq.report.record import Report, Row


def row(strategy: str, scheme: str, sqnr: float, **accuracy) -> Row:
    name = f"{strategy} {scheme}".removesuffix(" default").strip()
    return Row(
        name, strategy, scheme, "", 100, 10**6, 0.1, 1.0, 10.0, 2.0, accuracy or {"spearman": 75.0 + sqnr / 100}, sqnr
    )


def report(*rows: Row, metrics=("spearman",), layers=None) -> Report:
    data = {"files": [], "samples": 2, "tokens": 9}
    timing = {"latency_tokens": 1, "batch_sequences": 1, "batch_tokens": 1, "repeats": 1}
    machine = {"cpu": "a CPU", "cores": 1, "threads": 1, "isa": "scalar", "version": "0"}
    return Report("a model", metrics, rows, machine, data, None, timing, layers)


FLOAT32 = row("float32", "", float("inf"), spearman=75.6)
LAYERS = Sensitivity(
    "a model",
    ("spearman",),
    {"spearman": 75.6},
    {"dynamic": ""},
    tuple(
        Layer(f"layers.{i}.ffn.down", {"dynamic": Alone(30.0 + i, 0.999, {"spearman": 75.0}, 0.5)}) for i in range(2)
    ),
    {},
    None,
)


def test_a_plot_names_its_rows(tmp_path):
    whole = report(
        FLOAT32,
        row("dynamic", "default", 30.0),
        row("static", "textbook", 20.0),
        row("mixed", "custom", 25.0),
        row("file", "default", 28.0),
        layers=LAYERS,
    )
    plot(whole, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    for words in (
        ">float32<",
        ">dynamic<",
        ">static textbook<",
        ">mixed custom<",
        ">layers.1.ffn.down<",
        ">a model<",
        "Spearman",
        "weights in memory, MB",
        "speed-up over float32",
        "SQNR dB",
    ):
        assert words in text
    plot(dataclasses.replace(whole, layers=None, metrics=()), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn(tmp_path, monkeypatch):
    with pytest.raises(CqError, match=r"plot.gif: a plot's name must end in .svg, .png, .pdf"):
        plot(report(FLOAT32), tmp_path / "plot.gif")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match=r"not installed: pip install 'cquant\[plot\]'"):
        check_plot("plot.svg")


def checked(*given) -> str:
    """given: (strategy, sqnr, accuracy)."""
    rows = [row(strategy.name, "default", sqnr, **accuracy) for strategy, sqnr, accuracy in given]
    return check_order(report(FLOAT32, *rows), [strategy for strategy, _, _ in given])


def test_the_order_that_theory_predicts():
    # within what samples make
    plain = [(cq.WeightOnly(), 40.0, {}), (cq.Dynamic(), 30.0, {}), (cq.Static(), 30.05, {})]
    textbook = [(type(s)(scheme=cq.Scheme.textbook()), sqnr - 25, {}) for s, sqnr, _ in plain]
    assert "as theory predicts in all 4 pairs" in checked(*plain, *textbook)
    trained = cq.QAT(target=cq.Static())
    assert "all 3 pairs" in checked(*plain, (trained, 33.0, {}))
    # beside it training begins from ranges of its own
    extremes = cq.Static(scheme=cq.Scheme.textbook(), observer="minmax")
    assert "all 1 pairs" in checked(
        (extremes, 5.0, {}), (cq.QAT(target=cq.Static(scheme=cq.Scheme.textbook())), 13.0, {})
    )
    assert "all 1 pairs" in checked((cq.Static(), 30.0, {"perplexity": 5.0}), (trained, 29.0, {"perplexity": 4.9}))


@pytest.mark.parametrize(
    "given, message",
    [
        (
            [(cq.Dynamic(), 30.0, {}), (cq.Static(), 31.0, {})],
            "static has 31.00 dB of SQNR, more than dynamic with 30.00",
        ),
        (
            [(cq.WeightOnly(), 20.0, {}), (cq.Dynamic(), 31.0, {})],
            "dynamic has 31.00 dB of SQNR, more than weight-only",
        ),
        (
            [(cq.Static(), 30.0, {}), (cq.QAT(target=cq.Static()), 29.0, {})],
            "static has 30.00 dB of SQNR, more than qat",
        ),
        (
            [(cq.Static(), 30.0, {"perplexity": 5.0}), (cq.QAT(target=cq.Static()), 40.0, {"perplexity": 5.1})],
            "qat has a perplexity of 5.1000, more than static with 5.0000",
        ),
        ([(cq.Dynamic(), 30.0, {})], "no two strategies of equal scheme"),
        (
            [(cq.Dynamic(), 30.0, {}), (cq.Static(scheme=cq.Scheme.textbook()), 40.0, {})],
            "no two strategies of equal scheme",
        ),
        ([(cq.Dynamic(), 30.0, {}), (cq.Mixed([("*", cq.Static())]), 40.0, {})], "no two strategies"),
        ([(cq.Dynamic(exclude="head"), 30.0, {}), (cq.Static(), 40.0, {})], "no two strategies"),
    ],
)
def test_what_breaks_it_is_said(given, message):
    with pytest.raises(CqError, match=message):
        checked(*given)
