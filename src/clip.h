/* Rows of codes for the products of tiles_clipped.h: centred, or counted from a floor, and clipped. A part of
 * kernel_avx2.c, after it. */
enum { CLIP = 127, CLIP_UNSIGNED = 255, FLOOR = 32 }; /* FLOOR: how far below the centre */

/* Of 8 groups in int16: bytes 0 and 2 of each group, then bytes 1 and 3. */
typedef struct {
    __m256i even, odd;
} code_pairs;

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
/* Of x >= 0, one after another, what fits into a sum of `most`. *sum starts that far below 65535, where additions
 * saturate. */
INLINE __m256i first_fit(int most) { return _mm256_set1_epi16((int16_t)(65535 - most)); }
INLINE __m256i fit(__m256i *sum, __m256i x) {
    const __m256i before = *sum;
    *sum = _mm256_adds_epu16(before, x);
    return _mm256_sub_epi16(*sum, before);
}
INLINE code_pairs fit_pairs(__m256i *sum, code_pairs x) {
    const __m256i even = fit(sum, x.even);
    return (code_pairs){even, fit(sum, x.odd)};
}

/* Where a block's next groups of excess go. */
typedef struct {
    int32_t *groups, *codes;
} excess_end;
typedef struct {
    excess_end added, subtracted;
    int64_t left; /* how many more may come */
} excess_list;

typedef struct {
    code_pairs up1, up2, down1, down2; /* >= 0, of two times 8 groups: to add, and to subtract */
} excess_codes;

/* Of eight lanes those that a mask names, in front: a byte each, the first one lowest. */
#define NAMED(mask, i) ((mask) >> (i) & 1)
#define NAMED_BEFORE(mask, i) \
    ((i > 0) * NAMED(mask, 0) + (i > 1) * NAMED(mask, 1) + (i > 2) * NAMED(mask, 2) + (i > 3) * NAMED(mask, 3) + \
     (i > 4) * NAMED(mask, 4) + (i > 5) * NAMED(mask, 5) + (i > 6) * NAMED(mask, 6))
#define LANE(mask, i) ((uint64_t)i * NAMED(mask, i) << 8 * NAMED_BEFORE(mask, i))
#define LANES_OF(mask) \
    LANE(mask, 1) | LANE(mask, 2) | LANE(mask, 3) | LANE(mask, 4) | LANE(mask, 5) | LANE(mask, 6) | LANE(mask, 7)
#define OF_4(mask) LANES_OF(mask), LANES_OF(mask + 1), LANES_OF(mask + 2), LANES_OF(mask + 3)
#define OF_16(mask) OF_4(mask), OF_4(mask + 4), OF_4(mask + 8), OF_4(mask + 12)
#define OF_64(mask) OF_16(mask), OF_16(mask + 16), OF_16(mask + 32), OF_16(mask + 48)
static const uint64_t in_front[256] = {OF_64(0), OF_64(64), OF_64(128), OF_64(192)};

/* Adds those of eight groups that are not 0. Which they are cannot be foreseen, so that nothing branches on it. */
INLINE void list_eight(excess_end *end, int64_t group, code_pairs x) {
    const __m256i codes = as_bytes(x), none = _mm256_cmpeq_epi32(codes, _mm256_setzero_si256());
    const unsigned some = 255 & ~(unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(none));
    const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)in_front[some]));
    _mm256_storeu_si256((__m256i *)end->codes, _mm256_permutevar8x32_epi32(codes, order));
    _mm256_storeu_si256((__m256i *)end->groups, _mm256_add_epi32(order, _mm256_set1_epi32((int32_t)group)));
    end->codes += __builtin_popcount(some), end->groups += __builtin_popcount(some);
}
INLINE int is_none(code_pairs x, code_pairs y) {
    const __m256i all = _mm256_or_si256(_mm256_or_si256(x.even, x.odd), _mm256_or_si256(y.even, y.odd));
    return _mm256_testz_si256(all, all);
}
INLINE void list_groups(const int is_unsigned, excess_list *list, int64_t group1, int64_t group2,
                        const excess_codes *x) {
    const int32_t *const up = list->added.codes, *const down = list->subtracted.codes;
    list_eight(&list->added, group1, x->up1), list_eight(&list->added, group2, x->up2);
    if (!is_unsigned || !is_none(x->down1, x->down2)) /* few codes lie below a floor */
        list_eight(&list->subtracted, group1, x->down1), list_eight(&list->subtracted, group2, x->down2);
    list->left -= (list->added.codes - up) + (list->subtracted.codes - down);
}

