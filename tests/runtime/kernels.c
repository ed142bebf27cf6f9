/* Kernels of the hand-made Programs: plain C functions as the compiler makes them. Rows of 16 floats are tasks. */
#include <stdint.h>

void multiply(const float *x, const float *w, float *y, int32_t begin, int32_t end) {
    for (int32_t i = begin * 16; i < end * 16; i++) y[i] = x[i] * w[i % 64];
}

/* Each task sums one row into its own place, through scratch of the worker. */
void row_sums(const float *x, float *sums, float *scratch, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++) {
        for (int32_t i = 0; i < 16; i++) scratch[i] = x[row * 16 + i] * 0.1f;
        float sum = 0;
        for (int32_t i = 0; i < 16; i++) sum += scratch[i];
        sums[row] = sum;
    }
}

void total4(const float *sums, float *y) {
    y[0] = sums[0] + sums[1] + sums[2] + sums[3];
}

void add_total4(const float *sums, float *y) {
    y[0] += sums[0] + sums[1] + sums[2] + sums[3];
}

void twice64(const float *w, float *copy) {
    for (int i = 0; i < 64; i++) copy[i] = 2 * w[i];
}

void add64(const float *x, float *w) {
    for (int i = 0; i < 64; i++) w[i] += x[i];
}

void count4(int32_t *state, int32_t *y) {
    for (int i = 0; i < 4; i++) y[i] = state[i] += i + 1;
}

void positives(const float *x, int64_t *places, int64_t *count) {
    int64_t n = 0;
    for (int i = 0; i < 64; i++) places[i] = 0;
    for (int i = 0; i < 64; i++)
        if (x[i] > 0) places[n++] = i;
    *count = n;
}

void denormal(const float *x, float *y) {
    for (int i = 0; i < 64; i++) y[i] = x[i] * 0.5f;
}
