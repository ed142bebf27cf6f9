#include "semihosting.h"

enum { OPEN = 1, CLOSE = 2, WRITE0 = 4, WRITE = 5, READ = 6, EXIT_EXTENDED = 0x20 };
enum { READ_BINARY = 1, WRITE_BINARY = 5 };

static int32_t call(uint32_t operation, const void *arguments) {
    register uint32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = arguments;
    __asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return (int32_t)r0;
}

void nervure_print(const char *text) {
    call(WRITE0, text);
}

void nervure_print_number(uint32_t number) {
    char text[11], *at = text + sizeof text;
    *--at = 0;
    do *--at = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    nervure_print(at);
}

void nervure_print_hex(uint32_t number) {
    char text[11] = "0x";
    for (int i = 0; i < 8; i++) text[2 + i] = "0123456789abcdef"[number >> (28 - 4 * i) & 15];
    text[10] = 0;
    nervure_print(text);
}

void nervure_exit(int status) {
    uint32_t arguments[2] = {0x20026, (uint32_t)status}; /* ADP_Stopped_ApplicationExit */
    for (;;) call(EXIT_EXTENDED, arguments);
}

static int32_t open_file(const char *name, uint32_t mode) {
    uint32_t length = 0;
    while (name[length] != 0) length++;
    uint32_t arguments[3] = {(uint32_t)(uintptr_t)name, mode, length};
    return call(OPEN, arguments);
}

static int transfer(uint32_t operation, const char *name, uint32_t mode, uintptr_t memory, size_t bytes) {
    int32_t file = open_file(name, mode);
    if (file == -1) return -1;
    uint32_t arguments[3] = {(uint32_t)file, (uint32_t)memory, (uint32_t)bytes};
    int32_t left = bytes > 0 ? call(operation, arguments) : 0; /* the number of bytes that were not transferred */
    uint32_t closing[1] = {(uint32_t)file};
    call(CLOSE, closing);
    return left == 0 ? 0 : -1;
}

int nervure_read_file(const char *name, void *to, size_t bytes) {
    return transfer(READ, name, READ_BINARY, (uintptr_t)to, bytes);
}

int nervure_write_file(const char *name, const void *from, size_t bytes) {
    return transfer(WRITE, name, WRITE_BINARY, (uintptr_t)from, bytes);
}
