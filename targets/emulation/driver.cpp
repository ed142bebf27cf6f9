/* Stands in for libcuda.so.1: the functions that runtime/c/cuda/gpu.c asks for, on this CPU's memory. A module is a
 * library of emulation/__init__.py's compile_kernels; a launch runs its function before it returns. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int result;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_BINARY = 209, NOT_FOUND = 500, LAUNCH_FAILED = 719 };
typedef int (*kernel)(void **arguments, unsigned blocks, unsigned threads, unsigned shared);
#define API extern "C" __attribute__((visibility("default"))) result

API cuInit(unsigned flags) { return flags == 0 ? OK : INVALID; }
API cuDeviceGet(int *device, int number) { *device = number; return number == 0 ? OK : INVALID; }
API cuDevicePrimaryCtxRetain(void **context, int) { *context = (void *)1; return OK; }
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxPushCurrent_v2(void *) { return OK; }
API cuCtxPopCurrent_v2(void **context) { *context = (void *)1; return OK; }
API cuCtxSynchronize() { return OK; }

API cuMemAlloc_v2(uint64_t *to, size_t bytes) {
    void *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    *to = (uint64_t)(uintptr_t)memory;
    return memory != NULL ? OK : OUT_OF_MEMORY;
}
API cuMemFree_v2(uint64_t at) { free((void *)(uintptr_t)at); return OK; }
API cuMemsetD8_v2(uint64_t at, unsigned char value, size_t bytes) { memset((void *)(uintptr_t)at, value, bytes); return OK; }
API cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) { memcpy((void *)(uintptr_t)to, from, bytes); return OK; }
API cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) { memcpy(to, (void *)(uintptr_t)from, bytes); return OK; }

/* The bytes of an ELF file end where its table of sections does. */
static size_t elf_bytes(const unsigned char *image) {
    uint64_t sections;
    uint16_t each, count;
    memcpy(&sections, image + 40, 8), memcpy(&each, image + 58, 2), memcpy(&count, image + 60, 2);
    return (size_t)sections + (size_t)each * count;
}

struct loaded { void *library; int file; };

API cuModuleLoadData(void **module, const void *image) {
    if (memcmp(image, "\177ELF", 4) != 0) return NO_BINARY;
    int file = memfd_create("kernels", 0);
    size_t bytes = elf_bytes((const unsigned char *)image), at = 0;
    while (at < bytes) {
        ssize_t written = write(file, (const char *)image + at, bytes - at);
        if (written <= 0) return OUT_OF_MEMORY;
        at += (size_t)written;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) fprintf(stderr, "%s\n", dlerror()), close(file);
    if (library == NULL) return NO_BINARY;
    loaded *held = (loaded *)malloc(sizeof(loaded));
    if (held == NULL) return OUT_OF_MEMORY;
    *held = loaded{library, file}; /* open as long: dlopen knows libraries by the name, which is its number */
    *module = held;
    return OK;
}
API cuModuleUnload(void *module) {
    loaded *held = (loaded *)module;
    int status = dlclose(held->library);
    close(held->file);
    free(held);
    return status == 0 ? OK : INVALID;
}
API cuModuleGetFunction(void **function, void *module, const char *name) {
    char symbol[512];
    snprintf(symbol, sizeof symbol, "%s_launch", name);
    *function = dlsym(((loaded *)module)->library, symbol);
    return *function != NULL ? OK : NOT_FOUND;
}
API cuFuncSetAttribute(void *, int, int) { return OK; }
API cuLaunchKernel(void *function, unsigned x, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned shared,
                   void *, void **arguments, void **) {
    return ((kernel)function)(arguments, x, threads, shared) == 0 ? OK : LAUNCH_FAILED;
}
