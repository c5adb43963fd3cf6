# Attention, of whole sequences and of new tokens to what their sequences have kept.

def attention(qkv, offsets, int64_t heads, int64_t kv_heads, bint causal, float scale, form=None, bias=None,
              window=None, float cap=0.0, relative=None):
    """Attention over ragged sequences. qkv (tokens, (heads + 2 kv_heads) dim): queries, keys and values side by side,
    float32; or Coded, static with parameters per column that are equal within each of the three, or int8 symmetric
    with a scale per head (groups of dim columns). offsets int32 (sequences + 1,) from 0 to tokens. window: how far a
    token sees, or None: causal ones that many with itself, others that many to either side. cap: scores become cap *
    tanh(score / cap), or 0. bias float32 (heads, 2 n - 1), without a cap: [h, n - 1 + j - i] is added to the scaled
    score of query i and key j in sequences of at most n tokens. relative, in place of a bias: (keys, queries, rows),
    the keys and queries of relative positions float32 (heads * dim, positions), a multiple of 16, or None each, and
    int32 (2 n - 1,), descending: rows[n - 1 + j - i] is the position of key j as query i sees it, whose key and query
    meet those two. → (tokens, heads * dim) in `form`: None or, of codes, Fixed."""
    cdef int64_t tokens = qkv.shape[0], width = qkv.shape[1], parts = heads + 2 * kv_heads, dim = width // parts
    cdef Step step = new_step(cq_attention, "attention", tokens, [qkv, offsets, bias, relative])
    cdef cq_attention_args *a = &step.args.attention
    if dim * parts != width:
        raise CqError(f"qkv: {width} columns are not {parts} heads")
    step.sequences, a.offsets = offsets.shape[0] - 1, int32s(offsets, "offsets", ANY)
    a.heads, a.kv_heads, a.dim, a.scale, a.cap = heads, kv_heads, dim, scale, cap
    a.before = reach_of(window, causal)
    a.after = 0 if causal else a.before
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
        a.qkv = floats(qkv, "qkv", tokens, width)
    check_context(form, isinstance(qkv, Coded))
    return step.first(new_result(step, form, tokens, heads * dim, &a.y, &a.codes))


cdef int read_relative(cq_relative *r, int64_t features, relative) except -1:
    """Points at keys and queries of relative positions, once all rows are among them and descend."""
    keys, queries, rows = relative
    cdef int64_t i, distances = rows.shape[0]
    for table in (keys, queries):
        if table is not None:
            r.positions = table.shape[1]
    r.keys = floats(keys, "relative keys", features, r.positions, MAYBE)
    r.queries = floats(queries, "relative queries", features, r.positions, MAYBE)
    r.row, r.reach = int32s(rows, "relative rows", ANY), (distances + 1) // 2
    for i in range(1, distances):
        if r.row[i] > r.row[i - 1]:
            raise CqError(f"relative: rows must descend, which {r.row[i]} behind {r.row[i - 1]} does not")
    if r.positions % 16 or distances % 2 == 0 or r.row[distances - 1] < 0 or r.row[0] >= r.positions:
        raise CqError(f"relative: need a multiple of 16 positions and an odd number of rows among them, got "
                      f"{r.positions} and {rows}")
    return 0


cdef int64_t reach_of(window, bint causal) except -1:
    """How many tokens a token sees to one side, besides itself."""
    if window is None:
        return INT64_MAX
    if window < causal:
        raise CqError(f"window: need at least {int(causal)}, got {window}")
    return window - causal


cdef int check_context(form, bint in_codes) except -1:
    """The form of the result of attention."""
    if form is not None and form.kind != "fixed":
        raise CqError("form: attention gives float32 or codes of a given scale; quantize the result for each row's own")
    if form is not None and not in_codes:
        raise CqError("attention: float32 inputs give float32; quantize the result")
    return 0


cdef int read_heads(cq_attention_args *a, Coded coded) except -1:
    """Points at queries, keys and values in codes, each with what their scales are."""
    cdef int64_t to_keys = a.heads * a.dim, to_values = to_keys + a.kv_heads * a.dim, parts = a.heads + 2 * a.kv_heads
    if coded.by_rows():
        raise CqError("qkv: need scales per column or per head")
    a.q = a.k = a.v = coded.c
    a.k.codes, a.v.codes = <const uint8_t *>coded.c.codes + to_keys, <const uint8_t *>coded.c.codes + to_values
    if coded.scale.shape == (1, coded.columns):
        read_parts(&a.q, &a.k, &a.v, coded.scale, coded.zero_point, to_keys, to_values)
    elif coded.scale.shape == (coded.rows, parts) and coded.c.is_signed:
        a.scale_stride, a.q.scales = parts, floats(coded.scale, "scale", coded.rows, parts)
        a.k.scales, a.v.scales = a.q.scales + a.heads, a.q.scales + a.heads + a.kv_heads
    else:
        raise CqError(f"qkv: need int8 codes with a scale per head, got scales of shape {coded.scale.shape}")
    return 0


cdef int read_parts(cq_coded *q, cq_coded *k, cq_coded *v, scale, zero_point, int64_t to_keys,
                    int64_t to_values) except -1:
    """The parameters of the three, from arrays (1, columns)."""
    q.scale, k.scale, v.scale = scale[0, 0], scale[0, to_keys], scale[0, to_values]
    q.zero_point, k.zero_point, v.zero_point = zero_point[0, 0], zero_point[0, to_keys], zero_point[0, to_values]
    return 0


# --- generation ---

