/* scenarios.h -- what the crash tests kill a process in: each verb in each of its paths, as a table.
 *
 * No scenario for get, check, num_keys, list_keys and queue_len: they store nothing but what taking and giving back a lock
 * stores, which every other scenario has. */
#ifndef SCENARIOS_H
#define SCENARIOS_H

#include "atomics.h"
#include "check.h"
#include "guard.h"
#include "liveness.h"
#include "view.h"

#define BIG 70000
static char big[BIG + 1]; /* NUL-terminated */

#define KEY   "k"
#define OTHER "other"
#define THIRD "thir"

/* Who is parked when the child begins, in fault_waiters.c, and what ends their waits. */
enum {
    NOBODY,
    FOR_KEY,    /* a wait for KEY: that it is created */
    IN_LINE,    /* two blocking pops: an item for each */
    BEHIND, /* a blocking pop behind the child, with one item in the queue: that the child leaves the line, or dies */
    AT_BARRIER, /* one that has arrived: the last */
};

typedef struct {
    const char *name;
    void (*setup)(sst_seg *s); /* by the survivor */
    void (*verb)(sst_seg *s); /* ends the child with a wrong status where the verb fails */
    int in_attach; /* the stores of the attach count, not those of the verb */
    uint64_t capacity;
    void (*first)(sst_seg *s); /* by the child, before its stores count */
    int waits;
} scenario;

static int64_t sum;
static char answer[BIG + 1];
static size_t answer_len;

