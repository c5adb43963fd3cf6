/* Work on one row, written once over 16 lanes and compiled for every instruction set: the same operations in the same order
 * give the same bits. Included by kernel_*.c, which define the lanes. */

/* --- functions of a real variable ---------------------------------------------------------------------------------------- */

/* exp(x), x clamped to [-87.33, 89], Inf from 88.73: 2^n times a degree-6 polynomial on [-ln2/2, ln2/2], relative error 1e-7.
 * NaN passes: minimum and maximum return their second operand where either is NaN. */
INLINE f32x16 lanes_exp(f32x16 x) {
    x = f32_max(f32_set(-87.33f), f32_min(f32_set(89.0f), x));
    const f32x16 n = f32_round(f32_mul(x, f32_set(1.44269504f)));
    f32x16 r = f32_fma(n, f32_set(-0.693145752f), x); /* ln2 in two parts: the first has 15 trailing zero bits */
    r = f32_fma(n, f32_set(-1.42860677e-6f), r);
    f32x16 p = f32_set(0.0013814596459269524f);
    p = f32_fma(p, r, f32_set(0.0083687175065279f));
    p = f32_fma(p, r, f32_set(0.04166838899254799f));
    p = f32_fma(p, r, f32_set(0.1666652113199234f));
    p = f32_fma(p, r, f32_set(0.4999999403953552f));
    p = f32_fma(f32_mul(r, r), p, f32_add(r, f32_set(1.0f)));
    /* 2^n in two factors, as n = 128 has no exponent of its own */
    const i32x16 e = i32_from_f32(n), half = i32_sar(e, 1);
    const f32x16 a = f32_bits(i32_shl(i32_add(half, i32_set(127)), 23));
    const f32x16 b = f32_bits(i32_shl(i32_add(i32_sub(e, half), i32_set(127)), 23));
    return f32_mul(f32_mul(p, a), b);
}

/* x / (1 + exp(-x)) */
INLINE f32x16 lanes_silu(f32x16 x) {
    return f32_div(x, f32_add(f32_set(1.0f), lanes_exp(f32_sub(f32_set(0.0f), x))));
}

/* x Phi(x) = max(0, x) - g(|x|), g(a) = a Phi(-a): in 15 pieces around n * 0.37 a polynomial of degree 4 in a - n * 0.37, fitted at
 * Chebyshev nodes, from 5.37 on 0; absolute error 3.5e-7. Inf times the last piece's zeros is NaN, so that Inf stays visible. */
INLINE f32x16 lanes_gelu(f32x16 x) {
    static const float c[5][16] = {
        {0.0f, 0.131605759f, 0.169941008f, 0.148184463f, 0.102766208f, 0.0594900362f, 0.0293248296f, 0.0124288807f,
         0.00455305679f, 0.00144598552f, 0.000398859207f, 9.56719086e-05f, 1.99709593e-05f, 3.62990659e-06f, 5.7469407e-07f, 0.0f},
        {0.5f, 0.21785526f, 0.00515028508f, -0.105654702f, -0.12804839f, -0.101166442f, -0.0621418431f, -0.0313071534f,
         -0.0132408664f, -0.00475861551f, -0.001463625f, -0.000387014763f, -8.82460517e-05f, -1.73885564e-05f, -2.96558846e-06f, 0.0f},
        {-0.398947984f, -0.347043544f, -0.220322743f, -0.0827295482f, 0.0126997f, 0.0512555242f, 0.049697157f, 0.0328167938f,
         0.0168805737f, 0.00708716316f, 0.0024827458f, 0.000734702975f, 0.000185064739f, 3.98819066e-05f, 7.37939672e-06f, 0.0f},
        {0.000147982966f, 0.0879430398f, 0.12820369f, 0.109819964f, 0.0596503243f, 0.0132068833f, -0.0113393748f, -0.0161565896f,
         -0.0117195286f, -0.00617046654f, -0.00256894459f, -0.000876150734f, -0.000249346136f, -5.98703155e-05f, -1.22159754e-05f, 0.0f},
        {0.0655232593f, 0.0472073331f, 0.00601264229f, -0.0275469068f, -0.0360725112f, -0.0247063804f, -0.00886708591f, 0.00109285221f,
         0.00399786886f, 0.0031997601f, 0.00169921177f, 0.000689977431f, 0.000225375916f, 6.07057264e-05f, 1.3677567e-05f, 0.0f},
    };
    const f32x16 a = f32_abs(x), shift = f32_set(12582912.0f); /* 1.5 * 2^23: the sum's low bits are the rounded integer */
    const f32x16 at = f32_add(f32_min(f32_mul(a, f32_set(1.0f / 0.37f)), f32_set(15.0f)), shift);
    const i32x16 piece = i32_bits(at);
    const f32x16 d = f32_fma(f32_sub(at, shift), f32_set(-0.37f), a);
    f32x16 g = f32_pick(c[4], piece);
    for (int i = 3; i >= 0; i--) g = f32_fma(g, d, f32_pick(c[i], piece));
    return f32_sub(f32_max(f32_set(0.0f), x), g);
}

