/* The functions of runtime/c/cuda/device.h for the CPU. Source: "Parallel Thread Execution ISA". */
NV float nv_float32_from_bits(uint32_t bits) { return emu_bits<float>(bits); }
NV double nv_float64_from_bits(uint64_t bits) { return emu_bits<double>(bits); }
NV half nv_float16_from_bits(uint32_t bits) { return __ushort_as_half((unsigned short)bits); }

template <class T> NV T emu_exchange(T value, int lane) {
    emu_exchange_operand o = {};
    __builtin_memcpy(&o.value, &value, sizeof value);
    o.lane = (unsigned)lane & 31u;
    emu_machine->warp(EMU_EXCHANGE, &o);
    __builtin_memcpy(&value, &o.result, sizeof value);
    return value;
}
NV int emu_lane() { return (int)(threadIdx.x & 31u); }
template <class T> NV T __shfl_sync(unsigned, T v, int lane, int width = 32) {
    return emu_exchange(v, (emu_lane() & ~(width - 1)) | (lane & (width - 1)));
}
template <class T> NV T __shfl_xor_sync(unsigned, T v, int lanes, int = 32) { return emu_exchange(v, emu_lane() ^ lanes); }
template <class T> NV T __shfl_down_sync(unsigned, T v, int by, int width = 32) {
    int lane = emu_lane(), inside = (lane & (width - 1)) + by;
    return emu_exchange(v, inside < width ? lane + by : lane);
}
template <class T> NV T __shfl_up_sync(unsigned, T v, int by, int width = 32) {
    int lane = emu_lane(), inside = (lane & (width - 1)) - by;
    return emu_exchange(v, inside >= 0 ? lane - by : lane);
}
NV float nv_shuffle_xor(float value, int lanes) { return emu_exchange(value, emu_lane() ^ lanes); }
NV int nv_shuffle_xor_int(int value, int lanes) { return emu_exchange(value, emu_lane() ^ lanes); }
NV float nv_shuffle(float value, int lane) { return emu_exchange(value, lane); }
NV int nv_shuffle_int(int value, int lane) { return emu_exchange(value, lane); }
NV void nv_warp_barrier() { emu_machine->warp(EMU_MEET, nullptr); }

#define EMU_MMA(NAME, D, OPERATION)                                                                                   \
    NV void NAME(D *d, const uint32_t *a, const uint32_t *b) {                                                        \
        emu_mma_operand o = {d, a, b};                                                                                \
        emu_machine->warp(OPERATION, &o);                                                                             \
    }
EMU_MMA(nv_mma_f16, float, EMU_MMA_F16)
EMU_MMA(nv_mma_bf16, float, EMU_MMA_BF16)
EMU_MMA(nv_mma_tf32, float, EMU_MMA_TF32)
EMU_MMA(nv_mma_s8, int32_t, EMU_MMA_S8)
EMU_MMA(nv_mma_u8s8, int32_t, EMU_MMA_U8S8)
NV uint32_t nv_tf32(float value) { /* to the nearest, ties away from zero */
    uint32_t bits = emu_bits<uint32_t>(value);
    if ((bits & 0x7f800000) == 0x7f800000) return bits;
    return (bits + 0x1000) & 0xffffe000;
}

#define EMU_LDMATRIX(NAME, OPERATION)                                                                                 \
    NV void NAME(uint32_t *to, const void *row) {                                                                     \
        emu_matrix_operand o = {to, row};                                                                             \
        emu_machine->warp(OPERATION, &o);                                                                             \
    }
EMU_LDMATRIX(nv_ldmatrix4, EMU_LDMATRIX4)
EMU_LDMATRIX(nv_ldmatrix2, EMU_LDMATRIX2)
EMU_LDMATRIX(nv_ldmatrix4_transposed, EMU_LDMATRIX4_T)

