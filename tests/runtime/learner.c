/* A context that trains: from several threads at once, beside another one, with denormals, saved and loaded. */
#include "model.h"

#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIZE = 64, ROUNDS = 300 };

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
            exit(1); \
        } \
    } while (0)

static learner_context *shared;
static atomic_int steps, refused;

static learner_context *make(int threads) {
    learner_context *context;
    size_t bytes = learner_context_bytes(threads);
    CHECK(bytes == LEARNER_CONTEXT_BYTES((size_t)threads));
    void *memory = aligned_alloc(64, bytes);
    CHECK(learner_create(memory, bytes, threads, &context) == LEARNER_OK);
    return context;
}

static void finish(learner_context *context) {
    CHECK(learner_destroy(context) == LEARNER_OK);
    free(context);
}

static int refreshes(learner_context *context) {
    return *(int *)learner_state(context, LEARNER_STATE_REFRESHES);
}

static int step(learner_context *context) {
    float x = 1;
    const void *inputs[] = {&x};
    return learner_train_step(context, inputs, NULL);
}

/* What inference answers says how many steps were done, the same by every weight. */
static int infer(learner_context *context, float *done) {
    float x = 1, y[SIZE];
    const void *inputs[] = {&x};
    void *outputs[] = {y};
    int status = learner_infer(context, inputs, outputs);
    for (int i = 1; status == LEARNER_OK && i < SIZE; i++) CHECK(y[i] == y[0]);
    *done = y[0] / 2;
    return status;
}

static void once_after_each_change(void) {
    learner_context *context = make(2);
    static unsigned char blob[LEARNER_EXPORT_BYTES];
    float done;
    for (int i = 1; i <= 3; i++) {
        CHECK(step(context) == LEARNER_OK && step(context) == LEARNER_OK);
        CHECK(infer(context, &done) == LEARNER_OK && infer(context, &done) == LEARNER_OK);
        CHECK(done == 2.0f * (float)i && refreshes(context) == i);
    }
    CHECK(learner_refresh(context, NULL, NULL) == LEARNER_OK && refreshes(context) == 4);
    CHECK(infer(context, &done) == LEARNER_OK && refreshes(context) == 4);
    CHECK(learner_export(context, blob, sizeof blob - 1) == LEARNER_SPACE);
    CHECK(learner_export(context, NULL, sizeof blob) == LEARNER_NULL);
    CHECK(learner_export(context, blob, sizeof blob) == LEARNER_OK);
    CHECK(learner_restore(context) == LEARNER_OK);
    CHECK(infer(context, &done) == LEARNER_OK && done == 0 && refreshes(context) == 5);
    CHECK(learner_import(context, blob, sizeof blob) == LEARNER_OK && refreshes(context) == 4);
    CHECK(infer(context, &done) == LEARNER_OK && done == 6 && refreshes(context) == 5);
    blob[100] ^= 1;
    CHECK(learner_import(context, blob, sizeof blob) == LEARNER_DAMAGED);
    CHECK(learner_import(context, blob, 10) == LEARNER_DAMAGED);
    CHECK(learner_import(context, NULL, 10) == LEARNER_NULL);
    CHECK(infer(context, &done) == LEARNER_OK && done == 6 && refreshes(context) == 5);
    finish(context);
}

static void *train(void *unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        int status = step(shared);
        CHECK(status == LEARNER_OK || status == LEARNER_BUSY);
        atomic_fetch_add(status == LEARNER_OK ? &steps : &refused, 1);
    }
    return NULL;
}

static void *ask(void *unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        float done;
        int status = infer(shared, &done);
        CHECK(status == LEARNER_OK || status == LEARNER_BUSY);
        if (status == LEARNER_OK) CHECK(done >= 0 && done <= 2 * ROUNDS);
    }
    return NULL;
}

static void *save(void *unused) {
    unsigned char *blob = malloc(LEARNER_EXPORT_BYTES);
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        int status = learner_export(shared, blob, LEARNER_EXPORT_BYTES);
        CHECK(status == LEARNER_OK || status == LEARNER_BUSY);
        if (status == LEARNER_OK) {
            float w[SIZE];
            memcpy(w, blob + 64, sizeof w); /* the only parameter */
            for (int k = 1; k < SIZE; k++) CHECK(w[k] == w[0]);
        }
    }
    free(blob);
    return NULL;
}

static void one_context_from_all_sides(void) {
    void *(*const work[])(void *) = {train, train, ask, save};
    pthread_t threads[4];
    float done;
    shared = make(3);
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, work[i], NULL) == 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK(infer(shared, &done) == LEARNER_OK);
    CHECK(done == (float)atomic_load(&steps) && steps + refused == 2 * ROUNDS);
    finish(shared);
}

static void *alone(void *rounds) {
    learner_context *context = make(2);
    float done;
    for (size_t i = 0; i < (size_t)rounds; i++) CHECK(step(context) == LEARNER_OK);
    CHECK(infer(context, &done) == LEARNER_OK && done == (float)(size_t)rounds);
    finish(context);
    return NULL;
}

static void two_contexts_train_at_once(void) {
    pthread_t threads[2];
    for (size_t i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, alone, (void *)(ROUNDS + i)) == 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
}

/* Denormals are flushed by the workers of a step and kept by those of inference; the caller's own setting stays. */
static void denormals(void) {
    learner_context *context = make(2);
    volatile float tiny = 1e-39f;
    float x[32], y[32];
    const void *inputs[] = {x};
    void *outputs[] = {y};
    for (int i = 0; i < 32; i++) x[i] = tiny;
    CHECK(fesetround(FE_UPWARD) == 0);
    for (int round = 0; round < 5; round++) {
        CHECK(learner_flushing(context, inputs, outputs) == LEARNER_OK);
        for (int i = 0; i < 32; i++) CHECK(memcmp(&y[i], &(float){0}, sizeof(float)) == 0);
        CHECK(fegetround() == FE_UPWARD && tiny * 0.5f > 0);
        CHECK(learner_keeping(context, inputs, outputs) == LEARNER_OK);
        for (int i = 0; i < 32; i++) CHECK(y[i] > 0 && y[i] < tiny);
        CHECK(fegetround() == FE_UPWARD && tiny * 0.5f > 0);
    }
    CHECK(fesetround(FE_TONEAREST) == 0);
    finish(context);
}

int main(void) {
    once_after_each_change();
    one_context_from_all_sides();
    two_contexts_train_at_once();
    denormals();
    puts("ok");
    return 0;
}
