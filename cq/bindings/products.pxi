# Matrix products.

def matmul_integer(Coded a not None, Weight w not None):
    """int32 (m, n) = (a - a.zero_point) (w - w.zero_points); scales are not used."""
    cdef int32_t *to
    cdef cq_status status
    if a.columns != w.k:
        raise CqError(f"a: {a.columns} columns do not match the {w.k} rows of the packed weight")
    if not a.by_rows():
        raise CqError("a: products take one zero point, or one per row")
    cdef cq_weight *weight = w.ready()
    c = new_int32s(&to, a.rows, w.n)
    cdef int most = threads
    with nogil:
        status = cq_matmul_i8(most, &a.c, a.rows, weight, to, w.n)
    check(status, 0, "matmul_integer")
    return c


def linear(x, Packed w not None, bias=None, bias_i32=None, activation=None, residual=None, form=None, norm=None,
           str keep="result", sum_form=None, coding=None, bint gated=False, int64_t hadamard=0):
    """norm(act(x w + bias) + residual) in `form`; see cq_linear_args and cq_epilogue.

    x: Coded (integer products), or float32 (m, k) for products in float32, or coded on the way in where `coding`,
    PerToken or Fixed, says how. bias: float32 (n,). bias_i32: int32 (n,) at scale x.scale * w.scale. residual:
    float32 (m, n) or Coded. norm: has weight, bias, eps and rms, as model.Norm. gated: act(gate) * up (m, n / 2) of
    the halves of x w + bias, transformed in blocks of `hadamard` where that is not 0. keep: "result": that; "both": a
    pair of it and, where it is in codes, the same in float32; "sum": a pair of it and what was normed, in
    `sum_form`: None or Fixed."""
    cdef int64_t rows = x.shape[0]
    cdef Step step = new_step(cq_linear, "linear", rows, [x, w, bias, bias_i32, residual, form])
    cdef cq_epilogue *e = &step.args.linear.epilogue
    if gated and (w.n % 2 or keep != "result" or norm is not None or residual is not None):
        raise CqError("gated: takes an even number of columns, and no norm, residual or other results")
    if hadamard and not gated:
        raise CqError("hadamard: is for gated products")
    if not (keep == "result" or keep == "both" or (keep == "sum" and norm is not None)):
        raise CqError(f"keep: {keep!r} is not 'result', 'both', or, with a norm, 'sum'")
    read_factors(step, x, w, coding)
    e.bias, e.bias_i32 = floats(bias, "bias", w.n, FLAT, MAYBE), int32s(bias_i32, "bias_i32", w.n, FLAT, MAYBE)
    e.activation, e.gated, e.hadamard = activation_of(activation), gated, block_of(hadamard, w.n // 2)
    read_residual(e, residual, rows, w.n)
    if norm is not None:
        read_norm(step, &step.norm, norm, w.n)
        e.norm = &step.norm
    return step.first(new_results(step, rows, w.n, form, keep, sum_form))


cdef int read_factors(Step step, x, Packed w, coding) except -1:
    """What is multiplied, and in which arithmetic."""
    cdef cq_linear_args *a = &step.args.linear
    cdef int64_t k = x.shape[1]
    if k != w.k:
        raise CqError(f"x: {k} columns do not match the {w.k} rows of the weight")
    a.w = w.ready()
    if a.w.floats == NULL and a.w.scales == NULL:
        raise CqError("w: the packed weight has no scales; pack a QTensor")
    if isinstance(x, Coded):
        if coding is not None:
            raise CqError("coding: is for float32 x")
        if not (<Coded>x).by_rows():
            raise CqError("x: products take one scale, or one per row")
        a.coded = &(<Coded>x).c
    else:
        a.x = floats(x, "x", step.rows, k)
    if a.w.floats != NULL and (a.coded != NULL or coding is not None):
        raise CqError("x: a float32 weight multiplies float32")
    if coding is not None:
        if coding.kind != "per_token" and coding.kind != "fixed":
            raise CqError(f"coding: a row has one scale, got {coding}")
        read_form(&step.coding, coding, k)
        a.coding = &step.coding
    return 0


cdef int read_residual(cq_epilogue *e, residual, int64_t rows, int64_t columns) except -1:
    cdef Coded coded = residual if isinstance(residual, Coded) else None
    e.residual_stride = columns
    if coded is None:
        e.residual = floats(residual, "residual", rows, columns, MAYBE)
    elif coded.rows != rows or coded.columns != columns or not coded.by_rows():
        raise CqError(f"residual: need shape ({rows}, {columns}) with one scale or one per row, got {residual.shape}")
    else:
        e.residual_coded = &coded.c
    return 0


cdef int read_norm(Step step, cq_norm *to, norm, int64_t columns) except -1:
    weight, bias = norm.weight, norm.bias
    to.weight, to.bias = floats(weight, "weight", columns), floats(bias, "bias", columns, FLAT, MAYBE)
    to.eps, to.rms = norm.eps, norm.rms
    step.held += (weight, bias)  # the norm may get others
    return 0


cdef object new_results(Step step, int64_t rows, int64_t columns, form, str keep, sum_form):
    """What linear returns, to which its epilogue leads from now on."""
    cdef cq_epilogue *e = &step.args.linear.epilogue
    cdef int64_t width = columns // 2 if e.gated else columns
    cdef float **normed = &e.norm_out if e.gated or e.norm != NULL else &e.out
    e.out_stride = columns
    result = beside = None
    if form is not None:
        result, e.codes = new_codes(&step.codes, form, rows, width), &step.codes
    if form is None or keep == "both":
        beside = new_floats(normed, rows, width)
    if form is None:
        result = beside
    if keep == "sum" and sum_form is None:
        beside = new_floats(&e.out, rows, columns)
    elif keep == "sum":
        if sum_form.kind != "fixed":
            raise CqError("sum_form: a residual stream in codes needs a given scale")
        beside, e.sum_codes = new_codes(&step.sum_codes, sum_form, rows, columns), &step.sum_codes
    return result if keep == "result" else (result, beside)


# --- matrices as they lie ---

def matmul(a, b, out=None, bint add=False):
    """The product of float32 or float64 matrices a (..., m, k) and b (..., k, n), summed in order of k on every CPU:
    float32 by fused multiply-adds, float64 with each product rounded. Leading axes of float32 arrays broadcast as
    NumPy's do; float64 arrays have none. out: an array for the result, which shares no memory with a or b; add: the
    product is added to what it holds."""
    a, b = (x if x.ndim < 2 or x.itemsize in x.strides[-2:] else np.ascontiguousarray(x) for x in (a, b))
    if a.dtype != b.dtype or a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise CqError(f"a, b: need matrices that fit, got {describe(a)} and {describe(b)}")
    pairs = () if a.ndim == b.ndim == 2 else np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*pairs, a.shape[-2], b.shape[-1])
    if out is None:
        if add:
            raise CqError("add: is for a result that is given")
        out = new_array(shape, a.dtype)
    elif out.shape != shape or out.dtype != a.dtype:
        raise CqError(f"out: need {a.dtype} of shape {shape}, got {describe(out)}")
    multiply(a, b, out, pairs, add)
    return out


