/* fault_pairs.c -- two deaths at the same time, and two more in what comes of them.
 *
 *   1. the first is stopped at its n-th store of a path of the table, or comes through
 *   2. the second, in a verb of its own, is stopped at its m-th store, or parks on a lock that the first holds, or comes
 *      through
 *   3. both are killed, in either order: so their locks, blocks in hand, records and places are there at once
 *   4. a third is killed at some store of the repair
 *   5. each key is as before, or as the first verb, the second, or the second after the first leaves it: the first was
 *      stopped for good before the second began, so there is no other order. `verify` finds nothing
 *   6. a fourth is killed at some store of doing every verb; the survivors do every verb, and `verify` finds nothing
 *
 * n, m and the others come from a generator with a fixed seed: a run that fails fails again. */
#include "judge.h"

#include <inttypes.h>

#define WITHIN (30 * SEC)

static int stop; /* in a child: stop where the fault build would kill */

/* Takes the place of the libc's in this program: fault.c calls it. */
int raise(int sig) { return kill(getpid(), stop && sig == SIGKILL ? SIGSTOP : sig); }

/* -- the second's verbs: each does what it can with whatever the first left ------------------------------------------ */
static void set_other(sst_seg *s) { CHECK_IS(put(s, OTHER, "theirs"), SST_OK); }
static void set_other_large(sst_seg *s) { CHECK_IS(put(s, OTHER, big), SST_OK); }
static void append_other(sst_seg *s) { CHECK_IS(append(s, OTHER, "++"), SST_OK); }
static void delete_any(sst_seg *s) { CHECK(drop(s, KEY) >= 0); }
static void add_any(sst_seg *s) {
    int r = plus(s, KEY, 1, &sum);
    CHECK(r == SST_OK || r == SST_ENOTINT);
}
static void pop_any(sst_seg *s) {
    int r = pop(s, KEY, answer, sizeof answer);
    CHECK(r == SST_OK || r == SST_ENOENT);
}
static const scenario seconds[] = {
    {"set", nothing, set_small, 0, 0, NULL, NOBODY},
    {"set large", nothing, set_large, 0, 0, NULL, NOBODY},
    {"set another", nothing, set_other, 0, 0, NULL, NOBODY},
    {"set another, large", nothing, set_other_large, 0, 0, NULL, NOBODY},
    {"append to another", nothing, append_other, 0, 0, NULL, NOBODY},
    {"add", nothing, add_any, 0, 0, NULL, NOBODY},
    {"delete", nothing, delete_any, 0, 0, NULL, NOBODY},
    {"push", nothing, push_one, 0, 0, NULL, NOBODY},
    {"pop", nothing, pop_any, 0, 0, NULL, NOBODY},
    {"multi_set", nothing, set_many, 0, 0, NULL, NOBODY},
    {"repair", nothing, mend, 0, 0, NULL, NOBODY},
};
enum { SECONDS = sizeof seconds / sizeof *seconds };
static const scenario *const repair = &seconds[SECONDS - 1];
static const scenario every_verb = {"every verb", nothing, go_on, 0, 0, NULL, NOBODY};

/* Not where the verb's result hangs on the room that there is, or is the attach, or the end, itself. */
static int serves(const scenario *sc) {
    return !sc->in_attach && sc->verb != leave && sc->setup != room_for_three && sc->setup != no_room_but_one;
}

/* -- where we are, for whoever reads a failure ------------------------------------------------------------------------ */
static const scenario *here_first, *here_second;
static uint64_t here_at[4];
static void say_where(void) {
    if (here_first)
        (void)fprintf(stderr,
                      "in '%s' at %" PRIu64 ", beside '%s' at %" PRIu64 ", repair %" PRIu64 ", go on %" PRIu64 "\n",
                      here_first->name, here_at[0], here_second->name, here_at[1], here_at[2], here_at[3]);
}

static uint64_t seed = 20240817;
static uint64_t below(uint64_t n) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 20) % n;
}

/* -- both under way --------------------------------------------------------------------------------------------------- */
/* Somebody is parked on a lock that this process holds. */
static int waited_for(sst_seg *s, pid_t pid) {
    for (uint32_t i = 0; i <= SST_STRIPES; i++) {
        uint32_t v = ld32(i < SST_STRIPES ? &sst_stripe_at(s, i)->lock : &sst_heap_of(s)->lock);
        if ((v & SST_WAITERS) && ld32(&sst_peer_at(s, SST_OWNER_SLOT(v & SST_OWNER_MASK))->pid) == (uint32_t)pid)
            return 1;
    }
    return 0;
}

/* What came of one run. */
typedef struct {
    uint64_t runs, kills, survived, both, parked, in_repair, in_verbs;
} tally;

