/* A plugin of QEMU (API version 1) that counts executed instructions by function, between the calls of
 * nervure_count_start and nervure_count_stop:
 *   -plugin count.so,symbols=FILE,out=FILE
 * `symbols` has lines "start end name" (hexadecimal, end not counted), sorted; `out` gets lines "name count", then, for
 * each call of a kernel in order, "call name count": what was executed until the next one, callees included.
 * The few declarations are those of QEMU's public header, which Debian does not ship. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t qemu_info_t;
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { MOST = 65536, DIGEST = 16 };
typedef struct {
    uint64_t start, end, seen, before, counted;
    char name[200];
} function;
static function *table;
static int functions;
static char out[4096];

typedef struct {
    const function *kernel;
    uint64_t from; /* what had been executed of everything before */
} call;
static call calls[MOST];
static int called, counting;
static uint64_t last;

static uint64_t executed(void) {
    uint64_t sum = 0;
    for (int i = 0; i < functions; i++) sum += table[i].seen;
    return sum;
}

/* A kernel's name is k_TEMPLATE_DIGEST. */
static int is_kernel(const char *name) {
    size_t length = strlen(name);
    if (strncmp(name, "k_", 2) != 0 || length < DIGEST + 3 || name[length - DIGEST - 1] != '_') return 0;
    return strspn(name + length - DIGEST, "0123456789abcdef") == DIGEST;
}

static function *find(uint64_t address) {
    int low = 0, high = functions;
    while (low < high) {
        int middle = (low + high) / 2;
        if (table[middle].end <= address) low = middle + 1;
        else high = middle;
    }
    return low < functions && table[low].start <= address ? &table[low] : NULL;
}

static void start(unsigned cpu, void *data) {
    (void)cpu, (void)data;
    for (int i = 0; i < functions; i++) table[i].before = table[i].seen;
    counting = 1;
}

static void stop(unsigned cpu, void *data) {
    (void)cpu, (void)data;
    for (int i = 0; i < functions; i++) table[i].counted += table[i].seen - table[i].before;
    last = executed();
    counting = 0;
}

static void enter(unsigned cpu, void *data) {
    (void)cpu;
    if (counting && called < MOST) calls[called++] = (call){data, executed()};
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    for (size_t i = 0, n = qemu_plugin_tb_n_insns(block); i < n; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        uint64_t address = qemu_plugin_insn_vaddr(instruction);
        function *at = find(address);
        if (at == NULL) continue;
        if (address == at->start && strcmp(at->name, "nervure_count_start") == 0)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, start, 0, NULL);
        else if (address == at->start && strcmp(at->name, "nervure_count_stop") == 0)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, stop, 0, NULL);
        else {
            if (address == at->start && is_kernel(at->name))
                qemu_plugin_register_vcpu_insn_exec_cb(instruction, enter, 0, at);
            qemu_plugin_register_vcpu_insn_exec_inline(instruction, 0, &at->seen, 1);
        }
    }
}

static void write_counts(qemu_plugin_id_t id, void *data) {
    (void)id, (void)data;
    FILE *file = fopen(out, "w");
    if (file == NULL) return;
    for (int i = 0; i < functions; i++)
        if (table[i].counted > 0 && strncmp(table[i].name, "nervure_count_", 14) != 0)
            fprintf(file, "%s %llu\n", table[i].name, (unsigned long long)table[i].counted);
    for (int i = 0; i < called; i++) {
        uint64_t to = i + 1 < called ? calls[i + 1].from : last;
        fprintf(file, "call %s %llu\n", calls[i].kernel->name, (unsigned long long)(to - calls[i].from));
    }
    fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                                                               char **argv) {
    (void)info;
    table = calloc(MOST, sizeof *table);
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) == 0) snprintf(out, sizeof out, "%s", argv[i] + 4);
        if (strncmp(argv[i], "symbols=", 8) != 0) continue;
        FILE *file = fopen(argv[i] + 8, "r");
        unsigned long long from, to;
        while (file != NULL && functions < MOST && fscanf(file, "%llx %llx %199s", &from, &to, table[functions].name) == 3) {
            table[functions].start = from;
            table[functions++].end = to;
        }
        if (file != NULL) fclose(file);
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    qemu_plugin_register_atexit_cb(id, write_counts, NULL);
    return 0;
}