static void nothing(sst_seg *s) { (void)s; }
static void small(sst_seg *s) { CHECK_IS(put(s, KEY, "before"), SST_OK); }
static void number(sst_seg *s) { CHECK_IS(put(s, KEY, "41"), SST_OK); }
static void counter(sst_seg *s) { CHECK_IS(plus(s, KEY, 41, &sum), SST_OK); }
static void both_blocks(sst_seg *s) {
    CHECK_IS(put(s, KEY, "first"), SST_OK);
    CHECK_IS(put(s, KEY, "second"), SST_OK);
}
static void large(sst_seg *s) {
    CHECK_IS(put(s, KEY, big), SST_OK);
    CHECK_IS(put(s, KEY, "x"), SST_OK);
}
static void roomy(sst_seg *s) {
    CHECK_IS(put(s, KEY, "0123456789"), SST_OK);
    CHECK_IS(append(s, KEY, "abcdefghij0123456789"), SST_OK);
}
static void large_number(sst_seg *s) {
    CHECK_IS(put(s, KEY, big), SST_OK);
    CHECK_IS(put(s, KEY, "41"), SST_OK);
}
static void one_item(sst_seg *s) { CHECK_IS(push(s, KEY, "item-1"), SST_OK); }
static void two_items(sst_seg *s) {
    one_item(s);
    CHECK_IS(push(s, KEY, "item-2"), SST_OK);
}
/* Somebody waits in the queue's line, parked, and dies there. */
static int in_line(sst_seg *s) {
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++) {
        const sst_waiter_slot *w = sst_waiter_at(s, i);
        if (ld64(&w->ticket) != 0 && (ld32(&w->word) != 0 || ld32(&sst_header_of(s)->engine) == SST_FUTEX))
            return 1;
    }
    return 0;
}
static void dead_in_line(sst_seg *s) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        uint32_t waiter = 0;
        (void)sst_queue_pop(s, SST_USER, KEY, 1, 1, answer, sizeof answer, &answer_len, &waiter, 0, soon(), 60 * SEC,
                            0);
        _exit(1);
    }
    while (!in_line(s))
        nap(1);
    CHECK_IS(kill(pid, SIGKILL), 0);
    CHECK_IS(waitpid(pid, NULL, 0), pid);
}
static void item_behind_the_dead(sst_seg *s) {
    dead_in_line(s);
    one_item(s);
}
static void woken_in_vain(sst_seg *s) { /* its post lies there, and somebody else has armed the event */
    uint32_t waiter = 0;
    item_behind_the_dead(s);
    CHECK_IS(sst_wait(s, SST_USER, KEY, 1, &waiter, 0, 0, MS, SST_KEY_ONLY), SST_ETIMEDOUT);
}
static uint32_t standing; /* the survivor's place in the line, until it reads what there is */
static void stand(sst_seg *s) {
    CHECK_IS(sst_queue_pop(s, SST_USER, KEY, 1, 1, answer, sizeof answer, &answer_len, &standing, 0, soon(), MS, 0),
             SST_EAGAIN);
    CHECK(standing != 0);
}
static void two_items_and_a_line(sst_seg *s) {
    stand(s);
    two_items(s);
}
static void large_twice(sst_seg *s) {
    CHECK_IS(put(s, KEY, big), SST_OK);
    CHECK_IS(put(s, KEY, big), SST_OK);
}
/* Two keys that share KEY's chain; the seed is that of incarnation 77. */
static const char *neighbour(sst_seg *s, int which) {
    static char names[2][16];
    static uint32_t of_buckets;
    sst_key k, other;
    CHECK_IS(sst_key_make(s, SST_USER, KEY, 1, &k), SST_OK);
    for (int i = 0, n = 0; n < 2 && of_buckets != s->buckets; i++) {
        (void)snprintf(names[n], sizeof names[n], "n%d", i);
        CHECK_IS(sst_key_make(s, SST_USER, names[n], strlen(names[n]), &other), SST_OK);
        n += other.stripe == k.stripe && other.bucket == k.bucket;
    }
    of_buckets = s->buckets;
    return names[which];
}
static void neighbours(sst_seg *s) {
    CHECK_IS(put(s, neighbour(s, 0), "near"), SST_OK);
    CHECK_IS(put(s, neighbour(s, 1), "by"), SST_OK);
}
static void amid_neighbours(sst_seg *s) {
    CHECK_IS(put(s, neighbour(s, 0), "near"), SST_OK);
    small(s);
    CHECK_IS(put(s, neighbour(s, 1), "by"), SST_OK);
}
static void both_keys(sst_seg *s) {
    large(s);
    CHECK_IS(put(s, OTHER, big), SST_OK);
}
static void fill(sst_seg *s, const char *key, size_t bytes) {
    static char much[MIB];
    CHECK_IS(sst_set(s, SST_USER, key, strlen(key), much, bytes, soon(), 0), SST_OK);
}
static void room_for_three(sst_seg *s) { fill(s, "fill", MIB - 8); } /* of 2 MiB, for values of BIG bytes */
static void no_room_but_one(sst_seg *s) { /* a free block, larger than what the verb needs */
    room_for_three(s);
    fill(s, "f1", BIG);
    fill(s, "f2", BIG);
    fill(s, "f3", BIG);
    fill(s, "f4", 60000);
    CHECK_IS(drop(s, "f1"), 1);
}
static void key_and_queue(sst_seg *s) {
    small(s);
    two_items(s);
}

/* A free block for a value of SPARE bytes, none for an entry, and the file is used up: who may not let it grow has the
 * first in hand when it is told that there is no second. */
enum { SPARE = 200 };
static void one_block_and_no_more(sst_seg *s) {
    static const char key[] = "its entry is of a larger class than that of KEY";
    char name[16];
    int r = sst_set(s, SST_USER, key, sizeof key, big, SPARE, soon(), 0);
    for (int i = 0; r == SST_OK; i++) {
        (void)snprintf(name, sizeof name, "f%d", i);
        r = sst_set(s, SST_USER, name, strlen(name), "", 0, 0, SST_TRY);
    }
    CHECK_IS(r, SST_EAGAIN);
    CHECK_IS(sst_delete(s, SST_USER, key, sizeof key, soon(), 0), 1);
}
/* Somebody ends without a word who holds KEY's stripe, or another one and the heap. */
static void die_with(sst_seg *s, int what, const char *key) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        _exit(sst_test_hold(s, what, key, strlen(key)) == SST_OK ? 0 : 1);
    int status = 0;
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK_IS(status, 0);
}
static void a_deads_stripe(sst_seg *s) {
    both_blocks(s);
    die_with(s, 0, KEY);
}
static void a_deads_heap(sst_seg *s) {
    both_blocks(s);
    die_with(s, 1, OTHER);
}
static void a_deads_heap_and_large(sst_seg *s) {
    large(s);
    die_with(s, 1, OTHER);
}

