"""Which rows of codes AVX2 and AVX-512 without VNNI clip, and how: the cost model of src/clip.h. Their products are
tested in test_gemm.py."""

import time
from itertools import product

import numpy as np
import pytest

from cq import _core
from cq.weights import pack

# Codes for each group of excess, below which clipping does not pay: of more than 4 rows, and of up to 4.
LIMITS = {"avx2": (9, 7), "avx512bw": (5, 4)}
CENTRE, FLOOR = 128, 20  # zero points of rows
ROWS = 1, 4, 5, 16, 144


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def weight(rng, k: int, n: int) -> _core.Packed:
    return pack(rng.integers(-127, 128, (k, n)).astype(np.int8))


def coded(x: np.ndarray, zero_point: int) -> _core.Coded:
    codes = np.clip(np.rint(x) + zero_point, 0, 255).astype(np.uint8)
    return _core.Coded(codes, np.ones(len(x), np.float32), np.full(len(x), zero_point, np.int32))


def form(a: _core.Coded, w: _core.Packed) -> str:
    return _core.code_form(a, w)[0]


def where_clipped(expected: str) -> str:
    """What is expected of a set that clips; others clip nothing."""
    return expected if _core.ISA in LIMITS else "whole"


def groups_of_excess(x: np.ndarray) -> int:
    """Of centred codes (rows, k) that are one piece of K: two codes of a group in its first half and two of one in its
    second are added in int16, and what is more than 127 is excess. A group counts once for each 127 that two of its
    codes have too much, and for either sign. Each row and sign has an even number."""
    rows, k = x.shape
    fours = x.reshape(rows, 2, k // 8, 2, 2).transpose(0, 2, 3, 1, 4).reshape(rows, k // 8, 2, 4)
    count = 0
    for part in (np.maximum(fours, 0), np.maximum(-fours, 0)):
        excess = part - np.diff(np.minimum(part.cumsum(-1), 127), axis=-1, prepend=0)
        pairs = excess.reshape(*fours.shape[:3], 2, 2).sum(-1)
        of_rows = (-(-pairs // 127)).max(2).sum((1, 2))
        count += (of_rows + of_rows % 2).sum()
    return count


@pytest.mark.parametrize("rows, k", [*product(ROWS, (512, 1024))])
def test_rows_are_clipped_where_their_excess_pays(rows, k, rng):
    w, limit, seen = weight(rng, k, 64), LIMITS.get(_core.ISA, (np.inf, np.inf))[rows <= 4], set()
    for deviation in (0, 3, 20, 30, 36, 40, 45, 50, 55, 60, 70, 80, 120, 300):
        a = coded(rng.standard_normal((rows, k)) * deviation, CENTRE)
        expected = groups_of_excess(a.codes.astype(int) - CENTRE)
        found, excess = _core.code_form(a, w)
        if found == "centred":
            assert excess == expected
        pays = a.codes.size / limit
        if abs(expected - pays) > 0.1 * pays + 32:  # so many at a time are listed
            assert found == ("centred" if expected < pays else "whole"), deviation
            seen.add(found)
    assert seen == {where_clipped("centred"), "whole"}


def one_sided(rng, rows: int, k: int) -> np.ndarray:
    """As GELU leaves them."""
    x = rng.standard_normal((rows, k)) * 1.5
    return 30 * x / (1 + np.exp(-1.702 * x))


@pytest.mark.parametrize("rows", ROWS)
def test_codes_on_one_side_are_counted_from_a_floor(rows, rng):
    w, x = weight(rng, 384, 64), one_sided(rng, rows, 384)
    assert form(coded(x, FLOOR), w) == where_clipped("from floor")
    assert form(coded(-x, 255 - FLOOR), w) == where_clipped("centred")  # they lie below a ceiling
    assert form(coded(rng.standard_normal((rows, 384)) * 30, CENTRE), w) == where_clipped("centred")
    alone = _core.Coded(coded(x, FLOOR).codes, 1.0, FLOOR)  # one zero point for all
    assert form(alone, w) == where_clipped("from floor")


def test_zero_points_far_apart_have_no_floor(rng):
    w, x = weight(rng, 384, 64), one_sided(rng, 16, 384)
    zero_points = FLOOR + np.arange(16, dtype=np.int32) % 10
    codes = np.clip(np.rint(x) + zero_points[:, None], 0, 255).astype(np.uint8)
    assert form(_core.Coded(codes, np.ones(16, np.float32), zero_points), w) == where_clipped("centred")


def test_no_rows_are_clipped_for_few_columns(rng):
    narrow = coded(np.zeros((16, 384)), CENTRE)
    assert _core.code_form(narrow, weight(rng, 384, 63)) == ("whole", 0)
    assert _core.code_form(narrow, weight(rng, 384, 64)) == (where_clipped("centred"), 0)
    assert _core.code_form(coded(np.zeros((0, 384)), CENTRE), weight(rng, 384, 64)) == ("whole", 0)


def seconds(calls: list) -> list[float]:
    """The best of each, in turns."""
    best = [np.inf] * len(calls)
    for _ in range(40):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(5):
                call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


@pytest.mark.sweep
@pytest.mark.skipif(_core.ISA not in LIMITS, reason=f"{_core.ISA} clips nothing")
@pytest.mark.parametrize("rows, k, n", [*product((1, 4, 16, 48, 144), (384, 768), (768,)), (16, 1024, 384)])
def test_the_cost_model_chooses_what_is_fastest(rows, k, n, rng):
    """Rows with as much excess as may be take hardly longer than rows that are not clipped, nor far less, or more of it
    should be allowed. Rows with a little more lose little by the attempt. A floor is not slower than a centre."""
    w, x, gelu = weight(rng, k, n), rng.standard_normal((rows, k)), one_sided(rng, rows, k)
    around = [coded(x * deviation, CENTRE) for deviation in (*range(20, 120, 2), 300)]  # more and more excess
    last = max(i for i, a in enumerate(around) if form(a, w) == "centred")
    kinds = [around[-1], around[last], around[last + 2], coded(gelu, FLOOR), coded(-gelu, 255 - FLOOR)]
    assert [form(a, w) for a in kinds] == ["whole", "centred", "whole", "from floor", "centred"]
    _core.set_threads(1)
    whole, clipped, too_wide, floored, centred = seconds([lambda a=a: _core.matmul_integer(a, w) for a in kinds])
    assert 0.7 < clipped / whole < 1.1
    assert too_wide / whole < 1.15
    assert floored / centred < 1.05
