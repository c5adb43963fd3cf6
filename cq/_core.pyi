"""Types of the compiled core, and what its functions take and give; src/cq.h says how it is done."""

from collections.abc import Sequence
from typing import Literal, Protocol, final, overload

import numpy as np
from typing_extensions import disjoint_base

from .model.forms import Fixed, PerHead, PerToken, ResultForm, Smoothed

MAX_K: int
PANEL: int
COMPILER: str
ISAS: tuple[str, ...]
ISAS_MISSING: dict[str, str]
ISA: str

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

def get_threads() -> int:
    """Threads of a call at most."""

def set_threads(n: int) -> None:
    """n: at least 1."""

def keep_freed(on: bool) -> None:
    """Whether freed memory stays with malloc, for the whole process; see cq_keep_freed."""

def peak(kind: str, repeats: int) -> float:
    """Runs the register-only loop of "int8" or "float32" on this thread and gives the operations done; a multiply-add
    is 2."""

# --- calls that are made again, and passes ---

@final
class Step: ...

@final
class Tape:
    """Records this thread's calls, `with` it, and makes them again: the same functions on the same arrays, whose
    contents may have changed meanwhile, without the Python in between. Recorded are embed, norm, cap, hadamard, linear,
    gate, rope, attention, attention_kept, quantize and dequantize; what else happened, NumPy's work included, is not.
    Results stand in the arrays that the recorded calls returned. capacity: tokens that these arrays hold and are
    recorded with, for calls that are made again with fewer, or 0."""
    @property
    def capacity(self) -> int: ...
    def __init__(self, capacity: int = 0) -> None: ...
    def __enter__(self) -> Tape: ...
    def __exit__(self, *error: object) -> None: ...
    def replay(self, rows: int = -1, sequences: int = -1) -> None:
        """rows, sequences: of this time, where there is a capacity; else as they were."""

def run_pass(name: str, arrays: Sequence[np.ndarray | None], numbers: Sequence[float] = ()) -> list[np.ndarray]:
    """Makes the pass `name` of src/training.c over arrays and numbers in the order in which it takes them; the first
    array is a matrix, whose shape says how many rows and columns there are. Gives the results: those given among the
    arrays, and new ones in place of those that are None or left out. See train.passes and functions."""

# --- codes ---

@final
class Coded:
    """Activations in codes: codes (rows, columns) uint8 or int8, x = scale * (codes - zero_point). scale (float32) and
    zero_point (int32) are one number each; or one per row, (rows,); or one per group of a row's columns, (rows,
    groups); or one per column for all rows, (1, columns). smoothed: the form, Smoothed, of codes that products see
    through weights of other scales, or None; its columns say what such codes stand for."""
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
    def __init__(
        self,
        codes: np.ndarray,
        scale: float | np.ndarray,
        zero_point: int | np.ndarray,
        smoothed: Smoothed | None = None,
    ) -> None: ...
    def dequantize(self) -> np.ndarray:
        """float32 (rows, columns), of codes with one scale, or one per row."""

def quantize(x: np.ndarray, form: PerToken | PerHead | Fixed | Smoothed, row_sums: np.ndarray | None = None) -> Coded:
    """x float32 (rows, columns) in `form`; row_sums int32 (rows,) gets the sums of each row's codes."""

def min_max(x: np.ndarray) -> tuple[float, float]:
    """Smallest and largest element of a float32 array that is not empty. CqError where it holds NaN or Inf."""

# --- weights ---

