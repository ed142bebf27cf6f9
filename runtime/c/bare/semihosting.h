/* What a program on a bare Arm core asks of the debugger or emulator that it runs under (Arm's semihosting, version 2). */
#ifndef NERVURE_SEMIHOSTING_H
#define NERVURE_SEMIHOSTING_H

#include <stddef.h>
#include <stdint.h>

void nervure_print(const char *text);
void nervure_print_number(uint32_t number);
void nervure_print_hex(uint32_t number);
_Noreturn void nervure_exit(int status);
int nervure_read_file(const char *name, void *to, size_t bytes);          /* 0: all bytes are read */
int nervure_write_file(const char *name, const void *from, size_t bytes); /* 0: all bytes are written */

/* startup.c: bytes of the stack that were touched below where it was painted, since then (64 KB are painted). */
void nervure_stack_paint(void);
uint32_t nervure_stack_used(void);
void nervure_count_start(void); /* the plugin that counts instructions counts from here */
void nervure_count_stop(void);  /* to here */

#endif
