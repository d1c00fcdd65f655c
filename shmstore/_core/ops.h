/* ops.h -- what the verbs share (floor C9): a key's place found, a value put. */
#ifndef SST_OPS_H
#define SST_OPS_H

#include "event.h"
#include "guard.h"
#include "segment.h"

/* One verb under way. */
typedef struct {
    sst_seg *s;
    sst_key key;
    sst_stripe *stripe;
    uint64_t deadline_ns;
    uint32_t flags;
    int wake; /* sst_event_bump's word, for the exit */
} sst_op;

/* Counts the call in, places the key. On failure nothing is to be undone. */
int sst_op_begin(sst_op *op, sst_seg *s, uint32_t space, const char *key, size_t klen, uint64_t deadline_ns,
                 uint32_t flags);
/* The same and enters the stripe. Ends with sst_op_exit. */
int sst_op_enter(sst_op *op, sst_seg *s, uint32_t space, const char *key, size_t klen, uint64_t deadline_ns,
                 uint32_t flags);
int sst_op_exit(sst_op *op, int r); /* returns r */

/* Links a filled entry at the end of its chain: that store is the creation. Counts and bumps. */
void sst_op_link(sst_op *op, uint32_t *from, uint32_t ref, uint32_t kind);
/* Unlinks the place's entry: that store is the deletion. Its blocks were dropped before. Counts. */
void sst_op_unlink(sst_op *op, const sst_place *place, uint32_t kind);
/* A fresh, unlinked entry of the key, empty. */
int sst_op_new_entry(sst_op *op, uint32_t kind, uint32_t *ref, sst_entry **e);
/* A fresh block of `room` bytes or more that begins with the len bytes (len <= room). *ref 0 when room is 0. */
int sst_op_new_value(sst_op *op, const char *val, size_t len, uint64_t room, uint32_t *ref);
/* Sets key to bytes, whether it is there or not (place as found). */
int sst_op_put(sst_op *op, const sst_place *place, const char *val, size_t len);

/* Adds n to the key (place as found), which is created where it is missing; the new value. */
int sst_op_add(sst_op *op, const sst_place *place, int64_t n, int64_t *value);
/* The number that add would start from. SST_ENOTINT, SST_ERANGE, SST_ECORRUPT. */
int sst_op_number(sst_seg *s, const sst_entry *e, int64_t *n);

/* c10d's barrier, under the stripe's lock: the arrival, where *arrived is 0, and the look at the count. 1: all have come,
 * and all who wait were marked. 0: not yet; the caller has its place in *waiter, if there was one. */
int sst_op_meet(sst_op *op, int64_t parties, uint32_t *arrived, int64_t *count, uint32_t *waiter, uint32_t rank);
int sst_op_passed(sst_seg *s, uint32_t waiter); /* 1: that place was marked: all had come */
/* Living poppers that stand in the queue's line with a lower ticket than `mine`. */
uint64_t sst_op_line(sst_seg *s, const sst_key *key, uint64_t mine);

/* Claims the slot of a wait, once. All taken: the wait goes on without one and is not to be seen from outside. */
void sst_op_announce(sst_op *op, uint32_t *waiter, uint32_t rank);
/* Before a park: yields for a while, or not, while the word has the value. 1: it has changed. */
int sst_yield(sst_yields *y, const uint32_t *word, uint32_t value, uint64_t deadline_ns);
/* Parks on the stripe's event while it has the value, at most slice_ns. SST_OK or SST_EINTR: look again. */
int sst_op_park(sst_op *op, uint32_t value, uint32_t waiter, uint64_t slice_ns);

#endif
