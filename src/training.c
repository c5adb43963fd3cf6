/* Drivers of training's passes over float32: rows, or spans of flat arrays, shared out to the team. */
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "kernel.h"
#include "threads.h"

enum { SPAN = 4096 }; /* elements of a flat array that are one task */

typedef struct {
    const cq_args *args;
    int64_t rows;
} training_job;

static cq_status run(int threads, const cq_args *args, int64_t rows, double work_per_row,
                     void (*member)(void *, cq_queue *), int64_t tasks) {
    training_job job = {args, rows};
    return cq_run(threads, (double)rows * work_per_row, &job, &(cq_phase){member, tasks, 2}, 1);
}

static int64_t spans(int64_t n) { return (n + SPAN - 1) / SPAN; }

/* Of a job: the arguments of its call. */
#define ARGS(name) (&((const training_job *)context)->args->name)
#define EACH_ROW(row) \
    for (int64_t row, end; cq_take(queue, &row, &end);) \
        for (; row < end; row++)
#define EACH_SPAN(at, size) \
    for (int64_t n = ((const training_job *)context)->rows, begin, end; cq_take(queue, &begin, &end);) \
        for (int64_t at = begin * SPAN, stop = end * SPAN < n ? end * SPAN : n, size; \
             size = stop - at < SPAN ? stop - at : SPAN, at < stop; at += SPAN)

static void slope_spans(void *context, cq_queue *queue) {
    const cq_slope_args *a = ARGS(slope);
    EACH_SPAN(at, size) cq_active->slope(a->x + at, a->activation, size, a->y + at, a->slope + at);
}

cq_status cq_slope(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    (void)sequences, (void)bad;
    return run(threads, args, rows, 20, slope_spans, spans(rows));
}

static void round_rows(void *context, cq_queue *queue) {
    const cq_round_args *a = ARGS(round);
    EACH_ROW(r) {
        const int64_t at = r * a->columns;
        a->clipped[r] = (uint8_t)cq_active->round(a->x + at, a->columns, &a->rounding, r, a->y + at, a->bytes + at);
    }
}

cq_status cq_round(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    (void)sequences, (void)bad;
    return run(threads, args, rows, 4 * (double)args->round.columns, round_rows, rows);
}

static void exponent_rows(void *context, cq_queue *queue) {
    const cq_exponents_args *a = ARGS(exponents);
    EACH_ROW(r) a->sums[r] = cq_active->exponents(a->x + r * a->columns, a->columns, a->factor, a->coded);
}

cq_status cq_exponents(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    (void)sequences, (void)bad;
    return run(threads, args, rows, 10 * (double)args->exponents.columns, exponent_rows, rows);
}

static void softmax_back_rows(void *context, cq_queue *queue) {
    const cq_softmax_back_args *a = ARGS(softmax_back);
    EACH_ROW(r) {
        const int64_t at = r * a->columns;
        cq_active->softmax_back(a->g + at, a->p + at, a->columns, a->inverses[r], a->factor);
    }
}

cq_status cq_softmax_back(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    (void)sequences, (void)bad;
    return run(threads, args, rows, 4 * (double)args->softmax_back.columns, softmax_back_rows, rows);
}

static void adamw_spans(void *context, cq_queue *queue) {
    const cq_adamw_args *a = ARGS(adamw);
    EACH_SPAN(start, size) {
        for (int64_t at = start, n = size; at < start + size; at += n, n = start + size - at) {
            cq_adamw moves = a->adamw;
            if (a->row_rates) {
                const int64_t row = at / a->columns, left = (row + 1) * a->columns - at;
                moves.rate *= a->row_rates[row];
                n = n < left ? n : left;
            }
            cq_active->adamw(&moves, a->g + at, n, a->units ? a->units + at : NULL, a->mean + at, a->square + at,
                             a->p + at);
        }
    }
}

cq_status cq_adamw_step(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    (void)sequences, (void)bad;
    return run(threads, args, rows, 8, adamw_spans, spans(rows));
}

static void rescale_rows(void *context, cq_queue *queue) {
    const cq_rescale_args *a = ARGS(rescale);
    EACH_ROW(r) cq_active->rescale(a->x + r * a->columns, a->columns, &a->rescaling, r, a->y + r * a->columns);
}

cq_status cq_rescale(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    (void)sequences, (void)bad;
    return run(threads, args, rows, 3 * (double)args->rescale.columns, rescale_rows, rows);
}

static void norm_kept_rows(void *context, cq_queue *queue) {
    const cq_norm_kept_args *a = ARGS(norm_kept);
    EACH_ROW(r) {
        const int64_t at = r * a->columns;
        a->factors[r] = cq_active->norm_kept(&a->norm, a->x + at, a->columns, a->kept + at, a->y + at);
    }
}

cq_status cq_norm_kept(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    (void)sequences, (void)bad;
    return run(threads, args, rows, 8 * (double)args->norm_kept.columns, norm_kept_rows, rows);
}

static void norm_back_rows(void *context, cq_queue *queue) {
    const cq_norm_back_args *a = ARGS(norm_back);
    EACH_ROW(r) {
        const int64_t at = r * a->columns;
        cq_active->norm_back(&a->norm, a->kept + at, a->factors[r], a->g + at, a->columns, a->of_weight + at,
                             a->dx + at);
    }
}

cq_status cq_norm_back(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    (void)sequences, (void)bad;
    return run(threads, args, rows, 8 * (double)args->norm_back.columns, norm_back_rows, rows);
}

static void dot_rows(void *context, cq_queue *queue) {
    const cq_dot_rows_args *a = ARGS(dot_rows);
    EACH_ROW(r) a->sums[r] = cq_active->dot(a->x + r * a->columns, a->y + r * a->columns, a->columns);
}

cq_status cq_dot_rows(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    (void)sequences, (void)bad;
    return run(threads, args, rows, (double)args->dot_rows.columns, dot_rows, rows);
}

enum { SPAN_COLUMNS = 64 }; /* columns that are one task: neighbours share no line of cache */

static void column_sums(void *context, cq_queue *queue) {
    const cq_column_sums_args *a = ARGS(column_sums);
    const int64_t rows = ((const training_job *)context)->rows;
    EACH_ROW(span) {
        const int64_t at = span * SPAN_COLUMNS, left = a->columns - at, n = left < SPAN_COLUMNS ? left : SPAN_COLUMNS;
        cq_active->column_sums(a->x + at, a->columns, rows, n, a->sums + at);
    }
}

cq_status cq_column_sums(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    (void)sequences, (void)bad;
    const int64_t columns = args->column_sums.columns;
    return run(threads, args, rows, (double)columns, column_sums, (columns + SPAN_COLUMNS - 1) / SPAN_COLUMNS);
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
