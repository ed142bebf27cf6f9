/* A compiled policy keeps a pole upright on a cart: the cart is simulated here, after Barto, Sutton and Anderson 1983,
 * with the numbers of Gymnasium's CartPole-v1.
 *
 *     cc -std=c11 -I. cartpole.c policy.so -Wl,-rpath,. -lm -lpthread -o cartpole
 *     ./cartpole 100 1             # episodes, seed
 *
 * The policy takes the state (place, speed, angle, angular speed) and gives a score to each action, left and right.
 * Printed: the first episode, a line a step (state and action), and last of all the mean number of steps of an episode. */
#include "policy.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { LONGEST = 500 };

static const double GRAVITY = 9.8, CART = 1.0, POLE = 0.1, HALF_LENGTH = 0.5, FORCE = 10.0, TICK = 0.02; /* SI units */
static const double FARTHEST = 2.4, STEEPEST = 12 * 2 * 3.14159265358979323846 / 360;

static _Alignas(64) unsigned char memory[POLICY_CONTEXT_BYTES(1)];
static _Alignas(64) float state[4], score[2];

/* A number in [-0.05, 0.05): xorshift (Marsaglia 2003). */
static double start(uint64_t *seed) {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return (double)(*seed >> 11) / 9007199254740992.0 * 0.1 - 0.05;
}

/* One tick of the cart, pushed to the right or to the left. */
static void move(double s[4], int right) {
    const double mass = CART + POLE, sine = sin(s[2]), cosine = cos(s[2]);
    const double push = ((right ? FORCE : -FORCE) + POLE * HALF_LENGTH * s[3] * s[3] * sine) / mass;
    const double turn = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE * cosine * cosine / mass));
    const double pull = push - POLE * HALF_LENGTH * turn * cosine / mass;
    s[0] += TICK * s[1];
    s[1] += TICK * pull;
    s[2] += TICK * s[3];
    s[3] += TICK * turn;
}

/* The steps of one episode, or -1 where the policy fails. */
static int play(policy_context *context, uint64_t *seed, int told) {
    double s[4];
    int steps = 0;
    for (int i = 0; i < 4; i++) s[i] = start(seed);
    while (steps < LONGEST && fabs(s[0]) <= FARTHEST && fabs(s[2]) <= STEEPEST) {
        for (int i = 0; i < 4; i++) state[i] = (float)s[i];
        const void *inputs[] = {state};
        void *outputs[] = {score};
        if (policy_infer(context, inputs, outputs) != POLICY_OK) return -1;
        const int right = score[1] > score[0];
        if (told) printf("%.9g %.9g %.9g %.9g %d\n", state[0], state[1], state[2], state[3], right);
        move(s, right);
        steps++;
    }
    return steps;
}

int main(int argc, char **argv) {
    const long episodes = argc > 1 ? atol(argv[1]) : 100;
    uint64_t seed = 0x9E3779B97F4A7C15u * (uint64_t)(argc > 2 ? atol(argv[2]) + 1 : 1);
    policy_context *context;
    if (policy_create(memory, sizeof memory, 1, &context) != POLICY_OK) return 1;
    long total = 0;
    for (long episode = 0; episode < episodes; episode++) {
        const int steps = play(context, &seed, episode == 0);
        if (steps < 0) return 1;
        total += steps;
    }
    policy_destroy(context);
    printf("%.2f\n", (double)total / (double)(episodes > 0 ? episodes : 1));
    return fflush(stdout) != 0;
}
