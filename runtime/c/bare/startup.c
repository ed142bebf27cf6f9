/* Reset of a Cortex-M: the FPU on, data and zeros in place, main, and its result to the debugger (semihosting).
 *
 * The linker script gives the addresses. A fault says where it was and why. A program may define nervure_tick, which
 * SysTick calls. */
#include "semihosting.h"

extern uint32_t nervure_data_start[], nervure_data_end[], nervure_data_image[];
extern uint32_t nervure_bss_start[], nervure_bss_end[], nervure_stack_top[];

enum { PAINT = 0x5AA5C33C, MOST_PAINTED = 65536 };
#define REGISTER(address) (*(volatile uint32_t *)(address))

int main(void);
void nervure_reset(void);
void nervure_fault_at(uint32_t pc, uint32_t lr);
void nervure_tick(void);
__attribute__((weak)) void nervure_tick(void) {}

void nervure_reset(void) {
    REGISTER(0xE000ED88) |= 0xFu << 20; /* CPACR: full access to CP10 and CP11 (FPU, Helium) */
    __asm volatile("dsb\n isb" ::: "memory");
    for (uint32_t *to = nervure_data_start, *from = nervure_data_image; to < nervure_data_end;) *to++ = *from++;
    for (uint32_t *to = nervure_bss_start; to < nervure_bss_end;) *to++ = 0;
    nervure_exit(main());
}

void nervure_fault_at(uint32_t pc, uint32_t lr) {
    uint32_t exception;
    __asm volatile("mrs %0, ipsr" : "=r"(exception));
    nervure_print("fault: exception ");
    nervure_print_number(exception);
    nervure_print(" pc ");
    nervure_print_hex(pc);
    nervure_print(" lr ");
    nervure_print_hex(lr);
    nervure_print(" CFSR ");
    nervure_print_hex(REGISTER(0xE000ED28));
    nervure_print(" HFSR ");
    nervure_print_hex(REGISTER(0xE000ED2C));
    nervure_print(" address ");
    nervure_print_hex(REGISTER(0xE000ED38));
    nervure_print("\n");
    nervure_exit(99);
}

/* The core stacked r0 to r3, r12, lr, pc and xPSR. A stack that ran over must not be needed to say so: the handler takes
 * a fresh one. */
__attribute__((naked)) static void fault(void) {
    __asm volatile("tst lr, #4\n"
                   "ite eq\n"
                   "mrseq r0, msp\n"
                   "mrsne r0, psp\n"
                   "ldr r1, [r0, #20]\n"
                   "ldr r0, [r0, #24]\n"
                   "ldr r2, =nervure_stack_top\n"
                   "mov sp, r2\n"
                   "b nervure_fault_at\n");
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    nervure_stack_top, (void *)nervure_reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
    (void *)fault,     (void *)fault,         0,             0,             0,             (void *)fault,
    (void *)fault,     0,                     (void *)fault, (void *)nervure_tick,
};

/* -- what the stack takes, and markers between which the counting plugin counts -------------------------------------- */

static uint32_t *stack_floor(void) {
    uintptr_t top = (uintptr_t)nervure_stack_top, lowest = (uintptr_t)nervure_bss_end;
    return (uint32_t *)(top - lowest > MOST_PAINTED ? top - MOST_PAINTED : lowest);
}

static uint32_t *painted_to;

__attribute__((noinline)) void nervure_stack_paint(void) {
    uint32_t *sp;
    __asm volatile("mov %0, sp" : "=r"(sp));
    painted_to = sp;
    sp -= 16; /* what this function may have pushed since */
    for (uint32_t *at = stack_floor(); at < sp; at++) *(volatile uint32_t *)at = PAINT;
}

uint32_t nervure_stack_used(void) {
    const uint32_t *low = stack_floor();
    while (low < painted_to && *low == PAINT) low++;
    return (uint32_t)((uintptr_t)painted_to - (uintptr_t)low);
}

__attribute__((noinline)) void nervure_count_start(void) { __asm volatile("nop" ::: "memory"); }
__attribute__((noinline)) void nervure_count_stop(void) { __asm volatile("nop\n nop" ::: "memory"); }
