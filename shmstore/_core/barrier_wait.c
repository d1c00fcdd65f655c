/* barrier_wait.c -- arriving at a reusable barrier and waiting there (floor C9): the CAS that says that one has come, a
 * while of looks and yields, then parks of a slice each. How an epoch ends, and why nothing is lost: barrier.c.
 *
 *   a wait            means                                       next
 *   not arrived       the epoch it will be in is not known        arrived in the current one; told how a broken one ended
 *   arrived           (epoch, index) stand in the sst_arrival     over, once the state is beyond that epoch or BROKEN
 *   late              its deadline has come                       over: by a pass, or by the break that it tries itself */
#include "barrier.h"
#include "clock.h"
#include "ops.h"
#include "waiter.h"

#define SPINS 40

/* -- arriving -------------------------------------------------------------------------------------------------------- */
/* The word and bit to set: one's rank, or the lowest that is free in the epoch; 0: none is. */
static uint32_t place(const sst_bar *bar, sst_point *p, uint32_t epoch, uint32_t *word) {
    if (bar->rank != SST_NO_RANK) {
        *word = (uint32_t)bar->rank / 32;
        return UINT32_C(1) << (bar->rank % 32);
    }
    for (*word = 0; *word < sst_barrier_words(bar->parties); ++*word) {
        uint64_t v = ld64_acquire(sst_barrier_word(p, *word));
        uint32_t taken = (uint32_t)(v >> 32) == epoch ? (uint32_t)v : 0;
        uint32_t left = sst_barrier_mask(bar->parties, *word) & ~taken;
        if (left != 0)
            return left & (0 - left);
    }
    return 0;
}

/* SST_EAGAIN: arrived, or the state is to be looked at again, as it has moved on since `st`. No other state than that
 * of `st` explains an arrivals' word that is ahead of it or has a bit too many: then the barrier is corrupt. */
static int arrive_in(sst_seg *s, const sst_bar *bar, sst_point *p, uint64_t st, sst_arrival *a) {
    uint32_t epoch = SST_BAR_EPOCH(st), i = 0, bit = place(bar, p, epoch, &i);
    uint64_t *word = sst_barrier_word(p, bit == 0 ? 0 : i), v = ld64_acquire(word);
    if (bit == 0 && sst_bar_pass(s, bar, p, st))
        return SST_EAGAIN; /* everybody had arrived, and nobody had passed for them */
    if (bit == 0 || (int32_t)((uint32_t)(v >> 32) - epoch) > 0)
        return ld64_acquire(&p->state) == st ? SST_ECORRUPT : SST_EAGAIN;
    uint32_t bits = (uint32_t)(v >> 32) == epoch ? (uint32_t)v : 0;
    if (bits & bit) {
        if (bar->rank == SST_NO_RANK)
            return SST_EAGAIN; /* somebody was quicker */
    } else if (!cas64_seq_cst(word, v,
                              SST_BAR_WORD(epoch, bits | bit))) { /* SYNC bar: release; SYNC bar-full: seq_cst */
        return SST_EAGAIN;
    }
    a->arrived = 1;
    a->epoch = epoch;
    a->index = 32 * i + (uint32_t)__builtin_popcount(bits & ~bit);
    return SST_EAGAIN;
}

static int arrive(sst_seg *s, const sst_bar *bar, sst_point *p, sst_arrival *a) {
    if (bar->rank != SST_NO_RANK && !a->arrived)
        sst_bar_sit(s, bar, p);
    while (!a->arrived) {
        uint64_t st = ld64_acquire(&p->state);
        if (a->only && SST_BAR_EPOCH(st) != a->epoch)
            return SST_ENOENT;
        if (st & SST_BAR_BROKEN) {
            a->epoch = SST_BAR_EPOCH(st);
            return sst_bar_verdict(p, st, a);
        }
        if (sst_closing(s))
            return sst_why_closing(s);
        int r = arrive_in(s, bar, p, st, a);
        if (r != SST_EAGAIN)
            return r;
    }
    uint64_t st = ld64_acquire(&p->state); /* SYNC bar: acquire */
    int r = sst_bar_verdict(p, st, a);
    return r == SST_EAGAIN && sst_bar_pass(s, bar, p, st) ? sst_bar_verdict(p, ld64_acquire(&p->state), a) : r;
}

int sst_bar_arrive(sst_seg *s, const sst_bar *bar, sst_arrival *a, uint32_t flags) {
    sst_point *p;
    int r = sst_bar_begin(s, bar, flags, &p);
    if (r != SST_OK)
        return r;
    r = arrive(s, bar, p, a);
    sst_end(s);
    return r;
}

