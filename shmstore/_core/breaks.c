/* breaks.c -- tests only (floor C9): breaks one invariant in a live segment, so that a test can see verify name it, and
 * takes locks to be killed with. Nothing calls this but tests. */
#include "guard.h"
#include "heap.h"
#include "liveness.h"
#include "segment.h"
#include "verify.h"
#include "waiter.h"
#include "clock.h"
#include "lock.h"

/* Any entry of that kind, with its stripe. */
static sst_entry *some(sst_seg *s, uint32_t kind, uint32_t *stripe, uint32_t **from) {
    for (*stripe = 0; *stripe < SST_STRIPES; ++*stripe)
        for (uint32_t b = 0; b < s->buckets; b++)
            for (*from = sst_bucket_at(s, *stripe, b); ld32(*from) != 0;) {
                sst_entry *e = sst_payload(s, ld32(*from), sizeof(sst_entry));
                if (e == NULL)
                    return NULL;
                if (SST_META_KIND(ld32(&e->meta)) == kind && (kind != SST_KIND_KEY || ld32(&e->value[0]) != 0) &&
                    (kind != SST_KIND_QUEUE || ld64(&e->word) != 0))
                    return e;
                *from = &e->next;
            }
    return NULL;
}

/* A block taken and marked USED that nothing reaches. */
static int leak(sst_seg *s, uint32_t *ref) {
    int r = sst_enter(s, 0, SST_FOREVER, 0);
    if (r != SST_OK)
        return r;
    r = sst_block_new(s, 0, 40, SST_FOREVER, 0, ref);
    if (r == SST_OK)
        sst_block_keep(s, *ref);
    sst_exit(s, 0, 0);
    return r;
}

/* A second entry of the same key behind the first. */
static int twin(sst_seg *s, uint32_t stripe, sst_entry *e) {
    char key[SST_KEY_MAX];
    sst_key k;
    uint32_t ref, klen = SST_META_KLEN(ld32(&e->meta));
    sst_copy_out(key, (const char *)(e + 1), klen);
    int r = sst_key_make(s, SST_META_SPACE(ld32(&e->meta)), key, klen, &k);
    if (r == SST_OK)
        r = sst_enter(s, stripe, SST_FOREVER, 0);
    if (r != SST_OK)
        return r;
    r = sst_block_new(s, stripe, sizeof(sst_entry) + klen, SST_FOREVER, 0, &ref);
    if (r == SST_OK) {
        sst_entry *copy = sst_payload(s, ref, sizeof(sst_entry) + klen);
        sst_table_fill(copy, &k, SST_KIND_KEY);
        st64(&copy->word, SST_WORD(SST_FORM_COUNTER, 0, 0));
        st32(&copy->next, ld32(&e->next));
        st32(&e->next, ref);
        sst_block_keep(s, ref);
        sst_stripe *st = sst_stripe_at(s, stripe);
        st32(&st->entries, ld32(&st->entries) + 1);
        st32(&st->keys[k.space], ld32(&st->keys[k.space]) + 1);
    }
    sst_exit(s, stripe, 0);
    return r;
}

static int free_one(sst_seg *s, uint32_t *cls) {
    for (*cls = 0; *cls < SST_CLASSES; ++*cls)
        if (ld32(&sst_heap_of(s)->free[*cls]) != 0)
            return SST_OK;
    uint32_t ref; /* none yet: take one and let the exit give it back */
    int r = sst_enter(s, 0, SST_FOREVER, 0);
    if (r != SST_OK)
        return r;
    r = sst_block_new(s, 0, 20, SST_FOREVER, 0, &ref);
    sst_exit(s, 0, 0);
    *cls = 0;
    return r != SST_OK ? r : ld32(&sst_heap_of(s)->free[0]) ? SST_OK : SST_ENOENT;
}

static int break_heap(sst_seg *s, int index) {
    sst_heap *heap = sst_heap_of(s);
    uint32_t ref, cls;
    int r = SST_OK;
    switch (index) {
    case SST_INV_HEADER:
        st64(&sst_header_of(s)->capacity, s->capacity + 1);
        return SST_OK;
    case SST_INV_HEAP_IDLE:
        st32(&heap->valid, 1);
        return SST_OK;
    case SST_INV_HEAP_TILES:
        r = leak(s, &ref);
        if (r == SST_OK)
            st32(&sst_block_of(s, ref)->tag, 0);
        return r;
    case SST_INV_FREE_LIST:
        r = free_one(s, &cls);
        if (r == SST_OK)
            st32(&sst_block_of(s, ld32(&heap->free[cls]))->link, ld32(&heap->free[cls]));
        return r;
    default: /* SST_INV_NO_LEAK */
        return leak(s, &ref);
    }
}

