/* heap.h -- blocks for the table (floor C5). Size classes, a free list each, and brk; blocks are cut and never joined.
 *
 * Every function here needs the heap lock (guard.c takes it) and the lock of the stripe whose inflight list it moves
 * a block to or from; order: stripe, then heap. */
#ifndef SST_HEAP_H
#define SST_HEAP_H

#include "view.h"

/* No walk over blocks meets more of them: the smallest ones that the published size holds. Not sst_limit, which may be
 * behind for a block that this process has not touched yet. */
static inline uint64_t sst_heap_most(const sst_seg *s) {
    uint64_t size = ld64(&sst_header_of(s)->size); /* relaxed: it grew before a block beyond it got into a stripe */
    return (size < s->capacity ? size : s->capacity) / 32;
}

uint32_t sst_heap_class(uint64_t payload);  /* smallest class that holds it; SST_CLASSES: none */
uint64_t sst_heap_room(uint32_t cls);       /* payload bytes of a class */
uint64_t sst_heap_bytes(uint32_t cls);      /* whole bytes of a class */
/* Takes a block for `payload` bytes onto the stripe's inflight list. may_grow 0: SST_EAGAIN where the file would have
 * to grow. SST_EFULL, SST_ENOSPC, SST_ECORRUPT; SST_EINTR: signals let the file not grow, nothing was taken. */
int sst_heap_take(sst_seg *s, uint32_t stripe, uint64_t payload, int may_grow, uint32_t *ref);
/* Gives the first block of the stripe's inflight list back. */
int sst_heap_give(sst_seg *s, uint32_t stripe);
/* Repeats what a dead owner of the heap lock had begun. Idempotent. */
int sst_heap_repair(sst_seg *s);

#endif
