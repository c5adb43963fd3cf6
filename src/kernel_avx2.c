/* AVX2 and FMA: 16 lanes are two registers. Integer products are of clipped codes (vpmaddubsw, tiles_clipped.h), or
 * widen to int16 (vpmaddwd): no sum ever saturates. Cost on Zen 4 per core: either 2 a cycle, latency 3; fma 2, latency
 * 4. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "affine.h"
#include "kernel.h"

#define ISA(name) name##_avx2
#define ISA_NAME "avx2"
#define INLINE static inline __attribute__((always_inline))
#define BULKY INLINE
#define TILE_PANELS 1
#define TILE_ROWS 4
#define WIDE_STRIPS
#define CLIPPED

#include "lanes_avx2.h"

/* Four products and their sum in every lane, as two pairs of int16: bytes 0 and 2 of each lane, then bytes 1 and 3. */
typedef struct {
    __m256i even, odd;
} a_lane;
typedef struct {
    __m256i lo_even, lo_odd, hi_even, hi_odd;
} b_lanes;
INLINE a_lane a_load(const uint8_t *p) {
    int32_t x;
    memcpy(&x, p, 4);
    const __m256i all = _mm256_set1_epi32(x);
    return (a_lane){_mm256_and_si256(all, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(all, 8)};
}
INLINE b_lanes b_load(const int8_t *p) {
    const __m256i lo = _mm256_loadu_si256((const __m256i *)p), hi = _mm256_loadu_si256((const __m256i *)(p + 32));
    return (b_lanes){_mm256_srai_epi16(_mm256_slli_epi16(lo, 8), 8), _mm256_srai_epi16(lo, 8),
                     _mm256_srai_epi16(_mm256_slli_epi16(hi, 8), 8), _mm256_srai_epi16(hi, 8)};
}
INLINE i32x16 dot4(i32x16 acc, a_lane a, b_lanes b) {
    acc.lo = _mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.even, b.lo_even));
    acc.hi = _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.even, b.hi_even));
    acc.lo = _mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.odd, b.lo_odd));
    acc.hi = _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.odd, b.hi_odd));
    return acc;
}
#define i32_byte i32_shifted_byte
#define OPAQUE(x) __asm__ volatile("" : "+x"((x).lo), "+x"((x).hi))

#include "rows.h"
#include "hadamard.h"
#include "softmax.h"
#include "training.h"
#include "epilogue.h"
#include "tiles_i16.h"
#include "tiles_i8.h"
#include "tiles_clipped.h"
#include "clip.h"
#include "tiles_f32.h"
#include "table.h"
