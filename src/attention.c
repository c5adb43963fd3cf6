/* Softmax attention over packed ragged sequences. A task is one head of one sequence: its keys and values are laid out for the
 * tiles once, then blocks of queries run over them, so scores live only in a block's scratch. */
#include <string.h>

#include "affine.h"
#include "kernel.h"
#include "threads.h"

#define QUERIES 24 /* rows of a block: four tiles of six */

typedef struct {
    const cq_attention_args *a;
    const float *q, *k, *v;
    int64_t q_stride, kv_stride;
    const cq_coded *qc, *kc, *vc;
    int64_t scale_stride;
    float *y;
    int64_t y_stride;
    const cq_codes *codes;
    int64_t longest;
} attention_job;

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static cq_status run_attention(int threads, attention_job *job, void (*member)(void *, cq_queue *)) {
    const cq_attention_args *a = job->a;
    double work = 0;
    for (int64_t s = 0; s < a->sequences; s++) {
        const int64_t length = a->offsets[s + 1] - a->offsets[s];
        job->longest = length > job->longest ? length : job->longest;
        work += 2.0 * (double)length * (double)length * (double)(a->heads * a->dim);
    }
    const int64_t tasks = a->sequences * a->heads;
    return cq_run(threads, work, job, &(cq_phase){member, tasks, tasks}, 1);
}

/* A task's place: tokens first .. first + length - 1, query head h reading kv head g. */
typedef struct { int64_t first, length, h, g; } place;
static place place_of(const cq_attention_args *a, int64_t task) {
    const int64_t s = task / a->heads, h = task % a->heads;
    return (place){a->offsets[s], a->offsets[s + 1] - a->offsets[s], h, h * a->kv_heads / a->heads};
}
/* Keys that the last query of a block sees. */
static int64_t keys_for(const cq_attention_args *a, int64_t length, int64_t queries_end) {
    return a->causal ? queries_end : length;
}

/* --- float32 ------------------------------------------------------------------------------------------------------------- */

/* c (rows, n) = x (rows, k) b (k, n), n a multiple of 16. */
static void multiply(const float *x, int64_t x_stride, int64_t rows, const float *b, int64_t b_stride, int64_t n, int64_t k,
                     float *c, int64_t c_stride) {
    const int width = cq_active->panels * CQ_PANEL, step = cq_active->rows_f32;
    for (int64_t i = 0; i < rows; i += step)
        for (int64_t j = 0; j < n; j += width)
            cq_active->tile_f32(x + i * x_stride, x_stride, (int)min(step, rows - i), b + j, b_stride,
                                (int)(min(width, n - j) / CQ_PANEL), k, 0, c + i * c_stride + j, c_stride);
}

/* What a member of the team works in; all for the longest sequence. */
typedef struct {
    float *keys, *values; /* K transposed (dim, length16), V (length, dim16) */
    float *scores;        /* (QUERIES, length16) */
    float *context;       /* (QUERIES, dim16) */
} f32_scratch;

static void attend_f32(const attention_job *job, int64_t task, const f32_scratch *w) {
    const cq_attention_args *a = job->a;
    const place at = place_of(a, task);
    const int64_t dim = a->dim, dim16 = up(dim, 16), length16 = up(at.length, 16);
    const float *k = job->k + at.first * job->kv_stride + at.g * dim, *v = job->v + at.first * job->kv_stride + at.g * dim;
    for (int64_t t = 0; t < at.length; t++)
        for (int64_t d = 0; d < dim; d++) w->keys[d * length16 + t] = k[t * job->kv_stride + d];
    for (int64_t t = 0; t < at.length; t++) memcpy(w->values + t * dim16, v + t * job->kv_stride, (size_t)dim * 4);
    for (int64_t i = 0; i < at.length; i += QUERIES) {
        const int64_t rows = min(QUERIES, at.length - i), seen = keys_for(a, at.length, i + rows);
        const float *q = job->q + (at.first + i) * job->q_stride + at.h * dim;
        float sums[QUERIES];
        multiply(q, job->q_stride, rows, w->keys, length16, up(seen, 16), dim, w->scores, length16);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t visible = a->causal ? i + r + 1 : at.length;
            float *row = w->scores + r * length16;
            sums[r] = cq_active->softmax_f32(row, visible, a->scale);
            for (int64_t t = up(visible, 16); t < seen; t++) row[t] = 0.0f;
        }
        multiply(w->scores, length16, rows, w->values, dim16, dim16, seen, w->context, dim16);
        for (int64_t r = 0; r < rows; r++) {
            float *y = job->y + (at.first + i + r) * job->y_stride + at.h * dim;
            memcpy(y, w->context + r * dim16, (size_t)dim * 4);
            cq_active->scale(1.0f / sums[r], dim, y);
        }
    }
}

