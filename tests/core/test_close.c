/* test_close.c -- closing and forking in the middle of calls: the slot is given back by the last one out, no door trips
 * over a close, and a forked child has a slot of its own whoever closes first. */
#include "check.h"
#include "guard.h"
#include "lock.h"

#include <pthread.h>

/* Long critical sections are what a close comes into the middle of; a sanitizer makes them long by itself. */
#if defined(__SANITIZE_THREAD__)
enum { CLOSES = 20, LOOKS = 20, LARGE = 1 << 16 };
#elif defined(__SANITIZE_ADDRESS__)
enum { CLOSES = 20, LOOKS = 30, LARGE = 1 << 19 };
#else
enum { CLOSES = 40, LOOKS = 60, LARGE = 1 << 20 };
#endif

static twin t;
static char large[LARGE];

typedef struct {
    sst_seg *s;
    int (*call)(sst_seg *s, uint32_t round);
    uint32_t rounds; /* atomic: calls that ended well */
    int result; /* of the last call */
    pthread_t id;
} caller;

static void *keep_calling(void *arg) {
    caller *c = arg;
    do
        c->result = c->call(c->s, ld32(&c->rounds));
    while (c->result >= 0 && own_add32(&c->rounds, 1) < UINT32_MAX - 1);
    return NULL;
}

static void start(caller *c, sst_seg *s, int (*call)(sst_seg *s, uint32_t round)) {
    *c = (caller){.s = s, .call = call};
    CHECK_IS(pthread_create(&c->id, NULL, keep_calling, c), 0);
}

static void came(const caller *c, uint32_t rounds) {
    while (ld32(&c->rounds) < rounds)
        nap(0);
}

static void ended(caller *c, int result) {
    CHECK_IS(pthread_join(c->id, NULL), 0);
    CHECK_IS(c->result, result);
}

static sst_info peek(void) {
    sst_info info;
    CHECK_IS(sst_peek(t.fd, &info), SST_OK);
    return info;
}

/* -- closing under load --------------------------------------------------------------------------------------------- */
static int take(sst_seg *s) {
    static _Thread_local char item[LARGE];
    size_t len;
    uint32_t waiter = 0;
    int r = sst_queue_pop(s, SST_USER, "q", 1, 0, item, sizeof item, &len, &waiter, 0, soon(), 50 * MS, 0);
    return r == SST_ENOENT ? SST_OK : r;
}

static int push_pop(sst_seg *s, uint32_t round) {
    int r = sst_queue_push(s, SST_USER, "q", 1, large, LARGE - round % 4 * 4096, soon(), 0);
    return r == SST_OK || r == SST_EFULL ? take(s) : r;
}

static int set_add(sst_seg *s, uint32_t round) {
    int64_t v;
    int r = sst_set(s, SST_USER, "k", 1, large, 1 + round * 7919 % LARGE, soon(), 0);
    return r == SST_OK ? sst_add(s, SST_USER, "n", 1, 1, &v, soon(), 0) : r;
}

/* Two threads work through a view that is left under them; another peer works beside them. A slot given back under a
 * holder makes its lock a dead one's: the peer takes it over, and verify finds what both did at once. */
static void under_load(uint32_t engine) {
    caller peer, in[2];
    twin_open(&t, 64 * MIB, engine);
    start(&peer, t.b, push_pop);
    for (int i = 0; i < CLOSES; i++) {
        sst_seg *s = attach(t.fd);
        start(&in[0], s, push_pop);
        start(&in[1], s, set_add);
        came(&in[i % 2], 1 + (uint32_t)i % 3);
        if (i % 4 != 3)
            CHECK_IS(sst_leave(s), SST_OK);
        CHECK_IS(sst_close(s), SST_OK); /* without a leave the last one out gives the slot back */
        ended(&in[0], SST_ECLOSED);
        ended(&in[1], SST_ECLOSED);
        CHECK_IS(peek().peers_live, 2);
        CHECK_IS(peek().peers_dead, 0);
        CHECK_IS(sst_leave(s), SST_ECLOSED);
        sst_free(s);
        while (queue_len(t.a, "q") > 8) /* a close between push and pop leaves an item */
            CHECK(take(t.a) == SST_OK);
        if (i % 20 == 0)
            clean(t.a);
    }
    sst_seg *other = t.b;
    CHECK_IS(sst_leave(other), SST_OK);
    ended(&peer, SST_ECLOSED);
    clean(t.a);
    let_go(other);
    let_go(t.a);
    (void)close(t.fd);
    (void)printf("%s: %d closes under load\n", engine_name(engine), CLOSES);
}

