# Weights, packed in panels of 16 columns.

cdef class Packed:
    cdef cq_weight w
    cdef readonly int64_t k, n, group_size
    cdef readonly tuple shape
    cdef readonly object zero_points, scales, source
    cdef tuple arrays  # panels and column sums, once they are there

    def __init__(self, int64_t k, int64_t n, int64_t group_size, zero_points=None, scales=None, source=None):
        if k < 0 or not 0 <= n < 1 << 31 or (k and group_size < 1):
            raise CqError(f"k, n, group_size: {k}, {n}, {group_size} are no packed weight's; cq.pack makes one")
        if group_size < k and group_size % 4:
            raise CqError(f"group_size: {group_size} is not a multiple of 4, the rows that a packed group holds; "
                          "choose another")
        cdef int64_t groups = max(1, -(-k // group_size)) if group_size else 1
        self.zero_points, self.scales, self.source, self.shape = zero_points, scales, source, (k, n)
        self.w.k, self.w.n, self.w.group_size = self.k, self.n, self.group_size = k, n, group_size
        self.w.zero_points = int32s(zero_points, "zero_points", groups, n, CQ_MAYBE)
        self.w.scales = floats(scales, "scales", groups, n, CQ_MAYBE)

    def put(self, panels, column_sums=None):
        cdef tuple arrays = (panels, column_sums)
        cdef cq_weight given = self.w
        if column_sums is None:
            given.floats = floats(panels, "panels", cq_packed_floats(self.k, self.n))
        elif self.k > CQ_MAX_K:
            raise CqError(f"k: {self.k} is above {CQ_MAX_K}, where int32 sums may overflow")
        else:
            given.panels = <int8_t *>pointer(panels, "panels", c"b", cq_packed_bytes(self.k, self.n), FLAT, CQ_READ)
            given.column_sums = int32s(column_sums, "column_sums", self.n)
        if self.arrays is None:  # no other thread was faster; nothing from here on lets one run
            self.w, self.arrays = given, arrays

    def pack(self, b):
        cdef cq_args args
        cdef cq_pack_args *a = &args.pack
        read_matrices(&a.b, b, "b", c"b", self.k, self.n)
        panels, column_sums = aligned(cq_packed_bytes(self.k, self.n)), new_array(self.n, INT32)
        a.panels = pointer(panels, "panels", c"b", cq_packed_bytes(self.k, self.n), FLAT, CQ_WRITE)
        a.column_sums = int32s(column_sums, "column_sums", self.n, FLAT, CQ_WRITE)
        a.zero_points = self.w.zero_points
        call(cq_pack_i8, "pack", &args)
        self.put(panels, column_sums)

    def pack_floats(self, b):
        cdef cq_args args
        read_matrices(&args.pack.b, b, "b", c"f", self.k, self.n)
        panels = aligned(4 * cq_packed_floats(self.k, self.n)).view(FLOAT32)
        args.pack.panels = floats(panels, "panels", cq_packed_floats(self.k, self.n), FLAT, CQ_WRITE)
        call(cq_pack_f32, "pack", &args)
        self.put(panels)

    cdef cq_weight *ready(self, bint scaled=False) except NULL:
        """For kernels: packed by now. scaled: it must stand for numbers."""
        if self.arrays is None:
            self.pack(self.source.read())
            self.source = None
        if scaled and self.w.floats == NULL and self.w.scales == NULL:
            raise CqError("w: the packed weight has no scales; pack a QTensor")
        return &self.w

    def packed(self):
        self.ready()
        return self.arrays
