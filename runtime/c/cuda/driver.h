/* The CUDA driver as it is opened at run time, and what contexts have there. Private to the files of this folder.
 *
 * Source of all prototypes, numbers and structures: "CUDA Driver API" reference. The functions are those of CUDA 11.4,
 * by the names under which every later driver has them, too. */
#ifndef NERVURE_DRIVER_H
#define NERVURE_DRIVER_H

#include "gpu.h"

#include <sys/types.h>

typedef uint64_t device_pointer;

typedef struct {
    void *function;
    unsigned blocks, blocks_y, blocks_z, threads, threads_y, threads_z, shared;
    void **arguments, **extra;
} kernel_node; /* CUDA_KERNEL_NODE_PARAMS_v1 */

typedef struct {
    size_t x, y, z, level;
    int type;
    void *host;
    device_pointer device;
    void *array, *reserved;
    size_t pitch, height;
} copy_end;

typedef struct {
    copy_end from, to;
    size_t width, height, depth;
} copy_node; /* CUDA_MEMCPY3D */

#define NERVURE_DRIVER_FUNCTIONS(F) \
    F(init, cuInit, unsigned) \
    F(version, cuDriverGetVersion, int *) \
    F(error_text, cuGetErrorString, int, const char **) \
    F(device_count, cuDeviceGetCount, int *) \
    F(device_get, cuDeviceGet, int *, int) \
    F(device_name, cuDeviceGetName, char *, int, int) \
    F(device_attribute, cuDeviceGetAttribute, int *, int, int) \
    F(retain, cuDevicePrimaryCtxRetain, void **, int) \
    F(release, cuDevicePrimaryCtxRelease_v2, int) \
    F(push, cuCtxPushCurrent_v2, void *) \
    F(pop, cuCtxPopCurrent_v2, void **) \
    F(synchronize, cuCtxSynchronize, void) \
    F(alloc, cuMemAlloc_v2, device_pointer *, size_t) \
    F(free, cuMemFree_v2, device_pointer) \
    F(host_alloc, cuMemHostAlloc, void **, size_t, unsigned) \
    F(host_free, cuMemFreeHost, void *) \
    F(pointer_attribute, cuPointerGetAttribute, void *, int, device_pointer) \
    F(set, cuMemsetD8Async, device_pointer, unsigned char, size_t, void *) \
    F(to_device, cuMemcpyHtoDAsync_v2, device_pointer, const void *, size_t, void *) \
    F(to_host, cuMemcpyDtoHAsync_v2, void *, device_pointer, size_t, void *) \
    F(load, cuModuleLoadData, void **, const void *) \
    F(unload, cuModuleUnload, void *) \
    F(function, cuModuleGetFunction, void **, void *, const char *) \
    F(function_get, cuFuncGetAttribute, int *, int, void *) \
    F(function_set, cuFuncSetAttribute, void *, int, int) \
    F(launch, cuLaunchKernel, void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, \
      void **, void **) \
    F(stream_create, cuStreamCreate, void **, unsigned) \
    F(stream_destroy, cuStreamDestroy_v2, void *) \
    F(stream_wait, cuStreamSynchronize, void *) \
    F(stream_after, cuStreamWaitEvent, void *, void *, unsigned) \
    F(capturing, cuStreamIsCapturing, void *, int *) \
    F(capture_begin, cuStreamBeginCapture_v2, void *, int) \
    F(capture_end, cuStreamEndCapture, void *, void **) \
    F(capture_info, cuStreamGetCaptureInfo_v2, void *, int *, uint64_t *, void **, void *const **, size_t *) \
    F(event_create, cuEventCreate, void **, unsigned) \
    F(event_destroy, cuEventDestroy_v2, void *) \
    F(event_record, cuEventRecord, void *, void *) \
    F(event_wait, cuEventSynchronize, void *) \
    F(event_elapsed, cuEventElapsedTime, float *, void *, void *) \
    F(instantiate, cuGraphInstantiateWithFlags, void **, void *, unsigned long long) \
    F(graph_destroy, cuGraphDestroy, void *) \
    F(exec_destroy, cuGraphExecDestroy, void *) \
    F(graph_launch, cuGraphLaunch, void *, void *) \
    F(kernel_node_set, cuGraphExecKernelNodeSetParams, void *, void *, const kernel_node *) \
    F(copy_node_set, cuGraphExecMemcpyNodeSetParams, void *, void *, const copy_node *, void *)

