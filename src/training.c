/* Drivers of training's passes over float32: rows, or spans of flat arrays, shared out to the team. */
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "kernel.h"
#include "threads.h"

enum { SPAN = 4096 }; /* elements of a flat array that are one task */

typedef struct {
    float *x, *y, *mean, *square, *kept;
    const float *from, *with, *units, *before;
    int64_t n, rows;
    float factor;
    int coded;
    cq_activation activation;
    const cq_rounding *rounding;
    const cq_rescaling *rescaling;
    const cq_norm *norm;
    const cq_adamw *adamw;
    uint8_t *marks, *bytes;
    float *sums;
} training_job;

#define EACH_ROW(row) \
    for (int64_t row, end; cq_take(queue, &row, &end);) \
        for (; row < end; row++)
#define EACH_SPAN(at, size) \
    for (int64_t begin, end; cq_take(queue, &begin, &end);) \
        for (int64_t at = begin * SPAN, stop = end * SPAN < job->n ? end * SPAN : job->n, size; \
             size = stop - at < SPAN ? stop - at : SPAN, at < stop; at += SPAN)

static void slope_spans(void *context, cq_queue *queue) {
    const training_job *job = context;
    EACH_SPAN(at, size) cq_active->slope(job->from + at, job->activation, size, job->x + at, job->y + at);
}

void cq_slope(int threads, const float *x, int64_t n, cq_activation activation, float *y, float *slope) {
    training_job job = {.from = x, .activation = activation, .n = n, .x = y, .y = slope};
    cq_run(threads, (double)n * 20, &job, &(cq_phase){slope_spans, (n + SPAN - 1) / SPAN, 2}, 1);
}

static void round_rows(void *context, cq_queue *queue) {
    const training_job *job = context;
    EACH_ROW(r) {
        const int64_t at = r * job->n;
        job->marks[r] = (uint8_t)cq_active->round(job->from + at, job->n, job->rounding, r, job->y + at, job->bytes + at);
    }
}

void cq_round(int threads, const float *x, int64_t rows, int64_t columns, const cq_rounding *r, float *y, uint8_t *bytes,
              uint8_t *clipped) {
    training_job job = {.from = x, .n = columns, .rounding = r, .y = y, .bytes = bytes, .marks = clipped};
    cq_run(threads, (double)rows * (double)columns * 4, &job, &(cq_phase){round_rows, rows, 2}, 1);
}

static void exponent_rows(void *context, cq_queue *queue) {
    const training_job *job = context;
    EACH_ROW(r) job->sums[r] = cq_active->exponents(job->x + r * job->n, job->n, job->factor, job->coded);
}

void cq_exponents(int threads, float *x, int64_t rows, int64_t columns, float factor, int coded, float *sums) {
    training_job job = {.x = x, .n = columns, .factor = factor, .coded = coded, .sums = sums};
    cq_run(threads, (double)rows * (double)columns * 10, &job, &(cq_phase){exponent_rows, rows, 2}, 1);
}

static void softmax_back_rows(void *context, cq_queue *queue) {
    const training_job *job = context;
    EACH_ROW(r) cq_active->softmax_back(job->x + r * job->n, job->from + r * job->n, job->n, job->with[r], job->factor);
}

void cq_softmax_back(int threads, float *g, const float *p, int64_t rows, int64_t columns, const float *inverses, float factor) {
    training_job job = {.x = g, .from = p, .n = columns, .with = inverses, .factor = factor};
    cq_run(threads, (double)rows * (double)columns * 4, &job, &(cq_phase){softmax_back_rows, rows, 2}, 1);
}

static void adamw_spans(void *context, cq_queue *queue) {
    const training_job *job = context;
    EACH_SPAN(at, size) {
        cq_active->adamw(job->adamw, job->from + at, size, job->units ? job->units + at : NULL, job->mean + at, job->square + at,
                         job->x + at);
    }
}

