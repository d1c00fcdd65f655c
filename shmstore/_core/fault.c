/* fault.c -- fault build only: counts the stores into the segment and dies just before the n-th. See atomics.h. */
#include "atomics.h"

#ifdef SST_FAULT
#include <signal.h>

static uint64_t counted, fatal;

void sst_fault_arm(uint64_t nth) {
    __atomic_store_n(&counted, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&fatal, nth, __ATOMIC_RELAXED);
}

uint64_t sst_fault_count(void) { return __atomic_load_n(&counted, __ATOMIC_RELAXED); }

void sst_fault_store(void) {
    uint64_t n = __atomic_add_fetch(&counted, 1, __ATOMIC_RELAXED);
    if (n == __atomic_load_n(&fatal, __ATOMIC_RELAXED))
        (void)raise(SIGKILL);
}
#else
typedef int sst_fault_is_off; /* a C file holds at least one declaration */
#endif
