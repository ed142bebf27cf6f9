/* The two slots over a flash that loses its power after any number of words, with torn words and half-erased pages. */
#include "slots.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOT = 1024, WORDS = SLOT / 4 };

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "line %d: %s (%d bytes, cut after %ld, mode %d)\n", __LINE__, #condition, size, cut, mode); \
            exit(1); \
        } \
    } while (0)

static uint32_t flash[2][WORDS], random_state = 1;
static long left, cut;
static int mode, size, twice; /* mode: 0 clean, 1 torn words and pages, 2 erased from the end, 3 the driver fails */
static jmp_buf gone;

static uint32_t any(void) {
    random_state ^= random_state << 13, random_state ^= random_state >> 17, random_state ^= random_state << 5;
    return random_state;
}

/* One word's worth of work; 1 where the power is lost in it. */
static int lost(void) {
    return left-- == 0;
}

static int erase(void *user, const void *at, uint32_t bytes) {
    uint32_t *to = (uint32_t *)(uintptr_t)at;
    (void)user;
    if ((at != flash[0] && at != flash[1]) || bytes != SLOT) abort();
    for (uint32_t i = 0; i < bytes / 4; i++) {
        if (lost()) {
            if (mode == 3) return -1;
            for (uint32_t k = 0; mode == 1 && k < bytes / 4; k++) to[k] |= any() & any(); /* some bits have let go */
            longjmp(gone, 1);
        }
        to[mode == 2 ? bytes / 4 - 1 - i : i] = 0xffffffff;
    }
    return 0;
}

static int program(void *user, const void *at, const void *from, uint32_t bytes) {
    uint32_t *to = (uint32_t *)(uintptr_t)at, word;
    (void)user;
    if (bytes % 32 != 0 || ((uintptr_t)at - (uintptr_t)flash) % 32 != 0) abort();
    for (uint32_t i = 0; i < bytes / 4; i++) {
        memcpy(&word, (const char *)from + 4 * i, 4);
        if (lost()) {
            if (mode == 3) return -1;
            if (mode == 1) to[i] &= word | any();
            longjmp(gone, 1);
        }
        twice += to[i] != 0xffffffff; /* a real flash takes each word once */
        to[i] &= word;
    }
    return 0;
}

static const nervure_slots slots = {{flash[0], flash[1]}, SLOT, erase, program, 0};

static int holds(const unsigned char *data, uint32_t sequence) {
    nervure_slot found = nervure_slots_find(&slots);
    return found.data != 0 && found.bytes == (uint32_t)size && found.sequence == sequence &&
           memcmp(found.data, data, (size_t)size) == 0;
}

/* Old data, new data with the power lost after `cut` words, and a further save. 1 where nothing was cut. */
static int at_this_cut(void) {
    unsigned char data[3][SLOT];
    static int status;
    for (int i = 0; i < 3 * SLOT; i++) data[i / SLOT][i % SLOT] = (unsigned char)any();
    for (int i = 0; i < 2 * WORDS; i++) flash[i / WORDS][i % WORDS] = mode == 1 ? any() : 0xffffffff;
    left = -1;
    CHECK(nervure_slots_find(&slots).data == NULL);
    CHECK(nervure_slots_save(&slots, data[0], (uint32_t)size) == NERVURE_SLOTS_OK && holds(data[0], 1));
    CHECK(nervure_slots_save(&slots, data[1], (uint32_t)size) == NERVURE_SLOTS_OK && holds(data[1], 2));
    left = cut;
    status = -1;
    if (setjmp(gone) == 0) status = nervure_slots_save(&slots, data[2], (uint32_t)size);
    int done = status == NERVURE_SLOTS_OK;
    left = -1;
    if (done) CHECK(holds(data[2], 3));
    else CHECK(holds(data[1], 2) || holds(data[2], 3));
    if (status >= 0 && !done) CHECK(mode == 3 && status == NERVURE_SLOTS_FLASH);
    uint32_t sequence = nervure_slots_find(&slots).sequence;
    CHECK(nervure_slots_save(&slots, data[0], (uint32_t)size) == NERVURE_SLOTS_OK && holds(data[0], sequence + 1));
    CHECK(twice == 0);
    return done;
}

int main(void) {
    static const int sizes[] = {0, 1, 31, 32, 33, 500, SLOT - NERVURE_SLOTS_HEADER};
    static unsigned char data[SLOT];
    long cuts = 0;
    for (mode = 0; mode < 4; mode++)
        for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++)
            for (size = sizes[i], cut = 0; !at_this_cut(); cut++) cuts++;
    size = SLOT - NERVURE_SLOTS_HEADER + 1, left = -1;
    CHECK(nervure_slots_save(&slots, data, (uint32_t)size) == NERVURE_SLOTS_SPACE);
    size = 40;
    for (int i = 0; i < 100000; i++) { /* no garbage passes for data */
        for (int k = 0; k < 32; k++) flash[k / 16][k % 16] = any();
        flash[0][0] = flash[1][0] = 0x534c5652;
        CHECK(nervure_slots_find(&slots).data == NULL);
    }
    printf("%ld cuts\n", cuts);
    return 0;
}
