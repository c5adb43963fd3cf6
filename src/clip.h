/* Rows of codes for the products of tiles_clipped.h: centred and clipped. Included by kernel_avx2.c after it. */
enum { CLIP = 127 };

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

/* Where a block's next groups of excess go: those to add upwards, those to subtract downwards. */
typedef struct {
    cq_excess *up, *down;
    int64_t left; /* how many more may come */
} excess_list;

typedef struct {
    code_pairs up1, up2, down1, down2; /* >= 0, of two times 8 groups: to add, and to subtract */
} excess_codes;

INLINE __m256i keep(code_pairs x, int32_t *codes) {
    const __m256i bytes = as_bytes(x);
    _mm256_storeu_si256((__m256i *)codes, bytes);
    return bytes;
}

/* Adds those that are not all 0. Which they are cannot be foreseen, so that every group is written, and the next one
 * over it where it holds nothing. */
INLINE void list_groups(excess_list *list, int64_t group1, int64_t group2, const excess_codes *x) {
    int32_t up1[8], up2[8], down1[8], down2[8];
    cq_excess *up = list->up, *down = list->down;
    const __m256i all = _mm256_or_si256(_mm256_or_si256(keep(x->up1, up1), keep(x->up2, up2)),
                                        _mm256_or_si256(keep(x->down1, down1), keep(x->down2, down2)));
    const __m256i none = _mm256_cmpeq_epi32(all, _mm256_setzero_si256());
    for (int some = 255 & ~_mm256_movemask_ps(_mm256_castsi256_ps(none)); some; some &= some - 1) {
        const int i = __builtin_ctz((unsigned)some);
        const int32_t first = (int32_t)group1 + i, second = (int32_t)group2 + i;
        *up = (cq_excess){first, up1[i]}, up += up1[i] != 0;
        *up = (cq_excess){second, up2[i]}, up += up2[i] != 0;
        *down = (cq_excess){first, down1[i]}, down -= down1[i] != 0;
        *down = (cq_excess){second, down2[i]}, down -= down2[i] != 0;
    }
    list->left -= (up - list->up) + (list->down - down);
    list->up = up, list->down = down;
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
INLINE int list_excess(excess_list *list, int64_t group1, int64_t group2, excess_codes x) {
    while (any_over(&x)) {
        if (list->left < CQ_EXCESS_AT_ONCE) return 0;
        __m256i sums[4] = {first_fit(), first_fit(), first_fit(), first_fit()};
        const excess_codes part = {fit_pairs(sums, x.up1), fit_pairs(sums + 1, x.up2), fit_pairs(sums + 2, x.down1),
                                   fit_pairs(sums + 3, x.down2)};
        list_groups(list, group1, group2, &part);
        x = (excess_codes){minus(x.up1, part.up1), minus(x.up2, part.up2), minus(x.down1, part.down1),
                           minus(x.down2, part.down2)};
    }
    if (list->left < CQ_EXCESS_AT_ONCE) return 0;
    list_groups(list, group1, group2, &x);
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
            const excess_codes excess = {minus(up1, u1), minus(up2, u2), minus(down1, d1), minus(down2, d2)};
            if (!list_excess(list, group, group + half, excess)) return 0;
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

/* A row's groups go in twos. */
INLINE void end_row(excess_list *list, cq_clipped *out, int64_t r) {
    const int64_t up = list->up - out->excess, down = out->excess + out->room - 1 - list->down;
    const cq_excess nothing = {0, 0};
    if (up % 2) *list->up++ = nothing;
    if (down % 2) *list->down-- = nothing;
    out->added[r] = list->up - out->excess, out->subtracted[r] = list->down + 1 - out->excess;
}

/* Rows with a zero point each are centred there. One for all is not always in the middle, as where features have scales
 * and offsets of their own: then the centre is the codes' mean, and what is left of the zero point stays one. */
static int ISA(clip)(const uint8_t *a, int64_t a_stride, int64_t rows, int64_t k, const int32_t *zeros, int32_t zero,
                     cq_clipped *out) {
    const int64_t groups = (k + 3) / 4, piece = piece_of(groups);
    const int32_t mean = zeros ? 0 : mean_code(a, a_stride, rows, k);
    out->zero = zeros ? 0 : zero - mean;
    excess_list list = {.up = out->excess, .down = out->excess + out->room - 1};
    for (int64_t r = 0; r < rows; r++, a += a_stride) {
        const int32_t centre = zeros ? zeros[r] : mean;
        if (centre < 0 || centre > 255) return 0;
        /* The room is for all rows alike, more or less: it is soon clear where it will not do. */
        const int64_t by_now = out->room * (r + 1) / rows + out->room / 8 + CQ_EXCESS_AT_ONCE;
        list.left = (by_now < out->room ? by_now : out->room) - (out->room - 1 - (list.down - list.up));
        __m256i sums = _mm256_setzero_si256(), clipped_sums = sums;
        for (int64_t g = 0; g < groups; g += piece) {
            const int64_t some = groups - g < piece ? groups - g : piece, left = k - 4 * g;
            if (!clip_piece(a + 4 * g, left < 4 * some ? left : 4 * some, (some + 1) / 2, (uint8_t)centre, g,
                            out->codes + r * out->stride + 4 * g, &sums, &clipped_sums, &list))
                return 0;
        }
        end_row(&list, out, r);
        out->sums[r] = i32_sum((i32x16){sums, _mm256_setzero_si256()});
        out->clipped_sums[r] = i32_sum((i32x16){clipped_sums, _mm256_setzero_si256()});
    }
    return 1;
}
