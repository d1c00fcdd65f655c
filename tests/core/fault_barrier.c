/* fault_barrier.c -- a process killed at each of its stores at a reusable barrier.
 *
 * For each scenario and n = 1, 2, ...: a barrier of three ranks, one of them the child's; it is killed at its n-th store,
 * while another process is parked there where the scenario says so. Then
 *   - the epoch is open, passed or broken, as the scenario allows, and never anything else,
 *   - who is parked hears how it ended with nobody's help: it passes if all had arrived, and is told of the death if not,
 *   - sst_verify finds nothing, the survivors and an heir of the dead rank go on meeting, and nothing has leaked. */
#include "scenarios.h"

#include <inttypes.h>

#define SLICE (20 * MS)

enum { OPEN = 1, PASSED = 2, BROKEN = 4, RESET = 8 }; /* what may have become of the epoch */

typedef struct {
    scenario sc;
    int may_be;
    int parked; /* a process waits there with rank 0 meanwhile */
} bar_scenario;

static const char *here_name;
static uint64_t here_n;

static void say_where(void) {
    if (here_name)
        (void)fprintf(stderr, "in '%s', killed at %llu\n", here_name, (unsigned long long)here_n);
}

static sst_bar open_as(sst_seg *s, int32_t rank) {
    sst_bar bar;
    CHECK_IS(sst_bar_open(s, SST_USER, KEY, 1, 3, rank, 0, soon(), &bar), SST_OK);
    return bar;
}

static int come(sst_seg *s, const sst_bar *bar, uint64_t deadline_ns, sst_arrival *a) {
    int r;
    *a = (sst_arrival){0};
    do
        r = sst_bar_wait(s, bar, a, deadline_ns, SLICE);
    while (r == SST_EAGAIN);
    return r;
}

static sst_bar_info info(sst_seg *s, const sst_bar *bar) {
    sst_bar_info i;
    CHECK_IS(sst_bar_look(s, bar, &i), SST_OK);
    return i;
}

/* -- before ---------------------------------------------------------------------------------------------------------- */
static sst_bar child_bar;
static void sits(sst_seg *s) { /* a rank takes the seat of its number when it opens the barrier */
    CHECK_IS(sst_rank_register(s, 2), SST_OK);
    CHECK_IS(sst_bar_open(s, SST_USER, KEY, 1, 3, 2, 3, soon(), &child_bar), SST_OK);
}

static void arrives(sst_seg *s, int32_t rank) {
    sst_bar bar = open_as(s, rank);
    sst_arrival a = {0};
    CHECK_IS(sst_bar_arrive(s, &bar, &a, 0), SST_EAGAIN);
}
static void one_came(sst_seg *s) { arrives(s, 1); }
static void two_came(sst_seg *s) {
    arrives(s, 0);
    arrives(s, 1);
}
/* Rank 1 took its seat and died. */
static void one_died(sst_seg *s) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *own = NULL;
        char path[64];
        (void)snprintf(path, sizeof path, "/proc/self/fd/%d", s->map_fd);
        CHECK_IS(sst_attach(open(path, O_RDWR | O_CLOEXEC), open(path, O_RDWR | O_CLOEXEC), &own), SST_OK);
        sst_bar bar;
        CHECK_IS(sst_rank_register(own, 1), SST_OK);
        CHECK_IS(sst_bar_open(own, SST_USER, KEY, 1, 3, 1, 2, soon(), &bar), SST_OK);
        _exit(0); /* without leaving */
    }
    CHECK_IS(waitpid(pid, NULL, 0), pid);
}
static void broken(sst_seg *s) {
    sst_bar bar = open_as(s, 1);
    CHECK_IS(sst_bar_break(s, &bar, 1, 0, SST_BAR_ABORT, 1), 1);
}

