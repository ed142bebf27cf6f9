/* Contexts on an Nvidia GPU: the functions of nervure.h for a Program whose kernels are images. */
#include "gpu.h"

#include <dlfcn.h>
#include <string.h>

typedef uint64_t device_pointer;

/* The driver's functions, in the order of NAMES. */
typedef struct {
    int (*init)(unsigned);
    int (*device_get)(int *, int);
    int (*retain)(void **, int);
    int (*release)(int);
    int (*push)(void *);
    int (*pop)(void **);
    int (*alloc)(device_pointer *, size_t);
    int (*free)(device_pointer);
    int (*set)(device_pointer, unsigned char, size_t);
    int (*to_device)(device_pointer, const void *, size_t);
    int (*to_host)(void *, device_pointer, size_t);
    int (*load)(void **, const void *);
    int (*unload)(void *);
    int (*function)(void **, void *, const char *);
    int (*function_set)(void *, int, int);
    int (*synchronize)(void);
    int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
} driver;

static const char *const NAMES[] = {
    "cuInit",         "cuDeviceGet",      "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2",
    "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuMemAlloc_v2",     "cuMemFree_v2",
    "cuMemsetD8_v2",  "cuMemcpyHtoD_v2",  "cuMemcpyDtoH_v2",          "cuModuleLoadData",
    "cuModuleUnload", "cuModuleGetFunction", "cuFuncSetAttribute",    "cuCtxSynchronize",
    "cuLaunchKernel",
};
enum { DYNAMIC_SHARED = 8, MOST_ARGUMENTS = 64 };

typedef struct {
    nervure_context host;
    driver cu;
    void *library, *context;
    int device;
    void **modules, **functions;
    device_pointer *at; /* of each base */
} gpu_context;

static size_t round_up(size_t bytes) {
    return (bytes + NERVURE_ALIGN - 1) / NERVURE_ALIGN * NERVURE_ALIGN;
}

static size_t base_count(const nervure_program *p) {
    return (size_t)NERVURE_REGION + (size_t)p->region_count + (size_t)p->most_inputs + (size_t)p->most_outputs;
}

static size_t table_bytes(const nervure_program *p) {
    size_t pointers = 2 * base_count(p) + (size_t)p->gpu->module_count + (size_t)p->gpu->kernel_count;
    return round_up(8 * pointers);
}

size_t nervure_context_bytes(const nervure_program *p, int threads, bool own_regions) {
    (void)threads, (void)own_regions;
    return NERVURE_HEADER_BYTES + table_bytes(p) + round_up(p->params.bytes) + round_up(p->states.bytes);
}

static void load_image(char *to, const nervure_block *block) {
    if (block->bytes == 0) return;
    if (block->image_bytes > 0) memcpy(to, block->image, block->image_bytes);
    memset(to + block->image_bytes, 0, block->bytes - block->image_bytes);
}

static int open_driver(gpu_context *g) {
    g->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (g->library == NULL) return NERVURE_DRIVER;
    void **to = (void **)&g->cu;
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if ((to[i] = dlsym(g->library, NAMES[i])) == NULL) return NERVURE_OLD_DRIVER;
    return NERVURE_OK;
}

static int fill(gpu_context *g, int base, size_t bytes, const char *image, size_t image_bytes) {
    if (bytes == 0) return NERVURE_OK;
    if (g->cu.alloc(&g->at[base], bytes) != 0) return NERVURE_DEVICE_MEMORY;
    if (image_bytes > 0 && g->cu.to_device(g->at[base], image, image_bytes) != 0) return NERVURE_DEVICE;
    if (bytes > image_bytes && g->cu.set(g->at[base] + image_bytes, 0, bytes - image_bytes) != 0) return NERVURE_DEVICE;
    return NERVURE_OK;
}

static int load_kernels(gpu_context *g) {
    const struct nervure_gpu_program *p = g->host.program->gpu;
    for (int32_t i = 0; i < p->module_count; i++)
        if (g->cu.load(&g->modules[i], p->modules[i].image) != 0) return NERVURE_ARCHITECTURE;
    for (int32_t i = 0; i < p->kernel_count; i++) {
        const nervure_kernel *k = &p->kernels[i];
        if (g->cu.function(&g->functions[i], g->modules[k->module], k->name) != 0) return NERVURE_DEVICE;
        if (k->shared > 48 * 1024 && g->cu.function_set(g->functions[i], DYNAMIC_SHARED, (int)k->shared) != 0)
            return NERVURE_DEVICE;
    }
    return NERVURE_OK;
}

