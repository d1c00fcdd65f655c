/* clock.h -- monotonic time (floor C0). CLOCK_MONOTONIC is one clock for all processes of a host, so that deadlines and
 * "since when" may cross them; CLOCK_REALTIME jumps and is used nowhere. Tests may put another clock in. */
#ifndef SST_CLOCK_H
#define SST_CLOCK_H

#include <stdint.h>
#include <time.h>

extern uint64_t (*sst_clock)(void); /* the clock in use; tests replace it */

static inline struct timespec sst_timespec(uint64_t ns) {
    struct timespec t;
    uint64_t s = ns / 1000000000u;
    t.tv_sec = s > INT32_MAX ? (time_t)INT32_MAX : (time_t)s; /* 68 years of uptime: for ever */
    t.tv_nsec = (long)(ns % 1000000000u);
    return t;
}

/* a + b that stops at the largest value: SST_FOREVER stays for ever. */
static inline uint64_t sst_after(uint64_t a, uint64_t b) { return a > UINT64_MAX - b ? UINT64_MAX : a + b; }

static inline uint64_t sst_earlier(uint64_t a, uint64_t b) { return a < b ? a : b; }

#endif