@disjoint_base
class Packed:
    """A weight (k, n) in panels of 16 columns, int8 or float32, as products read it: see weights.Weight and
    weights.FloatWeight. zero_points int32 and scales float32 (groups, n), or None; a group holds group_size rows.
    source: has a method `read` that gives the codes to pack when a product wants them, or None: `put`, `pack` or
    `pack_floats` comes first."""
    @property
    def k(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def group_size(self) -> int: ...
    @property
    def zero_points(self) -> np.ndarray | None: ...
    @property
    def scales(self) -> np.ndarray | None: ...
    @property
    def source(self) -> _Deferred | None: ...
    def __init__(
        self,
        k: int,
        n: int,
        group_size: int,
        zero_points: np.ndarray | None = None,
        scales: np.ndarray | None = None,
        source: _Deferred | None = None,
    ) -> None: ...
    def put(self, panels: np.ndarray, column_sums: np.ndarray | None = None) -> None:
        """Its arrays: int8 panels and their column sums, or float32 panels alone. Those that come first stay."""
    def pack(self, b: np.ndarray) -> None:
        """Packs int8 b (k, n) of any strides."""
    def pack_floats(self, b: np.ndarray) -> None:
        """Packs float32 b (k, n), of which one axis is contiguous."""
    def packed(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Panels and column sums; packed by now."""

# --- products ---

def matmul_integer(a: Coded, w: Packed) -> np.ndarray:
    """int32 (m, n) = (a - a.zero_point) (w - w.zero_points); scales are not used."""

def code_form(a: Coded, w: Packed) -> tuple[str, int]:
    """How this CPU multiplies the first block of rows (at most 144) of a product of codes: "whole", or clipped,
    "centred" or counted "from floor"; and how many groups of 4 codes have excess then, an even number for each row and
    sign. See src/README.md."""

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
) -> np.ndarray:
    """norm(act(x w + bias) + residual) in `form`; see cq_linear_args and cq_epilogue.

    x: Coded (integer products), or float32 (m, k) for products in float32, or coded on the way in where `coding`,
    PerToken or Fixed, says how. bias: float32 (n,). bias_i32: int32 (n,) at scale x.scale * w.scale. residual: float32
    (m, n) or Coded. norm: has weight, bias, eps and rms, as model.Norm. gated: act(gate) * up (m, n / 2) of the halves
    of x w + bias, transformed in blocks of `hadamard` where that is not 0. keep: "result": that; "both": a pair of it
    and, where it is in codes, the same in float32; "sum": a pair of it and what was normed, in `sum_form`: None or
    Fixed."""

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
def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray, add: bool) -> None:
    """out = a b, or out + a b, of float32 or float64 arrays a (..., m, k), b (..., k, n) and out (..., m, n), which
    shares no memory with them. At most 4 leading axes; those of a and b may be 1 or missing. See functions.matmul."""

# --- the layers of a transformer ---

def embed(
    id: np.ndarray,
    word: np.ndarray | Packed,
    position: np.ndarray | None = None,
    position_table: np.ndarray | None = None,
    type: np.ndarray | None = None,
    type_table: np.ndarray | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """float32 (tokens, columns) = scale * word[id] + position_table[position] + type_table[type or 0]. word: float32
    (vocabulary, columns), or a Packed (columns, vocabulary). CqError where an index is out of range."""

def norm(
    x: np.ndarray,
    norm: _Norm | None = None,
    residual: np.ndarray | None = None,
    form: ResultForm = None,
    keep_float: bool = True,
    keep_sum: bool = False,
    inner: _Norm | None = None,
    factor: float = 1.0,
) -> tuple[np.ndarray | None, Coded | None, np.ndarray | None]:
    """(y float32 or None, y in codes or None, s or None): s = factor * inner(x) + residual, y = norm(s). norm, inner:
    layer or RMS norms, with weight, bias, eps and rms, as model.Norm; or None: nothing is normed there."""

def cap(x: np.ndarray, factor: float = 1.0, most: float = 0.0) -> np.ndarray:
    """x float32 (rows, columns) to most * tanh(factor * x / most) in place, or to factor * x where most is 0. Gives
    x."""

def hadamard(x: np.ndarray, block: int) -> np.ndarray:
    """Each `block` neighbours in the rows of float32 x in place to their Hadamard transform over sqrt(block). Gives
    x."""

def gate(
    g: np.ndarray, u: np.ndarray, activation: str | None, form: ResultForm = None, hadamard: int = 0
) -> np.ndarray | Coded:
    """act(g) * u, both float32 (rows, columns), transformed in blocks of `hadamard` where that is not 0, in `form`."""

def rope(
    x: np.ndarray, heads: int, dim: int, cosine: np.ndarray, sine: np.ndarray, position: np.ndarray, hadamard: int = 0
) -> None:
    """Rotates the first heads * dim columns of x float32 (tokens, columns) in place; cosine and sine (positions, n):
    the first 2 n features of each head turn; position int32 (tokens,). hadamard: the size of a head's blocks that are
    transformed then, as by `hadamard`, or 0."""

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
) -> np.ndarray | Coded:
    """Attention over ragged sequences. qkv (tokens, (heads + 2 kv_heads) dim): queries, keys and values side by side,
    float32; or Coded, static with parameters per column that are equal within each of the three, or int8 symmetric with
    a scale per head (groups of dim columns). offsets int32 (sequences + 1,) from 0 to tokens. window: how far a token
    sees, or None: causal ones that many with itself, others that many to either side. cap: scores become cap *
    tanh(score / cap), or 0. bias float32 (heads, 2 n - 1), without a cap: [h, n - 1 + j - i] is added to the scaled
    score of query i and key j in sequences of at most n tokens. relative, in place of a bias: (keys, queries, rows),
    the keys and queries of relative positions float32 (heads * dim, positions), a multiple of 16, or None each, and
    int32 (2 n - 1,), descending: rows[n - 1 + j - i] is the position of key j as query i sees it, whose key and query
    meet those two. → (tokens, heads * dim) in `form`: None or, of codes, Fixed."""

@final
class Kept:
    """Keys and values that sequences have kept in one layer, as cq_kept says: what attention_kept reads and writes.
    dtype: float32 or int8."""
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
    ) -> None:
        """The arrays of a sequence of `length` tokens, of those from `first` on, a multiple of 64, flat: kv_heads *
        capacity times dim (keys; in int8 a multiple of 4), dim as a multiple of 16 (values), and in int8 1 (start) and,
        where tokens have their own, 3 (scales). A recorded call sees the latest ones."""
    def move(self, sequence: int, length: int) -> None:
        """The sequence has `length` tokens from now on."""

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
) -> np.ndarray | Coded:
    """Causal attention of new tokens to themselves and to what their sequences have kept; see cq_kept_args. qkv float32
    (tokens, (heads + 2 kv_heads) dim), changed in place by cosine, sine and hadamard as in rope where given. coding:
    None where float32 is kept; else PerHead, or Smoothed of the three, of which values alone may have scales of each
    feature's own. offsets int32 (sequences + 1,) from 0 to tokens, one sequence for each that is kept. window, cap: as
    in attention, causal. → (tokens, heads * dim) in `form`: None or, of codes, Fixed."""
