/* AVX-512 VNNI: 16 lanes are one register. Cost a core on Zen 4 / 5: vpdpbusd 1 / 2 a cycle, latency 4; fma likewise.
 * */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "affine.h"
#include "kernel.h"

#define ISA(name) name##_avx512vnni
#define ISA_NAME "avx512vnni"
#define TILE_PANELS 4
#define TILE_ROWS 6
#define INLINE static inline __attribute__((always_inline))
#define BULKY INLINE

typedef __m512 f32x16;
typedef __m512i i32x16;

INLINE __mmask16 first(int64_t n) { return (__mmask16)((1u << n) - 1); } /* n in 1..16 */

INLINE f32x16 f32_set(float x) { return _mm512_set1_ps(x); }
INLINE f32x16 f32_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE f32x16 f32_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
INLINE void f32_store(float *p, f32x16 x) { _mm512_storeu_ps(p, x); }
INLINE void f32_store_n(float *p, f32x16 x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }
INLINE f32x16 f32_add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
INLINE f32x16 f32_sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
INLINE f32x16 f32_mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
INLINE f32x16 f32_div(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
INLINE f32x16 f32_sqrt(f32x16 a) { return _mm512_sqrt_ps(a); }
INLINE f32x16 f32_fma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE f32x16 f32_min(f32x16 a, f32x16 b) { return _mm512_min_ps(a, b); } /* a < b ? a : b */
INLINE f32x16 f32_max(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); } /* a > b ? a : b */
INLINE int f32_any_not_below(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ) != 0; } /* NaN too */
INLINE f32x16 f32_where_zero(f32x16 x, f32x16 yes, f32x16 no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_EQ_OQ), yes);
}
INLINE f32x16 f32_abs(f32x16 a) { return _mm512_abs_ps(a); }
/* lane i ^ 1, 2, 4 or 8 */
INLINE f32x16 f32_swap_1(f32x16 a) { return _mm512_permute_ps(a, 0xb1); }
INLINE f32x16 f32_swap_2(f32x16 a) { return _mm512_permute_ps(a, 0x4e); }
INLINE f32x16 f32_swap_4(f32x16 a) { return _mm512_shuffle_f32x4(a, a, 0xb1); }
INLINE f32x16 f32_swap_8(f32x16 a) { return _mm512_shuffle_f32x4(a, a, 0x4e); }
INLINE f32x16 f32_round(f32x16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE f32x16 f32_keep_n(f32x16 a, int64_t n) { return _mm512_maskz_mov_ps(first(n), a); }
INLINE f32x16 f32_fill_n(f32x16 a, int64_t n, float x) { return _mm512_mask_mov_ps(_mm512_set1_ps(x), first(n), a); }

INLINE i32x16 i32_set(int32_t x) { return _mm512_set1_epi32(x); }
INLINE i32x16 i32_load(const int32_t *p) { return _mm512_loadu_si512(p); }
INLINE i32x16 i32_load_n(const int32_t *p, int64_t n) { return _mm512_maskz_loadu_epi32(first(n), p); }
INLINE void i32_store(int32_t *p, i32x16 x) { _mm512_storeu_si512(p, x); }
INLINE void i32_store_n(int32_t *p, i32x16 x, int64_t n) { _mm512_mask_storeu_epi32(p, first(n), x); }
INLINE i32x16 i32_add(i32x16 a, i32x16 b) { return _mm512_add_epi32(a, b); }
INLINE i32x16 i32_sub(i32x16 a, i32x16 b) { return _mm512_sub_epi32(a, b); }
INLINE i32x16 i32_mul(i32x16 a, i32x16 b) { return _mm512_mullo_epi32(a, b); }
INLINE i32x16 i32_or(i32x16 a, i32x16 b) { return _mm512_or_si512(a, b); }
INLINE i32x16 i32_xor(i32x16 a, i32x16 b) { return _mm512_xor_si512(a, b); }
INLINE i32x16 i32_and(i32x16 a, i32x16 b) { return _mm512_and_si512(a, b); }
INLINE i32x16 i32_max(i32x16 a, i32x16 b) { return _mm512_max_epi32(a, b); }
INLINE i32x16 i32_fill_n(i32x16 a, int64_t n, int32_t x) {
    return _mm512_mask_mov_epi32(_mm512_set1_epi32(x), first(n), a);
}
#define i32_shl(a, n) _mm512_slli_epi32(a, n)
#define i32_sar(a, n) _mm512_srai_epi32(a, n)

INLINE f32x16 f32_from_i32(i32x16 a) { return _mm512_cvtepi32_ps(a); }
INLINE i32x16 i32_from_f32(f32x16 a) { return _mm512_cvtps_epi32(a); }
INLINE f32x16 f32_bits(i32x16 a) { return _mm512_castsi512_ps(a); }
INLINE i32x16 i32_bits(f32x16 a) { return _mm512_castps_si512(a); }
INLINE f32x16 f32_pick(const float *table, i32x16 i) {
    return _mm512_permutexvar_ps(i, f32_load(table));
} /* by i's low 4 bits */

INLINE i32x16 i32_load_u8(const uint8_t *p, int64_t n) {
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p));
}
INLINE i32x16 i32_load_s8(const uint8_t *p, int64_t n) {
    return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p));
}
INLINE void i32_store_8(uint8_t *p, i32x16 a, int64_t n) { _mm512_mask_cvtepi32_storeu_epi8(p, first(n), a); }

/* 64 codes of four vectors, each in range. Packing works inside quarters of a register, which are put in order at the
 * end. */
INLINE void i32_store_8x4(uint8_t *p, i32x16 a, i32x16 b, i32x16 c, i32x16 d, int is_signed) {
    const __m512i ab = _mm512_packs_epi32(a, b), cd = _mm512_packs_epi32(c, d);
    const __m512i all = is_signed ? _mm512_packs_epi16(ab, cd) : _mm512_packus_epi16(ab, cd);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, all));
}

/* Across lanes: i with i + 8, then + 4, + 2, + 1, on every instruction set. */
INLINE float f32_sum(f32x16 a) {
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
INLINE float f32_max_across(f32x16 a) {
    const __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}
INLINE int32_t i32_sum(i32x16 a) { return _mm512_reduce_add_epi32(a); }
INLINE int32_t i32_max_across(i32x16 a) { return _mm512_reduce_max_epi32(a); }

/* Four products and their sum in every lane. One instruction of assembly, so that GCC keeps 24 accumulators in
 * registers. */
typedef __m512i a_lane;  /* 4 uint8 of one row, in every lane */
typedef __m512i b_lanes; /* 4 int8 of each of 16 columns */
INLINE a_lane a_load(const uint8_t *p) {
    int32_t x;
    memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}
INLINE b_lanes b_load(const int8_t *p) { return _mm512_loadu_si512(p); }
INLINE i32x16 dot4(i32x16 acc, a_lane a, b_lanes b) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}

INLINE i32x16 i32_shifted_byte(i32x16 w, const int j);
/* Byte j of every lane, its sign extended. Shifts run on one pair of pipes: half of the bytes are products with 1, 0,
 * 0, 0, where the other pair has time for it. */
INLINE i32x16 i32_byte(i32x16 w, const int j) {
    return j < 2 ? dot4(i32_set(0), i32_set(1 << 8 * j), w) : i32_shifted_byte(w, j);
}
#define OPAQUE(x) __asm__ volatile("" : "+v"(x))

#include "rows.h"
#include "hadamard.h"
#include "softmax.h"
#include "training.h"
#include "epilogue.h"
#include "tiles_i8.h"
#include "tiles_f32.h"
#include "table.h"
