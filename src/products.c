/* Products of float32 matrices as they lie, with the packing as a part of the call: of one pair, the team packs b and
 * then takes blocks of c; of many small pairs, each member takes whole ones. Packed weights are gemm.c's. */
#include <string.h>

#include "floats.h"
#include "pairs.h"
#include "threads.h"

enum { BLOCK_ROWS = 144, BLOCK_COLUMNS = 512 }; /* of a block of c */
#define SIDE_BY_SIDE 4 /* panels */
#define SMALL 2e6 /* multiply-adds of a pair that one member does alone, where there are many */

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* --- packing ------------------------------------------------------------------------------------------------------ */

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));

/* to (4, 4) with row stride CQ_PANEL = from (4, 4), transposed. */
static inline void transpose_4x4(const float *from, int64_t stride, float *to) {
    f32x4 row[4], half[4];
    for (int i = 0; i < 4; i++) memcpy(row + i, from + i * stride, 16);
    for (int i = 0; i < 2; i++) {
        half[i] = __builtin_shuffle(row[i], row[i + 2], (i32x4){0, 4, 1, 5});
        half[i + 2] = __builtin_shuffle(row[i], row[i + 2], (i32x4){2, 6, 3, 7});
    }
    for (int i = 0; i < 2; i++) {
        row[2 * i] = __builtin_shuffle(half[2 * i], half[2 * i + 1], (i32x4){0, 4, 1, 5});
        row[2 * i + 1] = __builtin_shuffle(half[2 * i], half[2 * i + 1], (i32x4){2, 6, 3, 7});
    }
    for (int i = 0; i < 4; i++) memcpy(to + i * CQ_PANEL, row + i, 16);
}

/* Columns `first` .. of b (k, n) as one panel (k, 16). */
static void pack_panel(const float *b, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n, int64_t first,
                       float *to) {
    const int64_t columns = min(CQ_PANEL, n - first);
    b += first * column_stride;
    if (columns < CQ_PANEL) memset(to, 0, (size_t)(k * CQ_PANEL) * 4);
    int64_t done = 0;
    if (row_stride == 1 && columns == CQ_PANEL)
        for (; done + 4 <= k; done += 4)
            for (int64_t j = 0; j < CQ_PANEL; j += 4)
                transpose_4x4(b + done + j * column_stride, column_stride, to + done * CQ_PANEL + j);
    for (int64_t i = done; i < k; i++)
        for (int64_t j = 0; j < columns; j++) to[i * CQ_PANEL + j] = b[i * row_stride + j * column_stride];
}

/* Panels `first` .. `end` - 1. Where rows lie in one piece, several panels are filled side by side: neighbours in
 * memory. */
static void pack_some(const float *b, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n, int64_t first,
                      int64_t end, float *to) {
    const int64_t whole = column_stride == 1 ? max(first, min(end, n / CQ_PANEL)) : first;
    for (int64_t panel = first; panel < whole; panel += SIDE_BY_SIDE) {
        const int64_t some = min(SIDE_BY_SIDE, whole - panel);
        for (int64_t i = 0; i < k; i++) {
            const float *from = b + i * row_stride + panel * CQ_PANEL;
            for (int64_t j = 0; j < some; j++) __builtin_prefetch(from + 4 * row_stride + j * CQ_PANEL);
            for (int64_t j = 0; j < some; j++)
                memcpy(to + ((panel + j) * k + i) * CQ_PANEL, from + j * CQ_PANEL, CQ_PANEL * 4);
        }
    }
    for (int64_t panel = whole; panel < end; panel++)
        pack_panel(b, row_stride, column_stride, k, n, panel * CQ_PANEL, to + panel * k * CQ_PANEL);
}

typedef struct {
    const float *b;
    int64_t row_stride, column_stride, k, n;
    float *panels;
} packing_job;

static void pack_panels(void *context, cq_queue *queue) {
    const packing_job *job = context;
    for (int64_t first, end; cq_take(queue, &first, &end);)
        pack_some(job->b, job->row_stride, job->column_stride, job->k, job->n, first, end, job->panels);
}

static packing_job packing_of(const cq_matrices *b, int64_t at, float *panels) {
    return (packing_job){(const float *)b->data + at, b->row, b->column, b->rows, b->columns, panels};
}

int64_t cq_packed_floats(int64_t k, int64_t n) { return up(n, CQ_PANEL) * k; }

cq_status cq_pack_f32(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_matrices *b = &args->pack.b;
    packing_job job = packing_of(b, 0, args->pack.panels);
    (void)rows, (void)sequences, (void)bad;
    return cq_run(threads, (double)b->rows * (double)b->columns * 4, &job,
                  &(cq_phase){pack_panels, up(b->columns, CQ_PANEL) / CQ_PANEL, 4}, 1);
}

/* --- blocks of c -------------------------------------------------------------------------------------------------- */

