/* ops_barrier.c -- c10d's barrier (floor C9), for local callers and for a server's clients (wants.c), who meet at one.
 *
 * It counts its arrivals under the key, as c10d's server does. Who is not the last holds a waiter slot whose ticket names
 * the key's hash. The arrival that makes the count full marks each such slot PASSED under the stripe lock, as that server
 * answers its waiting clients: so a key that somebody deletes straight away holds up nobody. Where the last arriver dies
 * before it marked all, or the count is made full by another verb, a waiter finds the count full at its next look, and
 * marks the others. Without a free slot the count alone decides. The tickets' states: layout.h. */
#include "ops.h"
#include "clock.h"
#include "waiter.h"

static uint64_t ticket_of(const sst_op *op) { return SST_TICKET_BARRIER | (op->key.whole & SST_TICKET_HASH); }

/* Marks the slots that wait at this key for `count` arrivals or fewer. Under the stripe lock; a slot may change hands
 * meanwhile, so the mark is a CAS from this key's own ticket. */
static void mark_passed(sst_op *op, int64_t count) {
    sst_seg *s = op->s;
    uint32_t home = sst_waiter_home(s, &op->stripe->event), span = sst_waiter_span(s, home);
    uint64_t ticket = ticket_of(op);
    for (uint32_t i = 0; i < span; i++) {
        sst_waiter_slot *w = sst_waiter_near(s, home, i);
        if (ld64(&w->ticket) == ticket && (int64_t)ld32(&w->queue) <= count)
            (void)cas64_acq_rel(&w->ticket, ticket, ticket | SST_TICKET_PASSED); /* SYNC barrier-pass: release; pairs
                                                                                    with the acquire in sst_op_passed */
    }
    op->wake |= sst_event_bump(op->stripe);
}

int sst_op_passed(sst_seg *s, uint32_t waiter) {
    sst_waiter_slot *w = sst_waiter_mine(s, waiter);
    /* SYNC barrier-pass: acquire; what the last to arrive did before it is seen by those who pass */
    return w && (ld64_acquire(&w->ticket) & SST_TICKET_PASSED) != 0;
}

static void stand(sst_op *op, int64_t parties, uint32_t *waiter, uint32_t rank) {
    if (parties > UINT32_MAX)
        return; /* never marked: a slot has 32 bits for it */
    sst_op_announce(op, waiter, rank);
    sst_waiter_slot *w = sst_waiter_mine(op->s, *waiter);
    if (w && ld64(&w->ticket) == 0) {
        st32(&w->queue, (uint32_t)parties);
        st64(&w->ticket, ticket_of(op));
    }
}

int sst_op_meet(sst_op *op, int64_t parties, uint32_t *arrived, int64_t *count, uint32_t *waiter, uint32_t rank) {
    sst_place place;
    *count = 0;
    int r = sst_table_find(op->s, &op->key, SST_KIND_KEY, &place);
    if (r == SST_OK && !*arrived) {
        r = sst_op_add(op, &place, 1, count);
        *arrived = r == SST_OK;
    } else if (r == SST_OK && place.entry && sst_op_number(op->s, place.entry, count) != SST_OK) {
        *count = 0; /* somebody has overwritten it with what is no number: nobody is known to have come */
    }
    if (r != SST_OK)
        return r;
    if (*count >= parties) {
        mark_passed(op, *count);
        return 1;
    }
    if (sst_op_passed(op->s, *waiter))
        return 1;
    stand(op, parties, waiter, rank);
    return 0;
}

/* One look under the lock, and the arrival if it is the first: SST_OK, or SST_EAGAIN with the value to park on. */
static int look(sst_op *op, uint32_t parties, uint32_t *arrived, int64_t *count, uint32_t *waiter, uint32_t rank,
                uint32_t *value) {
    int r = sst_enter(op->s, op->key.stripe, op->deadline_ns, 0);
    if (r != SST_OK)
        return r;
    r = sst_op_meet(op, parties, arrived, count, waiter, rank);
    *value = sst_event_arm(op->stripe);
    sst_exit(op->s, op->key.stripe, op->wake);
    op->wake = 0;
    return r == 1 ? SST_OK : r == 0 ? SST_EAGAIN : r;
}

int sst_barrier(sst_seg *s, uint32_t space, const char *key, size_t klen, uint32_t parties, uint32_t *arrived,
                int64_t *count, uint32_t *waiter, uint32_t rank, uint64_t deadline_ns, uint64_t slice_ns) {
    sst_op op;
    int r = sst_op_begin(&op, s, space, key, klen, deadline_ns, 0);
    if (r != SST_OK)
        return r;
    r = s->readonly || parties == 0 ? SST_EINVAL : SST_OK;
    for (int parked = 0; r == SST_OK && !sst_op_passed(s, *waiter); parked = 1) {
        uint32_t value = 0;
        r = look(&op, parties, arrived, count, waiter, rank, &value);
        if (r != SST_EAGAIN)
            break;
        r = sst_now_ns() >= deadline_ns                                    ? SST_ETIMEDOUT
            : parked                                                       ? SST_EAGAIN
            : sst_yield(&s->yields, &op.stripe->event, value, deadline_ns) ? SST_OK
                                                                           : sst_op_park(&op, value, *waiter, slice_ns);
    }
    if (r == SST_OK || r == SST_ETIMEDOUT)
        sst_waiter_free(s, waiter);
    sst_end(s);
    return r;
}
