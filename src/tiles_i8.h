/* uint8 x int8 micro-kernels over `dot4`. Included by the kernel_*.c that define it, after epilogue.h. */
#include "tiles.h"

#define DOT(r, p) c##r##p = dot4(c##r##p, x, b##p)
#define DOT_ROW(r) if (R > r) { const a_lane x = a_load(a + r * a_stride); ROW_PANELS(DOT, r) }
/* Fetches the weight: for few rows into the second-level cache, for many rows into the first, and with it the share of
 * what comes after these panels that falls to this tile, from `next` on, into the second. */
#define FETCH(p) __builtin_prefetch(b + ahead + p * panel_stride, 0, R <= FETCH_ROWS ? 2 : 3);
#define FETCH_SHARE if (R > FETCH_ROWS) { __builtin_prefetch(next, 0, 2); next += next_bytes; }
/* The whole K: every accumulator c<row><panel> += row of a x panel. is_whole: the tile has all its rows and panels. */
#define MULTIPLY(R, P, is_whole) \
    if (R <= FETCH_ROWS) { \
        const int64_t waits = groups > FETCH_GROUPS ? groups - FETCH_GROUPS : 0; \
        MULTIPLY_PART(R, P, waits, 1, 64 * FETCH_GROUPS) \
        MULTIPLY_PART(R, P, groups - waits, 1, P * panel_stride - 64 * waits) \
    } else if (is_whole && groups >= LONG_GROUPS) MULTIPLY_PART(R, P, groups, 1, 64 * NEAR_GROUPS) \
    else MULTIPLY_PART(R, P, groups, 0, 0)
#define MULTIPLY_PART(R, P, count, fetches, distance) { \
    const int64_t ahead = distance; \
    for (const int8_t *end = b + (count) * 64; b < end; b += 64, a += 4) { \
        b_lanes b0 = b_load(b), b1, b2, b3; \
        if (P > 1) b1 = b_load(b + panel_stride); \
        if (P > 2) b2 = b_load(b + 2 * panel_stride); \
        if (P > 3) b3 = b_load(b + 3 * panel_stride); \
        if (fetches) { FETCH_SHARE FETCH(0) if (P > 1) FETCH(1) if (P > 2) FETCH(2) if (P > 3) FETCH(3) } \
        EVERY_ROW(DOT_ROW) \
    } }

INLINE void tile_i8(const int R, const int P, const int is_whole, const uint8_t *a, int64_t a_stride, const int8_t *b,
                    int64_t panel_stride, int64_t groups, const int8_t *next, int64_t next_bytes, const int32_t *start,
                    int32_t *acc, int64_t acc_stride) {
#define FROM(r, p) i32x16 c##r##p = R > r && P > p && start ? i32_load(start + 16 * p) : i32_set(0);
    EVERY_ACC(FROM)
    MULTIPLY(R, P, is_whole)
#define PUT(r, p) i32_store(acc + r * acc_stride + 16 * p, c##r##p)
#define PUT_ROW(r) ROW_PANELS(PUT, r)
    EVERY_ROW(PUT_ROW)
#undef PUT_ROW
#undef PUT
#undef FROM
}

static void few_panels(const uint8_t *a, int64_t a_stride, int rows, const int8_t *b, int64_t panel_stride, int panels,
                       int64_t groups, const int32_t *start, int32_t *acc, int64_t acc_stride) {
    CHOOSE(tile_i8, 0, a, a_stride, b, panel_stride, groups, NULL, 0, start, acc, acc_stride)
}

