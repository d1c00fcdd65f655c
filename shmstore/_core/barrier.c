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
 * Here: the words, how an epoch ends, and what any caller may do to one. Arriving and waiting: barrier_wait.c. Whose a seat
 * is, and who of those who are missing is dead: barrier_seats.c. Making and opening one: barrier_open.c. */
#include "barrier.h"
#include "guard.h"
#include "segment.h"

/* The barrier, checked: what the handle says against what lies there. */
static int point_of(sst_seg *s, const sst_bar *bar, sst_point **p) {
    int ranked = bar->rank != SST_NO_RANK;
    if (bar->parties < 1 || bar->parties > SST_PARTIES_MAX || (ranked && (uint32_t)bar->rank >= bar->parties))
        return SST_EINVAL;
    *p = sst_payload(s, bar->block, sst_barrier_bytes(bar->parties, (uint32_t)ranked));
    if (*p == NULL || ld32(&(*p)->parties) != bar->parties || ld32(&(*p)->ranked) != (uint32_t)ranked)
        return SST_ECORRUPT;
    return SST_OK;
}

int sst_bar_begin(sst_seg *s, const sst_bar *bar, uint32_t flags, sst_point **p) {
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
/* Ends or breaks what `st` says. 1: this call did. */
static int move(sst_seg *s, sst_point *p, uint64_t st, uint64_t next) {
    if (!cas64_seq_cst(&p->state, st, next & ~SST_BAR_WAITERS)) /* SYNC bar: release; SYNC bar-park: seq_cst */
        return 0;
    if (st & SST_BAR_WAITERS)
        s->park->unpark(s, sst_bar_low(p), 1);
    return 1;
}

static uint64_t next_epoch(uint64_t st, uint32_t how) {
    uint64_t history = (((uint64_t)SST_BAR_HISTORY(st) << 1) | how) & 0xff;
    uint64_t epoch = (st + SST_BAR_EPOCH_ONE) & (UINT64_C(0xffffffff) << 8);
    return (st & (SST_BAR_BLAMED | SST_BAR_NUDGES)) | epoch | history << 52;
}

static int full(const sst_bar *bar, sst_point *p, uint32_t epoch) {
    for (uint32_t i = 0; i < sst_barrier_words(bar->parties); i++)
        /* SYNC bar: acquire; SYNC bar-full: seq_cst */
        if (ld64_seq_cst(sst_barrier_word(p, i)) != SST_BAR_WORD(epoch, sst_barrier_mask(bar->parties, i)))
            return 0;
    return 1;
}

int sst_bar_pass(sst_seg *s, const sst_bar *bar, sst_point *p, uint64_t st) {
    uint32_t epoch = SST_BAR_EPOCH(st);
    if (!full(bar, p, epoch))
        return 0;
    while (SST_BAR_EPOCH(st) == epoch && !(st & SST_BAR_BROKEN) && !move(s, p, st, next_epoch(st, 0)))
        st = ld64_acquire(&p->state);
    return 1;
}

int sst_bar_end_badly(sst_seg *s, sst_point *p, uint32_t epoch, uint32_t cause, uint32_t rank) {
    for (;;) {
        uint64_t st = ld64_acquire(&p->state);
        if (SST_BAR_EPOCH(st) != epoch || (st & SST_BAR_BROKEN))
            return 0;
        if (move(s, p, st, (st & ~SST_BAR_BLAMED) | SST_BAR_BROKEN | SST_BAR_BLAME(cause, rank)))
            return 1;
    }
}

void sst_bar_nudge(sst_seg *s, uint32_t block) {
    sst_point *p = sst_payload(s, block, sizeof *p);
    uint64_t st = p ? ld64(&p->state) : 0;
    if (p == NULL || ld32(&p->parties) < 1 || ld32(&p->parties) > SST_PARTIES_MAX)
        return;
    while ((st & SST_BAR_WAITERS) && !move(s, p, st, (st & ~SST_BAR_NUDGES) | ((st + SST_BAR_NUDGE) & SST_BAR_NUDGES)))
        st = ld64(&p->state);
}

/* The dead's pid, where the break that the state tells of left it. */
static int32_t culprit_of(const sst_point *p, uint32_t epoch, uint32_t rank) {
    uint64_t culprit = ld64(&p->culprit), without_pid = SST_BAR_CULPRIT(epoch, 0, rank);
    int32_t pid = (int32_t)((culprit >> 12) & 0x3fffffffu);
    return culprit == (without_pid | SST_BAR_CULPRIT(0, (uint32_t)pid, 0)) ? pid : 0;
}

static void blame(const sst_point *p, uint64_t st, sst_arrival *a) {
    a->cause = SST_BAR_CAUSE(st);
    a->rank = SST_BAR_RANK(st);
    a->pid = culprit_of(p, a->epoch, a->rank);
}

/* 1: no reset was begun for that epoch or a later one. The word is stored before a reset moves the state, so whoever
 * sees the state that a reset made sees the word; a reset that lost the race may stand there too, and is taken for one. */
static int never_reset(const sst_point *p, uint32_t epoch) {
    uint64_t reset = ld64_acquire(&p->reset); /* SYNC bar-reset: acquire; pairs with the CAS in begin_reset */
    return reset == 0 || (int32_t)((uint32_t)reset - epoch) < 0;
}

/* How the arrival's epoch stands: SST_EAGAIN, SST_OK or SST_EBROKEN. */
int sst_bar_verdict(const sst_point *p, uint64_t st, sst_arrival *a) {
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

/* -- break, reset, look ---------------------------------------------------------------------------------------------- */
int sst_bar_break(sst_seg *s, const sst_bar *bar, int any, uint32_t epoch, uint32_t cause, uint32_t rank) {
    sst_point *p;
    if (cause < SST_BAR_TIMEOUT || cause > SST_BAR_INTERRUPT || cause == SST_BAR_RESET || rank >= SST_PARTIES_MAX)
        return SST_EINVAL;
    int r = sst_bar_begin(s, bar, 0, &p);
    if (r != SST_OK)
        return r;
    do {
        uint64_t st = ld64_acquire(&p->state);
        if (any)
            epoch = SST_BAR_EPOCH(st);
        r = sst_bar_end_badly(s, p, epoch, cause, rank);
        if (st & SST_BAR_BROKEN)
            break;
    } while (any && r == 0);
    sst_end(s);
    return r;
}

/* Says, before the state moves, that it will be by a reset. The word only goes forward. */
static void begin_reset(sst_point *p, uint32_t epoch) {
    for (;;) {
        uint64_t reset = ld64(&p->reset);
        if (reset != 0 && (int32_t)((uint32_t)reset - epoch) >= 0)
            return;
        if (cas64_seq_cst(&p->reset, reset, SST_BAR_RESET_OF(epoch))) /* SYNC bar-reset: release */
            return;
    }
}

int sst_bar_reset(sst_seg *s, const sst_bar *bar, int any, uint32_t epoch) {
    sst_point *p;
    int r = sst_bar_begin(s, bar, 0, &p);
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
    sst_point *p;
    int r = sst_bar_begin(s, bar, 0, &p);
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
