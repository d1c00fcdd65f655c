/* test_barrier.c -- the reusable barrier: epochs, who is missing, breaks and resets, deaths and leavings. */
#include "check.h"
#include "layout.h"
#include "view.h"

#include <pthread.h>

enum { MEMBERS = 6, ROUNDS = 2000 };

static sst_bar open_bar(sst_seg *s, const char *key, uint32_t parties, int32_t rank, uint32_t who) {
    sst_bar bar;
    CHECK_IS(sst_bar_open(s, SST_USER, key, strlen(key), parties, rank, who, soon(), &bar), SST_OK);
    return bar;
}

/* One whole wait. */
static int meet(sst_seg *s, const sst_bar *bar, uint64_t deadline_ns, sst_arrival *a) {
    int r;
    *a = (sst_arrival){0};
    do
        r = sst_bar_wait(s, bar, a, deadline_ns, 20 * MS);
    while (r == SST_EAGAIN || r == SST_EINTR);
    CHECK_IS(a->waiter, 0);
    return r;
}

/* The next of the places where a wait may go through: not at all, yielding, parking. */
static int meet_by(sst_seg *s, const sst_bar *bar, int how, sst_arrival *a) {
    *a = (sst_arrival){0};
    int r = how % 3 == 0   ? sst_bar_arrive(s, bar, a, SST_TRY)
            : how % 3 == 1 ? sst_bar_linger(s, bar, a, soon())
                           : SST_EAGAIN;
    while (r == SST_EAGAIN || r == SST_EINTR)
        r = sst_bar_wait(s, bar, a, soon(), 20 * MS);
    return r;
}

static sst_bar_info info(sst_seg *s, const sst_bar *bar) {
    sst_bar_info i;
    CHECK_IS(sst_bar_look(s, bar, &i), SST_OK);
    return i;
}

/* -- epochs ---------------------------------------------------------------------------------------------------------- */
typedef struct {
    sst_seg *s;
    sst_bar bar;
    int member, rounds;
    const uint32_t *plain; /* what the others wrote before they arrived, without any atomics */
    uint32_t *mine, *indexes;
    pthread_t id;
} member;

static uint32_t written[MEMBERS + 40], taken[MEMBERS + 40];

static void *many_epochs(void *arg) {
    member *m = arg;
    sst_arrival a;
    for (int i = 1; i <= m->rounds; i++) {
        *m->mine = (uint32_t)i;
        CHECK_IS(meet_by(m->s, &m->bar, i + m->member, &a), SST_OK);
        for (uint32_t k = 0; k < m->bar.parties; k++)
            CHECK_IS(m->plain[k], i); /* a race here, or a stale value, is a barrier that does not order */
        __atomic_fetch_add(&m->indexes[a.index], 1, __ATOMIC_RELAXED);
        CHECK_IS(meet_by(m->s, &m->bar, i + m->member + 1, &a), SST_OK);
    }
    return NULL;
}

static void epochs(twin *t, const char *key, uint32_t parties, int ranked, int rounds) {
    static member members[MEMBERS + 40];
    uint64_t used = 0;
    memset(written, 0, sizeof written);
    memset(taken, 0, sizeof taken);
    for (uint32_t i = 0; i < parties; i++) {
        sst_seg *s = t->a; /* one mapping: ThreadSanitizer knows an address, not what lies there */
        sst_bar bar = open_bar(s, key, parties, ranked ? (int32_t)i : SST_NO_RANK, 0);
        members[i] = (member){s, bar, (int)i, rounds, written, &written[i], taken, 0};
    }
    sst_info before, after;
    CHECK_IS(sst_stat(t->a, &before), SST_OK);
    used = before.used;
    for (uint32_t i = 0; i < parties; i++)
        CHECK_IS(pthread_create(&members[i].id, NULL, many_epochs, &members[i]), 0);
    for (uint32_t i = 0; i < parties; i++)
        CHECK_IS(pthread_join(members[i].id, NULL), 0);
    for (uint32_t i = 0; i < parties; i++)
        CHECK_IS(taken[i], rounds);
    CHECK_IS(sst_stat(t->a, &after), SST_OK);
    CHECK_IS(after.used, used);
    CHECK_IS(after.keys, before.keys);
    CHECK_IS(info(t->a, &members[0].bar).arrived, 0);
}