/* x (1 + tanh(u)) / 2 = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel 2016) */
INLINE f32x16 lanes_gelu_tanh(f32x16 x) {
    const f32x16 inner = f32_fma(f32_mul(f32_mul(x, x), x), f32_set(0.044715f), x);
    const f32x16 e = lanes_exp(f32_mul(inner, f32_set(-1.59576912f)));
    return f32_div(x, f32_add(f32_set(1.0f), e));
}

INLINE f32x16 lanes_activate(const cq_activation activation, f32x16 x) {
    switch (activation) {
    case CQ_RELU: return f32_max(f32_set(0.0f), x); /* NaN stays NaN */
    case CQ_GELU: return lanes_gelu(x);
    case CQ_GELU_TANH: return lanes_gelu_tanh(x);
    case CQ_SILU: return lanes_silu(x);
    default: return x;
    }
}

/* Runs the block for i = 0, 16, 32 ... below n, `width` of the elements from i on; whole vectors see a constant width. */
#define EACH_16(i, n, width, ...) \
    do { \
        int64_t i = 0; \
        for (; i + 16 <= (n); i += 16) { \
            const int64_t width = 16; \
            __VA_ARGS__ \
        } \
        if (i < (n)) { \
            const int64_t width = (n) - i; \
            __VA_ARGS__ \
        } \
    } while (0)
INLINE f32x16 load_some(const float *p, int64_t n) { return n == 16 ? f32_load(p) : f32_load_n(p, n); }
INLINE void store_some(float *p, f32x16 x, int64_t n) {
    if (n == 16) f32_store(p, x);
    else f32_store_n(p, x, n);
}

/* --- codes --------------------------------------------------------------------------------------------------------------- */

/* 0 * x summed is 0 where all is finite and NaN where anything is not. */
INLINE f32x16 watch(f32x16 seen, f32x16 x) { return f32_fma(x, f32_set(0.0f), seen); }
INLINE int all_finite(f32x16 seen) { return f32_sum(seen) == 0.0f; }

static int ISA(min_max)(const float *x, int64_t n, float *lo, float *hi) {
    f32x16 least = f32_set(INFINITY), most = f32_set(-INFINITY), seen = f32_set(0.0f);
    EACH_16(i, n, width, {
        const f32x16 v = load_some(x + i, width);
        seen = watch(seen, v);
        least = f32_min(width == 16 ? v : f32_fill_n(v, width, INFINITY), least);
        most = f32_max(width == 16 ? v : f32_fill_n(v, width, -INFINITY), most);
    });
    *lo = -f32_max_across(f32_sub(f32_set(0.0f), least));
    *hi = f32_max_across(most);
    return all_finite(seen);
}

/* Largest magnitude. The bits of magnitudes sort as integers, those of Inf and NaN last. */
INLINE int abs_max(const float *x, int64_t n, float *hi) {
    i32x16 most = i32_set(0);
    EACH_16(i, n, width, { most = i32_max(most, i32_bits(f32_abs(load_some(x + i, width)))); });
    const int32_t bits = i32_max_across(most);
    memcpy(hi, &bits, 4);
    return bits < 0x7f800000;
}

