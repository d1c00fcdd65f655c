/* test_corrupt.c -- a repair that meets corruption closes the stripe or the heap, for all and for good; and what may
 * keep a repair waiting never keeps anybody for ever. */
#include "check.h"
#include "guard.h"
#include "heap.h"
#include "liveness.h"
#include "lock.h"
#include "queue.h"

#include <pthread.h>

enum { KEYS = 40 };

/* Names of one stripe, each in a bucket of its own, the buckets ascending: repair comes to them in this order. */
static void same_stripe(sst_seg *s, char (*names)[32], int n) {
    sst_key k, first = {0};
    for (int tried = 0, i = 0; i < n; tried++) {
        int len = snprintf(names[i], sizeof names[i], "n%d", tried);
        CHECK_IS(sst_key_make(s, SST_USER, names[i], (size_t)len, &k), SST_OK);
        if ((i == 0 || k.stripe == first.stripe) && k.bucket * (uint32_t)n / s->buckets == (uint32_t)i) {
            first = k;
            i++;
        }
        CHECK(tried < 1000000);
    }
}

static sst_entry *entry_of(sst_seg *s, const char *name, uint32_t kind, uint32_t *stripe) {
    sst_key k;
    sst_place place;
    CHECK_IS(sst_key_make(s, SST_USER, name, strlen(name), &k), SST_OK);
    CHECK_IS(sst_table_find(s, &k, kind, &place), SST_OK);
    CHECK(place.entry != NULL);
    *stripe = k.stripe;
    return place.entry;
}

