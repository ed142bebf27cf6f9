/* Entries as CUDA graphs: recorded at their first run, replayed by one launch, and changed where a caller's addresses
 * do. */
#include "driver.h"

enum { THREAD_LOCAL = 1, HOST = 1, DEVICE = 2 };

nervure_recording *nervure_recording_of(const gpu_context *g, int entry, bool host) {
    const nervure_program *p = g->host.program;
    const nervure_entry *e = &p->entries[entry];
    size_t ports = (size_t)e->input_count + (size_t)e->output_count;
    uint64_t *words = g->words + p->gpu->entries[entry].words; /* that for the host lies first */
    return (nervure_recording *)(void *)(host ? words : words + 2 + 2 * ports);
}

static uint64_t *addresses(nervure_recording *r) {
    return (uint64_t *)(void *)(r + 1);
}

static int32_t port_count(const nervure_entry *e) {
    return e->input_count + e->output_count;
}

static int32_t base_of_port(const nervure_program *p, const nervure_entry *e, int32_t port) {
    int32_t first = nervure_first_port(p);
    return port < e->input_count ? first + port : first + p->most_inputs + port - e->input_count;
}

/* What this call has for a port: the host's array, or the device's. */
static uint64_t wanted(const gpu_context *g, const nervure_entry *e, int32_t port, bool host) {
    int32_t base = base_of_port(g->host.program, e, port);
    return host ? (uint64_t)(uintptr_t)g->host.base[base] : g->at[base];
}

static bool has_port(const gpu_context *g, const nervure_launch *l) {
    const nervure_program *p = g->host.program;
    for (int32_t i = 0; i < l->count; i++)
        if (p->gpu->arguments[l->first + i].base >= nervure_first_port(p)) return true;
    return false;
}

static void fill_arguments(gpu_context *g, const nervure_launch *l) {
    for (int32_t i = 0; i < l->count; i++) {
        const nervure_argument *a = &g->host.program->gpu->arguments[l->first + i];
        g->values[i] = g->at[a->base] + a->offset;
        g->pointers[i] = &g->values[i];
    }
}

/* The node that was recorded last. */
static int last_node(gpu_context *g, void *stream, void **node) {
    int state = 0;
    size_t count = 0;
    void *const *nodes = NULL;
    int code = g->shared->cu.capture_info(stream, &state, NULL, NULL, &nodes, &count);
    *node = code == 0 && count == 1 ? nodes[0] : NULL;
    return code;
}

int nervure_walk(gpu_context *g, int entry, int32_t first_step, int32_t last_step, void *stream, void **nodes) {
    const struct nervure_gpu_program *p = g->host.program->gpu;
    const nervure_gpu_entry *e = &p->entries[entry];
    int32_t at = first_step > 0 ? e->step_end[first_step - 1] : 0;
    int32_t end = last_step > 0 ? e->step_end[last_step - 1] : 0;
    for (; at < end; at++) {
        const nervure_launch *l = &e->launches[at];
        const nervure_kernel *k = &p->kernels[l->kernel];
        int code = 0;
        fill_arguments(g, l);
        if (k->blocks > 0)
            code = g->shared->cu.launch(g->shared->functions[l->kernel], k->blocks, 1, 1, k->threads, 1, 1, k->shared, stream,
                                        g->pointers, NULL);
        if (code == 0 && nodes != NULL && has_port(g, l))
            code = k->blocks > 0 ? last_node(g, stream, nodes++) : (*nodes++ = NULL, 0);
        if (code != 0) return nervure_driver_fail(&g->shared->cu, code, "launches a kernel");
    }
    return NERVURE_OK;
}

int nervure_copy_ports(gpu_context *g, int entry, bool output, void *stream, void **nodes) {
    const nervure_program *p = g->host.program;
    const nervure_entry *e = &p->entries[entry];
    for (int32_t i = output ? e->input_count : 0; i < (output ? port_count(e) : e->input_count); i++) {
        const nervure_port *port = output ? &e->outputs[i - e->input_count] : &e->inputs[i];
        int32_t base = base_of_port(p, e, i);
        int code = 0;
        if (nodes != NULL) nodes[i] = NULL;
        if (port->bytes == 0) continue;
        if (output)
            code = g->shared->cu.to_host(g->host.base[base], g->at[base], port->bytes, stream);
        else
            code = g->shared->cu.to_device(g->at[base], g->host.base[base], port->bytes, stream);
        if (code == 0 && nodes != NULL) code = last_node(g, stream, &nodes[i]);
        if (code != 0) return nervure_driver_fail(&g->shared->cu, code, output ? "copies an output" : "copies an input");
    }
    return NERVURE_OK;
}

void nervure_forget(gpu_context *g, nervure_recording *r) {
    if (r->exec != NULL) g->shared->cu.exec_destroy(r->exec);
    if (r->graph != NULL) g->shared->cu.graph_destroy(r->graph);
    r->exec = r->graph = NULL;
}

static int capture(gpu_context *g, int entry, bool host, void **nodes) {
    int32_t steps = g->host.program->entries[entry].steps;
    if (!host) return nervure_walk(g, entry, 0, steps, g->stream, nodes);
    int status = nervure_copy_ports(g, entry, false, g->stream, nodes);
    if (status == NERVURE_OK) status = nervure_walk(g, entry, 0, steps, g->stream, NULL);
    return status == NERVURE_OK ? nervure_copy_ports(g, entry, true, g->stream, nodes) : status;
}

