/* float32 micro-kernels, from float32 and from packed int8. Included by kernel_*.c, which define the lanes. */
#include "tiles.h"

BULKY void tile_f32(const int R, const int P, const cq_operands *o, int64_t k, int add, float *c, int64_t c_stride) {
    const float *a = o->a, *b = o->b;
    const int64_t a_row = o->a_row, a_step = o->a_step, b_step = o->b_step, panel_stride = o->panel_stride;
    const char *next = o->next ? o->next : (const char *)b;
    const int64_t next_bytes = o->next_bytes;
#define GET(r, p) f32x16 c##r##p = R > r && P > p && add ? f32_load(c + r * c_stride + 16 * p) : f32_set(0.0f);
    EVERY_ACC(GET)
#define FMA(r, p) c##r##p = f32_fma(x, b##p, c##r##p)
#define ROW(r) if (R > r) { const f32x16 x = f32_set(from[r * a_row]); ROW_PANELS(FMA, r) }
#define STEP(a_at, b_at) { \
        const float *from = a + (a_at), *line = b + (b_at); \
        f32x16 b0 = f32_load(line), b1, b2, b3; \
        if (P > 1) b1 = f32_load(line + panel_stride); \
        if (P > 2) b2 = f32_load(line + 2 * panel_stride); \
        if (P > 3) b3 = f32_load(line + 3 * panel_stride); \
        EVERY_ROW(ROW) \
    }
#define FETCH_NEXT(steps) \
    if (R >= 4) { \
        if (P == 1) __builtin_prefetch(next); \
        else __builtin_prefetch(next, 0, 2); \
        next += (steps) * next_bytes; \
    }
    if (a_step == 1 && b_step == CQ_PANEL)
        for (; k >= 4; k -= 4, a += 4, b += 4 * CQ_PANEL) {
            FETCH_NEXT(4)
            STEP(0, 0) STEP(1, CQ_PANEL) STEP(2, 2 * CQ_PANEL) STEP(3, 3 * CQ_PANEL)
        }
    for (; k > 0; k--, a += a_step, b += b_step) {
        FETCH_NEXT(1)
        STEP(0, 0)
    }
#undef FETCH_NEXT
#undef STEP
#undef ROW
#define PUT(r, p) f32_store(c + r * c_stride + 16 * p, c##r##p)
#define ROW(r) ROW_PANELS(PUT, r)
    EVERY_ROW(ROW)
#undef ROW
#undef PUT
#undef GET
}

INLINE i32x16 i32_shifted_byte(i32x16 w, const int j) {
    switch (j) {
    case 0: return i32_sar(i32_shl(w, 24), 24);
    case 1: return i32_sar(i32_shl(w, 16), 24);
    case 2: return i32_sar(i32_shl(w, 8), 24);
    default: return i32_sar(w, 24);
    }
}

/* Byte j of every lane, as float32, minus the zero point. */
INLINE f32x16 byte_of(const int R, i32x16 w, const int j, const int has_zeros, i32x16 zero) {
    const i32x16 code = R <= 2 ? i32_byte(w, j) : i32_shifted_byte(w, j);
    return f32_from_i32(has_zeros ? i32_sub(code, zero) : code);
}

