/* event.c -- see event.h. */
#include "event.h"

static _Thread_local const sst_seg *serving;

void sst_event_serve(const sst_seg *s) { serving = s; }

uint32_t sst_event_arm(sst_stripe *st) {
    /* SYNC event: seq_cst; orders the store of WAITERS before the look that follows */
    return or32_seq_cst(&st->event, SST_EVENT_WAITERS) | SST_EVENT_WAITERS;
}

uint32_t sst_event_forward(sst_stripe *st) {
    /* SYNC event: seq_cst; orders the store of FORWARD before the look that follows */
    return or32_seq_cst(&st->event, SST_EVENT_FORWARD) | SST_EVENT_FORWARD;
}

int sst_event_bump(sst_stripe *st) {
    for (;;) {
        uint32_t old = ld32(&st->event);
        uint32_t now = (old & ~(SST_EVENT_WAITERS | SST_EVENT_FORWARD)) + SST_EVENT_ONE;
        /* SYNC event: seq_cst; orders the publishing before the load of WAITERS and FORWARD, pairs with sst_event_arm */
        if (cas32_seq_cst(&st->event, old, now))
            return (int)(old & (SST_EVENT_WAITERS | SST_EVENT_FORWARD));
    }
}

static_assert(SST_WAKE_PARKED == SST_EVENT_WAITERS && SST_WAKE_BELL == SST_EVENT_FORWARD, "what bump returns");

/* -- the bell -------------------------------------------------------------------------------------------------------- */
static uint32_t *bell_of(sst_seg *s) { return &sst_heap_of(s)->bell; }

static uint32_t name_of(const sst_seg *s) { return sst_me(s) & SST_BELL_WHO; } /* slot + 1 */

void sst_bell_nudge(sst_seg *s) {
    uint32_t *bell = bell_of(s), old;
    do
        old = ld32(bell);
    while (!cas32_seq_cst(bell, old, (old & ~SST_BELL_WHO) + SST_BELL_ONE));
    s->park->unpark(s, bell, 1);
}

static void ring(sst_seg *s) {
    uint32_t *bell = bell_of(s);
    fence_seq_cst(); /* SYNC bell: seq_cst; orders the bump of the event before the load of the bell */
    if (serving == s && (ld32(bell) & SST_BELL_WHO) == name_of(s))
        return;
    for (uint32_t old = ld32(bell); old & SST_BELL_WHO; old = ld32(bell))
        if (cas32_seq_cst(bell, old, (old & ~SST_BELL_WHO) + SST_BELL_ONE)) {
            s->park->unpark(s, bell, 1);
            return;
        }
}

void sst_event_wake(sst_seg *s, sst_stripe *st, int wake) {
    if (wake & SST_WAKE_PARKED)
        s->park->unpark(s, &st->event, 1);
    if (wake & SST_WAKE_BELL)
        ring(s);
}

uint32_t sst_bell_arm(sst_seg *s) {
    uint32_t *bell = bell_of(s), me = name_of(s);
    for (;;) {
        uint32_t old = ld32(bell), who = old & SST_BELL_WHO;
        uint32_t now = (old & ~SST_BELL_WHO) | (who == 0 || who == me ? me : SST_BELL_MANY);
        if (!cas32_seq_cst(bell, old, now))
            continue;
        fence_seq_cst(); /* SYNC bell: seq_cst; orders the change of the bell before the loads of the events */
        return now;
    }
}

int sst_bell_park(sst_seg *s, uint32_t value, uint64_t deadline_ns) {
    return s->park->park(s, bell_of(s), value, deadline_ns, 0);
}
