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
        self.w.floats, self.panels = floats(panels, "panels", whole_panels(n) * k), panels
        self.w.k, self.w.n, self.w.group_size = self.k, self.n, self.group_size = k, n, k

    def __reduce__(self):
        return pack_floats, (self.unpack(),)

    def unpack(self):
        """float32 (k, n), laid out by columns: as (n, k) it is contiguous."""
        whole = self.panels.reshape(-1, self.k, CQ_PANEL).transpose(0, 2, 1)
        return np.ascontiguousarray(whole).reshape(-1, self.k)[:self.n].T


def pack_floats(b):
    """b float32 (k, n), of which one axis is contiguous, as a FloatWeight."""
    if b.dtype != FLOAT32 or b.ndim != 2:
        raise CqError(f"b: need a float32 array of two dimensions, got {describe(b)}")
    cdef Matrix m = read_floats(b, "b")
    panels = aligned(whole_panels(m.columns) * m.rows * 4).view(np.float32)
    cdef float *to = floats(panels, "panels", ANY, FLAT, WRITE)
    cdef int most = threads
    with nogil:
        cq_pack_f32(most, <const float *>m.data, m.row, m.column, m.rows, m.columns, to)
    return FloatWeight(panels, m.rows, m.columns)


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
        self.zero_points, self.scales = zero_points, scales
        self.w.k, self.w.n, self.w.group_size = self.k, self.n, self.group_size = k, n, group_size
        if source is None:
            self.w.panels = <int8_t *>pointer(panels, "panels", c"b", cq_packed_bytes(k, n), FLAT, READ)
            self.w.column_sums = int32s(column_sums, "column_sums", n)
        self.w.zero_points = int32s(zero_points, "zero_points", groups, n, MAYBE)
        self.w.scales = floats(scales, "scales", groups, n, MAYBE)
        self.largest_scale = 0.0 if scales is None else scales.max(initial=0)

    cdef cq_weight *ready(self) except NULL:
        cdef Weight packed
        if self.ready_panels is None:
            packed = pack(self.source.read(), self.zero_points, None, self.group_size)
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
        return sum([a.nbytes for a in (self.panels, self.column_sums, self.zero_points, self.scales) if a is not None])

    def __reduce__(self):
        """As codes, still in their file where nobody has wanted them yet; they are packed where they arrive."""
        source = self.source
        return pack, (self.unpack() if source is None else source, self.zero_points, self.scales, self.group_size)

    def unpack(self):
        """The codes, int8 (k, n)."""
        source = self.source
        if source is not None:
            return np.array(source.read())
        b = new_array((self.k, self.n), INT8)
        cdef int8_t *to = <int8_t *>pointer(b, "b", c"b", self.k, self.n, WRITE)
        with nogil:
            cq_unpack(&self.w, to)
        return b


def pack(b, zero_points=None, scales=None, int64_t group_size=0):
    """A Weight of b, int8 (k, n) of any strides, or deferred; zero_points and scales may lie anywhere."""
    if b.dtype != INT8 or b.ndim != 2:
        raise CqError(f"b: need an int8 array of two dimensions, got {describe(b)}")
    zero_points = None if zero_points is None else np.require(zero_points, requirements="AC")
    scales = None if scales is None else np.require(scales, requirements="AC")
    if not isinstance(b, ndarray):
        return Weight(None, None, zero_points, scales, *b.shape, group_size or b.shape[0], b)
    cdef Matrix m = read_matrix(b, "b")
    panels, sums = aligned(cq_packed_bytes(m.rows, m.columns)), new_array(m.columns, INT32)
    cdef int8_t *to = <int8_t *>pointer(panels, "panels", c"b", ANY, FLAT, WRITE)
    cdef int32_t *column_sums = int32s(sums, "column_sums", m.columns, FLAT, WRITE)
    cdef const int32_t *zeros = int32s(zero_points, "zero_points", ANY, m.columns, MAYBE)
    with nogil:
        cq_pack(<const int8_t *>m.data, m.row, m.column, m.rows, m.columns, zeros, to, column_sums)
    return Weight(panels, sums, zero_points, scales, m.rows, m.columns, group_size or m.rows)
