/* Matrix products over packed weights: block loops around the tiles. Threads take (block of rows, tile of columns) pairs. */
#include <string.h>

#include "kernel.h"
#include "threads.h"

#define BLOCK_ROWS 144   /* rows of A kept in the second-level cache while the column tiles pass */
#define FEW_ROWS 4       /* up to here float32 products read int8 weights directly */
#define WIDEN_ROWS 256   /* rows of a weight tile that are float32 at a time: 64 KB */

typedef struct {
    int64_t m, k4;          /* k4: k in whole groups of 4 */
    int64_t block_rows, column_tiles;
    const cq_weight *w;
    const cq_epilogue *e;
    const cq_coded *a;      /* integer products */
    int32_t *c;
    int64_t c_stride;
    const float *x;         /* float32 products */
    int64_t x_stride;
} gemm_job;

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static cq_status run_gemm(int threads, gemm_job *job, cq_member member) {
    const int64_t k = job->w->k, blocks = (job->m + BLOCK_ROWS - 1) / BLOCK_ROWS;
    if (!job->m) return CQ_OK;
    job->k4 = (k + 3) / 4 * 4;
    job->block_rows = ((job->m + blocks - 1) / blocks + CQ_TILE_ROWS - 1) / CQ_TILE_ROWS * CQ_TILE_ROWS;
    job->column_tiles = (job->w->n + CQ_TILE - 1) / CQ_TILE;
    const int64_t tasks = (job->m + job->block_rows - 1) / job->block_rows * job->column_tiles;
    return cq_run(threads, tasks, 4, (double)job->m * (double)job->w->n * (double)k, member, job);
}

/* The tile of a task: its columns, and rows first .. first + rows - 1. */
static cq_tile task_tile(const gemm_job *job, int64_t task, int64_t *rows) {
    const int64_t row = task / job->column_tiles * job->block_rows, column = task % job->column_tiles * CQ_TILE;
    *rows = min(job->block_rows, job->m - row);
    return (cq_tile){.row = row, .column = column, .columns = (int)min(CQ_TILE, job->w->n - column)};
}

/* --- int8 ---------------------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t row;       /* first row of the block that is ready, or -1 */
    const uint8_t *a;
    int64_t stride;
    uint8_t *copy;     /* the block with whole groups of 4 and uint8 codes, where A itself is not so */
    int32_t *row_sums; /* where the weights have zero points */
} block_of_a;

static int needs_copy(const gemm_job *job) { return job->a->is_signed || job->w->k % 4; }

static void ready_block(const gemm_job *job, block_of_a *block, int64_t row, int64_t rows) {
    if (block->row == row) return;
    block->row = row;
    block->a = (const uint8_t *)job->a->codes + row * job->a->stride;
    block->stride = job->a->stride;
    const int64_t k = job->w->k;
    if (block->copy) {
        for (int64_t i = 0; i < rows; i++) {
            const uint8_t *from = block->a + i * block->stride;
            uint8_t *to = block->copy + i * job->k4;
            if (job->a->is_signed) cq_active->flip(from, k, to);
            else memcpy(to, from, (size_t)k);
            memset(to + k, 0, (size_t)(job->k4 - k));
        }
        block->a = block->copy;
        block->stride = job->k4;
    }
    if (block->row_sums)
        for (int64_t i = 0; i < rows; i++) block->row_sums[i] = cq_active->sum_codes(block->a + i * block->stride, k);
}

/* store_i32 for results that may not fit: 64-bit sums, CQ_OVERFLOW where one does not. */
static cq_status store_checked(const gemm_job *job, const int32_t *acc, const cq_tile *t, const int32_t *row_sums) {
    const cq_weight *w = job->w;
    for (int r = 0; r < t->rows; r++) {
        const int64_t row = t->row + r;
        const int64_t zx = (job->a->zero_points ? job->a->zero_points[row] : job->a->zero_point) + (job->a->is_signed ? 128 : 0);
        for (int j = 0; j < t->columns; j++) {
            const int64_t column = t->column + j, zw = w->zero_points[column];
            /* column_sums may have wrapped: its exact value is found again from the part that cannot */
            const int64_t codes = (int32_t)((uint32_t)w->column_sums[column] + (uint32_t)(zw * w->k));
            const int64_t sum = acc[r * CQ_TILE + j] - zx * (codes - zw * w->k) - zw * row_sums[r];
            if (sum != (int32_t)sum) return CQ_OVERFLOW;
            job->c[row * job->c_stride + column] = (int32_t)sum;
        }
    }
    return CQ_OK;
}

