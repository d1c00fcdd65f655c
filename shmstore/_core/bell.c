/* bell.c -- see bell.h.
 *
 *   the server                             the bell thread
 *   watch: armed = forward(stripe)         arm the bell (SYNC bell)
 *   look for the keys                      an event is not as armed: told 0 -> 1, write the eventfd
 *   all events still as armed? sleep       park on the bell, a slice
 *   woken: told = 0, then look again
 *
 * The last look of the server follows its stores of `armed`, and the bell thread's loads of `armed` follow its change of
 * the bell (SYNC bell-armed). A bump that the server's last look misses comes after `armed` was stored, so its ringer
 * finds the bell thread parked and wakes it; or not parked, and then the look that it takes before it parks finds both.
 * told is taken off before the server looks: while it is on the server is yet to look (SYNC bell-told).
 *
 * A setter may die between its bump and its ring, or when it has taken the names out of the bell and woken nobody yet. So a
 * park lasts a slice while anybody waits; while nobody does it lasts until somebody nudges, which wakes also those whom the
 * bell does not name (SYNC bell-idle). The model of all this: docs/model/bell.pml. */
#include "bell.h"
#include "clock.h"
#include "event.h"
#include "errors.h"
#include "segment.h"

#include <errno.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SLICE_NS UINT64_C(50000000)

int sst_bell_moved(const sst_bell *b, uint32_t stripe) {
    uint32_t armed = ld32(&b->armed[stripe]);
    return armed != 0 && ld32(&sst_stripe_at(b->seg, stripe)->event) != armed;
}

void sst_bell_tell(sst_bell *b) {
    uint64_t one = 1;
    (void)!write(b->fd, &one, sizeof one); /* full: it is readable already */
}

void sst_bell_heard(sst_bell *b) {
    uint64_t n;
    (void)!read(b->fd, &n, sizeof n);
    own_st32(&b->told, 0);
    fence_seq_cst(); /* SYNC bell-told: seq_cst; orders told = 0 before the looks that follow */
}

/* Whoever moved an event and found nobody to wake is heard here. */
static void listen_once(sst_bell *b) {
    for (uint32_t i = 0; i < SST_STRIPES; i++)
        if (sst_bell_moved(b, i)) { /* SYNC bell-armed: the fence of sst_bell_arm orders these loads */
            if (own_cas32(&b->told, 0, 1)) /* SYNC bell-told: acq_rel; on already: the server is yet to look */
                sst_bell_tell(b);
            return;
        }
}

static void *hear(void *arg) {
    sst_bell *b = arg;
    sst_seg *s = b->seg;
    while (sst_begin(s) == SST_OK) {
        uint32_t value = sst_bell_arm(s);
        if (ld32_acquire(&b->stop)) {
            sst_end(s);
            return NULL;
        }
        listen_once(b);
        own_st32(&b->idle, 1);
        fence_seq_cst(); /* SYNC bell-idle: seq_cst; orders idle before the load of lives */
        uint64_t until = ld32(&b->lives) == 0 ? SST_FOREVER : sst_after(sst_now_ns(), SLICE_NS);
        if (until != SST_FOREVER)
            own_st32(&b->idle, 0);
        if (!sst_closing(s))
            (void)sst_bell_park(s, value, until);
        own_st32(&b->idle, 0);
        sst_end(s);
    }
    sst_bell_tell(b); /* the segment was closed under the server */
    return NULL;
}

void sst_bell_watch(sst_bell *b, uint32_t stripe) {
    uint32_t value = sst_event_forward(sst_stripe_at(b->seg, stripe));
    if (ld32(&b->armed[stripe]) == 0)
        own_st32(&b->lives, ld32(&b->lives) + 1);
    own_st32(&b->armed[stripe], value);
    fence_seq_cst(); /* SYNC bell-armed: seq_cst; orders armed before the server's last look. SYNC bell-idle: and lives
                        before the load of idle */
    if (ld32(&b->idle))
        sst_bell_nudge(b->seg);
}

void sst_bell_unwatch(sst_bell *b, uint32_t stripe) {
    if (ld32(&b->armed[stripe]) == 0)
        return;
    own_st32(&b->armed[stripe], 0);
    own_st32(&b->lives, ld32(&b->lives) - 1);
}

int sst_bell_start(sst_bell *b, sst_seg *s) {
    b->seg = s;
    int r = pthread_create(&b->thread, NULL, hear, b);
    return r == 0 ? SST_OK : sst_fail_with(SST_ESYS, r);
}

void sst_bell_stop(sst_bell *b) {
    own_st32(&b->stop, 1);
    fence_seq_cst(); /* SYNC bell-armed: seq_cst; orders stop before the load of the bell: not parked, it sees stop */
    if (sst_begin(b->seg) == SST_OK) {
        sst_bell_nudge(b->seg);
        sst_end(b->seg);
    }
    (void)pthread_join(b->thread, NULL);
}
