#include "slots.h"

enum { MAGIC = 0x534c5652, UNIT = 32 };
/* Words of the header, little-endian as the core stores them. */
enum { MAGIC_AT, SEQUENCE_AT, BYTES_AT, DATA_CRC_AT, HEADER_CRC_AT, WORDS = NERVURE_SLOTS_HEADER / 4 };

/* CRC-32 as in zip files. */
static uint32_t checksum(const unsigned char *data, uint32_t bytes) {
    static const uint32_t table[16] = {
        0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu, 0x76dc4190u, 0x6b6b51f4u, 0x4db26158u, 0x5005713cu,
        0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu, 0x9b64c2b0u, 0x86d3d2d4u, 0xa00ae278u, 0xbdbdf21cu,
    };
    uint32_t crc = 0xffffffffu, i;
    for (i = 0; i < bytes; i++) {
        crc ^= data[i];
        crc = crc >> 4 ^ table[crc & 15u];
        crc = crc >> 4 ^ table[crc & 15u];
    }
    return ~crc & 0xffffffffu;
}

static void copy(unsigned char *to, const unsigned char *from, uint32_t bytes) {
    uint32_t i;
    for (i = 0; i < bytes; i++) to[i] = from[i];
}

/* What stands in a slot; no data where it is not whole. */
static nervure_slot look(const nervure_slots *slots, int index) {
    const unsigned char *at = (const unsigned char *)slots->start[index];
    uint32_t header[WORDS];
    nervure_slot found = {0, 0, 0, 0};
    copy((unsigned char *)header, at, sizeof header);
    if (header[MAGIC_AT] != MAGIC) return found;
    if (header[HEADER_CRC_AT] != checksum((const unsigned char *)header, 4u * HEADER_CRC_AT)) return found;
    if (header[BYTES_AT] > slots->bytes - NERVURE_SLOTS_HEADER) return found;
    if (header[DATA_CRC_AT] != checksum(at + NERVURE_SLOTS_HEADER, header[BYTES_AT])) return found;
    found.data = at + NERVURE_SLOTS_HEADER;
    found.bytes = header[BYTES_AT];
    found.sequence = header[SEQUENCE_AT];
    found.slot = index;
    return found;
}

nervure_slot nervure_slots_find(const nervure_slots *slots) {
    nervure_slot first = look(slots, 0), second = look(slots, 1);
    if (first.data == 0) return second;
    if (second.data == 0) return first;
    return (int32_t)(second.sequence - first.sequence) > 0 ? second : first;
}

/* Whole units from the caller's memory, and the rest of the last one filled with ones. */
static int program_data(const nervure_slots *slots, const unsigned char *to, const unsigned char *from, uint32_t bytes) {
    uint32_t whole = bytes - bytes % UNIT, i;
    unsigned char last[UNIT];
    if (whole > 0 && slots->program(slots->user, to, from, whole) != 0) return -1;
    if (whole == bytes) return 0;
    for (i = 0; i < UNIT; i++) last[i] = 0xff;
    copy(last, from + whole, bytes - whole);
    return slots->program(slots->user, to + whole, last, UNIT);
}

int nervure_slots_save(const nervure_slots *slots, const void *data, uint32_t bytes) {
    nervure_slot newest = nervure_slots_find(slots), written;
    int index = newest.data != 0 ? 1 - newest.slot : 0;
    const unsigned char *at = (const unsigned char *)slots->start[index];
    uint32_t header[WORDS], i;
    if (slots->bytes < NERVURE_SLOTS_HEADER || bytes > slots->bytes - NERVURE_SLOTS_HEADER) return NERVURE_SLOTS_SPACE;
    for (i = 0; i < WORDS; i++) header[i] = 0xffffffffu;
    header[MAGIC_AT] = MAGIC;
    header[SEQUENCE_AT] = newest.sequence + 1;
    header[BYTES_AT] = bytes;
    header[DATA_CRC_AT] = checksum((const unsigned char *)data, bytes);
    header[HEADER_CRC_AT] = checksum((const unsigned char *)header, 4u * HEADER_CRC_AT);
    if (slots->erase(slots->user, at, slots->bytes) != 0) return NERVURE_SLOTS_FLASH;
    if (program_data(slots, at + NERVURE_SLOTS_HEADER, (const unsigned char *)data, bytes) != 0)
        return NERVURE_SLOTS_FLASH;
    if (header[DATA_CRC_AT] != checksum(at + NERVURE_SLOTS_HEADER, bytes)) return NERVURE_SLOTS_FLASH;
    if (slots->program(slots->user, at, header, sizeof header) != 0) return NERVURE_SLOTS_FLASH;
    written = look(slots, index);
    return written.data != 0 && written.sequence == header[SEQUENCE_AT] ? NERVURE_SLOTS_OK : NERVURE_SLOTS_FLASH;
}
