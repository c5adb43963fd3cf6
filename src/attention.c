/* Softmax attention over packed ragged sequences. A task is one head of one sequence: its keys and values are laid out
 * for the tiles once, then blocks of queries run over them, so scores live only in a block's scratch. */
#include <string.h>

#include "attention.h"
#include "threads.h"

#define QUERIES 24 /* rows of a block: four tiles of six */

typedef struct {
    const cq_attention_args *a;
    coded_parts parts; /* of int8 products */
    int64_t longest;
    int64_t columns; /* of products with relative positions, in the longest sequence */
} attention_job;

/* A task's place: tokens first .. first + length - 1, query head h reading kv head g. */
typedef struct {
    int64_t first, length, h, g;
} place;
static place place_of(const cq_attention_args *a, int64_t task) {
    const int64_t s = task / a->heads, h = task % a->heads;
    return (place){a->offsets[s], a->offsets[s + 1] - a->offsets[s], h, h * a->kv_heads / a->heads};
}
/* Of the queries from i on of a sequence. */
static sight sight_of(const cq_attention_args *a, int64_t i, int64_t length) {
    return (sight){i, 1, a->before, a->after, length};
}
/* The bias of query `query` and key 0, or NULL. */
static const float *bias_of(const cq_attention_args *a, const place *at, int64_t query) {
    return a->bias ? a->bias + at->h * a->bias_head + query * a->bias_row : NULL;
}

/* c (rows, n) = x (rows, k) b (k, n), n a multiple of 16. */
static void multiply(const float *x, int64_t x_stride, int64_t rows, const float *b, int64_t b_stride, int64_t n,
                     int64_t k, float *c, int64_t c_stride) {
    const int width = cq_active->panels * CQ_PANEL, step = cq_active->rows_f32;
    for (int64_t i = 0; i < rows; i += step)
        for (int64_t j = 0; j < n; j += width)
            cq_active->tile_f32(&(cq_operands){x + i * x_stride, x_stride, 1, b + j, b_stride, CQ_PANEL},
                                (int)min(step, rows - i), (int)(min(width, n - j) / CQ_PANEL), k, 0,
                                c + i * c_stride + j, c_stride);
}

/* --- relative positions ------------------------------------------------------------------------------------------- */

/* Products with the positions that a sequence needs, and what comes of them. */
typedef struct {
    float *by_query, *by_key; /* (QUERIES, columns), (length, columns) */
    float *bias;              /* (QUERIES, length16) */
    float *queries, *keys;    /* (QUERIES, dim), (length, dim): what codes stand for */
} relative_scratch;

/* The positions that sequences of `length` tokens need, from a multiple of 16 on, in whole panels. */
static cq_span positions_for(const cq_relative *r, int64_t length) {
    const int64_t first = r->row[r->reach + length - 2] / 16 * 16;
    return (cq_span){first, first + up(r->row[r->reach - length] + 1 - first, 16)};
}

/* Floats of scratch, for float32 or for codes. */
static int64_t relative_floats(const attention_job *job) {
    const int64_t length16 = up(job->longest, 16), rows = QUERIES + job->longest;
    if (!job->a->relative.row) return 0;
    return rows * job->columns + QUERIES * length16 + (job->a->qkv ? 0 : rows * job->a->dim);
}
static relative_scratch relative_scratch_at(float *memory, const attention_job *job) {
    relative_scratch s = {.by_query = memory, .by_key = memory + QUERIES * job->columns};
    s.bias = s.by_key + job->longest * job->columns;
    s.queries = s.bias + QUERIES * up(job->longest, 16), s.keys = s.queries + QUERIES * job->a->dim;
    return s;
}

/* What some tokens' codes of one head stand for: of queries or keys, at the first one's codes and own scale. */
static void widen_head(const cq_coded *c, const uint8_t *codes, const float *scales, int64_t scale_stride,
                       int64_t tokens, int64_t dim, float *y) {
    for (int64_t t = 0; t < tokens; t++, codes += c->stride) {
        const float scale = scales ? scales[t * scale_stride] : c->scale;
        for (int64_t d = 0; d < dim; d++) {
            const int32_t code = c->is_signed ? (int8_t)codes[d] : codes[d];
            y[t * dim + d] = scale * (float)(code - c->zero_point);
        }
    }
}

/* x (rows, dim) of one head with the positions of a span. */
static void meet(const attention_job *job, const float *table, int64_t h, cq_span span, const float *x,
                 int64_t x_stride, int64_t rows, float *y) {
    const int64_t dim = job->a->dim, positions = job->a->relative.positions;
    multiply(x, x_stride, rows, table + h * dim * positions + span.first, positions, span.end - span.first, dim, y,
             job->columns);
}

