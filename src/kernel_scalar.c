/* Plain C with GCC's vectors: 16 lanes are four vectors of 4, which every x86-64 CPU has. The other kernels are
 * compared with it, bit for bit. Hardly any machine runs it, so it is written to compile quickly and to be small:
 * functions that are BULKY exist once. */
#include <math.h>
#include <string.h>

#include "affine.h"
#include "kernel.h"

#define ISA(name) name##_scalar
#define ISA_NAME "scalar"
#define INLINE static inline __attribute__((always_inline))
#define BULKY static __attribute__((noinline))
/* A loop's block exists once too, for whole vectors and the rest. */
#define EACH_16(i, n, width, ...) \
    do { \
        for (int64_t i = 0; i < (n); i += 16) { \
            const int64_t width = (n) - i < 16 ? (n) - i : 16; \
            __VA_ARGS__ \
        } \
    } while (0)
#define SUM_4(i, n, ...) EACH_16(i, n, width, { const int slot = i < (n) / 64 * 64 ? i / 16 % 4 : 0; __VA_ARGS__ })
#define TILE_PANELS 1
#define TILE_ROWS 4

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef struct {
    f32x4 v[4];
} f32x16;
typedef struct {
    i32x4 v[4];
} i32x16;

/* The expression for each of the four vectors. GCC keeps them in registers because i is a constant. */
#define FOURS(type, expression) \
    ({ \
        type r_; \
        { enum { i = 0 }; r_.v[i] = (expression); } \
        { enum { i = 1 }; r_.v[i] = (expression); } \
        { enum { i = 2 }; r_.v[i] = (expression); } \
        { enum { i = 3 }; r_.v[i] = (expression); } \
        r_; \
    })

INLINE f32x4 set_f32(float x) { return (f32x4){x, x, x, x}; }
INLINE i32x4 set_i32(int32_t x) { return (i32x4){x, x, x, x}; }
INLINE i32x4 choose_i32(i32x4 mask, i32x4 yes, i32x4 no) { return (mask & yes) | (~mask & no); }
INLINE f32x4 choose_f32(i32x4 mask, f32x4 yes, f32x4 no) { return (f32x4)choose_i32(mask, (i32x4)yes, (i32x4)no); }
INLINE f32x4 min_f32(f32x4 a, f32x4 b) { return choose_f32(a < b, a, b); } /* b where either is NaN, as minps */
INLINE f32x4 max_f32(f32x4 a, f32x4 b) { return choose_f32(a > b, a, b); }
INLINE i32x4 max_i32(i32x4 a, i32x4 b) { return choose_i32(a > b, a, b); }
INLINE i32x4 first(int64_t n, int i) { return (i32x4){4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3} < set_i32((int32_t)n); }
INLINE f32x4 abs_f32(f32x4 x) { return (f32x4)((i32x4)x & set_i32(INT32_MAX)); }
/* rint: a float32 of 2^23 or more has no fraction, so adding 2^23 rounds. Larger numbers and NaN pass; -0 keeps its
 * sign. */
INLINE f32x4 round_f32(f32x4 x) {
    const f32x4 whole = set_f32(0x1p23f), size = abs_f32(x), rounded = size + whole - whole;
    return choose_f32(size < whole, (f32x4)((i32x4)rounded | ((i32x4)x & set_i32(INT32_MIN))), x);
}

