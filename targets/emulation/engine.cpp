/* Runs a kernel's blocks one after the other, the threads of each as coroutines that give way where they wait. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "library.h"

/* -- coroutines ---------------------------------------------------------------------------------------------------- */

/* emu_switch(&from, to): registers that a call keeps go onto the stack, whose end goes into `from`; then `to`'s. Source:
 * System V ABI for x86-64, "Procedure Call Standard for the Arm 64-bit Architecture". */
extern "C" void emu_switch(void **from, void *to);
#if defined(__x86_64__)
__asm__(".text\n.hidden emu_switch\n.globl emu_switch\n.type emu_switch,@function\nemu_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
enum { SAVED = 6, RETURN = 6 };
#elif defined(__aarch64__)
__asm__(".text\n.hidden emu_switch\n.globl emu_switch\n.type emu_switch,%function\nemu_switch:\n"
        "sub sp, sp, #160\nstp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\n"
        "stp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
        "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
        "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
        "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\n"
        "ldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
        "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
        "add sp, sp, #160\nret\n");
enum { SAVED = 20, RETURN = 11 };
#endif

enum { STACK = 128 << 10, MOST = 1024, WARP = 32, GUARD = 256, READY = 0, AT_BARRIER, AT_WARP, DONE };

struct copy { char *to; const char *from; int bytes, valid, group; };
struct thread {
    void *stack; /* where it left off */
    int state, operation, groups; /* groups: of copies that it closed */
    void *operand;
    copy *copies;
    size_t copy_count, copy_room;
};

static struct {
    thread threads[MOST];
    char *stacks[MOST + 1];
    unsigned stack_count, busy; /* stacks that there are; that are in use */
    void *main;
    unsigned next; /* the turn of whoever has not begun */
    const char *kernel;
    void (*body)(void **);
    void **arguments;
    unsigned shared_bytes, seed;
    bool failed;
    char message[512];
} run;
static emu_engine machine;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static thread &current() { return run.threads[machine.thread.x]; }

void emu_say(const char *form, ...) {
    if (run.failed) return; /* the first is what counts */
    run.failed = true;
    int at = snprintf(run.message, sizeof run.message, "%s, block %u: ", run.kernel, machine.block.x);
    va_list given;
    va_start(given, form);
    vsnprintf(run.message + at, sizeof run.message - (size_t)at, form, given);
    va_end(given);
    fprintf(stderr, "emulated GPU: %s\n", run.message);
}

static void leave(int state) { /* this thread waits */
    thread &mine = current();
    mine.state = state;
    emu_switch(&mine.stack, run.main);
}

/* What runs on a stack: threads that have not begun, one after the other. Where none ever waits, one stack is enough. */
static void carry() {
    for (;;) {
        while (run.next < machine.threads && !run.failed) {
            unsigned turn = run.next++;
            machine.thread.x = run.seed % 2 ? machine.threads - 1 - turn : turn;
            run.body(run.arguments);
            current().state = DONE;
        }
        void *nowhere;
        emu_switch(&nowhere, run.main);
    }
}

static char *new_stack() {
    if (run.busy == run.stack_count) {
        void *found = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found == MAP_FAILED) abort();
        mprotect(found, 4096, PROT_NONE); /* below: no room for more */
        run.stacks[run.stack_count++] = (char *)found;
    }
    return run.stacks[run.busy++];
}

static void *fresh_carrier() {
    void **top = (void **)(new_stack() + STACK) - 4;
    memset(top - SAVED - 2, 0, (SAVED + 6) * sizeof *top);
    void **at = top - SAVED - (SAVED == 6 ? 2 : 0); /* at a call the stack is a multiple of 16, less 8 on x86-64 */
    at[RETURN] = (void *)carry;
    return at;
}

static void resume(unsigned number) {
    machine.thread.x = number;
    run.threads[number].state = READY;
    emu_switch(&run.main, run.threads[number].stack);
}

/* -- what waits ------------------------------------------------------------------------------------------------------ */

static void finish_warp(unsigned first, unsigned end) {
    int operation = run.threads[first].operation;
    void *operands[WARP] = {};
    for (unsigned i = first; i < end; i++) {
        if (run.threads[i].operation != operation)
            return emu_say("threads %u and %u of a warp wait for different things", first, i);
        operands[i - first] = run.threads[i].operand;
    }
    if (operation >= EMU_MMA_F16 && end - first != WARP)
        return emu_say("thread %u: a matrix instruction of a warp of %u threads", first, end - first);
    emu_collective(operation, operands, end - first);
}

/* Whether the warp of these threads can go on. */
static bool release_warp(unsigned first, unsigned end) {
    for (unsigned i = first; i < end; i++)
        if (run.threads[i].state != AT_WARP) return false;
    finish_warp(first, end);
    for (unsigned i = first; i < end; i++) run.threads[i].state = READY;
    return true;
}

static void explain() {
    for (unsigned i = 0; i < machine.threads; i++)
        if (run.threads[i].state == AT_WARP)
            return emu_say("thread %u waits for lanes of its warp that never come", i);
    emu_say("threads wait for those that never come");
}

static bool release_barrier() {
    for (unsigned i = 0; i < machine.threads; i++)
        if (run.threads[i].state == AT_WARP) return false;
    for (unsigned i = 0; i < machine.threads; i++)
        if (run.threads[i].state == AT_BARRIER) run.threads[i].state = READY;
    return true;
}

