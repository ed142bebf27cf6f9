/* Worker threads. They are woken once a run, walk the same phases, and meet at barriers. A wait spins shortly, then
 * sleeps; where there are more workers than cores it sleeps at once, because a spinning worker would keep the one that
 * it waits for from running. */
#define _GNU_SOURCE
#include "nervure.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

/* Pauses, each some tens of nanoseconds: between runs a worker soon lets go of its core, within a run it stays. */
enum { START_SPINS = 3000, MEET_SPINS = 20000 };

/* A counter that threads wait on. `sleepers` lets `gate_open` skip the lock: both sides order their accesses
 * sequentially (Dekker), so a waiter either sees the new count or is seen by the opener. */
typedef struct {
    _Alignas(NERVURE_ALIGN) atomic_uint count;
    atomic_uint sleepers;
    pthread_mutex_t lock;
    pthread_cond_t opened;
} gate;

typedef struct {
    nervure_pool *pool;
    pthread_t thread;
    int32_t index;
} worker;

struct nervure_pool {
    gate start, meet;
    _Alignas(NERVURE_ALIGN) atomic_uint arrived;
    nervure_context *context;
    worker *workers;
    const nervure_entry *entry; /* NULL: leave */
    uint64_t *ticks;
    int32_t started, start_spins, meet_spins;
    pid_t process; /* fork() leaves the threads behind */
};

_Static_assert(sizeof(worker) <= NERVURE_WORKER_BYTES, "a worker outgrew its place");
_Static_assert(sizeof(nervure_pool) + sizeof(nervure_context) + 2 * NERVURE_ALIGN <= NERVURE_HEADER_BYTES,
               "the context outgrew its header");

static inline void pause_core(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

static void gate_init(gate *g) {
    atomic_init(&g->count, 0);
    atomic_init(&g->sleepers, 0);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->opened, NULL);
}

static void gate_destroy(gate *g) {
    pthread_cond_destroy(&g->opened);
    pthread_mutex_destroy(&g->lock);
}

static void gate_open(gate *g) {
    atomic_fetch_add(&g->count, 1);
    if (atomic_load(&g->sleepers) == 0) return;
    pthread_mutex_lock(&g->lock);
    pthread_cond_broadcast(&g->opened);
    pthread_mutex_unlock(&g->lock);
}

static void gate_wait(gate *g, unsigned seen, int spins) {
    for (int i = 0; i < spins; i++) {
        if (atomic_load_explicit(&g->count, memory_order_acquire) != seen) return;
        pause_core();
    }
    pthread_mutex_lock(&g->lock);
    atomic_fetch_add(&g->sleepers, 1);
    while (atomic_load(&g->count) == seen) pthread_cond_wait(&g->opened, &g->lock);
    atomic_fetch_sub(&g->sleepers, 1);
    pthread_mutex_unlock(&g->lock);
}

void nervure_pool_barrier(nervure_pool *pool) {
    unsigned seen = atomic_load_explicit(&pool->meet.count, memory_order_relaxed);
    unsigned all = (unsigned)pool->context->workers;
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 == all) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        gate_open(&pool->meet);
    } else {
        gate_wait(&pool->meet, seen, pool->meet_spins);
    }
}

static void *work(void *argument) {
    worker *self = argument;
    nervure_pool *pool = self->pool;
    nervure_float_enter();
    for (unsigned run = 0;; run++) {
        gate_wait(&pool->start, run, pool->start_spins);
        if (pool->entry == NULL) return NULL;
        nervure_walk(pool->context, pool->entry, self->index, pool->ticks);
        nervure_pool_barrier(pool);
    }
}

int nervure_pool_run(nervure_pool *pool, const nervure_entry *entry, uint64_t *ticks) {
    if (pool->process != getpid()) return NERVURE_FORKED;
    pool->entry = entry;
    pool->ticks = ticks;
    gate_open(&pool->start);
    nervure_walk(pool->context, entry, 0, ticks);
    nervure_pool_barrier(pool);
    return NERVURE_OK;
}

static int core_count(void) {
    cpu_set_t cores;
    return sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

size_t nervure_pool_size(void) {
    return sizeof(nervure_pool);
}

int nervure_pool_start(nervure_pool *pool, nervure_context *context, void *workers) {
    gate_init(&pool->start);
    gate_init(&pool->meet);
    atomic_init(&pool->arrived, 0);
    pool->context = context;
    pool->workers = workers;
    pool->process = getpid();
    bool cores_for_all = context->workers <= core_count();
    pool->start_spins = cores_for_all ? START_SPINS : 0;
    pool->meet_spins = cores_for_all ? MEET_SPINS : 0;
    sigset_t all, before; /* signals are for the caller's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = 0;
    for (int32_t i = 1; i < context->workers && !failed; i++) {
        worker *w = &pool->workers[i - 1];
        w->pool = pool;
        w->index = i;
        failed = pthread_create(&w->thread, NULL, work, w);
        if (!failed) pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) return NERVURE_OK;
    nervure_pool_stop(pool);
    return NERVURE_THREAD_START;
}

void nervure_pool_stop(nervure_pool *pool) {
    if (pool->process != getpid()) return;
    pool->entry = NULL;
    gate_open(&pool->start);
    for (int32_t i = 0; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
    pool->started = 0;
    gate_destroy(&pool->start);
    gate_destroy(&pool->meet);
}
