/* park_sem.c -- the semaphore engine: a POSIX semaphore in each waiter slot, and the slots found by the word's home.
 *
 * A semaphore only parks; what is held is an owner word. So a killed process takes no semaphore with it: a stale post
 * wakes somebody once for nothing, and a lost one costs a bounded slice.
 *
 *   waiter                                   setter
 *   slot.word = word                         change the word
 *   fence  (SYNC sem-dekker)                 fence (SYNC sem-dekker)
 *   *word != value? then do not park         read spans and slot.word of the word's home
 *   sem_clockwait                            sem_post where slot.word == word
 *
 * Either the waiter sees the changed word or the setter sees the slot. */
#include "clock.h"
#include "park.h"
#include "waiter.h"

#include <errno.h>
#include <time.h>

static int park(sst_seg *s, uint32_t *word, uint32_t value, uint64_t deadline_ns, uint32_t waiter) {
    uint32_t own = waiter;
    if (own == 0 && sst_waiter_claim(s, word, &own) != SST_OK) {
        /* Every slot is taken: 1 ms of sleep in place of a wake, bounded by the caller's slice. */
        struct timespec t = sst_timespec(sst_earlier(deadline_ns, sst_after(sst_now_ns(), 1000000)));
        if (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
            return SST_EINTR;
        return sst_now_ns() >= deadline_ns ? SST_ETIMEDOUT : SST_OK;
    }
    sst_waiter_slot *w = sst_waiter_at(s, own - 1);
    while (sem_trywait(&w->sem) == 0) /* stale posts */
        ;
    int r = SST_OK;
    st32(&w->word, sst_offset4(s, word));
    fence_seq_cst(); /* SYNC sem-dekker: seq_cst; orders the store of slot.word before the load of *word */
    if (ld32_acquire(word) == value) {
        struct timespec t = sst_timespec(deadline_ns);
        if (sem_clockwait(&w->sem, CLOCK_MONOTONIC, &t) != 0)
            r = errno == ETIMEDOUT ? SST_ETIMEDOUT : errno == EINTR ? SST_EINTR : SST_OK;
    }
    st32(&w->word, 0);
    if (waiter == 0)
        sst_waiter_free(s, &own);
    return r;
}

static void unpark(sst_seg *s, uint32_t *word, int all) {
    uint32_t at = sst_offset4(s, word);
    fence_seq_cst(); /* SYNC sem-dekker: seq_cst; orders the change of *word before the loads of slot.word */
    uint32_t home = sst_waiter_home(s, word);
    uint32_t span = sst_waiter_span(s, home);
    for (uint32_t i = 0; i < span; i++) {
        sst_waiter_slot *w = sst_waiter_at(s, (home * (SST_WAITERS_MAX / SST_SPANS) + i) % SST_WAITERS_MAX);
        if (ld32_acquire(&w->word) == at) {
            (void)sem_post(&w->sem);
            if (!all)
                return;
        }
    }
}

static const sst_park_engine engine = {park, unpark};

const sst_park_engine *sst_park_sem(void) { return &engine; }
