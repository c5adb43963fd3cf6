/* The part of cq.h that training and analysis call: passes over float32 arrays (rows, columns), and elementary
 * functions. */
#ifndef CQ_TRAINING_H
#define CQ_TRAINING_H

/* --- passes over rows --------------------------------------------------------------------------------------------- */

/* sums[row] = sum over columns of x * y, in 64 virtual lanes. */
typedef struct {
    const float *x, *y;
    int64_t columns;
    float *sums;
} cq_dot_rows_args;
cq_call cq_dot_rows;

/* sums (columns) = sums over the rows of x: runs of 64 rows are summed, and then these sums. */
typedef struct {
    const float *x;
    int64_t columns;
    float *sums;
} cq_column_sums_args;
cq_call cq_column_sums;

/* y = clip(rint(x / scale), low, high) + shift, whole numbers that stay floats; bytes = the same from low on;
 * clipped[row] = 1 where the row was. Parameters are one for all, one per row or one per column; high - low <= 255; low
 * <= 0 <= high but per column; shifts are optional. x must be finite. */
typedef struct {
    enum { CQ_BY_ONE, CQ_BY_ROW, CQ_BY_COLUMN } by;
    const float *scales, *lows, *highs, *shifts;
} cq_rounding;
typedef struct {
    const float *x;
    int64_t columns;
    cq_rounding rounding;
    float *y;
    uint8_t *bytes, *clipped;
} cq_round_args;
cq_call cq_round;

/* Each row of x to exp(factor * (x - max)) or, coded, rint(255 * 2^(factor * (x - max))) as int8 attention has it, in
 * place, and its sum. -Inf becomes 0. */
typedef struct {
    float *x;
    int64_t columns;
    float factor;
    int coded;
    float *sums;
} cq_exponents_args;
cq_call cq_exponents;

/* The reverse of softmax: g = factor * (g - sum(g * w)) * w of each row, in place, w = p * inverse. */
typedef struct {
    float *g;
    const float *p, *inverses;
    int64_t columns;
    float factor;
} cq_softmax_back_args;
cq_call cq_softmax_back;

/* y = (x + before) * row_scales * scales + after, y may be x: before, scales, after (columns), row_scales (rows); all
 * but scales optional. */
typedef struct {
    const float *before, *scales, *row_scales, *after;
} cq_rescaling;
typedef struct {
    const float *x;
    int64_t columns;
    cq_rescaling rescaling;
    float *y;
} cq_rescale_args;
cq_call cq_rescale;

/* y = norm(x) of each row, as cq_norm_rows; kept = what weight and bias follow, factors = what it was divided by,
 * inverted. */
typedef struct {
    const float *x;
    int64_t columns;
    cq_norm norm;
    float *kept, *factors, *y;
} cq_norm_kept_args;
cq_call cq_norm_kept;

/* From g, the gradient of y: dx, and of_weight = g * kept, whose column sums are the weight's. */
typedef struct {
    const float *g, *kept, *factors;
    int64_t columns;
    cq_norm norm;
    float *of_weight, *dx;
} cq_norm_back_args;
cq_call cq_norm_back;

/* --- passes over flat arrays, of `rows` numbers ------------------------------------------------------------------- */

/* y = act(x) and slope = act'(x); GELU to 2e-7. */
typedef struct {
    const float *x;
    cq_activation activation;
    float *y, *slope;
} cq_slope_args;
cq_call cq_slope;

/* A step of AdamW (Loshchilov, Hutter 2019): mean = beta1 mean + gradient g, square = beta2 square + gradient_square
 * g^2, p = keep p - rate mean / (root sqrt(square) + epsilon). units: the difference is multiplied by them and by p,
 * and half of p at most; or NULL. */
typedef struct {
    float beta1, beta2, gradient, gradient_square, root, epsilon, rate, keep;
} cq_adamw;
/* row_rates: NULL, or what the rate is multiplied by in each row of `columns` parameters. */
typedef struct {
    cq_adamw adamw;
    const float *g, *units, *row_rates;
    int64_t columns;
    float *mean, *square, *p;
} cq_adamw_args;
cq_call cq_adamw_step;

/* out[i] = function(x[i]), float64 or, `single`, float32, which is computed in float64 and rounded once. out may be x.
 * The error in float64 is below 0.9 units in the last place, tanh's below 1.5, for sin and cos at every finite x.
 * Results at 0, Inf and NaN and beyond float64's range are those of IEEE 754. CQ_POWER: x[i] to the power of y[i *
 * y_step], y float64, y_step 0 or 1; NaN for a negative x. */
typedef enum { CQ_EXP, CQ_LOG, CQ_SIN, CQ_COS, CQ_TANH, CQ_POWER } cq_function;
typedef struct {
    cq_function function;
    const void *x;
    const double *y;
    int64_t y_step;
    int single;
    void *out;
} cq_elementary_args;
cq_call cq_elementary;

/* Whether malloc keeps what is freed, for the whole process: a step of training makes and frees arrays of hundreds of
 * MB, and pages that went back to the system come anew one by one, zeroed. Off: they go back but for 64 MB, glibc's own
 * most. Does nothing with another C library. */
void cq_keep_freed(int on);
#endif
