"""What a token costs, from one to 4,096 of them: sequences of one length, more and more; and one sequence that
grows."""

import pytest

from cq.report.bench import operations

from . import encoder
from .measure import Entry, contest

LENGTH, MOST = 32, 4096
SERIES = {
    "one sequence": [(1, length) for length in (1, 2, 4, 8, 16, 32)],
    f"sequences of {LENGTH}": [(count, LENGTH) for count in (1, 2, 4, 8, 16, 32, 64, 128)],
}
STRATEGIES = ("dynamic", "static")
ROUNDS = 5


@pytest.fixture(scope="module")
def models(float_model, calibration) -> dict:
    return encoder.strategies(float_model, calibration)


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.replace(" ", "-"))
def test_scaling(benchmark, threads, models, float_model, series):
    """All sizes take turns: the work of an entry is its size, so that none is a rival of another."""
    assert max(sequences * length for sequences, length in SERIES[series]) in (LENGTH, MOST)
    entries = []
    for sequences, length in SERIES[series]:
        tokens = encoder.random(float_model, sequences, length)
        for name in STRATEGIES:
            entries.append(
                Entry(
                    f"{sequences}×{length}",
                    f"cq {name}",
                    lambda model=models[name], tokens=tokens: model.forward(tokens),
                    operations(float_model, tokens),
                    "int8",
                    {"series": series, "tokens": sequences * length},
                )
            )
    contest(benchmark, series, entries, threads, ROUNDS)