@final
cdef class Kept:
    """Keys and values that sequences have kept in one layer, as cq_kept says: what attention_kept reads and writes.
    `put` names a sequence's arrays, and a recorded call sees the latest ones. dtype: "float32" or "int8"."""
    cdef cq_kept *kept
    cdef list arrays
    cdef readonly int64_t sequences, kv_heads, dim
    cdef readonly str dtype

    def __init__(self, int64_t sequences, int64_t kv_heads, int64_t dim, str dtype):
        self.sequences, self.kv_heads, self.dim, self.dtype = sequences, kv_heads, dim, dtype
        self.arrays = [None] * sequences
        self.kept = <cq_kept *>calloc(max(1, sequences), sizeof(cq_kept))
        if self.kept == NULL:
            raise MemoryError("kept: no memory for the sequences")

    def __dealloc__(self):
        free(self.kept)

    def put(self, int64_t sequence, int64_t length, int64_t capacity, keys, values, start=None, scales=None,
            int64_t first=0):
        """The arrays of a sequence of `length` tokens, of those from `first` on, a multiple of 64, flat: kv_heads *
        capacity times dim (keys; in int8 a multiple of 4), dim as a multiple of 16 (values), and in int8 1 (start)
        and, where tokens have their own, 3 (scales)."""
        if not 0 <= sequence < self.sequences or capacity < 64 or capacity % 64 or first < 0 or first % 64:
            raise CqError(f"capacity, first: need multiples of 64 for one of {self.sequences} sequences, "
                          f"got {capacity} and {first} for {sequence}")
        cdef int64_t each = self.kv_heads * capacity, dim4 = (self.dim + 3) // 4 * 4, dim16 = (self.dim + 15) // 16 * 16
        cdef cq_kept *to = self.kept + sequence
        if self.dtype == "float32":
            to.keys = floats(keys, "keys", each * self.dim, FLAT, WRITE)
            to.values = floats(values, "values", each * dim16, FLAT, WRITE)
        else:
            to.keys = int8s(keys, "keys", each * dim4, FLAT, WRITE)
            to.values = int8s(values, "values", each * dim16, FLAT, WRITE)
            to.start = int32s(start, "start", each, FLAT, WRITE)
            to.scales = NULL if scales is None else floats(scales, "scales", 3 * each, FLAT, WRITE)
        to.capacity, to.first, self.arrays[sequence] = capacity, first, (keys, values, start, scales)
        self.move(sequence, length)

    def move(self, int64_t sequence, int64_t length):
        """The sequence has `length` tokens from now on."""
        if not 0 <= sequence < self.sequences or \
                not 0 <= length - self.kept[sequence].first <= self.kept[sequence].capacity:
            raise CqError(f"length: no room for {length} tokens in sequence {sequence}")
        self.kept[sequence].length = length


def attention_kept(qkv, offsets, Kept kept not None, int64_t heads, float scale, cosine=None, sine=None, coding=None,
                   form=None, window=None, float cap=0.0, int64_t hadamard=0):
    """Causal attention of new tokens to themselves and to what their sequences have kept; see cq_kept_args. qkv
    float32 (tokens, (heads + 2 kv_heads) dim), changed in place by cosine, sine and hadamard as in rope where given.
    coding: None where float32 is kept; else PerHead, or Smoothed of the three, of which values alone may have scales of
    each feature's own. offsets int32 (sequences + 1,) from 0 to tokens, one sequence for each that is kept. window,
    cap: as in attention, causal. → (tokens, heads * dim) in `form`: None or, of codes, Fixed."""
    cdef int64_t tokens = qkv.shape[0], width = (heads + 2 * kept.kv_heads) * kept.dim
    cdef Step step = new_step(cq_attention_kept, "attention", tokens, [qkv, offsets, kept, cosine, sine, coding])
    cdef cq_kept_args *a = &step.args.kept
    a.qkv, a.offsets = floats(qkv, "qkv", tokens, width, WRITE), int32s(offsets, "offsets", kept.sequences + 1)
    step.sequences, a.kept = kept.sequences, kept.kept
    a.heads, a.kv_heads, a.dim, a.scale, a.cap = heads, kept.kv_heads, kept.dim, scale, cap
    a.before = reach_of(window, True)
    if heads % kept.kv_heads or not 0 <= a.offsets[0] <= a.offsets[kept.sequences] == tokens:
        raise CqError(f"offsets, heads: {offsets} of {tokens} tokens, {heads} heads over {kept.kv_heads}")
    if cosine is not None:
        a.angles, a.turned = cosine.shape[0], turned_of(cosine, kept.dim)
        a.cosine = floats(cosine, "cosine", ANY, a.turned // 2)
        a.sine, a.hadamard = floats(sine, "sine", a.angles, a.turned // 2), block_of(hadamard, kept.dim)
    if (coding is None) != (kept.dtype == "float32"):
        raise CqError(f"coding: {coding}, where {kept.dtype} is kept")
    if coding is not None:
        read_coding(step, coding, width)
    check_context(form, coding is not None)
    return step.first(new_result(step, form, tokens, heads * kept.dim, &a.y, &a.codes))


cdef int read_coding(Step step, coding, int64_t width) except -1:
    """How new queries, keys and values are coded."""
    cdef cq_kept_args *a = &step.args.kept
    cdef str kind = coding.kind
    read_form(&step.coding, coding, width)
    if kind == "smoothed":
        read_parts(&a.q, &a.k, &a.v, coding.scale, coding.zero_point, a.heads * a.dim, (a.heads + a.kv_heads) * a.dim)
    elif kind != "per_head" or not (step.coding.is_signed and step.coding.symmetric and step.coding.group == a.dim):
        raise CqError(f"coding: codes of each head's own are int8 symmetric, got {coding}")
    a.form = &step.coding
    a.q.is_signed = a.k.is_signed = a.v.is_signed = step.coding.is_signed
    return 0
