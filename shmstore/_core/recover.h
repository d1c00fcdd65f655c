/* recover.h -- the only code that repairs (floor C7). Everything here is idempotent and may itself be killed. */
#ifndef SST_RECOVER_H
#define SST_RECOVER_H

#include "view.h"

/* Repairs the heap after its lock was taken over from a dead owner. The caller holds the heap lock. */
int sst_recover_heap(sst_seg *s);
/* Repairs a stripe after its lock was taken over. The caller holds the stripe and the (repaired) heap. SST_ECORRUPT:
 * half repaired, its sequence odd; nobody may work on it. */
int sst_recover_stripe(sst_seg *s, uint32_t stripe);
/* Takes what is USED off the stripe's inflight list. Needs the stripe alone: no USED block may stand on a list when the
 * stripe is unlocked, or the next verb that drops it would put it there twice. */
int sst_sift(sst_seg *s, uint32_t stripe);
/* Gives back or drops what the stripe's inflight list still holds after an operation. Needs the same two locks. */
int sst_settle(sst_seg *s, uint32_t stripe);

#endif
