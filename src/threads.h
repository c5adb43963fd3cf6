/* A team of threads that take tasks from a queue. */
#ifndef CQ_THREADS_H
#define CQ_THREADS_H
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "cq.h"

typedef struct {
    _Atomic int64_t next;
    int64_t tasks, grain;
    _Atomic int status; /* first failure of any member */
} cq_queue;

/* Takes the next tasks begin .. end-1. Returns 0 when none is left; a member then touches its own memory alone. */
static inline int cq_take(cq_queue *q, int64_t *begin, int64_t *end) {
    *begin = atomic_fetch_add(&q->next, q->grain);
    if (*begin >= q->tasks) return 0;
    *end = *begin + q->grain < q->tasks ? *begin + q->grain : q->tasks;
    return 1;
}

static inline void cq_fail(cq_queue *q, cq_status status) { atomic_store(&q->status, (int)status); }

/* How floats are computed: rounded to nearest, denormals neither flushed nor read as zero, exceptions masked. The
 * caller's thread may have it otherwise; work begins with cq_floats_begin and ends by giving its result back. */
enum { CQ_FLOATS = 0x1f80, CQ_FLOAT_FLAGS = 0x3f };
static inline unsigned cq_floats_begin(void) {
    const unsigned before = __builtin_ia32_stmxcsr();
    if ((before & ~(unsigned)CQ_FLOAT_FLAGS) != CQ_FLOATS) __builtin_ia32_ldmxcsr(CQ_FLOATS);
    return before;
}
static inline void cq_floats_end(unsigned before) {
    if ((before & ~(unsigned)CQ_FLOAT_FLAGS) != CQ_FLOATS) __builtin_ia32_ldmxcsr(before);
}

/* Keeps the least row that was reported. */
static inline void cq_first_bad(_Atomic int64_t *bad, int64_t row) {
    int64_t seen = atomic_load(bad);
    while (row < seen && !atomic_compare_exchange_weak(bad, &seen, row)) {}
}

/* The caller, and those of the team that come while tasks are left, call phase after phase; none begins the next before
 * all tasks of the one before have ended. `chunks` is how many portions of its tasks each member should find, at least.
 * */
typedef struct {
    void (*member)(void *context, cq_queue *queue);
    int64_t tasks, chunks;
} cq_phase;

/* `work` in multiply-adds decides whether a team is worth its wake-up. At most 2 phases. Returns the first failure. */
cq_status cq_run(int threads, double work, void *context, const cq_phase *phases, int count);

/* Scratch, 64-byte aligned, never of size 0. */
static inline void *cq_scratch(int64_t bytes) { return aligned_alloc(64, (size_t)((bytes + 64) / 64 * 64)); }
#endif
