/* The part of a Program that runs on an Nvidia GPU: kernels, launches, and what a context needs for them.
 *
 * Private to an artifact. The files beside this one have the functions of nervure.h for such a Program, and those below,
 * which only such a one has; model.h documents both. Addresses of a device are pointers as CUDA hands them out. */
#ifndef NERVURE_GPU_H
#define NERVURE_GPU_H

#include "nervure.h"

/* One file of machine code: a fat binary of all architectures. */
typedef struct {
    const char *image;
    size_t bytes;
} nervure_module;

typedef struct {
    const char *name;
    int32_t module;
    uint32_t blocks, threads, shared; /* shared: bytes of each block */
} nervure_kernel;

/* An address: `base` counts as in nervure_context. */
typedef struct {
    int32_t base;
    size_t offset;
} nervure_argument;

typedef struct {
    int32_t kernel, first, count; /* its arguments in the table */
} nervure_launch;

typedef struct {
    const nervure_launch *launches;
    const int32_t *step_end; /* for each step, the index after its last launch */
    int32_t port_launches;   /* launches with an input or output among their arguments */
    bool touches_states;
    size_t words; /* where its recordings begin in the context's table of words */
} nervure_gpu_entry;

struct nervure_gpu_program {
    const nervure_module *modules;
    const nervure_kernel *kernels;
    const nervure_argument *arguments;
    const nervure_gpu_entry *entries;
    const int32_t *architectures; /* of the images, 80 for 8.0 */
    size_t const_bytes, words;
    int32_t module_count, kernel_count, architecture_count;
    int32_t most_arguments, most_steps;
    int32_t ptx;  /* the architecture of the PTX, or 0 */
    int32_t cuda; /* of the compiler that made the images, 13050 for 13.5; 0: unknown */
    const char *driver; /* the library that is asked for first; NULL: libcuda.so.1 */
};

/* Memory that outlives contexts: on the device, or on the host where the device reaches it fast. */
typedef struct nervure_buffer nervure_buffer;

int nervure_create_on(const nervure_program *program, void *memory, size_t bytes, void *const *regions, int threads,
                      int device, nervure_context **out);
size_t nervure_device_bytes(const nervure_program *program);
int nervure_run_on(nervure_context *context, int entry, const void *const *inputs, void *const *outputs, void *stream);
int nervure_wait(nervure_context *context);
int nervure_fetch(nervure_context *context);
int nervure_device(const nervure_context *context);
void *nervure_stream(const nervure_context *context);
void *nervure_device_slot(const nervure_context *context, int entry, int index, bool output);
int nervure_buffer_create(nervure_context *context, size_t bytes, int pinned, nervure_buffer **out);
void *nervure_buffer_address(const nervure_buffer *buffer);
int nervure_buffer_copy(nervure_buffer *buffer, void *host, size_t bytes, int to_host);
int nervure_buffer_export(nervure_buffer *buffer, int code, int bits, int rank, const int64_t *shape, void **out);
int nervure_buffer_release(nervure_buffer *buffer);

#endif
