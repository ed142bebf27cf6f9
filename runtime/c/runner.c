/* Runs any model library once, for verification on another machine or under its emulator:
 *   runner LIBRARY PREFIX ENTRY THREADS INPUT_FILE... -- OUTPUT_FILE:BYTES...
 * ENTRY is a number. Prints a message and exits with 1 when something fails. */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 256 };

static void fail(const char *what, const char *detail) {
    fprintf(stderr, "%s: %s\n", what, detail);
    exit(1);
}

static void *find(void *library, const char *prefix, const char *name) {
    char symbol[256];
    snprintf(symbol, sizeof symbol, "%s_%s", prefix, name);
    void *function = dlsym(library, symbol);
    if (function == NULL) fail("no such function", symbol);
    return function;
}

static void *block(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes > 0 ? bytes : 64) != 0) fail("out of memory", "block");
    return memory;
}

static void *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail("cannot read", path);
    fseek(file, 0, SEEK_END);
    size_t bytes = (size_t)ftell(file);
    rewind(file);
    void *data = block(bytes);
    if (fread(data, 1, bytes, file) != bytes) fail("cannot read", path);
    fclose(file);
    return data;
}

static void write_file(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) fail("cannot write", path);
}

int main(int argc, char **argv) {
    if (argc < 6) fail("usage", "runner LIBRARY PREFIX ENTRY THREADS INPUT... -- OUTPUT:BYTES...");
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) fail("cannot load", dlerror());
    const char *prefix = argv[2];
    int entry = atoi(argv[3]), threads = atoi(argv[4]), at = 5;
    size_t (*context_bytes)(int);
    int (*create)(void *, size_t, int, void **), (*run)(void *, int, void **, void **), (*destroy)(void *);
    const char *(*text)(int);
    *(void **)&context_bytes = find(library, prefix, "context_bytes");
    *(void **)&create = find(library, prefix, "create");
    *(void **)&run = find(library, prefix, "run");
    *(void **)&destroy = find(library, prefix, "destroy");
    *(void **)&text = find(library, prefix, "status_text");

    void *inputs[MOST] = {0}, *outputs[MOST] = {0};
    size_t sizes[MOST] = {0};
    int input_count = 0, output_count = 0;
    for (; at < argc && strcmp(argv[at], "--") != 0 && input_count < MOST; at++) inputs[input_count++] = read_file(argv[at]);
    int first = ++at;
    for (; at < argc && output_count < MOST; at++) {
        char *colon = strrchr(argv[at], ':');
        if (colon == NULL) fail("no size", argv[at]);
        *colon = 0;
        sizes[output_count] = (size_t)strtoull(colon + 1, NULL, 10);
        outputs[output_count] = block(sizes[output_count]);
        output_count++;
    }
    size_t bytes = context_bytes(threads);
    void *context = NULL;
    int status = create(block(bytes), bytes, threads, &context);
    if (status == 0) status = run(context, entry, inputs, outputs);
    if (status != 0) fail("the model answers", text(status));
    for (int i = 0; i < output_count; i++) write_file(argv[first + i], outputs[i], sizes[i]);
    return destroy(context);
}
