/* park_sem_none.c -- stands in for park_sem.c where the libc has no sem_clockwait: without a monotonic timed wait a
 * semaphore cannot keep a deadline. Segments of that engine are refused with SST_ENGINE. */
#include "park.h"

const sst_park_engine *sst_park_sem(void) { return NULL; }
