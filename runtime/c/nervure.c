#include "nervure.h"

#include <string.h>

static size_t round_up(size_t bytes) {
    return (bytes + NERVURE_ALIGN - 1) / NERVURE_ALIGN * NERVURE_ALIGN;
}

static int worker_count(int threads) {
    return threads < 1 ? 1 : threads;
}

static size_t base_count(const nervure_program *p) {
    return (size_t)NERVURE_REGION + (size_t)p->region_count + (size_t)p->most_inputs + (size_t)p->most_outputs;
}

size_t nervure_context_bytes(const nervure_program *p, int threads, bool own_regions) {
    size_t helpers = (size_t)worker_count(threads) - 1;
    /* 8 bytes a base, whatever a pointer takes: model.h states the same sizes for every machine */
    size_t bytes = NERVURE_HEADER_BYTES + round_up(8 * base_count(p));
    bytes += round_up(p->params.bytes) + round_up(p->states.bytes) + round_up(p->derived_bytes);
    for (int32_t i = 0; own_regions && i < p->region_count; i++) bytes += round_up(p->region_bytes[i]);
    return bytes + helpers * (NERVURE_WORKER_BYTES + round_up(p->worker_bytes));
}

static void load_image(char *to, const nervure_block *block) {
    if (block->bytes == 0) return;
    if (block->image_bytes > 0) memcpy(to, block->image, block->image_bytes);
    memset(to + block->image_bytes, 0, block->bytes - block->image_bytes);
}

/* Hands out the block behind the header piece by piece. */
static char *take(char **at, size_t bytes) {
    char *piece = *at;
    *at += round_up(bytes);
    return piece;
}

static int place(nervure_context *c, char *memory, size_t bytes, void *const *regions, int threads) {
    const nervure_program *p = c->program;
    size_t needed = nervure_context_bytes(p, threads, false);
    for (int32_t i = 0; i < p->region_count; i++) {
        void *given = regions != NULL ? regions[i] : NULL;
        if ((uintptr_t)given % NERVURE_ALIGN != 0) return NERVURE_ALIGNMENT;
        if (given == NULL) needed += round_up(p->region_bytes[i]);
    }
    if (bytes < needed) return NERVURE_MEMORY;

    char *at = memory + NERVURE_HEADER_BYTES;
    c->base = (char **)(void *)take(&at, 8 * base_count(p));
    c->base[NERVURE_CONST] = (char *)(uintptr_t)p->constants;
    c->base[NERVURE_PARAM] = take(&at, p->params.bytes);
    c->base[NERVURE_STATE] = take(&at, p->states.bytes);
    c->base[NERVURE_DERIVED] = take(&at, p->derived_bytes);
    for (int32_t i = 0; i < p->region_count; i++) {
        char *given = regions != NULL ? regions[i] : NULL;
        c->base[NERVURE_REGION + i] = given != NULL ? given : take(&at, p->region_bytes[i]);
    }
    c->scratch_stride = round_up(p->worker_bytes);
    c->scratch = at;
    return NERVURE_OK;
}

int nervure_create(const nervure_program *p, void *memory, size_t bytes, void *const *regions, int threads,
                   nervure_context **out) {
    if (memory == NULL || out == NULL) return NERVURE_NULL;
    *out = NULL;
    if (threads < 0 || threads > NERVURE_MAX_THREADS) return NERVURE_THREADS;
    if ((uintptr_t)memory % NERVURE_ALIGN != 0) return NERVURE_ALIGNMENT;
    if (bytes < NERVURE_HEADER_BYTES) return NERVURE_MEMORY;
    int lacking = nervure_cpu_lacks(p->features, p->feature_count);
    if (lacking >= 0) return NERVURE_FEATURE + lacking;

    nervure_context *c = memory;
    memset(c, 0, NERVURE_HEADER_BYTES);
    c->program = p;
    c->workers = worker_count(threads);
    atomic_flag_clear(&c->busy);
    int status = place(c, memory, bytes, regions, threads);
    if (status != NERVURE_OK) return status;
    load_image(c->base[NERVURE_PARAM], &p->params);
    load_image(c->base[NERVURE_STATE], &p->states);
    c->stale = true;
    if (c->workers > 1) {
        size_t pool_at = round_up(sizeof *c);
        if (pool_at + nervure_pool_size() > NERVURE_HEADER_BYTES) return NERVURE_MEMORY;
        c->pool = (void *)((char *)memory + pool_at);
        char *workers = c->scratch + (size_t)(c->workers - 1) * c->scratch_stride;
        status = nervure_pool_start(c->pool, c, workers);
        if (status != NERVURE_OK) return status;
    }
    *out = c;
    return NERVURE_OK;
}