/* 1: it is stopped, or parked on what `first` holds, and lives; 0: it came through. */
static int held_up(twin *t, const victim *v, pid_t first, tally *sums) {
    uint64_t since = sst_now_ns();
    for (;;) {
        int status = 0;
        if (waitpid(v->pid, &status, WUNTRACED | WNOHANG) == v->pid) {
            CHECK(WIFSTOPPED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
            return WIFSTOPPED(status);
        }
        if (first != 0 && waited_for(t->a, first) && sleeps(v->pid)) {
            sums->parked++;
            return 1;
        }
        CHECK(sst_now_ns() - since < WITHIN);
        nap(0);
    }
}

static void kill_it(const victim *v, int alive, tally *sums) {
    if (alive) {
        CHECK_IS(kill(v->pid, SIGKILL), 0);
        CHECK_IS(waitpid(v->pid, NULL, 0), v->pid);
        sums->kills++;
    }
    (void)close(v->go);
    (void)close(v->line);
}

static state found, may[4]; /* before; the first alone; the second alone; the second after the first */
static uint64_t stores_of[2];

/* How the keys are where nobody dies: `one` and `two` 1 where those verbs are done. */
static void rehearse(const scenario *sc, const scenario *second, uint32_t engine, int one, int two, state *out) {
    twin t;
    scenario still = *sc;
    if (!one)
        still.verb = nothing;
    set_up(&t, sc, engine);
    CHECK_IS(child(&t, &still, 0, one ? &stores_of[0] : NULL), 0);
    if (two)
        CHECK_IS(child(&t, second, 0, &stores_of[1]), 0);
    read_state(t.a, out);
    twin_shut(&t);
}

static void run(const scenario *sc, const scenario *second, uint32_t engine, tally *sums) {
    twin t;
    for (int i = 0; i < 4; i++)
        here_at[i] = 1 + below(i < 2 ? stores_of[i] : 90);
    set_up(&t, sc, engine);
    stop = 1;
    victim v = victim_start(t.fd, sc, here_at[0]);
    victim_go(&v);
    int first = held_up(&t, &v, 0, sums);
    victim w = victim_start(t.fd, second, here_at[1]);
    victim_go(&w);
    int other = held_up(&t, &w, first ? v.pid : 0, sums), order = (int)below(2);
    stop = 0;
    for (int i = 0; i < 2; i++)
        if (i == order)
            kill_it(&v, first, sums);
        else
            kill_it(&w, other, sums);
    sums->both += (uint64_t)(first && other);
    if (first && other && below(3) == 0)
        inherit(&t);
    int third = child(&t, repair, here_at[2], NULL);
    sums->in_repair += (uint64_t)third;
    if (below(2))
        clean(t.b);
    read_state(t.a, &found);
    one_of(sc->name, &found, (const state *const[]){&may[0], &may[1], &may[2], &may[3]}, 4);
    clean(t.b);
    int fourth = child(&t, &every_verb, here_at[3], NULL);
    sums->in_verbs += (uint64_t)fourth;
    sums->kills += (uint64_t)(third + fourth);
    go_on(t.b);
    go_on(t.a);
    twin_shut(&t);
    sums->survived = sums->kills;
    sums->runs++;
}

static void pair(const scenario *row, const scenario *second, uint32_t engine, int runs, tally *sums) {
    scenario sc = *row;
    if (sc.capacity < 4 * MIB)
        sc.capacity = 4 * MIB;
    here_first = &sc;
    here_second = second;
    memset(here_at, 0, sizeof here_at);
    for (int i = 0; i < 4; i++)
        rehearse(&sc, second, engine, i & 1, i >> 1, &may[i]);
    for (int i = 0; i < runs; i++)
        run(&sc, second, engine, sums);
    here_first = NULL;
}

/* Of the short form, runs of a pair: fewer under AddressSanitizer, which makes a fork slow. */
#if defined(__SANITIZE_ADDRESS__)
enum { FEW = 2 };
#else
enum { FEW = 4 };
#endif

static void all(uint32_t engine) {
    const int thorough = getenv("SST_LONG") != NULL;
    const size_t n = sizeof scenarios / sizeof *scenarios;
    static const char what[] = "core: two deaths at once";
    tally sums = {0};
    proof("began", what, "engine=%s", engine_name(engine));
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < SECONDS && serves(&scenarios[i]); k++)
            if (thorough || k == (i + engine) % SECONDS) /* the short form: one of the second's verbs for each path */
                pair(&scenarios[i], &seconds[k], engine, thorough ? 40 : FEW, &sums);
    CHECK(sums.both > 0 && sums.parked > 0 && sums.in_repair > 0);
    proof("ended", what,
          "engine=%s\truns=%" PRIu64 "\tkills=%" PRIu64 "\tsurvived=%" PRIu64 "\ttwo at once=%" PRIu64
          "\tof them parked=%" PRIu64 "\tin repair=%" PRIu64 "\tin the next verbs=%" PRIu64,
          engine_name(engine), sums.runs, sums.kills, sums.survived, sums.both, sums.parked, sums.in_repair,
          sums.in_verbs);
    (void)printf("%s: %" PRIu64 " runs, %" PRIu64 " kills survived; two at once %" PRIu64 ", the second parked %" PRIu64
                 "; in the repair %" PRIu64 ", in the verbs after it %" PRIu64 "\n",
                 engine_name(engine), sums.runs, sums.survived, sums.both, sums.parked, sums.in_repair, sums.in_verbs);
}

/* fault_pairs [ENGINE]: without one, both. */
int main(int argc, char **argv) {
    memset(big, 'B', BIG);
    CHECK_IS(atexit(say_where), 0);
    EACH_ENGINE(engine)
    if (argc < 2 || strcmp(argv[1], engine_name(engine)) == 0)
        all(engine);
    return 0;
}
