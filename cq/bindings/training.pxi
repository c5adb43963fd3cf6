# Passes over float32 that training is made of, and elementary functions; see src/cq_training.h.

cdef dict FUNCTIONS = {"exp": CQ_EXP, "log": CQ_LOG, "sin": CQ_SIN, "cos": CQ_COS, "tanh": CQ_TANH, "power": CQ_POWER}


def elementary(str name, x, y=None):
    """A new array: the function of each element of x, float64 or float32 of any shape; float32 is computed in float64
    and rounded once. name: exp, log, sin, cos, tanh, or power, which takes x to y: float64, (1,) or flat, one per
    element."""
    if name not in FUNCTIONS or (y is None) != (name != "power"):
        raise CqError(f"function: {name!r} is not known, or has another number of arguments")
    cdef cq_args args
    cdef cq_elementary_args *a = &args.elementary
    out = new_array(x.shape, x.dtype)
    a.function, a.single = <cq_function><int>FUNCTIONS[name], x.dtype == FLOAT32
    a.y_step = y is not None and y.shape[0] != 1
    a.x = pointer(x, "x", c"f" if a.single else c"d", ANY, ALL, READ)
    a.y = <const double *>pointer(y, "y", c"d", out.size if a.y_step else 1, FLAT, MAYBE)
    a.out = pointer(out, "out", c"f" if a.single else c"d", ANY, ALL, WRITE)
    call(cq_elementary, &args, out.size, name)
    return out


def dot_rows(x, y):
    """Of float32 x and y (rows, n) each row's sum of products, float32 (rows,)."""
    cdef int64_t rows = x.shape[0], n = x.shape[1]
    cdef cq_args a
    a.dot_rows.x, a.dot_rows.y, a.dot_rows.columns = floats(x, "x", rows, n), floats(y, "y", rows, n), n
    sums = new_floats(&a.dot_rows.sums, rows)
    call(cq_dot_rows, &a, rows, "dot_rows")
    return sums


def column_sums(x):
    """Of float32 x (rows, n) the sums over rows, float32 (n,)."""
    cdef int64_t rows = x.shape[0], n = x.shape[1]
    cdef cq_args a
    a.column_sums.x, a.column_sums.columns = floats(x, "x", rows, n), n
    sums = new_floats(&a.column_sums.sums, n)
    call(cq_column_sums, &a, rows, "column_sums")
    return sums


def slope(x, activation):
    """act(x) and its derivative, of float32 x (rows, n)."""
    cdef int64_t rows = x.shape[0], n = x.shape[1]
    cdef cq_args a
    a.slope.x, a.slope.activation = floats(x, "x", rows, n), activation_of(activation)
    y, slopes = new_floats(&a.slope.y, rows, n), new_floats(&a.slope.slope, rows, n)
    call(cq_slope, &a, rows * n, "slope")
    return y, slopes


def round_codes(x, scales, lows, highs, shifts=None):
    """clip(rint(x / scales), lows, highs) + shifts, whole numbers in float32, of finite float32 x (rows, n); the same
    from lows on as uint8; and which rows were clipped, bool (rows,). scales, lows, highs, shifts: float32, all (1,),
    (rows,) or (1, n)."""
    cdef int64_t rows = x.shape[0], n = x.shape[1], ends = scales.shape[0], columns = n if scales.ndim == 2 else FLAT
    cdef cq_args args
    cdef cq_round_args *a = &args.round
    cdef cq_rounding *r = &a.rounding
    if ends != 1 and (scales.ndim == 2 or ends != rows):
        raise CqError(f"scales: need one, one per row or one per column of x {tuple(x.shape)}, got {describe(scales)}")
    r.by = CQ_BY_ROW if ends == rows else CQ_BY_ONE
    if columns != FLAT:
        r.by = CQ_BY_COLUMN
    r.scales, r.lows = floats(scales, "scales", ends, columns), floats(lows, "lows", ends, columns)
    r.highs, r.shifts = floats(highs, "highs", ends, columns), floats(shifts, "shifts", ends, columns, MAYBE)
    a.x, a.columns = floats(x, "x", rows, n), n
    y, stored, clipped = new_floats(&a.y, rows, n), new_array((rows, n), UINT8), new_array(rows, UINT8)
    a.bytes, a.clipped = bytes_of(stored, "stored", rows, n, WRITE), bytes_of(clipped, "clipped", rows, FLAT, WRITE)
    call(cq_round, &args, rows, "round_codes")
    return y, stored, clipped.view(DTYPES["bool"])


def exponents(x, float factor, bint coded):
    """Each row of float32 x (..., n) to exp(factor * (x - max)) or, coded, rint(255 * 2^(factor * (x - max))) as int8
    attention has it, in place; -Inf to 0. Gives the rows' sums, float32 (..., 1)."""
    cdef int64_t n = x.shape[x.ndim - 1], rows = x.size // n if n else 0
    cdef cq_args a
    a.exponents.x, a.exponents.columns = floats(x, "x", ANY, ALL, WRITE), n
    a.exponents.factor, a.exponents.coded = factor, coded
    sums = new_floats(&a.exponents.sums, rows)
    call(cq_exponents, &a, rows, "exponents")
    return sums.reshape(*x.shape[:-1], 1)


