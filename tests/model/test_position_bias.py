"""Biases by distance: buckets as T5's, slopes as ALiBi's, positions as DeBERTa's, tables that grow, and what is
refused."""

import numpy as np
import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.t5.modeling_t5 import T5Attention

import cq
from cq.model.position_bias import PositionBias, RelativePositions, bucket_of, check_bias, position_of, slopes

_BOTH = {"keys": True, "queries": True}


@pytest.mark.parametrize("buckets, most", [(32, 128), (32, 100), (8, 7), (64, 129), (12, 4), (16, 5000), (256, 512)])
def test_buckets_are_those_of_t5(buckets, most):
    distance = np.arange(-6000, 6001)
    theirs = T5Attention._relative_position_bucket(torch.tensor(distance), True, buckets, most)
    np.testing.assert_array_equal(bucket_of(distance, buckets, most), theirs.numpy())


@pytest.mark.parametrize(
    "buckets, most",
    [(256, 512), (0, 512), (32, 128), (4, 8), (5, 40), (2, 100), (3, 9), (64, 129), (256, 4096), (7, 5)],
)
def test_positions_are_those_of_deberta(buckets, most):
    distance, half = torch.arange(-6000, 6001), buckets or most
    theirs = make_log_bucket_position(distance, buckets, most).long() if buckets else distance
    ours = position_of(distance.numpy(), {"buckets": buckets, "distance": most})
    np.testing.assert_array_equal(ours, (theirs + half).clamp(0, 2 * half - 1).numpy())


def test_rows_of_positions_do_not_change_as_they_grow():
    kind = {"kind": "disentangled", "buckets": 9, "distance": 60} | _BOTH
    table = np.random.default_rng(0).standard_normal((12, 18), np.float32)
    positions = RelativePositions(kind, table, None)
    for length in (1, 40, 300, 2, 1000):
        keys, queries, rows = positions.laid(length)
        n = (len(rows) + 1) // 2
        assert n >= length and keys.shape == (12, 32) and queries is None
        np.testing.assert_array_equal(keys[:, :18], table)
        np.testing.assert_array_equal(rows[n - 200 : n + 199], position_of(np.arange(199, -200, -1), kind))


def test_slopes_are_those_of_the_paper():
    np.testing.assert_array_equal(slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(slopes(16), 2.0 ** (-np.arange(1, 17) / 2), rtol=1e-7)
    np.testing.assert_allclose(slopes(12), [*slopes(8), *slopes(16)[::2][:4]], rtol=1e-7)
    assert slopes(1) == 2.0**-8


@pytest.mark.parametrize("kind", [{"kind": "alibi"}, {"kind": "buckets", "buckets": 8, "distance": 9}])
def test_a_table_does_not_change_as_it_grows(kind):
    rows = np.random.default_rng(0).standard_normal((8, 3), np.float32) if kind["kind"] == "buckets" else None
    bias, middles = PositionBias(kind, rows, 3), []
    for length in (1, 40, 300, 2, 1000):
        table = bias.table(length)
        n = (table.shape[1] + 1) // 2
        assert n >= length and table.dtype == np.float32 and table.flags.c_contiguous
        middles.append(table[:, n - 201 : n + 200])
    assert all(np.array_equal(middle, middles[0]) for middle in middles)


@pytest.mark.parametrize(
    "bias",
    [
        {"kind": "lines"},
        {"kind": "alibi", "buckets": 4},
        {"kind": "buckets", "buckets": 32},
        {"kind": "buckets", "buckets": 30, "distance": 128},
        {"kind": "buckets", "buckets": 32, "distance": 8},
        {"kind": "buckets", "buckets": 0, "distance": 8},
        {"kind": "buckets", "buckets": 8, "distance": 2.5},
        {"kind": "disentangled", "buckets": 8, "distance": 9, "keys": True},
        {"kind": "disentangled", "buckets": 8, "distance": 5} | _BOTH,
        {"kind": "disentangled", "buckets": 1, "distance": 9} | _BOTH,
        {"kind": "disentangled", "buckets": -1, "distance": 9} | _BOTH,
        {"kind": "disentangled", "buckets": 0, "distance": 0} | _BOTH,
        {"kind": "disentangled", "buckets": 8, "distance": 9, "keys": False, "queries": False},
        {"kind": "disentangled", "buckets": 8, "distance": 9, "keys": 1, "queries": True},
        [],
    ],
)
def test_other_biases_are_refused(bias):
    with pytest.raises(cq.FormatError, match="position_bias"):
        check_bias(bias)