static int start(gpu_context *g) {
    const nervure_program *p = g->host.program;
    int status = open_driver(g);
    if (status != NERVURE_OK) return status;
    if (g->cu.init(0) != 0 || g->cu.device_get(&g->device, 0) != 0) return NERVURE_NO_DEVICE;
    if (g->cu.retain(&g->context, g->device) != 0 || g->cu.push(g->context) != 0) return NERVURE_DEVICE;
    status = load_kernels(g);
    if (status == NERVURE_OK) status = fill(g, NERVURE_CONST, p->gpu->const_bytes, p->constants, p->gpu->const_bytes);
    if (status == NERVURE_OK)
        status = fill(g, NERVURE_PARAM, p->params.bytes, g->host.base[NERVURE_PARAM], p->params.bytes);
    if (status == NERVURE_OK)
        status = fill(g, NERVURE_STATE, p->states.bytes, g->host.base[NERVURE_STATE], p->states.bytes);
    if (status == NERVURE_OK) status = fill(g, NERVURE_DERIVED, p->derived_bytes, NULL, 0);
    for (int32_t i = 0; status == NERVURE_OK && i < p->region_count; i++)
        status = fill(g, NERVURE_REGION + i, p->region_bytes[i], NULL, 0);
    void *old;
    g->cu.pop(&old);
    return status;
}

int nervure_create(const nervure_program *p, void *memory, size_t bytes, void *const *regions, int threads,
                   nervure_context **out) {
    (void)regions;
    if (memory == NULL || out == NULL) return NERVURE_NULL;
    *out = NULL;
    if ((uintptr_t)memory % NERVURE_ALIGN != 0) return NERVURE_ALIGNMENT;
    if (bytes < nervure_context_bytes(p, threads, true)) return NERVURE_MEMORY;
    gpu_context *g = memory;
    memset(memory, 0, NERVURE_HEADER_BYTES + table_bytes(p));
    g->host.program = p;
    g->host.workers = 1;
    atomic_flag_clear(&g->host.busy);
    char *at = (char *)memory + NERVURE_HEADER_BYTES;
    g->host.base = (char **)(void *)at;
    g->at = (device_pointer *)(void *)(at + 8 * base_count(p));
    g->modules = (void **)(g->at + base_count(p));
    g->functions = g->modules + p->gpu->module_count;
    at += table_bytes(p);
    g->host.base[NERVURE_PARAM] = at;
    g->host.base[NERVURE_STATE] = at + round_up(p->params.bytes);
    load_image(g->host.base[NERVURE_PARAM], &p->params);
    load_image(g->host.base[NERVURE_STATE], &p->states);
    g->host.stale = true;
    int status = start(g);
    if (status == NERVURE_OK) *out = &g->host;
    return status;
}

static int walk(gpu_context *g, int index) {
    const struct nervure_gpu_program *p = g->host.program->gpu;
    const nervure_stream_entry *entry = &p->entries[index];
    int32_t steps = g->host.program->entries[index].steps;
    int32_t end = steps > 0 ? entry->step_end[steps - 1] : 0;
    for (const nervure_launch *l = entry->launches; l < entry->launches + end; l++) {
        const nervure_kernel *k = &p->kernels[l->kernel];
        device_pointer values[MOST_ARGUMENTS];
        void *pointers[MOST_ARGUMENTS];
        for (int32_t i = 0; i < l->count; i++) {
            const nervure_argument *a = &p->arguments[l->first + i];
            values[i] = g->at[a->base] + a->offset;
            pointers[i] = &values[i];
        }
        void *f = g->functions[l->kernel];
        if (g->cu.launch(f, k->blocks, 1, 1, k->threads, 1, 1, k->shared, NULL, pointers, NULL) != 0) return NERVURE_DEVICE;
    }
    return NERVURE_OK;
}