/* Whether two codes of a group are above CLIP together. */
INLINE int any_over(const excess_codes *x) {
#define SUM(codes) _mm256_add_epi16(x->codes.even, x->codes.odd)
    const __m256i most =
        _mm256_max_epi16(_mm256_max_epi16(SUM(up1), SUM(up2)), _mm256_max_epi16(SUM(down1), SUM(down2)));
#undef SUM
    const __m256i over = _mm256_cmpgt_epi16(most, _mm256_set1_epi16(CLIP));
    return !_mm256_testz_si256(over, over);
}

/* Adds them, in as many parts as it takes. Returns 0 where the list may not hold them. */
INLINE int list_excess(const int is_unsigned, excess_list *list, int64_t group1, int64_t group2, excess_codes x) {
    while (any_over(&x)) {
        if (list->left < CQ_EXCESS_AT_ONCE) return 0;
        const __m256i first = first_fit(CLIP);
        __m256i sums[4] = {first, first, first, first};
        const excess_codes part = {fit_pairs(sums, x.up1), fit_pairs(sums + 1, x.up2), fit_pairs(sums + 2, x.down1),
                                   fit_pairs(sums + 3, x.down2)};
        list_groups(is_unsigned, list, group1, group2, &part);
        x = (excess_codes){minus(x.up1, part.up1), minus(x.up2, part.up2), minus(x.down1, part.down1),
                           minus(x.down2, part.down2)};
    }
    if (list->left < CQ_EXCESS_AT_ONCE) return 0;
    list_groups(is_unsigned, list, group1, group2, &x);
    return 1;
}

