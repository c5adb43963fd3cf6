/* Matrix products over packed weights: blocks of rows, in them tiles of columns. A result that is whole with its tile
 * (float32, or codes of a given scale) is shared out in (block, tile) pairs. One that needs its whole row (a norm,
 * codes with the row's own parameters) is shared out in blocks, whose rows are finished while the cache still holds
 * them; where there are too few rows for that, in tiles first and then, after a barrier, in rows. */
#include "floats.h"
#include "gemm.h"
#include "gemm_codes.h"

#define FEW_ROWS 4              /* up to here float32 products read int8 weights directly */
#define WIDEN_ROWS 256          /* rows of a weight tile that are float32 at a time: 64 KB */

/* What is left to do for a row whose columns are all there. */
static void finish_row(gemm_job *job, cq_queue *queue, float *y, float *normed, int64_t row) {
    const cq_epilogue *e = job->e;
    int64_t n = job->n;
    int finite = 1;
    if (e->sum_codes) finite = cq_active->quantize(y, job->n, e->sum_codes, row);
    if (e->norm) {
        float *z = e->norm_out ? e->norm_out + row * job->n : normed;
        finite &= cq_active->norm(e->norm, y, NULL, job->n, y, z);
        y = z;
    }
    if (e->gated) {
        n /= 2;
        float *z = e->norm_out ? e->norm_out + row * n : y;
        cq_active->gate(y, y + n, e->activation, n, z);
        if (e->hadamard) cq_active->hadamard(z, n, e->hadamard);
        y = z;
    }
    if (e->codes) finite &= cq_active->quantize(y, n, e->codes, row);
    if (!finite) note_bad(job, queue, row);
}

/* --- the products of a strip -------------------------------------------------------------------------------------- */

/* store for results that may not fit: 64-bit sums, CQ_OVERFLOW where one does not. */
static void store_checked(const gemm_job *job, cq_queue *queue, const int32_t *acc, const cq_strip *s, int64_t row,
                          int rows, int64_t column) {
    const cq_weight *w = job->w;
    const int32_t zero = job->a->zero_point + (job->a->is_signed ? 128 : 0);
    for (int64_t r = row; r < row + rows; r++, acc += CQ_TILE) {
        const int64_t zx = s->row_zeros ? s->row_zeros[r] : zero;
        for (int j = 0; j < s->columns; j++) {
            const int64_t zw = w->zero_points[column + j];
            /* column_sums may have wrapped: its exact value is found again from the part that cannot */
            const int64_t codes = (int32_t)((uint32_t)w->column_sums[column + j] + (uint32_t)(zw * w->k));
            const int64_t sum = acc[j] - zx * (codes - zw * w->k) - zw * s->row_sums[r];
            if (sum != (int32_t)sum) cq_fail(queue, CQ_OVERFLOW);
            s->c[r * s->stride + j] = (int32_t)sum;
        }
    }
}

static void product_i8(const gemm_job *job, gemm_work *work, cq_queue *queue, cq_strip *s, int64_t row,
                       int64_t column) {
    const int64_t panel_stride = job->k4 * CQ_PANEL;
    const uint8_t *a = work->a;
    (void)row; /* the first of work->a */
    const int8_t *b = job->w->panels + column / CQ_PANEL * panel_stride;
    if (work->is_clipped) {
        cq_active->strip_clipped(&work->clipped, b, panel_stride, job->k4 / 4, s);
        return;
    }
    if (!is_checked(job)) {
        cq_active->strip_i8(a, work->stride, b, panel_stride, job->k4 / 4, s);
        return;
    }
    _Alignas(64) int32_t acc[CQ_TILE_ROWS * CQ_TILE];
    for (int64_t i = 0; i < s->rows; i += CQ_TILE_ROWS) {
        const int rows = (int)min(CQ_TILE_ROWS, s->rows - i);
        cq_active->tile_i8(a + i * work->stride, work->stride, rows, b, panel_stride,
                           (int)(up(s->columns, CQ_PANEL) / CQ_PANEL), job->k4 / 4, NULL, acc, CQ_TILE);
        store_checked(job, queue, acc, s, i, rows, column);
    }
}

