/* A team of threads that take tasks from a queue. */
#ifndef CQ_THREADS_H
#define CQ_THREADS_H
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "cq.h"

/* The tasks of a call, in as many runs of neighbours as it has threads. */
enum { CQ_RUNS = 64 }; /* at most */
typedef struct {
    int64_t grain;
    int runs;
    _Atomic int status; /* first failure of any member */
    struct {
        _Alignas(64) _Atomic int64_t next;
        int64_t end;
    } run[CQ_RUNS];
} cq_tasks;

/* What a member takes its tasks from: its own run first, which from call to call is the same part of the work, so that
 * what it wrote lies in its core's caches; then what others have not begun. */
typedef struct {
    cq_tasks *tasks;
    int first, done; /* the run that it began with, and how many it has seen the end of */
} cq_queue;

/* Takes the next tasks begin .. end-1. Returns 0 when none is left; a member then touches its own memory alone. */
static inline int cq_take(cq_queue *q, int64_t *begin, int64_t *end) {
    cq_tasks *t = q->tasks;
    for (; q->done < t->runs; q->done++) {
        const int i = (q->first + q->done) % t->runs;
        *begin = atomic_fetch_add(&t->run[i].next, t->grain);
        if (*begin >= t->run[i].end) continue;
        *end = *begin + t->grain < t->run[i].end ? *begin + t->grain : t->run[i].end;
        return 1;
    }
    return 0;
}

static inline void cq_fail(cq_queue *q, cq_status status) { atomic_store(&q->tasks->status, (int)status); }

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