static void store(const gemm_job *job, cq_queue *queue, const int32_t *acc, const cq_tile *t, const int32_t *row_sums) {
    if (!job->c) {
        cq_active->store_i8(acc, t, job->a, row_sums, job->w, job->e);
    } else if (job->w->zero_points && job->w->k > CQ_MAX_K / 2) {
        const cq_status status = store_checked(job, acc, t, row_sums);
        if (status) cq_fail(queue, status);
    } else {
        cq_active->store_i32(acc, t, job->a, row_sums, job->w, job->c, job->c_stride);
    }
}

static void gemm_i8_member(void *context, cq_queue *queue) {
    const gemm_job *job = context;
    const int64_t panel_stride = job->k4 * CQ_PANEL;
    const int step = cq_active->rows_i8, width = cq_active->panels;
    _Alignas(64) int32_t acc[CQ_TILE_ROWS * CQ_TILE];
    block_of_a block = {.row = -1};
    if (needs_copy(job)) block.copy = cq_scratch(job->block_rows * job->k4);
    if (job->w->zero_points) block.row_sums = cq_scratch(job->block_rows * 4);
    if ((needs_copy(job) && !block.copy) || (job->w->zero_points && !block.row_sums)) cq_fail(queue, CQ_NO_MEMORY);
    else
        for (int64_t task, end; cq_take(queue, &task, &end);)
            for (; task < end; task++) {
                int64_t rows;
                cq_tile t = task_tile(job, task, &rows);
                const int64_t first = t.row;
                const int panels = (t.columns + CQ_PANEL - 1) / CQ_PANEL;
                const int8_t *b = job->w->panels + t.column / CQ_PANEL * panel_stride;
                ready_block(job, &block, first, rows);
                for (int64_t i = 0; i < rows; i += step) {
                    t.row = first + i, t.rows = (int)min(step, rows - i);
                    for (int p = 0; p < panels; p += width)
                        cq_active->tile_i8(block.a + i * block.stride, block.stride, t.rows, b + p * panel_stride, panel_stride,
                                           (int)min(width, panels - p), job->k4 / 4, acc + p * CQ_PANEL);
                    store(job, queue, acc, &t, block.row_sums ? block.row_sums + i : NULL);
                }
            }
    free(block.copy);
    free(block.row_sums);
}

cq_status cq_matmul_i8(int threads, const cq_coded *a, int64_t m, const cq_weight *w, int32_t *c, int64_t c_stride) {
    gemm_job job = {.m = m, .w = w, .a = a, .c = c, .c_stride = c_stride};
    return run_gemm(threads, &job, gemm_i8_member);
}

cq_status cq_linear_i8(int threads, const cq_coded *a, int64_t m, const cq_weight *w, const cq_epilogue *e) {
    gemm_job job = {.m = m, .w = w, .a = a, .e = e};
    return run_gemm(threads, &job, gemm_i8_member);
}

/* --- float32 x int8 ------------------------------------------------------------------------------------------------------ */