static bool acquire(nervure_context *c) {
    return !atomic_flag_test_and_set_explicit(&c->busy, memory_order_acquire);
}

static int release(nervure_context *c, int status) {
    atomic_flag_clear_explicit(&c->busy, memory_order_release);
    return status;
}

int nervure_destroy(nervure_context *c) {
    if (c == NULL) return NERVURE_NULL;
    if (!acquire(c)) return NERVURE_BUSY;
    if (c->pool != NULL) nervure_pool_stop(c->pool);
    return NERVURE_OK; /* stays busy: a later call is refused */
}

int nervure_reset(nervure_context *c) {
    if (c == NULL) return NERVURE_NULL;
    if (!acquire(c)) return NERVURE_BUSY;
    load_image(c->base[NERVURE_STATE], &c->program->states);
    c->stale = true; /* copies may be derived from running statistics */
    return release(c, NERVURE_OK);
}

int nervure_restore(nervure_context *c) {
    if (c == NULL) return NERVURE_NULL;
    if (!acquire(c)) return NERVURE_BUSY;
    load_image(c->base[NERVURE_PARAM], &c->program->params);
    c->stale = true;
    return release(c, NERVURE_OK);
}

static char *slot(const nervure_context *c, const nervure_port *port) {
    return c->base[NERVURE_REGION + port->region] + port->offset;
}

static int bind(const nervure_context *c, const nervure_port *ports, int32_t count, const void *const *given, char **to) {
    for (int32_t i = 0; i < count; i++) {
        const void *buffer = given != NULL ? given[i] : NULL;
        if ((uintptr_t)buffer % ports[i].align != 0) return NERVURE_BUFFER;
        to[i] = buffer != NULL ? (char *)(uintptr_t)buffer : slot(c, &ports[i]);
    }
    return NERVURE_OK;
}

char *nervure_own_scratch(const nervure_context *c, const nervure_phase *phase) {
    return c->base[NERVURE_REGION + phase->region] + phase->scratch;
}

static void walk(nervure_context *c, const nervure_entry *entry, uint64_t *ticks) {
    const nervure_phase *phase = entry->phases;
    uint64_t before = ticks != NULL ? c->clock(c->clock_user) : 0;
    for (int32_t step = 0; step < entry->steps; step++) {
        for (const nervure_phase *end = entry->phases + entry->step_end[step]; phase < end; phase++) {
            if (c->pool != NULL && phase->ranged && phase->tasks > 1)
                nervure_pool_phase(c->pool, phase);
            else
                phase->run(c->base, nervure_own_scratch(c, phase), 0, phase->tasks);
        }
        if (ticks != NULL) {
            uint64_t now = c->clock(c->clock_user);
            ticks[step] += now - before;
            before = now;
        }
    }
}

static int run_entry(nervure_context *c, const nervure_entry *entry, const void *const *inputs, void *const *outputs,
                     uint64_t *ticks) {
    char **first_input = c->base + NERVURE_REGION + c->program->region_count;
    char **first_output = first_input + c->program->most_inputs;
    int status = bind(c, entry->inputs, entry->input_count, inputs, first_input);
    if (status == NERVURE_OK)
        status = bind(c, entry->outputs, entry->output_count, (const void *const *)outputs, first_output);
    if (status != NERVURE_OK) return status;
    if (c->pool != NULL && !nervure_pool_alive(c->pool)) return NERVURE_FORKED;
    walk(c, entry, ticks);
    return NERVURE_OK;
}

