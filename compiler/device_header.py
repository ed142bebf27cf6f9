"""What ``model.h`` and ``model.c`` of a GPU artifact say beside those of every other one."""

from __future__ import annotations

from . import device
from .program import Program

STATUSES = """\
    @@_DRIVER,        /* there is no Nvidia driver on this machine */
    @@_OLD_DRIVER,    /* the driver is too old, or older than the compiler of the model's code */
    @@_NO_DEVICE,     /* there is no GPU of that number */
    @@_ARCHITECTURE,  /* the model holds no code for this GPU */
    @@_DEVICE_MEMORY, /* out of memory on the GPU */
    @@_DEVICE,        /* the GPU or its driver failed: the text has the driver's words */
    @@_OLD_COPY,      /* the device has changed parameters and states since they were read */"""

DEVICE = """\
/* -- The GPU -------------------------------------------------------------------------------------------------------
 *
 * Each context has $device bytes on the device and $pinned of page-locked memory on the host; $shared bytes
 * of weights, and the code, are on a device once for all contexts of the process. The first run of an entry point with
 * arrays of the host, and the first with arrays of the device, records its launches as a CUDA graph; every run is then
 * one launch of that graph. */
#define @@_DEVICE_BYTES $device
#define @@_SHARED_DEVICE_BYTES $shared
#define @@_PINNED_BYTES $pinned
size_t @_device_bytes(void);

/* As @_create, on the device of that number in the driver's order (CUDA_VISIBLE_DEVICES); @_create takes device 0. */
int @_create_on(void *memory, size_t bytes, int device, @_context **out);
int @_device(const @_context *context);

/* As @_run, with arrays in the device's memory, and without waiting: the work is enqueued on `stream` (a CUstream or
 * cudaStream_t of the device's primary context; NULL is CUDA's default stream). The arrays must stay until it is done.
 * Runs of one context come one after the other, also on different streams. Addresses may change from call to call;
 * those that stay cost nothing. NULL (for one or for all) means the slot in the device's memory. On a stream that is
 * being captured the launches become part of that capture: run the model once before, and wait. */
int @_run_on(@_context *context, int entry, const void *const inputs[], void *const outputs[], void *stream);
void *@_device_input(const @_context *context, int entry, int index);
void *@_device_output(const @_context *context, int entry, int index);
void *@_stream(const @_context *context); /* the context's own, for which @_run waits */
int @_wait(@_context *context);           /* until all that it enqueued is done; what failed on the way is the status */

/* Reads parameters and states from the device if a run has changed them. @_param and @_state do so, too, and answer
 * NULL where that fails. */
int @_fetch(@_context *context);

/* Memory for arrays: on the device, or `pinned` on the host, where the device reads and writes it without a detour.
 * Buffers may outlive the context, and must be released before the library is closed. Copies wait for the device. */
typedef struct @_buffer @_buffer;
int @_buffer_create(@_context *context, size_t bytes, int pinned, @_buffer **out);
void *@_buffer_address(const @_buffer *buffer);
int @_buffer_copy(@_buffer *buffer, void *host, size_t bytes, int to_host);
int @_buffer_release(@_buffer *buffer);

/* The buffer as a DLManagedTensor (DLPack 0.8) of that type code, bits and shape, whose deleter gives it up again. */
int @_buffer_export(@_buffer *buffer, int code, int bits, int rank, const int64_t *shape, void **out);

/* For a failure of the GPU or its driver: what went wrong in the calling thread's last call that failed so. */
"""

FUNCTIONS = """
int @_create_on(void *memory, size_t bytes, int device, @_context **out) {
    return nervure_create_on(&program, memory, bytes, NULL, 0, device, (nervure_context **)out);
}

int @_run_on(@_context *c, int entry, const void *const inputs[], void *const outputs[], void *stream) {
    return nervure_run_on((nervure_context *)c, entry, inputs, outputs, stream);
}

void *@_device_input(const @_context *c, int entry, int index) {
    return nervure_device_slot((const nervure_context *)c, entry, index, false);
}

void *@_device_output(const @_context *c, int entry, int index) {
    return nervure_device_slot((const nervure_context *)c, entry, index, true);
}

size_t @_device_bytes(void) { return nervure_device_bytes(&program); }
int @_device(const @_context *c) { return nervure_device((const nervure_context *)c); }
void *@_stream(const @_context *c) { return nervure_stream((const nervure_context *)c); }
int @_wait(@_context *c) { return nervure_wait((nervure_context *)c); }
int @_fetch(@_context *c) { return nervure_fetch((nervure_context *)c); }

int @_buffer_create(@_context *c, size_t bytes, int pinned, @_buffer **out) {
    return nervure_buffer_create((nervure_context *)c, bytes, pinned, (nervure_buffer **)out);
}

void *@_buffer_address(const @_buffer *b) { return nervure_buffer_address((const nervure_buffer *)b); }

int @_buffer_copy(@_buffer *b, void *host, size_t bytes, int to_host) {
    return nervure_buffer_copy((nervure_buffer *)b, host, bytes, to_host);
}

int @_buffer_export(@_buffer *b, int code, int bits, int rank, const int64_t *shape, void **out) {
    return nervure_buffer_export((nervure_buffer *)b, code, bits, rank, shape, out);
}

int @_buffer_release(@_buffer *b) { return nervure_buffer_release((nervure_buffer *)b); }
"""


def words(program: Program) -> dict[str, str]:
    """What takes the place of ``header.WORDS``."""
    sizes = {
        "device": device.device_bytes(program),
        "shared": len(program.const),
        "pinned": device.pinned_bytes(program),
    }
    section = DEVICE
    for name, size in sizes.items():
        section = section.replace(f"_BYTES ${name}", f"_BYTES {size}u" if size < 1 << 31 else f"_BYTES {size}ull")
        section = section.replace(f"${name}", str(size))
    return {
        "memory": """\
The kernels run on an Nvidia GPU, through its driver (libcuda.so.1), which @_create opens. A context lies in one block
 * of the host that the caller gives, and in memory of the device that it takes for itself. Contexts are independent:
 * use one for each thread that calls.""",
        "statuses": STATUSES,
        "bytes": """\
Bytes of a context in the host's memory (threads are not needed), and of its parts. Parameters, states and what is
 * derived from them stay; the regions (the arena) are shared by the entry points, each of which says what it""",
        "regions": "The same with memory regions of the device of the caller's choice: regions[i] is 256-byte aligned, "
        "or NULL.",
        "destroy": "Waits for what is enqueued, gives back all that the context has on the device. Its memory may be "
        "used again.",
        "params": """\
Parameters and states: a copy in the context's memory of those on the device, read when asked for. Say so after
 * writing to one: it is sent to the device, and copies derived from it are rebuilt. After a run that changes them ask
 * again before writing: what was changed in an older copy is not sent (@@_OLD_COPY where that is all).""",
        "clock": "The device measures, in nanoseconds; `clock` is not called, and the steps are launched one by one.",
        "device": section,
    }