/* -- opening --------------------------------------------------------------------------------------------------------- */
static void opening(twin *t) {
    sst_bar bar, again;
    char longest[SST_KEY_MAX];
    memset(longest, 'b', sizeof longest);
    bar = open_bar(t->a, "open", 3, SST_NO_RANK, 0);
    again = open_bar(t->b, "open", 3, SST_NO_RANK, 0);
    CHECK_IS(bar.block, again.block);
    CHECK_IS(sst_bar_open(t->a, SST_USER, "open", 4, 4, SST_NO_RANK, 0, soon(), &bar), SST_EPARTIES);
    CHECK_IS(sst_bar_open(t->a, SST_USER, "open", 4, 3, 0, 0, soon(), &bar), SST_EPARTIES);
    CHECK_IS(sst_bar_open(t->a, SST_USER, "open", 4, 0, SST_NO_RANK, 0, soon(), &bar), SST_EINVAL);
    CHECK_IS(sst_bar_open(t->a, SST_USER, "open", 4, 3, 3, 0, soon(), &bar), SST_EINVAL);
    CHECK_IS(sst_bar_open(t->a, SST_USER, "open", 4, 3, -2, 0, soon(), &bar), SST_EINVAL);
    CHECK_IS(sst_bar_open(t->a, SST_USER, "", 0, 3, 1, 0, soon(), &bar), SST_EINVAL);
    CHECK_IS(sst_bar_open(t->a, SST_USER, "wide", 4, SST_PARTIES_MAX + 1, 1, 0, soon(), &bar), SST_EINVAL);
    CHECK_IS(
        sst_bar_open(t->a, SST_USER, longest, sizeof longest, SST_PARTIES_MAX, SST_PARTIES_MAX - 1, 0, soon(), &bar),
        SST_OK);
    CHECK_IS(here(t->a, "open"), 0); /* no key, and deleting a key takes nothing away */
    CHECK_IS(put(t->a, "open", "x"), SST_OK);
    CHECK_IS(push(t->a, "open", "y"), SST_OK);
    CHECK_IS(drop(t->a, "open"), 1);
    again = open_bar(t->b, "open", 3, SST_NO_RANK, 0);
    CHECK_IS(info(t->b, &again).epoch, 0);
    sst_bar bad = again;
    bad.parties = 4;
    CHECK_IS(sst_bar_look(t->a, &bad, &(sst_bar_info){0}), SST_ECORRUPT);
    bad.block = 1;
    CHECK_IS(sst_bar_look(t->a, &bad, &(sst_bar_info){0}), SST_ECORRUPT);
    sst_arrival a;
    sst_bar alone = open_bar(t->a, "alone", 1, 0, 0);
    for (int i = 0; i < 3; i++) {
        CHECK_IS(meet(t->a, &alone, 0, &a), SST_OK); /* who needs nobody waits for nothing */
        CHECK_IS(a.index, 0);
    }
}