/* -- calls that wait ------------------------------------------------------------------------------------------------ */
static int wait_long(sst_seg *s, uint32_t round) {
    static _Thread_local uint32_t waiter;
    (void)round;
    return sst_wait(s, SST_USER, "never", 5, &waiter, 0, soon(), 55 * SEC, 0);
}

static int set_k(sst_seg *s, uint32_t round) {
    (void)round;
    return sst_set(s, SST_USER, "k", 1, "v", 1, soon(), 0);
}

/* A leaver lets calls in flight end, and they end soon: a wait is woken, and one that is parked on the lock of a stopped
 * process does not wait for that. */
static void waits_end(uint32_t engine) {
    caller in[3];
    int line[2];
    char c;
    sst_waiter seen[8];
    uint32_t owned = 0;
    twin_open(&t, 2 * MIB, engine);
    CHECK_IS(pipe(line), 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *own = attach(t.fd);
        CHECK_IS(sst_test_hold(own, 0, "k", 1), SST_OK);
        CHECK_IS(write(line[1], "x", 1), 1);
        for (;;)
            (void)pause();
    }
    CHECK_IS(read(line[0], &c, 1), 1);
    CHECK_IS(kill(pid, SIGSTOP), 0);
    sst_seg *s = attach(t.fd);
    start(&in[0], s, wait_long);
    start(&in[1], s, wait_long);
    start(&in[2], s, set_k);
    sst_key k;
    CHECK_IS(sst_key_make(t.a, SST_USER, "k", 1, &k), SST_OK);
    while (sst_waiters(t.a, seen, 8) < 2 || !(ld32(&sst_stripe_at(t.a, k.stripe)->lock) & SST_WAITERS))
        nap(1);
    uint64_t from = sst_now_ns();
    CHECK_IS(sst_leave(s), SST_OK);
    CHECK(sst_now_ns() - from < 9 * SEC); /* far less: 16 ms and what the machine makes of it */
    CHECK_IS(ld32(&s->users), SST_CLOSING | SST_LEAVER | 1);
    for (int i = 0; i < 3; i++) /* before sst_close: nothing is left that it could end */
        ended(&in[i], SST_ECLOSED);
    CHECK_IS(sst_waiters(t.a, seen, 8), 0);
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++)
        owned += ld32(&sst_waiter_at(t.a, i)->owner) != 0;
    CHECK_IS(owned, 0);
    sst_free(s);
    CHECK_IS(kill(pid, SIGKILL), 0);
    CHECK_IS(waitpid(pid, NULL, 0), pid);
    (void)close(line[0]);
    (void)close(line[1]);
    twin_shut(&t);
    (void)printf("%s: a leave beside two waits and a stopped holder\n", engine_name(engine));
}

/* -- the doors that only look ----------------------------------------------------------------------------------------- */
static int look(sst_seg *s, uint32_t round) {
    sst_info info;
    sst_peer peers[4];
    sst_rank ranks[4];
    sst_waiter waiters[4];
    (void)round;
    int r = sst_stat(s, &info);
    if (r == SST_OK)
        r = sst_peers(s, peers, 4);
    if (r >= 0)
        r = sst_ranks(s, ranks, 4);
    return r < 0 ? r : sst_waiters(s, waiters, 4);
}

static int change(sst_seg *s, uint32_t round) {
    uint32_t slot;
    int32_t pid;
    int r = sst_rank_register(s, round % 3);
    if (r == SST_OK)
        r = sst_rank_leave(s, round % 3);
    if (r == SST_OK)
        r = sst_wake_self(s);
    if (r == SST_OK)
        r = sst_holder(s, &slot, &pid);
    return r == SST_ENOENT ? SST_OK : r;
}

