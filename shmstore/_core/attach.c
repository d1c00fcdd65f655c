/* attach.c -- the doors of a segment's life (floor C9): create, attach, leave, close.
 *
 * attach = map, claim a peer slot, repair what that slot's dead still hold, and look at the state once more: whoever
 * unlinked the segment meanwhile has marked it dead first.
 *
 * Out is one road with two entries. Both set CLOSING: no call begins, waits are woken, and a call parked on a lock finds
 * the bit within 16 ms, whoever holds that lock; so those in flight end soon. Whoever brings their count to 0 gives the
 * slot back and unmaps. sst_close leaves it at that. sst_leave waits for the others, so that its caller knows that this
 * process is out before it asks whether anybody is in. */
#include "barrier.h"
#include "clock.h"
#include "event.h"
#include "guard.h"
#include "peers.h"
#include "segment.h"
#include "waiter.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE_NS UINT64_C(10000000000) /* calls that are still inside after so long will not end soon */
#define NAP_FIRST   UINT64_C(50000)       /* between two looks at them, doubled up to 4 ms */
#define NAP_LAST    UINT64_C(4000000)

int sst_attach(int map_fd, int lock_fd, sst_seg **out) {
    sst_seg *s = NULL;
    int r = sst_map(map_fd, lock_fd, 0, &s);
    if (r != SST_OK) {
        (void)close(map_fd);
        (void)close(lock_fd);
        return r;
    }
    r = sst_join(s, 0);
    if (r == SST_OK && ld32(&sst_header_of(s)->state) != SST_READY)
        r = SST_EDEAD;
    if (r != SST_OK) {
        sst_free(s);
        return r;
    }
    *out = s;
    return SST_OK;
}

int sst_create(int map_fd, int lock_fd, uint64_t capacity, uint32_t engine, uint32_t persist, uint32_t world_size,
               uint64_t incarnation, sst_seg **out) {
    sst_seg *s = NULL;
    int r = sst_format(map_fd, lock_fd, capacity, engine, persist, world_size, incarnation, &s);
    if (r != SST_OK) {
        (void)close(map_fd);
        (void)close(lock_fd);
        return r;
    }
    r = sst_join(s, 0);
    if (r != SST_OK) {
        sst_free(s);
        return r;
    }
    sst_publish(s);
    *out = s;
    return SST_OK;
}

/* -- out --------------------------------------------------------------------------------------------------------------- */
/* A wait parks on a stripe's event, a barrier's state or the bell; moving it stops one that has not parked yet, too. */
static void rouse(sst_seg *s) {
    uint32_t me = sst_me(s);
    for (uint32_t i = 0; me != 0 && i < SST_WAITERS_MAX; i++) {
        sst_waiter_slot *w = sst_waiter_at(s, i);
        uint32_t stripe = ld32(&w->stripe);
        if (ld32(&w->owner) != me || stripe == 0 || stripe > SST_AT_REUSABLE)
            continue;
        if (stripe == SST_AT_REUSABLE) {
            sst_bar_nudge(s, ld32(&w->queue));
            continue;
        }
        sst_stripe *st = sst_stripe_at(s, stripe - 1);
        sst_event_wake(s, st, sst_event_bump(st) | SST_WAKE_PARKED);
    }
    if (me != 0)
        sst_bell_nudge(s);
}

int sst_wake_self(sst_seg *s) {
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    rouse(s);
    sst_end(s);
    return SST_OK;
}

int sst_leave(sst_seg *s) {
    if (sst_begin_closing(s, SST_LEAVER) != SST_OK && !(ld32(&s->users) & SST_LEAVER))
        return SST_ECLOSED;
    uint64_t until = sst_after(sst_now_ns(), PATIENCE_NS), nap = NAP_FIRST;
    /* SYNC last-out: acquire; pairs with the release in sst_end */
    while ((ld32_acquire(&s->users) & ~SST_LOST) != (SST_CLOSING | SST_LEAVER | 1)) {
        uint64_t now = sst_now_ns();
        if (now >= until)
            return SST_EBUSY;
        rouse(s); /* each time: a call may have been about to take its waiter slot when the last look passed it */
        struct timespec t = sst_timespec(sst_after(now, nap));
        if (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
            return SST_EINTR;
        nap = nap < NAP_LAST ? nap * 2 : NAP_LAST;
    }
    sst_give_back(s);
    return SST_OK;
}

/* Takes LEAVER off, and with it its count becomes the caller's. 0: it does not stand. */
static int end_leaving(sst_seg *s) {
    for (;;) {
        uint32_t old = ld32(&s->users);
        if (!(old & SST_LEAVER))
            return 0;
        if (own_cas32(&s->users, old, old & ~SST_LEAVER))
            return 1;
    }
}

int sst_close(sst_seg *s) {
    if (sst_begin_closing(s, 0) == SST_OK)
        rouse(s);
    else if (!end_leaving(s))
        return SST_OK;
    sst_end(s);
    return SST_OK;
}

void sst_free(sst_seg *s) {
    if (s == NULL)
        return;
    (void)sst_close(s);
    (void)pthread_mutex_destroy(&s->join);
    free(s);
}

int sst_self(sst_seg *s, uint32_t *slot, uint32_t *gen) {
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    r = sst_me(s) ? SST_OK : sst_join(s, 0);
    *slot = SST_OWNER_SLOT(sst_me(s));
    *gen = SST_OWNER_GEN(sst_me(s));
    sst_end(s);
    return r;
}
