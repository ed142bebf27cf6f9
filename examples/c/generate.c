/* Writes text with a compiled language model, character by character.
 *
 *     generate PROMPT COUNT [TEMPERATURE [SEED]]
 *
 * Prints PROMPT and COUNT characters that go on with it: the likeliest ones, or, with a TEMPERATURE above 0, drawn by
 * chance, the hotter the more freely. examples/language_model.py makes language_model.so, its header and this program.
 * A token is a character's ASCII code. What the model has read stays in its cache, so that a character costs one call;
 * no memory is allocated. */
#include "language_model.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { CHARACTERS = LANGUAGE_MODEL_STEP_OUTPUT_SCORES_BYTES / sizeof(float) };

static _Alignas(64) unsigned char memory[LANGUAGE_MODEL_CONTEXT_BYTES(1)];
static _Alignas(64) float scores[CHARACTERS];

/* In [0, 1): xorshift64* (Vigna 2016). */
static double uniform(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (double)((*state * UINT64_C(2685821657736338717)) >> 11) / 9007199254740992.0;
}

static int likeliest(void) {
    int best = 0;
    for (int i = 1; i < CHARACTERS; i++)
        if (scores[i] > scores[best]) best = i;
    return best;
}

/* One by chance: softmax(scores / temperature). */
static int drawn(double temperature, uint64_t *state) {
    double sum = 0, weight[CHARACTERS];
    float most = scores[likeliest()];
    for (int i = 0; i < CHARACTERS; i++) sum += weight[i] = exp((scores[i] - most) / temperature);
    double left = uniform(state) * sum;
    for (int i = 0; i < CHARACTERS; i++)
        if ((left -= weight[i]) < 0) return i;
    return likeliest(); /* what rounding has left over */
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 5 || argv[1][0] == '\0') {
        fprintf(stderr, "usage: generate PROMPT COUNT [TEMPERATURE [SEED]]\n");
        return 1;
    }
    const char *prompt = argv[1];
    long count = strtol(argv[2], NULL, 10);
    double temperature = argc > 3 ? strtod(argv[3], NULL) : 0;
    uint64_t seed = (argc > 4 ? strtoull(argv[4], NULL, 10) : 1) * 2 + 1; /* never 0 */

    int32_t token;
    const void *inputs[] = {&token};
    void *outputs[] = {scores};
    language_model_context *context;
    int status = language_model_create(memory, sizeof memory, 1, &context);
    while (status == LANGUAGE_MODEL_OK && count >= 0) {
        if (*prompt != '\0') {
            token = *prompt++ & 127;
        } else if (count-- > 0) {
            token = temperature > 0 ? drawn(temperature, &seed) : likeliest();
        } else {
            break;
        }
        putchar(token);
        status = language_model_step(context, inputs, outputs);
    }
    if (status != LANGUAGE_MODEL_OK) {
        fprintf(stderr, "generate: %s\n", language_model_status_text(status));
        return 1;
    }
    language_model_destroy(context);
    return putchar('\n') == EOF || fflush(stdout);
}
