/* guard.c -- see guard.h. */
#include "guard.h"
#include "clock.h"
#include "event.h"
#include "heap.h"
#include "liveness.h"
#include "lock.h"
#include "peers.h"
#include "recover.h"
#include "waiter.h"

/* -- what was taken from the dead ------------------------------------------------------------------------------------
 *
 * The lock is ours, what it guards may be half changed, and there are three ways on:
 *
 *   the repair came through       the lock is as good as any: held by us
 *   the heap cannot be had now    the word is left to a generation that nobody has: the next who comes tries again
 *   the repair met corruption     the word says so for good (SST_LOCK_CORRUPT), a stripe's sequence stays odd
 *
 * In the third way nobody enters any more, and nobody repairs again: the verbs of that stripe, or those that need a
 * block, are SST_ECORRUPT at once; the rest of the segment goes on. What was half repaired stays as it is, for verify
 * to name. Had it been unlocked, the next verb would have taken what is in hand for unreached, and given it away. */

/* An older generation of the own slot: dead for everybody, this process too. */
static uint32_t nobody(const sst_seg *s) {
    uint32_t me = sst_me(s), gen = SST_OWNER_GEN(me);
    return SST_OWNER(SST_OWNER_SLOT(me), gen == 1 ? 0xffff : gen - 1);
}

/* Stores what is not a free lock, and wakes all who wait for one: each finds out for itself. */
static void leave_to(sst_seg *s, uint32_t *word, uint32_t owner) {
    st32_release(word, owner); /* SYNC lock: release; as sst_unlock, since the next one to repair reads what we did */
    s->park->unpark(s, word, 1);
}

/* Killed at any of these stores the word is a dead owner's, and the next one repairs, and ends here, too. */
static void close_stripe(sst_seg *s, sst_stripe *st) {
    if (!(ld32(&st->seq) & 1))
        sst_write_begin(st); /* for good: readers without the lock go to it, and hear */
    int wake = sst_event_bump(st);
    leave_to(s, &st->lock, SST_LOCK_CORRUPT);
    sst_event_wake(s, st, wake | SST_WAKE_PARKED); /* who waits for a key looks again, and hears, too */
}

static int repair_heap(sst_seg *s) {
    int r = sst_recover_heap(s);
    if (r != SST_OK)
        leave_to(s, &sst_heap_of(s)->lock, SST_LOCK_CORRUPT);
    return r;
}

int sst_heap_enter(sst_seg *s, uint64_t deadline_ns, uint32_t flags) {
    int r = sst_lock(s, &sst_heap_of(s)->lock, deadline_ns, flags);
    return r == SST_OWNER_DIED ? repair_heap(s) : r;
}

void sst_heap_exit(sst_seg *s) { sst_unlock(s, &sst_heap_of(s)->lock); }

/* The stripe's lock was taken from the dead: make the stripe whole. On SST_OK it is held, else it is not. */
static int repair_stripe(sst_seg *s, uint32_t stripe, uint64_t deadline_ns, uint32_t flags) {
    sst_stripe *st = sst_stripe_at(s, stripe);
    int r = sst_heap_enter(s, deadline_ns, flags);
    if (r == SST_OK) {
        r = sst_recover_stripe(s, stripe);
        sst_heap_exit(s);
    }
    if (r == SST_OK) {
        sst_event_wake(s, st, sst_event_bump(st) | SST_WAKE_PARKED | SST_WAKE_BELL); /* the dead may have bumped and
                                                                                        not woken */
    } else if (r == SST_ECORRUPT) {
        close_stripe(s, st);
    } else {
        leave_to(s, &st->lock, nobody(s));
    }
    return r;
}

int sst_enter(sst_seg *s, uint32_t stripe, uint64_t deadline_ns, uint32_t flags) {
    if (sst_me(s) == 0) {
        int r = sst_join(s, flags);
        if (r != SST_OK)
            return r;
    }
    sst_stripe *st = sst_stripe_at(s, stripe);
    int r = sst_lock(s, &st->lock, deadline_ns, flags);
    return r == SST_OWNER_DIED ? repair_stripe(s, stripe, deadline_ns, flags) : r;
}

/* Gives back what an operation took and did not need. Where the heap is busy the blocks stay on the list: the next to
 * leave this stripe gives them back. */
