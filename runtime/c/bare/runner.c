/* Runs one entry point of a model on inputs from files and writes the outputs to files, under an emulator or debugger.
 *
 * job.h, which is generated, says what the model's functions are called. Stack and memory blocks are painted before, so
 * that what was touched is known after. */
#include "semihosting.h"

#include "model.h"

#include "job.h"

enum { PAINT = 0xA5 };

REGION_BLOCKS

static uint32_t touched(const unsigned char *block, uint32_t bytes) {
    while (bytes > 0 && block[bytes - 1] == PAINT) bytes--;
    return bytes;
}

static void report(const char *name, uint32_t number) {
    nervure_print(name);
    nervure_print(" ");
    nervure_print_number(number);
    nervure_print("\n");
}

static __attribute__((noinline)) int fail(const char *what) {
    nervure_print(what);
    nervure_print("\n");
    return 1;
}

static __attribute__((noinline)) int infer(const MODEL_MEMORY *memory) {
    nervure_count_start();
    int status = MODEL_RUN(memory, 0, 0);
    nervure_count_stop();
    return status;
}

int main(void) {
    static const uint32_t input_bytes[] = INPUT_BYTES, output_bytes[] = OUTPUT_BYTES, region_bytes[] = REGION_BYTES;
    static unsigned char *const starts[] = REGION_STARTS;
    static MODEL_MEMORY memory;
    char name[8] = "in0";
    for (int i = 0; i < REGIONS; i++) {
        for (uint32_t k = 0; k < region_bytes[i]; k++) starts[i][k] = PAINT;
        ((void **)(void *)&memory)[i] = starts[i];
    }
    if (MODEL_INIT(&memory) != 0) return fail("init failed");
    for (int i = 0; i < INPUTS; i++) {
        name[2] = (char)('0' + i / 10), name[3] = (char)('0' + i % 10), name[4] = 0;
        if (nervure_read_file(name, MODEL_INPUT(&memory, i), input_bytes[i]) != 0) return fail("cannot read an input");
    }
    nervure_stack_paint();
    if (infer(&memory) != 0) return fail("the model answers with an error");
    report("stack", nervure_stack_used());
    for (int i = 0; i < REGIONS; i++) {
        const char region[] = {'r', 'e', 'g', 'i', 'o', 'n', '_', (char)('0' + i), 0};
        report(region, touched(starts[i], region_bytes[i]));
    }
    for (int i = 0; i < OUTPUTS; i++) {
        char out[8] = {'o', 'u', 't', (char)('0' + i / 10), (char)('0' + i % 10), 0};
        if (nervure_write_file(out, MODEL_OUTPUT(&memory, i), output_bytes[i]) != 0) return fail("cannot write an output");
    }
    return 0;
}
