/* Products of float64 matrices, for analysis: plain C over pairs of doubles, compiled once, so that every CPU rounds
 * alike. */
#include <string.h>

#include "kernel.h"
#include "pairs.h"
#include "threads.h"

enum { ROWS = 4, COLUMNS = 4, BLOCK_ROWS = 64, DEPTH = 256 };

typedef double f64x2 __attribute__((vector_size(16)));

typedef struct {
    const cq_products *p;
    const double *a, *b;
    double *c;
    double *panels; /* b in panels of COLUMNS columns, (n / COLUMNS, k, COLUMNS), padded with zeros */
} product_job;

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t panels_of(const cq_products *p) { return (p->c.columns + COLUMNS - 1) / COLUMNS; }

/* Tasks are panels. */
static void pack_member(void *context, cq_queue *queue) {
    const product_job *job = context;
    const cq_products *p = job->p;
    for (int64_t panel, end; cq_take(queue, &panel, &end);)
        for (; panel < end; panel++) {
            double *to = job->panels + panel * p->a.columns * COLUMNS;
            const double *from = job->b + panel * COLUMNS * p->b.column;
            const int64_t columns = min(COLUMNS, p->c.columns - panel * COLUMNS);
            for (int64_t i = 0; i < p->a.columns; i++)
                for (int64_t j = 0; j < COLUMNS; j++)
                    to[i * COLUMNS + j] = j < columns ? from[i * p->b.row + j * p->b.column] : 0.0;
        }
}

/* c (ROWS, COLUMNS) += a (k, ROWS) transposed x b (k, COLUMNS); the sums' two halves are c<row> and d<row>. */
static void tile(const double *a, const double *b, int64_t k, double *c) {
    f64x2 c0, c1, c2, c3, d0, d1, d2, d3;
#define EACH(X) X(0) X(1) X(2) X(3)
#define GET(r) memcpy(&c##r, c + r * COLUMNS, 16), memcpy(&d##r, c + r * COLUMNS + 2, 16);
    EACH(GET)
    for (int64_t i = 0; i < k; i++, a += ROWS, b += COLUMNS) {
        f64x2 low, high;
        memcpy(&low, b, 16), memcpy(&high, b + 2, 16);
#define ADD(r) { const f64x2 x = {a[r], a[r]}; c##r += x * low, d##r += x * high; }
        EACH(ADD)
    }
#define PUT(r) memcpy(c + r * COLUMNS, &c##r, 16), memcpy(c + r * COLUMNS + 2, &d##r, 16);
    EACH(PUT)
}

/* Some rows of a, some of k, as tiles (k, ROWS), padded with zeros. */
static void pack_rows(const product_job *job, int64_t row, int64_t rows, int64_t k0, int64_t k, double *to) {
    const cq_products *p = job->p;
    const double *a = job->a;
    for (int64_t r = 0; r < rows; r += ROWS, to += k * ROWS)
        for (int64_t i = 0; i < k; i++)
            for (int64_t j = 0; j < ROWS; j++)
                to[i * ROWS + j] = r + j < rows ? a[(row + r + j) * p->a.row + (k0 + i) * p->a.column] : 0.0;
}

/* Tasks are blocks of rows. */
static void rows_member(void *context, cq_queue *queue) {
    const product_job *job = context;
    const cq_products *p = job->p;
    double *c = job->c;
    const int64_t width = panels_of(p) * COLUMNS;
    double *packed = cq_scratch((BLOCK_ROWS * DEPTH + BLOCK_ROWS * width) * 8), *sums = packed + BLOCK_ROWS * DEPTH;
    if (!packed) {
        cq_fail(queue, CQ_NO_MEMORY);
        return;
    }
    for (int64_t block, end; cq_take(queue, &block, &end);)
        for (; block < end; block++) {
            const int64_t row = block * BLOCK_ROWS, rows = min(BLOCK_ROWS, p->c.rows - row);
            /* sums (width / COLUMNS, BLOCK_ROWS, COLUMNS) */
            for (int64_t j = 0; j < width; j++)
                for (int64_t r = 0; r < BLOCK_ROWS; r++)
                    sums[(j / COLUMNS * BLOCK_ROWS + r) * COLUMNS + j % COLUMNS] =
                        p->add && r < rows && j < p->c.columns ? c[(row + r) * p->c.row + j] : 0.0;
            for (int64_t k0 = 0; k0 < p->a.columns; k0 += DEPTH) {
                const int64_t k = min(DEPTH, p->a.columns - k0);
                pack_rows(job, row, rows, k0, k, packed);
                for (int64_t panel = 0; panel < width / COLUMNS; panel++)
                    for (int64_t r = 0; r < rows; r += ROWS)
                        tile(packed + r * k, job->panels + (panel * p->a.columns + k0) * COLUMNS, k,
                             sums + (panel * BLOCK_ROWS + r) * COLUMNS);
            }
            for (int64_t r = 0; r < rows; r++)
                for (int64_t j = 0; j < p->c.columns; j++)
                    c[(row + r) * p->c.row + j] = sums[(j / COLUMNS * BLOCK_ROWS + r) * COLUMNS + j % COLUMNS];
        }
    free(packed);
}

static cq_status multiply_one(int threads, product_job *job, int64_t pair) {
    const cq_products *p = job->p;
    job->a = (const double *)p->a.data + cq_pair_at(p, &p->a, pair);
    job->b = (const double *)p->b.data + cq_pair_at(p, &p->b, pair);
    job->c = (double *)p->c.data + cq_pair_at(p, &p->c, pair);
    const cq_phase phases[2] = {{pack_member, panels_of(p), 4},
                                {rows_member, (p->c.rows + BLOCK_ROWS - 1) / BLOCK_ROWS, 4}};
    return cq_run(threads, (double)p->c.rows * (double)p->c.columns * (double)p->a.columns * 4, job, phases, 2);
}

cq_status cq_multiply_f64(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_products *p = &args->products;
    (void)rows, (void)sequences, (void)bad;
    if (!p->c.rows || !p->c.columns) return CQ_OK;
    product_job job = {.p = p, .panels = cq_scratch(panels_of(p) * COLUMNS * p->a.columns * 8)};
    if (!job.panels) return CQ_NO_MEMORY;
    cq_status status = CQ_OK;
    for (int64_t pair = 0; pair < cq_count_pairs(p) && status == CQ_OK; pair++)
        status = multiply_one(threads, &job, pair);
    free(job.panels);
    return status;
}
