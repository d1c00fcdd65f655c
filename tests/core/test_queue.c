/* test_queue.c -- queues: order, lengths, names shared with keys, limits. Blocking pops: test_wait.c. */
#include "check.h"

static void order(twin *t) {
    char text[32], want[32];
    int64_t popped = 0, pushed = 0;
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < round % 7 + 1; i++, pushed++) {
            (void)snprintf(want, sizeof want, "item %lld", (long long)pushed);
            CHECK_IS(push(i % 2 ? t->a : t->b, "q", want), SST_OK);
        }
        CHECK_IS(queue_len(t->a, "q"), pushed - popped);
        for (int i = 0; i < round % 5 + 1 && popped < pushed; i++, popped++) {
            (void)snprintf(want, sizeof want, "item %lld", (long long)popped);
            CHECK_IS(pop(i % 2 ? t->b : t->a, "q", text, sizeof text), SST_OK);
            CHECK(strcmp(text, want) == 0);
        }
        clean(t->b);
    }
    for (; popped < pushed; popped++)
        CHECK_IS(pop(t->b, "q", text, sizeof text), SST_OK);
    CHECK_IS(pop(t->b, "q", text, sizeof text), SST_ENOENT);
    CHECK_IS(queue_len(t->a, "q"), 0);
    CHECK_IS(queue_len(t->a, "never"), 0);
    CHECK_IS(pop(t->b, "never", text, sizeof text), SST_ENOENT);
    (void)printf("order: %lld items\n", (long long)pushed);
}

/* A key and a queue of one name are two things; check sees a queue that is not empty. */
static void names(twin *t) {
    char text[32];
    CHECK_IS(push(t->a, "n", "item"), SST_OK);
    CHECK_IS(here(t->b, "n"), 1);
    CHECK_IS(num_keys(t->b, ""), 0);
    CHECK_IS(drop(t->b, "n"), 0); /* there is no key */
    CHECK_IS(put(t->b, "n", "value"), SST_OK);
    CHECK_IS(num_keys(t->b, ""), 1);
    CHECK_IS(pop(t->b, "n", text, sizeof text), SST_OK);
    CHECK(holds(t->a, "n", "value"));
    CHECK_IS(drop(t->a, "n"), 1);
    CHECK_IS(here(t->a, "n"), 0);
}

static void sizes(twin *t) {
    static char val[100000], got[100000];
    char small[4];
    uint32_t waiter = 0;
    size_t len = 0;
    memset(val, 'q', sizeof val);
    CHECK_IS(sst_queue_push(t->a, SST_USER, "s", 1, val, sizeof val, soon(), 0), SST_OK);
    CHECK_IS(push(t->a, "s", ""), SST_OK);
    CHECK_IS(sst_queue_pop(t->b, SST_USER, "s", 1, 0, small, sizeof small, &len, &waiter, 0, soon(), MS, 0),
             SST_ENOBUFS);
    CHECK_IS(len, sizeof val);
    CHECK_IS(queue_len(t->b, "s"), 2); /* too small a buffer takes nothing */
    CHECK_IS(sst_queue_pop(t->b, SST_USER, "s", 1, 0, got, sizeof got, &len, &waiter, 0, soon(), MS, 0), SST_OK);
    CHECK(len == sizeof val && memcmp(got, val, len) == 0);
    CHECK_IS(sst_queue_pop(t->b, SST_USER, "s", 1, 0, got, 0, &len, &waiter, 0, soon(), MS, 0), SST_OK);
    CHECK_IS(len, 0);
    CHECK_IS(sst_queue_push(t->a, SST_USER, "s", 1, val, (size_t)SST_VALUE_MAX + 1, soon(), 0), SST_ETOOBIG);
}

static void full(void) {
    static char val[500];
    twin t;
    int n = 0, r;
    char got[512];
    twin_open(&t, sst_min_capacity(), SST_FUTEX);
    while ((r = sst_queue_push(t.a, SST_USER, "f", 1, val, sizeof val, soon(), 0)) == SST_OK)
        n++;
    CHECK_IS(r, SST_EFULL);
    CHECK_IS(queue_len(t.b, "f"), n);
    CHECK_IS(pop(t.b, "f", got, sizeof got), SST_OK);
    CHECK_IS(sst_queue_push(t.a, SST_USER, "f", 1, val, sizeof val, soon(), 0), SST_OK);
    twin_shut(&t);
    (void)printf("full: %d items\n", n);
}

/* A queue is in the table while it holds an item: names that are used once leave nothing behind, waited on or not. */
static void come_and_go(void) {
    enum { N = 20000 };
    twin t;
    char name[32], text[32];
    size_t len = 0;
    twin_open(&t, sst_min_capacity(), SST_FUTEX);
    for (int i = 0; i < N; i++) {
        uint32_t waiter = 0;
        (void)snprintf(name, sizeof name, "step/%d", i);
        CHECK_IS(sst_queue_pop(t.b, SST_USER, name, strlen(name), 1, text, sizeof text, &len, &waiter, 0, 0, MS, 0),
                 SST_ETIMEDOUT);
        CHECK_IS(waiter, 0);
        CHECK_IS(push(t.a, name, "one"), SST_OK);
        CHECK_IS(push(t.a, name, "two"), SST_OK);
        CHECK_IS(pop(t.b, name, text, sizeof text), SST_OK);
        CHECK_IS(here(t.b, name), 1);
        CHECK_IS(pop(t.b, name, text, sizeof text), SST_OK);
        CHECK_IS(here(t.b, name), 0);
    }
    twin_shut(&t);
    (void)printf("come and go: %d names\n", N);
}

/* A queue of the raw space and one of the user's with the same name stand in two lines. */
static void spaces(twin *t) {
    char text[8];
    size_t len = 0;
    uint32_t raw = 0;
    CHECK_IS(sst_queue_pop(t->a, SST_RAW, "sp", 2, 1, text, sizeof text, &len, &raw, 0, soon(), MS, 0), SST_EAGAIN);
    CHECK_IS(push(t->a, "sp", "mine"), SST_OK);
    CHECK_IS(pop(t->b, "sp", text, sizeof text), SST_OK); /* nobody is before it */
    CHECK_IS(sst_queue_push(t->a, SST_RAW, "sp", 2, "its", 3, soon(), 0), SST_OK);
    CHECK_IS(sst_queue_pop(t->a, SST_RAW, "sp", 2, 1, text, sizeof text, &len, &raw, 0, soon(), MS, 0), SST_OK);
    CHECK(len == 3 && raw == 0);
}

int main(void) {
    EACH_ENGINE(engine) {
        twin t;
        twin_open(&t, 4 * MIB, engine);
        order(&t);
        names(&t);
        sizes(&t);
        spaces(&t);
        twin_shut(&t);
    }
    full();
    come_and_go();
    return 0;
}
