/* What the C API of a static library promises, on an emulated Cortex-M; prints "ok" at its end. */
#include "semihosting.h"
#include "trainable.h"

int memcmp(const void *, const void *, size_t);
void *memcpy(void *, const void *, size_t);

enum { SIZE = 64 };
static TRAINABLE_ARENA(first_arena);
TRAINABLE_CHECK(first_arena);
static TRAINABLE_ARENA(second_arena);
static const trainable_memory first = {first_arena}, second = {second_arena};
static float x[SIZE], y[SIZE];
static int32_t seen[4];
static unsigned char blob[TRAINABLE_EXPORT_BYTES + 1], kept[sizeof first_arena];
static const void *inputs[] = {x};
static void *outputs[] = {y, seen};

#define CHECK(condition) \
    do { \
        if (!(condition)) stop(#condition, __LINE__); \
    } while (0)

static void stop(const char *what, int line) {
    nervure_print("line ");
    nervure_print_number((uint32_t)line);
    nervure_print(": ");
    nervure_print(what);
    nervure_print("\n");
    nervure_exit(1);
}

static float *weights(const trainable_memory *memory) {
    return trainable_param(memory, TRAINABLE_PARAM_W);
}

static void refusals(void) {
    const trainable_memory none = {0}, odd = {first_arena + 1};
    const void *odd_inputs[] = {(char *)x + 1};
    void *odd_outputs[] = {y, (char *)seen + 2};
    CHECK(trainable_init(NULL) == TRAINABLE_NULL && trainable_init(&none) == TRAINABLE_NULL);
    CHECK(trainable_init(&odd) == TRAINABLE_ALIGNMENT && trainable_infer(&odd, NULL, NULL) == TRAINABLE_ALIGNMENT);
    CHECK(trainable_infer(NULL, inputs, outputs) == TRAINABLE_NULL && trainable_reset(&none) == TRAINABLE_NULL);
    CHECK(trainable_infer(&first, odd_inputs, outputs) == TRAINABLE_BUFFER);
    CHECK(trainable_infer(&first, inputs, odd_outputs) == TRAINABLE_BUFFER);
    CHECK(trainable_infer_input(&none, 0) == NULL && trainable_infer_input(&first, 1) == NULL);
    CHECK(trainable_infer_output(&first, -1) == NULL && trainable_infer_output(&first, 2) == NULL);
    CHECK(trainable_param(&first, 1) == NULL && trainable_state(NULL, 0) == NULL);
    for (int i = 0; i < 8; i++) CHECK(trainable_status_text(i)[0] != 0);
    CHECK(memcmp(trainable_status_text(-1), "not a status", 12) == 0);
}

/* y = x * 2 w with fresh copies of w; `seen` counts. */
static void infers(const trainable_memory *memory, float by) {
    CHECK(trainable_infer(memory, inputs, outputs) == TRAINABLE_OK);
    for (int i = 0; i < SIZE; i++) {
        float wanted = x[i] * (2 * weights(memory)[i]);
        CHECK(y[i] - wanted < 1e-5f && wanted - y[i] < 1e-5f);
    }
    CHECK(weights(memory)[0] - (by - 1) < 1e-6f && (by - 1) - weights(memory)[0] < 1e-6f);
}

static void training(void) {
    infers(&first, 0);
    CHECK(trainable_train_step(&first, inputs, NULL) == TRAINABLE_OK);
    infers(&first, 1); /* x is 1: w grew by 1, and the copy was made anew */
    weights(&first)[0] = 4;
    CHECK(trainable_params_changed(&first) == TRAINABLE_OK);
    infers(&first, 5);
    infers(&second, 0); /* another context knows nothing of it */
    int32_t before = *(int32_t *)trainable_state(&first, 0);
    CHECK(before > 10 && trainable_reset(&first) == TRAINABLE_OK && *(int32_t *)trainable_state(&first, 0) == 10);
    CHECK(weights(&first)[0] == 4);
    CHECK(trainable_restore(&first) == TRAINABLE_OK);
    infers(&first, 0);
    memcpy(trainable_infer_input(&first, 0), x, sizeof x); /* slots: the same result */
    CHECK(trainable_infer(&first, NULL, NULL) == TRAINABLE_OK);
    CHECK(memcmp(trainable_infer_output(&first, TRAINABLE_INFER_OUTPUT_Y), y, sizeof y) == 0);
}

static void transfer(void) {
    CHECK(trainable_train_step(&first, inputs, NULL) == TRAINABLE_OK);
    CHECK(trainable_export(&first, blob, TRAINABLE_EXPORT_BYTES - 1) == TRAINABLE_SPACE);
    CHECK(trainable_export(&first, NULL, sizeof blob) == TRAINABLE_NULL);
    CHECK(trainable_export(&first, blob + 1, TRAINABLE_EXPORT_BYTES) == TRAINABLE_OK); /* any alignment */
    CHECK(nervure_write_file("blob", blob + 1, TRAINABLE_EXPORT_BYTES) == 0);
    CHECK(trainable_import(&second, blob + 1, TRAINABLE_EXPORT_BYTES) == TRAINABLE_OK);
    infers(&second, 1);
    memcpy(kept, second_arena, sizeof kept);
    for (uint32_t i = 0; i < TRAINABLE_EXPORT_BYTES; i += 7) { /* whatever byte is damaged, nothing changes */
        blob[1 + i] ^= 0x10;
        CHECK(trainable_import(&second, blob + 1, TRAINABLE_EXPORT_BYTES) >= TRAINABLE_DAMAGED);
        blob[1 + i] ^= 0x10;
    }
    CHECK(trainable_import(&second, blob + 1, TRAINABLE_EXPORT_BYTES - 1) == TRAINABLE_DAMAGED);
    CHECK(trainable_import(&second, blob + 1, 10) == TRAINABLE_DAMAGED);
    CHECK(trainable_import(&second, NULL, 10) == TRAINABLE_NULL);
    static unsigned char foreign[TRAINABLE_EXPORT_BYTES];
    CHECK(nervure_read_file("foreign", foreign, sizeof foreign) == 0);
    CHECK(trainable_import(&second, foreign, sizeof foreign) == TRAINABLE_FOREIGN);
    CHECK(memcmp(kept, second_arena, sizeof kept) == 0);
    CHECK(nervure_read_file("linux", foreign, sizeof foreign) == 0);
    CHECK(trainable_import(&second, foreign, sizeof foreign) == TRAINABLE_OK);
    infers(&second, 3);
}

static uint32_t mode(void) {
    uint32_t now;
    __asm volatile("vmrs %0, fpscr" : "=r"(now));
    return now >> 22 & 15;
}

/* Denormals are kept by inference and flushed by what asks for it; the caller's mode is what it was. */
static void floats(void) {
    volatile float tiny = 1e-39f;
    uint32_t was;
    __asm volatile("vmrs %0, fpscr" : "=r"(was));
    __asm volatile("vmsr fpscr, %0" : : "r"(was | 1u << 22)); /* upwards */
    for (int i = 0; i < SIZE; i++) x[i] = tiny;
    CHECK(trainable_flushing(&first, inputs, outputs) == TRAINABLE_OK && mode() == 1);
    for (int i = 0; i < SIZE; i++) CHECK(memcmp(&y[i], &(float){0}, 4) == 0);
    CHECK(trainable_keeping(&first, inputs, outputs) == TRAINABLE_OK && mode() == 1);
#if !defined(__ARM_FEATURE_MVE) /* Helium's floats are always flushed (Armv8-M manual, StandardFPSCRValue) */
    for (int i = 0; i < SIZE; i++) CHECK(y[i] > 0);
#endif
    __asm volatile("vmsr fpscr, %0" : : "r"(was));
}

int main(void) {
    for (int i = 0; i < SIZE; i++) x[i] = 1;
    CHECK(trainable_init(&first) == TRAINABLE_OK && trainable_init(&second) == TRAINABLE_OK);
    refusals();
    training();
    transfer();
    floats();
    nervure_print("ok\n");
    return 0;
}
