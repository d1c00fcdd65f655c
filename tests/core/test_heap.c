/* test_heap.c -- size classes, take and give, a full segment, growth. */
#include "check.h"
#include "guard.h"
#include "heap.h"

/* The kernel under a timer: what is longer than `longest` does not end before a signal, and all of it is undone. It
 * stands before libc's in the link. */
static uint64_t longest = UINT64_MAX;
static int interrupted;

int posix_fallocate(int fd, off_t at, off_t len) {
    if ((uint64_t)len > longest) {
        interrupted++;
        return EINTR;
    }
    return fallocate(fd, 0, at, len) == 0 ? 0 : errno;
}

static void classes(void) {
    uint64_t sizes = 0;
    for (uint64_t n = 1; n <= 9 * MIB; n++, sizes++) {
        uint32_t c = sst_heap_class(n);
        if (c < SST_CLASSES && sst_heap_room(c) >= n && (c == 0 || sst_heap_room(c - 1) < n)) {
            uint64_t bytes = sst_heap_bytes(c), waste = bytes - n - sizeof(sst_block);
            if (bytes % 16 == 0 && (c == 0 || waste < 16 || waste * 5 <= bytes))
                continue;
        }
        (void)fprintf(stderr, "payload %llu: class %u of %llu bytes\n", (unsigned long long)n, c,
                      (unsigned long long)sst_heap_bytes(c));
        CHECK(0);
    }
    CHECK_IS(sst_heap_class(sst_heap_room(SST_CLASSES - 1)), SST_CLASSES - 1);
    CHECK_IS(sst_heap_class(sst_heap_room(SST_CLASSES - 1) + 1), SST_CLASSES);
    CHECK_IS(sst_heap_room(SST_CLASSES), 0);
    (void)printf("classes: %llu sizes fit theirs and waste at most a fifth\n", (unsigned long long)sizes);
}

/* A block that no verb keeps goes back on exit and is the next one taken, through either view. */
static void take_and_give(void) {
    twin t;
    twin_open(&t, 4 * MIB, SST_FUTEX);
    int taken = 0;
    for (uint64_t n = 1; n < 200000; n = n * 3 / 2 + 1) {
        uint32_t first = 0, second = 0, third = 0;
        CHECK_IS(sst_enter(t.a, 5, soon(), 0), SST_OK);
        CHECK_IS(sst_block_new(t.a, 5, n, soon(), 0, &first), SST_OK);
        CHECK_IS(sst_block_new(t.a, 5, n, soon(), 0, &second), SST_OK);
        CHECK(first != second);
        CHECK(sst_block_room(t.a, first) >= n);
        sst_exit(t.a, 5, 0);
        clean(t.b);
        CHECK_IS(sst_enter(t.b, 6, soon(), 0), SST_OK);
        CHECK_IS(sst_block_new(t.b, 6, n, soon(), 0, &third), SST_OK);
        CHECK(third == first || third == second);
        sst_exit(t.b, 6, 0);
        clean(t.a);
        taken += 3;
    }
    twin_shut(&t);
    (void)printf("take and give: %d blocks\n", taken);
}

static int fill_up(sst_seg *s, const char *val, size_t vlen, int *n) {
    for (*n = 0;; ++*n) {
        char key[32];
        int klen = snprintf(key, sizeof key, "full/%d", *n);
        int r = sst_set(s, SST_USER, key, (size_t)klen, val, vlen, soon(), 0);
        if (r != SST_OK)
            return r;
    }
}

/* A full segment says so, loses nothing, and goes on as soon as something is deleted. */
static void full(void) {
    static char val[1000];
    twin t;
    twin_open(&t, sst_min_capacity(), SST_FUTEX);
    memset(val, 'v', sizeof val);
    int n = 0, again = 0;
    int64_t value;
    CHECK_IS(fill_up(t.a, val, sizeof val, &n), SST_EFULL);
    CHECK(n > 10);
    clean(t.b);
    CHECK_IS(num_keys(t.b, ""), n);
    CHECK_IS(sst_set(t.b, SST_USER, "big", 3, val, sizeof val, soon(), 0), SST_EFULL);
    CHECK_IS(sst_append(t.b, SST_USER, "full/0", 6, val, sizeof val, soon(), 0), SST_EFULL);
    CHECK_IS(here(t.b, "big"), 0);
    for (int i = 0; i < n; i++) {
        char key[32];
        (void)snprintf(key, sizeof key, "full/%d", i);
        CHECK_IS(drop(t.b, key), 1);
    }
    CHECK_IS(num_keys(t.a, ""), 0);
    clean(t.a);
    CHECK_IS(fill_up(t.b, val, sizeof val, &again), SST_EFULL);
    CHECK_IS(again, n); /* nothing leaked: the same keys fit again */
    CHECK_IS(drop(t.a, "full/3"), 1);
    CHECK_IS(plus(t.a, "counter", 5, &value), SST_OK); /* a larger free block serves a small need */
    CHECK_IS(value, 5);
    CHECK(holds(t.b, "counter", "5"));
    twin_shut(&t);
    (void)printf("full: %d keys of 1000 bytes in the smallest segment, twice\n", n);
}