/* -- breaks, resets -------------------------------------------------------------------------------------------------- */
static void breaks(twin *t) {
    sst_arrival a = {0}, b = {0}, c = {0};
    sst_bar x = open_bar(t->a, "break", 3, 0, 0), y = open_bar(t->b, "break", 3, 2, 0);
    CHECK_IS(sst_bar_arrive(t->a, &x, &a, 0), SST_EAGAIN);
    CHECK_IS(info(t->a, &x).arrived, 1);
    CHECK_IS(sst_bar_arrive(t->b, &x, &c, 0), SST_EAGAIN); /* the same rank twice joins */
    CHECK_IS(info(t->a, &x).arrived, 1);
    CHECK_IS(meet(t->b, &y, in_ms(5), &b), SST_ETIMEDOUT); /* breaks it for all */
    CHECK_IS(sst_bar_arrive(t->a, &x, &a, 0), SST_EBROKEN);
    CHECK(a.cause == SST_BAR_TIMEOUT && a.rank == 2);
    CHECK(info(t->a, &x).broken);
    c = (sst_arrival){0};
    CHECK_IS(meet(t->b, &x, soon(), &c), SST_EBROKEN); /* and for who comes later */
    CHECK(c.cause == SST_BAR_TIMEOUT && c.rank == 2 && c.epoch == a.epoch);
    CHECK_IS(sst_bar_reset(t->a, &x, 0, a.epoch), 1);
    CHECK_IS(sst_bar_reset(t->b, &y, 0, a.epoch), 0); /* somebody was first */
    CHECK(!info(t->a, &x).broken);
    CHECK_IS(sst_bar_arrive(t->a, &x, &a, 0), SST_EBROKEN); /* who has not looked yet is told why, all the same */
    CHECK(a.cause == SST_BAR_TIMEOUT && a.rank == 2);
    sst_bar z = open_bar(t->b, "break", 3, 1, 0);
    for (int round = 0; round < 3; round++) { /* whole again */
        sst_arrival p = {0}, q = {0}, r = {0};
        CHECK_IS(sst_bar_arrive(t->a, &x, &p, 0), SST_EAGAIN);
        CHECK_IS(sst_bar_arrive(t->b, &y, &q, 0), SST_EAGAIN);
        CHECK_IS(sst_bar_arrive(t->b, &z, &r, 0), SST_OK);
        CHECK(p.index == 0 && q.index == 1 && r.index == 2);
        CHECK_IS(sst_bar_arrive(t->a, &x, &p, 0), SST_OK);
        CHECK_IS(sst_bar_wait(t->b, &y, &q, 0, 0), SST_OK);
    }
    a = b = (sst_arrival){0};
    CHECK_IS(sst_bar_arrive(t->a, &x, &a, 0), SST_EAGAIN);
    CHECK_IS(sst_bar_reset(t->b, &y, 1, 0), 1); /* unbroken: throws out who waits */
    CHECK_IS(sst_bar_arrive(t->a, &x, &a, 0), SST_EBROKEN);
    CHECK(a.cause == SST_BAR_RESET && a.rank == 2);
    CHECK_IS(sst_bar_arrive(t->b, &y, &b, 0), SST_EAGAIN);
    CHECK_IS(sst_bar_break(t->a, &x, 0, b.epoch - 1, SST_BAR_ABORT, 0), 0); /* that epoch is over */
    CHECK_IS(sst_bar_break(t->a, &x, 1, 0, SST_BAR_ABORT, 0), 1);
    CHECK_IS(sst_bar_break(t->a, &x, 1, 0, SST_BAR_ABORT, 1), 0);
    CHECK_IS(sst_bar_arrive(t->b, &y, &b, 0), SST_EBROKEN);
    CHECK(b.cause == SST_BAR_ABORT && b.rank == 0);
    CHECK_IS(sst_bar_break(t->a, &x, 1, 0, SST_BAR_RESET, 0), SST_EINVAL);
    CHECK_IS(sst_bar_reset(t->a, &x, 1, 0), 1);
}

/* Whoever slept through many epochs hears how its own ended. */
static void sleeper(twin *t) {
    sst_arrival early[12] = {{0}}, a;
    sst_bar bar = open_bar(t->a, "sleep", 2, SST_NO_RANK, 0);
    for (int i = 0; i < 12; i++) { /* each passes; one of its two never looks */
        CHECK_IS(sst_bar_arrive(t->a, &bar, &early[i], 0), SST_EAGAIN);
        a = (sst_arrival){0};
        CHECK_IS(sst_bar_arrive(t->b, &bar, &a, 0), SST_OK);
        if (i == 5)
            CHECK_IS(sst_bar_reset(t->b, &bar, 1, 0), 1); /* of the epoch after it */
    }
    for (int i = 6; i < 12; i++)
        CHECK_IS(sst_bar_arrive(t->a, &bar, &early[i], 0), SST_OK);
    CHECK_IS(sst_bar_arrive(t->a, &bar, &early[5], 0), SST_OK); /* passed, though a reset came right after */
    CHECK_IS(sst_bar_arrive(t->a, &bar, &early[0], 0), SST_EBROKEN); /* more than eight ago: some reset was since */
    CHECK(early[0].cause == SST_BAR_RESET && early[0].rank == SST_PARTIES_MAX);
    for (int resets = 1; resets < 70; resets++) { /* however many there were */
        sst_arrival late = {0};
        CHECK_IS(sst_bar_arrive(t->a, &bar, &late, 0), SST_EAGAIN);
        for (int i = 0; i < resets; i++)
            CHECK_IS(sst_bar_reset(t->b, &bar, 1, 0), 1);
        CHECK_IS(sst_bar_arrive(t->a, &bar, &late, 0), SST_EBROKEN);
        CHECK_IS(late.cause, SST_BAR_RESET);
    }
    sst_arrival passed = {0};
    CHECK_IS(sst_bar_arrive(t->a, &bar, &passed, 0), SST_EAGAIN);
    for (int i = 0; i < 40; i++) { /* no reset since: all of them passed */
        a = (sst_arrival){0};
        CHECK_IS(sst_bar_arrive(t->b, &bar, &a, 0), SST_OK);
        a = (sst_arrival){0};
        CHECK_IS(sst_bar_arrive(t->b, &bar, &a, 0), SST_EAGAIN);
    }
    CHECK_IS(sst_bar_arrive(t->a, &bar, &passed, 0), SST_OK);
    CHECK_IS(sst_bar_reset(t->a, &bar, 1, 0), 1);
}