int nervure_run(nervure_context *c, int index, const void *const *inputs, void *const *outputs) {
    if (c == NULL) return NERVURE_NULL;
    if (index < 0 || index >= c->program->entry_count) return NERVURE_ENTRY;
    if (!acquire(c)) return NERVURE_BUSY;
    const nervure_program *p = c->program;
    const nervure_entry *entry = &p->entries[index];
    uintptr_t environment = nervure_float_enter(entry->flush);
    c->flush = entry->flush;
    int status = NERVURE_OK;
    if (c->stale && p->refresh >= 0 && index != p->refresh && entry->reads_derived) {
        status = run_entry(c, &p->entries[p->refresh], NULL, NULL, NULL);
        if (status == NERVURE_OK) c->stale = false;
    }
    if (status == NERVURE_OK) status = run_entry(c, entry, inputs, outputs, c->ticks);
    if (status == NERVURE_OK && entry->updates_params) c->stale = true;
    if (status == NERVURE_OK && index == p->refresh) c->stale = false;
    nervure_float_leave(environment);
    return release(c, status);
}

void *nervure_slot(const nervure_context *c, int index, int port, bool output) {
    if (c == NULL || index < 0 || index >= c->program->entry_count) return NULL;
    const nervure_entry *entry = &c->program->entries[index];
    if (port < 0 || port >= (output ? entry->output_count : entry->input_count)) return NULL;
    return slot(c, output ? &entry->outputs[port] : &entry->inputs[port]);
}

void *nervure_param(const nervure_context *c, int index) {
    if (c == NULL || index < 0 || index >= c->program->param_count) return NULL;
    return c->base[NERVURE_PARAM] + c->program->param_offsets[index];
}

void *nervure_state(const nervure_context *c, int index) {
    if (c == NULL || index < 0 || index >= c->program->state_count) return NULL;
    return c->base[NERVURE_STATE] + c->program->state_offsets[index];
}

int nervure_params_changed(nervure_context *c) {
    if (c == NULL) return NERVURE_NULL;
    if (!acquire(c)) return NERVURE_BUSY;
    c->stale = true;
    return release(c, NERVURE_OK);
}

int nervure_export(nervure_context *c, void *buffer, size_t bytes) {
    if (c == NULL || buffer == NULL) return NERVURE_NULL;
    if (bytes < c->program->blob_bytes) return NERVURE_SPACE;
    if (!acquire(c)) return NERVURE_BUSY;
    nervure_write_blob(c, buffer);
    return release(c, NERVURE_OK);
}

int nervure_import(nervure_context *c, const void *buffer, size_t bytes) {
    if (c == NULL || buffer == NULL) return NERVURE_NULL;
    int status = nervure_check_blob(c->program, buffer, bytes);
    if (status != NERVURE_OK) return status;
    if (!acquire(c)) return NERVURE_BUSY;
    nervure_read_blob(c, buffer);
    c->stale = true;
    return release(c, NERVURE_OK);
}

int nervure_profile(nervure_context *c, nervure_clock clock, void *user, uint64_t *ticks) {
    if (c == NULL) return NERVURE_NULL;
    if (!acquire(c)) return NERVURE_BUSY;
    c->clock = clock != NULL ? clock : nervure_nanoseconds;
    c->clock_user = user;
    c->ticks = ticks;
    return release(c, NERVURE_OK);
}

const char *nervure_status_text(const nervure_program *p, int status) {
    static const char *const texts[NERVURE_DRIVER] = {
        "ok",
        "a pointer is NULL that must not be",
        "the memory block is smaller than the context needs",
        "the memory block or a region is not aligned to 64 bytes",
        "the number of threads must lie between 0 and 256",
        "the system could not start a worker thread",
        "the context is in use by another thread, or was destroyed",
        "there is no entry point of that number",
        "an input or output buffer is not aligned to its element size",
        "the worker threads of this context did not come along through fork(); create another one",
        "the buffer is smaller than the exported parameters and states",
        "these are no exported parameters and states, or damaged ones",
        "these are the parameters and states of another model",
    };
    if (status >= 0 && status < NERVURE_DRIVER) return texts[status];
    if (status >= NERVURE_FEATURE && status < NERVURE_FEATURE + p->feature_count)
        return p->features[status - NERVURE_FEATURE].text;
    return "not a status of this library";
}
