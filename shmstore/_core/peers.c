/* peers.c -- see peers.h; the slot's state table stands in layout.h.
 *
 * Claim: lock the byte -> gen + 1 and CLAIMING -> (caller: repair what the slot's dead still hold) -> LIVE.
 * Killed before gen moves: the byte is free again, the slot as it was. Killed after: words of the old generation are
 * dead by generation, words of the new one by the byte. */
#include "peers.h"
#include "errors.h"
#include "liveness.h"
#include "sst.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static uint64_t start_of_process(void) {
    char path[] = "/proc/self/stat", text[1024];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0; /* for people only: /proc may be absent */
    ssize_t n = read(fd, text, sizeof text - 1);
    (void)close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    const char *p = strrchr(text, ')'); /* field 2 may hold spaces; starttime is field 22 */
    unsigned long long ticks = 0;
    if (p == NULL ||
        sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &ticks) != 1)
        return 0;
    return ticks * (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
}

static int try_slot(sst_seg *s, uint32_t slot) {
    if (!sst_byte_take(s->lock_fd, slot))
        return 0;
    sst_peer_slot *p = sst_peer_at(s, slot);
    uint32_t gen = (ld32(&p->gen) + 1) & 0xffffu;
    if (gen == 0)
        gen = 1;
    st32(&p->state, SST_PEER_CLAIMING);
    st32_release(&p->gen, gen); /* SYNC peer-gen: release; pairs with the acquire in sst_alive: old words are dead */
    char host[64] = {0};
    if (gethostname(host, sizeof host - 1) != 0)
        host[0] = 0;
    sst_copy_in((char *)p->host, host, sizeof host);
    st32(&p->pid, (uint32_t)getpid());
    st64(&p->start_ns, start_of_process());
    own_st32(&s->me, SST_OWNER(slot, gen));
    return 1;
}

int sst_peer_claim(sst_seg *s) {
    for (int dead = 0; dead < 2; dead++) /* first slots that nobody has, then those of the dead */
        for (uint32_t slot = 0; slot < SST_PEERS_MAX; slot++) {
            uint32_t state = ld32(&sst_peer_at(s, slot)->state);
            int taken = state == SST_PEER_LIVE || state == SST_PEER_CLAIMING;
            if (taken == dead && try_slot(s, slot))
                return SST_OK;
        }
    return SST_EPEERS;
}

void sst_peer_live(sst_seg *s) { st32_release(&sst_peer_at(s, SST_OWNER_SLOT(s->me))->state, SST_PEER_LIVE); }

void sst_peer_leave(sst_seg *s) {
    uint32_t me = sst_me(s);
    if (me == 0)
        return;
    uint32_t slot = SST_OWNER_SLOT(me);
    for (uint32_t r = 0; r < SST_RANKS_MAX; r++) {
        uint64_t w = ld64(sst_rank_at(s, r));
        if (SST_RANK_OWNER(w) == me && SST_RANK_STATE(w) == SST_RANK_LIVE)
            (void)cas64_acq_rel(sst_rank_at(s, r), w, SST_RANK(me, SST_RANK_PID(w), SST_RANK_LEFT));
    }
    st32_release(&sst_peer_at(s, slot)->state, SST_PEER_LEFT);
    own_st32(&s->me, 0);
    sst_byte_drop(s->lock_fd, slot);
}

uint32_t sst_peer_state(sst_seg *s, int fd, uint32_t slot) {
    uint32_t state = ld32_acquire(&sst_peer_at(s, slot)->state);
    if (state == SST_PEER_FREE || state == SST_PEER_LEFT)
        return state;
    uint32_t me = sst_me(s);
    if ((me != 0 && SST_OWNER_SLOT(me) == slot) || sst_byte_locked(fd, slot))
        return state == SST_PEER_CLAIMING ? SST_PEER_CLAIMING : SST_PEER_LIVE;
    return SST_PEER_DEAD;
}

static int fd_of(const sst_seg *s) { return s->lock_fd >= 0 ? s->lock_fd : s->map_fd; }

int sst_peers(sst_seg *s, sst_peer *out, uint32_t room) {
    uint32_t n = 0;
    if (s->base == NULL)
        return SST_ECLOSED;
    for (uint32_t slot = 0; slot < SST_PEERS_MAX && n < room; slot++) {
        sst_peer_slot *p = sst_peer_at(s, slot);
        uint32_t state = sst_peer_state(s, fd_of(s), slot);
        if (state == SST_PEER_FREE)
            continue;
        sst_peer r = {slot, ld32(&p->gen), state, (int32_t)ld32(&p->pid), ld64(&p->start_ns), {0}};
        sst_copy_out(r.host, (const char *)p->host, sizeof r.host);
        r.host[sizeof r.host - 1] = 0;
        out[n++] = r;
    }
    return (int)n;
}

int sst_rank_register(sst_seg *s, uint32_t rank) {
    if (rank >= SST_RANKS_MAX)
        return SST_EINVAL;
    uint64_t *word = sst_rank_at(s, rank);
    for (;;) {
        uint64_t w = ld64_acquire(word);
        if (SST_RANK_STATE(w) == SST_RANK_LIVE && sst_alive(s, SST_RANK_OWNER(w)))
            return SST_EEXIST;
        if (cas64_acq_rel(word, w, SST_RANK(sst_me(s), (uint32_t)getpid(), SST_RANK_LIVE)))
            return SST_OK;
    }
}

int sst_rank_leave(sst_seg *s, uint32_t rank) {
    if (rank >= SST_RANKS_MAX)
        return SST_EINVAL;
    uint64_t *word = sst_rank_at(s, rank);
    uint64_t w = ld64_acquire(word);
    if (SST_RANK_STATE(w) != SST_RANK_LIVE || SST_RANK_OWNER(w) != sst_me(s))
        return SST_ENOENT;
    return cas64_acq_rel(word, w, SST_RANK(sst_me(s), SST_RANK_PID(w), SST_RANK_LEFT)) ? SST_OK : SST_ENOENT;
}

int sst_ranks(sst_seg *s, sst_rank *out, uint32_t room) {
    uint32_t n = 0;
    if (s->base == NULL)
        return SST_ECLOSED;
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
        sst_rank r = {rank, state, SST_OWNER_SLOT(owner), SST_OWNER_GEN(owner), (int32_t)SST_RANK_PID(w), {0}};
        sst_peer_slot *p = sst_peer_at(s, r.slot);
        if (ld32(&p->gen) == r.gen) /* else the slot has another owner now, and the host is not known any more */
            sst_copy_out(r.host, (const char *)p->host, sizeof r.host - 1);
        out[n++] = r;
    }
    return (int)n;
}