/* acc (rows, CQ_TILE) += x rows x weight rows k0 .. k0 + count - 1 of the tile. */
static void multiply_f32(const gemm_job *job, const cq_strip *s, int64_t row, int64_t column, int64_t k0, int64_t count,
                         const int32_t *zero, float *wide, float *acc) {
    const float *x = job->x + row * job->x_stride + k0;
    const int64_t panel_stride = job->k4 * CQ_PANEL;
    const int panels = (s->columns + CQ_PANEL - 1) / CQ_PANEL, width = cq_active->panels;
    const int8_t *b = job->w->panels + column / CQ_PANEL * panel_stride + k0 * CQ_PANEL;
    if (s->rows <= FEW_ROWS) {
        for (int p = 0; p < panels; p += width)
            cq_active->tile_f32_i8(x, job->x_stride, (int)s->rows, b + p * panel_stride, panel_stride,
                                   (int)min(width, panels - p), count, zero ? zero + p * CQ_PANEL : NULL,
                                   acc + p * CQ_PANEL);
        return;
    }
    for (int p = 0; p < panels; p++)
        cq_active->widen(b + p * panel_stride, count, zero ? zero + p * CQ_PANEL : NULL,
                         wide + p * WIDEN_ROWS * CQ_PANEL);
    const cq_block_f32 block = {.o = {.a = x,
                                      .a_row = job->x_stride,
                                      .a_step = 1,
                                      .b = wide,
                                      .b_step = CQ_PANEL,
                                      .panel_stride = WIDEN_ROWS * CQ_PANEL},
                                .rows = s->rows,
                                .k = count,
                                .panels = panels,
                                .add = 1,
                                .c = acc,
                                .c_row = CQ_TILE,
                                .next = wide};
    cq_multiply_block_f32(&block, NULL);
}

/* Of a float32 weight. When the first tile of a span is due, all parts of k but the last are multiplied with the whole
 * span, so that each part of A stays in the second-level cache for all of its tiles. */
static void product_floats(const gemm_job *job, gemm_work *work, cq_queue *queue, cq_strip *s, int64_t row,
                           int64_t column) {
    (void)queue;
    const int64_t k = job->w->k, depth = cq_depth_f32(k), last = k > depth ? (k - 1) / depth * depth : 0;
    const int64_t width = job->span * CQ_TILE, first = column / width * width, end = min(first + width, job->n);
    const float *a = job->x + row * job->x_stride, *b = job->w->floats;
    cq_block_f32 block = {.o = {.a = a,
                                .a_row = job->x_stride,
                                .a_step = 1,
                                .b = b + first * k,
                                .b_step = CQ_PANEL,
                                .panel_stride = k * CQ_PANEL},
                          .rows = s->rows,
                          .k = depth,
                          .panels = (int)((end - first + CQ_PANEL - 1) / CQ_PANEL),
                          .c = work->acc,
                          .c_row = width};
    for (int64_t k0 = 0; column == first && k0 < last; k0 += depth, block.add = 1) {
        block.next = block.o.b + depth * CQ_PANEL;
        cq_multiply_block_f32(&block, NULL);
        block.o.a += depth, block.o.b += depth * CQ_PANEL;
    }
    block.o.a = a + last, block.o.b = b + column * k + last * CQ_PANEL;
    block.k = k - last, block.add = last > 0, block.panels = (s->columns + CQ_PANEL - 1) / CQ_PANEL;
    block.c = work->acc + (column - first);
    block.next = column + CQ_TILE < end ? block.o.b + CQ_TILE * k : b + end * k;
    cq_multiply_block_f32(&block, s);
}

