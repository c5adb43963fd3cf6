/* Integer products by vpmaddubsw, which multiplies bytes, unsigned by signed, and adds two products in int16, where
 * they may saturate. Included by kernel_avx2.c.
 *
 * A row of codes is centred, x = a - c, and clipped, x = y + e: of four y whose products are added in int16, the
 * positive ones are at most 127 together, and so are the negative ones. A weight counts as w + 128 <= 255: nothing can
 * saturate. The excess e is a list for each row, short where codes lie around the centre, as real ones do around their
 * zero point. Its products are added exactly as well:
 *
 *     sum x w  =  sum y (w + 128) - 128 sum y + sum e w
 *
 * K is cut into pieces, and a piece into halves. Group i of the first half and group i of the second are added. */
#include "tiles.h"

enum { CLIP = 127, PIECE_GROUPS = 256 }; /* groups of a piece: so much of a panel stays in the first-level cache */

static int64_t piece_of(int64_t groups) {
    const int64_t pieces = (groups + PIECE_GROUPS - 1) / PIECE_GROUPS;
    return pieces ? ((groups + pieces - 1) / pieces + 1) / 2 * 2 : 0;
}

/* --- rows of codes ----------------------------------------------------------------------------------------------- */

/* Of 8 groups in int16: bytes 0 and 2 of each group, then bytes 1 and 3. */
typedef struct { __m256i even, odd; } code_pairs;

/* The first n of 32 codes; n may be below 0 or above 32. The centre stands for the rest. */
INLINE __m256i load_codes(const uint8_t *a, int64_t n, uint8_t centre) {
    if (n >= 32) return _mm256_loadu_si256((const __m256i *)a);
    uint8_t all[32];
    memset(all, centre, 32);
    if (n > 0) memcpy(all, a, (size_t)n);
    return _mm256_loadu_si256((const __m256i *)all);
}
INLINE code_pairs centred(__m256i codes, __m256i centre) {
    return (code_pairs){_mm256_sub_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0xff)), centre),
                        _mm256_sub_epi16(_mm256_srli_epi16(codes, 8), centre)};
}
INLINE code_pairs minus(code_pairs x, code_pairs y) {
    return (code_pairs){_mm256_sub_epi16(x.even, y.even), _mm256_sub_epi16(x.odd, y.odd)};
}
INLINE __m256i as_bytes(code_pairs x) {
    return _mm256_or_si256(_mm256_and_si256(x.even, _mm256_set1_epi16(0xff)), _mm256_slli_epi16(x.odd, 8));
}
INLINE __m256i positive(__m256i x) { return _mm256_max_epi16(x, _mm256_setzero_si256()); }
INLINE code_pairs positive_pairs(code_pairs x) { return (code_pairs){positive(x.even), positive(x.odd)}; }
INLINE __m256i sum_of(code_pairs x, code_pairs y) {
    return _mm256_add_epi16(_mm256_add_epi16(x.even, x.odd), _mm256_add_epi16(y.even, y.odd));
}
INLINE int any_not_zero(code_pairs x, code_pairs y) {
    const __m256i all = _mm256_or_si256(_mm256_or_si256(x.even, x.odd), _mm256_or_si256(y.even, y.odd));
    return !_mm256_testz_si256(all, all);
}

/* Of x >= 0, one after another, what fits. *sum starts CLIP below 65535, where additions saturate. */
INLINE __m256i first_fit(void) { return _mm256_set1_epi16((int16_t)(65535 - CLIP)); }
INLINE __m256i fit(__m256i *sum, __m256i x) {
    const __m256i before = *sum;
    *sum = _mm256_adds_epu16(before, x);
    return _mm256_sub_epi16(*sum, before);
}
INLINE code_pairs fit_pairs(__m256i *sum, code_pairs x) {
    const __m256i even = fit(sum, x.even);
    return (code_pairs){even, fit(sum, x.odd)};
}

/* The list of a block's rows as it grows. open: the row's steps with room for a group, of either sign, or NULL. */
typedef struct {
    cq_excess *next, *end, *open[2];
} excess_list;

