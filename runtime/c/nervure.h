/* The runtime under a compiled network: contexts in the caller's memory, and workers that walk a Program's phases.
 *
 * Private to an artifact. A generated model.c holds the tables and wraps these functions under the model's own names,
 * which model.h documents. */
#ifndef NERVURE_H
#define NERVURE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NERVURE_ALIGN 64
#define NERVURE_HEADER_BYTES 1024 /* of a context: nervure_context and nervure_pool */
#define NERVURE_WORKER_BYTES 64   /* of each helper, beside its scratch */
#define NERVURE_MAX_THREADS 256
#define NERVURE_MAX_TASKS 1000000 /* of a phase */
#define NERVURE_BLOB_HEADER_BYTES 64

enum {
    NERVURE_OK,
    NERVURE_NULL,
    NERVURE_MEMORY,
    NERVURE_ALIGNMENT,
    NERVURE_THREADS,
    NERVURE_THREAD_START,
    NERVURE_BUSY,
    NERVURE_ENTRY,
    NERVURE_BUFFER,
    NERVURE_FORKED,
    NERVURE_SPACE,
    NERVURE_DAMAGED,
    NERVURE_FOREIGN,
    NERVURE_DRIVER,        /* of a GPU, from here on */
    NERVURE_OLD_DRIVER,
    NERVURE_NO_DEVICE,
    NERVURE_ARCHITECTURE,
    NERVURE_DEVICE_MEMORY,
    NERVURE_DEVICE,
    NERVURE_OLD_COPY,
    NERVURE_STATUS_COUNT,
    NERVURE_FEATURE = 100 /* + index of the feature that this CPU lacks */
};

/* Where a phase's arguments lie. Regions, inputs and outputs follow the fixed bases. */
enum { NERVURE_CONST, NERVURE_PARAM, NERVURE_STATE, NERVURE_DERIVED, NERVURE_REGION };

/* A phase that is not `ranged` is the caller's alone. All of a phase is done before the next one starts. */
typedef struct {
    void (*run)(char *const *base, char *scratch, int32_t begin, int32_t end);
    int32_t tasks;
    uint16_t ranged, region; /* the caller's own scratch lies in a region; helpers have theirs behind the regions */
    size_t scratch;
} nervure_phase;

/* An input or output: its slot in a region, its size and the alignment that the caller's buffer must have. */
typedef struct {
    size_t offset, bytes;
    uint32_t region, align;
} nervure_port;

typedef struct {
    const nervure_phase *phases;
    const int32_t *step_end; /* for each step, the index after its last phase */
    const nervure_port *inputs, *outputs;
    int32_t steps, input_count, output_count;
    bool updates_params; /* derived copies are stale afterwards */
    bool reads_derived;  /* derived copies must be fresh before */
    bool flush;          /* denormals count as zero while it runs: decaying gradients would run into them */
} nervure_entry;

/* A block of the context and the image that it starts from; bytes beyond the image are zero. */
typedef struct {
    const char *image;
    size_t image_bytes, bytes;
} nervure_block;

/* A parameter or state as it is exported. */
typedef struct {
    size_t offset, bytes;
    int32_t base; /* NERVURE_PARAM or NERVURE_STATE */
} nervure_tensor;

/* On x86 a CPUID bit (reg: 0 eax .. 3 edx); elsewhere bit of getauxval(AT_HWCAP) for leaf 0, AT_HWCAP2 for leaf 1. */
typedef struct {
    const char *text;
    uint32_t leaf, subleaf;
    uint8_t reg, bit, saved; /* saved: bits of XCR0 that must be set too */
} nervure_feature;

typedef struct {
    const nervure_entry *entries;
    const char *constants;
    nervure_block params, states;
    size_t derived_bytes;
    const size_t *region_bytes;
    const size_t *param_offsets, *state_offsets;
    const nervure_tensor *tensors; /* in the order of the blob */
    const nervure_feature *features;
    size_t worker_bytes; /* scratch of each helper, for the entry that needs most */
    size_t blob_bytes;
    int32_t entry_count, region_count, param_count, state_count, tensor_count, feature_count;
    int32_t most_inputs, most_outputs; /* of any entry */
    int32_t refresh;                   /* entry that rebuilds derived copies, or -1 */
    uint8_t signature[32];             /* of the names, types and shapes of params and states */
    const struct nervure_gpu_program *gpu; /* NULL: it runs on the CPU */
} nervure_program;

typedef uint64_t (*nervure_clock)(void *user);
typedef struct nervure_pool nervure_pool;

typedef struct {
    const nervure_program *program;
    nervure_pool *pool; /* NULL with one worker */
    char **base;        /* const, param, state, derived, regions, inputs, outputs */
    char *scratch;
    size_t scratch_stride;
    int32_t workers;
    atomic_flag busy;
    bool stale, flush; /* flush: that of the entry that runs */
    nervure_clock clock;
    void *clock_user;
    uint64_t *ticks; /* of each step of the entry that runs, added to; NULL: not timed */
} nervure_context;

size_t nervure_context_bytes(const nervure_program *program, int threads, bool own_regions);
int nervure_create(const nervure_program *program, void *memory, size_t bytes, void *const *regions, int threads,
                   nervure_context **out);
int nervure_destroy(nervure_context *context);
int nervure_reset(nervure_context *context);
int nervure_restore(nervure_context *context);
int nervure_run(nervure_context *context, int entry, const void *const *inputs, void *const *outputs);
void *nervure_slot(const nervure_context *context, int entry, int index, bool output);
void *nervure_param(const nervure_context *context, int index);
void *nervure_state(const nervure_context *context, int index);
int nervure_params_changed(nervure_context *context);
int nervure_export(nervure_context *context, void *buffer, size_t bytes);
int nervure_import(nervure_context *context, const void *buffer, size_t bytes);
int nervure_profile(nervure_context *context, nervure_clock clock, void *user, uint64_t *ticks);
const char *nervure_status_text(const nervure_program *program, int status);

char *nervure_own_scratch(const nervure_context *context, const nervure_phase *phase);

/* transfer.c: the blob of params and states; the caller holds the context. */
void nervure_write_blob(const nervure_context *context, void *buffer);
int nervure_check_blob(const nervure_program *program, const void *buffer, size_t bytes);
void nervure_read_blob(nervure_context *context, const void *buffer);

/* pool.c: threads. The pool lies in the context's memory. */
size_t nervure_pool_size(void);
int nervure_pool_start(nervure_pool *pool, nervure_context *context, void *workers);
void nervure_pool_stop(nervure_pool *pool);
bool nervure_pool_alive(const nervure_pool *pool);                             /* false after fork() */
void nervure_pool_phase(nervure_pool *pool, const nervure_phase *phase); /* all its tasks, by all workers */

/* cpu.c */
int nervure_cpu_lacks(const nervure_feature *features, int count); /* index of the first missing one, or -1 */
uintptr_t nervure_float_enter(bool flush); /* IEEE defaults (round to nearest, denormals kept unless `flush`); returns
                                              what was */
void nervure_float_leave(uintptr_t saved);
uint64_t nervure_nanoseconds(void *user);

#endif
