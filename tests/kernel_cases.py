"""Calls of every function of the compiled core, over sizes that leave every kind of tail. kernel_worker.py runs them; this
file must not know what their results should be."""
from collections.abc import Callable, Iterator
from itertools import count, cycle, product
from typing import NamedTuple

import numpy as np

from cq import _core

TAILS = (*range(1, 20), 31, 32, 33, 34, 47, 48, 49, 64)  # around groups of 4 codes and vectors of 16 lanes
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")
FIXED = (("uint8", False, 0.031, 121), ("int8", False, 0.02, -7), ("int8", True, 0.04, 0))
DYNAMIC = (("uint8", False), ("int8", False), ("int8", True))
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


def coded(rng, dtype: str, rows: int, columns: int, per_row: bool = False) -> _core.Coded:
    low, high = (-128, 128) if dtype == "int8" else (0, 256)
    codes = rng.integers(low, high, (rows, columns)).astype(dtype)
    if not per_row:
        return _core.Coded(codes, 0.0173, int(rng.integers(low, high)))
    scale = (rng.random(rows, np.float32) + np.float32(0.5)) / 64
    return _core.Coded(codes, scale, rng.integers(low, high, rows).astype(np.int32))


def weight(rng, k: int, n: int, zeros: bool = False, group: int = 0) -> _core.Weight:
    """Its arrays are copies of exactly their size, so that a guard page can lie at their very end."""
    groups = -(-k // group) if group else 1
    codes = rng.integers(-128 if zeros else -127, 128, (k, n)).astype(np.int8)
    zero_points = rng.integers(-128, 128, (groups, n)).astype(np.int32) if zeros else None
    w = _core.pack(codes, zero_points, (rng.random((groups, n), np.float32) + np.float32(0.1)) / 128, group)
    return _core.Weight(w.panels.copy(), w.column_sums.copy(), w.zero_points, w.scales, k, n, w.group_size)


def residual(rng, kind: str | None, rows: int, columns: int):
    if kind is None:
        return None
    return floats(rng, rows, columns) if kind == "float32" else coded(rng, kind, rows, columns, kind == "uint8")


def quantize(rng) -> Iterator[Call]:
    for columns, form in product((*TAILS, 100), (*FIXED, *DYNAMIC)):
        x = floats(rng, 6, columns) * np.float32([[1], [0], [3e37], [1e-41], [100], [1e-3]])
        x[4] = np.rint(x[4]) * np.float32(form[2] / 2 if len(form) == 4 else 0.5)  # halves between two codes
        sums = np.zeros(6, np.int32)
        yield Call(f"{columns} {form}", _core.quantize, (x, form, sums), writes=(sums,))
    for form in (*FIXED, *DYNAMIC):
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


def _pack_and_unpack(b: np.ndarray, zero_points: np.ndarray | None) -> tuple:
    w = _core.pack(b, zero_points)
    whole = w.panels.base  # 64 bytes longer than the panels, which start at a multiple of 64 in it
    start = w.panels.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    beside = np.concatenate((whole[:start], whole[start + w.panels.size:])).view(np.uint8)
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
    shapes = [*product((1, 2, 4, 5, 6, 7, 13), (1, 16, 17, 33, 65), (1, 3, 4, 7, 33, 130)), (150, 130, 67), (2, 3, 33_000)]
    for (m, n, k), dtype, per_row, zeros in product(shapes, ("uint8", "int8"), (False, True), (False, True)):
        a, w = coded(rng, dtype, m, k, per_row), weight(rng, k, n, zeros)
        yield Call(f"{m}x{n}x{k} {dtype} {per_row} {zeros}", _core.matmul_integer, (a, w))


def linear_i8(rng) -> Iterator[Call]:
    shapes = cycle([*product((1, 5, 7), (1, 3, 17, 65), (3, 64)), (40, 130, 64)])
    variants = [*product(ACTIVATIONS, (None, "float32", "int8", "uint8"), (None, *FIXED))] * 4
    for i, (act, kind, form), (m, n, k) in zip(count(), variants, shapes):
        x, w = coded(rng, ("uint8", "int8")[i % 2], m, k, i % 3 == 0), weight(rng, k, n, i % 5 == 0)
        bias = floats(rng, n) if i % 4 < 3 else None
        bias_i32 = rng.integers(-9999, 9999, n).astype(np.int32) if i % 7 < 3 else None
        yield Call(f"{i} {m}x{n}x{k} {act} {kind} {form}", _core.linear, (x, w),
                   dict(bias=bias, bias_i32=bias_i32, activation=act, residual=residual(rng, kind, m, n), form=form))


def linear_f32(rng) -> Iterator[Call]:
    shapes = product((1, 2, 3, 4, 5, 6, 7, 13), (1, 8, 16, 17, 65), (1, 3, 5, 33, 66, 300))
    variants = cycle(product(ACTIVATIONS, (None, "float32", "int8"), (None, *FIXED), (0, 4, 32)))
    for i, (m, n, k), (act, kind, form, group) in zip(count(), [*shapes, (20, 70, 70)], variants):
        w = weight(rng, k, n, i % 2 == 1, group)
        yield Call(f"{i} {m}x{n}x{k} {act} {kind} {form} {group}", _core.linear, (floats(rng, m, k), w),
                   dict(bias=floats(rng, n) if i % 3 else None, activation=act, residual=residual(rng, kind, m, n), form=form))


def finish(rng) -> Iterator[Call]:
    shapes = cycle([*product((1, 3), TAILS), (20, 600)])
    variants = [*product(ACTIVATIONS, (None, "float32", "int8"), (None, *FIXED))] * 2
    for (act, kind, form), (m, n) in zip(variants, shapes):
        x = floats(rng, m, n)
        yield Call(f"{m}x{n} {act} {kind} {form}", _core.finish, (x,),
                   dict(bias=floats(rng, n), activation=act, residual=residual(rng, kind, m, n), form=form),
                   (x,) if form is None else ())


def norm(rng) -> Iterator[Call]:
    forms = cycle((None, *FIXED, *DYNAMIC))
    variants = product((*TAILS, 513), (False, True), (False, True), (False, True), (False, True))
    for form, (columns, rms, added, biased, keep_sum) in zip(forms, variants):
        rows = 40 if columns == 513 else 3
        x, bias = floats(rng, rows, columns) + np.float32(7), floats(rng, columns) if biased else None
        yield Call(f"{columns} {rms} {added} {biased} {form}", _core.norm, (x, floats(rng, columns), bias, 1e-5, rms),
                   dict(residual=residual(rng, "float32" if added else None, rows, columns), form=form,
                        keep_float=form is None or keep_sum, keep_sum=keep_sum))


def gate(rng) -> Iterator[Call]:
    columns = cycle((*TAILS, 513))
    variants = [*product(ACTIVATIONS, (None, "uint8", "int8"), (None, *FIXED, *DYNAMIC))] * 2
    for (act, kind, form), n in zip(variants, columns):
        g, u = (floats(rng, 30, n) if kind is None else coded(rng, kind, 30, n, kind == "int8") for _ in range(2))
        yield Call(f"{n} {act} {kind} {form}", _core.gate, (g, u, act, form))
    for act in ACTIVATIONS:
        yield Call(f"magnitudes {act}", _core.gate, (magnitudes(rng, 100, 100), np.ones((100, 100), np.float32), act))
        yield Call(f"units {act}", _core.gate, (12 * floats(rng, 100, 100), np.ones((100, 100), np.float32), act))


def rope(rng) -> Iterator[Call]:
    for dim, tokens in (*product((2, 8, 20, 32, 64, 80, 128), (1, 5)), (64, 200)):
        x, angle = floats(rng, tokens, 3 * dim), floats(rng, 9, dim // 2)
        position = rng.integers(0, 9, tokens).astype(np.int32)
        yield Call(f"{dim} {tokens}", _core.rope, (x, 3, np.cos(angle), np.sin(angle), position), writes=(x,))


def embed(rng) -> Iterator[Call]:
    for columns, kind in product((*TAILS, 128), ("float32", "int8", "affine")):
        word = floats(rng, 37, columns) if kind == "float32" else weight(rng, columns, 37, kind == "affine")
        ids, position = (rng.integers(0, top, 100).astype(np.int32) for top in (37, 11))
        ids[:2], position[:2] = (0, 36), (10, 0)
        yield Call(f"{columns} {kind}", _core.embed, (ids, word))
        yield Call(f"{columns} {kind} all", _core.embed, (ids, word, position, floats(rng, 11, columns)),
                   dict(type=position % 2, type_table=floats(rng, 2, columns)))


def _attention_shapes() -> Iterator[tuple]:
    lengths = ((1,), (1, 5, 17), (25, 1, 3, 24), (50,))
    for dim, causal, (heads, kv), sizes in product((8, 20, 32, 64, 80, 128), (False, True), ((4, 4), (4, 2), (3, 1)), lengths):
        yield dim, causal, heads, kv, np.cumsum((0, *sizes)).astype(np.int32)


def attention_f32(rng) -> Iterator[Call]:
    for dim, causal, heads, kv, offsets in _attention_shapes():
        q, k, v = (floats(rng, offsets[-1], h * dim) for h in (heads, kv, kv))
        yield Call(f"{dim} {causal} {heads}/{kv} {offsets}", _core.attention,
                   (q, k, v, offsets, heads, kv, causal, dim ** -0.5))
        yield Call(f"{dim} {causal} {heads}/{kv} {offsets} sharp", _core.attention,
                   (1000 * q, k, v, offsets, heads, kv, causal, dim ** -0.5))


def attention_i8(rng) -> Iterator[Call]:
    forms, dtypes = cycle((None, *FIXED)), cycle(product(("uint8", "int8"), repeat=3))
    for (dim, causal, heads, kv, offsets), form, kinds in zip(_attention_shapes(), forms, dtypes):
        q, k, v = (coded(rng, kind, offsets[-1], h * dim) for kind, h in zip(kinds, (heads, kv, kv)))
        yield Call(f"{dim} {causal} {heads}/{kv} {offsets} {kinds} {form}", _core.attention,
                   (q, k, v, offsets, heads, kv, causal, dim ** -0.5 / 8, form))


FAMILIES = (quantize, dequantize, min_max, pack, matmul_integer, linear_i8, linear_f32, finish, norm, gate, rope, embed,
            attention_f32, attention_i8)


def calls() -> Iterator[Call]:
    """All of them, always with the same numbers, each made just before it is asked for."""
    for number, family in enumerate(FAMILIES):
        for call in family(np.random.default_rng(number)):
            yield call._replace(label=f"{family.__name__} {call.label}")
