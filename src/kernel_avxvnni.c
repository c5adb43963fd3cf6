/* AVX-VNNI: vpdpbusd on 256 bits. Only products of int8 are this file's; all else is AVX2's. Cost a core on Zen 4 and
 * 5: vpdpbusd 2 a cycle, latency 4; on Intel 2 a cycle, latency 5. Compiled once for each ENCODING: vex for CPUs with
 * AVX-VNNI, and evex for those with AVX-512 VNNI and VL, which run the same instructions. */
#include <immintrin.h>
#include <string.h>

#include "kernel.h"

#define PASTE(name, encoding) name##_avxvnni_##encoding
#define NAMED(name, encoding) PASTE(name, encoding)
#define ISA(name) NAMED(name, ENCODING)
#define QUOTE(x) #x
#define QUOTED(x) QUOTE(x)
#define INLINE static inline __attribute__((always_inline))
#define TILE_PANELS 1
#define TILE_ROWS 6
#define FEW_PANELS 2

#include "lanes_avx2.h"

typedef __m256i a_lane; /* 4 uint8 of one row, in every lane */
typedef i32x16 b_lanes; /* 4 int8 of each of 16 columns */
INLINE a_lane a_load(const uint8_t *p) {
    int32_t x;
    memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
}
INLINE b_lanes b_load(const int8_t *p) { return i32_load((const int32_t *)p); }
/* One instruction of assembly, so that GCC keeps 12 accumulators in registers. */
INLINE __m256i dot8(__m256i acc, __m256i a, __m256i b) {
    __asm__("%{" QUOTED(ENCODING) "%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
    return acc;
}
INLINE i32x16 dot4(i32x16 acc, a_lane a, b_lanes b) { return (i32x16){dot8(acc.lo, a, b.lo), dot8(acc.hi, a, b.hi)}; }

INLINE void opaque_lanes(i32x16 *x) { __asm__ volatile("" : "+x"(x->lo), "+x"(x->hi)); }
INLINE void opaque_lane(a_lane *x) { __asm__ volatile("" : "+x"(*x)); }
#define OPAQUE(x) _Generic((x), i32x16: opaque_lanes, a_lane: opaque_lane)(&(x))

INLINE void ISA(store_i8)(const int32_t *acc, int64_t acc_stride, int rows, const cq_strip *s, int64_t row) {
    cq_kernels_avx2.store_i8(acc, acc_stride, rows, s, row);
}

#include "tiles_i8.h"

void ISA(cq_products)(cq_kernels *to) {
    to->name = "avxvnni", to->tile_i8 = ISA(tile_i8), to->strip_i8 = ISA(strip_i8), to->peak_i8 = ISA(peak_i8);
    to->clip = NULL, to->strip_clipped = NULL; /* nothing here saturates */
}
