/* Spots keywords on a bare Cortex-M: all memory is one block, all weights stay in flash.
 *
 * The instructions of each inference are counted by SysTick. In the emulator with `-icount shift=0` its clock runs with
 * the instructions, one a nanosecond: what is printed are instructions, not cycles. On a board it would be cycles. */
#include "kws.h"
#include "semihosting.h"
#include "words.h"

static KWS_ARENA(arena);
KWS_CHECK(arena);
static const kws_memory memory = {arena};

#define SYSTICK ((volatile uint32_t *)0xE000E010) /* control, reload, current */
enum { LONGEST = 0xFFFFFF };
static volatile uint32_t wraps;

void nervure_tick(void);
void nervure_tick(void) {
    wraps++;
}

static uint64_t ticks(void) {
    uint32_t before, now;
    do {
        before = wraps;
        now = LONGEST - SYSTICK[2];
    } while (before != wraps);
    return (uint64_t)before * (LONGEST + 1u) + now;
}

/* Quarters of an instruction that a tick takes, from a loop of 16 million instructions. */
static uint32_t quarters_a_tick(void) {
    uint32_t rounds = 8000000;
    uint64_t before, took;
    SYSTICK[1] = LONGEST;
    SYSTICK[2] = 0;
    SYSTICK[0] = 7; /* the core's clock, with interrupt, on */
    while (SYSTICK[2] == 0) continue;
    before = ticks();
    __asm volatile("1: subs %0, #1\n bne 1b" : "+r"(rounds) : : "cc");
    took = ticks() - before;
    return (uint32_t)((64000000u + took / 2) / took);
}

static int best(const score *scores) {
    int at = 0;
    for (int i = 1; i < CLASSES; i++)
        if (scores[i] > scores[at]) at = i;
    return at;
}

int main(void) {
    uint32_t quarters = quarters_a_tick(), right = 0, instructions = 0;
    nervure_stack_paint();
    int status = kws_init(&memory);
    for (int i = 0; i < WORDS && status == KWS_OK; i++) {
        const void *inputs[] = {words[i]};
        uint64_t before = ticks();
        nervure_count_start();
        status = kws_infer(&memory, inputs, NULL);
        nervure_count_stop();
        instructions = (uint32_t)((ticks() - before) * quarters / 4);
        int word = best(kws_infer_output(&memory, 0));
        right += word == truth[i];
        nervure_print(names[word]);
        nervure_print(word == truth[i] ? "" : " (it was ");
        nervure_print(word == truth[i] ? "" : names[truth[i]]);
        nervure_print(word == truth[i] ? ", " : "), ");
        nervure_print_number(instructions);
        nervure_print(" instructions\n");
    }
    if (status != KWS_OK) {
        nervure_print(kws_status_text(status));
        return 1;
    }
    nervure_print_number(right);
    nervure_print(" of ");
    nervure_print_number(WORDS);
    nervure_print(" right; RAM: arena ");
    nervure_print_number(KWS_ARENA_BYTES);
    nervure_print(", stack ");
    nervure_print_number(nervure_stack_used());
    nervure_print(" bytes\n");
    return 0;
}
