/* A product's job, what a member of the team works in, and what a strip of it is told: its columns' and its rows'
 * parameters. A part of gemm.c, which alone includes it. */
#ifndef CQ_GEMM_H
#define CQ_GEMM_H
#include <string.h>

#include "affine.h"
#include "kernel.h"
#include "threads.h"

typedef struct gemm_job gemm_job;
typedef struct gemm_work gemm_work;

struct gemm_job {
    int64_t m, n, k4; /* k4: k in whole groups of 4 */
    int64_t line;     /* bytes of a row of A that is copied */
    int64_t blocks, block_rows;
    int64_t span, spans; /* tiles of columns in a task, and how many spans there are */
    int whole_rows;      /* a row is finished once all of its columns are there */
    const cq_weight *w;
    const cq_epilogue *e;
    void (*product)(const gemm_job *, gemm_work *, cq_queue *, cq_strip *, int64_t row, int64_t column);
    const cq_coded *a;    /* integer products of codes, */
    const cq_codes *form; /* or of x, coded so */
    int32_t *c;
    int64_t c_stride;
    const float *x; /* float32 */
    int64_t x_stride;
    float *rows; /* (m, n): where rows wait for their last column, or NULL: in a member's own block */
    _Atomic int64_t bad;
};

/* What a member of the team works in. */
struct gemm_work {
    int64_t block; /* the block of A that is ready, or -1 */
    const uint8_t *a;
    int64_t stride;
    const float *row_scales;
    const int32_t *row_zeros, *row_sums;
    int32_t zero;       /* a's zero point, where there is one for all rows */
    int is_clipped;     /* the block is there in this form, */
    cq_clipped clipped; /* and without zero points of rows */
    uint8_t *codes;     /* the block as uint8 codes in whole groups of 4, where A itself is not so */
    float *scales;
    int32_t *zeros, *sums;
    float *wide, *acc, *total; /* float32 products */
    float *rows, *normed;      /* (block_rows, n) and (n) */
};

static void note_bad(gemm_job *job, cq_queue *queue, int64_t row) {
    cq_first_bad(&job->bad, row);
    cq_fail(queue, CQ_NOT_FINITE);
}

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

#define WAITING_BYTES (512 << 10) /* of a block's float32 rows that wait for their last column: half of that cache */
#define EVEN_BELOW 16             /* tasks of a member */
#define ROWS_EACH 24              /* rows that a member should have, or tiles are shared out */
/* With k above LONG_K, CQ_BLOCK_ROWS rows of A are a megabyte and more. Blocks of a float32 product then have other
 * sizes: more rows where tiles are four panels wide, so that fewer blocks read the weight anew; fewer rows where tiles
 * are one panel wide, and the second-level cache holds a part of their k for LONG_SPAN tiles of columns. */
enum { LONG_K = 1536, LONG_ROWS_WIDE = 516, LONG_ROWS = 72, LONG_SPAN = 4 };

/* Lays out rows of A and decides what a task is: blocks of rows by spans of tiles. Returns whether it is whole
 * blocks. */
static int share_out(gemm_job *job, int threads) {
    const int64_t k = job->w->k;
    job->k4 = up(k, 4), job->line = cq_active->align_from ? up(k, CQ_LINE) : job->k4;
    const int by_blocks = job->whole_rows && (threads == 1 || job->m >= threads * ROWS_EACH);
    const int is_long = job->w->floats && k > LONG_K, is_wide = cq_active->panels > 1;
    const int64_t tiles = (job->n + CQ_TILE - 1) / CQ_TILE;
    int64_t most = !is_long ? CQ_BLOCK_ROWS : is_wide ? LONG_ROWS_WIDE : LONG_ROWS;
    if (by_blocks) most = max(CQ_TILE_ROWS, min(most, WAITING_BYTES / (4 * job->n) / CQ_TILE_ROWS * CQ_TILE_ROWS));
    job->blocks = (job->m + most - 1) / most;
    const int has_many = by_blocks || job->blocks * tiles >= LONG_SPAN * threads * EVEN_BELOW;
    job->span = is_long && !is_wide && has_many ? LONG_SPAN : 1;
    job->spans = (tiles + job->span - 1) / job->span;
    /* as many tasks for each member; where they are many that matters no longer */
    if (by_blocks || (job->spans % threads && job->blocks * job->spans < threads * EVEN_BELOW))
        job->blocks = up(job->blocks, threads);
    job->blocks = min(job->blocks, (job->m + CQ_TILE_ROWS - 1) / CQ_TILE_ROWS);
    job->block_rows = up((job->m + job->blocks - 1) / job->blocks, CQ_TILE_ROWS);
    return by_blocks;
}

