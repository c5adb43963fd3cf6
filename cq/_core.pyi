"""Types of the compiled core; cq/_core.pyx says what each function does."""

from collections.abc import Sequence

import numpy as np

MAX_K: int
PANEL: int
COMPILER: str

def isa() -> str: ...
def isa_available() -> list[str]: ...
def get_threads() -> int: ...
def set_threads(n: int) -> None: ...
def keep_freed(on: bool) -> None: ...
def peak(kind: str, repeats: int) -> float: ...

class Coded:
    codes: np.ndarray
    scale: float | np.ndarray
    zero_point: int | np.ndarray
    rows: int
    columns: int
    decode: tuple[np.ndarray, np.ndarray] | None
    def __init__(
        self,
        codes: np.ndarray,
        scale: float | np.ndarray,
        zero_point: int | np.ndarray,
        decode: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...
    def dequantize(self) -> np.ndarray: ...

class Packed:
    k: int
    n: int
    group_size: int
    @property
    def shape(self) -> tuple[int, int]: ...

class FloatWeight(Packed):
    panels: np.ndarray
    def __init__(self, panels: np.ndarray, k: int, n: int) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def columns(self, first: int, last: int) -> FloatWeight: ...
    def unpack(self) -> np.ndarray: ...

class Weight(Packed):
    zero_points: np.ndarray | None
    scales: np.ndarray | None
    largest_scale: float
    def __init__(
        self,
        panels: np.ndarray | None,
        column_sums: np.ndarray | None,
        zero_points: np.ndarray | None,
        scales: np.ndarray | None,
        k: int,
        n: int,
        group_size: int,
        source: object = None,
    ) -> None: ...
    @property
    def panels(self) -> np.ndarray: ...
    @property
    def column_sums(self) -> np.ndarray: ...
    @property
    def nbytes(self) -> int: ...
    def unpack(self) -> np.ndarray: ...

class Tape:
    capacity: int
    def __init__(self, capacity: int = 0) -> None: ...
    def __enter__(self) -> Tape: ...
    def __exit__(self, *error: object) -> None: ...
    def replay(self, rows: int = -1, sequences: int = -1) -> None: ...

class Kept:
    sequences: int
    kv_heads: int
    dim: int
    dtype: str
    def __init__(self, sequences: int, kv_heads: int, dim: int, dtype: str) -> None: ...
    def put(
        self,
        sequence: int,
        length: int,
        capacity: int,
        keys: np.ndarray,
        values: np.ndarray,
        start: np.ndarray | None = None,
        scales: np.ndarray | None = None,
    ) -> None: ...
    def move(self, sequence: int, length: int) -> None: ...

def attend(
    qkv: np.ndarray,
    offsets: np.ndarray,
    kept: Kept,
    heads: int,
    scale: float,
    cosine: np.ndarray | None = None,
    sine: np.ndarray | None = None,
    coding: Sequence | None = None,
    form: Sequence | None = None,
) -> np.ndarray | Coded: ...
def pack(
    b: np.ndarray, zero_points: np.ndarray | None = None, scales: np.ndarray | None = None, group_size: int = 0
) -> Weight: ...
def aligned(size: int) -> np.ndarray: ...
def pack_floats(b: np.ndarray) -> FloatWeight: ...
def quantize(x: np.ndarray, form: Sequence, row_sums: np.ndarray | None = None) -> Coded: ...
def min_max(x: np.ndarray) -> tuple[float, float]: ...
def matmul_integer(a: Coded, w: Weight) -> np.ndarray: ...
def linear(
    x: np.ndarray | Coded,
    w: Packed,
    bias: np.ndarray | None = None,
    bias_i32: np.ndarray | None = None,
    activation: str | None = None,
    residual: np.ndarray | Coded | None = None,
    form: Sequence | None = None,
    norm: Sequence | None = None,
    keep: str = "result",
    sum_form: Sequence | None = None,
    coding: Sequence | None = None,
    gated: bool = False,
) -> np.ndarray | Coded | tuple: ...
def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None, add: bool = False) -> np.ndarray: ...
def dot_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray: ...
def column_sums(x: np.ndarray) -> np.ndarray: ...
def norm(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    eps: float,
    rms: bool,
    residual: np.ndarray | None = None,
    form: Sequence | None = None,
    keep_float: bool = True,
    keep_sum: bool = False,
) -> tuple[np.ndarray | None, Coded | None, np.ndarray | None]: ...
def gate(g: np.ndarray, u: np.ndarray, activation: str | None, form: Sequence | None = None) -> np.ndarray | Coded: ...
def rope(x: np.ndarray, heads: int, dim: int, cosine: np.ndarray, sine: np.ndarray, position: np.ndarray) -> None: ...
def embed(
    id: np.ndarray,
    word: np.ndarray | Packed,
    position: np.ndarray | None = None,
    position_table: np.ndarray | None = None,
    type: np.ndarray | None = None,
    type_table: np.ndarray | None = None,
) -> np.ndarray: ...
def attention(
    qkv: np.ndarray | Coded,
    offsets: np.ndarray,
    heads: int,
    kv_heads: int,
    causal: bool,
    scale: float,
    form: Sequence | None = None,
) -> np.ndarray | Coded: ...
def elementary(name: str, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray: ...
def slope(x: np.ndarray, activation: str | None) -> tuple[np.ndarray, np.ndarray]: ...
def round_codes(
    x: np.ndarray, scales: np.ndarray, lows: np.ndarray, highs: np.ndarray, shifts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
def exponents(x: np.ndarray, factor: float, coded: bool) -> np.ndarray: ...
def softmax_back(g: np.ndarray, p: np.ndarray, inverses: np.ndarray, factor: float) -> None: ...
def rescale(
    x: np.ndarray,
    scales: np.ndarray,
    before: np.ndarray | None = None,
    row_scales: np.ndarray | None = None,
    after: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray: ...
def norm_kept(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float, rms: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
def norm_back(
    g: np.ndarray, weight: np.ndarray, kept: np.ndarray, factors: np.ndarray, rms: bool
) -> tuple[np.ndarray, np.ndarray]: ...
def adamw(
    p: np.ndarray, g: np.ndarray, mean: np.ndarray, square: np.ndarray, units: np.ndarray | None, choices: Sequence
) -> None: ...
