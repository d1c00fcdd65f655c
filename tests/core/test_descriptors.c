/* test_descriptors.c -- somebody closed the descriptors of a segment, as a daemoniser does, and what was opened next has
 * their numbers.
 *
 * Whatever the view does then: the other file stays as it is and open, nothing is published, nobody is robbed or called
 * dead, no part of the segment is closed as corrupt, and it is SST_ELOST. The others go on; to them it is dead. */
#include "check.h"
#include "guard.h"
#include "liveness.h"
#include "view.h"

#include <sys/inotify.h>
#include <sys/stat.h>

enum { MAP = 1, LOCK = 2, BIG = 200000 };
static char big[BIG + 1];
static int looked; /* at so many lost views */

static uint64_t bytes_of(int fd) {
    struct stat st;
    CHECK_IS(fstat(fd, &st), 0);
    return (uint64_t)st.st_size;
}

/* A view whose descriptors are gone: `which` of them, with another file's in their place or none. */
typedef struct {
    twin t;
    sst_seg *s;
    uint32_t slot, gen;
    int which, reused, fds[2], other;
    uint32_t others; /* alive */
} loss;

/* `which` of s's are closed; where another's are to come, they are opens of `other`. */
static void lose(loss *l) {
    for (int i = 0; i < 2; i++) {
        if (!(l->which & (i ? LOCK : MAP)))
            continue;
        l->fds[i] = i ? l->s->lock_fd : l->s->map_fd;
        CHECK_IS(l->reused ? dup2(l->other, l->fds[i]) : close(l->fds[i]), l->reused ? l->fds[i] : 0);
    }
}

static void begin(loss *l, int which, int reused) {
    *l = (loss){.which = which, .reused = reused, .fds = {-1, -1}, .other = new_file(), .others = 2};
    CHECK_IS(write(l->other, "x", 1), 1);
    twin_open(&l->t, 4 * MIB, SST_FUTEX);
    CHECK_IS(put(l->t.a, "k", "kept"), SST_OK);
    l->s = attach(l->t.fd);
    CHECK_IS(sst_self(l->s, &l->slot, &l->gen), SST_OK);
    CHECK_IS(put(l->s, "mine", "before"), SST_OK);
}

static uint32_t state_of(sst_seg *s, uint32_t slot) {
    sst_peer p[16];
    int n = sst_peers(s, p, 16);
    for (int i = 0; i < n; i++)
        if (p[i].slot == slot)
            return p[i].state;
    return SST_PEER_FREE;
}

/* The lost one is told so, and goes; what is another's stays open and as it was; the others go on. */
static void end(loss *l) {
    sst_info info;
    CHECK_IS(put(l->s, "large", big), SST_ELOST); /* here at the latest it is noticed, and then each verb says so */
    CHECK_IS(put(l->s, "k", "no"), SST_ELOST);
    CHECK_IS(here(l->s, "k"), SST_ELOST);
    CHECK_IS(sst_leave(l->s), SST_OK);
    CHECK_IS(sst_stat(l->s, &info), SST_OK); /* as whoever asks whether it was the last one out */
    CHECK(info.peers_live > 0);
    CHECK_IS(put(l->s, "k", "no"), SST_ECLOSED);
    sst_free(l->s);
    for (int i = 0; i < 2; i++)
        if (l->fds[i] >= 0 && l->reused) {
            CHECK_IS(fcntl(l->fds[i], F_GETFD) >= 0, 1);
            CHECK_IS(close(l->fds[i]), 0);
        }
    CHECK_IS(bytes_of(l->other), 1);
    (void)close(l->other);
    CHECK_IS(state_of(l->t.b, l->slot), l->which & LOCK ? SST_PEER_DEAD : SST_PEER_LEFT);
    CHECK(holds(l->t.b, "k", "kept") && holds(l->t.a, "mine", "before"));
    CHECK_IS(put(l->t.b, "large", big), SST_OK);
    CHECK_IS(sst_stat(l->t.a, &info), SST_OK);
    CHECK(info.size <= bytes_of(l->t.fd) && info.peers_live == l->others);
    twin_shut(&l->t);
    looked++;
}

