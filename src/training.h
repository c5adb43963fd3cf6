/* Training's passes over float32 rows: activations with their slopes, numbers rounded to codes that stay floats, what
 * follows a product of them, softmax and norms with their reverse, AdamW's step. Written once over 16 lanes; included
 * after softmax.h. */

/* 1 - s of s = 1 / (1 + e), without its cancellation. */
INLINE f32x16 rest_of_logistic(f32x16 e, f32x16 s) { return f32_mul(f32_min(e, f32_set(1e30f)), s); }

/* act(x) and its derivative. Beyond +-13 slopes no longer change. */
BULKY void lanes_slope(const cq_activation activation, f32x16 x, f32x16 *y, f32x16 *slope) {
    const f32x16 nothing = f32_set(0.0f), one = f32_set(1.0f);
    const f32x16 z = f32_max(f32_set(-13.0f), f32_min(f32_set(13.0f), x)), square = f32_mul(z, z);
    switch (activation) {
    case CQ_RELU: {
        *y = f32_max(nothing, x);
        *slope = f32_where_zero(*y, nothing, one);
        return;
    }
    case CQ_GELU: {
        /* x P(x) and P(x) + x p(x), P the normal distribution by erfc to 7.5e-8 (Abramowitz, Stegun 1964, 7.1.26) */
        const f32x16 bell = lanes_exp(f32_mul(square, f32_set(-0.5f)));
        const f32x16 t = f32_div(one, f32_fma(f32_abs(z), f32_set(0.231641888f), one));
        f32x16 p = f32_fma(t, f32_set(0.5307027145f), f32_set(-0.7265760135f));
        p = f32_fma(p, t, f32_set(0.7107068705f));
        p = f32_fma(p, t, f32_set(-0.142248368f));
        p = f32_fma(p, t, f32_set(0.127414796f));
        const f32x16 inside = f32_sub(f32_set(0.5f), f32_mul(f32_mul(p, t), bell)); /* P(|x|) - 1/2 */
        const i32x16 sign = i32_and(i32_bits(z), i32_set(INT32_MIN));
        p = f32_add(f32_set(0.5f), f32_bits(i32_xor(i32_bits(inside), sign)));
        *y = f32_mul(x, p);
        *slope = f32_fma(f32_mul(z, bell), f32_set(0.3989422804f), p);
        return;
    }
    case CQ_GELU_TANH: { /* x s(2u), s the logistic function, u = sqrt(2 / pi) (x + 0.044715 x^3) */
        const f32x16 u = f32_mul(f32_fma(square, f32_set(0.044715f), one), z);
        const f32x16 e = lanes_exp(f32_mul(u, f32_set(-1.59576912f))), s = f32_div(one, f32_add(one, e));
        const f32x16 inner = f32_fma(square, f32_set(0.2140644f), f32_set(1.59576912f)); /* the derivative of 2u */
        *y = f32_mul(x, s);
        *slope = f32_fma(f32_mul(f32_mul(z, inner), rest_of_logistic(e, s)), s, s);
        return;
    }
    case CQ_SILU: {
        const f32x16 e = lanes_exp(f32_sub(nothing, x)), s = f32_div(one, f32_add(one, e));
        *y = f32_mul(x, s);
        *slope = f32_mul(s, f32_fma(x, rest_of_logistic(e, s), one));
        return;
    }
    default: *y = x, *slope = one;
    }
}

static void ISA(slope)(const float *x, cq_activation activation, int64_t n, float *y, float *slope) {
#define SLOPES(name) \
    case name: \
        EACH_16(i, n, width, { \
            f32x16 value, its_slope; \
            lanes_slope(name, load_some(x + i, width), &value, &its_slope); \
            store_some(y + i, value, width); \
            store_some(slope + i, its_slope, width); \
        }); \
        break;
    switch (activation) { SLOPES(CQ_RELU) SLOPES(CQ_GELU) SLOPES(CQ_GELU_TANH) SLOPES(CQ_SILU) default : break; }
#undef SLOPES
}

