# Weights, packed in panels of 16 columns.

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


cdef int64_t whole_panels(int64_t columns):
    return (columns + CQ_PANEL - 1) // CQ_PANEL * CQ_PANEL


@final
cdef class FloatWeight(Packed):
    """float32 (k, n). panels: float32 (ceil(n / 16) * k * 16,), 64-byte aligned; see cq_pack_f32."""
    cdef readonly object panels

    def __init__(self, panels, int64_t k, int64_t n):
        self.panels, self.k, self.n, self.group_size = panels, k, n, k
        self.w.floats = floats(panels, "panels", whole_panels(n) * k)
        self.w.k, self.w.n, self.w.group_size = k, n, k

    @property
    def nbytes(self):
        return self.panels.nbytes

    def __reduce__(self):
        return pack_floats, (self.unpack(),)

    def columns(self, int64_t first, int64_t last):
        """Some columns as a weight that shares this one's memory. first: a multiple of 16."""
        return FloatWeight(self.panels[first * self.k:whole_panels(last) * self.k], self.k, last - first)

    def unpack(self):
        """float32 (k, n), laid out by columns: as (n, k) it is contiguous."""
        whole = self.panels.reshape(-1, self.k, CQ_PANEL).transpose(0, 2, 1)
        return np.ascontiguousarray(whole).reshape(-1, self.k)[:self.n].T


def pack_floats(b):
    """b float32 (k, n), of which one axis is contiguous, as a FloatWeight."""
    if b.dtype != FLOAT32 or b.ndim != 2:
        raise CqError(f"b: need a float32 array of two dimensions, got {describe(b)}")
    cdef int64_t k = b.shape[0], n = b.shape[1], row_stride, column_stride
    cdef const float *data = <const float *>read_matrix(b, "b", False, &row_stride, &column_stride)
    panels = aligned(whole_panels(n) * k * 4).view(np.float32)
    cdef float *to = floats(panels, "panels", ANY, FLAT, WRITE)
    cdef int most = threads
    with nogil:
        cq_pack_f32(most, data, row_stride, column_stride, k, n, to)
    return FloatWeight(panels, k, n)


@final
cdef class Weight(Packed):
    """int8 (k, n) packed in panels, with what its products need: column sums, zero points (n,) or None, scales
    (groups, n) float32 or None. Panels are 64-byte aligned. source: in place of panels and sums, has a method `read`
    that gives the codes to pack when they are wanted."""
    cdef object source, ready_panels, ready_sums
    cdef readonly object zero_points, scales
    cdef readonly float largest_scale

    def __init__(self, panels, column_sums, zero_points, scales, int64_t k, int64_t n, int64_t group_size, source=None):
        if not 0 <= k <= CQ_MAX_K or not 0 <= n < 1 << 31 or (k and group_size < 1):
            raise CqError(f"k, n, group_size: {k}, {n}, {group_size} are no packed weight's; cq.pack makes one")
        if group_size < k and group_size % 4:
            raise CqError(f"group_size: {group_size} is not a multiple of 4, the rows that a packed group holds; "
                          "choose another")
        cdef int64_t groups = max(1, -(-k // group_size)) if group_size else 1
        self.ready_panels, self.ready_sums, self.source = panels, column_sums, source
        self.zero_points, self.scales, self.k, self.n, self.group_size = zero_points, scales, k, n, group_size
        if source is None:
            self.w.panels = int8s(panels, "panels", cq_packed_bytes(k, n))
            self.w.column_sums = int32s(column_sums, "column_sums", n)
        self.w.zero_points = int32s(zero_points, "zero_points", groups, n, MAYBE)
        self.w.scales = floats(scales, "scales", groups, n, MAYBE)
        self.w.k, self.w.n, self.w.group_size = k, n, group_size
        self.largest_scale = 0.0 if scales is None else scales.max(initial=0)

    cdef cq_weight *ready(self) except NULL:
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

    def __reduce__(self):
        """As codes, still in their file where nobody has wanted them yet; they are packed where they arrive."""
        source = self.source
        return repacked, (self.unpack() if source is None else source, self.zero_points, self.scales, self.group_size)

    def unpack(self):
        """The codes, int8 (k, n)."""
        source = self.source
        if source is not None:
            return np.array(source.read())
        b = new_array((self.k, self.n), INT8)
        cdef int8_t *to = int8s(b, "b", self.k, self.n, WRITE)
        with nogil:
            cq_unpack(&self.w, to)
        return b


def pack(b, zero_points=None, scales=None, int64_t group_size=0):
    """A Weight of b: int8 (k, n), any strides, or what has dtype, shape and a method `read` that gives such codes
    when they are wanted; zero_points int32 (groups, n) or None; scales float32 (groups, n) or None; a group holds
    group_size rows of b (0: all of them)."""
    if b.dtype != INT8 or b.ndim != 2:
        raise CqError(f"b: need an int8 array of two dimensions, got {describe(b)}")
    cdef int64_t k, n, row_stride, column_stride
    if not isinstance(b, ndarray):
        k, n = b.shape
        return Weight(None, None, zero_points, scales, k, n, group_size or k, b)
    cdef const int8_t *codes = <const int8_t *>matrix(b, "b", False, &k, &n, &row_stride, &column_stride)
    panels, sums = aligned(cq_packed_bytes(k, n)), new_array(n, INT32)
    cdef int8_t *to = int8s(panels, "panels", ANY, FLAT, WRITE)
    cdef int32_t *column_sums = int32s(sums, "column_sums", n, FLAT, WRITE)
    cdef const int32_t *zeros = int32s(zero_points, "zero_points", ANY, n, MAYBE)
    with nogil:
        cq_pack(codes, row_stride, column_stride, k, n, zeros, to, column_sums)
    return Weight(panels, sums, zero_points, scales, k, n, group_size or k)


def repacked(b, zero_points, scales, int64_t group_size):
    """As pack, of parameters that may lie anywhere, as those in a message do."""
    zero_points, scales = (None if x is None else np.require(x, requirements="AC") for x in (zero_points, scales))
    return pack(b, zero_points, scales, group_size)


@final
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


def aligned(int64_t size):
    """int8 (size,), 64-byte aligned. Weights are read from end to end: those of SmolLM2-135M fill some 33,000 small
    pages, or 70 huge ones."""
    global shared, shared_used
    cdef int64_t begin
    if size > ALONE:
        return np.frombuffer(Memory(size), np.int8)
    if shared is None or shared_used + size > SHARED:
        shared, shared_used = Memory(SHARED), 0
    begin, shared_used = shared_used, shared_used + (size + 63) // 64 * 64
    return np.frombuffer(shared, np.int8, size, begin) if size else np.empty(0, np.int8)
