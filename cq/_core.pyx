# cython: language_level=3, boundscheck=False, embedsignature=True, binding=False
"""The only door to C: checks arrays, releases the GIL, calls, raises. Knows nothing of models or files.

Arrays must be C-contiguous and of the exact dtype; float32 is (rows, columns). `Coded` is an activation in codes, `Weight` a
packed int8 matrix; both are checked once, when they are made.
"""
import os
import numpy as np
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDED_RO, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, \
    PyObject_GetBuffer, Py_buffer
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdlib cimport calloc, free
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
        const float *column_scales
        const float *column_inverses
        const int32_t *column_zero_points
        int64_t group
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
        const float *floats
    ctypedef struct cq_norm:
        const float *weight, *bias
        float eps
        int rms
    ctypedef struct cq_epilogue:
        const float *bias
        const int32_t *bias_i32
        cq_activation activation
        int gated
        const float *residual
        int64_t residual_stride
        const cq_coded *residual_coded
        float *out
        int64_t out_stride
        const cq_codes *sum_codes
        const cq_norm *norm
        float *norm_out
        const cq_codes *codes
    ctypedef struct cq_norm_args:
        const float *x, *residual
        cq_norm norm
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
    ctypedef struct cq_kept:
        int64_t length, capacity
        void *keys
        void *values
        int32_t *start
        float *scales
    ctypedef struct cq_kept_args:
        const int32_t *offsets
        int64_t sequences, heads, kv_heads, dim
        float scale
        const float *cosine
        const float *sine
        const cq_kept *kept
        const cq_codes *form
        const cq_codes *codes
        cq_coded q, k, v
    cq_status cq_attention_kept(int, const cq_kept_args *, float *, float *, int64_t *)
    cq_status cq_quantize(int, const float *, int64_t, int64_t, const cq_codes *, int64_t *)
    void cq_dequantize(int, const cq_coded *, int64_t, int64_t, float *)
    cq_status cq_min_max(const float *, int64_t, float *, float *)
    int64_t cq_packed_bytes(int64_t, int64_t)
    void *cq_weight_memory(int64_t)
    void cq_weight_free(void *, int64_t)
    void cq_pack(const int8_t *, int64_t, int64_t, int64_t, int64_t, const int32_t *, int8_t *, int32_t *)
    void cq_unpack(const cq_weight *, int8_t *)
    void cq_pack_f32(int, const float *, int64_t, int64_t, int64_t, int64_t, float *)
    cq_status cq_matmul_i8(int, const cq_coded *, int64_t, const cq_weight *, int32_t *, int64_t)
    cq_status cq_linear_i8(int, const cq_coded *, int64_t, const cq_weight *, const cq_epilogue *, int64_t *)
    cq_status cq_linear_coding(int, const float *, int64_t, int64_t, const cq_codes *, const cq_weight *, const cq_epilogue *,
                               int64_t *)
    cq_status cq_linear_f32(int, const float *, int64_t, int64_t, const cq_weight *, const cq_epilogue *, int64_t *)
    ctypedef struct cq_products_f32:
        const float *a
        const float *b
        float *c
        int64_t a_row, a_column, b_row, b_column, c_row, m, n, k, count
        const int64_t *a_at
        const int64_t *b_at
        const int64_t *c_at
        int add
    ctypedef struct cq_product_f64:
        const double *a
        const double *b
        double *c
        int64_t a_row, a_column, b_row, b_column, c_row, m, n, k
        int add
    cq_status cq_multiply_f32(int, const cq_products_f32 *)
    cq_status cq_multiply_f64(int, const cq_product_f64 *)
    cq_status cq_norm_rows(int, const cq_norm_args *, int64_t, int64_t, int64_t *)
    cq_status cq_gate(int, const float *, const float *, cq_activation, int64_t, int64_t, float *, const cq_codes *, int64_t *)
    void cq_rope(int, float *, int64_t, int64_t, int64_t, int64_t, const float *, const float *, const int32_t *)
    void cq_embed(int, const cq_embed_args *, int64_t, int64_t, float *)
    cq_status cq_attention_f32(int, const cq_attention_args *, const float *, const float *, const float *, int64_t, int64_t,
                               float *, int64_t)
    cq_status cq_attention_i8(int, const cq_attention_args *, const cq_coded *, const cq_coded *, const cq_coded *, int64_t,
                              float *, const cq_codes *)
    enum: CQ_BY_ONE, CQ_BY_ROW, CQ_BY_COLUMN
    ctypedef struct cq_rounding:
        int by
        const float *scales
        const float *lows
        const float *highs
        const float *shifts
    ctypedef struct cq_adamw:
        float beta1, beta2, gradient, gradient_square, root, epsilon, rate, keep
    void cq_dot_rows(int, const float *, const float *, int64_t, int64_t, float *)
    void cq_column_sums(int, const float *, int64_t, int64_t, float *)
    void cq_slope(int, const float *, int64_t, cq_activation, float *, float *)
    void cq_round(int, const float *, int64_t, int64_t, const cq_rounding *, float *, uint8_t *, uint8_t *)
    void cq_exponents(int, float *, int64_t, int64_t, float, int, float *)
    void cq_softmax_back(int, float *, const float *, int64_t, int64_t, const float *, float)
    ctypedef struct cq_rescaling:
        const float *before
        const float *scales
        const float *row_scales
        const float *after
    void cq_rescale(int, const float *, int64_t, int64_t, const cq_rescaling *, float *)
    void cq_norm_kept(int, const cq_norm *, const float *, int64_t, int64_t, float *, float *, float *)
    void cq_norm_back(int, const cq_norm *, const float *, const float *, const float *, int64_t, int64_t, float *, float *)
    void cq_keep_freed(int)
    void cq_adamw_step(int, const cq_adamw *, const float *, int64_t, const float *, float *, float *, float *)
    ctypedef enum cq_function: CQ_EXP, CQ_LOG, CQ_SIN, CQ_COS, CQ_TANH, CQ_POWER
    void cq_elementary(int, cq_function, const void *, const double *, int64_t, int64_t, int, void *)

MAX_K = CQ_MAX_K
COMPILER = "gcc " + COMPILER_VERSION.decode()
PANEL = CQ_PANEL
cdef dict ACTIVATIONS = {None: CQ_IDENTITY, "relu": CQ_RELU, "gelu": CQ_GELU, "gelu_tanh": CQ_GELU_TANH, "silu": CQ_SILU}
cdef dict FUNCTIONS = {"exp": CQ_EXP, "log": CQ_LOG, "sin": CQ_SIN, "cos": CQ_COS, "tanh": CQ_TANH, "power": CQ_POWER}
cdef dict KINDS = {"f": "float32", "d": "float64", "i": "int32", "B": "uint8", "b": "int8"}
cdef int threads = 1, trainings = 0
# NumPy's own objects, looked up once: a small product is done in the time that some look-ups take.
cdef object new_array = np.empty, INT8 = np.dtype(np.int8), FLOAT32 = np.dtype(np.float32), INT32 = np.dtype(np.int32)
cdef dict DTYPES = {"int8": INT8, "uint8": np.dtype(np.uint8)}


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


def keep_freed(bint on) -> None:
    """Begins or ends a training. While there is one, freed memory stays with malloc for the whole process (see cq_keep_freed)."""
    global trainings
    trainings += 1 if on else -1
    cq_keep_freed(trainings > 0)


def peak(kind: str, int64_t repeats) -> float:
    """Runs the register-only loop of "int8" or "float32" on this thread; returns the operations done (a multiply-add is 2)."""
    cdef double operations
    cdef bint int8 = kind == "int8"
    with nogil:
        operations = cq_peak_i8(repeats) if int8 else cq_peak_f32(repeats)
    return operations


# --- calls that are made again -----------------------------------------------------------------------------------------------

cdef dict tapes = {}  # thread → the tape that records its calls


