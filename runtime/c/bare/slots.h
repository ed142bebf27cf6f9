/* Data kept in flash, so that a loss of power or a reset at any moment leaves the old or the new one whole.
 *
 * Two slots are written in turn. A slot is erased, its data are programmed behind the header, and the header (a sequence
 * number, checksums of the data and of itself) is programmed last: until it stands, the other slot is the newest valid
 * one. The flash is read in place; how it is erased and programmed is the caller's. No memory is allocated or kept. */
#ifndef NERVURE_SLOTS_H
#define NERVURE_SLOTS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { NERVURE_SLOTS_HEADER = 32 }; /* bytes in front of the data: one program unit of any common flash */

typedef struct {
    const void *start[2]; /* two slots at the beginning of erase pages of their own */
    uint32_t bytes;       /* of each: whole pages */
    /* Both return 0 where they succeed. `erase`: `bytes` from `at`, whole pages, to 0xff. `program`: `bytes`, a multiple
     * of 32, into erased flash at `at`, which is a multiple of 32 from the slot's start. Return when it is done. */
    int (*erase)(void *user, const void *at, uint32_t bytes);
    int (*program)(void *user, const void *at, const void *from, uint32_t bytes);
    void *user;
} nervure_slots;

typedef struct {
    const unsigned char *data; /* in the flash; NULL where no slot is valid */
    uint32_t bytes, sequence;  /* the sequence number grows by one at each save, from 1 on */
    int slot;
} nervure_slot;

enum { NERVURE_SLOTS_OK, NERVURE_SLOTS_SPACE, NERVURE_SLOTS_FLASH };

/* The newest valid slot. */
nervure_slot nervure_slots_find(const nervure_slots *slots);

/* Writes the other slot and reads it back. NERVURE_SLOTS_SPACE: the data and the header are larger than a slot;
 * NERVURE_SLOTS_FLASH: erasing or programming failed, or other bytes stand there: the newest valid slot is what it was
 * before. */
int nervure_slots_save(const nervure_slots *slots, const void *data, uint32_t bytes);

#ifdef __cplusplus
}
#endif
#endif
