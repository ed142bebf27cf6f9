/* Trains the last layer of a keyword spotter on a bare Cortex-M, and keeps what it learns through any reset.
 *
 * The body (int8, frozen) turns each word into features once; they are kept in flash. Then the head (float) is trained on
 * them, and after each epoch its parameters and momenta are kept in the other one of two slots. After a reset the newest
 * valid slot is taken and training goes on; the order of the words depends on the epoch alone, so that the same epochs
 * end in the same bits, however often the board was reset.
 *
 * The flash is a RAM of the emulated board (PSRAM) that a reset leaves as it is; it is erased and programmed word by word
 * as a real one is. Behind it lies what only the experiment needs: what was kept when, and the number of resets. */
#include "body.h"
#include "head.h"
#include "samples.h"
#include "semihosting.h"
#include "slots.h"

void *memcpy(void *, const void *, size_t);

enum {
    BATCH = HEAD_TRAIN_STEP_INPUT_Y_BYTES / 4,
    FEATURES = HEAD_TRAIN_STEP_INPUT_INPUT_BYTES / BATCH / 4,
    TRAINED = WORDS / 2, /* the others show what it has helped */
    PAGE = 4096,
    SLOT = (NERVURE_SLOTS_HEADER + 4 + HEAD_EXPORT_BYTES + PAGE - 1) / PAGE * PAGE,
    TABLE = (NERVURE_SLOTS_HEADER + WORDS * FEATURES * 4 + PAGE - 1) / PAGE * PAGE
};
#define FLASH UINT32_C(0x21000000)
#define SYSTICK ((volatile uint32_t *)0xE000E010)
#define RESET_REQUEST (*(volatile uint32_t *)0xE000ED0C) /* AIRCR */

/* What the experiment remembers through a reset. */
typedef struct {
    uint32_t boots, kept, writing, while_writing;
} experiment;
#define LOG ((volatile experiment *)(FLASH + 2 * SLOT + 2 * TABLE))

static BODY_ARENA(body_arena);
static const body_memory body = {body_arena};
/* The features are collected before there is anything to train, so that both may lie in the same place. */
static union {
    float features[WORDS][FEATURES];
    struct {
        HEAD_ARENA(arena);
        struct {
            uint32_t epochs;
            unsigned char blob[HEAD_EXPORT_BYTES];
        } saved;
    } training;
} ram __attribute__((aligned(8)));
static const head_memory head = {ram.training.arena};

static void fail(const char *what) {
    nervure_print(what);
    nervure_print("\n");
    nervure_exit(1);
}

static void check(int status) {
    if (status != HEAD_OK) fail(head_status_text(status));
}

/* -- the flash ------------------------------------------------------------------------------------------------------ */

/* Slow, as flash is: much of the time is spent here, so that many resets fall into it. */
static void wait(void) {
    uint32_t rounds = 100;
    __asm volatile("1: subs %0, #1\n bne 1b" : "+r"(rounds) : : "cc");
}

static int erase(void *user, const void *at, uint32_t bytes) {
    volatile uint32_t *to = (volatile uint32_t *)(uintptr_t)at;
    (void)user;
    LOG->writing = 1;
    for (uint32_t i = 0; i < bytes / 4; i++) to[i] = 0xFFFFFFFF, wait();
    LOG->writing = 0;
    return 0;
}

static int program(void *user, const void *at, const void *from, uint32_t bytes) {
    volatile uint32_t *to = (volatile uint32_t *)(uintptr_t)at;
    uint32_t word;
    (void)user;
    LOG->writing = 1;
    for (uint32_t i = 0; i < bytes / 4; i++) {
        memcpy(&word, (const char *)from + 4 * i, 4);
        if (to[i] != 0xFFFFFFFF) return -1; /* a real flash takes each word once */
        to[i] = word;
        wait();
    }
    LOG->writing = 0;
    return 0;
}

static const nervure_slots parameters = {{(void *)FLASH, (void *)(FLASH + SLOT)}, SLOT, erase, program, 0};
static const nervure_slots table = {
    {(void *)(FLASH + 2 * SLOT), (void *)(FLASH + 2 * SLOT + TABLE)}, TABLE, erase, program, 0};

/* -- features ------------------------------------------------------------------------------------------------------- */

/* [word][feature], in flash. */
static const float *features(void) {
    nervure_slot found = nervure_slots_find(&table);
    if (found.data != NULL) return (const float *)found.data;
    if (body_init(&body) != BODY_OK) fail("body_init");
    for (int i = 0; i < WORDS; i++) {
        const void *inputs[] = {words[i]};
        void *outputs[] = {ram.features[i]};
        int status = body_infer(&body, inputs, outputs);
        if (status != BODY_OK) fail(body_status_text(status));
    }
    if (nervure_slots_save(&table, ram.features, sizeof ram.features) != NERVURE_SLOTS_OK) fail("the table's flash");
    return (const float *)nervure_slots_find(&table).data;
}

/* -- training ------------------------------------------------------------------------------------------------------- */

static void save(uint32_t epochs) {
    ram.training.saved.epochs = epochs;
    check(head_export(&head, ram.training.saved.blob, HEAD_EXPORT_BYTES));
    if (nervure_slots_save(&parameters, &ram.training.saved, sizeof ram.training.saved) != NERVURE_SLOTS_OK)
        fail("the parameters' flash");
    LOG->kept = epochs;
}

