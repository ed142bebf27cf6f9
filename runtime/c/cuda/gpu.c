/* Contexts on an Nvidia GPU: the functions of nervure.h for a Program whose kernels are images.
 *
 * A context's memory holds tables and a copy of the parameters and states, which are the device's: `fresh` says whether
 * the copy is what the device has. */
#include "driver.h"

#include <string.h>

enum { NON_BLOCKING = 1, NO_TIMING = 2, FOR_EVERY_CONTEXT = 1, DEVICE_ALIGN = 256, MOST_GIVEN = 64 };

_Static_assert(sizeof(gpu_context) <= NERVURE_HEADER_BYTES, "the header of a context is too small");
_Static_assert(sizeof(void *) == 8, "a GPU's host has addresses of 64 bits");

/* Hands out the block behind the header piece by piece. */
static void *take(char **at, size_t bytes) {
    char *piece = *at;
    *at += nervure_round_up(bytes);
    return piece;
}

static size_t table_bytes(const nervure_program *p) {
    const struct nervure_gpu_program *gpu = p->gpu;
    return 2 * nervure_round_up(8 * nervure_base_count(p)) + 2 * nervure_round_up(8 * (size_t)gpu->most_arguments) +
           nervure_round_up(8 * ((size_t)gpu->most_steps + 1)) + nervure_round_up(8 * gpu->words);
}

size_t nervure_context_bytes(const nervure_program *p, int threads, bool own_regions) {
    (void)threads, (void)own_regions;
    return NERVURE_HEADER_BYTES + table_bytes(p) + nervure_round_up(p->params.bytes) + nervure_round_up(p->states.bytes);
}

size_t nervure_device_bytes(const nervure_program *p) {
    size_t bytes = p->params.bytes + p->states.bytes + p->derived_bytes;
    for (int32_t i = 0; i < p->region_count; i++) bytes += p->region_bytes[i];
    return bytes;
}

static void lay_out(gpu_context *g, char *memory) {
    const nervure_program *p = g->host.program;
    char *at = memory + NERVURE_HEADER_BYTES;
    memset(at, 0, table_bytes(p));
    g->host.base = take(&at, 8 * nervure_base_count(p));
    g->at = take(&at, 8 * nervure_base_count(p));
    g->values = take(&at, 8 * (size_t)p->gpu->most_arguments);
    g->pointers = take(&at, 8 * (size_t)p->gpu->most_arguments);
    g->events = take(&at, 8 * ((size_t)p->gpu->most_steps + 1));
    g->words = take(&at, 8 * p->gpu->words);
    g->host.base[NERVURE_PARAM] = take(&at, p->params.bytes);
    g->host.base[NERVURE_STATE] = take(&at, p->states.bytes);
}

static const nervure_block *block_of(const gpu_context *g, int base) {
    return base == NERVURE_PARAM ? &g->host.program->params : &g->host.program->states;
}

/* -- memory of the device ------------------------------------------------------------------------------------------- */

static int make_room(gpu_context *g, device_pointer *to, size_t bytes) {
    if (bytes == 0) return NERVURE_OK;
    int code = g->shared->cu.alloc(to, bytes);
    if (code == 0) return NERVURE_OK;
    *to = 0;
    return nervure_driver_fail(&g->shared->cu, code, "makes room for the model");
}

/* A block of the device as the library has it; what the context's memory holds of it counts no longer. */
static int load_block(gpu_context *g, int base) {
    const nervure_block *block = block_of(g, base);
    if (block->bytes == 0) return NERVURE_OK;
    int code = 0;
    g->fresh[base - NERVURE_PARAM] = false;
    if (block->image_bytes > 0) code = g->shared->cu.to_device(g->at[base], block->image, block->image_bytes, g->stream);
    if (code == 0 && block->bytes > block->image_bytes)
        code = g->shared->cu.set(g->at[base] + block->image_bytes, 0, block->bytes - block->image_bytes, g->stream);
    if (code == 0) code = g->shared->cu.stream_wait(g->stream);
    return code == 0 ? NERVURE_OK : nervure_driver_fail(&g->shared->cu, code, "copies parameters and states");
}