static void set_small(sst_seg *s) { CHECK_IS(put(s, KEY, "after"), SST_OK); }
static void set_large(sst_seg *s) { CHECK_IS(put(s, KEY, big), SST_OK); }
static void set_empty(sst_seg *s) { CHECK_IS(put(s, KEY, ""), SST_OK); }
static void add_one(sst_seg *s) { CHECK_IS(plus(s, KEY, 1, &sum), SST_OK); }
static void append_little(sst_seg *s) { CHECK_IS(append(s, KEY, "++"), SST_OK); }
static void append_large(sst_seg *s) { CHECK_IS(append(s, KEY, big), SST_OK); }
static void swap(sst_seg *s, const char *expected) {
    CHECK_IS(sst_compare_set(s, SST_USER, KEY, 1, expected, strlen(expected), "swapped", 7, answer, sizeof answer,
                             &answer_len, soon(), 0),
             SST_OK);
    CHECK_IS(answer_len, 7);
}
static void swap_new(sst_seg *s) { swap(s, ""); }
static void swap_old(sst_seg *s) { swap(s, "before"); }
static void swap_large(sst_seg *s) {
    CHECK_IS(sst_compare_set(s, SST_USER, KEY, 1, "before", 6, big, BIG, answer, sizeof answer, &answer_len, soon(), 0),
             SST_OK);
    CHECK_IS(answer_len, BIG);
}
static void swap_refused(sst_seg *s) {
    CHECK_IS(
        sst_compare_set(s, SST_USER, KEY, 1, "other", 5, "swapped", 7, answer, sizeof answer, &answer_len, soon(), 0),
        SST_OK);
    CHECK(answer_len != 7);
}
static void delete_it(sst_seg *s) { CHECK_IS(drop(s, KEY), 1); }
static void push_one(sst_seg *s) { CHECK_IS(push(s, KEY, "pushed"), SST_OK); }
static void pop_one(sst_seg *s) { CHECK_IS(pop(s, KEY, answer, sizeof answer), SST_OK); }
static void push_large(sst_seg *s) { CHECK_IS(push(s, KEY, big), SST_OK); }
/* The child's own place in the line. */
static uint32_t place;
static void stand_in_line(sst_seg *s) {
    CHECK_IS(sst_queue_pop(s, SST_USER, KEY, 1, 1, answer, sizeof answer, &answer_len, &place, 0, soon(), MS, 0),
             SST_EAGAIN);
    CHECK(place != 0);
}
static void stand_and_push(sst_seg *s) {
    stand_in_line(s);
    one_item(s);
}
static void leave_line(sst_seg *s) {
    sst_waiter_release(s, &place);
    CHECK_IS(place, 0);
}
static void pop_in_line(sst_seg *s) {
    CHECK_IS(sst_queue_pop(s, SST_USER, KEY, 1, 1, answer, sizeof answer, &answer_len, &place, 0, soon(), MS, 0),
             SST_OK);
    CHECK_IS(place, 0);
}
static void pop_blocked(sst_seg *s) { /* stands in the line, times out, leaves it */
    uint32_t waiter = 0;
    int r;
    uint64_t deadline = in_ms(3);
    do
        r = sst_queue_pop(s, SST_USER, KEY, 1, 1, answer, sizeof answer, &answer_len, &waiter, 0, deadline, MS, 0);
    while (r == SST_EAGAIN);
    CHECK_IS(r, SST_ETIMEDOUT);
    CHECK_IS(waiter, 0);
}
static void wait_out(sst_seg *s) {
    uint32_t waiter = 0;
    int r;
    uint64_t deadline = in_ms(3);
    do
        r = sst_wait(s, SST_USER, KEY, 1, &waiter, 0, deadline, MS, 0);
    while (r == SST_EAGAIN);
    CHECK_IS(r, SST_ETIMEDOUT);
}
static void meet(sst_seg *s, uint32_t parties, int result) {
    uint32_t waiter = 0, arrived = 0;
    int64_t count = 0;
    int r;
    uint64_t deadline = result == SST_ETIMEDOUT ? in_ms(3) : soon();
    do
        r = sst_barrier(s, SST_USER, KEY, 1, parties, &arrived, &count, &waiter, 0, deadline, MS);
    while (r == SST_EAGAIN);
    CHECK_IS(r, result);
    CHECK_IS(waiter, 0);
}
static void meet_nobody(sst_seg *s) { meet(s, 99, SST_ETIMEDOUT); }
static void meet_last(sst_seg *s) { meet(s, 2, SST_OK); }
static void met_by_one(sst_seg *s) { /* it stays at the barrier: the last to arrive has a slot to mark */
    uint32_t waiter = 0, arrived = 0;
    int64_t count = 0;
    CHECK_IS(sst_barrier(s, SST_USER, KEY, 1, 2, &arrived, &count, &waiter, 0, soon(), MS), SST_EAGAIN);
}
static uint32_t came; /* the child has arrived */
static void meet_once(sst_seg *s) {
    int64_t count = 0;
    CHECK_IS(sst_barrier(s, SST_USER, KEY, 1, 2, &came, &count, &place, 0, soon(), MS), SST_EAGAIN);
    CHECK(came == 1 && place != 0);
    CHECK_IS(plus(s, KEY, 1, &sum), SST_OK); /* the last to come marks nobody, as one that died there */
}
static void meet_found_full(sst_seg *s) {
    int64_t count = 0;
    CHECK_IS(sst_barrier(s, SST_USER, KEY, 1, 2, &came, &count, &place, 0, soon(), MS), SST_OK);
    CHECK_IS(count, 2);
}
static void set_many_large(sst_seg *s) { /* the file grows between them */
    static char vals[2 * BIG];
    static const uint32_t klens[] = {1, 5}, vlens[] = {BIG, BIG};
    memset(vals, 'B', sizeof vals);
    CHECK_IS(sst_multi_set(s, SST_USER, "kother", klens, vals, vlens, 2, soon(), 0), SST_OK);
}
static void set_too_many(sst_seg *s) { /* what was taken for the first three is given back */
    static char vals[4 * BIG];
    static const uint32_t klens[] = {1, 5, 4, 6}, vlens[] = {BIG, BIG, BIG, BIG};
    CHECK_IS(sst_multi_set(s, SST_USER, "kotherthirfourth", klens, vals, vlens, 4, soon(), 0), SST_EFULL);
}
static void set_in_larger(sst_seg *s) { CHECK_IS(sst_set(s, SST_USER, KEY, 1, big, 60000, soon(), 0), SST_OK); }
static void set_many(sst_seg *s) { /* two new keys and one that may be there */
    static const uint32_t klens[] = {1, 5, 4}, vlens[] = {5, 6, 4};
    CHECK_IS(sst_multi_set(s, SST_USER, "kotherthir", klens, "aftersecondmore", vlens, 3, soon(), 0), SST_OK);
}
static void set_thrice(sst_seg *s) { /* one key three times, each value in a block of its own, and another between */
    static const uint32_t klens[] = {1, 1, 5, 1}, vlens[] = {40, 50, 6, 5};
    CHECK_IS(sst_multi_set(s, SST_USER, "kkotherk", klens, big, vlens, 4, soon(), 0), SST_OK);
}
static void rank_in(sst_seg *s) { CHECK_IS(sst_rank_register(s, 3), SST_OK); }
static void rank_in_out(sst_seg *s) {
    rank_in(s);
    CHECK_IS(sst_rank_leave(s, 3), SST_OK);
}
static void leave(sst_seg *s) { CHECK_IS(sst_leave(s), SST_OK); }

