"""What follows a product in the same pass is what the separate calls make of it, to the bit: norms, codes of each row's
own, kept sums and input coded on the way in, for every number of rows and columns and any team. And NaN or Inf names
its first row."""

from itertools import count, cycle, product

import numpy as np
import pytest

import cq
from cq import _core
from cq.model.forms import Columns, Fixed, PerHead, PerToken, Smoothed
from cq.model.norm import Norm
from cq.weights import pack_floats

F = np.float32
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")
CODINGS = (
    PerToken("uint8", False),
    PerToken("int8", False),
    PerToken("int8", True),
    Fixed("uint8", False, 0.031, 121),
    Fixed("int8", True, 0.04, 0),
)
ROWS = (*range(1, 18), 100, 300)
COLUMNS = (*range(1, 66), 384, 1000)
TEAMS = (1, 2, 3)


@pytest.fixture
def rng():
    return np.random.default_rng(19)


@pytest.fixture(autouse=True)
def team():
    """Leaves the size of the team as it was."""
    before = _core.get_threads()
    yield
    _core.set_threads(before)


def bits(result) -> bytes:
    if isinstance(result, tuple):
        return b"|".join(map(bits, result))
    if isinstance(result, _core.Coded):
        return b"".join(np.asarray(part).tobytes() for part in (result.codes, result.scale, result.zero_point))
    return result.tobytes()


def forms(rng, n):
    """All that results may be made in."""
    columns = np.exp(rng.normal(-3, 1, (1, n))).astype(F), rng.integers(-128, 128, (1, n)).astype(np.int32)
    return (
        None,
        *CODINGS,
        PerHead("int8", True, 32),
        PerHead("uint8", False, 5),
        Smoothed("int8", False, 0.5, 3, Columns(*columns)),
    )


def weight(rng, k, n, zeros=False, group=None):
    q = cq.quantize_tensor(rng.standard_normal((k, n)) / np.sqrt(k), symmetric=not zeros, axis=1, group_size=group)
    return cq.pack(q)


def residual(rng, kind, m, n):
    x = rng.standard_normal((m, n), F)
    return {
        None: None,
        "float32": x,
        "static": _core.quantize(x, Fixed("int8", False, 0.03, 5)) if kind == "static" else None,
        "per token": _core.quantize(x, PerToken("uint8", False)) if kind == "per token" else None,
    }[kind]


def in_form(x, form):
    return x if form is None else _core.quantize(x, form)


def composed(y, after):
    """What `linear` should give, from y = act(product + bias) + residual and separate calls."""
    norm, form, keep = after["norm"], after["form"], after["keep"]
    z = y if norm is None else _core.norm(y, norm)[0]
    if keep == "result":
        return in_form(z, form)
    return in_form(z, form), z if keep == "both" else in_form(y, after["sum_form"])


def ways(rng, n):
    """Every way to go on after a product of n columns, in turn."""
    for i, form, (keep, normed) in zip(
        count(),
        cycle(forms(rng, n)),
        cycle(
            [
                ("result", True),
                ("sum", True),
                ("both", True),
                ("result", False),
                ("both", False),
                ("sum", True),
                ("result", True),
            ]
        ),
    ):
        bias = rng.standard_normal(n, F) if i % 3 else None
        norm = Norm(rng.standard_normal(n, F), bias, 1e-5, i % 2 == 0) if normed else None
        sum_form = (
            (None, Fixed("int8", False, 0.05, -3), Fixed("uint8", False, 0.04, 128))[i % 3] if keep == "sum" else None
        )
        yield dict(form=form, norm=norm, keep=keep, sum_form=sum_form)


def assert_same(call, expected: bytes, teams=TEAMS):
    for threads in teams:
        _core.set_threads(threads)
        assert bits(call()) == expected, f"{threads} threads"


# --- products of codes, of float32, and of float32 that is coded on the way in ----------------------------------------

KINDS = ("codes", "codes by row", "coding", "float32", "groups")


