/* The part of a Program that runs on an Nvidia GPU: kernels, launches, and the driver's functions, opened at run time.
 *
 * Private to an artifact. `gpu.c` has the functions of nervure.h for such a Program. Source of all prototypes: "CUDA
 * Driver API" reference. */
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
} nervure_stream_entry;

struct nervure_gpu_program {
    const nervure_module *modules;
    const nervure_kernel *kernels;
    const nervure_argument *arguments;
    const nervure_stream_entry *entries;
    const int32_t *architectures; /* of the images, 80 for 8.0 */
    size_t const_bytes;
    int32_t module_count, kernel_count, architecture_count;
    int32_t ptx; /* the architecture of the PTX, or 0 */
};

#endif
