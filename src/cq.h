/* cq's arithmetic: every public function with its contract. Plain C11; knows nothing of Python, files or models.
 *
* Shapes are (rows, columns), row-major; a stride counts elements from one row to the next. Codes are uint8 or int8 as
* said; x = scale * (code - zero_point). Pointers may be NULL only where "optional" stands. No function writes to an
* input, keeps a pointer, prints or aborts. `threads` >= 1 is the size of the team; small calls run serially. The bits
* of every result are independent of `threads`, of the instruction set and of the floating-point mode of the calling
 * thread, which stays as it is. */
#ifndef CQ_H
#define CQ_H
#include <stddef.h>
#include <stdint.h>

#define CQ_PANEL 16     /* columns of a packed panel */
#define CQ_LINE 64      /* bytes of a cache line */
#define CQ_MAX_K 65793  /* floor((2^31 - 1) / (255 * 128)): any sum of this many uint8 x int8 products fits int32 */

typedef enum {
    CQ_OK = 0,
    CQ_NO_MEMORY,
    CQ_NOT_FINITE,
    CQ_NOT_FINITE_AT,
    CQ_OVERFLOW,
    CQ_NO_ROOM,
    CQ_OUT_OF_RANGE
} cq_status;
const char *cq_status_text(cq_status status); /* what it says to a user, with {} in place of *bad */
typedef enum { CQ_IDENTITY = 0, CQ_RELU, CQ_GELU, CQ_GELU_TANH, CQ_SILU } cq_activation;

/* What works through the rows of arrays has one signature, so that a list of calls can be made again for other rows.
 * args: the function's own member of the union at the end of this file, which a call does not change. rows: tokens, in
 * a transformer; sequences: how many they belong to, which attention alone reads. Where CQ_NOT_FINITE is returned, *bad
 * is the first row in which codes with parameters of their own, a norm or a gate met NaN or Inf; where CQ_NOT_FINITE_AT
 * is, the first such element; where CQ_OUT_OF_RANGE is, the first row or sequence whose id, position, type or offset is
 * none of the tables' or of the rows'; else it is left alone. */
typedef union cq_args cq_args;
typedef cq_status cq_call(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad);

/* --- the CPU and the choice of kernels ---------------------------------------------------------------------------- */

/* Picks the best supported kernels, or those that CQ_ISA (scalar, avx2, avx512bw, avxvnni, avx512vnni, amx) names.
 * Returns 0; 1 where CQ_ISA is unknown; 2 where the CPU lacks it. Must succeed once before any function below. */
int cq_select(void);
/* Why this machine does not run a set of kernels, or NULL where it does. */
const char *cq_isa_lacks(const char *name);
const char *cq_isa(void);
const char *cq_compiler(void); /* that compiled the drivers */

/* Runs `repeats` x 1024 independent register-only steps on one thread and returns the operations done (a multiply-add
 * is 2): the ceiling that GEMM rates are compared with. */
double cq_peak_i8(int64_t repeats);
double cq_peak_f32(int64_t repeats);

/* Registers the handler that makes a forked child run serially (its parent's team does not exist there). Call once. */
int cq_guard_fork(void);

/* --- codes -------------------------------------------------------------------------------------------------------- */

/* Where and how codes are written. `is_signed`: int8 instead of uint8. `symmetric` (with is_signed): codes -127..127,
 * zero point 0. Static: `scales`, `zero_points`, `group` and `dynamic` are unset and (scale, zero_point) apply to all,
 * or, of a row, column_scales[j] and column_zero_points[j] to column j, a zero point at most 207 from the middle of the
 * codes' range, and column_inverses[j] = 1 / column_scales[j], or all NaN where any scale is above 2^126. Stretched, by
 * columns whose zero points are the middle of the codes' range: a row that passes 127.5 steps from there is divided by
 * the smallest power of two, at most 2^120, that keeps it within them, and scales[row] = scale * that power, of which a
 * row that fits has 2^0. One that no such power holds counts as not finite. Dynamic: the
 * parameters of each row, or of each group of `group` columns of a row, are found from its exact values as ONNX
 * DynamicQuantizeLinear does; in scales[row * groups + g] and zero_points likewise. `row_sums` (optional): sum of each
 * row's codes. */