cdef int multiply(a, b, out, tuple pairs, bint add) except -1:
    """Calls C, once it is known that the shapes fit."""
    cdef cq_products_f32 p
    cdef cq_product_f64 d
    cdef cq_status status
    cdef bint double = a.dtype != FLOAT32
    cdef int64_t *at
    cdef int64_t c_column
    p.a = <float *>read_matrix(a, "a", False, &p.a_row, &p.a_column)
    p.b = <float *>read_matrix(b, "b", False, &p.b_row, &p.b_column)
    p.c = <float *>read_matrix(out, "out", True, &p.c_row, &c_column)
    (p.m, p.n), p.k, p.add = out.shape[-2:], a.shape[-1], add
    if double:
        if pairs:
            raise CqError("a, b: float64 products are of one pair of matrices")
        d.a, d.b, d.c, d.add = <const double *>p.a, <const double *>p.b, <double *>p.c, add
        d.a_row, d.a_column, d.b_row, d.b_column, d.c_row = p.a_row, p.a_column, p.b_row, p.b_column, p.c_row
        d.m, d.n, d.k = p.m, p.n, p.k
    else:
        p.count = out.size // (p.m * p.n) if out.size else 0
        starts = new_array((3, max(1, p.count)), INT64)
        at = <int64_t *>pointer(starts, "pairs", c"l", 3, ANY, WRITE)
        p.a_at, p.b_at, p.c_at = at, at + p.count, at + 2 * p.count
        if p.count:
            read_starts(at, a, pairs)
            read_starts(at + p.count, b, pairs)
            read_starts(at + 2 * p.count, out, pairs)
    cdef int most = threads
    with nogil:
        status = cq_multiply_f64(most, &d) if double else cq_multiply_f32(most, &p)
    return check(status, 0, "matmul")


