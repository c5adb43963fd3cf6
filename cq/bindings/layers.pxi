# What a transformer has beside products and attention.

def embed(id, word, position=None, position_table=None, type=None, type_table=None, float scale=1.0):
    cdef bint packed = isinstance(word, Packed)
    cdef int64_t tokens = id.shape[0], columns = (<Packed>word).k if packed else word.shape[1]
    cdef list held = [id, word, position, position_table, type, type_table]
    cdef Step step = new_step(cq_embed, "embed", (tokens, columns), held)
    cdef cq_embed_args *a = &step.args.embed
    a.words = (<Packed>word).n if packed else word.shape[0]
    a.positions = 0 if position_table is None else position_table.shape[0]
    a.types = 0 if type_table is None else type_table.shape[0]
    a.packed = (<Packed>word).ready(True) if packed else NULL
    a.word = NULL if packed else floats(word, "word", a.words, columns)
    a.position_table = floats(position_table, "position_table", a.positions, columns, CQ_MAYBE)
    a.type_table = floats(type_table, "type_table", a.types, columns, CQ_MAYBE)
    a.id, a.type = int32s(id, "id", tokens), int32s(type, "type", tokens, FLAT, CQ_MAYBE)
    a.position = int32s(position, "position", tokens, FLAT, CQ_MAYBE if position_table is None else CQ_READ)
    a.columns, a.scale = columns, scale
    return step.first(new_floats(&a.y, tokens, columns))


def norm(x, norm=None, residual=None, form=None, bint keep_float=True, bint keep_sum=False, inner=None,
         float factor=1.0):
    cdef Step step = new_step(cq_norm_rows, "norm", x.shape, [x, residual, form])
    cdef cq_norm_args *a = &step.args.norm
    a.x, a.residual = step.matrix(x, "x"), step.matrix(residual, "residual", CQ_MAYBE)
    a.columns, a.factor = step.columns, factor
    a.norm, a.inner = read_norm(step, &step.norm, norm), read_norm(step, &step.inner, inner)
    y = new_floats(&a.y, step.rows, step.columns) if keep_float else None
    total = new_floats(&a.sum, step.rows, step.columns) if keep_sum else None
    codes = None if form is None else new_result(step, form, NULL, &a.codes)
    return step.first((y, codes, total))


cdef const cq_norm *read_norm(Step step, cq_norm *to, norm) except? NULL:
    """A norm over the step's columns, or NULL for None."""
    if norm is None:
        return NULL
    weight, bias = norm.weight, norm.bias
    to.weight = floats(weight, "weight", step.columns)
    to.bias = floats(bias, "bias", step.columns, FLAT, CQ_MAYBE)
    to.eps, to.rms = norm.eps, norm.rms
    step.held += (weight, bias)  # the norm may get others
    return to


def cap(x, float factor=1.0, float most=0.0):
    cdef Step step = new_step(cq_cap, "cap", x.shape, [x])
    cdef cq_cap_args *a = &step.args.cap
    a.x, a.columns, a.factor, a.most = step.matrix(x, "x", CQ_WRITE), step.columns, factor, most
    return step.first(x)


def hadamard(x, int64_t block):
    cdef Step step = new_step(cq_hadamard, "hadamard", x.shape, [x])
    cdef cq_hadamard_args *a = &step.args.hadamard
    a.x, a.columns, a.block = step.matrix(x, "x", CQ_WRITE), step.columns, block_of(block, step.columns)
    if not block:
        raise CqError("hadamard: need the size of a block, got 0")
    return step.first(x)


cdef int64_t block_of(int64_t block, int64_t columns) except -1:
    """The size of blocks that are transformed, or 0: none are."""
    if block and (block < 16 or block & (block - 1) or columns % block):
        raise CqError(f"hadamard: blocks have a power of two from 16 that divides {columns} columns, got {block}")
    return block


def gate(g, u, activation, form=None, int64_t hadamard=0):
    cdef Step step = new_step(cq_gate, "gate", g.shape, [g, u, form])
    cdef cq_gate_args *a = &step.args.gate
    a.gate, a.up, a.columns = step.matrix(g, "gate"), step.matrix(u, "up"), step.columns
    a.activation, a.hadamard = activation_of(activation), block_of(hadamard, step.columns)
    return step.first(new_result(step, form, &a.y, &a.codes))


def rope(x, int64_t heads, int64_t dim, cosine, sine, position, int64_t hadamard=0):
    cdef Step step = new_step(cq_rope, "rope", x.shape, [x, cosine, sine, position])
    cdef cq_rope_args *a = &step.args.rope
    if heads * dim > step.columns:
        raise CqError(f"x: {heads} heads of {dim} columns need {heads * dim}, got {step.columns}")
    a.x, a.stride, a.heads, a.dim = step.matrix(x, "x", CQ_WRITE), step.columns, heads, dim
    a.position = int32s(position, "position", step.rows)
    read_turns(&a.turns, cosine, sine, dim, hadamard)
    step.first(None)


cdef int read_turns(cq_turns *to, cosine, sine, int64_t dim, int64_t hadamard) except -1:
    """By what heads of `dim` features turn, and in which blocks they are transformed then."""
    to.positions, to.turned, to.hadamard = cosine.shape[0], 2 * cosine.shape[1], block_of(hadamard, dim)
    if to.turned > dim:
        raise CqError(f"cosine: {to.turned} features turn, heads have {dim}")
    to.cosine = floats(cosine, "cosine", to.positions, to.turned // 2)
    to.sine = floats(sine, "sine", to.positions, to.turned // 2)
