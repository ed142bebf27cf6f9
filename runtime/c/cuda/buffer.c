/* Memory for arrays that outlives contexts, and its exchange by DLPack.
 *
 * Source of the structures: DLPack 0.8, dlpack.h. */
#include "driver.h"

#include <stdlib.h>
#include <string.h>

enum { EVERY_CONTEXT = 1, ON_DEVICE = 2 /* kDLCUDA */, ON_HOST = 3 /* kDLCUDAHost */ };

struct nervure_buffer {
    nervure_shared *shared;
    void *address;
    bool pinned;
    atomic_int users;
};

typedef struct managed {
    void *data;
    int32_t device_type, device;
    int32_t rank;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
    nervure_buffer *owner;
    void (*deleter)(struct managed *);
} managed; /* DLManagedTensor */

int nervure_buffer_create(nervure_context *c, size_t bytes, int pinned, nervure_buffer **out) {
    if (c == NULL || out == NULL) return NERVURE_NULL;
    *out = NULL;
    nervure_shared *s = nervure_gpu(c)->shared;
    if (!nervure_shared_alive(s)) return NERVURE_FORKED;
    nervure_buffer *made = calloc(1, sizeof *made);
    if (made == NULL) return nervure_fail(NERVURE_DEVICE_MEMORY, "out of memory on the host");
    int code = s->cu.push(s->context);
    if (code == 0) {
        device_pointer at = 0;
        void *old;
        if (bytes == 0) bytes = 1;
        code = pinned ? s->cu.host_alloc(&made->address, bytes, EVERY_CONTEXT) : s->cu.alloc(&at, bytes);
        if (!pinned) made->address = (void *)(uintptr_t)at;
        s->cu.pop(&old);
    }
    if (code != 0) return free(made), nervure_driver_fail(&s->cu, code, "makes room for an array");
    made->shared = s;
    made->pinned = pinned != 0;
    atomic_init(&made->users, 1);
    nervure_shared_keep(s);
    *out = made;
    return NERVURE_OK;
}

void *nervure_buffer_address(const nervure_buffer *b) {
    return b != NULL ? b->address : NULL;
}

int nervure_buffer_copy(nervure_buffer *b, void *host, size_t bytes, int to_host) {
    if (b == NULL || (host == NULL && bytes > 0)) return NERVURE_NULL;
    const nervure_cuda *cu = &b->shared->cu;
    if (!nervure_shared_alive(b->shared)) return NERVURE_FORKED;
    if (b->pinned || bytes == 0) {
        if (bytes > 0) memcpy(to_host ? host : b->address, to_host ? b->address : host, bytes);
        return NERVURE_OK;
    }
    device_pointer at = (device_pointer)(uintptr_t)b->address;
    int code = cu->push(b->shared->context);
    if (code != 0) return nervure_driver_fail(cu, code, "opens the device");
    code = cu->synchronize(); /* whoever writes or reads it, on whatever stream */
    if (code == 0) code = to_host ? cu->to_host(host, at, bytes, NULL) : cu->to_device(at, host, bytes, NULL);
    if (code == 0) code = cu->stream_wait(NULL);
    void *old;
    cu->pop(&old);
    return code == 0 ? NERVURE_OK : nervure_driver_fail(cu, code, "copies an array");
}

int nervure_buffer_release(nervure_buffer *b) {
    if (b == NULL) return NERVURE_NULL;
    if (atomic_fetch_sub(&b->users, 1) > 1) return NERVURE_OK;
    nervure_shared *s = b->shared;
    if (nervure_shared_alive(s)) {
        void *old;
        bool current = s->cu.push(s->context) == 0;
        (void)s->cu.synchronize(); /* a stream may still write to it */
        if (b->pinned) s->cu.host_free(b->address);
        else s->cu.free((device_pointer)(uintptr_t)b->address);
        if (current) s->cu.pop(&old);
    }
    nervure_shared_close(s);
    free(b);
    return NERVURE_OK;
}

static void drop(managed *m) {
    (void)nervure_buffer_release(m->owner);
    free(m);
}

int nervure_buffer_export(nervure_buffer *b, int code, int bits, int rank, const int64_t *shape, void **out) {
    if (b == NULL || out == NULL || (shape == NULL && rank > 0)) return NERVURE_NULL;
    managed *m = calloc(1, sizeof *m + 2 * (size_t)rank * sizeof(int64_t));
    if (m == NULL) return nervure_fail(NERVURE_DEVICE_MEMORY, "out of memory on the host");
    m->data = b->address;
    m->device_type = b->pinned ? ON_HOST : ON_DEVICE;
    m->device = b->pinned ? 0 : b->shared->number;
    m->rank = rank, m->code = (uint8_t)code, m->bits = (uint8_t)bits, m->lanes = 1;
    m->shape = (int64_t *)(void *)(m + 1);
    m->strides = m->shape + rank;
    int64_t stride = 1;
    for (int i = rank - 1; i >= 0; stride *= shape[i--]) m->shape[i] = shape[i], m->strides[i] = stride;
    m->owner = b;
    m->deleter = drop;
    atomic_fetch_add(&b->users, 1);
    *out = m;
    return NERVURE_OK;
}