/* -- what the child does --------------------------------------------------------------------------------------------- */
static void open_it(sst_seg *s) { (void)open_as(s, 2); }
static void arrive_one(sst_seg *s) {
    sst_arrival a = {0};
    CHECK_IS(sst_bar_arrive(s, &child_bar, &a, 0), SST_EAGAIN);
}
static void arrive_last(sst_seg *s) {
    sst_arrival a = {0};
    CHECK_IS(sst_bar_arrive(s, &child_bar, &a, 0), SST_OK);
}
static void wait_out_here(sst_seg *s) {
    sst_arrival a;
    CHECK_IS(come(s, &child_bar, in_ms(2), &a), SST_ETIMEDOUT);
}
static void wait_and_see(sst_seg *s) { /* a slice, after which it looks who died */
    sst_arrival a;
    CHECK_IS(come(s, &child_bar, soon(), &a), SST_EBROKEN);
    CHECK(a.cause == SST_BAR_DEAD && a.rank == 1);
}
static void abort_it(sst_seg *s) { CHECK(sst_bar_break(s, &child_bar, 1, 0, SST_BAR_ABORT, 2) >= 0); }
static void reset_it(sst_seg *s) { CHECK_IS(sst_bar_reset(s, &child_bar, 1, 0), 1); }
static void nudge_it(sst_seg *s) { /* parks, is told to close, leaves */
    sst_arrival a = {0};
    CHECK_IS(sst_bar_wait(s, &child_bar, &a, soon(), 2 * MS), SST_EAGAIN);
    CHECK_IS(sst_wake_self(s), SST_OK);
    sst_waiter_release(s, &a.waiter);
}

static const bar_scenario paths[] = {
    {{"barrier: open, new", nothing, open_it, 0, MIB * 2, NULL, NOBODY}, OPEN, 0},
    {{"barrier: open, there", one_came, open_it, 0, MIB * 2, NULL, NOBODY}, OPEN, 0},
    {{"barrier: arrive", one_came, arrive_one, 0, MIB * 2, sits, NOBODY}, OPEN, 0},
    {{"barrier: arrive last, nobody parked", two_came, arrive_last, 0, MIB * 2, sits, NOBODY}, OPEN | PASSED, 0},
    {{"barrier: arrive last, one parked", one_came, arrive_last, 0, MIB * 2, sits, NOBODY}, PASSED | BROKEN, 1},
    {{"barrier: wait, timed out", one_came, wait_out_here, 0, MIB * 2, sits, NOBODY}, OPEN | BROKEN, 0},
    {{"barrier: wait, find a death", one_died, wait_and_see, 0, MIB * 2, sits, NOBODY}, OPEN | BROKEN, 0},
    {{"barrier: abort, one parked", nothing, abort_it, 0, MIB * 2, sits, NOBODY}, BROKEN, 1},
    {{"barrier: reset, one parked", nothing, reset_it, 0, MIB * 2, sits, NOBODY}, RESET | BROKEN, 1},
    {{"barrier: reset, broken", broken, reset_it, 0, MIB * 2, sits, NOBODY}, RESET | BROKEN, 0},
    {{"barrier: wait, nudged", nothing, nudge_it, 0, MIB * 2, sits, NOBODY}, OPEN, 0},
};

/* -- who is parked --------------------------------------------------------------------------------------------------- */
static void until_parked(sst_seg *s) {
    for (uint64_t since = sst_now_ns();; nap(0)) {
        sst_waiter w[4];
        if (sst_waiters(s, w, 4) == 1 && !w[0].dead)
            return;
        CHECK(sst_now_ns() - since < 30 * SEC);
    }
}

/* Ends with what the wait did, by its exit status: 0 passed, else the cause of the break. */
static pid_t park_one(twin *t) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        here_name = NULL; /* the parent says where */
        sst_seg *s = attach(t->fd);
        sst_bar bar = open_as(s, 0);
        sst_arrival a;
        int r = come(s, &bar, soon(), &a);
        CHECK(r == SST_OK || r == SST_EBROKEN);
        CHECK_IS(sst_leave(s), SST_OK);
        _exit(r == SST_OK ? 0 : 100 + (int)a.cause);
    }
    until_parked(t->b);
    return pid;
}

static int end_of(pid_t pid) {
    int status;
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) >= 100));
    return WEXITSTATUS(status);
}