static void product_f32(const gemm_job *job, gemm_work *work, cq_queue *queue, cq_strip *s, int64_t row,
                        int64_t column) {
    (void)queue;
    const cq_weight *w = job->w;
    const int grouped = w->group_size < w->k;
    float *acc = work->acc, *total = grouped ? work->total : acc;
    int32_t zero[CQ_TILE] = {0};
    memset(acc, 0, (size_t)(s->rows * CQ_TILE * 4));
    if (grouped) memset(total, 0, (size_t)(s->rows * CQ_TILE * 4));
    for (int64_t k0 = 0, count; k0 < w->k; k0 += count) {
        const int64_t group = k0 / w->group_size, group_end = min(w->k, (group + 1) * w->group_size);
        count = min(WIDEN_ROWS, group_end - k0);
        if (w->zero_points) memcpy(zero, w->zero_points + group * w->n + column, (size_t)s->columns * 4);
        multiply_f32(job, s, row, column, k0, count, w->zero_points ? zero : NULL, work->wide, acc);
        if (grouped && k0 + count == group_end)
            cq_active->add_group(total, acc, (int)s->rows, s->columns, w->scales + group * w->n + column);
    }
    cq_active->store_f32(total, CQ_TILE, (int)s->rows, s, 0);
}

/* --- the team ----------------------------------------------------------------------------------------------------- */

static void close_work(gemm_work *work) {
    free(work->codes), free(work->scales), free(work->zeros), free(work->sums), free(work->acc), free(work->rows);
    free(work->normed), free(work->clipped.codes);
}

/* Returns 0, and says so to the queue, where there is no memory. */
static int open_work(const gemm_job *job, gemm_work *work, cq_queue *queue) {
    const int64_t rows = job->block_rows, coded = job->a || job->form, floats = !coded;
    const int is_signed = job->form ? job->form->is_signed : job->a && job->a->is_signed;
    int lacking = 0;
    *work = (gemm_work){.block = -1};
#define ROOM(field, wanted, bytes) if (wanted) lacking |= !(work->field = cq_scratch(bytes))
    ROOM(codes, needs_copy(job), rows * job->line);
    ROOM(scales, job->form, rows * 4);
    ROOM(zeros, job->form || (coded && is_signed && job->a->zero_points), rows * 4);
    ROOM(sums, coded && job->w->zero_points, rows * 4);
    ROOM(acc, floats, ((job->span + 1) * rows + WIDEN_ROWS) * CQ_TILE * 4);
    ROOM(rows, job->whole_rows && !job->rows && !job->e->out, rows * job->n * 4);
    ROOM(normed, job->whole_rows && job->e->norm && !job->e->norm_out, job->n * 4);
#undef ROOM
    if (coded && may_clip(job)) lacking |= !open_clipped(job, &work->clipped);
    if (work->acc) work->total = work->acc + rows * CQ_TILE, work->wide = work->total + rows * CQ_TILE;
    if (!lacking) return 1;
    cq_fail(queue, CQ_NO_MEMORY);
    close_work(work);
    return 0;
}

/* Tasks are (block, tile) pairs. */
static void tiles_member(void *context, cq_queue *queue) {
    gemm_job *job = context;
    gemm_work work;
    cq_strip s = {0};
    if (!open_work(job, &work, queue)) return;
    for (int64_t task, end; cq_take(queue, &task, &end);)
        for (; task < end; task++) {
            const int64_t block = task / job->spans, row = first_row(job, block), width = job->span * CQ_TILE;
            const int64_t first = task % job->spans * width;
            ready_block(job, &work, queue, block);
            for (int64_t column = first; column < min(first + width, job->n); column += CQ_TILE) {
                set_columns(job, &work, &s, column);
                fetch_columns(job, column + CQ_TILE);
                set_rows(job, &work, &s, row, row, first_row(job, block + 1) - row, column);
                job->product(job, &work, queue, &s, row, column);
            }
        }
    close_work(&work);
}

/* Tasks are blocks. */
static void blocks_member(void *context, cq_queue *queue) {
    gemm_job *job = context;
    gemm_work work;
    cq_strip s = {0};
    if (!open_work(job, &work, queue)) return;
    for (int64_t block, end; cq_take(queue, &block, &end);)
        for (; block < end; block++) {
            const int64_t row = first_row(job, block), rows = first_row(job, block + 1) - row;
            ready_block(job, &work, queue, block);
            for (int64_t column = 0; column < job->n; column += CQ_TILE) {
                set_columns(job, &work, &s, column);
                fetch_columns(job, column + CQ_TILE);
                set_rows(job, &work, &s, row, row, rows, column);
                job->product(job, &work, queue, &s, row, column);
            }
            for (int64_t i = 0; i < rows; i++)
                finish_row(job, queue, job->e->out ? job->e->out + (row + i) * job->n : work.rows + i * job->n,
                           work.normed, row + i);
        }
    close_work(&work);
}