INLINE f32x16 f32_set(float x) { return FOURS(f32x16, set_f32(x)); }
INLINE f32x16 f32_load(const float *p) {
    f32x16 r;
    memcpy(&r, p, sizeof r);
    return r;
}
BULKY f32x16 f32_load_n(const float *p, int64_t n) {
    float r[16] = {0};
    for (int64_t i = 0; i < n; i++) r[i] = p[i];
    return f32_load(r);
}
INLINE void f32_store(float *p, f32x16 x) { memcpy(p, &x, sizeof x); }
BULKY void f32_store_n(float *p, f32x16 x, int64_t n) { memcpy(p, &x, (size_t)n * 4); }
INLINE f32x16 f32_add(f32x16 a, f32x16 b) { return FOURS(f32x16, a.v[i] + b.v[i]); }
INLINE f32x16 f32_sub(f32x16 a, f32x16 b) { return FOURS(f32x16, a.v[i] - b.v[i]); }
INLINE f32x16 f32_mul(f32x16 a, f32x16 b) { return FOURS(f32x16, a.v[i] * b.v[i]); }
INLINE f32x16 f32_div(f32x16 a, f32x16 b) { return FOURS(f32x16, a.v[i] / b.v[i]); }
BULKY f32x16 f32_sqrt(f32x16 a) {
    float x[16];
    f32_store(x, a);
    for (int i = 0; i < 16; i++) x[i] = sqrtf(x[i]);
    return f32_load(x);
}

/* a * b + c, rounded once, as fmaf does it, but without the library and four at a time. float64 holds the product
 * exactly, and also the part that its sum with c loses (TwoSum; Knuth). A sum that lost something is rounded to odd: it
 * is cut off and its last bit is set (Boldo and Melquiond 2008), so that it never looks like the middle between two
 * float32 when it is rounded to one. With Inf or NaN the lost part is NaN, and the sum stays as it is. */
typedef double f64x2 __attribute__((vector_size(16)));
typedef double f64x4 __attribute__((vector_size(32)));
typedef int64_t i64x2 __attribute__((vector_size(16)));
INLINE f64x2 fma_odd(f64x2 a, f64x2 b, f64x2 c) {
    const f64x2 product = a * b, sum = product + c, added = sum - product;
    const f64x2 lost = (product - (sum - added)) + (c - added), side = lost * sum, nothing = {0};
    const i64x2 beyond =
        side<nothing, before = side> nothing; /* the sum lies beyond or before the exact value, seen from 0 */
    return (f64x2)(((i64x2)sum + beyond) | ((beyond | before) & (i64x2){1, 1}));
}
typedef struct {
    f64x2 low, high;
} f64_halves;
INLINE f64_halves widened(f32x4 x) {
    const f64x4 all = __builtin_convertvector(x, f64x4);
    f64_halves r;
    memcpy(&r, &all, sizeof r);
    return r;
}
BULKY f32x4 fma_f32(f32x4 a, f32x4 b, f32x4 c) {
    const f64_halves x = widened(a), y = widened(b), z = widened(c);
    const f64_halves r = {fma_odd(x.low, y.low, z.low), fma_odd(x.high, y.high, z.high)};
    f64x4 all;
    memcpy(&all, &r, sizeof all);
    return __builtin_convertvector(all, f32x4);
}
INLINE f32x16 f32_fma(f32x16 a, f32x16 b, f32x16 c) { return FOURS(f32x16, fma_f32(a.v[i], b.v[i], c.v[i])); }

INLINE f32x16 f32_min(f32x16 a, f32x16 b) { return FOURS(f32x16, min_f32(a.v[i], b.v[i])); }
INLINE f32x16 f32_max(f32x16 a, f32x16 b) { return FOURS(f32x16, max_f32(a.v[i], b.v[i])); }
INLINE int any(i32x4 mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }
INLINE int f32_any_not_below(f32x16 a, f32x16 b) { /* NaN too */
    return any(~((a.v[0] < b.v[0]) & (a.v[1] < b.v[1]) & (a.v[2] < b.v[2]) & (a.v[3] < b.v[3])));
}
INLINE f32x16 f32_where_zero(f32x16 x, f32x16 yes, f32x16 no) {
    return FOURS(f32x16, choose_f32(x.v[i] == set_f32(0.0f), yes.v[i], no.v[i]));
}
INLINE f32x16 f32_abs(f32x16 a) { return FOURS(f32x16, abs_f32(a.v[i])); }
/* lane i ^ 1, 2, 4 or 8 */
INLINE f32x16 f32_swap_1(f32x16 a) { return FOURS(f32x16, __builtin_shuffle(a.v[i], (i32x4){1, 0, 3, 2})); }
INLINE f32x16 f32_swap_2(f32x16 a) { return FOURS(f32x16, __builtin_shuffle(a.v[i], (i32x4){2, 3, 0, 1})); }
INLINE f32x16 f32_swap_4(f32x16 a) { return FOURS(f32x16, a.v[i ^ 1]); }
INLINE f32x16 f32_swap_8(f32x16 a) { return FOURS(f32x16, a.v[i ^ 2]); }
INLINE f32x16 f32_round(f32x16 a) { return FOURS(f32x16, round_f32(a.v[i])); }
INLINE f32x16 f32_fill_n(f32x16 a, int64_t n, float x) {
    return FOURS(f32x16, choose_f32(first(n, i), a.v[i], set_f32(x)));
}
INLINE f32x16 f32_keep_n(f32x16 a, int64_t n) { return f32_fill_n(a, n, 0.0f); }