/* -- with SST_TRY, as the doors call: done at once, or declined -------------------------------------------------------- */
static void try_set_as(sst_seg *s, size_t len, int result) {
    CHECK_IS(sst_set(s, SST_USER, KEY, 1, big, len, 0, SST_TRY), result);
}
static void try_set(sst_seg *s) { try_set_as(s, 5, SST_OK); }
static void try_set_empty(sst_seg *s) { try_set_as(s, 0, SST_OK); }
static void try_set_refused(sst_seg *s) { try_set_as(s, 5, SST_EAGAIN); }
static void try_set_spare(sst_seg *s) { try_set_as(s, SPARE, SST_EAGAIN); }
static void try_set_large(sst_seg *s) { try_set_as(s, 60000, SST_OK); }
static void try_set_beyond(sst_seg *s) { try_set_as(s, SST_TRY_COPY, SST_EAGAIN); }
static void try_add(sst_seg *s) { CHECK_IS(sst_add(s, SST_USER, KEY, 1, 1, &sum, 0, SST_TRY), SST_OK); }
static void try_append_as(sst_seg *s, size_t len, int result) {
    CHECK_IS(sst_append(s, SST_USER, KEY, 1, big, len, 0, SST_TRY), result);
}
static void try_append(sst_seg *s) { try_append_as(s, 2, SST_OK); }
static void try_append_moved(sst_seg *s) { try_append_as(s, 400, SST_OK); }
static void try_append_beyond(sst_seg *s) { try_append_as(s, 60000, SST_EAGAIN); }
static void try_swap_as(sst_seg *s, const char *expected, size_t len, int result) {
    CHECK_IS(sst_compare_set(s, SST_USER, KEY, 1, expected, strlen(expected), big, len, answer, sizeof answer,
                             &answer_len, 0, SST_TRY),
             result);
}
static void try_swap(sst_seg *s) { try_swap_as(s, "before", 7, SST_OK); }
static void try_swap_spare(sst_seg *s) { try_swap_as(s, "", SPARE, SST_EAGAIN); }
static void try_delete(sst_seg *s) { CHECK_IS(sst_delete(s, SST_USER, KEY, 1, 0, SST_TRY), 1); }
static void try_push_as(sst_seg *s, size_t len, int result) {
    CHECK_IS(sst_queue_push(s, SST_USER, KEY, 1, big, len, 0, SST_TRY), result);
}
static void try_push(sst_seg *s) { try_push_as(s, 6, SST_OK); }
static void try_push_spare(sst_seg *s) { try_push_as(s, SPARE, SST_EAGAIN); }

