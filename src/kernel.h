/* What a set of kernels promises to the drivers. Kernels see one tile or one row, run on one thread, allocate nothing and give
 * the same bits on every instruction set. Driver -> dispatch -> kernel -> epilogue; nothing points back. */
#ifndef CQ_KERNEL_H
#define CQ_KERNEL_H
#include "cq.h"

#define CQ_TILE 64      /* columns of the accumulators of one tile: at most 4 panels */
#define CQ_TILE_ROWS 6  /* rows of one tile at most */

/* A tile's place: rows x columns at (row, column) of the product. */
typedef struct {
    int64_t row, column;
    int rows, columns;
} cq_tile;

typedef struct {
    const char *name;
    int rows_i8, rows_f32, panels; /* shape of the tiles that this set is fastest with */

    /* acc (rows, CQ_TILE) = a (rows, 4 * groups) uint8 x panels, raw codes. a's rows must hold 4 * groups readable bytes. */
    void (*tile_i8)(const uint8_t *a, int64_t a_stride, int rows, const int8_t *b, int64_t panel_stride, int panels,
                    int64_t groups, int32_t *acc);
    /* c (rows, 16 * panels) = a (rows, k) x b (k, 16 * panels), or added to what c holds; fused multiply-adds in order of k. */
    void (*tile_f32)(const float *a, int64_t a_stride, int rows, const float *b, int64_t b_stride, int panels, int64_t k, int add,
                     float *c, int64_t c_stride);
    /* The same from packed int8 for few rows: acc += a (rows, k) x (w - zero_points); zero_points (16 * panels) or NULL. */
    void (*tile_f32_i8)(const float *a, int64_t a_stride, int rows, const int8_t *b, int64_t panel_stride, int panels,
                        int64_t k, const int32_t *zero_points, float *acc);
    /* out (k, 16) float32 with row stride CQ_TILE = panel - zero_points (16, or NULL). Writes whole groups of 4 rows. */
    void (*widen)(const int8_t *panel, int64_t k, const int32_t *zero_points, float *out);

    /* int32 sums -> c, zero points corrected. row_sums (rows) of a's codes where w has zero points. */
    void (*store_i32)(const int32_t *acc, const cq_tile *t, const cq_coded *a, const int32_t *row_sums, const cq_weight *w,
                      int32_t *c, int64_t c_stride);
    /* int32 sums -> epilogue. */
    void (*store_i8)(const int32_t *acc, const cq_tile *t, const cq_coded *a, const int32_t *row_sums, const cq_weight *w,
                     const cq_epilogue *e);
    /* float32 sums (row stride acc_stride) -> scales (columns, or NULL) -> epilogue. */
    void (*store_f32)(const float *acc, int64_t acc_stride, const cq_tile *t, const float *scales, const cq_epilogue *e);
    /* total (rows, CQ_TILE) += scales * acc, and acc = 0. */
    void (*add_group)(float *total, float *acc, int rows, int columns, const float *scales);

    /* Rows. Those that return int return 0 where the row holds NaN or Inf. */
    int (*min_max)(const float *x, int64_t n, float *lo, float *hi);
    int (*quantize)(const float *x, int64_t n, const cq_codes *out, int64_t row);
    void (*dequantize)(const cq_coded *in, int64_t row, int64_t n, float *y);
    int32_t (*sum_codes)(const uint8_t *codes, int64_t n);
    void (*flip)(const uint8_t *codes, int64_t n, uint8_t *out); /* int8 <-> uint8 with the zero point moved by 128 */
    void (*norm)(const cq_norm_args *a, int64_t row, int64_t n, float *y);
    void (*gate)(const float *gate, const float *up, cq_activation activation, int64_t n, float *y);
    void (*rope)(float *x, int64_t dim, const float *cosine, const float *sine);
    void (*add)(const float *x, int64_t n, float *y); /* y += x */
    void (*scale)(float factor, int64_t n, float *y); /* y *= factor */
    /* x (n) -> exp(factor * (x - max)), zero up to the next multiple of 16; returns the sum. */
    float (*softmax_f32)(float *x, int64_t n, float factor);
    /* (sum - correction[j]) (n) -> codes rint(255 * exp(factor * (x - max))), zero up to `padded`; returns the codes' sum. */
    int32_t (*softmax_i8)(const int32_t *sums, const int32_t *correction, int64_t n, int64_t padded, float factor,
                          uint8_t *codes);

    double (*peak_i8)(int64_t repeats);
    double (*peak_f32)(int64_t repeats);
} cq_kernels;

extern const cq_kernels cq_kernels_scalar, cq_kernels_avx2, cq_kernels_avx512vnni;
extern const cq_kernels *cq_active; /* set by cq_select */
#endif
