/* lock.c -- see lock.h. */
#include "lock.h"
#include "clock.h"
#include "liveness.h"

#define SPINS       40             /* about 1 us of pauses: holds are shorter, and a longer spin measured slower */
#define SLICE_FIRST 1000000u /* 1 ms, doubled up to 16 ms */
#define SLICE_LAST  16000000u

static _Thread_local uint32_t busy_owner; /* behind this thread's last SST_EBUSY */

uint32_t sst_lock_busy(void) { return busy_owner; }

int sst_lock_seize(sst_seg *s, uint32_t *word, uint32_t held) {
    /* SYNC lock: acquire; the dead released nothing, so repair reads its stores as coherence left them */
    uint32_t me = sst_me(s);
    return me != 0 && cas32_acquire(word, held, me | SST_WAITERS);
}

static int lock_slow(sst_seg *s, uint32_t *word, uint32_t me, uint64_t deadline_ns, uint32_t flags) {
    for (int i = 0; i < SPINS; i++) {
        if (ld32(word) == 0 && cas32_acquire(word, 0, me)) /* SYNC lock: acquire; pairs with sst_unlock */
            return SST_OK;
        sst_pause();
    }
    if (flags & SST_TRY)
        return SST_EAGAIN;
    uint64_t slice = SLICE_FIRST, least = sst_after(sst_now_ns(), SST_LOCK_PATIENCE);
    int waits = !(flags & SST_NOWAIT); /* else one look at the owner, and no WAITERS for nobody */
    if (!waits)
        deadline_ns = 0;
    else if (deadline_ns < least)
        deadline_ns = least;
    for (;;) {
        uint32_t v = ld32(word);
        if (v == SST_LOCK_CORRUPT)
            return SST_ECORRUPT;
        if (v == 0) {
            if (cas32_acquire(word, 0, me | SST_WAITERS)) /* SYNC lock: acquire; others may still be parked */
                return SST_OK;
            continue;
        }
        if (waits && !(v & SST_WAITERS)) {
            if (!cas32_acquire(word, v, v | SST_WAITERS))
                continue;
            v |= SST_WAITERS;
        }
        uint64_t now = sst_now_ns();
        int r = SST_ETIMEDOUT;
        if (now < deadline_ns)
            r = s->park->park(s, word, v, sst_earlier(deadline_ns, sst_after(now, slice)), 0);
        if (sst_closing(s))
            return sst_why_closing(s);
        if (r == SST_OK)
            continue;
        v = ld32(word); /* nobody woke us, or nobody was going to (SST_EAGAIN): is the owner alive? */
        if (v != 0 && !sst_alive(s, v)) {
            if (sst_lock_seize(s, word, v))
                return SST_OWNER_DIED;
            continue;
        }
        if (r == SST_EINTR) /* only now: signals that come faster than the slices end must not hide a death */
            return SST_EINTR;
        if (v != 0 && sst_now_ns() >= deadline_ns) {
            busy_owner = v & SST_OWNER_MASK;
            return SST_EBUSY;
        }
        slice = slice < SLICE_LAST ? slice * 2 : SLICE_LAST;
    }
}

int sst_lock(sst_seg *s, uint32_t *word, uint64_t deadline_ns, uint32_t flags) {
    uint32_t me = sst_me(s);
    if (me == 0)
        return SST_ECLOSED; /* nobody's word is 0, the free one: whoever has no slot holds no lock */
    if (cas32_acquire(word, 0, me)) /* SYNC lock: acquire; pairs with the release in sst_unlock */
        return SST_OK;
    return lock_slow(s, word, me, deadline_ns, flags);
}

void sst_unlock(sst_seg *s, uint32_t *word) {
    /* SYNC lock: release; pairs with the acquire of the next owner. Makes all that the lock guards visible to it. */
    if (xchg32_release(word, 0) & SST_WAITERS)
        s->park->unpark(s, word, 0);
}
