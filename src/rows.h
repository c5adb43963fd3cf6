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

/* x (1 + erf(x / sqrt 2)) / 2, erf(z) = z p(z^2) with p of degree 15 on [0, 3.83], where erf is 1; absolute error 2e-7.
 * At the end p passes 1 by a last bit and is cut to it: a last bit less would leave GELU(-x) = -3e-8 x for every large x. */
INLINE f32x16 lanes_gelu(f32x16 x) {
    static const float p[16] = {
        0.369199038f, -0.184231311f, 0.136823848f, -0.110717334f, 0.0908087417f, -0.0728655756f, 0.0560657643f,
        -0.0405699126f, 0.0270885434f, -0.0174966659f, 0.0115578063f, -0.00608423585f, 0.00179046823f, -0.00113259139f,
        0.00140366529f, -0.000543612f};
    const f32x16 z = f32_min(f32_mul(f32_abs(x), f32_set(0.70710678f)), f32_set(3.83f));
    const f32x16 v = f32_fma(f32_mul(z, z), f32_set(1.0f / (3.83f * 3.83f / 2)), f32_set(-1.0f));
    f32x16 y = f32_set(p[15]);
    for (int i = 14; i >= 0; i--) y = f32_fma(y, v, f32_set(p[i]));
    const f32x16 erf = f32_min(f32_mul(y, z), f32_set(1.0f)), half = f32_mul(x, f32_set(0.5f));
    return f32_fma(f32_abs(half), erf, half);
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

#define EACH_16(i, n, width) for (int64_t i = 0, width; i < (n) && (width = (n) - i < 16 ? (n) - i : 16); i += 16)
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
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const f32x16 v = f32_load(x + i);
        least = f32_min(v, least), most = f32_max(v, most), seen = watch(seen, v);
    }
    if (i < n) {
        const f32x16 v = f32_load_n(x + i, n - i);
        seen = watch(seen, v);
        least = f32_min(f32_fill_n(v, n - i, INFINITY), least), most = f32_max(f32_fill_n(v, n - i, -INFINITY), most);
    }
    *lo = -f32_max_across(f32_sub(f32_set(0.0f), least));
    *hi = f32_max_across(most);
    return all_finite(seen);
}

/* clip(rint(x / scale) + zero_point) as int32 */
INLINE i32x16 lanes_encode(f32x16 x, f32x16 scale, f32x16 zero_point, f32x16 qmin, f32x16 qmax) {
    const f32x16 q = f32_add(f32_round(f32_div(x, scale)), zero_point);
    return i32_from_f32(f32_min(f32_max(q, qmin), qmax));
}

static int ISA(quantize)(const float *x, int64_t n, const cq_codes *out, int64_t row) {
    float scale = out->scale, qmin, qmax;
    int32_t zero_point = out->zero_point;
    if (out->dynamic) {
        float lo, hi;
        if (!ISA(min_max)(x, n, &lo, &hi)) return 0;
        cq_row_params(lo, hi, out->is_signed, out->symmetric, &scale, &zero_point);
        out->scales[row] = scale, out->zero_points[row] = zero_point;
    }
    cq_code_range(out->is_signed, out->symmetric, &qmin, &qmax);
    const f32x16 s = f32_set(scale), z = f32_set((float)zero_point), least = f32_set(qmin), most = f32_set(qmax);
    f32x16 seen = f32_set(0.0f);
    i32x16 sum = i32_set(0);
    uint8_t *codes = (uint8_t *)out->codes + row * out->stride;
    EACH_16(i, n, width) {
        const f32x16 v = load_some(x + i, width);
        const i32x16 q = lanes_encode(v, s, z, least, most);
        seen = watch(seen, v);
        sum = i32_add(sum, width == 16 ? q : i32_fill_n(q, width, 0));
        i32_store_8(codes + i, q, width);
    }
    if (out->row_sums) out->row_sums[row] = i32_sum(sum);
    return all_finite(seen);
}

INLINE f32x16 lanes_decode(const cq_coded *in, int64_t row, int64_t column, int64_t n) {
    const uint8_t *codes = (const uint8_t *)in->codes + row * in->stride + column;
    const i32x16 q = in->is_signed ? i32_load_s8(codes, n) : i32_load_u8(codes, n);
    const int32_t zero_point = in->zero_points ? in->zero_points[row] : in->zero_point;
    const f32x16 x = f32_mul(f32_set(in->scales ? in->scales[row] : in->scale), f32_from_i32(i32_sub(q, i32_set(zero_point))));
    return f32_min(f32_max(x, f32_set(-FLT_MAX)), f32_set(FLT_MAX)); /* s * 128 may pass the largest float32 */
}

static void ISA(dequantize)(const cq_coded *in, int64_t row, int64_t n, float *y) {
    EACH_16(i, n, width) store_some(y + i, lanes_decode(in, row, i, width), width);
}

static int32_t ISA(sum_codes)(const uint8_t *codes, int64_t n) {
    i32x16 sum = i32_set(0);
    EACH_16(i, n, width) sum = i32_add(sum, i32_load_u8(codes + i, width));
    return i32_sum(sum);
}