/* The file grows under one view; the other, mapped before, reads what lies in the new part. */
static void growth(void) {
    static char val[300000], got[300000];
    twin t;
    sst_info before, after;
    twin_open(&t, 64 * MIB, SST_FUTEX);
    CHECK_IS(sst_stat(t.b, &before), SST_OK);
    CHECK_IS(before.capacity, 64 * MIB);
    uint64_t last = before.size;
    int steps = 0;
    for (int i = 0; i < 100; i++) {
        char key[32];
        size_t len = 0;
        int klen = snprintf(key, sizeof key, "grow/%d", i);
        memset(val, 'a' + i % 26, sizeof val);
        CHECK_IS(sst_set(t.a, SST_USER, key, (size_t)klen, val, sizeof val, soon(), 0), SST_OK);
        CHECK_IS(sst_get(t.b, SST_USER, key, (size_t)klen, got, sizeof got, &len, soon(), 0), SST_OK);
        CHECK_IS(len, sizeof val);
        CHECK(memcmp(got, val, len) == 0);
        CHECK_IS(sst_stat(t.b, &after), SST_OK);
        CHECK(after.size >= last && after.size <= after.capacity && after.used <= after.size);
        steps += after.size > last;
        last = after.size;
    }
    CHECK(steps > 3);
    CHECK(last > before.size + 30 * MIB / 2);
    CHECK_IS(sst_set(t.a, SST_USER, "t", 1, val, SST_TRY_COPY, soon(), 0), SST_OK);
    CHECK_IS(sst_set(t.a, SST_USER, "t", 1, val, SST_TRY_COPY + 1, 0, SST_TRY), SST_EAGAIN);
    twin_shut(&t);
    (void)printf("growth: %d steps to %llu bytes\n", steps, (unsigned long long)last);
}

/* A growth that signals cut short goes on in smaller steps; where not a page comes through, the verb did nothing. */
static void signals(void) {
    static char val[300000];
    twin t;
    sst_info before, after;
    int keys = 0;
    longest = 64 << 10; /* the first bytes of a segment are more: it is made all the same */
    twin_open(&t, 64 * MIB, SST_FUTEX);
    CHECK(interrupted > 0);
    CHECK_IS(sst_stat(t.b, &before), SST_OK);
    for (longest = 4096; longest <= 1 << 20; longest *= 16) {
        interrupted = 0;
        CHECK_IS(sst_set(t.a, SST_USER, (const char *)&longest, sizeof longest, val, sizeof val, soon(), 0), SST_OK);
        CHECK_IS(sst_stat(t.b, &after), SST_OK);
        CHECK(interrupted > 0 && after.size > before.size && after.size % 4096 == 0);
        before = after;
        keys++;
    }
    longest = 4095;
    int i = 0, r = SST_OK;
    while (r == SST_OK) { /* until the last growth's surplus is used up */
        i++;
        r = sst_set(t.a, SST_USER, (const char *)&i, sizeof i, val, sizeof val, soon(), 0);
    }
    for (int again = 0; again < 3; again++) {
        CHECK_IS(r, SST_EINTR);
        CHECK_IS(num_keys(t.b, ""), keys + i - 1);
        clean(t.b);
        r = sst_set(t.a, SST_USER, (const char *)&i, sizeof i, val, sizeof val, soon(), 0);
    }
    longest = UINT64_MAX;
    CHECK_IS(sst_set(t.a, SST_USER, (const char *)&i, sizeof i, val, sizeof val, soon(), 0), SST_OK);
    twin_shut(&t);
    (void)printf("signals: growth in steps down to a page\n");
}

/* No file space is allocated under SST_TRY. */
static void try_never_grows(void) {
    static char val[60000];
    twin t;
    twin_open(&t, 16 * MIB, SST_FUTEX);
    int n = 0, r = SST_OK;
    for (; n < 1000 && r == SST_OK; n++) {
        char key[32];
        int klen = snprintf(key, sizeof key, "try/%d", n);
        r = sst_set(t.a, SST_USER, key, (size_t)klen, val, sizeof val, 0, SST_TRY);
        if (r == SST_EAGAIN) {
            sst_info i, j;
            CHECK_IS(sst_stat(t.a, &i), SST_OK);
            CHECK_IS(sst_set(t.b, SST_USER, key, (size_t)klen, val, sizeof val, 0, SST_TRY), SST_EAGAIN);
            CHECK_IS(sst_stat(t.a, &j), SST_OK);
            CHECK_IS(i.size, j.size);
            CHECK_IS(sst_set(t.a, SST_USER, key, (size_t)klen, val, sizeof val, soon(), 0), SST_OK);
            break;
        }
    }
    CHECK_IS(r, SST_EAGAIN);
    twin_shut(&t);
    (void)printf("try: %d sets before the file had to grow\n", n);
}

int main(void) {
    classes();
    take_and_give();
    full();
    growth();
    signals();
    try_never_grows();
    return 0;
}
