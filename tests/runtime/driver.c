/* Eight contexts of one artifact from eight threads, workers of their own, one context from all, broken calls. */
#include "model.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CALLERS = 8, RUNS = 50, BATCH = 8 };

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
            exit(1); \
        } \
    } while (0)

static float expected[BATCH];
static batches_context *shared;

static batches_context *make(void **memory, int threads) {
    batches_context *context;
    size_t bytes = batches_context_bytes(threads);
    CHECK(bytes == BATCHES_CONTEXT_BYTES(threads));
    *memory = aligned_alloc(64, bytes);
    CHECK(*memory != NULL);
    CHECK(batches_create(*memory, bytes - 1, threads, &context) == BATCHES_MEMORY);
    CHECK(batches_create((char *)*memory + 8, bytes, threads, &context) == BATCHES_ALIGNMENT);
    CHECK(batches_create(*memory, bytes, threads, &context) == BATCHES_OK);
    return context;
}

static void fill(float *x) {
    for (int i = 0; i < BATCH * 64; i++) x[i] = (float)(i % 37) / 7.0f - 2.0f;
}

static void *caller(void *argument) {
    void *memory;
    float x[BATCH * 64], y[BATCH];
    batches_context *context = make(&memory, (int)(size_t)argument % 4);
    const void *inputs[] = {x};
    void *outputs[] = {y};
    fill(x);
    for (int run = 0; run < RUNS; run++) {
        memset(y, 0, sizeof y);
        CHECK(batches_infer_batch8(context, inputs, outputs) == BATCHES_OK);
        CHECK(memcmp(y, expected, sizeof y) == 0);
        int status = batches_infer_batch8(shared, NULL, NULL); /* from eight threads at once: refused or run */
        CHECK(status == BATCHES_OK || status == BATCHES_BUSY);
    }
    CHECK(batches_destroy(context) == BATCHES_OK);
    CHECK(batches_run(context, 0, NULL, NULL) == BATCHES_BUSY);
    free(memory);
    return NULL;
}

int main(void) {
    void *memory;
    pthread_t threads[CALLERS];
    shared = make(&memory, 3);
    float *x = batches_input(shared, BATCHES_INFER_BATCH8, BATCHES_INFER_BATCH8_INPUT_X);
    float *y = batches_output(shared, BATCHES_INFER_BATCH8, BATCHES_INFER_BATCH8_OUTPUT_Y);
    const void *crooked[] = {(char *)x + 1};
    uint64_t ticks[BATCHES_INFER_BATCH8_STEPS] = {0};
    fill(x);
    CHECK(batches_profile(shared, NULL, NULL, ticks) == BATCHES_OK);
    CHECK(batches_infer_batch8(shared, NULL, NULL) == BATCHES_OK);
    CHECK(batches_profile(shared, NULL, NULL, NULL) == BATCHES_OK);
    CHECK(ticks[0] > 0 && ticks[1] > 0);
    memcpy(expected, y, sizeof expected);
    CHECK(batches_infer_batch8(shared, crooked, NULL) == BATCHES_BUFFER);
    CHECK(batches_run(shared, 7, NULL, NULL) == BATCHES_ENTRY);
    CHECK(batches_run(NULL, 0, NULL, NULL) == BATCHES_NULL);
    batches_context *none = shared;
    CHECK(batches_create(memory, 1 << 20, 1000, &none) == BATCHES_THREADS);
    CHECK(none == NULL && batches_input(none, 0, 0) == NULL);
    CHECK(strcmp(batches_status_text(BATCHES_OK), "ok") == 0);
    CHECK(strstr(batches_status_text(-5), "not a status") != NULL);
    for (size_t i = 0; i < CALLERS; i++) CHECK(pthread_create(&threads[i], NULL, caller, (void *)i) == 0);
    for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
    CHECK(batches_destroy(shared) == BATCHES_OK);
    free(memory);
    puts("ok");
    return 0;
}