cdef void *matrix(x, str name, bint writable, int64_t *rows, int64_t *columns, int64_t *row,
                  int64_t *column) except? NULL:
    """The first element of an array whose last two axes, and how far apart their elements lie in bytes, are these: as
    its memory is, whatever a class of its own may say."""
    cdef Py_buffer view
    try:
        PyObject_GetBuffer(x, &view, PyBUF_STRIDED_RO | (PyBUF_WRITABLE if writable else 0))
    except (TypeError, ValueError, BufferError) as error:
        raise CqError(f"{name}: need an array of numbers, got {describe(x)} ({error})") from None
    cdef void *data = view.buf
    cdef int ndim = view.ndim
    if ndim >= 2:
        rows[0], columns[0] = view.shape[ndim - 2], view.shape[ndim - 1]
        row[0], column[0] = view.strides[ndim - 2], view.strides[ndim - 1]
    PyBuffer_Release(&view)
    if ndim < 2:
        raise CqError(f"{name}: need an array of two dimensions, got {describe(x)}")
    return data


cdef void *read_matrix(x, str name, bint writable, int64_t *row, int64_t *column) except? NULL:
    """The first element of a float32 or float64 array of which one of the last two axes is contiguous (a result's
    last one is), and how far it is from row to row and from column to column, in elements: of one row or column what
    reads best."""
    cdef int64_t rows, columns, size = x.itemsize
    cdef void *data = matrix(x, name, writable, &rows, &columns, row, column)
    cdef bint good = column[0] == size or columns == 1 or (not writable and (row[0] == size or rows == 1))
    if not (good or x.size == 0) or (x.dtype != FLOAT32 and x.dtype != FLOAT64):
        raise CqError(f"{name}: need a float32 or float64 matrix with a contiguous axis, got {describe(x)}")
    row[0], column[0] = row[0] // size if rows > 1 else columns, column[0] // size if columns > 1 else 1
    return data


cdef int read_starts(int64_t *at, x, tuple pairs) except -1:
    """Where each pair's matrix begins, in elements; leading axes of 1, and those that are missing, serve all."""
    cdef tuple shape = x.shape, strides = x.strides
    cdef int64_t found = 1, itemsize = x.itemsize, size, step, start, i, j
    cdef int axis, missing = len(pairs) + 2 - len(shape)
    at[0] = 0
    for axis in range(len(pairs)):
        size, step = pairs[axis], 0
        if axis >= missing and shape[axis - missing] > 1:
            step = <int64_t>strides[axis - missing] // itemsize
        for i in range(found - 1, -1, -1):  # backwards, as what is read lies before what is written
            start = at[i]
            for j in range(size):
                at[i * size + j] = start + j * step
        found *= size
    return 0