typedef struct {
    const cq_products *p;
    packing_job packing; /* of one pair, whose b the team packs */
    const float *a;
    float *c;
    int64_t block_rows, blocks, column_blocks;
} products_job;

/* What a member of the team works in. */
typedef struct {
    float *a;      /* a block's rows of a as tiles of rows, a part of k after another, where a lies by columns */
    int64_t row;   /* the first of these, or -1 */
    float *edge;   /* (block rows, CQ_TILE): the columns of c that do not fill a panel, with what pads them */
    float *panels; /* a small pair's b */
} products_work;

static int by_columns(const cq_products *p) { return p->a.column != 1; }

/* Rows of a, from `a` on, as tiles (k, CQ_TILE_ROWS): some elements of all of them at a time, which lie side by side.
 * */
static void pack_rows(const cq_products *p, const float *a, int64_t rows, int64_t k, float *to) {
    enum { TOGETHER = 8 };
    for (int64_t i = 0; i < k; i += TOGETHER) {
        const int64_t end = min(k, i + TOGETHER);
        for (int64_t r = 0; r < rows; r += CQ_TILE_ROWS) {
            const int64_t some = min(CQ_TILE_ROWS, rows - r);
            float *tile = to + r * k;
            for (int64_t j = i; j < end; j++) {
                const float *from = a + r + j * p->a.column;
                if (some == CQ_TILE_ROWS) memcpy(tile + j * CQ_TILE_ROWS, from, CQ_TILE_ROWS * 4);
                else memcpy(tile + j * CQ_TILE_ROWS, from, (size_t)some * 4);
            }
        }
    }
}

static void copy_rows(const float *from, int64_t from_row, int64_t rows, int64_t n, float *to, int64_t to_row) {
    for (int64_t r = 0; r < rows; r++) memcpy(to + r * to_row, from + r * from_row, (size_t)n * 4);
}

/* c (rows, 16 panels) = rows of a x b's panels from `panels` on, whose k passes in parts. */
static void multiply_strip(const cq_products *p, const products_work *w, const float *a, const float *panels, int count,
                           int64_t rows, float *c, int64_t c_row) {
    const int64_t step = cq_active->rows_f32, depth = cq_depth_f32(p->a.columns),
                  panel_stride = p->a.columns * CQ_PANEL;
    cq_block_f32 block = {
        .o = {.a = a, .a_row = p->a.row, .a_step = 1, .b = panels, .b_step = CQ_PANEL, .panel_stride = panel_stride},
        .rows = rows,
        .panels = count,
        .add = p->add,
        .c = c,
        .c_row = c_row};
    for (int64_t k0 = 0; k0 == 0 || k0 < p->a.columns; k0 += depth, block.add = 1) {
        block.k = min(depth, p->a.columns - k0);
        if (by_columns(p)) {
            block.o.a = w->a + k0 * up(rows, CQ_TILE_ROWS), block.o.a_row = 1, block.o.a_step = CQ_TILE_ROWS;
            block.a_tile = step * block.k;
        }
        block.next = k0 + depth < p->a.columns ? block.o.b + block.k * CQ_PANEL : panels + count * panel_stride;
        cq_multiply_block_f32(&block, NULL);
        block.o.a += block.k, block.o.b += block.k * CQ_PANEL;
    }
}

/* Rows and columns of c, of one pair whose b is packed. */
static void multiply_block(const cq_products *p, products_work *w, const float *a, const float *panels, float *c,
                           int64_t row, int64_t rows, int64_t first, int64_t last) {
    const int64_t whole = first + (last - first) / CQ_PANEL * CQ_PANEL;
    a += row * p->a.row, c += row * p->c.row;
    if (by_columns(p) && w->row != row) {
        for (int64_t k0 = 0, depth = cq_depth_f32(p->a.columns); k0 < p->a.columns; k0 += depth)
            pack_rows(p, a + k0 * p->a.column, rows, min(depth, p->a.columns - k0), w->a + k0 * up(rows, CQ_TILE_ROWS));
        w->row = row;
    }
    for (int64_t j = first; j < whole; j += CQ_TILE)
        multiply_strip(p, w, a, panels + j * p->a.columns, (int)(min(CQ_TILE, whole - j) / CQ_PANEL), rows, c + j,
                       p->c.row);
    if (whole == last) return;
    if (p->add) copy_rows(c + whole, p->c.row, rows, last - whole, w->edge, CQ_PANEL);
    multiply_strip(p, w, a, panels + whole * p->a.columns, 1, rows, w->edge, CQ_PANEL);
    copy_rows(w->edge, CQ_PANEL, rows, last - whole, c + whole, p->c.row);
}

