/* Integer products for an instruction set that multiplies int16 pairs: A's rows and the weight's panels are widened
 * into scratch, a piece of K at a time, so that the inner loop holds nothing but loads, products and sums. Included by
 * kernel_avx2.c. */
#include "tiles.h"

enum {
    WIDE_ROWS = 48,
    WIDE_GROUPS = 64,
    WIDE_FROM = 9
}; /* rows and groups of 4 in a piece; fewer rows do not pay for it */

/* Bytes 0 and 2, then 1 and 3 of each group, as int16. */
INLINE void widen_row(const uint8_t *a, int64_t groups, int16_t *out) {
    const __m128i low = _mm_set1_epi16(0xff);
    int64_t g = 0;
    for (; g + 4 <= groups; g += 4, a += 16, out += 16) {
        const __m128i all = _mm_loadu_si128((const __m128i *)a), even = _mm_and_si128(all, low),
                      odd = _mm_srli_epi16(all, 8);
        _mm_store_si128((__m128i *)out, _mm_unpacklo_epi32(even, odd));
        _mm_store_si128((__m128i *)(out + 8), _mm_unpackhi_epi32(even, odd));
    }
    for (; g < groups; g++, a += 4, out += 4) out[0] = a[0], out[1] = a[2], out[2] = a[1], out[3] = a[3];
}

INLINE void widen_panel(const int8_t *b, int64_t groups, int16_t *out) {
    for (int64_t g = 0; g < groups; g++, b += 64, out += 64) {
        const b_lanes lanes = b_load(b);
        _mm256_store_si256((__m256i *)out, lanes.lo_even), _mm256_store_si256((__m256i *)(out + 16), lanes.hi_even);
        _mm256_store_si256((__m256i *)(out + 32), lanes.lo_odd),
            _mm256_store_si256((__m256i *)(out + 48), lanes.hi_odd);
    }
}

/* acc (R, 16) += a (R, groups) x panel. The columns' halves are c and d. Product and sum are one piece of assembly: GCC
 * would reassociate the sums and spill some of them. 12 sums, 2 halves of a panel's row, a pair and a product are all
 * 16 registers. */
INLINE void tile_i16(const int R, const int16_t *a, int64_t a_stride, const int16_t *b, int64_t groups, int32_t *acc,
                     int64_t acc_stride) {
#define GET(r) \
    __m256i c##r = R > r ? _mm256_load_si256((const __m256i *)(acc + r * acc_stride)) : _mm256_setzero_si256(); \
    __m256i d##r = R > r ? _mm256_load_si256((const __m256i *)(acc + r * acc_stride + 8)) : _mm256_setzero_si256();
    EVERY_ROW(GET)
    for (const int16_t *end = b + 64 * groups; b < end; b += 32, a += 2) {
        const __m256i lo = _mm256_load_si256((const __m256i *)b), hi = _mm256_load_si256((const __m256i *)(b + 16));
#define ADD(sum, half) \
    __asm__("vpmaddwd %3, %2, %0\n\tvpaddd %0, %1, %1" : "=&x"(product), "+x"(sum) : "x"(pair), "x"(half))
#define TWO(r) \
    if (R > r) { \
        int32_t two; \
        __m256i product; \
        memcpy(&two, a + r * a_stride, 4); \
        const __m256i pair = _mm256_set1_epi32(two); \
        ADD(c##r, lo); \
        ADD(d##r, hi); \
    }
        EVERY_ROW(TWO)
    }
#define PUT(r) \
    if (R > r) { \
        _mm256_store_si256((__m256i *)(acc + r * acc_stride), c##r); \
        _mm256_store_si256((__m256i *)(acc + r * acc_stride + 8), d##r); \
    }
    EVERY_ROW(PUT)
#undef PUT
#undef TWO
#undef ADD
#undef GET
}

static void tiles_i16(int rows, const int16_t *a, int64_t a_stride, const int16_t *b, int64_t groups, int32_t *acc) {
    switch (rows) {
    case 1: tile_i16(1, a, a_stride, b, groups, acc, CQ_TILE); break;
    case 2: tile_i16(2, a, a_stride, b, groups, acc, CQ_TILE); break;
    case 3: tile_i16(3, a, a_stride, b, groups, acc, CQ_TILE); break;
    case 4: tile_i16(4, a, a_stride, b, groups, acc, CQ_TILE); break;
    case 5: tile_i16(5, a, a_stride, b, groups, acc, CQ_TILE); break;
    default: tile_i16(6, a, a_stride, b, groups, acc, CQ_TILE);
    }
}

static void strip_wide(const uint8_t *a, int64_t a_stride, const int8_t *b, int64_t panel_stride, int64_t groups,
                       const cq_strip *s) {
    _Alignas(64) int32_t acc[WIDE_ROWS * CQ_TILE];
    _Alignas(64) int16_t wide_a[WIDE_ROWS * WIDE_GROUPS * 4], wide_b[WIDE_GROUPS * 64];
    const int panels = (s->columns + CQ_PANEL - 1) / CQ_PANEL;
    for (int64_t row = 0; row < s->rows; row += WIDE_ROWS) {
        const int rows = (int)(s->rows - row < WIDE_ROWS ? s->rows - row : WIDE_ROWS);
        for (int r = 0; r < rows; r++) memcpy(acc + r * CQ_TILE, s->start, sizeof s->start);
        for (int64_t g = 0; g < groups; g += WIDE_GROUPS) {
            const int64_t some = groups - g < WIDE_GROUPS ? groups - g : WIDE_GROUPS;
            for (int r = 0; r < rows; r++)
                widen_row(a + (row + r) * a_stride + 4 * g, some, wide_a + r * WIDE_GROUPS * 4);
            for (int p = 0; p < panels; p++) {
                widen_panel(b + p * panel_stride + 64 * g, some, wide_b);
                for (int r = 0; r < rows; r += CQ_TILE_ROWS)
                    tiles_i16(rows - r, wide_a + r * WIDE_GROUPS * 4, WIDE_GROUPS * 4, wide_b, some,
                              acc + r * CQ_TILE + p * CQ_PANEL);
            }
        }
        ISA(store_i8)(acc, CQ_TILE, rows, s, row);
    }
}
