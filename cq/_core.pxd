"""What src/cq.h declares, which says what it means."""
from cpython.buffer cimport Py_buffer
from libc.stdint cimport INT64_MAX, int8_t, int32_t, int64_t, uint8_t


cdef extern from "Python.h":
    int open_buffer "PyObject_GetBuffer"(object, Py_buffer *, int)  # -1: an error is set


cdef extern from "cq.h" nogil:
    enum: CQ_PANEL, CQ_LINE, CQ_MAX_K
    ctypedef enum cq_status: CQ_OK, CQ_NO_MEMORY
    ctypedef enum cq_activation: CQ_IDENTITY, CQ_RELU, CQ_GELU, CQ_GELU_TANH, CQ_SILU
    enum: CQ_MATRIX, CQ_PER_ROW, CQ_PER_COLUMN
    enum: CQ_READ, CQ_WRITE, CQ_MAYBE, CQ_RESULT
    enum: CQ_PAIR_AXES, CQ_PASS_ARRAYS

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
        const cq_coded *residual_coded
        float *out
        const cq_codes *sum_codes
        const cq_norm *norm
        float *norm_out
        const cq_codes *codes

    # --- calls of one signature ---

    ctypedef struct cq_matrices:
        void *data
        int64_t rows, columns, row, column
        int64_t pairs[4]
        int64_t steps[4]
    ctypedef struct cq_pack_args:
        cq_matrices b
        const int32_t *zero_points
        void *panels
        int32_t *column_sums
    ctypedef struct cq_min_max_args:
        const float *x
        float *ends
    ctypedef struct cq_quantize_args:
        const float *x
        int64_t columns
        const cq_codes *codes
    ctypedef struct cq_dequantize_args:
        cq_coded coded
        int64_t columns
        float *y
    ctypedef struct cq_matmul_args:
        const cq_coded *a
        const cq_weight *w
        int32_t *c
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
        const cq_norm *norm
        float factor
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
    ctypedef struct cq_turns:
        const float *cosine
        const float *sine
        int64_t positions, turned, hadamard
    ctypedef struct cq_rope_args:
        float *x
        int64_t stride, heads, dim
        cq_turns turns
        const int32_t *position
    ctypedef struct cq_embed_args:
        const float *word
        const cq_weight *packed
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
        cq_coded coded
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
        int64_t heads, kv_heads, dim, before
        float scale, cap
        cq_turns turns
        const cq_kept *kept
        const cq_codes *form
        cq_coded coded
        float *y
        const cq_codes *codes
    ctypedef struct cq_products:
        cq_matrices a, b, c
        int add
    ctypedef struct cq_pass_array:
        const char *name
        int axes, use
        char format
    ctypedef struct cq_pass:
        cq_pass_array arrays[8]
        int numbers
    ctypedef struct cq_pass_args:
        const cq_pass *what
        void *arrays[8]
        double numbers[8]
        int64_t columns

    ctypedef union cq_args:
        cq_pack_args pack
        cq_min_max_args min_max
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
        cq_matmul_args matmul
        cq_products products
        cq_pass_args of_pass
    ctypedef cq_status cq_call(int, const cq_args *, int64_t, int64_t, int64_t *)
    cq_call cq_pack_i8, cq_pack_f32, cq_min_max, cq_quantize, cq_dequantize, cq_matmul_i8, cq_linear, cq_multiply_f32
    cq_call cq_multiply_f64, cq_norm_rows, cq_gate, cq_cap, cq_hadamard, cq_rope, cq_embed, cq_attention
    cq_call cq_attention_kept, cq_run_pass, cq_find_code_form

    # --- the machine ---

    const char *cq_status_text(cq_status)
    const char *cq_compiler()
    const char *cq_isa_lacks(const char *)
    int cq_select()
    const char *cq_isa()
    double cq_peak_i8(int64_t repeats)
    double cq_peak_f32(int64_t repeats)
    int cq_guard_fork()
    void cq_keep_freed(int)

    # --- what needs no arguments of its own kind ---

    int64_t cq_packed_bytes(int64_t, int64_t)
    int64_t cq_packed_floats(int64_t, int64_t)
    const cq_pass *cq_find_pass(const char *)
