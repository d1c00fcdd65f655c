/* queue.c -- see queue.h. */
#include "queue.h"
#include "heap.h"

int sst_queue_link(sst_seg *s, sst_entry *q, uint32_t item) {
    uint32_t last = ld32(&q->value[1]);
    if (ld32(&q->value[0]) == 0) {
        st32(&q->value[0], item);
    } else {
        sst_item *tail = sst_payload(s, last, sizeof(sst_item));
        if (tail == NULL)
            return SST_ECORRUPT;
        st32(&tail->next, item);
    }
    st32(&q->value[1], item);
    st64(&q->word, ld64(&q->word) + 1);
    return SST_OK;
}

int sst_queue_first(sst_seg *s, const sst_entry *q, uint32_t *ref, sst_item **item, uint32_t *len) {
    *ref = ld32(&q->value[0]);
    if (*ref == 0)
        return SST_ENOENT;
    *item = sst_payload(s, *ref, sizeof(sst_item));
    if (*item == NULL)
        return SST_ECORRUPT;
    *len = ld32(&(*item)->len);
    return sst_payload(s, *ref, sizeof(sst_item) + (uint64_t)*len) ? SST_OK : SST_ECORRUPT;
}

void sst_queue_unlink(sst_entry *q, const sst_item *first) {
    st32(&q->value[0], ld32(&first->next));
    st64(&q->word, ld64(&q->word) - 1);
}

int sst_queue_walk(sst_seg *s, const sst_entry *q, int (*visit)(sst_seg *s, uint32_t ref, void *arg), void *arg,
                   uint32_t *count, uint32_t *last) {
    uint64_t steps = sst_heap_most(s); /* of this list alone: who walks many lists counts in visit */
    *count = 0;
    *last = 0;
    for (uint32_t ref = ld32(&q->value[0]); ref != 0;) {
        sst_item *item = sst_payload(s, ref, sizeof(sst_item));
        if (item == NULL || steps-- == 0)
            return SST_ECORRUPT;
        if (visit) {
            int r = visit(s, ref, arg);
            if (r != SST_OK)
                return r;
        }
        ++*count;
        *last = ref;
        ref = ld32(&item->next);
    }
    return SST_OK;
}
