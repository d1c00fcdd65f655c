/* fault_waiters.c -- who waits for what a killed process was about to do, or for the lock that it held.
 *
 * First: for each scenario of the table that somebody may wait for, and n = 1, 2, ...: processes park, then the child is
 * killed at its n-th store. If what it did had happened (reached in memory, whether repaired or not) the wait ends with
 * nobody's help; if not, the survivor's own verb ends it. No post, no bump and no wake of the dead is needed for that.
 *
 * Second: the child is stopped at its n-th store instead. While it holds the lock two processes park on that, and are
 * still parked while it is stopped: a stopped holder is not robbed. Then it is killed, and both verbs come through. */
#include "judge.h"

#include <inttypes.h>

#define SLICE  (20 * MS)   /* of the waits here; Python's is 50 ms */
#define WITHIN (30 * SEC) /* a wait that has not ended by then hangs */

static int stop; /* in a child: stop where the fault build would kill */
static const char *here_name;
static uint64_t here_n, kills, alone, helped;
static double took_ms[8192]; /* from the closing of each victim's files, until the first waiter had ended */
static size_t times;

/* Takes the place of the libc's in this program: fault.c calls it. */
int raise(int sig) { return kill(getpid(), stop && sig == SIGKILL ? SIGSTOP : sig); }

static void say_where(void) {
    if (here_name)
        (void)fprintf(stderr, "in '%s', killed at %llu\n", here_name, (unsigned long long)here_n);
}

/* -- those who wait --------------------------------------------------------------------------------------------------- */
static void wait_so(sst_seg *s, int waits) {
    uint32_t waiter = 0, arrived = 1;
    int64_t count = 0;
    uint64_t deadline = soon();
    int r;
    do
        r = waits == FOR_KEY      ? sst_wait(s, SST_USER, KEY, 1, &waiter, 0, deadline, SLICE, SST_KEY_ONLY)
            : waits == AT_BARRIER ? sst_barrier(s, SST_USER, KEY, 1, 2, &arrived, &count, &waiter, 0, deadline, SLICE)
                                  : sst_queue_pop(s, SST_USER, KEY, 1, 1, answer, sizeof answer, &answer_len, &waiter,
                                                  0, deadline, SLICE, 0);
    while (r == SST_EAGAIN);
    CHECK_IS(r, SST_OK);
}

static void put_it(sst_seg *s, int unused) {
    (void)unused;
    CHECK_IS(put(s, KEY, "waiter"), SST_OK);
}

static pid_t start(int fd, void (*work)(sst_seg *s, int waits), int waits) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        here_name = NULL; /* the parent says where */
        sst_seg *s = attach(fd);
        work(s, waits);
        CHECK_IS(sst_leave(s), SST_OK);
        _exit(0);
    }
    return pid;
}

/* It stands in a waiter slot, with a ticket where there is a line or a barrier, and sleeps. */
static int parked(sst_seg *s, pid_t pid, int waits) {
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++) {
        const sst_waiter_slot *w = sst_waiter_at(s, i);
        uint32_t owner = ld32_acquire(&w->owner);
        if (owner == 0 || (owner & SST_WIPING) || ld64(&w->since_ns) == 0 ||
            ld32(&sst_peer_at(s, SST_OWNER_SLOT(owner))->pid) != (uint32_t)pid)
            continue;
        return (waits == FOR_KEY || ld64(&w->ticket) != 0) && sleeps(pid);
    }
    return 0;
}

static void await(const char *what, int reached, uint64_t since) {
    if (!reached && sst_now_ns() - since > WITHIN) {
        (void)fprintf(stderr, "%s: not within %llu s\n", what, (unsigned long long)(WITHIN / SEC));
        CHECK(0);
    }
    nap(0);
}

static void until_parked(sst_seg *s, pid_t pid, int waits) {
    for (uint64_t since = sst_now_ns(); !parked(s, pid, waits);)
        await("parked", 0, since);
}

/* One of the two ends well, in time; its pid becomes 0. The milliseconds that took. */
static double ends(pid_t pids[2], uint64_t since) {
    for (;;) {
        for (int i = 0; i < 2; i++) {
            int status = 0;
            if (pids[i] == 0 || waitpid(pids[i], &status, WNOHANG) == 0)
                continue;
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            pids[i] = 0;
            return (double)(sst_now_ns() - since) / 1e6;
        }
        await("a waiter ended", 0, since);
    }
}

/* When the victim's files are closed, its locks with them: its line, which only it can write to, has come to its end. It
 * may be some time before its parent can reap it. */