/* A piece of a row: k codes, `half` groups and as many or one fewer; `group` is its first one's place in the row. */
INLINE int clip_piece(const int is_unsigned, const uint8_t *a, int64_t k, int64_t half, uint8_t centre, int64_t group,
                      int8_t *out, __m256i *sums, __m256i *clipped_sums, excess_list *list) {
    const __m256i middle = _mm256_set1_epi16(centre), bytes = _mm256_set1_epi8((char)centre);
    const __m256i one = _mm256_set1_epi16(1), most = _mm256_set1_epi16(is_unsigned ? CLIP_UNSIGNED : CLIP);
    for (int64_t i = 0, j = 4 * half; i < 4 * half; i += 32, j += 32, group += 8) {
        const int64_t n = 4 * half - i < 32 ? 4 * half - i : 32;
        const __m256i c1 = load_codes(a + i, n < k - i ? n : k - i, centre);
        const __m256i c2 = load_codes(a + j, n < k - j ? n : k - j, centre);
        const code_pairs x1 = centred(c1, middle), up1 = positive_pairs(x1);
        const code_pairs x2 = centred(c2, middle), up2 = positive_pairs(x2);
        const __m256i all = sum_of(x1, x2), up = sum_of(up1, up2), down = _mm256_sub_epi16(up, all);
        const __m256i over = is_unsigned ? _mm256_or_si256(_mm256_cmpgt_epi16(up, most), down)
                                         : _mm256_cmpgt_epi16(_mm256_max_epi16(up, down), most);
        const __m256i sum = _mm256_madd_epi16(all, one);
        __m256i y1 = _mm256_sub_epi8(c1, bytes), y2 = _mm256_sub_epi8(c2, bytes), clipped_sum = sum;
        if (!_mm256_testz_si256(over, over)) {
            excess_codes excess = {.down1 = minus(up1, x1), .down2 = minus(up2, x2)};
            __m256i sum_up = first_fit(is_unsigned ? CLIP_UNSIGNED : CLIP), sum_down = sum_up;
            code_pairs u1 = fit_pairs(&sum_up, up1), u2 = fit_pairs(&sum_up, up2);
            excess.up1 = minus(up1, u1), excess.up2 = minus(up2, u2);
            if (!is_unsigned) {
                const code_pairs d1 = fit_pairs(&sum_down, excess.down1), d2 = fit_pairs(&sum_down, excess.down2);
                excess.down1 = minus(excess.down1, d1), excess.down2 = minus(excess.down2, d2);
                u1 = minus(u1, d1), u2 = minus(u2, d2);
                clipped_sum = _mm256_madd_epi16(_mm256_sub_epi16(sum_up, sum_down), one);
            }
            if (!list_excess(is_unsigned, list, group, group + half, excess)) return 0;
            y1 = as_bytes(u1), y2 = as_bytes(u2);
        }
        *sums = _mm256_add_epi32(*sums, sum);
        if (!is_unsigned) *clipped_sums = _mm256_add_epi32(*clipped_sums, clipped_sum);
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

/* How many more pairs of codes hold excess in a row counted from `below` under the centre than in a centred one. */
static int64_t more_excess(const uint8_t *a, int64_t k, uint8_t centre, int32_t below) {
    const int64_t half = (k + 7) / 8 * 4;
    const __m256i middle = _mm256_set1_epi16(centre), shift = _mm256_set1_epi16((int16_t)below);
    const __m256i most = _mm256_set1_epi16(CLIP), most_unsigned = _mm256_set1_epi16(CLIP_UNSIGNED);
    __m256i more = _mm256_setzero_si256();
    for (int64_t i = 0; i < half; i += 32) {
        const int64_t n = half - i;
        const code_pairs x1 = centred(load_codes(a + i, n, centre), middle);
        const code_pairs x2 = centred(load_codes(a + half + i, n < k - half - i ? n : k - half - i, centre), middle);
        const __m256i all = sum_of(x1, x2), up = sum_of(positive_pairs(x1), positive_pairs(x2));
        more = _mm256_add_epi16(more, _mm256_cmpgt_epi16(up, most));
        more = _mm256_add_epi16(more, _mm256_cmpgt_epi16(_mm256_sub_epi16(up, all), most));
#define UP(x) _mm256_add_epi16(x, shift)
        const code_pairs v1 = {UP(x1.even), UP(x1.odd)}, v2 = {UP(x2.even), UP(x2.odd)};
#undef UP
        const __m256i above = sum_of(positive_pairs(v1), positive_pairs(v2));
        more = _mm256_sub_epi16(more, _mm256_cmpgt_epi16(above, most_unsigned));
        more = _mm256_add_epi16(more, _mm256_srli_epi16(_mm256_min_epi16(v1.even, v1.odd), 15));
        more = _mm256_add_epi16(more, _mm256_srli_epi16(_mm256_min_epi16(v2.even, v2.odd), 15));
    }
    return i32_sum((i32x16){_mm256_madd_epi16(more, _mm256_set1_epi16(1)), _mm256_setzero_si256()});
}

/* Rounded to the nearest; 0 of nothing. */
static int32_t mean_code(const uint8_t *a, int64_t a_stride, int64_t rows, int64_t k) {
    __m256i sums = _mm256_setzero_si256(); /* of 8 codes each, in 64 bits */
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < k; i += 32)
            sums = _mm256_add_epi64(
                sums, _mm256_sad_epu8(load_codes(a + r * a_stride + i, k - i, 0), _mm256_setzero_si256()));
    int64_t sum[4];
    _mm256_storeu_si256((__m256i *)sum, sums);
    const int64_t all = sum[0] + sum[1] + sum[2] + sum[3];
    return k ? (int32_t)((all + rows * k / 2) / (rows * k)) : 0;
}

/* How far below their centres the floor lies that codes are counted from; -1: they are centred. A floor is taken where,
 * in some of the rows, the excess that it adds costs less than raising weights. Zero points of rows must be low, as an
 * activation function's are, and alike. */
static int32_t floor_of(const uint8_t *a, int64_t a_stride, int64_t rows, int64_t k, const int32_t *zeros,
                        int32_t mean) {
    const double raising = rows >= RAISE_FROM ? 0.02 : 0.2 / (double)(rows < MOST_ROWS ? rows : MOST_ROWS);
    const int64_t step = rows < 128 ? (rows + 3) / 4 : 32;
    int32_t below = zeros ? zeros[0] : mean < FLOOR ? mean : FLOOR, highest = below;
    int64_t more = 0, looked = 0;
    for (int64_t r = 1; zeros && r < rows; r++) {
        below = zeros[r] < below ? zeros[r] : below;
        highest = zeros[r] > highest ? zeros[r] : highest;
    }
    if (below < 0 || highest > FLOOR || highest - below > FLOOR / 4) return -1;
    for (int64_t r = step / 2; r < rows; r += step, looked++)
        more += more_excess(a + r * a_stride, k, (uint8_t)(zeros ? zeros[r] : mean), below);
    return (double)more <= raising * (double)(looked * k / 4) ? below : -1;
}

/* A row's groups go in twos. Returns where they end. */
INLINE int64_t end_row(excess_end *end, const int32_t *start) {
    if ((end->codes - start) % 2) *end->codes++ = 0, *end->groups++ = 0;
    return end->codes - start;
}

/* Rows with a zero point each are centred there. One for all is not always in the middle, as where features have scales
 * and offsets of their own: then the centre is the codes' mean. What is left of the zero point stays one. */
static int ISA(clip)(const uint8_t *a, int64_t a_stride, int64_t rows, int64_t k, const int32_t *zeros, int32_t zero,
                     cq_clipped *out) {
    const int64_t groups = (k + 3) / 4, piece = piece_of(groups), first = (rows + 7) / 8;
    const int64_t room = out->room - CQ_EXCESS_AT_ONCE, more = out->pays + out->pays / 8;
    const int64_t most = more < room ? more : room;
    const int32_t mean = zeros ? 0 : mean_code(a, a_stride, rows, k);
    const int32_t floor = floor_of(a, a_stride, rows, k, zeros, mean), below = floor < 0 ? 0 : floor;
    out->zero = (zeros ? 0 : zero - mean) + below, out->is_unsigned = floor >= 0;
    const cq_excess *const added = &out->added, *const subtracted = &out->subtracted;
    excess_list list = {{added->groups, added->codes}, {subtracted->groups, subtracted->codes}, 0};
    for (int64_t r = 0; r < rows; r++, a += a_stride) {
        const int32_t centre = (zeros ? zeros[r] : mean) - below;
        if (centre < 0 || centre > 255) return 0;
        /* The first eighth of the rows decides. Where the others have a little more, to go on costs less than to go
         * back, but it is soon clear where they have far more. */
        const int64_t by_now = r < first ? out->pays * first / rows : most * (r + 1) / rows + most / 8;
        list.left = (by_now < most ? by_now : most) + CQ_EXCESS_AT_ONCE - (list.added.codes - added->codes) -
                    (list.subtracted.codes - subtracted->codes);
        __m256i sums = _mm256_setzero_si256(), clipped_sums = sums;
        for (int64_t g = 0; g < groups; g += piece) {
            const int64_t some = groups - g < piece ? groups - g : piece, left = k - 4 * g;
            const int64_t codes = left < 4 * some ? left : 4 * some;
            int8_t *to = out->codes + r * out->stride + 4 * g;
#define CLIP_PIECE(is_unsigned) \
    clip_piece(is_unsigned, a + 4 * g, codes, (some + 1) / 2, (uint8_t)centre, g, to, &sums, &clipped_sums, &list)
            if (!(out->is_unsigned ? CLIP_PIECE(1) : CLIP_PIECE(0))) return 0;
#undef CLIP_PIECE
        }
        added->ends[r] = end_row(&list.added, added->codes);
        subtracted->ends[r] = end_row(&list.subtracted, subtracted->codes);
        out->sums[r] = i32_sum((i32x16){sums, _mm256_setzero_si256()});
        out->raising[r] = (int32_t)(128 * (uint32_t)i32_sum((i32x16){clipped_sums, _mm256_setzero_si256()}));
    }
    return 1;
}