/* A bit of an older epoch counts for nothing, also where all but one epoch in between had only resets. */
static void stale(twin *t) {
    sst_arrival a = {0}, b = {0};
    sst_bar x = open_bar(t->a, "stale", 2, 0, 0), y = open_bar(t->b, "stale", 2, 1, 0);
    CHECK_IS(sst_bar_arrive(t->a, &x, &a, 0), SST_EAGAIN);
    for (int i = 0; i < 40; i++)
        CHECK_IS(sst_bar_reset(t->a, &x, 1, 0), 1);
    CHECK_IS(info(t->a, &x).arrived, 0);
    CHECK_IS(sst_bar_arrive(t->b, &y, &b, 0), SST_EAGAIN);
    CHECK_IS(sst_bar_arrive(t->a, &x, &a, 0), SST_EBROKEN);
}

/* -- who is missing -------------------------------------------------------------------------------------------------- */
static void people(twin *t) {
    sst_seat seats[5];
    sst_arrival a = {0};
    sst_seg *gone = attach(t->fd), *left = attach(t->fd);
    CHECK_IS(sst_rank_register(t->a, 10), SST_OK);
    CHECK_IS(sst_rank_register(left, 13), SST_OK);
    sst_bar x = open_bar(t->a, "people", 5, 0, 11), y = open_bar(t->b, "people", 5, 1, 0);
    sst_bar z = open_bar(gone, "people", 5, 2, 0), v = open_bar(left, "people", 5, 3, 14);
    CHECK_IS(sst_bar_seats(t->a, &x, 0, seats), SST_OK);
    for (int i = 0; i < 5; i++) /* to open it may be for somebody else: only who has a rank has a name there */
        CHECK_IS(seats[i].state, i == 0 || i == 3 ? SST_SEAT_LIVE : SST_SEAT_UNKNOWN);
    sst_arrival first[3] = {{0}};
    CHECK_IS(sst_bar_arrive(t->a, &x, &first[0], 0), SST_EAGAIN);
    CHECK_IS(sst_bar_arrive(gone, &z, &first[1], 0), SST_EAGAIN);
    CHECK_IS(sst_bar_arrive(left, &v, &first[2], 0), SST_EAGAIN);
    CHECK_IS(sst_bar_reset(t->a, &x, 1, 0), 1);
    CHECK_IS(sst_bar_arrive(t->b, &y, &a, 0), SST_EAGAIN);
    CHECK_IS(sst_bar_seats(t->a, &x, 1, seats), SST_OK);
    CHECK(seats[0].state == SST_SEAT_LIVE && seats[0].rank == 11 && seats[0].pid == getpid());
    CHECK(seats[1].state == SST_SEAT_ARRIVED && seats[1].rank == 0);
    CHECK(seats[2].state == SST_SEAT_LIVE && seats[2].pid == getpid());
    CHECK(seats[3].state == SST_SEAT_LIVE && seats[3].rank == 14);
    CHECK_IS(seats[4].state, SST_SEAT_UNKNOWN);
    let_go(gone);
    let_go(left);
    CHECK_IS(sst_bar_seats(t->a, &x, 1, seats), SST_OK);
    CHECK_IS(seats[2].state, SST_SEAT_LEFT);
    CHECK_IS(seats[3].state, SST_SEAT_LEFT);
    sst_seg *heir = attach(t->fd), *heir2 = attach(t->fd); /* in the slots of those two */
    CHECK_IS(sst_bar_seats(t->a, &x, 1, seats), SST_OK);
    CHECK(seats[2].state == SST_SEAT_GONE || seats[2].state == SST_SEAT_LEFT); /* never dead */
    CHECK_IS(seats[3].state, SST_SEAT_LEFT); /* a rank is remembered for ever */
    a = (sst_arrival){0};
    CHECK_IS(meet(t->a, &x, soon(), &a), SST_EBROKEN);
    CHECK(a.cause == SST_BAR_LEFT && (a.rank == 3 || a.rank == 2));
    let_go(heir);
    let_go(heir2);
    CHECK_IS(sst_rank_leave(t->a, 10), SST_OK);
    sst_bar none = open_bar(t->a, "unranked", 5, SST_NO_RANK, 0);
    CHECK_IS(sst_bar_seats(t->a, &none, 0, seats), SST_EINVAL);
}