/* The context's memory to the device, or back. */
static int copy_block(gpu_context *g, int base, bool to_host) {
    size_t bytes = block_of(g, base)->bytes;
    bool *fresh = &g->fresh[base - NERVURE_PARAM];
    if (bytes == 0) *fresh = true;
    if (bytes == 0 || (to_host && *fresh)) return NERVURE_OK;
    char *here = g->host.base[base];
    int code = to_host ? g->shared->cu.to_host(here, g->at[base], bytes, g->stream)
                       : g->shared->cu.to_device(g->at[base], here, bytes, g->stream);
    if (code == 0) code = g->shared->cu.stream_wait(g->stream);
    *fresh = code == 0;
    return code == 0 ? NERVURE_OK : nervure_driver_fail(&g->shared->cu, code, "copies parameters and states");
}

static int fetch(gpu_context *g) {
    int status = nervure_settle(g);
    if (status == NERVURE_OK) status = copy_block(g, NERVURE_PARAM, true);
    return status == NERVURE_OK ? copy_block(g, NERVURE_STATE, true) : status;
}

/* -- creation ------------------------------------------------------------------------------------------------------- */

static int allocate(gpu_context *g, void *const *regions) {
    const nervure_program *p = g->host.program;
    size_t fixed[NERVURE_REGION] = {0, p->params.bytes, p->states.bytes, p->derived_bytes}, staged = 0;
    int status = NERVURE_OK;
    for (int i = NERVURE_PARAM; status == NERVURE_OK && i < NERVURE_REGION; i++) status = make_room(g, &g->at[i], fixed[i]);
    for (int32_t i = 0; status == NERVURE_OK && i < p->region_count; i++) {
        void *given = regions != NULL && i < MOST_GIVEN ? regions[i] : NULL;
        if (given == NULL) status = make_room(g, &g->at[NERVURE_REGION + i], p->region_bytes[i]);
        else g->at[NERVURE_REGION + i] = (device_pointer)(uintptr_t)given, g->given |= UINT64_C(1) << i;
    }
    for (int32_t i = 0; i < p->entry_count; i++) {
        size_t bytes = nervure_staged(&p->entries[i], p->entries[i].output_count, true);
        if (bytes > staged) staged = bytes;
    }
    if (status != NERVURE_OK || staged == 0) return status;
    void *memory = NULL;
    int code = g->shared->cu.host_alloc(&memory, staged, FOR_EVERY_CONTEXT);
    if (code != 0) return nervure_driver_fail(&g->shared->cu, code, "makes room for inputs and outputs on the host");
    g->staging = memory;
    return NERVURE_OK;
}

static int start(gpu_context *g, void *const *regions) {
    const nervure_cuda *cu = &g->shared->cu;
    int code = cu->stream_create(&g->stream, NON_BLOCKING);
    if (code != 0) return g->stream = NULL, nervure_driver_fail(cu, code, "makes a stream");
    code = cu->event_create(&g->done, NO_TIMING);
    if (code != 0) return g->done = NULL, nervure_driver_fail(cu, code, "makes an event");
    int status = allocate(g, regions);
    if (status == NERVURE_OK) status = load_block(g, NERVURE_PARAM);
    return status == NERVURE_OK ? load_block(g, NERVURE_STATE) : status;
}

/* Gives back all that the context has on the device, whatever of it there is. */
static void stop(gpu_context *g) {
    const nervure_program *p = g->host.program;
    const nervure_cuda *cu = &g->shared->cu;
    for (int32_t i = 0; i < 2 * p->entry_count; i++) nervure_forget(g, nervure_recording_of(g, i / 2, i % 2));
    for (int32_t i = 0; i <= p->gpu->most_steps; i++)
        if (g->events[i] != NULL) cu->event_destroy(g->events[i]);
    for (int32_t i = NERVURE_PARAM; i < nervure_first_port(p); i++) {
        int32_t region = i - NERVURE_REGION;
        bool given = region >= 0 && region < MOST_GIVEN && (g->given >> region & 1) != 0;
        if (g->at[i] != 0 && !given) cu->free(g->at[i]);
    }
    if (g->staging != NULL) cu->host_free(g->staging);
    if (g->done != NULL) cu->event_destroy(g->done);
    if (g->stream != NULL) cu->stream_destroy(g->stream);
}

