/* A block of a float32 product, tile by tile: what products over packed weights (gemm.c) and of matrices as they lie
 * (products.c) share. */
#ifndef CQ_FLOATS_H
#define CQ_FLOATS_H
#include "kernel.h"

/* k passes in even parts. 24 KB of one panel stay in the first-level cache while rows pass; four side by side stream
 * from the second level, and long parts spare loads and stores of sums. */
enum { CQ_DEPTH = 384, CQ_DEPTH_WIDE = 768 };
#define CQ_FETCH_FROM 24 /* rows; fewer do not give the time for it */

static inline int64_t cq_depth_f32(int64_t k) {
    const int64_t most = cq_active->panels > 1 ? CQ_DEPTH_WIDE : CQ_DEPTH, parts = (k + most - 1) / most;
    return parts < 2 ? most : (k + parts - 1) / parts;
}

typedef struct {
    cq_operands o;  /* where both begin */
    int64_t a_tile; /* elements from one tile's rows of a to the next one's, where a is packed in tiles, or 0 */
    int64_t rows, k;
    int panels, add;
    float *c; /* (rows, 16 * panels) = a b, or c + a b where `add` */
    int64_t c_row;
    const float *next; /* where b goes on after this block */
} cq_block_f32;

/* Where a tile of rows, the i-th of a block, begins to fetch b's next part, which lies in the third-level cache or in
 * memory. Of one panel a share with every tile, into the first level; of four panels the first 16 tiles fetch a line of
 * every fourth k each, into the second. */
static inline const char *cq_next_f32(const cq_operands *o, int width, int64_t k, const char *next, int64_t i) {
    if (width == 1) return next + i * k * o->next_bytes;
    return i < 16 ? next + i / 4 * o->panel_stride * 4 + i % 4 * CQ_LINE : NULL;
}

/* Columns by the width of a tile, for each all rows. `finish`, or NULL: the strip that a tile's rows go to once their
 * last columns are there. */
static inline void cq_multiply_block_f32(const cq_block_f32 *b, const cq_strip *finish) {
    const int width = cq_active->panels, step = cq_active->rows_f32;
    const int64_t tiles = (b->rows + step - 1) / step;
    cq_operands o = b->o;
    o.next_bytes = b->rows < CQ_FETCH_FROM ? 0 : (CQ_PANEL * 4 + tiles - 1) / (width > 1 ? 1 : tiles);
    for (int p = 0; p < b->panels; p += width) {
        const int panels = b->panels - p < width ? b->panels - p : width, last = p + width >= b->panels;
        o.a = b->o.a;
        const char *next = (const char *)(last ? b->next : o.b + o.panel_stride);
        for (int64_t i = 0, tile = 0, rows; i < b->rows; i += rows, tile++) {
            const int64_t left = b->rows - i;
            o.next = cq_next_f32(&o, width, b->k, next, tile);
            rows = !b->a_tile ? cq_tile_rows(left, step) : left < step ? left : step;
            cq_active->tile_f32(&o, (int)rows, panels, b->k, b->add, b->c + i * b->c_row + p * CQ_PANEL, b->c_row);
            if (finish && last) cq_active->store_f32(b->c + i * b->c_row, b->c_row, (int)rows, finish, i);
            o.a += b->a_tile ? b->a_tile : rows * o.a_row;
        }
        o.b += width * o.panel_stride;
    }
}
#endif