/* The epochs that were done. What was kept last, or what was just being kept, must be there. */
static uint32_t restore(void) {
    nervure_slot found = nervure_slots_find(&parameters);
    uint32_t epochs = 0;
    check(head_init(&head));
    if (found.data != NULL) {
        memcpy(&epochs, found.data, 4);
        if (found.bytes != sizeof ram.training.saved) fail("other parameters");
        check(head_import(&head, found.data + 4, HEAD_EXPORT_BYTES));
    }
    if (epochs != LOG->kept && epochs != LOG->kept + 1) fail("LOST");
    LOG->kept = epochs;
    return epochs;
}

/* The order depends on the epoch alone. */
static void shuffle(uint8_t *order, uint32_t epoch) {
    uint32_t state = epoch * 2654435761u + 1;
    for (int i = 0; i < TRAINED; i++) order[i] = (uint8_t)i;
    for (int i = TRAINED - 1; i > 0; i--) {
        state = state * 1664525u + 1013904223u;
        int other = (int)((state >> 8) % (uint32_t)(i + 1));
        uint8_t kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
}

static void train(const float *x, uint32_t epoch) {
    uint8_t order[TRAINED];
    float *batch = head_train_step_input(&head, HEAD_TRAIN_STEP_INPUT_INPUT);
    int32_t *y = head_train_step_input(&head, HEAD_TRAIN_STEP_INPUT_Y);
    float *weight = head_train_step_input(&head, HEAD_TRAIN_STEP_INPUT_SAMPLE_WEIGHT);
    shuffle(order, epoch);
    for (int first = 0; first + BATCH <= TRAINED; first += BATCH) {
        for (int i = 0; i < BATCH; i++) {
            int word = order[first + i];
            memcpy(batch + i * FEATURES, x + word * FEATURES, FEATURES * sizeof *x);
            y[i] = truth[word];
            weight[i] = 1.0f / BATCH;
        }
        *(float *)head_train_step_input(&head, HEAD_TRAIN_STEP_INPUT_LEARNING_RATE) = 0.01f;
        check(head_train_step(&head, NULL, NULL));
    }
}

/* Mean loss in thousandths and words that are right, from word `first` on. */
static void evaluate(const char *label, const float *x, int first, int count) {
    float loss = 0, right = 0;
    float *batch = head_evaluate_input(&head, HEAD_EVALUATE_INPUT_INPUT);
    int32_t *y = head_evaluate_input(&head, HEAD_EVALUATE_INPUT_Y);
    float *weight = head_evaluate_input(&head, HEAD_EVALUATE_INPUT_SAMPLE_WEIGHT);
    for (int at = first; at + BATCH <= first + count; at += BATCH) {
        memcpy(batch, x + at * FEATURES, BATCH * FEATURES * sizeof *x);
        for (int i = 0; i < BATCH; i++) y[i] = truth[at + i], weight[i] = 1.0f / (float)count;
        check(head_evaluate(&head, NULL, NULL));
        loss += *(float *)head_evaluate_output(&head, HEAD_EVALUATE_OUTPUT_LOSS);
        right += (float)count * *(float *)head_evaluate_output(&head, HEAD_EVALUATE_OUTPUT_ACCURACY);
    }
    nervure_print(label);
    nervure_print(": loss ");
    nervure_print_number((uint32_t)(1000 * loss + 0.5f));
    nervure_print("/1000, right ");
    nervure_print_number((uint32_t)(right + 0.5f));
    nervure_print(" of ");
    nervure_print_number((uint32_t)count);
    nervure_print("\n");
}

/* -- resets at random moments --------------------------------------------------------------------------------------- */

void nervure_tick(void);
void nervure_tick(void) {
    LOG->while_writing += LOG->writing;
    RESET_REQUEST = 0x05FA0004;
    for (;;) continue;
}

/* SysTick counts 40 instructions a tick in the emulator: a reset after up to 6 million. */
static void arm_reset(uint32_t boot) {
    uint32_t state = (SEED + boot) * 2654435761u;
    state ^= state >> 15;
    state *= 2246822519u;
    state ^= state >> 13;
    SYSTICK[1] = 1 + state % 150000;
    SYSTICK[2] = 0;
    SYSTICK[0] = 7;
}

static void report(const char *label, uint32_t number) {
    nervure_print(label);
    nervure_print_number(number);
}

int main(void) {
    extern uint32_t nervure_data_start[], nervure_bss_end[];
    nervure_stack_paint();
    LOG->writing = 0;
    const float *x = features(); /* once; the experiment's resets begin behind it */
    if (LOG->boots++ < RESETS) arm_reset(LOG->boots);
    uint32_t epoch = restore();
    if (RESETS == 0) evaluate("before, words to train with", x, 0, TRAINED);
    if (RESETS == 0) evaluate("before, other words", x, TRAINED, WORDS - TRAINED);
    while (epoch < EPOCHS || LOG->boots <= RESETS) { /* the last reset comes, however many epochs that takes */
        train(x, epoch++);
        save(epoch);
    }
    evaluate("now, words to train with", x, 0, TRAINED);
    evaluate("now, other words", x, TRAINED, WORDS - TRAINED);
    check(head_export(&head, ram.training.saved.blob, HEAD_EXPORT_BYTES));
    if (nervure_write_file("parameters", ram.training.saved.blob, HEAD_EXPORT_BYTES) != 0) fail("parameters");
    report("resets ", LOG->boots - 1);
    report(", of them while the flash was written ", LOG->while_writing);
    report("; epochs ", epoch);
    report("; RAM ", (uint32_t)((uintptr_t)nervure_bss_end - (uintptr_t)nervure_data_start));
    report(" and stack ", nervure_stack_used());
    nervure_print(" bytes\n");
    return 0;
}