static int break_table(sst_seg *s, int index) {
    uint32_t stripe, *from, ref;
    sst_entry *e = some(s,
                        index == SST_INV_QUEUE     ? SST_KIND_QUEUE
                        : index == SST_INV_BARRIER ? SST_KIND_BARRIER
                                                   : SST_KIND_KEY,
                        &stripe, &from);
    if (e == NULL)
        return SST_ENOENT;
    sst_stripe *st = sst_stripe_at(s, stripe);
    switch (index) {
    case SST_INV_STRIPE_STILL:
        st32(&st->seq, ld32(&st->seq) | 1);
        return SST_OK;
    case SST_INV_INFLIGHT: /* in hand and reached */
        ref = ld32(from);
        st32(&sst_block_of(s, ref)->tag, SST_TAG(SST_TAG_CLS(ld32(&sst_block_of(s, ref)->tag)), SST_BLOCK_INFLIGHT));
        st32(&sst_block_of(s, ref)->link, 0);
        st32(&st->inflight, ref);
        return SST_OK;
    case SST_INV_CHAIN:
        st32(&e->next, s->blocks - 1);
        return SST_OK;
    case SST_INV_ENTRY:
        st32(&e->meta, SST_META(0, SST_USER, SST_KIND_KEY));
        return SST_OK;
    case SST_INV_HOME:
        st32(&e->hash, ld32(&e->hash) ^ 1);
        return SST_OK;
    case SST_INV_UNIQUE:
        return twin(s, stripe, e);
    case SST_INV_USED:
        ref = ld32(&e->value[0]);
        st32(&sst_block_of(s, ref)->tag, SST_TAG(SST_TAG_CLS(ld32(&sst_block_of(s, ref)->tag)), SST_BLOCK_FREE));
        return SST_OK;
    case SST_INV_ONCE:
        st32(&e->value[1], ld32(&e->value[0]));
        return SST_OK;
    case SST_INV_VALUE:
        st64(&e->word, SST_WORD(SST_FORM_BYTES, 0, SST_VALUE_MAX));
        return SST_OK;
    case SST_INV_COUNTS:
        st32(&st->keys[0], ld32(&st->keys[0]) + 1);
        return SST_OK;
    case SST_INV_BARRIER:
        st32(&((sst_barrier_block *)sst_payload(s, ld32(&e->value[0]), sizeof(sst_barrier_block)))->parties, 0);
        return SST_OK;
    default: /* SST_INV_QUEUE */
        st64(&e->word, ld64(&e->word) + 1);
        return SST_OK;
    }
}

static int break_people(sst_seg *s, int index) {
    switch (index) {
    case SST_INV_OWNER: /* a slot that is none: whoever waits for that lock takes its owner for dead */
        st32(&sst_stripe_at(s, SST_STRIPES - 1)->lock, SST_OWNER(SST_PEERS_MAX, 1));
        return SST_OK;
    case SST_INV_PEER:
        st32(&sst_peer_at(s, SST_PEERS_MAX - 1)->state, SST_PEER_LEFT + 1);
        return SST_OK;
    case SST_INV_RANK:
        st64(sst_rank_at(s, SST_RANKS_MAX - 1), SST_RANK(0, 1, SST_RANK_LIVE));
        return SST_OK;
    default: /* SST_INV_WAITER */
        st32(&sst_waiter_at(s, SST_WAITERS_MAX - 1)->word, UINT32_MAX);
        return SST_OK;
    }
}

int sst_test_break(sst_seg *s, int index) {
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    if (index < 0 || index >= SST_INV_COUNT)
        r = SST_EINVAL;
    else if (index <= SST_INV_NO_LEAK)
        r = break_heap(s, index);
    else if (index <= SST_INV_BARRIER)
        r = break_table(s, index);
    else
        r = break_people(s, index);
    sst_end(s);
    return r;
}

/* A peer slot being claimed: the byte locked, the generation moved, not LIVE; by a second view of this process's. */
static int hold_claim(sst_seg *s) {
    for (uint32_t slot = 0; slot < SST_PEERS_MAX; slot++) {
        sst_peer_slot *p = sst_peer_at(s, slot);
        if (ld32(&p->state) != SST_PEER_FREE || !sst_byte_take(s->lock_fd, slot))
            continue;
        st32(&p->state, SST_PEER_CLAIMING);
        st32(&p->gen, ld32(&p->gen) + 1);
        return SST_OK;
    }
    return SST_EPEERS;
}

int sst_test_hold(sst_seg *s, int what, const char *key, size_t klen) {
    sst_key k;
    uint32_t waiter, slot, gen;
    int r = sst_key_make(s, SST_USER, key, klen, &k);
    if (r == SST_OK)
        r = sst_self(s, &slot, &gen);
    if (r != SST_OK)
        return r;
    switch (what) {
    case 0:
        return sst_enter(s, k.stripe, SST_FOREVER, 0);
    case 1: /* as an allocation holds it: inside a stripe, with a record that is not applied yet */
        r = sst_enter(s, k.stripe, SST_FOREVER, 0);
        return r != SST_OK ? r : sst_heap_enter(s, SST_FOREVER, 0);
    case 2:
        return sst_waiter_claim(s, &sst_stripe_at(s, k.stripe)->event, &waiter);
    case 3:
        return hold_claim(s);
    default:
        return SST_EINVAL;
    }
}
