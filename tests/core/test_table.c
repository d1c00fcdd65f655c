/* test_table.c -- the hash table: many keys, chains, binary keys, spaces, limits. */
#include "check.h"
#include "table.h"

#define MANY 10000

static void many(void) {
    twin t;
    char key[32], val[32];
    twin_open(&t, 4 * MIB, SST_FUTEX); /* fewer buckets than keys */
    for (int i = 0; i < MANY; i++) {
        (void)snprintf(key, sizeof key, "key/%d", i);
        (void)snprintf(val, sizeof val, "%d", i * 7);
        CHECK_IS(put(i % 2 ? t.a : t.b, key, val), SST_OK);
    }
    CHECK_IS(num_keys(t.a, ""), MANY);
    CHECK_IS(num_keys(t.b, "key/"), MANY);
    clean(t.a);
    for (int i = 0; i < MANY; i++) {
        (void)snprintf(key, sizeof key, "key/%d", i);
        (void)snprintf(val, sizeof val, "%d", i * 7);
        CHECK(holds(i % 2 ? t.b : t.a, key, val));
        if (i % 3 == 0)
            CHECK_IS(drop(i % 2 ? t.a : t.b, key), 1);
    }
    int left = 0;
    for (int i = 0; i < MANY; i++) {
        (void)snprintf(key, sizeof key, "key/%d", i);
        CHECK_IS(here(t.a, key), i % 3 != 0);
        left += i % 3 != 0;
    }
    CHECK_IS(num_keys(t.b, ""), left);
    twin_shut(&t);
    (void)printf("many: %d keys set and read, %d left\n", MANY, left);
}

/* Keys that share stripe and bucket: the chain's head, middle and tail are deleted in turn, and set again. */
static void chains(void) {
    enum { LONG = 6 };
    char names[LONG][32];
    twin t;
    sst_key first, k;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    int n = 0, tried = 0;
    for (; n < LONG; tried++) {
        int len = snprintf(names[n], sizeof names[n], "c%d", tried);
        CHECK_IS(sst_key_make(t.a, SST_USER, names[n], (size_t)len, &k), SST_OK);
        if (n == 0)
            first = k;
        n += k.stripe == first.stripe && k.bucket == first.bucket;
    }
    for (int gone = 0; gone < LONG; gone++) {
        for (int i = 0; i < LONG; i++)
            CHECK_IS(put(i % 2 ? t.a : t.b, names[i], names[i]), SST_OK);
        CHECK_IS(drop(t.a, names[gone]), 1);
        CHECK_IS(drop(t.b, names[gone]), 0);
        clean(t.b);
        for (int i = 0; i < LONG; i++)
            CHECK_IS(holds(t.b, names[i], names[i]), i != gone);
        CHECK_IS(num_keys(t.b, ""), LONG - 1);
    }
    twin_shut(&t);
    (void)printf("chains: %d of %d keys in one bucket\n", LONG, tried);
}

static void binary(void) {
    static const char keys[][6] = {"a", "a\0", "a\0b", "\0", "\0\0", "\xff\xfe", "/", "a\nb"};
    static const size_t lens[] = {1, 2, 3, 1, 2, 2, 1, 3};
    enum { N = sizeof lens / sizeof *lens };
    twin t;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    for (int i = 0; i < N; i++) {
        char val = (char)i;
        CHECK_IS(sst_set(t.a, SST_USER, keys[i], lens[i], &val, 1, soon(), 0), SST_OK);
    }
    CHECK_IS(num_keys(t.b, ""), N);
    for (int i = 0; i < N; i++) {
        char got = 127;
        size_t len = 0;
        CHECK_IS(sst_get(t.b, SST_USER, keys[i], lens[i], &got, 1, &len, soon(), 0), SST_OK);
        CHECK_IS(len, 1);
        CHECK_IS(got, i);
        CHECK_IS(sst_check(t.b, SST_RAW, keys[i], lens[i], soon(), 0), 0); /* another space */
    }
    CHECK_IS(sst_set(t.b, SST_RAW, "a", 1, "raw", 3, soon(), 0), SST_OK);
    CHECK_IS(num_keys(t.a, ""), N); /* raw keys are not counted among the user's */
    CHECK_IS(sst_delete(t.a, SST_USER, "a", 1, soon(), 0), 1);
    CHECK_IS(sst_check(t.a, SST_RAW, "a", 1, soon(), 0), 1);
    twin_shut(&t);
    (void)printf("binary: %d keys with NULs and high bytes\n", N);
}

static void limits(void) {
    static char key[SST_KEY_MAX + 1], got[8];
    size_t len = 0;
    twin t;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    memset(key, 'k', sizeof key);
    CHECK_IS(sst_set(t.a, SST_USER, key, SST_KEY_MAX, "long", 4, soon(), 0), SST_OK);
    CHECK_IS(sst_get(t.b, SST_USER, key, SST_KEY_MAX, got, sizeof got, &len, soon(), 0), SST_OK);
    CHECK_IS(len, 4);
    clean(t.b);
    CHECK_IS(sst_check(t.b, SST_USER, key, SST_KEY_MAX - 1, soon(), 0), 0);
    CHECK_IS(sst_set(t.a, SST_USER, key, SST_KEY_MAX + 1, "x", 1, soon(), 0), SST_EINVAL);
    CHECK_IS(sst_get(t.a, SST_USER, key, SST_KEY_MAX + 1, got, sizeof got, &len, soon(), 0), SST_EINVAL);
    CHECK_IS(sst_set(t.a, SST_USER, key, 0, "x", 1, soon(), 0), SST_EINVAL);
    CHECK_IS(sst_set(t.a, SST_RAW + 1, "k", 1, "x", 1, soon(), 0), SST_EINVAL);
    CHECK_IS(sst_queue_push(t.a, SST_USER, key, SST_KEY_MAX + 1, "x", 1, soon(), 0), SST_EINVAL);
    CHECK_IS(num_keys(t.a, ""), 1);
    for (size_t n = 1; n <= 300; n++) { /* lengths around the words that a hash and a comparison read */
        CHECK_IS(sst_set(t.a, SST_USER, key, n, key, n, soon(), 0), SST_OK);
        CHECK_IS(sst_check(t.b, SST_USER, key, n, soon(), 0), 1);
        key[n - 1] = 'x';
        CHECK_IS(sst_check(t.b, SST_USER, key, n, soon(), 0), 0);
        key[n - 1] = 'k';
    }
    CHECK_IS(num_keys(t.b, "k"), 301);
    twin_shut(&t);
    (void)printf("limits: keys of 1..300 and %d bytes, not 0 nor %d\n", SST_KEY_MAX, SST_KEY_MAX + 1);
}

int main(void) {
    many();
    chains();
    binary();
    limits();
    return 0;
}
