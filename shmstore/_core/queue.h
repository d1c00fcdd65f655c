/* queue.h -- FIFO queues (floor C6): an entry of kind QUEUE with a list of items. All of it under the stripe lock.
 *
 *   push: item INFLIGHT, filled -> linked (last item's next, or value[0]) = commit -> value[1] -> word (count)
 *   pop:  item INFLIGHT -> value[0] = its next = commit -> value[1] when empty -> word -> given back
 *
 * Repair walks the list from value[0] and makes value[1] and word true again. An empty queue keeps its entry. */
#ifndef SST_QUEUE_H
#define SST_QUEUE_H

#include "view.h"

int sst_queue_link(sst_seg *s, sst_entry *q, uint32_t item);
int sst_queue_first(sst_seg *s, const sst_entry *q, uint32_t *ref, sst_item **item); /* SST_ENOENT: empty */
int sst_queue_unlink(sst_seg *s, sst_entry *q); /* the first one; its block becomes INFLIGHT on no list */
/* Walks the items: count and last; visit may be NULL. SST_ECORRUPT: a loop or a bad link. */
int sst_queue_walk(sst_seg *s, const sst_entry *q, int (*visit)(sst_seg *s, uint32_t ref, void *arg), void *arg,
                   uint32_t *count, uint32_t *last);

#endif