/* A child with a rank takes its seat, or never came to the barrier at all, and is killed; who waits hears of it. */
static void death(int registered, int seated, uint32_t world, uint32_t cause) {
    twin t;
    int fd = new_file(), go[2];
    t.fd = fd;
    CHECK_IS(sst_create(open_again(fd), open_again(fd), 2 * MIB, SST_FUTEX, 0, world, 77, &t.a), SST_OK);
    t.b = attach(fd);
    CHECK_IS(sst_rank_register(t.a, 0), SST_OK);
    CHECK_IS(pipe(go), 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(fd);
        if (registered)
            CHECK_IS(sst_rank_register(s, 1), SST_OK);
        sst_arrival arrival = {0};
        if (seated) {
            sst_bar own = open_bar(s, "death", 2, 1, registered ? 2 : 0);
            CHECK_IS(sst_bar_arrive(s, &own, &arrival, 0), SST_EAGAIN);
        }
        if (cause == SST_BAR_LEFT)
            let_go(s);
        CHECK_IS(write(go[1], "x", 1), 1);
        for (;;)
            (void)pause();
    }
    char c;
    CHECK_IS(read(go[0], &c, 1), 1);
    if (cause != SST_BAR_TIMEOUT) {
        CHECK_IS(kill(pid, SIGKILL), 0);
        CHECK_IS(waitpid(pid, NULL, 0), pid);
    }
    sst_arrival a;
    sst_bar bar = open_bar(t.a, "death", 2, 0, 1);
    uint64_t start = sst_now_ns();
    if (seated)
        CHECK_IS(meet(t.a, &bar, soon(), &a), SST_OK);
    int r = meet(t.a, &bar, cause == SST_BAR_TIMEOUT ? in_ms(300) : soon(), &a);
    if (cause == SST_BAR_TIMEOUT) {
        CHECK_IS(r, SST_ETIMEDOUT);
        CHECK_IS(kill(pid, SIGKILL), 0);
        CHECK_IS(waitpid(pid, NULL, 0), pid);
    } else {
        CHECK_IS(r, SST_EBROKEN);
        CHECK(a.cause == cause && a.rank == 1);
        CHECK_IS(a.pid, cause == SST_BAR_DEAD ? pid : a.pid);
        CHECK(sst_now_ns() - start < 20 * SEC);
        CHECK_IS(sst_bar_reset(t.b, &bar, 1, 0), 1);
        CHECK_IS(sst_bar_arrive(t.a, &bar, &a, 0), SST_EBROKEN); /* the cause outlives the reset */
        CHECK(a.cause == cause && a.rank == 1);
    }
    (void)close(go[0]);
    (void)close(go[1]);
    twin_shut(&t);
}

