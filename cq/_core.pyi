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

def get_threads() -> int: ...
def set_threads(n: int) -> None: ...
def keep_freed(on: bool) -> None: ...
def peak(kind: str, repeats: int) -> float: ...

# --- calls that are made again ---

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
    def replay(self, rows: int = -1, sequences: int = -1) -> None: ...

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
    def dequantize(self) -> np.ndarray: ...

def quantize(
    x: np.ndarray, form: PerToken | PerHead | Fixed | Smoothed, row_sums: np.ndarray | None = None
) -> Coded: ...
def min_max(x: np.ndarray) -> tuple[float, float]: ...

# --- weights ---

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
    def __init__(self, panels: np.ndarray, k: int, n: int) -> None: ...
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

def pack(
    b: np.ndarray | _Deferred,
    zero_points: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    group_size: int = 0,
) -> Weight:
    """A Weight of b: int8 (k, n), any strides, or what has dtype, shape and a method `read` that gives such codes when
    they are wanted; zero_points int32 (groups, n) or None; scales float32 (groups, n) or None; a group holds group_size
    rows of b (0: all of them)."""

def pack_floats(b: np.ndarray) -> FloatWeight: ...

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
    shares no memory with them; see functions.matmul."""

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

def cap(x: np.ndarray, factor: float = 1.0, most: float = 0.0) -> np.ndarray: ...
def hadamard(x: np.ndarray, block: int) -> np.ndarray: ...
def gate(
    g: np.ndarray, u: np.ndarray, activation: str | None, form: ResultForm = None, hadamard: int = 0
) -> np.ndarray | Coded: ...
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
) -> np.ndarray | Coded:
    """Causal attention of new tokens to themselves and to what their sequences have kept; see cq_kept_args. qkv float32
    (tokens, (heads + 2 kv_heads) dim), changed in place by cosine, sine and hadamard as in rope where given. coding:
    None where float32 is kept; else PerHead, or Smoothed of the three, of which values alone may have scales of each
    feature's own. offsets int32 (sequences + 1,) from 0 to tokens, one sequence for each that is kept. window, cap: as
    in attention, causal. → (tokens, heads * dim) in `form`: None or, of codes, Fixed."""

# --- float32, for training and analysis ---

def elementary(name: str, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """A new array: the function of each element of x, float64 or float32 of any shape; float32 is computed in float64
    and rounded once. name: exp, log, sin, cos, tanh, or power, which takes x to y: float64, (1,) or flat, one per
    element."""

def dot_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray: ...
def column_sums(x: np.ndarray) -> np.ndarray: ...
def slope(x: np.ndarray, activation: str | None) -> tuple[np.ndarray, np.ndarray]: ...
def round_codes(
    x: np.ndarray, scales: np.ndarray, lows: np.ndarray, highs: np.ndarray, shifts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """clip(rint(x / scales), lows, highs) + shifts, whole numbers in float32, of finite float32 x (rows, n); the same
    from lows on as uint8; and which rows were clipped, bool (rows,). scales, lows, highs, shifts: float32, all (1,),
    (rows,) or (1, n)."""

def exponents(x: np.ndarray, factor: float, coded: bool) -> np.ndarray:
    """Each row of float32 x (..., n) to exp(factor * (x - max)) or, coded, rint(255 * 2^(factor * (x - max))) as int8
    attention has it, in place; -Inf to 0. Gives the rows' sums, float32 (..., 1)."""

def softmax_back(g: np.ndarray, p: np.ndarray, inverses: np.ndarray, factor: float) -> None:
    """The reverse of softmax along the last axis: g = factor * (g - sum(g * w)) * w in place, w = p * inverses. float32
    g and p (..., n), inverses (..., 1)."""

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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Layer or RMS norm of float32 x (rows, n), with weight and optional bias (n,): the result; what weight and bias
    follow; and the inverse (rows,) of what each row was divided by."""

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
) -> None:
    """A step of AdamW over flat float32 arrays (n,), of which p, mean and square change; units (n,) or None. choices:
    beta1, beta2, gradient, gradient_square, root, epsilon, rate, keep (see cq_adamw). row_rates (rows,): what the rate
    is multiplied by in each of so many equal parts."""
