/* Matrix products over packed weights: blocks of rows, in them tiles of columns. A result that is whole with its tile
 * (float32, or codes of a given scale) is shared out in (block, tile) pairs. One that needs its whole row (a norm,
 * codes with the row's own parameters) is shared out in blocks, whose rows are finished while the cache still holds
 * them; where there are too few rows for that, in tiles first and then, after a barrier, in rows. */
#include "floats.h"
#include "gemm.h"

#define FEW_ROWS 4              /* up to here float32 products read int8 weights directly */
#define CLIP_COLUMNS 64         /* from here on it pays to clip A */
#define EXCESS_SHARE 9          /* with a group of excess for so many codes, clipped rows take as long as others */
#define WIDEN_ROWS 256          /* rows of a weight tile that are float32 at a time: 64 KB */

static void note_bad(gemm_job *job, cq_queue *queue, int64_t row) {
    cq_first_bad(&job->bad, row);
    cq_fail(queue, CQ_NOT_FINITE);
}

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

/* --- A's rows as the tiles read them ------------------------------------------------------------------------------ */

static int is_unaligned(const gemm_job *job) {
    return cq_active->align_from && job->m >= cq_active->align_from &&
           ((uintptr_t)job->a->codes | (uintptr_t)job->a->stride) % CQ_LINE;
}
static int needs_copy(const gemm_job *job) {
    return job->form || (job->a && (job->a->is_signed || job->w->k % 4 || is_unaligned(job)));
}

static void copy_row(gemm_job *job, const gemm_work *work, cq_queue *queue, int64_t row, int64_t i) {
    const int64_t k = job->w->k;
    uint8_t *to = work->codes + i * job->line;
    if (job->form) {
        cq_codes out = *job->form;
        out.codes = to, out.scales = work->scales + i, out.zero_points = work->zeros + i, out.row_sums = NULL;
        work->scales[i] = out.scale, work->zeros[i] = out.zero_point;
        if (!cq_active->quantize(job->x + row * job->x_stride, k, &out, 0)) note_bad(job, queue, row);
        if (out.is_signed) cq_active->flip(to, k, to);
    } else if (job->a->is_signed) {
        cq_active->flip((const uint8_t *)job->a->codes + row * job->a->stride, k, to);
    } else {
        memcpy(to, (const uint8_t *)job->a->codes + row * job->a->stride, (size_t)k);
    }
    memset(to + k, 0, (size_t)(job->line - k));
}

/* Results that may not fit int32 are checked. */
static int is_checked(const gemm_job *job) { return job->c && job->w->zero_points && job->w->k > CQ_MAX_K / 2; }
static int may_clip(const gemm_job *job) { return cq_active->clip && job->n >= CLIP_COLUMNS && !is_checked(job); }
static int64_t excess_room(const gemm_job *job, int64_t rows) {
    return rows * job->w->k / EXCESS_SHARE + CQ_EXCESS_AT_ONCE;
}

static void ready_block(gemm_job *job, gemm_work *work, cq_queue *queue, int64_t block) {
    if (work->block == block || !(job->a || job->form)) return;
    const int64_t first = first_row(job, block), rows = first_row(job, block + 1) - first;
    const int is_signed = job->form ? job->form->is_signed : job->a->is_signed;
    work->block = block;
    if (work->codes) {
        for (int64_t i = 0; i < rows; i++) copy_row(job, work, queue, first + i, i);
        work->a = work->codes, work->stride = job->line;
    } else {
        work->a = (const uint8_t *)job->a->codes + first * job->a->stride, work->stride = job->a->stride;
    }
    if (job->form) {
        work->row_scales = work->scales, work->row_zeros = work->zeros;
    } else {
        work->row_scales = job->a->scales ? job->a->scales + first : NULL;
        work->row_zeros = job->a->zero_points ? job->a->zero_points + first : NULL;
    }
    if (is_signed && work->row_zeros) {
        for (int64_t i = 0; i < rows; i++) work->zeros[i] = work->row_zeros[i] + 128;
        work->row_zeros = work->zeros;
    }
    work->zero = job->a && !job->a->zero_points ? job->a->zero_point + (is_signed ? 128 : 0) : 0;
    work->clipped.room = excess_room(job, rows);
    work->is_clipped = may_clip(job) && cq_active->clip(work->a, work->stride, rows, job->w->k, work->row_zeros,
                                                        work->zero, &work->clipped);
    if (work->is_clipped) {
        work->row_zeros = NULL, work->zero = work->clipped.zero;
        work->row_sums = work->sums ? work->clipped.sums : NULL;
    } else if (work->sums) {
        for (int64_t i = 0; i < rows; i++) work->sums[i] = cq_active->sum_codes(work->a + i * work->stride, job->w->k);
        work->row_sums = work->sums;
    }
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

/* One piece of memory, which starts with the codes. */
static int open_clipped(const gemm_job *job, cq_clipped *c) {
    const int64_t rows = job->block_rows, bytes = up(rows * up(job->k4, 8), 64), room = excess_room(job, rows);
    c->stride = up(job->k4, 8);
    c->codes = cq_scratch(bytes + rows * 24 + room * 16);
    if (!c->codes) return 0;
    c->added.ends = (int64_t *)(void *)(c->codes + bytes), c->subtracted.ends = c->added.ends + rows;
    c->sums = (int32_t *)(c->subtracted.ends + rows), c->raising = c->sums + rows;
    c->added.groups = c->raising + rows, c->added.codes = c->added.groups + room;
    c->subtracted.groups = c->added.codes + room, c->subtracted.codes = c->subtracted.groups + room;
    return 1;
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
    const int64_t k = job->w->k;
    const double work = (double)job->m * (double)job->n * (double)k;
    job->k4 = up(k, 4), job->line = cq_active->align_from ? up(k, CQ_LINE) : job->k4;
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
