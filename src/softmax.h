/* Softmax over rows of scores: in float32, and to codes of 8 bits. Written once over 16 lanes; included after rows.h.
 * */

/* In the vector that a row's scores begin in: -1 in the lanes of those that are seen, 0 in the `hidden` first ones. */
INLINE i32x16 lanes_seen(int64_t hidden) {
    static const int32_t steps[32] = {[16] = -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    return i32_load(steps + 16 - hidden);
}
/* -Inf in the `hidden` first lanes. */
INLINE f32x16 not_seen(f32x16 x, int64_t hidden) {
    const i32x16 seen = lanes_seen(hidden), others = i32_xor(seen, i32_set(-1));
    return f32_bits(i32_or(i32_and(i32_bits(x), seen), i32_and(others, i32_set((int32_t)0xff800000))));
}
INLINE f32x16 f32_seen(i32x16 seen, f32x16 x) { return f32_bits(i32_and(i32_bits(x), seen)); }

static float ISA(softmax_f32)(float *x, cq_span seen, float factor) {
    const int64_t begin = seen.first / 16 * 16, hidden = seen.first - begin, n = seen.end - begin;
    int64_t at = 0;
    memset(x, 0, (size_t)begin * 4);
    x += begin;
    for (int64_t i = 0; i < hidden; i++) x[i] = x[hidden]; /* which does not change the maximum */
    f32x16 most = f32_set(-INFINITY);
    EACH_16(i, n, width, {
        const f32x16 v = f32_load(x + i);
        most = f32_max(width == 16 ? v : f32_fill_n(v, width, -INFINITY), most);
    });
    const f32x16 top = f32_set(f32_max_across(most)), f = f32_set(factor);
    f32x16 sum = f32_set(0.0f);
#define EXP(i) lanes_exp(f32_mul(f32_sub(f32_load(x + i), top), f))
    if (hidden) {
        sum = f32_keep_n(f32_seen(lanes_seen(hidden), EXP(0)), n < 16 ? n : 16);
        f32_store(x, sum);
        at = 16;
    }
    EACH_16(i, n - at, width, {
        const f32x16 e = f32_keep_n(EXP(at + i), width);
        sum = f32_add(sum, e);
        f32_store(x + at + i, e);
    });
#undef EXP
    return f32_sum(sum);
}

/* 2^t for codes of 8 bits, t in [-125, 127], below it 2^-125: a polynomial of degree 3 on [-1/2, 1/2], relative error
 * 1.1e-4, exact at whole t. */
BULKY f32x16 lanes_exp2(f32x16 t) {
    const f32x16 shift = f32_set(12582912.0f); /* 1.5 * 2^23: the sum's low bits are the rounded integer */
    t = f32_max(t, f32_set(-125.0f));          /* large values' scales push t this far down */
    const f32x16 at = f32_add(t, shift), f = f32_sub(t, f32_sub(at, shift));
    f32x16 p = f32_fma(f, f32_set(0.0550090745f), f32_set(0.242210984f));
    p = f32_fma(p, f, f32_set(0.693282902f));
    p = f32_fma(p, f, f32_set(1.0f));
    return f32_bits(i32_add(i32_bits(p), i32_shl(i32_bits(at), 23)));
}

INLINE i32x16 some_codes(i32x16 codes, int64_t n) { return n == 16 ? codes : i32_fill_n(codes, n, 0); }
INLINE void clear(uint8_t *codes, int64_t n, int64_t padded) {
    const int64_t done = (n + 15) / 16 * 16;
    if (done < padded) memset(codes + done, 0, (size_t)(padded - done));
}

/* 255 * 2^t, rounded. */
INLINE i32x16 codes_of(f32x16 t) { return i32_from_f32(f32_mul(lanes_exp2(t), f32_set(255.0f))); }

/* Of a row: where its first vector of scores begins, how many of its lanes are not seen, and the scores from there. */
typedef struct {
    int64_t begin, hidden, n;
} ISA(in_row);
INLINE ISA(in_row) in_row_of(cq_span seen) {
    const int64_t begin = seen.first / 16 * 16;
    return (ISA(in_row)){begin, seen.first - begin, seen.end - begin};
}

/* CODES(i), codes of 16 lanes from i on, to bytes (at.n), with their sum; zeros before them and up to `padded`. */
#define CODES_AND_SUM(to, at, padded, sum) \
    do { \
        i32x16 total = i32_set(0); \
        int64_t done = 0; \
        if ((at).begin) memset((to) - (at).begin, 0, (size_t)(at).begin); \
        if ((at).hidden) { \
            total = some_codes(i32_and(CODES(0), lanes_seen((at).hidden)), (at).n < 16 ? (at).n : 16); \
            i32_store_8(to, total, 16); \
            done = 16; \
        } \
        for (; done + 64 <= (at).n; done += 64) { \
            const i32x16 q0 = CODES(done), q1 = CODES(done + 16), q2 = CODES(done + 32), q3 = CODES(done + 48); \
            total = i32_add(total, i32_add(i32_add(q0, q1), i32_add(q2, q3))); \
            i32_store_8x4((to) + done, q0, q1, q2, q3, 0); \
        } \
        EACH_16(i, (at).n - done, width, { \
            const i32x16 q = some_codes(CODES(done + i), width); \
            total = i32_add(total, q); \
            i32_store_8((to) + done + i, q, 16); \
        }); \
        clear(to, (at).n, (padded) - (at).begin); \
        sum = i32_sum(total); \
    } while (0)

/* Rows one after another in each of two passes: what a row's maximum waits for overlaps with the next row. */
static void ISA(softmax_i8)(int32_t *scores, int64_t stride, int rows, const cq_span *seen, int64_t padded,
                            float factor, uint8_t *codes, int32_t *sums) {
    int32_t tops[CQ_TILE_ROWS];
    for (int r = 0; r < rows; r++) {
        const ISA(in_row) at = in_row_of(seen[r]);
        int32_t *row = scores + r * stride + at.begin;
        i32x16 most = i32_set(INT32_MIN);
        for (int64_t i = 0; i < at.hidden; i++) row[i] = row[at.hidden]; /* which does not change the maximum */
        EACH_16(i, at.n, width, {
            const i32x16 v = i32_load(row + i);
            most = i32_max(width == 16 ? v : i32_fill_n(v, width, INT32_MIN), most);
        });
        tops[r] = i32_max_across(most);
    }
    const f32x16 f = f32_set(factor);
    for (int r = 0; r < rows; r++) {
        const ISA(in_row) at = in_row_of(seen[r]);
        const int32_t *row = scores + r * stride + at.begin;
        uint8_t *to = codes + r * stride + at.begin;
        const i32x16 top = i32_set(tops[r]);
#define CODES(i) codes_of(f32_mul(f32_from_i32(i32_sub(i32_load(row + (i)), top)), f))
        CODES_AND_SUM(to, at, padded, sums[r]);
#undef CODES
    }
}

static void ISA(softmax_biased)(int32_t *scores, int64_t stride, int rows, const cq_span *seen, int64_t padded,
                                float factor, const float *bias, int64_t bias_row, uint8_t *codes, int32_t *sums) {
    float tops[CQ_TILE_ROWS];
    const f32x16 f = f32_set(factor), log2_e = f32_set(LOG2_E);
    for (int r = 0; r < rows; r++) {
        const ISA(in_row) at = in_row_of(seen[r]);
        const float *more = bias + r * bias_row + at.begin;
        float *row = (float *)scores + r * stride + at.begin;
        f32x16 most = f32_set(-INFINITY);
        EACH_16(i, at.n, width, {
            const f32x16 b = f32_mul(load_some(more + i, width), log2_e);
            f32x16 t = f32_fma(f32_from_i32(i32_load((const int32_t *)row + i)), f, b);
            if (i < at.hidden) t = not_seen(t, at.hidden);
            most = f32_max(width == 16 ? t : f32_fill_n(t, width, -INFINITY), most);
            f32_store(row + i, t);
        });
        tops[r] = f32_max_across(most);
    }
    for (int r = 0; r < rows; r++) {
        const ISA(in_row) at = in_row_of(seen[r]);
        const float *row = (const float *)scores + r * stride + at.begin;
        uint8_t *to = codes + r * stride + at.begin;
        const f32x16 top = f32_set(tops[r]);
#define CODES(i) codes_of(f32_sub(f32_load(row + (i)), top))
        CODES_AND_SUM(to, at, padded, sums[r]);
#undef CODES
    }
}

static void ISA(softmax_scaled)(int32_t *scores, int64_t stride, int rows, const cq_span *seen, int64_t padded,
                                const float *factors, const cq_key_scales *scales, const float *bias, int64_t bias_row,
                                uint8_t *codes, float *sums) {
    float tops[CQ_TILE_ROWS];
    for (int r = 0; r < rows; r++) {
        const ISA(in_row) at = in_row_of(seen[r]);
        const float *keys = scales->keys ? scales->keys + at.begin : NULL, *logs = scales->logs + at.begin;
        const float *more = bias ? bias + r * bias_row + at.begin : NULL;
        float *row = (float *)scores + r * stride + at.begin;
        const f32x16 f = f32_set(factors[r]);
        f32x16 most = f32_set(-INFINITY);
        EACH_16(i, at.n, width, {
            f32x16 v = f32_from_i32(i32_load((const int32_t *)row + i));
            if (keys) v = f32_mul(v, f32_load(keys + i));
            if (more) v = f32_fma(v, f, f32_mul(load_some(more + i, width), f32_set(LOG2_E)));
            f32x16 reach = more ? f32_add(v, f32_load(logs + i)) : f32_fma(v, f, f32_load(logs + i));
            if (i < at.hidden) reach = not_seen(reach, at.hidden);
            most = f32_max(width == 16 ? reach : f32_fill_n(reach, width, -INFINITY), most);
            f32_store(row + i, v);
        });
        tops[r] = f32_max_across(most);
    }
    for (int r = 0; r < rows; r++) {
        const ISA(in_row) at = in_row_of(seen[r]);
        const float *row = (const float *)scores + r * stride + at.begin, *values_255 = scales->values_255 + at.begin;
        uint8_t *to = codes + r * stride + at.begin;
        const f32x16 f = f32_set(bias ? 1.0f : factors[r]), minus_top = f32_set(-tops[r]);
        f32x16 total = f32_set(0.0f);
        int64_t done = 0;
#define EXP2(i) lanes_exp2(f32_fma(f32_load(row + (i)), f, minus_top))
/* large scores round, so that the top may come out too low: a weight must not pass 255 */
#define CODES(e, i) i32_from_f32(f32_min(f32_set(255.0f), f32_mul(e, f32_load(values_255 + (i)))))
        if (at.begin) memset(to - at.begin, 0, (size_t)at.begin);
        if (at.hidden) {
            total = f32_keep_n(f32_seen(lanes_seen(at.hidden), EXP2(0)), at.n < 16 ? at.n : 16);
            i32_store_8(to, CODES(total, 0), 16);
            done = 16;
        }
        for (; done + 64 <= at.n; done += 64) {
            const f32x16 e0 = EXP2(done), e1 = EXP2(done + 16), e2 = EXP2(done + 32), e3 = EXP2(done + 48);
            total = f32_add(f32_add(f32_add(f32_add(total, e0), e1), e2), e3);
            i32_store_8x4(to + done, CODES(e0, done), CODES(e1, done + 16), CODES(e2, done + 32), CODES(e3, done + 48),
                          0);
        }
        EACH_16(i, at.n - done, width, {
            f32x16 e = EXP2(done + i);
            if (width < 16) e = f32_keep_n(e, width);
            total = f32_add(total, e);
            i32_store_8(to + done + i, CODES(e, done + i), 16);
        });
#undef CODES
#undef EXP2
        clear(to, at.n, padded - at.begin);
        sums[r] = f32_sum(total);
    }
}

/* tanh(x), relative error 3e-7: below 0.625 an odd polynomial, above it 1 - 2 / (1 + exp(2 |x|)). */
BULKY f32x16 lanes_tanh(f32x16 x) {
    const f32x16 size = f32_abs(x), square = f32_mul(x, x), one = f32_set(1.0f);
    f32x16 p = f32_set(-5.70498872745e-3f);
    p = f32_fma(p, square, f32_set(2.06390887954e-2f));
    p = f32_fma(p, square, f32_set(-5.37397155531e-2f));
    p = f32_fma(p, square, f32_set(1.33314422036e-1f));
    p = f32_fma(p, square, f32_set(-3.33332819422e-1f));
    p = f32_fma(f32_mul(p, square), size, size);
    const f32x16 far = f32_sub(one, f32_div(f32_set(2.0f), f32_add(one, lanes_exp(f32_add(size, size)))));
    const i32x16 near = i32_sar(i32_bits(f32_sub(size, f32_set(0.625f))), 31); /* -1 where it is */
    const i32x16 whole = i32_or(i32_and(i32_bits(p), near), i32_and(i32_bits(far), i32_xor(near, i32_set(-1))));
    return f32_bits(i32_or(whole, i32_and(i32_bits(x), i32_set(INT32_MIN))));
}

static void ISA(cap)(float *x, int64_t n, float factor, float most) {
    const f32x16 f = f32_set(factor), m = f32_set(most);
    EACH_16(i, n, width, {
        const f32x16 v = f32_mul(load_some(x + i, width), f);
        const f32x16 y = f32_fma(v, f32_set(0.0f), lanes_tanh(f32_div(v, m))); /* Inf becomes NaN, which is found */
        store_some(x + i, most == 0.0f ? v : f32_mul(y, m), width);
    });
}

static void ISA(cap_i8)(int32_t *scores, int64_t n, int32_t start, float factor, const float *keys) {
    const f32x16 f = f32_set(factor), whole = f32_set(CQ_CAPPED);
    const i32x16 s = i32_set(start);
    EACH_16(i, n, width, {
        (void)width;
        f32x16 v = f32_mul(f32_from_i32(i32_add(i32_load(scores + i), s)), f);
        if (keys) v = f32_mul(v, f32_load(keys + i));
        i32_store(scores + i, i32_from_f32(f32_mul(lanes_tanh(v), whole)));
    });
}