/* Blocks are whole tiles of rows, as even as can be. */
static int64_t first_row(const gemm_job *job, int64_t block) {
    const int64_t units = (job->m + CQ_TILE_ROWS - 1) / CQ_TILE_ROWS;
    return min(units * block / job->blocks * CQ_TILE_ROWS, job->m);
}

/* Prefetches what the tile at `column` reads beside its weights, and what its columns are normed and coded with. Where
 * weights are streamed from memory, these lines are in no cache, and the tile would wait for each array. Always
 * inlined: GCC 12 drops calls of a function that only prefetches. */
static inline __attribute__((always_inline)) void fetch_columns(const gemm_job *job, int64_t column) {
    const cq_weight *w = job->w;
    const cq_epilogue *e = job->e;
    const cq_codes *codes = e ? e->codes : NULL;
#define FETCH(array, at) if (array) __builtin_prefetch((array) + (at))
    for (int64_t j = column; j < min(column + CQ_TILE, job->n); j += 16) {
        FETCH(w->column_sums, j);
        FETCH(w->scales, j);
        if (!e) continue;
        FETCH(e->bias_i32, j);
        FETCH(e->bias, j);
        if (e->norm) __builtin_prefetch(e->norm->weight + j);
        if (codes) FETCH(codes->column_inverses, e->gated ? j / 2 : j);
    }
#undef FETCH
}

/* Fills what all rows of a strip share: columns from `column` on. The strip is all 0 before its first tile. */
static void set_columns(const gemm_job *job, const gemm_work *work, cq_strip *s, int64_t column) {
    const cq_weight *w = job->w;
    const cq_epilogue *e = job->e;
    const int n = s->columns = (int)min(CQ_TILE, job->n - column);
    const int32_t *bias = e && e->bias_i32 ? e->bias_i32 + column : NULL;
    if (job->a || job->form) {
        memcpy(s->column_sums, w->column_sums + column, (size_t)n * 4);
        if (w->zero_points) memcpy(s->zero_points, w->zero_points + column, (size_t)n * 4);
        if (!bias && !work->zero) memset(s->start, 0, sizeof s->start);
        else
            for (int j = 0; j < n; j++)
                s->start[j] =
                    (int32_t)((bias ? (uint32_t)bias[j] : 0) - (uint32_t)work->zero * (uint32_t)s->column_sums[j]);
    }
    if (!e) return;
    if (w->scales && w->group_size >= w->k) memcpy(s->scales, w->scales + column, (size_t)n * 4);
    else
        for (int j = 0; j < n; j++) s->scales[j] = 1.0f;
    if (job->a && !job->a->scales)
        for (int j = 0; j < n; j++) s->scales[j] *= job->a->scale;
    if (e->bias) memcpy(s->bias, e->bias + column, (size_t)n * 4);
    s->activation = e->gated ? CQ_IDENTITY : e->activation;
    if (!e->codes || job->whole_rows) return;
    const cq_codes *codes = e->codes;
    cq_code_range(codes->is_signed, codes->symmetric, &s->qmin, &s->qmax);
    if (codes->column_scales) {
        memcpy(s->code_scales, codes->column_scales + column, (size_t)n * 4);
        memcpy(s->code_inverses, codes->column_inverses + column, (size_t)n * 4);
        for (int j = 0; j < n; j++) s->code_zeros[j] = (float)codes->column_zero_points[column + j];
        return;
    }
    const float code_zero = (float)codes->zero_point, inverse = cq_inverse(codes->scale);
    for (int j = 0; j < n; j++)
        s->code_scales[j] = codes->scale, s->code_zeros[j] = code_zero, s->code_inverses[j] = inverse;
}

/* Points a strip at its rows; `first`: of the block. */
static void set_rows(const gemm_job *job, const gemm_work *work, cq_strip *s, int64_t first, int64_t row, int64_t rows,
                     int64_t column) {
    const cq_epilogue *e = job->e;
    s->rows = rows;
    s->row_scales = work->row_scales ? work->row_scales + (row - first) : NULL;
    s->row_zeros = work->row_zeros ? work->row_zeros + (row - first) : NULL;
    s->row_sums = work->row_sums ? work->row_sums + (row - first) : NULL;
    if (job->c) {
        s->c = job->c + row * job->c_stride + column, s->stride = job->c_stride;
        return;
    }
    s->residual = e->residual ? e->residual + row * job->n + column : NULL, s->residual_stride = job->n;
    s->residual_coded = e->residual_coded, s->residual_row = row, s->residual_column = column;
    if (e->out) {
        s->out = e->out + row * job->n + column, s->stride = job->n;
    } else if (job->whole_rows) {
        s->out = (job->rows ? job->rows + row * job->n : work->rows + (row - first) * job->n) + column,
        s->stride = job->n;
    } else {
        s->codes = (uint8_t *)e->codes->codes + row * e->codes->stride + column, s->stride = e->codes->stride;
    }
}
#endif