#define NERVURE_MEMBER(member, symbol, ...) int (*member)(__VA_ARGS__);
typedef struct {
    NERVURE_DRIVER_FUNCTIONS(NERVURE_MEMBER)
} nervure_cuda;

/* What the contexts of a library have in common on a device: the driver, machine code, constants. */
typedef struct nervure_shared {
    struct nervure_shared *next;
    const nervure_program *program;
    nervure_cuda cu;
    void *library, *context;
    void **modules, **functions;
    device_pointer constants;
    int number, device, users, version;
    bool retained;
    pid_t process;
} nervure_shared;

/* The launches of an entry, recorded once: for calls with arrays of the host (copies included), or of the device. The
 * nodes are those that know a caller's addresses: copies of each port, or launches with a port. */
typedef struct {
    void *graph, *exec;
} nervure_recording; /* in the table of words followed by an address for each port, then the nodes */

typedef struct {
    nervure_context host;
    nervure_shared *shared;
    void *stream;  /* the context's own */
    void *done;    /* event behind the last run that nobody has waited for */
    void *last;    /* that run's stream */
    char *staging; /* the slots of inputs and outputs in the host's memory */
    device_pointer *at, *values; /* of each base; of the arguments of a launch */
    void **pointers, **events;
    uint64_t *words;
    bool pending;           /* a run was not waited for */
    bool fresh[2];          /* what the context's memory holds of params, states is what the device has */
    uint64_t given;         /* bit of each region that is the caller's */
} gpu_context;

/* driver.c */
int nervure_driver_open(nervure_cuda *cu, const char *name, void **library, int *version);
int nervure_fail(int status, const char *format, ...);
int nervure_driver_fail(const nervure_cuda *cu, int code, const char *what);

/* device.c */
int nervure_shared_open(const nervure_program *program, int number, nervure_shared **out);
void nervure_shared_close(nervure_shared *shared);
void nervure_shared_keep(nervure_shared *shared);
bool nervure_shared_alive(const nervure_shared *shared); /* false after fork() */

/* graph.c */
nervure_recording *nervure_recording_of(const gpu_context *g, int entry, bool host);
int nervure_play(gpu_context *g, int entry, bool host, void *stream);
int nervure_walk(gpu_context *g, int entry, int32_t first_step, int32_t last_step, void *stream, void **nodes);
int nervure_copy_ports(gpu_context *g, int entry, bool output, void *stream, void **nodes);
void nervure_forget(gpu_context *g, nervure_recording *recording);

/* run.c */
int nervure_enter(gpu_context *g); /* takes the context and makes its device current; 0 or a status */
int nervure_leave(gpu_context *g, int status);
int nervure_settle(gpu_context *g); /* waits for all that was enqueued */

static inline gpu_context *nervure_gpu(const nervure_context *c) {
    return (gpu_context *)(uintptr_t)c;
}

static inline size_t nervure_round_up(size_t bytes) {
    return (bytes + NERVURE_ALIGN - 1) / NERVURE_ALIGN * NERVURE_ALIGN;
}

static inline int32_t nervure_first_port(const nervure_program *p) {
    return NERVURE_REGION + p->region_count;
}

static inline size_t nervure_base_count(const nervure_program *p) {
    return (size_t)nervure_first_port(p) + (size_t)p->most_inputs + (size_t)p->most_outputs;
}

/* Bytes of the staging memory before a port; `index` may be the number of ports. */
static inline size_t nervure_staged(const nervure_entry *e, int index, bool output) {
    size_t at = 0;
    for (int32_t i = 0; i < (output ? e->input_count : index); i++) at += nervure_round_up(e->inputs[i].bytes);
    for (int32_t i = 0; output && i < index; i++) at += nervure_round_up(e->outputs[i].bytes);
    return at;
}

#endif
