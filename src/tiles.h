/* Micro-kernels: a tile of up to 6 rows x 4 panels of 16 columns, the whole K in named accumulators (an array of them would be
 * spilled). Included by kernel_*.c, which define the lanes; a set whose tile is one panel wide compiles only that width. */

#define ROW_PANELS(STEP, r) \
    if (R > r) { STEP(r, 0); if (P > 1) STEP(r, 1); if (P > 2) STEP(r, 2); if (P > 3) STEP(r, 3); }
#define EVERY_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define EVERY_ACC(X) \
    X(0, 0) X(0, 1) X(0, 2) X(0, 3) X(1, 0) X(1, 1) X(1, 2) X(1, 3) X(2, 0) X(2, 1) X(2, 2) X(2, 3) \
    X(3, 0) X(3, 1) X(3, 2) X(3, 3) X(4, 0) X(4, 1) X(4, 2) X(4, 3) X(5, 0) X(5, 1) X(5, 2) X(5, 3)
#define AT(r, p) (r * CQ_TILE + 16 * p)

INLINE void tile_i8(const int R, const int P, const uint8_t *a, int64_t a_stride, const int8_t *b, int64_t panel_stride,
                    int64_t groups, int32_t *acc) {
#define ZERO(r, p) i32x16 c##r##p = i32_set(0);
    EVERY_ACC(ZERO)
    const int8_t *end = b + groups * 64;
    for (; b < end; b += 64, a += 4) {
        b_lanes b0 = b_load(b), b1, b2, b3;
        if (P > 1) b1 = b_load(b + panel_stride);
        if (P > 2) b2 = b_load(b + 2 * panel_stride);
        if (P > 3) b3 = b_load(b + 3 * panel_stride);
#define DOT(r, p) c##r##p = dot4(c##r##p, x, b##p)
#define ROW(r) if (R > r) { const a_lane x = a_load(a + r * a_stride); ROW_PANELS(DOT, r) }
        EVERY_ROW(ROW)
#undef ROW
    }
#define PUT(r, p) i32_store(acc + AT(r, p), c##r##p)
#define ROW(r) ROW_PANELS(PUT, r)
    EVERY_ROW(ROW)
#undef ROW
#undef PUT
#undef ZERO
}

INLINE void tile_f32(const int R, const int P, const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t k,
                     int add, float *c, int64_t c_stride) {
#define GET(r, p) f32x16 c##r##p = R > r && P > p && add ? f32_load(c + r * c_stride + 16 * p) : f32_set(0.0f);
    EVERY_ACC(GET)
    for (const float *end = a + k; a < end; a++, b += b_stride) {
        f32x16 b0 = f32_load(b), b1, b2, b3;
        if (P > 1) b1 = f32_load(b + 16);
        if (P > 2) b2 = f32_load(b + 32);
        if (P > 3) b3 = f32_load(b + 48);
#define FMA(r, p) c##r##p = f32_fma(x, b##p, c##r##p)
#define ROW(r) if (R > r) { const f32x16 x = f32_set(a[r * a_stride]); ROW_PANELS(FMA, r) }
        EVERY_ROW(ROW)
#undef ROW
    }
#define PUT(r, p) f32_store(c + r * c_stride + 16 * p, c##r##p)
#define ROW(r) ROW_PANELS(PUT, r)
    EVERY_ROW(ROW)
#undef ROW
#undef PUT
#undef GET
}

/* Byte j of every lane, as float32, minus the zero point. */
#define BYTE(w, j, z) f32_from_i32(i32_sub(j == 3 ? i32_sar(w, 24) : i32_sar(i32_shl(w, 24 - 8 * j), 24), z))

