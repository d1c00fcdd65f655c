/* fault_verbs.c -- a process killed at each of its stores, verb by verb.
 *
 * For each scenario and n = 1, 2, ...: a fresh segment is set up; a forked child attaches a view of its own, arms the
 * n-th store and does the verb. Unless it came through, it died there, and then the other views
 *   - go on with the same key, within a deadline,
 *   - find each key as it was before the verb or as it is after it, never between (multi_set: each key for itself),
 *   - and sst_verify finds nothing.
 * Then the next one is killed in the middle of the repair, and the one after it in the repair of that. */
#include "judge.h"

#include <inttypes.h>

static state before, after, found;

static void judge(twin *t, const scenario *sc, uint64_t turn) {
    if (turn % 2) /* whoever comes first repairs: sometimes verify, sometimes a verb */
        clean(t->b);
    read_state(t->a, &found);
    one_of(sc->name, &found, (const state *const[]){&before, &after}, 2);
    clean(t->b);
    go_on(t->b);
    go_on(t->a);
    twin_shut(t);
}

/* Where we are, for whoever reads a failure. */
static const char *here_name;
static uint64_t here_at[3];
static void say_where(void) {
    if (here_name)
        (void)fprintf(stderr, "in '%s', killed at %llu, its repair at %llu, the repair of that at %llu (0: not)\n",
                      here_name, (unsigned long long)here_at[0], (unsigned long long)here_at[1],
                      (unsigned long long)here_at[2]);
}

/* What came of one scenario. */
typedef struct {
    uint64_t stores; /* of the verb, uninterrupted */
    uint64_t kills, survived;
    uint64_t in_repair, deeper; /* of the survived: killed in the repair, and in the repair of a killed repair, too */
} tally;

/* The verb killed at at[0], the repair of that at at[1], the repair of that killed repair at at[2]; 0 ends the list.
 * Whether the last of them was killed. */
static int killed_at(const scenario *sc, uint32_t engine, const uint64_t at[4], tally *sums) {
    static const scenario fix = {"repair", nothing, mend, 0, 0, NULL, NOBODY};
    twin t;
    for (int i = 0; i < 3; i++)
        here_at[i] = at[i];
    set_up(&t, sc, engine);
    int dead = child(&t, sc, at[0], NULL);
    if (dead && at[1] == 0 && at[0] % 3 == 1 && !sc->in_attach)
        inherit(&t);
    for (int i = 1; at[i] != 0; i++) /* a timed scenario may end in fewer stores this time, and live */
        dead = child(&t, &fix, at[i], NULL);
    sums->kills += (uint64_t)dead;
    judge(&t, sc, at[0] + at[1] + at[2]);
    sums->survived += (uint64_t)dead;
    return dead;
}

/* The repair of what `at` left, killed at each step-th of its stores; and where `deep` says so the repair of that, too,
 * at each deep-th of its own, after each deep-th of the first one's. */
static void in_repair(const scenario *sc, uint32_t engine, uint64_t at, uint64_t step, uint64_t deep, tally *sums) {
    for (uint64_t m = 1; killed_at(sc, engine, (uint64_t[4]){at, m}, sums); m += step) {
        sums->in_repair++;
        for (uint64_t l = 1; deep && m % deep == 1 && killed_at(sc, engine, (uint64_t[4]){at, m, l}, sums); l += deep)
            sums->deeper++;
    }
}

/* The long form kills the repair of each kill at each of its stores; the short one of three kills at each fourteenth, or
 * fewer under AddressSanitizer. The repair of a killed repair, of three kills and of one. All three multiplied are some
 * millions, and what is left by a repair that was killed differs from what it began with by blocks that are given back
 * already. */
static tally enumerate(const scenario *sc, uint32_t engine) {
    twin t;
    tally sums = {0};
    memset(here_at, 0, sizeof here_at);
    here_name = sc->name;
    set_up(&t, sc, engine);
    scenario still = *sc;
    still.verb = nothing;
    CHECK_IS(child(&t, &still, 0, &sums.stores), 0);
    read_state(t.a, &before);
    twin_shut(&t);
    set_up(&t, sc, engine);
    CHECK_IS(child(&t, sc, 0, &sums.stores), 0);
    read_state(t.a, &after);
    twin_shut(&t);
    CHECK(sums.stores > 0);
    uint64_t n = sums.stores > 1 ? first_of(engine) : 1;
    while (killed_at(sc, engine, (uint64_t[4]){n}, &sums))
        n += stride();
    const int all = getenv("SST_LONG") != NULL;
    const uint64_t third = n / 3 ? n / 3 : 1;
    for (uint64_t at = all ? 1 : third; at < n; at += all ? 1 : third)
        in_repair(sc, engine, at, all ? 1 : 7 * stride(),
                  all ? (at % third ? 0 : 7) : (at == third ? 14 * stride() : 0), &sums);
    return sums;
}

static void show(const scenario *sc, uint32_t engine) {
    char what[80];
    (void)snprintf(what, sizeof what, "core: %s", sc->name);
    proof("began", what, "engine=%s", engine_name(engine));
    tally sums = enumerate(sc, engine);
    proof("ended", what,
          "engine=%s\tstores=%" PRIu64 "\tkills=%" PRIu64 "\tsurvived=%" PRIu64 "\tin repair=%" PRIu64
          "\tin its repair=%" PRIu64,
          engine_name(engine), sums.stores, sums.kills, sums.survived, sums.in_repair, sums.deeper);
    (void)printf("%-9s %-28s %4" PRIu64 " stores, %5" PRIu64 " kills survived, of them %5" PRIu64
                 " in the repair, %5" PRIu64 " in the repair of that\n",
                 engine_name(engine), sc->name, sums.stores, sums.survived, sums.in_repair, sums.deeper);
    (void)fflush(stdout);
}

/* fault_verbs [ENGINE [PATH]]: without them, both engines, and each path of the table. */
int main(int argc, char **argv) {
    memset(big, 'B', BIG);
    CHECK_IS(atexit(say_where), 0);
    int shown = 0;
    EACH_ENGINE(engine) {
        if (argc > 1 && strcmp(argv[1], engine_name(engine)) != 0)
            continue;
        for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
            if (argc < 3 || strcmp(argv[2], scenarios[i].name) == 0) {
                show(&scenarios[i], engine);
                shown++;
            }
    }
    here_name = NULL;
    if (shown == 0)
        (void)fprintf(stderr, "no such engine, or no such path: see the table at the end of scenarios.h\n");
    return shown == 0;
}
