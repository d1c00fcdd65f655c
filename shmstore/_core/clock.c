/* clock.c -- see clock.h. */
#include "clock.h"
#include "sst.h"

static uint64_t monotonic_ns(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail for this clock and a valid pointer */
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t (*sst_clock)(void) = monotonic_ns;

uint64_t sst_now_ns(void) { return sst_clock(); }
