/* From sums to results: zero points, scales, bias, activation, residual, requantize. One formula for all instruction
 * sets; included by kernel_*.c, which define the lanes. The float steps round one by one, as written in cq.h. */
enum { TO_I32, TO_F32, TO_CODES };

/* bias, activation, residual: of columns j .. j + n - 1 of one row. */
INLINE f32x16 finished(const cq_activation activation, const int residual, f32x16 y, const cq_strip *s, int64_t r,
                       int64_t j, int64_t n) {
    y = lanes_activate(activation, f32_add(y, f32_load(s->bias + j)));
    if (residual && s->residual) y = f32_add(y, load_some(s->residual + r * s->residual_stride + j, n));
    if (residual && s->residual_coded)
        y = f32_add(y, lanes_decode(s->residual_coded, s->residual_row + r, s->residual_column + j, n));
    return y;
}

/* Row r's residual, which may lie in the third-level cache, on its way while others are worked on. */
INLINE void fetch_residual(const cq_strip *s, int64_t r) {
    if (r >= s->rows) return;
    if (s->residual)
        for (int j = 0; j < s->columns; j += 16) __builtin_prefetch(s->residual + r * s->residual_stride + j);
    if (s->residual_coded)
        __builtin_prefetch((const uint8_t *)s->residual_coded->codes +
                           (s->residual_row + r) * s->residual_coded->stride + s->residual_column);
}

/* `finished` from an int32 sum. */
INLINE f32x16 value(const cq_activation activation, const int residual, const int per_row, i32x16 sum, f32x16 row_scale,
                    const cq_strip *s, int64_t r, int64_t j, int64_t n) {
    const f32x16 scale = f32_load(s->scales + j);
    return finished(activation, residual, f32_mul(f32_from_i32(sum), per_row ? f32_mul(row_scale, scale) : scale), s, r,
                    j, n);
}

INLINE void put(const int to, f32x16 y, const cq_strip *s, int64_t r, int64_t j, int64_t n) {
    if (to == TO_F32) {
        store_some(s->out + r * s->stride + j, y, n);
    } else {
        const i32x16 q = lanes_encode(y, f32_load(s->code_inverses + j), f32_load(s->code_scales + j),
                                      f32_load(s->code_zeros + j), f32_set(s->qmin), f32_set(s->qmax));
        i32_store_8(s->codes + r * s->stride + j, q, n);
    }
}

INLINE void emit(const int to, const cq_activation activation, const int residual, const int per_row, i32x16 sum,
                 f32x16 row_scale, const cq_strip *s, int64_t r, int64_t j, int64_t n) {
    if (to == TO_I32) {
        if (n == 16) i32_store(s->c + r * s->stride + j, sum);
        else i32_store_n(s->c + r * s->stride + j, sum, n);
        return;
    }
    put(to, value(activation, residual, per_row, sum, row_scale, s, r, j, n), s, r, j, n);
}

/* Columns j .. j + 15 of a row's sums, zero points taken off: exact in int32 where that fits, whatever wraps on the
 * way. */
INLINE i32x16 corrected(const int32_t *acc, const cq_strip *s, int64_t r, int64_t j) {
    i32x16 sum = i32_load(acc + j);
    if (s->row_zeros) sum = i32_sub(sum, i32_mul(i32_set(s->row_zeros[r]), i32_load(s->column_sums + j)));
    if (s->row_sums) sum = i32_sub(sum, i32_mul(i32_set(s->row_sums[r]), i32_load(s->zero_points + j)));
    return sum;
}

enum { ROWS_AHEAD = 8 }; /* whose residual is fetched */

BULKY void store_i8(const int to, const cq_activation activation, const int32_t *acc, int64_t acc_stride, int rows,
                    const cq_strip *s, int64_t row) {
    const encoding e = {s->code_inverses, s->code_scales, s->code_zeros, s->qmin, s->qmax, s->qmin < 0.0f};
    for (int64_t r = row; r < row + rows; r++, acc += acc_stride) {
        const f32x16 scale = f32_set(s->row_scales ? s->row_scales[r] : 1.0f);
        fetch_residual(s, r + ROWS_AHEAD);
#define VALUE(j) value(activation, 1, s->row_scales != NULL, corrected(acc, s, r, j), scale, s, r, j, 16)
        if (to == TO_CODES && s->columns == CQ_TILE) {
            encode_64(BY_COLUMN, 1, &e, VALUE(0), VALUE(16), VALUE(32), VALUE(48), s->codes + r * s->stride);
            continue;
        }
#undef VALUE
        EACH_16(j, s->columns, n,
                { emit(to, activation, 1, s->row_scales != NULL, corrected(acc, s, r, j), scale, s, r, j, n); });
    }
}

BULKY void store_f32(const int to, const cq_activation activation, const float *acc, int64_t acc_stride, int rows,
                     const cq_strip *s, int64_t row) {
    for (int64_t r = row; r < row + rows; r++, acc += acc_stride) {
        fetch_residual(s, r + ROWS_AHEAD);
        EACH_16(j, s->columns, n, {
            put(to, finished(activation, 1, f32_mul(load_some(acc + j, n), f32_load(s->scales + j)), s, r, j, n), s, r,
                j, n);
        });
    }
}

#define BY_ACTIVATION(f, to, ...) \
    switch (s->activation) { \
    case CQ_RELU: f(to, CQ_RELU, __VA_ARGS__); break; \
    case CQ_GELU: f(to, CQ_GELU, __VA_ARGS__); break; \
    case CQ_GELU_TANH: f(to, CQ_GELU_TANH, __VA_ARGS__); break; \
    case CQ_SILU: f(to, CQ_SILU, __VA_ARGS__); break; \
    default: f(to, CQ_IDENTITY, __VA_ARGS__); \
    }

static void ISA(store_i8)(const int32_t *acc, int64_t acc_stride, int rows, const cq_strip *s, int64_t row) {
    if (s->c) store_i8(TO_I32, CQ_IDENTITY, acc, acc_stride, rows, s, row);
    else if (s->out) BY_ACTIVATION(store_i8, TO_F32, acc, acc_stride, rows, s, row)
    else BY_ACTIVATION(store_i8, TO_CODES, acc, acc_stride, rows, s, row)
}

static void ISA(store_f32)(const float *acc, int64_t acc_stride, int rows, const cq_strip *s, int64_t row) {
    if (s->out) BY_ACTIVATION(store_f32, TO_F32, acc, acc_stride, rows, s, row)
    else BY_ACTIVATION(store_f32, TO_CODES, acc, acc_stride, rows, s, row)
}

static void ISA(add_group)(float *total, float *acc, int rows, int columns, const float *scales) {
    for (int r = 0; r < rows; r++)
        EACH_16(j, columns, width, {
            float *to = total + r * CQ_TILE + j, *from = acc + r * CQ_TILE + j;
            f32_store(to, f32_fma(load_some(scales + j, width), f32_load(from), f32_load(to)));
            f32_store(from, f32_set(0.0f));
        });
}
