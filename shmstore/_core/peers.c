/* peers.c -- see peers.h; the slot's state table stands in layout.h.
 *
 * Claim: lock the byte -> gen + 1 and CLAIMING -> (caller: repair what the slot's dead still hold) -> LIVE.
 * Killed before gen moves: the byte is free again, the slot as it was. Killed after: words of the old generation are
 * dead by generation, words of the new one by the byte.
 *
 * Fork: a child whose slot were claimed by its first call alone could find that its parent, the last one known, has
 * closed and unlinked meanwhile. So the parent takes a slot for it before the fork: a third open of the file locks the
 * byte of a slot that is FORKED from then on. An OFD lock lives as long as any descriptor of its open file, whichever
 * process has it. The parent closes its own after the fork; the child's goes with the child, by exit, exec or kill, at
 * its first call it becomes the child's lock_fd's, and between parent and child there is no moment without a locked
 * byte. A fork that failed leaves FORKED with a free byte, as does a child that never called: nobody, and no death, for
 * it held nothing. Where no slot or no descriptor could be had the child claims at its first call, like anybody. */
#include "peers.h"
#include "errors.h"
#include "liveness.h"
#include "lock.h"
#include "segment.h"
#include "waiter.h"

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

static void introduce(sst_peer_slot *p) {
    char host[64] = {0};
    if (gethostname(host, sizeof host - 1) != 0)
        host[0] = 0;
    sst_copy_in((char *)p->host, host, sizeof host);
    st32(&p->pid, (uint32_t)getpid());
    st64(&p->start_ns, start_of_process());
}

static uint32_t next_gen(const sst_peer_slot *p) {
    uint32_t gen = (ld32(&p->gen) + 1) & 0xffffu;
    return gen ? gen : 1;
}

static int is_taken(const sst_peer_slot *p) {
    uint32_t state = ld32(&p->state);
    return state == SST_PEER_LIVE || state == SST_PEER_CLAIMING;
}

/* Another open of the file, for its locks; never by name, which may be gone. SST_ELOST, SST_ESYS. */
static int open_again(sst_seg *s) {
    char path[64];
    int was = own_fd(&s->map_fd);
    if (!sst_fd_ours(s, was))
        return sst_lose(s);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", was);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return sst_fail_errno(SST_ESYS);
    if (sst_fd_ours(s, fd))
        return fd;
    (void)close(fd); /* ours to close, and no open of our file: it changed hands in between */
    return sst_lose(s);
}

/* The owner word of the slot, CLAIMING; 0: it is another's. */
static uint32_t try_slot(sst_seg *s, uint32_t slot) {
    if (!sst_byte_take(s->lock_fd, slot))
        return 0;
    sst_peer_slot *p = sst_peer_at(s, slot);
    uint32_t gen = next_gen(p);
    st32(&p->state, SST_PEER_CLAIMING);
    st32_release(&p->gen, gen); /* SYNC peer-gen: release; pairs with the acquire in sst_alive: old words are dead */
    return SST_OWNER(slot, gen);
}

static int find_slot(sst_seg *s, uint32_t *owner) {
    if (s->lock_fd < 0) {
        int fd = open_again(s);
        if (fd < 0)
            return fd;
        own_set_fd(&s->lock_fd, fd); /* whoever reads -1 asks through map_fd, as rightly */
    }
    for (int dead = 0; dead < 2; dead++) /* first slots that nobody has, then those of the dead */
        for (uint32_t slot = 0; slot < SST_PEERS_MAX; slot++)
            if (is_taken(sst_peer_at(s, slot)) == dead && (*owner = try_slot(s, slot)) != 0)
                return SST_OK;
    return SST_EPEERS;
}

int sst_peer_claim(sst_seg *s) {
    uint32_t owner = ld32(&s->born);
    int r = sst_whole(s); /* no life without it: a forked child's byte went with its lock_fd */
    if (r == SST_OK && owner != 0)
        st32(&sst_peer_at(s, SST_OWNER_SLOT(owner))->state, SST_PEER_CLAIMING);
    else if (r == SST_OK)
        r = find_slot(s, &owner);
    if (r != SST_OK)
        return r;
    sst_peer_slot *p = sst_peer_at(s, SST_OWNER_SLOT(owner));
    introduce(p);
    if (ld32(&sst_header_of(s)->state) == SST_DEAD) { /* unlinked since the fork: nobody would hear this process */
        st32_release(&p->state, SST_PEER_LEFT);
        own_st32(&s->born, 0);
        sst_byte_drop(s->lock_fd, SST_OWNER_SLOT(owner));
        return SST_EDEAD;
    }
    own_st32(&s->me, owner);
    own_st32(&s->born, 0);
    return SST_OK;
}

