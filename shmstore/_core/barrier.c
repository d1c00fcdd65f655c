/* barrier.c -- the reusable barrier (floor C9): one C call, no lock, nothing left behind. The words: layout.h.
 *
 *   arrive                                      pass                              wait
 *   st = state, epoch e, not BROKEN             all bits of e are there           state still e, not BROKEN:
 *   arrivals: (e, b) -> (e, b | me), by CAS     state: e -> e + 1, by CAS         set WAITERS, look again, park on the
 *             (older, ·) -> (e, me)             wake all if WAITERS was there     lower half, at most a slice
 *
 * Nothing is ever cleared: a word of an older epoch counts as empty. Whoever sees all bits passes for all: the last to
 * arrive, or, if that one died in between, whoever looks next. Passing, breaking and resetting are one CAS each of the
 * state, so one of them wins, and every waiter reads there how its epoch ended.
 *
 *   state word      means                         next, by whom
 *   e, open         parties arrive                e + 1 open, by who sees all bits, or by a reset
 *                                                 e BROKEN, by a deadline, an abort, or who sees a death or a leaving
 *   e, BROKEN       nobody passes                 e + 1 open, by a reset
 *
 * Orders. What a party did before it arrives is seen by those who pass: arrival (release) -> the look of whoever passes
 * (acquire) -> its CAS (release) -> the look of each waiter (acquire) [SYNC bar]. With more than one arrivals' word two
 * last parties look at each other's word after setting their own: all of these are seq_cst, so one of them sees both
 * [SYNC bar-full]. WAITERS is set, and taken away by the CAS that ends the epoch, by RMWs of one word: a waiter that
 * set it first is woken, one that comes second sees the new epoch or parks on a stale value [SYNC bar-park].
 *
 * Crash story. A party that dies before its arrival's CAS has not come; one that dies after it has, and counts for this
 * epoch. Dead between the last arrival and the pass: a waiter passes, a slice later at most. Dead between the pass and
 * the wake: those parked look again, a slice later at most. Dead in the middle of looking for the dead: the next looks
 * after PROBE_NS. Dead while it makes the barrier: as with a key. Nobody withdraws an arrival.
 *
 * Who is dead. A waiter with a rank whose slice ends may look, one in PROBE_NS for all. It judges the seats of those
 * who have not arrived. A seat that names a rank of the segment is judged by that, which tells left from dead for ever.
 * Any other is a process, which is told while its peer slot has no new owner. A seat that nobody ever took is judged by
 * the rank of the same number, where this barrier is of the whole job: as many parties as the segment's world size (or,
 * where it has none, no rank beyond them), and no seat taken by another rank. A seat is
 * taken by arriving. A rank takes that of its own number as soon as it opens the barrier, and reserves one of another. */
#include "barrier.h"
#include "clock.h"
#include "liveness.h"
#include "ops.h"
#include "waiter.h"

#define PROBE_NS UINT64_C(100000000)
#define SPINS    40

typedef sst_barrier_block point;

/* The barrier, checked: what the handle says against what lies there. */
static int point_of(sst_seg *s, const sst_bar *bar, point **p) {
    int ranked = bar->rank != SST_NO_RANK;
    if (bar->parties < 1 || bar->parties > SST_PARTIES_MAX || (ranked && (uint32_t)bar->rank >= bar->parties))
        return SST_EINVAL;
    *p = sst_payload(s, bar->block, sst_barrier_bytes(bar->parties, (uint32_t)ranked));
    if (*p == NULL || ld32(&(*p)->parties) != bar->parties || ld32(&(*p)->ranked) != (uint32_t)ranked)
        return SST_ECORRUPT;
    return SST_OK;
}

/* Counts the call in; a forked child's first call takes its slot. */
static int begin(sst_seg *s, const sst_bar *bar, uint32_t flags, point **p) {
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    r = s->readonly ? SST_EINVAL : sst_me(s) ? SST_OK : sst_join(s, flags);
    if (r == SST_OK)
        r = point_of(s, bar, p);
    if (r != SST_OK)
        sst_end(s);
    return r;
}

/* -- the state ------------------------------------------------------------------------------------------------------- */
/* The word that parks: the state's lower half. */
static uint32_t *low(point *p) { return (uint32_t *)(void *)&p->state; }