static void looks(void) {
    caller in[4];
    twin_open(&t, 2 * MIB, SST_FUTEX);
    for (int i = 0; i < LOOKS; i++) {
        sst_seg *s = attach(t.fd), *looker = NULL;
        CHECK_IS(sst_inspect(t.fd, &looker), SST_OK);
        start(&in[0], s, look);
        start(&in[1], s, change);
        start(&in[2], looker, look);
        start(&in[3], looker, look);
        came(&in[0], 1);
        CHECK_IS(sst_close(s), SST_OK);
        came(&in[2], 1);
        CHECK_IS(sst_close(looker), SST_OK);
        for (int k = 0; k < 4; k++)
            ended(&in[k], SST_ECLOSED);
        sst_free(s);
        sst_free(looker);
        CHECK_IS(peek().peers_live, 2);
    }
    twin_shut(&t);
    (void)printf("%d closes beside lookers\n", LOOKS);
}

/* -- forks ---------------------------------------------------------------------------------------------------------------- */
typedef struct {
    pid_t pid;
    int to, from;
} child;

/* Forks: 0 in the child, whose line to the parent is then in *c. */
static int split(child *c) {
    int down[2], up[2];
    CHECK_IS(pipe(down) + pipe(up), 0);
    c->pid = fork();
    CHECK(c->pid >= 0);
    int mine = c->pid == 0;
    c->from = mine ? down[0] : up[0];
    c->to = mine ? up[1] : down[1];
    (void)close(mine ? down[1] : down[0]);
    (void)close(mine ? up[0] : up[1]);
    return !mine;
}
static void tell(const child *c) { CHECK_IS(write(c->to, "x", 1), 1); }
static void hear(const child *c) {
    char x;
    CHECK_IS(read(c->from, &x, 1), 1);
}
static void gone(const child *c) {
    int status = 0;
    CHECK_IS(waitpid(c->pid, &status, 0), c->pid);
    CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
    (void)close(c->to);
    (void)close(c->from);
}

/* A rank that a forked child registers before anything else has an owner. */
static void rank_of_a_child(void) {
    child c;
    sst_rank r[4];
    twin_open(&t, 2 * MIB, SST_FUTEX);
    if (split(&c) == 0) {
        CHECK_IS(sst_rank_register(t.a, 3), SST_OK);
        tell(&c);
        hear(&c);
        _exit(0);
    }
    hear(&c);
    CHECK_IS(sst_ranks(t.a, r, 4), 1);
    CHECK(r[0].rank == 3 && r[0].state == SST_RANK_LIVE && r[0].pid == c.pid);
    CHECK_IS(sst_rank_register(t.b, 3), SST_EEXIST);
    clean(t.b);
    tell(&c);
    gone(&c);
    CHECK_IS(sst_ranks(t.a, r, 4), 1);
    CHECK_IS(r[0].state, SST_RANK_DEAD);
    twin_shut(&t);
}

/* 0 is the free word and nobody's: who has no slot takes no lock. */
static void no_owner_no_lock(void) {
    child c;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    if (split(&c) == 0) {
        CHECK_IS(sst_me(t.a), 0);
        CHECK_IS(sst_lock(t.a, &sst_stripe_at(t.a, 7)->lock, in_ms(1), 0), SST_ECLOSED);
        CHECK_IS(sst_lock_seize(t.a, &sst_stripe_at(t.a, 7)->lock, 0), 0);
        CHECK_IS(ld32(&sst_stripe_at(t.b, 7)->lock), 0);
        CHECK_IS(put(t.a, "k", "v"), SST_OK);
        _exit(0);
    }
    gone(&c);
    twin_shut(&t);
}

