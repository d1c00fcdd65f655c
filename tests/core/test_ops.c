/* test_ops.c -- each verb on keys, its rules and its limits. */
#include "check.h"
#include "guard.h"

static void set_get_delete(twin *t) {
    char buf[4];
    size_t len = 0;
    CHECK_IS(put(t->a, "k", "one"), SST_OK);
    CHECK(holds(t->b, "k", "one"));
    CHECK_IS(sst_get(t->b, SST_USER, "k", 1, buf, 2, &len, soon(), 0), SST_ENOBUFS);
    CHECK_IS(len, 3);
    CHECK_IS(put(t->b, "k", ""), SST_OK);
    CHECK(holds(t->a, "k", ""));
    CHECK_IS(here(t->a, "k"), 1);
    CHECK_IS(drop(t->a, "k"), 1);
    CHECK_IS(drop(t->a, "k"), 0);
    CHECK_IS(here(t->b, "k"), 0);
    CHECK_IS(sst_get(t->b, SST_USER, "k", 1, buf, sizeof buf, &len, soon(), 0), SST_ENOENT);
    CHECK_IS(sst_set(t->a, SST_USER, "k", 1, "", (size_t)SST_VALUE_MAX + 1, soon(), 0), SST_ETOOBIG);
    for (int i = 0; i < 3000; i++) { /* values of every length over each other */
        static char val[3000], got[3000];
        size_t n = (size_t)(i * 7919 % 3000);
        memset(val, 'a' + i % 26, n);
        CHECK_IS(sst_set(i % 2 ? t->a : t->b, SST_USER, "k", 1, val, n, soon(), 0), SST_OK);
        CHECK_IS(sst_get(i % 2 ? t->b : t->a, SST_USER, "k", 1, got, sizeof got, &len, soon(), 0), SST_OK);
        CHECK(len == n && memcmp(val, got, n) == 0);
    }
    CHECK_IS(drop(t->a, "k"), 1);
}

static void adds(twin *t) {
    static const struct {
        const char *text;
        int result;
        int64_t sum;
    } cases[] = {{"41", SST_OK, 42},
                 {" \t\n41", SST_OK, 42},
                 {"+41", SST_OK, 42},
                 {"-41", SST_OK, -40},
                 {"41abc", SST_OK, 42},
                 {"0041", SST_OK, 42},
                 {"0x10", SST_OK, 1},
                 {"9223372036854775806", SST_OK, INT64_MAX},
                 {"-9223372036854775808", SST_OK, -INT64_MAX},
                 {"9223372036854775808", SST_ERANGE, 0},
                 {"-9223372036854775809", SST_ERANGE, 0},
                 {"99999999999999999999999", SST_ERANGE, 0},
                 {"", SST_ENOTINT, 0},
                 {" ", SST_ENOTINT, 0},
                 {"-", SST_ENOTINT, 0},
                 {"+-1", SST_ENOTINT, 0},
                 {"abc", SST_ENOTINT, 0}};
    int64_t v = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[32];
        CHECK_IS(put(t->a, "n", cases[i].text), SST_OK);
        CHECK_IS(plus(t->b, "n", 1, &v), cases[i].result);
        if (cases[i].result == SST_OK) {
            CHECK_IS(v, cases[i].sum);
            (void)snprintf(text, sizeof text, "%lld", (long long)v);
            CHECK(holds(t->a, "n", text));
        } else {
            CHECK(holds(t->a, "n", cases[i].text)); /* left alone */
        }
    }
    CHECK_IS(drop(t->a, "n"), 1);
    CHECK_IS(plus(t->a, "n", INT64_MAX, &v), SST_OK);
    CHECK_IS(plus(t->b, "n", 1, &v), SST_OK); /* wraps, as c10d's int64 does */
    CHECK_IS(v, INT64_MIN);
    CHECK(holds(t->a, "n", "-9223372036854775808"));
    CHECK_IS(drop(t->b, "n"), 1);
    CHECK_IS(plus(t->b, "n", 0, &v), SST_OK); /* creates */
    CHECK(holds(t->a, "n", "0"));
    CHECK_IS(drop(t->b, "n"), 1);
    (void)printf("add: %d texts\n", (int)(sizeof cases / sizeof *cases));
}