INLINE void tile_f32_i8(const int R, const int P, const float *a, int64_t a_stride, const int8_t *b, int64_t panel_stride,
                        int64_t k, const int32_t *zero_points, float *acc) {
#define GET(r, p) f32x16 c##r##p = R > r && P > p ? f32_load(acc + AT(r, p)) : f32_set(0.0f);
    EVERY_ACC(GET)
    const i32x16 none = i32_set(0);
    const i32x16 z0 = zero_points ? i32_load(zero_points) : none, z1 = P > 1 && zero_points ? i32_load(zero_points + 16) : none;
    const i32x16 z2 = P > 2 && zero_points ? i32_load(zero_points + 32) : none;
    const i32x16 z3 = P > 3 && zero_points ? i32_load(zero_points + 48) : none;
#define STEP(r, p) \
    if (R > r) c##r##p = f32_fma(f32_set(a[r * a_stride + j]), w, c##r##p);
#define PANEL(p) \
    if (P > p) { \
        const f32x16 w = BYTE(q##p, j, z##p); \
        STEP(0, p) STEP(1, p) STEP(2, p) STEP(3, p) STEP(4, p) STEP(5, p) \
    }
#define ONE(J) { enum { j = J }; PANEL(0) PANEL(1) PANEL(2) PANEL(3) }
#define WORDS(p) P > p ? i32_load((const int32_t *)(b + p * panel_stride)) : none
    int64_t left = k;
    for (; left >= 4; left -= 4, a += 4, b += 64) {
        const i32x16 q0 = WORDS(0), q1 = WORDS(1), q2 = WORDS(2), q3 = WORDS(3);
        ONE(0) ONE(1) ONE(2) ONE(3)
    }
    if (left) {
        const i32x16 q0 = WORDS(0), q1 = WORDS(1), q2 = WORDS(2), q3 = WORDS(3);
        ONE(0)
        if (left > 1) ONE(1)
        if (left > 2) ONE(2)
    }
#define PUT(r, p) f32_store(acc + AT(r, p), c##r##p)
#define ROW(r) ROW_PANELS(PUT, r)
    EVERY_ROW(ROW)
#undef ROW
#undef PUT
#undef GET
#undef STEP
}

/* A constant shape for each case, so that the compiler sees exactly its accumulators. */
#if TILE_PANELS == 4
#define SHAPES(f, R, ...) \
    switch (panels) { \
    case 1: f(R, 1, __VA_ARGS__); break; \
    case 2: f(R, 2, __VA_ARGS__); break; \
    case 3: f(R, 3, __VA_ARGS__); break; \
    default: f(R, 4, __VA_ARGS__); \
    }
#else
#define SHAPES(f, R, ...) (void)panels; f(R, 1, __VA_ARGS__);
#endif
#define CHOOSE(f, ...) \
    switch (rows) { \
    case 1: SHAPES(f, 1, __VA_ARGS__) break; \
    case 2: SHAPES(f, 2, __VA_ARGS__) break; \
    case 3: SHAPES(f, 3, __VA_ARGS__) break; \
    case 4: SHAPES(f, 4, __VA_ARGS__) break; \
    case 5: SHAPES(f, 5, __VA_ARGS__) break; \
    default: SHAPES(f, 6, __VA_ARGS__) \
    }

static void ISA(tile_i8)(const uint8_t *a, int64_t a_stride, int rows, const int8_t *b, int64_t panel_stride, int panels,
                         int64_t groups, int32_t *acc) {
    CHOOSE(tile_i8, a, a_stride, b, panel_stride, groups, acc)
}

static void ISA(tile_f32)(const float *a, int64_t a_stride, int rows, const float *b, int64_t b_stride, int panels, int64_t k,
                          int add, float *c, int64_t c_stride) {
    CHOOSE(tile_f32, a, a_stride, b, b_stride, k, add, c, c_stride)
}

static void ISA(tile_f32_i8)(const float *a, int64_t a_stride, int rows, const int8_t *b, int64_t panel_stride, int panels,
                             int64_t k, const int32_t *zero_points, float *acc) {
    CHOOSE(tile_f32_i8, a, a_stride, b, panel_stride, k, zero_points, acc)
}

static void ISA(widen)(const int8_t *panel, int64_t k, const int32_t *zero_points, float *out) {
    const i32x16 z = zero_points ? i32_load(zero_points) : i32_set(0);
    for (; k > 0; k -= 4, panel += 64, out += 4 * CQ_TILE) {
        const i32x16 q = i32_load((const int32_t *)panel);
        f32_store(out, BYTE(q, 0, z)), f32_store(out + CQ_TILE, BYTE(q, 1, z));
        f32_store(out + 2 * CQ_TILE, BYTE(q, 2, z)), f32_store(out + 3 * CQ_TILE, BYTE(q, 3, z));
    }
}

#define USE(r, p) OPAQUE(c##r##p);

static double ISA(peak_i8)(int64_t repeats) {
    const uint8_t ones[4] = {1, 1, 1, 1};
    const int8_t b_bytes[64] = {1};
    a_lane x = a_load(ones);
    b_lanes b0 = b_load(b_bytes);
#define ZERO(r, p) i32x16 c##r##p = i32_set(0);
    EVERY_ACC(ZERO)
    EVERY_ACC(USE) /* opaque, or the compiler would see 24 equal sums and make one */
    const int64_t steps = TILE_PANELS == 4 ? 24 : 4;
    for (int64_t n = 0; n < repeats * 1024; n++) {
        OPAQUE(x);
#define DOT1(r) c##r##0 = dot4(c##r##0, x, b0);
#define DOT2(r) c##r##1 = dot4(c##r##1, x, b0), c##r##2 = dot4(c##r##2, x, b0), c##r##3 = dot4(c##r##3, x, b0);
        DOT1(0) DOT1(1) DOT1(2) DOT1(3)
        if (TILE_PANELS == 4) { DOT1(4) DOT1(5) EVERY_ROW(DOT2) }
    }
    EVERY_ACC(USE)
#undef ZERO
    return (double)repeats * 1024 * (double)steps * 16 * 4 * 2;
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
