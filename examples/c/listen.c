/* Spoken digits, heard frame by frame: a compiled LSTM that was trained on whole recordings.
 *
 *     cc -std=c11 -I. listen.c streaming_lstm.so -Wl,-rpath,. -lpthread -o listen
 *     ./listen 49 < frames         # frames of a recording; float32, one recording after the other
 *
 * The network keeps its state from call to call; a reset makes it ready for the next recording. Printed after each
 * frame: how probable each digit is by now. */
#include "streaming_lstm.h"

#include <stdio.h>
#include <stdlib.h>

enum { BANDS = 40, DIGITS = 10 };

static _Alignas(64) unsigned char memory[STREAMING_LSTM_CONTEXT_BYTES(1)];
static _Alignas(64) float frame[BANDS], probability[DIGITS];

int main(int argc, char **argv) {
    const long frames = argc == 2 ? strtol(argv[1], NULL, 10) : 0;
    if (frames < 1) {
        fprintf(stderr, "usage: listen FRAMES < frames\n");
        return 1;
    }
    const void *inputs[] = {frame};
    void *outputs[] = {probability};
    streaming_lstm_context *context;
    int status = streaming_lstm_create(memory, sizeof memory, 1, &context);
    for (long heard = 0; status == STREAMING_LSTM_OK && fread(frame, sizeof frame, 1, stdin) == 1; heard++) {
        if (heard % frames == 0) status = streaming_lstm_reset(context);
        if (status == STREAMING_LSTM_OK) status = streaming_lstm_infer(context, inputs, outputs);
        for (int i = 0; i < DIGITS; i++) printf("%.9g%c", probability[i], i + 1 < DIGITS ? ' ' : '\n');
    }
    if (status != STREAMING_LSTM_OK) {
        fprintf(stderr, "listen: %s\n", streaming_lstm_status_text(status));
        return 1;
    }
    streaming_lstm_destroy(context);
    return fflush(stdout) ? 1 : 0;
}