void cq_adamw_step(int threads, const cq_adamw *a, const float *g, int64_t n, const float *units, float *mean, float *square,
                   float *p) {
    training_job job = {.adamw = a, .from = g, .n = n, .units = units, .mean = mean, .square = square, .x = p};
    cq_run(threads, (double)n * 8, &job, &(cq_phase){adamw_spans, (n + SPAN - 1) / SPAN, 2}, 1);
}

static void rescale_rows(void *context, cq_queue *queue) {
    const training_job *job = context;
    EACH_ROW(r) cq_active->rescale(job->from + r * job->n, job->n, job->rescaling, r, job->y + r * job->n);
}

void cq_rescale(int threads, const float *x, int64_t rows, int64_t columns, const cq_rescaling *r, float *y) {
    training_job job = {.from = x, .n = columns, .rescaling = r, .y = y};
    cq_run(threads, (double)rows * (double)columns * 3, &job, &(cq_phase){rescale_rows, rows, 2}, 1);
}

static void norm_kept_rows(void *context, cq_queue *queue) {
    const training_job *job = context;
    EACH_ROW(r) {
        const int64_t at = r * job->n;
        job->sums[r] = cq_active->norm_kept(job->norm, job->from + at, job->n, job->kept + at, job->y + at);
    }
}

void cq_norm_kept(int threads, const cq_norm *norm, const float *x, int64_t rows, int64_t columns, float *kept, float *factors,
                  float *y) {
    training_job job = {.norm = norm, .from = x, .n = columns, .kept = kept, .sums = factors, .y = y};
    cq_run(threads, (double)rows * (double)columns * 8, &job, &(cq_phase){norm_kept_rows, rows, 2}, 1);
}

static void norm_back_rows(void *context, cq_queue *queue) {
    const training_job *job = context;
    EACH_ROW(r) {
        const int64_t at = r * job->n;
        cq_active->norm_back(job->norm, job->before + at, job->with[r], job->from + at, job->n, job->x + at, job->y + at);
    }
}

void cq_norm_back(int threads, const cq_norm *norm, const float *kept, const float *factors, const float *g, int64_t rows,
                  int64_t columns, float *of_weight, float *dx) {
    training_job job = {.norm = norm, .before = kept, .with = factors, .from = g, .n = columns, .x = of_weight, .y = dx};
    cq_run(threads, (double)rows * (double)columns * 8, &job, &(cq_phase){norm_back_rows, rows, 2}, 1);
}

static void dot_rows(void *context, cq_queue *queue) {
    const training_job *job = context;
    EACH_ROW(r) job->sums[r] = cq_active->dot(job->from + r * job->n, job->with + r * job->n, job->n);
}

void cq_dot_rows(int threads, const float *x, const float *y, int64_t rows, int64_t columns, float *sums) {
    training_job job = {.from = x, .with = y, .n = columns, .sums = sums};
    cq_run(threads, (double)rows * (double)columns, &job, &(cq_phase){dot_rows, rows, 2}, 1);
}

enum { SPAN_COLUMNS = 64 }; /* columns that are one task: neighbours share no line of cache */

static void column_sums(void *context, cq_queue *queue) {
    const training_job *job = context;
    EACH_ROW(span) {
        const int64_t at = span * SPAN_COLUMNS, left = job->n - at, n = left < SPAN_COLUMNS ? left : SPAN_COLUMNS;
        cq_active->column_sums(job->from + at, job->n, job->rows, n, job->y + at);
    }
}

void cq_column_sums(int threads, const float *x, int64_t rows, int64_t columns, float *y) {
    training_job job = {.from = x, .n = columns, .rows = rows, .y = y};
    const int64_t spans = (columns + SPAN_COLUMNS - 1) / SPAN_COLUMNS;
    cq_run(threads, (double)rows * (double)columns, &job, &(cq_phase){column_sums, spans, 2}, 1);
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