/* clip(rint(x / scale) + zero_point) as int32. A division costs as much as ten products, so x is multiplied by the inverse,
 * which is off by 3 * 2^-24 of the quotient at most, 6e-5 where a code is not clipped anyway: only where that comes near the
 * middle between two codes is it divided. `inverse` is cq_inverse(scale). */
INLINE i32x16 lanes_encode(f32x16 x, f32x16 inverse, f32x16 scale, f32x16 zero_point, f32x16 qmin, f32x16 qmax) {
    f32x16 t = f32_mul(x, inverse), q = f32_round(t);
    if (__builtin_expect(f32_any_not_below(f32_abs(f32_sub(t, q)), f32_set(0.49994f)), 0)) q = f32_round(f32_div(x, scale));
    return i32_from_f32(f32_min(f32_max(f32_add(q, zero_point), qmin), qmax));
}

/* One set of parameters: a row, or a group of its columns. */
INLINE int quantize_span(const float *x, int64_t n, const cq_codes *out, uint8_t *codes, float *scale, int32_t *zero_point,
                         i32x16 *sum) {
    float qmin, qmax;
    if (out->dynamic) {
        float lo, hi;
        if (!(out->symmetric ? abs_max(x, n, &hi) : ISA(min_max)(x, n, &lo, &hi))) return 0;
        if (out->symmetric) lo = -hi;
        cq_row_params(lo, hi, out->is_signed, out->symmetric, scale, zero_point);
    }
    cq_code_range(out->is_signed, out->symmetric, &qmin, &qmax);
    const f32x16 s = f32_set(*scale), inverse = f32_set(cq_inverse(*scale)), z = f32_set((float)*zero_point);
    const f32x16 least = f32_set(qmin), most = f32_set(qmax);
    f32x16 seen = f32_set(0.0f);
    EACH_16(i, n, width, {
        const f32x16 v = load_some(x + i, width);
        const i32x16 q = lanes_encode(v, inverse, s, z, least, most);
        seen = watch(seen, v);
        *sum = i32_add(*sum, width == 16 ? q : i32_fill_n(q, width, 0));
        i32_store_8(codes + i, q, width);
    });
    return out->dynamic || all_finite(seen);
}

/* Given parameters of every column. */
INLINE int quantize_columns(const float *x, int64_t n, const cq_codes *out, uint8_t *codes, i32x16 *sum) {
    float qmin, qmax;
    cq_code_range(out->is_signed, out->symmetric, &qmin, &qmax);
    f32x16 seen = f32_set(0.0f);
    EACH_16(i, n, width, {
        const f32x16 v = load_some(x + i, width), scale = load_some(out->column_scales + i, width);
        const i32x16 zero_point = width == 16 ? i32_load(out->column_zero_points + i) : i32_load_n(out->column_zero_points + i, width);
        const i32x16 q = lanes_encode(v, f32_set(NAN), scale, f32_from_i32(zero_point), f32_set(qmin), f32_set(qmax));
        seen = watch(seen, v);
        *sum = i32_add(*sum, width == 16 ? q : i32_fill_n(q, width, 0));
        i32_store_8(codes + i, q, width);
    });
    return all_finite(seen);
}

static int ISA(quantize)(const float *x, int64_t n, const cq_codes *out, int64_t row) {
    uint8_t *codes = (uint8_t *)out->codes + row * out->stride;
    i32x16 sum = i32_set(0);
    int finite = 1;
    if (out->column_scales) {
        finite = quantize_columns(x, n, out, codes, &sum);
    } else if (!out->dynamic) {
        float scale = out->scale;
        int32_t zero_point = out->zero_point;
        finite = quantize_span(x, n, out, codes, &scale, &zero_point, &sum);
    } else {
        const int64_t group = out->group ? out->group : n, groups = (n + group - 1) / group;
        for (int64_t g = 0; g < groups; g++)
            finite &= quantize_span(x + g * group, g + 1 < groups ? group : n - g * group, out, codes + g * group,
                                    out->scales + row * groups + g, out->zero_points + row * groups + g, &sum);
    }
    if (out->row_sums) out->row_sums[row] = i32_sum(sum);
    return finite;
}

