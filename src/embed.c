/* Where tokens enter: embedding tables gathered and summed, and rotary positions. */
#include <string.h>

#include "kernel.h"
#include "threads.h"

typedef struct {
    const cq_embed_args *a;
    int64_t columns;
    float *y;
    float *x; /* rope */
    int64_t heads, dim, stride;
    const float *cosine, *sine;
    const int32_t *position;
} tokens_job;

static void word_row(const cq_embed_args *a, int64_t id, int64_t columns, float *y) {
    if (a->word_f32 && a->panel == 1) {
        memcpy(y, a->word_f32 + id * columns, (size_t)columns * 4);
        return;
    }
    if (a->word_f32) {
        const float *lane = a->word_f32 + id / a->panel * columns * a->panel + id % a->panel;
        for (int64_t c = 0; c < columns; c++) y[c] = lane[c * a->panel];
        return;
    }
    const int64_t groups = (columns + 3) / 4, line = 4 * a->panel;
    const int8_t *lane = a->word_i8 + id / a->panel * groups * line + id % a->panel * 4;
    const int32_t zero_point = a->zero_points ? a->zero_points[id] : 0;
    const float scale = a->scales[id];
    for (int64_t c = 0; c < columns; c++) y[c] = scale * (float)(lane[c / 4 * line + c % 4] - zero_point);
}

static void embed_tokens(void *context, cq_queue *queue) {
    const tokens_job *job = context;
    const cq_embed_args *a = job->a;
    const int64_t n = job->columns;
    for (int64_t t, end; cq_take(queue, &t, &end);)
        for (; t < end; t++) {
            float *y = job->y + t * n;
            word_row(a, a->id[t], n, y);
            if (a->position_table) cq_active->add(a->position_table + a->position[t] * n, n, y);
            if (a->type_table) cq_active->add(a->type_table + (a->type ? a->type[t] * n : 0), n, y);
        }
}

void cq_embed(int threads, const cq_embed_args *a, int64_t tokens, int64_t columns, float *y) {
    tokens_job job = {.a = a, .columns = columns, .y = y};
    cq_run(threads, (double)tokens * (double)columns * 8, &job, &(cq_phase){embed_tokens, tokens, 2}, 1);
}

static void rope_tokens(void *context, cq_queue *queue) {
    const tokens_job *job = context;
    for (int64_t t, end; cq_take(queue, &t, &end);)
        for (; t < end; t++) {
            const int64_t at = job->position[t] * (job->dim / 2);
            for (int64_t h = 0; h < job->heads; h++)
                cq_active->rope(job->x + t * job->stride + h * job->dim, job->dim, job->cosine + at, job->sine + at);
        }
}

void cq_rope(int threads, float *x, int64_t tokens, int64_t heads, int64_t dim, int64_t stride, const float *cosine,
             const float *sine, const int32_t *position) {
    tokens_job job = {.x = x, .heads = heads, .dim = dim, .stride = stride, .cosine = cosine, .sine = sine, .position = position};
    cq_run(threads, (double)tokens * (double)(heads * dim) * 2, &job, &(cq_phase){rope_tokens, tokens, 2}, 1);
}