static int record(gpu_context *g, int entry, bool host, nervure_recording *r) {
    const nervure_entry *e = &g->host.program->entries[entry];
    const nervure_cuda *cu = &g->shared->cu;
    int32_t ports = port_count(e);
    void **nodes = (void **)(void *)(addresses(r) + ports);
    int code = cu->capture_begin(g->stream, THREAD_LOCAL);
    if (code != 0) return nervure_driver_fail(cu, code, "begins to record");
    int status = capture(g, entry, host, nodes);
    code = cu->capture_end(g->stream, &r->graph);
    if (code != 0) r->graph = NULL;
    if (status == NERVURE_OK && code != 0) status = nervure_driver_fail(cu, code, "ends to record");
    if (status == NERVURE_OK && (code = cu->instantiate(&r->exec, r->graph, 0)) != 0) {
        r->exec = NULL;
        status = nervure_driver_fail(cu, code, "makes a graph");
    }
    if (status != NERVURE_OK) return nervure_forget(g, r), status;
    for (int32_t i = 0; i < ports; i++) addresses(r)[i] = wanted(g, e, i, host);
    return NERVURE_OK;
}

static int change_copy(gpu_context *g, const nervure_entry *e, int32_t i, nervure_recording *r, void *node) {
    const nervure_program *p = g->host.program;
    int32_t base = base_of_port(p, e, i);
    copy_end there = {.type = DEVICE, .device = g->at[base]}, here = {.type = HOST, .host = g->host.base[base]};
    bool input = i < e->input_count;
    copy_node n = {input ? here : there, input ? there : here, 0, 1, 1};
    n.width = input ? e->inputs[i].bytes : e->outputs[i - e->input_count].bytes;
    return g->shared->cu.copy_node_set(r->exec, node, &n, g->shared->context);
}

static bool changed(const gpu_context *g, const nervure_entry *e, const nervure_launch *l, nervure_recording *r) {
    const nervure_program *p = g->host.program;
    for (int32_t i = 0; i < l->count; i++) {
        int32_t port = p->gpu->arguments[l->first + i].base - nervure_first_port(p);
        if (port < 0) continue;
        if (port >= p->most_inputs) port += e->input_count - p->most_inputs;
        if (addresses(r)[port] != wanted(g, e, port, false)) return true;
    }
    return false;
}

/* Puts this call's addresses into the nodes that have others; the driver's code. */
static int change(gpu_context *g, int entry, bool host, nervure_recording *r) {
    const nervure_program *p = g->host.program;
    const nervure_entry *e = &p->entries[entry];
    const nervure_gpu_entry *t = &p->gpu->entries[entry];
    void **nodes = (void **)(void *)(addresses(r) + port_count(e));
    int code = 0;
    for (int32_t i = 0; code == 0 && host && i < port_count(e); i++)
        if (nodes[i] != NULL && addresses(r)[i] != wanted(g, e, i, true)) code = change_copy(g, e, i, r, nodes[i]);
    int32_t launches = e->steps > 0 ? t->step_end[e->steps - 1] : 0;
    for (const nervure_launch *l = t->launches; code == 0 && !host && l < t->launches + launches; l++) {
        if (!has_port(g, l)) continue;
        void *node = *nodes++;
        if (node == NULL || !changed(g, e, l, r)) continue;
        const nervure_kernel *k = &p->gpu->kernels[l->kernel];
        fill_arguments(g, l);
        kernel_node n = {g->shared->functions[l->kernel], k->blocks, 1, 1, k->threads, 1, 1, k->shared, g->pointers, NULL};
        code = g->shared->cu.kernel_node_set(r->exec, node, &n);
    }
    for (int32_t i = 0; code == 0 && i < port_count(e); i++) addresses(r)[i] = wanted(g, e, i, host);
    return code;
}

static bool same(const gpu_context *g, const nervure_entry *e, nervure_recording *r, bool host) {
    for (int32_t i = 0; i < port_count(e); i++)
        if (addresses(r)[i] != wanted(g, e, i, host)) return false;
    return true;
}

/* Whether there is anything to launch: a graph of nothing need not be made. */
static bool empty(const nervure_program *p, int entry, bool host) {
    const nervure_entry *e = &p->entries[entry];
    for (int32_t i = 0; host && i < e->input_count; i++)
        if (e->inputs[i].bytes > 0) return false;
    for (int32_t i = 0; host && i < e->output_count; i++)
        if (e->outputs[i].bytes > 0) return false;
    const nervure_gpu_entry *t = &p->gpu->entries[entry];
    for (int32_t i = 0; i < (e->steps > 0 ? t->step_end[e->steps - 1] : 0); i++)
        if (p->gpu->kernels[t->launches[i].kernel].blocks > 0) return false;
    return true;
}

int nervure_play(gpu_context *g, int entry, bool host, void *stream) {
    const nervure_program *p = g->host.program;
    const nervure_entry *e = &p->entries[entry];
    if (empty(p, entry, host)) return NERVURE_OK;
    nervure_recording *r = nervure_recording_of(g, entry, host);
    /* an exec that cannot be changed is made anew */
    if (r->exec != NULL && !same(g, e, r, host) && change(g, entry, host, r) != 0) nervure_forget(g, r);
    int status = r->exec != NULL ? NERVURE_OK : record(g, entry, host, r);
    if (status != NERVURE_OK) return status;
    int code = g->shared->cu.graph_launch(r->exec, stream);
    return code == 0 ? NERVURE_OK : nervure_driver_fail(&g->shared->cu, code, "launches the model's graph");
}
