/* int8 attention of a few queries to one head's keys and values, laid out as the tiles read them: what whole sequences
 * (attention.c) and kept keys and values (cache.c) share. */
#ifndef CQ_ATTENTION_H
#define CQ_ATTENTION_H
#include <string.h>

#include "affine.h"
#include "kernel.h"

static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static const int32_t nothing[CQ_TILE];

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

/* What all heads share. Of q, k and v the parameters: one scale each (static), or q's scales are set, and tokens have
 * theirs. */
typedef struct {
    int64_t dim;
    float scale;
    cq_coded q, k, v;
    float *y;
    const cq_codes *codes;
} attention_i8;

/* Some queries (at most CQ_TILE_ROWS): the first one's, and how far it is to the next one's. */
typedef struct {
    int rows;
    const uint8_t *q;
    const float *scales;
    int64_t visible, to; /* the keys that it sees; the element of the result that it begins with */
    int64_t q_step, scale_step, visible_step, to_step;
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

static inline void attend_rows(const attention_i8 *a, const laid_i8 *at, const query_rows *rows, const query_scratch *s,
                               cq_strip *strip) {
    const int64_t dim = a->dim, dim4 = up(dim, 4), seen = rows->visible + (rows->rows - 1) * rows->visible_step;
    const int64_t panels = up(seen, 16) / 16;
    const int width = cq_active->panels, n = rows->rows, scaled = rows->scales != NULL;
    const float base = a->scale * 1.44269504f;
    int32_t sums[CQ_TILE_ROWS];
    float inverse[CQ_TILE_ROWS], factors[CQ_TILE_ROWS];
    int64_t visible[CQ_TILE_ROWS];
    for (int r = 0; r < n; r++) {
        const uint8_t *q = rows->q + r * rows->q_step;
        if (flip_of(&a->q)) cq_active->flip(q, dim, s->queries + r * dim4);
        else memcpy(s->queries + r * dim4, q, (size_t)dim);
    }
    for (int64_t p = 0; p < panels; p += width)
        cq_active->tile_i8(s->queries, dim4, n, at->keys + p * dim4 * CQ_PANEL, dim4 * CQ_PANEL,
                           (int)min(width, panels - p), dim4 / 4, at->start + p * CQ_PANEL, s->scores + p * CQ_PANEL,
                           s->length64);
    for (int r = 0; r < n; r++) {
        visible[r] = rows->visible + r * rows->visible_step;
        if (scaled) factors[r] = base * rows->scales[r * rows->scale_step];
    }
    if (scaled) {
        float totals[CQ_TILE_ROWS];
        cq_active->softmax_scaled(s->scores, s->length64, n, visible, up(seen, 4), factors, &at->scales, s->weights,
                                  totals);
        for (int r = 0; r < n; r++) inverse[r] = 1.0f / (255.0f * totals[r]);
    } else {
        cq_active->softmax_i8(s->scores, s->length64, n, visible, up(seen, 4), base * a->q.scale * a->k.scale,
                              s->weights, sums);
        for (int r = 0; r < n; r++) inverse[r] = 1.0f / (float)sums[r];
    }
    _Alignas(64) int32_t acc[CQ_TILE_ROWS * CQ_TILE];
    strip->row_scales = inverse, strip->row_sums = scaled ? NULL : sums;
    strip->stride = rows->to_step;
    for (int64_t d = 0; d < dim; d += CQ_TILE) {
        if (dim > CQ_TILE || !strip->columns) set_strip(a, d, strip);
        for (int p = 0; p * CQ_PANEL < strip->columns; p += width)
            cq_active->tile_i8(s->weights, s->length64, n, at->values + (d / CQ_PANEL + p) * at->value_stride,
                               at->value_stride, (int)min(width, up(strip->columns, CQ_PANEL) / CQ_PANEL - p),
                               up(seen, 4) / 4, nothing, acc + p * CQ_PANEL, CQ_TILE);
        if (a->codes) strip->codes = (uint8_t *)a->codes->codes + rows->to + d;
        else strip->out = a->y + rows->to + d;
        cq_active->store_i8(acc, CQ_TILE, n, strip, 0);
    }
}
#endif
