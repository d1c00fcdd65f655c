/* barrier_seats.c -- the seats of a reusable barrier: whose each is, and which of those who are missing cannot come any
 * more (floor C9).
 *
 * Who is dead. A waiter with a rank whose slice ends may look, one in PROBE_NS for all. It judges the seats of those
 * who have not arrived. A seat that names a rank of the segment is judged by that, which tells left from dead for ever.
 * Any other is a process, which is told while its peer slot has no new owner. A seat that nobody ever took is judged by
 * the rank of the same number, where this barrier is of the whole job: as many parties as the segment's world size (or,
 * where it has none, no rank beyond them), and no seat taken by another rank. A seat is taken by arriving. A rank takes
 * that of its own number as soon as it opens the barrier, and reserves one of another. */
#include "barrier.h"
#include "clock.h"
#include "liveness.h"
#include "segment.h"

#define PROBE_NS UINT64_C(100000000)

/* -- whose a seat is ------------------------------------------------------------------------------------------------- */
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

uint32_t sst_bar_seat_of(const sst_seg *s, const sst_bar *bar) {
    uint32_t me = sst_me(s);
    return bar->who != 0 && bar->owner == me ? SST_SEAT_RANK | (bar->who - 1) : me;
}

void sst_bar_sit(sst_seg *s, const sst_bar *bar, sst_point *p) {
    uint32_t *seat = sst_barrier_seat(p, bar->parties, (uint32_t)bar->rank), mine = sst_bar_seat_of(s, bar),
             now = ld32(seat);
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

void sst_bar_reserve(sst_seg *s, const sst_bar *bar, sst_point *p) {
    uint32_t *seat = sst_barrier_seat(p, bar->parties, (uint32_t)bar->rank);
    if (bar->who == (uint32_t)bar->rank + 1)
        sst_bar_sit(s, bar, p);
    else if (ld32(seat) == 0)
        st32(seat, SST_SEAT_RANK | SST_SEAT_OPENED | (bar->who - 1));
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
static int of_all_ranks(sst_seg *s, const sst_bar *bar, sst_point *p) {
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

static int came(sst_point *p, uint32_t epoch, uint32_t i) {
    uint64_t v = ld64_acquire(sst_barrier_word(p, i / 32));
    return (uint32_t)(v >> 32) == epoch && (v >> (i % 32) & 1);
}

static void judge(sst_seg *s, const sst_bar *bar, sst_point *p, uint32_t epoch, int all_ranks, uint32_t i,
                  sst_seat *out) {
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

void sst_bar_probe(sst_seg *s, const sst_bar *bar, sst_point *p, uint32_t epoch) {
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
        (void)sst_bar_end_badly(s, p, epoch, seat.state == SST_SEAT_DEAD ? SST_BAR_DEAD : SST_BAR_LEFT, i);
        return;
    }
}

int sst_bar_seats(sst_seg *s, const sst_bar *bar, uint32_t epoch, sst_seat *out) {
    sst_point *p;
    int r = sst_bar_begin(s, bar, 0, &p);
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
