/* park_futex.c -- the futex engine: the kernel keeps the queue. Shared futexes, absolute CLOCK_MONOTONIC. */
#include "clock.h"
#include "park.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

static int park(sst_seg *s, uint32_t *word, uint32_t value, uint64_t deadline_ns, uint32_t waiter) {
    (void)s;
    (void)waiter;
    struct timespec t = sst_timespec(deadline_ns);
    if (syscall(SYS_futex, word, FUTEX_WAIT_BITSET, value, deadline_ns == SST_FOREVER ? NULL : &t, NULL,
                FUTEX_BITSET_MATCH_ANY) == 0)
        return SST_OK;
    switch (errno) {
    case EAGAIN: /* the word had changed */
        return SST_OK;
    case ETIMEDOUT:
        return SST_ETIMEDOUT;
    case EINTR:
        return SST_EINTR;
    default: /* refused, as by a seccomp filter: EPERM, ENOSYS */
        return sst_park_nap(deadline_ns);
    }
}

static void unpark(sst_seg *s, uint32_t *word, int all) {
    (void)s;
    (void)syscall(SYS_futex, word, FUTEX_WAKE_BITSET, all ? INT_MAX : 1, NULL, NULL, FUTEX_BITSET_MATCH_ANY);
}

static const sst_park_engine engine = {park, unpark};

const sst_park_engine *sst_park_futex(void) { return &engine; }

int sst_park_nap(uint64_t deadline_ns) {
    struct timespec t = sst_timespec(sst_earlier(deadline_ns, sst_after(sst_now_ns(), 1000000)));
    return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR ? SST_EINTR : SST_EAGAIN;
}

const sst_park_engine *sst_park_engine_of(uint32_t which) {
    return which == SST_FUTEX ? sst_park_futex() : which == SST_SEMAPHORE ? sst_park_sem() : NULL;
}

int sst_has_engine(uint32_t which) { return sst_park_engine_of(which) != NULL; }
