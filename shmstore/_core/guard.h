/* guard.h -- enter and leave a stripe or the heap (floor C8): the only caller of lock and recover. Whoever comes out of
 * an enter holds a lock over something whole, whatever the last owner died of. SST_ECORRUPT from an enter is for good:
 * that stripe, or the heap, is closed to everybody (guard.c). */
#ifndef SST_GUARD_H
#define SST_GUARD_H

#include "table.h"

/* Takes this process's peer slot where it has none yet (first call, or a forked child), and repairs what the slot's
 * former owner left. */
int sst_join(sst_seg *s, uint32_t flags);

int sst_enter(sst_seg *s, uint32_t stripe, uint64_t deadline_ns, uint32_t flags);
/* wake: what sst_event_bump said. Gives back what is left on the inflight list first, where the heap is free. */
void sst_exit(sst_seg *s, uint32_t stripe, int wake);

/* A block onto the stripe's inflight list. */
int sst_block_new(sst_seg *s, uint32_t stripe, uint64_t payload, uint64_t deadline_ns, uint32_t flags, uint32_t *ref);
/* Marks a block that the table reached INFLIGHT and puts it on the list; after its unlink it will be given back. */
int sst_block_drop(sst_seg *s, uint32_t stripe, uint32_t ref);
/* Marks a linked block USED. */
void sst_block_keep(sst_seg *s, uint32_t ref);

int sst_heap_enter(sst_seg *s, uint64_t deadline_ns, uint32_t flags);
void sst_heap_exit(sst_seg *s);

/* Between these readers retry. */
static inline void sst_write_begin(sst_stripe *st) {
    st32(&st->seq, ld32(&st->seq) + 1);
    fence_release(); /* SYNC stripe-seq: release; pairs with the acquire fence in sst_read_ok */
}
static inline void sst_write_end(sst_stripe *st) {
    st32_release(&st->seq, ld32(&st->seq) + 1); /* SYNC stripe-seq: release; pairs with sst_read_begin */
}
/* 0: a writer is inside. */
static inline int sst_read_begin(const sst_stripe *st, uint32_t *seq) {
    *seq = ld32_acquire(&st->seq); /* SYNC stripe-seq: acquire; what was written before it was even is visible */
    return !(*seq & 1);
}
static inline int sst_read_ok(const sst_stripe *st, uint32_t seq) {
    fence_acquire(); /* SYNC stripe-seq: acquire; orders the reads before the second look */
    return ld32(&st->seq) == seq;
}

#endif
