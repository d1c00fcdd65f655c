/* fault_verbs.c -- a process killed at each of its stores, verb by verb.
 *
 * For each scenario and n = 1, 2, ...: a fresh segment is set up; a forked child attaches a view of its own, arms the
 * n-th store and does the verb. Unless it came through, it died there, and then the other views
 *   - go on with the same key, within a deadline,
 *   - find each key as it was before the verb or as it is after it, never between (multi_set: each key for itself),
 *   - and sst_verify finds nothing.
 * At a few n a second child is then killed at each of the stores of its repair, until one comes through. */
#include "atomics.h"
#include "check.h"
#include "guard.h"
#include "liveness.h"
#include "view.h"

#define BIG 70000
static char big[BIG + 1]; /* NUL-terminated */

#define KEY   "k"
#define OTHER "other"
#define THIRD "thir"

typedef struct {
    const char *name;
    void (*setup)(sst_seg *s);
    void (*verb)(sst_seg *s); /* ends the child with a wrong status where the verb fails */
    int in_attach;            /* the stores of the attach count, not those of the verb */
    uint64_t capacity;
} scenario;

static int64_t sum;
static char answer[BIG + 1];
static size_t answer_len;

static void nothing(sst_seg *s) { (void)s; }
static void small(sst_seg *s) { CHECK_IS(put(s, KEY, "before"), SST_OK); }
static void number(sst_seg *s) { CHECK_IS(put(s, KEY, "41"), SST_OK); }
static void counter(sst_seg *s) { CHECK_IS(plus(s, KEY, 41, &sum), SST_OK); }
static void both_blocks(sst_seg *s) {
    CHECK_IS(put(s, KEY, "first"), SST_OK);
    CHECK_IS(put(s, KEY, "second"), SST_OK);
}
static void large(sst_seg *s) {
    CHECK_IS(put(s, KEY, big), SST_OK);
    CHECK_IS(put(s, KEY, "x"), SST_OK);
}
static void roomy(sst_seg *s) {
    CHECK_IS(put(s, KEY, "0123456789"), SST_OK);
    CHECK_IS(append(s, KEY, "abcdefghij0123456789"), SST_OK);
}
static void large_number(sst_seg *s) {
    CHECK_IS(put(s, KEY, big), SST_OK);
    CHECK_IS(put(s, KEY, "41"), SST_OK);
}
static void one_item(sst_seg *s) { CHECK_IS(push(s, KEY, "item-1"), SST_OK); }
static void two_items(sst_seg *s) {
    one_item(s);
    CHECK_IS(push(s, KEY, "item-2"), SST_OK);
}
/* Somebody waits in the queue's line, parked, and dies there. */
static int in_line(sst_seg *s) {
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++) {
        const sst_waiter_slot *w = sst_waiter_at(s, i);
        if (ld64(&w->ticket) != 0 && (ld32(&w->word) != 0 || ld32(&sst_header_of(s)->engine) == SST_FUTEX))
            return 1;
    }
    return 0;
}
static void dead_in_line(sst_seg *s) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        uint32_t waiter = 0;
        (void)sst_queue_pop(s, SST_USER, KEY, 1, 1, answer, sizeof answer, &answer_len, &waiter, 0, soon(), 60 * SEC);
        _exit(1);
    }
    while (!in_line(s))
        nap(1);
    CHECK_IS(kill(pid, SIGKILL), 0);
    CHECK_IS(waitpid(pid, NULL, 0), pid);
}
static void item_behind_the_dead(sst_seg *s) {
    dead_in_line(s);
    one_item(s);
}
static void woken_in_vain(sst_seg *s) { /* its post lies there, and somebody else has armed the event */
    uint32_t waiter = 0;
    item_behind_the_dead(s);
    CHECK_IS(sst_wait(s, SST_USER, KEY, 1, &waiter, 0, 0, MS, SST_KEY_ONLY), SST_ETIMEDOUT);
}
static void key_and_queue(sst_seg *s) {
    small(s);
    two_items(s);
}

