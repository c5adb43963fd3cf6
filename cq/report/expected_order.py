"""Whether a comparison has the order that theory predicts. Measures nothing.

Where strategies share a scheme, each rounds what the one before it rounds, and more: dynamic the activations beside
weight-only's weights, static with ranges that were fixed without having seen them. So accuracy may only fall in that
order, in what every output value has a part in: the SQNR. Metrics of a task are no judges here: Spearman looks at ranks
of a few thousand pairs, and moves by 0.1 to either side with noise that the SQNR resolves easily. Quantization-aware
training must beat the same target without training, in what it trains for: a language model's predictions (perplexity),
an encoder's outputs (SQNR)."""

import os
from collections.abc import Iterable

from ..errors import CqError
from ..strategies import QAT, STRATEGIES, Mixed, Strategy
from .record import Report, Row

_ORDER = list(STRATEGIES)  # weight-only, dynamic, static
_TOLERANCE_DB = 0.1  # less than one code of 80 more or less in the noise; samples alone make as much
_TOLERANCE = 0.001  # of a perplexity


def check_order(report: Report, strategies: Iterable) -> str:
    """In a sentence, that `report` has the order that theory predicts. strategies: those that cq.compare was given; of
    models quantized before, given by their paths, it says nothing. Raises CqError, which names every pair of rows that
    breaks it, and where there are no two rows to compare."""
    rows = [
        (strategy, row)
        for strategy, row in zip(strategies, report.rows[1:], strict=True)
        if not isinstance(strategy, (str, os.PathLike))
    ]
    pairs, broken = 0, []
    for one, worse in rows:
        for other, better in rows:
            trained = isinstance(one, QAT) or isinstance(other, QAT)
            if isinstance(other, QAT) and type(other.target) is type(one) and _comparable(other.target, one):
                pairs, complaint = pairs + 1, _trained(better, worse)
            elif not trained and _comparable(other, one) and _ORDER.index(one.name) == _ORDER.index(other.name) + 1:
                pairs, complaint = pairs + 1, _above(worse, better)
            else:
                continue
            broken += [complaint] if complaint else []
    if not pairs:
        raise CqError(
            "order: no two strategies of equal scheme and layers to compare, nor one with and without training; "
            "compare more of them"
        )
    if broken:
        raise CqError(f"order: not what theory predicts: {'; '.join(broken)}")
    return (
        f"order: as theory predicts in all {pairs} pairs of rows "
        "(judged by SQNR; a trained language model by its perplexity)"
    )


def _comparable(one: Strategy, other: Strategy) -> bool:
    """Whether two strategies differ in nothing but when activations become codes."""
    return (
        not isinstance(one, Mixed)
        and not isinstance(other, Mixed)
        and (one.scheme, one.include, one.exclude) == (other.scheme, other.include, other.exclude)
    )


def _above(row: Row, other: Row) -> str:
    """A complaint where `row` is more accurate than `other`."""
    if row.sqnr_db <= other.sqnr_db + _TOLERANCE_DB:
        return ""
    return f"{row.name} has {row.sqnr_db:.2f} dB of SQNR, more than {other.name} with {other.sqnr_db:.2f}"


def _trained(row: Row, untrained: Row) -> str:
    """A complaint where training made a row worse."""
    if "perplexity" not in row.accuracy:
        return _above(untrained, row)
    mine, theirs = row.accuracy["perplexity"], untrained.accuracy["perplexity"]
    return (
        f"{row.name} has a perplexity of {mine:.4f}, more than {untrained.name} with {theirs:.4f}"
        if mine > theirs * (1 + _TOLERANCE)
        else ""
    )
