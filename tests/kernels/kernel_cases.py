"""Calls of every function of the compiled core, over sizes that leave every kind of tail. kernel_worker.py runs them;
this file must not know what their results should be."""

from collections.abc import Callable, Iterator
from itertools import count, cycle, product
from typing import NamedTuple
from unittest.mock import patch

import numpy as np

from cq import _core, functions, weights
from cq.model.forms import Columns, Fixed, PerHead, PerToken, Smoothed
from cq.model.norm import Norm
from cq.train import passes

TAILS = (*range(1, 20), 31, 32, 33, 34, 47, 48, 49, 64)  # around groups of 4 codes and vectors of 16 lanes
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")
HADAMARD = ((16, 16), (48, 16), (64, 32), (96, 32), (1536, 512), (4096, 4096))  # columns, block
FIXED = (Fixed("uint8", False, 0.031, 121), Fixed("int8", False, 0.02, -7), Fixed("int8", True, 0.04, 0))
DYNAMIC = (PerToken("uint8", False), PerToken("int8", False), PerToken("int8", True))
GROUPED = (PerHead("int8", True, 16), PerHead("uint8", False, 5), PerHead("int8", True, 32))
fill: int | None = None  # the byte that new arrays are made of, where the worker sees to that


class Call(NamedTuple):
    """One call. writes: the arrays among its arguments that it changes; no others may change."""

    label: str
    function: Callable
    arguments: tuple
    keywords: dict = {}
    writes: tuple = ()


