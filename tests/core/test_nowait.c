/* test_nowait.c -- SST_TRY and SST_NOWAIT: no verb called so parks on a lock of the living; the second does all else. */
#include "check.h"
#include "view.h"

#include <pthread.h>

static twin t;
static char large[SST_TRY_COPY + 1];

/* -- an engine that parks nobody ----------------------------------------------------------------------------------- */
static int park_nobody(sst_seg *s, uint32_t *word, uint32_t value, uint64_t deadline_ns, uint32_t waiter) {
    (void)s, (void)word, (void)value, (void)deadline_ns, (void)waiter;
    CHECK(!"somebody parked");
    return SST_EAGAIN;
}
static const sst_park_engine *real;
static sst_park_engine sleepless;

/* -- each verb that takes a lock of "k"'s stripe, or of the heap ---------------------------------------------------------- */
static char out[2 * sizeof large];
static size_t len;

static int do_set(uint32_t f) { return sst_set(t.a, SST_USER, "k", 1, "v", 1, soon(), f); }
static int do_set_large(uint32_t f) { return sst_set(t.a, SST_USER, "k", 1, large, sizeof large, soon(), f); }
static int do_add(uint32_t f) {
    int64_t n;
    return sst_add(t.a, SST_USER, "k", 1, 1, &n, soon(), f);
}
static int do_append(uint32_t f) { return sst_append(t.a, SST_USER, "k", 1, "1", 1, soon(), f); }
static int do_compare_set(uint32_t f) {
    return sst_compare_set(t.a, SST_USER, "k", 1, "7", 1, "8", 1, out, sizeof out, &len, soon(), f);
}
static int do_delete(uint32_t f) { return sst_delete(t.a, SST_USER, "k", 1, soon(), f); }
static int do_push(uint32_t f) { return sst_queue_push(t.a, SST_USER, "k", 1, "i", 1, soon(), f); }
static int do_push_large(uint32_t f) { return sst_queue_push(t.a, SST_USER, "k", 1, large, sizeof large, soon(), f); }
static int do_pop(uint32_t f) {
    uint32_t waiter = 0;
    return sst_queue_pop(t.a, SST_USER, "k", 1, 0, out, sizeof out, &len, &waiter, 0, soon(), MS, f);
}
static int do_queue_len(uint32_t f) {
    int64_t n;
    return sst_queue_len(t.a, SST_USER, "k", 1, &n, soon(), f);
}
static int do_multi_set(uint32_t f) { /* the stripes of others are locked and given back */
    static const uint32_t klens[] = {1, 1, 1}, vlens[] = {1, 1, 1};
    return sst_multi_set(t.a, SST_USER, "akz", klens, "123", vlens, 3, soon(), f);
}
static int do_multi_set_large(uint32_t f) {
    static const uint32_t klens[] = {1, 1}, vlens[] = {1, sizeof large - 1};
    return sst_multi_set(t.a, SST_USER, "ak", klens, large, vlens, 2, soon(), f);
}
static int do_num_keys(uint32_t f) {
    int64_t n;
    return sst_num_keys(t.a, SST_USER, "k", 1, &n, soon(), f);
}
static int do_list_keys(uint32_t f) {
    int r;
    uint32_t cursor = 0;
    do
        r = sst_list_keys(t.a, SST_USER, "", 0, &cursor, out, sizeof out, &len, soon(), f);
    while (r == 1);
    return r;
}

static const struct {
    const char *name;
    int (*verb)(uint32_t flags);
    int heap, large; /* it needs a block, or all stripes; it is too much for SST_TRY */
} verbs[] = {
    {"set", do_set, 1, 0},
    {"set, large", do_set_large, 1, 1},
    {"add", do_add, 0, 0},
    {"append", do_append, 1, 0}, /* to a counter */
    {"compare_set", do_compare_set, 0, 0},
    {"push", do_push, 1, 0},
    {"push, large", do_push_large, 1, 1},
    {"pop", do_pop, 0, 0},
    {"queue_len", do_queue_len, 0, 0},
    {"multi_set", do_multi_set, 1, 0},
    {"multi_set, large", do_multi_set_large, 1, 1},
    {"num_keys", do_num_keys, 1, 0},
    {"list_keys", do_list_keys, 1, 0},
    {"delete", do_delete, 0, 0},
};
enum { VERBS = sizeof verbs / sizeof *verbs };

static void is(const char *name, int got, int want) {
    if (got != want)
        (void)fprintf(stderr, "%s: ", name);
    CHECK_IS(got, want);
}

