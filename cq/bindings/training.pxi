# Passes over float32 that training is made of, and elementary functions; see src/cq_training.h.

cdef dict FUNCTIONS = {"exp": CQ_EXP, "log": CQ_LOG, "sin": CQ_SIN, "cos": CQ_COS, "tanh": CQ_TANH, "power": CQ_POWER}


def elementary(str name, x, y=None):
    """A new array: the function of each element of x, float64 or float32 of any shape."""
    if name not in FUNCTIONS or (y is None) != (name != "power"):
        raise CqError(f"function: {name!r} is not known, or has another number of arguments")
    out = new_array(x.shape, x.dtype)
    cdef Step step = new_step(cq_elementary, name, (out.size, 1), [x, y])
    cdef cq_elementary_args *a = &step.args.elementary
    cdef char format = c"f" if x.dtype == FLOAT32 else c"d"
    a.function, a.single = <cq_function><int>FUNCTIONS[name], format == c"f"
    a.y_step = y is not None and y.shape[0] != 1
    a.x, a.out = pointer(x, "x", format, ANY, ALL, READ), pointer(out, "out", format, ANY, ALL, WRITE)
    a.y = <const double *>pointer(y, "y", c"d", step.rows if a.y_step else 1, FLAT, MAYBE)
    return step.once(out)


def dot_rows(x, y):
    """Of float32 x and y (rows, n) each row's sum of products, float32 (rows,)."""
    cdef Step step = new_step(cq_dot_rows, "dot_rows", x.shape, [x, y])
    cdef cq_dot_rows_args *a = &step.args.dot_rows
    a.x, a.y, a.columns = step.matrix(x, "x"), step.matrix(y, "y"), step.columns
    return step.once(new_floats(&a.sums, step.rows))


def column_sums(x):
    """Of float32 x (rows, n) the sums over rows, float32 (n,)."""
    cdef Step step = new_step(cq_column_sums, "column_sums", x.shape, [x])
    cdef cq_column_sums_args *a = &step.args.column_sums
    a.x, a.columns = step.matrix(x, "x"), step.columns
    return step.once(new_floats(&a.sums, step.columns))


def slope(x, activation):
    """act(x) and its derivative, of float32 x (rows, n)."""
    cdef Step step = new_step(cq_slope, "slope", x.shape, [x])
    cdef cq_slope_args *a = &step.args.slope
    a.x, a.activation = step.matrix(x, "x"), activation_of(activation)
    y, slopes = step.new(&a.y), step.new(&a.slope)
    step.rows *= step.columns  # to C they are flat
    return step.once((y, slopes))


def round_codes(x, scales, lows, highs, shifts=None):
    """clip(rint(x / scales), lows, highs) + shifts; the same from lows on as uint8; and which rows were clipped."""
    cdef Step step = new_step(cq_round, "round_codes", x.shape, [x, scales, lows, highs, shifts])
    cdef cq_round_args *a = &step.args.round
    cdef cq_rounding *r = &a.rounding
    cdef int64_t ends = 1, columns = step.columns if scales.ndim == 2 else FLAT
    r.by = CQ_BY_ONE if columns == FLAT else CQ_BY_COLUMN
    if columns == FLAT and scales.shape[0] == step.rows:
        r.by, ends = CQ_BY_ROW, step.rows
    r.scales, r.lows = floats(scales, "scales", ends, columns), floats(lows, "lows", ends, columns)
    r.highs, r.shifts = floats(highs, "highs", ends, columns), floats(shifts, "shifts", ends, columns, MAYBE)
    stored, clipped = new_array((step.rows, step.columns), UINT8), new_array(step.rows, UINT8)
    a.x, a.columns = step.matrix(x, "x"), step.columns
    a.bytes = <uint8_t *>pointer(stored, "stored", c"B", step.rows, step.columns, WRITE)
    a.clipped = <uint8_t *>pointer(clipped, "clipped", c"B", step.rows, FLAT, WRITE)
    return step.once((step.new(&a.y), stored, clipped.view(np.bool_)))


def exponents(x, float factor, bint coded):
    """Each row of float32 x (..., n) to exp(factor * (x - max)), or to codes of 1/255, in place. → the rows' sums"""
    cdef Step step = new_step(cq_exponents, "exponents", as_rows(x), [x])
    cdef cq_exponents_args *a = &step.args.exponents
    a.x, a.columns, a.factor, a.coded = floats(x, "x", ANY, ALL, WRITE), step.columns, factor, coded
    return step.once(new_floats(&a.sums, step.rows).reshape(*x.shape[:-1], 1))


