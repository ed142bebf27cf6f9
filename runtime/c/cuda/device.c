/* What contexts share on a device: the driver, code, constants. */
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAJOR = 75, MINOR = 76 };                         /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_* */
enum { MOST_THREADS = 0, DYNAMIC_SHARED = 8 };           /* CU_FUNC_ATTRIBUTE_* */
enum { BAD_IMAGE = 200, NO_BINARY = 209, NEW_PTX = 222 }; /* CUDA_ERROR_* */
enum { SHARED_WITHOUT_ASKING = 48 << 10 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static nervure_shared *all;

bool nervure_shared_alive(const nervure_shared *s) {
    return s->process == getpid();
}

static void list_held(const nervure_program *p, char *text, size_t bytes) {
    const struct nervure_gpu_program *gpu = p->gpu;
    int at = 0;
    text[0] = 0;
    for (int32_t i = 0; i < gpu->architecture_count && (size_t)at < bytes; i++)
        at += snprintf(text + at, bytes - (size_t)at, "%s%d.%d", i > 0 ? ", " : "", (int)gpu->architectures[i] / 10,
                       (int)gpu->architectures[i] % 10);
    if (gpu->ptx > 0 && (size_t)at < bytes)
        snprintf(text + at, bytes - (size_t)at, ", and PTX for %d.%d and newer", (int)gpu->ptx / 10, (int)gpu->ptx % 10);
}

/* Whether the driver should have found an image: one of the same major version, or PTX that it can translate. */
static bool fits(const struct nervure_gpu_program *gpu, int architecture) {
    for (int32_t i = 0; i < gpu->architecture_count; i++)
        if (gpu->architectures[i] / 10 == architecture / 10 && gpu->architectures[i] <= architecture) return true;
    return gpu->ptx > 0 && gpu->ptx <= architecture;
}

static int refused(nervure_shared *s, int code) {
    const struct nervure_gpu_program *gpu = s->program->gpu;
    char name[80] = "a GPU", held[160];
    int major = 0, minor = 0;
    if (code != BAD_IMAGE && code != NO_BINARY && code != NEW_PTX)
        return nervure_driver_fail(&s->cu, code, "loads the model's code");
    (void)s->cu.device_name(name, sizeof name, s->device);
    (void)s->cu.device_attribute(&major, MAJOR, s->device);
    (void)s->cu.device_attribute(&minor, MINOR, s->device);
    list_held(s->program, held, sizeof held);
    if (s->version / 10 < gpu->cuda / 10 && fits(gpu, 10 * major + minor))
        return nervure_fail(NERVURE_OLD_DRIVER,
                            "the Nvidia driver is too old for this model's code: it is for CUDA %d.%d, the code was made by "
                            "CUDA %d.%d",
                            s->version / 1000, s->version % 1000 / 10, (int)gpu->cuda / 1000, (int)gpu->cuda % 1000 / 10);
    return nervure_fail(NERVURE_ARCHITECTURE,
                        "the model holds no code for this GPU: device %d (%s) is of compute capability %d.%d, the model's "
                        "code is for %s: compile it for the device",
                        s->number, name, major, minor, held);
}

static int load_kernel(nervure_shared *s, int32_t index) {
    const nervure_kernel *k = &s->program->gpu->kernels[index];
    int most = 0, code = s->cu.function(&s->functions[index], s->modules[k->module], k->name);
    if (code != 0) return refused(s, code);
    /* asking for an attribute also loads a function that would else be loaded at its first launch, in a recording */
    code = s->cu.function_get(&most, MOST_THREADS, s->functions[index]);
    if (code == 0 && k->shared > SHARED_WITHOUT_ASKING)
        code = s->cu.function_set(s->functions[index], DYNAMIC_SHARED, (int)k->shared);
    if (code != 0) return nervure_driver_fail(&s->cu, code, "prepares the model's kernels");
    if (k->threads > (uint32_t)most)
        return nervure_fail(NERVURE_DEVICE, "the GPU runs at most %d threads of a block of kernel %s, which needs %u", most,
                            k->name, (unsigned)k->threads);
    return NERVURE_OK;
}

static int load_code(nervure_shared *s) {
    const struct nervure_gpu_program *p = s->program->gpu;
    for (int32_t i = 0; i < p->module_count; i++) {
        int code = s->cu.load(&s->modules[i], p->modules[i].image);
        if (code != 0) return s->modules[i] = NULL, refused(s, code);
    }
    int status = NERVURE_OK;
    for (int32_t i = 0; status == NERVURE_OK && i < p->kernel_count; i++) status = load_kernel(s, i);
    return status;
}

static int load_constants(nervure_shared *s) {
    size_t bytes = s->program->gpu->const_bytes;
    if (bytes == 0) return NERVURE_OK;
    int code = s->cu.alloc(&s->constants, bytes);
    if (code != 0) return s->constants = 0, nervure_driver_fail(&s->cu, code, "makes room for the weights");
    code = s->cu.to_device(s->constants, s->program->constants, bytes, NULL);
    if (code == 0) code = s->cu.stream_wait(NULL);
    return code == 0 ? NERVURE_OK : nervure_driver_fail(&s->cu, code, "copies the weights");
}

static int start(nervure_shared *s) {
    int status = nervure_driver_open(&s->cu, s->program->gpu->driver, &s->library, &s->version), count = 0;
    if (status != NERVURE_OK) return status;
    int code = s->cu.init(0);
    if (code == 0) code = s->cu.device_count(&count);
    if (code != 0) return nervure_driver_fail(&s->cu, code, "starts");
    if (s->number < 0 || s->number >= count)
        return nervure_fail(NERVURE_NO_DEVICE, "there is no GPU of number %d: the driver finds %d (CUDA_VISIBLE_DEVICES?)",
                            s->number, count);
    code = s->cu.device_get(&s->device, s->number);
    if (code == 0) s->retained = (code = s->cu.retain(&s->context, s->device)) == 0;
    if (code == 0) code = s->cu.push(s->context);
    if (code != 0) return nervure_driver_fail(&s->cu, code, "opens the device");
    status = load_code(s);
    if (status == NERVURE_OK) status = load_constants(s);
    void *old;
    code = s->cu.pop(&old);
    return status == NERVURE_OK && code != 0 ? nervure_driver_fail(&s->cu, code, "leaves the device") : status;
}

/* Undoes all that was done of `start`. Nobody else knows the record. */
static void stop(nervure_shared *s) {
    bool alive = nervure_shared_alive(s), current = alive && s->retained && s->cu.push(s->context) == 0;
    for (int32_t i = 0; alive && i < s->program->gpu->module_count; i++)
        if (s->modules[i] != NULL) s->cu.unload(s->modules[i]);
    if (alive && s->constants != 0) s->cu.free(s->constants);
    void *old;
    if (current) s->cu.pop(&old);
    if (alive && s->retained) s->cu.release(s->device);
    if (s->library != NULL) dlclose(s->library);
    free(s);
}

static nervure_shared *find(const nervure_program *p, int number) {
    nervure_shared *s = all;
    while (s != NULL && (s->program != p || s->number != number || !nervure_shared_alive(s))) s = s->next;
    return s;
}

int nervure_shared_open(const nervure_program *p, int number, nervure_shared **out) {
    int status = NERVURE_OK;
    pthread_mutex_lock(&lock); /* while the first context loads the code the others wait for it */
    nervure_shared *s = find(p, number);
    if (s == NULL) {
        size_t pointers = (size_t)p->gpu->module_count + (size_t)p->gpu->kernel_count;
        s = calloc(1, sizeof *s + pointers * sizeof(void *));
        if (s == NULL) {
            status = nervure_fail(NERVURE_DEVICE_MEMORY, "out of memory on the host");
        } else {
            s->program = p, s->number = number, s->process = getpid();
            s->modules = (void **)(void *)(s + 1);
            s->functions = s->modules + p->gpu->module_count;
            status = start(s);
            if (status != NERVURE_OK) stop(s), s = NULL;
        }
        if (s != NULL) s->next = all, all = s;
    }
    if (s != NULL) s->users++;
    *out = s;
    pthread_mutex_unlock(&lock);
    return status;
}

void nervure_shared_keep(nervure_shared *s) {
    pthread_mutex_lock(&lock);
    s->users++;
    pthread_mutex_unlock(&lock);
}

void nervure_shared_close(nervure_shared *s) {
    pthread_mutex_lock(&lock);
    if (--s->users == 0) {
        nervure_shared **place = &all;
        while (*place != s) place = &(*place)->next;
        *place = s->next;
        stop(s);
    }
    pthread_mutex_unlock(&lock);
}
