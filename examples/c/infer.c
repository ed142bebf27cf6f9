/* Runs a compiled model from C: one input file, one output file, raw bytes.
 *
 *     nervure compile model.onnx -o build/      # writes build/model.so and build/model.h
 *     cc -std=c11 -Ibuild infer.c build/model.so -Wl,-rpath,build -o infer
 *     ./infer x.bin y.bin
 *
 * The names are those of a model called "model" with an input "x" and an output "y": model.h lists your own. */
#include "model.h"

#include <stdio.h>

enum { THREADS = 2 };

/* All memory that the model needs: nothing is allocated while it runs. */
static _Alignas(64) unsigned char memory[MODEL_CONTEXT_BYTES(THREADS)];
static _Alignas(64) unsigned char x[MODEL_INFER_INPUT_X_BYTES], y[MODEL_INFER_OUTPUT_Y_BYTES];

int main(int argc, char **argv) {
    FILE *in = argc == 3 ? fopen(argv[1], "rb") : NULL;
    if (in == NULL || fread(x, sizeof x, 1, in) != 1) {
        fprintf(stderr, "usage: infer INPUT OUTPUT, where INPUT holds %zu bytes\n", sizeof x);
        return 1;
    }
    fclose(in);

    model_context *context;
    int status = model_create(memory, sizeof memory, THREADS, &context);
    if (status == MODEL_OK) {
        const void *inputs[] = {x};
        void *outputs[] = {y};
        status = model_infer(context, inputs, outputs);
        model_destroy(context);
    }
    if (status != MODEL_OK) {
        fprintf(stderr, "infer: %s\n", model_status_text(status));
        return 1;
    }

    FILE *out = fopen(argv[2], "wb");
    if (out == NULL || fwrite(y, sizeof y, 1, out) != 1 || fclose(out) != 0) {
        fprintf(stderr, "infer: cannot write %s\n", argv[2]);
        return 1;
    }
    return 0;
}