/* Ends or breaks what `st` says. 1: this call did. */
static int move(sst_seg *s, point *p, uint64_t st, uint64_t next) {
    if (!cas64_seq_cst(&p->state, st, next & ~SST_BAR_WAITERS)) /* SYNC bar: release; SYNC bar-park: seq_cst */
        return 0;
    if (st & SST_BAR_WAITERS)
        s->park->unpark(s, low(p), 1);
    return 1;
}

static uint64_t next_epoch(uint64_t st, uint32_t how) {
    uint64_t history = (((uint64_t)SST_BAR_HISTORY(st) << 1) | how) & 0xff;
    uint64_t epoch = (st + SST_BAR_EPOCH_ONE) & (UINT64_C(0xffffffff) << 8);
    return (st & (SST_BAR_BLAMED | SST_BAR_NUDGES)) | epoch | history << 52;
}

static int full(const sst_bar *bar, point *p, uint32_t epoch) {
    for (uint32_t i = 0; i < sst_barrier_words(bar->parties); i++)
        /* SYNC bar: acquire; SYNC bar-full: seq_cst */
        if (ld64_seq_cst(sst_barrier_word(p, i)) != SST_BAR_WORD(epoch, sst_barrier_mask(bar->parties, i)))
            return 0;
    return 1;
}

/* Passes the epoch of `st` if all have arrived in it. 1: it is over, whoever did it. */
static int pass(sst_seg *s, const sst_bar *bar, point *p, uint64_t st) {
    uint32_t epoch = SST_BAR_EPOCH(st);
    if (!full(bar, p, epoch))
        return 0;
    while (SST_BAR_EPOCH(st) == epoch && !(st & SST_BAR_BROKEN) && !move(s, p, st, next_epoch(st, 0)))
        st = ld64_acquire(&p->state);
    return 1;
}

static int break_epoch(sst_seg *s, point *p, uint32_t epoch, uint32_t cause, uint32_t rank) {
    for (;;) {
        uint64_t st = ld64_acquire(&p->state);
        if (SST_BAR_EPOCH(st) != epoch || (st & SST_BAR_BROKEN))
            return 0;
        if (move(s, p, st, (st & ~SST_BAR_BLAMED) | SST_BAR_BROKEN | SST_BAR_BLAME(cause, rank)))
            return 1;
    }
}

void sst_bar_nudge(sst_seg *s, uint32_t block) {
    point *p = sst_payload(s, block, sizeof *p);
    uint64_t st = p ? ld64(&p->state) : 0;
    if (p == NULL || ld32(&p->parties) < 1 || ld32(&p->parties) > SST_PARTIES_MAX)
        return;
    while ((st & SST_BAR_WAITERS) && !move(s, p, st, (st & ~SST_BAR_NUDGES) | ((st + SST_BAR_NUDGE) & SST_BAR_NUDGES)))
        st = ld64(&p->state);
}

/* The dead's pid, where the break that the state tells of left it. */
static int32_t culprit_of(const point *p, uint32_t epoch, uint32_t rank) {
    uint64_t culprit = ld64(&p->culprit), without_pid = SST_BAR_CULPRIT(epoch, 0, rank);
    int32_t pid = (int32_t)((culprit >> 12) & 0x3fffffffu);
    return culprit == (without_pid | SST_BAR_CULPRIT(0, (uint32_t)pid, 0)) ? pid : 0;
}

static void blame(const point *p, uint64_t st, sst_arrival *a) {
    a->cause = SST_BAR_CAUSE(st);
    a->rank = SST_BAR_RANK(st);
    a->pid = culprit_of(p, a->epoch, a->rank);
}

/* 1: no reset was begun for that epoch or a later one. The word is stored before a reset moves the state, so whoever
 * sees the state that a reset made sees the word; a reset that lost the race may stand there too, and is taken for one. */
static int never_reset(const point *p, uint32_t epoch) {
    uint64_t reset = ld64_acquire(&p->reset); /* SYNC bar-reset: acquire; pairs with the CAS in begin_reset */
    return reset == 0 || (int32_t)((uint32_t)reset - epoch) < 0;
}