static void ISA(tile_i8)(const uint8_t *a, int64_t a_stride, int rows, const int8_t *b, int64_t panel_stride,
                         int panels, int64_t groups, const int32_t *start, int32_t *acc, int64_t acc_stride) {
    const int width = rows <= 2 ? FEW_PANELS : TILE_PANELS;
    for (int p = 0; p < panels; p += width)
        few_panels(a, a_stride, rows, b + p * panel_stride, panel_stride, panels - p < width ? panels - p : width,
                   groups, start ? start + p * CQ_PANEL : NULL, acc + p * CQ_PANEL, acc_stride);
}
#if TILE_PANELS == 4
/* A whole tile, what follows included, from the registers that hold its sums. */
INLINE void full_tile(const int to, const cq_activation activation, const int residual, const int per_row,
                      const uint8_t *a, int64_t a_stride, const int8_t *b, int64_t panel_stride, int64_t groups,
                      const cq_strip *s, int64_t row) {
    enum { R = CQ_TILE_ROWS, P = TILE_PANELS };
    if (residual)
        for (int r = 0; r < R; r++) fetch_residual(s, row + r);
#define ZEROS(r) const i32x16 z##r = per_row ? i32_set(s->row_zeros[row + r]) : i32_set(0);
    EVERY_ROW(ZEROS)
#define FROM(r, p) \
    i32x16 c##r##p = i32_load(s->start + 16 * p); \
    if (per_row) c##r##p = i32_sub(c##r##p, i32_mul(z##r, i32_load(s->column_sums + 16 * p)));
    const int64_t next_bytes = 64 * P * R / s->rows;
    const int8_t *next = b + P * panel_stride + row / R * groups * next_bytes;
    EVERY_ACC(FROM)
    MULTIPLY(R, P, 1)
#define EMIT(r, p) emit(to, activation, residual, per_row, c##r##p, x##r, s, row + r, 16 * p, 16)
#define VALUE(r, p) value(activation, residual, per_row, c##r##p, x##r, s, row + r, 16 * p, 16)
#define EMIT_ROW(r) { \
        const f32x16 x##r = f32_set(per_row && to != TO_I32 ? s->row_scales[row + r] : 1.0f); \
        if (to == TO_CODES) \
            encode_64(BY_COLUMN, 1, &e, VALUE(r, 0), VALUE(r, 1), VALUE(r, 2), VALUE(r, 3), \
                      s->codes + (row + r) * s->stride); \
        else ROW_PANELS(EMIT, r) \
    }
    const encoding e = {s->code_inverses, s->code_scales, s->code_zeros, s->qmin, s->qmax, s->qmin < 0.0f};
    EVERY_ROW(EMIT_ROW)
#undef EMIT_ROW
#undef VALUE
#undef EMIT
#undef FROM
#undef ZEROS
}

INLINE int64_t full_tiles(const int to, const cq_activation activation, const int residual, const int per_row,
                          const uint8_t *a, int64_t a_stride, const int8_t *b, int64_t panel_stride, int64_t groups,
                          const cq_strip *s) {
    int64_t row = 0;
    for (; row + CQ_TILE_ROWS <= s->rows; row += CQ_TILE_ROWS)
        full_tile(to, activation, residual, per_row, a + row * a_stride, a_stride, b, panel_stride, groups, s, row);
    return row;
}

/* The rows that whole tiles of a common kind did; the rest goes the general way. */
static int64_t from_registers(const uint8_t *a, int64_t a_stride, const int8_t *b, int64_t panel_stride, int64_t groups,
                              const cq_strip *s) {
    if (s->columns < CQ_TILE || s->row_sums || (!s->c && !s->row_scales != !s->row_zeros)) return 0;
    const int residual = s->residual || s->residual_coded;
#define TILES(to, activation, residual) \
    return s->row_zeros ? full_tiles(to, activation, residual, 1, a, a_stride, b, panel_stride, groups, s) \
                        : full_tiles(to, activation, residual, 0, a, a_stride, b, panel_stride, groups, s)
    if (s->c) TILES(TO_I32, CQ_IDENTITY, 0);
    if (s->activation == CQ_IDENTITY && s->out && residual) TILES(TO_F32, CQ_IDENTITY, 1);
    if (residual) return 0;
    if (s->activation == CQ_IDENTITY && s->out) TILES(TO_F32, CQ_IDENTITY, 0);
    if (s->activation == CQ_GELU && s->out) TILES(TO_F32, CQ_GELU, 0);
    if (s->row_zeros) return 0; /* a given scale for codes comes with one for what is multiplied */
    if (s->activation == CQ_IDENTITY)
        return full_tiles(TO_CODES, CQ_IDENTITY, 0, 0, a, a_stride, b, panel_stride, groups, s);
    if (s->activation == CQ_GELU) return full_tiles(TO_CODES, CQ_GELU, 0, 0, a, a_stride, b, panel_stride, groups, s);
    return 0;
#undef TILES
}
#else
#define from_registers(...) 0
#endif

