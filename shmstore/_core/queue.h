/* queue.h -- FIFO queues (floor C6): an entry of kind QUEUE with a list of items. All of it under the stripe lock.
 *
 *   push of the first:  item and entry INFLIGHT, filled -> the entry linked into its chain = commit
 *   push:               item INFLIGHT, filled -> the last item's next = commit -> value[1] -> word (count)
 *   pop:                item INFLIGHT -> value[0] = its next = commit -> word -> given back
 *   pop of the last:    item and entry INFLIGHT -> the link past the entry = commit -> both given back
 *
 * Repair walks the list from value[0] and makes value[1] and word true again. No queue is empty: an empty one has no
 * entry (ops_queue.c). */
#ifndef SST_QUEUE_H
#define SST_QUEUE_H

#include "view.h"

int sst_queue_link(sst_seg *s, sst_entry *q, uint32_t item); /* also into an entry that is not linked yet */
/* The first item and its length, read once and checked. SST_ENOENT: empty. */
int sst_queue_first(sst_seg *s, const sst_entry *q, uint32_t *ref, sst_item **item, uint32_t *len);
void sst_queue_unlink(sst_entry *q, const sst_item *first); /* which is not the last one */
/* Walks the items: count and last; visit may be NULL. SST_ECORRUPT: a loop or a bad link. */
int sst_queue_walk(sst_seg *s, const sst_entry *q, int (*visit)(sst_seg *s, uint32_t ref, void *arg), void *arg,
                   uint32_t *count, uint32_t *last);

#endif