static uint64_t closed(const victim *v) {
    char rest[16];
    ssize_t n;
    do
        n = read(v->line, rest, sizeof rest);
    while (n > 0); /* the count of one that came through */
    CHECK_IS(n, 0);
    return sst_now_ns();
}

static void note(double ms) {
    if (times < sizeof took_ms / sizeof *took_ms)
        took_ms[times++] = ms;
}

/* -- did it happen? ----------------------------------------------------------------------------------------------------- */
/* What the table reaches, without a lock: nobody but a repair and the waiters is at work, and a repair moves none of it. */
static int reached(sst_seg *s, uint32_t kind) {
    sst_key k;
    sst_place p;
    CHECK_IS(sst_key_make(s, SST_USER, KEY, 1, &k), SST_OK);
    int r = sst_table_find(s, &k, kind, &p);
    return r == SST_OK && p.entry != NULL;
}

static int in_the_line(sst_seg *s) {
    int n = 0;
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++)
        n += ld64(&sst_waiter_at(s, i)->ticket) != 0;
    return n;
}

static int happened(sst_seg *s, int waits, int lined) {
    if (waits == BEHIND)
        return 1; /* the item is there, and whoever was before it is gone */
    if (waits == FOR_KEY)
        return reached(s, SST_KIND_KEY);
    if (waits == AT_BARRIER) {
        sst_key k;
        sst_place p;
        CHECK_IS(sst_key_make(s, SST_USER, KEY, 1, &k), SST_OK);
        CHECK_IS(sst_table_find(s, &k, SST_KIND_KEY, &p), SST_OK);
        return ld64(&p.entry->num) == 2;
    }
    if (reached(s, SST_KIND_QUEUE))
        return 1;
    sst_key k; /* not there, or gone already with a place in the line: a pop takes both under the lock */
    CHECK_IS(sst_key_make(s, SST_USER, KEY, 1, &k), SST_OK);
    CHECK_IS(sst_enter(s, k.stripe, soon(), 0), SST_OK);
    int r = reached(s, SST_KIND_QUEUE) || in_the_line(s) < lined;
    sst_exit(s, k.stripe, 0);
    return r;
}

/* What the survivor does where the dead did not, or for the second in the line. */
static void help(sst_seg *s, const scenario *sc) {
    if (sc->waits == IN_LINE || sc->waits == BEHIND)
        push_one(s);
    else if (sc->waits == FOR_KEY)
        set_small(s); /* the dead's own verb may be one that declines where there is something to repair */
    else
        sc->verb(s);
}

/* 1: killed at n. */
static int wakes(const scenario *sc, uint32_t engine, uint64_t n) {
    twin t;
    pid_t pids[2] = {0, 0};
    set_up(&t, sc, engine);
    victim v = victim_start(t.fd, sc, n);
    int many = sc->waits == IN_LINE ? 2 : 1;
    for (int i = 0; i < many; i++) {
        pids[i] = start(t.fd, wait_so, sc->waits);
        until_parked(t.a, pids[i], sc->waits);
    }
    if (sc->waits == BEHIND) { /* it looks, and stays: the item is for the one before it */
        push_one(t.a);
        until_parked(t.a, pids[0], sc->waits);
        CHECK_IS(waitpid(pids[0], NULL, WNOHANG), 0);
    }
    victim_go(&v);
    uint64_t since = closed(&v);
    int dead = victim_end(&v, NULL), ended = 0;
    kills += (uint64_t)dead;
    if (happened(t.b, sc->waits, many)) {
        note(ends(pids, since));
        ended = 1;
        alone++;
    }
    for (; ended < many; ended++) {
        since = sst_now_ns();
        help(t.b, sc);
        (void)ends(pids, since);
        helped++;
    }
    CHECK_IS(queue_len(t.a, KEY), 0);
    twin_shut(&t);
    return dead;
}

