/* Pairs of matrices: how many there are, and where each begins. A part of products.c and products_f64.c. */
#ifndef CQ_PAIRS_H
#define CQ_PAIRS_H
#include "cq.h"

static inline int64_t cq_count_pairs(const cq_products *p) {
    int64_t count = 1;
    for (int axis = 0; axis < CQ_PAIR_AXES; axis++) count *= p->c.pairs[axis];
    return count;
}

/* Of a, b or c, in elements. The last axis runs fastest. */
static inline int64_t cq_pair_at(const cq_products *p, const cq_matrices *m, int64_t pair) {
    int64_t at = 0;
    for (int axis = CQ_PAIR_AXES - 1; axis >= 0; axis--) {
        at += pair % p->c.pairs[axis] * m->steps[axis];
        pair /= p->c.pairs[axis];
    }
    return at;
}
#endif