static void set_small(sst_seg *s) { CHECK_IS(put(s, KEY, "after"), SST_OK); }
static void set_large(sst_seg *s) { CHECK_IS(put(s, KEY, big), SST_OK); }
static void set_empty(sst_seg *s) { CHECK_IS(put(s, KEY, ""), SST_OK); }
static void add_one(sst_seg *s) { CHECK_IS(plus(s, KEY, 1, &sum), SST_OK); }
static void append_little(sst_seg *s) { CHECK_IS(append(s, KEY, "++"), SST_OK); }
static void append_large(sst_seg *s) { CHECK_IS(append(s, KEY, big), SST_OK); }
static void swap(sst_seg *s, const char *expected) {
    CHECK_IS(sst_compare_set(s, SST_USER, KEY, 1, expected, strlen(expected), "swapped", 7, answer, sizeof answer,
                             &answer_len, soon(), 0),
             SST_OK);
    CHECK_IS(answer_len, 7);
}
static void swap_new(sst_seg *s) { swap(s, ""); }
static void swap_old(sst_seg *s) { swap(s, "before"); }
static void delete_it(sst_seg *s) { CHECK_IS(drop(s, KEY), 1); }
static void push_one(sst_seg *s) { CHECK_IS(push(s, KEY, "pushed"), SST_OK); }
static void pop_one(sst_seg *s) { CHECK_IS(pop(s, KEY, answer, sizeof answer), SST_OK); }
static void pop_blocked(sst_seg *s) { /* stands in the line, times out, leaves it */
    uint32_t waiter = 0;
    int r;
    uint64_t deadline = in_ms(3);
    do
        r = sst_queue_pop(s, SST_USER, KEY, 1, 1, answer, sizeof answer, &answer_len, &waiter, 0, deadline, MS);
    while (r == SST_EAGAIN);
    CHECK_IS(r, SST_ETIMEDOUT);
    CHECK_IS(waiter, 0);
}
static void wait_out(sst_seg *s) {
    uint32_t waiter = 0;
    int r;
    uint64_t deadline = in_ms(3);
    do
        r = sst_wait(s, SST_USER, KEY, 1, &waiter, 0, deadline, MS, 0);
    while (r == SST_EAGAIN);
    CHECK_IS(r, SST_ETIMEDOUT);
}
static void meet(sst_seg *s, uint32_t parties, int result) {
    uint32_t waiter = 0, arrived = 0;
    int64_t count = 0;
    int r;
    uint64_t deadline = result == SST_ETIMEDOUT ? in_ms(3) : soon();
    do
        r = sst_barrier(s, SST_USER, KEY, 1, parties, &arrived, &count, &waiter, 0, deadline, MS);
    while (r == SST_EAGAIN);
    CHECK_IS(r, result);
    CHECK_IS(waiter, 0);
}
static void meet_nobody(sst_seg *s) { meet(s, 99, SST_ETIMEDOUT); }
static void meet_last(sst_seg *s) { meet(s, 2, SST_OK); }
static void met_by_one(sst_seg *s) { /* it stays at the barrier: the last to arrive has a slot to mark */
    uint32_t waiter = 0, arrived = 0;
    int64_t count = 0;
    CHECK_IS(sst_barrier(s, SST_USER, KEY, 1, 2, &arrived, &count, &waiter, 0, soon(), MS), SST_EAGAIN);
}
static void set_many(sst_seg *s) { /* two new keys and one that may be there */
    static const uint32_t klens[] = {1, 5, 4}, vlens[] = {5, 6, 4};
    CHECK_IS(sst_multi_set(s, SST_USER, "kotherthir", klens, "aftersecondmore", vlens, 3, soon()), SST_OK);
}
static void set_thrice(sst_seg *s) { /* one key three times, each value in a block of its own, and another between */
    static const uint32_t klens[] = {1, 1, 5, 1}, vlens[] = {40, 50, 6, 5};
    CHECK_IS(sst_multi_set(s, SST_USER, "kkotherk", klens, big, vlens, 4, soon()), SST_OK);
}
static void rank_in(sst_seg *s) { CHECK_IS(sst_rank_register(s, 3), SST_OK); }
static void rank_in_out(sst_seg *s) {
    rank_in(s);
    CHECK_IS(sst_rank_leave(s, 3), SST_OK);
}
static void leave(sst_seg *s) { CHECK_IS(sst_leave(s), SST_OK); }