/* A rank opened the barrier for another party, as a parent does for its children. */
static void opened_for_another(void) {
    twin t;
    sst_seat seats[2];
    twin_open(&t, 2 * MIB, SST_FUTEX);
    sst_seg *parent = attach(t.fd);
    CHECK_IS(sst_rank_register(parent, 7), SST_OK);
    sst_bar bar = open_bar(parent, "others", 2, 1, 8), mine = open_bar(t.a, "others", 2, 0, 0);
    CHECK_IS(bar.rank, 1);
    let_go(parent);
    CHECK_IS(sst_bar_seats(t.a, &mine, 0, seats), SST_OK);
    CHECK_IS(seats[1].state, SST_SEAT_UNKNOWN);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(t.fd);
        CHECK_IS(sst_rank_register(s, 8), SST_OK);
        (void)open_bar(s, "killed", 2, 1, 9);
        _exit(0); /* without leaving */
    }
    CHECK_IS(waitpid(pid, NULL, 0), pid);
    sst_arrival a;
    mine = open_bar(t.a, "killed", 2, 0, 0);
    CHECK_IS(meet(t.a, &mine, soon(), &a), SST_EBROKEN);
    CHECK(a.cause == SST_BAR_DEAD && a.rank == 1 && a.pid == pid);
    twin_shut(&t);
}

/* The dead arrived first: that counts, and the next epoch fails. Its heir may come in its place. */
static void death_after_arrival(void) {
    twin t;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    CHECK_IS(sst_rank_register(t.a, 0), SST_OK);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(t.fd);
        sst_arrival a = {0};
        CHECK_IS(sst_rank_register(s, 1), SST_OK);
        sst_bar bar = open_bar(s, "after", 2, 1, 2);
        _exit(sst_bar_arrive(s, &bar, &a, 0) == SST_EAGAIN ? 0 : 1); /* without leaving: a death */
    }
    int status;
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK_IS(status, 0);
    sst_arrival a;
    sst_bar bar = open_bar(t.a, "after", 2, 0, 1);
    CHECK_IS(meet(t.a, &bar, soon(), &a), SST_OK);
    CHECK_IS(meet(t.a, &bar, soon(), &a), SST_EBROKEN);
    CHECK(a.cause == SST_BAR_DEAD && a.rank == 1 && a.pid == pid);
    CHECK_IS(sst_rank_register(t.b, 1), SST_OK);
    sst_bar heir = open_bar(t.b, "after", 2, 1, 2);
    CHECK_IS(sst_bar_reset(t.b, &heir, 1, 0), 1);
    sst_arrival b = {0};
    a = (sst_arrival){0};
    CHECK_IS(sst_bar_arrive(t.b, &heir, &b, 0), SST_EAGAIN);
    CHECK_IS(sst_bar_arrive(t.a, &bar, &a, 0), SST_OK);
    CHECK_IS(sst_bar_arrive(t.b, &heir, &b, 0), SST_OK);
    twin_shut(&t);
}

/* A forked child stands in for its parent, whose rank lives on when it ends; where nobody had that seat it sits there. */
static void forked(twin *t) {
    CHECK_IS(sst_rank_register(t->a, 0), SST_OK);
    sst_bar bar = open_bar(t->a, "forked", 2, 0, 1), other = open_bar(t->b, "forked", 2, 1, 0);
    sst_bar none = open_bar(t->a, "free", 2, 0, 0), none_other = open_bar(t->b, "free", 2, 1, 0);
    sst_arrival b = {0}, c = {0};
    CHECK_IS(sst_bar_arrive(t->b, &other, &b, 0), SST_EAGAIN);
    CHECK_IS(sst_bar_arrive(t->b, &none_other, &c, 0), SST_EAGAIN);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_arrival a;
        int r = meet(t->a, &bar, soon(), &a), q = meet(t->a, &none, soon(), &a);
        _exit(r == SST_OK && q == SST_OK ? 0 : 1); /* without a word */
    }
    int status;
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK_IS(status, 0);
    CHECK_IS(sst_bar_arrive(t->b, &other, &b, 0), SST_OK);
    sst_seat seats[2];
    CHECK_IS(sst_bar_seats(t->b, &other, 1, seats), SST_OK);
    CHECK(seats[0].state == SST_SEAT_LIVE && seats[0].rank == 1);
    CHECK_IS(meet(t->b, &other, in_ms(300), &b), SST_ETIMEDOUT); /* long enough for a look at who is dead */
    CHECK_IS(sst_bar_seats(t->b, &none_other, 1, seats), SST_OK);
    CHECK(seats[0].state == SST_SEAT_DEAD && seats[0].pid == pid);
    CHECK_IS(sst_rank_leave(t->a, 0), SST_OK);
}

