/* What the team sees of a pass, and how it shares a pass out. A part of training.c and elementary.c. */
#ifndef CQ_PASSES_H
#define CQ_PASSES_H
#include "kernel.h"
#include "threads.h"

typedef struct {
    void *const *arrays;
    const double *numbers;
    int64_t rows, columns;
    int kind; /* of an activation, a rounding or an elementary function */
    int64_t span;
} cq_pass_job;

#define EACH_ROW(row) \
    for (int64_t row, end; cq_take(queue, &row, &end);) \
        for (; row < end; row++)
/* Of all elements, span by span. */
#define EACH_SPAN(at, size) \
    for (int64_t n = job->rows * job->columns, begin, end; cq_take(queue, &begin, &end);) \
        for (int64_t at = begin * job->span, stop = end * job->span < n ? end * job->span : n, size; \
             size = stop - at < job->span ? stop - at : job->span, at < stop; at += job->span)

/* out = function(x), float64; float32 is computed in float64 and rounded once. out may be x. The error in float64 is
 * below 0.9 units in the last place, tanh's below 1.5, for sin and cos at every finite x. Results at 0, Inf and NaN and
 * beyond float64's range are those of IEEE 754. A power takes x to y, float64; NaN for a negative x. */
typedef enum { CQ_EXP, CQ_LOG, CQ_SIN, CQ_COS, CQ_TANH, CQ_POWER } cq_function;
enum { CQ_ELEMENTARY_SPAN = 512 };
void cq_elementary_f64(void *context, cq_queue *queue);
void cq_elementary_f32(void *context, cq_queue *queue);
#endif
