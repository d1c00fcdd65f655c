/* ranks.c -- who is which rank (floor C9): rank -> (slot, generation, pid, LIVE | LEFT), moved by CAS alone.
 *
 * A rank's life is its owner word's: LIVE with an owner that is not alive is a death. So nothing but a slot may own one,
 * and whoever registers a rank joins first. */
#include "guard.h"
#include "liveness.h"
#include "segment.h"

#include <unistd.h>

static int take_rank(sst_seg *s, uint32_t rank) {
    uint64_t *word = sst_rank_at(s, rank);
    for (;;) {
        uint64_t w = ld64_acquire(word);
        if (SST_RANK_STATE(w) == SST_RANK_LIVE && sst_alive(s, SST_RANK_OWNER(w)))
            return SST_EEXIST;
        if (cas64_acq_rel(word, w, SST_RANK(sst_me(s), (uint32_t)getpid(), SST_RANK_LIVE)))
            return SST_OK;
    }
}

int sst_rank_register(sst_seg *s, uint32_t rank) {
    if (rank >= SST_RANKS_MAX)
        return SST_EINVAL;
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    r = sst_me(s) ? SST_OK : sst_join(s, 0); /* a forked child's first call: a rank is its owner's word */
    if (r == SST_OK)
        r = take_rank(s, rank);
    sst_end(s);
    return r;
}

int sst_rank_leave(sst_seg *s, uint32_t rank) {
    if (rank >= SST_RANKS_MAX)
        return SST_EINVAL;
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    uint64_t *word = sst_rank_at(s, rank), w = ld64_acquire(word);
    uint32_t me = sst_me(s);
    int mine = me != 0 && SST_RANK_STATE(w) == SST_RANK_LIVE && SST_RANK_OWNER(w) == me;
    if (!mine || !cas64_acq_rel(word, w, SST_RANK(me, SST_RANK_PID(w), SST_RANK_LEFT)))
        r = SST_ENOENT;
    sst_end(s);
    return r;
}

int sst_ranks(sst_seg *s, sst_rank *out, uint32_t room) {
    uint32_t n = 0;
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    for (uint32_t rank = 0; rank < SST_RANKS_MAX && n < room; rank++) {
        uint64_t w = ld64_acquire(sst_rank_at(s, rank));
        uint32_t owner = SST_RANK_OWNER(w), state = SST_RANK_STATE(w);
        if (state == SST_RANK_FREE || SST_OWNER_SLOT(owner) >= SST_PEERS_MAX)
            continue;
        if (state == SST_RANK_LIVE && !sst_alive(s, owner)) {
            if (ld64_acquire(sst_rank_at(s, rank)) != w) { /* it left, or was replaced, while we looked */
                rank--;
                continue;
            }
            state = SST_RANK_DEAD;
        }
        sst_rank one = {rank, state, SST_OWNER_SLOT(owner), SST_OWNER_GEN(owner), (int32_t)SST_RANK_PID(w), {0}};
        sst_peer_slot *p = sst_peer_at(s, one.slot);
        if (ld32(&p->gen) == one.gen) /* else the slot has another owner now, and the host is not known any more */
            sst_copy_out(one.host, (const char *)p->host, sizeof one.host - 1);
        out[n++] = one;
    }
    sst_end(s);
    return (int)n;
}
