/* verify.h -- the invariants of a segment, each with a name (floor C7). */
#ifndef SST_VERIFY_H
#define SST_VERIFY_H

#include "view.h"

/* The walks behind sst_verify. Both write their findings as it does and return how many invariants are broken.
 * sst_walk needs every stripe and the heap locked, or a segment that nobody uses. */
int sst_walk(sst_seg *s, char *report, size_t room);
/* The lock words alone, before any is taken: taking a lock heals what stands in its word. */
int sst_walk_locks(sst_seg *s, char *report, size_t room);

#define SST_INVARIANTS(X)                                                                                              \
    X(HEADER, "header: magic, layout, sizes and geometry agree")                                                       \
    X(HEAP_IDLE, "heap-idle: no heap operation is half done while its lock is free")                                   \
    X(HEAP_TILES, "heap-tiles: blocks lie tightly from the first to brk")                                              \
    X(FREE_LIST, "free-list: each free list holds free blocks of its class, once")                                     \
    X(NO_LEAK, "no-leak: each block is free, in hand, or reached by the table")                                        \
    X(STRIPE_STILL, "stripe-still: no sequence is odd while its lock is free")                                         \
    X(INFLIGHT, "inflight: what is in hand of a free stripe is marked so, and unreached")                              \
    X(CHAIN, "chain: each link leads to an entry inside the heap, without a loop")                                     \
    X(ENTRY, "entry: key length, space and kind are in range")                                                         \
    X(HOME, "home: each entry stands in the bucket of its key's hash")                                                 \
    X(UNIQUE, "unique: no key stands twice in its chain")                                                              \
    X(USED, "used: what the table reaches is a used block")                                                            \
    X(ONCE, "once: no block is reached twice")                                                                         \
    X(VALUE, "value: each value has a form and fits its block")                                                        \
    X(COUNTS, "counts: a stripe's keys and entries are what it says")                                                  \
    X(QUEUE, "queue: a queue has an item, and its length and last one are its list's")                                 \
    X(BARRIER, "barrier: a barrier's parties, arrivals and seats are in range and fit its block")                      \
    X(OWNER, "owner: lock words name peer slots")                                                                      \
    X(PEER, "peer: slot states are known, and claimed ones have a generation")                                         \
    X(RANK, "rank: ranks name peer slots")                                                                             \
    X(WAITER, "waiter: waiter slots belong to peer slots and park on words of the segment")

enum {
#define X(name, text) SST_INV_##name,
    SST_INVARIANTS(X)
#undef X
        SST_INV_COUNT
};

#endif
