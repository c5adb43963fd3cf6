/* Work on one row, written once over 16 lanes and compiled for every instruction set: the same operations in the same
 * order give the same bits. Included by kernel_*.c, which define the lanes, and INLINE, which always inlines, and
 * BULKY, which does so too but in the scalar kernels, where one copy is enough. */
#include "functions.h"

/* Runs the block for i = 0, 16, 32 ... below n, `width` of the elements from i on; whole vectors see a constant width.
 * */
#ifndef EACH_16
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
#endif
INLINE f32x16 load_some(const float *p, int64_t n) { return n == 16 ? f32_load(p) : f32_load_n(p, n); }
INLINE void store_some(float *p, f32x16 x, int64_t n) {
    if (n == 16) f32_store(p, x);
    else f32_store_n(p, x, n);
}

/* --- codes -------------------------------------------------------------------------------------------------------- */

/* The largest magnitude's bits: magnitudes sort as integers, Inf and NaN last. */
INLINE i32x16 watch(i32x16 seen, f32x16 x) { return i32_max(seen, i32_bits(f32_abs(x))); }
INLINE int all_finite(i32x16 seen) { return i32_max_across(seen) < 0x7f800000; }

static int ISA(min_max)(const float *x, int64_t n, float *lo, float *hi) {
    f32x16 least = f32_set(INFINITY), most = f32_set(-INFINITY);
    i32x16 seen = i32_set(0);
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

INLINE int abs_max(const float *x, int64_t n, float *hi) {
    i32x16 seen = i32_set(0);
    EACH_16(i, n, width, { seen = watch(seen, load_some(x + i, width)); });
    const int32_t bits = i32_max_across(seen);
    memcpy(hi, &bits, 4);
    return bits < 0x7f800000;
}

/* clip(rint(x / scale) + zero_point) as int32. A division costs as much as ten products, so x is multiplied by the
 * inverse, which is off by 3 * 2^-24 of the quotient at most, 6e-5 where a code is not clipped anyway: only where that
 * comes near the middle between two codes is it divided. `inverse` is cq_inverse(scale). */
BULKY i32x16 lanes_encode(f32x16 x, f32x16 inverse, f32x16 scale, f32x16 zero_point, f32x16 qmin, f32x16 qmax) {
    f32x16 t = f32_mul(x, inverse), q = f32_round(t);
    if (__builtin_expect(f32_any_not_below(f32_abs(f32_sub(t, q)), f32_set(0.49994f)), 0))
        q = f32_round(f32_div(x, scale));
    return i32_from_f32(f32_min(f32_max(f32_add(q, zero_point), qmin), qmax));
}

/* How four vectors become 64 codes: parameters of every column, of every vector, or one for all. Where one inverse is
 * NaN all are. Packing saturates; before it only what int32 cannot hold is cut, and -128 where codes are symmetric. */
enum { BY_COLUMN, BY_VECTOR, BY_ONE };
typedef struct {
    const float *inverses, *scales, *zeros;
    float qmin, qmax;
    int is_signed;
} encoding;

#define FOUR(X) X(0) X(1) X(2) X(3)
BULKY void encode_64(const int by, const int clip, const encoding *e, f32x16 x0, f32x16 x1, f32x16 x2, f32x16 x3,
                     uint8_t *to) {
#define OF(array, p) (by == BY_COLUMN ? f32_load(e->array + 16 * p) : f32_set(e->array[by == BY_VECTOR ? p : 0]))
#define ROUND(p) const f32x16 t##p = f32_mul(x##p, OF(inverses, p)); f32x16 q##p = f32_round(t##p);
#define OFF(p) f32_abs(f32_sub(t##p, q##p))
    FOUR(ROUND)
    const f32x16 off = f32_max(f32_max(OFF(0), OFF(1)), f32_max(OFF(2), OFF(3)));
    if (__builtin_expect(f32_any_not_below(off, f32_set(0.49994f)), 0)) {
#define DIVIDE(p) q##p = f32_round(f32_div(x##p, OF(scales, p)));
        FOUR(DIVIDE)
    }
#define ADD_ZERO(p) q##p = f32_add(q##p, OF(zeros, p));
    FOUR(ADD_ZERO)
    if (clip) {
        const f32x16 most = f32_set(e->qmax);
#define CUT(p) q##p = f32_min(q##p, most);
        FOUR(CUT)
        if (e->qmin == -127.0f) {
            const f32x16 least = f32_set(e->qmin);
#define RAISE(p) q##p = f32_max(q##p, least);
            FOUR(RAISE)
        }
    }
    i32_store_8x4(to, i32_from_f32(q0), i32_from_f32(q1), i32_from_f32(q2), i32_from_f32(q3), e->is_signed);
#undef RAISE
#undef CUT
#undef ADD_ZERO
#undef DIVIDE
#undef OFF
#undef ROUND
#undef OF
}

/* n elements with one set of parameters. */
BULKY void encode_span(const int clip, const float *x, int64_t n, const encoding *e, uint8_t *codes) {
    int64_t at = 0;
    for (; at + 64 <= n; at += 64)
        encode_64(BY_ONE, clip, e, f32_load(x + at), f32_load(x + at + 16), f32_load(x + at + 32),
                  f32_load(x + at + 48), codes + at);
    const f32x16 inverse = f32_set(*e->inverses), scale = f32_set(*e->scales), zero = f32_set(*e->zeros);
    EACH_16(i, n - at, width, {
        const f32x16 v = load_some(x + at + i, width);
        i32_store_8(codes + at + i, lanes_encode(v, inverse, scale, zero, f32_set(e->qmin), f32_set(e->qmax)), width);
    });
}

/* Parameters of each row's own. */
INLINE int quantize_row(const float *x, int64_t n, const cq_codes *out, encoding *e, uint8_t *codes, float *scale,
                        int32_t *zero_point) {
    float lo, hi, zero, inverse;
    if (!(out->symmetric ? abs_max(x, n, &hi) : ISA(min_max)(x, n, &lo, &hi))) return 0;
    cq_row_params(out->symmetric ? -hi : lo, hi, out->is_signed, out->symmetric, scale, zero_point);
    zero = (float)*zero_point, inverse = cq_inverse(*scale);
    e->inverses = &inverse, e->scales = scale, e->zeros = &zero;
    encode_span(0, x, n, e, codes); /* nothing lies further out than a code or two */
    return 1;
}

/* Symmetric ones of each group's own, groups of whole vectors in a row of whole fours of them. */
INLINE int quantize_groups(const float *x, int64_t n, const cq_codes *out, encoding *e, uint8_t *codes, float *scales,
                           int32_t *zero_points) {
    enum { SOME = 16 }; /* groups at a time, whose parameters are one vector */
    const int64_t group = out->group, groups = n / group;
    const float zero[4] = {0};
    _Alignas(64) float hi[SOME] = {0}, inverses[SOME];
    int finite = 1;
    e->zeros = zero;
    for (int64_t first = 0; first < groups; first += SOME) {
        const int64_t some = groups - first < SOME ? groups - first : SOME;
        for (int64_t g = 0; g < some; g++) finite &= abs_max(x + (first + g) * group, group, hi + g);
        const f32x16 most = f32_load(hi), scale = f32_max(f32_div(most, f32_set(127.0f)), f32_set(FLT_MIN));
        const f32x16 or_one = f32_where_zero(most, f32_set(1.0f), scale);
        store_some(scales + first, or_one, some);
        f32_store(inverses, f32_div(f32_set(1.0f), or_one)); /* a 127th of anything has one */
        memset(zero_points + first, 0, (size_t)some * 4);
        for (int64_t at = 0; at < some * group; at += 64) {
            const float *from = x + first * group + at;
            float scale4[4], inverse4[4];
            for (int p = 0; p < 4; p++) {
                const int64_t g = (at + 16 * p) / group;
                scale4[p] = scales[first + g], inverse4[p] = inverses[g];
            }
            e->scales = scale4, e->inverses = inverse4;
            encode_64(BY_VECTOR, 0, e, f32_load(from), f32_load(from + 16), f32_load(from + 32), f32_load(from + 48),
                      codes + first * group + at);
        }
    }
    return finite;
}

/* The power of two that brings a row within 127.5 steps of its columns' scales, 1 where it lies there; 0 for none. */
INLINE float stretch_of(const float *x, int64_t n, const cq_codes *out) {
    const int divide = out->column_inverses[0] != out->column_inverses[0];
    f32x16 most = f32_set(0.0f);
    EACH_16(i, n, width, {
        const f32x16 v = load_some(x + i, width);
        if (divide) {
            f32x16 scale = load_some(out->column_scales + i, width);
            scale = width == 16 ? scale : f32_fill_n(scale, width, 1.0f);
            most = f32_max(f32_abs(f32_div(v, scale)), most);
        } else {
            most = f32_max(f32_abs(f32_mul(v, load_some(out->column_inverses + i, width))), most);
        }
    });
    const float steps = f32_max_across(most);
    float power = 1.0f;
    while (steps > 127.5f * power && power < 0x1p120f) power *= 2.0f;
    return steps <= 127.5f * power ? power : 0.0f;
}

/* Given parameters of every column, of x divided by `stretch`. A stretched form's zero points are all in the middle. */
INLINE void quantize_columns(const float *x, int64_t n, const cq_codes *out, float stretch, encoding *e,
                             uint8_t *codes) {
    /* a power of two: nothing is rounded */
    const f32x16 shrink = f32_set(1.0f / stretch), middle = f32_set(out->is_signed ? 0.0f : 128.0f);
    float zeros[64];
    int64_t at = 0;
    e->zeros = zeros;
    if (out->stretched)
        for (int p = 0; p < 64; p += 16) f32_store(zeros + p, middle);
    for (; at + 64 <= n; at += 64) {
        if (!out->stretched)
            for (int p = 0; p < 64; p += 16)
                f32_store(zeros + p, f32_from_i32(i32_load(out->column_zero_points + at + p)));
        e->inverses = out->column_inverses + at, e->scales = out->column_scales + at;
#define SHRUNK(p) f32_mul(f32_load(x + at + 16 * p), shrink)
        encode_64(BY_COLUMN, 1, e, SHRUNK(0), SHRUNK(1), SHRUNK(2), SHRUNK(3), codes + at);
#undef SHRUNK
    }
    EACH_16(i, n - at, width, {
        const int32_t *from = out->column_zero_points + at + i;
        const f32x16 own = f32_from_i32(width == 16 ? i32_load(from) : i32_load_n(from, width)),
                     zero = out->stretched ? middle : own;
        i32_store_8(
            codes + at + i,
            lanes_encode(f32_mul(load_some(x + at + i, width), shrink), load_some(out->column_inverses + at + i, width),
                         load_some(out->column_scales + at + i, width), zero, f32_set(e->qmin), f32_set(e->qmax)),
            width);
    });
}

static int ISA(quantize)(const float *x, int64_t n, const cq_codes *out, int64_t row) {
    uint8_t *codes = (uint8_t *)out->codes + row * out->stride;
    encoding e = {.is_signed = out->is_signed};
    int finite = 1;
    cq_code_range(out->is_signed, out->symmetric, &e.qmin, &e.qmax);
    if (out->dynamic) {
        const int64_t group = out->group ? out->group : n, groups = (n + group - 1) / group;
        float *scales = out->scales + row * groups;
        int32_t *zero_points = out->zero_points + row * groups;
        if (groups > 1 && out->symmetric && group % 16 == 0 && n % 64 == 0 && n % group == 0)
            finite = quantize_groups(x, n, out, &e, codes, scales, zero_points);
        else
            for (int64_t g = 0; g < groups; g++)
                finite &= quantize_row(x + g * group, g + 1 < groups ? group : n - g * group, out, &e,
                                       codes + g * group, scales + g, zero_points + g);
    } else {
        const float zero = (float)out->zero_point, inverse = cq_inverse(out->scale);
        float hi;
        finite = abs_max(x, n, &hi);
        e.inverses = &inverse, e.scales = &out->scale, e.zeros = &zero;
        float stretch = 1.0f;
        if (finite && out->stretched) {
            stretch = stretch_of(x, n, out);
            finite = stretch != 0.0f;
            stretch = finite ? stretch : 1.0f;
            out->scales[row] = out->scale * stretch;
        }
        if (out->column_scales) quantize_columns(x, n, out, stretch, &e, codes);
        else encode_span(1, x, n, &e, codes);
    }
    if (out->row_sums) {
        i32x16 sum = i32_set(0);
        EACH_16(i, n, width, {
            sum = i32_add(sum, out->is_signed ? i32_load_s8(codes + i, width) : i32_load_u8(codes + i, width));
        });
        out->row_sums[row] = i32_sum(sum);
    }
    return finite;
}

BULKY f32x16 lanes_decode(const cq_coded *in, int64_t row, int64_t column, int64_t n) {
    const uint8_t *codes = (const uint8_t *)in->codes + row * in->stride + column;
    const i32x16 q = in->is_signed ? i32_load_s8(codes, n) : i32_load_u8(codes, n);
    const int32_t zero_point = in->zero_points ? in->zero_points[row] : in->zero_point;
    const f32x16 x =
        f32_mul(f32_set(in->scales ? in->scales[row] : in->scale), f32_from_i32(i32_sub(q, i32_set(zero_point))));
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
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t eight;
        memcpy(&eight, codes + i, 8);
        eight ^= 0x8080808080808080u;
        memcpy(out + i, &eight, 8);
    }
    for (; i < n; i++) out[i] = codes[i] ^ 0x80;
}

