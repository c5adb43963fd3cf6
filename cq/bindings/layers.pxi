# What a transformer has beside products and attention.

def embed(id, word, position=None, position_table=None, type=None, type_table=None, float scale=1.0):
    """float32 (tokens, columns) = scale * word[id] + position_table[position] + type_table[type or 0]. word: float32
    (vocabulary, columns), or a Packed (columns, vocabulary). CqError where an index is out of range."""
    cdef int64_t tokens = id.shape[0], columns = (<Packed>word).k if isinstance(word, Packed) else word.shape[1]
    cdef Step step = new_step(cq_embed, "embed", tokens, [id, word, position, position_table, type, type_table])
    cdef cq_embed_args *a = &step.args.embed
    cdef cq_weight *w
    if isinstance(word, Packed):
        w = (<Packed>word).ready()
        a.word_f32, a.word_i8, a.scales, a.zero_points, a.panel = w.floats, w.panels, w.scales, w.zero_points, CQ_PANEL
        a.words = w.n
    else:
        a.words = word.shape[0]
        a.word_f32, a.panel = floats(word, "word", a.words, columns), 1
    a.id = int32s(id, "id", tokens)
    if position_table is not None:
        a.positions = position_table.shape[0]
    a.position_table = floats(position_table, "position_table", a.positions, columns, MAYBE)
    a.position = int32s(position, "position", tokens, FLAT, MAYBE if position_table is None else READ)
    if type_table is not None:
        a.types = type_table.shape[0]
    a.type_table = floats(type_table, "type_table", a.types, columns, MAYBE)
    a.type = int32s(type, "type", tokens, FLAT, MAYBE)
    a.columns, a.scale = columns, scale
    return step.first(new_floats(&a.y, tokens, columns))


def norm(x, norm=None, residual=None, form=None, bint keep_float=True, bint keep_sum=False, inner=None,
         float factor=1.0):
    """(y float32 or None, y in codes or None, s or None): s = factor * inner(x) + residual, y = norm(s). norm, inner:
    layer or RMS norms, with weight, bias, eps and rms, as model.Norm; or None: nothing is normed there."""
    cdef int64_t rows = x.shape[0], columns = x.shape[1]
    cdef Step step = new_step(cq_norm_rows, "norm", rows, [x, residual, form])
    cdef cq_norm_args *a = &step.args.norm
    a.x, a.residual = floats(x, "x", rows, columns), floats(residual, "residual", rows, columns, MAYBE)
    a.columns, a.factor = columns, factor
    if norm is not None:
        read_norm(step, &a.norm, norm, columns)
    if inner is not None:
        read_norm(step, &step.norm, inner, columns)
        a.inner = &step.norm
    y = new_floats(&a.y, rows, columns) if keep_float else None
    total = new_floats(&a.sum, rows, columns) if keep_sum else None
    codes = None
    if form is not None:
        codes, a.codes = new_codes(&step.codes, form, rows, columns), &step.codes
    return step.first((y, codes, total))


def cap(x, float factor=1.0, float most=0.0):
    """x float32 (rows, columns) to most * tanh(factor * x / most) in place, or to factor * x where most is 0. → x"""
    cdef int64_t rows = x.shape[0], columns = x.shape[1]
    cdef Step step = new_step(cq_cap, "cap", rows, [x])
    cdef cq_cap_args *a = &step.args.cap
    a.x, a.columns, a.factor, a.most = floats(x, "x", rows, columns, WRITE), columns, factor, most
    return step.first(x)


def gate(g, u, activation, form=None):
    """act(g) * u, both float32 (rows, columns), in `form`."""
    cdef int64_t rows = g.shape[0], columns = g.shape[1]
    cdef Step step = new_step(cq_gate, "gate", rows, [g, u, form])
    cdef cq_gate_args *a = &step.args.gate
    a.gate, a.up, a.columns = floats(g, "gate", rows, columns), floats(u, "up", rows, columns), columns
    a.activation = activation_of(activation)
    return step.first(new_result(step, form, rows, columns, &a.y, &a.codes))


def rope(x, int64_t heads, int64_t dim, cosine, sine, position):
    """Rotates the first heads * dim columns of x float32 (tokens, columns) in place; cosine and sine (positions, n):
    the first 2 n features of each head turn; position int32 (tokens,)."""
    cdef int64_t tokens = x.shape[0], width = x.shape[1]
    cdef Step step = new_step(cq_rope, "rope", tokens, [x, cosine, sine, position])
    cdef cq_rope_args *a = &step.args.rope
    if heads * dim > width:
        raise CqError(f"x: {heads} heads of {dim} columns need {heads * dim}, got {width}")
    a.x, a.stride, a.heads, a.dim = floats(x, "x", tokens, width, WRITE), width, heads, dim
    a.positions, a.turned = cosine.shape[0], turned_of(cosine, dim)
    a.cosine = floats(cosine, "cosine", a.positions, a.turned // 2)
    a.sine = floats(sine, "sine", a.positions, a.turned // 2)
    a.position = int32s(position, "position", tokens)
    step.first(None)


cdef int64_t turned_of(cosine, int64_t dim) except -1:
    """How many features of a head of `dim` turn by cosines (positions, half of them)."""
    cdef int64_t turned = 2 * cosine.shape[1]
    if turned > dim:
        raise CqError(f"cosine: {turned} features turn, heads have {dim}")
    return turned
