/* lock.h -- the owner-word lock (floor C3). It finds out that an owner died, hands the lock over and says so; it never
 * repairs what the dead left: guard.c does.
 *
 *   word                   means                      next, by whom
 *   0                      free                       (me) or (me | WAITERS), by CAS of anybody
 *   owner                  held, nobody parked        0 by the owner; | WAITERS by a waiter
 *   owner | WAITERS        held, somebody parked      0 by the owner, who then wakes one
 *   dead owner (+WAITERS)  the holder was killed      (me | WAITERS), by CAS from exactly this value
 *   SST_LOCK_CORRUPT       a repair met corruption    nothing: whoever comes gets SST_ECORRUPT (stored by guard.c)
 *
 * It is legal for WAITERS to be set with nobody parked. It is legal to fail to wake: a parked waiter looks again after
 * 1..16 ms, since the holder may die between its store of 0 and its wake.
 *
 * How long one waits: to the deadline, but for each lock at least SST_LOCK_PATIENCE, so that a call that takes many
 * locks is not thrown back to its start by the first contention after its deadline. A signal, and a close, end the wait
 * at once. With SST_TRY and SST_NOWAIT nobody waits, beyond some pauses of a microsecond: with the first a lock that is
 * held is SST_EAGAIN, with the second its owner is looked at, SST_EBUSY if alive, and robbed if dead. */
#ifndef SST_LOCK_H
#define SST_LOCK_H

#include "view.h"

#define SST_OWNER_DIED 1 /* the lock is ours, and what it guards needs repair */

#define SST_LOCK_CORRUPT  SST_OWNER_MASK     /* a slot and a generation that nobody has */
#define SST_LOCK_PATIENCE UINT64_C(200000000) /* how long a live holder is watched before it is called SST_EBUSY */

/* SST_OK or SST_OWNER_DIED: ours. Else SST_EAGAIN (SST_TRY), SST_EBUSY, SST_EINTR, SST_ECLOSED, SST_ELOST,
 * SST_ECORRUPT: not ours. A parked call looks at CLOSING each time it wakes, every 16 ms at least: a close waits for no lock, whoever
 * holds it. */
int sst_lock(sst_seg *s, uint32_t *word, uint64_t deadline_ns, uint32_t flags);
void sst_unlock(sst_seg *s, uint32_t *word);
/* The owner word behind this thread's last SST_EBUSY; 0: none. */
uint32_t sst_lock_busy(void);
/* Takes the word over from exactly `held`, an owner judged dead. 1: ours. */
int sst_lock_seize(sst_seg *s, uint32_t *word, uint32_t held);

#endif
