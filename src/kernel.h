/* What a set of kernels promises to the drivers. Kernels see one strip, one tile or one row, run on one thread,
 * allocate nothing and give the same bits on every instruction set. Driver -> dispatch -> kernel -> epilogue; nothing
 * points back. */
#ifndef CQ_KERNEL_H
#define CQ_KERNEL_H
#include "cq.h"

#define CQ_TILE 64      /* columns of one tile: at most 4 panels */
#define CQ_TILE_ROWS 6  /* rows of one tile at most */
/* Rows of a strip at most: A's, which stay in the second-level cache while column tiles pass. */
#define CQ_BLOCK_ROWS 144

/* Rows of the next tile where `left` are left. Sums of fewer than 4 rows wait for one another, so the tile before them
 * gives some of its own. */
static inline int64_t cq_tile_rows(int64_t left, int64_t most) {
    return left <= most ? left : left < most + 4 ? (left + 1) / 2 : most;
}

/* A strip of a product: some rows by one tile of columns, and where its results go. What belongs to a column is copied
 * here once for all rows and filled up to CQ_TILE, so that kernels read it without masks and never beside an array. */
typedef struct {
    _Alignas(64)
        int32_t start[CQ_TILE]; /* where sums start: int32 bias - zero point * column sum, where a has one zero point */
    int32_t column_sums[CQ_TILE]; /* read where a has a zero point per row */
    int32_t zero_points[CQ_TILE]; /* of the weight; read with row_sums */
    float scales[CQ_TILE], bias[CQ_TILE];
    float code_inverses[CQ_TILE], code_scales[CQ_TILE], code_zeros[CQ_TILE]; /* of the codes that come out */

    int64_t rows;
    int columns;
    /* of the strip's first row */
    const float *row_scales;  /* scales are multiplied by these, or NULL */
    const int32_t *row_zeros; /* a's zero points, or NULL */
    const int32_t *row_sums;  /* of a's codes where the weight has zero points, or NULL */
    cq_activation activation;
    const float *residual; /* or NULL */
    int64_t residual_stride;
    const cq_coded *residual_coded; /* or NULL; read at residual_row + r, residual_column + j */
    int64_t residual_row, residual_column;
    /* one of these */
    int32_t *c;
    float *out;
    uint8_t *codes;
    int64_t stride; /* of that one */
    float qmin, qmax;
} cq_strip;

/* Groups of 4 codes, all >= 0, of which two that are multiplied by the same pair of weights are at most 127 together,
 * and their places in a row; row by row an even number. */
typedef struct {
    int32_t *groups, *codes; /* (room) */
    int64_t *ends;           /* (rows) */
} cq_excess;
#define CQ_EXCESS_AT_ONCE 40 /* there is no more excess where there is no room for so many */

/* Rows of codes minus a centre, or minus a floor below most of them, clipped so that a product's int16 sums cannot
 * overflow; what was clipped off each row, its excess; and a row's sums. */
typedef struct {
    int8_t *codes; /* (rows, stride): k of them, then zeros, up to a multiple of 8 */
    int64_t stride;
    int is_unsigned;  /* minus a floor: `codes` are uint8, and weights are not raised */
    int32_t *sums;    /* (rows): of codes minus the centre or floor */
    int32_t *raising; /* (rows): 128 times the sum of `codes`, which weights + 128 add to each product */
    int32_t zero;     /* what is left of the zero point, for all rows */
    cq_excess added, subtracted;
    int64_t room, pays; /* for how much excess there is room, and how much all rows may have */
} cq_clipped;

/* What a query sees of a row of scores: first .. end - 1, at least one. */
typedef struct {
    int64_t first, end;
} cq_span;
#define LOG2_E 1.44269504f
#define CQ_CAPPED 536870912.0f /* what a score that meets its cap becomes: two of them differ by 2^30 at most */

/* Of every key, with room up to a whole vector: its scale, 255 times its value's, and at least log2 of its value's. */
typedef struct {
    float *keys, *values_255, *logs;
} cq_key_scales;

/* Where a float32 tile finds its operands: element (row, i) of a is a[row * a_row + i * a_step]; element (i, column) of
 * b is b[i * b_step + column / 16 * panel_stride + column % 16]. `next`, or NULL: what is fetched meanwhile,
 * next_bytes further with every i, by tiles of one panel into the first-level cache, by wider ones into the second. */
typedef struct {
    const float *a;
    int64_t a_row, a_step;
    const float *b;
    int64_t b_step, panel_stride;
    const char *next;
    int64_t next_bytes;
} cq_operands;

