/* What runtime/c/cuda/device.h and CUDA C++ give a kernel, for the CPU. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
typedef unsigned uint;
typedef unsigned char uchar;
typedef unsigned short ushort;

/* -- threads of a block as coroutines ----------------------------------------------------------------------------- */

struct emu_dim3 { unsigned x, y, z; };
enum { EMU_MOST = 1024, EMU_STACK = 64 << 10, EMU_READY = 0, EMU_BARRIER, EMU_WARP, EMU_DONE };
struct emu_thread { ucontext_t context; int state; uint32_t deposit[16]; };

static thread_local struct {
    emu_thread *thread;
    char *stacks, *shared;
    unsigned now, count;
    emu_dim3 block;
    ucontext_t main;
    void (*body)(void **);
    void **arguments;
} emu;

static emu_dim3 emu_thread_index() { emu_dim3 i = {emu.now, 0, 0}; return i; }
#define threadIdx emu_thread_index()
#define blockIdx emu.block
#define nv_shared emu.shared

static void emu_entry() {
    emu.body(emu.arguments);
    emu.thread[emu.now].state = EMU_DONE;
    swapcontext(&emu.thread[emu.now].context, &emu.main);
}

static void emu_wait(int state) {
    emu.thread[emu.now].state = state;
    swapcontext(&emu.thread[emu.now].context, &emu.main);
}

static void emu_release(unsigned first, unsigned end, int state) {
    for (unsigned i = first; i < end; i++)
        if (emu.thread[i].state == state) emu.thread[i].state = EMU_READY;
}

/* Runs whoever can run; threads that wait for their warp or for all go on when the last has come. */
static int emu_block() {
    for (;;) {
        unsigned done = 0, ran = 0;
        for (unsigned first = 0; first < emu.count; first += 32) {
            unsigned end = first + 32 < emu.count ? first + 32 : emu.count, waiting = 0, over = 0;
            for (unsigned i = first; i < end; i++) {
                if (emu.thread[i].state == EMU_READY) {
                    emu.now = i;
                    ran++;
                    swapcontext(&emu.main, &emu.thread[i].context);
                }
                waiting += emu.thread[i].state == EMU_WARP;
                over += emu.thread[i].state == EMU_DONE;
            }
            if (waiting == end - first) emu_release(first, end, EMU_WARP), ran++;
            done += over;
        }
        if (done == emu.count) return 0;
        if (ran == 0) {
            for (unsigned i = 0; i < emu.count; i++)
                if (emu.thread[i].state != EMU_BARRIER) return 1; /* some wait for those that never come */
            emu_release(0, emu.count, EMU_BARRIER);
        }
    }
}

static int emu_launch(void (*body)(void **), void **arguments, unsigned blocks, unsigned threads, unsigned shared) {
    emu.thread = (emu_thread *)calloc(threads, sizeof(emu_thread));
    emu.stacks = (char *)malloc((size_t)threads * EMU_STACK);
    emu.shared = (char *)aligned_alloc(256, (shared + 255u) / 256u * 256u + 256u);
    emu.body = body, emu.arguments = arguments, emu.count = threads;
    int status = 0;
    for (unsigned b = 0; status == 0 && b < blocks; b++) {
        emu.block.x = b;
        memset(emu.shared, 0xc5, shared);
        for (unsigned i = 0; i < threads; i++) {
            getcontext(&emu.thread[i].context);
            emu.thread[i].context.uc_stack.ss_sp = emu.stacks + (size_t)i * EMU_STACK;
            emu.thread[i].context.uc_stack.ss_size = EMU_STACK;
            emu.thread[i].context.uc_link = NULL;
            makecontext(&emu.thread[i].context, emu_entry, 0);
            emu.thread[i].state = EMU_READY;
        }
        status = emu_block();
    }
    free(emu.thread), free(emu.stacks), free(emu.shared);
    return status;
}

#define __syncthreads() emu_wait(EMU_BARRIER)
#define nv_warp_barrier() emu_wait(EMU_WARP)

/* -- types and functions of CUDA C++ ------------------------------------------------------------------------------ */

template <class T> static inline T max(T a, T b) { return a > b ? a : b; }
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }

template <class To, class From> static inline To emu_bits(From from) { To to; memcpy(&to, &from, sizeof to); return to; }
static inline float nv_float32_from_bits(uint32_t bits) { return emu_bits<float>(bits); }
static inline double nv_float64_from_bits(uint64_t bits) { return emu_bits<double>(bits); }

/* every lane's value, after all have come */
template <class T> static inline T emu_exchange(T value, unsigned lane) {
    memcpy(emu.thread[emu.now].deposit, &value, sizeof value);
    emu_wait(EMU_WARP);
    T found;
    memcpy(&found, emu.thread[emu.now / 32 * 32 + lane % 32].deposit, sizeof found);
    emu_wait(EMU_WARP); /* nobody deposits anew before all have read */
    return found;
}
static inline float nv_shuffle_xor(float value, int lanes) { return emu_exchange(value, (emu.now % 32) ^ lanes); }
static inline int nv_shuffle_xor_int(int value, int lanes) { return emu_exchange(value, (emu.now % 32) ^ lanes); }
static inline float nv_shuffle(float value, int lane) { return emu_exchange(value, lane); }
static inline int nv_shuffle_int(int value, int lane) { return emu_exchange(value, lane); }

/* N neighbours as one access, whose address must be a multiple of its size, as another type; `pad` where not `valid`. */
template <int N, class T> struct nv_pack { T at[N]; };
static inline int emu_misplaced(const void *at, size_t size) { /* a fault on a GPU; here what follows is wrong */
    if ((uintptr_t)at % size == 0) return 0;
    fprintf(stderr, "emulation: an access of %zu bytes at an address that is no multiple of it\n", size);
    return 1;
}
template <int N, class To, class From> static inline void nv_read(To *to, const From *from, int valid, To pad) {
    if (valid) {
        nv_pack<N, From> got;
        if (emu_misplaced(from, sizeof got)) memset((void *)&got, 0xc5, sizeof got);
        else memcpy((void *)&got, (const void *)from, sizeof got);
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = (To)got.at[i];
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = pad;
    }
}
template <int N, class To, class From> static inline void nv_read(To *to, const From *from) { nv_read<N>(to, from, 1, To()); }
template <int N, class T> static inline void nv_write(T *to, const T *from) {
    if (!emu_misplaced(to, N * sizeof(T))) memcpy((void *)to, (const void *)from, N * sizeof(T));
}
