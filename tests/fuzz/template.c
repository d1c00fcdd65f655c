/* template.c -- the segment that each execution starts from, one an engine. */
#include "fuzz.h"
#include "check.h"
#include "clock.h"
#include "guard.h"
#include "heap.h"
#include "park.h"
#include "table.h"
#include "waiter.h"

#include <sys/stat.h>

/* -- time --------------------------------------------------------------------------------------------------------- */
/* A clock that each look moves, in steps that grow: whoever looks again and again, as who waits for a lock does, is
 * past any deadline after a few hundred looks. It starts a second after boot, so that what is left of a park ends at
 * once. */
static uint64_t virtual_ns, step_ns;

static uint64_t next_ns(void) {
    if (step_ns < 20 * MS)
        step_ns += step_ns / 8;
    return virtual_ns += step_ns;
}

void fz_tick(void) { step_ns = 1000; }

static void start_clock(void) {
    virtual_ns = SEC;
    fz_tick();
    sst_clock = next_ns;
}

/* The engines with the waiting left out: the deadline comes at once. Of what they do in the segment the futex engine does
 * nothing, and the semaphore engine does it REAL times an execution: a timer that has expired costs the kernel 15 us. */
enum { REAL = 2 };
static uint32_t real_parks;

static int park_futex(sst_seg *s, uint32_t *word, uint32_t value, uint64_t deadline_ns, uint32_t waiter) {
    (void)s, (void)waiter;
    if (deadline_ns > virtual_ns && deadline_ns != SST_FOREVER)
        virtual_ns = deadline_ns;
    return ld32(word) == value ? SST_ETIMEDOUT : SST_OK;
}

static int park_sem(sst_seg *s, uint32_t *word, uint32_t value, uint64_t deadline_ns, uint32_t waiter) {
    if (real_parks++ < REAL)
        (void)sst_park_sem()->park(s, word, value, 1, waiter);
    return park_futex(s, word, value, deadline_ns, waiter);
}

void fz_hurry(sst_seg *s) {
    static sst_park_engine futex = {park_futex, NULL}, sem = {park_sem, NULL};
    sst_park_engine *quick = s->park == sst_park_futex() ? &futex : &sem;
    quick->unpark = s->park->unpark;
    s->park = quick;
}

/* -- what is in it ------------------------------------------------------------------------------------------------- */
static char bytes[8192];

static void name_key(fz_segment *f, uint32_t i, uint32_t space, const char *name) {
    fz_key *key = &f->key[i];
    sst_key k;
    key->len = (uint32_t)snprintf(key->name, sizeof key->name, "%s", name);
    key->space = space;
    CHECK_IS(sst_key_make(f->a, space, key->name, key->len, &k), SST_OK);
    key->stripe = k.stripe;
    key->bucket = k.bucket;
}

/* Keys 0..5 share a bucket. */
static void name_chain(fz_segment *f) {
    char name[32];
    for (uint32_t i = 0, tried = 0; i < 6; tried++) {
        (void)snprintf(name, sizeof name, "c%u", tried);
        name_key(f, i, SST_USER, name);
        i += f->key[i].stripe == f->key[0].stripe && f->key[i].bucket == f->key[0].bucket;
    }
}

