/* What kernels call on the GPU, beside CUDA C++ itself. A kernel's text follows this file; targets/emulation has the
 * same functions for the CPU. Sources: "Parallel Thread Execution ISA", CUDA C++ Programming Guide. */
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#ifdef __CUDACC_RTC__ /* which has no header for these; nvcc does */
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif
typedef unsigned uint;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef __nv_bfloat16 nv_bfloat16;

extern __shared__ __align__(16) char nv_shared[]; /* as many bytes as the launch asks for */

#define NV static __device__ __forceinline__

NV float nv_float32_from_bits(uint32_t bits) { return __uint_as_float(bits); }
NV double nv_float64_from_bits(uint64_t bits) { return __longlong_as_double((long long)bits); }
NV half nv_float16_from_bits(uint32_t bits) { return __ushort_as_half((unsigned short)bits); }

/* Sums over the lanes of a warp take their neighbour's value; every lane takes part. */
NV float nv_shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
NV int nv_shuffle_xor_int(int value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
NV float nv_shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
NV int nv_shuffle_int(int value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
NV double nv_shuffle_xor_double(double value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
NV int64_t nv_shuffle_xor_int64(int64_t value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
NV double nv_shuffle_double(double value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
NV int64_t nv_shuffle_int64(int64_t value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
NV void nv_warp_barrier() { __syncwarp(); }

/* 2^x to 2 ulp (PTX: relative error up to 2^-22); subnormal results are 0. */
NV float nv_exp2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

/* Two numbers of 16 bits as one word, the first one low. */
NV uint32_t nv_pack_f16(float a, float b) {
    return (uint32_t)__half_as_ushort(__float2half_rn(b)) << 16 | __half_as_ushort(__float2half_rn(a));
}
NV uint32_t nv_pack_bf16(float a, float b) {
    return (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(b)) << 16 | __bfloat16_as_ushort(__float2bfloat16_rn(a));
}

/* d += a b of one warp; the layout of a lane's registers is PTX's for mma.m16n8k*. */
NV void nv_mma_f16(float *d, const uint32_t *a, const uint32_t *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
NV void nv_mma_bf16(float *d, const uint32_t *a, const uint32_t *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
NV void nv_mma_tf32(float *d, const uint32_t *a, const uint32_t *b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
NV void nv_mma_s8(int32_t *d, const uint32_t *a, const uint32_t *b) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
NV void nv_mma_u8s8(int32_t *d, const uint32_t *a, const uint32_t *b) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* float32 as the tensor cores want it: rounded to 10 bits of fraction. */
NV uint32_t nv_tf32(float value) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
}

/* Four (two) 8x8 matrices of 16-bit numbers from shared memory, as mma wants them; `row` is this lane's row. */
NV void nv_ldmatrix4(uint32_t *to, const void *row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}
NV void nv_ldmatrix2(uint32_t *to, const void *row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1]) : "r"(at) : "memory");
}
NV void nv_ldmatrix4_transposed(uint32_t *to, const void *row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

/* 16 (4) bytes from global to shared memory while the threads go on; zeros where `valid` is 0. Copies are closed into
 * groups; nv_copies_wait0, 1 and 2 wait until at most so many groups are still on their way. */
NV void nv_copy16(void *to, const void *from, int valid) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
NV void nv_copy4(void *to, const void *from, int valid) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
NV void nv_copies_close() { asm volatile("cp.async.commit_group;" ::: "memory"); }
NV void nv_copies_wait0() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
NV void nv_copies_wait1() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
NV void nv_copies_wait2() { asm volatile("cp.async.wait_group 2;" ::: "memory"); }

/* N neighbours as one access, whose address must be a multiple of its size, as another type; `pad` where not `valid`. */
template <int N, class T> struct alignas(N * sizeof(T)) nv_pack { T at[N]; };
template <int N, class To, class From> NV void nv_read(To *to, const From *from, int valid, To pad) {
    if (valid) {
        nv_pack<N, From> got = *(const nv_pack<N, From> *)from;
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = (To)got.at[i];
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = pad;
    }
}
template <int N, class To, class From> NV void nv_read(To *to, const From *from) { nv_read<N>(to, from, 1, To()); }
template <int N, class T> NV void nv_write(T *to, const T *from) {
    nv_pack<N, T> put;
#pragma unroll
    for (int i = 0; i < N; i++) put.at[i] = from[i];
    *(nv_pack<N, T> *)to = put;
}

/* NaN wins, as where a CPU compares (PTX: max.NaN, from compute capability 8.0 on). */
NV float nv_max(float a, float b) {
    float c;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
    return c;
}
NV float nv_min(float a, float b) {
    float c;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
    return c;
}
NV float nv_sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

/* n neighbours between memory and registers (`n` is known when this is compiled), 16 bytes at once where the address
 * is a multiple of that. */
template <class U, class T> NV void nv_load_by(T *to, const T *from, int n) {
    if ((size_t)from % sizeof(U) == 0) {
#pragma unroll
        for (int i = 0; i < (int)(n * sizeof(T) / sizeof(U)); i++) {
            U piece = ((const U *)from)[i];
            memcpy(to + i * sizeof(U) / sizeof(T), &piece, sizeof(U));
        }
    } else {
#pragma unroll
        for (int i = 0; i < n; i++) to[i] = from[i];
    }
}
template <class U, class T> NV void nv_store_by(T *to, const T *from, int n) {
    if ((size_t)to % sizeof(U) == 0) {
#pragma unroll
        for (int i = 0; i < (int)(n * sizeof(T) / sizeof(U)); i++) {
            U piece;
            memcpy(&piece, from + i * sizeof(U) / sizeof(T), sizeof(U));
            ((U *)to)[i] = piece;
        }
    } else {
#pragma unroll
        for (int i = 0; i < n; i++) to[i] = from[i];
    }
}
template <class T> NV void nv_load(T *to, const T *from, int n) {
    const int bytes = n * (int)sizeof(T);
    if (bytes % 16 == 0) nv_load_by<uint4>(to, from, n);
    else if (bytes % 8 == 0) nv_load_by<uint2>(to, from, n);
    else if (bytes % 4 == 0) nv_load_by<uint>(to, from, n);
    else nv_load_by<T>(to, from, n);
}
template <class T> NV void nv_store(T *to, const T *from, int n) {
    const int bytes = n * (int)sizeof(T);
    if (bytes % 16 == 0) nv_store_by<uint4>(to, from, n);
    else if (bytes % 8 == 0) nv_store_by<uint2>(to, from, n);
    else if (bytes % 4 == 0) nv_store_by<uint>(to, from, n);
    else nv_store_by<T>(to, from, n);
}

/* -- operands of matrix products ---------------------------------------------------------------------------------- */

template <int N, class T> NV void nv_clear(T *at) {
#pragma unroll
    for (int i = 0; i < N; i++) at[i] = T(0);
}
template <class T> NV void nv_put(void *to, T value) { *(T *)to = value; }
template <class T> NV void nv_put2(void *to, T first, T second) { *(nv_pack<2, T> *)to = {{first, second}}; }
/* N neighbours, put STEP elements apart. */
template <int N, int STEP, class T> NV void nv_spread(T *to, const void *from) {
    nv_pack<N, T> got = *(const nv_pack<N, T> *)from;
#pragma unroll
    for (int i = 0; i < N; i++) to[i * STEP] = got.at[i];
}
NV void nv_fill4(void *to, uint32_t word) { *(uint32_t *)to = word; }
NV void nv_fill16(void *to, uint32_t word) { *(nv_pack<4, uint32_t> *)to = {{word, word, word, word}}; }
/* Four numbers of 32 bits, `near` and `far` bytes apart: a fragment of operands that no ldmatrix deals out. */
NV void nv_words4(uint32_t *to, const void *from, int near, int far) {
    const char *at = (const char *)from;
    to[0] = *(const uint32_t *)at, to[1] = *(const uint32_t *)(at + near);
    to[2] = *(const uint32_t *)(at + far), to[3] = *(const uint32_t *)(at + near + far);
}
NV void nv_tf32_4(uint32_t *at) {
#pragma unroll
    for (int i = 0; i < 4; i++) at[i] = nv_tf32(__uint_as_float(at[i]));
}
NV void nv_split_tf32_4(uint32_t *at, uint32_t *rest) { /* at = at + rest, each TF32 */
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float value = __uint_as_float(at[i]);
        at[i] = nv_tf32(value);
        rest[i] = nv_tf32(value - __uint_as_float(at[i]));
    }
}
NV void nv_flip4(uint32_t *at) { /* uint8 to int8, 128 less */
#pragma unroll
    for (int i = 0; i < 4; i++) at[i] ^= 0x80808080u;
}
/* d[i][j] += a[i] b[j] */
NV float nv_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
NV double nv_multiply_add(double a, double b, double c) { return fma(a, b, c); }
template <int ROWS, int COLUMNS, class T> NV void nv_fma_tile(T *d, const T *a, const T *b) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) d[i * COLUMNS + j] = nv_multiply_add(a[i], b[j], d[i * COLUMNS + j]);
}

/* -- quantized numbers ---------------------------------------------------------------------------------------------- */

/* Products of four pairs of 8 bits, added to c (PTX: dp4a, from compute capability 6.1 on); a of int8 or uint8, b of int8. */
NV int32_t nv_dp4a(int32_t a, int32_t b, int32_t c) { return __dp4a(a, b, c); }
NV int32_t nv_dp4a_u8s8(int32_t a, int32_t b, int32_t c) {
    int32_t d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
/* clip(round_half_even(sum * multiplier) + zero, low, high); the product is rounded by itself, whatever is contracted. */
NV int32_t nv_rescale(int32_t sum, float multiplier, int32_t zero, int32_t low, int32_t high) {
    float real = __fmul_rn((float)sum, multiplier);
    real = fminf(fmaxf(real, (float)(low - zero)), (float)(high - zero));
    return __float2int_rn(real) + zero;
}

/* -- few rows times many lines ------------------------------------------------------------------------------------ */

/* Sums of products of 16 bytes of two operands. */
NV float nv_dot(const float *a, const float *b, float sum) {
#pragma unroll
    for (int i = 0; i < 4; i++) sum = fmaf(a[i], b[i], sum);
    return sum;
}
NV double nv_dot(const double *a, const double *b, double sum) { return fma(a[1], b[1], fma(a[0], b[0], sum)); }
template <class T> NV float nv_dot(const T *a, const T *b, float sum) { /* numbers of 16 bits */
#pragma unroll
    for (int i = 0; i < 8; i++) sum = fmaf((float)a[i], (float)b[i], sum);
    return sum;
}
/* dp4a of both signs of the activations (PTX ISA). */
NV int nv_dot(const int8_t *a, const int8_t *b, int sum) {
#pragma unroll
    for (int i = 0; i < 4; i++) sum = __dp4a(((const int *)a)[i], ((const int *)b)[i], sum);
    return sum;
}
NV int nv_dot(const int8_t *a, const uint8_t *b, int sum) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        asm("dp4a.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(((const int *)a)[i]), "r"(((const int *)b)[i]));
    return sum;
}
template <class T> struct alignas(16) nv_chunk { T at[16 / sizeof(T)]; };
/* sums[f] += 16 bytes of one line times 16 bytes of row f */
template <int ROWS, class W, class X, class S> NV void nv_dots(S *sums, const W *line, const X *rows, int pitch) {
    nv_chunk<W> w = *(const nv_chunk<W> *)line;
#pragma unroll
    for (int f = 0; f < ROWS; f++) {
        nv_chunk<X> x = *(const nv_chunk<X> *)(rows + f * pitch);
        sums[f] = nv_dot(w.at, x.at, sums[f]);
    }
}
/* sums[f][j] += 16 bytes across the lines times one number of row f */
template <int ROWS, class W, class X, class S> NV void nv_axpys(S *sums, const W *across, const X *rows, int pitch) {
    const int n = 16 / sizeof(W);
    nv_chunk<W> w = *(const nv_chunk<W> *)across;
#pragma unroll
    for (int f = 0; f < ROWS; f++)
#pragma unroll
        for (int j = 0; j < n; j++) sums[f * n + j] = nv_multiply_add((S)rows[f * pitch], (S)w.at[j], sums[f * n + j]);
}