/* -- fork ----------------------------------------------------------------------------------------------------------- */
/* FORKED, a generation on; the generation moves first, so that a kill in between leaves a FREE or LEFT one behind. */
static uint32_t lend_slot(sst_seg *s, int fd, uint32_t slot) {
    sst_peer_slot *p = sst_peer_at(s, slot);
    if (is_taken(p) || !sst_byte_take(fd, slot))
        return 0;
    if (is_taken(p)) { /* its owner came and died in between: its death is to be seen */
        sst_byte_drop(fd, slot);
        return 0;
    }
    uint32_t gen = next_gen(p);
    st32_release(&p->gen, gen); /* SYNC peer-gen: release; pairs with the acquire in sst_alive */
    introduce(p);
    st32(&p->pid, 0); /* the child says */
    st32_release(&p->state, SST_PEER_FORKED);
    return SST_OWNER(slot, gen);
}

void sst_peer_before_fork(sst_seg *s) {
    if (s->readonly || sst_closing(s) || (sst_me(s) == 0 && s->born == 0))
        return;
    int fd = open_again(s);
    if (fd < 0)
        return;
    for (uint32_t slot = 0; slot < SST_PEERS_MAX && s->unborn == 0; slot++)
        s->unborn = lend_slot(s, fd, slot);
    if (s->unborn == 0)
        sst_fd_close(s, fd);
    else
        s->unborn_fd = fd;
}

void sst_peer_in_parent(sst_seg *s) {
    if (s->unborn != 0)
        sst_fd_close(s, s->unborn_fd);
    s->unborn = 0;
}

void sst_peer_in_child(sst_seg *s) {
    sst_fd_close(s, s->lock_fd);
    own_set_fd(&s->lock_fd, s->unborn ? s->unborn_fd : -1); /* no other thread is here */
    own_st32(&s->me, 0);
    own_st32(&s->born, s->unborn);
    if (s->unborn != 0)
        st32(&sst_peer_at(s, SST_OWNER_SLOT(s->unborn))->pid, (uint32_t)getpid());
    s->unborn = 0;
}

/* -- live, leave, look ------------------------------------------------------------------------------------------------ */
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
    uint32_t me = sst_me(s), own = me ? me : ld32(&s->born);
    if ((own == 0 || SST_OWNER_SLOT(own) != slot) && !sst_byte_locked(fd, slot)) {
        if (sst_fd_ours(s, fd))
            return state == SST_PEER_FORKED ? SST_PEER_FREE : SST_PEER_DEAD;
        (void)sst_lose(s); /* another file's byte: it cannot be told, so nobody is called dead */
    }
    return state == SST_PEER_CLAIMING ? SST_PEER_CLAIMING : SST_PEER_LIVE;
}

int sst_peers(sst_seg *s, sst_peer *out, uint32_t room) {
    uint32_t n = 0;
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    for (uint32_t slot = 0; slot < SST_PEERS_MAX && n < room; slot++) {
        sst_peer_slot *p = sst_peer_at(s, slot);
        uint32_t state = sst_peer_state(s, sst_life_fd(s), slot);
        if (state == SST_PEER_FREE)
            continue;
        sst_peer one = {slot, ld32(&p->gen), state, (int32_t)ld32(&p->pid), ld64(&p->start_ns), {0}};
        sst_copy_out(one.host, (const char *)p->host, sizeof one.host);
        one.host[sizeof one.host - 1] = 0;
        out[n++] = one;
    }
    sst_end(s);
    return (int)n;
}

int sst_waiters(sst_seg *s, sst_waiter *out, uint32_t room) {
    uint32_t n = 0;
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    for (uint32_t i = 0; i < SST_WAITERS_MAX && n < room; i++) {
        sst_waiter_slot *w = sst_waiter_at(s, i);
        uint32_t owner = ld32_acquire(&w->owner); /* SYNC waiter-slot: acquire; pairs with the release in waiter.c */
        uint64_t since = ld64_acquire(&w->since_ns); /* SYNC waiter-note: acquire; pairs with the note's release */
        if (owner == 0 || (owner & SST_WIPING) || since == 0 || SST_OWNER_SLOT(owner) >= SST_PEERS_MAX)
            continue;
        sst_waiter one = {0};
        one.dead = !sst_alive(s, owner);
        one.slot = SST_OWNER_SLOT(owner);
        one.gen = SST_OWNER_GEN(owner);
        one.since_ns = since;
        one.rank = ld32(&w->rank);
        one.note_len = ld32(&w->note_len);
        sst_copy_out(one.note, (const char *)w->note, sizeof one.note);
        fence_acquire();
        if (ld32(&w->owner) == owner && ld64(&w->since_ns) == since)
            out[n++] = one;
    }
    sst_end(s);
    return (int)n;
}

int sst_holder(sst_seg *s, uint32_t *slot, int32_t *pid) {
    uint32_t owner = sst_lock_busy();
    if (owner == 0 || SST_OWNER_SLOT(owner) >= SST_PEERS_MAX)
        return SST_ENOENT;
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    *slot = SST_OWNER_SLOT(owner);
    *pid = (int32_t)ld32(&sst_peer_at(s, *slot)->pid);
    fence_acquire(); /* a claimer of the slot stores gen before pid: with the old gen still there the pid was the old's */
    r = ld32(&sst_peer_at(s, *slot)->gen) == SST_OWNER_GEN(owner) ? SST_OK : SST_ENOENT;
    sst_end(s);
    return r;
}
