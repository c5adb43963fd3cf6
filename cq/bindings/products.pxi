# Matrix products.

def matmul_integer(Coded a not None, Weight w not None):
    """int32 (m, n) = (a - a.zero_point) (w - w.zero_points); scales are not used."""
    cdef cq_status status
    if a.columns != w.k:
        raise CqError(f"a: {a.columns} columns do not match the {w.k} rows of the packed weight")
    if not a.by_rows:
        raise CqError("a: products take one zero point, or one per row")
    cdef cq_weight *weight = w.ready()
    c = empty(a.rows, w.n, INT32)
    cdef int32_t *to = int32s(c, "result", a.rows, w.n, WRITE)
    cdef int most = threads
    with nogil:
        status = cq_matmul_i8(most, &a.c, a.rows, weight, to, w.n)
    check(status, 0, "matmul_integer")
    return c


def linear(x, Packed w not None, bias=None, bias_i32=None, activation=None, residual=None, form=None, norm=None,
           str keep="result", sum_form=None, coding=None, bint gated=False, int64_t hadamard=0):
    """norm(act(x w + bias) + residual) in `form`; see cq_linear_args and cq_epilogue."""
    cdef Step step = new_step(cq_linear, "linear", x.shape, [x, w, bias, bias_i32, residual, form])
    cdef cq_epilogue *e = &step.args.linear.epilogue
    if gated and (w.n % 2 or keep != "result" or norm is not None or residual is not None):
        raise CqError("gated: takes an even number of columns, and no norm, residual or other results")
    if hadamard and not gated:
        raise CqError("hadamard: is for gated products")
    if not (keep == "result" or keep == "both" or (keep == "sum" and norm is not None)):
        raise CqError(f"keep: {keep!r} is not 'result', 'both', or, with a norm, 'sum'")
    read_factors(step, x, w, coding)
    step.columns = w.n
    e.bias, e.bias_i32 = step.per_column(bias, "bias", MAYBE), int32s(bias_i32, "bias_i32", w.n, FLAT, MAYBE)
    e.activation, e.gated, e.hadamard = activation_of(activation), gated, block_of(hadamard, w.n // 2)
    read_residual(step, e, residual)
    if norm is not None:
        read_norm(step, &step.norm, norm)
        e.norm = &step.norm
    return step.first(new_results(step, e, form, keep, sum_form))


cdef int read_factors(Step step, x, Packed w, coding) except -1:
    """What is multiplied, and in which arithmetic."""
    cdef cq_linear_args *a = &step.args.linear
    if step.columns != w.k:
        raise CqError(f"x: {step.columns} columns do not match the {w.k} rows of the weight")
    a.w = w.ready()
    if a.w.floats == NULL and a.w.scales == NULL:
        raise CqError("w: the packed weight has no scales; pack a QTensor")
    if isinstance(x, Coded):
        if not (<Coded>x).by_rows:
            raise CqError("x: products take one scale, or one per row")
        a.coded = &(<Coded>x).c
    else:
        a.x = step.matrix(x, "x")
    if a.w.floats != NULL and (a.coded != NULL or coding is not None):
        raise CqError("x: a float32 weight multiplies float32")
    if coding is not None:
        if a.coded != NULL or (coding.kind != "per_token" and coding.kind != "fixed"):
            raise CqError(f"coding: is for float32 x, with one scale or one per row; got {coding}")
        read_form(&step.coding, coding, step.columns)
        a.coding = &step.coding
    return 0


cdef int read_residual(Step step, cq_epilogue *e, residual) except -1:
    cdef Coded coded = residual if isinstance(residual, Coded) else None
    e.residual_stride = step.columns
    if coded is None:
        e.residual = step.matrix(residual, "residual", MAYBE)
    elif coded.rows != step.rows or coded.columns != step.columns or not coded.by_rows:
        raise CqError(f"residual: need shape ({step.rows}, {step.columns}) with one scale or one per row, got "
                      f"{residual.shape}")
    else:
        e.residual_coded = &coded.c
    return 0


cdef object new_results(Step step, cq_epilogue *e, form, str keep, sum_form):
    """What linear returns, to which its epilogue leads from now on."""
    cdef float **normed = &e.norm_out if e.gated or e.norm != NULL else &e.out
    e.out_stride = step.columns
    if e.gated:
        step.columns //= 2
    result = new_result(step, form, normed, &e.codes)
    if keep == "result":
        return result
    if keep == "both":
        return result, result if form is None else step.new(normed)
    if sum_form is None:
        return result, step.new(&e.out)
    if sum_form.kind != "fixed":
        raise CqError("sum_form: a residual stream in codes needs a given scale")
    e.sum_codes = &step.sum_codes
    return result, new_codes(step, &step.sum_codes, sum_form)


# --- matrices as they lie ---

cdef struct Matrix:
    void *data
    int64_t rows, columns, row, column  # row, column: how far it is to the next one


cdef Matrix read_matrix(x, str name, bint writable=False) except *:
    """The last two axes of an array as its memory is, whatever a class of its own may say; distances in bytes."""
    cdef Py_buffer view
    cdef Matrix m
    try:
        PyObject_GetBuffer(x, &view, PyBUF_STRIDED_RO | (PyBUF_WRITABLE if writable else 0))
    except (TypeError, ValueError, BufferError) as error:
        raise CqError(f"{name}: need an array of numbers, got {describe(x)} ({error})") from None
    cdef int last = view.ndim - 1
    if last > 0:
        m.data, m.rows, m.columns = view.buf, view.shape[last - 1], view.shape[last]
        m.row, m.column = view.strides[last - 1], view.strides[last]
    PyBuffer_Release(&view)
    if last < 1:
        raise CqError(f"{name}: need an array of two dimensions, got {describe(x)}")
    return m


cdef Matrix read_floats(x, str name, bint writable=False) except *:
    """The same of a float32 or float64 array, of which one axis is contiguous, a result's last one; distances in
    elements, and of one row or column what reads best."""
    cdef Matrix m = read_matrix(x, name, writable)
    cdef int64_t size = x.itemsize
    cdef bint good = m.column == size or m.columns == 1 or (not writable and (m.row == size or m.rows == 1))
    if not (good or x.size == 0) or (x.dtype != FLOAT32 and x.dtype != FLOAT64):
        raise CqError(f"{name}: need a float32 or float64 matrix with a contiguous axis, got {describe(x)}")
    m.row, m.column = m.row // size if m.rows > 1 else m.columns, m.column // size if m.columns > 1 else 1
    return m


def multiply(a, b, out, bint add):
    """out = a b, or out + a b, of float32 or float64 arrays a (..., m, k), b (..., k, n), out (..., m, n)."""
    cdef cq_products p
    cdef cq_status status
    cdef bint double = out.dtype == FLOAT64
    cdef Matrix left = read_floats(a, "a"), right = read_floats(b, "b"), to = read_floats(out, "out", True)
    cdef bint fits = left.columns == right.rows and to.rows == left.rows and to.columns == right.columns
    if not fits or not a.dtype == b.dtype == out.dtype or max(a.ndim, b.ndim) > out.ndim or (double and out.ndim > 2):
        raise CqError(f"a, b, out: need matrices that fit, got {describe(a)}, {describe(b)} and {describe(out)}")
    p.a, p.a_row, p.a_column, p.k = left.data, left.row, left.column, left.columns
    p.b, p.b_row, p.b_column = right.data, right.row, right.column
    p.c, p.c_row, p.m, p.n, p.add = to.data, to.row, to.rows, to.columns, add
    pairs = out.shape[:-2]
    p.count = math.prod(pairs)
    starts = np.zeros((3, max(1, p.count)), np.int64)
    cdef int64_t *at = <int64_t *>pointer(starts, "starts", c"l", 3, ANY, WRITE)
    p.a_at, p.b_at, p.c_at = at, at + p.count, at + 2 * p.count
    if pairs and p.count:
        read_starts(at, a, pairs)
        read_starts(at + p.count, b, pairs)
        read_starts(at + 2 * p.count, out, pairs)
    cdef int most = threads
    with nogil:
        status = cq_multiply_f64(most, &p) if double else cq_multiply_f32(most, &p)
    check(status, 0, "matmul")


cdef int read_starts(int64_t *at, x, tuple pairs) except -1:
    """Where each pair's matrix begins, in elements; leading axes of 1, and those that are missing, serve all."""
    cdef tuple missing = (1,) * (len(pairs) + 2 - x.ndim)
    cdef int64_t found = 1, size, own, stride, step, i, j
    for size, own, stride in zip(pairs, missing + x.shape, missing + x.strides):
        if own != 1 and own != size:
            raise CqError(f"a, b: need leading axes that fit {pairs}, got {describe(x)}")
        step = 0 if own == 1 else stride // x.itemsize
        for i in range(found - 1, -1, -1):  # backwards, as what is read lies before what is written
            for j in range(size - 1, -1, -1):
                at[i * size + j] = at[i] + j * step
        found *= size
    return 0
