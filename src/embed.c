/* Where tokens enter: embedding tables gathered and summed, and rotary positions. */
#include <string.h>

#include "kernel.h"
#include "threads.h"

static void word_row(const cq_embed_args *a, int64_t id, int64_t columns, float *y) {
    const cq_weight *w = a->packed;
    if (!w) {
        memcpy(y, a->word + id * columns, (size_t)columns * 4);
        return;
    }
    const int64_t panel = id / CQ_PANEL, lane = id % CQ_PANEL;
    if (w->floats) {
        const float *first = w->floats + panel * columns * CQ_PANEL + lane;
        for (int64_t c = 0; c < columns; c++) y[c] = first[c * CQ_PANEL];
        return;
    }
    const int64_t line = 4 * CQ_PANEL;
    const int8_t *first = w->panels + panel * ((columns + 3) / 4) * line + lane * 4;
    const int32_t zero_point = w->zero_points ? w->zero_points[id] : 0;
    const float scale = w->scales[id];
    for (int64_t c = 0; c < columns; c++) y[c] = scale * (float)(first[c / 4 * line + c % 4] - zero_point);
}

/* A call, and its first row with an index that is out of range. Each index is read once: what was checked is used. */
typedef struct {
    const cq_args *args;
    _Atomic int64_t bad;
} indexed_job;

static int is_row(indexed_job *job, cq_queue *queue, int64_t index, int64_t rows, int64_t t) {
    if (index >= 0 && index < rows) return 1;
    cq_first_bad(&job->bad, t);
    cq_fail(queue, CQ_OUT_OF_RANGE);
    return 0;
}

static cq_status run_indexed(int threads, double work, const cq_args *args, void (*member)(void *, cq_queue *),
                             int64_t rows, int64_t *bad) {
    indexed_job job = {.args = args};
    atomic_init(&job.bad, INT64_MAX);
    const cq_status status = cq_run(threads, work, &job, &(cq_phase){member, rows, 2}, 1);
    if (status == CQ_OUT_OF_RANGE) *bad = atomic_load(&job.bad);
    return status;
}

static void embed_tokens(void *context, cq_queue *queue) {
    indexed_job *job = context;
    const cq_embed_args *a = &job->args->embed;
    const int64_t n = a->columns;
    for (int64_t t, end; cq_take(queue, &t, &end);)
        for (; t < end; t++) {
            const int64_t id = a->id[t], position = a->position_table ? a->position[t] : 0,
                          type = a->type ? a->type[t] : 0;
            float *y = a->y + t * n;
            if (!is_row(job, queue, id, a->words, t)) continue;
            if (a->position_table && !is_row(job, queue, position, a->positions, t)) continue;
            if (a->type_table && !is_row(job, queue, type, a->types, t)) continue;
            word_row(a, id, n, y);
            if (a->scale != 1.0f) cq_active->scale(a->scale, n, y);
            if (a->position_table) cq_active->add(a->position_table + position * n, n, y);
            if (a->type_table) cq_active->add(a->type_table + type * n, n, y);
        }
}

cq_status cq_embed(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    (void)sequences;
    return run_indexed(threads, (double)rows * (double)args->embed.columns * 8, args, embed_tokens, rows, bad);
}

static void rope_tokens(void *context, cq_queue *queue) {
    indexed_job *job = context;
    const cq_rope_args *a = &job->args->rope;
    const cq_turns *turns = &a->turns;
    for (int64_t t, end; cq_take(queue, &t, &end);)
        for (; t < end; t++) {
            const int64_t position = a->position[t], at = position * (turns->turned / 2);
            if (!is_row(job, queue, position, turns->positions, t)) continue;
            for (int64_t h = 0; h < a->heads; h++) {
                float *x = a->x + t * a->stride + h * a->dim;
                cq_active->rope(x, turns->turned, turns->cosine + at, turns->sine + at);
                if (turns->hadamard) cq_active->hadamard(x, a->dim, turns->hadamard);
            }
        }
}

cq_status cq_rope(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_rope_args *a = &args->rope;
    (void)sequences;
    return run_indexed(threads, (double)rows * (double)(a->heads * a->dim) * 2, args, rope_tokens, rows, bad);
}
