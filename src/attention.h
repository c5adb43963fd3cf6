/* int8 attention of a few queries to one head's keys and values, laid out as the tiles read them: what whole sequences
 * (attention.c) and kept keys and values (cache.c) share. */
#ifndef CQ_ATTENTION_H
#define CQ_ATTENTION_H
#include <string.h>

#include "affine.h"
#include "kernel.h"

static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static inline uint8_t flip_of(const cq_coded *c) { return c->is_signed ? 0x80 : 0; }

/* At least log2(x), x positive: its exponent and mantissa read as one number lie below it by 0.0861 at most. */
static inline float log2_above(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    const float log = (float)bits * 0x1p-23f - 126.913f;
    return log < -60.0f ? -60.0f : log;
}

static inline int is_zero(const int8_t *codes, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (codes[i]) return 0;
    return 1;
}

/* Scales of token t, from its key's and its value's, whose codes (dim) may be all zero. */
static inline void lay_scale(const cq_key_scales *to, int64_t t, float of_key, float of_values, const int8_t *values,
                             int64_t dim) {
    if (of_values == 1.0f && is_zero(values, dim))
        of_values = 0.0f; /* or its weight, of nothing, would push those of small values out of their codes */
    to->keys[t] = of_key, to->values_255[t] = 255.0f * of_values;
    to->logs[t] = log2_above(of_values);
}

/* A key's codes, xor `flip` int8, as lanes of four into its place in a panel. Returns their sum. */
static inline int32_t lay_key(const uint8_t *key, int64_t dim, uint8_t flip, int8_t *lane) {
    const int64_t whole = dim / 4 * 4;
    const uint32_t flips = flip * 0x01010101u;
    int32_t sum = 0;
    for (int64_t d = 0; d < whole; d += 4) {
        uint32_t four;
        memcpy(&four, key + d, 4);
        four ^= flips;
        memcpy(lane + d * CQ_PANEL, &four, 4);
    }
    for (int64_t d = whole; d < dim; d++) lane[whole * CQ_PANEL + d % 4] = (int8_t)(key[d] ^ flip);
    for (int64_t d = 0; d < dim; d++) sum += (int8_t)(key[d] ^ flip);
    return sum;
}

/* One head's keys and values. */
typedef struct {
    const int8_t *keys, *values; /* panels: K transposed (dim4, tokens), V (tokens in fours, dim16) */
    int64_t value_stride;        /* bytes from one panel of values to the next */
    const int32_t *start;        /* minus q's zero point times each key's sum */
    cq_key_scales scales;        /* where tokens have their own */
} laid_i8;

/* Queries, keys and values that lie side by side in codes, each with its own parameters: see cq_attention_args. */
typedef struct {
    cq_coded q, k, v;
} coded_parts;
static inline coded_parts parts_of(const cq_coded *all, int64_t scale_stride, int64_t heads, int64_t kv_heads,
                                   int64_t dim) {
    coded_parts parts = {*all, *all, *all};
    cq_coded *const each[3] = {&parts.q, &parts.k, &parts.v};
    const int64_t first[3] = {0, heads, heads + kv_heads};
    for (int i = 0; i < 3; i++) {
        if (all->codes) each[i]->codes = (const uint8_t *)all->codes + first[i] * dim;
        if (scale_stride) {
            each[i]->scales = all->scales + first[i];
            continue;
        }
        if (all->scales) each[i]->scale = all->scales[first[i] * dim];
        if (all->zero_points) each[i]->zero_point = all->zero_points[first[i] * dim];
        each[i]->scales = NULL, each[i]->zero_points = NULL;
    }
    return parts;
}

/* What all heads share. Of q, k and v the parameters: one scale each (static), or q's scales are set, and tokens have
 * theirs. */
typedef struct {
    int64_t dim;
    float scale, cap;
    cq_coded q, k, v;
    int64_t bias_row; /* of query_rows.bias */
    float *y;
    const cq_codes *codes;
} attention_i8;

/* The first sequence whose offsets do not ascend within the rows, or `sequences`. */
static inline int64_t find_astray(const int32_t *offsets, int64_t rows, int64_t sequences) {
    for (int64_t s = 0; s < sequences; s++)
        if (offsets[s] < 0 || offsets[s + 1] < offsets[s] || offsets[s + 1] > rows) return s;
    return sequences;
}