static const scenario scenarios[] = {
    {"attach", small, nothing, 1, MIB * 2},
    {"leave", small, leave, 0, MIB * 2},
    {"set new small", nothing, set_small, 0, MIB * 2},
    {"set new large, file grows", nothing, set_large, 0, MIB * 4},
    {"set second block", small, set_small, 0, MIB * 2},
    {"set in place", both_blocks, set_small, 0, MIB * 2},
    {"set grow", both_blocks, set_large, 0, MIB * 4},
    {"set shrink", large, set_small, 0, MIB * 4},
    {"set empty", both_blocks, set_empty, 0, MIB * 2},
    {"set empty over large", large, set_empty, 0, MIB * 4},
    {"set over counter", counter, set_small, 0, MIB * 2},
    {"add new", nothing, add_one, 0, MIB * 2},
    {"add counter", counter, add_one, 0, MIB * 2},
    {"add bytes to counter", number, add_one, 0, MIB * 2},
    {"add, a large spare block", large_number, add_one, 0, MIB * 4},
    {"append new", nothing, append_little, 0, MIB * 2},
    {"append in place", roomy, append_little, 0, MIB * 2},
    {"append moved", small, append_large, 0, MIB * 4},
    {"append to counter", counter, append_little, 0, MIB * 2},
    {"compare_set create", nothing, swap_new, 0, MIB * 2},
    {"compare_set swap", small, swap_old, 0, MIB * 2},
    {"delete", both_blocks, delete_it, 0, MIB * 2},
    {"delete beside a queue", key_and_queue, delete_it, 0, MIB * 2},
    {"push new", nothing, push_one, 0, MIB * 2},
    {"push existing", one_item, push_one, 0, MIB * 2},
    {"pop of two", two_items, pop_one, 0, MIB * 2},
    {"pop the last", one_item, pop_one, 0, MIB * 2},
    {"pop behind the dead", item_behind_the_dead, pop_one, 0, MIB * 2},
    {"push wakes the dead again", woken_in_vain, push_one, 0, MIB * 2},
    {"pop blocked, timed out", nothing, pop_blocked, 0, MIB * 2},
    {"wait, timed out", nothing, wait_out, 0, MIB * 2},
    {"barrier, timed out", nothing, meet_nobody, 0, MIB * 2},
    {"barrier, the last", met_by_one, meet_last, 0, MIB * 2},
    {"multi_set", small, set_many, 0, MIB * 2},
    {"multi_set, a key thrice", small, set_thrice, 0, MIB * 2},
    {"multi_set, a new key thrice", nothing, set_thrice, 0, MIB * 2},
    {"rank register", small, rank_in, 0, MIB * 2},
    {"rank register, leave", small, rank_in_out, 0, MIB * 2},
};

/* -- what a segment holds, as text: one for each key, compared each for itself ------------------------------------- */
enum { WATCHED = 4 };
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
    memset(st, 0, sizeof *st);
    for (int i = 0; i < 3; i++)
        read_value(s, keys[i], st->of[i]);
    char text[64];
    for (int64_t n = queue_len(s, KEY); n > 0; n--) {
        CHECK_IS(pop(s, KEY, text, sizeof text), SST_OK);
        (void)strcat(strcat(st->of[3], text), ";");
    }
    CHECK_IS(pop(s, KEY, text, sizeof text), SST_ENOENT);
}

/* Each verb on the same key once, within a deadline. */
static void go_on(sst_seg *s) {
    char text[64];
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
    int line[2];
    CHECK_IS(pipe(line), 0);
    (void)fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        if (sc->in_attach)
            sst_fault_arm(n);
        sst_seg *s = attach(t->fd);
        if (!sc->in_attach)
            sst_fault_arm(n);
        sc->verb(s);
        uint64_t count = sst_fault_count();
        sst_fault_arm(0);
        CHECK_IS(write(line[1], &count, sizeof count), sizeof count);
        _exit(0);
    }
    (void)close(line[1]);
    int status = 0;
    CHECK_IS(waitpid(pid, &status, 0), pid);
    int dead = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    CHECK(dead || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    if (!dead && stores)
        CHECK_IS(read(line[0], stores, sizeof *stores), sizeof *stores);
    (void)close(line[0]);
    return dead;
}

static void set_up(twin *t, const scenario *sc, uint32_t engine) {
    twin_open(t, sc->capacity, engine);
    sc->setup(t->a);
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
    read_state(t.a, &before);
    twin_shut(&t);
    set_up(&t, sc, engine);
    CHECK_IS(child(&t, sc, 0, &total), 0);
    read_state(t.a, &after);
    twin_shut(&t);
    CHECK(total > 0);
    uint64_t n = 1;
    for (;; n++) {
        here_n = n;
        set_up(&t, sc, engine);
        int dead = child(&t, sc, n, NULL);
        if (dead && n % 3 == 0 && !sc->in_attach)
            inherit(&t);
        judge(&t, sc, n, 0);
        if (!dead)
            break;
        ++*kills;
    }
    /* Killed at n, and the next one killed in its repair: at each of its stores in the long form. */
    const uint64_t step = getenv("SST_LONG") ? 1 : 5;
    static const scenario fix = {"repair", nothing, mend, 0, 0};
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
    return n - 1;
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
