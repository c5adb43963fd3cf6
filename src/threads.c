/* The team. The calling thread works through the queue itself and waits only for helpers that have joined, so that a
 * helper whose core somebody else uses holds nobody. Helpers look for work for some microseconds, then sleep. One call
 * has the team at a time; others meanwhile run alone, as small calls do, and as a forked child does always: its
 * parent's helpers do not exist there. */
#define _GNU_SOURCE
#include "threads.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Waking a resting team costs 5-20 us: at some 10^10 multiply-adds a second that buys 50-200 thousand of them. */
#define SERIAL_BELOW 65536.0
#define TURNS 2000 /* of looking before a thread sleeps: some 30 to 70 us */
#define STACK (1 << 20)

/* What helpers see. `state` counts openings in its upper half, holds OPEN while helpers may join, and counts those that
 * have joined. Before it is opened, all else is written. */
enum { OPEN = 1 << 16, JOINED = OPEN - 1 };
#define ROUND ((uint64_t)1 << 32)
typedef struct {
    _Alignas(64) _Atomic uint64_t state;
    _Alignas(64) _Atomic uint32_t wake,
        left; /* futexes: a round was opened; the last helper of a closed one has left */
    _Atomic int sleepers, waiting, taken, forked;
    _Atomic int room; /* of this round; a helper that reads the next one's cannot join, as `state` has changed */
    int helpers;      /* threads that exist */
    void (*member)(void *context, cq_queue *queue);
    void *context;
    cq_tasks *tasks;
} cq_team;
static cq_team team;

static void after_fork(void) { atomic_store(&team.forked, 1); }
int cq_guard_fork(void) { return pthread_atfork(NULL, NULL, after_fork); }

static void sleep_while(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}
static void wake_up(_Atomic uint32_t *word, int count) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

/* Joins a round that is open and was not seen yet. */
static int join(uint64_t *seen) {
    uint64_t state = atomic_load(&team.state);
    while (state & OPEN && state / ROUND != *seen && (int)(state & JOINED) < team.room)
        if (atomic_compare_exchange_weak(&team.state, &state, state + 1)) {
            *seen = state / ROUND;
            return 1;
        }
    return 0;
}

static void leave(void) {
    const uint64_t state = atomic_fetch_sub(&team.state, 1) - 1;
    if (!(state & (OPEN | JOINED)) && atomic_load(&team.waiting)) {
        atomic_fetch_add(&team.left, 1);
        wake_up(&team.left, 1);
    }
}

/* number: which helper it is, from 1. */
static void *help(void *number) {
    uint64_t seen = UINT64_MAX;
    cq_floats_begin(); /* it has inherited the mode of the thread that hired it */
    for (int turns = 0;;) {
        if (join(&seen)) {
            team.member(team.context,
                        &(cq_queue){team.tasks, 1 + (int)((intptr_t)number - 1) % (team.tasks->runs - 1), 0});
            leave();
            turns = 0;
        } else if (turns++ < TURNS) {
            __builtin_ia32_pause();
        } else {
            const uint32_t value = atomic_load(&team.wake);
            atomic_fetch_add(&team.sleepers, 1);
            const uint64_t state = atomic_load(&team.state);
            if (!(state & OPEN) || state / ROUND == seen || (int)(state & JOINED) >= team.room)
                sleep_while(&team.wake, value);
            atomic_fetch_sub(&team.sleepers, 1);
            turns = 0;
        }
    }
    return number;
}

/* As many helpers as there may be. Signals are the process's other threads'. */
static void hire(int wanted) {
    sigset_t all, before;
    pthread_attr_t attributes;
    if (team.helpers >= wanted || pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    pthread_t thread;
    while (team.helpers < wanted && !pthread_create(&thread, &attributes, help, (void *)(intptr_t)(team.helpers + 1)))
        team.helpers++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* One phase, from its opening until every helper that joined has left. */
static void round_of(const cq_phase *phase, void *context, cq_tasks *tasks, int room) {
    team.member = phase->member, team.context = context, team.tasks = tasks;
    atomic_store_explicit(&team.room, room, memory_order_relaxed);
    atomic_store(&team.state, (atomic_load(&team.state) / ROUND + 1) * ROUND + OPEN);
    atomic_fetch_add(&team.wake, 1);
    const int sleepers = atomic_load(&team.sleepers);
    if (sleepers) wake_up(&team.wake, sleepers < room ? sleepers : room);
    phase->member(context, &(cq_queue){tasks, 0, 0});
    atomic_fetch_and(&team.state, ~(uint64_t)OPEN);
    for (int turns = 0; atomic_load(&team.state) & JOINED;) {
        if (turns++ < TURNS) {
            __builtin_ia32_pause();
            continue;
        }
        const uint32_t value = atomic_load(&team.left);
        atomic_store(&team.waiting, 1);
        if (atomic_load(&team.state) & JOINED) sleep_while(&team.left, value);
        atomic_store(&team.waiting, 0);
    }
}

static void share_out(const cq_phase *phase, int threads, cq_tasks *to) {
    const int64_t portions = threads == 1 ? 1 : threads * phase->chunks;
    to->grain = (phase->tasks + portions - 1) / portions, to->runs = threads < CQ_RUNS ? threads : CQ_RUNS;
    atomic_init(&to->status, CQ_OK);
    for (int64_t i = 0; i < to->runs; i++) {
        atomic_init(&to->run[i].next, phase->tasks * i / to->runs);
        to->run[i].end = phase->tasks * (i + 1) / to->runs;
    }
}

cq_status cq_run(int threads, double work, void *context, const cq_phase *phases, int count) {
    const int alone = threads <= 1 || work < SERIAL_BELOW || (count == 1 && phases[0].tasks == 1);
    const int serial = alone || atomic_load(&team.forked) || atomic_exchange(&team.taken, 1);
    cq_tasks tasks[2];
    for (int i = 0; i < count; i++) share_out(&phases[i], serial ? 1 : threads, &tasks[i]);
    const unsigned floats = cq_floats_begin();
    if (!serial) hire(threads - 1);
    for (int i = 0; i < count && !atomic_load(&tasks[0].status); i++) {
        if (serial) phases[i].member(context, &(cq_queue){&tasks[i], 0, 0});
        else round_of(&phases[i], context, &tasks[i], threads - 1);
    }
    if (!serial) atomic_store(&team.taken, 0);
    cq_floats_end(floats);
    for (int i = 0; i < count; i++)
        if (atomic_load(&tasks[i].status)) return (cq_status)atomic_load(&tasks[i].status);
    return CQ_OK;
}
