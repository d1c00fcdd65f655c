/* ops_wait.c -- verbs that park (floor C9): waits for keys, and what all parks begin with, the yields. The queues stand in
 * ops_queue.c, c10d's barrier in ops_barrier.c. */
#include "ops.h"
#include "clock.h"
#include "waiter.h"

#include <sched.h>

/* Leaves the line, if the slot stands in one, and wakes those behind. */
void sst_waiter_release(sst_seg *s, uint32_t *waiter) {
    if (*waiter == 0 || sst_begin(s) != SST_OK) {
        *waiter = 0;
        return;
    }
    sst_waiter_slot *w = sst_waiter_mine(s, *waiter);
    uint64_t ticket = w ? ld64(&w->ticket) : 0;
    uint32_t stripe = ticket != 0 && !(ticket & SST_TICKET_BARRIER) ? ld32(&w->stripe) : 0;
    sst_waiter_free(s, waiter);
    if (stripe > 0 && stripe <= SST_STRIPES)
        sst_event_wake(s, sst_stripe_at(s, stripe - 1), sst_event_bump(sst_stripe_at(s, stripe - 1)));
    sst_end(s);
}

void sst_op_announce(sst_op *op, uint32_t *waiter, uint32_t rank) {
    if (*waiter == 0 && sst_waiter_claim(op->s, &op->stripe->event, waiter) == SST_OK) {
        st32(&sst_waiter_at(op->s, *waiter - 1)->stripe, op->key.stripe + 1);
        sst_waiter_note(op->s, *waiter, rank, op->key.bytes, op->key.len);
    }
}

/* Whoever is waited for is often about to come: waking a parked process costs some 30 us, a yield 1 us. So a waiter
 * first offers its processor to others for up to YIELD_NS and looks each time it is back. Where one yield takes long,
 * somebody else needs the processor, and a yielder would be the last to hear: the next parks go without. How many
 * depends on what the yields since the last such one were worth: it took as long as some hundred parks, so unless as many
 * waits ended by yielding, the next time of parks alone is four times as long as the last. */
#define YIELD_NS       UINT64_C(50000)
#define YIELD_QUICK_NS UINT64_C(2000)
#define YIELD_MOST_NS  UINT64_C(500000)
#define YIELD_SLOW_NS  UINT64_C(1000000)
#define YIELD_SKIPS    UINT32_C(8192)
#define YIELD_WORTH    UINT32_C(100)

int sst_yield(sst_yields *y, const uint32_t *word, uint32_t value, uint64_t deadline_ns) {
    uint32_t skip = ld32(&y->skip), cost = ld32(&y->cost); /* relaxed: hints, private to the process */
    if (skip != 0) {
        own_st32(&y->skip, skip - 1);
        return 0;
    }
    uint64_t start = sst_now_ns(), last = start, now = start, idle = 0;
    while (idle < YIELD_NS && now - start < YIELD_MOST_NS && now < deadline_ns) {
        (void)sched_yield();
        int changed = ld32_acquire(word) != value;
        now = sst_now_ns();
        if (now - last > YIELD_SLOW_NS) {
            cost = cost == 0 || ld32(&y->won) >= YIELD_WORTH ? 16 : cost < YIELD_SKIPS / 4 ? 4 * cost : YIELD_SKIPS;
            own_st32(&y->won, 0);
            own_st32(&y->cost, cost);
            own_st32(&y->skip, cost);
            return changed;
        }
        if (changed) {
            own_st32(&y->won, ld32(&y->won) + 1);
            return 1;
        }
        idle += now - last < YIELD_QUICK_NS ? now - last : YIELD_QUICK_NS;
        last = now;
    }
    return 0;
}

int sst_op_park(sst_op *op, uint32_t value, uint32_t waiter, uint64_t slice_ns) {
    uint64_t until = sst_earlier(op->deadline_ns, sst_after(sst_now_ns(), slice_ns));
    int r = op->s->park->park(op->s, &op->stripe->event, value, until, waiter);
    return r == SST_EINTR ? r : SST_OK;
}

int sst_linger(sst_seg *s, uint32_t space, const char *key, size_t klen, uint64_t deadline_ns, uint32_t flags) {
    sst_op op;
    int r = sst_op_begin(&op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    /* Who only yields need not be woken, and does not say that it waits: the event is looked at, not armed. Bumps of
     * other keys end a look and begin the next, and are as rare as creations in a 256th of the table. */
    uint32_t value = ld32_acquire(&op.stripe->event);
    for (int looks = 0; looks < 8; looks++) {
        r = sst_check(s, space, key, klen, deadline_ns, flags);
        if (r != 0 || !sst_yield(&s->yields, &op.stripe->event, value, deadline_ns))
            break;
        value = ld32_acquire(&op.stripe->event);
    }
    if (r == 0)
        r = sst_check(s, space, key, klen, deadline_ns, flags);
    sst_end(s);
    return r;
}

int sst_wait(sst_seg *s, uint32_t space, const char *key, size_t klen, uint32_t *waiter, uint32_t rank,
             uint64_t deadline_ns, uint64_t slice_ns, uint32_t flags) {
    sst_op op;
    int r = sst_op_begin(&op, s, space, key, klen, deadline_ns, 0);
    if (r != SST_OK)
        return r;
    r = s->readonly ? SST_EINVAL : sst_me(s) ? SST_OK : sst_join(s, 0);
    for (int parked = 0; r == SST_OK; parked = 1) {
        uint32_t value = sst_event_arm(op.stripe);
        r = sst_check(s, space, key, klen, deadline_ns, flags & SST_KEY_ONLY);
        if (r != 0)
            break;
        if (sst_now_ns() >= deadline_ns) {
            r = SST_ETIMEDOUT;
        } else if (parked) {
            r = SST_EAGAIN;
        } else {
            sst_op_announce(&op, waiter, rank);
            r = sst_op_park(&op, value, *waiter, slice_ns);
        }
    }
    if (r == 1 || r == SST_ETIMEDOUT)
        sst_waiter_free(s, waiter);
    sst_end(s);
    return r == 1 ? SST_OK : r;
}
