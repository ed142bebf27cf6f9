/* Runs: with arrays of the host, and on a caller's stream with arrays of the device. */
#include "driver.h"

#include <string.h>

enum { DIRECT = 64 << 10 }; /* bytes from which on it pays to ask whether the driver knows an array of the host */
enum { MEMORY_TYPE = 2, HOST_MEMORY = 1 };
enum { LEGACY_STREAM = 1 };

int nervure_enter(gpu_context *g) {
    if (atomic_flag_test_and_set_explicit(&g->host.busy, memory_order_acquire)) return NERVURE_BUSY;
    int status = NERVURE_OK, code = 0;
    if (!nervure_shared_alive(g->shared))
        status = NERVURE_FORKED;
    else if ((code = g->shared->cu.push(g->shared->context)) != 0)
        status = nervure_driver_fail(&g->shared->cu, code, "opens the device");
    if (status != NERVURE_OK) atomic_flag_clear_explicit(&g->host.busy, memory_order_release);
    return status;
}

int nervure_leave(gpu_context *g, int status) {
    void *old;
    int code = g->shared->cu.pop(&old);
    if (status == NERVURE_OK && code != 0) status = nervure_driver_fail(&g->shared->cu, code, "leaves the device");
    atomic_flag_clear_explicit(&g->host.busy, memory_order_release);
    return status;
}

int nervure_settle(gpu_context *g) {
    const nervure_cuda *cu = &g->shared->cu;
    int code = g->pending ? cu->event_wait(g->done) : 0;
    if (code == 0) code = cu->stream_wait(g->stream);
    if (code != 0) return nervure_driver_fail(cu, code, "runs the model");
    g->pending = false;
    return NERVURE_OK;
}

/* What is enqueued on `stream` from now on comes after the last run. */
static int order(gpu_context *g, void *stream) {
    if (!g->pending || g->last == stream) return NERVURE_OK;
    int code = g->shared->cu.stream_after(stream, g->done, 0);
    return code == 0 ? NERVURE_OK : nervure_driver_fail(&g->shared->cu, code, "waits for an earlier run");
}

static int mark(gpu_context *g, void *stream) {
    int code = g->shared->cu.event_record(g->done, stream);
    g->pending = code == 0;
    g->last = stream;
    return code == 0 ? NERVURE_OK : nervure_driver_fail(&g->shared->cu, code, "marks the end of a run");
}

static device_pointer slot(const gpu_context *g, const nervure_port *port) {
    device_pointer region = g->at[NERVURE_REGION + port->region];
    return region != 0 ? region + port->offset : 0;
}

/* -- profiles: launches one by one, with an event behind each step -------------------------------------------------- */

static int make_events(gpu_context *g, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        int code = g->events[i] == NULL ? g->shared->cu.event_create(&g->events[i], 0) : 0;
        if (code != 0) return g->events[i] = NULL, nervure_driver_fail(&g->shared->cu, code, "makes an event");
    }
    return NERVURE_OK;
}

static int add_times(gpu_context *g, int32_t steps) {
    const nervure_cuda *cu = &g->shared->cu;
    int code = cu->event_wait(g->events[steps]);
    for (int32_t i = 0; code == 0 && i < steps; i++) {
        float milliseconds = 0;
        code = cu->event_elapsed(&milliseconds, g->events[i], g->events[i + 1]);
        if (code == 0) g->host.ticks[i] += (uint64_t)((double)milliseconds * 1e6 + 0.5);
    }
    return code == 0 ? NERVURE_OK : nervure_driver_fail(cu, code, "times the steps");
}

static int play_timed(gpu_context *g, int entry, bool host, void *stream) {
    const nervure_cuda *cu = &g->shared->cu;
    int32_t steps = g->host.program->entries[entry].steps;
    int status = make_events(g, steps + 1);
    if (status == NERVURE_OK && host) status = nervure_copy_ports(g, entry, false, stream, NULL);
    for (int32_t i = 0; status == NERVURE_OK && i <= steps; i++) {
        int code = cu->event_record(g->events[i], stream);
        if (code != 0) status = nervure_driver_fail(cu, code, "marks a step");
        else if (i < steps) status = nervure_walk(g, entry, i, i + 1, stream, NULL);
    }
    if (status == NERVURE_OK && host) status = nervure_copy_ports(g, entry, true, stream, NULL);
    return status == NERVURE_OK ? add_times(g, steps) : status;
}