static void try_many_as(sst_seg *s, uint32_t first, int result) {
    const uint32_t klens[] = {1, 5, 4}, vlens[] = {first, 6, 4};
    CHECK_IS(sst_multi_set(s, SST_USER, "kotherthir", klens, big, vlens, 3, 0, SST_TRY), result);
}
static void try_many(sst_seg *s) { try_many_as(s, 5, SST_OK); }
static void try_many_refused(sst_seg *s) { try_many_as(s, 5, SST_EAGAIN); }
static void try_many_spare(sst_seg *s) { try_many_as(s, SPARE, SST_EAGAIN); }
static int pop_now(sst_seg *s, uint32_t flags) {
    uint32_t waiter = 0;
    return sst_queue_pop(s, SST_USER, KEY, 1, 0, answer, sizeof answer, &answer_len, &waiter, 0, 0, 0, flags);
}
static void try_pop(sst_seg *s) { CHECK_IS(pop_now(s, SST_TRY), SST_OK); }
static void try_pop_refused(sst_seg *s) { CHECK_IS(pop_now(s, SST_TRY), SST_EAGAIN); }
static void large_item(sst_seg *s) {
    CHECK_IS(push(s, KEY, big), SST_OK);
    one_item(s);
}
static void a_deads_line(sst_seg *s) {
    two_items(s);
    die_with(s, 0, KEY);
}

/* -- with SST_NOWAIT, as the server calls: whatever needs no wait for somebody alive ---------------------------------- */
static void now_set(sst_seg *s) { CHECK_IS(sst_set(s, SST_USER, KEY, 1, big, 5, 0, SST_NOWAIT), SST_OK); }
static void now_many(sst_seg *s) {
    static const uint32_t klens[] = {1, 5, 4}, vlens[] = {BIG, 6, 4};
    static char vals[BIG + 10];
    memset(vals, 'B', sizeof vals);
    CHECK_IS(sst_multi_set(s, SST_USER, "kotherthir", klens, vals, vlens, 3, 0, SST_NOWAIT), SST_OK);
}
static void now_pop(sst_seg *s) { CHECK_IS(pop_now(s, SST_NOWAIT), SST_OK); }

