"""Types of the compiled core. cq/_core.pyx and cq/bindings/ say what each function does, src/cq.h how it is done."""

from collections.abc import Sequence
from typing import Literal, Protocol, final, overload

import numpy as np
from typing_extensions import disjoint_base

from .model.forms import Fixed, PerHead, PerToken, ResultForm, Smoothed

MAX_K: int
PANEL: int
COMPILER: str
ISAS: tuple[str, ...]

class _Norm(Protocol):
    """What the core reads of a model.norm.Norm."""
    @property
    def weight(self) -> np.ndarray: ...
    @property
    def bias(self) -> np.ndarray | None: ...
    @property
    def eps(self) -> float: ...
    @property
    def rms(self) -> bool: ...

class _Deferred(Protocol):
    """A weight in codes that are read when they are wanted, as model.deferred.Deferred."""
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self) -> np.ndarray: ...

# --- the machine ---

def isa() -> str: ...
def isa_available() -> list[str]: ...
def isa_missing() -> dict[str, str]: ...
def get_threads() -> int: ...
def set_threads(n: int) -> None: ...
def keep_freed(on: bool) -> None: ...
def peak(kind: str, repeats: int) -> float: ...

# --- calls that are made again ---

@final
class Step: ...

@final
class Tape:
    @property
    def capacity(self) -> int: ...
    def __init__(self, capacity: int = 0) -> None: ...
    def __enter__(self) -> Tape: ...
    def __exit__(self, *error: object) -> None: ...
    def replay(self, rows: int = -1, sequences: int = -1) -> None: ...

# --- codes ---

@final
class Coded:
    @property
    def codes(self) -> np.ndarray: ...
    @property
    def scale(self) -> float | np.ndarray: ...
    @property
    def zero_point(self) -> int | np.ndarray: ...
    @property
    def smoothed(self) -> Smoothed | None: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...
    def __init__(
        self,
        codes: np.ndarray,
        scale: float | np.ndarray,
        zero_point: int | np.ndarray,
        smoothed: Smoothed | None = None,
    ) -> None: ...
    def dequantize(self) -> np.ndarray: ...

def quantize(
    x: np.ndarray, form: PerToken | PerHead | Fixed | Smoothed, row_sums: np.ndarray | None = None
) -> Coded: ...
def min_max(x: np.ndarray) -> tuple[float, float]: ...

# --- weights ---

@final
class Memory:
    def __new__(cls, size: int) -> Memory: ...

@disjoint_base
class Packed:
    @property
    def k(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]: ...

@final
class FloatWeight(Packed):
    @property
    def panels(self) -> np.ndarray: ...
    @property
    def nbytes(self) -> int: ...
    def __init__(self, panels: np.ndarray, k: int, n: int) -> None: ...
    def columns(self, first: int, last: int) -> FloatWeight: ...
    def unpack(self) -> np.ndarray: ...

@final
class Weight(Packed):
    @property
    def panels(self) -> np.ndarray: ...
    @property
    def column_sums(self) -> np.ndarray: ...
    @property
    def zero_points(self) -> np.ndarray | None: ...
    @property
    def scales(self) -> np.ndarray | None: ...
    @property
    def largest_scale(self) -> float: ...
    @property
    def nbytes(self) -> int: ...
    def __init__(
        self,
        panels: np.ndarray | None,
        column_sums: np.ndarray | None,
        zero_points: np.ndarray | None,
        scales: np.ndarray | None,
        k: int,
        n: int,
        group_size: int,
        source: _Deferred | None = None,
    ) -> None: ...
    def unpack(self) -> np.ndarray: ...

def aligned(size: int) -> np.ndarray: ...
def pack(
    b: np.ndarray | _Deferred,
    zero_points: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    group_size: int = 0,
) -> Weight: ...
def pack_floats(b: np.ndarray) -> FloatWeight: ...
def repacked(
    b: np.ndarray | _Deferred, zero_points: np.ndarray | None, scales: np.ndarray | None, group_size: int
) -> Weight: ...

# --- products ---

