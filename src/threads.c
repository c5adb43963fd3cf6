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

cq_status cq_run(int threads, double work, void *context, const cq_phase *phases, int count) {
    const int alone = threads <= 1 || work < SERIAL_BELOW || (count == 1 && phases[0].tasks == 1);
    const int serial = alone || atomic_load(&forked) || omp_in_parallel();
    cq_queue queues[2] = {0};
    for (int i = 0; i < count; i++) {
        const int64_t portions = serial ? 1 : threads * phases[i].chunks;
        queues[i].tasks = phases[i].tasks, queues[i].grain = (phases[i].tasks + portions - 1) / portions;
    }
    if (serial) {
        for (int i = 0; i < count && !atomic_load(&queues[0].status); i++) phases[i].member(context, &queues[i]);
    } else {
        /* always the same size: libgomp rebuilds its team when the number changes */
#pragma omp parallel num_threads(threads)
        {
            phases[0].member(context, &queues[0]);
            if (count > 1) {
#pragma omp barrier
                if (!atomic_load(&queues[0].status)) phases[1].member(context, &queues[1]);
            }
        }
    }
    const int first = atomic_load(&queues[0].status);
    return (cq_status)(first ? first : atomic_load(&queues[1].status));
}
