/* Weights into panels. A panel holds CQ_PANEL columns; its groups of 4 rows lie one after another, each a
 * 64-byte line: column 0 rows 0-3, column 1 rows 0-3, ... so that one load feeds a dot product of four in every lane.
 * */
#include <string.h>

#include "kernel.h"

static int64_t groups_of(int64_t k) { return (k + 3) / 4; }

int64_t cq_packed_bytes(int64_t k, int64_t n) { return (n + CQ_PANEL - 1) / CQ_PANEL * groups_of(k) * 4 * CQ_PANEL; }

/* One line: up to 4 rows of up to CQ_PANEL columns, added to their sums. */
static inline void pack_line(const int8_t *b, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns,
                             int8_t *line, int32_t *sums) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            const int8_t code = b[r * row_stride + c * column_stride];
            line[4 * c + r] = code;
            sums[c] += code;
        }
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Lines are written whole. What is read lies close together: along rows where their elements are neighbours, else along
 * columns. */
static void pack(const cq_matrices *b, const int32_t *zero_points, int8_t *panels, int32_t *column_sums) {
    const int64_t k = b->rows, n = b->columns, row_stride = b->row, column_stride = b->column;
    const int64_t groups = groups_of(k), across = (n + CQ_PANEL - 1) / CQ_PANEL, by_rows = column_stride == 1;
    memset(panels, 0, (size_t)cq_packed_bytes(k, n));
    memset(column_sums, 0, sizeof(int32_t) * (size_t)n); /* at most 128 k: far from int32's end */
    for (int64_t at = 0; at < groups * across; at++) {
        const int64_t group = by_rows ? at / across : at % groups;
        const int64_t panel = by_rows ? at % across : at / groups;
        const int64_t i = 4 * group, j = CQ_PANEL * panel, rows = least(4, k - i), columns = least(CQ_PANEL, n - j);
        const int8_t *from = (const int8_t *)b->data + i * row_stride + j * column_stride;
        int8_t *line = panels + (panel * groups + group) * 4 * CQ_PANEL;
        if (by_rows && rows == 4 && columns == CQ_PANEL)
            pack_line(from, row_stride, 1, 4, CQ_PANEL, line, column_sums + j);
        else pack_line(from, row_stride, column_stride, rows, columns, line, column_sums + j);
    }
    for (int64_t j = 0; zero_points && j < n; j++)
        column_sums[j] = (int32_t)(uint32_t)(column_sums[j] - zero_points[j] * k);
}

cq_status cq_pack_i8(int threads, const cq_args *args, int64_t rows, int64_t sequences, int64_t *bad) {
    const cq_pack_args *a = &args->pack;
    (void)threads, (void)rows, (void)sequences, (void)bad;
    pack(&a->b, a->zero_points, a->panels, a->column_sums);
    return CQ_OK;
}
