# Matrix products, with what follows one.

cdef multiply_codes(cq_call *function, str what, Coded a, Packed w, int64_t rows, int64_t columns):
    cdef cq_args args
    check_factors(a, "a", a.columns, w)
    c = empty(rows, columns, INT32)
    args.matmul = cq_matmul_args(&a.c, w.ready(), int32s(c, "result", rows, columns, CQ_WRITE))
    if args.matmul.w.panels == NULL:
        raise CqError("w: int8 products take an int8 weight")
    call(function, what, &args, a.rows)
    return c


def matmul_integer(Coded a not None, Packed w not None):
    return multiply_codes(cq_matmul_i8, "matmul_integer", a, w, a.rows, w.n)


def code_form(Coded a not None, Packed w not None):
    form, excess = multiply_codes(cq_find_code_form, "code_form", a, w, 1, 2)[0].tolist()
    return ("whole", "centred", "from floor")[form], excess


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
    e.bias = floats(bias, "bias", w.n, FLAT, CQ_MAYBE)
    e.bias_i32 = int32s(bias_i32, "bias_i32", w.n, FLAT, CQ_MAYBE)
    e.activation, e.gated, e.hadamard = activation_of(activation), gated, block_of(hadamard, w.n // 2)
    read_residual(step, e, residual)
    e.norm = read_norm(step, &step.norm, norm)
    return step.first(new_results(step, e, form, keep, sum_form))


cdef int check_factors(x, str name, int64_t columns, Packed w) except -1:
    if columns != w.k:
        raise CqError(f"{name}: {columns} columns do not match the {w.k} rows of the packed weight")
    if isinstance(x, Coded) and not (<Coded>x).by_rows:
        raise CqError(f"{name}: products take one scale and zero point, or one per row")


cdef int read_factors(Step step, x, Packed w, coding) except -1:
    """What is multiplied, and in which arithmetic."""
    cdef cq_linear_args *a = &step.args.linear
    check_factors(x, "x", step.columns, w)
    a.w = w.ready(True)
    if isinstance(x, Coded):
        a.coded = &(<Coded>x).c
    else:
        a.x = step.matrix(x, "x")
    if a.w.floats != NULL and (a.coded != NULL or coding is not None):
        raise CqError("x: a float32 weight multiplies float32")
    if coding is not None:
        if a.coded != NULL or (coding.kind != "per_token" and coding.kind != "fixed"):
            raise CqError(f"coding: is for float32 x, with one scale or one per row; got {coding}")
        a.coding = read_form(&step.coding, coding, step.columns)


cdef int read_residual(Step step, cq_epilogue *e, residual) except -1:
    if not isinstance(residual, Coded):
        e.residual = step.matrix(residual, "residual", CQ_MAYBE)
    elif residual.shape != (step.rows, step.columns) or not (<Coded>residual).by_rows:
        raise CqError(f"residual: need shape ({step.rows}, {step.columns}) with one scale or one per row, got "
                      f"{residual.shape}")
    else:
        e.residual_coded = &(<Coded>residual).c


cdef object new_results(Step step, cq_epilogue *e, form, str keep, sum_form):
    """What linear returns, to which its epilogue leads from now on."""
    cdef float **normed = &e.norm_out if e.gated or e.norm != NULL else &e.out
    if e.gated:
        step.columns //= 2
    result = new_result(step, form, normed, &e.codes)
    if keep == "result":
        return result
    if keep == "both":
        return result, result if form is None else new_floats(normed, step.rows, step.columns)
    if sum_form is None:
        return result, new_floats(&e.out, step.rows, step.columns)
    if sum_form.kind != "fixed":
        raise CqError("sum_form: a residual stream in codes needs a given scale")
    e.sum_codes = &step.sum_codes
    return result, new_codes(step, &step.sum_codes, sum_form)


def multiply(a, b, out, bint add):
    cdef char format = c"d" if out.dtype == FLOAT64 else c"f"
    cdef cq_args args
    cdef cq_products *p = &args.products
    read_matrices(&p.c, out, "out", format, ANY, ANY, CQ_WRITE)
    read_matrices(&p.a, a, "a", format, p.c.rows, ANY, CQ_READ, p.c.pairs)
    read_matrices(&p.b, b, "b", format, p.a.columns, p.c.columns, CQ_READ, p.c.pairs)
    p.add = add
    call(cq_multiply_f64 if format == c"d" else cq_multiply_f32, "matmul", &args)
