/* Follows driver.cpp: streams, events, modules, launches and graphs. */
/* -- work and streams ---------------------------------------------------------------------------------------------- */

struct function { function *next; kernel run; int arguments; unsigned shared; }; /* shared: bytes that it may be given */
struct stream;
struct event { stream *on; long long asked, done; timespec time; };
enum { COPY, SET, LAUNCH, RECORD, WAIT };
struct work {
    work *next;
    int kind, number;
    uint64_t to, from;
    size_t bytes;
    unsigned char value;
    function *f;
    unsigned blocks, threads, shared;
    uint64_t *arguments;
    event *e;
    long long serial;
};
struct graph { work *first, *last; int count; };
struct stream { work *first, *last; graph *capturing; stream *next; result failed; };
static stream ordinary; /* 0, 1 and 2 */
static stream *streams;

static stream *of(void *handle) { return (uintptr_t)handle <= 2 ? &ordinary : (stream *)handle; }

static work *copy_of(const work *w) {
    work *made = (work *)malloc(sizeof(work));
    *made = *w;
    made->next = NULL;
    if (w->kind == LAUNCH) {
        size_t bytes = 8 * (size_t)w->f->arguments;
        made->arguments = (uint64_t *)malloc(bytes + 8);
        memcpy(made->arguments, w->arguments, bytes);
    }
    return made;
}
static void drop(work *w) {
    if (w->kind == LAUNCH) free(w->arguments);
    free(w);
}
static result drain(stream *s, event *until, long long serial);

static result execute(const work *w) {
    if (w->kind == COPY) memcpy((void *)(uintptr_t)w->to, (const void *)(uintptr_t)w->from, w->bytes);
    if (w->kind == COPY) add(COPIES, 1), add(COPIED_BYTES, (long long)w->bytes);
    if (w->kind == SET) memset((void *)(uintptr_t)w->to, w->value, w->bytes);
    if (w->kind == RECORD) clock_gettime(CLOCK_MONOTONIC, &w->e->time), w->e->done = w->serial;
    if (w->kind == WAIT && w->e->done < w->serial) return drain((stream *)(uintptr_t)w->from, w->e, w->serial);
    if (w->kind != LAUNCH) return OK;
    void *pointers[512];
    for (int i = 0; i < w->f->arguments; i++) pointers[i] = &w->arguments[i];
    add(LAUNCHES, 1);
    return w->f->run(pointers, w->blocks, w->threads, w->shared) == 0 ? OK : LAUNCH_FAILED;
}
static void append(work **first, work **last, work *w) {
    if (*last != NULL) (*last)->next = w; else *first = w;
    *last = w;
}
static result drain(stream *s, event *until, long long serial) {
    result status = OK;
    while (s->first != NULL && (until == NULL || until->done < serial)) {
        work *w = s->first;
        s->first = w->next;
        if (s->first == NULL) s->last = NULL;
        result failed = execute(w);
        if (failed != OK) status = failed;
        drop(w);
    }
    return status;
}
/* Takes a copy of `w`. */
static result enqueue(stream *s, const work *w) {
    if (s->capturing == NULL && !get(DEFERRED)) {
        result status = drain(s, NULL, 0);
        return status != OK ? status : execute(w);
    }
    work *made = copy_of(w);
    if (s->capturing != NULL) {
        made->number = s->capturing->count++;
        append(&s->capturing->first, &s->capturing->last, made);
    } else {
        append(&s->first, &s->last, made);
    }
    return OK;
}
API cuStreamCreate(void **to, unsigned) {
    CALL;
    stream *made = (stream *)calloc(1, sizeof(stream));
    pthread_mutex_lock(&lock);
    made->next = streams, streams = made;
    pthread_mutex_unlock(&lock);
    *to = made;
    add(LIVE_STREAMS, 1);
    return OK;
}
API cuStreamSynchronize(void *s) { CALL; return of(s)->capturing ? NOT_PERMITTED : drain(of(s), NULL, 0); }
API cuStreamDestroy_v2(void *handle) {
    result status = fault();
    stream *s = (stream *)handle;
    drain(s, NULL, 0);
    pthread_mutex_lock(&lock);
    stream **place = &streams;
    while (*place != s) place = &(*place)->next;
    *place = s->next;
    pthread_mutex_unlock(&lock);
    free(s);
    add(LIVE_STREAMS, -1);
    return status;
}
static result finish_all() {
    if (!get(DEFERRED)) return OK; /* nothing waits */
    result status = drain(&ordinary, NULL, 0);
    for (stream *s = streams; s != NULL; s = s->next)
        if (result failed = drain(s, NULL, 0)) status = failed;
    return status;
}
API cuCtxSynchronize() { CALL; return finish_all(); }
static work plain(int kind) { work w; memset(&w, 0, sizeof w); w.kind = kind; return w; }
static work copying(uint64_t to, uint64_t from, size_t bytes) { work w = plain(COPY); w.to = to, w.from = from, w.bytes = bytes; return w; }

