# cython: language_level=3, boundscheck=False, embedsignature=True
"""The only door to C: checks arrays, releases the GIL, calls, raises. Knows nothing of models or files.

Arrays must be C-contiguous and of the exact dtype; float32 is (rows, columns). `Coded` is an activation in codes, `Weight` a
packed int8 matrix; both are checked once, when they are made.
"""
import os
import numpy as np
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uintptr_t

from cq.errors import CqError, UnsupportedError

cdef extern from *:
    const char *COMPILER_VERSION "__VERSION__"

cdef extern from "cq.h" nogil:
    ctypedef enum cq_status: CQ_OK, CQ_NO_MEMORY, CQ_NOT_FINITE, CQ_OVERFLOW
    ctypedef enum cq_activation: CQ_IDENTITY, CQ_RELU, CQ_GELU, CQ_GELU_TANH, CQ_SILU
    enum: CQ_PANEL, CQ_MAX_K, CQ_HAS_AVX2, CQ_HAS_AVX512VNNI
    unsigned cq_cpu_features()
    int cq_select()
    const char *cq_isa()
    double cq_peak_i8(int64_t repeats)
    double cq_peak_f32(int64_t repeats)
    int cq_guard_fork()
    ctypedef struct cq_codes:
        void *codes
        int64_t stride
        int is_signed, symmetric, dynamic
        float scale
        int32_t zero_point
        float *scales
        int32_t *zero_points
        int32_t *row_sums
    ctypedef struct cq_coded:
        const void *codes
        int64_t stride
        int is_signed
        float scale
        int32_t zero_point
        const float *scales
        const int32_t *zero_points
    ctypedef struct cq_weight:
        const int8_t *panels
        const int32_t *column_sums
        const int32_t *zero_points
        const float *scales
        int64_t k, n, group_size
    ctypedef struct cq_epilogue:
        const float *bias
        const int32_t *bias_i32
        cq_activation activation
        const float *residual
        int64_t residual_stride
        const cq_coded *residual_coded
        float *out
        int64_t out_stride
        const cq_codes *codes
    ctypedef struct cq_norm_args:
        const float *x, *residual, *weight, *bias
        float eps
        int rms
        float *sum, *y
        const cq_codes *codes
    ctypedef struct cq_embed_args:
        const float *word_f32
        const int8_t *word_i8
        const float *scales
        const int32_t *zero_points
        int64_t panel
        const float *position_table, *type_table
        const int32_t *id, *position, *type
    ctypedef struct cq_attention_args:
        const int32_t *offsets
        int64_t sequences, heads, kv_heads, dim
        int causal
        float scale
    cq_status cq_quantize(int, const float *, int64_t, int64_t, const cq_codes *, int64_t *)
    void cq_dequantize(int, const cq_coded *, int64_t, int64_t, float *)
    cq_status cq_min_max(const float *, int64_t, float *, float *)
    int64_t cq_packed_bytes(int64_t, int64_t)
    void cq_pack(const int8_t *, int64_t, int64_t, int64_t, int64_t, const int32_t *, int8_t *, int32_t *)
    void cq_unpack(const cq_weight *, int8_t *)
    cq_status cq_matmul_i8(int, const cq_coded *, int64_t, const cq_weight *, int32_t *, int64_t)
    cq_status cq_linear_i8(int, const cq_coded *, int64_t, const cq_weight *, const cq_epilogue *)
    cq_status cq_linear_f32(int, const float *, int64_t, int64_t, const cq_weight *, const cq_epilogue *)
    void cq_finish_f32(int, const float *, int64_t, int64_t, int64_t, const cq_epilogue *)
    cq_status cq_norm(int, const cq_norm_args *, int64_t, int64_t, int64_t *)
    cq_status cq_gate(int, const float *, const float *, const cq_coded *, const cq_coded *, cq_activation, int64_t, int64_t,
                      float *, const cq_codes *, int64_t *)
    void cq_rope(int, float *, int64_t, int64_t, int64_t, int64_t, const float *, const float *, const int32_t *)
    void cq_embed(int, const cq_embed_args *, int64_t, int64_t, float *)
    cq_status cq_attention_f32(int, const cq_attention_args *, const float *, const float *, const float *, int64_t, int64_t,
                               float *, int64_t)
    cq_status cq_attention_i8(int, const cq_attention_args *, const cq_coded *, const cq_coded *, const cq_coded *, float *,
                              const cq_codes *)