/* The file is to grow. */
static void grows(int which, int reused) {
    loss l;
    sst_info was, is;
    begin(&l, which, reused);
    CHECK_IS(sst_stat(l.t.a, &was), SST_OK);
    lose(&l);
    CHECK_IS(put(l.s, "large", big), SST_ELOST);
    CHECK_IS(sst_stat(l.t.a, &is), SST_OK);
    CHECK(is.size == was.size && is.size <= bytes_of(l.t.fd));
    clean(l.t.a);
    end(&l);
}

/* The file has grown since it was last looked at: what is there is found, and nothing reads as corrupt. */
static void looks(int which, int reused) {
    static char got[BIG];
    loss l;
    size_t len = 0;
    begin(&l, which, reused);
    CHECK_IS(put(l.t.a, "large", big), SST_OK);
    lose(&l);
    CHECK_IS(sst_get(l.s, SST_USER, "large", 5, got, sizeof got, &len, soon(), 0), SST_OK);
    CHECK(len == BIG && memcmp(got, big, BIG) == 0);
    CHECK_IS(drop(l.t.a, "large"), 1);
    end(&l);
}

/* Somebody alive holds a lock that the lost one wants: it is not robbed, and not called dead. */
static void wants(int which, int reused) {
    loss l;
    sst_key k;
    uint32_t slot, gen;
    begin(&l, which, reused);
    CHECK_IS(sst_rank_register(l.t.b, 3), SST_OK);
    CHECK_IS(sst_self(l.t.b, &slot, &gen), SST_OK);
    CHECK_IS(sst_key_make(l.t.b, SST_USER, "k", 1, &k), SST_OK);
    CHECK_IS(sst_enter(l.t.b, k.stripe, soon(), 0), SST_OK);
    const uint32_t *word = &sst_stripe_at(l.t.b, k.stripe)->lock;
    lose(&l);
    uint64_t from = sst_now_ns();
    int r = sst_set(l.s, SST_USER, "k", 1, "no", 2, in_ms(20000), 0);
    CHECK_IS(r, SST_ELOST);
    CHECK(sst_now_ns() - from < 10 * SEC);
    CHECK_IS(ld32(word) & SST_OWNER_MASK, SST_OWNER(slot, gen));
    sst_exit(l.t.b, k.stripe, 0);
    end(&l);
}

/* It asks who is there. */
static void asks(int which, int reused) {
    loss l;
    uint32_t slot, gen;
    sst_rank r[4];
    begin(&l, which, reused);
    CHECK_IS(sst_rank_register(l.t.b, 3), SST_OK);
    CHECK_IS(sst_self(l.t.b, &slot, &gen), SST_OK);
    lose(&l);
    int n = sst_ranks(l.s, r, 4);
    CHECK(n == 1 && r[0].state == SST_RANK_LIVE);
    end(&l);
    begin(&l, which, reused);
    CHECK_IS(sst_self(l.t.b, &slot, &gen), SST_OK);
    lose(&l);
    CHECK_IS(state_of(l.s, slot), SST_PEER_LIVE);
    end(&l);
}

/* It was taken for dead, and its slot has a new owner, with a waiter slot: neither is touched when it goes. */
static void replaced(int reused) {
    loss l;
    uint32_t slot = 0, gen = 0, waiter = 0;
    begin(&l, MAP | LOCK, reused);
    lose(&l);
    int block = open_again(l.t.fd);
    for (uint32_t i = 0; i < SST_PEERS_MAX; i++)
        if (i != l.slot)
            (void)sst_byte_take(block, i);
    sst_seg *heir = attach(l.t.fd);
    (void)close(block);
    CHECK_IS(sst_self(heir, &slot, &gen), SST_OK);
    CHECK(slot == l.slot && gen == l.gen + 1);
    CHECK_IS(sst_wait(heir, SST_USER, "never", 5, &waiter, 0, soon(), MS, 0), SST_EAGAIN);
    CHECK(waiter != 0);
    CHECK_IS(sst_leave(l.s), SST_OK);
    sst_free(l.s);
    CHECK_IS(ld32(&sst_waiter_at(heir, waiter - 1)->owner), SST_OWNER(slot, gen));
    CHECK_IS(state_of(l.t.a, slot), SST_PEER_LIVE);
    sst_waiter_release(heir, &waiter);
    let_go(heir);
    for (int i = 0; i < 2 && reused; i++)
        CHECK_IS(close(l.fds[i]), 0);
    CHECK_IS(bytes_of(l.other), 1);
    (void)close(l.other);
    twin_shut(&l.t);
    looked++;
}