/* acc (rows, CQ_TILE) += x rows x weight rows k0 .. k0 + count - 1 of the tile. */
static void multiply_f32(const gemm_job *job, const cq_tile *t, int64_t rows, int64_t k0, int64_t count, const int32_t *zero,
                         float *wide, float *acc) {
    const int64_t panel_stride = job->k4 * CQ_PANEL;
    const int panels = (t->columns + CQ_PANEL - 1) / CQ_PANEL, width = cq_active->panels;
    const int8_t *b = job->w->panels + t->column / CQ_PANEL * panel_stride + k0 * CQ_PANEL;
    const float *x = job->x + t->row * job->x_stride + k0;
    if (rows <= FEW_ROWS) {
        for (int p = 0; p < panels; p += width)
            cq_active->tile_f32_i8(x, job->x_stride, (int)rows, b + p * panel_stride, panel_stride, (int)min(width, panels - p),
                                   count, zero ? zero + p * CQ_PANEL : NULL, acc + p * CQ_PANEL);
        return;
    }
    for (int p = 0; p < panels; p++)
        cq_active->widen(b + p * panel_stride, count, zero ? zero + p * CQ_PANEL : NULL, wide + p * CQ_PANEL);
    for (int64_t i = 0; i < rows; i += cq_active->rows_f32)
        for (int p = 0; p < panels; p += width)
            cq_active->tile_f32(x + i * job->x_stride, job->x_stride, (int)min(cq_active->rows_f32, rows - i),
                                wide + p * CQ_PANEL, CQ_TILE, (int)min(width, panels - p), count, 1,
                                acc + i * CQ_TILE + p * CQ_PANEL, CQ_TILE);
}

static void gemm_f32_member(void *context, cq_queue *queue) {
    const gemm_job *job = context;
    const cq_weight *w = job->w;
    const int grouped = w->group_size < w->k;
    const int64_t tile_floats = job->block_rows * CQ_TILE;
    float *acc = cq_scratch((tile_floats * (grouped ? 2 : 1) + WIDEN_ROWS * CQ_TILE) * 4);
    if (!acc) {
        cq_fail(queue, CQ_NO_MEMORY);
        return;
    }
    float *wide = acc + tile_floats, *total = grouped ? wide + WIDEN_ROWS * CQ_TILE : acc;
    int32_t zero[CQ_TILE] = {0};
    for (int64_t task, end; cq_take(queue, &task, &end);)
        for (; task < end; task++) {
            int64_t rows;
            cq_tile t = task_tile(job, task, &rows);
            memset(acc, 0, (size_t)(rows * CQ_TILE * 4));
            if (grouped) memset(total, 0, (size_t)(rows * CQ_TILE * 4));
            for (int64_t k0 = 0, count; k0 < w->k; k0 += count) {
                const int64_t group = k0 / w->group_size, group_end = min(w->k, (group + 1) * w->group_size);
                count = min(WIDEN_ROWS, group_end - k0);
                if (w->zero_points)
                    memcpy(zero, w->zero_points + group * w->n + t.column, (size_t)t.columns * 4);
                multiply_f32(job, &t, rows, k0, count, w->zero_points ? zero : NULL, wide, acc);
                if (grouped && k0 + count == group_end)
                    cq_active->add_group(total, acc, (int)rows, t.columns, w->scales + group * w->n + t.column);
            }
            t.rows = (int)rows;
            cq_active->store_f32(total, CQ_TILE, &t, grouped ? NULL : w->scales + t.column, job->e);
        }
    free(acc);
}

cq_status cq_linear_f32(int threads, const float *a, int64_t m, int64_t a_stride, const cq_weight *w, const cq_epilogue *e) {
    gemm_job job = {.m = m, .w = w, .e = e, .x = a, .x_stride = a_stride};
    return run_gemm(threads, &job, gemm_f32_member);
}

/* --- an epilogue alone --------------------------------------------------------------------------------------------------- */

static void finish_member(void *context, cq_queue *queue) {
    const gemm_job *job = context;
    for (int64_t row, end; cq_take(queue, &row, &end);) {
        const cq_tile t = {.row = row, .rows = (int)(end - row), .columns = (int)job->w->n};
        cq_active->store_f32(job->x + row * job->x_stride, job->x_stride, &t, NULL, job->e);
    }
}

void cq_finish_f32(int threads, const float *x, int64_t m, int64_t n, int64_t stride, const cq_epilogue *e) {
    const cq_weight shape = {.n = n};
    gemm_job job = {.w = &shape, .e = e, .x = x, .x_stride = stride};
    cq_run(threads, m, 2, (double)m * (double)n * 8, finish_member, &job);
}