NV void nv_copy16(void *to, const void *from, int valid) { emu_machine->copy(to, from, 16, valid); }
NV void nv_copy4(void *to, const void *from, int valid) { emu_machine->copy(to, from, 4, valid); }
NV void nv_copies_close() { emu_machine->copies_close(); }
NV void nv_copies_wait0() { emu_machine->copies_wait(0); }
NV void nv_copies_wait1() { emu_machine->copies_wait(1); }
NV void nv_copies_wait2() { emu_machine->copies_wait(2); }
NV double nv_shuffle_xor_double(double value, int lanes) { return emu_exchange(value, emu_lane() ^ lanes); }
NV int64_t nv_shuffle_xor_int64(int64_t value, int lanes) { return emu_exchange(value, emu_lane() ^ lanes); }
NV double nv_shuffle_double(double value, int lane) { return emu_exchange(value, lane); }
NV int64_t nv_shuffle_int64(int64_t value, int lane) { return emu_exchange(value, lane); }
NV float nv_exp2(float x) { float r = exp2f(x); return fabsf(r) < 1.17549435e-38f ? 0.0f : r; }

NV float nv_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
template <class T> NV void nv_load(T *to, const T *from, int n) { memcpy((void *)to, (const void *)from, n * sizeof(T)); }
template <class T> NV void nv_store(T *to, const T *from, int n) { memcpy((void *)to, (const void *)from, n * sizeof(T)); }
/* N neighbours as one access, whose address must be a multiple of its size, as another type; `pad` where not `valid`. */
NV void emu_aligned(const void *at, size_t bytes) {
    if ((size_t)at % bytes != 0) __ubsan_handle_type_mismatch_minimal();
}
template <int N, class To, class From> NV void nv_read(To *to, const From *from, int valid, To pad) {
    if (valid) emu_aligned(from, N * sizeof(From));
    for (int i = 0; i < N; i++) to[i] = valid ? (To)from[i] : pad;
}
template <int N, class To, class From> NV void nv_read(To *to, const From *from) { nv_read<N>(to, from, 1, To()); }
template <int N, class T> NV void nv_write(T *to, const T *from) {
    emu_aligned(to, N * sizeof(T));
    for (int i = 0; i < N; i++) to[i] = from[i];
}

/* NaN wins, as where a CPU compares. */
NV float nv_max(float a, float b) { return a != a ? a : b != b ? b : a > b ? a : b; }
NV float nv_min(float a, float b) { return a != a ? a : b != b ? b : a < b ? a : b; }

/* -- operands of matrix products ---------------------------------------------------------------------------------- */

template <int N, class T> NV void nv_clear(T *at) {
    for (int i = 0; i < N; i++) at[i] = T(0);
}
template <class T> NV void nv_put(void *to, T value) { *(T *)to = value; }
template <class T> NV void nv_put2(void *to, T first, T second) {
    emu_aligned(to, 2 * sizeof(T));
    ((T *)to)[0] = first, ((T *)to)[1] = second;
}
/* N neighbours, put STEP elements apart. */
template <int N, int STEP, class T> NV void nv_spread(T *to, const void *from) {
    emu_aligned(from, N * sizeof(T));
    for (int i = 0; i < N; i++) to[i * STEP] = ((const T *)from)[i];
}
NV void nv_fill4(void *to, uint32_t word) { *(uint32_t *)to = word; }
NV void nv_fill16(void *to, uint32_t word) {
    emu_aligned(to, 16);
    for (int i = 0; i < 4; i++) ((uint32_t *)to)[i] = word;
}
/* Four numbers of 32 bits, `near` and `far` bytes apart: a fragment of operands that no ldmatrix deals out. */
NV void nv_words4(uint32_t *to, const void *from, int near, int far) {
    const char *at = (const char *)from;
    to[0] = *(const uint32_t *)at, to[1] = *(const uint32_t *)(at + near);
    to[2] = *(const uint32_t *)(at + far), to[3] = *(const uint32_t *)(at + near + far);
}
NV void nv_tf32_4(uint32_t *at) {
    for (int i = 0; i < 4; i++) at[i] = nv_tf32(__uint_as_float(at[i]));
}
NV void nv_split_tf32_4(uint32_t *at, uint32_t *rest) { /* at = at + rest, each TF32 */
    for (int i = 0; i < 4; i++) {
        float value = __uint_as_float(at[i]);
        at[i] = nv_tf32(value);
        rest[i] = nv_tf32(value - __uint_as_float(at[i]));
    }
}
NV void nv_flip4(uint32_t *at) { /* uint8 to int8, 128 less */
    for (int i = 0; i < 4; i++) at[i] ^= 0x80808080u;
}
/* d[i][j] += a[i] b[j] */
NV float nv_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
NV double nv_multiply_add(double a, double b, double c) { return fma(a, b, c); }
template <int ROWS, int COLUMNS, class T> NV void nv_fma_tile(T *d, const T *a, const T *b) {
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) d[i * COLUMNS + j] = nv_multiply_add(a[i], b[j], d[i * COLUMNS + j]);
}

