/* Passes over float32 arrays that training is made of, and the table of all passes: rows, or spans of all elements,
 * shared out to the team. */
#include <stdlib.h>
#include <string.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "passes.h"

enum { SPAN = 4096, SPAN_COLUMNS = 64 }; /* one task: so many elements, or columns, of which none share a cache line */

/* sums[row] = sum over columns of x * y, in 64 virtual lanes. */
static void dot_rows(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    const float *x = job->arrays[0], *y = job->arrays[1];
    float *sums = job->arrays[2];
    EACH_ROW(r) sums[r] = cq_active->dot(x + r * job->columns, y + r * job->columns, job->columns);
}

/* sums (columns) = sums over the rows of x: runs of 64 rows are summed, and then these sums. */
static void column_sums(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    const float *x = job->arrays[0];
    float *sums = job->arrays[1];
    EACH_ROW(span) {
        const int64_t at = span * SPAN_COLUMNS, left = job->columns - at, n = left < SPAN_COLUMNS ? left : SPAN_COLUMNS;
        cq_active->column_sums(x + at, job->columns, job->rows, n, sums + at);
    }
}

/* y = act(x) and slope = act'(x); GELU to 2e-7. */
static void slope_spans(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    const float *x = job->arrays[0];
    float *y = job->arrays[1], *slope = job->arrays[2];
    EACH_SPAN(at, size) cq_active->slope(x + at, (cq_activation)job->kind, size, y + at, slope + at);
}

/* y = clip(rint(x / scale), low, high) + shift, whole numbers that stay floats; bytes = the same from low on;
 * clipped[row] = 1 where the row was. x must be finite. See cq_rounding. */
enum { BY_ROW, BY_COLUMN };
static void round_rows(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    const float *x = job->arrays[0];
    const cq_rounding r = {job->kind == BY_COLUMN, job->arrays[1], job->arrays[2], job->arrays[3], job->arrays[4]};
    float *y = job->arrays[5];
    uint8_t *bytes = job->arrays[6], *clipped = job->arrays[7];
    EACH_ROW(row) {
        const int64_t at = row * job->columns;
        clipped[row] = (uint8_t)cq_active->round(x + at, job->columns, &r, row, y + at, bytes + at);
    }
}

/* Of a factor and coded, 0 or 1: each row of x to exp(factor * (x - max)) or, coded, rint(255 * 2^(factor * (x - max)))
 * as int8 attention has it, in place, and its sum. -Inf becomes 0. */
static void exponent_rows(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    float *x = job->arrays[0], *sums = job->arrays[1];
    const float factor = (float)job->numbers[0];
    const int coded = job->numbers[1] != 0;
    EACH_ROW(r) sums[r] = cq_active->exponents(x + r * job->columns, job->columns, factor, coded);
}

/* Of a factor, the reverse of softmax: g = factor * (g - sum(g * w)) * w of each row, in place, w = p * inverse. */
static void softmax_back_rows(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    float *g = job->arrays[0];
    const float *p = job->arrays[1], *inverses = job->arrays[2], factor = (float)job->numbers[0];
    EACH_ROW(r) {
        const int64_t at = r * job->columns;
        cq_active->softmax_back(g + at, p + at, job->columns, inverses[r], factor);
    }
}

/* y = (x + before) * row_scales * scales + after; y may be x. */
static void rescale_rows(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    const float *x = job->arrays[0];
    const cq_rescaling r = {job->arrays[2], job->arrays[1], job->arrays[3], job->arrays[4]};
    float *y = job->arrays[5];
    EACH_ROW(row) cq_active->rescale(x + row * job->columns, job->columns, &r, row, y + row * job->columns);
}

/* Of eps and rms, 0 or 1: y = norm(x) of each row, as cq_norm_rows; kept = what weight and bias follow, factors = what
 * it was divided by, inverted. */
static void norm_kept_rows(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    const float *x = job->arrays[0];
    const cq_norm norm = {job->arrays[1], job->arrays[2], (float)job->numbers[0], job->numbers[1] != 0};
    float *y = job->arrays[3], *kept = job->arrays[4], *factors = job->arrays[5];
    EACH_ROW(r) {
        const int64_t at = r * job->columns;
        factors[r] = cq_active->norm_kept(&norm, x + at, job->columns, kept + at, y + at);
    }
}

