/* Uses an artifact for a GPU from C, with the driver that stands in: gpu LIBRARY PREFIX RUNS. The program is that of
 * gpu_programs.trained: infer (x -> y = 2 w x, seen), train_step (x: w += x), refresh. Prints "ok". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 64, THREADS = 8, MOST = 400 };

static struct {
    size_t (*context_bytes)(int);
    int (*create)(void *, size_t, int, void **);
    int (*run)(void *, int, const void *const *, void *const *);
    int (*run_on)(void *, int, const void *const *, void *const *, void *);
    int (*wait)(void *), (*destroy)(void *), (*reset)(void *), (*restore)(void *), (*changed)(void *);
    void *(*param)(const void *, int), *(*state)(const void *, int);
    int (*export)(void *, void *, size_t), (*import)(void *, const void *, size_t);
    int (*profile)(void *, void *, void *, uint64_t *);
    const char *(*text)(int);
    int (*buffer_create)(void *, size_t, int, void **), (*buffer_copy)(void *, void *, size_t, int), (*release)(void *);
    void *(*address)(const void *);
} f;
static int (*set)(const char *, long long);
static long long (*get)(const char *);
static int runs;

static void fail(const char *what, const char *detail) {
    fprintf(stderr, "%s: %s\n", what, detail);
    exit(1);
}

static void *find(void *library, const char *prefix, const char *name) {
    char symbol[256];
    snprintf(symbol, sizeof symbol, "%s%s", prefix, name);
    void *found = dlsym(library, symbol);
    if (found == NULL) fail("no such function", symbol);
    return found;
}

static void load(const char *path, const char *name) {
    static const char *const names[] = {
        "context_bytes", "create", "run", "run_on", "wait", "destroy", "reset", "restore", "params_changed", "param", "state",
        "export", "import", "profile", "status_text", "buffer_create", "buffer_copy", "buffer_release", "buffer_address",
    };
    char prefix[128];
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL), *driver = dlopen("libnervure-gpu.so", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL || driver == NULL) fail("cannot load", dlerror());
    snprintf(prefix, sizeof prefix, "%s_", name);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) ((void **)&f)[i] = find(library, prefix, names[i]);
    *(void **)&set = find(driver, "", "emulated_set");
    *(void **)&get = find(driver, "", "emulated_get");
}

static long long live(void) {
    static const char *const kinds[] = {"contexts", "blocks", "pinned", "modules", "streams", "events", "graphs", "execs"};
    long long sum = 0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) sum += get(kinds[i]);
    return sum;
}

static int use(void *c, const float *x, float *y, int32_t *seen) {
    const void *in[] = {x};
    void *out[] = {y, seen}, *a = NULL, *b = NULL, *s = NULL, *blob = calloc(1, 1024);
    uint64_t ticks[8] = {0};
    int status = f.run(c, 1, in, NULL);
    if (status == 0) status = f.run(c, 0, in, out);
    float *w = status == 0 ? f.param(c, 0) : NULL;
    if (w != NULL) w[0] = w[0] + 1, status = f.changed(c);
    if (status == 0) status = f.buffer_create(c, N * sizeof(float), 0, &a);
    if (status == 0) status = f.buffer_create(c, N * sizeof(float), 0, &b);
    if (status == 0) status = f.buffer_create(c, 16, 1, &s);
    if (status == 0) status = f.buffer_copy(a, (void *)(uintptr_t)x, N * sizeof(float), 0);
    const void *there[] = {status == 0 ? f.address(a) : NULL};
    void *results[] = {status == 0 ? f.address(b) : NULL, NULL};
    if (status == 0) status = f.run_on(c, 0, there, results, NULL);
    if (status == 0) status = f.wait(c);
    if (status == 0) status = f.buffer_copy(b, y, N * sizeof(float), 1);
    if (status == 0) status = f.export(c, blob, 1024);
    if (status == 0) status = f.import(c, blob, 1024);
    if (status == 0) status = f.profile(c, NULL, NULL, ticks);
    if (status == 0) status = f.run(c, 0, in, out);
    int ended = f.profile(c, NULL, NULL, NULL);
    if (a != NULL) f.release(a);
    if (b != NULL) f.release(b);
    if (s != NULL) f.release(s);
    free(blob);
    return status != 0 ? status : ended;
}

/* One fault at each call in turn: a status with a text, everything given back. */
static void faults(void) {
    size_t bytes = f.context_bytes(1);
    float x[N] = {1}, y[N];
    int32_t seen[4];
    int call = 1, failed = 0;
    for (; call < MOST; call++) {
        void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64), *c = NULL;
        set("fault", call);
        int status = f.create(memory, bytes, 1, &c);
        if (status == 0) status = use(c, x, y, seen);
        if (status != 0) failed++;
        if (status != 0 && strlen(f.text(status)) < 8) fail("no text", f.text(status));
        int over = get("fault") > 0;
        if (c != NULL && f.destroy(c) != 0) fail("no end", "destroy");
        set("fault", 0);
        if (live() != 0) fail("something is left", f.text(status));
        free(memory);
        if (over) break;
    }
    if (call == MOST || failed < 60) fail("faults", "too few calls failed");
}

static void *work(void *number) {
    size_t bytes = f.context_bytes(1);
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64), *c = NULL;
    float x[N], y[N], w;
    int32_t seen[4];
    const void *in[] = {x};
    void *out[] = {y, seen};
    for (int i = 0; i < N; i++) x[i] = (float)(1 + *(int *)number);
    int status = f.create(memory, bytes, 1, &c);
    if (status != 0) fail("create", f.text(status));
    w = ((float *)f.param(c, 0))[0];
    for (int i = 0; status == 0 && i < runs; i++) {
        status = f.run(c, 0, in, out);
        if (status == 0 && (y[0] != x[0] * (2 * w) || seen[0] != 11 + i)) fail("wrong", "result");
        if (status == 0 && i % 4 == 0) status = f.run(c, 1, in, NULL), w = w + x[0];
    }
    if (status != 0) fail("run", f.text(status));
    f.destroy(c);
    free(memory);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 4) fail("usage", "gpu LIBRARY PREFIX RUNS");
    load(argv[1], argv[2]);
    runs = atoi(argv[3]);
    pthread_t threads[THREADS];
    int numbers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        if (pthread_create(&threads[i], NULL, work, &numbers[i]) != 0) fail("thread", "not started");
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    if (live() != 0) fail("something is left", "after the threads");
    faults();
    set("deferred", 1);
    faults();
    puts("ok");
    return 0;
}