/* How the arrival's epoch stands: SST_EAGAIN, SST_OK or SST_EBROKEN. */
static int verdict(const point *p, uint64_t st, sst_arrival *a) {
    uint32_t past = SST_BAR_EPOCH(st) - a->epoch, history = SST_BAR_HISTORY(st);
    if (past == 0 && !(st & SST_BAR_BROKEN))
        return SST_EAGAIN;
    if (past >= 1 && (past <= 8 ? !(history >> (past - 1) & 1u) : never_reset(p, a->epoch)))
        return SST_OK;
    if (past == 0 || (past <= 8 && (history & ((1u << (past - 1)) - 1u)) == 0 && !(st & SST_BAR_BROKEN))) {
        blame(p, st, a);
    } else { /* another epoch ended badly since, and its cause stands there */
        a->cause = SST_BAR_RESET;
        a->rank = SST_PARTIES_MAX;
        a->pid = 0;
    }
    return SST_EBROKEN;
}

/* -- who lives ------------------------------------------------------------------------------------------------------- */
static void judge_rank(sst_seg *s, uint32_t rank, sst_seat *seat) {
    uint64_t *word = sst_rank_at(s, rank);
    for (;;) {
        uint64_t w = ld64_acquire(word);
        uint32_t owner = SST_RANK_OWNER(w), state = SST_RANK_STATE(w);
        int alive = state == SST_RANK_LIVE && sst_alive(s, owner);
        if (state == SST_RANK_LIVE && !alive && ld64_acquire(word) != w)
            continue; /* it left, or was replaced, while we looked */
        seat->rank = rank + 1;
        seat->slot = SST_OWNER_SLOT(owner);
        seat->pid = (int32_t)SST_RANK_PID(w);
        seat->state = state == SST_RANK_LEFT   ? SST_SEAT_LEFT
                      : state != SST_RANK_LIVE ? SST_SEAT_UNKNOWN
                      : alive                  ? SST_SEAT_LIVE
                                               : SST_SEAT_DEAD;
        return;
    }
}

/* -- arriving -------------------------------------------------------------------------------------------------------- */
/* What the seat of that user says. A handle's rank is of the process that opened it, not of its forked children. */
static uint32_t seat_of(const sst_seg *s, const sst_bar *bar) {
    uint32_t me = sst_me(s);
    return bar->who != 0 && bar->owner == me ? SST_SEAT_RANK | (bar->who - 1) : me;
}

/* Takes the seat, but not from a rank that lives. */
static void sit(sst_seg *s, const sst_bar *bar, point *p) {
    uint32_t *seat = sst_barrier_seat(p, bar->parties, (uint32_t)bar->rank), mine = seat_of(s, bar), now = ld32(seat);
    if (now == mine)
        return;
    if ((now & SST_SEAT_RANK) && !(mine & SST_SEAT_RANK)) {
        sst_seat other;
        judge_rank(s, now & (SST_RANKS_MAX - 1), &other);
        if (other.state == SST_SEAT_LIVE)
            return;
    }
    st32(seat, mine);
}

/* Whoever opens a barrier may do so for somebody else, a child to be forked; but not with the number of its own rank. */
static void reserve(sst_seg *s, const sst_bar *bar, point *p) {
    uint32_t *seat = sst_barrier_seat(p, bar->parties, (uint32_t)bar->rank);
    if (bar->who == (uint32_t)bar->rank + 1)
        sit(s, bar, p);
    else if (ld32(seat) == 0)
        st32(seat, SST_SEAT_RANK | SST_SEAT_OPENED | (bar->who - 1));
}