def softmax_back(g, p, inverses, float factor):
    """The reverse of softmax along the last axis: g = factor * (g - sum(g * w)) * w in place, w = p * inverses.
    float32 g and p (..., n), inverses (..., 1)."""
    if g.shape != p.shape or inverses.shape != (*g.shape[:-1], 1):
        raise CqError(f"softmax_back: shapes do not match: g {g.shape}, p {p.shape}, inverses {inverses.shape}")
    cdef int64_t n = g.shape[g.ndim - 1], rows = g.size // n if n else 0
    cdef cq_args args
    cdef cq_softmax_back_args *a = &args.softmax_back
    a.g, a.p = floats(g, "g", ANY, ALL, WRITE), floats(p, "p", ANY, ALL)
    a.inverses, a.columns, a.factor = floats(inverses, "inverses", ANY, ALL), n, factor
    call(cq_softmax_back, &args, rows, "softmax_back")


def rescale(x, scales, before=None, row_scales=None, after=None, out=None):
    """(x + before) * row_scales[:, None] * scales + after, of float32 x (rows, n): scales, before, after (n,),
    row_scales (rows,). out: an array for it, which may be x."""
    cdef int64_t rows = x.shape[0], n = x.shape[1]
    cdef cq_args a
    cdef cq_rescaling *r = &a.rescale.rescaling
    r.scales, r.row_scales = floats(scales, "scales", n), floats(row_scales, "row_scales", rows, FLAT, MAYBE)
    r.before, r.after = floats(before, "before", n, FLAT, MAYBE), floats(after, "after", n, FLAT, MAYBE)
    out = new_array((rows, n), FLOAT32) if out is None else out
    a.rescale.x, a.rescale.y = floats(x, "x", rows, n), floats(out, "out", rows, n, WRITE)
    a.rescale.columns = n
    call(cq_rescale, &a, rows, "rescale")
    return out


def norm_kept(x, weight, bias, float eps, bint rms):
    """Layer or RMS norm of float32 x (rows, n), with weight and optional bias (n,): the result; what weight and bias
    follow; and the inverse (rows,) of what each row was divided by."""
    cdef int64_t rows = x.shape[0], n = x.shape[1]
    cdef cq_args args
    cdef cq_norm_kept_args *a = &args.norm_kept
    a.x, a.columns, a.norm.eps, a.norm.rms = floats(x, "x", rows, n), n, eps, rms
    a.norm.weight, a.norm.bias = floats(weight, "weight", n), floats(bias, "bias", n, FLAT, MAYBE)
    y, kept, factors = new_floats(&a.y, rows, n), new_floats(&a.kept, rows, n), new_floats(&a.factors, rows)
    call(cq_norm_kept, &args, rows, "norm_kept")
    return y, kept, factors


def norm_back(g, weight, kept, factors, bint rms):
    """From g, the gradient of what norm_kept gave: that of x, and g * kept, whose column sums are the weight's."""
    cdef int64_t rows = g.shape[0], n = g.shape[1]
    cdef cq_args args
    cdef cq_norm_back_args *a = &args.norm_back
    a.g, a.kept, a.factors = floats(g, "g", rows, n), floats(kept, "kept", rows, n), floats(factors, "factors", rows)
    a.norm.weight, a.norm.bias, a.norm.eps, a.norm.rms = floats(weight, "weight", n), NULL, 0, rms
    a.columns = n
    dx, of_weight = new_floats(&a.dx, rows, n), new_floats(&a.of_weight, rows, n)
    call(cq_norm_back, &args, rows, "norm_back")
    return dx, of_weight


def adamw(p, g, mean, square, units, choices, row_rates=None):
    """A step of AdamW over flat float32 arrays (n,), of which p, mean and square change; units (n,) or None. choices:
    beta1, beta2, gradient, gradient_square, root, epsilon, rate, keep (see cq_adamw). row_rates (rows,): what the rate
    is multiplied by in each of so many equal parts."""
    cdef int64_t n = p.shape[0]
    cdef cq_args args
    cdef cq_adamw_args *a = &args.adamw
    cdef cq_adamw *c = &a.adamw
    c.beta1, c.beta2, c.gradient, c.gradient_square, c.root, c.epsilon, c.rate, c.keep = choices
    a.p, a.mean = floats(p, "p", n, FLAT, WRITE), floats(mean, "mean", n, FLAT, WRITE)
    a.square, a.g = floats(square, "square", n, FLAT, WRITE), floats(g, "g", n)
    a.units = floats(units, "units", n, FLAT, MAYBE)
    a.row_rates = floats(row_rates, "row_rates", ANY, FLAT, MAYBE)
    if row_rates is not None:
        a.columns = n // max(1, row_rates.shape[0])
        if a.columns * row_rates.shape[0] != n:
            raise CqError(f"row_rates: {n} parameters are not {row_rates.shape[0]} equal rows")
    call(cq_adamw_step, &args, n, "adamw")
