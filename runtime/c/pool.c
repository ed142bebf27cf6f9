/* Worker threads that help the caller's thread through the phases of a run.
 *
 * The caller walks the phases; a helper takes tasks of the phase that is open. Tasks are claimed, not assigned: the
 * caller from the front, helpers from the back, so that a helper that the system has put aside holds nobody up (on a
 * quiet machine they meet in the middle, and a worker finds in its cache what it wrote before). A phase ends when all
 * its tasks are done. A wait spins shortly; then a helper sleeps and the caller gives way. Where there are more workers
 * than cores nobody spins. */
#define _GNU_SOURCE
#include "nervure.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

/* Pauses, each some tens of nanoseconds. */
enum { HELPER_SPINS = 6000, CALLER_SPINS = 2000 };

/* What is left of the open phase, in one word, so that a claim can never meet another phase than the one it saw:
 * a phase counter (24 bits), the first task (20) and the end of the tasks (20) that nobody has claimed. */
enum { TASK_BITS = 20 };
#define TASK_MASK ((UINT64_C(1) << TASK_BITS) - 1)
_Static_assert(NERVURE_MAX_TASKS <= (1 << TASK_BITS) - 1, "a phase's tasks must fit their bits");

typedef struct {
    nervure_pool *pool;
    pthread_t thread;
    int32_t index;
    bool flush; /* how its floating-point unit is set */
} worker;

struct nervure_pool {
    _Alignas(NERVURE_ALIGN) _Atomic uint64_t open;
    _Atomic(const nervure_phase *) phase;
    _Alignas(NERVURE_ALIGN) atomic_int done;
    /* `sleepers` lets the caller skip the lock: both sides order their accesses sequentially (Dekker), so a helper
     * either sees the new phase or is seen by the caller. */
    _Alignas(NERVURE_ALIGN) atomic_int sleepers;
    atomic_bool stopping;
    pthread_mutex_t lock;
    pthread_cond_t opened;
    nervure_context *context;
    worker *workers;
    int32_t started, helper_spins, caller_spins;
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

/* Claims some tasks of the phase that `open` speaks of and runs them; false when there is none left. Claims get smaller
 * towards the end, so that the workers finish together. `self` is NULL for the caller. */
static bool take(nervure_pool *pool, worker *self) {
    int32_t index = self != NULL ? self->index : 0;
    uint64_t open = atomic_load_explicit(&pool->open, memory_order_acquire);
    int32_t from = (int32_t)(open >> TASK_BITS & TASK_MASK), to = (int32_t)(open & TASK_MASK);
    if (from >= to) return false;
    const nervure_phase *phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    int32_t count = (to - from) / (2 * pool->context->workers);
    if (count < 1) count = 1;
    uint64_t rest = index == 0 ? open + ((uint64_t)count << TASK_BITS) : open - (uint64_t)count;
    if (!atomic_compare_exchange_strong_explicit(&pool->open, &open, rest, memory_order_acquire, memory_order_relaxed))
        return true;
    if (index != 0) from = to - count;
    nervure_context *c = pool->context;
    if (self != NULL && self->flush != c->flush) {
        self->flush = c->flush;
        nervure_float_enter(self->flush);
    }
    char *scratch = index == 0 ? nervure_own_scratch(c, phase) : c->scratch + (size_t)(index - 1) * c->scratch_stride;
    phase->run(c->base, scratch, from, from + count);
    atomic_fetch_add_explicit(&pool->done, count, memory_order_release);
    return true;
}

static void open_phase(nervure_pool *pool, uint64_t tasks) {
    uint64_t next = (atomic_load_explicit(&pool->open, memory_order_relaxed) >> 2 * TASK_BITS) + 1;
    atomic_store(&pool->open, next << 2 * TASK_BITS | tasks);
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->opened);
    pthread_mutex_unlock(&pool->lock);
}

void nervure_pool_phase(nervure_pool *pool, const nervure_phase *phase) {
    atomic_store_explicit(&pool->phase, phase, memory_order_relaxed);
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    open_phase(pool, (uint64_t)phase->tasks);
    while (take(pool, NULL)) continue;
    for (int32_t spins = 0; atomic_load_explicit(&pool->done, memory_order_acquire) < phase->tasks; spins++) {
        if (spins < pool->caller_spins)
            pause_core();
        else
            sched_yield();
    }
}

static void *help(void *argument) {
    worker *self = argument;
    nervure_pool *pool = self->pool;
    nervure_float_enter(false);
    for (;;) {
        uint64_t seen = atomic_load_explicit(&pool->open, memory_order_acquire);
        if (atomic_load_explicit(&pool->stopping, memory_order_acquire)) return NULL;
        if (take(pool, self)) continue;
        int32_t spins = 0;
        while (spins < pool->helper_spins && atomic_load_explicit(&pool->open, memory_order_relaxed) == seen) {
            pause_core();
            spins++;
        }
        if (spins < pool->helper_spins) continue;
        pthread_mutex_lock(&pool->lock);
        atomic_fetch_add(&pool->sleepers, 1);
        while (atomic_load(&pool->open) == seen) pthread_cond_wait(&pool->opened, &pool->lock);
        atomic_fetch_sub(&pool->sleepers, 1);
        pthread_mutex_unlock(&pool->lock);
    }
}

bool nervure_pool_alive(const nervure_pool *pool) {
    return pool->process == getpid();
}

static int core_count(void) {
    cpu_set_t cores;
    return sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

size_t nervure_pool_size(void) {
    return sizeof(nervure_pool);
}

int nervure_pool_start(nervure_pool *pool, nervure_context *context, void *workers) {
    atomic_init(&pool->open, 0);
    atomic_init(&pool->phase, NULL);
    atomic_init(&pool->done, 0);
    atomic_init(&pool->sleepers, 0);
    atomic_init(&pool->stopping, false);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->opened, NULL);
    pool->context = context;
    pool->workers = workers;
    pool->process = getpid();
    bool cores_for_all = context->workers <= core_count();
    pool->helper_spins = cores_for_all ? HELPER_SPINS : 0;
    pool->caller_spins = cores_for_all ? CALLER_SPINS : 0;
    sigset_t all, before; /* signals are for the caller's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = 0;
    for (int32_t i = 1; i < context->workers && !failed; i++) {
        worker *w = &pool->workers[i - 1];
        w->pool = pool;
        w->index = i;
        w->flush = false;
        failed = pthread_create(&w->thread, NULL, help, w);
        if (!failed) pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) return NERVURE_OK;
    nervure_pool_stop(pool);
    return NERVURE_THREAD_START;
}

void nervure_pool_stop(nervure_pool *pool) {
    if (!nervure_pool_alive(pool)) return;
    atomic_store(&pool->stopping, true);
    open_phase(pool, 0);
    for (int32_t i = 0; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
    pool->started = 0;
    pthread_cond_destroy(&pool->opened);
    pthread_mutex_destroy(&pool->lock);
}