static void ISA(flip)(const uint8_t *codes, int64_t n, uint8_t *out) {
    for (int64_t i = 0; i < n; i++) out[i] = codes[i] ^ 0x80;
}

/* --- norm, gate, positions ----------------------------------------------------------------------------------------------- */

static void ISA(norm)(const cq_norm_args *a, int64_t row, int64_t n, float *y) {
    const float *x = a->x + row * n, *residual = a->residual ? a->residual + row * n : NULL;
    float *kept = a->sum ? a->sum + row * n : y; /* x + residual */
    f32x16 total = f32_set(0.0f), squares = f32_set(0.0f);
    EACH_16(i, n, width) {
        f32x16 v = load_some(x + i, width);
        if (residual) v = f32_add(v, load_some(residual + i, width));
        total = f32_add(total, v), squares = f32_fma(v, v, squares);
        store_some(kept + i, v, width);
    }
    float mean = 0.0f;
    if (!a->rms) { /* second pass around the mean: the difference of two large sums would lose digits */
        mean = f32_sum(total) / (float)n;
        squares = f32_set(0.0f);
        EACH_16(i, n, width) {
            f32x16 v = f32_sub(load_some(kept + i, width), f32_set(mean));
            if (width < 16) v = f32_keep_n(v, width);
            squares = f32_fma(v, v, squares);
        }
    }
    const float variance = f32_sum(squares) / (float)n;
    /* where the squares overflowed the factor would be 0 and so would y; 0 * Inf makes it NaN, which the driver reports */
    const f32x16 center = f32_set(mean), factor = f32_set(1.0f / sqrtf(variance + a->eps) + 0.0f * variance);
    EACH_16(i, n, width) {
        const f32x16 v = f32_mul(f32_sub(load_some(kept + i, width), center), factor), w = load_some(a->weight + i, width);
        store_some(y + i, a->bias ? f32_fma(v, w, load_some(a->bias + i, width)) : f32_mul(v, w), width);
    }
}

static void ISA(gate)(const float *gate, const float *up, cq_activation activation, int64_t n, float *y) {
    EACH_16(i, n, width) {
        const f32x16 g = lanes_activate(activation, load_some(gate + i, width));
        store_some(y + i, f32_mul(g, load_some(up + i, width)), width);
    }
}

static void ISA(rope)(float *x, int64_t dim, const float *cosine, const float *sine) {
    const int64_t half = dim / 2;
    EACH_16(i, half, width) {
        const f32x16 a = load_some(x + i, width), b = load_some(x + half + i, width);
        const f32x16 c = load_some(cosine + i, width), s = load_some(sine + i, width), minus_s = f32_sub(f32_set(0.0f), s);
        store_some(x + i, f32_fma(b, minus_s, f32_mul(a, c)), width);
        store_some(x + half + i, f32_fma(a, s, f32_mul(b, c)), width);
    }
}

static void ISA(add)(const float *x, int64_t n, float *y) {
    EACH_16(i, n, width) store_some(y + i, f32_add(load_some(y + i, width), load_some(x + i, width)), width);
}

static void ISA(scale)(float factor, int64_t n, float *y) {
    EACH_16(i, n, width) store_some(y + i, f32_mul(load_some(y + i, width), f32_set(factor)), width);
}

/* --- softmax ------------------------------------------------------------------------------------------------------------- */

static float ISA(softmax_f32)(float *x, int64_t n, float factor) {
    f32x16 most = f32_set(-INFINITY);
    EACH_16(i, n, width) most = f32_max(f32_fill_n(f32_load(x + i), width, -INFINITY), most);
    const f32x16 top = f32_set(f32_max_across(most)), f = f32_set(factor);
    f32x16 sum = f32_set(0.0f);
    EACH_16(i, n, width) {
        const f32x16 e = f32_keep_n(lanes_exp(f32_mul(f32_sub(f32_load(x + i), top), f)), width);
        sum = f32_add(sum, e);
        f32_store(x + i, e);
    }
    return f32_sum(sum);
}

static int32_t ISA(softmax_i8)(const int32_t *sums, const int32_t *correction, int64_t n, int64_t padded, float factor,
                               uint8_t *codes) {
    i32x16 most = i32_set(INT32_MIN);
    EACH_16(i, n, width) {
        const i32x16 v = i32_sub(i32_load(sums + i), i32_load(correction + i));
        most = i32_max(i32_fill_n(v, width, INT32_MIN), most);
    }
    const i32x16 top = i32_set(i32_max_across(most));
    const f32x16 f = f32_set(factor);
    i32x16 total = i32_set(0);
    EACH_16(i, n, width) {
        const i32x16 v = i32_sub(i32_sub(i32_load(sums + i), i32_load(correction + i)), top);
        const f32x16 e = lanes_exp(f32_mul(f32_from_i32(v), f));
        const i32x16 q = i32_fill_n(i32_from_f32(f32_mul(e, f32_set(255.0f))), width, 0);
        total = i32_add(total, q);
        i32_store_8(codes + i, q, 16);
    }
    const int64_t done = (n + 15) / 16 * 16;
    if (done < padded) memset(codes + done, 0, (size_t)(padded - done));
    return i32_sum(total);
}
