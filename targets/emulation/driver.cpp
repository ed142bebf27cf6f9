/* Stands in for libcuda.so.1: the functions of the CUDA driver API that runtime/c/cuda asks for, on this CPU's memory.
 * A module is a library of emulation/__init__.py's compile_kernels.
 *
 * Calls that enqueue work do it at once, or, where `deferred` is set, when somebody waits for the stream: whoever
 * forgets to wait sees old bytes. Objects are counted, memory is filled with rubbish, and `emulated_set("fault", n)`
 * makes the n-th call from now on fail. As the driver's, a call that releases something does so even then. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "library.h"

typedef int result;
enum {
    OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NO_BINARY = 209,
    INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, LAUNCH_FAILED = 719, NOT_PERMITTED = 900,
};
#define EXTERN extern "C" __attribute__((visibility("default")))
#define API EXTERN result
#define CALL do { if (result status = enter(true)) return status; } while (0)
#define CALL_WITHOUT_CONTEXT do { if (result status = enter(false)) return status; } while (0)
typedef int (*kernel)(void **arguments, unsigned blocks, unsigned threads, unsigned shared);

/* -- what tests set and ask ---------------------------------------------------------------------------------------- */

struct number { const char *name; long long value; };
enum { DEVICES, VERSION, CAPABILITY, MEMORY_LIMIT, DEFERRED, FAULT, FAULT_CODE,
       CALLS, LIVE_CONTEXTS, LIVE_MEMORY, LIVE_BYTES, LIVE_PINNED, LIVE_MODULES, LIVE_STREAMS, LIVE_EVENTS, LIVE_GRAPHS, LIVE_EXECS,
       LAUNCHES, GRAPH_LAUNCHES, COPIES, COPIED_BYTES, NODES_CHANGED, OVERRUNS, NUMBERS };
static number numbers[NUMBERS] = {
    {"devices", 1}, {"version", 13000}, {"capability", 0}, {"memory", 1ll << 36}, {"deferred", 0}, {"fault", 0}, {"fault code", 1},
    {"calls", 0}, {"contexts", 0}, {"blocks", 0}, {"bytes", 0}, {"pinned", 0}, {"modules", 0}, {"streams", 0}, {"events", 0},
    {"graphs", 0}, {"execs", 0}, {"launches", 0}, {"graph launches", 0}, {"copies", 0}, {"copied bytes", 0}, {"nodes changed", 0}, {"overruns", 0},
};
static long long add(int which, long long by) { return __atomic_add_fetch(&numbers[which].value, by, __ATOMIC_SEQ_CST); }
static long long get(int which) { return add(which, 0); }

EXTERN int emulated_set(const char *name, long long value) {
    for (number &n : numbers)
        if (strcmp(n.name, name) == 0) { __atomic_store_n(&n.value, value, __ATOMIC_SEQ_CST); return 0; }
    return 1;
}
EXTERN long long emulated_get(const char *name) {
    for (int i = 0; i < NUMBERS; i++)
        if (strcmp(numbers[i].name, name) == 0) return get(i);
    return -1;
}

static thread_local struct { int depth; intptr_t stack[16]; } current;

static result fault() {
    add(CALLS, 1);
    return get(FAULT) > 0 && add(FAULT, -1) == 0 ? (result)get(FAULT_CODE) : OK;
}
static result enter(bool context) {
    result status = fault();
    return status == OK && context && current.depth == 0 ? INVALID_CONTEXT : status;
}

/* -- driver, devices, contexts ------------------------------------------------------------------------------------- */

/* NVRTC asks whatever libcuda.so.1 is loaded for it, and takes a refusal. */
API cuGetExportTable(const void **table, const void *) { *table = NULL; return NOT_FOUND; }
API cuInit(unsigned flags) { CALL_WITHOUT_CONTEXT; return flags != 0 ? INVALID : get(DEVICES) == 0 ? NO_DEVICE : OK; }
API cuDriverGetVersion(int *version) { CALL_WITHOUT_CONTEXT; *version = (int)get(VERSION); return OK; }
API cuDeviceGetCount(int *count) { CALL_WITHOUT_CONTEXT; *count = (int)get(DEVICES); return OK; }
API cuDeviceGet(int *device, int number) {
    CALL_WITHOUT_CONTEXT;
    *device = number;
    return number >= 0 && number < get(DEVICES) ? OK : INVALID_DEVICE;
}
API cuDeviceGetName(char *name, int bytes, int) { CALL_WITHOUT_CONTEXT; snprintf(name, (size_t)bytes, "a GPU played by the CPU"); return OK; }
API cuDeviceTotalMem_v2(size_t *bytes, int) { CALL_WITHOUT_CONTEXT; *bytes = (size_t)get(MEMORY_LIMIT); return OK; }
API cuDeviceGetAttribute(int *value, int which, int) {
    CALL_WITHOUT_CONTEXT;
    int capability = get(CAPABILITY) != 0 ? (int)get(CAPABILITY) : 90;
    *value = which == 75 ? capability / 10 : which == 76 ? capability % 10 : which == 16 ? 4 : 1;
    return OK;
}
API cuGetErrorString(int code, const char **text) {
    *text = code == INVALID ? "invalid argument" : code == OUT_OF_MEMORY ? "out of memory" : code == NO_DEVICE ? "no CUDA-capable device is detected"
          : code == NO_BINARY ? "no kernel image is available for execution on the device" : code == LAUNCH_FAILED ? "unspecified launch failure" : "an error that is played";
    return OK;
}
API cuDevicePrimaryCtxRetain(void **context, int device) { CALL_WITHOUT_CONTEXT; *context = (void *)(intptr_t)(device + 1); add(LIVE_CONTEXTS, 1); return OK; }
API cuDevicePrimaryCtxRelease_v2(int) { result status = fault(); add(LIVE_CONTEXTS, -1); return status; }
API cuCtxPushCurrent_v2(void *context) {
    CALL_WITHOUT_CONTEXT;
    if (context == NULL || current.depth == 16) return INVALID_CONTEXT;
    current.stack[current.depth++] = (intptr_t)context;
    return OK;
}
API cuCtxPopCurrent_v2(void **context) {
    result status = fault();
    if (current.depth == 0) return INVALID_CONTEXT;
    *context = (void *)current.stack[--current.depth];
    return status;
}
API cuCtxGetCurrent(void **context) { *context = current.depth > 0 ? (void *)current.stack[current.depth - 1] : NULL; return OK; }
EXTERN int emulated_depth() { return current.depth; }