static void attention_f32_member(void *context, cq_queue *queue) {
    const attention_job *job = context;
    const int64_t length16 = up(job->longest, 16), dim = job->a->dim, dim16 = up(dim, 16);
    const int64_t kept = length16 * (dim + dim16);
    float *scratch = cq_scratch((kept + QUERIES * (length16 + dim16)) * 4);
    if (!scratch) {
        cq_fail(queue, CQ_NO_MEMORY);
        return;
    }
    memset(scratch, 0, (size_t)kept * 4); /* what pads keys and values is finite */
    f32_scratch w = {.keys = scratch, .values = scratch + length16 * dim, .scores = scratch + kept};
    w.context = w.scores + QUERIES * length16;
    for (int64_t task, end; cq_take(queue, &task, &end);)
        for (; task < end; task++) attend_f32(job, task, &w);
    free(scratch);
}

cq_status cq_attention_f32(int threads, const cq_attention_args *a, const float *q, const float *k, const float *v,
                           int64_t q_stride, int64_t kv_stride, float *y, int64_t y_stride) {
    attention_job job = {.a = a, .q = q, .k = k, .v = v, .q_stride = q_stride, .kv_stride = kv_stride, .y = y,
                         .y_stride = y_stride};
    return run_attention(threads, &job, attention_f32_member);
}

/* --- int8 ---------------------------------------------------------------------------------------------------------------- */

/* What a member of the team works in; all for the longest sequence. */
typedef struct {
    int8_t *keys, *values; /* panels: K transposed (dim4, length64), V (length4, dim16) */
    int32_t *start;        /* (length64): minus q's zero point times each key's sum */
    cq_key_scales scales;  /* (length64), where tokens have their own */
    uint8_t *queries;      /* (CQ_TILE_ROWS, dim4) uint8 */
    int32_t *scores;       /* (CQ_TILE_ROWS, length64) */
    uint8_t *weights;      /* (CQ_TILE_ROWS, length64): exp in 1/255 */
} int8_scratch;

static const int32_t nothing[CQ_TILE];

static uint8_t flip_of(const cq_coded *c) { return c->is_signed ? 0x80 : 0; }

/* Keys as int8 panels: 4 codes of a key are one lane. Their zero point does not matter: it adds the same to all scores of a
 * query. The query's does: it multiplies the sum of the key's codes. */
static void lay_keys(const attention_job *job, const place *at, int32_t q_zero, const int8_scratch *s) {
    const cq_coded *k = job->kc;
    const int64_t dim = job->a->dim, dim4 = up(dim, 4), whole = dim / 4 * 4, panel = dim4 * CQ_PANEL;
    const uint8_t flip = flip_of(k) ^ 0x80;
    const uint32_t flips = flip * 0x01010101u;
    for (int64_t t = 0; t < at->length; t++) {
        const uint8_t *key = (const uint8_t *)k->codes + (at->first + t) * k->stride + at->g * dim;
        int8_t *lane = s->keys + t / CQ_PANEL * panel + t % CQ_PANEL * 4;
        for (int64_t d = 0; d < whole; d += 4) {
            uint32_t four;
            memcpy(&four, key + d, 4);
            four ^= flips;
            memcpy(lane + d * CQ_PANEL, &four, 4);
        }
        for (int64_t d = whole; d < dim; d++) lane[whole * CQ_PANEL + d % 4] = (int8_t)(key[d] ^ flip);
    }
    memset(s->queries, q_zero, (size_t)dim4); /* the sums of all keys times q's zero point are a product too */
    const int width = cq_active->panels;
    for (int64_t p = 0, panels = up(at->length, CQ_PANEL) / CQ_PANEL; p < panels; p += width)
        cq_active->tile_i8(s->queries, dim4, 1, s->keys + p * panel, panel, (int)min(width, panels - p), dim4 / 4, nothing,
                           s->start + p * CQ_PANEL, 0);
    for (int64_t t = 0; t < at->length; t++) s->start[t] = -s->start[t];
}

