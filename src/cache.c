/* Attention of new tokens to what their sequences have kept: first every token's queries and keys are rotated, coded
 * and laid behind what is there, then blocks of queries run over all of it. Each layer's products see what whole
 * sequences would give them, so that the results have the same bits. */
#include "attention.h"
#include "threads.h"

#define QUERIES 48 /* of a sequence, a task's: some tiles, and shares fine enough for a team */

typedef struct {
    const cq_kept_args *a;
    coded_parts parts;                   /* parameters alone */
    int64_t width, dim4, dim16, longest; /* longest: in tokens, with its new ones */
    uint8_t *codes;                      /* (tokens, width), of q, k and v */
    float *scales;                       /* (tokens, heads + 2 kv_heads) where tokens have their own */
    int32_t *zeros;
    _Atomic int64_t bad;
} kept_job;

/* The sequence that token (or block) i belongs to. */
static int64_t sequence_of(const cq_kept_args *a, int64_t token) {
    int64_t s = 0;
    while (a->offsets[s + 1] <= token) s++;
    return s;
}

/* --- what is kept ------------------------------------------------------------------------------------------------- */

static void keep_f32(const kept_job *job, const cq_kept *kept, int64_t at, const float *k, const float *v) {
    const cq_kept_args *a = job->a;
    for (int64_t g = 0; g < a->kv_heads; g++) {
        const int64_t first = g * kept->capacity;
        float *keys = (float *)kept->keys + first * a->dim + at / 64 * 64 * a->dim + at % 64;
        for (int64_t d = 0; d < a->dim; d++) keys[64 * d] = k[g * a->dim + d];
        memcpy((float *)kept->values + (first + at) * job->dim16, v + g * a->dim, (size_t)a->dim * 4);
    }
}

static cq_key_scales scales_of(const cq_kept *kept, int64_t first) {
    float *scales = kept->scales + 3 * first;
    return (cq_key_scales){scales, scales + kept->capacity, scales + 2 * kept->capacity};
}

/* codes: of this token, with its scales. */
static void keep_i8(const kept_job *job, const cq_kept *kept, int64_t at, const uint8_t *codes, const float *scales) {
    const cq_kept_args *a = job->a;
    const int64_t dim = a->dim;
    const uint8_t flip = flip_of(&job->parts.k) ^ 0x80;
    const int32_t q_zero = job->parts.q.zero_point + flip_of(&job->parts.q);
    for (int64_t g = 0; g < a->kv_heads; g++) {
        const int64_t first = g * kept->capacity;
        const uint8_t *key = codes + (a->heads + g) * dim, *value = key + a->kv_heads * dim;
        int8_t *keys =
            (int8_t *)kept->keys + first * job->dim4 + at / CQ_PANEL * CQ_PANEL * job->dim4 + at % CQ_PANEL * 4;
        int8_t *values = (int8_t *)kept->values + first * job->dim16 + at / 4 * 64 + at % 4;
        kept->start[first + at] = -q_zero * lay_key(key, dim, flip, keys);
        for (int64_t d = 0; d < dim; d++)
            values[d / CQ_PANEL * CQ_PANEL * kept->capacity + d % CQ_PANEL * 4] = (int8_t)(value[d] ^ flip);
        if (!scales) continue;
        const cq_key_scales to = scales_of(kept, first);
        lay_scale(&to, at, scales[a->heads + g], scales[a->heads + a->kv_heads + g], (const int8_t *)value, dim);
    }
}

/* Codes of columns first .. first + n - 1 of a token, by parameters that hold for all of them. */
static int code_part(const cq_codes *form, const cq_coded *all, const float *x, int64_t first, int64_t n, int64_t t) {
    cq_codes part = *form;
    part.codes = (uint8_t *)form->codes + first, part.column_scales = NULL;
    part.scale = all->scale, part.zero_point = all->zero_point;
    return cq_active->quantize(x + first, n, &part, t);
}