MAX_K = CQ_MAX_K
COMPILER = "gcc " + COMPILER_VERSION.decode()
PANEL = CQ_PANEL
cdef dict ACTIVATIONS = {None: CQ_IDENTITY, "relu": CQ_RELU, "gelu": CQ_GELU, "gelu_tanh": CQ_GELU_TANH, "silu": CQ_SILU}
cdef dict KINDS = {"f": "float32", "i": "int32", "B": "uint8", "b": "int8"}
cdef int threads = 1


# --- the machine -------------------------------------------------------------------------------------------------------------

def _start():
    chosen = os.environ.get("CQ_ISA", "")
    status = cq_select()
    if status == 1:
        raise UnsupportedError(f"CQ_ISA={chosen!r} is not known; choose scalar, avx2 or avx512vnni, or unset it")
    if status == 2:
        raise UnsupportedError(f"CQ_ISA={chosen!r}: this CPU has only {', '.join(isa_available())}; choose one of these or unset it")
    if cq_guard_fork():
        raise MemoryError("cq: no memory to register the fork handler")


def isa() -> str:
    """The instruction set whose kernels run: "scalar", "avx2" or "avx512vnni"."""
    return cq_isa().decode()


def isa_available() -> list[str]:
    """What this CPU can run, slowest first."""
    cdef unsigned features = cq_cpu_features()
    return ["scalar"] + ["avx2"] * bool(features & CQ_HAS_AVX2) + ["avx512vnni"] * bool(features & CQ_HAS_AVX512VNNI)


def get_threads() -> int:
    return threads


def set_threads(int n) -> None:
    global threads
    threads = n


def peak(kind: str, int64_t repeats) -> float:
    """Runs the register-only loop of "int8" or "float32" on this thread; returns the operations done (a multiply-add is 2)."""
    cdef double operations
    cdef bint int8 = kind == "int8"
    with nogil:
        operations = cq_peak_i8(repeats) if int8 else cq_peak_f32(repeats)
    return operations


# --- the door ----------------------------------------------------------------------------------------------------------------

cdef void *pointer(array, str name, str kind, int ndim, int64_t rows, int64_t columns, bint writable=False) except? NULL:
    """The data of a C-contiguous array of this kind and shape; a negative size accepts any. The caller holds `array`."""
    cdef Py_buffer view
    cdef bint good
    try:
        PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0))
    except (TypeError, ValueError, BufferError) as error:
        raise CqError(f"{name}: need a C-contiguous {KINDS[kind]} array{' that can be written' if writable else ''}, "
                      f"got {describe(array)} ({error})") from None
    cdef void *data = view.buf
    good = view.format[0] == <char>ord(kind) and view.format[1] == 0 and view.ndim == ndim
    good = good and (rows < 0 or view.shape[0] == rows) and (ndim < 2 or columns < 0 or view.shape[1] == columns)
    PyBuffer_Release(&view)
    if not good:
        shape = ", ".join("any" if size < 0 else str(size) for size in (rows, columns)[:ndim])
        raise CqError(f"{name}: need a {KINDS[kind]} array of shape ({shape}), got {describe(array)}")
    return data


cdef void *optional(array, str name, str kind, int ndim, int64_t rows, int64_t columns) except? NULL:
    return NULL if array is None else pointer(array, name, kind, ndim, rows, columns)


cdef str describe(array):
    if hasattr(array, "dtype") and hasattr(array, "shape"):
        return f"{array.dtype} of shape {tuple(array.shape)}"
    return type(array).__name__