cdef class Step:
    """One checked call of C and all that it needs: the arrays that it reads and those that it fills. rows: of both, the tokens."""
    cdef int64_t rows, sequences

    cdef int go(self) except -1:
        return 0

    cdef int first(self) except -1:
        """Makes the call, and keeps it where this thread records."""
        self.go()
        if tapes:
            tape = tapes.get(PyThread_get_thread_ident())
            if tape is not None:
                (<Tape>tape).steps.append(self)
        return 0


cdef class Tape:
    """Records this thread's calls, `with` it, and makes them again: the same functions on the same arrays, whose contents may have
    changed meanwhile, without the Python in between. Recorded are embed, norm, linear, gate, rope, attention, quantize, dequantize
    and attend; what else happened, NumPy's work included, is not. Results stand in the arrays that the recorded calls returned.
    capacity: tokens that these arrays hold and are recorded with, for calls that are made again with fewer, or 0."""
    cdef list steps
    cdef readonly int64_t capacity

    def __init__(self, int64_t capacity=0):
        self.steps, self.capacity = [], capacity

    def __enter__(self):
        tapes[PyThread_get_thread_ident()] = self
        return self

    def __exit__(self, *error):
        del tapes[PyThread_get_thread_ident()]

    def replay(self, int64_t rows=-1, int64_t sequences=-1) -> None:
        """rows, sequences: of this time, where there is a capacity; else as they were."""
        cdef Step step
        if rows > self.capacity or (rows < 0) != (self.capacity == 0):
            raise CqError(f"rows: the tape holds {self.capacity or 'as many tokens as it was recorded with'}, got {rows}")
        for step in self.steps:
            if rows >= 0:
                step.rows, step.sequences = rows, sequences
            step.go()