int nervure_create_on(const nervure_program *p, void *memory, size_t bytes, void *const *regions, int threads, int device,
                      nervure_context **out) {
    if (memory == NULL || out == NULL) return NERVURE_NULL;
    *out = NULL;
    if (threads < 0 || threads > NERVURE_MAX_THREADS) return NERVURE_THREADS;
    if ((uintptr_t)memory % NERVURE_ALIGN != 0) return NERVURE_ALIGNMENT;
    for (int32_t i = 0; regions != NULL && i < p->region_count; i++)
        if ((uintptr_t)regions[i] % DEVICE_ALIGN != 0) return NERVURE_ALIGNMENT;
    if (bytes < nervure_context_bytes(p, threads, true)) return NERVURE_MEMORY;
    gpu_context *g = memory;
    memset(memory, 0, NERVURE_HEADER_BYTES);
    g->host.program = p;
    g->host.workers = 1;
    g->host.stale = true;
    atomic_flag_clear(&g->host.busy);
    lay_out(g, memory);
    int status = nervure_shared_open(p, device, &g->shared);
    if (status != NERVURE_OK) return status;
    g->at[NERVURE_CONST] = g->shared->constants;
    status = nervure_enter(g);
    if (status == NERVURE_OK) {
        status = start(g, regions);
        if (status != NERVURE_OK) stop(g);
        int left = nervure_leave(g, status);
        if (status == NERVURE_OK && left != NERVURE_OK) stop(g), status = left;
    }
    if (status != NERVURE_OK) return nervure_shared_close(g->shared), status;
    *out = &g->host;
    return NERVURE_OK;
}

int nervure_create(const nervure_program *p, void *memory, size_t bytes, void *const *regions, int threads,
                   nervure_context **out) {
    return nervure_create_on(p, memory, bytes, regions, threads, 0, out);
}

int nervure_destroy(nervure_context *c) {
    if (c == NULL) return NERVURE_NULL;
    gpu_context *g = nervure_gpu(c);
    int status = nervure_enter(g);
    if (status == NERVURE_BUSY) return status;
    if (status != NERVURE_FORKED) {
        void *old;
        (void)nervure_settle(g);
        stop(g);
        if (status == NERVURE_OK) g->shared->cu.pop(&old);
        nervure_shared_close(g->shared);
    }
    (void)atomic_flag_test_and_set(&c->busy); /* stays busy: a later call is refused */
    return NERVURE_OK;
}

/* -- parameters and states ------------------------------------------------------------------------------------------ */

static int load_anew(nervure_context *c, int base) {
    if (c == NULL) return NERVURE_NULL;
    gpu_context *g = nervure_gpu(c);
    int status = nervure_enter(g);
    if (status != NERVURE_OK) return status;
    status = nervure_settle(g);
    if (status == NERVURE_OK) status = load_block(g, base);
    c->stale = true; /* copies may be derived from running statistics, too */
    return nervure_leave(g, status);
}

int nervure_reset(nervure_context *c) {
    return load_anew(c, NERVURE_STATE);
}

int nervure_restore(nervure_context *c) {
    return load_anew(c, NERVURE_PARAM);
}

int nervure_fetch(nervure_context *c) {
    if (c == NULL) return NERVURE_NULL;
    gpu_context *g = nervure_gpu(c);
    if (g->fresh[0] && g->fresh[1]) return NERVURE_OK;
    int status = nervure_enter(g);
    return status == NERVURE_OK ? nervure_leave(g, fetch(g)) : status;
}

void *nervure_param(const nervure_context *c, int index) {
    if (c == NULL || index < 0 || index >= c->program->param_count) return NULL;
    if (nervure_fetch(&nervure_gpu(c)->host) != NERVURE_OK) return NULL;
    return c->base[NERVURE_PARAM] + c->program->param_offsets[index];
}