cdef int check(cq_status status, str what) except -1:
    if status == CQ_NO_MEMORY:
        raise MemoryError(f"{what}: no memory for work arrays")
    if status == CQ_OVERFLOW:
        raise CqError(f"{what}: a result does not fit int32, as it may with a weight's zero points and K above 33,025; "
                      "split K and add, or pack with zero_point=0")
    return 0


cdef int check_rows(cq_status status, int64_t bad, str what) except -1:
    if status == CQ_NOT_FINITE:
        raise CqError(f"{what}: NaN or Inf in row {bad}")
    return check(status, what)


cdef cq_activation activation_of(name) except *:
    if not isinstance(name, (str, type(None))) or name not in ACTIVATIONS:
        raise CqError(f"activation: {name!r} is not known; choose one of {', '.join(str(a) for a in ACTIVATIONS)}")
    return <cq_activation><int>ACTIVATIONS[name]


cdef class Coded:
    """Activations in codes: codes (rows, columns) uint8 or int8; scale and zero_point one number each, or arrays (rows,) of
    float32 and int32. x = scale * (codes - zero_point)."""
    cdef cq_coded c
    cdef readonly object codes, scale, zero_point
    cdef readonly int64_t rows, columns

    def __init__(self, codes, scale, zero_point):
        cdef bint is_signed = codes.dtype == np.int8
        self.rows, self.columns = codes.shape
        self.codes, self.scale, self.zero_point = codes, scale, zero_point
        self.c.codes = pointer(codes, "codes", "b" if is_signed else "B", 2, self.rows, self.columns)
        self.c.stride = self.columns
        self.c.is_signed = is_signed
        if isinstance(scale, np.ndarray):
            self.c.scales = <const float *>pointer(scale, "scale", "f", 1, self.rows, -1)
        else:
            self.c.scale = scale
        if isinstance(zero_point, np.ndarray):
            self.c.zero_points = <const int32_t *>pointer(zero_point, "zero_point", "i", 1, self.rows, -1)
        else:
            self.c.zero_point = zero_point

    @property
    def shape(self):
        return self.rows, self.columns

    @property
    def nbytes(self):
        return self.codes.nbytes

    def dequantize(self):
        """float32 (rows, columns)."""
        y = np.empty((self.rows, self.columns), np.float32)
        cdef float *out = <float *>pointer(y, "y", "f", 2, -1, -1, True)
        with nogil:
            cq_dequantize(threads, &self.c, self.rows, self.columns, out)
        return y