static int run_entry(gpu_context *g, int index, const void *const *inputs, void *const *outputs) {
    const nervure_program *p = g->host.program;
    const nervure_entry *entry = &p->entries[index];
    device_pointer *in = g->at + NERVURE_REGION + p->region_count, *out = in + p->most_inputs;
    for (int32_t i = 0; i < entry->input_count; i++) {
        const nervure_port *port = &entry->inputs[i];
        in[i] = g->at[NERVURE_REGION + port->region] + port->offset;
        if (g->cu.to_device(in[i], inputs[i], port->bytes) != 0) return NERVURE_DEVICE;
    }
    for (int32_t i = 0; i < entry->output_count; i++)
        out[i] = g->at[NERVURE_REGION + entry->outputs[i].region] + entry->outputs[i].offset;
    int status = walk(g, index);
    if (status == NERVURE_OK && g->cu.synchronize() != 0) status = NERVURE_DEVICE;
    for (int32_t i = 0; status == NERVURE_OK && i < entry->output_count; i++)
        if (g->cu.to_host(outputs[i], out[i], entry->outputs[i].bytes) != 0) status = NERVURE_DEVICE;
    return status;
}

int nervure_run(nervure_context *c, int index, const void *const *inputs, void *const *outputs) {
    if (c == NULL) return NERVURE_NULL;
    const nervure_program *p = c->program;
    if (index < 0 || index >= p->entry_count) return NERVURE_ENTRY;
    if (atomic_flag_test_and_set_explicit(&c->busy, memory_order_acquire)) return NERVURE_BUSY;
    gpu_context *g = (gpu_context *)c;
    const nervure_entry *entry = &p->entries[index];
    int status = g->cu.push(g->context) == 0 ? NERVURE_OK : NERVURE_DEVICE;
    if (status == NERVURE_OK && c->stale && p->refresh >= 0 && index != p->refresh && entry->reads_derived) {
        status = run_entry(g, p->refresh, NULL, NULL);
        if (status == NERVURE_OK) c->stale = false;
    }
    if (status == NERVURE_OK) status = run_entry(g, index, inputs, outputs);
    if (status == NERVURE_OK && entry->updates_params) c->stale = true;
    if (status == NERVURE_OK && index == p->refresh) c->stale = false;
    void *old;
    g->cu.pop(&old);
    atomic_flag_clear_explicit(&c->busy, memory_order_release);
    return status;
}

int nervure_destroy(nervure_context *c) {
    if (c == NULL) return NERVURE_NULL;
    if (atomic_flag_test_and_set_explicit(&c->busy, memory_order_acquire)) return NERVURE_BUSY;
    gpu_context *g = (gpu_context *)c;
    const nervure_program *p = c->program;
    g->cu.push(g->context);
    for (int32_t i = 0; i < NERVURE_REGION + p->region_count; i++)
        if (g->at[i] != 0) g->cu.free(g->at[i]);
    for (int32_t i = 0; i < p->gpu->module_count; i++) g->cu.unload(g->modules[i]);
    void *old;
    g->cu.pop(&old);
    g->cu.release(g->device);
    dlclose(g->library);
    return NERVURE_OK;
}

int nervure_reset(nervure_context *c) { return c == NULL ? NERVURE_NULL : NERVURE_OK; }
int nervure_restore(nervure_context *c) { return c == NULL ? NERVURE_NULL : NERVURE_OK; }
void *nervure_slot(const nervure_context *c, int i, int j, bool o) { (void)c, (void)i, (void)j, (void)o; return NULL; }
void *nervure_param(const nervure_context *c, int i) { return c->base[NERVURE_PARAM] + c->program->param_offsets[i]; }
void *nervure_state(const nervure_context *c, int i) { return c->base[NERVURE_STATE] + c->program->state_offsets[i]; }
int nervure_params_changed(nervure_context *c) { return c == NULL ? NERVURE_NULL : NERVURE_OK; }
int nervure_export(nervure_context *c, void *b, size_t n) { (void)c, (void)b, (void)n; return NERVURE_NULL; }
int nervure_import(nervure_context *c, const void *b, size_t n) { (void)c, (void)b, (void)n; return NERVURE_NULL; }
int nervure_profile(nervure_context *c, nervure_clock k, void *u, uint64_t *t) { (void)c, (void)k, (void)u, (void)t; return 0; }

const char *nervure_status_text(const nervure_program *p, int status) {
    (void)p;
    return status == 0 ? "ok" : "not ok";
}