/* Adds those of 8 groups that are not all 0. */
INLINE void list_groups(excess_list *list, int64_t group, int negative, __m256i bytes) {
    int32_t codes[8];
    int some = 255 & ~_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(bytes, _mm256_setzero_si256())));
    _mm256_storeu_si256((__m256i *)codes, bytes);
    for (; some; some &= some - 1) {
        const int i = __builtin_ctz((unsigned)some);
        cq_excess *open = list->open[negative];
        if (open) {
            open->group[1] = (int32_t)group + i, open->codes[1] = codes[i];
            list->open[negative] = NULL;
        } else {
            list->open[negative] = list->next++;
            *list->open[negative] = (cq_excess){{(int32_t)group + i}, {codes[i]}, negative ? -1 : 0x10001};
        }
    }
}
/* Adds x >= 0 of two times 8 groups, in as many parts as it takes. Returns 0 where the list may not hold them. */
static int list_excess(excess_list *list, int64_t group1, code_pairs x1, int64_t group2, code_pairs x2, int negative) {
    while (any_not_zero(x1, x2)) {
        if (list->end - list->next < CQ_EXCESS_AT_ONCE) return 0;
        __m256i sum1 = first_fit(), sum2 = sum1;
        const code_pairs part1 = fit_pairs(&sum1, x1), part2 = fit_pairs(&sum2, x2);
        list_groups(list, group1, negative, as_bytes(part1)), list_groups(list, group2, negative, as_bytes(part2));
        x1 = minus(x1, part1), x2 = minus(x2, part2);
    }
    return 1;
}

/* A piece of a row: k codes, `half` groups and as many or one fewer; `group` is its first one's place in the row. */
INLINE int clip_piece(const uint8_t *a, int64_t k, int64_t half, uint8_t centre, int64_t group, int8_t *out,
                      __m256i *sums, __m256i *clipped_sums, excess_list *list) {
    const __m256i middle = _mm256_set1_epi16(centre), bytes = _mm256_set1_epi8((char)centre);
    const __m256i one = _mm256_set1_epi16(1), most = _mm256_set1_epi16(CLIP);
    for (int64_t i = 0, j = 4 * half; i < 4 * half; i += 32, j += 32, group += 8) {
        const int64_t n = 4 * half - i < 32 ? 4 * half - i : 32;
        const __m256i c1 = load_codes(a + i, n < k - i ? n : k - i, centre);
        const __m256i c2 = load_codes(a + j, n < k - j ? n : k - j, centre);
        const code_pairs x1 = centred(c1, middle), up1 = positive_pairs(x1);
        const code_pairs x2 = centred(c2, middle), up2 = positive_pairs(x2);
        const __m256i all = sum_of(x1, x2), up = sum_of(up1, up2);
        const __m256i over = _mm256_cmpgt_epi16(_mm256_max_epi16(up, _mm256_sub_epi16(up, all)), most);
        const __m256i sum = _mm256_madd_epi16(all, one);
        __m256i y1 = _mm256_sub_epi8(c1, bytes), y2 = _mm256_sub_epi8(c2, bytes), clipped_sum = sum;
        if (!_mm256_testz_si256(over, over)) {
            const code_pairs down1 = minus(up1, x1), down2 = minus(up2, x2);
            __m256i sum_up = first_fit(), sum_down = sum_up;
            const code_pairs u1 = fit_pairs(&sum_up, up1), u2 = fit_pairs(&sum_up, up2);
            const code_pairs d1 = fit_pairs(&sum_down, down1), d2 = fit_pairs(&sum_down, down2);
            if (!list_excess(list, group, minus(up1, u1), group + half, minus(up2, u2), 0)) return 0;
            if (!list_excess(list, group, minus(down1, d1), group + half, minus(down2, d2), 1)) return 0;
            y1 = as_bytes(minus(u1, d1)), y2 = as_bytes(minus(u2, d2));
            clipped_sum = _mm256_madd_epi16(_mm256_sub_epi16(sum_up, sum_down), one);
        }
        *sums = _mm256_add_epi32(*sums, sum), *clipped_sums = _mm256_add_epi32(*clipped_sums, clipped_sum);
        if (n == 32) {
            _mm256_storeu_si256((__m256i *)(out + i), y1), _mm256_storeu_si256((__m256i *)(out + j), y2);
        } else {
            int8_t some[64];
            _mm256_storeu_si256((__m256i *)some, y1), _mm256_storeu_si256((__m256i *)(some + 32), y2);
            memcpy(out + i, some, (size_t)n), memcpy(out + j, some + 32, (size_t)n);
        }
    }
    return 1;
}