cdef class Weight:
    """int8 (k, n) packed in panels, with what its products need: column sums, zero points (n,) or None, scales
    (groups, n) float32 or None. Panels are 64-byte aligned."""
    cdef cq_weight w
    cdef readonly object panels, column_sums, zero_points, scales
    cdef readonly int64_t k, n, group_size

    def __init__(self, panels, column_sums, zero_points, scales, int64_t k, int64_t n, int64_t group_size):
        self.panels, self.column_sums, self.zero_points, self.scales = panels, column_sums, zero_points, scales
        self.k, self.n, self.group_size = k, n, group_size
        if not 0 <= k <= CQ_MAX_K or not 0 <= n < 1 << 31 or (k and group_size < 1):
            raise CqError(f"k, n, group_size: {k}, {n}, {group_size} are no packed weight's; cq.pack makes one")
        if group_size < k and group_size % 4:
            raise CqError(f"group_size: {group_size} is not a multiple of 4, the rows that a packed group holds; choose another")
        cdef int64_t groups = max(1, -(-k // group_size)) if group_size else 1
        self.w.panels = <const int8_t *>pointer(panels, "panels", "b", 1, cq_packed_bytes(k, n), -1)
        self.w.column_sums = <const int32_t *>pointer(column_sums, "column_sums", "i", 1, n, -1)
        self.w.zero_points = <const int32_t *>optional(zero_points, "zero_points", "i", 2, groups, n)
        self.w.scales = <const float *>optional(scales, "scales", "f", 2, groups, n)
        self.w.k, self.w.n, self.w.group_size = k, n, group_size

    @property
    def shape(self):
        return self.k, self.n

    @property
    def nbytes(self):
        return sum(a.nbytes for a in (self.panels, self.column_sums, self.zero_points, self.scales) if a is not None)

    def unpack(self):
        """The codes, int8 (k, n)."""
        b = np.empty((self.k, self.n), np.int8)
        cdef int8_t *out = <int8_t *>pointer(b, "b", "b", 2, -1, -1, True)
        with nogil:
            cq_unpack(&self.w, out)
        return b


cdef aligned(int64_t size):
    """int8 (size,), 64-byte aligned."""
    whole = np.empty(size + 64, np.int8)
    skip = -<uintptr_t>pointer(whole, "panels", "b", 1, -1, -1) % 64
    return whole[skip:skip + size]


def pack(b, zero_points=None, scales=None, int64_t group_size=0) -> Weight:
    """b int8 (k, n), any strides; zero_points int32 (groups, n) or None; scales float32 (groups, n) or None; a group holds
    group_size rows of b (0: all of them)."""
    if b.dtype != np.int8 or b.ndim != 2:
        raise CqError(f"b: need an int8 array of two dimensions, got {describe(b)}")
    cdef int64_t k = b.shape[0], n = b.shape[1], row_stride = b.strides[0], column_stride = b.strides[1]
    panels, sums = aligned(cq_packed_bytes(k, n)), np.empty(n, np.int32)
    cdef const int8_t *codes = <const int8_t *><uintptr_t>b.__array_interface__["data"][0]
    cdef int8_t *to = <int8_t *>pointer(panels, "panels", "b", 1, -1, -1, True)
    cdef int32_t *column_sums = <int32_t *>pointer(sums, "column_sums", "i", 1, n, -1, True)
    cdef const int32_t *zeros = <const int32_t *>optional(zero_points, "zero_points", "i", 2, -1, n)
    with nogil:
        cq_pack(codes, row_stride, column_stride, k, n, zeros, to, column_sums)
    return Weight(panels, sums, zero_points, scales, k, n, group_size or k)


# --- where results go --------------------------------------------------------------------------------------------------------

cdef class Target:
    """A new array for rows x columns results: float32, or codes. `form` is None for float32, (dtype, symmetric, scale,
    zero_point) for static codes, (dtype, symmetric) for codes with each row's own parameters."""
    cdef cq_codes codes
    cdef const cq_codes *coded
    cdef float *floats
    cdef object result

    def __init__(self, int64_t rows, int64_t columns, form):
        if form is None:
            self.result = np.empty((rows, columns), np.float32)
            self.floats = <float *>pointer(self.result, "out", "f", 2, rows, columns, True)
            return
        dtype, self.codes.symmetric = form[0], form[1]
        self.codes.is_signed = dtype == "int8"
        codes = np.empty((rows, columns), dtype)
        self.codes.codes = pointer(codes, "out", "b" if self.codes.is_signed else "B", 2, rows, columns, True)
        self.codes.stride = columns
        self.coded = &self.codes
        if len(form) == 4:
            scale, zero_point = form[2], form[3]
            self.codes.scale, self.codes.zero_point = scale, zero_point
        else:
            scale, zero_point = np.empty(rows, np.float32), np.empty(rows, np.int32)
            self.codes.dynamic = 1
            self.codes.scales = <float *>pointer(scale, "scale", "f", 1, rows, -1, True)
            self.codes.zero_points = <int32_t *>pointer(zero_point, "zero_point", "i", 1, rows, -1, True)
        self.result = Coded(codes, scale, zero_point)


def quantize(x, form, row_sums=None) -> Coded:
    """x float32 (rows, columns) → codes in `form` (see Target); row_sums int32 (rows,) gets the sums of each row's codes."""
    cdef int64_t rows = x.shape[0], columns = x.shape[1], bad = 0
    cdef Target to = Target(rows, columns, form)
    cdef const float *data = <const float *>pointer(x, "x", "f", 2, rows, columns)
    cdef cq_status status
    if row_sums is not None:
        to.codes.row_sums = <int32_t *>pointer(row_sums, "row_sums", "i", 1, rows, -1, True)
    with nogil:
        status = cq_quantize(threads, data, rows, columns, to.coded, &bad)
    check_rows(status, bad, "x")
    return to.result


def min_max(x) -> tuple[float, float]:
    """Smallest and largest element of a float32 array, C-contiguous and not empty. NaN or Inf: CqError."""
    flat = x.reshape(-1)
    cdef int64_t n = flat.shape[0]
    cdef const float *data = <const float *>pointer(flat, "x", "f", 1, n, -1)
    cdef float lo, hi
    cdef cq_status status
    with nogil:
        status = cq_min_max(data, n, &lo, &hi)
    if status != CQ_OK:
        raise CqError(f"x: NaN or Inf at index {int(np.flatnonzero(~np.isfinite(flat))[0])}")
    return lo, hi


# --- products ----------------------------------------------------------------------------------------------------------------

def matmul_integer(Coded a not None, Weight w not None):
    """int32 (m, n) = (a - a.zero_point) (w - w.zero_points); scales are not used."""
    if a.columns != w.k:
        raise CqError(f"a: {a.columns} columns do not match the {w.k} rows of the packed weight")
    c = np.empty((a.rows, w.n), np.int32)
    cdef int32_t *out = <int32_t *>pointer(c, "c", "i", 2, a.rows, w.n, True)
    cdef cq_status status
    with nogil:
        status = cq_matmul_i8(threads, &a.c, a.rows, &w.w, out, w.n)
    check(status, "matmul_integer")
    return c


def linear(x, Weight w not None, bias=None, bias_i32=None, activation=None, residual=None, form=None):
    """act(x w + bias) + residual in `form` (see Target). x Coded (integer products) or float32 (m, k) (weight-only);
    bias float32 (n,), bias_i32 int32 (n,) at scale x.scale * w.scale; residual float32 (m, n) or Coded."""
    cdef Coded coded = x if isinstance(x, Coded) else None
    cdef int64_t m = x.shape[0], k = x.shape[1]
    if k != w.k:
        raise CqError(f"x: {k} columns do not match the {w.k} rows of the weight")
    if w.scales is None:
        raise CqError("w: the packed weight has no scales; pack a QTensor")
    cdef Target to = Target(m, w.n, form)
    cdef cq_epilogue e = epilogue(to, m, w.n, bias, bias_i32, activation, residual)
    cdef const float *floats = NULL
    cdef cq_status status
    if coded is None:
        floats = <const float *>pointer(x, "x", "f", 2, m, k)
    with nogil:
        status = cq_linear_f32(threads, floats, m, k, &w.w, &e) if floats else cq_linear_i8(threads, &coded.c, m, &w.w, &e)
    check(status, "linear")
    return to.result


def finish(x, bias=None, activation=None, residual=None, form=None):
    """act(x + bias) + residual in `form`: what follows a float32 product x (m, n). With form None, x itself is the result."""
    cdef int64_t m = x.shape[0], n = x.shape[1]
    cdef Target to = Target(m, n, form) if form is not None else Target.__new__(Target)
    cdef const float *data = <const float *>pointer(x, "x", "f", 2, m, n, form is None)
    if form is None:
        to.result, to.floats = x, <float *>data
    cdef cq_epilogue e = epilogue(to, m, n, bias, None, activation, residual)
    with nogil:
        cq_finish_f32(threads, data, m, n, n, &e)
    return to.result


cdef cq_epilogue epilogue(Target to, int64_t m, int64_t n, bias, bias_i32, activation, residual) except *:
    cdef cq_epilogue e
    if to.codes.dynamic:
        raise CqError("form: products give float32 or codes of a given scale; quantize the result for each row's own")
    e.bias = <const float *>optional(bias, "bias", "f", 1, n, -1)
    e.bias_i32 = <const int32_t *>optional(bias_i32, "bias_i32", "i", 1, n, -1)
    e.activation = activation_of(activation)
    e.residual, e.residual_stride, e.residual_coded = NULL, n, NULL
    if isinstance(residual, Coded):
        e.residual_coded = &(<Coded>residual).c
        if (<Coded>residual).rows != m or (<Coded>residual).columns != n:
            raise CqError(f"residual: need shape ({m}, {n}), got {residual.shape}")
    else:
        e.residual = <const float *>optional(residual, "residual", "f", 2, m, n)
    e.out, e.out_stride, e.codes = to.floats, n, to.coded
    return e


# --- the rest of a transformer -----------------------------------------------------------------------------------------------

def norm(x, weight, bias, float eps, bint rms, residual=None, form=None, bint keep_float=True, bint keep_sum=False):
    """Layer or RMS norm of x + residual: (y float32 or None, y in codes or None, x + residual or None)."""
    cdef int64_t rows = x.shape[0], columns = x.shape[1], bad = 0
    cdef cq_norm_args a
    cdef Target y = Target(rows, columns, None) if keep_float else None
    cdef Target codes = Target(rows, columns, form) if form is not None else None
    cdef Target total = Target(rows, columns, None) if keep_sum else None
    cdef cq_status status
    a.x = <const float *>pointer(x, "x", "f", 2, rows, columns)
    a.residual = <const float *>optional(residual, "residual", "f", 2, rows, columns)
    a.weight = <const float *>pointer(weight, "weight", "f", 1, columns, -1)
    a.bias = <const float *>optional(bias, "bias", "f", 1, columns, -1)
    a.eps, a.rms = eps, rms
    a.sum = total.floats if total is not None else NULL
    a.y = y.floats if y is not None else NULL
    a.codes = codes.coded if codes is not None else NULL
    with nogil:
        status = cq_norm(threads, &a, rows, columns, &bad)
    check_rows(status, bad, "norm")
    return (y.result if y is not None else None, codes.result if codes is not None else None,
            total.result if total is not None else None)


def gate(g, u, activation, form=None):
    """act(g) * u, both (rows, columns) float32 or Coded, in `form`."""
    cdef int64_t rows = g.shape[0], columns = g.shape[1], bad = 0
    cdef Target to = Target(rows, columns, form)
    cdef cq_activation act = activation_of(activation)
    cdef const float *gf = NULL
    cdef const float *uf = NULL
    cdef const cq_coded *gc = NULL
    cdef const cq_coded *uc = NULL
    cdef cq_status status
    if (rows, columns) != tuple(u.shape):
        raise CqError(f"up: need shape ({rows}, {columns}) like the gate's, got {tuple(u.shape)}")
    if isinstance(g, Coded): gc = &(<Coded>g).c
    else: gf = <const float *>pointer(g, "gate", "f", 2, rows, columns)
    if isinstance(u, Coded): uc = &(<Coded>u).c
    else: uf = <const float *>pointer(u, "up", "f", 2, rows, columns)
    with nogil:
        status = cq_gate(threads, gf, uf, gc, uc, act, rows, columns, to.floats, to.coded, &bad)
    check_rows(status, bad, "gate")
    return to.result


def rope(x, int64_t heads, cosine, sine, position):
    """Rotates x float32 (tokens, heads * dim) in place; cosine and sine (positions, dim / 2); position int32 (tokens,)."""
    cdef int64_t tokens = x.shape[0], width = x.shape[1], dim = width // heads
    cdef float *data = <float *>pointer(x, "x", "f", 2, tokens, heads * dim, True)
    cdef const float *c = <const float *>pointer(cosine, "cosine", "f", 2, -1, dim // 2)
    cdef const float *s = <const float *>pointer(sine, "sine", "f", 2, cosine.shape[0], dim // 2)
    cdef const int32_t *at = <const int32_t *>pointer(position, "position", "i", 1, tokens, -1)
    with nogil:
        cq_rope(threads, data, tokens, heads, dim, width, c, s, at)


def embed(id, word, position=None, position_table=None, type=None, type_table=None):
    """float32 (tokens, columns) = word[id] + position_table[position] + type_table[type]. word: float32 (vocabulary, columns),
    or a Weight (columns, vocabulary). Ids must be in range: the caller checks."""
    cdef cq_embed_args a
    cdef int64_t tokens = id.shape[0], columns
    cdef Weight packed
    a.word_f32, a.word_i8, a.scales, a.zero_points, a.panel = NULL, NULL, NULL, NULL, 1
    if isinstance(word, Weight):
        packed = word
        columns = packed.k
        a.word_i8, a.scales, a.zero_points, a.panel = packed.w.panels, packed.w.scales, packed.w.zero_points, CQ_PANEL
    else:
        columns = word.shape[1]
        a.word_f32 = <const float *>pointer(word, "word", "f", 2, -1, columns)
    a.id = <const int32_t *>pointer(id, "id", "i", 1, tokens, -1)
    a.position_table = <const float *>optional(position_table, "position_table", "f", 2, -1, columns)
    a.position = <const int32_t *>optional(position, "position", "i", 1, tokens, -1)
    a.type_table = <const float *>optional(type_table, "type_table", "f", 2, -1, columns)
    a.type = <const int32_t *>optional(type, "type", "i", 1, tokens, -1)
    cdef Target to = Target(tokens, columns, None)
    with nogil:
        cq_embed(threads, &a, tokens, columns, to.floats)
    return to.result


def attention(q, k, v, offsets, int64_t heads, int64_t kv_heads, bint causal, float scale, form=None):
    """Attention over ragged sequences: q (tokens, heads * dim), k and v (tokens, kv_heads * dim), all float32 or all Coded
    with one scale each; offsets int32 (sequences + 1,) from 0 to tokens. → (tokens, heads * dim) in `form` (static codes)."""
    cdef cq_attention_args a
    cdef int64_t tokens = q.shape[0], width = q.shape[1], kv_width = kv_heads * (width // heads)
    a.offsets = <const int32_t *>pointer(offsets, "offsets", "i", 1, -1, -1)
    a.sequences, a.heads, a.kv_heads, a.dim = offsets.shape[0] - 1, heads, kv_heads, width // heads
    a.causal, a.scale = causal, scale
    cdef Target to = Target(tokens, width, form)
    if to.codes.dynamic:
        raise CqError("form: attention gives float32 or codes of a given scale; quantize the result for each row's own")
    cdef cq_status status
    cdef const float *qf
    cdef const float *kf
    cdef const float *vf
    cdef Coded qc, kc, vc
    if isinstance(q, Coded):
        qc, kc, vc = q, k, v
        for one, columns in ((qc, width), (kc, kv_width), (vc, kv_width)):
            if one.shape != (tokens, columns) or isinstance(one.scale, np.ndarray):
                raise CqError(f"attention: need codes of shape ({tokens}, {columns}) with one scale, got {one.shape}")
        with nogil:
            status = cq_attention_i8(threads, &a, &qc.c, &kc.c, &vc.c, to.floats, to.coded)
    else:
        if form is not None:
            raise CqError("attention: float32 inputs give float32; quantize the result")
        qf = <const float *>pointer(q, "q", "f", 2, tokens, width)
        kf = <const float *>pointer(k, "k", "f", 2, tokens, kv_width)
        vf = <const float *>pointer(v, "v", "f", 2, tokens, kv_width)
        with nogil:
            status = cq_attention_f32(threads, &a, qf, kf, vf, width, kv_width, to.floats, width)
    check(status, "attention")
    return to.result


_start()