/* Values as int8 panels: 4 tokens of a dimension are one lane; zeros follow up to a whole group. */
static void lay_values(const attention_job *job, const place *at, int8_t *panels) {
    const cq_coded *v = job->vc;
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

/* At least log2(x), x positive: its exponent and mantissa read as one number lie below it by 0.0861 at most. */
static float log2_above(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    const float log = (float)bits * 0x1p-23f - 126.913f;
    return log < -60.0f ? -60.0f : log;
}

static int is_zero(const int8_t *codes, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (codes[i]) return 0;
    return 1;
}

static void lay_scales(const attention_job *job, const place *at, const int8_scratch *s) {
    for (int64_t t = 0; t < at->length; t++) {
        const int64_t row = (at->first + t) * job->scale_stride + at->g;
        const int8_t *values = (const int8_t *)job->vc->codes + (at->first + t) * job->vc->stride + at->g * job->a->dim;
        float of_values = job->vc->scales[row];
        if (of_values == 1.0f && is_zero(values, job->a->dim))
            of_values = 0.0f; /* or its weight, of nothing, would push those of small values out of their codes */
        s->scales.keys[t] = job->kc->scales[row], s->scales.values_255[t] = 255.0f * of_values;
        s->scales.logs[t] = log2_above(of_values);
    }
}

/* What the sums of weights times values become; their rows are set block by block. */
static void set_strip(const attention_job *job, int64_t d, cq_strip *s) {
    const cq_codes *codes = job->codes;
    s->columns = (int)min(CQ_TILE, job->a->dim - d);
    for (int i = 0; i < CQ_TILE; i++) {
        s->zero_points[i] = job->vc->zero_point - (job->vc->is_signed ? 0 : 128);
        s->scales[i] = job->vc->scales ? 1.0f : job->vc->scale;
        if (codes) {
            s->code_scales[i] = codes->scale, s->code_zeros[i] = (float)codes->zero_point;
            s->code_inverses[i] = cq_inverse(codes->scale);
        }
    }
    s->stride = codes ? codes->stride : job->y_stride;
    if (codes) cq_code_range(codes->is_signed, codes->symmetric, &s->qmin, &s->qmax);
}

static void attend_i8(const attention_job *job, int64_t task, const int8_scratch *s, cq_strip *strip) {
    const cq_attention_args *a = job->a;
    const place at = place_of(a, task);
    const int64_t dim = a->dim, dim4 = up(dim, 4), length4 = up(at.length, 4), length64 = up(at.length, 64);
    const int width = cq_active->panels, scaled = job->qc->scales != NULL;
    const float base = a->scale * 1.44269504f, factor = base * job->qc->scale * job->kc->scale;
    const uint8_t q_flip = flip_of(job->qc);
    lay_keys(job, &at, job->qc->zero_point + q_flip, s);
    lay_values(job, &at, s->values);
    if (scaled) lay_scales(job, &at, s);
    _Alignas(64) int32_t acc[CQ_TILE_ROWS * CQ_TILE];
    for (int64_t i = 0; i < at.length; i += CQ_TILE_ROWS) {
        const int rows = (int)min(CQ_TILE_ROWS, at.length - i);
        const int64_t seen = keys_for(a, at.length, i + rows), panels = up(seen, 16) / 16;
        int32_t sums[CQ_TILE_ROWS];
        float inverse[CQ_TILE_ROWS], factors[CQ_TILE_ROWS];
        int64_t visible[CQ_TILE_ROWS];
        for (int r = 0; r < rows; r++) {
            const uint8_t *q = (const uint8_t *)job->qc->codes + (at.first + i + r) * job->qc->stride + at.h * dim;
            if (q_flip) cq_active->flip(q, dim, s->queries + r * dim4);
            else memcpy(s->queries + r * dim4, q, (size_t)dim);
        }
        for (int64_t p = 0; p < panels; p += width)
            cq_active->tile_i8(s->queries, dim4, rows, s->keys + p * dim4 * CQ_PANEL, dim4 * CQ_PANEL,
                               (int)min(width, panels - p), dim4 / 4, s->start + p * CQ_PANEL, s->scores + p * CQ_PANEL,
                               length64);
        for (int r = 0; r < rows; r++) {
            visible[r] = a->causal ? i + r + 1 : at.length;
            if (scaled) factors[r] = base * job->qc->scales[(at.first + i + r) * job->scale_stride + at.h];
        }
        if (scaled) {
            float totals[CQ_TILE_ROWS];
            cq_active->softmax_scaled(s->scores, length64, rows, visible, up(seen, 4), factors, &s->scales, s->weights, totals);
            for (int r = 0; r < rows; r++) inverse[r] = 1.0f / (255.0f * totals[r]);
        } else {
            cq_active->softmax_i8(s->scores, length64, rows, visible, up(seen, 4), factor, s->weights, sums);
            for (int r = 0; r < rows; r++) inverse[r] = 1.0f / (float)sums[r];
        }
        strip->row_scales = inverse, strip->row_sums = scaled ? NULL : sums;
        for (int64_t d = 0; d < dim; d += CQ_TILE) {
            if (dim > CQ_TILE || !i) set_strip(job, d, strip);
            for (int p = 0; p * CQ_PANEL < strip->columns; p += width)
                cq_active->tile_i8(s->weights, length64, rows, s->values + (d + p * CQ_PANEL) * length4, length4 * CQ_PANEL,
                                   (int)min(width, up(strip->columns, CQ_PANEL) / CQ_PANEL - p), up(seen, 4) / 4, nothing,
                                   acc + p * CQ_PANEL, CQ_TILE);
            const int64_t place = (at.first + i) * strip->stride + at.h * dim + d;
            if (job->codes) strip->codes = (uint8_t *)job->codes->codes + place;
            else strip->out = job->y + place;
            cq_active->store_i8(acc, CQ_TILE, rows, strip, 0);
        }
    }
}

static void attention_i8_member(void *context, cq_queue *queue) {
    const attention_job *job = context;
    const int64_t length = up(job->longest, 64), dim4 = up(job->a->dim, 4), dim16 = up(job->a->dim, 16), lines = CQ_TILE_ROWS;
    const int64_t keys = length * dim4, values = length * dim16;
    uint8_t *scratch = cq_scratch(keys + values + length * 16 + lines * (up(dim4, 64) + length * 5));
    if (!scratch) {
        cq_fail(queue, CQ_NO_MEMORY);
        return;
    }
    int8_scratch s = {.keys = (int8_t *)scratch, .values = (int8_t *)scratch + keys};
    s.start = (int32_t *)(scratch + keys + values);
    s.scales.keys = (float *)(s.start + length);
    s.scales.values_255 = s.scales.keys + length, s.scales.logs = s.scales.values_255 + length;
    s.scores = (int32_t *)(s.scales.logs + length);
    s.weights = (uint8_t *)(s.scores + lines * length);
    s.queries = s.weights + lines * length;
    memset(scratch, 0, (size_t)(keys + values + length * 16));
    memset(s.queries, 0, (size_t)(lines * up(dim4, 64)));
    cq_strip strip = {0};
    for (int64_t task, end; cq_take(queue, &task, &end);)
        for (; task < end; task++) attend_i8(job, task, &s, &strip);
    free(scratch);
}

cq_status cq_attention_i8(int threads, const cq_attention_args *a, const cq_coded *q, const cq_coded *k, const cq_coded *v,
                          int64_t scale_stride, float *y, const cq_codes *codes) {
    attention_job job = {.a = a, .qc = q, .kc = k, .vc = v, .scale_stride = scale_stride, .y = y, .y_stride = a->heads * a->dim,
                         .codes = codes};
    return run_attention(threads, &job, attention_i8_member);
}