/* Keys with the queries of positions, for a whole sequence. */
static void meet_keys(const attention_job *job, const place *at, const float *k, int64_t k_stride,
                      const relative_scratch *s) {
    const cq_relative *r = &job->a->relative;
    if (r->queries && at->length)
        meet(job, r->queries, at->h, positions_for(r, at->length), k, k_stride, at->length, s->by_key);
}

/* The bias of `rows` queries from i on: of both kinds of products those of each key's position. */
static void lay_bias(const attention_job *job, const place *at, int64_t i, int64_t rows, const float *q,
                     int64_t q_stride, const relative_scratch *s) {
    const cq_relative *r = &job->a->relative;
    const cq_span span = positions_for(r, at->length);
    const int64_t length = at->length, length16 = up(length, 16), columns = job->columns;
    if (r->keys) meet(job, r->keys, at->h, span, q, q_stride, rows, s->by_query);
    for (int64_t row = 0; row < rows; row++) {
        const int32_t *position = r->row + r->reach - 1 - (i + row);
        const float *products = s->by_query + row * columns;
        float *bias = s->bias + row * length16;
        if (!r->keys) memset(bias, 0, (size_t)length * 4);
        else
            for (int64_t j = 0; j < length; j++) bias[j] = products[position[j] - span.first];
    }
    for (int64_t j = 0; j < length && r->queries; j++) {
        const int32_t *position = r->row + r->reach - 1 + j - i;
        const float *products = s->by_key + j * columns;
        for (int64_t row = 0; row < rows; row++) s->bias[row * length16 + j] += products[position[-row] - span.first];
    }
    for (int64_t row = 0; row < rows; row++) cq_active->scale(job->a->scale, length, s->bias + row * length16);
}

/* --- float32 ------------------------------------------------------------------------------------------------------ */

/* What a member of the team works in; all for the longest sequence. */
typedef struct {
    float *keys, *values; /* K transposed (dim, length16), V (length, dim16) */
    float *scores;        /* (QUERIES, length16) */
    float *context;       /* (QUERIES, dim16) */
    relative_scratch relative;
} f32_scratch;

static void attend_f32(const attention_job *job, int64_t task, const f32_scratch *w) {
    const cq_attention_args *a = job->a;
    const place at = place_of(a, task);
    const int64_t dim = a->dim, dim16 = up(dim, 16), length16 = up(at.length, 16);
    const int64_t stride = (a->heads + 2 * a->kv_heads) * dim;
    const float *k = a->qkv + at.first * stride + (a->heads + at.g) * dim, *v = k + a->kv_heads * dim;
    for (int64_t t = 0; t < at.length; t++)
        for (int64_t d = 0; d < dim; d++) w->keys[d * length16 + t] = k[t * stride + d];
    for (int64_t t = 0; t < at.length; t++) memcpy(w->values + t * dim16, v + t * stride, (size_t)dim * 4);
    if (a->relative.row) meet_keys(job, &at, k, stride, &w->relative);
    for (int64_t i = 0; i < at.length; i += QUERIES) {
        const int64_t rows = min(QUERIES, at.length - i);
        const sight sight = sight_of(a, i, at.length);
        const cq_span all = span_of_all(&sight, rows, CQ_PANEL);
        const int64_t keys = all.end - all.first;
        const float *q = a->qkv + (at.first + i) * stride + at.h * dim;
        float sums[QUERIES];
        multiply(q, stride, rows, w->keys + all.first, length16, up(keys, 16), dim, w->scores, length16);
        if (a->relative.row) lay_bias(job, &at, i, rows, q, stride, &w->relative);
        for (int64_t r = 0; r < rows; r++) {
            const float *bias = a->relative.row ? w->relative.bias + r * length16 : bias_of(a, &at, i + r);
            float *row = w->scores + r * length16, scale = a->scale;
            const cq_span seen = behind(span_of(&sight, r), all.first);
            if (bias) cq_active->scale_add(scale, bias + all.first, seen.end, row), scale = 1.0f;
            sums[r] = weigh_f32(row, seen, keys, scale, a->cap);
        }
        multiply(w->scores, length16, rows, w->values + all.first * dim16, dim16, dim16, keys, w->context, dim16);
        for (int64_t r = 0; r < rows; r++) {
            float *y = a->y + ((at.first + i + r) * a->heads + at.h) * dim;
            memcpy(y, w->context + r * dim16, (size_t)dim * 4);
            cq_active->scale(1.0f / sums[r], dim, y);
        }
    }
}

