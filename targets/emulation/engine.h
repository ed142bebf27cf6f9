/* Between the images of an emulated GPU and the engine that runs them (engine.cpp), which every image gets a pointer to
 * when it is loaded. No header of C is needed: an image compiles in a moment. */
#ifdef EMU_IMAGE
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef __SIZE_TYPE__ size_t;
#else
#include <stddef.h>
#include <stdint.h>
#endif

struct emu_index { unsigned x, y, z; };

/* What a warp does together: each lane gives its operands, the last that comes does it for all. */
enum emu_operation {
    EMU_MEET = 1, EMU_EXCHANGE, EMU_MMA_F16, EMU_MMA_BF16, EMU_MMA_TF32, EMU_MMA_S8, EMU_MMA_U8S8,
    EMU_LDMATRIX1, EMU_LDMATRIX2, EMU_LDMATRIX4, EMU_LDMATRIX1_T, EMU_LDMATRIX2_T, EMU_LDMATRIX4_T
};
struct emu_exchange_operand { uint64_t value, result; unsigned lane; };
struct emu_mma_operand { void *d; const uint32_t *a, *b; };
struct emu_matrix_operand { uint32_t *to; const void *row; };

struct emu_engine {
    emu_index thread, block, blocks; /* of the thread that runs; how many blocks there are */
    unsigned threads;
    char *shared;
    /* 0, or 1 where the kernel does what a GPU stops at */
    int (*run)(const char *kernel, void (*body)(void **), void **arguments, unsigned blocks, unsigned threads,
               unsigned shared);
    void (*barrier)();
    void (*warp)(int operation, void *operand);
    void (*copy)(void *to, const void *from, int bytes, int valid);
    void (*copies_close)();
    void (*copies_wait)(int groups);
    void (*fail)(const char *what);
};