/* What was opened next is the same segment: by inode the two are one, and still each keeps to its own. */
static void opened_after(void) {
    loss l;
    uint32_t slot = 0, gen = 0;
    begin(&l, MAP | LOCK, 0);
    int had[2] = {l.s->map_fd, l.s->lock_fd};
    lose(&l);
    sst_seg *next = attach(l.t.fd);
    CHECK(next->map_fd == had[0] || next->map_fd == had[1]);
    CHECK(next->lock_fd == had[0] || next->lock_fd == had[1]);
    CHECK_IS(sst_self(next, &slot, &gen), SST_OK);
    CHECK(slot != l.slot);
    CHECK_IS(put(l.s, "large", big), SST_ELOST);
    l.others = 3;
    end(&l);
    CHECK_IS(put(next, "k", "after"), SST_OK);
    CHECK_IS(state_of(next, slot), SST_PEER_LIVE);
    let_go(next);
}

static int ended(pid_t pid) {
    int status = 0;
    CHECK_IS(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* fork: the child closes what it inherited, before its first call; or the parent had lost its own before. */
static void forked(int which, int reused, int by_child) {
    loss l;
    char path[64], event[512];
    begin(&l, which, reused);
    if (!by_child)
        lose(&l);
    int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", l.other);
    CHECK(inotify_add_watch(watch, path, IN_OPEN) >= 0);
    (void)fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        if (by_child)
            lose(&l);
        int able = which == LOCK && !by_child; /* map_fd opens another */
        CHECK_IS(put(l.s, "child", "was here"), able ? SST_OK : SST_ELOST);
        (void)sst_leave(l.s);
        sst_free(l.s);
        CHECK(!reused || !(which & LOCK) || fcntl(l.fds[1], F_GETFD) >= 0);
        CHECK(!reused || !(which & MAP) || fcntl(l.fds[0], F_GETFD) >= 0);
        CHECK_IS(bytes_of(l.other), 1);
        _exit(0);
    }
    CHECK(ended(pid));
    CHECK_IS(read(watch, event, sizeof event), -1); /* nobody has opened the other file, which may be a device */
    (void)close(watch);
    if (by_child) { /* the parent has lost nothing */
        CHECK_IS(put(l.s, "large", big), SST_OK);
        CHECK_IS(state_of(l.t.a, l.slot), SST_PEER_LIVE);
        let_go(l.s);
        CHECK_IS(bytes_of(l.other), 1);
        (void)close(l.other);
        twin_shut(&l.t);
        looked++;
        return;
    }
    CHECK_IS(put(l.s, "large", big), SST_ELOST);
    end(&l);
}

int main(void) {
    memset(big, 'B', BIG);
    for (int reused = 0; reused < 2; reused++) {
        for (int which = MAP; which <= (MAP | LOCK); which++) {
            grows(which, reused);
            forked(which, reused, 0);
            forked(which, reused, 1);
        }
        for (int which = MAP; which <= (MAP | LOCK); which += LOCK)
            looks(which, reused);
        for (int which = LOCK; which <= (MAP | LOCK); which++) {
            wants(which, reused);
            asks(which, reused);
        }
        replaced(reused);
    }
    opened_after();
    (void)printf("descriptors: %d views lost, no other file touched\n", looked);
    return 0;
}