/* -- on the lock -------------------------------------------------------------------------------------------------------- */
/* 1: it was stopped at its n-th store; 0: it came through. */
static int on_the_lock(const scenario *sc, uint32_t engine, uint64_t n, uint64_t *survived) {
    twin t;
    sst_key k;
    int status = 0;
    set_up(&t, sc, engine);
    stop = 1;
    victim v = victim_start(t.fd, sc, n);
    stop = 0;
    victim_go(&v);
    CHECK_IS(waitpid(v.pid, &status, WUNTRACED), v.pid);
    if (!WIFSTOPPED(status)) {
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        (void)close(v.go);
        (void)close(v.line);
        sst_waiter_release(t.a, &standing);
        twin_shut(&t);
        return 0;
    }
    CHECK_IS(sst_key_make(t.a, SST_USER, KEY, 1, &k), SST_OK);
    const uint32_t *word = &sst_stripe_at(t.a, k.stripe)->lock;
    uint32_t owner = ld32(word) & SST_OWNER_MASK;
    if (owner != 0 && ld32(&sst_peer_at(t.a, SST_OWNER_SLOT(owner))->pid) != (uint32_t)v.pid)
        owner = 0; /* it has not come so far */
    pid_t pids[2] = {0, 0};
    for (int i = 0; i < 2 && owner != 0; i++) {
        pids[i] = start(t.fd, put_it, 0);
        for (uint64_t since = sst_now_ns(); !sleeps(pids[i]) || !(ld32(word) & SST_WAITERS);)
            await("parked on the lock", 0, since);
    }
    if (owner != 0) {
        CHECK_IS(waitpid(-1, NULL, WNOHANG), 0);
        CHECK_IS(ld32(word), owner | SST_WAITERS);
    }
    CHECK_IS(kill(v.pid, SIGKILL), 0);
    uint64_t since = closed(&v);
    CHECK_IS(waitpid(v.pid, NULL, 0), v.pid);
    (void)close(v.go);
    (void)close(v.line);
    kills += owner != 0;
    if (owner != 0) {
        note(ends(pids, since)); /* the first of them has repaired */
        (void)ends(pids, since);
        CHECK(holds(t.b, KEY, "waiter"));
    }
    sst_waiter_release(t.a, &standing);
    twin_shut(&t);
    *survived += owner != 0;
    return 1;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* -- all of them --------------------------------------------------------------------------------------------------- */
typedef struct {
    const char *what;
    uint64_t survived;
} tally;

static void begin(tally *sums, uint32_t engine) {
    kills = alone = helped = times = 0;
    proof("began", sums->what, "engine=%s", engine_name(engine));
}

static void show(const tally *sums, uint32_t engine) {
    CHECK(times > 0);
    qsort(took_ms, times, sizeof *took_ms, by_size);
    char ends[80] = "";
    if (alone + helped > 0)
        (void)snprintf(ends, sizeof ends, "\tended alone=%" PRIu64 "\tby the survivor's verb=%" PRIu64, alone, helped);
    proof("ended", sums->what,
          "engine=%s\tkills=%" PRIu64 "\tsurvived=%" PRIu64 "\tfirst through after, median ms=%.1f\tmax ms=%.1f%s",
          engine_name(engine), kills, sums->survived, took_ms[times / 2], took_ms[times - 1], ends);
    (void)printf("%s, %s: %" PRIu64
                 " kills survived; from the death until the first was through %.1f ms in the median, "
                 "%.1f at most%s\n",
                 sums->what, engine_name(engine), sums->survived, took_ms[times / 2], took_ms[times - 1], ends);
    (void)fflush(stdout);
}

static void beside_waiters(const scenario *sc, uint32_t engine, tally *sums) {
    here_name = sc->name;
    for (here_n = first_of(engine); sc->waits != NOBODY && wakes(sc, engine, here_n); here_n += stride())
        sums->survived++;
}

static void beside_the_parked(const scenario *sc, uint32_t engine, uint64_t first, uint64_t step, tally *sums) {
    here_name = sc->name;
    for (here_n = first; !sc->in_attach && on_the_lock(sc, engine, here_n, &sums->survived); here_n += step)
        ;
}

/* fault_waiters [ENGINE]: without one, both. */
int main(int argc, char **argv) {
    memset(big, 'B', BIG);
    CHECK_IS(atexit(say_where), 0);
    const uint64_t step = getenv("SST_LONG") ? 1 : 13;
    const size_t n = sizeof scenarios / sizeof *scenarios;
    EACH_ENGINE(engine) {
        if (argc > 1 && strcmp(argv[1], engine_name(engine)) != 0)
            continue;
        tally waits = {.what = "core: beside those who wait"},
              locks = {.what = "core: holders, two parked on the lock"};
        begin(&waits, engine);
        for (size_t i = 0; i < n; i++)
            beside_waiters(&scenarios[i], engine, &waits);
        show(&waits, engine);
        begin(&locks, engine);
        for (size_t i = 0; i < n; i++)
            beside_the_parked(&scenarios[i], engine, 1 + i % step, step, &locks);
        show(&locks, engine);
    }
    here_name = NULL;
    return 0;
}