/* -- memory -------------------------------------------------------------------------------------------------------- */

enum { HOST = 1, DEVICE = 2, BEHIND = 256 }; /* bytes behind a block that nobody may write */
struct block { block *next; uint64_t at; size_t bytes; int kind; };
static block *blocks;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static result allocate(uint64_t *to, size_t bytes, int kind) {
    void *memory = NULL;
    if (bytes == 0) return INVALID;
    if (kind == DEVICE && get(LIVE_BYTES) + (long long)bytes > get(MEMORY_LIMIT)) return OUT_OF_MEMORY;
    block *made = (block *)malloc(sizeof(block));
    if (made == NULL || posix_memalign(&memory, 256, bytes + BEHIND) != 0) { free(made); return OUT_OF_MEMORY; }
    memset(memory, 0xc5, bytes + BEHIND);
    *to = (uint64_t)(uintptr_t)memory;
    pthread_mutex_lock(&lock);
    *made = block{blocks, *to, bytes, kind};
    blocks = made;
    pthread_mutex_unlock(&lock);
    add(kind == DEVICE ? LIVE_MEMORY : LIVE_PINNED, 1);
    if (kind == DEVICE) add(LIVE_BYTES, (long long)bytes);
    return OK;
}
static result finish_all();
/* As the driver does, after all that uses the memory. */
static result give_back(uint64_t at, int kind) {
    finish_all();
    pthread_mutex_lock(&lock);
    block **place = &blocks;
    while (*place != NULL && ((*place)->at != at || (*place)->kind != kind)) place = &(*place)->next;
    block *found = *place;
    if (found != NULL) *place = found->next;
    pthread_mutex_unlock(&lock);
    if (found == NULL) return INVALID;
    add(kind == DEVICE ? LIVE_MEMORY : LIVE_PINNED, -1);
    if (kind == DEVICE) add(LIVE_BYTES, -(long long)found->bytes);
    const unsigned char *behind = (const unsigned char *)(uintptr_t)at + found->bytes;
    for (int i = 0; i < BEHIND; i++)
        if (behind[i] != 0xc5) {
            fprintf(stderr, "emulated GPU: a write %d bytes behind a block of %zu\n", i, found->bytes);
            add(OVERRUNS, 1);
            break;
        }
    free((void *)(uintptr_t)at);
    free(found);
    return OK;
}
static int kind_of(uint64_t at) {
    int kind = 0;
    pthread_mutex_lock(&lock);
    for (block *b = blocks; b != NULL; b = b->next)
        if (at >= b->at && at < b->at + b->bytes) kind = b->kind;
    pthread_mutex_unlock(&lock);
    return kind;
}
API cuMemAlloc_v2(uint64_t *to, size_t bytes) { CALL; return allocate(to, bytes, DEVICE); }
API cuMemGetInfo_v2(size_t *here, size_t *whole) {
    CALL;
    *whole = (size_t)get(MEMORY_LIMIT);
    *here = *whole - (size_t)get(LIVE_BYTES);
    return OK;
}
API cuMemFree_v2(uint64_t at) { result status = fault(), freed = give_back(at, DEVICE); return status != OK ? status : freed; }
API cuMemHostAlloc(void **to, size_t bytes, unsigned) {
    CALL;
    uint64_t at = 0;
    result status = allocate(&at, bytes, HOST);
    *to = (void *)(uintptr_t)at;
    return status;
}
API cuMemFreeHost(void *at) { result status = fault(), freed = give_back((uint64_t)(uintptr_t)at, HOST); return status != OK ? status : freed; }
API cuPointerGetAttribute(void *value, int which, uint64_t at) {
    CALL;
    int kind = kind_of(at);
    if (kind == 0 || which != 2) return INVALID; /* 2: CU_POINTER_ATTRIBUTE_MEMORY_TYPE */
    *(unsigned *)value = (unsigned)kind;
    return OK;
}