/* -- what all runs do ----------------------------------------------------------------------------------------------- */

static int refresh(gpu_context *g, int index, void *stream) {
    const nervure_program *p = g->host.program;
    if (!g->host.stale || p->refresh < 0 || index == p->refresh || !p->entries[index].reads_derived) return NERVURE_OK;
    int status = nervure_play(g, p->refresh, false, stream);
    if (status == NERVURE_OK) g->host.stale = false;
    return status;
}

static int play(gpu_context *g, int index, bool host, void *stream) {
    const nervure_program *p = g->host.program;
    const nervure_entry *e = &p->entries[index];
    int status = g->host.ticks != NULL ? play_timed(g, index, host, stream) : nervure_play(g, index, host, stream);
    /* even a run that failed may have changed them */
    if (e->updates_params) g->host.stale = true, g->fresh[0] = false;
    if (p->gpu->entries[index].touches_states) g->fresh[1] = false;
    if (status == NERVURE_OK && index == p->refresh) g->host.stale = false;
    return status;
}

/* -- arrays of the host --------------------------------------------------------------------------------------------- */

static bool reached_fast(const gpu_context *g, const void *at) {
    unsigned type = 0;
    int code = g->shared->cu.pointer_attribute(&type, MEMORY_TYPE, (device_pointer)(uintptr_t)at);
    return code == 0 && type == HOST_MEMORY;
}

/* Where the device reads or writes a port: the caller's array where it reaches that fast, else the staging memory. */
static char *place(const gpu_context *g, const nervure_entry *e, int32_t i, bool output, const void *given) {
    const nervure_port *port = output ? &e->outputs[i] : &e->inputs[i];
    if (given != NULL && port->bytes >= DIRECT && reached_fast(g, given)) return (char *)(uintptr_t)given;
    return g->staging + nervure_staged(e, i, output);
}

static int bind_host(gpu_context *g, const nervure_entry *e, const void *const *inputs, void *const *outputs) {
    const nervure_program *p = g->host.program;
    char **here = g->host.base + nervure_first_port(p);
    device_pointer *there = g->at + nervure_first_port(p);
    for (int32_t i = 0; i < e->input_count; i++) {
        const void *given = inputs != NULL ? inputs[i] : NULL;
        if ((uintptr_t)given % e->inputs[i].align != 0) return NERVURE_BUFFER;
        here[i] = place(g, e, i, false, given);
        there[i] = slot(g, &e->inputs[i]);
    }
    for (int32_t i = 0; i < e->output_count; i++) {
        const void *given = outputs != NULL ? outputs[i] : NULL;
        if ((uintptr_t)given % e->outputs[i].align != 0) return NERVURE_BUFFER;
        here[p->most_inputs + i] = place(g, e, i, true, given);
        there[p->most_inputs + i] = slot(g, &e->outputs[i]);
    }
    for (int32_t i = 0; i < e->input_count; i++) {
        const void *given = inputs != NULL ? inputs[i] : NULL;
        if (given != NULL && given != here[i] && e->inputs[i].bytes > 0) memcpy(here[i], given, e->inputs[i].bytes);
    }
    return NERVURE_OK;
}

static int run_host(gpu_context *g, int index, const void *const *inputs, void *const *outputs) {
    const nervure_program *p = g->host.program;
    const nervure_entry *e = &p->entries[index];
    int status = bind_host(g, e, inputs, outputs);
    if (status == NERVURE_OK) status = order(g, g->stream);
    if (status == NERVURE_OK) status = refresh(g, index, g->stream);
    if (status == NERVURE_OK) status = play(g, index, true, g->stream);
    if (status != NERVURE_OK) return (void)g->shared->cu.stream_wait(g->stream), status;
    status = nervure_settle(g);
    char **from = g->host.base + nervure_first_port(p) + p->most_inputs;
    for (int32_t i = 0; status == NERVURE_OK && outputs != NULL && i < e->output_count; i++)
        if (outputs[i] != NULL && outputs[i] != from[i] && e->outputs[i].bytes > 0)
            memcpy(outputs[i], from[i], e->outputs[i].bytes);
    return status;
}

