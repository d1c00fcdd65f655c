/* park.h -- wait on a word of the segment, wake who waits (floor C2). Two engines behind one pair of functions:
 * park_futex.c and park_sem.c (park_sem_none.c where the libc lacks sem_clockwait). The segment says which.
 *
 * The wait protocol, the same on both: a waiter sets WAITERS in the word, looks whether it still has to wait, and parks
 * on the value it then saw; a setter publishes, changes the word, and wakes when WAITERS stood in the old value. */
#ifndef SST_PARK_H
#define SST_PARK_H

#include "view.h"

/* In the place of a park that cannot be had: sleeps a millisecond, at most to the deadline. SST_EAGAIN, SST_EINTR. */
int sst_park_nap(uint64_t deadline_ns);

const sst_park_engine *sst_park_futex(void);
const sst_park_engine *sst_park_sem(void); /* NULL where it is not built in */
const sst_park_engine *sst_park_engine_of(uint32_t engine); /* NULL: unknown or not built in */

#endif
