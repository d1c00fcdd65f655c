/* waiter.h -- waiter slots (floor C2): who waits, on what, since when; and the semaphore engine's parking places. */
#ifndef SST_WAITER_H
#define SST_WAITER_H

#include "view.h"

/* Claims a slot near the home of `word`; *waiter = index + 1. SST_EAGAIN: all belong to the living. */
int sst_waiter_claim(sst_seg *s, const uint32_t *word, uint32_t *waiter);
/* Says what the slot's owner waits on, for people: the first bytes of the key. */
void sst_waiter_note(sst_seg *s, uint32_t waiter, uint32_t rank, const char *key, size_t klen);
/* The slot if it is this process's; NULL: it is not (a forked child holds nothing of its parent's). */
sst_waiter_slot *sst_waiter_mine(sst_seg *s, uint32_t waiter);
/* Frees the slot and sets *waiter to 0. */
void sst_waiter_free(sst_seg *s, uint32_t *waiter);
/* Frees the slots of (slot, any generation but `keep`). */
void sst_waiter_reap(sst_seg *s, uint32_t slot, uint32_t keep);
/* Frees the slot if its owner is dead. */
void sst_waiter_bury(sst_seg *s, sst_waiter_slot *w);

/* A word's home group of slots, 0..SST_SPANS-1. */
static inline uint32_t sst_waiter_home(const sst_seg *s, const uint32_t *word) {
    return (sst_offset4(s, word) >> 5) % SST_SPANS; /* a stripe is 32 words: each has a home of its own */
}
/* How many slots from the home on a setter must look at. */
static inline uint32_t sst_waiter_span(const sst_seg *s, uint32_t home) {
    uint32_t n = ld32_acquire(&sst_heap_of(s)->spans[home]);
    return n < SST_WAITERS_MAX ? n : SST_WAITERS_MAX;
}
/* The i-th slot from the home on. */
static inline sst_waiter_slot *sst_waiter_near(const sst_seg *s, uint32_t home, uint32_t i) {
    return sst_waiter_at(s, (home * (SST_WAITERS_MAX / SST_SPANS) + i) % SST_WAITERS_MAX);
}

#endif
