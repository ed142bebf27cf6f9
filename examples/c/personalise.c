/* Trains the last layers of a keyword spotter on the device, and survives a loss of power at any moment.
 *
 *     personalise TRAIN.bin TEST.bin FOLDER EPOCHS [RATE]
 *
 * A sample is 490 floats and an int32 label. After each epoch the parameters (and the optimizer's state) are saved in
 * FOLDER; started again, the program goes on from there, and the same epochs end in the same bytes. examples/
 * personalise.py makes the model, the samples and this program. No memory is allocated by the model: all that it needs
 * is known when this is compiled. */
#define _POSIX_C_SOURCE 200809L
#include "kws.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    BATCH = KWS_TRAIN_STEP_INPUT_Y_BYTES / sizeof(int32_t),
    SAMPLE = KWS_TRAIN_STEP_INPUT_X_BYTES / sizeof(float) / BATCH,
    MOST = 1000
};

/* fill() serves both */
_Static_assert(KWS_EVALUATE_INPUT_X == KWS_TRAIN_STEP_INPUT_X && KWS_EVALUATE_INPUT_Y == KWS_TRAIN_STEP_INPUT_Y &&
                   KWS_EVALUATE_INPUT_SAMPLE_WEIGHT == KWS_TRAIN_STEP_INPUT_SAMPLE_WEIGHT,
               "evaluate and train_step take the same batch");

typedef struct {
    float x[SAMPLE];
    int32_t y;
} sample;

typedef struct {
    sample all[MOST];
    int count;
} samples;

static _Alignas(64) unsigned char memory[KWS_CONTEXT_BYTES(1)];
static samples training, test;

static void check(int status, const char *what) {
    if (status == KWS_OK) return;
    fprintf(stderr, "%s: %s\n", what, kws_status_text(status));
    exit(1);
}

static void read_samples(const char *path, samples *to) {
    FILE *file = fopen(path, "rb");
    if (file != NULL) to->count = (int)fread(to->all, sizeof(sample), MOST, file);
    if (file == NULL || to->count == 0) {
        fprintf(stderr, "no samples in %s\n", path);
        exit(1);
    }
    fclose(file);
}

/* -- saved parameters: two generations, written in turn, so that one is whole whatever happens ---------------------- */

/* The blob has a checksum of its own; the number of epochs is its own check. */
static struct {
    uint32_t epochs, inverse;
    unsigned char blob[KWS_EXPORT_BYTES];
} saved;

static void path_of(char *path, size_t size, const char *folder, const char *name) {
    if (snprintf(path, size, "%s/%s", folder, name) < (int)size) return;
    fprintf(stderr, "%s: too long a name\n", folder);
    exit(1);
}

static int write_all(int file, const void *data, size_t bytes) {
    for (const char *at = data; bytes > 0;) {
        ssize_t written = write(file, at, bytes);
        if (written <= 0) return -1;
        at += written;
        bytes -= (size_t)written;
    }
    return 0;
}

/* Beside, onto the disk, renamed, and the name onto the disk. */
static void save(kws_context *context, const char *folder, uint32_t epochs) {
    char fresh[4096], path[4096];
    path_of(fresh, sizeof fresh, folder, "params.tmp");
    path_of(path, sizeof path, folder, epochs % 2 ? "params.1" : "params.0");
    saved.epochs = epochs;
    saved.inverse = ~epochs;
    check(kws_export(context, saved.blob, sizeof saved.blob), "export");
    int file = open(fresh, O_WRONLY | O_CREAT | O_TRUNC, 0644), directory = open(folder, O_RDONLY);
    if (file < 0 || write_all(file, &saved, sizeof saved) || fsync(file) || close(file) || rename(fresh, path) ||
        fsync(directory) || close(directory)) {
        perror(path);
        exit(1);
    }
}

/* Number of epochs in a file of saved parameters, or -1 if there is none that is whole. */
static int64_t look(const char *folder, const char *name) {
    char path[4096];
    path_of(path, sizeof path, folder, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) return -1;
    size_t read = fread(&saved, 1, sizeof saved, file);
    fclose(file);
    return read == sizeof saved && saved.inverse == (uint32_t)~saved.epochs ? (int64_t)saved.epochs : -1;
}

/* Takes the newer generation, the older one where the newer is damaged; returns the number of epochs done. */
static uint32_t restore(kws_context *context, const char *folder) {
    int64_t even = look(folder, "params.0"), odd = look(folder, "params.1");
    for (int attempt = 0; attempt < 2; attempt++) {
        const char *name = (attempt == 0) == (even > odd) ? "params.0" : "params.1";
        int64_t epochs = look(folder, name);
        if (epochs < 0) continue;
        int status = kws_import(context, saved.blob, sizeof saved.blob);
        if (status == KWS_OK) return (uint32_t)epochs;
        fprintf(stderr, "%s: %s\n", name, kws_status_text(status));
    }
    return 0;
}