static void swap(sst_seg *s, const char *expected, const char *desired, const char *answer) {
    char buf[64];
    size_t len = 0;
    CHECK_IS(sst_compare_set(s, SST_USER, "c", 1, expected, strlen(expected), desired, strlen(desired), buf, sizeof buf,
                             &len, soon(), 0),
             SST_OK);
    CHECK(len == strlen(answer) && memcmp(buf, answer, len) == 0);
}

static void compare_sets(twin *t) {
    char buf[2];
    size_t len = 0;
    int64_t v;
    swap(t->a, "x", "new", "x"); /* absent, and something was expected: the expectation comes back, nothing is made */
    CHECK_IS(here(t->b, "c"), 0);
    swap(t->a, "", "one", "one"); /* absent as expected: created */
    CHECK(holds(t->b, "c", "one"));
    swap(t->b, "two", "three", "one"); /* another value: it comes back */
    swap(t->b, "", "three", "one");
    CHECK(holds(t->a, "c", "one"));
    swap(t->b, "one", "two", "two");
    CHECK(holds(t->a, "c", "two"));
    CHECK_IS(sst_compare_set(t->a, SST_USER, "c", 1, "two", 3, "four", 4, buf, sizeof buf, &len, soon(), 0),
             SST_ENOBUFS);
    CHECK_IS(len, 4);
    CHECK(holds(t->a, "c", "two")); /* too small a buffer changes nothing */
    CHECK_IS(drop(t->a, "c"), 1);
    CHECK_IS(plus(t->a, "c", 12, &v), SST_OK);
    swap(t->b, "13", "x", "12"); /* a counter is its text */
    swap(t->b, "12", "", "");
    CHECK(holds(t->a, "c", ""));
    swap(t->b, "", "again", "again"); /* an empty value is an empty expectation's match */
    CHECK_IS(drop(t->a, "c"), 1);
}

static void appends(twin *t) {
    static char want[20001];
    static char got[20001];
    size_t n = 0, len = 0;
    int64_t v;
    for (int i = 0; n + 10 < sizeof want; i++, n += 10) { /* in place and moved, as the block's room decides */
        (void)snprintf(want + n, 11, "%010d", i);
        CHECK_IS(append(i % 2 ? t->a : t->b, "ap", want + n), SST_OK);
    }
    CHECK_IS(sst_get(t->b, SST_USER, "ap", 2, got, sizeof got, &len, soon(), 0), SST_OK);
    CHECK(len == n && memcmp(got, want, n) == 0);
    CHECK_IS(append(t->a, "ap", ""), SST_OK);
    CHECK_IS(append(t->a, "fresh", ""), SST_OK);
    CHECK(holds(t->b, "fresh", ""));
    CHECK_IS(plus(t->a, "num", 7, &v), SST_OK);
    CHECK_IS(append(t->b, "num", "8"), SST_OK);
    CHECK_IS(plus(t->a, "num", 1, &v), SST_OK);
    CHECK_IS(v, 79);
    CHECK_IS(drop(t->a, "ap") + drop(t->a, "fresh") + drop(t->a, "num"), 3);
}

static void value_limit(twin *t) {
    char *val = calloc(1, SST_VALUE_MAX), *got = malloc(SST_VALUE_MAX);
    size_t len = 0;
    CHECK(val && got);
    memset(val, 'm', SST_VALUE_MAX);
    CHECK_IS(sst_set(t->a, SST_USER, "max", 3, val, SST_VALUE_MAX, soon(), 0), SST_OK);
    CHECK_IS(append(t->b, "max", "1"), SST_ETOOBIG);
    CHECK_IS(sst_get(t->b, SST_USER, "max", 3, got, SST_VALUE_MAX, &len, soon(), 0), SST_OK);
    CHECK(len == SST_VALUE_MAX && memcmp(val, got, len) == 0);
    CHECK_IS(sst_get(t->b, SST_USER, "max", 3, got, SST_VALUE_MAX, &len, 0, SST_TRY), SST_EAGAIN);
    CHECK_IS(drop(t->a, "max"), 1);
    free(val);
    free(got);
}

