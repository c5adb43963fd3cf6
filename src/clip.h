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