API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *s) {
    CALL;
    if (kind_of(to) != DEVICE) return INVALID;
    work w = copying(to, (uint64_t)(uintptr_t)from, bytes);
    if (of(s)->capturing != NULL || !get(DEFERRED) || kind_of(w.from) != 0) return enqueue(of(s), &w);
    result status = drain(of(s), NULL, 0); /* pageable memory: read before the call returns */
    return status != OK ? status : execute(&w);
}
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *s) {
    CALL;
    if (kind_of(from) != DEVICE) return INVALID;
    work w = copying((uint64_t)(uintptr_t)to, from, bytes);
    return enqueue(of(s), &w);
}
API cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void *s) {
    CALL;
    work w = plain(SET);
    w.to = at, w.value = value, w.bytes = bytes;
    return enqueue(of(s), &w);
}
API cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) { CALL; drain(&ordinary, NULL, 0); memcpy((void *)(uintptr_t)to, from, bytes); return OK; }
API cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) { CALL; drain(&ordinary, NULL, 0); memcpy(to, (void *)(uintptr_t)from, bytes); return OK; }
API cuMemsetD8_v2(uint64_t at, unsigned char value, size_t bytes) { CALL; drain(&ordinary, NULL, 0); memset((void *)(uintptr_t)at, value, bytes); return OK; }

/* -- events -------------------------------------------------------------------------------------------------------- */

API cuEventCreate(void **to, unsigned) { CALL; *to = calloc(1, sizeof(event)); add(LIVE_EVENTS, 1); return OK; }
API cuEventDestroy_v2(void *e) { result status = fault(); finish_all(); free(e); add(LIVE_EVENTS, -1); return status; }
API cuEventRecord(void *handle, void *s) {
    CALL;
    event *e = (event *)handle;
    work w = plain(RECORD);
    w.e = e, w.serial = ++e->asked;
    e->on = of(s);
    return enqueue(of(s), &w);
}
API cuStreamWaitEvent(void *s, void *handle, unsigned) {
    CALL;
    work w = plain(WAIT);
    w.e = (event *)handle, w.serial = w.e->asked, w.from = (uint64_t)(uintptr_t)w.e->on;
    return enqueue(of(s), &w);
}
API cuEventSynchronize(void *handle) {
    CALL;
    event *e = (event *)handle;
    return e->done < e->asked ? drain(e->on, e, e->asked) : OK;
}
API cuEventElapsedTime(float *milliseconds, void *first, void *last) {
    CALL;
    timespec a = ((event *)first)->time, b = ((event *)last)->time;
    if (((event *)last)->done < ((event *)last)->asked) return NOT_READY;
    *milliseconds = (float)((double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) * 1e-6);
    return OK;
}

/* -- modules and launches ------------------------------------------------------------------------------------------ */

struct loaded { void *library; int file; function *functions; };