BULKY int round_row(const int by_column, const float *x, int64_t n, const float *scales, const float *lows,
                    const float *highs, const float *shifts, float *y, uint8_t *bytes) {
#define OF(array) (by_column ? load_some(array + i, width) : f32_set(*array))
    f32x16 beyond = f32_set(0.0f);
    EACH_16(i, n, width, {
        const f32x16 q = f32_round(f32_div(load_some(x + i, width), OF(scales))), low = OF(lows);
        const f32x16 kept = f32_min(f32_max(q, low), OF(highs));
        beyond = f32_max(f32_abs(f32_sub(kept, q)), beyond); /* lanes beside the row may be NaN, which does not pass */
        store_some(y + i, shifts ? f32_add(kept, OF(shifts)) : kept, width);
        i32_store_8(bytes + i, i32_from_f32(f32_sub(kept, low)), width);
    });
#undef OF
    return f32_max_across(beyond) > 0.0f;
}

static int ISA(round)(const float *x, int64_t n, const cq_rounding *r, int64_t row, float *y, uint8_t *bytes) {
    const int64_t at = r->by_column ? 0 : row;
    const float *scales = r->scales + at, *lows = r->lows + at, *highs = r->highs + at;
    const float *shifts = r->shifts ? r->shifts + at : NULL;
    return r->by_column ? round_row(1, x, n, scales, lows, highs, shifts, y, bytes)
                        : round_row(0, x, n, scales, lows, highs, shifts, y, bytes);
}

BULKY float exponents_row(const int coded, float *x, int64_t n, float factor) {
    f32x16 most = f32_set(-INFINITY), sum = f32_set(0.0f);
    EACH_16(i, n, width, {
        const f32x16 v = load_some(x + i, width);
        most = f32_max(width == 16 ? v : f32_fill_n(v, width, -INFINITY), most);
    });
    const f32x16 top = f32_set(f32_max_across(most)), f = f32_set(factor);
    EACH_16(i, n, width, {
        const f32x16 t = f32_mul(f32_sub(load_some(x + i, width), top), f);
        /* what is masked out comes to 2^-126, which is to be 0 */
        f32x16 e = coded ? f32_round(f32_mul(lanes_exp2(t), f32_set(255.0f)))
                         : f32_max(f32_set(0.0f), f32_sub(lanes_exp(t), f32_set(2e-38f)));
        if (width < 16) e = f32_keep_n(e, width);
        sum = f32_add(sum, e);
        store_some(x + i, e, width);
    });
    return f32_sum(sum);
}
static float ISA(exponents)(float *x, int64_t n, float factor, int coded) {
    return coded ? exponents_row(1, x, n, factor) : exponents_row(0, x, n, factor);
}

static void ISA(softmax_back)(float *g, const float *p, int64_t n, float inverse, float factor) {
    const f32x16 nothing = f32_set(0.0f);
    f32x16 dots[4] = {nothing, nothing, nothing, nothing};
    SUM_4(i, n, { dots[slot] = f32_fma(load_some(g + i, width), load_some(p + i, width), dots[slot]); });
    const f32x16 center = f32_set(sum_of_4(dots) * inverse), outer = f32_set(inverse * factor);
    EACH_16(i, n, width, {
        const f32x16 d = f32_mul(f32_sub(load_some(g + i, width), center), load_some(p + i, width));
        store_some(g + i, f32_mul(d, outer), width);
    });
}

static void ISA(adamw)(const cq_adamw *a, const float *g, int64_t n, const float *units, float *mean, float *square,
                       float *p) {
    const f32x16 b1 = f32_set(a->beta1), b2 = f32_set(a->beta2), g1 = f32_set(a->gradient),
                 g2 = f32_set(a->gradient_square);
    const f32x16 root = f32_set(a->root), eps = f32_set(a->epsilon), rate = f32_set(a->rate), keep = f32_set(a->keep);
    EACH_16(i, n, width, {
        const f32x16 d = load_some(g + i, width);
        const f32x16 m = f32_fma(b1, load_some(mean + i, width), f32_mul(d, g1));
        const f32x16 v = f32_fma(b2, load_some(square + i, width), f32_mul(f32_mul(d, d), g2));
        f32x16 w = f32_mul(load_some(p + i, width), keep);
        f32x16 update = f32_div(f32_mul(m, rate), f32_fma(f32_sqrt(v), root, eps));
        if (units) {
            const f32x16 half = f32_mul(f32_abs(w), f32_set(0.5f));
            update = f32_mul(f32_mul(update, load_some(units + i, width)), w);
            update = f32_max(f32_sub(f32_set(0.0f), half), f32_min(half, update));
        }
        store_some(mean + i, m, width);
        store_some(square + i, v, width);
        store_some(p + i, f32_sub(w, update), width);
    });
}