/* Returns 0, and says so to the queue, where there is no memory. */
static int open_work(const products_job *job, products_work *w, cq_queue *queue, int64_t panel_bytes) {
    const int64_t a_bytes = by_columns(job->p) ? up(job->block_rows, CQ_TILE_ROWS) * job->p->a.columns * 4 : 0;
    const int64_t edge_bytes = job->block_rows * CQ_PANEL * 4, edge = up(a_bytes, 64),
                  panels = edge + up(edge_bytes, 64);
    char *memory = cq_scratch(panels + panel_bytes);
    if (!memory) {
        cq_fail(queue, CQ_NO_MEMORY);
        return 0;
    }
    *w = (products_work){(float *)memory, -1, (float *)(memory + edge), (float *)(memory + panels)};
    memset(w->edge, 0, (size_t)edge_bytes);
    return 1;
}

/* Tasks are panels of b. */
static void pack_member(void *context, cq_queue *queue) { pack_panels(&((products_job *)context)->packing, queue); }

/* Tasks are blocks of c, those of the same rows one after another. */
static void blocks_member(void *context, cq_queue *queue) {
    const products_job *job = context;
    const cq_products *p = job->p;
    products_work w;
    if (!open_work(job, &w, queue, 0)) return;
    for (int64_t task, end; cq_take(queue, &task, &end);)
        for (; task < end; task++) {
            const int64_t row = task / job->column_blocks * job->block_rows,
                          first = task % job->column_blocks * BLOCK_COLUMNS;
            multiply_block(p, &w, job->a, job->packing.panels, job->c, row, min(job->block_rows, p->c.rows - row),
                           first, min(first + BLOCK_COLUMNS, p->c.columns));
        }
    free(w.a);
}

/* Tasks are pairs. */
static void pairs_member(void *context, cq_queue *queue) {
    const products_job *job = context;
    const cq_products *p = job->p;
    products_work w;
    if (!open_work(job, &w, queue, up(p->c.columns, CQ_PANEL) * p->a.columns * 4)) return;
    for (int64_t pair, end; cq_take(queue, &pair, &end);)
        for (; pair < end; pair++) {
            pack_some((const float *)p->b.data + cq_pair_at(p, &p->b, pair), p->b.row, p->b.column, p->a.columns,
                      p->c.columns, 0, up(p->c.columns, CQ_PANEL) / CQ_PANEL, w.panels);
            const float *a = (const float *)p->a.data + cq_pair_at(p, &p->a, pair);
            float *c = (float *)p->c.data + cq_pair_at(p, &p->c, pair);
            w.row = -1;
            for (int64_t row = 0; row < p->c.rows; row += job->block_rows)
                multiply_block(p, &w, a, w.panels, c, row, min(job->block_rows, p->c.rows - row), 0, p->c.columns);
        }
    free(w.a);
}

static cq_status multiply_one(int threads, products_job *job, int64_t pair) {
    const cq_products *p = job->p;
    job->a = (const float *)p->a.data + cq_pair_at(p, &p->a, pair);
    job->c = (float *)p->c.data + cq_pair_at(p, &p->c, pair);
    float *panels = cq_scratch(up(p->c.columns, CQ_PANEL) * p->a.columns * 4);
    if (!panels) return CQ_NO_MEMORY;
    job->packing = packing_of(&p->b, cq_pair_at(p, &p->b, pair), panels);
    job->column_blocks = (p->c.columns + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
    job->blocks = (p->c.rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    if (job->blocks * job->column_blocks < 8 * threads)
        job->blocks = up(job->blocks, threads); /* as much for each member */
    job->block_rows = up((p->c.rows + job->blocks - 1) / job->blocks, CQ_TILE_ROWS);
    job->blocks = (p->c.rows + job->block_rows - 1) / job->block_rows;
    const cq_phase phases[2] = {{pack_member, up(p->c.columns, CQ_PANEL) / CQ_PANEL, 4},
                                {blocks_member, job->blocks * job->column_blocks, 16}};
    const cq_status status =
        cq_run(threads, (double)p->c.rows * (double)p->c.columns * (double)p->a.columns, job, phases, 2);
    free(panels);
    return status;
}

cq_status cq_multiply_f32(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_products *p = &args->products;
    products_job job = {.p = p};
    const double each = (double)p->c.rows * (double)p->c.columns * (double)p->a.columns;
    const int64_t count = cq_count_pairs(p);
    (void)rows, (void)sequences, (void)bad;
    if (!p->c.rows || !p->c.columns || !count) return CQ_OK;
    if (count > 1 && (threads == 1 || each < SMALL)) {
        job.block_rows = min(BLOCK_ROWS, up(p->c.rows, CQ_TILE_ROWS));
        return cq_run(threads, each * (double)count, &job, &(cq_phase){pairs_member, count, count}, 1);
    }
    cq_status status = CQ_OK;
    for (int64_t pair = 0; pair < count && status == CQ_OK; pair++) status = multiply_one(threads, &job, pair);
    return status;
}
