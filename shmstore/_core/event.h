/* event.h -- a stripe's event word (floor C6): waiters arm it, setters bump it. Its bits: layout.h. And the bell, for
 * who waits in no futex: a server.
 *
 *   waiter                          setter (holds the stripe)
 *   v = arm: fetch_or WAITERS       publish the key
 *   look for the key                bump: count + 1, WAITERS and FORWARD off, by one RMW
 *   park while event == v           after unlock: wake all if WAITERS was on
 *
 * arm and bump are RMWs of one word: if the bump comes first the waiter's look sees the key (SYNC event); if it comes
 * second the waiter's parked value is stale. A setter may die between the two, so a park lasts at most a slice.
 *
 * A server waits for many keys at once, in epoll_wait, where no word can wake it. So it has a bell thread, which parks on
 * the one bell of the segment and stands in for the events of all stripes that the server has armed:
 *
 *   server, for a stripe            bell thread                          setter
 *   v = forward: fetch_or FORWARD   v = bell_arm: who |= this process    publish the key
 *   look for the key                an armed event moved? tell server    bump; after unlock, if FORWARD was on:
 *   event still v? then sleep       park while bell == v, a slice        ring: who is somebody? who = 0, wake all
 *
 * forward and bump are RMWs of one word, as arm and bump (SYNC event). The ringer looks at the bell after it changed the
 * event, and the bell thread at the events after it changed the bell: so one of them sees the other (SYNC bell). Bump
 * takes FORWARD off, as it does WAITERS, and a server that still waits sets it again before it looks: so no count of
 * servers is kept, and what a dead one left costs one ring. Without a server the bump is the same one RMW, and the wake
 * one branch.
 *
 * The thread that serves looks at all it has armed before it sleeps: a verb of its own need not ring where the bell names
 * its process alone (sst_event_serve). */
#ifndef SST_EVENT_H
#define SST_EVENT_H

#include "view.h"

enum { SST_WAKE_PARKED = 1, SST_WAKE_BELL = 2 };

uint32_t sst_event_arm(sst_stripe *st);     /* the value to park on */
uint32_t sst_event_forward(sst_stripe *st); /* the value to compare with */
int sst_event_bump(sst_stripe *st);         /* SST_WAKE_*: what to wake after the unlock; 0: nobody */
void sst_event_wake(sst_seg *s, sst_stripe *st, int wake);

uint32_t sst_bell_arm(sst_seg *s); /* the value to park on */
int sst_bell_park(sst_seg *s, uint32_t value, uint64_t deadline_ns);
/* A bell thread that is parked looks up, whether the bell names it or not: a ringer takes the names away, then wakes, and
 * may die in between. */
void sst_bell_nudge(sst_seg *s);
/* This thread is the one that serves the segment; NULL: no more. */
void sst_event_serve(const sst_seg *s);

#endif