typedef struct {
    void *codes;
    int64_t stride;
    int is_signed, symmetric, dynamic, stretched;
    float scale;
    int32_t zero_point;
    const float *column_scales;
    const float *column_inverses;
    const int32_t *column_zero_points;
    int64_t group;
    float *scales;
    int32_t *zero_points;
    int32_t *row_sums;
} cq_codes;

/* Reads codes with one scale and zero point for all (scales NULL) or one per row. */
typedef struct {
    const void *codes;
    int64_t stride;
    int is_signed;
    float scale;
    int32_t zero_point;
    const float *scales;
    const int32_t *zero_points;
} cq_coded;

/* x (rows, columns) float32 -> codes. CQ_NOT_FINITE where x holds NaN or Inf. */
typedef struct {
    const float *x;
    int64_t columns;
    const cq_codes *codes;
} cq_quantize_args;
cq_call cq_quantize;
/* coded (rows, columns) -> y float32. */
typedef struct {
    cq_coded coded;
    int64_t columns;
    float *y;
} cq_dequantize_args;
cq_call cq_dequantize;
/* Smallest and largest element of x (rows), to ends. CQ_NOT_FINITE_AT where x holds NaN or Inf. rows >= 1. */
typedef struct {
    const float *x;
    float *ends;
} cq_min_max_args;
cq_call cq_min_max;

/* --- packed weights ----------------------------------------------------------------------------------------------- */

/* int8 (k, n) in panels of CQ_PANEL columns; within a panel, groups of 4 rows: panel[group][column][4]. Padded with
 * zeros to whole panels and groups. `column_sums[j] = sum over k of (w[k][j] - zero_points[j])`; `zero_points` NULL
 * where all are 0. `scales` is (groups, n), groups = ceil(k / group_size); one group where group_size == k. May be NULL
 * for integer products. */
typedef struct {
    const int8_t *panels;
    const int32_t *column_sums;
    const int32_t *zero_points;
    const float *scales;
    int64_t k, n, group_size;
    const float *floats; /* of a float32 weight, in place of the arrays above: see cq_pack_f32 */
} cq_weight;

/* Matrices as they lie, one or several of one shape: element (i, j) of the one at (p, q, ...) of the axes before its
 * own is data[p * steps[0] + q * steps[1] + ... + i * row + j * column]. pairs: the sizes of these axes, 1 in front
 * where there are fewer; where a size is 1, the step is 0. */
enum { CQ_PAIR_AXES = 4 };
typedef struct {
    void *data;
    int64_t rows, columns, row, column;
    int64_t pairs[CQ_PAIR_AXES], steps[CQ_PAIR_AXES];
} cq_matrices;

int64_t cq_packed_bytes(int64_t k, int64_t n);
int64_t cq_packed_floats(int64_t k, int64_t n);
/* b (k, n) into panels, 64-byte aligned: of int8, packed bytes, and the columns' sums, where the weight's zero points
 * have their part; of float32, of which row or column is 1, packed floats in panels of 16 columns (n / 16, k, 16),
 * padded with zeros. */
typedef struct {
    cq_matrices b;
    const int32_t *zero_points; /* or NULL */
    void *panels;
    int32_t *column_sums; /* of int8 */
} cq_pack_args;
cq_call cq_pack_i8;
cq_call cq_pack_f32;

/* --- matrix products ---------------------------------------------------------------------------------------------- */

/* Layer norm (rms = 0) or RMS norm (rms = 1) of a row x: y = (x - mean) / sqrt(var + eps) * weight + bias; bias
 * optional. */