/* -- training ------------------------------------------------------------------------------------------------------- */

/* A batch in the model's own buffers: inputs that are NULL lie there. What is missing in the last batch weighs nothing. */
static void fill(kws_context *context, int entry, const int *order, const samples *from, int first, int count, float each) {
    float *x = kws_input(context, entry, KWS_TRAIN_STEP_INPUT_X);
    int32_t *y = kws_input(context, entry, KWS_TRAIN_STEP_INPUT_Y);
    float *weight = kws_input(context, entry, KWS_TRAIN_STEP_INPUT_SAMPLE_WEIGHT);
    for (int i = 0; i < BATCH; i++) {
        int at = i < count ? first + i : first;
        const sample *one = &from->all[order != NULL ? order[at] : at];
        memcpy(x + (size_t)i * SAMPLE, one->x, sizeof one->x);
        y[i] = one->y;
        weight[i] = i < count ? each : 0;
    }
}

static int least(int a, int b) {
    return a < b ? a : b;
}

static void evaluate(kws_context *context, const char *label) {
    float loss = 0, accuracy = 0;
    for (int first = 0; first < test.count; first += BATCH) {
        int count = least(BATCH, test.count - first);
        fill(context, KWS_EVALUATE, NULL, &test, first, count, 1.0f / (float)test.count);
        check(kws_evaluate(context, NULL, NULL), "evaluate");
        loss += *(float *)kws_output(context, KWS_EVALUATE, KWS_EVALUATE_OUTPUT_LOSS);
        accuracy += *(float *)kws_output(context, KWS_EVALUATE, KWS_EVALUATE_OUTPUT_ACCURACY);
    }
    printf("%s: loss %.4f, accuracy %.1f %%\n", label, (double)loss, 100 * (double)accuracy);
}

/* The order depends on the epoch alone: a training that goes on takes the samples in the same one. */
static void shuffle(int *order, int count, uint32_t epoch) {
    uint64_t state = epoch * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (int i = 0; i < count; i++) order[i] = i;
    for (int i = count - 1; i > 0; i--) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        int other = (int)((state >> 33) % (uint64_t)(i + 1)), kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
}

static float train(kws_context *context, uint32_t epoch, float rate) {
    static int order[MOST];
    float sum = 0;
    int steps = 0;
    shuffle(order, training.count, epoch);
    for (int first = 0; first < training.count; first += BATCH, steps++) {
        int count = least(BATCH, training.count - first);
        fill(context, KWS_TRAIN_STEP, order, &training, first, count, 1.0f / (float)count);
        *(float *)kws_input(context, KWS_TRAIN_STEP, KWS_TRAIN_STEP_INPUT_LEARNING_RATE) = rate;
        check(kws_train_step(context, NULL, NULL), "train_step");
        sum += *(float *)kws_output(context, KWS_TRAIN_STEP, KWS_TRAIN_STEP_OUTPUT_LOSS);
    }
    return sum / (float)steps;
}

int main(int argc, char **argv) {
    kws_context *context;
    if (argc < 5) {
        fprintf(stderr, "usage: personalise TRAIN.bin TEST.bin FOLDER EPOCHS [RATE]\n");
        return 1;
    }
    read_samples(argv[1], &training);
    read_samples(argv[2], &test);
    const char *folder = argv[3];
    uint32_t wanted = (uint32_t)strtoul(argv[4], NULL, 10);
    float rate = argc > 5 ? strtof(argv[5], NULL) : 0.02f;
    printf("RAM: inference %u bytes, training %u, parameters and states %u; to save %u\n", KWS_INFER_ARENA_BYTES,
           KWS_TRAIN_STEP_ARENA_BYTES, KWS_PARAMS_BYTES + KWS_STATES_BYTES + KWS_DERIVED_BYTES, KWS_EXPORT_BYTES);
    check(kws_create(memory, sizeof memory, 1, &context), "create");
    uint32_t epoch = restore(context, folder);
    char label[40];
    snprintf(label, sizeof label, "after %u epochs", (unsigned)epoch);
    evaluate(context, epoch > 0 ? label : "before");
    while (epoch < wanted) {
        float loss = train(context, epoch++, rate);
        save(context, folder, epoch);
        printf("epoch %u: loss %.4f\n", (unsigned)epoch, (double)loss);
        fflush(stdout);
    }
    evaluate(context, "now");
    return kws_destroy(context);
}