def matmul_integer(a: Coded, w: Weight) -> np.ndarray: ...
@overload
def linear(
    x: np.ndarray | Coded,
    w: Packed,
    bias: np.ndarray | None = None,
    bias_i32: np.ndarray | None = None,
    activation: str | None = None,
    residual: np.ndarray | Coded | None = None,
    form: None = None,
    norm: _Norm | None = None,
    keep: Literal["result"] = "result",
    sum_form: Fixed | None = None,
    coding: PerToken | Fixed | None = None,
    gated: bool = False,
    hadamard: int = 0,
) -> np.ndarray: ...
@overload
def linear(
    x: np.ndarray | Coded,
    w: Packed,
    bias: np.ndarray | None = None,
    bias_i32: np.ndarray | None = None,
    activation: str | None = None,
    residual: np.ndarray | Coded | None = None,
    form: ResultForm = None,
    norm: _Norm | None = None,
    keep: Literal["result"] = "result",
    sum_form: Fixed | None = None,
    coding: PerToken | Fixed | None = None,
    gated: bool = False,
    hadamard: int = 0,
) -> np.ndarray | Coded: ...
@overload
def linear(
    x: np.ndarray | Coded,
    w: Packed,
    bias: np.ndarray | None = None,
    bias_i32: np.ndarray | None = None,
    activation: str | None = None,
    residual: np.ndarray | Coded | None = None,
    form: ResultForm = None,
    norm: _Norm | None = None,
    keep: Literal["result", "both", "sum"] = "result",
    sum_form: Fixed | None = None,
    coding: PerToken | Fixed | None = None,
    gated: bool = False,
    hadamard: int = 0,
) -> np.ndarray | Coded | tuple[np.ndarray | Coded, np.ndarray | Coded]: ...
def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None, add: bool = False) -> np.ndarray: ...

# --- the layers of a transformer ---

def embed(
    id: np.ndarray,
    word: np.ndarray | Packed,
    position: np.ndarray | None = None,
    position_table: np.ndarray | None = None,
    type: np.ndarray | None = None,
    type_table: np.ndarray | None = None,
    scale: float = 1.0,
) -> np.ndarray: ...
def norm(
    x: np.ndarray,
    norm: _Norm | None = None,
    residual: np.ndarray | None = None,
    form: ResultForm = None,
    keep_float: bool = True,
    keep_sum: bool = False,
    inner: _Norm | None = None,
    factor: float = 1.0,
) -> tuple[np.ndarray | None, Coded | None, np.ndarray | None]: ...
def cap(x: np.ndarray, factor: float = 1.0, most: float = 0.0) -> np.ndarray: ...
def hadamard(x: np.ndarray, block: int) -> np.ndarray: ...
def gate(
    g: np.ndarray, u: np.ndarray, activation: str | None, form: ResultForm = None, hadamard: int = 0
) -> np.ndarray | Coded: ...
def rope(
    x: np.ndarray, heads: int, dim: int, cosine: np.ndarray, sine: np.ndarray, position: np.ndarray, hadamard: int = 0
) -> None: ...
def attention(
    qkv: np.ndarray | Coded,
    offsets: np.ndarray,
    heads: int,
    kv_heads: int,
    causal: bool,
    scale: float,
    form: Fixed | None = None,
    bias: np.ndarray | None = None,
    window: int | None = None,
    cap: float = 0.0,
    relative: tuple[np.ndarray | None, np.ndarray | None, np.ndarray] | None = None,
) -> np.ndarray | Coded: ...

@final
class Kept:
    @property
    def sequences(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def dtype(self) -> str: ...
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
        first: int = 0,
    ) -> None: ...
    def move(self, sequence: int, length: int) -> None: ...

def attention_kept(
    qkv: np.ndarray,
    offsets: np.ndarray,
    kept: Kept,
    heads: int,
    scale: float,
    cosine: np.ndarray | None = None,
    sine: np.ndarray | None = None,
    coding: PerHead | Smoothed | None = None,
    form: Fixed | None = None,
    window: int | None = None,
    cap: float = 0.0,
    hadamard: int = 0,
) -> np.ndarray | Coded: ...

# --- float32, for training and analysis ---

def elementary(name: str, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray: ...
def dot_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray: ...
def column_sums(x: np.ndarray) -> np.ndarray: ...
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
    p: np.ndarray,
    g: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    units: np.ndarray | None,
    choices: Sequence[float],
    row_rates: np.ndarray | None = None,
) -> None: ...