INLINE f32x16 lanes_decode(const cq_coded *in, int64_t row, int64_t column, int64_t n) {
    const uint8_t *codes = (const uint8_t *)in->codes + row * in->stride + column;
    const i32x16 q = in->is_signed ? i32_load_s8(codes, n) : i32_load_u8(codes, n);
    const int32_t zero_point = in->zero_points ? in->zero_points[row] : in->zero_point;
    const f32x16 x = f32_mul(f32_set(in->scales ? in->scales[row] : in->scale), f32_from_i32(i32_sub(q, i32_set(zero_point))));
    return f32_min(f32_max(x, f32_set(-FLT_MAX)), f32_set(FLT_MAX)); /* s * 128 may pass the largest float32 */
}

static void ISA(dequantize)(const cq_coded *in, int64_t row, int64_t n, float *y) {
    EACH_16(i, n, width, { store_some(y + i, lanes_decode(in, row, i, width), width); });
}

static int32_t ISA(sum_codes)(const uint8_t *codes, int64_t n) {
    i32x16 sum = i32_set(0);
    EACH_16(i, n, width, { sum = i32_add(sum, i32_load_u8(codes + i, width)); });
    return i32_sum(sum);
}

static void ISA(flip)(const uint8_t *codes, int64_t n, uint8_t *out) {
    for (int64_t i = 0; i < n; i++) out[i] = codes[i] ^ 0x80;
}

/* --- norm, gate, positions ----------------------------------------------------------------------------------------------- */

static int ISA(norm)(const cq_norm *norm, const float *x, const float *residual, int64_t n, float *kept, float *y) {
    f32x16 total = f32_set(0.0f), squares = f32_set(0.0f), seen = f32_set(0.0f);
    EACH_16(i, n, width, {
        f32x16 v = load_some(x + i, width);
        if (residual) v = f32_add(v, load_some(residual + i, width));
        if (norm->rms) squares = f32_fma(v, v, squares);
        else total = f32_add(total, v);
        if (residual || kept != x) store_some(kept + i, v, width);
    });
    float mean = 0.0f;
    if (!norm->rms) { /* second pass around the mean: the difference of two large sums would lose digits */
        mean = f32_sum(total) / (float)n;
        EACH_16(i, n, width, {
            f32x16 v = f32_sub(load_some(kept + i, width), f32_set(mean));
            if (width < 16) v = f32_keep_n(v, width);
            squares = f32_fma(v, v, squares);
        });
    }
    const float variance = f32_sum(squares) / (float)n;
    /* where the squares overflowed the factor would be 0 and so would y; 0 * Inf makes it NaN, which is found below */
    const f32x16 center = f32_set(mean), factor = f32_set(1.0f / sqrtf(variance + norm->eps) + 0.0f * variance);
    EACH_16(i, n, width, {
        const f32x16 v = f32_mul(f32_sub(load_some(kept + i, width), center), factor);
        const f32x16 w = load_some(norm->weight + i, width);
        const f32x16 z = norm->bias ? f32_fma(v, w, load_some(norm->bias + i, width)) : f32_mul(v, w);
        seen = watch(seen, z);
        store_some(y + i, z, width);
    });
    return all_finite(seen);
}

static void ISA(gate)(const float *gate, const float *up, cq_activation activation, int64_t n, float *y) {
    EACH_16(i, n, width, {
        const f32x16 g = lanes_activate(activation, load_some(gate + i, width));
        store_some(y + i, f32_mul(g, load_some(up + i, width)), width);
    });
}

static void ISA(rope)(float *x, int64_t dim, const float *cosine, const float *sine) {
    const int64_t half = dim / 2;
    EACH_16(i, half, width, {
        const f32x16 a = load_some(x + i, width), b = load_some(x + half + i, width);
        const f32x16 c = load_some(cosine + i, width), s = load_some(sine + i, width), minus_s = f32_sub(f32_set(0.0f), s);
        store_some(x + i, f32_fma(b, minus_s, f32_mul(a, c)), width);
        store_some(x + half + i, f32_fma(a, s, f32_mul(b, c)), width);
    });
}

static void ISA(add)(const float *x, int64_t n, float *y) {
    EACH_16(i, n, width, { store_some(y + i, f32_add(load_some(y + i, width), load_some(x + i, width)), width); });
}

