/* Parameters and states as one blob, and back: what a device saves, and what moves between devices.
 *
 * 64 bytes of header, then the tensors in the order of their names, parameters first, without gaps; all little-endian:
 *   0 "nervure" and a zero   8 format   12 CRC-32 (ISO-HDLC, as in zip files) of all that follows   16 bytes of the blob
 *   24 SHA-256 of the names, types and shapes   56 zero
 * No file, no allocation, any alignment of the buffer. */
#include "nervure.h"

#include <string.h>

enum { FORMAT = 1, FORMAT_AT = 8, CRC_AT = 12, SIZE_AT = 16, SIGNATURE_AT = 24 };

static const char MAGIC[8] = "nervure";

static uint32_t crc32(const unsigned char *data, size_t bytes) {
    static const uint32_t table[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    uint32_t crc = ~UINT32_C(0);
    for (size_t i = 0; i < bytes; i++) {
        crc ^= data[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

static void put(unsigned char *to, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) to[i] = (unsigned char)(value >> 8 * i);
}

static uint64_t get(const unsigned char *from, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)from[i] << 8 * i;
    return value;
}

static char *place(const nervure_context *c, const nervure_tensor *tensor) {
    return c->base[tensor->base] + tensor->offset;
}

void nervure_write_blob(const nervure_context *c, void *buffer) {
    const nervure_program *p = c->program;
    unsigned char *blob = buffer;
    memset(blob, 0, NERVURE_BLOB_HEADER_BYTES);
    memcpy(blob, MAGIC, sizeof MAGIC);
    put(blob + FORMAT_AT, FORMAT, 4);
    put(blob + SIZE_AT, p->blob_bytes, 8);
    memcpy(blob + SIGNATURE_AT, p->signature, sizeof p->signature);
    size_t at = NERVURE_BLOB_HEADER_BYTES;
    for (int32_t i = 0; i < p->tensor_count; at += p->tensors[i].bytes, i++)
        memcpy(blob + at, place(c, &p->tensors[i]), p->tensors[i].bytes);
    put(blob + CRC_AT, crc32(blob + SIZE_AT, p->blob_bytes - SIZE_AT), 4);
}

int nervure_check_blob(const nervure_program *p, const void *buffer, size_t bytes) {
    const unsigned char *blob = buffer;
    if (bytes < NERVURE_BLOB_HEADER_BYTES || memcmp(blob, MAGIC, sizeof MAGIC) != 0) return NERVURE_DAMAGED;
    uint64_t size = get(blob + SIZE_AT, 8);
    if (size < NERVURE_BLOB_HEADER_BYTES || size > bytes) return NERVURE_DAMAGED;
    if (get(blob + CRC_AT, 4) != crc32(blob + SIZE_AT, (size_t)size - SIZE_AT)) return NERVURE_DAMAGED;
    bool same = memcmp(blob + SIGNATURE_AT, p->signature, sizeof p->signature) == 0;
    return same && get(blob + FORMAT_AT, 4) == FORMAT && size == p->blob_bytes ? NERVURE_OK : NERVURE_FOREIGN;
}

void nervure_read_blob(nervure_context *c, const void *buffer) {
    const nervure_program *p = c->program;
    const char *from = (const char *)buffer + NERVURE_BLOB_HEADER_BYTES;
    for (int32_t i = 0; i < p->tensor_count; from += p->tensors[i].bytes, i++)
        memcpy(place(c, &p->tensors[i]), from, p->tensors[i].bytes);
}