static void multi_sets(twin *t) {
    static const uint32_t klens[] = {2, 2, 2, 2}, vlens[] = {1, 0, 3, 2};
    CHECK_IS(put(t->b, "m2", "old"), SST_OK);
    CHECK_IS(sst_multi_set(t->a, SST_USER, "m1m2m3m1", klens, "abcdef", vlens, 4, soon(), 0), SST_OK);
    CHECK(holds(t->b, "m1", "ef")); /* given twice: the last one */
    CHECK(holds(t->b, "m2", ""));
    CHECK(holds(t->b, "m3", "bcd"));
    CHECK_IS(num_keys(t->b, ""), 3);
    CHECK_IS(sst_multi_set(t->a, SST_USER, "", klens, "", vlens, 0, soon(), 0), SST_OK);
    static const uint32_t thrice_klens[] = {2, 2, 2, 2},
                          thrice_vlens[] = {40, 41, 3, 42}; /* blocks of their own each */
    static char vals[40 + 41 + 3 + 42];
    memset(vals, 'x', sizeof vals);
    for (int known = 0; known < 2; known++) {
        memset(vals + 40 + 41 + 3, 'y' + known, 42);
        CHECK_IS(sst_multi_set(t->a, SST_USER, "m4m4m5m4", thrice_klens, vals, thrice_vlens, 4, soon(), 0), SST_OK);
        char want[43] = {0};
        memset(want, 'y' + known, 42);
        CHECK(holds(t->b, "m4", want));
        CHECK(holds(t->b, "m5", "xxx"));
        clean(t->b); /* no block stands on the list in hand twice, or for ever */
    }
    CHECK_IS(drop(t->a, "m4") + drop(t->a, "m5"), 2);
    static const uint32_t bad_klens[] = {2, 0}, too_long[] = {1, SST_VALUE_MAX + 1};
    CHECK_IS(sst_multi_set(t->a, SST_USER, "n1", bad_klens, "a", vlens, 2, soon(), 0), SST_EINVAL);
    CHECK_IS(sst_multi_set(t->a, SST_USER, "n1n2", klens, "a", too_long, 2, soon(), 0), SST_ETOOBIG);
    CHECK_IS(here(t->b, "n1"), 0);
    CHECK_IS(drop(t->a, "m1") + drop(t->a, "m2") + drop(t->a, "m3"), 3);
}

static void multi_set_full(void) {
    enum { N = 100, LONG = 4000 };
    static char keys[N * 4 + 1], vals[N * LONG];
    uint32_t klens[N], vlens[N];
    twin t;
    twin_open(&t, sst_min_capacity(), SST_FUTEX);
    for (int i = 0; i < N; i++) {
        (void)snprintf(keys + 4 * i, 5, "f%03d", i);
        klens[i] = 4;
        vlens[i] = LONG;
    }
    CHECK_IS(put(t.b, "f007", "old"), SST_OK);
    CHECK_IS(sst_multi_set(t.a, SST_USER, keys, klens, vals, vlens, N, soon(), 0), SST_EFULL);
    CHECK_IS(num_keys(t.b, ""), 1); /* nothing was set */
    CHECK(holds(t.b, "f007", "old"));
    clean(t.b);
    CHECK_IS(sst_multi_set(t.a, SST_USER, keys, klens, vals, vlens, 3, soon(), 0), SST_OK);
    twin_shut(&t);
}