/* Codes of a token. Static queries and keys have one scale each, so only the values' columns are read. */
static int code_token(const kept_job *job, const cq_codes *form, const float *x, int64_t t) {
    const cq_kept_args *a = job->a;
    if (form->dynamic) return cq_active->quantize(x, job->width, form, t);
    const int64_t q = a->heads * a->dim, k = a->kv_heads * a->dim;
    cq_codes values = *form;
    values.codes = (uint8_t *)form->codes + q + k;
    values.column_scales += q + k, values.column_inverses += q + k, values.column_zero_points += q + k;
    return code_part(form, &job->parts.q, x, 0, q, t) & code_part(form, &job->parts.k, x, q, k, t) &
           cq_active->quantize(x + q + k, k, &values, t);
}

/* Tasks are tokens. */
static void keep_member(void *context, cq_queue *queue) {
    kept_job *job = context;
    const cq_kept_args *a = job->a;
    const int64_t parts = a->heads + 2 * a->kv_heads, rotated = a->turns.cosine ? a->heads + a->kv_heads : 0;
    cq_codes form = {0};
    if (a->form) {
        form = *a->form;
        form.codes = job->codes, form.stride = job->width, form.scales = job->scales, form.zero_points = job->zeros;
    }
    for (int64_t t, end; cq_take(queue, &t, &end);)
        for (int64_t s = sequence_of(a, t); t < end; t++) {
            while (a->offsets[s + 1] <= t) s++;
            const int64_t place = a->kept[s].length + t - a->offsets[s], at = place - a->kept[s].first;
            const int64_t angle = place * (a->turns.turned / 2);
            float *x = a->qkv + t * job->width;
            for (int64_t h = 0; h < rotated; h++) {
                cq_active->rope(x + h * a->dim, a->turns.turned, a->turns.cosine + angle, a->turns.sine + angle);
                if (a->turns.hadamard) cq_active->hadamard(x + h * a->dim, a->dim, a->turns.hadamard);
            }
            if (!a->form) {
                keep_f32(job, a->kept + s, at, x + a->heads * a->dim, x + (a->heads + a->kv_heads) * a->dim);
                continue;
            }
            if (!code_token(job, &form, x, t)) {
                cq_first_bad(&job->bad, t);
                cq_fail(queue, CQ_NOT_FINITE);
            }
            keep_i8(job, a->kept + s, at, job->codes + t * job->width, form.dynamic ? job->scales + t * parts : NULL);
        }
}

/* --- attention ---------------------------------------------------------------------------------------------------- */

/* A task's queries: of kv head g's group of heads, new tokens `first` (of all) .. first + tokens - 1 of sequence s. */
typedef struct {
    int64_t s, g, first, tokens;
} share;

static int64_t blocks_of(const cq_kept_args *a, int64_t s) {
    return (a->offsets[s + 1] - a->offsets[s] + QUERIES - 1) / QUERIES;
}
static share share_of(const cq_kept_args *a, int64_t task) {
    int64_t s = 0;
    while (task >= blocks_of(a, s) * a->kv_heads) task -= blocks_of(a, s++) * a->kv_heads;
    const int64_t first = a->offsets[s] + task / a->kv_heads * QUERIES;
    return (share){s, task % a->kv_heads, first, min(QUERIES, a->offsets[s + 1] - first)};
}

/* Some rows of a share: tokens of one head, or, where there is one token, heads of it, which read the same keys. */
typedef struct {
    int rows;
    int64_t token, head, token_step, head_step;
    sight sight;
} some_rows;

/* Fills `rows` with the next ones from *at on; returns 0 behind the last. */
static int next_rows(const kept_job *job, const share *share, int64_t *at, some_rows *rows) {
    const cq_kept_args *a = job->a;
    const int64_t group = a->heads / a->kv_heads, first_head = share->g * group;
    if (*at >= group * share->tokens) return 0;
    const int one = share->tokens == 1;
    const int64_t token = one ? 0 : *at % share->tokens, head = one ? *at : *at / share->tokens;
    const int64_t left = one ? group - head : share->tokens - token;
    rows->rows = (int)min(CQ_TILE_ROWS, left);
    rows->token = share->first + token, rows->head = first_head + head;
    rows->token_step = !one, rows->head_step = one;
    const cq_kept *kept = a->kept + share->s;
    const int64_t length = kept->length - kept->first, more = a->offsets[share->s + 1] - a->offsets[share->s];
    rows->sight = (sight){length + rows->token - a->offsets[share->s], rows->token_step, a->before, 0, length + more};
    *at += rows->rows;
    return 1;
}

