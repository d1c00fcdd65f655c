/* test_verify.c -- each invariant, broken alone, is named by sst_verify, through a live view and an inspector. */
#include "check.h"
#include "guard.h"
#include "heap.h"

static void furnish(sst_seg *s) {
    int64_t v;
    char key[32];
    for (int i = 0; i < 40; i++) {
        (void)snprintf(key, sizeof key, "key/%d", i);
        CHECK_IS(put(s, key, "a value of some length"), SST_OK);
        CHECK_IS(put(s, key, "another"), SST_OK);
    }
    CHECK_IS(drop(s, "key/3"), 1);
    CHECK_IS(plus(s, "counter", 3, &v), SST_OK);
    CHECK_IS(push(s, "queue", "one"), SST_OK);
    CHECK_IS(push(s, "queue", "two"), SST_OK);
    sst_bar bar;
    CHECK_IS(sst_bar_open(s, SST_USER, "barrier", 7, 40, 3, 0, soon(), &bar), SST_OK);
    CHECK_IS(sst_rank_register(s, 2), SST_OK);
}

/* 1: the report has a line that starts with the invariant's name. */
static int named(const char *report, const char *name) {
    const char *at = strstr(report, name);
    return at != NULL && (at == report || at[-1] == '\n');
}

/* A live view and an inspector both name it; then the segment is thrown away. */
static void both_name(twin *t, const char *name) {
    static char report[8192];
    sst_seg *looker = NULL;
    CHECK_IS(sst_inspect(t->fd, &looker), SST_OK);
    for (int live = 0; live < 2; live++) {
        CHECK(sst_verify(live ? t->b : looker, report, sizeof report) >= 1);
        CHECK(named(report, name));
    }
    sst_free(looker);
    let_go(t->b);
    let_go(t->a);
    (void)close(t->fd);
}

/* A chain leads to a block too small for an entry, and it is the last one before the published end: nothing behind its
 * payload may be touched. */
static void chain_to_the_edge(void) {
    twin t;
    uint32_t ref = 0, *empty = NULL;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    furnish(t.a);
    CHECK_IS(sst_enter(t.a, 0, soon(), 0), SST_OK);
    do /* until the free ones are used up and one is cut */
        CHECK_IS(sst_block_new(t.a, 0, 20, soon(), 0, &ref), SST_OK);
    while ((uint64_t)ref * 16 + sst_heap_bytes(0) != ld64(&sst_heap_of(t.a)->brk));
    sst_block_keep(t.a, ref);
    for (uint32_t b = 0; b < t.a->buckets && empty == NULL; b++)
        if (ld32(sst_bucket_at(t.a, 0, b)) == 0)
            empty = sst_bucket_at(t.a, 0, b);
    CHECK(empty != NULL);
    st32(empty, ref);
    st64(&sst_header_of(t.a)->size, ld64(&sst_heap_of(t.a)->brk));
    sst_exit(t.a, 0, 0);
    both_name(&t, "chain");
}

/* A queue whose list leads out of the heap, and one without an item. */
static void queue_without_items(uint32_t first) {
    twin t;
    sst_key k;
    sst_place place;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    furnish(t.a);
    CHECK_IS(sst_key_make(t.a, SST_USER, "queue", 5, &k), SST_OK);
    CHECK_IS(sst_table_find(t.a, &k, SST_KIND_QUEUE, &place), SST_OK);
    st32(&place.entry->value[0], first);
    st32(&place.entry->value[1], first);
    st64(&place.entry->word, 0);
    both_name(&t, "queue");
}

/* Keys made to collide: their second word takes the hash back to 0, whatever the first one was. All of them stand in one
 * chain, and a search for each key's twin from the chain's head would take their number squared. */
static uint64_t folded(uint64_t a, uint64_t b) {
    unsigned __int128 m = (unsigned __int128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

static void one_chain(void) {
    enum { LONG = 40000 };
    twin t;
    sst_key k = {0};
    twin_open(&t, 8 * MIB, SST_FUTEX);
    for (uint64_t i = 0; i < LONG; i++) {
        uint64_t words[3] = {i, 0, 0};
        uint32_t ref, stripe = k.stripe;
        words[1] = folded((t.a->seed ^ sizeof words * UINT64_C(0x9e3779b97f4a7c15)) ^ i, UINT64_C(0xd6e8feb86659fd93));
        CHECK_IS(sst_key_make(t.a, SST_USER, (const char *)words, sizeof words, &k), SST_OK);
        CHECK(i == 0 || k.stripe == stripe);
        CHECK_IS(sst_enter(t.a, k.stripe, soon(), 0), SST_OK);
        CHECK_IS(sst_block_new(t.a, k.stripe, sizeof(sst_entry) + sizeof words, soon(), 0, &ref), SST_OK);
        sst_entry *e = sst_payload(t.a, ref, sizeof(sst_entry) + sizeof words);
        sst_table_fill(e, &k, SST_KIND_KEY);
        st64(&e->word, SST_WORD(SST_FORM_COUNTER, 0, 0));
        uint32_t *head = sst_bucket_at(t.a, k.stripe, k.bucket);
        st32(&e->next, ld32(head));
        st32(head, ref);
        sst_block_keep(t.a, ref);
        sst_stripe *st = sst_stripe_at(t.a, k.stripe);
        st32(&st->entries, ld32(&st->entries) + 1);
        st32(&st->keys[0], ld32(&st->keys[0]) + 1);
        sst_exit(t.a, k.stripe, 0);
    }
    both_name(&t, "unique");
}

int main(void) {
    static char report[8192];
    int both = 0;
    CHECK_IS(sst_verify(NULL, report, 0), SST_EINVAL);
    CHECK(sst_invariant_name(-1) == NULL && sst_invariant_name(sst_invariants()) == NULL);
    for (int i = 0; i < sst_invariants(); i++) {
        twin t;
        sst_seg *looker = NULL;
        twin_open(&t, 2 * MIB, SST_FUTEX);
        furnish(t.a);
        clean(t.b);
        CHECK_IS(sst_inspect(t.fd, &looker), SST_OK);
        clean(looker);
        CHECK_IS(sst_test_break(t.a, i), SST_OK);
        int seen = 0;
        for (int live = 0; live < 2; live++) { /* the inspector first: it heals nothing */
            int n = sst_verify(live ? t.b : looker, report, sizeof report);
            if (n < 1 || !named(report, sst_invariant_name(i))) {
                (void)fprintf(stderr, "%s view: '%s' broken, verify says %d:\n%s", live ? "live" : "inspecting",
                              sst_invariant_name(i), n, report);
                CHECK(0);
            }
            seen++;
        }
        both += seen == 2;
        sst_free(looker);
        let_go(t.b);
        let_go(t.a);
        (void)close(t.fd);
    }
    (void)printf("verify: %d of %d invariants broken and named\n", both, sst_invariants());
    chain_to_the_edge();
    one_chain();
    queue_without_items(0);
    queue_without_items(UINT32_MAX);
    return 0;
}
