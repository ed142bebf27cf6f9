/* Runs a spiking network event by event: what does not spike costs nothing.
 *
 *     events < EVENTS
 *
 * EVENTS are int32 numbers: a pixel that spikes is its number, -1 ends a time step, -2 a picture. A line comes out for
 * each picture: how often each output neuron spiked, then the spikes of the pixels, those of the hidden neurons, and the
 * additions of weights that they took. examples/spiking_network.py makes the network, the events and this program. */
#include "spiking_network.h"

#include <stdint.h>
#include <stdio.h>

enum {
    HIDDEN = SPIKING_NETWORK_HIDDEN_STEP_OUTPUT_OUTPUT_BYTES / sizeof(float),
    CLASSES = SPIKING_NETWORK_OUTPUT_STEP_OUTPUT_OUTPUT_BYTES / sizeof(float)
};

static _Alignas(64) unsigned char memory[SPIKING_NETWORK_CONTEXT_BYTES(1)];
static float hidden[HIDDEN], output[CLASSES];

/* The end of a time step: the hidden neurons leak and spike, each spike goes on as an event, then the output neurons.
 * Returns the number of hidden spikes, or -1. */
static int tick(spiking_network_context *network, int counts[CLASSES]) {
    int spikes = 0, status = spiking_network_hidden_step(network, NULL, (void *[]){hidden});
    for (int32_t i = 0; i < HIDDEN; i++) {
        if (hidden[i] == 0) continue;
        status |= spiking_network_hidden_event(network, (const void *[]){&i}, NULL);
        spikes++;
    }
    status |= spiking_network_output_step(network, NULL, (void *[]){output});
    for (int c = 0; c < CLASSES; c++) counts[c] += output[c] != 0;
    return status == SPIKING_NETWORK_OK ? spikes : -1;
}

int main(void) {
    spiking_network_context *network;
    if (spiking_network_create(memory, sizeof memory, 1, &network) != SPIKING_NETWORK_OK) return 1;
    int counts[CLASSES] = {0}, pixels = 0, neurons = 0;
    for (int32_t event; fread(&event, sizeof event, 1, stdin) == 1;) {
        if (event >= 0) {
            pixels++;
            if (spiking_network_pixel_event(network, (const void *[]){&event}, NULL) != SPIKING_NETWORK_OK) return 1;
        } else if (event == -1) {
            int spikes = tick(network, counts);
            if (spikes < 0) return 1;
            neurons += spikes;
        } else {
            for (int c = 0; c < CLASSES; c++) printf("%d ", counts[c]), counts[c] = 0;
            printf("%d %d %d\n", pixels, neurons, pixels * HIDDEN + neurons * CLASSES);
            pixels = neurons = 0;
            if (spiking_network_reset(network) != SPIKING_NETWORK_OK) return 1;
        }
    }
    spiking_network_destroy(network);
    return fflush(stdout) ? 1 : 0;
}