@pytest.mark.parametrize("kind", KINDS)
def test_the_pass_is_its_parts(kind, rng):
    """Every number of rows with a few columns, every number of columns with a few rows: each takes another way to go
    on."""
    shapes = [*product(ROWS, (1, 33, 65)), *product((1, 7, 13), COLUMNS), (100, 384), (300, 384), (100, 1000)]
    plans = {}
    residuals, activations = cycle((None, "float32", "static", "per token")), cycle(ACTIVATIONS)
    for i, (m, n), kept, activation in zip(count(), shapes, residuals, activations):
        k = (8, 33, 300)[i % 3]  # small products run serially, whatever the team
        w = weight(rng, k, n, i % 5 == 0, 16 if kind == "groups" else None)
        x = rng.standard_normal((m, k), F)
        given, coding = x, CODINGS[i % 5] if kind == "coding" else None
        if kind.startswith("codes"):
            given = _core.quantize(x, CODINGS[i % 3] if kind == "codes by row" else CODINGS[3 + i % 2])
        common = dict(bias=rng.standard_normal(n, F), activation=activation, residual=residual(rng, kept, m, n))
        after = next(plans.setdefault(n, ways(rng, n)))
        _core.set_threads(1)
        y = _core.linear(given if coding is None else _core.quantize(x, coding), w, **common)
        assert_same(lambda: _core.linear(given, w, **common, **after, coding=coding), bits(composed(y, after)))


@pytest.mark.parametrize("kind", ("codes", "coding", "float32"))
def test_every_way_to_go_on(kind, rng):
    """All combinations of form, norm and kept results, for rows in tiles and in blocks, for whole tiles and others."""
    for m, n in ((5, 64), (12, 70), (75, 150)):
        w, x, teams = weight(rng, 36, n), rng.standard_normal((m, 36), F), (1, 3)
        common = dict(bias=rng.standard_normal(n, F), activation="gelu", residual=rng.standard_normal((m, n), F))
        coding = PerToken("uint8", False) if kind == "coding" else None
        codes = _core.quantize(x, PerToken("uint8", False))
        given = codes if kind == "codes" else x
        _core.set_threads(1)
        y = _core.linear(x if kind == "float32" else codes, w, **common)
        norms = (
            None,
            Norm(np.ones(n, F), None, 1e-5, True),
            Norm(rng.standard_normal(n, F), rng.standard_normal(n, F), 1e-5, False),
        )
        for form, norm, (keep, sum_form) in product(
            forms(rng, n),
            norms,
            (("result", None), ("both", None), ("sum", None), ("sum", Fixed("int8", False, 0.05, -3))),
        ):
            if norm is not None or keep != "sum":
                after = dict(form=form, norm=norm, keep=keep, sum_form=sum_form)
                assert_same(
                    lambda: _core.linear(given, w, **common, **after, coding=coding), bits(composed(y, after)), teams
                )


def test_int32_bias_in_every_pass(rng):
    for m, n, form in product(
        (3, 13, 100), (17, 64, 130), (None, PerToken("uint8", False), Fixed("int8", True, 0.1, 0))
    ):
        w, x, bias = weight(rng, 40, n), rng.standard_normal((m, 40), F), rng.integers(-9999, 9999, n).astype(np.int32)
        fixed = Fixed("uint8", False, 0.03, 120)
        expected = in_form(_core.linear(_core.quantize(x, fixed), w, bias_i32=bias), form)
        assert_same(lambda: _core.linear(x, w, bias_i32=bias, form=form, coding=fixed), bits(expected))
        assert_same(lambda: _core.linear(_core.quantize(x, fixed), w, bias_i32=bias, form=form), bits(expected))


def test_what_follows_a_product_with_a_float_weight(rng):
    plans = {}
    for i, (m, n) in enumerate([*product(ROWS, (1, 17, 65)), *product((1, 13), COLUMNS), (100, 384), (300, 1000)]):
        x, bias, kept = (
            rng.standard_normal((m, 40), F),
            rng.standard_normal(n, F),
            (None, "float32", "static", "per token")[i % 4],
        )
        w = pack_floats(rng.standard_normal((40, n), F))
        common = dict(bias=bias, activation=ACTIVATIONS[i % 5], residual=residual(rng, kept, m, n))
        after = next(plans.setdefault(n, ways(rng, n)))
        _core.set_threads(1)
        y = _core.linear(x, w, **common)
        assert_same(lambda: _core.linear(x, w, **common, **after), bits(composed(y, after)))


def test_no_rows(rng):
    w, norm = weight(rng, 8, 20), Norm(np.ones(20, F), None, 1e-5, False)
    for form in forms(rng, 20):
        codes, total = _core.linear(
            np.empty((0, 8), F), w, form=form, norm=norm, keep="sum", coding=PerToken("uint8", False)
        )
        assert codes.shape == total.shape == (0, 20)


# --- NaN and Inf ------------------------------------------------------------------------------------------------------