static void attention_f32_member(void *context, cq_queue *queue) {
    const attention_job *job = context;
    const int64_t length16 = up(job->longest, 16), dim = job->a->dim, dim16 = up(dim, 16);
    const int64_t kept = length16 * (dim + dim16);
    float *scratch = cq_scratch((kept + QUERIES * (length16 + dim16) + relative_floats(job)) * 4);
    if (!scratch) {
        cq_fail(queue, CQ_NO_MEMORY);
        return;
    }
    memset(scratch, 0, (size_t)kept * 4); /* what pads keys and values is finite */
    f32_scratch w = {.keys = scratch, .values = scratch + length16 * dim, .scores = scratch + kept};
    w.context = w.scores + QUERIES * length16;
    w.relative = relative_scratch_at(w.context + QUERIES * dim16, job);
    for (int64_t task, end; cq_take(queue, &task, &end);)
        for (; task < end; task++) attend_f32(job, task, &w);
    free(scratch);
}

/* --- int8 --------------------------------------------------------------------------------------------------------- */

/* What a member of the team works in; all for the longest sequence. */
typedef struct {
    int8_t *keys, *values; /* panels: K transposed (dim4, length64), V (length4, dim16) */
    int32_t *start;        /* (length64): minus q's zero point times each key's sum */
    cq_key_scales scales;  /* (length64), where tokens have their own */
    query_scratch q;
    relative_scratch relative;
} int8_scratch;

/* Keys as int8 panels: 4 codes of a key are one lane. Their zero point does not matter: it adds the same to all scores
 * of a query. The query's does: it multiplies the sum of the key's codes. */
static void lay_keys(const attention_job *job, const place *at, int32_t q_zero, const int8_scratch *s) {
    const cq_coded *k = &job->parts.k;
    const int64_t dim = job->a->dim, dim4 = up(dim, 4), panel = dim4 * CQ_PANEL;
    for (int64_t t = 0; t < at->length; t++) {
        const uint8_t *key = (const uint8_t *)k->codes + (at->first + t) * k->stride + at->g * dim;
        lay_key(key, dim, flip_of(k) ^ 0x80, s->keys + t / CQ_PANEL * panel + t % CQ_PANEL * 4);
    }
    memset(s->q.queries, q_zero, (size_t)dim4); /* the sums of all keys times q's zero point are a product too */
    cq_active->tile_i8(s->q.queries, dim4, 1, s->keys, panel, (int)(up(at->length, CQ_PANEL) / CQ_PANEL), dim4 / 4,
                       NULL, s->start, 0);
    for (int64_t t = 0; t < at->length; t++) s->start[t] = -s->start[t];
}

/* Values as int8 panels: 4 tokens of a dimension are one lane; zeros follow up to a whole group. */
static void lay_values(const attention_job *job, const place *at, int8_t *panels) {
    const cq_coded *v = &job->parts.v;
    const int64_t dim = job->a->dim, length4 = up(at->length, 4);
    for (int64_t t = 0; t < at->length; t += 4) {
        const uint8_t *rows[4];
        uint32_t keep = 0; /* the bytes of tokens that exist */
        for (int64_t i = 0; i < 4; i++) {
            const int64_t token = min(t + i, at->length - 1);
            rows[i] = (const uint8_t *)v->codes + (at->first + token) * v->stride + at->g * dim;
            if (token == t + i) keep |= 0xffu << 8 * i;
        }
        for (int64_t first = 0; first < dim; first += CQ_PANEL) {
            const uint8_t *const part[4] = {rows[0] + first, rows[1] + first, rows[2] + first, rows[3] + first};
            cq_active->interleave(part, min(CQ_PANEL, dim - first), flip_of(v) ^ 0x80, keep,
                                  panels + first * length4 + t * CQ_PANEL);
        }
    }
}

static void lay_scales(const attention_job *job, const place *at, const int8_scratch *s) {
    const cq_coded *k = &job->parts.k, *v = &job->parts.v;
    for (int64_t t = 0; t < at->length; t++) {
        const int64_t row = (at->first + t) * job->a->scale_stride + at->g;
        const int8_t *values = (const int8_t *)v->codes + (at->first + t) * v->stride + at->g * job->a->dim;
        lay_scale(&s->scales, t, k->scales[row], v->scales[row], values, job->a->dim);
    }
}

