/* test_wait.c -- waits and blocking pops, both engines: set wakes, deadlines, close wakes, the line, release. */
#include "check.h"

#include <pthread.h>

static twin t;

typedef struct {
    sst_seg *s;
    const char *key;
    uint64_t deadline, slice;
    int pops, result, slices;
    char text[32];
    pthread_t id;
} waiting;

static void *go(void *arg) {
    waiting *w = arg;
    uint32_t waiter = 0;
    size_t len = 0;
    do {
        w->slices++;
        w->result = w->pops ? sst_queue_pop(w->s, SST_USER, w->key, strlen(w->key), 1, w->text, sizeof w->text - 1,
                                            &len, &waiter, 3, w->deadline, w->slice, 0)
                            : sst_wait(w->s, SST_USER, w->key, strlen(w->key), &waiter, 3, w->deadline, w->slice, 0);
    } while (w->result == SST_EAGAIN);
    if (w->pops && w->result == SST_OK)
        w->text[len] = 0;
    return NULL;
}

static int waiters(sst_seg *s) {
    static sst_waiter out[64];
    return sst_waiters(s, out, 64);
}

static void start(waiting *w, sst_seg *s, const char *key, int pops, uint64_t deadline, uint64_t slice) {
    *w = (waiting){.s = s, .key = key, .pops = pops, .deadline = deadline, .slice = slice};
    int before = waiters(t.a);
    CHECK_IS(pthread_create(&w->id, NULL, go, w), 0);
    while (waiters(t.a) == before)
        nap(1);
}

static int end(waiting *w) {
    CHECK_IS(pthread_join(w->id, NULL), 0);
    return w->result;
}

static void set_wakes(void) {
    enum { N = 6 };
    waiting w[N];
    sst_waiter seen[4];
    for (int i = 0; i < N; i++)
        start(&w[i], i % 2 ? t.a : t.b, "there", 0, soon(), 30 * SEC);
    CHECK_IS(waiters(t.b), N);
    CHECK_IS(sst_waiters(t.b, seen, 4), 4);
    CHECK_IS(seen[0].rank, 3);
    CHECK_IS(seen[0].note_len, 5);
    CHECK(memcmp(seen[0].note, "there", 5) == 0 && seen[0].since_ns <= sst_now_ns());
    nap(20);
    uint64_t set_at = sst_now_ns();
    CHECK_IS(put(t.a, "there", "x"), SST_OK);
    for (int i = 0; i < N; i++)
        CHECK_IS(end(&w[i]), SST_OK);
    CHECK(sst_now_ns() - set_at < 15 * SEC); /* far less than a slice: woken, not timed out of it */
    CHECK_IS(waiters(t.a), 0);
}

static void deadlines(void) {
    for (int pops = 0; pops < 2; pops++) {
        waiting w = {.s = t.b, .key = "never", .pops = pops, .deadline = in_ms(60), .slice = 10 * MS};
        uint64_t until = w.deadline;
        (void)go(&w);
        CHECK_IS(w.result, SST_ETIMEDOUT);
        CHECK(sst_now_ns() >= until);
        w.deadline = 0; /* long past: one look and no park */
        (void)go(&w);
        CHECK_IS(w.result, SST_ETIMEDOUT);
    }
    CHECK_IS(waiters(t.a), 0);
}

static void queue_line(void) {
    enum { N = 5 };
    waiting w[N];
    char text[8], rest[8];
    for (int i = 0; i < N; i++)
        start(&w[i], i % 2 ? t.a : t.b, "line", 1, soon(), 30 * SEC);
    for (int i = 0; i < N; i++) {
        (void)snprintf(text, sizeof text, "%d", i);
        CHECK_IS(push(i % 2 ? t.b : t.a, "line", text), SST_OK);
        CHECK(pop(t.a, "line", rest, sizeof rest) == SST_ENOENT); /* who does not stand in the line gets nothing */
        CHECK_IS(end(&w[i]), SST_OK);
        CHECK_IS(atoi(w[i].text), i); /* first come, first served; two served at once may swap their items */
    }
    CHECK_IS(queue_len(t.a, "line"), 0);
}

/* The first of the line gives up: the one behind it is served. */
static void leaver(void) {
    uint32_t first = 0;
    size_t len = 0;
    char text[8];
    waiting second;
    CHECK_IS(sst_queue_pop(t.a, SST_USER, "leave", 5, 1, text, sizeof text, &len, &first, 0, soon(), MS, 0),
             SST_EAGAIN);
    CHECK(first != 0);
    start(&second, t.b, "leave", 1, soon(), 30 * SEC);
    CHECK_IS(push(t.a, "leave", "it"), SST_OK);
    nap(20);
    uint64_t at = sst_now_ns();
    sst_waiter_release(t.a, &first);
    CHECK_IS(first, 0);
    CHECK_IS(end(&second), SST_OK);
    CHECK(sst_now_ns() - at < 15 * SEC);
    sst_waiter_release(t.a, &first); /* nothing held: nothing happens */
    CHECK_IS(waiters(t.a), 0);
}