/* The parent leaves before the child's first call: the child is counted all the time, and its child, too. */
static void parent_first(void) {
    child c, grand;
    uint32_t slot, gen;
    sst_peer p[4];
    twin_open(&t, 2 * MIB, SST_FUTEX);
    let_go(t.b);
    if (split(&c) == 0) {
        hear(&c); /* the parent is out */
        CHECK_IS(peek().peers_live, 1);
        if (split(&grand) == 0) {
            hear(&grand); /* its parent has called, and left */
            CHECK_IS(put(t.a, "grandchild", "here"), SST_OK);
            CHECK_IS(sst_leave(t.a), SST_OK);
            _exit(0);
        }
        CHECK_IS(peek().peers_live, 2);
        CHECK_IS(put(t.a, "child", "here"), SST_OK);
        CHECK_IS(sst_self(t.a, &slot, &gen), SST_OK);
        CHECK_IS(slot, 1); /* that which t.b left */
        CHECK_IS(sst_leave(t.a), SST_OK);
        CHECK_IS(peek().peers_live, 1);
        tell(&grand);
        gone(&grand);
        _exit(0);
    }
    CHECK_IS(sst_peers(t.a, p, 4), 2);
    CHECK(p[1].slot == 1 && p[1].state == SST_PEER_LIVE && (p[1].pid == c.pid || p[1].pid == 0));
    CHECK_IS(sst_leave(t.a), SST_OK);
    CHECK_IS(peek().peers_live, 1);
    tell(&c);
    gone(&c);
    CHECK_IS(peek().peers_live, 0);
    CHECK_IS(peek().peers_dead, 0);
    sst_free(t.a);
    t.a = attach(t.fd);
    CHECK(holds(t.a, "child", "here") && holds(t.a, "grandchild", "here"));
    clean(t.a);
    let_go(t.a);
    (void)close(t.fd);
}

/* Children that never call, or become another program, are no deaths, and their slots are used again. */
static void silent_children(void) {
    child c;
    sst_peer p[8];
    twin_open(&t, 2 * MIB, SST_FUTEX);
    for (int i = 0; i < 20; i++) {
        if (split(&c) == 0) {
            hear(&c);
            if (i % 2)
                (void)execl("/bin/true", "true", (char *)NULL);
            _exit(0);
        }
        CHECK_IS(peek().peers_live, 4); /* two views, each with a slot for the child */
        tell(&c);
        gone(&c);
        CHECK_IS(peek().peers_live, 2);
        CHECK_IS(peek().peers_dead, 0);
        CHECK_IS(sst_peers(t.b, p, 8), 2);
    }
    CHECK_IS(ld32(&sst_peer_at(t.a, 4)->gen), 0);
    twin_shut(&t);
}

/* Forked while other threads are in calls: the child has none of them to wait for. */
static void amid_calls(void) {
    caller in[2];
    child c;
    twin_open(&t, 64 * MIB, SST_FUTEX);
    start(&in[0], t.a, set_add);
    start(&in[1], t.b, set_add);
    for (int i = 0; i < 20; i++) {
        if (split(&c) == 0) {
            if (i % 2)
                CHECK_IS(put(t.a, "from", "child"), SST_OK);
            CHECK_IS(sst_leave(t.a), SST_OK);
            CHECK_IS(sst_close(t.a), SST_OK);
            CHECK(t.a->base == NULL);
            sst_free(t.a);
            let_go(t.b);
            _exit(0);
        }
        gone(&c);
        CHECK_IS(peek().peers_dead, 0);
    }
    CHECK_IS(sst_leave(t.a), SST_OK);
    if (split(&c) == 0) { /* between leave and close, as a signal handler might */
        CHECK_IS(sst_close(t.a), SST_OK);
        CHECK(t.a->base == NULL);
        _exit(0);
    }
    gone(&c);
    CHECK_IS(sst_leave(t.b), SST_OK);
    ended(&in[0], SST_ECLOSED);
    ended(&in[1], SST_ECLOSED);
    let_go(t.a);
    let_go(t.b);
    (void)close(t.fd);
}

int main(void) {
    memset(large, 'L', sizeof large);
    rank_of_a_child();
    no_owner_no_lock();
    parent_first();
    silent_children();
    amid_calls();
    (void)printf("5 forks\n");
    EACH_ENGINE(engine)
    waits_end(engine);
    looks();
    EACH_ENGINE(engine)
    under_load(engine);
    return 0;
}