/* The bytes of an ELF file end where its table of sections does. */
static size_t elf_bytes(const unsigned char *image) {
    uint64_t sections;
    uint16_t each, count;
    memcpy(&sections, image + 40, 8), memcpy(&each, image + 58, 2), memcpy(&count, image + 60, 2);
    return (size_t)sections + (size_t)each * count;
}
API cuModuleLoadData(void **module, const void *image) {
    CALL;
    if (memcmp(image, "\177ELF", 4) != 0 || get(CAPABILITY) != 0) return NO_BINARY;
    int file = (int)syscall(SYS_memfd_create, "kernels", 0);
    size_t bytes = elf_bytes((const unsigned char *)image), at = 0;
    while (at < bytes) {
        ssize_t written = write(file, (const char *)image + at, bytes - at);
        if (written <= 0) { close(file); return OUT_OF_MEMORY; }
        at += (size_t)written;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    emu_engine *engine = emu_start(); /* and libm, which the image needs, with it */
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) fprintf(stderr, "%s\n", dlerror()), close(file);
    if (library == NULL) return NO_BINARY;
    emu_engine **machine = (emu_engine **)dlsym(library, "emu_machine");
    if (machine != NULL) *machine = engine;
    loaded *held = (loaded *)malloc(sizeof(loaded));
    *held = loaded{library, file, NULL}; /* open as long: dlopen knows libraries by the name, which is its number */
    *module = held;
    add(LIVE_MODULES, 1);
    return OK;
}
API cuModuleUnload(void *module) {
    result status = fault();
    finish_all();
    loaded *held = (loaded *)module;
    dlclose(held->library);
    close(held->file);
    for (function *f = held->functions, *next; f != NULL; f = next) next = f->next, free(f);
    free(held);
    add(LIVE_MODULES, -1);
    return status;
}
API cuModuleGetFunction(void **to, void *module, const char *name) {
    CALL;
    loaded *held = (loaded *)module;
    char symbol[512];
    snprintf(symbol, sizeof symbol, "%s_launch", name);
    void *run = dlsym(held->library, symbol);
    snprintf(symbol, sizeof symbol, "%s_arguments", name);
    const int *arguments = (const int *)dlsym(held->library, symbol);
    if (run == NULL || arguments == NULL) return NOT_FOUND;
    function *f = (function *)malloc(sizeof(function));
    *f = function{held->functions, (kernel)run, *arguments, 48 << 10};
    held->functions = f;
    *to = f;
    return OK;
}
API cuFuncSetAttribute(void *f, int which, int value) {
    CALL;
    if (which != 8 || value < 0 || value > 227 << 10) return INVALID; /* CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES */
    ((function *)f)->shared = (unsigned)value;
    return OK;
}
API cuFuncGetAttribute(int *value, int, void *) { CALL; *value = 1024; return OK; }

static result filled(work *w, void *f, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared, void **arguments, uint64_t *values) {
    if (f == NULL || x == 0 || x > 0x7fffffffu || y != 1 || z != 1 || threads == 0 || threads > 1024) return INVALID;
    if (shared > ((function *)f)->shared) return INVALID;
    *w = plain(LAUNCH);
    w->f = (function *)f, w->blocks = x, w->threads = threads, w->shared = shared, w->arguments = values;
    for (int i = 0; i < w->f->arguments; i++) values[i] = *(uint64_t *)arguments[i];
    return OK;
}
API cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned shared, void *s,
                   void **arguments, void **) {
    CALL;
    work w;
    uint64_t values[512];
    result status = filled(&w, f, x, y, z, threads, shared, arguments, values);
    return status != OK ? status : enqueue(of(s), &w);
}

/* -- graphs -------------------------------------------------------------------------------------------------------- */

