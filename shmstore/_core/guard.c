/* guard.c -- see guard.h. */
#include "guard.h"
#include "errors.h"
#include "event.h"
#include "heap.h"
#include "liveness.h"
#include "lock.h"
#include "peers.h"
#include "recover.h"
#include "waiter.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int sst_heap_enter(sst_seg *s, uint64_t deadline_ns, uint32_t flags) {
    int r = sst_lock(s, &sst_heap_of(s)->lock, deadline_ns, flags);
    if (r != SST_OWNER_DIED)
        return r;
    r = sst_recover_heap(s);
    if (r != SST_OK)
        sst_unlock(s, &sst_heap_of(s)->lock);
    return r;
}

void sst_heap_exit(sst_seg *s) { sst_unlock(s, &sst_heap_of(s)->lock); }

/* The stripe's lock was taken from the dead: make the stripe whole. If the heap cannot be had the stripe is given back
 * as dead as it was found, by leaving the word to a generation that is not alive. */
static int repair(sst_seg *s, uint32_t stripe, uint64_t deadline_ns) {
    sst_stripe *st = sst_stripe_at(s, stripe);
    int r;
    do /* a signal does not end a repair: the lock is ours and must come back whole */
        r = sst_heap_enter(s, deadline_ns, 0);
    while (r == SST_EINTR);
    if (r != SST_OK) {
        uint32_t me = sst_me(s),
                 none = SST_OWNER(SST_OWNER_SLOT(me), SST_OWNER_GEN(me) == 1 ? 0xffff : SST_OWNER_GEN(me) - 1);
        st32_release(&st->lock, none | SST_WAITERS); /* an older generation of the own slot: dead for everybody */
        return r;
    }
    r = sst_recover_stripe(s, stripe);
    sst_heap_exit(s);
    (void)sst_event_bump(st);
    s->park->unpark(s, &st->event, 1); /* the dead may have bumped and not woken */
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
    if (r != SST_OWNER_DIED)
        return r;
    r = repair(s, stripe, deadline_ns);
    if (r == SST_ECORRUPT)
        sst_unlock(s, &st->lock);
    return r;
}

void sst_exit(sst_seg *s, uint32_t stripe, int wake) {
    sst_stripe *st = sst_stripe_at(s, stripe);
    if (ld32(&st->inflight) != 0 && sst_sift(s, stripe) == SST_OK && ld32(&st->inflight) != 0) {
        /* Where the heap is busy the blocks stay on the list: the next to leave this stripe gives them back. */
        int heap = sst_heap_enter(s, 0, SST_TRY) == SST_OK;
        if (heap) {
            (void)sst_settle(s, stripe); /* a corrupt list stays; verify names it */
            sst_heap_exit(s);
        }
    }
    sst_unlock(s, &st->lock);
    if (wake)
        s->park->unpark(s, &st->event, 1);
}

int sst_block_new(sst_seg *s, uint32_t stripe, uint64_t payload, uint64_t deadline_ns, uint32_t flags, uint32_t *ref) {
    int r = sst_heap_enter(s, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    do
        r = sst_heap_take(s, stripe, payload, !(flags & SST_TRY), ref);
    while (r == SST_EINTR); /* posix_fallocate only; it makes progress */
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
/* Every word that another generation of the own slot still holds is dead: take it over and repair. */
static int inherit(sst_seg *s) {
    uint32_t me = sst_me(s), slot = SST_OWNER_SLOT(me);
    uint32_t *heap = &sst_heap_of(s)->lock, v = ld32(heap);
    sst_waiter_reap(s, slot, me);
    if ((v & SST_OWNER_MASK) != me && SST_OWNER_SLOT(v & SST_OWNER_MASK) == slot && sst_lock_seize(s, heap, v)) {
        int r = sst_recover_heap(s);
        sst_unlock(s, heap);
        if (r != SST_OK)
            return r;
    }
    for (uint32_t i = 0; i < SST_STRIPES; i++) {
        sst_stripe *st = sst_stripe_at(s, i);
        v = ld32(&st->lock);
        if ((v & SST_OWNER_MASK) == me || SST_OWNER_SLOT(v & SST_OWNER_MASK) != slot ||
            !sst_lock_seize(s, &st->lock, v))
            continue;
        int r = repair(s, i, SST_FOREVER);
        if (r == SST_OK || r == SST_ECORRUPT)
            sst_unlock(s, &st->lock);
        if (r != SST_OK)
            return r;
    }
    return SST_OK;
}

static int join_locked(sst_seg *s) {
    if (sst_me(s) != 0)
        return SST_OK;
    if (s->left)
        return SST_ECLOSED;
    if (s->lock_fd < 0) {
        char path[64];
        (void)snprintf(path, sizeof path, "/proc/self/fd/%d", s->map_fd);
        s->lock_fd = open(path, O_RDWR | O_CLOEXEC);
        if (s->lock_fd < 0)
            return sst_fail_errno(SST_ESYS);
    }
    int r = sst_peer_claim(s);
    if (r == SST_OK) {
        r = inherit(s);
        if (r == SST_OK || r == SST_ECORRUPT)
            sst_peer_live(s);
        else
            sst_peer_leave(s);
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
