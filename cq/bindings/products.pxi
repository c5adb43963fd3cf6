# Matrix products, with what follows one.

def matmul_integer(Coded a not None, Packed w not None):
    cdef Step step = new_step(cq_matmul_i8, "matmul_integer", a.shape, [a, w])
    cdef cq_matmul_args *p = &step.args.matmul
    p.a, p.w = &a.c, read_weight(step, a, "a", w)
    if p.w.panels == NULL:
        raise CqError("w: int8 products take an int8 weight")
    c = empty(step.rows, w.n, INT32)
    p.c = int32s(c, "result", step.rows, w.n, CQ_WRITE)
    step.run()
    return c


def linear(x, Packed w not None, bias=None, bias_i32=None, activation=None, residual=None, form=None, norm=None,
           str keep="result", sum_form=None, coding=None, bint gated=False, int64_t hadamard=0):
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
    e.bias, e.bias_i32 = step.per_column(bias, "bias", CQ_MAYBE), int32s(bias_i32, "bias_i32", w.n, FLAT, CQ_MAYBE)
    e.activation, e.gated, e.hadamard = activation_of(activation), gated, block_of(hadamard, w.n // 2)
    read_residual(step, e, residual)
    if norm is not None:
        read_norm(step, &step.norm, norm)
        e.norm = &step.norm
    return step.first(new_results(step, e, form, keep, sum_form))


cdef const cq_weight *read_weight(Step step, x, str name, Packed w) except NULL:
    """The weight, whose rows match x's columns; x may be in codes."""
    if step.columns != w.k:
        raise CqError(f"{name}: {step.columns} columns do not match the {w.k} rows of the packed weight")
    if isinstance(x, Coded) and not (<Coded>x).by_rows:
        raise CqError(f"{name}: products take one scale and zero point, or one per row")
    return w.ready()


cdef int read_factors(Step step, x, Packed w, coding) except -1:
    """What is multiplied, and in which arithmetic."""
    cdef cq_linear_args *a = &step.args.linear
    a.w = read_weight(step, x, "x", w)
    if a.w.floats == NULL and a.w.scales == NULL:
        raise CqError("w: the packed weight has no scales; pack a QTensor")
    if isinstance(x, Coded):
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
        e.residual = step.matrix(residual, "residual", CQ_MAYBE)
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


def multiply(a, b, out, bint add):
    cdef bint double = out.dtype == FLOAT64
    cdef char format = c"d" if double else c"f"
    cdef Step step = new_step(cq_multiply_f64 if double else cq_multiply_f32, "matmul", out.shape[-2:], [])
    cdef cq_products *p = &step.args.products
    read_matrices(&p.c, out, "out", format, ANY, ANY, CQ_WRITE)
    read_matrices(&p.a, a, "a", format, p.c.rows, ANY, CQ_READ, p.c.pairs)
    read_matrices(&p.b, b, "b", format, p.a.columns, p.c.columns, CQ_READ, p.c.pairs)
    p.add = add
    step.run()