static void ISA(interleave)(const uint8_t *const rows[4], int64_t n, uint8_t flip, uint32_t keep, int8_t *out) {
    const i32x16 flips = i32_set((int32_t)(flip * 0x01010101u)), keeps = i32_set((int32_t)keep);
    EACH_16(i, n, width, {
        const i32x16 low = i32_or(i32_load_u8(rows[0] + i, width), i32_shl(i32_load_u8(rows[1] + i, width), 8));
        const i32x16 high =
            i32_or(i32_shl(i32_load_u8(rows[2] + i, width), 16), i32_shl(i32_load_u8(rows[3] + i, width), 24));
        const i32x16 lanes = i32_and(i32_xor(i32_or(low, high), flips), keeps);
        if (width == 16) i32_store((int32_t *)(out + 4 * i), lanes);
        else i32_store_n((int32_t *)(out + 4 * i), lanes, width);
    });
}

/* --- norm, gate, positions ---------------------------------------------------------------------------------------- */

/* Sums of four vectors' lanes side by side: a single one would wait for itself, 3 or 4 cycles a vector. */
#ifndef SUM_4
#define SUM_4(i, n, ...) \
    do { \
        int64_t i = 0; \
        for (; i + 64 <= (n); i += 16) { \
            { enum { slot = 0 }; const int64_t width = 16; __VA_ARGS__ } i += 16; \
            { enum { slot = 1 }; const int64_t width = 16; __VA_ARGS__ } i += 16; \
            { enum { slot = 2 }; const int64_t width = 16; __VA_ARGS__ } i += 16; \
            { enum { slot = 3 }; const int64_t width = 16; __VA_ARGS__ } \
        } \
        for (; i < (n); i += 16) { enum { slot = 0 }; const int64_t width = (n) - i < 16 ? (n) - i : 16; __VA_ARGS__ } \
    } while (0)
