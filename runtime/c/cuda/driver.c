/* Opens the driver, and says in words what went wrong. */
#include "driver.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { OLDEST = 11040, OUT_OF_MEMORY = 2, NO_DEVICE = 100 };

static _Thread_local struct {
    int status;
    char text[640];
} said; /* of the last failure in this thread */

int nervure_fail(int status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    said.status = status;
    vsnprintf(said.text, sizeof said.text, format, arguments);
    va_end(arguments);
    return status;
}

int nervure_driver_fail(const nervure_cuda *cu, int code, const char *what) {
    const char *text = NULL;
    if (cu->error_text(code, &text) != 0 || text == NULL) text = "an error that it has no words for";
    int status = code == OUT_OF_MEMORY ? NERVURE_DEVICE_MEMORY : code == NO_DEVICE ? NERVURE_NO_DEVICE : NERVURE_DEVICE;
    return nervure_fail(status, "the Nvidia driver fails when it %s: %s (CUDA error %d)", what, text, code);
}

static int too_old(int version, const char *lacking) {
    return nervure_fail(NERVURE_OLD_DRIVER,
                        "the Nvidia driver is too old: it is for CUDA %d.%d%s%s, and this model needs one for CUDA %d.%d "
                        "or newer (470 or newer on Linux)",
                        version / 1000, version % 1000 / 10, lacking != NULL ? ", lacks " : "",
                        lacking != NULL ? lacking : "", OLDEST / 1000, OLDEST % 1000 / 10);
}

int nervure_driver_open(nervure_cuda *cu, const char *name, void **library, int *version) {
#define NERVURE_NAME(member, symbol, ...) #symbol,
    static const char *const names[] = {NERVURE_DRIVER_FUNCTIONS(NERVURE_NAME)};
    *library = name != NULL ? dlopen(name, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (*library == NULL) *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (*library == NULL) {
        const char *why = dlerror();
        return nervure_fail(NERVURE_DRIVER, "there is no Nvidia driver on this machine (%s): install the driver of its GPU",
                            why != NULL ? why : "libcuda.so.1 cannot be opened");
    }
    const char *lacking = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *function = dlsym(*library, names[i]);
        if (function == NULL && lacking == NULL) lacking = names[i];
        memcpy((char *)cu + i * sizeof function, &function, sizeof function);
    }
    *version = 0;
    int code = cu->version != NULL ? cu->version(version) : 0;
    if (lacking != NULL || (code == 0 && *version < OLDEST)) return too_old(*version, lacking);
    return code == 0 ? NERVURE_OK : nervure_driver_fail(cu, code, "says its version");
}

const char *nervure_status_text(const nervure_program *p, int status) {
    static const char *const texts[NERVURE_STATUS_COUNT] = {
        "ok",
        "a pointer is NULL that must not be",
        "the memory block is smaller than the context needs",
        "the memory block or a region is not aligned: 64 bytes on the host, 256 on the device",
        "the number of threads must lie between 0 and 256",
        "the system could not start a worker thread",
        "the context is in use by another thread, or was destroyed",
        "there is no entry point of that number",
        "an input or output buffer is not aligned to its element size",
        "a context on a GPU does not come along through fork(): load the model in the new process",
        "the buffer is smaller than the exported parameters and states",
        "these are no exported parameters and states, or damaged ones",
        "these are the parameters and states of another model",
        "there is no Nvidia driver on this machine",
        "the Nvidia driver is too old",
        "there is no such GPU",
        "the model holds no code for this GPU",
        "out of memory on the GPU",
        "the GPU failed",
        "the device has changed parameters and states since they were read: ask for them again before writing",
    };
    (void)p;
    if (status > NERVURE_OK && status == said.status && status >= NERVURE_DRIVER) return said.text;
    return status >= 0 && status < NERVURE_STATUS_COUNT ? texts[status] : "not a status of this library";
}