def softmax_back(g, p, inverses, float factor):
    """The reverse of softmax along the last axis: g = factor * (g - sum(g * w)) * w in place, w = p * inverses."""
    if g.shape != p.shape or inverses.shape != (*g.shape[:-1], 1):
        raise CqError(f"softmax_back: shapes do not match: g {g.shape}, p {p.shape}, inverses {inverses.shape}")
    cdef Step step = new_step(cq_softmax_back, "softmax_back", as_rows(g), [g, p, inverses])
    cdef cq_softmax_back_args *a = &step.args.softmax_back
    a.g, a.p, a.columns = floats(g, "g", ANY, ALL, WRITE), floats(p, "p", ANY, ALL), step.columns
    a.inverses, a.factor = floats(inverses, "inverses", ANY, ALL), factor
    step.once(None)


cdef tuple as_rows(x):
    """The shape of an array (..., n) as rows."""
    return x.size // max(1, x.shape[-1]), x.shape[-1]


def rescale(x, scales, before=None, row_scales=None, after=None, out=None):
    """(x + before) * row_scales[:, None] * scales + after, of float32 x (rows, n), in `out`, which may be x."""
    cdef Step step = new_step(cq_rescale, "rescale", x.shape, [x, scales, before, row_scales, after])
    cdef cq_rescale_args *a = &step.args.rescale
    cdef cq_rescaling *r = &a.rescaling
    r.scales, r.row_scales = step.per_column(scales, "scales"), step.per_row(row_scales, "row_scales", MAYBE)
    r.before, r.after = step.per_column(before, "before", MAYBE), step.per_column(after, "after", MAYBE)
    out = step.new(&a.y) if out is None else out
    a.x, a.y, a.columns = step.matrix(x, "x"), step.matrix(out, "out", WRITE), step.columns
    return step.once(out)


def norm_kept(x, weight, bias, float eps, bint rms):
    """Layer or RMS norm: the result; what weight and bias follow; and the inverse of what each row was divided by."""
    cdef Step step = new_step(cq_norm_kept, "norm_kept", x.shape, [x, weight, bias])
    cdef cq_norm_kept_args *a = &step.args.norm_kept
    a.x, a.columns, a.norm.eps, a.norm.rms = step.matrix(x, "x"), step.columns, eps, rms
    a.norm.weight, a.norm.bias = step.per_column(weight, "weight"), step.per_column(bias, "bias", MAYBE)
    return step.once((step.new(&a.y), step.new(&a.kept), new_floats(&a.factors, step.rows)))


def norm_back(g, weight, kept, factors, bint rms):
    """From g, the gradient of what norm_kept gave: that of x, and g * kept, whose column sums are the weight's."""
    cdef Step step = new_step(cq_norm_back, "norm_back", g.shape, [g, weight, kept, factors])
    cdef cq_norm_back_args *a = &step.args.norm_back
    a.g, a.kept, a.factors = step.matrix(g, "g"), step.matrix(kept, "kept"), step.per_row(factors, "factors")
    a.norm.weight, a.norm.rms, a.columns = step.per_column(weight, "weight"), rms, step.columns
    return step.once((step.new(&a.dx), step.new(&a.of_weight)))


def adamw(p, g, mean, square, units, choices, row_rates=None):
    """A step of AdamW over flat float32 arrays (n,), of which p, mean and square change; see cq_adamw_args."""
    cdef Step step = new_step(cq_adamw_step, "adamw", (p.shape[0], 1), [p, g, mean, square, units, row_rates])
    cdef cq_adamw_args *a = &step.args.adamw
    cdef cq_adamw *c = &a.adamw
    c.beta1, c.beta2, c.gradient, c.gradient_square, c.root, c.epsilon, c.rate, c.keep = choices
    a.p, a.g, a.mean = step.per_row(p, "p", WRITE), step.per_row(g, "g"), step.per_row(mean, "mean", WRITE)
    a.square, a.units = step.per_row(square, "square", WRITE), step.per_row(units, "units", MAYBE)
    a.row_rates = floats(row_rates, "row_rates", ANY, FLAT, MAYBE)
    if row_rates is not None:
        a.columns = step.rows // max(1, row_rates.shape[0])
        if a.columns * row_rates.shape[0] != step.rows:
            raise CqError(f"row_rates: {step.rows} parameters are not {row_rates.shape[0]} equal rows")
    step.once(None)