static void ISA(strip_i8)(const uint8_t *a, int64_t a_stride, const int8_t *b, int64_t panel_stride, int64_t groups,
                          const cq_strip *s) {
    enum {
        AT_ONCE = TILE_PANELS == 4 ? TILE_ROWS : 48
    }; /* rows that one panel multiplies before the next one's turn */
    _Alignas(64) int32_t acc[AT_ONCE * CQ_TILE];
    const int panels = (s->columns + CQ_PANEL - 1) / CQ_PANEL, width = s->rows <= 2 ? FEW_PANELS : TILE_PANELS;
    const int bare = s->c && s->columns == CQ_TILE && !s->row_zeros && !s->row_sums; /* sums that go out as they are */
    const int64_t sum_stride = bare ? s->stride : CQ_TILE;
    for (int64_t row = from_registers(a, a_stride, b, panel_stride, groups, s); row < s->rows; row += AT_ONCE) {
        const int rows = (int)(s->rows - row < AT_ONCE ? s->rows - row : AT_ONCE);
        const int64_t next_bytes = 64 * TILE_ROWS / rows;
        int32_t *sums = bare ? s->c + row * s->stride : acc;
        for (int p = 0; p < panels; p += width)
            for (int r = 0, some; r < rows; r += some) {
                some = (int)cq_tile_rows(rows - r, TILE_ROWS);
                const uint8_t *from = a + (row + r) * a_stride;
                const int8_t *panel = b + p * panel_stride;
                const int32_t *start = s->start + p * CQ_PANEL;
                int32_t *to = sums + r * sum_stride + p * CQ_PANEL;
                if (TILE_PANELS == 1 && some == TILE_ROWS) /* most tiles: without a call */
                    tile_i8(TILE_ROWS, 1, 1, from, a_stride, panel, panel_stride, groups,
                            panel + panel_stride + r / TILE_ROWS * groups * next_bytes, next_bytes, start, to,
                            sum_stride);
                else
                    few_panels(from, a_stride, some, panel, panel_stride, panels - p < width ? panels - p : width,
                               groups, start, to, sum_stride);
            }
        if (!bare) ISA(store_i8)(acc, CQ_TILE, rows, s, row);
    }
}

static double ISA(peak_i8)(int64_t repeats) {
    const uint8_t ones[4] = {1, 1, 1, 1};
    const int8_t b_bytes[64] = {1};
    a_lane x = a_load(ones);
    b_lanes b0 = b_load(b_bytes);
#define ZERO(r, p) i32x16 c##r##p = i32_set(0);
    EVERY_ACC(ZERO)
    EVERY_ACC(USE) /* opaque, or the compiler would see 24 equal sums and make one */
    const int64_t steps = TILE_ROWS * TILE_PANELS;
    for (int64_t n = 0; n < repeats * 1024; n++) {
        OPAQUE(x);
#define DOT1(r) c##r##0 = dot4(c##r##0, x, b0);
#define DOT2(r) c##r##1 = dot4(c##r##1, x, b0), c##r##2 = dot4(c##r##2, x, b0), c##r##3 = dot4(c##r##3, x, b0);
        DOT1(0) DOT1(1) DOT1(2) DOT1(3) if (TILE_ROWS == 6) { DOT1(4) DOT1(5) }
        if (TILE_PANELS == 4) { EVERY_ROW(DOT2) }
    }
    EVERY_ACC(USE)
#undef ZERO
    return (double)repeats * 1024 * (double)steps * 16 * 4 * 2;
}