INLINE i32x16 i32_set(int32_t x) { return FOURS(i32x16, set_i32(x)); }
INLINE f32x16 f32_bits(i32x16 a) { return FOURS(f32x16, (f32x4)a.v[i]); }
INLINE i32x16 i32_bits(f32x16 a) { return FOURS(i32x16, (i32x4)a.v[i]); }
INLINE i32x16 i32_load(const int32_t *p) {
    i32x16 r;
    memcpy(&r, p, sizeof r);
    return r;
}
BULKY i32x16 i32_load_n(const int32_t *p, int64_t n) {
    int32_t r[16] = {0};
    for (int64_t i = 0; i < n; i++) r[i] = p[i];
    return i32_load(r);
}
INLINE void i32_store(int32_t *p, i32x16 x) { memcpy(p, &x, sizeof x); }
BULKY void i32_store_n(int32_t *p, i32x16 x, int64_t n) { memcpy(p, &x, (size_t)n * 4); }
/* Unsigned inside: int32 sums wrap on the way to a result that fits, as vector instructions do. */
INLINE i32x16 i32_add(i32x16 a, i32x16 b) { return FOURS(i32x16, (i32x4)((u32x4)a.v[i] + (u32x4)b.v[i])); }
INLINE i32x16 i32_sub(i32x16 a, i32x16 b) { return FOURS(i32x16, (i32x4)((u32x4)a.v[i] - (u32x4)b.v[i])); }
INLINE i32x16 i32_mul(i32x16 a, i32x16 b) { return FOURS(i32x16, (i32x4)((u32x4)a.v[i] * (u32x4)b.v[i])); }
INLINE i32x16 i32_or(i32x16 a, i32x16 b) { return FOURS(i32x16, a.v[i] | b.v[i]); }
INLINE i32x16 i32_xor(i32x16 a, i32x16 b) { return FOURS(i32x16, a.v[i] ^ b.v[i]); }
INLINE i32x16 i32_and(i32x16 a, i32x16 b) { return FOURS(i32x16, a.v[i] & b.v[i]); }
INLINE i32x16 i32_max(i32x16 a, i32x16 b) { return FOURS(i32x16, max_i32(a.v[i], b.v[i])); }
INLINE i32x16 i32_fill_n(i32x16 a, int64_t n, int32_t x) {
    return FOURS(i32x16, choose_i32(first(n, i), a.v[i], set_i32(x)));
}
INLINE i32x16 i32_shl(i32x16 a, int n) { return FOURS(i32x16, (i32x4)((u32x4)a.v[i] << n)); }
INLINE i32x16 i32_sar(i32x16 a, int n) { return FOURS(i32x16, a.v[i] >> n); }

INLINE f32x16 f32_from_i32(i32x16 a) { return FOURS(f32x16, __builtin_convertvector(a.v[i], f32x4)); }
INLINE i32x16 i32_from_f32(f32x16 a) { /* callers clamp to int32 first */
    return FOURS(i32x16, __builtin_convertvector(round_f32(a.v[i]), i32x4));
}
BULKY f32x16 f32_pick(const float *table, i32x16 n) {
    f32x16 r;
    for (int i = 0; i < 16; i++) ((float *)&r)[i] = table[((int32_t *)&n)[i] & 15];
    return r;
}