/* All threads until they end. Warps take turns; a warp goes on as long as it can. */
static void run_block() {
    run.next = 0;
    while (run.next < machine.threads && !run.failed) { /* each until it waits for the first time */
        void *carrier = fresh_carrier();
        emu_switch(&run.main, carrier);
    }
    unsigned warps = (machine.threads + WARP - 1) / WARP;
    while (!run.failed) {
        unsigned over = 0;
        for (unsigned w = 0; w < warps && !run.failed; w++) {
            unsigned first = (run.seed % 2 ? warps - 1 - w : w) * WARP;
            unsigned end = first + WARP < machine.threads ? first + WARP : machine.threads;
            bool again = true;
            while (again && !run.failed) {
                for (unsigned i = first; i < end && !run.failed; i++) {
                    unsigned who = run.seed % 2 ? first + end - 1 - i : i;
                    if (run.threads[who].state == READY) resume(who);
                }
                again = release_warp(first, end);
            }
            for (unsigned i = first; i < end; i++) over += run.threads[i].state == DONE;
        }
        if (over == machine.threads) return;
        if (!run.failed && !release_barrier()) explain();
    }
}

static void barrier() { leave(AT_BARRIER); }
static void warp(int operation, void *operand) {
    current().operation = operation, current().operand = operand;
    leave(AT_WARP);
}

/* -- copies that are on their way: done when waited for ------------------------------------------------------------- */

static void poison(void *to, size_t bytes) { /* NaN of every type of numbers, not the same for every seed */
    unsigned char even = run.seed % 2 ? 0xc1 : 0xff, odd = run.seed % 2 ? 0x7f : 0xff;
    for (size_t i = 0; i < bytes; i++) ((unsigned char *)to)[i] = i % 2 ? odd : even;
}
bool emu_shared(const void *at, unsigned bytes) {
    const char *low = machine.shared, *first = (const char *)at;
    return first >= low && first + bytes <= low + run.shared_bytes;
}
static void start_copy(void *to, const void *from, int bytes, int valid) {
    thread &mine = current();
    char *at = (char *)to;
    if (!emu_shared(to, (unsigned)bytes)) return emu_say("thread %u: a copy to outside shared memory", machine.thread.x);
    if ((size_t)at % (size_t)bytes || (valid && (size_t)from % (size_t)bytes))
        return emu_say("thread %u: a copy of %d bytes at an address that is not a multiple", machine.thread.x, bytes);
    if (mine.copy_count == mine.copy_room) {
        mine.copy_room = mine.copy_room ? 2 * mine.copy_room : 16;
        mine.copies = (copy *)realloc(mine.copies, mine.copy_room * sizeof(copy));
        if (mine.copies == NULL) abort();
    }
    mine.copies[mine.copy_count++] = copy{at, (const char *)from, bytes, valid, mine.groups};
    poison(to, (size_t)bytes);
}
static void close_copies() { current().groups++; }
static void wait_copies(int groups) {
    thread &mine = current();
    size_t kept = 0;
    for (size_t i = 0; i < mine.copy_count; i++) {
        copy c = mine.copies[i];
        if (c.group >= mine.groups - groups) mine.copies[kept++] = c;
        else if (c.valid) memcpy(c.to, c.from, (size_t)c.bytes);
        else memset(c.to, 0, (size_t)c.bytes);
    }
    mine.copy_count = kept;
}

static void fail(const char *what) {
    emu_say("thread %u: %s", machine.thread.x, what);
    leave(AT_BARRIER); /* for ever */
}

/* -- launches -------------------------------------------------------------------------------------------------------- */

static void begin_block(unsigned number, char *memory) {
    machine.block.x = number;
    poison(memory, run.shared_bytes + 2 * GUARD);
    for (unsigned i = 0; i < machine.threads; i++)
        run.threads[i].state = READY, run.threads[i].groups = 0, run.threads[i].copy_count = 0;
    run.busy = 0;
}

static void check_guards(const char *memory) {
    char clean[GUARD];
    poison(clean, GUARD);
    if (memcmp(memory, clean, GUARD) != 0) emu_say("a write before shared memory");
    if (memcmp(memory + GUARD + run.shared_bytes, clean + run.shared_bytes % 2, GUARD - run.shared_bytes % 2) != 0)
        emu_say("a write after the %u bytes of shared memory", run.shared_bytes);
}

static int run_kernel(const char *kernel, void (*body)(void **), void **arguments, unsigned blocks, unsigned threads,
            unsigned shared) {
    pthread_mutex_lock(&one_at_a_time);
    run.kernel = kernel, run.body = body, run.arguments = arguments, run.shared_bytes = shared, run.failed = false;
    machine.threads = threads;
    machine.blocks.x = blocks;
    char *memory = (char *)aligned_alloc(256, (shared + 2 * GUARD + 255) / 256 * 256);
    machine.shared = memory + GUARD;
    for (unsigned b = 0; b < blocks && !run.failed; b++) {
        begin_block(run.seed % 2 ? blocks - 1 - b : b, memory);
        run_block();
        if (!run.failed) check_guards(memory);
    }
    free(memory);
    int status = run.failed;
    pthread_mutex_unlock(&one_at_a_time);
    return status;
}

static void start() {
    machine.run = run_kernel, machine.barrier = barrier, machine.warp = warp, machine.copy = start_copy;
    machine.copies_close = close_copies, machine.copies_wait = wait_copies, machine.fail = fail;
    dlopen("libm.so.6", RTLD_NOW | RTLD_GLOBAL); /* images call it without naming it */
}
emu_engine *emu_start() {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
    return &machine;
}
const char *emu_message() { return run.message; }
void emu_order(unsigned seed) { run.seed = seed; }