BAD = (np.nan, np.inf, -np.inf)


def assert_names(row, call):
    for threads in TEAMS:
        _core.set_threads(threads)
        with pytest.raises(cq.CqError, match=f"NaN or Inf in row {row}$"):
            call()


@pytest.mark.parametrize("value", BAD)
def test_bad_input_of_coding_names_its_row(value, rng):
    for (m, row), n, coding in product(((1, 0), (7, 3), (25, 24), (300, 170)), (1, 65, 200), CODINGS):
        w, x = weight(rng, 40, n), rng.standard_normal((m, 40), F)
        x[row, 17] = x[-1, 39] = value
        for form in (None, PerToken("uint8", False), Fixed("int8", True, 0.1, 0)):
            assert_names(row, lambda: _core.linear(x, w, form=form, coding=coding))


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("where", ("residual", "x"))
def test_bad_rows_after_a_product_name_the_first(where, value, rng):
    for (m, row), n in product(((1, 0), (7, 3), (25, 24), (300, 170)), (5, 65, 200)):
        w, x, ones = weight(rng, 40, n), rng.standard_normal((m, 40), F), np.ones(n, F)
        added = rng.standard_normal((m, n), F)
        bad = added if where == "residual" else x
        bad[row, -1] = bad[-1, 0] = value
        for after in (
            dict(form=PerToken("uint8", False)),
            dict(form=PerHead("int8", True, 32)),
            dict(norm=Norm(ones, None, 1e-5, True)),
            dict(norm=Norm(ones, ones, 1e-5, False), form=Fixed("uint8", False, 0.1, 3)),
            dict(norm=Norm(ones, None, 1e-5, True), keep="sum", sum_form=Fixed("int8", False, 0.1, 3)),
            dict(form=PerToken("uint8", False), keep="both"),
        ):
            assert_names(row, lambda: _core.linear(x, w, residual=added, **after))
            if where == "residual":
                assert_names(
                    row, lambda: _core.linear(_core.quantize(x, PerToken("uint8", False)), w, residual=added, **after)
                )
                floats = pack_floats(rng.standard_normal((40, n), F))
                assert_names(row, lambda: _core.linear(x, floats, residual=added, **after))


def test_a_norm_whose_squares_overflow_names_its_row(rng):
    for m, row in ((7, 3), (300, 170)):
        added, w = rng.standard_normal((m, 65), F), weight(rng, 40, 65)
        added[row] *= F(1e20)
        for rms, form in product((False, True), (None, PerToken("uint8", False))):
            assert_names(
                row,
                lambda: _core.linear(
                    np.ones((m, 40), F),
                    w,
                    residual=added,
                    form=form,
                    norm=Norm(np.ones(65, F), None, 1e-5, rms),
                    coding=PerToken("uint8", False),
                ),
            )


# --- arguments --------------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused(rng):
    x, w, norm = rng.standard_normal((4, 8), F), weight(rng, 8, 6), Norm(np.ones(6, F), None, 1e-5, False)
    columns = np.ones((1, 8), F), np.zeros((1, 8), np.int32)
    coded, form = _core.quantize(x, PerToken("uint8", False)), PerToken("uint8", False)
    for message, arguments in (
        ("keep: 'all'", dict(keep="all")),
        ("keep: 'sum'", dict(keep="sum")),
        ("sum_form: .*given scale", dict(keep="sum", norm=norm, sum_form=form)),
        ("weight: .*float32 array of shape .6", dict(norm=Norm(np.ones(7, F), None, 1e-5, False))),
        ("coding: ", dict(coding=PerHead("int8", True, 4))),
        ("scale: .*shape .1, 6", dict(form=Smoothed("int8", True, 0.5, 0, Columns(*columns)))),
        ("residual: .*one per row", dict(residual=_core.quantize(np.ones((4, 6), F), PerHead("int8", True, 2)))),
    ):
        with pytest.raises(cq.CqError, match=message):
            _core.linear(x, w, **arguments)
    with pytest.raises(cq.CqError, match="coding: "):
        _core.linear(coded, w, coding=form)
    for grouped in (
        _core.quantize(x, PerHead("int8", True, 4)),
        _core.quantize(x, Smoothed.of((Fixed("int8", True, 0.5, 0),) * 2, (3, 5))),
    ):
        for call in (lambda: _core.linear(grouped, w), lambda: _core.matmul_integer(grouped, w)):
            with pytest.raises(cq.CqError, match="one per row"):
                call()