#endif
INLINE float sum_of_4(const f32x16 *s) { return f32_sum(f32_add(f32_add(s[0], s[1]), f32_add(s[2], s[3]))); }

BULKY int norm_row(const int rms, const int add, const int biased, const cq_norm *norm, const float *x,
                   const float *residual, int64_t n, float *kept, float *y) {
    const float *weight = norm->weight, *bias = norm->bias;
    const f32x16 nothing = f32_set(0.0f);
    f32x16 total[4] = {nothing, nothing, nothing, nothing}, squares[4] = {nothing, nothing, nothing, nothing};
    i32x16 seen = i32_set(0);
    SUM_4(i, n, {
        f32x16 v = load_some(x + i, width);
        if (add) v = f32_add(v, load_some(residual + i, width)), store_some(kept + i, v, width);
        if (rms) squares[slot] = f32_fma(v, v, squares[slot]);
        else total[slot] = f32_add(total[slot], v);
    });
    float mean = 0.0f;
    if (!rms) { /* second pass around the mean: the difference of two large sums would lose digits */
        mean = sum_of_4(total) / (float)n;
        SUM_4(i, n, {
            f32x16 v = f32_sub(load_some(kept + i, width), f32_set(mean));
            if (width < 16) v = f32_keep_n(v, width);
            squares[slot] = f32_fma(v, v, squares[slot]);
        });
    }
    const float variance = sum_of_4(squares) / (float)n;
    /* where the squares overflowed the factor would be 0 and so would y; 0 * Inf makes it NaN, which is found below */
    const f32x16 center = f32_set(mean), factor = f32_set(1.0f / sqrtf(variance + norm->eps) + 0.0f * variance);
    EACH_16(i, n, width, {
        const f32x16 v =
            f32_mul(rms ? load_some(kept + i, width) : f32_sub(load_some(kept + i, width), center), factor);
        const f32x16 w = load_some(weight + i, width),
                     z = biased ? f32_fma(v, w, load_some(bias + i, width)) : f32_mul(v, w);
        seen = watch(seen, z);
        store_some(y + i, z, width);
    });
    return all_finite(seen);
}

/* Without a residual `kept` is not written: x itself is kept. */
static int ISA(norm)(const cq_norm *norm, const float *x, const float *residual, int64_t n, float *kept, float *y) {
    if (!residual) kept = (float *)x;
#define ROW(rms, add) \
    (norm->bias ? norm_row(rms, add, 1, norm, x, residual, n, kept, y) \
                : norm_row(rms, add, 0, norm, x, residual, n, kept, y))
    if (norm->rms) return residual ? ROW(1, 1) : ROW(1, 0);
    return residual ? ROW(0, 1) : ROW(0, 0);
#undef ROW
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
        const f32x16 c = load_some(cosine + i, width), s = load_some(sine + i, width),
                     minus_s = f32_sub(f32_set(0.0f), s);
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

static void ISA(scale_add)(float factor, const float *x, int64_t n, float *y) {
    EACH_16(i, n, width,
            { store_some(y + i, f32_fma(load_some(y + i, width), f32_set(factor), load_some(x + i, width)), width); });
}