/* Tasks are rows whose columns are all there. */
static void rows_member(void *context, cq_queue *queue) {
    gemm_job *job = context;
    float *normed = job->e->norm && !job->e->norm_out ? cq_scratch(job->n * 4) : NULL;
    if (job->e->norm && !job->e->norm_out && !normed) {
        cq_fail(queue, CQ_NO_MEMORY);
        return;
    }
    for (int64_t row, end; cq_take(queue, &row, &end);)
        for (; row < end; row++)
            finish_row(job, queue, job->e->out ? job->e->out + row * job->n : job->rows + row * job->n, normed, row);
    free(normed);
}

static cq_status run_gemm(int threads, gemm_job *job, int64_t *bad) {
    const cq_epilogue *e = job->e;
    if (!job->m || !job->n) return CQ_OK;
    const double work = (double)job->m * (double)job->n * (double)job->w->k;
    job->whole_rows = e && (e->norm || e->gated || (e->codes && (e->codes->dynamic || e->codes->stretched || e->out)));
    atomic_init(&job->bad, INT64_MAX);
    const int by_blocks = share_out(job, threads);
    const int64_t pairs = job->blocks * job->spans;
    cq_status status;
    if (by_blocks) {
        const cq_phase phase = {blocks_member, job->blocks, job->blocks};
        status = cq_run(threads, work, job, &phase, 1);
    } else {
        const cq_phase phases[2] = {{tiles_member, pairs, job->m > FEW_ROWS ? 16 : 1}, {rows_member, job->m, 1}};
        if (job->whole_rows && !e->out && !(job->rows = cq_scratch(job->m * job->n * 4))) return CQ_NO_MEMORY;
        status = cq_run(threads, work, job, phases, job->whole_rows ? 2 : 1);
        free(job->rows);
    }
    if (status == CQ_NOT_FINITE) *bad = atomic_load(&job->bad);
    return status;
}

cq_status cq_find_code_form(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_matmul_args *a = &args->matmul;
    gemm_job job = {.m = rows, .n = a->w->n, .w = a->w, .a = a->a};
    gemm_work work;
    cq_tasks tasks = {0};
    cq_queue queue = {.tasks = &tasks};
    (void)threads, (void)sequences, (void)bad;
    a->c[0] = CQ_WHOLE, a->c[1] = 0;
    if (!rows) return CQ_OK;
    share_out(&job, 1);
    if (!open_work(&job, &work, &queue)) return CQ_NO_MEMORY;
    ready_block(&job, &work, &queue, 0);
    if (work.is_clipped) {
        const cq_clipped *c = &work.clipped;
        const int64_t last = first_row(&job, 1) - 1;
        a->c[0] = c->is_unsigned ? CQ_FROM_FLOOR : CQ_CENTRED;
        a->c[1] = (int32_t)(c->added.ends[last] + c->subtracted.ends[last]);
    }
    close_work(&work);
    return CQ_OK;
}

cq_status cq_matmul_i8(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_matmul_args *a = &args->matmul;
    gemm_job job = {
        .m = rows, .n = a->w->n, .w = a->w, .product = product_i8, .a = a->a, .c = a->c, .c_stride = a->w->n};
    (void)sequences;
    return run_gemm(threads, &job, bad);
}

cq_status cq_linear(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_linear_args *a = &args->linear;
    gemm_job job = {.m = rows,
                    .n = a->w->n,
                    .w = a->w,
                    .e = &a->epilogue,
                    .a = a->coded,
                    .form = a->coding,
                    .x = a->x,
                    .x_stride = a->w->k,
                    .product = a->w->floats ? product_floats : product_f32};
    if (a->coded || a->coding) job.product = product_i8;
    (void)sequences;
    return run_gemm(threads, &job, bad);
}
