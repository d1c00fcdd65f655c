/* fault.c -- fault build only: counts the stores into the segment and dies just before the n-th. See atomics.h. */
#include "atomics.h"

#ifdef SST_FAULT
#include <signal.h>

static uint64_t counted, fatal;

void sst_fault_arm(uint64_t nth) {
    own_st64(&counted, 0);
    own_st64(&fatal, nth);
}

uint64_t sst_fault_count(void) { return ld64(&counted); }

void sst_fault_store(void) {
    if (own_add64(&counted, 1) + 1 == ld64(&fatal))
        (void)raise(SIGKILL);
}
#else
typedef int sst_fault_is_off; /* a C file holds at least one declaration */
#endif
