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

/* Takes the next tasks begin .. end-1. Returns 0 when none is left. */
static inline int cq_take(cq_queue *q, int64_t *begin, int64_t *end) {
    *begin = atomic_fetch_add(&q->next, q->grain);
    if (*begin >= q->tasks) return 0;
    *end = *begin + q->grain < q->tasks ? *begin + q->grain : q->tasks;
    return 1;
}

static inline void cq_fail(cq_queue *q, cq_status status) { atomic_store(&q->status, status); }

/* Every member of the team calls member(context, queue) once. `work` in multiply-adds decides whether a team is worth its
 * wake-up. `chunks` is how many portions each member should find, at least. Returns the status set by cq_fail. */
typedef void (*cq_member)(void *context, cq_queue *queue);
cq_status cq_run(int threads, int64_t tasks, int64_t chunks, double work, cq_member member, void *context);

/* Scratch, 64-byte aligned, never of size 0. */
static inline void *cq_scratch(int64_t bytes) { return aligned_alloc(64, (size_t)((bytes + 64) / 64 * 64)); }
#endif