typedef struct {
    sst_seg *s;
    int result;
    pthread_t id;
} guest;

static void *meet(void *arg) {
    guest *g = arg;
    uint32_t waiter = 0, arrived = 0;
    int64_t count = 0;
    do
        g->result = sst_barrier(g->s, SST_USER, "meet", 4, 4, &arrived, &count, &waiter, 2, soon(), 30 * SEC);
    while (g->result == SST_EAGAIN);
    return NULL;
}

/* Whoever comes last deletes the key at once: those who wait have passed all the same, a use after another. */
static void barriers(void) {
    for (int round = 0; round < 3; round++) {
        guest g[3];
        for (int i = 0; i < 3; i++) {
            g[i] = (guest){.s = i % 2 ? t.a : t.b, .result = SST_EINVAL};
            CHECK_IS(pthread_create(&g[i].id, NULL, meet, &g[i]), 0);
        }
        while (waiters(t.a) < 3)
            nap(1);
        uint32_t waiter = 0, arrived = 0;
        int64_t count = 0;
        CHECK_IS(sst_barrier(t.a, SST_USER, "other", 5, 2, &arrived, &count, &waiter, 0, 0, SEC), SST_ETIMEDOUT);
        CHECK(arrived == 1 && count == 1 && waiter == 0); /* a timed-out arrival counts */
        arrived = 0;
        uint64_t at = sst_now_ns();
        CHECK_IS(sst_barrier(t.b, SST_USER, "meet", 4, 4, &arrived, &count, &waiter, 0, 0, SEC), SST_OK);
        CHECK(arrived == 1 && count == 4 && waiter == 0);
        CHECK_IS(drop(t.a, "meet"), 1);
        CHECK_IS(drop(t.a, "other"), 1);
        for (int i = 0; i < 3; i++) {
            CHECK_IS(pthread_join(g[i].id, NULL), 0);
            CHECK_IS(g[i].result, SST_OK);
        }
        CHECK(sst_now_ns() - at < 15 * SEC); /* woken, not timed out of a slice */
        CHECK_IS(waiters(t.a), 0);
    }
    uint32_t waiter = 0, arrived = 0;
    int64_t count = 0;
    CHECK_IS(put(t.a, "meet", "none"), SST_OK);
    CHECK_IS(sst_barrier(t.b, SST_USER, "meet", 4, 4, &arrived, &count, &waiter, 0, soon(), SEC), SST_ENOTINT);
    CHECK(arrived == 0 && waiter == 0);
    CHECK_IS(sst_barrier(t.b, SST_USER, "meet", 4, 0, &arrived, &count, &waiter, 0, soon(), SEC), SST_EINVAL);
}

/* The count is made full by another verb: seen at the next slice. */
static void barrier_by_add(void) {
    uint32_t waiter = 0, arrived = 0;
    int64_t count = 0, now = 0;
    CHECK_IS(sst_barrier(t.a, SST_USER, "full", 4, 2, &arrived, &count, &waiter, 0, soon(), MS), SST_EAGAIN);
    CHECK(arrived == 1 && waiter != 0);
    CHECK_IS(plus(t.b, "full", 1, &now), SST_OK);
    CHECK_IS(sst_barrier(t.a, SST_USER, "full", 4, 2, &arrived, &count, &waiter, 0, soon(), MS), SST_OK);
    CHECK(count == 2 && waiter == 0);
}

static void close_wakes(void) {
    for (int pops = 0; pops < 2; pops++) {
        sst_seg *s = attach(t.fd);
        waiting w;
        start(&w, s, "closed", pops, soon(), 20 * SEC);
        nap(50);
        uint64_t at = sst_now_ns();
        CHECK_IS(sst_close(s), SST_OK);
        CHECK_IS(end(&w), SST_ECLOSED);
        CHECK(sst_now_ns() - at < 10 * SEC);
        CHECK_IS(sst_close(s), SST_OK);
        CHECK_IS(put(s, "k", "v"), SST_ECLOSED);
        sst_free(s);
        CHECK_IS(waiters(t.a), 0);
    }
}

static void slices(void) {
    uint32_t waiter = 0;
    uint64_t at = sst_now_ns();
    CHECK_IS(sst_wait(t.a, SST_USER, "slice", 5, &waiter, 0, soon(), 20 * MS, 0), SST_EAGAIN);
    CHECK(sst_now_ns() - at >= 20 * MS);
    CHECK(waiter != 0);
    CHECK_IS(put(t.b, "slice", "x"), SST_OK);
    CHECK_IS(sst_wait(t.a, SST_USER, "slice", 5, &waiter, 0, soon(), 20 * MS, 0), SST_OK);
    CHECK_IS(waiter, 0);
}

int main(void) {
    EACH_ENGINE(engine) {
        twin_open(&t, 2 * MIB, engine);
        set_wakes();
        deadlines();
        queue_line();
        leaver();
        barriers();
        barrier_by_add();
        slices();
        close_wakes();
        twin_shut(&t);
        (void)printf("%s: 8 wait scenarios\n", engine_name(engine));
    }
    return 0;
}