typedef struct {
    const float *weight, *bias;
    float eps;
    int rms;
} cq_norm;

/* What happens to a product before it is stored, in this order:
*   y = act(product + bias) + residual, to `out` and `sum_codes`; z = norm(y), to `norm_out`; codes of z, or of y where
*   there is no norm. Gated, which goes without a residual and a norm: y = product + bias, its columns a gate's and then
*   as many of what it gates, z = act(gate) * gated (m, n / 2), transformed where `hadamard` is a size of blocks (see
*   cq_hadamard), to `norm_out`, and codes of z.
 * Each of out, norm_out and codes is optional, but one there must be. The residual is float32 or coded, or absent. */
typedef struct {
    const float *bias;       /* (n), optional */
    const int32_t *bias_i32; /* (n), optional: added to the int32 sum (scale x_scale * w_scale) */
    cq_activation activation;
    int gated;
    int64_t hadamard;               /* 0: none */
    const float *residual;          /* (m, n), optional */
    const cq_coded *residual_coded; /* (m, n), optional */
    float *out;                     /* (m, n) */
    const cq_codes *sum_codes;      /* static codes of y, where there is a norm */
    const cq_norm *norm;            /* over the n columns of a row, optional */
    float *norm_out;                /* (m, n) */
    const cq_codes *codes;
} cq_epilogue;

/* c (rows, n) int32 = (a - a_zero_points) (w - w_zero_points); a (rows, k) coded, its scales unused. k <= CQ_MAX_K.
 * CQ_OVERFLOW where an exact result does not fit int32 (possible only with non-zero weight zero points and k > 33,025).
 */
typedef struct {
    const cq_coded *a;
    const cq_weight *w;
    int32_t *c;
} cq_matmul_args;
cq_call cq_matmul_i8;
/* How the first block of rows of such a product is multiplied, into c[0]; how many groups of excess it has, into c[1].
 * See clip.h. */
enum { CQ_WHOLE, CQ_CENTRED, CQ_FROM_FLOOR };
cq_call cq_find_code_form;
/* y = epilogue(x w), x (rows, k) in one of three ways:
 *   codes in `coded`: a_scale * w_scale * (integer product), where w has one scale per column (group_size == k);
 *   float32 with `coding`: the same, coded on the way in; `coding` says how, its arrays are not used;
*   float32: the sum over groups of w_scale * sum over k of x * (w - zero_point), or x w of a float32 weight, in order
*   of k by fused multiply-adds. */
typedef struct {
    const cq_coded *coded;
    const float *x;
    const cq_codes *coding;
    const cq_weight *w;
    cq_epilogue epilogue;
} cq_linear_args;
cq_call cq_linear;

/* Products of matrices as they lie, for training and analysis: of each pair, c (m, n) = a (m, k) b (k, n), or c + a b
 * where `add`, in order of k. a and b have the pairs of c, or 1 in their place: that one serves all. No c overlaps
 * another, nor any a or b. */
typedef struct {
    cq_matrices a, b, c;
    int add;
} cq_products;
/* float32, by fused multiply-adds. Of a's row and column one is 1, and of b's; c's column is. */
cq_call cq_multiply_f32;
/* float64; each product and each sum is rounded. Any distances. */
cq_call cq_multiply_f64;

/* --- the rest of a transformer ------------------------------------------------------------------------------------ */

/* s = factor * inner(x) + residual, to `sum`; z = norm(s) over each row, to y and codes. inner, residual, norm, sum, y
 * and codes are optional. */
typedef struct {
    const float *x, *residual;
    int64_t columns;
    const cq_norm *inner, *norm;
    float factor;
    float *sum, *y;
    const cq_codes *codes;
} cq_norm_args;
cq_call cq_norm_rows;

