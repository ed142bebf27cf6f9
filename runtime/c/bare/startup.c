/* Reset of a Cortex-M: the FPU on, data and zeros in place, main, and its result to the debugger (semihosting).
 *
 * The linker script gives the addresses; `nervure_stack_top` is also what a program that measures its stack looks at. */
#include "semihosting.h"

extern uint32_t nervure_data_start[], nervure_data_end[], nervure_data_image[];
extern uint32_t nervure_bss_start[], nervure_bss_end[], nervure_stack_top[];

int main(void);

void nervure_reset(void);
void nervure_reset(void) {
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: full access to CP10 and CP11 (FPU, Helium) */
    __asm volatile("dsb\n isb" ::: "memory");
    for (uint32_t *to = nervure_data_start, *from = nervure_data_image; to < nervure_data_end;) *to++ = *from++;
    for (uint32_t *to = nervure_bss_start; to < nervure_bss_end;) *to++ = 0;
    nervure_exit(main());
}

static void fault(void) {
    nervure_print("fault\n");
    nervure_exit(99);
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    nervure_stack_top, (void *)nervure_reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
    (void *)fault,     0,                     0,             0,             0,             (void *)fault,
    (void *)fault,     0,                     (void *)fault, (void *)fault,
};
