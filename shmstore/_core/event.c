/* event.c -- see event.h. */
#include "event.h"

uint32_t sst_event_arm(sst_stripe *st) {
    /* SYNC event: seq_cst; orders the store of WAITERS before the look that follows */
    return or32_seq_cst(&st->event, SST_EVENT_WAITERS) | SST_EVENT_WAITERS;
}

int sst_event_bump(sst_stripe *st) {
    for (;;) {
        uint32_t old = ld32(&st->event);
        uint32_t now = (old & ~(SST_EVENT_WAITERS | SST_EVENT_FORWARD)) + SST_EVENT_ONE;
        /* SYNC event: seq_cst; orders the publishing before the load of WAITERS, pairs with sst_event_arm */
        if (cas32_seq_cst(&st->event, old, now | (old & SST_EVENT_FORWARD)))
            return (old & SST_EVENT_WAITERS) != 0;
    }
}
