/* Where tokens enter: embedding tables gathered and summed, and rotary positions. */
#include <string.h>

#include "kernel.h"
#include "threads.h"

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
    const cq_embed_args *a = context;
    const int64_t n = a->columns;
    for (int64_t t, end; cq_take(queue, &t, &end);)
        for (; t < end; t++) {
            float *y = a->y + t * n;
            word_row(a, a->id[t], n, y);
            if (a->position_table) cq_active->add(a->position_table + a->position[t] * n, n, y);
            if (a->type_table) cq_active->add(a->type_table + (a->type ? a->type[t] * n : 0), n, y);
        }
}

cq_status cq_embed(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    cq_embed_args a = args->embed;
    (void)sequences, (void)bad;
    return cq_run(threads, (double)rows * (double)a.columns * 8, &a, &(cq_phase){embed_tokens, rows, 2}, 1);
}

static void rope_tokens(void *context, cq_queue *queue) {
    const cq_rope_args *a = context;
    for (int64_t t, end; cq_take(queue, &t, &end);)
        for (; t < end; t++) {
            const int64_t at = a->position[t] * (a->dim / 2);
            for (int64_t h = 0; h < a->heads; h++)
                cq_active->rope(a->x + t * a->stride + h * a->dim, a->dim, a->cosine + at, a->sine + at);
        }
}

cq_status cq_rope(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    cq_rope_args a = args->rope;
    (void)sequences, (void)bad;
    return cq_run(threads, (double)rows * (double)(a.heads * a.dim) * 2, &a, &(cq_phase){rope_tokens, rows, 2}, 1);
}