static graph *graph_of(const graph *from) {
    graph *made = (graph *)calloc(1, sizeof(graph));
    for (work *w = from ? from->first : NULL; w != NULL; w = w->next) append(&made->first, &made->last, copy_of(w)), made->count++;
    return made;
}
static void drop_graph(graph *g) {
    for (work *w = g->first, *next; w != NULL; w = next) next = w->next, drop(w);
    free(g);
}
API cuStreamBeginCapture_v2(void *s, int) {
    CALL;
    if (of(s) == &ordinary || of(s)->capturing != NULL) return NOT_PERMITTED;
    of(s)->capturing = graph_of(NULL);
    return OK;
}
API cuStreamEndCapture(void *s, void **to) {
    result status = fault();
    graph *made = of(s)->capturing;
    of(s)->capturing = NULL;
    *to = NULL;
    if (made == NULL) return INVALID;
    if (status != OK) return drop_graph(made), status;
    *to = made;
    add(LIVE_GRAPHS, 1);
    return OK;
}
API cuStreamIsCapturing(void *s, int *value) { CALL; *value = of(s)->capturing != NULL; return OK; }
API cuStreamGetCaptureInfo_v2(void *handle, int *value, uint64_t *, void **g, void *const **nodes, size_t *count) {
    CALL;
    stream *s = of(handle);
    *value = s->capturing != NULL;
    if (s->capturing == NULL) return OK;
    if (g != NULL) *g = s->capturing;
    if (nodes != NULL) *nodes = (void *const *)&s->capturing->last;
    if (count != NULL) *count = s->capturing->last != NULL;
    return OK;
}
API cuGraphInstantiateWithFlags(void **to, void *g, unsigned long long) { CALL; *to = graph_of((graph *)g); add(LIVE_EXECS, 1); return OK; }
API cuGraphDestroy(void *g) { result status = fault(); drop_graph((graph *)g); add(LIVE_GRAPHS, -1); return status; }
API cuGraphExecDestroy(void *g) { result status = fault(); drop_graph((graph *)g); add(LIVE_EXECS, -1); return status; }
API cuGraphLaunch(void *g, void *s) {
    CALL;
    add(GRAPH_LAUNCHES, 1);
    for (work *w = ((graph *)g)->first; w != NULL; w = w->next)
        if (result status = enqueue(of(s), w)) return status;
    return OK;
}
static work *node_in(void *exec, void *node, int kind) {
    work *w = ((graph *)exec)->first;
    while (w != NULL && w->number != ((work *)node)->number) w = w->next;
    return w != NULL && w->kind == kind ? w : NULL;
}
struct kernel_node { void *f; unsigned x, y, z, threads, ty, tz, shared; void **arguments, **extra; };
struct place { size_t x, y, z, level; int type; void *host; uint64_t device; void *array, *context; size_t pitch, height; };
struct copy_node { place from, to; size_t width, height, depth; };

API cuGraphExecKernelNodeSetParams(void *exec, void *node, const kernel_node *p) {
    CALL;
    work *w = node_in(exec, node, LAUNCH), changed;
    uint64_t values[512];
    if (w == NULL || w->f != p->f) return INVALID;
    result status = filled(&changed, p->f, p->x, p->y, p->z, p->threads, p->shared, p->arguments, values);
    if (status != OK) return status;
    w->blocks = p->x, w->threads = p->threads, w->shared = p->shared;
    memcpy(w->arguments, values, 8 * (size_t)w->f->arguments);
    add(NODES_CHANGED, 1);
    return OK;
}
API cuGraphExecMemcpyNodeSetParams(void *exec, void *node, const copy_node *p, void *) {
    CALL;
    work *w = node_in(exec, node, COPY);
    if (w == NULL || p->height != 1 || p->depth != 1 || p->width == 0) return INVALID;
    w->from = p->from.type == HOST ? (uint64_t)(uintptr_t)p->from.host : p->from.device;
    w->to = p->to.type == HOST ? (uint64_t)(uintptr_t)p->to.host : p->to.device;
    w->bytes = p->width;
    add(NODES_CHANGED, 1);
    return OK;
}