static void ISA(scale)(float factor, int64_t n, float *y) {
    EACH_16(i, n, width, { store_some(y + i, f32_mul(load_some(y + i, width), f32_set(factor)), width); });
}

/* --- softmax ------------------------------------------------------------------------------------------------------------- */

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

/* 2^t for codes of 8 bits, t in [-125, 127], below it 2^-125: a polynomial of degree 3 on [-1/2, 1/2], relative error 1.1e-4, exact
 * at whole t. */
INLINE f32x16 lanes_exp2(f32x16 t) {
    const f32x16 shift = f32_set(12582912.0f); /* 1.5 * 2^23: the sum's low bits are the rounded integer */
    t = f32_max(t, f32_set(-125.0f)); /* large values' scales push t this far down */
    const f32x16 at = f32_add(t, shift), f = f32_sub(t, f32_sub(at, shift));
    f32x16 p = f32_fma(f, f32_set(0.0550090745f), f32_set(0.242210984f));
    p = f32_fma(p, f, f32_set(0.693282902f));
    p = f32_fma(p, f, f32_set(1.0f));
    return f32_bits(i32_add(i32_bits(p), i32_shl(i32_bits(at), 23)));
}

INLINE void clear(uint8_t *codes, int64_t n, int64_t padded) {
    const int64_t done = (n + 15) / 16 * 16;
    if (done < padded) memset(codes + done, 0, (size_t)(padded - done));
}

static int32_t ISA(softmax_i8)(int32_t *sums, int64_t n, int64_t padded, float factor, uint8_t *codes) {
    i32x16 most = i32_set(INT32_MIN), total = i32_set(0);
    EACH_16(i, n, width, {
        const i32x16 v = i32_load(sums + i);
        most = i32_max(width == 16 ? v : i32_fill_n(v, width, INT32_MIN), most);
    });
    const i32x16 top = i32_set(i32_max_across(most));
    const f32x16 f = f32_set(factor);
    EACH_16(i, n, width, {
        const f32x16 e = lanes_exp2(f32_mul(f32_from_i32(i32_sub(i32_load(sums + i), top)), f));
        i32x16 q = i32_from_f32(f32_mul(e, f32_set(255.0f)));
        if (width < 16) q = i32_fill_n(q, width, 0);
        total = i32_add(total, q);
        i32_store_8(codes + i, q, 16);
    });
    clear(codes, n, padded);
    return i32_sum(total);
}

static float ISA(softmax_scaled)(int32_t *sums, const float *key_scales, const float *value_scales, const float *log_scales,
                                 int64_t n, int64_t padded, float factor, uint8_t *codes) {
    f32x16 most = f32_set(-INFINITY), total = f32_set(0.0f);
    const f32x16 f = f32_set(factor);
    float *scores = (float *)sums;
    EACH_16(i, n, width, {
        const f32x16 v = f32_mul(f32_mul(f32_from_i32(i32_load(sums + i)), load_some(key_scales + i, width)), f);
        const f32x16 reach = f32_add(v, load_some(log_scales + i, width));
        most = f32_max(width == 16 ? reach : f32_fill_n(reach, width, -INFINITY), most);
        f32_store(scores + i, v);
    });
    const f32x16 top = f32_set(f32_max_across(most));
    EACH_16(i, n, width, {
        f32x16 e = lanes_exp2(f32_sub(f32_load(scores + i), top));
        if (width < 16) e = f32_keep_n(e, width);
        total = f32_add(total, e);
        const f32x16 weight = f32_mul(e, f32_mul(load_some(value_scales + i, width), f32_set(255.0f)));
        i32_store_8(codes + i, i32_from_f32(f32_min(weight, f32_set(255.0f))), 16); /* large scores round: `top` may be too low */
    });
    clear(codes, n, padded);
    return f32_sum(total);
}

static void ISA(interleave)(const uint8_t *const rows[4], int64_t n, uint8_t flip, uint32_t keep, int8_t *out) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t four = (uint32_t)rows[0][i] | (uint32_t)rows[1][i] << 8 | (uint32_t)rows[2][i] << 16 |
                              (uint32_t)rows[3][i] << 24;
        const uint32_t lane = (four ^ flip * 0x01010101u) & keep;
        memcpy(out + 4 * i, &lane, 4);
    }
}