void *nervure_state(const nervure_context *c, int index) {
    if (c == NULL || index < 0 || index >= c->program->state_count) return NULL;
    if (nervure_fetch(&nervure_gpu(c)->host) != NERVURE_OK) return NULL;
    return c->base[NERVURE_STATE] + c->program->state_offsets[index];
}

/* What was read before a run changed it on the device is not sent: it would undo that. */
static int send(gpu_context *g) {
    const nervure_program *p = g->host.program;
    bool known = (p->params.bytes > 0 && g->fresh[0]) || (p->states.bytes > 0 && g->fresh[1]);
    if (!known && p->params.bytes + p->states.bytes > 0) return NERVURE_OLD_COPY;
    int status = nervure_settle(g);
    if (status == NERVURE_OK && g->fresh[0]) status = copy_block(g, NERVURE_PARAM, false);
    if (status == NERVURE_OK && g->fresh[1]) status = copy_block(g, NERVURE_STATE, false);
    g->host.stale = true;
    return status;
}

int nervure_params_changed(nervure_context *c) {
    if (c == NULL) return NERVURE_NULL;
    gpu_context *g = nervure_gpu(c);
    int status = nervure_enter(g);
    return status == NERVURE_OK ? nervure_leave(g, send(g)) : status;
}

int nervure_export(nervure_context *c, void *buffer, size_t bytes) {
    if (c == NULL || buffer == NULL) return NERVURE_NULL;
    if (bytes < c->program->blob_bytes) return NERVURE_SPACE;
    gpu_context *g = nervure_gpu(c);
    int status = nervure_enter(g);
    if (status != NERVURE_OK) return status;
    status = fetch(g);
    if (status == NERVURE_OK) nervure_write_blob(c, buffer);
    return nervure_leave(g, status);
}

int nervure_import(nervure_context *c, const void *buffer, size_t bytes) {
    if (c == NULL || buffer == NULL) return NERVURE_NULL;
    int status = nervure_check_blob(c->program, buffer, bytes);
    if (status != NERVURE_OK) return status;
    gpu_context *g = nervure_gpu(c);
    status = nervure_enter(g);
    if (status != NERVURE_OK) return status;
    nervure_read_blob(c, buffer);
    g->fresh[0] = g->fresh[1] = true;
    status = c->program->params.bytes + c->program->states.bytes > 0 ? send(g) : NERVURE_OK;
    return nervure_leave(g, status);
}

/* -- the rest ------------------------------------------------------------------------------------------------------- */

static const nervure_port *port_of(const nervure_context *c, int index, int port, bool output) {
    if (c == NULL || index < 0 || index >= c->program->entry_count) return NULL;
    const nervure_entry *entry = &c->program->entries[index];
    if (port < 0 || port >= (output ? entry->output_count : entry->input_count)) return NULL;
    return output ? &entry->outputs[port] : &entry->inputs[port];
}

void *nervure_slot(const nervure_context *c, int index, int port, bool output) {
    if (port_of(c, index, port, output) == NULL) return NULL;
    const gpu_context *g = nervure_gpu(c);
    return g->staging != NULL ? g->staging + nervure_staged(&c->program->entries[index], port, output) : NULL;
}

void *nervure_device_slot(const nervure_context *c, int index, int port, bool output) {
    const nervure_port *found = port_of(c, index, port, output);
    if (found == NULL) return NULL;
    device_pointer region = nervure_gpu(c)->at[NERVURE_REGION + found->region];
    return region != 0 ? (void *)(uintptr_t)(region + found->offset) : NULL;
}

int nervure_device(const nervure_context *c) {
    return c != NULL ? nervure_gpu(c)->shared->number : -1;
}

void *nervure_stream(const nervure_context *c) {
    return c != NULL ? nervure_gpu(c)->stream : NULL;
}

int nervure_profile(nervure_context *c, nervure_clock clock, void *user, uint64_t *ticks) {
    (void)clock, (void)user; /* the device's events measure */
    if (c == NULL) return NERVURE_NULL;
    gpu_context *g = nervure_gpu(c);
    int status = nervure_enter(g);
    if (status != NERVURE_OK) return status;
    c->ticks = ticks;
    return nervure_leave(g, NERVURE_OK);
}