int nervure_run(nervure_context *c, int index, const void *const *inputs, void *const *outputs) {
    if (c == NULL) return NERVURE_NULL;
    if (index < 0 || index >= c->program->entry_count) return NERVURE_ENTRY;
    gpu_context *g = nervure_gpu(c);
    int status = nervure_enter(g);
    return status == NERVURE_OK ? nervure_leave(g, run_host(g, index, inputs, outputs)) : status;
}

/* -- arrays of the device ------------------------------------------------------------------------------------------- */

static int bind_device(gpu_context *g, const nervure_entry *e, const void *const *inputs, void *const *outputs) {
    const nervure_program *p = g->host.program;
    device_pointer *at = g->at + nervure_first_port(p);
    for (int32_t i = 0; i < e->input_count; i++) {
        uintptr_t given = (uintptr_t)(inputs != NULL ? inputs[i] : NULL);
        if (given % e->inputs[i].align != 0) return NERVURE_BUFFER;
        at[i] = given != 0 ? (device_pointer)given : slot(g, &e->inputs[i]);
    }
    for (int32_t i = 0; i < e->output_count; i++) {
        uintptr_t given = (uintptr_t)(outputs != NULL ? outputs[i] : NULL);
        if (given % e->outputs[i].align != 0) return NERVURE_BUFFER;
        at[p->most_inputs + i] = given != 0 ? (device_pointer)given : slot(g, &e->outputs[i]);
    }
    return NERVURE_OK;
}

/* A stream that is being recorded by its owner gets the launches themselves, and no events. */
static int join_recording(gpu_context *g, int index, void *stream) {
    const nervure_program *p = g->host.program;
    const nervure_entry *e = &p->entries[index];
    bool behind = g->host.stale && p->refresh >= 0 && index != p->refresh && e->reads_derived;
    if (behind || g->pending)
        return nervure_fail(NERVURE_DEVICE, "a stream that is being recorded cannot wait for an earlier run%s",
                            behind ? " or rebuild what is derived from parameters: run the model once before" : "");
    if (e->updates_params) g->host.stale = true, g->fresh[0] = false;
    if (p->gpu->entries[index].touches_states) g->fresh[1] = false;
    return nervure_walk(g, index, 0, e->steps, stream, NULL);
}

static int run_device(gpu_context *g, int index, const void *const *inputs, void *const *outputs, void *stream) {
    int recording = 0, code = 0;
    int status = bind_device(g, &g->host.program->entries[index], inputs, outputs);
    if (status != NERVURE_OK) return status;
    if ((uintptr_t)stream > LEGACY_STREAM) code = g->shared->cu.capturing(stream, &recording);
    if (code != 0) return nervure_driver_fail(&g->shared->cu, code, "looks at the stream");
    if (recording) return join_recording(g, index, stream);
    status = order(g, stream);
    if (status == NERVURE_OK) status = refresh(g, index, stream);
    if (status == NERVURE_OK) status = play(g, index, false, stream);
    int marked = mark(g, stream); /* what was enqueued before a failure runs, too */
    return status == NERVURE_OK ? marked : status;
}

int nervure_run_on(nervure_context *c, int index, const void *const *inputs, void *const *outputs, void *stream) {
    if (c == NULL) return NERVURE_NULL;
    if (index < 0 || index >= c->program->entry_count) return NERVURE_ENTRY;
    gpu_context *g = nervure_gpu(c);
    int status = nervure_enter(g);
    return status == NERVURE_OK ? nervure_leave(g, run_device(g, index, inputs, outputs, stream)) : status;
}

int nervure_wait(nervure_context *c) {
    if (c == NULL) return NERVURE_NULL;
    int status = nervure_enter(nervure_gpu(c));
    return status == NERVURE_OK ? nervure_leave(nervure_gpu(c), nervure_settle(nervure_gpu(c))) : status;
}