/* Which keys of `length` queries see, the first and those `step` behind one another; see cq_attention_args. */
typedef struct {
    int64_t at, step, before, after, length;
} sight;
static inline cq_span span_of(const sight *s, int64_t row) {
    const int64_t at = s->at + row * s->step;
    return (cq_span){at > s->before ? at - s->before : 0, s->length - at > s->after ? at + s->after + 1 : s->length};
}
/* The keys that any of `rows` sees, from a multiple of `to` on. */
static inline cq_span span_of_all(const sight *s, int64_t rows, int64_t to) {
    return (cq_span){span_of(s, 0).first / to * to, span_of(s, rows - 1).end};
}
static inline cq_span behind(cq_span s, int64_t first) { return (cq_span){s.first - first, s.end - first}; }

/* At least as many as a query sees of `length` keys. */
static inline int64_t keys_for(int64_t before, int64_t after, int64_t length) {
    return before < length && after < length ? min(length, before + after + 1) : length;
}

/* A row of float32 scores to the weights of `keys` keys, zero where it does not see them; returns their sum. */
static inline float weigh_f32(float *row, cq_span seen, int64_t keys, float scale, float cap) {
    if (cap != 0.0f) {
        const int64_t first = seen.first / 16 * 16;
        cq_active->cap(row + first, seen.end - first, scale, cap), scale = 1.0f;
    }
    const float sum = cq_active->softmax_f32(row, seen, scale);
    for (int64_t t = up(seen.end, 16); t < keys; t++) row[t] = 0.0f;
    return sum;
}

/* Some queries (at most CQ_TILE_ROWS): the first one's, and how far it is to the next one's. */
typedef struct {
    int rows;
    const uint8_t *q;
    const float *scales;
    const float *bias; /* of the first one and each key; NULL: none */
    sight sight;
    int64_t to; /* the element of the result that it begins with */
    int64_t q_step, scale_step, to_step;
} query_rows;

/* What a member of the team works in. length64: room for keys in whole vectors of codes. */
typedef struct {
    uint8_t *queries; /* (CQ_TILE_ROWS, dim4) uint8, zeros where dim is no multiple of 4 */
    int32_t *scores;  /* (CQ_TILE_ROWS, length64) */
    uint8_t *weights; /* (CQ_TILE_ROWS, length64): exp in 1/255 */
    int64_t length64;
} query_scratch;

static inline int64_t query_scratch_bytes(int64_t dim, int64_t length64) {
    return CQ_TILE_ROWS * (up(dim, 64) + length64 * 5);
}
static inline query_scratch query_scratch_at(void *memory, int64_t dim, int64_t length64) {
    query_scratch s = {.scores = memory, .length64 = length64};
    s.weights = (uint8_t *)(s.scores + CQ_TILE_ROWS * length64);
    s.queries = s.weights + CQ_TILE_ROWS * length64;
    memset(s.queries, 0, (size_t)(CQ_TILE_ROWS * up(dim, 64)));
    return s;
}

/* What the sums of weights times values become; their rows are set block by block. */
static inline void set_strip(const attention_i8 *a, int64_t d, cq_strip *s) {
    const cq_codes *codes = a->codes;
    s->columns = (int)min(CQ_TILE, a->dim - d);
    for (int i = 0; i < CQ_TILE; i++) {
        s->zero_points[i] = a->v.zero_point - (a->v.is_signed ? 0 : 128);
        s->scales[i] = a->q.scales ? 1.0f : a->v.scale;
        if (codes) {
            s->code_scales[i] = codes->scale, s->code_zeros[i] = (float)codes->zero_point;
            s->code_inverses[i] = cq_inverse(codes->scale);
        }
    }
    if (codes) cq_code_range(codes->is_signed, codes->symmetric, &s->qmin, &s->qmax);
}

