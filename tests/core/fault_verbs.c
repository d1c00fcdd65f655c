/* fault_verbs.c -- a process killed at each of its stores, verb by verb.
 *
 * For each scenario and n = 1, 2, ...: a fresh segment is set up; a forked child attaches a view of its own, arms the
 * n-th store and does the verb. Unless it came through, it died there, and then the other views
 *   - go on with the same key, within a deadline,
 *   - find each key as it was before the verb or as it is after it, never between (multi_set: each key for itself),
 *   - and sst_verify finds nothing.
 * At a few n a second child is then killed at each of the stores of its repair, until one comes through. */
#include "scenarios.h"

/* -- what a segment holds, as text: one for each key, compared each for itself ------------------------------------- */
enum { KEYS = 5, WATCHED = KEYS + 1 };
typedef struct {
    char of[WATCHED][BIG + 200];
} state;
static state before, after, found;

static void read_value(sst_seg *s, const char *key, char *to) {
    static char buf[BIG + 100];
    size_t len = 0;
    int r = sst_get(s, SST_USER, key, strlen(key), buf, sizeof buf, &len, in_ms(10000), 0);
    CHECK(r == SST_OK || r == SST_ENOENT);
    if (r == SST_OK) {
        to[0] = '=';
        memcpy(to + 1, buf, len);
        to[len + 1] = 0;
    } else {
        (void)strcpy(to, "absent");
    }
}

/* Empties the queue to read it. */
static void read_state(sst_seg *s, state *st) {
    static const char *const keys[] = {KEY, OTHER, THIRD};
    sst_waiter_release(s, &standing); /* else the last item is kept for it */
    memset(st, 0, sizeof *st);
    for (int i = 0; i < KEYS; i++)
        read_value(s, i < 3 ? keys[i] : neighbour(s, i - 3), st->of[i]);
    static char text[BIG + 1];
    for (int64_t n = queue_len(s, KEY); n > 0; n--) {
        CHECK_IS(pop(s, KEY, text, sizeof text), SST_OK);
        (void)strcat(strcat(st->of[KEYS], text), ";");
    }
    CHECK_IS(pop(s, KEY, text, sizeof text), SST_ENOENT);
}

/* Each verb on the same key once, within a deadline. */
static void go_on(sst_seg *s) {
    static char text[BIG + 1];
    CHECK_IS(put(s, KEY, "7"), SST_OK);
    CHECK_IS(plus(s, KEY, 3, &sum), SST_OK);
    CHECK_IS(sum, 10);
    CHECK_IS(append(s, KEY, "!"), SST_OK);
    CHECK(holds(s, KEY, "10!"));
    CHECK_IS(push(s, KEY, "mine"), SST_OK);
    for (int64_t n = queue_len(s, KEY); n > 0; n--) /* mine is the last one */
        CHECK_IS(pop(s, KEY, text, sizeof text), SST_OK);
    CHECK(strcmp(text, "mine") == 0);
    CHECK_IS(put(s, KEY, big), SST_OK);
    CHECK_IS(drop(s, KEY), 1);
    CHECK_IS(here(s, KEY), 0);
}

/* Takes every lock that a scenario may die with, and gives it back: what it stores is the repair, and a few stores for
 * each lock. */
static void mend(sst_seg *s) {
    static const char *const keys[] = {KEY, OTHER, THIRD};
    for (int i = 0; i < 3; i++) {
        sst_key k;
        CHECK_IS(sst_key_make(s, SST_USER, keys[i], strlen(keys[i]), &k), SST_OK);
        CHECK_IS(sst_enter(s, k.stripe, soon(), 0), SST_OK);
        sst_exit(s, k.stripe, 0);
    }
    CHECK_IS(sst_heap_enter(s, soon(), 0), SST_OK);
    sst_heap_exit(s);
}

/* 1: killed at its n-th store; 0: it came through. n 0: never killed. */
static int child(const twin *t, const scenario *sc, uint64_t n, uint64_t *stores) {
    victim v = victim_start(t->fd, sc, n);
    victim_go(&v);
    return victim_end(&v, stores);
}

static int same_or(const char *is, const char *one, const char *two) {
    return strcmp(is, one) == 0 || strcmp(is, two) == 0;
}

