/* Kernels of the learner that test_c_training.py builds by hand. Rows of 16 floats are tasks. */
#include <stdint.h>
#include <time.h>

/* Momentum: the same for every element of a row, so that a torn copy of the weights shows. */
void learn(const float *x, float *m, float *w, int32_t begin, int32_t end) {
    for (int32_t i = begin * 16; i < end * 16; i++) {
        m[i] = 0.5f * m[i] + x[0];
        w[i] += 1.0f;
    }
}

void pack(const float *w, float *packed) {
    for (int i = 0; i < 64; i++) packed[i] = 2 * w[i];
}

void score(const float *x, const float *packed, float *y, int32_t begin, int32_t end) {
    for (int32_t i = begin * 16; i < end * 16; i++) y[i] = x[0] * packed[i];
}

void count_one(int32_t *count) {
    *count += 1;
}

/* Two tasks that wait for each other: one is the caller's, the other a helper's. Each halves 16 floats. */
void halve_together(int32_t *arrived, const float *x, float *y, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++) {
        int32_t all = (__atomic_fetch_add(arrived, 1, __ATOMIC_ACQ_REL) / 2 + 1) * 2;
        for (int wait = 0; wait < 20000 && __atomic_load_n(arrived, __ATOMIC_ACQUIRE) < all; wait++)
            nanosleep(&(struct timespec){0, 1000000}, 0);
        for (int32_t i = row * 16; i < row * 16 + 16; i++) y[i] = x[i] * 0.5f;
    }
}