static pid_t held(int what) {
    int line[2];
    char c;
    CHECK_IS(pipe(line), 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(t.fd);
        CHECK_IS(sst_test_hold(s, what, what ? "o" : "k", 1), SST_OK);
        CHECK_IS(write(line[1], "x", 1), 1);
        for (;;)
            (void)pause();
    }
    CHECK_IS(read(line[0], &c, 1), 1);
    CHECK_IS(kill(pid, SIGSTOP), 0);
    (void)close(line[0]), (void)close(line[1]);
    return pid;
}

/* One block for each key and item, so that what needs a fresh one goes to the heap. */
static void set_up(uint32_t engine) {
    twin_open(&t, 4 * MIB, engine);
    CHECK_IS(put(t.b, "k", "7"), SST_OK);
    CHECK_IS(push(t.b, "k", "item"), SST_OK);
}

/* The stripe, or another stripe and the heap, held by one who lives and is stopped; then by one who is dead. */
static void beside(int what, uint32_t engine) {
    set_up(engine);
    pid_t pid = held(what);
    real = t.a->park;
    sleepless = (sst_park_engine){park_nobody, real->unpark};
    t.a->park = &sleepless;
    for (size_t i = 0; i < VERBS; i++) {
        int refused = what == 0 || verbs[i].heap, slot = -1;
        int32_t holder = 0;
        int r = verbs[i].verb(SST_TRY);
        is(verbs[i].name, r < 0 ? r : 0, refused || verbs[i].large ? SST_EAGAIN : SST_OK);
        r = verbs[i].verb(SST_NOWAIT);
        is(verbs[i].name, r < 0 && r != SST_ENOENT ? r : 0, refused ? SST_EBUSY : SST_OK);
        if (refused) {
            CHECK_IS(sst_holder(t.a, (uint32_t *)&slot, &holder), SST_OK);
            CHECK_IS(holder, pid);
        }
        if (!refused && verbs[i].verb == do_delete)
            break; /* the heap's holder has what it frees */
    }
    CHECK_IS(sst_queue_len(t.a, SST_USER, "a", 1, &(int64_t){0}, 0, SST_TRY), SST_OK); /* and no lock was kept */
    CHECK_IS(kill(pid, SIGKILL), 0);
    CHECK_IS(waitpid(pid, NULL, 0), pid);
    for (size_t i = 0; i < VERBS; i++) {
        int r = verbs[i].verb(SST_NOWAIT); /* the first that meets it repairs; add: after the large value */
        is(verbs[i].name, r < 0 && r != SST_ERANGE ? r : 0, SST_OK);
    }
    t.a->park = real;
    twin_shut(&t);
}

/* What is too large for SST_TRY, and what is not. */
static void sizes(uint32_t engine) {
    uint32_t waiter = 0, cursor = 0;
    char key[4096];
    set_up(engine);
    CHECK_IS(do_push_large(0), SST_OK);
    CHECK_IS(do_pop(SST_TRY), SST_OK);
    CHECK_IS(do_pop(SST_TRY), SST_EAGAIN);
    CHECK_IS(sst_queue_pop(t.a, SST_USER, "k", 1, 0, out, 1, &len, &waiter, 0, 0, 0, SST_TRY), SST_EAGAIN);
    CHECK_IS(do_pop(SST_NOWAIT), SST_OK);
    CHECK_IS(len, sizeof large);
    CHECK_IS(do_pop(SST_TRY), SST_ENOENT);
    CHECK_IS(sst_queue_pop(t.a, SST_USER, "k", 1, 1, out, 1, &len, &waiter, 0, 0, 0, SST_TRY), SST_EINVAL);
    CHECK_IS(sst_queue_pop(t.a, SST_USER, "k", 1, 1, out, 1, &len, &waiter, 0, 0, 0, SST_NOWAIT), SST_EINVAL);
    memset(key, 'k', sizeof key);
    for (int i = 0; i < 200; i++) { /* 800 KiB of names */
        (void)snprintf(key, 16, "%015d", i);
        key[15] = 'k';
        CHECK_IS(sst_set(t.a, SST_USER, key, sizeof key, "", 0, soon(), 0), SST_OK);
    }
    int calls = 0, r, n = 0;
    do {
        r = sst_list_keys(t.b, SST_USER, "0", 1, &cursor, out, sizeof out, &len, 0, SST_TRY);
        CHECK(r >= 0 && len <= SST_TRY_COPY);
        n += (int)(len / (4 + sizeof key));
        calls++;
    } while (r == 1);
    CHECK_IS(n, 200);
    CHECK(calls >= 200 / 15);
    twin_shut(&t);
}

int main(void) {
    memset(large, '5', sizeof large);
    EACH_ENGINE(engine) {
        beside(0, engine);
        beside(1, engine);
        sizes(engine);
    }
    (void)printf("%d verbs beside a stopped holder and a dead one: nobody parked\n", (int)VERBS);
    return 0;
}
