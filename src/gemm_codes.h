/* A block of A as the tiles of an integer product read it: uint8 codes in whole groups of 4, and where it pays clipped
 * ones. A part of gemm.c, which alone includes it. */
#ifndef CQ_GEMM_CODES_H
#define CQ_GEMM_CODES_H
#include "gemm.h"

#define CLIP_COLUMNS 64 /* from here on it pays to clip A */

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
/* How many groups of excess pay. */
static int64_t paying_excess(const gemm_job *job, int64_t rows) {
    return rows * job->w->k / (rows > CQ_FEW_ROWS ? cq_active->excess_share : cq_active->excess_share_few);
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
    work->is_clipped = 0;
    if (may_clip(job)) {
        work->clipped.pays = paying_excess(job, rows);
        work->is_clipped =
            cq_active->clip(work->a, work->stride, rows, job->w->k, work->row_zeros, work->zero, &work->clipped);
    }
    if (work->is_clipped) {
        work->row_zeros = NULL, work->zero = work->clipped.zero;
        work->row_sums = work->sums ? work->clipped.sums : NULL;
    } else if (work->sums) {
        for (int64_t i = 0; i < rows; i++) work->sums[i] = cq_active->sum_codes(work->a + i * work->stride, job->w->k);
        work->row_sums = work->sums;
    }
}

/* One piece of memory, which starts with the codes. */
static int open_clipped(const gemm_job *job, cq_clipped *c) {
    const int64_t rows = job->block_rows, bytes = up(rows * up(job->k4, 8), 64);
    const int64_t paying = paying_excess(job, rows), room = paying + paying / 8 + CQ_EXCESS_AT_ONCE;
    c->stride = up(job->k4, 8), c->room = room;
    c->codes = cq_scratch(bytes + rows * 24 + room * 16);
    if (!c->codes) return 0;
    c->added.ends = (int64_t *)(void *)(c->codes + bytes), c->subtracted.ends = c->added.ends + rows;
    c->sums = (int32_t *)(c->subtracted.ends + rows), c->raising = c->sums + rows;
    c->added.groups = c->raising + rows, c->added.codes = c->added.groups + room;
    c->subtracted.groups = c->added.codes + room, c->subtracted.codes = c->subtracted.groups + room;
    return 1;
}
#endif