/* Runs `act` in a child that holds what it took when it is killed. */
static void die_after(const twin *t, void (*act)(sst_seg *s, void *arg), void *arg) {
    (void)fflush(NULL);
    pid_t pid = fork();
    int status = 0;
    CHECK(pid >= 0);
    if (pid == 0) {
        act(attach(t->fd), arg);
        (void)raise(SIGKILL);
    }
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void others_set(sst_seg *s) {
    char key[32];
    for (int i = 0; i < KEYS; i++) {
        (void)snprintf(key, sizeof key, "key/%d", i);
        CHECK_IS(put(s, key, "##########"), SST_OK);
    }
}

/* Verify comes to an end and names something, the lock word too once it says SST_LOCK_CORRUPT. */
static void named(sst_seg *s, const char *what) {
    static char report[8192];
    CHECK(sst_verify(s, report, sizeof report) > 0);
    CHECK(strstr(report, what) != NULL);
    CHECK(sst_verify(s, report, sizeof report) > 0);
    CHECK(strstr(report, what) != NULL && strstr(report, "owner: ") != NULL);
}

/* -- a stripe -------------------------------------------------------------------------------------------------------- */
typedef struct {
    char names[3][32]; /* bad, victim, sound */
    uint32_t stripe;
} trio;

/* What a delete has done before its commit: the victim's value in hand, and reached. Then a bit flips elsewhere. */
static void in_hand(sst_seg *s, void *arg) {
    const trio *three = arg;
    uint32_t stripe;
    sst_entry *bad = entry_of(s, three->names[0], SST_KIND_KEY, &stripe);
    sst_entry *victim = entry_of(s, three->names[1], SST_KIND_KEY, &stripe);
    CHECK_IS(sst_enter(s, stripe, soon(), 0), SST_OK);
    CHECK_IS(sst_block_drop(s, stripe, ld32(&victim->value[0])), SST_OK);
    st32(&bad->value[0], 0x0fffffff);
}

static void all_corrupt(sst_seg *s, const char *key) {
    char text[32];
    size_t len;
    int64_t n;
    uint32_t waiter = 0;
    CHECK_IS(put(s, key, "x"), SST_ECORRUPT);
    CHECK_IS(append(s, key, ""), SST_ECORRUPT);
    CHECK_IS(plus(s, key, 1, &n), SST_ECORRUPT);
    CHECK_IS(drop(s, key), SST_ECORRUPT);
    CHECK_IS(push(s, key, "x"), SST_ECORRUPT);
    CHECK_IS(pop(s, key, text, sizeof text), SST_ECORRUPT);
    CHECK_IS(here(s, key), SST_ECORRUPT);
    CHECK_IS(sst_get(s, SST_USER, key, strlen(key), text, sizeof text, &len, soon(), 0), SST_ECORRUPT);
    CHECK_IS(sst_wait(s, SST_USER, key, strlen(key), &waiter, 0, soon(), SEC, 0), SST_ECORRUPT);
    sst_waiter_release(s, &waiter);
    CHECK_IS(sst_num_keys(s, SST_USER, "k", 1, &n, soon(), 0), SST_ECORRUPT); /* it reads every stripe */
}

static void closed_stripe(uint32_t engine) {
    twin t;
    trio three;
    uint32_t stripe;
    twin_open(&t, 4 * MIB, engine);
    same_stripe(t.a, three.names, 3);
    for (int i = 0; i < 3; i++)
        CHECK_IS(put(t.a, three.names[i], "a value"), SST_OK);
    uint32_t value = ld32(&entry_of(t.a, three.names[1], SST_KIND_KEY, &stripe)->value[0]);
    const sst_stripe *st = sst_stripe_at(t.a, stripe);
    die_after(&t, in_hand, &three);
    for (int i = 0; i < 3; i++)
        for (int view = 0; view < 2; view++) {
            all_corrupt(view ? t.a : t.b, three.names[i]);
            CHECK_IS(ld32(&st->lock), SST_LOCK_CORRUPT); /* nobody parks on it, nobody takes it */
        }
    others_set(t.a);
    others_set(t.b);
    CHECK_IS(SST_TAG_STATE(ld32(&sst_block_of(t.a, value)->tag)), SST_BLOCK_INFLIGHT); /* reached: given to nobody */
    CHECK_IS(memcmp(sst_payload(t.a, value, 7), "a value", 7), 0);
    sst_seg *late = attach(t.fd);
    all_corrupt(late, three.names[2]);
    others_set(late);
    named(late, "used: ");
    let_go(late);
    let_go(t.b);
    let_go(t.a);
    (void)close(t.fd);
}

/* A stripe's list that does not end, in the hands of the dead: a USED block whose link is itself. */
static void endless_list(sst_seg *s, void *arg) {
    uint32_t stripe, ref = ld32(&entry_of(s, arg, SST_KIND_KEY, &stripe)->value[0]);
    CHECK_IS(sst_enter(s, stripe, soon(), 0), SST_OK);
    st32(&sst_block_of(s, ref)->link, ref);
    st32(&sst_stripe_at(s, stripe)->inflight, ref);
}

/* The same under a living hand: who leaves such a stripe closes it. */
static void endless(uint32_t engine) {
    twin t;
    for (int alive = 0; alive < 2; alive++) {
        char k[] = "k";
        uint32_t stripe;
        twin_open(&t, 4 * MIB, engine);
        CHECK_IS(put(t.a, k, "v"), SST_OK);
        (void)entry_of(t.a, k, SST_KIND_KEY, &stripe);
        if (alive) {
            endless_list(t.a, k);
            sst_exit(t.a, stripe, 0);
        } else {
            die_after(&t, endless_list, k);
        }
        CHECK_IS(put(t.b, k, "w"), SST_ECORRUPT);
        CHECK_IS(ld32(&sst_stripe_at(t.a, stripe)->lock), SST_LOCK_CORRUPT);
        let_go(t.b);
        let_go(t.a);
        (void)close(t.fd);
    }
}

/* Many queues that share one list: each list ends, all of them together reach more blocks than there are. */
enum { QUEUES = 8, ITEMS = 20000 };
static void share(sst_seg *s, void *arg) {
    char (*names)[32] = arg;
    uint32_t stripe, first = ld32(&entry_of(s, names[0], SST_KIND_QUEUE, &stripe)->value[0]);
    CHECK_IS(sst_enter(s, stripe, soon(), 0), SST_OK);
    for (int i = 1; i < QUEUES; i++)
        st32(&entry_of(s, names[i], SST_KIND_QUEUE, &stripe)->value[0], first);
    CHECK((uint64_t)QUEUES * ITEMS > sst_heap_most(s));
}

static void shared_lists(void) {
    char names[QUEUES][32];
    twin t;
    twin_open(&t, 4 * MIB, SST_FUTEX);
    same_stripe(t.a, names, QUEUES);
    for (int i = 0; i < QUEUES; i++)
        for (int n = 0; n < (i ? 1 : ITEMS); n++)
            CHECK_IS(push(t.a, names[i], "item"), SST_OK);
    die_after(&t, share, names);
    CHECK_IS(push(t.b, names[0], "item"), SST_ECORRUPT);
    let_go(t.b);
    let_go(t.a);
    (void)close(t.fd);
}

/* -- the heap ---------------------------------------------------------------------------------------------------------- */
static void bad_record(sst_seg *s, void *arg) {
    sst_heap *heap = sst_heap_of(s);
    (void)arg;
    CHECK_IS(sst_enter(s, SST_STRIPES - 1, soon(), 0), SST_OK);
    CHECK_IS(sst_heap_enter(s, soon(), 0), SST_OK);
    st32(&heap->op, SST_HEAP_TAKE);
    st32(&heap->block, 0x0fffffff);
    st32(&heap->valid, 1);
}

static void closed_heap(uint32_t engine) {
    twin t;
    twin_open(&t, 4 * MIB, engine);
    others_set(t.a);
    others_set(t.a); /* both value blocks are there: what follows needs none */
    die_after(&t, bad_record, NULL);
    sst_heap *heap = sst_heap_of(t.a);
    for (int i = 0; i < 3; i++) {
        CHECK_IS(put(i % 2 ? t.a : t.b, "new", "v"), SST_ECORRUPT);
        CHECK_IS(ld32(&heap->lock), SST_LOCK_CORRUPT);
        CHECK_IS(ld32(&heap->valid), 1); /* the record is still there for verify */
        CHECK_IS(ld32(&heap->block), 0x0fffffff);
    }
    others_set(t.b);
    CHECK_IS(drop(t.b, "key/3"), 1);
    CHECK_IS(drop(t.b, "key/3"), 0);
    CHECK(holds(t.a, "key/4", "##########"));
    CHECK_IS(sst_enter(t.a, SST_STRIPES - 1, soon(), 0), SST_ECORRUPT); /* its repair takes a heap */
    named(t.a, "heap-idle: ");
    let_go(t.b);
    let_go(t.a);
    (void)close(t.fd);
}

/* A free list that leads nowhere: the block cannot be had, and no record says that it was taken. */
static void bad_free_list(void) {
    twin t;
    twin_open(&t, 4 * MIB, SST_FUTEX);
    uint64_t size = ld64(&sst_header_of(t.a)->size);
    uint32_t cls = sst_heap_class(60000), ref = (uint32_t)(size / 16) - 2; /* its end lies beyond the file */
    st32(&sst_block_of(t.a, ref)->tag, SST_TAG(cls, SST_BLOCK_FREE));
    st32(&sst_heap_of(t.a)->free[cls], ref);
    static char val[60000];
    for (int i = 0; i < 2; i++) {
        CHECK_IS(sst_set(t.a, SST_USER, "big", 3, val, sizeof val, soon(), 0), SST_ECORRUPT);
        CHECK_IS(ld32(&sst_heap_of(t.a)->valid), 0);
    }
    CHECK_IS(put(t.b, "small", "v"), SST_OK);
    let_go(t.b);
    let_go(t.a);
    (void)close(t.fd);
}

/* -- waits that end ------------------------------------------------------------------------------------------------- */
static void hold_key(sst_seg *s, void *arg) { CHECK_IS(sst_test_hold(s, 0, arg, strlen(arg)), SST_OK); }

/* The next owner of a dead slot finds a stripe to repair, and a heap that a live process keeps. It attaches all the
 * same; the stripe is repaired by whoever needs it, once the heap is free. */
static void heir(uint32_t engine) {
    twin t;
    char k[] = "k";
    twin_open(&t, 2 * MIB, engine);
    CHECK_IS(put(t.a, k, "v"), SST_OK);
    die_after(&t, hold_key, k);
    CHECK_IS(sst_heap_enter(t.a, soon(), 0), SST_OK);
    sst_peer peers[8];
    int block = open_again(t.fd), n = sst_peers(t.a, peers, 8), dead = -1;
    for (int i = 0; i < n; i++)
        if (peers[i].state == SST_PEER_DEAD)
            dead = (int)peers[i].slot;
    CHECK(dead >= 0);
    for (int i = 0; i < SST_PEERS_MAX; i++) /* the dead one's slot is the only one left */
        if (i != dead)
            (void)sst_byte_take(block, (uint32_t)i);
    (void)alarm(60); /* a hang ends the test */
    sst_seg *s = attach(t.fd);
    (void)alarm(0);
    uint32_t slot = 0, gen = 0;
    CHECK_IS(sst_self(s, &slot, &gen), SST_OK);
    CHECK((int)slot == dead && gen == 2);
    CHECK_IS(sst_set(t.b, SST_USER, k, 1, "w", 1, in_ms(60), 0), SST_EBUSY);
    CHECK_IS(sst_set(s, SST_USER, k, 1, "w", 1, in_ms(60), 0), SST_EBUSY);
    sst_heap_exit(t.a);
    CHECK_IS(put(t.b, k, "w"), SST_OK);
    CHECK(holds(s, k, "w"));
    let_go(s);
    (void)close(block);
    twin_shut(&t);
}

static void nothing(int sig) { (void)sig; }

static void catch(int sig) {
    struct sigaction act = {0};
    act.sa_handler = nothing; /* no SA_RESTART: a wait is interrupted */
    CHECK_IS(sigaction(sig, &act, NULL), 0);
}

static int interrupted_park(sst_seg *s, uint32_t *word, uint32_t value, uint64_t deadline_ns, uint32_t waiter) {
    (void)s, (void)word, (void)value, (void)deadline_ns, (void)waiter;
    return SST_EINTR;
}

/* Signals come faster than a lock's slices end: so they end the wait for a live holder, and do not hide a dead one. */
static void signals(uint32_t engine) {
    twin t;
    char k[] = "k";
    sst_key key;
    twin_open(&t, 2 * MIB, engine);
    const sst_park_engine *real = t.a->park, hasty = {interrupted_park, real->unpark};
    t.a->park = &hasty;
    CHECK_IS(sst_key_make(t.a, SST_USER, k, 1, &key), SST_OK);
    CHECK_IS(sst_enter(t.b, key.stripe, soon(), 0), SST_OK);
    CHECK_IS(put(t.a, k, "v"), SST_EINTR);
    sst_exit(t.b, key.stripe, 0);
    die_after(&t, hold_key, k);
    CHECK_IS(put(t.a, k, "v"), SST_OK);
    t.a->park = real;
    twin_shut(&t);
}

typedef struct {
    sst_seg *s;
    uint32_t done;
    int r;
} call;

static void *verify_it(void *arg) {
    static char report[8192];
    call *c = arg;
    c->r = sst_verify(c->s, report, sizeof report);
    own_st32(&c->done, 1);
    return NULL;
}

/* A signal ends a verify that waits for a lock, and it lets go of those that it has. */
static void interrupted(uint32_t engine) {
    for (int what = 0; what < 2; what++) { /* what it waits for: a stripe, the heap */
        twin t;
        pthread_t id;
        twin_open(&t, 2 * MIB, engine);
        catch(SIGUSR1);
        uint32_t *word = what ? &sst_heap_of(t.a)->lock : &sst_stripe_at(t.a, 9)->lock;
        CHECK_IS(what ? sst_heap_enter(t.a, soon(), 0) : sst_enter(t.a, 9, soon(), 0), SST_OK);
        call c = {t.b, 0, 0};
        CHECK_IS(pthread_create(&id, NULL, verify_it, &c), 0);
        while (!(ld32(word) & SST_WAITERS) && !ld32(&c.done))
            sst_pause();
        while (!ld32(&c.done)) {
            CHECK_IS(pthread_kill(id, SIGUSR1), 0);
            nap(1);
        }
        CHECK_IS(pthread_join(id, NULL), 0);
        CHECK_IS(c.r, SST_EINTR);
        CHECK_IS(sst_enter(t.a, 8, 0, SST_TRY), SST_OK);
        sst_exit(t.a, 8, 0);
        if (what)
            sst_heap_exit(t.a);
        else
            sst_exit(t.a, 9, 0);
        twin_shut(&t);
    }
}

/* Gives the stripe back once somebody is seen to wait for it. */
static void *hand_over(void *arg) {
    call *c = arg;
    uint32_t *word = &sst_stripe_at(c->s, 9)->lock;
    while (!(ld32(word) & SST_WAITERS) && !ld32(&c->done))
        sst_pause();
    sst_exit(c->s, 9, 0);
    return NULL;
}

/* A call whose deadline has passed by its next lock is not sent back to its start by a holder that goes on. */
static void patience(uint32_t engine) {
    enum { ROUNDS = 40 };
    twin t;
    int had = 0;
    twin_open(&t, 2 * MIB, engine);
    for (int i = 0; i < ROUNDS; i++) {
        pthread_t id;
        CHECK_IS(sst_enter(t.a, 9, soon(), 0), SST_OK);
        call c = {t.a, 0, 0};
        CHECK_IS(pthread_create(&id, NULL, hand_over, &c), 0);
        int r = sst_enter(t.b, 9, 1, 0);
        own_st32(&c.done, 1);
        CHECK_IS(pthread_join(id, NULL), 0);
        CHECK(r == SST_OK || r == SST_EBUSY);
        had += r == SST_OK;
        if (r == SST_OK)
            sst_exit(t.b, 9, 0);
    }
    CHECK(had > ROUNDS / 2); /* not all: this machine may be slower than the patience */
    twin_shut(&t);
}

int main(void) {
    EACH_ENGINE(engine) {
        closed_stripe(engine);
        closed_heap(engine);
        endless(engine);
        heir(engine);
        signals(engine);
        interrupted(engine);
        patience(engine);
        (void)printf("%s: stripes and heap closed; heirs, signals, late deadlines\n", engine_name(engine));
    }
    shared_lists();
    bad_free_list();
    return 0;
}
