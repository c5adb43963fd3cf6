/* Softmax over rows of scores: in float32, and to codes of 8 bits. Written once over 16 lanes; included after rows.h.
 * */

static float ISA(softmax_f32)(float *x, int64_t n, float factor) {
    f32x16 most = f32_set(-INFINITY);
    EACH_16(i, n, width, {
        const f32x16 v = f32_load(x + i);
        most = f32_max(width == 16 ? v : f32_fill_n(v, width, -INFINITY), most);
    });
    const f32x16 top = f32_set(f32_max_across(most)), f = f32_set(factor);
    f32x16 sum = f32_set(0.0f);
    EACH_16(i, n, width, {
        const f32x16 e = f32_keep_n(lanes_exp(f32_mul(f32_sub(f32_load(x + i), top), f)), width);
        sum = f32_add(sum, e);
        f32_store(x + i, e);
    });
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

/* Rows one after another in each of two passes: what a row's maximum waits for overlaps with the next row. */
static void ISA(softmax_i8)(int32_t *scores, int64_t stride, int rows, const int64_t *visible, int64_t padded,
                            float factor, uint8_t *codes, int32_t *sums) {
    int32_t tops[CQ_TILE_ROWS];
    for (int r = 0; r < rows; r++) {
        const int32_t *row = scores + r * stride;
        i32x16 most = i32_set(INT32_MIN);
        EACH_16(i, visible[r], width, {
            const i32x16 v = i32_load(row + i);
            most = i32_max(width == 16 ? v : i32_fill_n(v, width, INT32_MIN), most);
        });
        tops[r] = i32_max_across(most);
    }
    const f32x16 f = f32_set(factor);
    for (int r = 0; r < rows; r++) {
        const int32_t *row = scores + r * stride;
        uint8_t *to = codes + r * stride;
        const i32x16 top = i32_set(tops[r]);
        i32x16 total = i32_set(0);
#define CODES(i) \
    i32_from_f32(f32_mul(lanes_exp2(f32_mul(f32_from_i32(i32_sub(i32_load(row + i), top)), f)), f32_set(255.0f)))
        const int64_t whole = visible[r] / 64 * 64;
        for (int64_t i = 0; i < whole; i += 64) {
            const i32x16 q0 = CODES(i), q1 = CODES(i + 16), q2 = CODES(i + 32), q3 = CODES(i + 48);
            total = i32_add(total, i32_add(i32_add(q0, q1), i32_add(q2, q3)));
            i32_store_8x4(to + i, q0, q1, q2, q3, 0);
        }
        EACH_16(i, visible[r] - whole, width, {
            const i32x16 q = some_codes(CODES(whole + i), width);
            total = i32_add(total, q);
            i32_store_8(to + whole + i, q, 16);
        });
#undef CODES
        clear(to, visible[r], padded);
        sums[r] = i32_sum(total);
    }
}

static void ISA(softmax_scaled)(int32_t *scores, int64_t stride, int rows, const int64_t *visible, int64_t padded,
                                const float *factors, const cq_key_scales *scales, uint8_t *codes, float *sums) {
    const float *keys = scales->keys, *logs = scales->logs, *values_255 = scales->values_255;
    float tops[CQ_TILE_ROWS];
    for (int r = 0; r < rows; r++) {
        const int32_t *row = scores + r * stride;
        float *to = (float *)scores + r * stride;
        const f32x16 f = f32_set(factors[r]);
        f32x16 most = f32_set(-INFINITY);
        const int64_t n = visible[r];
        EACH_16(i, n, width, {
            const f32x16 v = f32_mul(f32_from_i32(i32_load(row + i)), f32_load(keys + i));
            const f32x16 reach = f32_fma(v, f, f32_load(logs + i));
            most = f32_max(width == 16 ? reach : f32_fill_n(reach, width, -INFINITY), most);
            f32_store(to + i, v);
        });
        tops[r] = f32_max_across(most);
    }
    for (int r = 0; r < rows; r++) {
        const float *row = (const float *)scores + r * stride;
        uint8_t *to = codes + r * stride;
        const f32x16 f = f32_set(factors[r]), minus_top = f32_set(-tops[r]);
        f32x16 total = f32_set(0.0f);
#define EXP2(i) lanes_exp2(f32_fma(f32_load(row + i), f, minus_top))
/* large scores round, so that the top may come out too low: a weight must not pass 255 */
#define CODES(e, i) i32_from_f32(f32_min(f32_set(255.0f), f32_mul(e, f32_load(values_255 + i))))
        const int64_t whole = visible[r] / 64 * 64;
        for (int64_t i = 0; i < whole; i += 64) {
            const f32x16 e0 = EXP2(i), e1 = EXP2(i + 16), e2 = EXP2(i + 32), e3 = EXP2(i + 48);
            total = f32_add(f32_add(f32_add(f32_add(total, e0), e1), e2), e3);
            i32_store_8x4(to + i, CODES(e0, i), CODES(e1, i + 16), CODES(e2, i + 32), CODES(e3, i + 48), 0);
        }
        EACH_16(i, visible[r] - whole, width, {
            f32x16 e = EXP2(whole + i);
            if (width < 16) e = f32_keep_n(e, width);
            total = f32_add(total, e);
            i32_store_8(to + whole + i, CODES(e, whole + i), 16);
        });
#undef CODES
#undef EXP2
        clear(to, visible[r], padded);
        sums[r] = f32_sum(total);
    }
}
