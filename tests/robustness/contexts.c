/* contexts LIBRARY PREFIX INPUTS EXPECTED ROUNDS: one context a thread, all at once, each with an input of its own.
 *
 * INPUTS and EXPECTED hold one input and one output after the other, of a model with one of each. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXTS = 8 };

static size_t (*context_bytes)(int);
static int (*create)(void *, size_t, int, void **);
static int (*destroy)(void *);
static int (*run)(void *, int, const void *const[], void *const[]);
static char *inputs, *expected;
static size_t input_bytes, output_bytes;
static int rounds;
static atomic_int wrong;
static pthread_barrier_t start;

static void *function(void *library, const char *prefix, const char *name) {
    char text[256];
    snprintf(text, sizeof text, "%s_%s", prefix, name);
    void *found = dlsym(library, text);
    if (!found) {
        fprintf(stderr, "no %s\n", text);
        exit(1);
    }
    return found;
}

static char *read_all(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file) exit(1);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*bytes);
    if (fread(data, 1, *bytes, file) != *bytes) exit(1);
    fclose(file);
    return data;
}

static void *work(void *argument) {
    size_t number = (size_t)argument;
    int workers = (int)(number % 3);
    size_t bytes = context_bytes(workers);
    void *memory = NULL, *context = NULL;
    char *output = malloc(output_bytes);
    if (posix_memalign(&memory, 64, bytes) || create(memory, bytes, workers, &context)) {
        atomic_fetch_add(&wrong, 1000);
        return NULL;
    }
    const void *const in[] = {inputs + number * input_bytes};
    void *const out[] = {output};
    pthread_barrier_wait(&start);
    for (int i = 0; i < rounds; i++) {
        memset(output, 0xff, output_bytes);
        if (run(context, 0, in, out) || memcmp(output, expected + number * output_bytes, output_bytes))
            atomic_fetch_add(&wrong, 1);
    }
    destroy(context);
    free(memory);
    free(output);
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 6) return 2;
    void *library = dlopen(arguments[1], RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    context_bytes = (size_t(*)(int))function(library, arguments[2], "context_bytes");
    create = (int (*)(void *, size_t, int, void **))function(library, arguments[2], "create");
    destroy = (int (*)(void *))function(library, arguments[2], "destroy");
    run = (int (*)(void *, int, const void *const[], void *const[]))function(library, arguments[2], "run");
    inputs = read_all(arguments[3], &input_bytes);
    expected = read_all(arguments[4], &output_bytes);
    input_bytes /= CONTEXTS;
    output_bytes /= CONTEXTS;
    rounds = atoi(arguments[5]);
    pthread_barrier_init(&start, NULL, CONTEXTS);
    pthread_t threads[CONTEXTS];
    for (size_t i = 0; i < CONTEXTS; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)i)) return 1;
    for (int i = 0; i < CONTEXTS; i++) pthread_join(threads[i], NULL);
    printf("%d wrong\n", atomic_load(&wrong));
    return atomic_load(&wrong) != 0;
}
