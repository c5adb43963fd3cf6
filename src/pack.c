/* Weights into panels and back. A panel holds CQ_PANEL columns; its groups of 4 rows lie one after another, each a 64-byte
 * line: column 0 rows 0-3, column 1 rows 0-3, ... so that one load feeds a dot product of four in every lane. */
#include <string.h>

#include "kernel.h"

static int64_t groups_of(int64_t k) { return (k + 3) / 4; }

int64_t cq_packed_bytes(int64_t k, int64_t n) { return (n + CQ_PANEL - 1) / CQ_PANEL * groups_of(k) * 4 * CQ_PANEL; }

void cq_pack(const int8_t *b, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n, const int32_t *zero_points,
             int8_t *panels, int32_t *column_sums) {
    const int64_t panel_bytes = groups_of(k) * 4 * CQ_PANEL;
    memset(panels, 0, (size_t)cq_packed_bytes(k, n));
    for (int64_t j = 0; j < n; j++) {
        int8_t *column = panels + j / CQ_PANEL * panel_bytes + j % CQ_PANEL * 4;
        int64_t sum = 0;
        for (int64_t i = 0; i < k; i++) {
            const int8_t code = b[i * row_stride + j * column_stride];
            column[i / 4 * 4 * CQ_PANEL + i % 4] = code;
            sum += code;
        }
        column_sums[j] = (int32_t)(uint32_t)(sum - (zero_points ? (int64_t)zero_points[j] * k : 0));
    }
}

void cq_unpack(const cq_weight *w, int8_t *b) {
    const int64_t panel_bytes = groups_of(w->k) * 4 * CQ_PANEL;
    for (int64_t i = 0; i < w->k; i++)
        for (int64_t j = 0; j < w->n; j++)
            b[i * w->n + j] = w->panels[j / CQ_PANEL * panel_bytes + i / 4 * 4 * CQ_PANEL + j % CQ_PANEL * 4 + i % 4];
}
