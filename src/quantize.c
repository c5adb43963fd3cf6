/* Drivers over rows: quantize, dequantize, ranges, norm, gate, Hadamard transforms. Each shares rows out to the team;
 * the kernels do a row. */
#include <math.h>
#include <string.h>

#include "kernel.h"
#include "threads.h"

typedef struct {
    const cq_args *a;
    int64_t columns;
    _Atomic int64_t bad; /* the first row with NaN or Inf, or INT64_MAX */
} rows_job;

static void note_bad(rows_job *job, cq_queue *queue, int64_t row) {
    cq_first_bad(&job->bad, row);
    cq_fail(queue, CQ_NOT_FINITE);
}

static cq_status run_rows(int threads, int64_t rows, double work_per_element, void (*member)(void *, cq_queue *),
                          rows_job *job, int64_t *bad) {
    atomic_init(&job->bad, INT64_MAX);
    const double work = (double)rows * (double)job->columns * work_per_element;
    const cq_status status = cq_run(threads, work, job, &(cq_phase){member, rows, 2}, 1);
    if (status == CQ_NOT_FINITE) *bad = atomic_load(&job->bad);
    return status;
}

static void quantize_rows(void *context, cq_queue *queue) {
    rows_job *job = context;
    const cq_quantize_args *a = &job->a->quantize;
    for (int64_t row, end; cq_take(queue, &row, &end);)
        for (; row < end; row++)
            if (!cq_active->quantize(a->x + row * a->columns, a->columns, a->codes, row)) note_bad(job, queue, row);
}

cq_status cq_quantize(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    rows_job job = {.a = args, .columns = args->quantize.columns};
    (void)sequences;
    return run_rows(threads, rows, 4, quantize_rows, &job, bad);
}

static void dequantize_rows(void *context, cq_queue *queue) {
    const cq_dequantize_args *a = &((const rows_job *)context)->a->dequantize;
    for (int64_t row, end; cq_take(queue, &row, &end);)
        for (; row < end; row++) cq_active->dequantize(&a->coded, row, a->columns, a->y + row * a->columns);
}

cq_status cq_dequantize(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    rows_job job = {.a = args, .columns = args->dequantize.columns};
    (void)sequences;
    return run_rows(threads, rows, 2, dequantize_rows, &job, bad);
}

cq_status cq_min_max(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_min_max_args *a = &args->min_max;
    const unsigned floats = cq_floats_begin();
    const int finite = cq_active->min_max(a->x, rows, a->ends, a->ends + 1);
    cq_floats_end(floats);
    (void)threads, (void)sequences;
    if (finite) return CQ_OK;
    for (*bad = 0; *bad < rows && isfinite(a->x[*bad]);) ++*bad;
    return CQ_NOT_FINITE_AT;
}

/* What is added to the residual, in `scratch` unless it is x itself. Returns 0 where it holds NaN or Inf. */
static int prepared(const cq_norm_args *a, const float **x, float *scratch) {
    int finite = 1;
    if (a->inner) finite = cq_active->norm(a->inner, *x, NULL, a->columns, scratch, scratch);
    else if (a->factor != 1.0f) memcpy(scratch, *x, (size_t)a->columns * 4);
    else return 1;
    if (a->factor != 1.0f) cq_active->scale(a->factor, a->columns, scratch);
    *x = scratch;
    return finite;
}

/* y = norm(x + residual), the sum to `sum`, which may be y; without a norm y is the sum. */
static int norm_row(const cq_norm_args *a, const float *x, const float *residual, float *sum, float *y) {
    const int64_t n = a->columns;
    float lo, hi;
    if (a->norm) {
        const int finite = cq_active->norm(a->norm, x, residual, n, sum, y);
        if (sum != y && !residual) memcpy(sum, x, (size_t)n * 4);
        return finite;
    }
    memcpy(y, residual ? residual : x, (size_t)n * 4);
    if (residual) cq_active->add(x, n, y);
    if (sum != y) memcpy(sum, y, (size_t)n * 4);
    return cq_active->min_max(y, n, &lo, &hi);
}

static void norm_rows(void *context, cq_queue *queue) {
    rows_job *job = context;
    const cq_norm_args *a = &job->a->norm;
    const int64_t n = a->columns;
    float *scratch = cq_scratch(2 * n * 4);
    if (!scratch) {
        cq_fail(queue, CQ_NO_MEMORY);
        return;
    }
    for (int64_t row, end; cq_take(queue, &row, &end);)
        for (; row < end; row++) {
            const float *x = a->x + row * n;
            float *y = a->y ? a->y + row * n : scratch;
            int finite = prepared(a, &x, scratch + n);
            finite &= norm_row(a, x, a->residual ? a->residual + row * n : NULL, a->sum ? a->sum + row * n : y, y);
            if (a->codes) finite &= cq_active->quantize(y, n, a->codes, row);
            if (!finite) note_bad(job, queue, row);
        }
    free(scratch);
}

cq_status cq_norm_rows(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    rows_job job = {.a = args, .columns = args->norm.columns};
    (void)sequences;
    return run_rows(threads, rows, 8, norm_rows, &job, bad);
}

static void gate_rows(void *context, cq_queue *queue) {
    rows_job *job = context;
    const cq_gate_args *a = &job->a->gate;
    const int64_t n = a->columns;
    float *scratch = NULL;
    if (!a->y && !(scratch = cq_scratch(n * 4))) {
        cq_fail(queue, CQ_NO_MEMORY);
        return;
    }
    for (int64_t row, end; cq_take(queue, &row, &end);)
        for (; row < end; row++) {
            float *y = a->y ? a->y + row * n : scratch, lo, hi;
            cq_active->gate(a->gate + row * n, a->up + row * n, a->activation, n, y);
            if (a->hadamard) cq_active->hadamard(y, n, a->hadamard);
            const int finite = a->codes ? cq_active->quantize(y, n, a->codes, row) : cq_active->min_max(y, n, &lo, &hi);
            if (!finite) note_bad(job, queue, row);
        }
    free(scratch);
}

cq_status cq_gate(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    rows_job job = {.a = args, .columns = args->gate.columns};
    (void)sequences;
    return run_rows(threads, rows, 12, gate_rows, &job, bad);
}

static void cap_rows(void *context, cq_queue *queue) {
    const cq_cap_args *a = &((const rows_job *)context)->a->cap;
    for (int64_t row, end; cq_take(queue, &row, &end);)
        for (; row < end; row++) cq_active->cap(a->x + row * a->columns, a->columns, a->factor, a->most);
}

cq_status cq_cap(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    rows_job job = {.a = args, .columns = args->cap.columns};
    (void)sequences;
    return run_rows(threads, rows, 12, cap_rows, &job, bad);
}

static void hadamard_rows(void *context, cq_queue *queue) {
    const cq_hadamard_args *a = &((const rows_job *)context)->a->hadamard;
    for (int64_t row, end; cq_take(queue, &row, &end);)
        for (; row < end; row++) cq_active->hadamard(a->x + row * a->columns, a->columns, a->block);
}

cq_status cq_hadamard(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    rows_job job = {.a = args, .columns = args->hadamard.columns};
    (void)sequences;
    return run_rows(threads, rows, 12, hadamard_rows, &job, bad);
}
