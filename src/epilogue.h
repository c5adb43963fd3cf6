/* From sums to results: zero points, scales, bias, activation, residual, requantize. One formula for all instruction sets;
 * included by kernel_*.c, which define the lanes. The float steps round one by one, as written in cq.h. */

/* sum - z_x * (column sum) - z_w * (row sum) [+ bias]: exact in int32 where the result fits, whatever wraps on the way. */
INLINE i32x16 correct(i32x16 sum, int32_t zx, int32_t row_sum, const cq_weight *w, const int32_t *bias, int64_t j, int64_t n) {
    if (zx) sum = i32_sub(sum, i32_mul(i32_set(zx), i32_load_n(w->column_sums + j, n)));
    if (w->zero_points) sum = i32_sub(sum, i32_mul(i32_set(row_sum), i32_load_n(w->zero_points + j, n)));
    if (bias) sum = i32_add(sum, i32_load_n(bias + j, n));
    return sum;
}

/* Tiles read uint8: int8 activations were flipped on the way in, which moves their zero point by 128. */
INLINE int32_t zero_point_of(const cq_coded *a, int64_t row) {
    return (a->zero_points ? a->zero_points[row] : a->zero_point) + (a->is_signed ? 128 : 0);
}

static void ISA(store_i32)(const int32_t *acc, const cq_tile *t, const cq_coded *a, const int32_t *row_sums, const cq_weight *w,
                           int32_t *c, int64_t c_stride) {
    for (int r = 0; r < t->rows; r++) {
        const int64_t row = t->row + r;
        const int32_t zx = zero_point_of(a, row), row_sum = row_sums ? row_sums[r] : 0;
        EACH_16(j, t->columns, width) {
            const i32x16 sum = correct(i32_load(acc + r * CQ_TILE + j), zx, row_sum, w, NULL, t->column + j, width);
            i32_store_n(c + row * c_stride + t->column + j, sum, width);
        }
    }
}

/* bias, activation, residual, store: of 16 columns from j of one row. */
INLINE void finish(f32x16 y, const cq_activation activation, const cq_epilogue *e, int64_t row, int64_t j, int64_t n) {
    if (e->bias) y = f32_add(y, load_some(e->bias + j, n));
    y = lanes_activate(activation, y);
    if (e->residual) y = f32_add(y, load_some(e->residual + row * e->residual_stride + j, n));
    if (e->residual_coded) y = f32_add(y, lanes_decode(e->residual_coded, row, j, n));
    if (e->out) {
        store_some(e->out + row * e->out_stride + j, y, n);
        return;
    }
    float qmin, qmax;
    const cq_codes *o = e->codes;
    cq_code_range(o->is_signed, o->symmetric, &qmin, &qmax);
    const i32x16 q = lanes_encode(y, f32_set(o->scale), f32_set((float)o->zero_point), f32_set(qmin), f32_set(qmax));
    i32_store_8((uint8_t *)o->codes + row * o->stride + j, q, n);
}

INLINE void store_i8(const cq_activation activation, const int32_t *acc, const cq_tile *t, const cq_coded *a,
                     const int32_t *row_sums, const cq_weight *w, const cq_epilogue *e) {
    for (int r = 0; r < t->rows; r++) {
        const int64_t row = t->row + r;
        const int32_t zx = zero_point_of(a, row), row_sum = row_sums ? row_sums[r] : 0;
        const f32x16 sx = f32_set(a->scales ? a->scales[row] : a->scale);
        EACH_16(c, t->columns, width) {
            const int64_t j = t->column + c;
            const i32x16 sum = correct(i32_load(acc + r * CQ_TILE + c), zx, row_sum, w, e->bias_i32, j, width);
            finish(f32_mul(f32_from_i32(sum), f32_mul(sx, load_some(w->scales + j, width))), activation, e, row, j, width);
        }
    }
}

INLINE void store_f32(const cq_activation activation, const float *acc, int64_t acc_stride, const cq_tile *t,
                      const float *scales, const cq_epilogue *e) {
    for (int r = 0; r < t->rows; r++)
        EACH_16(c, t->columns, width) {
            f32x16 y = load_some(acc + r * acc_stride + c, width);
            if (scales) y = f32_mul(y, load_some(scales + c, width));
            finish(y, activation, e, t->row + r, t->column + c, width);
        }
}

#define BY_ACTIVATION(f, ...) \
    switch (e->activation) { \
    case CQ_RELU: f(CQ_RELU, __VA_ARGS__); break; \
    case CQ_GELU: f(CQ_GELU, __VA_ARGS__); break; \
    case CQ_GELU_TANH: f(CQ_GELU_TANH, __VA_ARGS__); break; \
    case CQ_SILU: f(CQ_SILU, __VA_ARGS__); break; \
    default: f(CQ_IDENTITY, __VA_ARGS__); \
    }

static void ISA(store_i8)(const int32_t *acc, const cq_tile *t, const cq_coded *a, const int32_t *row_sums, const cq_weight *w,
                          const cq_epilogue *e) {
    BY_ACTIVATION(store_i8, acc, t, a, row_sums, w, e)
}

static void ISA(store_f32)(const float *acc, int64_t acc_stride, const cq_tile *t, const float *scales, const cq_epilogue *e) {
    BY_ACTIVATION(store_f32, acc, acc_stride, t, scales, e)
}

static void ISA(add_group)(float *total, float *acc, int rows, int columns, const float *scales) {
    for (int r = 0; r < rows; r++)
        EACH_16(j, columns, width) {
            float *to = total + r * CQ_TILE + j, *from = acc + r * CQ_TILE + j;
            f32_store(to, f32_fma(load_some(scales + j, width), f32_load(from), f32_load(to)));
            f32_store(from, f32_set(0.0f));
        }
}
