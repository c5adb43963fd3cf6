"""What src/cq.h declares, which says what it means."""
from libc.stdint cimport INT64_MAX, int8_t, int32_t, int64_t, uint8_t


cdef extern from "cq.h" nogil:
    enum: CQ_PANEL, CQ_LINE, CQ_MAX_K
    enum: CQ_BY_ONE, CQ_BY_ROW, CQ_BY_COLUMN
    ctypedef enum cq_status: CQ_OK, CQ_NO_MEMORY, CQ_NOT_FINITE, CQ_OVERFLOW, CQ_NO_ROOM, CQ_OUT_OF_RANGE
    ctypedef enum cq_activation: CQ_IDENTITY, CQ_RELU, CQ_GELU, CQ_GELU_TANH, CQ_SILU
    ctypedef enum cq_function: CQ_EXP, CQ_LOG, CQ_SIN, CQ_COS, CQ_TANH, CQ_POWER

    # --- codes, weights, what follows a product ---

    ctypedef struct cq_codes:
        void *codes
        int64_t stride
        int is_signed, symmetric, dynamic, stretched
        float scale
        int32_t zero_point
        const float *column_scales
        const float *column_inverses
        const int32_t *column_zero_points
        int64_t group
        float *scales
        int32_t *zero_points
        int32_t *row_sums
    ctypedef struct cq_coded:
        const void *codes
        int64_t stride
        int is_signed
        float scale
        int32_t zero_point
        const float *scales
        const int32_t *zero_points
    ctypedef struct cq_weight:
        const int8_t *panels
        const int32_t *column_sums
        const int32_t *zero_points
        const float *scales
        int64_t k, n, group_size
        const float *floats
    ctypedef struct cq_norm:
        const float *weight
        const float *bias
        float eps
        int rms
    ctypedef struct cq_epilogue:
        const float *bias
        const int32_t *bias_i32
        cq_activation activation
        int gated
        int64_t hadamard
        const float *residual
        int64_t residual_stride
        const cq_coded *residual_coded
        float *out
        int64_t out_stride
        const cq_codes *sum_codes
        const cq_norm *norm
        float *norm_out
        const cq_codes *codes

    # --- calls of one signature ---

    ctypedef struct cq_quantize_args:
        const float *x
        int64_t columns
        const cq_codes *codes
    ctypedef struct cq_dequantize_args:
        cq_coded coded
        int64_t columns
        float *y
    ctypedef struct cq_linear_args:
        const cq_coded *coded
        const float *x
        const cq_codes *coding
        const cq_weight *w
        cq_epilogue epilogue
    ctypedef struct cq_norm_args:
        const float *x
        const float *residual
        int64_t columns
        const cq_norm *inner
        float factor
        cq_norm norm
        float *sum
        float *y
        const cq_codes *codes
    ctypedef struct cq_gate_args:
        const float *gate
        const float *up
        int64_t columns
        cq_activation activation
        int64_t hadamard
        float *y
        const cq_codes *codes
    ctypedef struct cq_hadamard_args:
        float *x
        int64_t columns, block
    ctypedef struct cq_cap_args:
        float *x
        int64_t columns
        float factor, most
    ctypedef struct cq_rope_args:
        float *x
        int64_t stride, heads, dim, turned, positions, hadamard
        const float *cosine
        const float *sine
        const int32_t *position
    ctypedef struct cq_embed_args:
        const float *word_f32
        const int8_t *word_i8
        const float *scales
        const int32_t *zero_points
        int64_t panel
        const float *position_table
        const float *type_table
        const int32_t *id
        const int32_t *position
        const int32_t *type
        int64_t columns, words, positions, types
        float scale
        float *y
    ctypedef struct cq_relative:
        const float *keys
        const float *queries
        const int32_t *row
        int64_t positions, reach
    ctypedef struct cq_attention_args:
        const int32_t *offsets
        int64_t heads, kv_heads, dim, before, after
        float scale, cap
        const float *bias
        int64_t bias_head, bias_row, bias_reach
        cq_relative relative
        const float *qkv
        cq_coded q, k, v
        int64_t scale_stride
        float *y
        const cq_codes *codes
    ctypedef struct cq_kept:
        int64_t length, first, capacity
        void *keys
        void *values
        int32_t *start
        float *scales
    ctypedef struct cq_kept_args:
        float *qkv
        const int32_t *offsets
        int64_t heads, kv_heads, dim, before, turned, hadamard
        float scale, cap
        const float *cosine
        const float *sine
        int64_t angles
        const cq_kept *kept
        const cq_codes *form
        cq_coded q, k, v
        float *y
        const cq_codes *codes
    ctypedef struct cq_dot_rows_args:
        const float *x
        const float *y
        int64_t columns
        float *sums
    ctypedef struct cq_column_sums_args:
        const float *x
        int64_t columns
        float *sums
    ctypedef struct cq_rounding:
        int by
        const float *scales
        const float *lows
        const float *highs
        const float *shifts
    ctypedef struct cq_round_args:
        const float *x
        int64_t columns
        cq_rounding rounding
        float *y
        uint8_t *bytes
        uint8_t *clipped
    ctypedef struct cq_exponents_args:
        float *x
        int64_t columns
        float factor
        int coded
        float *sums
    ctypedef struct cq_softmax_back_args:
        float *g
        const float *p
        const float *inverses
        int64_t columns
        float factor
    ctypedef struct cq_rescaling:
        const float *before
        const float *scales
        const float *row_scales
        const float *after
    ctypedef struct cq_rescale_args:
        const float *x
        int64_t columns
        cq_rescaling rescaling
        float *y
    ctypedef struct cq_norm_kept_args:
        const float *x
        int64_t columns
        cq_norm norm
        float *kept
        float *factors
        float *y
    ctypedef struct cq_norm_back_args:
        const float *g
        const float *kept
        const float *factors
        int64_t columns
        cq_norm norm
        float *of_weight
        float *dx
    ctypedef struct cq_slope_args:
        const float *x
        cq_activation activation
        float *y
        float *slope
    ctypedef struct cq_adamw:
        float beta1, beta2, gradient, gradient_square, root, epsilon, rate, keep
    ctypedef struct cq_adamw_args:
        cq_adamw adamw
        const float *g
        const float *units
        const float *row_rates
        int64_t columns
        float *mean
        float *square
        float *p
    ctypedef struct cq_elementary_args:
        cq_function function
        const void *x
        const double *y
        int64_t y_step
        int single
        void *out

    ctypedef union cq_args:
        cq_quantize_args quantize
        cq_dequantize_args dequantize
        cq_linear_args linear
        cq_norm_args norm
        cq_gate_args gate
        cq_cap_args cap
        cq_hadamard_args hadamard
        cq_rope_args rope
        cq_embed_args embed
        cq_attention_args attention
        cq_kept_args kept
        cq_dot_rows_args dot_rows
        cq_column_sums_args column_sums
        cq_slope_args slope
        cq_round_args round
        cq_exponents_args exponents
        cq_softmax_back_args softmax_back
        cq_rescale_args rescale
        cq_norm_kept_args norm_kept
        cq_norm_back_args norm_back
        cq_adamw_args adamw
        cq_elementary_args elementary
    ctypedef cq_status cq_call(int, const cq_args *, int64_t, int64_t, int64_t *)
    cq_call cq_quantize, cq_dequantize, cq_linear, cq_norm_rows, cq_gate, cq_cap, cq_rope, cq_embed, cq_attention
    cq_call cq_attention_kept, cq_dot_rows, cq_column_sums, cq_slope, cq_round, cq_exponents, cq_softmax_back
    cq_call cq_hadamard, cq_rescale, cq_norm_kept, cq_norm_back, cq_adamw_step, cq_elementary

    # --- the machine ---

    const char *cq_isa_lacks(const char *)
    int cq_select()
    const char *cq_isa()
    double cq_peak_i8(int64_t repeats)
    double cq_peak_f32(int64_t repeats)
    int cq_guard_fork()
    void cq_keep_freed(int)

    # --- weights and products ---

    ctypedef struct cq_products:
        const void *a
        const void *b
        void *c
        int64_t a_row, a_column, b_row, b_column, c_row, m, n, k, count
        const int64_t *a_at
        const int64_t *b_at
        const int64_t *c_at
        int add
    int64_t cq_packed_bytes(int64_t, int64_t)
    void cq_pack(const int8_t *, int64_t, int64_t, int64_t, int64_t, const int32_t *, int8_t *, int32_t *)
    void cq_unpack(const cq_weight *, int8_t *)
    void cq_pack_f32(int, const float *, int64_t, int64_t, int64_t, int64_t, float *)
    cq_status cq_matmul_i8(int, const cq_coded *, int64_t, const cq_weight *, int32_t *, int64_t)
    cq_status cq_multiply_f32(int, const cq_products *)
    cq_status cq_multiply_f64(int, const cq_products *)
    cq_status cq_min_max(const float *, int64_t, float *, float *)