static void name_keys(fz_segment *f) {
    static const char *const names[] = {"big", "counter", "text", "one", "five", "", "raw", "empty", "held", "grown"};
    char longest[301];
    memset(longest, 'k', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    name_chain(f);
    for (uint32_t i = 0; i < sizeof names / sizeof *names; i++)
        name_key(f, 6 + i, i == 6 ? SST_RAW : SST_USER, i == 5 ? longest : names[i]);
    f->keys = 16;
    name_key(f, 16, SST_USER, "new");
    name_key(f, 17, SST_RAW, "new");
    name_key(f, 18, SST_USER, "another new one");
    name_key(f, 19, SST_USER, "a third that is not there, with a longer name than the others have");
}

static void set_bytes(fz_segment *f, uint32_t i, size_t n) {
    CHECK_IS(sst_set(f->a, f->key[i].space, f->key[i].name, f->key[i].len, bytes, n, soon(), 0), SST_OK);
}

static void push_bytes(fz_segment *f, uint32_t i, size_t n) {
    CHECK_IS(sst_queue_push(f->a, f->key[i].space, f->key[i].name, f->key[i].len, bytes, n, soon(), 0), SST_OK);
}

static void fill_keys(fz_segment *f) {
    int64_t v;
    for (uint32_t i = 0; i < 6; i++)
        for (size_t n = 0; n < 2; n++)
            set_bytes(f, i, 10 + 30 * i + n);
    push_bytes(f, 0, 20); /* a queue beside the key of its name */
    set_bytes(f, 6, 6000);
    set_bytes(f, 6, 5000);
    CHECK_IS(plus(f->a, "counter", 41, &v), SST_OK);
    CHECK_IS(put(f->a, "text", " 12 "), SST_OK);
    push_bytes(f, 9, 5);
    for (size_t n = 0; n < 5; n++)
        push_bytes(f, 10, 100 * n);
    set_bytes(f, 11, 33);
    set_bytes(f, 12, 44);
    set_bytes(f, 13, 0);
    set_bytes(f, 14, 99);
    set_bytes(f, 15, 10);
    CHECK_IS(append(f->a, "grown", "and more than was there before"), SST_OK);
}

/* Free blocks of several classes, some lists of more than one. */
static void free_some(fz_segment *f) {
    char name[32];
    for (int gone = 0; gone < 2; gone++)
        for (int i = 0; i < 24; i++) {
            (void)snprintf(name, sizeof name, "gone/%d", i);
            if (gone)
                CHECK_IS(drop(f->a, name), 1);
            else
                CHECK_IS(sst_set(f->a, SST_USER, name, strlen(name), bytes, (size_t)(i % 8) * 40, soon(), 0), SST_OK);
        }
}

/* A barrier with ranks, whose seats are a rank's, a process's and one of the dead; and a larger one without. */
enum { RANKED = 8, COUNTED = 2 };
static sst_bar open_barrier(const fz_segment *f, sst_seg *s, uint32_t key, uint32_t parties, int32_t rank,
                            uint32_t who) {
    sst_bar bar;
    CHECK_IS(sst_bar_open(s, SST_USER, f->key[key].name, f->key[key].len, parties, rank, who, soon(), &bar), SST_OK);
    return bar;
}

static void meet_some(fz_segment *f) {
    sst_arrival a = {0}, b = {0};
    sst_bar bar = open_barrier(f, f->a, RANKED, 3, 0, 2);
    f->point[0] = bar.block;
    bar = open_barrier(f, f->b, RANKED, 3, 1, 0);
    CHECK_IS(sst_bar_wait(f->b, &bar, &a, soon(), 1), SST_EAGAIN); /* and keeps its waiter slot */
    bar = open_barrier(f, f->a, COUNTED, 40, SST_NO_RANK, 0);
    f->point[1] = bar.block;
    CHECK_IS(sst_bar_arrive(f->a, &bar, &b, 0), SST_EAGAIN);
}

/* b waits for a key, in a line and at a barrier. */
static void wait_some(fz_segment *f) {
    char text[8];
    size_t len;
    uint32_t w[3] = {0}, arrived = 0;
    int64_t count;
    CHECK_IS(sst_wait(f->b, SST_USER, "new", 3, &w[0], 1, soon(), 1, 0), SST_EAGAIN);
    CHECK_IS(sst_queue_pop(f->b, SST_USER, "new", 3, 1, text, sizeof text, &len, &w[1], 0, soon(), 1, 0), SST_EAGAIN);
    CHECK_IS(sst_barrier(f->b, SST_USER, "bar", 3, 2, &arrived, &count, &w[2], 0, soon(), 1), SST_EAGAIN);
}

/* A process that dies with a stripe locked, a linked value and two fresh blocks in hand, in a line, and with a rank. */
static void die(fz_segment *f) {
    const fz_key *held = &f->key[14];
    (void)fflush(NULL);
    pid_t pid = fork();
    int status = 0;
    CHECK(pid >= 0);
    if (pid == 0) {
        uint32_t ref, w = 0;
        char text[8];
        size_t len;
        sst_key k;
        sst_place place;
        sst_seg *s = attach(f->fd);
        CHECK_IS(sst_rank_register(s, 3), SST_OK);
        (void)open_barrier(f, s, RANKED, 3, 2, 4);
        CHECK_IS(sst_queue_pop(s, SST_USER, "new", 3, 1, text, sizeof text, &len, &w, 0, soon(), 1, 0), SST_EAGAIN);
        CHECK_IS(sst_key_make(s, SST_USER, held->name, held->len, &k), SST_OK);
        CHECK_IS(sst_enter(s, k.stripe, soon(), 0), SST_OK);
        CHECK_IS(sst_table_find(s, &k, SST_KIND_KEY, &place), SST_OK);
        CHECK_IS(sst_block_drop(s, k.stripe, ld32(&place.entry->value[0])), SST_OK);
        CHECK_IS(sst_block_new(s, k.stripe, 60, soon(), 0, &ref), SST_OK);
        CHECK_IS(sst_block_new(s, k.stripe, 700, soon(), 0, &ref), SST_OK);
        sst_write_begin(sst_stripe_at(s, k.stripe));
        _exit(0);
    }
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    f->dead = ld32(&sst_stripe_at(f->a, held->stripe)->lock) & SST_OWNER_MASK;
    CHECK(f->dead != 0 && f->dead != f->me && f->dead != f->other);
}

/* -- a register of it ------------------------------------------------------------------------------------------------ */
static void note_ref(fz_segment *f, uint32_t sort, uint32_t ref) {
    fz_refs *to = &f->blocks[sort];
    if (ref != 0 && to->n < FZ_BLOCKS)
        to->ref[to->n++] = ref;
}

static void note_entry(fz_segment *f, uint32_t ref) {
    const sst_entry *e = sst_payload(f->a, ref, sizeof *e);
    CHECK(e != NULL);
    if (SST_META_KIND(ld32(&e->meta)) != SST_KIND_QUEUE)
        for (int i = 0; i < 2; i++)
            note_ref(f, FZ_VALUE, ld32(&e->value[i]));
    else
        for (uint32_t item = ld32(&e->value[0]); item != 0;) {
            const sst_item *it = sst_payload(f->a, item, sizeof *it);
            CHECK(it != NULL);
            note_ref(f, FZ_ITEM, item);
            item = ld32(&it->next);
        }
}

static void note_blocks(fz_segment *f) {
    uint64_t at = (uint64_t)f->a->blocks * 16, brk = ld64(&sst_heap_of(f->a)->brk);
    while (at < brk) {
        uint32_t ref = (uint32_t)(at / 16), tag = ld32(&sst_block_of(f->a, ref)->tag);
        note_ref(f, FZ_ALL, ref);
        if (SST_TAG_STATE(tag) == SST_BLOCK_FREE)
            note_ref(f, FZ_FREE, ref);
        at += sst_heap_bytes(SST_TAG_CLS(tag));
    }
    const fz_key *held = &f->key[14];
    for (uint32_t ref = ld32(&sst_stripe_at(f->a, held->stripe)->inflight); ref != 0;) {
        note_ref(f, FZ_IN_HAND, ref);
        ref = ld32(&sst_block_of(f->a, ref)->link);
    }
}

static void note_keys(fz_segment *f) {
    for (uint32_t i = 0; i < f->keys; i++)
        for (uint32_t kind = SST_KIND_KEY; kind <= SST_KIND_BARRIER; kind++) {
            fz_key *key = &f->key[i];
            sst_key k;
            sst_place place;
            CHECK_IS(sst_key_make(f->a, key->space, key->name, key->len, &k), SST_OK);
            CHECK_IS(sst_table_find(f->a, &k, kind, &place), SST_OK);
            if (place.entry == NULL)
                continue;
            note_entry(f, place.ref);
            if (key->entry == 0)
                key->entry = place.ref;
        }
}

static void note_slots(fz_segment *f) {
    for (uint32_t i = 0; i < SST_WAITERS_MAX && f->slots < FZ_SLOTS; i++)
        if (ld32(&sst_waiter_at(f->a, i)->owner) != 0)
            f->slot[f->slots++] = i;
    CHECK_IS(f->slots, 5);
}

static void take_note(fz_segment *f) {
    struct stat st;
    note_blocks(f);
    note_keys(f);
    note_slots(f);
    for (int sort = 0; sort < FZ_SORTS; sort++)
        CHECK(f->blocks[sort].n >= 3);
    CHECK_IS(fstat(f->fd, &st), 0);
    f->size = (size_t)st.st_size;
    CHECK(f->size % 4096 == 0 && f->size < f->a->capacity); /* so that a read outside is a SIGBUS */
    f->raw = mmap(NULL, f->a->capacity, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
    f->copy = aligned_alloc(4096, f->size);
    CHECK(f->raw != MAP_FAILED && f->copy != NULL);
    memcpy(f->copy, f->raw, f->size);
}

static void make(fz_segment *f, uint32_t engine) {
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)('!' + i % 90);
    f->fd = new_file();
    CHECK_IS(sst_create(open_again(f->fd), open_again(f->fd), sst_min_capacity() + 65536 * 4, engine, 0, 0, 77, &f->a),
             SST_OK);
    f->b = attach(f->fd);
    f->me = sst_me(f->a);
    f->other = sst_me(f->b);
    CHECK_IS(sst_rank_register(f->a, 1), SST_OK);
    CHECK_IS(sst_rank_register(f->b, 2), SST_OK);
    CHECK_IS(sst_rank_leave(f->b, 2), SST_OK);
    name_keys(f);
    fill_keys(f);
    free_some(f);
    wait_some(f);
    meet_some(f);
    die(f);
    take_note(f);
    fz_hurry(f->a);
}

fz_segment *fz_template(int semaphore) {
    static fz_segment made[2];
    semaphore = semaphore && sst_has_engine(SST_SEMAPHORE);
    fz_segment *f = &made[semaphore];
    if (f->raw == NULL) {
        start_clock();
        make(f, semaphore ? SST_SEMAPHORE : SST_FUTEX);
    }
    return f;
}

/* -- again ------------------------------------------------------------------------------------------------------------ */
#if defined(__clang__)
#define UNSEEN __attribute__((no_sanitize("address", "undefined", "coverage")))
#else
#define UNSEEN __attribute__((no_sanitize("address", "undefined")))
#endif

/* Most pages are as they were; to compare one costs less than to copy it. */
UNSEEN static int same_page(const char *a, const char *b) {
    const uint64_t *p = (const uint64_t *)(const void *)a, *q = (const uint64_t *)(const void *)b;
    uint64_t differs = 0;
    for (int i = 0; i < 512; i++)
        differs |= p[i] ^ q[i];
    return differs == 0;
}

void fz_restore(fz_segment *f) {
    struct stat st;
    FZ_CHECK(fstat(f->fd, &st) == 0);
    if ((size_t)st.st_size != f->size)
        FZ_CHECK(ftruncate(f->fd, (off_t)f->size) == 0);
    for (size_t at = 0; at < f->size; at += 4096)
        if (!same_page(f->raw + at, f->copy + at))
            memcpy(f->raw + at, f->copy + at, 4096);
    memcpy(f->header, f->copy, sizeof f->header);
    f->a->seen = f->b->seen = f->size;
    f->a->yields = f->a->barrier_yields = (sst_yields){0};
    virtual_ns = SEC;
    real_parks = 0;
    fz_tick();
}

void fz_judge_header(const fz_segment *f) {
    enum { SIZE = offsetof(sst_header, size) / 4, STATE = offsetof(sst_header, state) / 4 };
    const uint32_t *now = (const uint32_t *)(const void *)f->raw;
    for (uint32_t i = 0; i < 1024; i++)
        FZ_CHECK(now[i] == f->header[i] || i == SIZE || i == SIZE + 1 || i == STATE);
}