/* -- parks ----------------------------------------------------------------------------------------------------------- */
typedef struct {
    sst_seg *s;
    sst_bar bar;
    sst_arrival a;
    int result;
    pthread_t id;
} sitter;

static void *sit_there(void *arg) {
    sitter *w = arg;
    do
        w->result = sst_bar_wait(w->s, &w->bar, &w->a, soon(), 20 * SEC);
    while (w->result == SST_EAGAIN || w->result == SST_EINTR);
    return NULL;
}

static uint32_t parked(sst_seg *s, sst_waiter *out) {
    int n = sst_waiters(s, out, 8);
    CHECK(n >= 0);
    return (uint32_t)n;
}

/* Parked for 20 s, and woken at once: by the pass, by a break, by a reset, by a close. */
static void wakes(twin *t) {
    for (int how = 0; how < 4; how++) {
        char key[] = "wake0";
        key[4] = (char)('0' + how);
        sst_seg *s = attach(t->fd);
        sitter w = {.s = s, .bar = open_bar(s, key, 2, 0, 0)};
        sst_bar other = open_bar(t->a, key, 2, 1, 0);
        CHECK_IS(pthread_create(&w.id, NULL, sit_there, &w), 0);
        sst_waiter seen[8];
        while (parked(t->a, seen) == 0)
            nap(1);
        CHECK(seen[0].note_len == 5 && memcmp(seen[0].note, key, 5) == 0 && !seen[0].dead);
        nap(20); /* only so that it is more often parked than about to: either way it must end */
        uint64_t at = sst_now_ns();
        sst_arrival a = {0};
        CHECK_IS(how == 0   ? sst_bar_arrive(t->a, &other, &a, 0)
                 : how == 1 ? sst_bar_break(t->a, &other, 1, 0, SST_BAR_ABORT, 1) - 1
                 : how == 2 ? sst_bar_reset(t->a, &other, 1, 0) - 1
                            : sst_close(s),
                 SST_OK);
        CHECK_IS(pthread_join(w.id, NULL), 0);
        CHECK(sst_now_ns() - at < 15 * SEC);
        CHECK_IS(w.result, how == 0 ? SST_OK : how == 3 ? SST_ECLOSED : SST_EBROKEN);
        let_go(s);
        CHECK_IS(parked(t->a, seen), 0);
    }
}

int main(void) {
    EACH_ENGINE(engine) {
        twin t;
        twin_open(&t, 4 * MIB, engine);
        opening(&t);
        breaks(&t);
        sleeper(&t);
        stale(&t);
        people(&t);
        forked(&t);
        wakes(&t);
        epochs(&t, "unranked", 5, 0, 1);
        epochs(&t, "turns", MEMBERS, 0, ROUNDS);
        epochs(&t, "ranked turns", MEMBERS, 1, ROUNDS);
        epochs(&t, "two words", 40, 1, 50);
        epochs(&t, "two words, no ranks", 40, 0, 50);
        twin_shut(&t);
        (void)printf("%s: %d epochs of %d, 100 of 40\n", engine_name(engine), 4 * ROUNDS, MEMBERS);
    }
    death(1, 1, 0, SST_BAR_DEAD);
    death(1, 0, 0, SST_BAR_DEAD); /* never came to the barrier: the rank of that number, in a barrier of all ranks */
    death(1, 0, 2, SST_BAR_DEAD);
    death(1, 0, 3, SST_BAR_TIMEOUT); /* not of all ranks: nobody is taken for dead */
    death(0, 1, 0, SST_BAR_DEAD);    /* a process without a rank */
    death(1, 1, 0, SST_BAR_LEFT);
    death(1, 0, 0, SST_BAR_LEFT);
    death(0, 1, 0, SST_BAR_LEFT);
    death(0, 0, 0, SST_BAR_TIMEOUT);
    death_after_arrival();
    opened_for_another();
    return 0;
}
