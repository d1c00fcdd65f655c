/* recover.c -- see recover.h.
 *
 * What a kill can leave in a stripe, and how it is told apart:
 *   sequence odd                      the holder died while changing: made even last, after everything else
 *   a block INFLIGHT, reachable       linked, then died: it is USED
 *   a block INFLIGHT, unreachable     not linked yet, or unlinked already: given back
 *   counts                            counted anew
 *   a queue's last item, its length   walked anew
 *   event not bumped, nobody woken    bumped and woken by guard.c: waiters look once for nothing
 * There is no undo record in a stripe, because each verb's commit is one store.
 *
 * What a kill cannot leave, and a repair may meet all the same: a link out of the heap, a list without an end. It stops
 * there, with the sequence odd, and guard.c closes the stripe: behind that link there may be more that is reached, so
 * nothing in hand may be given back any more. Killed before the stripe is closed, the next repair stops at the same
 * place. */
#include "recover.h"
#include "heap.h"
#include "queue.h"
#include "table.h"

int sst_recover_heap(sst_seg *s) { return sst_heap_repair(s); }

typedef struct {
    uint32_t keys[2], entries;
    uint64_t left; /* blocks that may still be reached: one budget for the stripe, each is reached once */
} tally;

static int reached(sst_seg *s, uint32_t ref, void *arg) {
    tally *t = arg;
    sst_block *b = sst_block_of(s, ref);
    if (b == NULL || t->left-- == 0)
        return SST_ECORRUPT;
    uint32_t tag = ld32(&b->tag);
    if (SST_TAG_STATE(tag) == SST_BLOCK_INFLIGHT)
        st32(&b->tag, SST_TAG(SST_TAG_CLS(tag), SST_BLOCK_USED));
    return SST_OK;
}

static int repair_entry(sst_seg *s, uint32_t ref, sst_entry *e, tally *t) {
    uint32_t meta = ld32(&e->meta), count, last;
    int r = reached(s, ref, t);
    t->entries++;
    if (SST_META_KIND(meta) == SST_KIND_QUEUE) {
        if (r == SST_OK)
            r = sst_queue_walk(s, e, reached, t, &count, &last);
        if (r != SST_OK)
            return r;
        if (ld32(&e->value[1]) != last)
            st32(&e->value[1], last);
        if (ld64(&e->word) != count)
            st64(&e->word, count);
        return SST_OK;
    }
    if (SST_META_KIND(meta) == SST_KIND_KEY)
        t->keys[SST_META_SPACE(meta) & 1]++;
    for (int i = 0; i < 2 && r == SST_OK; i++)
        if (ld32(&e->value[i]) != 0)
            r = reached(s, ld32(&e->value[i]), t);
    return r;
}

static int repair_chains(sst_seg *s, uint32_t stripe, tally *t) {
    for (uint32_t b = 0; b < s->buckets; b++)
        for (uint32_t ref = ld32(sst_bucket_at(s, stripe, b)); ref != 0;) {
            sst_entry *e = sst_payload(s, ref, sizeof(sst_entry));
            if (e == NULL)
                return SST_ECORRUPT;
            int r = repair_entry(s, ref, e, t);
            if (r != SST_OK)
                return r;
            ref = ld32(&e->next);
        }
    return SST_OK;
}

int sst_sift(sst_seg *s, uint32_t stripe) {
    uint32_t *from = &sst_stripe_at(s, stripe)->inflight;
    uint64_t steps = sst_heap_most(s);
    for (uint32_t ref = ld32(from); ref != 0; ref = ld32(from)) {
        sst_block *b = sst_block_of(s, ref);
        if (b == NULL || steps-- == 0)
            return SST_ECORRUPT;
        if (SST_TAG_STATE(ld32(&b->tag)) == SST_BLOCK_USED)
            st32(from, ld32(&b->link));
        else
            from = &b->link;
    }
    return SST_OK;
}

int sst_settle(sst_seg *s, uint32_t stripe) {
    sst_stripe *st = sst_stripe_at(s, stripe);
    uint64_t steps = sst_heap_most(s);
    for (uint32_t ref = ld32(&st->inflight); ref != 0; ref = ld32(&st->inflight)) {
        sst_block *b = sst_block_of(s, ref);
        if (b == NULL || steps-- == 0)
            return SST_ECORRUPT;
        if (SST_TAG_STATE(ld32(&b->tag)) == SST_BLOCK_USED) {
            st32(&st->inflight, ld32(&b->link));
            continue;
        }
        int r = sst_heap_give(s, stripe);
        if (r != SST_OK)
            return r;
    }
    return SST_OK;
}

int sst_recover_stripe(sst_seg *s, uint32_t stripe) {
    sst_stripe *st = sst_stripe_at(s, stripe);
    tally t = {.left = sst_heap_most(s)};
    uint32_t seq = ld32(&st->seq);
    if (!(seq & 1)) {
        st32(&st->seq, seq + 1);
        fence_release(); /* SYNC stripe-seq: release; as in sst_write_begin */
    }
    int r = repair_chains(s, stripe, &t);
    if (r == SST_OK) {
        st32(&st->keys[0], t.keys[0]);
        st32(&st->keys[1], t.keys[1]);
        st32(&st->entries, t.entries);
        r = sst_settle(s, stripe);
    }
    if (r == SST_OK)
        st32_release(&st->seq, (seq | 1) + 1); /* SYNC stripe-seq: release; even last: readers see a repaired stripe */
    return r;
}