BULKY void rescale_row(const int add_before, const int add_after, const float *x, int64_t n, const cq_rescaling *r,
                       f32x16 of_row, float *y) {
    EACH_16(i, n, width, {
        f32x16 v = load_some(x + i, width);
        if (add_before) v = f32_add(v, load_some(r->before + i, width));
        v = f32_mul(v, f32_mul(of_row, load_some(r->scales + i, width)));
        if (add_after) v = f32_add(v, load_some(r->after + i, width));
        store_some(y + i, v, width);
    });
}
static void ISA(rescale)(const float *x, int64_t n, const cq_rescaling *r, int64_t row, float *y) {
    const f32x16 of_row = f32_set(r->row_scales ? r->row_scales[row] : 1.0f);
    if (r->before) r->after ? rescale_row(1, 1, x, n, r, of_row, y) : rescale_row(1, 0, x, n, r, of_row, y);
    else r->after ? rescale_row(0, 1, x, n, r, of_row, y) : rescale_row(0, 0, x, n, r, of_row, y);
}

static float ISA(norm_kept)(const cq_norm *norm, const float *x, int64_t n, float *kept, float *y) {
    const f32x16 nothing = f32_set(0.0f);
    f32x16 total[4] = {nothing, nothing, nothing, nothing}, squares[4] = {nothing, nothing, nothing, nothing};
    float mean = 0.0f;
    if (!norm->rms) {
        SUM_4(i, n, { total[slot] = f32_add(total[slot], load_some(x + i, width)); });
        mean = sum_of_4(total) / (float)n;
    }
    const f32x16 center = f32_set(mean);
    SUM_4(i, n, {
        f32x16 v = f32_sub(load_some(x + i, width), center);
        if (width < 16) v = f32_keep_n(v, width);
        squares[slot] = f32_fma(v, v, squares[slot]);
    });
    const float factor = 1.0f / sqrtf(sum_of_4(squares) / (float)n + norm->eps);
    EACH_16(i, n, width, {
        const f32x16 v = f32_mul(f32_sub(load_some(x + i, width), center), f32_set(factor));
        const f32x16 w = load_some(norm->weight + i, width);
        store_some(kept + i, v, width);
        store_some(y + i, norm->bias ? f32_fma(v, w, load_some(norm->bias + i, width)) : f32_mul(v, w), width);
    });
    return factor;
}

static void ISA(norm_back)(const cq_norm *norm, const float *kept, float factor, const float *g, int64_t n,
                           float *of_weight, float *dx) {
    const f32x16 nothing = f32_set(0.0f);
    f32x16 total[4] = {nothing, nothing, nothing, nothing}, dots[4] = {nothing, nothing, nothing, nothing};
    SUM_4(i, n, {
        const f32x16 d = f32_mul(load_some(g + i, width), load_some(norm->weight + i, width));
        total[slot] = f32_add(total[slot], d);
        dots[slot] = f32_fma(d, load_some(kept + i, width), dots[slot]);
    });
    const f32x16 mean = f32_set(norm->rms ? 0.0f : sum_of_4(total) / (float)n),
                 along = f32_set(sum_of_4(dots) / (float)n);
    EACH_16(i, n, width, {
        const f32x16 each = load_some(g + i, width), v = load_some(kept + i, width);
        const f32x16 d = f32_sub(f32_mul(each, load_some(norm->weight + i, width)), mean);
        store_some(of_weight + i, f32_mul(each, v), width);
        store_some(dx + i, f32_mul(f32_sub(d, f32_mul(v, along)), f32_set(factor)), width);
    });
}

static float ISA(dot)(const float *x, const float *y, int64_t n) {
    const f32x16 nothing = f32_set(0.0f);
    f32x16 sums[4] = {nothing, nothing, nothing, nothing};
    SUM_4(i, n, { sums[slot] = f32_fma(load_some(x + i, width), load_some(y + i, width), sums[slot]); });
    return sum_of_4(sums);
}

/* Runs of rows are summed before they are added, as one running sum would lose digits. */
static void ISA(column_sums)(const float *x, int64_t stride, int64_t rows, int64_t n, float *y) {
    enum { RUN = 64 };
    EACH_16(j, n, width, {
        f32x16 total = f32_set(0.0f);
        for (int64_t r = 0; r < rows; r += RUN) {
            f32x16 run = f32_set(0.0f);
            for (int64_t i = r; i < r + RUN && i < rows; i++) run = f32_add(run, load_some(x + i * stride + j, width));
            total = f32_add(total, run);
        }
        store_some(y + j, total, width);
    });
}
