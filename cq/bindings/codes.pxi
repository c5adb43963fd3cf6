# Activations in codes, and results in a form.

@final
cdef class Coded:
    """Activations in codes: codes (rows, columns) uint8 or int8, x = scale * (codes - zero_point). scale (float32)
    and zero_point (int32) are one number each; or one per row, (rows,); or one per group of a row's columns, (rows,
    groups); or one per column for all rows, (1, columns). smoothed: the form, Smoothed, of codes that products see
    through weights of other scales, or None; its columns say what such codes stand for."""
    cdef cq_coded c
    cdef readonly object codes, scale, zero_point, smoothed
    cdef readonly int64_t rows, columns

    def __init__(self, codes, scale, zero_point, smoothed=None):
        self.codes, self.scale, self.zero_point, self.smoothed = codes, scale, zero_point, smoothed
        self.rows, self.columns = codes.shape
        self.c.is_signed, self.c.stride = codes.dtype == INT8, self.columns
        self.c.codes = pointer(codes, "codes", c"b" if self.c.is_signed else c"B", self.rows, self.columns, READ)
        if is_number(scale):
            self.c.scale = scale
        elif scale.ndim == 1:
            self.c.scales = floats(scale, "scale", self.rows)
        else:
            floats(scale, "scale", ANY, ANY)
        if is_number(zero_point):
            self.c.zero_point = zero_point
        elif zero_point.ndim == 1:
            self.c.zero_points = int32s(zero_point, "zero_point", self.rows)
        else:
            int32s(zero_point, "zero_point", ANY, ANY)

    def __reduce__(self):
        return Coded, (self.codes, self.scale, self.zero_point, self.smoothed)

    cdef bint by_rows(self):
        """Whether there is one scale for all, or one per row."""
        return is_number(self.scale) or self.scale.ndim == 1

    @property
    def shape(self):
        return self.rows, self.columns

    @property
    def nbytes(self):
        return self.codes.nbytes

    def dequantize(self):
        """float32 (rows, columns)."""
        form = self.smoothed
        if form is not None:
            scale = form.columns.scale / form.scale if form.kind == "stretched" else form.columns.scale
            x = scale * (self.codes - form.columns.zero_point).astype(np.float32)
            return x * self.scale[:, None] if form.kind == "stretched" else x
        if not self.by_rows():
            scale, zero_point = (np.repeat(p, self.columns // p.shape[1], 1) for p in (self.scale, self.zero_point))
            return scale * (self.codes - zero_point).astype(np.float32)
        cdef Step step = new_step(cq_dequantize, "dequantize", self.rows, [self])
        cdef cq_dequantize_args *a = &step.args.dequantize
        a.coded, a.columns = self.c, self.columns
        return step.first(new_floats(&a.y, self.rows, self.columns))


cdef bint is_number(value):
    return type(value) is float or type(value) is int or not isinstance(value, ndarray)


cdef int read_form(cq_codes *to, form, int64_t columns) except -1:
    """How codes in `form` are written, but not yet where."""
    cdef str kind = form.kind
    to.is_signed, to.symmetric, to.stride = form.dtype == "int8", form.symmetric, columns
    if kind == "fixed":
        to.scale, to.zero_point = form.scale, form.zero_point
    elif kind == "per_token":
        to.dynamic = 1
    elif kind == "per_head":
        to.dynamic, to.group = 1, form.group_size
    elif kind == "smoothed" or kind == "stretched":
        if kind == "stretched":
            to.scale, to.stretched = form.scale, 1
        to.column_scales = floats(form.columns.scale, "scale", 1, columns)
        to.column_inverses = floats(form.columns.inverse, "inverse", 1, columns)
        to.column_zero_points = int32s(form.columns.zero_point, "zero_point", 1, columns)
    else:
        raise CqError(f"form: no kernel writes codes of the kind {kind!r}")
    return 0


cdef Coded new_codes(cq_codes *to, form, int64_t rows, int64_t columns):
    """Codes for results in `form`, to which `to` leads a kernel."""
    cdef Coded result
    read_form(to, form, columns)
    cdef int64_t groups = (columns + to.group - 1) // to.group if to.group else FLAT
    codes = empty(rows, columns, DTYPES[form.dtype])
    if to.dynamic:
        result = Coded(codes, new_floats(&to.scales, rows, groups), new_int32s(&to.zero_points, rows, groups))
    elif to.column_scales == NULL:
        result = Coded(codes, form.scale, form.zero_point)
    else:
        scale = new_floats(&to.scales, rows) if to.stretched else form.scale
        result = Coded(codes, scale, form.zero_point, form)
    to.codes = <void *>result.c.codes
    return result


cdef object new_result(Step step, form, int64_t rows, int64_t columns, float **y, const cq_codes **codes):
    """A result in `form`, to which one of the two leads."""
    if form is None:
        return new_floats(y, rows, columns)
    codes[0] = &step.codes
    return new_codes(&step.codes, form, rows, columns)


def quantize(x, form, row_sums=None):
    """x float32 (rows, columns) → Coded in `form`; row_sums int32 (rows,) gets the sums of each row's codes."""
    cdef int64_t rows = x.shape[0], columns = x.shape[1]
    cdef Step step = new_step(cq_quantize, "x", rows, [x, form, row_sums])
    cdef cq_quantize_args *a = &step.args.quantize
    a.x, a.columns, a.codes = floats(x, "x", rows, columns), columns, &step.codes
    if row_sums is not None:
        step.codes.row_sums = int32s(row_sums, "row_sums", rows, FLAT, WRITE)
    return step.first(new_codes(&step.codes, form, rows, columns))


def min_max(x):
    """Smallest and largest element of a float32 array that is not empty. NaN or Inf: CqError."""
    flat = x.reshape(-1)
    cdef int64_t n = flat.shape[0]
    cdef const float *data = floats(flat, "x", n)
    cdef float lo, hi
    cdef cq_status status
    with nogil:
        status = cq_min_max(data, n, &lo, &hi)
    if status != CQ_OK:
        raise CqError(f"x: NaN or Inf at index {int(np.flatnonzero(~np.isfinite(flat))[0])}")
    return lo, hi