static void attend_i8(const attention_job *job, int64_t task, const int8_scratch *s, cq_strip *strip) {
    const cq_attention_args *a = job->a;
    const cq_coded *q = &job->parts.q, *k = &job->parts.k;
    const place at = place_of(a, task);
    lay_keys(job, &at, q->zero_point + flip_of(q), s);
    lay_values(job, &at, s->values);
    if (q->scales) lay_scales(job, &at, s);
    if (a->relative.row) {
        const int64_t head = at.first * a->scale_stride + at.g;
        widen_head(k, (const uint8_t *)k->codes + at.first * k->stride + at.g * a->dim,
                   k->scales ? k->scales + head : NULL, a->scale_stride, at.length, a->dim, s->relative.keys);
        meet_keys(job, &at, s->relative.keys, a->dim, &s->relative);
    }
    const attention_i8 all = {.dim = a->dim,
                              .scale = a->scale,
                              .cap = a->cap,
                              .q = job->parts.q,
                              .k = job->parts.k,
                              .v = job->parts.v,
                              .bias_row = a->relative.row ? up(at.length, 16) : a->bias_row,
                              .y = a->y,
                              .codes = a->codes};
    const laid_i8 laid = {s->keys, s->values, up(at.length, 4) * CQ_PANEL, s->start, s->scales};
    const int64_t y_stride = a->codes ? a->codes->stride : a->heads * a->dim;
    for (int64_t i = 0; i < at.length; i += CQ_TILE_ROWS) {
        const int64_t token = at.first + i, n = min(CQ_TILE_ROWS, at.length - i);
        query_rows rows = {.rows = (int)n,
                           .sight = sight_of(a, i, at.length),
                           .q = (const uint8_t *)q->codes + token * q->stride + at.h * a->dim,
                           .q_step = q->stride,
                           .scales = q->scales ? q->scales + token * a->scale_stride + at.h : NULL,
                           .scale_step = a->scale_stride,
                           .bias = bias_of(a, &at, i),
                           .to = token * y_stride + at.h * a->dim,
                           .to_step = y_stride};
        if (a->relative.row) {
            widen_head(q, rows.q, rows.scales, a->scale_stride, n, a->dim, s->relative.queries);
            lay_bias(job, &at, i, n, s->relative.queries, a->dim, &s->relative);
            rows.bias = s->relative.bias;
        }
        attend_rows(&all, &laid, &rows, &s->q, strip);
    }
}

static void attention_i8_member(void *context, cq_queue *queue) {
    const attention_job *job = context;
    const int64_t length = up(job->longest, 64), dim4 = up(job->a->dim, 4), dim16 = up(job->a->dim, 16);
    const int64_t keys = length * dim4, values = length * dim16;
    const int64_t laid = keys + values + length * 16 + up(query_scratch_bytes(dim4, length), 64);
    uint8_t *scratch = cq_scratch(laid + relative_floats(job) * 4);
    if (!scratch) {
        cq_fail(queue, CQ_NO_MEMORY);
        return;
    }
    int8_scratch s = {.keys = (int8_t *)scratch, .values = (int8_t *)scratch + keys};
    s.start = (int32_t *)(scratch + keys + values);
    s.scales.keys = (float *)(s.start + length);
    s.scales.values_255 = s.scales.keys + length, s.scales.logs = s.scales.values_255 + length;
    s.q = query_scratch_at(s.scales.logs + length, dim4, length);
    s.relative = relative_scratch_at((float *)(scratch + laid), job);
    memset(scratch, 0, (size_t)(keys + values + length * 16));
    cq_strip strip = {0};
    for (int64_t task, end; cq_take(queue, &task, &end);)
        for (; task < end; task++) attend_i8(job, task, &s, &strip);
    free(scratch);
}

cq_status cq_attention(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_attention_args *a = &args->attention;
    const int64_t astray = find_astray(a->offsets, rows, sequences);
    attention_job job = {.a = a};
    double work = 0;
    if (astray < sequences) {
        *bad = astray;
        return CQ_OUT_OF_RANGE;
    }
    for (int64_t s = 0; s < sequences; s++) {
        const int64_t length = a->offsets[s + 1] - a->offsets[s];
        job.longest = length > job.longest ? length : job.longest;
        if ((a->bias && length > a->bias_reach) || (a->relative.row && length > a->relative.reach)) {
            *bad = s;
            return CQ_NO_ROOM;
        }
        work += 2.0 * (double)length * (double)keys_for(a->before, a->after, length) * (double)(a->heads * a->dim);
    }
    if (a->relative.row && job.longest) {
        const cq_span span = positions_for(&a->relative, job.longest);
        job.columns = span.end - span.first;
        work += 2.0 * (double)rows * (double)job.columns * (double)(a->heads * a->dim);
    }
    if (!a->qkv) job.parts = parts_of(&a->coded, a->scale_stride, a->heads, a->kv_heads, a->dim);
    const int64_t tasks = sequences * a->heads;
    return cq_run(threads, work, &job, &(cq_phase){a->qkv ? attention_f32_member : attention_i8_member, tasks, tasks},
                  1);
}
