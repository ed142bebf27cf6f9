/* Tile registers in plain C, from Intel's description of AMX (SDM volume 2, TILELOADD, TDPBUSD, ...): kernels that are
 * built with these names instead of instructions compute what the hardware would. A breach of its rules aborts. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TILES = 8, ROWS = 16, BYTES = 64 };

static _Thread_local struct {
    int ready;
    uint8_t rows[TILES];
    uint16_t bytes[TILES];
    uint8_t data[TILES][ROWS][BYTES];
} state;

static void demand(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "tiles: %s\n", what);
        abort();
    }
}

void emulated_configure(const uint8_t *config) {
    demand(config[0] == 1, "palette 1 is the only one");
    memset(&state, 0, sizeof state);
    for (int t = 0; t < TILES; t++) {
        memcpy(&state.bytes[t], config + 16 + 2 * t, 2);
        state.rows[t] = config[48 + t];
        demand(state.rows[t] <= ROWS && state.bytes[t] <= BYTES, "a tile is too large");
        demand((state.rows[t] == 0) == (state.bytes[t] == 0), "a tile has rows or bytes, not both");
    }
    state.ready = 1;
}

void emulated_release(void) {
    memset(&state, 0, sizeof state);
}

static void check(int8_t t) {
    demand(state.ready, "not configured");
    demand(t >= 0 && t < TILES && state.rows[t] > 0, "a tile that is not configured");
}

void emulated_zero(int8_t t) {
    check(t);
    memset(state.data[t], 0, sizeof state.data[t]);
}

void emulated_load(int8_t t, const uint8_t *from, int64_t stride) {
    check(t);
    memset(state.data[t], 0, sizeof state.data[t]);
    for (int r = 0; r < state.rows[t]; r++) memcpy(state.data[t][r], from + r * stride, state.bytes[t]);
}

void emulated_store(int8_t t, uint8_t *to, int64_t stride) {
    check(t);
    for (int r = 0; r < state.rows[t]; r++) memcpy(to + r * stride, state.data[t][r], state.bytes[t]);
}

static void dot(int8_t c, int8_t a, int8_t b, int a_signed) {
    check(c), check(a), check(b);
    demand(state.rows[c] == state.rows[a], "the sums have as many rows as the left factor");
    demand(state.bytes[c] == state.bytes[b], "the sums have as many columns as the right factor");
    demand(state.bytes[a] / 4 == state.rows[b] && state.bytes[a] % 4 == 0, "the factors do not fit");
    for (int m = 0; m < state.rows[c]; m++) {
        for (int n = 0; n < state.bytes[c] / 4; n++) {
            int32_t sum;
            memcpy(&sum, &state.data[c][m][4 * n], 4);
            for (int k = 0; k < state.bytes[a]; k++) {
                int left = a_signed ? (int8_t)state.data[a][m][k] : state.data[a][m][k];
                sum += left * (int8_t)state.data[b][k / 4][4 * n + k % 4];
            }
            memcpy(&state.data[c][m][4 * n], &sum, 4);
        }
    }
}

void emulated_dot_signed(int8_t c, int8_t a, int8_t b) {
    dot(c, a, b, 1);
}

void emulated_dot_unsigned(int8_t c, int8_t a, int8_t b) {
    dot(c, a, b, 0);
}