def floats(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def magnitudes(rng, *shape) -> np.ndarray:
    """Any finite float32, each pattern of bits alike: denormals, zeros of both signs, the largest."""
    x = rng.integers(0, 2**32, shape, np.uint32).view(np.float32)
    return np.where(np.isfinite(x), x, np.float32(-0.0))


def coded(
    rng, dtype: str, rows: int, columns: int, per_row: bool = False, deviation: float | None = None
) -> _core.Coded:
    """deviation: of codes from their zero point, or None: any codes alike, which no kernel clips."""
    low, high = (-128, 128) if dtype == "int8" else (0, 256)
    zero_point = rng.integers(low, high, rows if per_row else 1).astype(np.int32)
    if deviation is None:
        codes = rng.integers(low, high, (rows, columns)).astype(dtype)
    else:
        spread = rng.standard_normal((rows, columns)) * deviation
        codes = np.clip(np.rint(spread) + zero_point[:, None], low, high - 1).astype(dtype)
    if not per_row:
        return _core.Coded(codes, 0.0173, int(zero_point[0]))
    return _core.Coded(codes, (rng.random(rows, np.float32) + np.float32(0.5)) / 64, zero_point)


def weight(rng, k: int, n: int, zeros: bool = False, group: int = 0) -> weights.Weight:
    """Its arrays are copies of exactly their size, so that a guard page can lie at their very end."""
    groups = -(-k // group) if group else 1
    codes = rng.integers(-128 if zeros else -127, 128, (k, n)).astype(np.int8)
    zero_points = rng.integers(-128, 128, (groups, n)).astype(np.int32) if zeros else None
    w = weights.pack(codes, zero_points, (rng.random((groups, n), np.float32) + np.float32(0.1)) / 128, group)
    return weights.Weight(w.panels.copy(), w.column_sums.copy(), w.zero_points, w.scales, k, n, w.group_size)


def residual(rng, kind: str | None, rows: int, columns: int):
    if kind is None:
        return None
    return floats(rng, rows, columns) if kind == "float32" else coded(rng, kind, rows, columns, kind == "uint8")


def by_column(rng, dtype: str, symmetric: bool, columns: int, huge: bool = False) -> Smoothed:
    """A form with parameters of every column's own; huge: some scales above 2^126."""
    scale = np.exp(rng.uniform(-7, 0, (1, columns))).astype(np.float32)
    if huge:
        scale[:, ::5] = 1e38
    middle = 128 if dtype == "uint8" else 0
    zero_point = rng.integers(middle - 207, middle + 208, (1, columns)).astype(np.int32) * (not symmetric)
    return Smoothed(dtype, symmetric, 0.5, middle * (not symmetric), Columns(scale, zero_point))


def quantize(rng) -> Iterator[Call]:
    for columns, form in product((*TAILS, 100), (*FIXED, *DYNAMIC)):
        x = floats(rng, 6, columns) * np.float32([[1], [0], [3e37], [1e-41], [100], [1e-3]])
        # halves between two codes
        x[4] = np.rint(x[4]) * np.float32(form.scale / 2 if isinstance(form, Fixed) else 0.5)
        sums = np.zeros(6, np.int32)
        yield Call(f"{columns} {form}", _core.quantize, (x, form, sums), writes=(sums,))
    for columns, codes, huge in product((*TAILS, 100, 192), DYNAMIC, (False, True)):
        form = by_column(rng, codes.dtype, codes.symmetric, columns, huge)
        yield Call(f"{columns} {codes} {huge} by column", _core.quantize, (floats(rng, 4, columns), form))
    for codes, group, columns in product(DYNAMIC, (1, 3, 16, 20, 32, 64), (1, 16, 60, 64, 96, 100, 128, 192)):
        x = floats(rng, 4, columns) * np.float32([[1], [1e-40], [3e37], [0]])
        form = PerHead(codes.dtype, codes.symmetric, group)
        yield Call(f"{columns} {form}", _core.quantize, (x, form))
    for form in (*FIXED, *DYNAMIC, *GROUPED):
        yield Call(f"large {form}", _core.quantize, (floats(rng, 64, 1000), form))
        yield Call(f"magnitudes {form}", _core.quantize, (magnitudes(rng, 200, 50), form))


def dequantize(rng) -> Iterator[Call]:
    for columns, dtype, per_row in product((*TAILS, 600), ("uint8", "int8"), (False, True)):
        x = coded(rng, dtype, 60 if columns == 600 else 3, columns, per_row)
        yield Call(f"{columns} {dtype} {per_row}", _core.Coded.dequantize, (x,))


def min_max(rng) -> Iterator[Call]:
    for n in (*TAILS, 1000):
        yield Call(f"{n}", _core.min_max, (floats(rng, n),))
        yield Call(f"{n} below 0", _core.min_max, (-np.abs(floats(rng, n)),))
        yield Call(f"{n} zeros", _core.min_max, (np.zeros(n, np.float32),))


def _amid(size: int) -> np.ndarray:
    """As memory.aligned, but in 64 bytes more."""
    whole = np.empty(size + 64, np.int8)
    start = -whole.__array_interface__["data"][0] % 64
    return whole[start : start + size]


def _pack_and_unpack(b: np.ndarray, zero_points: np.ndarray | None) -> tuple:
    with patch.object(_core, "aligned", _amid):
        w = weights.pack(b, zero_points)
    whole = w.panels.base
    start = w.panels.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    beside = np.concatenate((whole[:start], whole[start + w.panels.size :])).view(np.uint8)
    assert fill is None or (beside == fill).all(), "pack wrote beside its panels"
    return w.panels, w.column_sums, w.unpack()


def pack(rng) -> Iterator[Call]:
    for k, n in product((1, 3, 4, 5, 17, 33), (1, 15, 16, 17, 33, 65)):
        b = rng.integers(-128, 128, (k, n)).astype(np.int8)
        zeros = rng.integers(-128, 128, (1, n)).astype(np.int32)
        yield Call(f"{k}x{n}", _pack_and_unpack, (b, None))
        yield Call(f"{k}x{n} transposed", _pack_and_unpack, (np.ascontiguousarray(b.T).T, zeros))
        yield Call(f"{k}x{n} backwards", _pack_and_unpack, (np.repeat(b, 2, 1)[::-1, ::2], zeros))


def matmul_integer(rng) -> Iterator[Call]:
    shapes = [
        *product((1, 2, 4, 5, 6, 7, 13), (1, 16, 17, 33, 65), (1, 3, 4, 7, 33, 130)),
        (150, 130, 67),
        (2, 3, 33_000),
    ]
    for (m, n, k), dtype, per_row, zeros in product(shapes, ("uint8", "int8"), (False, True), (False, True)):
        a, w = coded(rng, dtype, m, k, per_row), weight(rng, k, n, zeros)
        yield Call(f"{m}x{n}x{k} {dtype} {per_row} {zeros}", _core.matmul_integer, (a, w))
    shapes = [*product((1, 2, 3, 4, 5, 13), (64, 65, 144), (1, 3, 4, 7, 33, 64, 130)), (150, 130, 67), (5, 64, 2077)]
    variants = cycle(product(("uint8", "int8"), (5.0, 25.0, 40.0), (False, True), (False, True)))
    for (m, n, k), (dtype, deviation, per_row, zeros) in zip(shapes, variants):
        a, w = coded(rng, dtype, m, k, per_row, deviation), weight(rng, k, n, zeros)
        yield Call(f"{m}x{n}x{k} {dtype} {per_row} {zeros} {deviation}", _core.matmul_integer, (a, w))


def linear_i8(rng) -> Iterator[Call]:
    shapes = cycle([*product((1, 5, 7), (1, 3, 17, 65), (3, 64)), (40, 130, 64)])
    variants = [*product(ACTIVATIONS, (None, "float32", "int8", "uint8"), (None, *FIXED))] * 4
    for i, (act, kind, form), (m, n, k) in zip(count(), variants, shapes):
        deviation = 20.0 if i % 4 < 2 else None
        x = coded(rng, ("uint8", "int8")[i % 2], m, k, i % 3 == 0, deviation)
        w = weight(rng, k, n, i % 5 == 0)
        bias = floats(rng, n) if i % 4 < 3 else None
        bias_i32 = rng.integers(-9999, 9999, n).astype(np.int32) if i % 7 < 3 else None
        yield Call(
            f"{i} {m}x{n}x{k} {act} {kind} {form}",
            _core.linear,
            (x, w),
            dict(bias=bias, bias_i32=bias_i32, activation=act, residual=residual(rng, kind, m, n), form=form),
        )


def linear_f32(rng) -> Iterator[Call]:
    shapes = product((1, 2, 3, 4, 5, 6, 7, 13), (1, 8, 16, 17, 65), (1, 3, 5, 33, 66, 300))
    variants = cycle(product(ACTIVATIONS, (None, "float32", "int8"), (None, *FIXED), (0, 4, 32)))
    for i, (m, n, k), (act, kind, form, group) in zip(count(), [*shapes, (20, 70, 70)], variants):
        w = weight(rng, k, n, i % 2 == 1, group)
        yield Call(
            f"{i} {m}x{n}x{k} {act} {kind} {form} {group}",
            _core.linear,
            (floats(rng, m, k), w),
            dict(bias=floats(rng, n) if i % 3 else None, activation=act, residual=residual(rng, kind, m, n), form=form),
        )


def row_wise(rng, i: int, n: int) -> dict:
    """What needs whole rows: the i-th of all ways to norm, to code, and to keep results."""
    forms = (None, *FIXED, *DYNAMIC, *GROUPED, by_column(rng, "int8", False, n))
    form, keep = forms[i % len(forms)], ("result", "both", "sum")[i % 3]
    normed = keep == "sum" or i % 4 < 3
    return dict(
        form=form,
        keep=keep,
        sum_form=FIXED[i // 3 % 3] if keep == "sum" and i % 2 else None,
        norm=Norm(floats(rng, n), floats(rng, n) if i % 8 < 5 else None, 1e-5, i % 5 < 2) if normed else None,
    )


ROW_WISE = [
    *product((1, 2, 5, 6, 7, 13, 25), (1, 16, 17, 65, 130), (4, 33)),
    (75, 150, 70),
    (49, 64, 256),
    (150, 1000, 8),
]


def linear_rows(rng) -> Iterator[Call]:
    """Norms and codes of each row's own after a product; float32 coded on the way into one."""
    codings = (*DYNAMIC, *FIXED)
    for i, ((m, n, k), kind) in enumerate(product(ROW_WISE, ("coding", "codes", "float32", "coding", "codes"))):
        zeros, given = i % 6 == 0, dict(coding=codings[i % 6]) if kind == "coding" else {}
        x = coded(rng, ("uint8", "int8")[i % 2], m, k, i % 3 == 0) if kind == "codes" else floats(rng, m, k)
        after = row_wise(rng, i, n) | dict(residual=residual(rng, (None, "float32", "int8", "uint8")[i % 4], m, n))
        yield Call(
            f"{i} {m}x{n}x{k} {kind}",
            _core.linear,
            (x, weight(rng, k, n, zeros)),
            after | given | dict(bias=floats(rng, n), activation=ACTIVATIONS[i % 5]),
        )


def linear_coding(rng) -> Iterator[Call]:
    """Float32 coded on the way in, results whole with their tile."""
    for i, ((m, n, k), coding, form) in enumerate(
        product(ROW_WISE[::3], (*DYNAMIC, *FIXED), (None, FIXED[0], "columns"))
    ):
        form = by_column(rng, "uint8", False, n, i % 2 == 1) if form == "columns" else form
        yield Call(
            f"{i} {m}x{n}x{k} {coding}",
            _core.linear,
            (floats(rng, m, k), weight(rng, k, n, i % 4 == 0)),
            dict(bias=floats(rng, n), activation=ACTIVATIONS[i % 5], form=form, coding=coding),
        )


def float_weight(rng, k: int, n: int) -> weights.FloatWeight:
    """Its panels are a copy of exactly their size, as weight's are."""
    return weights.FloatWeight(weights.pack_floats(floats(rng, n, k).T).panels.copy(), k, n)


def linear_floats(rng) -> Iterator[Call]:
    """A float32 weight: every tail, and what follows, by columns and by rows; and where k is so long that a part of it
    serves several tiles of columns."""
    shapes = cycle([*product((1, 3, 6, 13), TAILS, (1, 5, 33)), (20, 600, 300), (150, 70, 260)])
    variants = [*product(ACTIVATIONS, (None, "float32", "int8"), (None, *FIXED))] * 4
    for i, ((act, kind, form), (m, n, k)) in enumerate(zip(variants, shapes)):
        yield Call(
            f"{i} {m}x{n}x{k} {act} {kind} {form}",
            _core.linear,
            (floats(rng, m, k), float_weight(rng, k, n)),
            dict(bias=floats(rng, n), activation=act, residual=residual(rng, kind, m, n), form=form),
        )
    for i, (m, n, k) in enumerate(ROW_WISE * 3):
        yield Call(
            f"rows {i} {m}x{n}x{k}",
            _core.linear,
            (floats(rng, m, k), float_weight(rng, k, n)),
            row_wise(rng, i, n)
            | dict(
                bias=floats(rng, n),
                activation=ACTIVATIONS[i % 5],
                residual=residual(rng, (None, "float32", "uint8")[i % 3], m, n),
            ),
        )
    for m, n, more in ((100, 2049, {}), (60, 300, row_wise(rng, 0, 300))):
        yield Call(
            f"long {m}x{n}",
            _core.linear,
            (floats(rng, m, 1553), float_weight(rng, 1553, n)),
            dict(bias=floats(rng, n)) | more,
        )


def pack_floats(rng) -> Iterator[Call]:
    def there_and_back(b):
        with patch.object(_core, "aligned", lambda size: np.full(size, 7, np.int8)):
            w = weights.pack_floats(b)
        return w.panels, np.ascontiguousarray(w.unpack())

    for k, n in product((1, 3, 4, 5, 17, 33), (1, 15, 16, 17, 33, 65)):
        yield Call(f"{k}x{n}", there_and_back, (floats(rng, k, n),))
        yield Call(f"{k}x{n} transposed", there_and_back, (floats(rng, n, k).T,))


def _into_heads(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The products (s, g, length, dim) where they belong in (s * length, g * dim)."""
    s, g, length, dim = (*a.shape[:3], b.shape[-1])
    out = np.empty((s * length, g * dim), np.float32)
    functions.matmul(a, b, out.reshape(s, length, g, dim).transpose(0, 2, 1, 3))
    return out


def matmul(rng) -> Iterator[Call]:
    """Matrices as they lie, by rows and by columns, alone and in pairs, over blocks and tails of each size."""
    shapes = [
        *product((1, 2, 5, 6, 7, 13), (1, 15, 16, 17, 33, 64, 65), (1, 3, 33)),
        (150, 70, 260),
        (300, 20, 10),
        (20, 1100, 30),
    ]
    for i, (m, n, k) in enumerate(shapes):
        a = floats(rng, m, k) if i % 2 else floats(rng, k, m).T
        b = floats(rng, k, n) if i % 3 else floats(rng, n, k).T
        yield Call(f"{m}x{n}x{k} {i % 2} {i % 3}", functions.matmul, (a, b))
        out = floats(rng, m, n)
        yield Call(f"{m}x{n}x{k} {i % 2} {i % 3} added", functions.matmul, (a, b), dict(out=out, add=True), (out,))
        if i % 5 == 0:
            yield Call(f"{m}x{n}x{k} float64", functions.matmul, (a.astype(np.float64), b.astype(np.float64)))
    for s, g, length, dim in ((1, 1, 5, 3), (3, 2, 17, 8), (2, 3, 40, 32)):
        x, y = floats(rng, s * length, g * dim), floats(rng, s, g, length, length)
        heads = x.reshape(s, length, g, dim).transpose(0, 2, 1, 3)
        yield Call(f"heads {s} {g} {length} {dim}", functions.matmul, (heads, heads.swapaxes(-1, -2)))
        yield Call(f"heads {s} {g} {length} {dim} back", _into_heads, (y.swapaxes(-1, -2), heads))
        yield Call(f"heads {s} {g} {length} {dim} shared", functions.matmul, (y, heads[:, :1]))


def dot_rows(rng) -> Iterator[Call]:
    for n in (*TAILS, 300):
        yield Call(f"{n}", passes.dot_rows, (floats(rng, 20, n), floats(rng, 20, n)))


def column_sums(rng) -> Iterator[Call]:
    for rows, n in product((1, 3, 64, 65, 200), (*TAILS, 300)):
        yield Call(f"{rows} {n}", passes.column_sums, (floats(rng, rows, n),))


def norm(rng) -> Iterator[Call]:
    forms = cycle((None, *FIXED, *DYNAMIC))
    variants = product((*TAILS, 513), (False, True), (False, True), (False, True), (False, True))
    for form, (columns, rms, added, biased, keep_sum) in zip(forms, variants):
        rows = 40 if columns == 513 else 3
        x, bias = floats(rng, rows, columns) + np.float32(7), floats(rng, columns) if biased else None
        yield Call(
            f"{columns} {rms} {added} {biased} {form}",
            _core.norm,
            (x, Norm(floats(rng, columns), bias, 1e-5, rms)),
            dict(
                residual=residual(rng, "float32" if added else None, rows, columns),
                form=form,
                keep_float=form is None or keep_sum,
                keep_sum=keep_sum,
            ),
        )


def gate(rng) -> Iterator[Call]:
    columns = cycle((*TAILS, 513))
    variants = [*product(ACTIVATIONS, (None, *FIXED, *DYNAMIC))] * 6
    for i, (act, form), n in zip(count(), variants, columns):
        yield Call(f"{i} {n} {act} {form}", _core.gate, (floats(rng, 30, n), floats(rng, 30, n), act, form))
    for act in ACTIVATIONS:
        yield Call(f"magnitudes {act}", _core.gate, (magnitudes(rng, 100, 100), np.ones((100, 100), np.float32), act))
        yield Call(f"units {act}", _core.gate, (12 * floats(rng, 100, 100), np.ones((100, 100), np.float32), act))


def hadamard(rng) -> Iterator[Call]:
    for columns, block in HADAMARD:
        x = floats(rng, 5, columns)
        yield Call(f"{columns} {block}", _core.hadamard, (x, block), {}, (x,))
    for (columns, block), form in product(HADAMARD, (None, FIXED[0], *DYNAMIC)):
        arguments = floats(rng, 5, columns), floats(rng, 5, columns), "silu", form, block
        yield Call(f"gate {columns} {block} {form}", _core.gate, arguments)


def rope(rng) -> Iterator[Call]:
    for dim, tokens, beside in (*product((2, 8, 20, 32, 64, 80, 128), (1, 5), (0, 3)), (64, 200, 64)):
        x, angle = floats(rng, tokens, 3 * dim + beside), floats(rng, 9, dim // 2)
        position = rng.integers(0, 9, tokens).astype(np.int32)
        yield Call(
            f"{dim} {tokens} {beside}", _core.rope, (x, 3, dim, np.cos(angle), np.sin(angle), position), writes=(x,)
        )


def rope_hadamard(rng) -> Iterator[Call]:
    for dim, block in ((16, 16), (48, 16), (64, 64), (128, 128)):
        x, angle = floats(rng, 5, 3 * dim + 3), floats(rng, 9, dim // 4)
        position = rng.integers(0, 9, 5).astype(np.int32)
        arguments = x, 3, dim, np.cos(angle), np.sin(angle), position, block
        yield Call(f"{dim} {block}", _core.rope, arguments, writes=(x,))


def embed(rng) -> Iterator[Call]:
    for columns, kind in product((*TAILS, 128), ("float32", "int8", "affine")):
        word = floats(rng, 37, columns) if kind == "float32" else weight(rng, columns, 37, kind == "affine")
        ids, position = (rng.integers(0, top, 100).astype(np.int32) for top in (37, 11))
        ids[:2], position[:2] = (0, 36), (10, 0)
        yield Call(f"{columns} {kind}", _core.embed, (ids, word))
        yield Call(
            f"{columns} {kind} all",
            _core.embed,
            (ids, word, position, floats(rng, 11, columns)),
            dict(type=position % 2, type_table=floats(rng, 2, columns)),
        )


def _attention_shapes() -> Iterator[tuple]:
    lengths = ((1,), (1, 5, 17), (25, 1, 3, 24), (50,))
    for dim, causal, (heads, kv), sizes in product(
        (8, 20, 32, 64, 80, 128), (False, True), ((4, 4), (4, 2), (3, 1)), lengths
    ):
        yield dim, causal, heads, kv, np.cumsum((0, *sizes)).astype(np.int32)


def _bias(rng, offsets, heads) -> np.ndarray:
    """Just as far as the longest sequence reaches."""
    return floats(rng, heads, 2 * np.diff(offsets).max() - 1)


def attention_f32(rng) -> Iterator[Call]:
    for dim, causal, heads, kv, offsets in _attention_shapes():
        qkv = floats(rng, offsets[-1], (heads + 2 * kv) * dim)
        sharp = np.concatenate((1000 * qkv[:, : heads * dim], qkv[:, heads * dim :]), 1)
        for label, x in (("", qkv), (" sharp", sharp)):
            yield Call(
                f"{dim} {causal} {heads}/{kv} {offsets}{label}",
                _core.attention,
                (x, offsets, heads, kv, causal, dim**-0.5),
            )
        yield Call(
            f"{dim} {causal} {heads}/{kv} {offsets} biased",
            _core.attention,
            (qkv, offsets, heads, kv, causal, dim**-0.5, None, _bias(rng, offsets, heads)),
        )


def attention_static(rng) -> Iterator[Call]:
    forms, dtypes = cycle((None, *FIXED)), cycle(("uint8", "int8"))
    for (dim, causal, heads, kv, offsets), form, dtype in zip(_attention_shapes(), forms, dtypes):
        x, widths = coded(rng, dtype, offsets[-1], (heads + 2 * kv) * dim), (heads * dim, kv * dim, kv * dim)
        low, high = (0, 256) if dtype == "uint8" else (-128, 128)
        scale, zero_point = rng.uniform(0.01, 0.03, 3).astype(np.float32), rng.integers(low, high, 3).astype(np.int32)
        qkv = _core.Coded(x.codes, *(np.repeat(values, widths)[None] for values in (scale, zero_point)))
        for label, bias in (("", None), (" biased", _bias(rng, offsets, heads))):
            yield Call(
                f"{dim} {causal} {heads}/{kv} {offsets} {dtype} {form}{label}",
                _core.attention,
                (qkv, offsets, heads, kv, causal, dim**-0.5 / 8, form, bias),
            )


def attention_dynamic(rng) -> Iterator[Call]:
    """Scales per token and head as they come, far apart, and as large and small as they may be."""
    sizes = cycle((0.3, 2, 30))
    for (dim, causal, heads, kv, offsets), form, size in zip(_attention_shapes(), cycle((None, *FIXED)), sizes):
        tokens, parts = offsets[-1], heads + 2 * kv
        codes = rng.integers(-127, 128, (tokens, parts * dim)).astype(np.int8)
        scale = (np.exp(size * rng.standard_normal((tokens, parts))) / 64).clip(2e-38, 1e36).astype(np.float32)
        codes[::5, -dim:], scale[::5, -1] = 0, 1  # a token without values
        qkv = _core.Coded(codes, scale, np.zeros_like(scale, np.int32))
        for label, bias in (("", None), (" biased", _bias(rng, offsets, heads))):
            yield Call(
                f"{dim} {causal} {heads}/{kv} {offsets} {size} {form}{label}",
                _core.attention,
                (qkv, offsets, heads, kv, causal, dim**-0.5 / 8, form, bias),
            )


def attention_windows(rng) -> Iterator[Call]:
    """Windows that begin within vectors, and caps, float32 and in codes."""
    lengths = np.cumsum((0, 1, 40, 17, 100)).astype(np.int32)
    windows = product((True, False), ((1, 0.0), (13, 0.0), (16, 0.7), (70, 20.0), (None, 2.0)))
    for i, ((causal, (window, cap)), (dim, heads, kv)) in enumerate(
        product(windows, ((8, 4, 2), (20, 3, 1), (80, 2, 2)))
    ):
        x, widths = floats(rng, lengths[-1], (heads + 2 * kv) * dim), (heads * dim, kv * dim, kv * dim)
        own = [Fixed(("uint8", "int8")[i % 2], False, 0.03, int(rng.integers(-9, 9)) + 128 * (1 - i % 2))] * 3
        for form in (None, PerHead("int8", True, dim), Smoothed.of(own, widths)):
            qkv = x if form is None else _core.quantize(x, form)
            yield Call(
                f"{i} {form and form.kind} {dim} {heads}/{kv} {causal} {window} {cap}",
                _core.attention,
                (qkv, lengths, heads, kv, causal, dim**-0.5, form and FIXED[0], None, window, cap),
            )


def norm_inner(rng) -> Iterator[Call]:
    """A norm before the residual, a factor, and none behind it."""
    for columns, form, last in product(TAILS, (None, FIXED[0], DYNAMIC[0]), (False, True)):
        x, residual = floats(rng, 5, columns), floats(rng, 5, columns)
        norms = [Norm(floats(rng, columns), None, 1e-5, True) for _ in range(2)]
        arguments = dict(residual=residual, form=form, keep_sum=True)
        yield Call(
            f"{columns} {form} {last} inner",
            _core.norm,
            (x, norms[0] if last else None),
            arguments | dict(inner=norms[1]),
        )
        yield Call(
            f"{columns} {form} {last} factor",
            _core.norm,
            (x, norms[0] if last else None),
            arguments | dict(factor=0.22),
        )


def cap(rng) -> Iterator[Call]:
    for columns, (factor, most) in product(TAILS, ((0.3, 0.0), (1.0, 30.0), (5.0, 0.5))):
        x = floats(rng, 5, columns)
        yield Call(f"{columns} {factor} {most}", _core.cap, (x, factor, most), {}, (x,))


def linear_gated(rng) -> Iterator[Call]:
    """A gate and what it gates in one product, of codes, of float32 coded on the way in, and of float32."""
    for i, ((m, n, k), form) in enumerate(product(ROW_WISE[::2], (None, FIXED[0], DYNAMIC[0], DYNAMIC[2]))):
        x, given = floats(rng, m, k), dict(coding=DYNAMIC[i % 3]) if i % 3 else {}
        x = coded(rng, "uint8", m, k, True) if i % 3 == 2 else x
        yield Call(
            f"{i} {m}x{n}x{k} {form}",
            _core.linear,
            (x, weight(rng, k, 2 * n, i % 4 == 0)),
            (given if i % 3 == 1 else {})
            | dict(bias=floats(rng, 2 * n) if i % 2 else None, activation=ACTIVATIONS[i % 5], form=form, gated=True)
            | dict(hadamard=0 if n % 16 else n & -n),
        )


def attention_kept(rng) -> Iterator[Call]:
    """New tokens behind what is kept: several of each sequence, then one, then none of some."""
    news = ((3, 70, 1), (1, 1, 1), (0, 50, 2))
    kinds = cycle(("float32", "per head", "static uint8", "static int8"))
    for (dim, (heads, kv)), kind, form in zip(
        product((8, 20, 64, 80, 128), ((4, 4), (4, 2), (7, 1), (6, 2))), kinds, cycle((None, None, *FIXED))
    ):
        width, room = (heads + 2 * kv) * dim, 128
        coding = None if kind == "float32" else PerHead("int8", True, dim)
        if kind.startswith("static"):
            own = [
                Fixed(
                    kind[7:],
                    False,
                    float(rng.uniform(0.02, 0.04)),
                    int(rng.integers(-9, 9)) + 128 * (kind[7:] == "uint8"),
                )
                for _ in range(3)
            ]
            coding = Smoothed.of(own, (heads * dim, kv * dim, kv * dim))
        kept, arrays = _core.Kept(3, kv, dim, "float32" if coding is None else "int8"), []
        fours, sixteens = -(-dim // 4) * 4, -(-dim // 16) * 16
        for s in range(3):
            if coding is None:
                own = [np.zeros(kv * room * dim, np.float32), np.zeros(kv * room * sixteens, np.float32)]
            else:
                own = [
                    np.zeros(kv * room * fours, np.int8),
                    np.zeros(kv * room * sixteens, np.int8),
                    np.zeros(kv * room, np.int32),
                ]
                own += [np.zeros(3 * kv * room, np.float32)] * isinstance(coding, PerHead)
            kept.put(s, 0, room, *own)
            arrays += own
        angle, lengths = floats(rng, room, dim // 2), np.zeros(3, np.int64)
        for new in news:
            offsets, qkv = np.cumsum((0, *new)).astype(np.int32), floats(rng, sum(new), width)
            for s in range(3):
                kept.move(s, int(lengths[s]))
            yield Call(
                f"{dim} {heads}/{kv} {kind} {form} {new}",
                _core.attention_kept,
                (qkv, offsets, kept, heads, dim**-0.5, np.cos(angle), np.sin(angle), coding, coding and form),
                {},
                (qkv, *arrays),
            )
            lengths += new


def slope(rng) -> Iterator[Call]:
    for n, act in product((*TAILS, 513), ACTIVATIONS[1:]):
        yield Call(f"{n} {act}", passes.activate, (12 * floats(rng, 3, n), act))
    for act in ACTIVATIONS[1:]:
        yield Call(f"magnitudes {act}", passes.activate, (magnitudes(rng, 100, 100), act))


def round_codes(rng) -> Iterator[Call]:
    for n, by, shifted in product((*TAILS, 513), ("one", "row", "column"), (False, True)):
        rows = 40 if n == 513 else 3
        shape = {"one": 1, "row": (rows, 1), "column": (1, n)}[by]
        scales = np.exp(rng.uniform(-4, 0, shape)).astype(np.float32)
        lows, highs = (
            np.full(shape, end, np.float32) - (rng.integers(-9, 9, shape)).astype(np.float32) for end in (-100, 100)
        )
        x = floats(rng, rows, n) * np.float32(2)
        yield Call(f"{n} {by} {shifted}", passes.to_codes, (x, scales, lows, highs, -lows if shifted else None))
    yield Call(
        "magnitudes", passes.to_codes, (magnitudes(rng, 200, 50), *(np.float32([end]) for end in (1e-3, -128, 127)))
    )


def exponents(rng) -> Iterator[Call]:
    for n, coded_ in product((*TAILS, 300), (False, True)):
        x = floats(rng, 2, 3, n) * np.float32(30)
        x[1] = np.rint(x[1])
        x[0, 0, 1:] = -np.inf
        yield Call(f"{n} {coded_}", passes.exponents, (x, 0.37, coded_), writes=(x,))


def softmax_back(rng) -> Iterator[Call]:
    for n in (*TAILS, 300):
        g, p = floats(rng, 2, 40, n), np.abs(floats(rng, 2, 40, n))
        yield Call(f"{n}", passes.softmax_back, (g, p, 1 / p.sum(axis=2, keepdims=True), 0.125), writes=(g,))


def rescale(rng) -> Iterator[Call]:
    for n, before, after, by_row in product((*TAILS, 513), (False, True), (False, True), (False, True)):
        own = [floats(rng, n) if given else None for given in (before, after)]
        x, row_scales, inside = floats(rng, 40, n), floats(rng, 40) if by_row else None, n % 2 == 1
        yield Call(
            f"{n} {before} {after} {by_row}",
            passes.rescale,
            (x, floats(rng, n), own[0], row_scales, own[1]),
            dict(out=x) if inside else {},
            (x,) if inside else (),
        )


def norm_kept(rng) -> Iterator[Call]:
    for n, rms, biased in product((*TAILS, 513), (False, True), (False, True)):
        yield Call(
            f"{n} {rms} {biased}",
            passes.norm,
            (floats(rng, 20, n) + np.float32(7), floats(rng, n), floats(rng, n) if biased else None, 1e-5, rms),
        )


def norm_back(rng) -> Iterator[Call]:
    for n, rms in product((*TAILS, 513), (False, True)):
        yield Call(
            f"{n} {rms}",
            passes.norm_back,
            (floats(rng, 20, n), floats(rng, n), floats(rng, 20, n), floats(rng, 20), rms),
        )


def adamw(rng) -> Iterator[Call]:
    choices = (0.9, 0.999, 0.1, 0.001, 1.5, 1e-8, 1e-3)
    for n, units, keep in product((*TAILS, 10_000), (False, True), (1.0, 0.99)):
        p, g, mean = floats(rng, n), floats(rng, n), floats(rng, n)
        square, unit = np.abs(floats(rng, n)), np.abs(floats(rng, n)) * np.float32(300) if units else None
        yield Call(
            f"{n} {units} {keep}", passes.adamw, (p, g, mean, square, unit, (*choices, keep)), writes=(p, mean, square)
        )
    for rows, columns in product((1, 7), (*TAILS, 5000)):  # the latter: rows that several tasks share
        p, g, mean, square = (np.abs(floats(rng, rows * columns)) for _ in range(4))
        own = np.abs(floats(rng, rows))
        yield Call(
            f"{rows} rows of {columns}",
            passes.adamw,
            (p, g, mean, square, None, (*choices, 1.0), own),
            writes=(p, mean, square),
        )


def attention_relative(rng) -> Iterator[Call]:
    """Positions of distances that go further than sequences, or not as far; float32 and in codes."""
    lengths = np.cumsum((0, 1, 40, 17, 70)).astype(np.int32)
    for i, ((dim, heads, kv), far, parts) in enumerate(
        product(((8, 4, 2), (20, 3, 1), (64, 2, 2)), (9, 90), ((True, True), (True, False), (False, True)))
    ):
        x, widths = floats(rng, lengths[-1], (heads + 2 * kv) * dim), (heads * dim, kv * dim, kv * dim)
        own = [Fixed(("uint8", "int8")[i % 2], False, 0.03, int(rng.integers(-9, 9)) + 128 * (1 - i % 2))] * 3
        keys, queries = (floats(rng, heads * dim, -(-2 * far // 16) * 16) if has else None for has in parts)
        rows = np.clip(np.arange(69, -70, -1) + far, 0, 2 * far - 1).astype(np.int32)
        for form in (None, PerHead("int8", True, dim), Smoothed.of(own, widths)):
            qkv = x if form is None else _core.quantize(x, form)
            yield Call(
                f"{i} {form and form.kind} {dim} {heads}/{kv} {far}",
                _core.attention,
                (qkv, lengths, heads, kv, False, dim**-0.5, form and FIXED[0], None, None, 0.0, (keys, queries, rows)),
            )


FAMILIES = (
    quantize,
    dequantize,
    min_max,
    pack,
    matmul_integer,
    linear_i8,
    linear_f32,
    linear_rows,
    linear_coding,
    linear_floats,
    pack_floats,
    matmul,
    dot_rows,
    column_sums,
    norm,
    gate,
    hadamard,
    rope,
    rope_hadamard,
    embed,
    attention_f32,
    attention_static,
    attention_dynamic,
    attention_windows,
    norm_inner,
    cap,
    linear_gated,
    attention_kept,
    slope,
    round_codes,
    exponents,
    softmax_back,
    rescale,
    norm_kept,
    norm_back,
    adamw,
    attention_relative,
)


def calls() -> Iterator[Call]:
    """All of them, always with the same numbers, each made just before it is asked for."""
    for number, family in enumerate(FAMILIES):
        for call in family(np.random.default_rng(number)):
            yield call._replace(label=f"{family.__name__} {call.label}")