/* Of rms, 0 or 1, from g, the gradient of y: dx, and of_weight = g * kept, whose column sums are the weight's. */
static void norm_back_rows(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    const float *g = job->arrays[0], *kept = job->arrays[2], *factors = job->arrays[3];
    const cq_norm norm = {.weight = job->arrays[1], .rms = job->numbers[0] != 0};
    float *dx = job->arrays[4], *of_weight = job->arrays[5];
    EACH_ROW(r) {
        const int64_t at = r * job->columns;
        cq_active->norm_back(&norm, kept + at, factors[r], g + at, job->columns, of_weight + at, dx + at);
    }
}

/* Of the numbers of cq_adamw, a step of AdamW (Loshchilov, Hutter 2019). units: the difference is multiplied by them
 * and by p, and half of p at most. row_rates: what the rate is multiplied by in each row. */
static void adamw_spans(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    const double *c = job->numbers;
    const cq_adamw step = {(float)c[0], (float)c[1], (float)c[2], (float)c[3],
                           (float)c[4], (float)c[5], (float)c[6], (float)c[7]};
    float *p = job->arrays[0], *mean = job->arrays[2], *square = job->arrays[3];
    const float *g = job->arrays[1], *units = job->arrays[4], *row_rates = job->arrays[5];
    EACH_SPAN(start, size) {
        for (int64_t at = start, part = size; at < start + size; at += part, part = start + size - at) {
            cq_adamw moves = step;
            if (row_rates) {
                const int64_t row = at / job->columns, left = (row + 1) * job->columns - at;
                moves.rate *= row_rates[row];
                part = part < left ? part : left;
            }
            cq_active->adamw(&moves, g + at, part, units ? units + at : NULL, mean + at, square + at, p + at);
        }
    }
}

/* --- the table ---------------------------------------------------------------------------------------------------- */

typedef struct {
    cq_pass is;
    void (*member)(void *context, cq_queue *queue);
    double work;  /* multiply-adds of an element, about */
    int64_t span; /* elements that are one task, or 0: tasks are rows */
    int kind;
} pass;

#define READ(axes, name) {name, CQ_##axes, CQ_READ, 'f'}
#define WRITE(axes, name) {name, CQ_##axes, CQ_WRITE, 'f'}
#define MAYBE(axes, name) {name, CQ_##axes, CQ_MAYBE, 'f'}
#define RESULT(axes, name) {name, CQ_##axes, CQ_RESULT, 'f'}
#define BYTES(axes, name) {name, CQ_##axes, CQ_RESULT, 'B'}
#define DOUBLE(use, name) {name, CQ_MATRIX, CQ_##use, 'd'}
/* A pass of so many numbers, and its arrays. */
#define PASS(name, numbers, member, work, span, kind, ...) {{name, {__VA_ARGS__}, numbers}, member, work, span, kind}
#define SLOPE(name, kind) \
    PASS(name, 0, slope_spans, 20, SPAN, kind, READ(MATRIX, "x"), RESULT(MATRIX, "y"), RESULT(MATRIX, "slope"))
#define ROUND(name, axes, kind) \
    PASS(name, 0, round_rows, 4, 0, kind, READ(MATRIX, "x"), READ(axes, "scales"), READ(axes, "lows"), \
         READ(axes, "highs"), MAYBE(axes, "shifts"), RESULT(MATRIX, "y"), BYTES(MATRIX, "bytes"), \
         BYTES(PER_ROW, "clipped"))
#define OF_F64(name, kind, ...) \
    PASS(name, 0, cq_elementary_f64, 12, CQ_ELEMENTARY_SPAN, kind, __VA_ARGS__, DOUBLE(RESULT, "out"))
#define OF_F32(name, kind, ...) \
    PASS(name "_f32", 0, cq_elementary_f32, 12, CQ_ELEMENTARY_SPAN, kind, __VA_ARGS__, RESULT(MATRIX, "out"))
#define ELEMENTARY(name, kind) OF_F64(name, kind, DOUBLE(READ, "x")), OF_F32(name, kind, READ(MATRIX, "x"))

