/* view.h -- one process's view of a segment (floor C1): the mapping, the two descriptors, the own slot.
 *
 * Private to the process; nothing in here lies in the segment. It also turns offsets into pointers, checking each
 * against what this process knows to be there: no pointer into the segment is made in any other way. */
#ifndef SST_VIEW_H
#define SST_VIEW_H

#include "atomics.h"
#include "layout.h"
#include "sst.h"

#include <pthread.h>

typedef struct {
    /* Parks while *word == value, at most to deadline_ns. SST_OK: woken or changed; SST_ETIMEDOUT; SST_EINTR.
     * waiter: a waiter slot of the caller's, or 0: the engine takes one itself where it needs one. */
    int (*park)(sst_seg *s, uint32_t *word, uint32_t value, uint64_t deadline_ns, uint32_t waiter);
    void (*unpark)(sst_seg *s, uint32_t *word, int all);
} sst_park_engine;

struct sst_seg {
    char *base; /* mapping of `capacity` bytes; NULL once unmapped */
    uint64_t capacity;
    uint64_t seen;    /* bytes of the file, by fstat; atomic, only grows */
    uint32_t buckets; /* per stripe; a checked copy, as are blocks and seed */
    uint32_t blocks;
    uint64_t seed;
    const sst_park_engine *park;
    int map_fd;  /* mapped, never locked */
    int lock_fd; /* locked, never mapped; -1: this process has no slot (yet) */
    uint32_t me; /* own owner word, 0: no slot. atomic */
    uint32_t readonly;
    uint32_t users;  /* calls in flight; atomic. The closing bit says that no new one may begin */
    uint32_t left;   /* sst_leave was called: no slot is taken again */
    pthread_mutex_t join; /* one thread takes the slot */
    sst_seg *next;        /* list of all views of the process, for fork */
};
#define SST_CLOSING UINT32_C(0x80000000)

static inline sst_header *sst_header_of(const sst_seg *s) { return (sst_header *)(void *)s->base; }
static inline sst_heap *sst_heap_of(const sst_seg *s) { return (sst_heap *)(void *)(s->base + SST_AT_HEAP); }
static inline sst_peer_slot *sst_peer_at(const sst_seg *s, uint32_t slot) {
    return (sst_peer_slot *)(void *)(s->base + SST_AT_PEERS) + slot;
}
static inline uint64_t *sst_rank_at(const sst_seg *s, uint32_t rank) {
    return (uint64_t *)(void *)(s->base + SST_AT_RANKS) + rank;
}
static inline sst_waiter_slot *sst_waiter_at(const sst_seg *s, uint32_t i) {
    return (sst_waiter_slot *)(void *)(s->base + SST_AT_WAITERS + (uint64_t)i * 128);
}
static inline sst_stripe *sst_stripe_at(const sst_seg *s, uint32_t i) {
    return (sst_stripe *)(void *)(s->base + SST_AT_STRIPES) + i;
}
static inline uint32_t *sst_bucket_at(const sst_seg *s, uint32_t stripe, uint32_t bucket) {
    return (uint32_t *)(void *)(s->base + SST_AT_DIRECTORY) + (uint64_t)stripe * s->buckets + bucket;
}
static inline uint32_t sst_offset4(const sst_seg *s, const uint32_t *word) {
    return (uint32_t)(((const char *)word - s->base) / 4);
}
static inline uint32_t sst_me(const sst_seg *s) { return ld32(&s->me); }

/* Bytes this process may touch: what the header publishes, but never more than the file was seen to have. */
static inline uint64_t sst_limit(const sst_seg *s) {
    uint64_t size = ld64_acquire(&sst_header_of(s)->size); /* SYNC publish-size: acquire; pairs with heap growth */
    uint64_t seen = ld64(&s->seen);                        /* relaxed: private, and any older value is safe */
    return size < seen ? size : seen;
}
/* Looks at the file again when the header publishes more than was seen. */
void sst_look(sst_seg *s);

/* The payload of block `ref`, `need` bytes of which must be inside; NULL when they are not. */
static inline void *sst_payload(sst_seg *s, uint32_t ref, uint64_t need) {
    if (ref < s->blocks)
        return NULL;
    uint64_t at = (uint64_t)ref * 16 + sizeof(sst_block);
    if (at + need > sst_limit(s)) {
        sst_look(s);
        if (at + need > sst_limit(s))
            return NULL;
    }
    return s->base + at;
}
static inline sst_block *sst_block_of(sst_seg *s, uint32_t ref) {
    char *p = sst_payload(s, ref, 0);
    return p ? (sst_block *)(void *)(p - sizeof(sst_block)) : NULL;
}

#endif