/* c (rows, n) = x (rows, k) b, b in blocks of 64 columns that lie block_stride apart; n a multiple of 16. */
static void multiply(const float *x, int64_t x_stride, int rows, const float *b, int64_t b_stride, int64_t block_stride,
                     int64_t n, int64_t k, float *c, int64_t c_stride) {
    const int64_t width = cq_active->panels * CQ_PANEL;
    for (int64_t j = 0; j < n; j += width)
        cq_active->tile_f32(&(cq_operands){x, x_stride, 1, b + j / 64 * block_stride + j % 64, b_stride, CQ_PANEL},
                            rows, (int)(min(width, n - j) / CQ_PANEL), k, 0, c + j, c_stride);
}

static void attend_f32(const kept_job *job, const share *share, float *scores) {
    const cq_kept_args *a = job->a;
    const cq_kept *kept = a->kept + share->s;
    const int64_t dim = a->dim, length64 = up(job->longest, 64), first = share->g * kept->capacity;
    const float *keys = (const float *)kept->keys + first * dim,
                *values = (const float *)kept->values + first * job->dim16;
    float *mixed = scores + CQ_TILE_ROWS * length64;
    some_rows rows;
    for (int64_t at = 0; next_rows(job, share, &at, &rows);) {
        const int n = rows.rows;
        const cq_span all = span_of_all(&rows.sight, n, 64);
        const int64_t seen = all.end - all.first;
        const float *q = a->qkv + rows.token * job->width + rows.head * dim;
        float sums[CQ_TILE_ROWS];
        multiply(q, rows.token_step * job->width + rows.head_step * dim, n, keys + all.first * dim, 64, 64 * dim,
                 up(seen, 16), dim, scores, length64);
        for (int r = 0; r < n; r++)
            sums[r] =
                weigh_f32(scores + r * length64, behind(span_of(&rows.sight, r), all.first), seen, a->scale, a->cap);
        multiply(scores, length64, n, values + all.first * job->dim16, job->dim16, 64, job->dim16, seen, mixed,
                 job->dim16);
        for (int r = 0; r < n; r++) {
            float *y =
                a->y + (rows.token + r * rows.token_step) * a->heads * dim + (rows.head + r * rows.head_step) * dim;
            memcpy(y, mixed + r * job->dim16, (size_t)dim * 4);
            cq_active->scale(1.0f / sums[r], dim, y);
        }
    }
}

static void attend_f32_member(void *context, cq_queue *queue) {
    const kept_job *job = context;
    float *scratch = cq_scratch(CQ_TILE_ROWS * (up(job->longest, 64) + job->dim16) * 4);
    if (!scratch) {
        cq_fail(queue, CQ_NO_MEMORY);
        return;
    }
    for (int64_t task, end; cq_take(queue, &task, &end);)
        for (; task < end; task++) {
            const share share = share_of(job->a, task);
            attend_f32(job, &share, scratch);
        }
    free(scratch);
}

static void attend_i8(const kept_job *job, const attention_i8 *all, const share *share, const query_scratch *scratch,
                      cq_strip *strip) {
    const cq_kept_args *a = job->a;
    const cq_kept *kept = a->kept + share->s;
    const int64_t dim = a->dim, parts = a->heads + 2 * a->kv_heads,
                  stride = a->codes ? a->codes->stride : a->heads * dim;
    const int64_t first = share->g * kept->capacity;
    laid_i8 laid = {(const int8_t *)kept->keys + first * job->dim4,
                    (const int8_t *)kept->values + first * job->dim16,
                    CQ_PANEL * kept->capacity,
                    kept->start + first,
                    {0}};
    if (a->form->dynamic) laid.scales = scales_of(kept, first);
    some_rows some;
    for (int64_t at = 0; next_rows(job, share, &at, &some);) {
        const query_rows rows = {.rows = some.rows,
                                 .sight = some.sight,
                                 .q = job->codes + some.token * job->width + some.head * dim,
                                 .q_step = some.token_step * job->width + some.head_step * dim,
                                 .scales = a->form->dynamic ? job->scales + some.token * parts + some.head : NULL,
                                 .scale_step = some.token_step * parts + some.head_step,
                                 .to = some.token * stride + some.head * dim,
                                 .to_step = some.token_step * stride + some.head_step * dim};
        attend_rows(all, &laid, &rows, scratch, strip);
    }
}

