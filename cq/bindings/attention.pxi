# Attention, of whole sequences and of new tokens to what their sequences have kept.

def attention(qkv, offsets, int64_t heads, int64_t kv_heads, bint causal, float scale, form=None, bias=None,
              window=None, float cap=0.0, relative=None):
    cdef Step step = new_step(cq_attention, "attention", qkv.shape, [qkv, offsets, bias, relative])
    cdef cq_attention_args *a = &step.args.attention
    cdef int64_t parts = heads + 2 * kv_heads, dim = step.columns // parts
    if dim * parts != step.columns:
        raise CqError(f"qkv: {step.columns} columns are not {parts} heads")
    step.sequences = offsets.shape[0] - 1
    a.offsets = int32s(offsets, "offsets", step.sequences + 1)
    a.heads, a.kv_heads, a.dim, a.scale, a.cap = heads, kv_heads, dim, scale, cap
    a.before = INT64_MAX if window is None else window - causal
    a.after = 0 if causal else a.before
    if a.before < 0:
        raise CqError(f"window: need at least {int(causal)}, got {window}")
    if (bias is not None) + (relative is not None) + (cap != 0) > 1:
        raise CqError("bias, relative, cap: scores take one of them")
    if bias is not None:
        a.bias_reach, a.bias_head, a.bias_row = (bias.shape[1] + 1) // 2, bias.shape[1], -1
        a.bias = floats(bias, "bias", heads, 2 * a.bias_reach - 1) + a.bias_reach - 1
    if relative is not None:
        read_relative(&a.relative, heads * dim, relative)
    if isinstance(qkv, Coded):
        read_heads(a, qkv)
    else:
        a.qkv = step.matrix(qkv, "qkv")
    return step.first(new_context(step, form, isinstance(qkv, Coded), heads * dim, &a.y, &a.codes))


cdef int read_relative(cq_relative *r, int64_t features, relative) except -1:
    """Points at keys and queries of relative positions, once all rows are among them and descend."""
    keys, queries, rows = relative
    cdef int64_t i, distances = rows.shape[0]
    table = queries if keys is None else keys
    r.positions = 0 if table is None else table.shape[1]
    r.keys = floats(keys, "relative keys", features, r.positions, CQ_MAYBE)
    r.queries = floats(queries, "relative queries", features, r.positions, CQ_MAYBE)
    r.row, r.reach = int32s(rows, "relative rows", distances), (distances + 1) // 2
    for i in range(1, distances):
        if r.row[i] > r.row[i - 1]:
            raise CqError(f"relative: rows must descend, which {r.row[i]} behind {r.row[i - 1]} does not")
    if r.positions % 16 or distances % 2 == 0 or r.row[distances - 1] < 0 or r.row[0] >= r.positions:
        raise CqError(f"relative: need a multiple of 16 positions and an odd number of rows among them, got "
                      f"{r.positions} and {rows}")


cdef object new_context(Step step, form, bint in_codes, int64_t features, float **y, const cq_codes **codes):
    """The result of attention."""
    if form is not None and not (in_codes and form.kind == "fixed"):
        raise CqError("form: attention gives float32, or of codes, codes of a given scale; else quantize the result")
    step.columns = features
    return new_result(step, form, y, codes)


cdef int read_heads(cq_attention_args *a, Coded qkv) except -1:
    """Points at codes, and at what their scales are."""
    cdef int64_t parts = a.heads + 2 * a.kv_heads
    if qkv.by_rows:
        raise CqError("qkv: need scales per column or per head")
    a.coded = qkv.c
    if qkv.scale.shape == (1, qkv.columns):
        a.coded.scales = floats(qkv.scale, "scale", 1, qkv.columns)
        a.coded.zero_points = int32s(qkv.zero_point, "zero_point", 1, qkv.columns)
    elif qkv.scale.shape == (qkv.rows, parts) and qkv.c.is_signed:
        a.scale_stride, a.coded.scales = parts, floats(qkv.scale, "scale", qkv.rows, parts)
    else:
        raise CqError(f"qkv: need int8 codes with a scale per head, got scales of shape {qkv.scale.shape}")


# --- generation ---

