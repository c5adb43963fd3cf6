/* Plain C: 16 lanes are an array. Runs on any CPU and is what the other kernels are compared with, bit for bit. */
#include <math.h>
#include <string.h>

#include "affine.h"
#include "kernel.h"

#define ISA(name) name##_scalar
#define ISA_NAME "scalar"
#define INLINE static inline __attribute__((always_inline))
#define TILE_PANELS 1
#define TILE_ROWS 4

typedef struct { float v[16]; } f32x16;
typedef struct { int32_t v[16]; } i32x16;

/* lanes(type, expression of i) */
#define LANES(type, expression) ({ type r_; for (int i = 0; i < 16; i++) r_.v[i] = (expression); r_; })

INLINE f32x16 f32_set(float x) { return LANES(f32x16, x); }
INLINE f32x16 f32_load(const float *p) { return LANES(f32x16, p[i]); }
INLINE f32x16 f32_load_n(const float *p, int64_t n) { return LANES(f32x16, i < n ? p[i] : 0.0f); }
INLINE void f32_store(float *p, f32x16 x) { memcpy(p, x.v, sizeof x.v); }
INLINE void f32_store_n(float *p, f32x16 x, int64_t n) { memcpy(p, x.v, (size_t)n * 4); }
INLINE f32x16 f32_add(f32x16 a, f32x16 b) { return LANES(f32x16, a.v[i] + b.v[i]); }
INLINE f32x16 f32_sub(f32x16 a, f32x16 b) { return LANES(f32x16, a.v[i] - b.v[i]); }
INLINE f32x16 f32_mul(f32x16 a, f32x16 b) { return LANES(f32x16, a.v[i] * b.v[i]); }
INLINE f32x16 f32_div(f32x16 a, f32x16 b) { return LANES(f32x16, a.v[i] / b.v[i]); }
INLINE f32x16 f32_sqrt(f32x16 a) { return LANES(f32x16, sqrtf(a.v[i])); }
INLINE f32x16 f32_fma(f32x16 a, f32x16 b, f32x16 c) { return LANES(f32x16, fmaf(a.v[i], b.v[i], c.v[i])); }
INLINE f32x16 f32_min(f32x16 a, f32x16 b) { return LANES(f32x16, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
INLINE f32x16 f32_max(f32x16 a, f32x16 b) { return LANES(f32x16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE int f32_any_not_below(f32x16 a, f32x16 b) { /* NaN too */
    for (int i = 0; i < 16; i++)
        if (!(a.v[i] < b.v[i])) return 1;
    return 0;
}
INLINE f32x16 f32_where_zero(f32x16 x, f32x16 yes, f32x16 no) { return LANES(f32x16, x.v[i] == 0.0f ? yes.v[i] : no.v[i]); }
INLINE f32x16 f32_abs(f32x16 a) { return LANES(f32x16, fabsf(a.v[i])); }
INLINE f32x16 f32_round(f32x16 a) { return LANES(f32x16, rintf(a.v[i])); }
INLINE f32x16 f32_fill_n(f32x16 a, int64_t n, float x) { return LANES(f32x16, i < n ? a.v[i] : x); }
INLINE f32x16 f32_keep_n(f32x16 a, int64_t n) { return f32_fill_n(a, n, 0.0f); }

INLINE i32x16 i32_set(int32_t x) { return LANES(i32x16, x); }
INLINE i32x16 i32_load(const int32_t *p) { return LANES(i32x16, p[i]); }
INLINE i32x16 i32_load_n(const int32_t *p, int64_t n) { return LANES(i32x16, i < n ? p[i] : 0); }
INLINE void i32_store(int32_t *p, i32x16 x) { memcpy(p, x.v, sizeof x.v); }
INLINE void i32_store_n(int32_t *p, i32x16 x, int64_t n) { memcpy(p, x.v, (size_t)n * 4); }
/* Unsigned inside: int32 sums wrap on the way to a result that fits, as vector instructions do. */
INLINE i32x16 i32_add(i32x16 a, i32x16 b) { return LANES(i32x16, (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i])); }
INLINE i32x16 i32_sub(i32x16 a, i32x16 b) { return LANES(i32x16, (int32_t)((uint32_t)a.v[i] - (uint32_t)b.v[i])); }
INLINE i32x16 i32_mul(i32x16 a, i32x16 b) { return LANES(i32x16, (int32_t)((uint32_t)a.v[i] * (uint32_t)b.v[i])); }
INLINE i32x16 i32_or(i32x16 a, i32x16 b) { return LANES(i32x16, a.v[i] | b.v[i]); }
INLINE i32x16 i32_xor(i32x16 a, i32x16 b) { return LANES(i32x16, a.v[i] ^ b.v[i]); }
INLINE i32x16 i32_and(i32x16 a, i32x16 b) { return LANES(i32x16, a.v[i] & b.v[i]); }
INLINE i32x16 i32_max(i32x16 a, i32x16 b) { return LANES(i32x16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE i32x16 i32_fill_n(i32x16 a, int64_t n, int32_t x) { return LANES(i32x16, i < n ? a.v[i] : x); }
INLINE i32x16 i32_shl(i32x16 a, int n) { return LANES(i32x16, (int32_t)((uint32_t)a.v[i] << n)); }
INLINE i32x16 i32_sar(i32x16 a, int n) { return LANES(i32x16, a.v[i] >> n); }

INLINE f32x16 f32_from_i32(i32x16 a) { return LANES(f32x16, (float)a.v[i]); }
INLINE i32x16 i32_from_f32(f32x16 a) { return LANES(i32x16, (int32_t)rintf(a.v[i])); } /* callers clamp to int32 first */
INLINE f32x16 f32_bits(i32x16 a) {
    f32x16 r;
    memcpy(&r, &a, sizeof r);
    return r;
}
INLINE i32x16 i32_bits(f32x16 a) {
    i32x16 r;
    memcpy(&r, &a, sizeof r);
    return r;
}
INLINE f32x16 f32_pick(const float *table, i32x16 n) { return LANES(f32x16, table[n.v[i] & 15]); }

INLINE i32x16 i32_load_u8(const uint8_t *p, int64_t n) { return LANES(i32x16, i < n ? p[i] : 0); }
INLINE i32x16 i32_load_s8(const uint8_t *p, int64_t n) { return LANES(i32x16, i < n ? (int8_t)p[i] : 0); }
INLINE void i32_store_8(uint8_t *p, i32x16 a, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = (uint8_t)a.v[i];
}

INLINE i32x16 saturate_8(i32x16 a, int is_signed) {
    const int32_t least = is_signed ? -128 : 0, most = least + 255;
    return LANES(i32x16, a.v[i] < least ? least : a.v[i] > most ? most : a.v[i]);
}
INLINE void i32_store_8x4(uint8_t *p, i32x16 a, i32x16 b, i32x16 c, i32x16 d, int is_signed) { /* saturates, as packing does */
    i32_store_8(p, saturate_8(a, is_signed), 16), i32_store_8(p + 16, saturate_8(b, is_signed), 16);
    i32_store_8(p + 32, saturate_8(c, is_signed), 16), i32_store_8(p + 48, saturate_8(d, is_signed), 16);
}

/* Across lanes: i with i + 8, then + 4, + 2, + 1, on every instruction set. */
INLINE float f32_sum(f32x16 a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
    return a.v[0];
}
INLINE float f32_max_across(f32x16 a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    return a.v[0];
}
INLINE int32_t i32_sum(i32x16 a) {
    uint32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += (uint32_t)a.v[i];
    return (int32_t)sum;
}
INLINE int32_t i32_max_across(i32x16 a) {
    int32_t best = a.v[0];
    for (int i = 1; i < 16; i++) best = a.v[i] > best ? a.v[i] : best;
    return best;
}

/* Four products and their sum in every lane. */
typedef struct { uint8_t v[4]; } a_lane;
typedef struct { const int8_t *p; } b_lanes;
INLINE a_lane a_load(const uint8_t *p) { return (a_lane){{p[0], p[1], p[2], p[3]}}; }
INLINE b_lanes b_load(const int8_t *p) { return (b_lanes){p}; }
INLINE i32x16 dot4(i32x16 acc, a_lane a, b_lanes b) {
    return LANES(i32x16, acc.v[i] + a.v[0] * b.p[4 * i] + a.v[1] * b.p[4 * i + 1] + a.v[2] * b.p[4 * i + 2] +
                             a.v[3] * b.p[4 * i + 3]);
}
#define i32_byte i32_shifted_byte
#define OPAQUE(x) __asm__ volatile("" : "+m"(x))

#include "rows.h"
#include "softmax.h"
#include "training.h"
#include "epilogue.h"
#include "tiles_i8.h"
#include "tiles_f32.h"
#include "table.h"
