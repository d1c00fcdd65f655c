/* test_threads.c -- four threads on each of two views, random verbs on a few keys: the sanitizers' target. Oracles: a
 * counter holds all that was added, a queue's items come out once, and verify finds nothing. */
#include "check.h"

#include <pthread.h>

enum { THREADS = 8, KEYS = 6 };
#if defined(__SANITIZE_THREAD__)
enum { ROUNDS = 1500 };
#else
enum { ROUNDS = 8000 };
#endif

static twin t;

typedef struct {
    int64_t added, pushed, popped, push_sum, pop_sum;
    uint32_t seed;
    sst_seg *s;
} work;

static uint32_t next(uint32_t *x) {
    *x ^= *x << 13;
    *x ^= *x >> 17;
    return *x ^= *x << 5;
}

static void one(work *w) {
    char key[16], val[600], text[64];
    size_t len = 0;
    int64_t v;
    uint32_t x = next(&w->seed), n = x / 64 % sizeof val;
    int klen = snprintf(key, sizeof key, "k%u", x / 4096 % KEYS);
    memset(val, 'a' + (int)(x % 26), n);
    switch (x % 12) {
    case 0:
    case 1:
        CHECK_IS(sst_set(w->s, SST_USER, key, (size_t)klen, val, n, soon(), 0), SST_OK);
        break;
    case 2:
    case 3: {
        char got[8192];
        int r = sst_get(w->s, SST_USER, key, (size_t)klen, got, sizeof got, &len, soon(), 0);
        CHECK(r == SST_OK || r == SST_ENOENT || r == SST_ENOBUFS);
        break;
    }
    case 4:
        CHECK(drop(w->s, key) >= 0);
        break;
    case 5:
        CHECK_IS(append(w->s, key, "zz"), SST_OK);
        break;
    case 6:
    case 7:
        CHECK_IS(plus(w->s, "counter", 1 + (int64_t)(x % 5), &v), SST_OK);
        w->added += 1 + (int64_t)(x % 5);
        break;
    case 8:
        (void)snprintf(text, sizeof text, "%u", x % 1000);
        CHECK_IS(push(w->s, "queue", text), SST_OK);
        w->pushed++;
        w->push_sum += (int64_t)(x % 1000);
        break;
    case 9:
        if (pop(w->s, "queue", text, sizeof text) == SST_OK) {
            w->popped++;
            w->pop_sum += atoi(text);
        }
        break;
    case 10: {
        static const uint32_t klens[] = {2, 2}, vlens[] = {1, 1};
        CHECK_IS(sst_multi_set(w->s, SST_USER, "k1k2", klens, "xy", vlens, 2, soon(), 0), SST_OK);
        break;
    }
    default: {
        char got[8192];
        int r = sst_compare_set(w->s, SST_USER, key, (size_t)klen, "x", 1, val, n, got, sizeof got, &len, soon(), 0);
        CHECK(r == SST_OK || r == SST_ENOBUFS);
        CHECK(here(w->s, key) >= 0);
    }
    }
}

static void *run(void *arg) {
    for (int i = 0; i < ROUNDS; i++)
        one(arg);
    return NULL;
}

static void stress(uint32_t engine) {
    pthread_t id[THREADS];
    work w[THREADS] = {{0}};
    work all = {0};
    char text[64];
    twin_open(&t, 16 * MIB, engine);
    for (uint32_t i = 0; i < THREADS; i++) {
        w[i].seed = 2463534242u + i * 7919u;
        w[i].s = i % 2 ? t.a : t.b;
        CHECK_IS(pthread_create(&id[i], NULL, run, &w[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK_IS(pthread_join(id[i], NULL), 0);
        all.added += w[i].added;
        all.pushed += w[i].pushed;
        all.popped += w[i].popped;
        all.push_sum += w[i].push_sum;
        all.pop_sum += w[i].pop_sum;
    }
    clean(t.a);
    (void)snprintf(text, sizeof text, "%lld", (long long)all.added);
    CHECK(holds(t.b, "counter", text));
    CHECK_IS(queue_len(t.a, "queue"), all.pushed - all.popped);
    while (pop(t.b, "queue", text, sizeof text) == SST_OK)
        all.pop_sum += atoi(text);
    CHECK_IS(all.pop_sum, all.push_sum);
    twin_shut(&t);
    (void)printf("%s: %d threads x %d verbs; added %lld, %lld pushes, %lld pops\n", engine_name(engine), THREADS,
                 ROUNDS, (long long)all.added, (long long)all.pushed, (long long)all.popped);
}

int main(void) {
    EACH_ENGINE(engine)
    stress(engine);
    return 0;
}