/* Scores (rows, keys) so that their differences times what is returned are those of the capped ones in powers of 2. */
static inline float cap_scores(const attention_i8 *a, const cq_span *seen, int rows, const float *factors,
                               const float *keys, const query_scratch *s) {
    const float most = a->cap * LOG2_E;
    const int32_t q_zero = a->q.zero_point + flip_of(&a->q), k_zero = a->k.zero_point + flip_of(&a->k) - 128;
    for (int r = 0; r < rows; r++) {
        const int64_t first = seen[r].first / 16 * 16;
        const int32_t sum = k_zero ? cq_active->sum_codes(s->queries + r * up(a->dim, 4), a->dim) : 0;
        cq_active->cap_i8(s->scores + r * s->length64 + first, seen[r].end - first,
                          -k_zero * (sum - (int32_t)a->dim * q_zero), factors[r] / most, keys ? keys + first : NULL);
    }
    return most / CQ_CAPPED;
}

static inline void attend_rows(const attention_i8 *a, const laid_i8 *at, const query_rows *rows, const query_scratch *s,
                               cq_strip *strip) {
    const int n = rows->rows, scaled = rows->scales != NULL;
    const int64_t dim = a->dim, dim4 = up(dim, 4);
    const cq_span all = span_of_all(&rows->sight, n, CQ_PANEL);
    const int64_t first = all.first, keys = all.end - first;
    const float base = a->scale * LOG2_E, *bias = rows->bias ? rows->bias + first : NULL;
    cq_key_scales scales = at->scales;
    int32_t sums[CQ_TILE_ROWS];
    float inverse[CQ_TILE_ROWS], factors[CQ_TILE_ROWS];
    cq_span seen[CQ_TILE_ROWS];
    for (int r = 0; r < n; r++) {
        const uint8_t *q = rows->q + r * rows->q_step;
        if (flip_of(&a->q)) cq_active->flip(q, dim, s->queries + r * dim4);
        else memcpy(s->queries + r * dim4, q, (size_t)dim);
    }
    cq_active->tile_i8(s->queries, dim4, n, at->keys + first * dim4, dim4 * CQ_PANEL,
                       (int)(up(keys, CQ_PANEL) / CQ_PANEL), dim4 / 4, at->start + first, s->scores, s->length64);
    for (int r = 0; r < n; r++) {
        seen[r] = behind(span_of(&rows->sight, r), first);
        factors[r] = scaled ? base * rows->scales[r * rows->scale_step] : base * a->q.scale * a->k.scale;
    }
    if (scaled) {
        float totals[CQ_TILE_ROWS];
        scales.keys += first, scales.values_255 += first, scales.logs += first;
        if (a->cap != 0.0f) {
            const float factor = cap_scores(a, seen, n, factors, scales.keys, s);
            for (int r = 0; r < n; r++) factors[r] = factor;
            scales.keys = NULL;
        }
        cq_active->softmax_scaled(s->scores, s->length64, n, seen, up(keys, 4), factors, &scales, bias, a->bias_row,
                                  s->weights, totals);
        for (int r = 0; r < n; r++) inverse[r] = 1.0f / (255.0f * totals[r]);
    } else {
        if (a->cap != 0.0f) factors[0] = cap_scores(a, seen, n, factors, NULL, s);
        if (bias)
            cq_active->softmax_biased(s->scores, s->length64, n, seen, up(keys, 4), factors[0], bias, a->bias_row,
                                      s->weights, sums);
        else cq_active->softmax_i8(s->scores, s->length64, n, seen, up(keys, 4), factors[0], s->weights, sums);
        for (int r = 0; r < n; r++) inverse[r] = 1.0f / (float)sums[r];
    }
    _Alignas(64) int32_t acc[CQ_TILE_ROWS * CQ_TILE];
    strip->row_scales = inverse, strip->row_sums = scaled ? NULL : sums;
    strip->stride = rows->to_step;
    for (int64_t d = 0; d < dim; d += CQ_TILE) {
        if (dim > CQ_TILE || !strip->columns) set_strip(a, d, strip);
        cq_active->tile_i8(s->weights, s->length64, n, at->values + first * CQ_PANEL + d / CQ_PANEL * at->value_stride,
                           at->value_stride, (int)up(strip->columns, CQ_PANEL) / CQ_PANEL, up(keys, 4) / 4, NULL, acc,
                           CQ_TILE);
        if (a->codes) strip->codes = (uint8_t *)a->codes->codes + rows->to + d;
        else strip->out = a->y + rows->to + d;
        cq_active->store_i8(acc, CQ_TILE, n, strip, 0);
    }
}
#endif