/* -- afterwards ------------------------------------------------------------------------------------------------------ */
static void go_on(twin *t) {
    sst_seg *views[3] = {t->a, t->b, attach(t->fd)};
    sst_bar bars[3];
    for (int i = 0; i < 3; i++)
        bars[i] = open_as(views[i], i); /* the last one is the dead's heir */
    (void)sst_bar_reset(t->a, &bars[0], 1, 0);
    for (int round = 0; round < 3; round++) {
        sst_arrival a[3] = {{0}};
        for (int i = 0; i < 3; i++)
            CHECK_IS(sst_bar_arrive(views[i], &bars[i], &a[i], 0), i == 2 ? SST_OK : SST_EAGAIN);
        for (int i = 0; i < 2; i++)
            CHECK_IS(sst_bar_arrive(views[i], &bars[i], &a[i], 0), SST_OK);
    }
    let_go(views[2]);
}

static void judge(twin *t, const bar_scenario *b, uint32_t epoch, pid_t parked) {
    clean(t->b);
    sst_bar bar = open_as(t->b, 0); /* not 1: that may be the one who died */
    sst_bar_info found = info(t->b, &bar);
    sst_waiter w[4];
    if (parked != 0) {
        int r = end_of(parked); /* it ended with nobody's help, so found may be older than that */
        found = info(t->b, &bar);
        CHECK((r == 0) == (found.epoch == epoch + 1 && (b->may_be & PASSED)));
        CHECK(r == 0 || r == 100 + SST_BAR_DEAD || r == 100 + SST_BAR_TIMEOUT || r == 100 + SST_BAR_ABORT ||
              (r == 100 + SST_BAR_RESET && (b->may_be & RESET)));
    }
    int is = found.epoch == epoch ? (found.broken ? BROKEN : OPEN) : b->may_be & RESET ? RESET : PASSED;
    CHECK(found.epoch == epoch || (found.epoch == epoch + 1 && !found.broken));
    CHECK(is & b->may_be);
    int dead = sst_waiters(t->b, w, 4);
    CHECK(dead == 0 || (dead == 1 && w[0].dead && w[0].note_len == 1 && w[0].note[0] == KEY[0]));
    go_on(t);
    twin_shut(t);
}

/* What came of one scenario: stores of the verb, uninterrupted; the killed; those of them whose end was judged, too. */
typedef struct {
    uint64_t stores, kills, survived;
} tally;

static int once(const bar_scenario *b, uint32_t engine, uint64_t n, tally *sums) {
    twin t;
    set_up(&t, &b->sc, engine);
    victim v = victim_start(t.fd, &b->sc, n);
    pid_t parked = b->parked ? park_one(&t) : 0;
    uint32_t epoch = 0;
    if (b->sc.setup != nothing || parked != 0) {
        sst_bar bar = open_as(t.b, 0);
        epoch = info(t.b, &bar).epoch;
    }
    victim_go(&v);
    int killed = victim_end(&v, &sums->stores);
    sums->kills += (uint64_t)killed;
    judge(&t, b, epoch, parked);
    sums->survived += (uint64_t)killed;
    return killed;
}

static void enumerate(const bar_scenario *b, uint32_t engine) {
    char what[128];
    tally sums = {0};
    (void)snprintf(what, sizeof what, "core: %s", b->sc.name);
    proof("began", what, "engine=%s", engine_name(engine));
    here_name = b->sc.name;
    here_n = 1;
    while (once(b, engine, here_n, &sums))
        here_n++; /* in the short form too: they are few */
    here_name = NULL;
    CHECK(sums.survived > 0);
    proof("ended", what, "engine=%s\tstores=%" PRIu64 "\tkills=%" PRIu64 "\tsurvived=%" PRIu64, engine_name(engine),
          sums.stores, sums.kills, sums.survived);
    (void)printf("%-40s %s: %" PRIu64 " kills survived\n", b->sc.name, engine_name(engine), sums.survived);
}

int main(int argc, char **argv) {
    CHECK_IS(atexit(say_where), 0);
    EACH_ENGINE(engine) {
        if (argc > 1 && strcmp(argv[1], engine_name(engine)) != 0)
            continue;
        for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
            enumerate(&paths[i], engine);
    }
    return 0;
}