/* -- waiting --------------------------------------------------------------------------------------------------------- */
/* Looks, yielding, until the epoch is over or the yields are used up. */
static int linger(sst_seg *s, const sst_bar *bar, sst_point *p, sst_arrival *a, uint64_t deadline_ns) {
    for (int i = 0; i < SPINS && bar->parties <= s->cpus;
         i++) { /* each has a processor: the last may be here already */
        int r = sst_bar_verdict(p, ld64_acquire(&p->state), a); /* SYNC bar: acquire */
        if (r != SST_EAGAIN)
            return r;
        sst_pause();
    }
    for (int looks = 0; looks < 8; looks++) { /* WAITERS set by another ends a look, too */
        uint64_t st = ld64_acquire(&p->state);
        int r = sst_bar_verdict(p, st, a);
        if (r != SST_EAGAIN || !sst_yield(&s->barrier_yields, sst_bar_low(p), (uint32_t)st, deadline_ns))
            return r;
    }
    return sst_bar_verdict(p, ld64_acquire(&p->state), a);
}

int sst_bar_linger(sst_seg *s, const sst_bar *bar, sst_arrival *a, uint64_t deadline_ns) {
    sst_point *p;
    int r = sst_bar_begin(s, bar, 0, &p);
    if (r != SST_OK)
        return r;
    r = arrive(s, bar, p, a);
    if (r == SST_EAGAIN)
        r = linger(s, bar, p, a, deadline_ns);
    sst_end(s);
    return r;
}

/* For people: a waiter slot that says where it waits. */
static void announce(sst_seg *s, const sst_bar *bar, sst_point *p, sst_arrival *a) {
    if (a->waiter != 0 || sst_waiter_claim(s, sst_bar_low(p), &a->waiter) != SST_OK)
        return;
    sst_waiter_slot *w = sst_waiter_at(s, a->waiter - 1);
    st32(&w->queue, bar->block);
    st32(&w->stripe, SST_AT_REUSABLE);
    const sst_entry *e = sst_payload(s, bar->entry, sizeof *e);
    uint32_t klen = e ? SST_META_KLEN(ld32(&e->meta)) : 0;
    char key[SST_NOTE_MAX];
    size_t shown = klen < sizeof key ? klen : sizeof key;
    if (sst_payload(s, bar->entry, sizeof *e + shown) == NULL)
        klen = 0;
    else
        sst_copy_out(key, (const char *)(e + 1), shown);
    sst_waiter_note(s, a->waiter, sst_bar_seat_of(s, bar) & SST_SEAT_RANK ? bar->who : 0, key, klen);
}

static int park(sst_seg *s, const sst_bar *bar, sst_point *p, sst_arrival *a, uint64_t until) {
    announce(s, bar, p, a);
    uint64_t st = or64_seq_cst(&p->state, SST_BAR_WAITERS) | SST_BAR_WAITERS; /* SYNC bar-park: seq_cst */
    int r = sst_bar_verdict(p, st, a);
    if (r != SST_EAGAIN || sst_closing(s))
        return r;
    r = s->park->park(s, sst_bar_low(p), (uint32_t)st, until, a->waiter);
    return r == SST_EINTR ? r : sst_bar_verdict(p, ld64_acquire(&p->state), a); /* SYNC bar: acquire */
}

/* -- the long way ---------------------------------------------------------------------------------------------------- */
static int late(sst_seg *s, const sst_bar *bar, sst_point *p, sst_arrival *a) {
    uint32_t rank = bar->rank == SST_NO_RANK ? SST_PARTIES_MAX - 1 : (uint32_t)bar->rank;
    if (sst_bar_pass(s, bar, p, ld64_acquire(&p->state)))
        return sst_bar_verdict(p, ld64_acquire(&p->state), a);
    if (sst_bar_end_badly(s, p, a->epoch, SST_BAR_TIMEOUT, rank))
        return SST_ETIMEDOUT;
    return sst_bar_verdict(p, ld64_acquire(&p->state), a);
}

int sst_bar_wait(sst_seg *s, const sst_bar *bar, sst_arrival *a, uint64_t deadline_ns, uint64_t slice_ns) {
    sst_point *p;
    int r = sst_bar_begin(s, bar, 0, &p);
    if (r != SST_OK)
        return r;
    r = arrive(s, bar, p, a);
    if (r == SST_EAGAIN && sst_now_ns() < deadline_ns) {
        uint64_t until = sst_earlier(deadline_ns, sst_after(sst_now_ns(), slice_ns));
        r = park(s, bar, p, a, until);
        if (r == SST_EAGAIN && sst_now_ns() >= until) {
            sst_bar_probe(s, bar, p, a->epoch);
            r = sst_bar_verdict(p, ld64_acquire(&p->state), a);
        }
    }
    if (r == SST_EAGAIN && sst_now_ns() >= deadline_ns)
        r = late(s, bar, p, a);
    if (r == SST_OK || r == SST_EBROKEN || r == SST_ETIMEDOUT)
        sst_waiter_free(s, &a->waiter);
    sst_end(s);
    return r;
}
