/* event.h -- a stripe's event word (floor C6): waiters arm it, setters bump it. Its bits: layout.h.
 *
 *   waiter                          setter (holds the stripe)
 *   v = arm: fetch_or WAITERS       publish the key
 *   look for the key                bump: count + 1, WAITERS off, by one RMW
 *   park while event == v           after unlock: wake all if WAITERS was on
 *
 * arm and bump are RMWs of one word: if the bump comes first the waiter's look sees the key (SYNC event); if it comes
 * second the waiter's parked value is stale. A setter may die between the two, so a park lasts at most a slice. */
#ifndef SST_EVENT_H
#define SST_EVENT_H

#include "view.h"

uint32_t sst_event_arm(sst_stripe *st); /* the value to park on */
int sst_event_bump(sst_stripe *st);     /* 1: wake after the unlock */

#endif