static void listing(twin *t) {
    enum { N = 1000 };
    char key[32], buf[512];
    size_t used = 0;
    for (int i = 0; i < N; i++) {
        (void)snprintf(key, sizeof key, "%s/%d", i % 4 ? "l" : "other", i);
        CHECK_IS(put(t->a, key, ""), SST_OK);
    }
    CHECK_IS(push(t->a, "l/queue", "x"), SST_OK); /* no key */
    CHECK_IS(num_keys(t->b, "l/"), N - N / 4);
    CHECK_IS(num_keys(t->b, "other/"), N / 4);
    CHECK_IS(num_keys(t->b, ""), N);
    CHECK_IS(num_keys(t->b, "nothing"), 0);
    int seen = 0, calls = 0, r = 1;
    uint32_t cursor = 0;
    for (; r == 1; calls++) {
        r = sst_list_keys(t->b, SST_USER, "l/", 2, &cursor, buf, sizeof buf, &used, soon(), 0);
        CHECK(r == 0 || r == 1);
        for (size_t at = 0; at < used; seen++) {
            uint32_t klen;
            memcpy(&klen, buf + at, 4);
            CHECK(klen >= 3 && memcmp(buf + at + 4, "l/", 2) == 0);
            at += 4 + klen;
            CHECK(at <= used);
        }
    }
    CHECK_IS(r, 0);
    CHECK_IS(seen, N - N / 4);
    CHECK(calls > 1);
    cursor = 0;
    CHECK_IS(sst_list_keys(t->b, SST_USER, "", 0, &cursor, buf, 3, &used, soon(), 0), SST_ENOBUFS);
    CHECK(used > 3);
    uint32_t stay = cursor;
    CHECK(sst_list_keys(t->b, SST_USER, "", 0, &cursor, buf, used, &used, soon(), 0) >= 0);
    CHECK(cursor > stay);
    (void)printf("list: %d keys in %d calls\n", seen, calls);
}

/* A live process holds a stripe in the middle of the list: what was read before it is handed out, and the next call is
 * the one that says so. */
static void list_past_a_holder(twin *t) {
    static char buf[65536];
    uint32_t cursor = 0;
    size_t used = 0;
    int keys = 0, busy = 0, r = 1;
    int64_t all = num_keys(t->a, "");
    CHECK_IS(sst_enter(t->a, SST_STRIPES / 2, soon(), 0), SST_OK);
    while (r != 0) {
        r = sst_list_keys(t->b, SST_USER, "", 0, &cursor, buf, sizeof buf, &used, in_ms(busy ? 60000 : 5), 0);
        CHECK(r == 0 || r == 1 || (r == SST_EBUSY && !busy));
        if (r == SST_EBUSY) {
            busy = 1;
            sst_exit(t->a, SST_STRIPES / 2, 0);
            continue;
        }
        for (size_t at = 0; at < used; keys++) {
            uint32_t klen;
            memcpy(&klen, buf + at, 4);
            at += 4 + klen;
        }
    }
    CHECK(busy);
    CHECK_IS(keys, all);
}

/* A key that was large once does not keep its large blocks behind a value without bytes. */
static void spares(void) {
    enum { LARGE = 300000 };
    static char val[LARGE];
    twin t;
    char key[8];
    int64_t v;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    for (int i = 0; i < 100; i++) { /* 30 MB in all */
        (void)snprintf(key, sizeof key, "s%d", i);
        CHECK_IS(sst_set(t.a, SST_USER, key, strlen(key), val, LARGE, soon(), 0), SST_OK);
        CHECK_IS(put(t.b, key, i % 2 ? "" : "41"), SST_OK);
        if (i % 2)
            CHECK_IS(put(t.b, key, ""), SST_OK);
        else
            CHECK_IS(plus(t.b, key, 1, &v), SST_OK);
    }
    CHECK_IS(num_keys(t.a, ""), 100);
    CHECK(holds(t.a, "s0", "42") && holds(t.a, "s99", ""));
    twin_shut(&t);
}

int main(void) {
    EACH_ENGINE(engine) {
        twin t;
        twin_open(&t, 64 * MIB, engine);
        set_get_delete(&t);
        adds(&t);
        compare_sets(&t);
        appends(&t);
        multi_sets(&t);
        value_limit(&t);
        clean(t.b);
        listing(&t);
        list_past_a_holder(&t);
        twin_shut(&t);
    }
    multi_set_full();
    spares();
    return 0;
}
