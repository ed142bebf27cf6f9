/* What the lanes of a warp do together. Source: "Parallel Thread Execution ISA", sections on mma.m16n8k* and ldmatrix. */
#include <stddef.h>
#include <string.h>
#include "library.h"

static void exchange(void *const *operands, unsigned lanes) {
    for (unsigned i = 0; i < lanes; i++) {
        emu_exchange_operand *mine = (emu_exchange_operand *)operands[i];
        if (mine->lane >= lanes) emu_say("a lane reads from lane %u of %u", mine->lane, lanes);
        else mine->result = ((emu_exchange_operand *)operands[mine->lane])->value;
    }
}

template <class To, class From> static To bits(From from) {
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static float from_half(uint32_t v) {
    uint32_t sign = (v & 0x8000) << 16, exponent = v >> 10 & 31, fraction = v & 1023;
    if (exponent == 0) return bits<float>(sign | bits<uint32_t>((float)fraction * 0x1p-24f));
    return bits<float>(sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13);
}

/* The i-th number in a register. */
struct f16 { typedef float sum; enum { EACH = 2 }; static float get(uint32_t v, int i) { return from_half(v >> 16 * i & 0xffff); } };
struct bf16 { typedef float sum; enum { EACH = 2 }; static float get(uint32_t v, int i) { return bits<float>(v >> 16 * i << 16); } };
struct tf32 { typedef float sum; enum { EACH = 1 }; static float get(uint32_t v, int) { return bits<float>(v & 0xffffe000u); } };
struct s8 { typedef int32_t sum; enum { EACH = 4 }; static int get(uint32_t v, int i) { return (signed char)(v >> 8 * i); } };
struct u8 { typedef int32_t sum; enum { EACH = 4 }; static int get(uint32_t v, int i) { return (unsigned char)(v >> 8 * i); } };

/* d[16, 8] += a[16, k] b[k, 8]; lane l holds rows l / 4 and l / 4 + 8 of a and d, column l / 4 of b. */
template <class A, class B> static void mma(void *const *operands) {
    typedef typename A::sum sum;
    enum { EACH = A::EACH, HALF = 4 * EACH, K = 2 * HALF };
    sum a[16][K], b[K][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const emu_mma_operand *mine = (const emu_mma_operand *)operands[lane];
        int row = lane / 4, at = lane % 4;
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < EACH; i++) a[row + r % 2 * 8][at * EACH + i + r / 2 * HALF] = A::get(mine->a[r], i);
        for (int r = 0; r < 2; r++)
            for (int i = 0; i < EACH; i++) b[at * EACH + i + r * HALF][row] = B::get(mine->b[r], i);
        for (int r = 0; r < 4; r++) d[row + r / 2 * 8][at * 2 + r % 2] = ((sum *)mine->d)[r];
    }
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < K; k++)
            for (int n = 0; n < 8; n++) d[m][n] += a[m][k] * b[k][n];
    for (int lane = 0; lane < 32; lane++)
        for (int r = 0; r < 4; r++)
            ((sum *)((const emu_mma_operand *)operands[lane])->d)[r] = d[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
}

/* Matrices of 8 rows of 16 bytes; lanes 8 i to 8 i + 7 hold the addresses of the rows of matrix i. */
static void load_matrices(void *const *operands, int count, bool transposed) {
    uint32_t found[32][4];
    for (int i = 0; i < count; i++) {
        uint16_t matrix[8][8];
        for (int row = 0; row < 8; row++) {
            const void *at = ((const emu_matrix_operand *)operands[8 * i + row])->row;
            if ((size_t)at % 16 || !emu_shared(at, 16))
                return emu_say("ldmatrix: row %d of matrix %d is not 16 bytes of shared memory", row, i);
            memcpy(matrix[row], at, 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            int row = lane / 4, at = lane % 4 * 2;
            uint32_t low = transposed ? matrix[at][row] : matrix[row][at];
            uint32_t high = transposed ? matrix[at + 1][row] : matrix[row][at + 1];
            found[lane][i] = high << 16 | low;
        }
    }
    for (int lane = 0; lane < 32; lane++)
        memcpy(((const emu_matrix_operand *)operands[lane])->to, found[lane], 4 * (size_t)count);
}

void emu_collective(int operation, void *const *operands, unsigned lanes) {
    switch (operation) {
    case EMU_EXCHANGE: return exchange(operands, lanes);
    case EMU_MMA_F16: return mma<f16, f16>(operands);
    case EMU_MMA_BF16: return mma<bf16, bf16>(operands);
    case EMU_MMA_TF32: return mma<tf32, tf32>(operands);
    case EMU_MMA_S8: return mma<s8, s8>(operands);
    case EMU_MMA_U8S8: return mma<u8, s8>(operands);
    case EMU_LDMATRIX1: case EMU_LDMATRIX1_T: return load_matrices(operands, 1, operation == EMU_LDMATRIX1_T);
    case EMU_LDMATRIX2: case EMU_LDMATRIX2_T: return load_matrices(operands, 2, operation == EMU_LDMATRIX2_T);
    case EMU_LDMATRIX4: case EMU_LDMATRIX4_T: return load_matrices(operands, 4, operation == EMU_LDMATRIX4_T);
    default: return;
    }
}
