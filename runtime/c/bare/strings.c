/* The four functions of <string.h> that compilers call by themselves, for programs that are linked without a C library. */
#include <stddef.h>
#include <stdint.h>

#define KEEP __asm volatile("" ::: "memory") /* or the loop would be compiled to a call of itself */

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    unsigned char *t = to;
    const unsigned char *f = from;
    if (((uintptr_t)t | (uintptr_t)f) % 4 == 0)
        for (; bytes >= 4; bytes -= 4, t += 4, f += 4) {
            *(uint32_t *)(void *)t = *(const uint32_t *)(const void *)f;
            KEEP;
        }
    for (; bytes > 0; bytes--) {
        *t++ = *f++;
        KEEP;
    }
    return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
    unsigned char *t = to;
    const unsigned char *f = from;
    if ((uintptr_t)t <= (uintptr_t)f) return memcpy(to, from, bytes);
    while (bytes-- > 0) {
        t[bytes] = f[bytes];
        KEEP;
    }
    return to;
}

void *memset(void *to, int value, size_t bytes) {
    unsigned char *t = to;
    for (; bytes > 0; bytes--) {
        *t++ = (unsigned char)value;
        KEEP;
    }
    return to;
}

int memcmp(const void *a, const void *b, size_t bytes) {
    const unsigned char *p = a, *q = b;
    for (; bytes > 0; bytes--, p++, q++)
        if (*p != *q) return *p - *q;
    return 0;
}

#define ALIAS(unused, target) __attribute__((alias(#target)))
void *__aeabi_memcpy(void *, const void *, size_t) ALIAS(, memcpy);
void *__aeabi_memcpy4(void *, const void *, size_t) ALIAS(, memcpy);
void *__aeabi_memcpy8(void *, const void *, size_t) ALIAS(, memcpy);
void *__aeabi_memmove(void *, const void *, size_t) ALIAS(, memmove);
void *__aeabi_memmove4(void *, const void *, size_t) ALIAS(, memmove);
void *__aeabi_memmove8(void *, const void *, size_t) ALIAS(, memmove);
void __aeabi_memset(void *to, size_t bytes, int value) {
    memset(to, value, bytes);
}
void __aeabi_memset4(void *, size_t, int) __attribute__((alias("__aeabi_memset")));
void __aeabi_memset8(void *, size_t, int) __attribute__((alias("__aeabi_memset")));
void __aeabi_memclr(void *to, size_t bytes) {
    memset(to, 0, bytes);
}
void __aeabi_memclr4(void *, size_t) __attribute__((alias("__aeabi_memclr")));
void __aeabi_memclr8(void *, size_t) __attribute__((alias("__aeabi_memclr")));
