/* The team: the only file with OpenMP. Small calls run serially; a forked child does always, as its parent's threads are gone
 * there and libgomp would wait for them for ever. The flag that says so is the only mutable global beside the dispatch. */
#include "threads.h"

#include <omp.h>
#include <pthread.h>

/* Waking a resting team costs 5-20 us: at some 10^10 multiply-adds a second that buys 50-200 thousand of them. */
#define SERIAL_BELOW 65536.0

static _Atomic int forked;
static void after_fork(void) { atomic_store(&forked, 1); }
int cq_guard_fork(void) { return pthread_atfork(NULL, NULL, after_fork); }

cq_status cq_run(int threads, int64_t tasks, int64_t chunks, double work, cq_member member, void *context) {
    if (tasks <= 0) return CQ_OK;
    const int serial = threads <= 1 || tasks == 1 || work < SERIAL_BELOW || atomic_load(&forked) || omp_in_parallel();
    const int64_t portions = serial ? 1 : threads * chunks;
    cq_queue queue = {.tasks = tasks, .grain = (tasks + portions - 1) / portions};
    if (serial) {
        member(context, &queue);
    } else {
        /* always the same size: libgomp rebuilds its team when the number changes */
#pragma omp parallel num_threads(threads)
        member(context, &queue);
    }
    return (cq_status)atomic_load(&queue.status);
}