/* -- quantized numbers ---------------------------------------------------------------------------------------------- */

NV int32_t nv_dp4a(int32_t a, int32_t b, int32_t c) {
    for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}
NV int32_t nv_dp4a_u8s8(int32_t a, int32_t b, int32_t c) {
    for (int i = 0; i < 4; i++) c += (uint8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}
NV int32_t nv_rescale(int32_t sum, float multiplier, int32_t zero, int32_t low, int32_t high) {
    float real = (float)sum * multiplier;
    real = fminf(fmaxf(real, (float)(low - zero)), (float)(high - zero));
    return (int32_t)rintf(real) + zero;
}

/* -- few rows times many lines ------------------------------------------------------------------------------------ */

/* Sums of products of 16 bytes of two operands. */
NV float nv_dot(const float *a, const float *b, float sum) {
    for (int i = 0; i < 4; i++) sum = fmaf(a[i], b[i], sum);
    return sum;
}
NV double nv_dot(const double *a, const double *b, double sum) { return fma(a[1], b[1], fma(a[0], b[0], sum)); }
template <class T> NV float nv_dot(const T *a, const T *b, float sum) { /* numbers of 16 bits */
    for (int i = 0; i < 8; i++) sum = fmaf((float)a[i], (float)b[i], sum);
    return sum;
}
template <class T> NV int nv_dot(const int8_t *a, const T *b, int sum) {
    for (int i = 0; i < 16; i++) sum += a[i] * b[i];
    return sum;
}
template <class T> struct alignas(16) nv_chunk { T at[16 / sizeof(T)]; };
/* sums[f] += 16 bytes of one line times 16 bytes of row f */
template <int ROWS, class W, class X, class S> NV void nv_dots(S *sums, const W *line, const X *rows, int pitch) {
    nv_chunk<W> w = *(const nv_chunk<W> *)line;
    for (int f = 0; f < ROWS; f++) {
        nv_chunk<X> x = *(const nv_chunk<X> *)(rows + f * pitch);
        sums[f] = nv_dot(w.at, x.at, sums[f]);
    }
}
/* sums[f][j] += 16 bytes across the lines times one number of row f */
template <int ROWS, class W, class X, class S> NV void nv_axpys(S *sums, const W *across, const X *rows, int pitch) {
    const int n = 16 / sizeof(W);
    nv_chunk<W> w = *(const nv_chunk<W> *)across;
    for (int f = 0; f < ROWS; f++)
        for (int j = 0; j < n; j++) sums[f * n + j] = nv_multiply_add((S)rows[f * pitch], (S)w.at[j], sums[f * n + j]);
}
NV uint32_t nv_pack_f16(float a, float b) {
    return (uint32_t)__half_as_ushort(__float2half_rn(b)) << 16 | __half_as_ushort(__float2half_rn(a));
}
NV uint32_t nv_pack_bf16(float a, float b) {
    return (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(b)) << 16 | __bfloat16_as_ushort(__float2bfloat16_rn(a));
}