static void judge(twin *t, const scenario *sc, uint64_t n, uint64_t m) {
    if ((n + m) % 2) /* whoever comes first repairs: sometimes verify, sometimes a verb */
        clean(t->b);
    read_state(t->a, &found);
    for (int i = 0; i < WATCHED; i++)
        if (!same_or(found.of[i], before.of[i], after.of[i])) {
            (void)fprintf(
                stderr, "%s, killed at %llu (repair at %llu): key %d is '%.40s', was '%.40s', would be '%.40s'\n",
                sc->name, (unsigned long long)n, (unsigned long long)m, i, found.of[i], before.of[i], after.of[i]);
            CHECK(0);
        }
    clean(t->b);
    go_on(t->b);
    go_on(t->a);
    twin_shut(t);
}

/* The dead slot is the only one left: its next owner inherits what the dead still held, before anybody repairs. */
static void inherit(twin *t) {
    int block = open_again(t->fd);
    sst_peer peers[8];
    int n = sst_peers(t->a, peers, 8), dead = -1;
    for (int i = 0; i < n; i++)
        if (peers[i].state == SST_PEER_DEAD)
            dead = (int)peers[i].slot;
    if (dead >= 0) {
        for (uint32_t slot = 0; slot < SST_PEERS_MAX; slot++)
            if ((int)slot != dead)
                (void)sst_byte_take(block, slot);
        sst_seg *heir = attach(t->fd);
        uint32_t slot = 0, gen = 0;
        CHECK_IS(sst_self(heir, &slot, &gen), SST_OK);
        CHECK_IS(slot, dead);
        CHECK_IS(gen, 2);
        let_go(heir);
    }
    (void)close(block);
}

/* Where we are, for whoever reads a failure. */
static const char *here_name;
static uint64_t here_n, here_m;
static void say_where(void) {
    if (here_name)
        (void)fprintf(stderr, "in '%s', killed at %llu, repair killed at %llu\n", here_name, (unsigned long long)here_n,
                      (unsigned long long)here_m);
}

static uint64_t enumerate(const scenario *sc, uint32_t engine, uint64_t *kills, uint64_t *repairs) {
    twin t;
    uint64_t total = 0;
    here_name = sc->name;
    here_n = here_m = 0;
    set_up(&t, sc, engine);
    scenario still = *sc;
    still.verb = nothing;
    CHECK_IS(child(&t, &still, 0, &total), 0);
    read_state(t.a, &before);
    twin_shut(&t);
    set_up(&t, sc, engine);
    CHECK_IS(child(&t, sc, 0, &total), 0);
    read_state(t.a, &after);
    twin_shut(&t);
    CHECK(total > 0);
    uint64_t n = 1;
    for (;; n += stride()) {
        here_n = n;
        set_up(&t, sc, engine);
        int dead = child(&t, sc, n, NULL);
        if (dead && n % 3 == 1 && !sc->in_attach)
            inherit(&t);
        judge(&t, sc, n, 0);
        if (!dead)
            break;
        ++*kills;
    }
    /* Killed at n, and the next one killed in its repair: at each of its stores in the long form. */
    const uint64_t step = getenv("SST_LONG") ? 1 : 7;
    static const scenario fix = {"repair", nothing, mend, 0, 0, NULL, NOBODY};
    for (uint64_t at = n / 3; at > 0 && at < n; at += n / 3 ? n / 3 : 1)
        for (uint64_t m = 1;; m += step) {
            set_up(&t, sc, engine);
            here_n = at;
            here_m = m;
            (void)child(&t, sc, at, NULL); /* a timed scenario may end in fewer stores this time, and live */
            int dead = child(&t, &fix, m, NULL);
            judge(&t, sc, at, m);
            if (!dead)
                break;
            ++*repairs;
        }
    return total;
}

/* fault_verbs [ENGINE]: without one, both. */
int main(int argc, char **argv) {
    memset(big, 'B', BIG);
    CHECK_IS(atexit(say_where), 0);
    EACH_ENGINE(engine) {
        if (argc > 1 && strcmp(argv[1], engine_name(engine)) != 0)
            continue;
        uint64_t kills = 0, repairs = 0;
        for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) {
            uint64_t n = enumerate(&scenarios[i], engine, &kills, &repairs);
            (void)printf("%-9s %-28s %4llu stores\n", engine_name(engine), scenarios[i].name, (unsigned long long)n);
            (void)fflush(stdout);
        }
        (void)printf("%s: %llu kills, %llu in repair\n", engine_name(engine), (unsigned long long)kills,
                     (unsigned long long)repairs);
    }
    here_name = NULL;
    return 0;
}