static void attend_i8_member(void *context, cq_queue *queue) {
    const kept_job *job = context;
    const cq_kept_args *a = job->a;
    const int64_t length64 = up(job->longest, 64);
    void *memory = cq_scratch(query_scratch_bytes(job->dim4, length64));
    if (!memory) {
        cq_fail(queue, CQ_NO_MEMORY);
        return;
    }
    const query_scratch scratch = query_scratch_at(memory, job->dim4, length64);
    attention_i8 all = {.dim = a->dim,
                        .scale = a->scale,
                        .cap = a->cap,
                        .y = a->y,
                        .codes = a->codes,
                        .q = job->parts.q,
                        .k = job->parts.k,
                        .v = job->parts.v};
    all.q.scales = job->scales;
    cq_strip strip = {0};
    for (int64_t task, end; cq_take(queue, &task, &end);)
        for (; task < end; task++) {
            const share share = share_of(a, task);
            attend_i8(job, &all, &share, &scratch, &strip);
        }
    free(memory);
}

/* The first sequence that lacks room, angles or scales for its new tokens, or what they see; or `sequences`. */
static int64_t find_short(const cq_kept_args *a, int64_t sequences) {
    for (int64_t s = 0; s < sequences; s++) {
        const int64_t more = a->offsets[s + 1] - a->offsets[s], length = a->kept[s].length + more;
        if (length - a->kept[s].first > a->kept[s].capacity || (a->turns.cosine && length > a->turns.positions))
            return s;
        if (a->kept[s].first > (a->kept[s].length > a->before ? a->kept[s].length - a->before : 0)) return s;
        if (more && a->form && a->form->dynamic && !a->kept[s].scales) return s;
    }
    return sequences;
}

cq_status cq_attention_kept(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_kept_args *a = &args->kept;
    const int64_t tokens = a->offsets[sequences], astray = find_astray(a->offsets, rows, sequences);
    if (astray < sequences) {
        *bad = astray;
        return CQ_OUT_OF_RANGE;
    }
    const int64_t lacking = find_short(a, sequences);
    const int64_t parts = a->heads + 2 * a->kv_heads, width = parts * a->dim;
    kept_job job = {.a = a, .width = width, .dim4 = up(a->dim, 4), .dim16 = up(a->dim, 16)};
    job.parts = parts_of(&a->coded, 0, a->heads, a->kv_heads, a->dim);
    double work = 0;
    int64_t blocks = 0;
    if (lacking < sequences) {
        *bad = lacking;
        return CQ_NO_ROOM;
    }
    for (int64_t s = 0; s < sequences; s++) {
        const int64_t more = a->offsets[s + 1] - a->offsets[s], kept = a->kept[s].length - a->kept[s].first + more;
        if (kept > job.longest) job.longest = kept;
        work += 2.0 * (double)more * (double)keys_for(a->before, 0, kept) * (double)(a->heads * a->dim);
        blocks += blocks_of(a, s) * a->kv_heads;
    }
    atomic_init(&job.bad, INT64_MAX);
    uint8_t *memory = NULL;
    if (a->form) {
        const int64_t coded = up(tokens * width, 64), own = a->form->dynamic ? tokens * parts : 0;
        if (!(memory = cq_scratch(coded + 8 * own))) return CQ_NO_MEMORY;
        job.codes = memory;
        if (own) job.scales = (float *)(memory + coded), job.zeros = (int32_t *)(job.scales + own);
    }
    const cq_phase phases[2] = {{keep_member, tokens, 1},
                                {a->form ? attend_i8_member : attend_f32_member, blocks, blocks}};
    const cq_status status = cq_run(threads, work, &job, phases, 2);
    free(memory);
    if (status == CQ_NOT_FINITE) *bad = atomic_load(&job.bad);
    return status;
}