/* Rounded to the nearest; 0 of nothing. */
static int32_t mean_code(const uint8_t *a, int64_t a_stride, int64_t rows, int64_t k) {
    int64_t sum = 0;
    for (int64_t r = 0; r < rows; r++) sum += ISA(sum_codes)(a + r * a_stride, k);
    return k ? (int32_t)((sum + rows * k / 2) / (rows * k)) : 0;
}

/* Rows with a zero point each are centred there. One for all is not always in the middle, as where features have scales
 * and offsets of their own: then the centre is the codes' mean, and what is left of the zero point stays one. */
static int ISA(clip)(const uint8_t *a, int64_t a_stride, int64_t rows, int64_t k, const int32_t *zeros, int32_t zero,
                     cq_clipped *out) {
    const int64_t groups = (k + 3) / 4, piece = piece_of(groups);
    const int32_t mean = zeros ? 0 : mean_code(a, a_stride, rows, k);
    out->zero = zeros ? 0 : zero - mean;
    excess_list list = {.next = out->excess};
    for (int64_t r = 0; r < rows; r++, a += a_stride) {
        const int32_t centre = zeros ? zeros[r] : mean;
        if (centre < 0 || centre > 255) return 0;
        /* The room is for all rows alike, more or less: it is soon clear where it will not do. */
        const int64_t by_now = out->room * (r + 1) / rows + out->room / 8 + CQ_EXCESS_AT_ONCE;
        list.end = out->excess + (by_now < out->room ? by_now : out->room);
        __m256i sums = _mm256_setzero_si256(), clipped_sums = sums;
        for (int64_t g = 0; g < groups; g += piece) {
            const int64_t some = groups - g < piece ? groups - g : piece, left = k - 4 * g;
            if (!clip_piece(a + 4 * g, left < 4 * some ? left : 4 * some, (some + 1) / 2, (uint8_t)centre, g,
                            out->codes + r * out->stride + 4 * g, &sums, &clipped_sums, &list))
                return 0;
        }
        out->ends[r] = list.next - out->excess;
        list.open[0] = list.open[1] = NULL;
        out->sums[r] = i32_sum((i32x16){sums, _mm256_setzero_si256()});
        out->clipped_sums[r] = i32_sum((i32x16){clipped_sums, _mm256_setzero_si256()});
    }
    return 1;
}

/* --- products ---------------------------------------------------------------------------------------------------- */

INLINE __m256i four_codes(const int8_t *a) {
    int32_t x;
    memcpy(&x, a, 4);
    return _mm256_set1_epi32(x);
}
/* Constants that stay in memory where the registers are full. */
static const struct { _Alignas(32) int16_t ones[16]; uint64_t high_bits[4]; } in_memory = {
    {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
    {0x8080808080808080, 0x8080808080808080, 0x8080808080808080, 0x8080808080808080}};
#define ONES (*(const __m256i *)in_memory.ones)
#define HIGH_BITS (*(const __m256i *)in_memory.high_bits)

/* Half a group's line as w + 128. */
INLINE __m256i raised(const int full, const int8_t *b) {
    const __m256i *line = (const __m256i *)b;
    if (!full) return _mm256_xor_si256(HIGH_BITS, *line);
    __m256i u;
    __asm__("vmovdqa %1, %0\n\tvpxor %2, %0, %0" : "=x"(u) : "m"(HIGH_BITS), "m"(*line));
    return u;
}

/* sum += times (u1 s1 + u2 s2), u unsigned and s signed; `s` and `t` say whether s and times are in registers ("x") or
 * in memory ("m"). Assembly, because GCC reassociates the sums and spills some of them. */
#define ADD_FOUR(sum, u1, s1, u2, s2, times, s, t) { \
    __m256i p, q; \
    __asm__("vpmaddubsw %3, %2, %0\n\tvpmaddubsw %5, %4, %1\n\tvpaddw %1, %0, %0\n\tvpmaddwd %6, %0, %0" \
            : "=&x"(p), "=&x"(q) : "x"(u1), s(s1), "x"(u2), s(s2), t(times)); \
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(p)); }