/* For at most 4 rows, where reading the weight is what costs. */
BULKY void tile_f32_i8(const int R, const int P, const int has_zeros, const float *a, int64_t a_stride, const int8_t *b,
                       int64_t panel_stride, int64_t k, const int32_t *zero_points, float *acc) {
#define GET(r, p) f32x16 c##r##p = R > r && P > p ? f32_load(acc + r * CQ_TILE + 16 * p) : f32_set(0.0f);
    EVERY_ACC(GET)
    const i32x16 none = i32_set(0);
    const i32x16 z0 = has_zeros ? i32_load(zero_points) : none,
                 z1 = P > 1 && has_zeros ? i32_load(zero_points + 16) : none;
    const i32x16 z2 = P > 2 && has_zeros ? i32_load(zero_points + 32) : none;
    const i32x16 z3 = P > 3 && has_zeros ? i32_load(zero_points + 48) : none;
#define STEP(r, p, j) if (R > r) c##r##p = f32_fma(f32_set(a[r * a_stride + j]), w, c##r##p);
#define PANEL(p, j) \
    if (P > p) { \
        const f32x16 w = byte_of(R, q##p, j, has_zeros, z##p); \
        STEP(0, p, j) STEP(1, p, j) STEP(2, p, j) STEP(3, p, j) \
    }
#define ONE(j) PANEL(0, j) PANEL(1, j) PANEL(2, j) PANEL(3, j)
#define WORDS(p) P > p ? i32_load((const int32_t *)(b + p * panel_stride)) : none
#define LINE const i32x16 q0 = WORDS(0), q1 = WORDS(1), q2 = WORDS(2), q3 = WORDS(3)
    int64_t left = k;
    for (; left >= 4; left -= 4, a += 4, b += 64) {
        LINE;
        ONE(0) ONE(1) ONE(2) ONE(3)
    }
    if (left) {
        LINE;
        ONE(0)
        if (left > 1) { ONE(1) }
        if (left > 2) { ONE(2) }
    }
#define PUT(r, p) f32_store(acc + r * CQ_TILE + 16 * p, c##r##p)
#define ROW(r) ROW_PANELS(PUT, r)
    EVERY_ROW(ROW)
#undef ROW
#undef PUT
#undef GET
#undef STEP
}

static void ISA(tile_f32)(const cq_operands *o, int rows, int panels, int64_t k, int add, float *c,
                          int64_t c_stride){CHOOSE(tile_f32, o, k, add, c, c_stride)}
#define FEW_ROWS(f, ...) \
    switch (rows) { \
    case 1: SHAPES(f, 1, __VA_ARGS__) break; \
    case 2: SHAPES(f, 2, __VA_ARGS__) break; \
    case 3: SHAPES(f, 3, __VA_ARGS__) break; \
    default: SHAPES(f, 4, __VA_ARGS__) \
    }
static void ISA(tile_f32_i8)(const float *a, int64_t a_stride, int rows, const int8_t *b, int64_t panel_stride,
                             int panels, int64_t k, const int32_t *zero_points, float *acc) {
    if (zero_points) {
        FEW_ROWS(tile_f32_i8, 1, a, a_stride, b, panel_stride, k, zero_points, acc)
    } else {
        FEW_ROWS(tile_f32_i8, 0, a, a_stride, b, panel_stride, k, zero_points, acc)
    }
}

static void ISA(widen)(const int8_t *panel, int64_t k, const int32_t *zero_points, float *out) {
    const i32x16 z = zero_points ? i32_load(zero_points) : i32_set(0);
    for (; k > 0; k -= 4, panel += 64, out += 64) {
        const i32x16 q = i32_load((const int32_t *)panel);
        f32_store(out, byte_of(1, q, 0, 1, z)), f32_store(out + 16, byte_of(1, q, 1, 1, z));
        f32_store(out + 32, byte_of(1, q, 2, 1, z)), f32_store(out + 48, byte_of(1, q, 3, 1, z));
    }
}

static double ISA(peak_f32)(int64_t repeats) {
    f32x16 x = f32_set(0.5f);
#define ZERO(r, p) f32x16 c##r##p = f32_set(0.0f);
    EVERY_ACC(ZERO)
    EVERY_ACC(USE)
    const int64_t steps = TILE_PANELS == 4 ? 24 : 6;
    for (int64_t n = 0; n < repeats * 1024; n++) {
        OPAQUE(x);
#define FMA1(r) c##r##0 = f32_fma(x, x, c##r##0);
#define FMA2(r) c##r##1 = f32_fma(x, x, c##r##1), c##r##2 = f32_fma(x, x, c##r##2), c##r##3 = f32_fma(x, x, c##r##3);
        EVERY_ROW(FMA1)
        if (TILE_PANELS == 4) { EVERY_ROW(FMA2) }
    }
    EVERY_ACC(USE)
#undef ZERO
    return (double)repeats * 1024 * (double)steps * 16 * 2;
}