/* Parameters of codes, one per row or one per column; high - low <= 255; low <= 0 <= high but per column. shifts: NULL,
 * or what is added to codes. */
typedef struct {
    int by_column;
    const float *scales, *lows, *highs, *shifts;
} cq_rounding;
/* What follows a product, of columns or of rows: all but scales may be NULL. */
typedef struct {
    const float *before, *scales, *row_scales, *after;
} cq_rescaling;
/* mean = beta1 mean + gradient g, square = beta2 square + gradient_square g^2, p = keep p - rate mean / (root
 * sqrt(square) + epsilon). */
typedef struct {
    float beta1, beta2, gradient, gradient_square, root, epsilon, rate, keep;
} cq_adamw;

typedef struct {
    const char *name;
    int rows_f32, panels; /* shape of the tiles that this set is fastest with */
    int align_from; /* 0, or: from so many rows on products read A fastest where its rows begin with a cache line */

    /* acc (rows, 16 * panels) = start (16 * panels), or 0 where it is NULL, + a (rows, 4 * groups) uint8 x panels. At
     * most CQ_TILE_ROWS rows, which hold 4 * groups bytes. */
    void (*tile_i8)(const uint8_t *a, int64_t a_stride, int rows, const int8_t *b, int64_t panel_stride, int panels,
                    int64_t groups, const int32_t *start, int32_t *acc, int64_t acc_stride);
    /* All rows of a strip: products and what follows them. */
    void (*strip_i8)(const uint8_t *a, int64_t a_stride, const int8_t *b, int64_t panel_stride, int64_t groups,
                     const cq_strip *s);
    /* NULL, or: clips rows of k codes, which have a zero point each, or one for all. Returns 0 where there is too much
     * excess for that to pay, or a row's zero point is no code. */
    int (*clip)(const uint8_t *a, int64_t a_stride, int64_t rows, int64_t k, const int32_t *zeros, int32_t zero,
                cq_clipped *out);
    /* With a group of excess for so many codes, clipped rows take as long as others. The second number is for up to
     * CQ_FEW_ROWS rows. */
#define CQ_FEW_ROWS 4
    int excess_share, excess_share_few;
    /* As strip_i8, of clipped rows. */
    void (*strip_clipped)(const cq_clipped *a, const int8_t *b, int64_t panel_stride, int64_t groups,
                          const cq_strip *s);
    /* What follows, for `rows` rows of sums that started from s->start; `row` is the first one's place in the strip. */
    void (*store_i8)(const int32_t *acc, int64_t acc_stride, int rows, const cq_strip *s, int64_t row);
    /* The same for float32 sums. */
    void (*store_f32)(const float *acc, int64_t acc_stride, int rows, const cq_strip *s, int64_t row);

    /* c (rows, 16 * panels) = a (rows, k) x b (k, 16 * panels), or added to what c holds; fused multiply-adds in order
     * of k. */
    void (*tile_f32)(const cq_operands *o, int rows, int panels, int64_t k, int add, float *c, int64_t c_stride);
    /* The same from packed int8 for few rows: acc += a (rows, k) x (w - zero_points); zero_points (16 * panels) or
     * NULL. */
    void (*tile_f32_i8)(const float *a, int64_t a_stride, int rows, const int8_t *b, int64_t panel_stride, int panels,
                        int64_t k, const int32_t *zero_points, float *acc);
    /* out (k, 16) float32 = panel - zero_points (16, or NULL). Writes whole groups of 4 rows. */
    void (*widen)(const int8_t *panel, int64_t k, const int32_t *zero_points, float *out);
    /* total (rows, CQ_TILE) += scales * acc, and acc = 0. */
    void (*add_group)(float *total, float *acc, int rows, int columns, const float *scales);

    /* Rows. Those that return int return 0 where the row holds NaN or Inf. */
    int (*min_max)(const float *x, int64_t n, float *lo, float *hi);
    int (*quantize)(const float *x, int64_t n, const cq_codes *out, int64_t row);
    void (*dequantize)(const cq_coded *in, int64_t row, int64_t n, float *y);
    int32_t (*sum_codes)(const uint8_t *codes, int64_t n);
    void (*flip)(const uint8_t *codes, int64_t n, uint8_t *out); /* int8 <-> uint8 with the zero point moved by 128 */
    /* y = norm of x, or of x + residual, which goes to `kept` (y itself will do). */
    int (*norm)(const cq_norm *norm, const float *x, const float *residual, int64_t n, float *kept, float *y);
    void (*gate)(const float *gate, const float *up, cq_activation activation, int64_t n, float *y);
    /* Each `block` neighbours of x (n) in place -> their Hadamard transform over sqrt(block), as of cq_hadamard. */
    void (*hadamard)(float *x, int64_t n, int64_t block);
    void (*rope)(float *x, int64_t dim, const float *cosine, const float *sine);
    void (*add)(const float *x, int64_t n, float *y); /* y += x */
    void (*scale)(float factor, int64_t n, float *y); /* y *= factor */
    void (*scale_add)(float factor, const float *x, int64_t n,
                      float *y); /* y = factor * y + x, by fused multiply-add */
    /* x's span -> exp(factor * (x - max)), zero before it and up to the next multiple of 16; returns the sum. */
    float (*softmax_f32)(float *x, cq_span seen, float factor);
    /* Of `rows` rows of scores (stride) the span of each, with room up to a whole vector -> codes rint(255 *
     * 2^(factor * (score - max))), zero before it and up to `padded`, and their sums. */
    void (*softmax_i8)(int32_t *scores, int64_t stride, int rows, const cq_span *seen, int64_t padded, float factor,
                       uint8_t *codes, int32_t *sums);
    /* The same of logits factor * score + log2(e) * bias[r * bias_row + i]. The room of scores is worked in. */
    void (*softmax_biased)(int32_t *scores, int64_t stride, int rows, const cq_span *seen, int64_t padded, float factor,
                           const float *bias, int64_t bias_row, uint8_t *codes, int32_t *sums);
    /* The same where every key has a scale (or none: all 1), and every value one that its code takes along; sums are
     * the float32 ones of 2^(...). bias: optional. The room of scores is worked in. */
    void (*softmax_scaled)(int32_t *scores, int64_t stride, int rows, const cq_span *seen, int64_t padded,
                           const float *factors, const cq_key_scales *scales, const float *bias, int64_t bias_row,
                           uint8_t *codes, float *sums);
    /* x (n) -> most * tanh(factor * x / most), or factor * x where most is 0. */
    void (*cap)(float *x, int64_t n, float factor, float most);
    /* scores (n), with room up to a whole vector -> rint(CQ_CAPPED * tanh((score + start) * factor * keys[i])); keys
     * NULL: all 1. */
    void (*cap_i8)(int32_t *scores, int64_t n, int32_t start, float factor, const float *keys);
    /* Training: see the passes in training.c that are named alike. `round` returns whether anything was clipped,
     * `exponents` the row's sum. */
    void (*slope)(const float *x, cq_activation activation, int64_t n, float *y, float *slope);
    int (*round)(const float *x, int64_t n, const cq_rounding *r, int64_t row, float *y, uint8_t *bytes);
    float (*exponents)(float *x, int64_t n, float factor, int coded);
    void (*softmax_back)(float *g, const float *p, int64_t n, float inverse, float factor);
    void (*rescale)(const float *x, int64_t n, const cq_rescaling *r, int64_t row, float *y);
    float (*norm_kept)(const cq_norm *norm, const float *x, int64_t n, float *kept, float *y); /* returns the factor */
    void (*norm_back)(const cq_norm *norm, const float *kept, float factor, const float *g, int64_t n, float *of_weight,
                      float *dx);
    float (*dot)(const float *x, const float *y, int64_t n);
    /* y (n) = column sums of x (rows, n) with row stride `stride`. */
    void (*column_sums)(const float *x, int64_t stride, int64_t rows, int64_t n, float *y);
    void (*adamw)(const cq_adamw *a, const float *g, int64_t n, const float *units, float *mean, float *square,
                  float *p);
    /* out (n, 4) = n codes of each of 4 rows, xor `flip`; bytes that `keep` leaves out are 0. */
    void (*interleave)(const uint8_t *const rows[4], int64_t n, uint8_t flip, uint32_t keep, int8_t *out);

    double (*peak_i8)(int64_t repeats);
    double (*peak_f32)(int64_t repeats);
} cq_kernels;

extern const cq_kernels cq_kernels_scalar, cq_kernels_avx2, cq_kernels_avx512vnni;
/* Put a set's products of int8 in the place of those of the table that it shares all else with: AVX2's, or AVX-512
 * VNNI's for AMX. AVX-VNNI has two encodings. */
void cq_products_avx512bw(cq_kernels *to);
void cq_products_avxvnni_vex(cq_kernels *to);
void cq_products_avxvnni_evex(cq_kernels *to);
void cq_products_amx(cq_kernels *to);
extern const cq_kernels *const cq_active; /* filled by cq_select */
#endif
