/* park_sem.c -- the semaphore engine: a POSIX semaphore in each waiter slot, and the slots found by the word's home.
 *
 * A semaphore only parks; what is held is an owner word. So a killed process takes no semaphore with it: a stale post
 * wakes somebody once for nothing, and a lost one costs a bounded slice.
 *
 *   waiter                                   setter
 *   empty the semaphore                      change the word
 *   slot.word = word                         fence (SYNC sem-dekker)
 *   fence  (SYNC sem-dekker)                 read spans and slot.word of the word's home
 *   *word != value? then do not park         sem_post where slot.word == word and no post lies there yet
 *   sem_clockwait
 *
 * Either the waiter sees the changed word or the setter sees the slot. So a post that is thrown away before slot.word is
 * stored is never missed: its setter either saw this slot.word, and then it posts after the semaphore was emptied, or
 * the waiter's look at the word, behind the fence, sees what that setter changed.
 *
 * A setter passes over a slot where a post lies. Its owner is about to wake and look, and before it parks again it goes
 * through the protocol above; or it is stopped or dead, and one post more would be one wake lost. So to wake one wakes
 * somebody who can run at the second try at the latest, and the slot of the dead, found that way, is freed.
 *
 * The libc trusts a semaphore: glibc makes a futex call out of what stands in it, and aborts the process when the kernel
 * does not know that call. So no other sem_* is called on a semaphore that is not as sem_init leaves it: its waiter makes
 * it anew, a setter passes over it. */
#include "clock.h"
#include "park.h"
#include "waiter.h"

#include <errno.h>
#include <time.h>

#define STALE_POSTS 16 /* two setters may post a slot at once; more than a few come from no setter of ours */

/* Value and count of waiters, in 64-bit glibc and musl; what follows stays as sem_init wrote it. */
#define SEM_MOVES 8

static int sound(const sem_t *sem) {
    union {
        sem_t sem;
        char bytes[sizeof(sem_t)];
    } fresh = {.bytes = {0}};
    char rest[sizeof(sem_t) - SEM_MOVES];
    (void)sem_init(&fresh.sem, 1, 0);
    sst_copy_out(rest, (const char *)sem + SEM_MOVES, sizeof rest);
    return memcmp(rest, fresh.bytes + SEM_MOVES, sizeof rest) == 0;
}

/* The slot is the caller's and nobody waits in it: one that is broken, or does not run empty, is made anew. */
static void empty(sem_t *sem) {
    for (int i = 0; i < STALE_POSTS && sound(sem); i++)
        if (sem_trywait(sem) != 0)
            return;
    (void)sem_init(sem, 1, 0);
}

static int park(sst_seg *s, uint32_t *word, uint32_t value, uint64_t deadline_ns, uint32_t waiter) {
    uint32_t own = waiter;
    if (own == 0 && sst_waiter_claim(s, word, &own) != SST_OK)
        return sst_park_nap(deadline_ns); /* every slot belongs to the living */
    sst_waiter_slot *w = sst_waiter_at(s, own - 1);
    empty(&w->sem);
    int r = SST_OK;
    st32_release(&w->word,
                 sst_offset4(s, word)); /* SYNC sem-word: release; who sees the word sees the semaphore empty */
    fence_seq_cst(); /* SYNC sem-dekker: seq_cst; orders the store of slot.word before the load of *word */
    if (ld32_acquire(word) == value) {
        struct timespec t = sst_timespec(deadline_ns);
        if (sem_clockwait(&w->sem, CLOCK_MONOTONIC, &t) != 0)
            r = errno == ETIMEDOUT ? SST_ETIMEDOUT : errno == EINTR ? SST_EINTR : sst_park_nap(deadline_ns);
    }
    st32(&w->word, 0);
    if (waiter == 0)
        sst_waiter_free(s, &own);
    return r;
}

static void unpark(sst_seg *s, uint32_t *word, int all) {
    uint32_t at = sst_offset4(s, word);
    fence_seq_cst(); /* SYNC sem-dekker: seq_cst; orders the change of *word before the loads of slot.word */
    uint32_t home = sst_waiter_home(s, word), span = sst_waiter_span(s, home);
    for (uint32_t i = 0; i < span; i++) {
        sst_waiter_slot *w = sst_waiter_near(s, home, i);
        int posts = 0;
        if (ld32_acquire(&w->word) != at) /* SYNC sem-word: acquire; pairs with the release in park */
            continue;
        if (!sound(&w->sem) || (sem_getvalue(&w->sem, &posts) == 0 && posts > 0)) {
            sst_waiter_bury(s, w);
            continue;
        }
        (void)sem_post(&w->sem);
        if (!all)
            return;
    }
}

static const sst_park_engine engine = {park, unpark};

const sst_park_engine *sst_park_sem(void) { return &engine; }