@final
cdef class Kept:
    cdef cq_kept *kept
    cdef object memory, arrays
    cdef readonly int64_t sequences, kv_heads, dim
    cdef readonly str dtype

    def __init__(self, int64_t sequences, int64_t kv_heads, int64_t dim, str dtype):
        self.sequences, self.kv_heads, self.dim, self.dtype = sequences, kv_heads, dim, dtype
        self.arrays, self.memory = [None] * sequences, np.zeros(sequences * sizeof(cq_kept), np.uint8)
        self.kept = <cq_kept *>pointer(self.memory, "memory", c"B", ANY, FLAT, CQ_WRITE)

    def put(self, int64_t sequence, int64_t length, int64_t capacity, keys, values, start=None, scales=None,
            int64_t first=0):
        if not 0 <= sequence < self.sequences or capacity < 64 or capacity % 64 or first < 0 or first % 64:
            raise CqError(f"capacity, first: need multiples of 64 for one of {self.sequences} sequences, "
                          f"got {capacity} and {first} for {sequence}")
        cdef bint coded = self.dtype == "int8"
        cdef char format = c"b" if coded else c"f"
        cdef int64_t each = self.kv_heads * capacity, dim16 = (self.dim + 15) // 16 * 16
        cdef int64_t key = (self.dim + 3) // 4 * 4 if coded else self.dim
        cdef cq_kept to
        to.keys = pointer(keys, "keys", format, each * key, FLAT, CQ_WRITE)
        to.values = pointer(values, "values", format, each * dim16, FLAT, CQ_WRITE)
        to.start = int32s(start, "start", each, FLAT, CQ_WRITE) if coded else NULL
        to.scales = floats(scales, "scales", 3 * each, FLAT, CQ_WRITE | CQ_MAYBE)
        to.length, to.first, to.capacity = first, first, capacity
        self.kept[sequence], self.arrays[sequence] = to, (keys, values, start, scales)
        self.move(sequence, length)

    def move(self, int64_t sequence, int64_t length):
        if not 0 <= sequence < self.sequences or \
                not 0 <= length - self.kept[sequence].first <= self.kept[sequence].capacity:
            raise CqError(f"length: no room for {length} tokens in sequence {sequence}")
        self.kept[sequence].length = length


def attention_kept(qkv, offsets, Kept kept not None, int64_t heads, float scale, cosine=None, sine=None, coding=None,
                   form=None, window=None, float cap=0.0, int64_t hadamard=0):
    cdef Step step = new_step(cq_attention_kept, "attention", qkv.shape, [qkv, offsets, kept, cosine, sine, coding])
    cdef cq_kept_args *a = &step.args.kept
    step.columns, step.sequences, a.kept = (heads + 2 * kept.kv_heads) * kept.dim, kept.sequences, kept.kept
    a.qkv, a.offsets = step.matrix(qkv, "qkv", CQ_WRITE), int32s(offsets, "offsets", kept.sequences + 1)
    a.heads, a.kv_heads, a.dim, a.scale, a.cap = heads, kept.kv_heads, kept.dim, scale, cap
    a.before = INT64_MAX if window is None else window - 1
    if a.before < 0:
        raise CqError(f"window: need at least 1, got {window}")
    if heads % kept.kv_heads or not 0 <= a.offsets[0] <= a.offsets[kept.sequences] == step.rows:
        raise CqError(f"offsets, heads: {offsets} of {step.rows} tokens, {heads} heads over {kept.kv_heads}")
    if cosine is not None:
        read_turns(&a.turns, cosine, sine, kept.dim, hadamard)
    if (coding is None) != (kept.dtype == "float32"):
        raise CqError(f"coding: {coding}, where {kept.dtype} is kept")
    if coding is not None:
        read_coding(step, a, coding)
    return step.first(new_context(step, form, coding is not None, heads * kept.dim, &a.y, &a.codes))


cdef int read_coding(Step step, cq_kept_args *a, coding) except -1:
    """How new queries, keys and values are coded."""
    cdef cq_codes *form = read_form(&step.coding, coding, step.columns)
    cdef str kind = coding.kind
    if kind == "smoothed":
        a.coded.scales = floats(coding.scale, "scale", 1, step.columns)
        a.coded.zero_points = int32s(coding.zero_point, "zero_point", 1, step.columns)
    elif kind != "per_head" or not (form.is_signed and form.symmetric and form.group == a.dim):
        raise CqError(f"coding: codes of each head's own are int8 symmetric, got {coding}")
    a.form, a.coded.is_signed = form, form.is_signed
