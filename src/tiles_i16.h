/* Integer products for an instruction set that multiplies int16 pairs: A's rows are widened into scratch, a piece of K
 * at a time; for many rows the weight's panels are as well, so that the inner loop holds nothing but loads, products
 * and sums. Included by kernel_avx2.c. */
#include "tiles.h"

/* Rows and groups of 4 in a piece; from how many rows on it pays to widen panels. */
enum { WIDE_ROWS = 48, WIDE_GROUPS = 64, WIDE_FROM = 9 };

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

/* The same of half a line of a panel: bytes 0 and 2 of 8 columns; bytes 1 and 3. */
INLINE __m256i evens(const int8_t *b) {
    return _mm256_srai_epi16(_mm256_slli_epi16(_mm256_loadu_si256((const __m256i *)b), 8), 8);
}
INLINE __m256i odds(const int8_t *b) { return _mm256_srai_epi16(_mm256_loadu_si256((const __m256i *)b), 8); }

INLINE void widen_panel(const int8_t *b, int64_t groups, int16_t *out) {
    __m256i *to = (__m256i *)out;
    for (int64_t g = 0; g < groups; g++, b += 64, to += 4)
        to[0] = evens(b), to[1] = evens(b + 32), to[2] = odds(b), to[3] = odds(b + 32);
}

/* acc (R, 16) = start (16), or what acc holds where that is NULL, + a (R, groups) x a panel, or a widened one. The
 * columns' halves are c and d. Product and sum are one piece of assembly: GCC would reassociate the sums and spill some
 * of them. 12 sums, 2 halves of a panel's line, a pair and a product are all 16 registers. */
INLINE void tile_i16(const int R, const int is_wide, const int16_t *a, int64_t a_stride, const int8_t *b,
                     int64_t groups, const int32_t *start, int32_t *acc, int64_t acc_stride) {
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define GET(r) \
    const int32_t *from##r = start ? start : acc + r * acc_stride; \
    __m256i c##r = R > r ? LOAD(from##r) : _mm256_setzero_si256(); \
    __m256i d##r = R > r ? LOAD(from##r + 8) : _mm256_setzero_si256();
    EVERY_ROW(GET)
    for (int64_t g = 0; g < groups; g++, a += 4, b += is_wide ? 128 : 64) {
#define ADD(sum, half) \
    __asm__("vpmaddwd %3, %2, %0\n\tvpaddd %0, %1, %1" : "=&x"(product), "+x"(sum) : "x"(pair), "x"(half))
#define TWO(r, at) \
    if (R > r) { \
        int32_t two; \
        __m256i product; \
        memcpy(&two, a + r * a_stride + at, 4); \
        const __m256i pair = _mm256_set1_epi32(two); \
        ADD(c##r, lo); \
        ADD(d##r, hi); \
    }
#define HALF(at, first, second) { \
        const __m256i lo = first, hi = second; \
        TWO(0, at) TWO(1, at) TWO(2, at) TWO(3, at) TWO(4, at) TWO(5, at) }
        if (!is_wide && R <= FETCH_ROWS) __builtin_prefetch(b + 64 * FETCH_GROUPS, 0, 2);
        HALF(0, is_wide ? LOAD(b) : evens(b), is_wide ? LOAD(b + 32) : evens(b + 32))
        HALF(2, is_wide ? LOAD(b + 64) : odds(b), is_wide ? LOAD(b + 96) : odds(b + 32))
    }
#define PUT(r) \
    if (R > r) { \
        _mm256_storeu_si256((__m256i *)(acc + r * acc_stride), c##r); \
        _mm256_storeu_si256((__m256i *)(acc + r * acc_stride + 8), d##r); \
    }
    EVERY_ROW(PUT)
#undef PUT
#undef HALF
#undef TWO
#undef ADD
#undef GET
#undef LOAD
}

#define TILES_I16(is_wide, ...) \
    switch (rows) { \
    case 1: tile_i16(1, is_wide, __VA_ARGS__); break; \
    case 2: tile_i16(2, is_wide, __VA_ARGS__); break; \
    case 3: tile_i16(3, is_wide, __VA_ARGS__); break; \
    case 4: tile_i16(4, is_wide, __VA_ARGS__); break; \
    case 5: tile_i16(5, is_wide, __VA_ARGS__); break; \
    default: tile_i16(6, is_wide, __VA_ARGS__); \
    }
static void tiles_i16(int rows, const int16_t *a, int64_t a_stride, const int8_t *b, int64_t groups,
                      const int32_t *start, int32_t *acc, int64_t acc_stride) {
    TILES_I16(0, a, a_stride, b, groups, start, acc, acc_stride)
}
static void wide_tiles_i16(int rows, const int16_t *a, int64_t a_stride, const int16_t *b, int64_t groups,
                           int32_t *acc) {
    TILES_I16(1, a, a_stride, (const int8_t *)b, groups, NULL, acc, CQ_TILE)
}
#undef TILES_I16

static void ISA(tile_i8)(const uint8_t *a, int64_t a_stride, int rows, const int8_t *b, int64_t panel_stride,
                         int panels, int64_t groups, const int32_t *start, int32_t *acc, int64_t acc_stride) {
    _Alignas(64) int16_t wide_a[CQ_TILE_ROWS * WIDE_GROUPS * 4];
    const int32_t nothing[CQ_PANEL] = {0};
    int64_t g = 0, some;
    do {
        some = groups - g < WIDE_GROUPS ? groups - g : WIDE_GROUPS;
        for (int r = 0; r < rows; r++) widen_row(a + r * a_stride + 4 * g, some, wide_a + r * WIDE_GROUPS * 4);
        for (int p = 0; p < panels; p++) {
            const int32_t *from = g ? NULL : start ? start + p * CQ_PANEL : nothing;
            tiles_i16(rows, wide_a, WIDE_GROUPS * 4, b + p * panel_stride + 64 * g, some, from, acc + p * CQ_PANEL,
                      acc_stride);
        }
        g += some;
    } while (g < groups);
}

static void ISA(strip_i8)(const uint8_t *a, int64_t a_stride, const int8_t *b, int64_t panel_stride, int64_t groups,
                          const cq_strip *s) {
    _Alignas(64) int32_t acc[WIDE_ROWS * CQ_TILE];
    _Alignas(64) int16_t wide_a[WIDE_ROWS * WIDE_GROUPS * 4], wide_b[WIDE_GROUPS * 64];
    const int panels = (s->columns + CQ_PANEL - 1) / CQ_PANEL;
    if (s->rows < WIDE_FROM) {
        for (int r = 0; r < s->rows; r += CQ_TILE_ROWS)
            ISA(tile_i8)(a + r * a_stride, a_stride, (int)(s->rows - r < CQ_TILE_ROWS ? s->rows - r : CQ_TILE_ROWS), b,
                         panel_stride, panels, groups, s->start, acc + r * CQ_TILE, CQ_TILE);
        ISA(store_i8)(acc, CQ_TILE, (int)s->rows, s, 0);
        return;
    }
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
                    wide_tiles_i16(rows - r, wide_a + r * WIDE_GROUPS * 4, WIDE_GROUPS * 4, wide_b, some,
                                   acc + r * CQ_TILE + p * CQ_PANEL);
            }
        }
        ISA(store_i8)(acc, CQ_TILE, rows, s, row);
    }
}