/* The word and bit to set: one's rank, or the lowest that is free in the epoch; 0: none is. */
static uint32_t place(const sst_bar *bar, point *p, uint32_t epoch, uint32_t *word) {
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
static int arrive_in(sst_seg *s, const sst_bar *bar, point *p, uint64_t st, sst_arrival *a) {
    uint32_t epoch = SST_BAR_EPOCH(st), i = 0, bit = place(bar, p, epoch, &i);
    uint64_t *word = sst_barrier_word(p, bit == 0 ? 0 : i), v = ld64_acquire(word);
    if (bit == 0 && pass(s, bar, p, st))
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

static int arrive(sst_seg *s, const sst_bar *bar, point *p, sst_arrival *a) {
    if (bar->rank != SST_NO_RANK && !a->arrived)
        sit(s, bar, p);
    while (!a->arrived) {
        uint64_t st = ld64_acquire(&p->state);
        if (a->only && SST_BAR_EPOCH(st) != a->epoch)
            return SST_ENOENT;
        if (st & SST_BAR_BROKEN) {
            a->epoch = SST_BAR_EPOCH(st);
            return verdict(p, st, a);
        }
        if (sst_closing(s))
            return SST_ECLOSED;
        int r = arrive_in(s, bar, p, st, a);
        if (r != SST_EAGAIN)
            return r;
    }
    uint64_t st = ld64_acquire(&p->state); /* SYNC bar: acquire */
    int r = verdict(p, st, a);
    return r == SST_EAGAIN && pass(s, bar, p, st) ? verdict(p, ld64_acquire(&p->state), a) : r;
}

int sst_bar_arrive(sst_seg *s, const sst_bar *bar, sst_arrival *a, uint32_t flags) {
    point *p;
    int r = begin(s, bar, flags, &p);
    if (r != SST_OK)
        return r;
    r = arrive(s, bar, p, a);
    sst_end(s);
    return r;
}

/* -- waiting --------------------------------------------------------------------------------------------------------- */
/* Looks, yielding, until the epoch is over or the yields are used up. */
static int linger(sst_seg *s, const sst_bar *bar, point *p, sst_arrival *a, uint64_t deadline_ns) {
    for (int i = 0; i < SPINS && bar->parties <= s->cpus;
         i++) { /* each has a processor: the last may be here already */
        int r = verdict(p, ld64_acquire(&p->state), a); /* SYNC bar: acquire */
        if (r != SST_EAGAIN)
            return r;
        sst_pause();
    }
    for (int looks = 0; looks < 8; looks++) { /* WAITERS set by another ends a look, too */
        uint64_t st = ld64_acquire(&p->state);
        int r = verdict(p, st, a);
        if (r != SST_EAGAIN || !sst_yield(&s->barrier_yields, low(p), (uint32_t)st, deadline_ns))
            return r;
    }
    return verdict(p, ld64_acquire(&p->state), a);
}

int sst_bar_linger(sst_seg *s, const sst_bar *bar, sst_arrival *a, uint64_t deadline_ns) {
    point *p;
    int r = begin(s, bar, 0, &p);
    if (r != SST_OK)
        return r;
    r = arrive(s, bar, p, a);
    if (r == SST_EAGAIN)
        r = linger(s, bar, p, a, deadline_ns);
    sst_end(s);
    return r;
}

/* For people: a waiter slot that says where it waits. */
static void announce(sst_seg *s, const sst_bar *bar, point *p, sst_arrival *a) {
    if (a->waiter != 0 || sst_waiter_claim(s, low(p), &a->waiter) != SST_OK)
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
    sst_waiter_note(s, a->waiter, seat_of(s, bar) & SST_SEAT_RANK ? bar->who : 0, key, klen);
}

static int park(sst_seg *s, const sst_bar *bar, point *p, sst_arrival *a, uint64_t until) {
    announce(s, bar, p, a);
    uint64_t st = or64_seq_cst(&p->state, SST_BAR_WAITERS) | SST_BAR_WAITERS; /* SYNC bar-park: seq_cst */
    int r = verdict(p, st, a);
    if (r != SST_EAGAIN || sst_closing(s))
        return r;
    r = s->park->park(s, low(p), (uint32_t)st, until, a->waiter);
    return r == SST_EINTR ? r : verdict(p, ld64_acquire(&p->state), a); /* SYNC bar: acquire */
}

/* -- who is missing -------------------------------------------------------------------------------------------------- */
static void judge_owner(sst_seg *s, uint32_t owner, sst_seat *seat) {
    uint32_t slot = SST_OWNER_SLOT(owner), state = SST_SEAT_LIVE;
    if (slot >= SST_PEERS_MAX) {
        seat->state = SST_SEAT_GONE;
        return;
    }
    sst_peer_slot *p = sst_peer_at(s, slot);
    if (!sst_alive(s, owner)) /* a leaver writes LEFT before its byte is free */
        state = ld32_acquire(&p->state) == SST_PEER_LEFT ? SST_SEAT_LEFT : SST_SEAT_DEAD;
    seat->slot = slot;
    seat->pid = (int32_t)ld32(&p->pid);
    fence_acquire(); /* a claimer stores gen before the other words: with the old gen still there they were the old's */
    if (ld32(&p->gen) != SST_OWNER_GEN(owner)) {
        seat->pid = 0;
        state = SST_SEAT_GONE;
    }
    seat->state = state;
}

/* 1: the barrier is of all ranks of the segment, each in the seat of its number. */
static int of_all_ranks(sst_seg *s, const sst_bar *bar, point *p) {
    uint32_t world = ld32(&sst_header_of(s)->world_size);
    if (bar->who != (uint32_t)bar->rank + 1 || bar->owner != sst_me(s) || (world != 0 && world != bar->parties))
        return 0;
    for (uint32_t i = 0; i < bar->parties; i++) {
        uint32_t seat = ld32(sst_barrier_seat(p, bar->parties, i));
        if (seat != 0 && seat != (SST_SEAT_RANK | i))
            return 0;
    }
    for (uint32_t i = bar->parties; world == 0 && i < SST_RANKS_MAX; i++)
        if (ld64(sst_rank_at(s, i)) != 0)
            return 0;
    return 1;
}

static int came(point *p, uint32_t epoch, uint32_t i) {
    uint64_t v = ld64_acquire(sst_barrier_word(p, i / 32));
    return (uint32_t)(v >> 32) == epoch && (v >> (i % 32) & 1);
}

static void judge(sst_seg *s, const sst_bar *bar, point *p, uint32_t epoch, int all_ranks, uint32_t i, sst_seat *out) {
    uint32_t seat = ld32(sst_barrier_seat(p, bar->parties, i)), arrived = (uint32_t)came(p, epoch, i);
    *out = (sst_seat){.state = SST_SEAT_UNKNOWN};
    if (seat & SST_SEAT_RANK)
        judge_rank(s, seat & (SST_RANKS_MAX - 1), out);
    else if (seat != 0)
        judge_owner(s, seat, out);
    else if (all_ranks)
        judge_rank(s, i, out);
    if ((seat & SST_SEAT_RANK) && (seat & SST_SEAT_OPENED) && out->state == SST_SEAT_LEFT)
        out->state = SST_SEAT_UNKNOWN;
    if (arrived)
        out->state = SST_SEAT_ARRIVED;
}

/* One of those who wait looks for all, and breaks the epoch for the first that cannot come any more. */
static void probe(sst_seg *s, const sst_bar *bar, point *p, uint32_t epoch) {
    uint64_t last = ld64(&p->probe_ns), now = sst_now_ns();
    if (bar->rank == SST_NO_RANK || (last <= now && now - last < PROBE_NS) || !cas64_acq_rel(&p->probe_ns, last, now))
        return;
    int all_ranks = of_all_ranks(s, bar, p);
    for (uint32_t i = 0; i < bar->parties; i++) {
        sst_seat seat;
        judge(s, bar, p, epoch, all_ranks, i, &seat);
        if (seat.state != SST_SEAT_DEAD && seat.state != SST_SEAT_LEFT)
            continue;
        if (came(p, epoch, i))
            continue; /* it came before it went: that counts */
        st64(&p->culprit, SST_BAR_CULPRIT(epoch, (uint32_t)seat.pid, i));
        (void)break_epoch(s, p, epoch, seat.state == SST_SEAT_DEAD ? SST_BAR_DEAD : SST_BAR_LEFT, i);
        return;
    }
}

int sst_bar_seats(sst_seg *s, const sst_bar *bar, uint32_t epoch, sst_seat *out) {
    point *p;
    int r = begin(s, bar, 0, &p);
    if (r != SST_OK)
        return r;
    if (bar->rank == SST_NO_RANK) {
        sst_end(s);
        return SST_EINVAL;
    }
    int all_ranks = of_all_ranks(s, bar, p);
    for (uint32_t i = 0; i < bar->parties; i++)
        judge(s, bar, p, epoch, all_ranks, i, &out[i]);
    sst_end(s);
    return SST_OK;
}

/* -- the long way ---------------------------------------------------------------------------------------------------- */
static int late(sst_seg *s, const sst_bar *bar, point *p, sst_arrival *a) {
    uint32_t rank = bar->rank == SST_NO_RANK ? SST_PARTIES_MAX - 1 : (uint32_t)bar->rank;
    if (pass(s, bar, p, ld64_acquire(&p->state)))
        return verdict(p, ld64_acquire(&p->state), a);
    if (break_epoch(s, p, a->epoch, SST_BAR_TIMEOUT, rank))
        return SST_ETIMEDOUT;
    return verdict(p, ld64_acquire(&p->state), a);
}

int sst_bar_wait(sst_seg *s, const sst_bar *bar, sst_arrival *a, uint64_t deadline_ns, uint64_t slice_ns) {
    point *p;
    int r = begin(s, bar, 0, &p);
    if (r != SST_OK)
        return r;
    r = arrive(s, bar, p, a);
    if (r == SST_EAGAIN && sst_now_ns() < deadline_ns) {
        uint64_t until = sst_earlier(deadline_ns, sst_after(sst_now_ns(), slice_ns));
        r = park(s, bar, p, a, until);
        if (r == SST_EAGAIN && sst_now_ns() >= until) {
            probe(s, bar, p, a->epoch);
            r = verdict(p, ld64_acquire(&p->state), a);
        }
    }
    if (r == SST_EAGAIN && sst_now_ns() >= deadline_ns)
        r = late(s, bar, p, a);
    if (r == SST_OK || r == SST_EBROKEN || r == SST_ETIMEDOUT)
        sst_waiter_free(s, &a->waiter);
    sst_end(s);
    return r;
}

/* -- break, reset, look ---------------------------------------------------------------------------------------------- */
int sst_bar_break(sst_seg *s, const sst_bar *bar, int any, uint32_t epoch, uint32_t cause, uint32_t rank) {
    point *p;
    if (cause < SST_BAR_TIMEOUT || cause > SST_BAR_INTERRUPT || cause == SST_BAR_RESET || rank >= SST_PARTIES_MAX)
        return SST_EINVAL;
    int r = begin(s, bar, 0, &p);
    if (r != SST_OK)
        return r;
    do {
        uint64_t st = ld64_acquire(&p->state);
        if (any)
            epoch = SST_BAR_EPOCH(st);
        r = break_epoch(s, p, epoch, cause, rank);
        if (st & SST_BAR_BROKEN)
            break;
    } while (any && r == 0);
    sst_end(s);
    return r;
}

/* Says, before the state moves, that it will be by a reset. The word only goes forward. */
static void begin_reset(point *p, uint32_t epoch) {
    for (;;) {
        uint64_t reset = ld64(&p->reset);
        if (reset != 0 && (int32_t)((uint32_t)reset - epoch) >= 0)
            return;
        if (cas64_seq_cst(&p->reset, reset, SST_BAR_RESET_OF(epoch))) /* SYNC bar-reset: release */
            return;
    }
}

int sst_bar_reset(sst_seg *s, const sst_bar *bar, int any, uint32_t epoch) {
    point *p;
    int r = begin(s, bar, 0, &p);
    if (r != SST_OK)
        return r;
    uint32_t rank = bar->rank == SST_NO_RANK ? SST_PARTIES_MAX - 1 : (uint32_t)bar->rank;
    for (;;) {
        uint64_t st = ld64_acquire(&p->state);
        int broken = (st & SST_BAR_BROKEN) != 0;
        if (!any && (!broken || SST_BAR_EPOCH(st) != epoch))
            break; /* r is 0: somebody was first */
        begin_reset(p, SST_BAR_EPOCH(st));
        uint64_t why = broken ? st : (st & ~SST_BAR_BLAMED) | SST_BAR_BLAME(SST_BAR_RESET, rank);
        if (move(s, p, st, next_epoch(why, 1))) {
            r = 1;
            break;
        }
    }
    sst_end(s);
    return r;
}

int sst_bar_look(sst_seg *s, const sst_bar *bar, sst_bar_info *out) {
    point *p;
    int r = begin(s, bar, 0, &p);
    if (r != SST_OK)
        return r;
    uint64_t st = ld64_acquire(&p->state);
    *out = (sst_bar_info){.epoch = SST_BAR_EPOCH(st), .broken = (st & SST_BAR_BROKEN) != 0};
    out->cause = SST_BAR_CAUSE(st);
    out->rank = SST_BAR_RANK(st);
    out->pid = culprit_of(p, out->epoch, out->rank);
    for (uint32_t i = 0; i < sst_barrier_words(bar->parties); i++) {
        uint64_t v = ld64_acquire(sst_barrier_word(p, i));
        if ((uint32_t)(v >> 32) == out->epoch)
            out->arrived += (uint32_t)__builtin_popcount((uint32_t)v);
    }
    sst_end(s);
    return SST_OK;
}

/* -- opening --------------------------------------------------------------------------------------------------------- */
/* A fresh block, filled: nothing but parties and ranked differs from 0. The first epoch is 0. */
static int new_point(sst_op *op, uint32_t parties, uint32_t ranked, uint32_t *ref) {
    uint64_t bytes = sst_barrier_bytes(parties, ranked);
    int r = sst_block_new(op->s, op->key.stripe, bytes, op->deadline_ns, op->flags, ref);
    if (r != SST_OK)
        return r;
    point *p = sst_payload(op->s, *ref, bytes);
    if (p == NULL)
        return SST_ECORRUPT;
    st64(&p->state, 0);
    st32(&p->parties, parties);
    st32(&p->ranked, ranked);
    st64(&p->probe_ns, 0);
    st64(&p->culprit, 0);
    st64(&p->reset, 0);
    for (uint32_t i = 0; i < sst_barrier_words(parties); i++)
        st64(sst_barrier_word(p, i), 0);
    for (uint32_t i = 0; ranked && i < parties; i++)
        st32(sst_barrier_seat(p, parties, i), 0);
    return SST_OK;
}

static int create(sst_op *op, const sst_place *place, uint32_t parties, uint32_t ranked, uint32_t *entry) {
    uint32_t block;
    sst_entry *e;
    int r = new_point(op, parties, ranked, &block);
    if (r == SST_OK)
        r = sst_op_new_entry(op, SST_KIND_BARRIER, entry, &e);
    if (r != SST_OK)
        return r; /* sst_exit gives back what was taken */
    st32(&e->value[0], block);
    sst_write_begin(op->stripe);
    sst_op_link(op, place->from, *entry, SST_KIND_BARRIER); /* the commit */
    sst_block_keep(op->s, block);
    sst_write_end(op->stripe);
    return SST_OK;
}

int sst_bar_open(sst_seg *s, uint32_t space, const char *key, size_t klen, uint32_t parties, int32_t rank, uint32_t who,
                 uint64_t deadline_ns, sst_bar *out) {
    sst_op op;
    sst_place place;
    uint32_t ranked = rank != SST_NO_RANK;
    if (parties < 1 || parties > SST_PARTIES_MAX || who > SST_RANKS_MAX ||
        (ranked && (rank < 0 || (uint32_t)rank >= parties)))
        return SST_EINVAL;
    int r = sst_op_enter(&op, s, space, key, klen, deadline_ns, 0);
    if (r != SST_OK)
        return r;
    r = sst_table_find(s, &op.key, SST_KIND_BARRIER, &place);
    uint32_t entry = place.ref;
    if (r == SST_OK && place.entry == NULL)
        r = create(&op, &place, parties, ranked, &entry);
    const sst_entry *e = r == SST_OK ? sst_payload(s, entry, sizeof *e) : NULL;
    uint32_t block = e ? ld32(&e->value[0]) : 0;
    const point *p = e ? sst_payload(s, block, sizeof *p) : NULL;
    if (r == SST_OK)
        r = p == NULL                                                           ? SST_ECORRUPT
            : ld32(&p->parties) != parties || ld32(&p->ranked) != ranked        ? SST_EPARTIES
            : sst_payload(s, block, sst_barrier_bytes(parties, ranked)) == NULL ? SST_ECORRUPT
                                                                                : SST_OK;
    if (r == SST_OK) {
        *out = (sst_bar){block, entry, parties, rank, who, sst_me(s)};
        if (ranked && who != 0)
            reserve(s, out, (point *)sst_payload(s, block, sizeof(point)));
    }
    return sst_op_exit(&op, r);
}