/* acc (R, 16) += a (R, groups) x a piece of a panel. The columns' halves are c and d. fetch: there are no further rows,
 * and the tile waits for its weight. */
INLINE void tile_clipped(const int R, const int fetch, const int8_t *a, int64_t a_stride, const int8_t *b,
                         int64_t groups, int32_t *acc) {
    const int full = R == 4;
    const int64_t half = (groups + 1) / 2;
    const int8_t *a2 = a + 4 * half, *b2 = b + 64 * half, *end = a + 4 * (groups - half);
#define GET(r) \
    __m256i c##r = R > r ? _mm256_load_si256((const __m256i *)(acc + r * CQ_TILE)) : ONES; \
    __m256i d##r = R > r ? _mm256_load_si256((const __m256i *)(acc + r * CQ_TILE + 8)) : ONES;
    FOUR(GET)
    for (; a < end; a += 4, a2 += 4, b += 64, b2 += 64) {
        const __m256i lo = raised(full, b), hi = raised(full, b + 32);
        const __m256i lo2 = raised(full, b2), hi2 = raised(full, b2 + 32);
        if (fetch) __builtin_prefetch(b + 64 * FETCH_GROUPS, 0, 2), __builtin_prefetch(b2 + 64 * FETCH_GROUPS, 0, 2);
#define ADD_TWO_GROUPS(r) \
    if (R > r) { \
        const __m256i x = four_codes(a + r * a_stride), y = four_codes(a2 + r * a_stride); \
        if (full) { \
            ADD_FOUR(c##r, lo, x, lo2, y, ONES, "x", "m") \
            ADD_FOUR(d##r, hi, x, hi2, y, ONES, "x", "m") \
        } else { \
            ADD_FOUR(c##r, lo, x, lo2, y, ONES, "x", "x") \
            ADD_FOUR(d##r, hi, x, hi2, y, ONES, "x", "x") \
        } \
    }
        FOUR(ADD_TWO_GROUPS)
    }
    if (groups % 2) {
        const __m256i lo = raised(full, b), hi = raised(full, b + 32);
#define ADD_LAST_GROUP(r) \
    if (R > r) { \
        const __m256i x = four_codes(a + r * a_stride); \
        c##r = _mm256_add_epi32(c##r, _mm256_madd_epi16(_mm256_maddubs_epi16(lo, x), ONES)); \
        d##r = _mm256_add_epi32(d##r, _mm256_madd_epi16(_mm256_maddubs_epi16(hi, x), ONES)); \
    }
        FOUR(ADD_LAST_GROUP)
    }
#define PUT(r) \
    if (R > r) { \
        _mm256_store_si256((__m256i *)(acc + r * CQ_TILE), c##r); \
        _mm256_store_si256((__m256i *)(acc + r * CQ_TILE + 8), d##r); \
    }
    FOUR(PUT)
#undef PUT
#undef ADD_LAST_GROUP
#undef ADD_TWO_GROUPS
#undef GET
}

#define TILES(fetch) \
    for (; rows >= 4; rows -= 4, a += 4 * a_stride, acc += 4 * CQ_TILE) \
        tile_clipped(4, fetch, a, a_stride, b, groups, acc); \
    switch (rows) { \
    case 1: tile_clipped(1, fetch, a, a_stride, b, groups, acc); break; \
    case 2: tile_clipped(2, fetch, a, a_stride, b, groups, acc); break; \
    case 3: tile_clipped(3, fetch, a, a_stride, b, groups, acc); \
    }
/* acc (rows, 16) += a (rows, groups) x a piece of a panel. */
static void tiles_of_few(int64_t rows, const int8_t *a, int64_t a_stride, const int8_t *b, int64_t groups,
                         int32_t *acc) {
    TILES(1)
}
static void tiles_of_many(int64_t rows, const int8_t *a, int64_t a_stride, const int8_t *b, int64_t groups,
                          int32_t *acc) {
    TILES(0)
}
#undef TILES

/* acc (16 P) += a row's excess x P panels. */
INLINE void add_excess(const int P, const cq_excess *e, const cq_excess *end, const int8_t *b, int64_t panel_stride,
                       int32_t *acc) {
#define EACH_HALF(X) X(0, 0) X(0, 1) X(1, 0) X(1, 1) X(2, 0) X(2, 1) X(3, 0) X(3, 1)
#define GET(p, h) __m256i c##p##h = P > p ? _mm256_load_si256((const __m256i *)(acc + 16 * p + 8 * h)) : ONES;
    EACH_HALF(GET)
    for (; e < end; e++) {
        const __m256i x = _mm256_set1_epi32(e->codes[0]), y = _mm256_set1_epi32(e->codes[1]);
        const __m256i sign = _mm256_set1_epi32(e->sign);
        const int8_t *b1 = b + 64 * (int64_t)e->group[0], *b2 = b + 64 * (int64_t)e->group[1];
#define LINE(b, p, h) *(const __m256i *)(b + p * panel_stride + 32 * h)
#define ADD(p, h) if (P > p) ADD_FOUR(c##p##h, x, LINE(b1, p, h), y, LINE(b2, p, h), sign, "m", "x")
        EACH_HALF(ADD)
    }
#define PUT(p, h) if (P > p) _mm256_store_si256((__m256i *)(acc + 16 * p + 8 * h), c##p##h);
    EACH_HALF(PUT)
#undef PUT
#undef ADD
#undef LINE
#undef GET
#undef EACH_HALF
}

static void ISA(strip_clipped)(const cq_clipped *a, const int8_t *b, int64_t panel_stride, int64_t groups,
                               const cq_strip *s) {
    _Alignas(64) int32_t acc[CQ_BLOCK_ROWS * CQ_TILE];
    const int panels = (s->columns + CQ_PANEL - 1) / CQ_PANEL;
    const int64_t piece = piece_of(groups);
    void (*const tiles)(int64_t, const int8_t *, int64_t, const int8_t *, int64_t, int32_t *) =
        s->rows <= FETCH_ROWS ? tiles_of_few : tiles_of_many;
    for (int64_t r = 0; r < s->rows; r++) {
        const i32x16 shift = i32_set((int32_t)(128 * (uint32_t)a->clipped_sums[r]));
        for (int j = 0; j < CQ_PANEL * panels; j += CQ_PANEL)
            i32_store(acc + r * CQ_TILE + j, i32_sub(i32_load(s->start + j), shift));
    }
    for (int64_t g = 0; g < groups; g += piece) {
        const int64_t some = groups - g < piece ? groups - g : piece;
        for (int p = 0; p < panels; p++)
            tiles(s->rows, a->codes + 4 * g, a->stride, b + p * panel_stride + 64 * g, some, acc + p * CQ_PANEL);
    }
    for (int64_t r = 0; r < s->rows; r++) {
        const cq_excess *e = a->excess + (r ? a->ends[r - 1] : 0), *end = a->excess + a->ends[r];
        if (e == end) continue;
        if (panels == CQ_TILE / CQ_PANEL) add_excess(4, e, end, b, panel_stride, acc + r * CQ_TILE);
        else
            for (int p = 0; p < panels; p++)
                add_excess(1, e, end, b + p * panel_stride, 0, acc + r * CQ_TILE + p * CQ_PANEL);
    }
    ISA(store_i8)(acc, CQ_TILE, (int)s->rows, s, 0);
}

static double ISA(peak_i8)(int64_t repeats) {
    __m256i x = ONES;
#define EIGHT_SUMS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define ZERO(i) __m256i c##i = _mm256_setzero_si256();
#define OPAQUE_X __asm__ volatile("" : "+x"(x)); /* or the compiler would see equal sums and make one */
#define ADD(i) OPAQUE_X ADD_FOUR(c##i, x, x, x, x, x, "x", "x")
#define USED(i) __asm__ volatile("" : : "x"(c##i));
    EIGHT_SUMS(ZERO)
    for (int64_t n = 0; n < repeats * 1024; n++) { EIGHT_SUMS(ADD) }
    EIGHT_SUMS(USED)
#undef USED
#undef ADD
#undef OPAQUE_X
#undef ZERO
#undef EIGHT_SUMS
    return (double)repeats * 1024 * 8 * 64 * 2;
}