BULKY i32x16 i32_load_u8(const uint8_t *p, int64_t n) {
    int32_t r[16] = {0};
    for (int64_t i = 0; i < n; i++) r[i] = p[i];
    return i32_load(r);
}
BULKY i32x16 i32_load_s8(const uint8_t *p, int64_t n) {
    int32_t r[16] = {0};
    for (int64_t i = 0; i < n; i++) r[i] = (int8_t)p[i];
    return i32_load(r);
}
BULKY void i32_store_8(uint8_t *p, i32x16 a, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = (uint8_t)((int32_t *)&a)[i];
}
BULKY void i32_store_8x4(uint8_t *p, i32x16 a, i32x16 b, i32x16 c, i32x16 d,
                         int is_signed) { /* saturates, as packing does */
    const int32_t least = is_signed ? -128 : 0, most = least + 255;
    const i32x16 all[4] = {a, b, c, d};
    for (int i = 0; i < 64; i++) {
        const int32_t x = ((const int32_t *)all)[i];
        p[i] = (uint8_t)(x < least ? least : x > most ? most : x);
    }
}

/* Across lanes: i with i + 8, then + 4, + 2, + 1, on every instruction set. */
INLINE float f32_sum(f32x16 a) {
    const f32x4 four = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}
INLINE float f32_max_across(f32x16 a) {
    const f32x4 four = max_f32(max_f32(a.v[0], a.v[2]), max_f32(a.v[1], a.v[3]));
    const float even = four[0] > four[2] ? four[0] : four[2], odd = four[1] > four[3] ? four[1] : four[3];
    return even > odd ? even : odd;
}
INLINE int32_t i32_sum(i32x16 a) {
    const u32x4 four = (u32x4)a.v[0] + (u32x4)a.v[1] + (u32x4)a.v[2] + (u32x4)a.v[3];
    return (int32_t)(four[0] + four[1] + four[2] + four[3]);
}
INLINE int32_t i32_max_across(i32x16 a) {
    const i32x4 four = max_i32(max_i32(a.v[0], a.v[1]), max_i32(a.v[2], a.v[3]));
    const int32_t even = four[0] > four[2] ? four[0] : four[2], odd = four[1] > four[3] ? four[1] : four[3];
    return even > odd ? even : odd;
}

/* Four products and their sum in every lane: bytes 0 and 2, then 1 and 3, as int16, which holds a product of uint8 and
 * int8. */
typedef int16_t i16x8 __attribute__((vector_size(16)));
typedef struct {
    i16x8 even, odd;
} a_lane;
typedef struct {
    i16x8 even[4], odd[4];
} b_lanes;
INLINE a_lane a_load(const uint8_t *p) {
    int32_t x;
    memcpy(&x, p, 4);
    const i32x4 all = set_i32(x);
    return (a_lane){(i16x8)(all & set_i32(0xff00ff)), (i16x8)(((u32x4)all >> 8) & (u32x4)set_i32(0xff00ff))};
}
INLINE b_lanes b_load(const int8_t *p) {
    i16x8 all[4];
    memcpy(all, p, sizeof all);
    return (b_lanes){{all[0] << 8 >> 8, all[1] << 8 >> 8, all[2] << 8 >> 8, all[3] << 8 >> 8},
                     {all[0] >> 8, all[1] >> 8, all[2] >> 8, all[3] >> 8}};
}
INLINE i32x4 both(i16x8 products) { return ((i32x4)products << 16 >> 16) + ((i32x4)products >> 16); }
INLINE i32x16 dot4(i32x16 acc, a_lane a, b_lanes b) {
    return FOURS(i32x16, acc.v[i] + both(a.even * b.even[i]) + both(a.odd * b.odd[i]));
}
#define i32_byte i32_shifted_byte
#define OPAQUE(x) __asm__ volatile("" : "+m"(x))

#include "rows.h"
#include "hadamard.h"
#include "softmax.h"
#include "training.h"
#include "epilogue.h"
#include "tiles_i8.h"
#include "tiles_f32.h"
#include "table.h"