/* x = most * tanh(factor * x / most) in place; most 0: factor * x. Inf becomes NaN. */
typedef struct {
    float *x;
    int64_t columns;
    float factor, most;
} cq_cap_args;
cq_call cq_cap;

/* Each row of x (rows, columns) in place: every `block` neighbours become their Hadamard transform (in Sylvester's
 * order) over sqrt(block), which is its own inverse. block: a power of two from 16 that divides columns. */
typedef struct {
    float *x;
    int64_t columns, block;
} cq_hadamard_args;
cq_call cq_hadamard;

/* y = act(gate) * up, each (rows, columns), transformed as by cq_hadamard where `hadamard` is not 0; to y or codes.
 * CQ_NOT_FINITE where y holds NaN or Inf. */
typedef struct {
    const float *gate, *up;
    int64_t columns;
    cq_activation activation;
    int64_t hadamard;
    float *y;
    const cq_codes *codes;
} cq_gate_args;
cq_call cq_gate;

/* Rotary positions (Su et al. 2021, halves convention) of heads of `dim` features, of which the first `turned` turn.
 * cosine, sine: (positions, turned / 2). Each head is then transformed as by cq_hadamard where `hadamard` is not 0. */
typedef struct {
    const float *cosine, *sine;
    int64_t positions, turned, hadamard;
} cq_turns;

/* Each token and head of x (tokens, heads * dim) in place; position[t] selects the row of cosine and sine. */
typedef struct {
    float *x;
    int64_t stride, heads, dim;
    cq_turns turns;
    const int32_t *position;
} cq_rope_args;
cq_call cq_rope;

/* y[t] = scale * word[id[t]] + position_table[position[t]] + type_table[type[t]]; the last two optional, type too: all
 * 0. The word table is float32 (words, columns), or a packed weight (columns, words) with one scale and optional zero
 * point per word, or of float32. */
typedef struct {
    const float *word;
    const cq_weight *packed; /* or NULL */
    const float *position_table, *type_table;
    const int32_t *id, *position, *type;
    int64_t columns;
    int64_t words, positions, types; /* rows of the tables */
    float scale;
    float *y;
} cq_embed_args;
cq_call cq_embed;

/* Keys and queries of relative positions, which meet a sequence's own queries and keys (He et al. 2020, disentangled
 * attention): float32 (heads * dim, positions) each, either optional. row[reach - 1 + j - i] is the position of key j
 * as query i sees it, for sequences of at most `reach` tokens; it descends. */
typedef struct {
    const float *keys, *queries;
    const int32_t *row;
    int64_t positions, reach; /* positions: a multiple of 16 */
} cq_relative;

/* Softmax attention over ragged sequences laid one after another: sequence s holds tokens offsets[s] .. offsets[s+1]-1.
 * q (tokens, heads * dim), k and v (tokens, kv_heads * dim), y (tokens, heads * dim); query head h reads kv head
* h * kv_heads / heads. A token sees itself, `before` tokens before it and `after` tokens after it in its sequence. The
* score matrix never exists: blocks of queries run over the keys of a (sequence, head) that they see. cap: scores become
* cap * tanh(score / cap) (Gemma 2); 0: they stay.
 *   float32: qkv (tokens, (heads + 2 kv_heads) * dim) has q, k and v side by side.
 *   int8 products: qkv NULL, the same in `coded`; scores from int32 sums; exp(score - max) in codes of 1/255, which
 * take the values' scales along. Either scale_stride is 0, scales and zero points are those of columns, equal within
 * each of the three (static), and the codes' exact int32 sum normalizes; or all are int8 symmetric with a scale per
 * token and head, scales[token * scale_stride + head], and the exponentials' float32 sum does. y float32, or static
 * codes.
*   bias (optional): a score is scale * q . k + bias[h * bias_head + i * bias_row + j] of head h and the i-th query and
* j-th key of their sequence; it is there for all i, j < bias_reach. CQ_NO_ROOM and *bad = the sequence where one is
* longer. At most 33,025 tokens in a sequence, so that sums of 255 * 255 fit.
*   relative (optional, in place of a bias): to a score is added scale * (q . its key + its query . k), of the position
* of key j as query i sees it, in float32 and of what codes stand for. CQ_NO_ROOM as with a bias. */
typedef struct {
    const int32_t *offsets;
    int64_t heads, kv_heads, dim;
    int64_t before, after; /* at least 0; INT64_MAX: all */
    float scale;           /* of q . k, usually 1 / sqrt(dim) */
    float cap;             /* 0 where there is a bias, or relative positions */
    const float *bias;
    int64_t bias_head, bias_row, bias_reach;
    cq_relative relative; /* row NULL: there are none */
    const float *qkv;
    cq_coded coded;
    int64_t scale_stride;
    float *y;
    const cq_codes *codes;
} cq_attention_args;
cq_call cq_attention;