static const pass passes[] = {
    PASS("dot_rows", 0, dot_rows, 1, 0, 0, READ(MATRIX, "x"), READ(MATRIX, "y"), RESULT(PER_ROW, "sums")),
    PASS("column_sums", 0, column_sums, 1, 0, 0, READ(MATRIX, "x"), RESULT(PER_COLUMN, "sums")),
    SLOPE("slope_relu", CQ_RELU),
    SLOPE("slope_gelu", CQ_GELU),
    SLOPE("slope_gelu_tanh", CQ_GELU_TANH),
    SLOPE("slope_silu", CQ_SILU),
    ROUND("round_by_row", PER_ROW, BY_ROW),
    ROUND("round_by_column", PER_COLUMN, BY_COLUMN),
    PASS("exponents", 2, exponent_rows, 10, 0, 0, WRITE(MATRIX, "x"), RESULT(PER_ROW, "sums")),
    PASS("softmax_back", 1, softmax_back_rows, 4, 0, 0, WRITE(MATRIX, "g"), READ(MATRIX, "p"),
         READ(PER_ROW, "inverses")),
    PASS("rescale", 0, rescale_rows, 3, 0, 0, READ(MATRIX, "x"), READ(PER_COLUMN, "scales"),
         MAYBE(PER_COLUMN, "before"), MAYBE(PER_ROW, "row_scales"), MAYBE(PER_COLUMN, "after"), RESULT(MATRIX, "out")),
    PASS("norm_kept", 2, norm_kept_rows, 8, 0, 0, READ(MATRIX, "x"), READ(PER_COLUMN, "weight"),
         MAYBE(PER_COLUMN, "bias"), RESULT(MATRIX, "y"), RESULT(MATRIX, "kept"), RESULT(PER_ROW, "factors")),
    PASS("norm_back", 1, norm_back_rows, 8, 0, 0, READ(MATRIX, "g"), READ(PER_COLUMN, "weight"), READ(MATRIX, "kept"),
         READ(PER_ROW, "factors"), RESULT(MATRIX, "dx"), RESULT(MATRIX, "of_weight")),
    PASS("adamw", 8, adamw_spans, 8, SPAN, 0, WRITE(MATRIX, "p"), READ(MATRIX, "g"), WRITE(MATRIX, "mean"),
         WRITE(MATRIX, "square"), MAYBE(MATRIX, "units"), MAYBE(PER_ROW, "row_rates")),
    ELEMENTARY("exp", CQ_EXP),
    ELEMENTARY("log", CQ_LOG),
    ELEMENTARY("sin", CQ_SIN),
    ELEMENTARY("cos", CQ_COS),
    ELEMENTARY("tanh", CQ_TANH),
    OF_F64("power", CQ_POWER, DOUBLE(READ, "x"), DOUBLE(READ, "y")),
    OF_F32("power", CQ_POWER, READ(MATRIX, "x"), DOUBLE(READ, "y")),
};

const cq_pass *cq_find_pass(const char *name) {
    for (size_t i = 0; i < sizeof passes / sizeof *passes; i++)
        if (!strcmp(name, passes[i].is.name)) return &passes[i].is;
    return NULL;
}

cq_status cq_run_pass(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_pass_args *a = &args->of_pass;
    const pass *p = (const pass *)a->what; /* `is` comes first */
    cq_pass_job job = {a->arrays, a->numbers, rows, a->columns, p->kind, p->span};
    int64_t tasks = p->span ? (rows * a->columns + p->span - 1) / p->span : rows;
    if (p->member == column_sums) tasks = (a->columns + SPAN_COLUMNS - 1) / SPAN_COLUMNS;
    (void)sequences, (void)bad;
    return cq_run(threads, (double)rows * (double)a->columns * p->work, &job, &(cq_phase){p->member, tasks, 2}, 1);
}

void cq_keep_freed(int on) {
#ifdef __GLIBC__
    enum { MOST = 1 << 25, USUAL = 1 << 26, ALL = INT32_MAX }; /* MOST: glibc's own limit on what it may not map anew */
    mallopt(M_MMAP_THRESHOLD, MOST);
    mallopt(M_TRIM_THRESHOLD, on ? ALL : USUAL);
    if (!on) malloc_trim(USUAL);
#else
    (void)on;
#endif
}
