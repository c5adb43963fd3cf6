# Activations in codes, and results in a form.

@final
cdef class Coded:
    cdef cq_coded c
    cdef readonly object codes, scale, zero_point, smoothed
    cdef readonly tuple shape
    cdef readonly int64_t rows, columns
    cdef bint by_rows  # there is one scale for all, or one per row

    def __init__(self, codes, scale, zero_point, smoothed=None):
        self.codes, self.scale, self.zero_point, self.smoothed = codes, scale, zero_point, smoothed
        self.shape = codes.shape
        self.rows, self.columns = self.shape
        self.c.is_signed, self.c.stride = codes.dtype == INT8, self.columns
        self.c.codes = pointer(codes, "codes", c"b" if self.c.is_signed else c"B", self.rows, self.columns, CQ_READ)
        self.by_rows = is_number(scale) or scale.ndim == 1
        if is_number(scale):
            self.c.scale = scale
        elif self.by_rows:
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

    def dequantize(self):
        cdef Step step = new_step(cq_dequantize, "dequantize", self.shape, [self])
        cdef cq_dequantize_args *a = &step.args.dequantize
        if self.smoothed is not None or not self.by_rows:
            raise CqError("dequantize: need one scale, or one per row; cq.model.activation.decode takes others")
        a.coded, a.columns = self.c, self.columns
        return step.first(new_floats(&a.y, step.rows, step.columns))


cdef bint is_number(value):
    return type(value) is float or type(value) is int or not isinstance(value, ndarray)


cdef cq_codes *read_form(cq_codes *to, form, int64_t columns) except NULL:
    """How codes in `form` are written, but not yet where. → `to`"""
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
    return to


cdef Coded new_codes(Step step, cq_codes *to, form):
    """Codes for results in `form`, to which `to` leads a kernel."""
    read_form(to, form, step.columns)
    cdef int64_t groups = (step.columns + to.group - 1) // to.group if to.group else FLAT
    codes = empty(step.rows, step.columns, INT8 if to.is_signed else UINT8)
    if to.dynamic:
        scale, zero_point = new_floats(&to.scales, step.rows, groups), empty(step.rows, groups, INT32)
        to.zero_points = int32s(zero_point, "result", step.rows, groups, CQ_WRITE)
    else:
        scale = new_floats(&to.scales, step.rows) if to.stretched else form.scale
        zero_point = form.zero_point
    cdef Coded result = Coded(codes, scale, zero_point, None if to.column_scales == NULL else form)
    to.codes = <void *>result.c.codes
    return result


cdef object new_result(Step step, form, float **y, const cq_codes **codes):
    """A result in `form`, to which one of the two leads."""
    if form is None:
        return new_floats(y, step.rows, step.columns)
    codes[0] = &step.codes
    return new_codes(step, &step.codes, form)


def quantize(x, form, row_sums=None):
    cdef Step step = new_step(cq_quantize, "x", x.shape, [x, form, row_sums])
    cdef cq_quantize_args *a = &step.args.quantize
    a.x, a.columns, a.codes = step.matrix(x, "x"), step.columns, &step.codes
    step.codes.row_sums = int32s(row_sums, "row_sums", step.rows, FLAT, CQ_WRITE | CQ_MAYBE)
    return step.first(new_codes(step, &step.codes, form))


def min_max(x):
    cdef cq_args args
    cdef float ends[2]
    flat = x.reshape(-1)
    cdef int64_t size = flat.shape[0]
    args.min_max.x, args.min_max.ends = floats(flat, "x", size), ends
    call(cq_min_max, "x", &args, size)
    return ends[0], ends[1]