cdef object empty(int64_t rows, columns, dtype):
    """A new array (rows, columns), or (rows,), with room for as many rows as a recording tape asks for."""
    tape = tapes.get(PyThread_get_thread_ident()) if tapes else None
    cdef int64_t room = rows if tape is None else max(rows, (<Tape>tape).capacity)
    found = new_array(room if columns is None else (room, columns), dtype)
    return found if room == rows else found[:rows]


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
    """Activations in codes: codes (rows, columns) uint8 or int8, x = scale * (codes - zero_point). scale (float32) and zero_point
    (int32) are one number each; or one per row, (rows,); or one per group of a row's columns, (rows, groups); or one per column
    for all rows, (1, columns). decode: None, or (scale, zero_point), arrays (1, columns), that say what the codes stand for where
    products see it through weights of other scales."""
    cdef cq_coded c
    cdef readonly object codes, scale, zero_point, decode
    cdef readonly int64_t rows, columns

    def __init__(self, codes, scale, zero_point, decode=None):
        cdef bint is_signed = codes.dtype == INT8
        self.decode = decode
        self.rows, self.columns = codes.shape
        self.codes, self.scale, self.zero_point = codes, scale, zero_point
        self.c.codes = pointer(codes, "codes", "b" if is_signed else "B", 2, self.rows, self.columns)
        self.c.stride = self.columns
        self.c.is_signed = is_signed
        if type(scale) is float or not isinstance(scale, np.ndarray):
            self.c.scale = scale
        elif scale.ndim == 1:
            self.c.scales = <const float *>pointer(scale, "scale", "f", 1, self.rows, -1)
        else:
            pointer(scale, "scale", "f", 2, -1, -1)
        if type(zero_point) is int or not isinstance(zero_point, np.ndarray):
            self.c.zero_point = zero_point
        elif zero_point.ndim == 1:
            self.c.zero_points = <const int32_t *>pointer(zero_point, "zero_point", "i", 1, self.rows, -1)
        else:
            pointer(zero_point, "zero_point", "i", 2, -1, -1)

    cdef bint by_rows(self):
        """Whether there is one scale for all, or one per row."""
        return type(self.scale) is float or not isinstance(self.scale, np.ndarray) or self.scale.ndim == 1

    @property
    def shape(self):
        return self.rows, self.columns

    @property
    def nbytes(self):
        return self.codes.nbytes

    def dequantize(self):
        """float32 (rows, columns)."""
        if self.decode is not None or not self.by_rows():
            parts = [np.repeat(p, self.columns // p.shape[1], 1) for p in self.decode or (self.scale, self.zero_point)]
            return parts[0] * (self.codes - parts[1]).astype(np.float32)
        cdef Decoding step = Decoding()
        step.coded, step.rows, step.y = self, self.rows, empty(self.rows, self.columns, np.float32)
        step.out = <float *>pointer(step.y, "y", "f", 2, -1, -1, True)
        step.first()
        return step.y


cdef class Decoding(Step):
    cdef Coded coded
    cdef object y
    cdef float *out

    cdef int go(self) except -1:
        with nogil:
            cq_dequantize(threads, &self.coded.c, self.rows, self.coded.columns, self.out)
        return 0


cdef class Packed:
    """A weight (k, n) packed in panels of 16 columns."""
    cdef cq_weight w
    cdef readonly int64_t k, n, group_size

    cdef cq_weight *ready(self) except NULL:
        """For kernels: packed by now."""
        return &self.w

    @property
    def shape(self):
        return self.k, self.n


cdef class FloatWeight(Packed):
    """float32 (k, n). panels: float32 (ceil(n / 16) * k * 16,), 64-byte aligned; see cq_pack_f32."""
    cdef readonly object panels

    def __init__(self, panels, int64_t k, int64_t n):
        self.panels, self.k, self.n, self.group_size = panels, k, n, k
        self.w.floats = <const float *>pointer(panels, "panels", "f", 1, (n + CQ_PANEL - 1) // CQ_PANEL * CQ_PANEL * k, -1)
        self.w.k, self.w.n, self.w.group_size = k, n, k

    @property
    def nbytes(self):
        return self.panels.nbytes

    def columns(self, int64_t first, int64_t last) -> FloatWeight:
        """Some columns as a weight that shares this one's memory. first: a multiple of 16."""
        return FloatWeight(self.panels[first * self.k:(last + CQ_PANEL - 1) // CQ_PANEL * CQ_PANEL * self.k], self.k, last - first)

    def unpack(self):
        """float32 (k, n), laid out by columns: as (n, k) it is contiguous."""
        whole = self.panels.reshape(-1, self.k, CQ_PANEL).transpose(0, 2, 1)
        return np.ascontiguousarray(whole).reshape(-1, self.k)[:self.n].T


def pack_floats(b) -> FloatWeight:
    """b float32 (k, n), of which one axis is contiguous."""
    if b.dtype != np.float32 or b.ndim != 2:
        raise CqError(f"b: need a float32 array of two dimensions, got {describe(b)}")
    cdef Py_buffer view
    cdef int64_t k = b.shape[0], n = b.shape[1]
    panels = aligned((n + CQ_PANEL - 1) // CQ_PANEL * CQ_PANEL * k * 4).view(np.float32)
    cdef float *to = <float *>pointer(panels, "panels", "f", 1, -1, -1, True)
    operand(b, "b", &view, False)
    try:
        with nogil:
            cq_pack_f32(threads, <const float *>view.buf, view.strides[0] // 4, view.strides[1] // 4, k, n, to)
    finally:
        PyBuffer_Release(&view)
    return FloatWeight(panels, k, n)


cdef class Weight(Packed):
    """int8 (k, n) packed in panels, with what its products need: column sums, zero points (n,) or None, scales
    (groups, n) float32 or None. Panels are 64-byte aligned. source: in place of panels and sums, has a method `read` that gives the
    codes to pack when they are wanted."""
    cdef object source, ready_panels, ready_sums
    cdef readonly object zero_points, scales
    cdef readonly float largest_scale

    def __init__(self, panels, column_sums, zero_points, scales, int64_t k, int64_t n, int64_t group_size, source=None):
        self.ready_panels, self.ready_sums, self.zero_points, self.scales = panels, column_sums, zero_points, scales
        self.source = source
        self.k, self.n, self.group_size = k, n, group_size
        if not 0 <= k <= CQ_MAX_K or not 0 <= n < 1 << 31 or (k and group_size < 1):
            raise CqError(f"k, n, group_size: {k}, {n}, {group_size} are no packed weight's; cq.pack makes one")
        if group_size < k and group_size % 4:
            raise CqError(f"group_size: {group_size} is not a multiple of 4, the rows that a packed group holds; choose another")
        cdef int64_t groups = max(1, -(-k // group_size)) if group_size else 1
        if source is None:
            self.w.panels = <const int8_t *>pointer(panels, "panels", "b", 1, cq_packed_bytes(k, n), -1)
            self.w.column_sums = <const int32_t *>pointer(column_sums, "column_sums", "i", 1, n, -1)
        self.w.zero_points = <const int32_t *>optional(zero_points, "zero_points", "i", 2, groups, n)
        self.w.scales = <const float *>optional(scales, "scales", "f", 2, groups, n)
        self.w.k, self.w.n, self.w.group_size = k, n, group_size
        self.largest_scale = 0.0 if scales is None else scales.max(initial=0)

    cdef cq_weight *ready(self) except NULL:
        """For kernels: packed by now."""
        cdef Weight packed
        if self.ready_panels is None:
            packed = pack(self.source.read(), self.zero_points)
            if self.ready_panels is None:  # no other thread was faster; nothing from here on lets one run
                self.w.panels, self.w.column_sums = packed.w.panels, packed.w.column_sums
                self.ready_sums, self.ready_panels = packed.ready_sums, packed.ready_panels
            self.source = None
        return &self.w

    @property
    def panels(self):
        self.ready()
        return self.ready_panels

    @property
    def column_sums(self):
        self.ready()
        return self.ready_sums

    @property
    def nbytes(self):
        return sum(a.nbytes for a in (self.panels, self.column_sums, self.zero_points, self.scales) if a is not None)

    def unpack(self):
        """The codes, int8 (k, n)."""
        source = self.source
        if source is not None:
            return np.array(source.read())
        b = np.empty((self.k, self.n), np.int8)
        cdef int8_t *out = <int8_t *>pointer(b, "b", "b", 2, -1, -1, True)
        with nogil:
            cq_unpack(&self.w, out)
        return b


cdef class Memory:
    """Bytes for weights."""
    cdef char *data
    cdef Py_ssize_t size

    def __cinit__(self, Py_ssize_t size):
        self.size, self.data = size, <char *>cq_weight_memory(size)
        if self.data == NULL:
            raise MemoryError(f"weights: no memory for {size:,} bytes")

    def __dealloc__(self):
        if self.data != NULL:
            cq_weight_free(self.data, self.size)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, False, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass


cdef Memory shared = None  # where small weights lie side by side
cdef int64_t shared_used = 0, SHARED = 1 << 23, ALONE = 1 << 21


def aligned(int64_t size) -> np.ndarray:
    """int8 (size,), 64-byte aligned. Weights are read from end to end: those of SmolLM2-135M fill some 33,000 small pages,
    or 70 huge ones."""
    global shared, shared_used
    cdef int64_t begin
    if size > ALONE:
        return np.frombuffer(Memory(size), np.int8)
    if shared is None or shared_used + size > SHARED:
        shared, shared_used = Memory(SHARED), 0
    begin, shared_used = shared_used, shared_used + (size + 63) // 64 * 64
    return np.frombuffer(shared, np.int8, size, begin) if size else np.empty(0, np.int8)


def pack(b, zero_points=None, scales=None, int64_t group_size=0) -> Weight:
    """b int8 (k, n), any strides, or what has dtype, shape and a method `read` that gives such codes when they are wanted;
    zero_points int32 (groups, n) or None; scales float32 (groups, n) or None; a group holds group_size rows of b (0: all of them)."""
    if b.dtype != np.int8 or b.ndim != 2:
        raise CqError(f"b: need an int8 array of two dimensions, got {describe(b)}")
    cdef int64_t k = b.shape[0], n = b.shape[1], row_stride, column_stride
    if not isinstance(b, np.ndarray):
        return Weight(None, None, zero_points, scales, k, n, group_size or k, b)
    row_stride, column_stride = b.strides
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
    """A new array for rows x columns results: float32, or codes. `form` is None for float32; (dtype, symmetric) for codes with each
    row's own parameters; (dtype, symmetric, group) for each group of so many columns of a row; (dtype, symmetric, scale,
    zero_point) for given ones; (dtype, symmetric, scale, zero_point, columns) for codes by the arrays of `columns`, where scale and
    zero_point, numbers or arrays (1, columns), are what products see."""
    cdef cq_codes codes
    cdef const cq_codes *coded
    cdef float *floats
    cdef object result

    def __init__(self, int64_t rows, int64_t columns, form):
        if form is None:
            self.result = empty(rows, columns, FLOAT32)
            self.floats = <float *>pointer(self.result, "out", "f", 2, rows, columns, True)
            return
        cdef int64_t groups
        dtype, self.codes.symmetric = form[0], form[1]
        self.codes.is_signed = dtype == "int8"
        codes = empty(rows, columns, DTYPES[dtype])
        self.codes.stride = columns
        self.coded = &self.codes
        decode = None
        if len(form) >= 4:
            scale, zero_point = form[2], form[3]
            if len(form) == 4:
                self.codes.scale, self.codes.zero_point = scale, zero_point
            else:
                decode = form[4].scale, form[4].zero_point
                self.codes.column_scales = <const float *>pointer(decode[0], "scale", "f", 2, 1, columns)
                self.codes.column_inverses = <const float *>pointer(form[4].inverse, "inverse", "f", 2, 1, columns)
                self.codes.column_zero_points = <const int32_t *>pointer(decode[1], "zero_point", "i", 2, 1, columns)
        else:
            self.codes.dynamic = 1
            if len(form) == 3:
                self.codes.group = form[2]
                groups = (columns + self.codes.group - 1) // self.codes.group
                scale, zero_point = empty(rows, groups, np.float32), empty(rows, groups, np.int32)
            else:
                scale, zero_point = empty(rows, None, np.float32), empty(rows, None, np.int32)
            self.codes.scales = <float *>pointer(scale, "scale", "f", scale.ndim, -1, -1, True)
            self.codes.zero_points = <int32_t *>pointer(zero_point, "zero_point", "i", scale.ndim, -1, -1, True)
        self.result = Coded(codes, scale, zero_point, decode)
        self.codes.codes = <void *>(<Coded>self.result).c.codes


cdef class Coding(Step):
    cdef object x, row_sums
    cdef Target to
    cdef const float *data
    cdef int64_t columns

    cdef int go(self) except -1:
        cdef int64_t bad = 0
        cdef cq_status status
        with nogil:
            status = cq_quantize(threads, self.data, self.rows, self.columns, self.to.coded, &bad)
        return check_rows(status, bad, "x")


def quantize(x, form, row_sums=None) -> Coded:
    """x float32 (rows, columns) → codes in `form` (see Target); row_sums int32 (rows,) gets the sums of each row's codes."""
    cdef Coding step = Coding()
    step.x, step.row_sums, step.rows, step.columns = x, row_sums, x.shape[0], x.shape[1]
    step.to = Target(step.rows, step.columns, form)
    step.data = <const float *>pointer(x, "x", "f", 2, step.rows, step.columns)
    if row_sums is not None:
        step.to.codes.row_sums = <int32_t *>pointer(row_sums, "row_sums", "i", 1, step.rows, -1, True)
    step.first()
    return step.to.result


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
    if not a.by_rows():
        raise CqError("a: products take one zero point, or one per row")
    c = new_array((a.rows, w.n), INT32)
    cdef int32_t *out = <int32_t *>pointer(c, "c", "i", 2, a.rows, w.n, True)
    cdef cq_weight *weight = w.ready()
    cdef cq_status status
    with nogil:
        status = cq_matmul_i8(threads, &a.c, a.rows, weight, out, w.n)
    check(status, "matmul_integer")
    return c


cdef class Epilogue:
    """What follows a product, and the arrays that it fills; see cq_epilogue. form: of the result; of the norm's where there is
    one. norm: None, or (weight, bias, eps, rms). gated: the result is act(gate) * up of halves of the columns. keep: which results are made. "result": the one in `form`. "both": that, and,
    where it is in codes, the same in float32. "sum": that, and what was normed."""
    cdef cq_epilogue e
    cdef cq_norm n
    cdef Target floats, sums, coded
    cdef object arrays

    def __init__(self, int64_t rows, int64_t columns, bias, bias_i32, activation, residual, form, norm, str keep, sum_form,
                 bint gated):
        cdef bint wants_sum = keep == "sum", both = keep == "both"
        cdef int64_t width = columns // 2 if gated else columns
        if gated and (columns % 2 or keep != "result" or norm is not None or residual is not None):
            raise CqError("gated: takes an even number of columns, and no norm, residual or other results")
        if not (wants_sum or both or keep == "result") or (wants_sum and norm is None):
            raise CqError(f"keep: {keep!r} is not 'result', 'both', or, with a norm, 'sum'")
        self.arrays = bias, bias_i32, residual, norm
        self.e.bias = <const float *>optional(bias, "bias", "f", 1, columns, -1)
        self.e.bias_i32 = <const int32_t *>optional(bias_i32, "bias_i32", "i", 1, columns, -1)
        self.e.activation, self.e.gated = activation_of(activation), gated
        self.e.residual_stride = self.e.out_stride = columns
        if isinstance(residual, Coded):
            self.e.residual_coded = &(<Coded>residual).c
            if (<Coded>residual).rows != rows or (<Coded>residual).columns != columns or not (<Coded>residual).by_rows():
                raise CqError(f"residual: need shape ({rows}, {columns}) with one scale or one per row, got {residual.shape}")
        else:
            self.e.residual = <const float *>optional(residual, "residual", "f", 2, rows, columns)
        if form is not None:
            self.coded = Target(rows, width, form)
            self.e.codes = self.coded.coded
        if form is None or both:
            self.floats = Target(rows, width, None)
        if wants_sum:
            self.sums = Target(rows, columns, sum_form)
            if sum_form is None:
                self.e.out = self.sums.floats
            elif len(sum_form) != 4:
                raise CqError("sum_form: a residual stream in codes needs a given scale")
            else:
                self.e.sum_codes = self.sums.coded
        if norm is None:
            if gated and self.floats is not None:
                self.e.norm_out = self.floats.floats
            elif self.floats is not None:
                self.e.out = self.floats.floats
            return
        weight, norm_bias, self.n.eps, self.n.rms = norm
        self.n.weight = <const float *>pointer(weight, "weight", "f", 1, columns, -1)
        self.n.bias = <const float *>optional(norm_bias, "bias", "f", 1, columns, -1)
        self.e.norm = &self.n
        if self.floats is not None:
            self.e.norm_out = self.floats.floats

    cdef object results(self, str keep):
        result = self.coded.result if self.coded is not None else self.floats.result
        if keep == "result":
            return result
        return result, (self.sums if keep == "sum" else self.floats).result


cdef class Product(Step):
    cdef object x
    cdef Coded coded
    cdef Packed w
    cdef Epilogue to
    cdef const float *floats
    cdef cq_codes inside
    cdef bint codes_inside
    cdef int64_t k

    cdef int go(self) except -1:
        cdef int64_t bad = 0
        cdef cq_status status
        with nogil:
            if self.codes_inside:
                status = cq_linear_coding(threads, self.floats, self.rows, self.k, &self.inside, &self.w.w, &self.to.e, &bad)
            elif self.floats:
                status = cq_linear_f32(threads, self.floats, self.rows, self.k, &self.w.w, &self.to.e, &bad)
            else:
                status = cq_linear_i8(threads, &self.coded.c, self.rows, &self.w.w, &self.to.e, &bad)
        return check_rows(status, bad, "linear")


def linear(x, Packed w not None, bias=None, bias_i32=None, activation=None, residual=None, form=None, norm=None,
           str keep="result", sum_form=None, coding=None, bint gated=False):
    """norm(act(x w + bias) + residual) in `form` (see Target and Epilogue). x Coded (integer products) or float32 (m, k)
    (weight-only, or a FloatWeight; or with `coding`, the form of one row's or given parameters, coded on the way in). bias float32 (n,), bias_i32
    int32 (n,) at scale x.scale * w.scale; residual float32 (m, n) or Coded. gated: act(gate) * up (m, n / 2) of the halves of
    x w + bias."""
    cdef Product step = Product()
    cdef int64_t m = x.shape[0], k = x.shape[1]
    step.coded = x if isinstance(x, Coded) else None
    step.x, step.w, step.rows, step.k = x, w, m, k
    if k != w.k:
        raise CqError(f"x: {k} columns do not match the {w.k} rows of the weight")
    if w.ready().floats != NULL:
        if coding is not None or step.coded is not None:
            raise CqError("x: a float32 weight multiplies float32")
    elif w.w.scales == NULL:
        raise CqError("w: the packed weight has no scales; pack a QTensor")
    if step.coded is not None and not step.coded.by_rows():
        raise CqError("x: products take one scale, or one per row")
    step.to = Epilogue(m, w.n, bias, bias_i32, activation, residual, form, norm, keep, sum_form, gated)
    step.codes_inside = coding is not None
    if step.coded is None:
        step.floats = <const float *>pointer(x, "x", "f", 2, m, k)
    if step.codes_inside:
        if step.floats == NULL or len(coding) not in (2, 4):
            raise CqError("coding: is for float32 x, and takes one form for a row")
        step.inside.symmetric, step.inside.is_signed, step.inside.dynamic = coding[1], coding[0] == "int8", len(coding) == 2
        step.inside.stride = k
        step.inside.scale, step.inside.zero_point = coding[2:] if len(coding) == 4 else (1.0, 0)
    step.first()
    return step.to.results(keep)


cdef int operand(array, str name, Py_buffer *view, bint writable) except -1:
    """Opens a float32 or float64 array of which one of the last two axes is contiguous; a result's last one is."""
    try:
        PyObject_GetBuffer(array, view, PyBUF_STRIDED_RO | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0))
    except (TypeError, ValueError, BufferError) as error:
        raise CqError(f"{name}: need an array of floats, got {describe(array)} ({error})") from None
    cdef int last = view.ndim - 1
    cdef bint good = view.ndim >= 2 and view.format[0] in b"fd" and view.format[1] == 0
    if good:
        rows, columns = view.strides[last - 1], view.strides[last]
        good = columns == view.itemsize or view.shape[last] == 1 or \
            (not writable and (rows == view.itemsize or view.shape[last - 1] == 1))
    if not good:
        PyBuffer_Release(view)
        raise CqError(f"{name}: need a float32 or float64 matrix with a contiguous axis, got {describe(array)}")
    return 0


cdef int find_pairs(Py_buffer *view, Py_buffer *whole, int64_t *at) except -1:
    """Where each pair's matrix begins, in elements; leading axes of 1, and those that are missing, serve all."""
    cdef int64_t pairs = 1, rest, place, index
    cdef int axis, own
    for axis in range(whole.ndim - 2):
        pairs *= whole.shape[axis]
    for index in range(pairs):
        rest, place = index, 0
        for axis in range(whole.ndim - 3, -1, -1):
            own = axis - (whole.ndim - view.ndim)
            if own >= 0 and view.shape[own] > 1:
                place += rest % whole.shape[axis] * (view.strides[own] // view.itemsize)
            rest //= whole.shape[axis]
        at[index] = place
    return 0


cdef int64_t stride(Py_buffer *view, int axis):
    """Of the last (1) or the last axis but one (2), in elements; of an axis of one element that which reads best."""
    if view.shape[view.ndim - axis] > 1:
        return view.strides[view.ndim - axis] // view.itemsize
    return 1 if axis == 1 else view.shape[view.ndim - 1]


def matmul(a, b, out=None, bint add=False):
    """The product of float32 or float64 matrices a (..., m, k) and b (..., k, n), summed in order of k on every CPU: float32 by fused
    multiply-adds, float64 with each product rounded. Leading axes of float32 arrays broadcast as NumPy's do; float64 arrays have
    none. out: an array for the result, which shares no memory with a or b; add: the product is added to what it holds."""
    a, b = (x if x.ndim < 2 or x.itemsize in x.strides[-2:] else np.ascontiguousarray(x) for x in (a, b))
    if a.dtype != b.dtype or a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise CqError(f"a, b: need matrices that fit, got {describe(a)} and {describe(b)}")
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    if out is None:
        if add:
            raise CqError("add: is for a result that is given")
        out = new_array(shape, a.dtype)
    elif out.shape != shape or out.dtype != a.dtype:
        raise CqError(f"out: need {a.dtype} of shape {shape}, got {describe(out)}")
    cdef Py_buffer views[3]
    cdef int opened = 0, i
    cdef int64_t *places = NULL
    cdef int64_t count = out.size // (shape[-1] * shape[-2]) if out.size else 0
    cdef cq_products_f32 p
    cdef cq_product_f64 d
    cdef cq_status status
    try:
        for array, name in ((a, "a"), (b, "b"), (out, "out")):
            operand(array, name, &views[opened], opened == 2)
            opened += 1
        if a.dtype == np.float64:
            if out.ndim > 2:
                raise CqError("a, b: float64 products are of one pair of matrices")
            d.a, d.b, d.c, d.add = <const double *>views[0].buf, <const double *>views[1].buf, <double *>views[2].buf, add
            d.a_row, d.a_column, d.b_row, d.b_column = stride(&views[0], 2), stride(&views[0], 1), stride(&views[1], 2), stride(&views[1], 1)
            d.c_row, d.m, d.n, d.k = stride(&views[2], 2), shape[-2], shape[-1], a.shape[1]
            with nogil:
                status = cq_multiply_f64(threads, &d)
        else:
            places = <int64_t *>calloc(3 * count + 1, sizeof(int64_t))
            if places == NULL:
                raise MemoryError("matmul: no memory for the places of pairs")
            for i in range(3 if count else 0):
                find_pairs(&views[i], &views[2], places + i * count)
            p.a, p.b, p.c, p.add = <const float *>views[0].buf, <const float *>views[1].buf, <float *>views[2].buf, add
            p.a_row, p.a_column, p.b_row, p.b_column = stride(&views[0], 2), stride(&views[0], 1), stride(&views[1], 2), stride(&views[1], 1)
            p.c_row, p.m, p.n, p.k, p.count = stride(&views[2], 2), shape[-2], shape[-1], a.shape[a.ndim - 1], count
            p.a_at, p.b_at, p.c_at = places, places + count, places + 2 * count
            with nogil:
                status = cq_multiply_f32(threads, &p)
    finally:
        free(places)
        for i in range(opened):
            PyBuffer_Release(&views[i])
    check(status, "matmul")
    return out


def dot_rows(x, y):
    """Of float32 x and y (rows, n) each row's sum of products, float32 (rows,)."""
    cdef int64_t rows = x.shape[0], n = x.shape[1]
    cdef const float *first = <const float *>pointer(x, "x", "f", 2, rows, n)
    cdef const float *second = <const float *>pointer(y, "y", "f", 2, rows, n)
    sums = new_array(rows, FLOAT32)
    cdef float *to = <float *>pointer(sums, "sums", "f", 1, rows, -1, True)
    with nogil:
        cq_dot_rows(threads, first, second, rows, n, to)
    return sums


def column_sums(x):
    """Of float32 x (rows, n) the sums over rows, float32 (n,)."""
    cdef int64_t rows = x.shape[0], n = x.shape[1]
    cdef const float *data = <const float *>pointer(x, "x", "f", 2, rows, n)
    sums = new_array(n, FLOAT32)
    cdef float *to = <float *>pointer(sums, "sums", "f", 1, n, -1, True)
    with nogil:
        cq_column_sums(threads, data, rows, n, to)
    return sums


# --- the rest of a transformer -----------------------------------------------------------------------------------------------

cdef class Norming(Step):
    cdef object arrays
    cdef int64_t columns
    cdef cq_norm_args a
    cdef Target y, codes, total

    cdef int go(self) except -1:
        cdef int64_t bad = 0
        cdef cq_status status
        with nogil:
            status = cq_norm_rows(threads, &self.a, self.rows, self.columns, &bad)
        return check_rows(status, bad, "norm")


def norm(x, weight, bias, float eps, bint rms, residual=None, form=None, bint keep_float=True, bint keep_sum=False):
    """Layer or RMS norm of x + residual: (y float32 or None, y in codes or None, x + residual or None)."""
    cdef Norming step = Norming()
    cdef int64_t rows = x.shape[0], columns = x.shape[1]
    step.rows, step.columns, step.arrays = rows, columns, (x, weight, bias, residual)
    step.y = Target(rows, columns, None) if keep_float else None
    step.codes = Target(rows, columns, form) if form is not None else None
    step.total = Target(rows, columns, None) if keep_sum else None
    step.a.x = <const float *>pointer(x, "x", "f", 2, rows, columns)
    step.a.residual = <const float *>optional(residual, "residual", "f", 2, rows, columns)
    step.a.norm.weight = <const float *>pointer(weight, "weight", "f", 1, columns, -1)
    step.a.norm.bias = <const float *>optional(bias, "bias", "f", 1, columns, -1)
    step.a.norm.eps, step.a.norm.rms = eps, rms
    step.a.sum = step.total.floats if step.total is not None else NULL
    step.a.y = step.y.floats if step.y is not None else NULL
    step.a.codes = step.codes.coded if step.codes is not None else NULL
    step.first()
    return (step.y.result if step.y is not None else None, step.codes.result if step.codes is not None else None,
            step.total.result if step.total is not None else None)


cdef class Gating(Step):
    cdef object arrays
    cdef int64_t columns
    cdef Target to
    cdef cq_activation act
    cdef const float *g
    cdef const float *u

    cdef int go(self) except -1:
        cdef int64_t bad = 0
        cdef cq_status status
        with nogil:
            status = cq_gate(threads, self.g, self.u, self.act, self.rows, self.columns, self.to.floats, self.to.coded, &bad)
        return check_rows(status, bad, "gate")


def gate(g, u, activation, form=None):
    """act(g) * u, both float32 (rows, columns), in `form`."""
    cdef Gating step = Gating()
    cdef int64_t rows = g.shape[0], columns = g.shape[1]
    step.arrays, step.rows, step.columns = (g, u), rows, columns
    step.to, step.act = Target(rows, columns, form), activation_of(activation)
    step.g = <const float *>pointer(g, "gate", "f", 2, rows, columns)
    step.u = <const float *>pointer(u, "up", "f", 2, rows, columns)
    step.first()
    return step.to.result


cdef class Rotating(Step):
    cdef object arrays
    cdef float *x
    cdef const float *cosine
    cdef const float *sine
    cdef const int32_t *position
    cdef int64_t heads, dim, width

    cdef int go(self) except -1:
        with nogil:
            cq_rope(threads, self.x, self.rows, self.heads, self.dim, self.width, self.cosine, self.sine, self.position)
        return 0


def rope(x, int64_t heads, int64_t dim, cosine, sine, position):
    """Rotates the first heads * dim columns of x float32 (tokens, columns) in place; cosine and sine (positions, dim / 2);
    position int32 (tokens,)."""
    cdef Rotating step = Rotating()
    step.rows, step.width, step.heads, step.dim = x.shape[0], x.shape[1], heads, dim
    step.arrays = x, cosine, sine, position
    step.x = <float *>pointer(x, "x", "f", 2, step.rows, step.width, True)
    if heads * dim > step.width:
        raise CqError(f"x: {heads} heads of {dim} columns need {heads * dim}, got {step.width}")
    step.cosine = <const float *>pointer(cosine, "cosine", "f", 2, -1, dim // 2)
    step.sine = <const float *>pointer(sine, "sine", "f", 2, cosine.shape[0], dim // 2)
    step.position = <const int32_t *>pointer(position, "position", "i", 1, step.rows, -1)
    step.first()


cdef class Embedding(Step):
    cdef object arrays
    cdef cq_embed_args a
    cdef int64_t columns
    cdef Target to

    cdef int go(self) except -1:
        with nogil:
            cq_embed(threads, &self.a, self.rows, self.columns, self.to.floats)
        return 0


def embed(id, word, position=None, position_table=None, type=None, type_table=None):
    """float32 (tokens, columns) = word[id] + position_table[position] + type_table[type or 0]. word: float32 (vocabulary, columns),
    or a Weight (columns, vocabulary). Ids must be in range: the caller checks."""
    cdef Embedding step = Embedding()
    cdef int64_t tokens = id.shape[0], columns
    cdef Weight packed
    cdef FloatWeight floats
    step.a.panel = 1
    if isinstance(word, FloatWeight):
        floats = word
        columns, step.a.word_f32, step.a.panel = floats.k, floats.w.floats, CQ_PANEL
    elif isinstance(word, Weight):
        packed = word
        packed.ready()
        columns = packed.k
        step.a.word_i8, step.a.scales, step.a.zero_points = packed.w.panels, packed.w.scales, packed.w.zero_points
        step.a.panel = CQ_PANEL
    else:
        columns = word.shape[1]
        step.a.word_f32 = <const float *>pointer(word, "word", "f", 2, -1, columns)
    step.rows, step.columns, step.arrays = tokens, columns, (id, word, position, position_table, type, type_table)
    step.a.id = <const int32_t *>pointer(id, "id", "i", 1, tokens, -1)
    step.a.position_table = <const float *>optional(position_table, "position_table", "f", 2, -1, columns)
    step.a.position = <const int32_t *>optional(position, "position", "i", 1, tokens, -1)
    step.a.type_table = <const float *>optional(type_table, "type_table", "f", 2, -1, columns)
    step.a.type = <const int32_t *>optional(type, "type", "i", 1, tokens, -1)
    step.to = Target(tokens, columns, None)
    step.first()
    return step.to.result


cdef class Mixing(Step):
    cdef object qkv, offsets
    cdef cq_attention_args a
    cdef cq_coded q, k, v
    cdef const float *x
    cdef int64_t stride, scale_stride, to_keys, to_values
    cdef Target to

    cdef int go(self) except -1:
        cdef cq_status status
        self.a.sequences = self.sequences
        with nogil:
            if self.x:
                status = cq_attention_f32(threads, &self.a, self.x, self.x + self.to_keys, self.x + self.to_values, self.stride,
                                          self.stride, self.to.floats, self.to_keys)
            else:
                status = cq_attention_i8(threads, &self.a, &self.q, &self.k, &self.v, self.scale_stride, self.to.floats,
                                         self.to.coded)
        return check(status, "attention")


def attention(qkv, offsets, int64_t heads, int64_t kv_heads, bint causal, float scale, form=None):
    """Attention over ragged sequences. qkv (tokens, (heads + 2 kv_heads) dim): queries, keys and values side by side, float32; or
    Coded, static with parameters per column that are equal within each of the three, or int8 symmetric with a scale per head
    (groups of dim columns). offsets int32 (sequences + 1,) from 0 to tokens. -> (tokens, heads * dim) in `form`: float32 or, of
    codes, static codes."""
    cdef Mixing step = Mixing()
    cdef int64_t tokens = qkv.shape[0], stride = qkv.shape[1], parts = heads + 2 * kv_heads, dim = stride // parts
    cdef int64_t to_keys = heads * dim, to_values = (heads + kv_heads) * dim
    step.rows, step.sequences = tokens, offsets.shape[0] - 1
    step.qkv, step.offsets, step.stride, step.to_keys, step.to_values = qkv, offsets, stride, to_keys, to_values
    step.a.offsets = <const int32_t *>pointer(offsets, "offsets", "i", 1, -1, -1)
    step.a.heads, step.a.kv_heads, step.a.dim, step.a.causal, step.a.scale = heads, kv_heads, dim, causal, scale
    if dim * parts != stride:
        raise CqError(f"qkv: {stride} columns are not {parts} heads")
    step.to = Target(tokens, heads * dim, form)
    if step.to.codes.dynamic or step.to.codes.column_scales:
        raise CqError("form: attention gives float32 or codes of a given scale; quantize the result for each row's own")
    if isinstance(qkv, Coded):
        read_heads(step, qkv, heads, kv_heads)
    elif form is not None:
        raise CqError("attention: float32 inputs give float32; quantize the result")
    else:
        step.x = <const float *>pointer(qkv, "qkv", "f", 2, tokens, stride)
    step.first()
    return step.to.result


cdef int read_heads(Mixing step, Coded coded, int64_t heads, int64_t kv_heads) except -1:
    """Points at queries, keys and values in codes, each with what their scales are."""
    cdef int64_t to_keys = step.to_keys, to_values = step.to_values, parts = heads + 2 * kv_heads
    if coded.by_rows():
        raise CqError("qkv: need scales per column or per head")
    step.q = step.k = step.v = coded.c
    step.k.codes, step.v.codes = <const uint8_t *>coded.c.codes + to_keys, <const uint8_t *>coded.c.codes + to_values
    scale, zero_point = coded.scale, coded.zero_point
    if scale.shape == (1, step.stride):
        step.q.scale, step.k.scale, step.v.scale = scale[0, 0], scale[0, to_keys], scale[0, to_values]
        step.q.zero_point, step.k.zero_point, step.v.zero_point = zero_point[0, 0], zero_point[0, to_keys], zero_point[0, to_values]
    elif scale.shape == (step.rows, parts) and coded.c.is_signed:
        step.scale_stride = parts
        step.q.scales = <const float *>pointer(scale, "scale", "f", 2, step.rows, parts)
        step.k.scales, step.v.scales = step.q.scales + heads, step.q.scales + heads + kv_heads
    else:
        raise CqError(f"qkv: need int8 codes with a scale per head, got scales of shape {scale.shape}")
    return 0


# --- generation --------------------------------------------------------------------------------------------------------------

cdef class Kept:
    """Keys and values that sequences have kept in one layer, as cq_kept says: what `attend` reads and writes. `put` names a
    sequence's arrays, and a recorded `attend` sees the latest ones. dtype: "float32" or "int8"."""
    cdef cq_kept *kept
    cdef list arrays
    cdef readonly int64_t sequences, kv_heads, dim
    cdef readonly str dtype

    def __init__(self, int64_t sequences, int64_t kv_heads, int64_t dim, str dtype):
        self.sequences, self.kv_heads, self.dim, self.dtype = sequences, kv_heads, dim, dtype
        self.arrays = [None] * sequences
        self.kept = <cq_kept *>calloc(max(1, sequences), sizeof(cq_kept))
        if self.kept == NULL:
            raise MemoryError("kept: no memory for the sequences")

    def __dealloc__(self):
        free(self.kept)

    def put(self, int64_t sequence, int64_t length, int64_t capacity, keys, values, start=None, scales=None) -> None:
        """The arrays of a sequence of `length` tokens, flat: kv_heads * capacity times dim (keys; in int8 a multiple of 4), dim as a
        multiple of 16 (values), 1 (start) and 3 (scales)."""
        cdef bint floats = self.dtype == "float32"
        cdef str kind = "f" if floats else "b"
        if not 0 <= sequence < self.sequences or capacity < 64 or capacity % 64:
            raise CqError(f"capacity: need a multiple of 64 for one of {self.sequences} sequences, got {capacity} for {sequence}")
        cdef int64_t each = self.kv_heads * capacity, dim4 = (self.dim + 3) // 4 * 4, dim16 = (self.dim + 15) // 16 * 16
        cdef cq_kept *to = self.kept + sequence
        to.keys = pointer(keys, "keys", kind, 1, each * (self.dim if floats else dim4), -1, True)
        to.values = pointer(values, "values", kind, 1, each * dim16, -1, True)
        to.start = <int32_t *>(NULL if floats else pointer(start, "start", "i", 1, each, -1, True))
        to.scales = <float *>(NULL if floats or scales is None else pointer(scales, "scales", "f", 1, 3 * each, -1, True))
        to.capacity = capacity
        self.arrays[sequence] = keys, values, start, scales
        self.move(sequence, length)

    def move(self, int64_t sequence, int64_t length) -> None:
        """The sequence has `length` tokens from now on."""
        if not 0 <= sequence < self.sequences or not 0 <= length <= self.kept[sequence].capacity:
            raise CqError(f"length: no room for {length} tokens in sequence {sequence}")
        self.kept[sequence].length = length


cdef class Attending(Step):
    cdef cq_kept_args a
    cdef Kept kept
    cdef object arrays
    cdef cq_codes form
    cdef Target to
    cdef float *x
    cdef int64_t angles

    cdef int go(self) except -1:
        cdef int64_t bad = 0, s, more, needed
        cdef cq_status status
        for s in range(self.a.sequences):
            more = self.a.offsets[s + 1] - self.a.offsets[s]
            needed = self.kept.kept[s].length + more
            if needed > self.kept.kept[s].capacity or (self.a.cosine != NULL and needed > self.angles):
                raise CqError(f"kept: sequence {s} has no room, or no angles, for {needed} tokens")
            if more and self.form.dynamic and self.kept.kept[s].scales == NULL:
                raise CqError(f"kept: sequence {s} has no scales")
        with nogil:
            status = cq_attention_kept(threads, &self.a, self.x, self.to.floats, &bad)
        return check_rows(status, bad, "attention")


def attend(qkv, offsets, Kept kept not None, int64_t heads, float scale, cosine=None, sine=None, coding=None,
           form=None):
    """Causal attention of new tokens to themselves and to what their sequences have kept; see cq_attention_kept. qkv float32
    (tokens, (heads + 2 kv_heads) dim), rotated in place by cosine and sine (positions, dim / 2) where given. coding: None where
    float32 is kept; else PerHead, or Smoothed of the three. offsets int32 (sequences + 1,) from 0 to tokens, one
    sequence for each that is kept. -> (tokens, heads * dim) in `form`: float32 or, of codes, static codes."""
    cdef Attending step = Attending()
    cdef int64_t tokens = qkv.shape[0], width = (heads + 2 * kept.kv_heads) * kept.dim
    cdef bint by_column = coding is not None and len(coding) == 5
    step.kept, step.arrays = kept, (qkv, offsets, cosine, sine, coding)
    step.x = <float *>pointer(qkv, "qkv", "f", 2, tokens, width, True)
    step.a.offsets = <const int32_t *>pointer(offsets, "offsets", "i", 1, kept.sequences + 1, -1)
    step.a.sequences, step.a.heads, step.a.kv_heads, step.a.dim = kept.sequences, heads, kept.kv_heads, kept.dim
    step.a.scale, step.a.kept = scale, kept.kept
    if (coding is None) != (kept.dtype == "float32"):
        raise CqError(f"coding: {coding}, where {kept.dtype} is kept")
    if heads % kept.kv_heads or (tokens and not 0 <= offsets[0] <= offsets[-1] == tokens):
        raise CqError(f"offsets, heads: {offsets} of {tokens} tokens, {heads} heads over {kept.kv_heads}")
    if cosine is not None:
        step.angles = cosine.shape[0]
        step.a.cosine = <const float *>pointer(cosine, "cosine", "f", 2, -1, kept.dim // 2)
        step.a.sine = <const float *>pointer(sine, "sine", "f", 2, step.angles, kept.dim // 2)
    if coding is not None:
        step.form.is_signed, step.form.symmetric, step.form.dynamic = coding[0] == "int8", coding[1], not by_column
        if by_column:
            step.form.column_scales = <const float *>pointer(coding[4].scale, "scale", "f", 2, 1, width)
            step.form.column_inverses = <const float *>pointer(coding[4].inverse, "inverse", "f", 2, 1, width)
            step.form.column_zero_points = <const int32_t *>pointer(coding[4].zero_point, "zero_point", "i", 2, 1, width)
            to_keys, to_values = heads * kept.dim, (heads + kept.kv_heads) * kept.dim
            step.a.q.scale, step.a.k.scale, step.a.v.scale = coding[2][0, 0], coding[2][0, to_keys], coding[2][0, to_values]
            step.a.q.zero_point, step.a.k.zero_point, step.a.v.zero_point = (coding[3][0, 0], coding[3][0, to_keys],
                                                                             coding[3][0, to_values])
        elif tuple(coding) != ("int8", True, kept.dim):
            raise CqError(f"coding: codes of each head's own are int8 symmetric, got {coding}")
        else:
            step.form.group = kept.dim
        step.a.form = &step.form
        step.a.q.is_signed = step.a.k.is_signed = step.a.v.is_signed = step.form.is_signed
    elif form is not None:
        raise CqError("attend: float32 inputs give float32; quantize the result")
    step.to = Target(tokens, heads * kept.dim, form)
    if step.to.codes.dynamic or step.to.codes.column_scales:
        raise CqError("form: attention gives float32 or codes of a given scale; quantize the result for each row's own")
    step.a.codes = step.to.coded
    step.first()
    return step.to.result


# --- elementary functions ---------------------------------------------------------------------------------------------

def elementary(str name, x, y=None):
    """A new array: the function of each element of x, float64 or float32 of any shape; float32 is computed in float64
    and rounded once. name: exp, log, sin, cos, tanh, or power, which takes x to y: float64, (1,) or flat, one per
    element."""
    if name not in FUNCTIONS or (y is None) != (name != "power"):
        raise CqError(f"function: {name!r} is not known, or has another number of arguments")
    cdef cq_function function = <cq_function><int>FUNCTIONS[name]
    cdef bint single = x.dtype == FLOAT32
    cdef str kind = "f" if single else "d"
    out = new_array(x.shape, x.dtype)
    cdef int64_t n = out.size, step = 0 if y is None or y.shape[0] == 1 else 1
    cdef const void *data = pointer(x, "x", kind, x.ndim, -1, -1)
    cdef void *to = pointer(out, "out", kind, x.ndim, -1, -1, True)
    cdef const double *exponents = <const double *>optional(y, "y", "d", 1, n if step else 1, -1)
    with nogil:
        cq_elementary(threads, function, data, exponents, step, n, single, to)
    return out


# --- training ----------------------------------------------------------------------------------------------------------------

def slope(x, activation):
    """act(x) and its derivative, of float32 x (rows, n)."""
    cdef int64_t rows = x.shape[0], n = x.shape[1]
    cdef const float *data = <const float *>pointer(x, "x", "f", 2, rows, n)
    cdef cq_activation kind = activation_of(activation)
    y, its_slope = new_array((rows, n), FLOAT32), new_array((rows, n), FLOAT32)
    cdef float *to = <float *>pointer(y, "y", "f", 2, rows, n, True)
    cdef float *to_slope = <float *>pointer(its_slope, "slope", "f", 2, rows, n, True)
    with nogil:
        cq_slope(threads, data, rows * n, kind, to, to_slope)
    return y, its_slope


def round_codes(x, scales, lows, highs, shifts=None):
    """clip(rint(x / scales), lows, highs) + shifts, whole numbers in float32, of finite float32 x (rows, n); the same from lows on
    as uint8; and which rows were clipped, bool (rows,). scales, lows, highs, shifts: float32, all (1,), (rows,) or (1, n)."""
    cdef int64_t rows = x.shape[0], n = x.shape[1], first = scales.shape[0], second = scales.shape[1] if scales.ndim == 2 else -1
    cdef int ndim = scales.ndim
    cdef cq_rounding r
    if not ((ndim == 1 and first in (1, rows)) or (ndim == 2 and first == 1 and second == n)):
        raise CqError(f"scales: need one, one per row or one per column of x {tuple(x.shape)}, got {describe(scales)}")
    r.by = CQ_BY_COLUMN if ndim == 2 else CQ_BY_ROW if first == rows else CQ_BY_ONE
    r.scales = <const float *>pointer(scales, "scales", "f", ndim, first, second)
    r.lows = <const float *>pointer(lows, "lows", "f", ndim, first, second)
    r.highs = <const float *>pointer(highs, "highs", "f", ndim, first, second)
    r.shifts = <const float *>optional(shifts, "shifts", "f", ndim, first, second)
    cdef const float *data = <const float *>pointer(x, "x", "f", 2, rows, n)
    y, stored, clipped = new_array((rows, n), FLOAT32), new_array((rows, n), np.uint8), new_array(rows, np.bool_)
    cdef float *to = <float *>pointer(y, "y", "f", 2, rows, n, True)
    cdef uint8_t *bytes = <uint8_t *>pointer(stored, "stored", "B", 2, rows, n, True)
    marks = clipped.view(np.uint8)
    cdef uint8_t *mark = <uint8_t *>pointer(marks, "clipped", "B", 1, rows, -1, True)
    with nogil:
        cq_round(threads, data, rows, n, &r, to, bytes, mark)
    return y, stored, clipped


def exponents(x, float factor, bint coded):
    """Each row of float32 x (..., n) to exp(factor * (x - max)) or, coded, rint(255 * 2^(factor * (x - max))) as int8 attention
    has it, in place; -Inf to 0. Gives the rows' sums, float32 (..., 1)."""
    cdef int64_t n = x.shape[x.ndim - 1], rows = x.size // n if n else 0
    cdef float *data = <float *>pointer(x, "x", "f", x.ndim, -1, -1, True)
    sums = new_array((*x.shape[:-1], 1), FLOAT32)
    all_sums = sums.reshape(-1)
    cdef float *to = <float *>pointer(all_sums, "sums", "f", 1, rows, -1, True)
    with nogil:
        cq_exponents(threads, data, rows, n, factor, coded, to)
    return sums


def softmax_back(g, p, inverses, float factor) -> None:
    """The reverse of softmax along the last axis: g = factor * (g - sum(g * w)) * w in place, w = p * inverses. float32 g and p
    (..., n), inverses (..., 1)."""
    if g.shape != p.shape or inverses.shape != (*g.shape[:-1], 1):
        raise CqError(f"softmax_back: shapes do not match: g {g.shape}, p {p.shape}, inverses {inverses.shape}")
    cdef int64_t n = g.shape[g.ndim - 1], rows = g.size // n if n else 0
    cdef float *to = <float *>pointer(g, "g", "f", g.ndim, -1, -1, True)
    cdef const float *weights = <const float *>pointer(p, "p", "f", p.ndim, -1, -1)
    cdef const float *inverse = <const float *>pointer(inverses, "inverses", "f", inverses.ndim, -1, -1)
    with nogil:
        cq_softmax_back(threads, to, weights, rows, n, inverse, factor)


def rescale(x, scales, before=None, row_scales=None, after=None, out=None):
    """(x + before) * row_scales[:, None] * scales + after, of float32 x (rows, n): scales, before, after (n,), row_scales (rows,).
    out: an array for it, which may be x."""
    cdef int64_t rows = x.shape[0], n = x.shape[1]
    cdef cq_rescaling r
    r.scales = <const float *>pointer(scales, "scales", "f", 1, n, -1)
    r.before = <const float *>optional(before, "before", "f", 1, n, -1)
    r.row_scales = <const float *>optional(row_scales, "row_scales", "f", 1, rows, -1)
    r.after = <const float *>optional(after, "after", "f", 1, n, -1)
    out = new_array((rows, n), FLOAT32) if out is None else out
    cdef const float *data = <const float *>pointer(x, "x", "f", 2, rows, n)
    cdef float *to = <float *>pointer(out, "out", "f", 2, rows, n, True)
    with nogil:
        cq_rescale(threads, data, rows, n, &r, to)
    return out


def norm_kept(x, weight, bias, float eps, bint rms):
    """Layer or RMS norm of float32 x (rows, n), with weight and optional bias (n,): the result; what weight and bias follow; and
    the inverse (rows,) of what each row was divided by."""
    cdef int64_t rows = x.shape[0], n = x.shape[1]
    cdef cq_norm how
    how.weight = <const float *>pointer(weight, "weight", "f", 1, n, -1)
    how.bias = <const float *>optional(bias, "bias", "f", 1, n, -1)
    how.eps, how.rms = eps, rms
    cdef const float *data = <const float *>pointer(x, "x", "f", 2, rows, n)
    y, kept, factors = new_array((rows, n), FLOAT32), new_array((rows, n), FLOAT32), new_array(rows, FLOAT32)
    cdef float *to = <float *>pointer(y, "y", "f", 2, rows, n, True)
    cdef float *to_kept = <float *>pointer(kept, "kept", "f", 2, rows, n, True)
    cdef float *to_factors = <float *>pointer(factors, "factors", "f", 1, rows, -1, True)
    with nogil:
        cq_norm_kept(threads, &how, data, rows, n, to_kept, to_factors, to)
    return y, kept, factors


def norm_back(g, weight, kept, factors, bint rms):
    """From g, the gradient of what norm_kept gave: that of x, and g * kept, whose column sums are the weight's."""
    cdef int64_t rows = g.shape[0], n = g.shape[1]
    cdef cq_norm how
    how.weight, how.bias, how.eps, how.rms = <const float *>pointer(weight, "weight", "f", 1, n, -1), NULL, 0, rms
    cdef const float *gradient = <const float *>pointer(g, "g", "f", 2, rows, n)
    cdef const float *given = <const float *>pointer(kept, "kept", "f", 2, rows, n)
    cdef const float *inverse = <const float *>pointer(factors, "factors", "f", 1, rows, -1)
    dx, of_weight = new_array((rows, n), FLOAT32), new_array((rows, n), FLOAT32)
    cdef float *to = <float *>pointer(dx, "dx", "f", 2, rows, n, True)
    cdef float *to_weight = <float *>pointer(of_weight, "of_weight", "f", 2, rows, n, True)
    with nogil:
        cq_norm_back(threads, &how, given, inverse, gradient, rows, n, to_weight, to)
    return dx, of_weight


def adamw(p, g, mean, square, units, choices) -> None:
    """A step of AdamW over flat float32 arrays (n,), of which p, mean and square change; units (n,) or None. choices: beta1, beta2,
    gradient, gradient_square, root, epsilon, rate, keep (see cq_adamw)."""
    cdef int64_t n = p.shape[0]
    cdef cq_adamw a
    a.beta1, a.beta2, a.gradient, a.gradient_square, a.root, a.epsilon, a.rate, a.keep = choices
    cdef float *to = <float *>pointer(p, "p", "f", 1, n, -1, True)
    cdef float *to_mean = <float *>pointer(mean, "mean", "f", 1, n, -1, True)
    cdef float *to_square = <float *>pointer(square, "square", "f", 1, n, -1, True)
    cdef const float *gradient = <const float *>pointer(g, "g", "f", 1, n, -1)
    cdef const float *unit = <const float *>optional(units, "units", "f", 1, n, -1)
    with nogil:
        cq_adamw_step(threads, &a, gradient, n, unit, to_mean, to_square, to)


_start()