/* --- generation --------------------------------------------------------------------------------------------------- */

/* A sequence's kept keys and values in one layer, laid out as the tiles read them, so that attention copies nothing.
 * capacity: room in tokens, a multiple of 64; the sequence has `length` tokens, of which those before `first`, a
 * multiple of 64, are no longer kept; what lies behind the others is finite. Of every kv head, one after another:
 *   float32: keys (capacity / 64, dim, 64), values (capacity, dim16);
 *   int8:    keys in panels (capacity / 16, dim4 / 4, 16, 4), values in panels (dim16 / 16, capacity / 4, 16, 4),
*            start (capacity): what scores start from, and, where tokens have their own scales, scales (3, capacity). */
typedef struct {
    int64_t length, first, capacity;
    void *keys, *values;
    int32_t *start;
    float *scales;
} cq_kept;

/* One layer's attention of new tokens, laid one after another, to themselves and to what their sequences have kept.
 *   qkv (tokens, (heads + 2 kv_heads) dim) float32: queries, keys and values side by side, changed in place: with
 * `turns` queries and keys are rotated by their place in the sequence, and transformed. Keys and values are then
 * written behind kept[s].length tokens, where there is room for them; the lengths stay as they are.
 *   `form` NULL: float32. Else they and the queries are coded so: by parameters of each (token, head)'s own, int8
 * symmetric (dynamic, group = dim), or static: products see the scales and zero points of `coded`, whose codes are not
 * read, those of columns as in cq_attention; queries and keys are coded by them, values by those of the form. The
 * form's arrays for results are not used.
 *   A token sees itself and `before` tokens before it, which must be kept; cap as in cq_attention.
 *   The result goes to y (tokens, heads dim) or, where they are coded, to `codes`, static. It has the bits that
 * cq_attention gives for the whole sequences with after = 0. CQ_NO_ROOM and *bad = the sequence, before anything is
 * written, where one has no room, no angles or no scales for its new tokens, or lacks what they see. */
typedef struct {
    float *qkv;
    const int32_t *offsets; /* (sequences + 1): the new tokens of each */
    int64_t heads, kv_heads, dim, before;
    float scale, cap;
    cq_turns turns;      /* cosine NULL: there are none */
    const cq_kept *kept; /* (sequences) */
    const cq_codes *form;
    cq_coded coded;
    float *y;
    const cq_codes *codes;
} cq_kept_args;
cq_call cq_attention_kept;

#include "cq_training.h"

union cq_args {
    cq_pack_args pack;
    cq_min_max_args min_max;
    cq_quantize_args quantize;
    cq_dequantize_args dequantize;
    cq_matmul_args matmul;
    cq_linear_args linear;
    cq_products products;
    cq_norm_args norm;
    cq_gate_args gate;
    cq_cap_args cap;
    cq_hadamard_args hadamard;
    cq_rope_args rope;
    cq_embed_args embed;
    cq_attention_args attention;
    cq_kept_args kept;
    cq_pass_args of_pass;
};
#endif