static const scenario scenarios[] = {
    {"attach", small, nothing, 1, MIB * 2, NULL, NOBODY},
    {"leave", small, leave, 0, MIB * 2, NULL, NOBODY},
    {"set new small", nothing, set_small, 0, MIB * 2, NULL, FOR_KEY},
    {"set new large, file grows", nothing, set_large, 0, MIB * 4, NULL, FOR_KEY},
    {"set new, end of a chain", neighbours, set_small, 0, MIB * 2, NULL, FOR_KEY},
    {"set second block", small, set_small, 0, MIB * 2, NULL, NOBODY},
    {"set in place", both_blocks, set_small, 0, MIB * 2, NULL, NOBODY},
    {"set in place, large", large_twice, set_large, 0, MIB * 4, NULL, NOBODY},
    {"set grow", both_blocks, set_large, 0, MIB * 4, NULL, NOBODY},
    {"set shrink", large, set_small, 0, MIB * 4, NULL, NOBODY},
    {"set empty", both_blocks, set_empty, 0, MIB * 2, NULL, NOBODY},
    {"set empty over large", large, set_empty, 0, MIB * 4, NULL, NOBODY},
    {"set over counter", counter, set_small, 0, MIB * 2, NULL, NOBODY},
    {"add new", nothing, add_one, 0, MIB * 2, NULL, FOR_KEY},
    {"add counter", counter, add_one, 0, MIB * 2, NULL, NOBODY},
    {"add bytes to counter", number, add_one, 0, MIB * 2, NULL, NOBODY},
    {"add, a large spare block", large_number, add_one, 0, MIB * 4, NULL, NOBODY},
    {"append new", nothing, append_little, 0, MIB * 2, NULL, FOR_KEY},
    {"append in place", roomy, append_little, 0, MIB * 2, NULL, NOBODY},
    {"append moved", small, append_large, 0, MIB * 4, NULL, NOBODY},
    {"append to counter", counter, append_little, 0, MIB * 2, NULL, NOBODY},
    {"compare_set create", nothing, swap_new, 0, MIB * 2, NULL, FOR_KEY},
    {"compare_set swap", small, swap_old, 0, MIB * 2, NULL, NOBODY},
    {"compare_set swap, grow", small, swap_large, 0, MIB * 4, NULL, NOBODY},
    {"compare_set refused", small, swap_refused, 0, MIB * 2, NULL, NOBODY},
    {"compare_set refused, no key", nothing, swap_refused, 0, MIB * 2, NULL, NOBODY},
    {"delete", both_blocks, delete_it, 0, MIB * 2, NULL, NOBODY},
    {"delete a counter", counter, delete_it, 0, MIB * 2, NULL, NOBODY},
    {"delete, middle of a chain", amid_neighbours, delete_it, 0, MIB * 2, NULL, NOBODY},
    {"delete beside a queue", key_and_queue, delete_it, 0, MIB * 2, NULL, NOBODY},
    {"push new", nothing, push_one, 0, MIB * 2, NULL, IN_LINE},
    {"push existing", one_item, push_one, 0, MIB * 2, NULL, NOBODY},
    {"push large, beside a key", small, push_large, 0, MIB * 4, NULL, IN_LINE},
    {"push, a line waits", stand, push_one, 0, MIB * 2, NULL, NOBODY},
    {"pop of two", two_items, pop_one, 0, MIB * 2, NULL, NOBODY},
    {"pop the last", one_item, pop_one, 0, MIB * 2, NULL, NOBODY},
    {"pop, a line waits", two_items_and_a_line, pop_one, 0, MIB * 2, NULL, NOBODY},
    {"pop from the line", nothing, pop_in_line, 0, MIB * 2, stand_and_push, NOBODY},
    {"leave the line", nothing, leave_line, 0, MIB * 2, stand_in_line, BEHIND},
    {"pop behind the dead", item_behind_the_dead, pop_one, 0, MIB * 2, NULL, NOBODY},
    {"push wakes the dead again", woken_in_vain, push_one, 0, MIB * 2, NULL, NOBODY},
    {"pop blocked, timed out", nothing, pop_blocked, 0, MIB * 2, NULL, NOBODY},
    {"wait, timed out", nothing, wait_out, 0, MIB * 2, NULL, NOBODY},
    {"barrier, timed out", nothing, meet_nobody, 0, MIB * 2, NULL, NOBODY},
    {"barrier, the last", met_by_one, meet_last, 0, MIB * 2, NULL, AT_BARRIER},
    {"barrier, found full", nothing, meet_found_full, 0, MIB * 2, meet_once, NOBODY},
    {"multi_set", small, set_many, 0, MIB * 2, NULL, NOBODY},
    {"multi_set, a key thrice", small, set_thrice, 0, MIB * 2, NULL, NOBODY},
    {"multi_set, a new key thrice", nothing, set_thrice, 0, MIB * 2, NULL, FOR_KEY},
    {"multi_set, new", nothing, set_many, 0, MIB * 2, NULL, FOR_KEY},
    {"multi_set, file grows", both_keys, set_many_large, 0, MIB * 4, NULL, NOBODY},
    {"multi_set, no room", room_for_three, set_too_many, 0, MIB * 2, NULL, NOBODY},
    {"set, in a larger free block", no_room_but_one, set_in_larger, 0, MIB * 2, NULL, NOBODY},
    {"rank register", small, rank_in, 0, MIB * 2, NULL, NOBODY},
    {"rank register, leave", small, rank_in_out, 0, MIB * 2, NULL, NOBODY},
    {"try: set new", nothing, try_set, 0, MIB * 2, NULL, FOR_KEY},
    {"try: set second block", small, try_set, 0, MIB * 2, NULL, NOBODY},
    {"try: set in place", both_blocks, try_set, 0, MIB * 2, NULL, NOBODY},
    {"try: set in place, large", large_twice, try_set_large, 0, MIB * 4, NULL, NOBODY},
    {"try: set shrink", large, try_set, 0, MIB * 4, NULL, NOBODY},
    {"try: set over counter", counter, try_set, 0, MIB * 2, NULL, NOBODY},
    {"try: add new", nothing, try_add, 0, MIB * 2, NULL, FOR_KEY},
    {"try: add counter", counter, try_add, 0, MIB * 2, NULL, NOBODY},
    {"try: add, a large spare block", large_number, try_add, 0, MIB * 4, NULL, NOBODY},
    {"try: append in place", roomy, try_append, 0, MIB * 2, NULL, NOBODY},
    {"try: append moved", both_blocks, try_append_moved, 0, MIB * 2, NULL, NOBODY},
    {"try: compare_set swap", small, try_swap, 0, MIB * 2, NULL, NOBODY},
    {"try: delete", both_blocks, try_delete, 0, MIB * 2, NULL, NOBODY},
    {"try: push new", nothing, try_push, 0, MIB * 2, NULL, IN_LINE},
    {"declined: set, file would grow", both_blocks, try_set_beyond, 0, MIB * 4, NULL, NOBODY},
    {"declined: append, it would grow", both_blocks, try_append_beyond, 0, MIB * 4, NULL, NOBODY},
    {"declined: set, block in hand", one_block_and_no_more, try_set_spare, 0, MIB * 2, NULL, NOBODY},
    {"declined: compare_set, in hand", one_block_and_no_more, try_swap_spare, 0, MIB * 2, NULL, NOBODY},
    {"declined: push, block in hand", one_block_and_no_more, try_push_spare, 0, MIB * 2, NULL, NOBODY},
    {"declined: set, a dead's stripe", a_deads_stripe, try_set_refused, 0, MIB * 2, NULL, NOBODY},
    {"declined: set, a dead's heap", a_deads_heap_and_large, try_set_refused, 0, MIB * 4, NULL, NOBODY},
    {"try: set empty, a dead's heap", a_deads_heap_and_large, try_set_empty, 0, MIB * 4, NULL, NOBODY},
    {"try: delete, a dead's heap", a_deads_heap, try_delete, 0, MIB * 2, NULL, NOBODY},
    {"try: multi_set", small, try_many, 0, MIB * 2, NULL, NOBODY},
    {"try: multi_set, new", nothing, try_many, 0, MIB * 2, NULL, FOR_KEY},
    {"declined: multi_set, in hand", one_block_and_no_more, try_many_spare, 0, MIB * 2, NULL, NOBODY},
    {"declined: multi_set, dead's stripe", a_deads_stripe, try_many_refused, 0, MIB * 2, NULL, NOBODY},
    {"try: pop of two", two_items, try_pop, 0, MIB * 2, NULL, NOBODY},
    {"try: pop the last", one_item, try_pop, 0, MIB * 2, NULL, NOBODY},
    {"try: pop behind the dead", item_behind_the_dead, try_pop, 0, MIB * 2, NULL, NOBODY},
    {"declined: pop, a large item", large_item, try_pop_refused, 0, MIB * 4, NULL, NOBODY},
    {"declined: pop, a dead's stripe", a_deads_line, try_pop_refused, 0, MIB * 2, NULL, NOBODY},
    {"no wait: set, a dead's stripe", a_deads_stripe, now_set, 0, MIB * 2, NULL, NOBODY},
    {"no wait: set, a dead's heap", a_deads_heap_and_large, now_set, 0, MIB * 4, NULL, NOBODY},
    {"no wait: multi_set, dead's stripe", a_deads_stripe, now_many, 0, MIB * 4, NULL, NOBODY},
    {"no wait: pop, a dead's stripe", a_deads_line, now_pop, 0, MIB * 2, NULL, NOBODY},
};