static int tidy(sst_seg *s, uint32_t stripe) {
    int r = sst_sift(s, stripe);
    if (r == SST_OK && ld32(&sst_stripe_at(s, stripe)->inflight) != 0 && sst_heap_enter(s, 0, SST_TRY) == SST_OK) {
        r = sst_settle(s, stripe);
        sst_heap_exit(s);
    }
    return r;
}

void sst_exit(sst_seg *s, uint32_t stripe, int wake) {
    sst_stripe *st = sst_stripe_at(s, stripe);
    if (ld32(&st->inflight) != 0 && tidy(s, stripe) == SST_ECORRUPT) {
        close_stripe(s, st); /* the verb is done; the next one would put blocks on a list that leads nowhere */
        return;
    }
    sst_unlock(s, &st->lock);
    if (wake)
        sst_event_wake(s, st, wake);
}

int sst_block_new(sst_seg *s, uint32_t stripe, uint64_t payload, uint64_t deadline_ns, uint32_t flags, uint32_t *ref) {
    int r = sst_heap_enter(s, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    r = sst_heap_take(s, stripe, payload, !(flags & SST_TRY), ref);
    sst_heap_exit(s);
    return r;
}

int sst_block_drop(sst_seg *s, uint32_t stripe, uint32_t ref) {
    sst_stripe *st = sst_stripe_at(s, stripe);
    sst_block *b = sst_block_of(s, ref);
    if (b == NULL || SST_TAG_STATE(ld32(&b->tag)) != SST_BLOCK_USED)
        return SST_ECORRUPT;
    st32(&b->tag, SST_TAG(SST_TAG_CLS(ld32(&b->tag)), SST_BLOCK_INFLIGHT)); /* still reachable: repair says USED */
    st32(&b->link, ld32(&st->inflight));
    st32(&st->inflight, ref);
    return SST_OK;
}

void sst_block_keep(sst_seg *s, uint32_t ref) {
    sst_block *b = sst_block_of(s, ref);
    st32(&b->tag, SST_TAG(SST_TAG_CLS(ld32(&b->tag)), SST_BLOCK_USED));
}

/* -- joining -------------------------------------------------------------------------------------------------------- */
#define INHERIT_NS UINT64_C(50000000)

/* 1: the word was another generation's of the own slot, and is ours now. */
static int claim_word(sst_seg *s, uint32_t *word) {
    uint32_t me = sst_me(s), v = ld32(word), owner = v & SST_OWNER_MASK;
    return owner != me && SST_OWNER_SLOT(owner) == SST_OWNER_SLOT(me) && sst_lock_seize(s, word, v);
}

/* Every word that another generation of the own slot still holds is dead: take it over and repair. That is a courtesy,
 * which a busy heap, a signal or INHERIT_NS end: what is left stays dead for everybody, and is repaired on demand. */
static void inherit(sst_seg *s) {
    uint64_t deadline = sst_after(sst_now_ns(), INHERIT_NS);
    sst_waiter_reap(s, SST_OWNER_SLOT(sst_me(s)), sst_me(s));
    if (claim_word(s, &sst_heap_of(s)->lock) && repair_heap(s) == SST_OK)
        sst_heap_exit(s);
    for (uint32_t i = 0; i < SST_STRIPES && sst_now_ns() < deadline; i++) {
        if (!claim_word(s, &sst_stripe_at(s, i)->lock))
            continue;
        int r = repair_stripe(s, i, deadline, 0);
        if (r == SST_OK)
            sst_unlock(s, &sst_stripe_at(s, i)->lock);
        else if (r != SST_ECORRUPT)
            return;
    }
}

static int join_locked(sst_seg *s) {
    if (sst_me(s) != 0)
        return SST_OK;
    if (sst_closing(s))
        return sst_why_closing(s);
    int r = sst_peer_claim(s);
    if (r == SST_OK) {
        inherit(s);
        sst_peer_live(s);
    }
    return r;
}

int sst_join(sst_seg *s, uint32_t flags) {
    if (s->readonly)
        return SST_EINVAL;
    if (flags & SST_TRY)
        return SST_EAGAIN;
    (void)pthread_mutex_lock(&s->join);
    int r = join_locked(s);
    (void)pthread_mutex_unlock(&s->join);
    return r;
}
