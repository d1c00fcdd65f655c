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
    /* Parks while *word == value, at most to deadline_ns. SST_OK: woken or changed; SST_ETIMEDOUT; SST_EINTR;
     * SST_EAGAIN: it could not park and slept a millisecond instead, so nobody was asked to wake it.
     * waiter: a waiter slot of the caller's, or 0: the engine takes one itself where it needs one. */
    int (*park)(sst_seg *s, uint32_t *word, uint32_t value, uint64_t deadline_ns, uint32_t waiter);
    void (*unpark)(sst_seg *s, uint32_t *word, int all);
} sst_park_engine;

/* What yielding has been worth: ops_wait.c. Atomic, as hints are that threads share. */
typedef struct {
    uint32_t skip; /* so many parks begin without yielding */
    uint32_t cost; /* the last such count */
    uint32_t won;  /* waits that yielding has ended since then */
} sst_yields;

struct sst_seg {
    char *base; /* mapping of `capacity` bytes; NULL once unmapped */
    uint64_t capacity;
    uint64_t seen;    /* bytes of the file at the last fstat; atomic. Less than before where somebody truncated it */
    uint32_t buckets; /* per stripe; a checked copy, as are blocks and seed */
    uint32_t blocks;
    uint64_t seed;
    const sst_park_engine *park;
    uint64_t dev, ino; /* of the file, which no other has while it is mapped: is a descriptor still one of it? */
    int map_fd;    /* mapped, never locked. atomic; -1: given away (views.c) */
    int lock_fd;   /* locked, never mapped; -1: none yet, or given away. atomic; guard of its changes: join */
    uint32_t me;   /* own owner word, 0: no slot yet. atomic; guard of its changes: join */
    uint32_t born; /* that of the slot which the parent took for this process, until it is `me`. atomic; join */
    uint32_t unborn; /* the same for the child of a fork under way, and the open file that locks its byte. */
    int unborn_fd;   /* guard: join; only set between the fork handlers */
    uint32_t readonly;
    uint32_t cpus;       /* processors that this process may use, at the time of the attach */
    sst_yields yields;         /* of waits for keys */
    sst_yields
        barrier_yields; /* of reusable barriers, whose parties come at once: what one learns says little of the other */
    uint32_t users; /* the calls in flight, and who may still come: below */
    pthread_mutex_t join; /* one thread takes the slot or gives it back, and no fork meanwhile */
    sst_seg *next; /* list of all views of the process, for fork */
};

/* sst_seg.users: a count of calls in flight with two bits beside it. guard: atomic
 *
 *   users                   means                                    next, by whom
 *   n                       open, n calls inside                     n +- 1 by a call; one of the next two by a closer
 *   CLOSING, LEAVER, n + 1  sst_leave waits for n calls to end       n - 1 by a call; without LEAVER, n by sst_close
 *   CLOSING, n              n calls end, none begins                 n - 1 by a call
 *   CLOSING, 0              nobody is inside and nobody comes: whoever made it 0 gives the slot back and unmaps
 *   LOST, any of these      no call begins but the closers', and those inside wait for no lock; LOST stays
 *
 * LOST: a descriptor was found closed, or another file's, and closed it was by somebody else. This process counts as
 * dead then, and what it would ask, allocate or close may be anybody's (liveness.h).
 *
 * The slot is given back by the last one out and never earlier: a call in flight may hold a lock, and with its byte
 * free or `me` gone others would take that lock for a dead one's. The leaver's own count lets it give the slot back
 * and still look at the header until sst_close. */
#define SST_CLOSING UINT32_C(0x80000000)
#define SST_LEAVER  UINT32_C(0x40000000)
#define SST_LOST    UINT32_C(0x20000000)
static inline int sst_closing(const sst_seg *s) { return (ld32(&s->users) & (SST_CLOSING | SST_LOST)) != 0; }
/* What a call says then. */
static inline int sst_why_closing(const sst_seg *s) { return ld32(&s->users) & SST_LOST ? SST_ELOST : SST_ECLOSED; }

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
/* The descriptor to ask about bytes: one's own, which is silent about one's own byte, or one that locks nothing. */
static inline int sst_life_fd(const sst_seg *s) {
    int fd = own_fd(&s->lock_fd); /* opened before a call began, closed after all of them */
    return fd >= 0 ? fd : own_fd(&s->map_fd);
}

/* Bytes this process may touch: what the header publishes, but never more than the file was seen to have. */
static inline uint64_t sst_limit(const sst_seg *s) {
    uint64_t size = ld64_acquire(&sst_header_of(s)->size); /* SYNC publish-size: acquire; pairs with heap growth */
    uint64_t seen = ld64(&s->seen); /* relaxed: private, and any older value is safe */
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