/* From one kill to the next: each store. In the short form each second, and under AddressSanitizer, which makes a fork
 * slow, each ninth. */
static inline uint64_t stride(void) {
#if defined(__SANITIZE_ADDRESS__)
    return getenv("SST_LONG") ? 1 : 9;
#else
    return getenv("SST_LONG") ? 1 : 2;
#endif
}

/* Where an engine begins with that: one has the odd stores, the other the even ones, most of which they share. */
static inline uint64_t first_of(uint32_t engine) { return stride() == 1 || engine == SST_FUTEX ? 1 : 2; }

/* -- the child that is killed: it attaches, does `first`, says so, waits for the word, and does the verb -------------- */
typedef struct {
    pid_t pid;
    int go, line;
} victim;

/* n 0: it will not be killed. */
static inline victim victim_start(int fd, const scenario *sc, uint64_t n) {
    int go[2], line[2];
    char c = 'r';
    CHECK_IS(pipe(go) + pipe(line), 0);
    (void)fflush(NULL);
    victim v = {fork(), go[1], line[0]};
    CHECK(v.pid >= 0);
    if (v.pid == 0) {
        (void)close(go[1]);
        sst_seg *s = sc->in_attach ? NULL : attach(fd);
        if (sc->first)
            sc->first(s);
        CHECK_IS(write(line[1], &c, 1), 1);
        CHECK_IS(read(go[0], &c, 1), 1);
        sst_fault_arm(n);
        if (sc->in_attach)
            s = attach(fd);
        sc->verb(s);
        uint64_t count = sst_fault_count();
        sst_fault_arm(0);
        CHECK_IS(write(line[1], &count, sizeof count), sizeof count);
        _exit(0);
    }
    (void)close(go[0]);
    (void)close(line[1]);
    CHECK_IS(read(v.line, &c, 1), 1);
    return v;
}

static inline void victim_go(const victim *v) { CHECK_IS(write(v->go, "g", 1), 1); }

/* 1: killed at its n-th store; 0: it came through, with so many stores. */
static inline int victim_end(const victim *v, uint64_t *stores) {
    int status = 0;
    CHECK_IS(waitpid(v->pid, &status, 0), v->pid);
    int dead = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    CHECK(dead || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    if (!dead && stores)
        CHECK_IS(read(v->line, stores, sizeof *stores), sizeof *stores);
    (void)close(v->line);
    (void)close(v->go);
    return dead;
}

static inline void set_up(twin *t, const scenario *sc, uint32_t engine) {
    standing = 0;
    twin_open(t, sc->capacity, engine);
    sc->setup(t->a);
}

#endif
