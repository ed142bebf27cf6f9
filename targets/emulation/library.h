/* Between the files of the library that stands in for libcuda.so.1. */
#include "engine.h"

#define EMU_EXPORT extern "C" __attribute__((visibility("default")))
EMU_EXPORT emu_engine *emu_start(); /* what images get a pointer to */
EMU_EXPORT const char *emu_message(); /* why the last launch that failed did */
/* 0: threads and blocks run in their order; 1: in the opposite one, and what nobody wrote holds other values. A kernel
 * whose results then differ lacks a barrier, or reads what it did not write. */
EMU_EXPORT void emu_order(unsigned seed);
void emu_collective(int operation, void *const *operands, unsigned lanes);
void emu_say(const char *form, ...); /* this launch fails */
bool emu_shared(const void *at, unsigned bytes); /* whether it lies in the block's shared memory */
