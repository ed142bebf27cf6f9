/* What depends on the CPU: its features, its floating-point environment, and the clock. */
#define _GNU_SOURCE
#include "nervure.h"

#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xmmintrin.h>

#define TILE_DATA 18 /* its bit in XCR0 */
#define REQUEST_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM, Linux 5.16 */

static uint32_t cpuid_word(uint32_t leaf, uint32_t subleaf, int reg) {
    uint32_t words[4] = {0, 0, 0, 0};
    if (__get_cpuid_max(leaf & 0x80000000u, NULL) < leaf) return 0;
    __cpuid_count(leaf, subleaf, words[0], words[1], words[2], words[3]);
    return words[reg];
}

/* Vector registers count only where the operating system saves them (XCR0). */
static uint32_t saved_registers(void) {
    uint32_t low = 0, high = 0;
    if ((cpuid_word(1, 0, 2) >> 27 & 1) == 0) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Linux gives the tile registers to a process that asks for them; every thread then has them. */
static bool tiles_granted(uint32_t wanted) {
    return (wanted >> TILE_DATA & 1) == 0 || syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

int nervure_cpu_lacks(const nervure_feature *features, int count) {
    uint32_t saved = saved_registers();
    for (int i = 0; i < count; i++) {
        const nervure_feature *f = &features[i];
        bool there = (cpuid_word(f->leaf, f->subleaf, f->reg) >> f->bit & 1) != 0;
        if (!there || (saved & f->saved) != f->saved || !tiles_granted(f->saved)) return i;
    }
    return -1;
}

uintptr_t nervure_float_enter(bool flush) {
    unsigned was = _mm_getcsr();
    _mm_setcsr(flush ? 0x9fc0 : 0x1f80); /* FTZ, DAZ */
    return was;
}

void nervure_float_leave(uintptr_t saved) {
    _mm_setcsr((unsigned)saved);
}

#else
#include <sys/auxv.h>
#ifndef AT_HWCAP2
#define AT_HWCAP2 26
#endif

int nervure_cpu_lacks(const nervure_feature *features, int count) {
    for (int i = 0; i < count; i++) {
        unsigned long word = getauxval(features[i].leaf == 0 ? AT_HWCAP : AT_HWCAP2);
        if ((word >> features[i].bit & 1) == 0) return i;
    }
    return -1;
}

#if defined(__aarch64__)
uintptr_t nervure_float_enter(bool flush) {
    uint64_t was;
    __asm__ volatile("mrs %0, fpcr" : "=r"(was));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)flush << 24));
    return (uintptr_t)was;
}

void nervure_float_leave(uintptr_t saved) {
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)saved));
}
#elif defined(__arm__) && defined(__ARM_FP)
uintptr_t nervure_float_enter(bool flush) {
    uint32_t was;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(was));
    __asm__ volatile("vmsr fpscr, %0" : : "r"((uint32_t)flush << 24));
    return was;
}

void nervure_float_leave(uintptr_t saved) {
    __asm__ volatile("vmsr fpscr, %0" : : "r"((uint32_t)saved));
}
#else
uintptr_t nervure_float_enter(bool flush) {
    (void)flush;
    return 0;
}

void nervure_float_leave(uintptr_t saved) {
    (void)saved;
}
#endif
#endif

uint64_t nervure_nanoseconds(void *user) {
    struct timespec now;
    (void)user;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
