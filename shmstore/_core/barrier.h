/* barrier.h -- what the parts of the reusable barrier share (floor C9), and what a close needs of it.
 *
 *   barrier.c         the words, how an epoch ends; break, reset, look. The argument
 *   barrier_wait.c    arriving and waiting
 *   barrier_seats.c   whose a seat is; who is missing, and dead
 *   barrier_open.c    finding and making one */
#ifndef SST_BARRIER_H
#define SST_BARRIER_H

#include "table.h"

typedef sst_barrier_block sst_point;

/* Ends the parks at the barrier in that block, for a moment: each looks again. Nothing, where there is no barrier. */
void sst_bar_nudge(sst_seg *s, uint32_t block);

/* -- barrier.c -------------------------------------------------------------------------------------------------------- */
/* Counts the call in; a forked child's first call takes its slot. */
int sst_bar_begin(sst_seg *s, const sst_bar *bar, uint32_t flags, sst_point **p);
/* The word that parks: the state's lower half. */
static inline uint32_t *sst_bar_low(sst_point *p) { return (uint32_t *)(void *)&p->state; }
/* Passes the epoch of `st` if all have arrived in it. 1: it is over, whoever did it. */
int sst_bar_pass(sst_seg *s, const sst_bar *bar, sst_point *p, uint64_t st);
/* Breaks that epoch, where it is not over. 1: this call did. */
int sst_bar_end_badly(sst_seg *s, sst_point *p, uint32_t epoch, uint32_t cause, uint32_t rank);
/* How the arrival's epoch stands in `st`: SST_EAGAIN, SST_OK or SST_EBROKEN. */
int sst_bar_verdict(const sst_point *p, uint64_t st, sst_arrival *a);

/* -- barrier_seats.c -------------------------------------------------------------------------------------------------- */
/* What the seat of that user says. A handle's rank is of the process that opened it, not of its forked children. */
uint32_t sst_bar_seat_of(const sst_seg *s, const sst_bar *bar);
/* Takes the seat, but not from a rank that lives. */
void sst_bar_sit(sst_seg *s, const sst_bar *bar, sst_point *p);
/* Whoever opens a barrier may do so for somebody else, a child to be forked; but not with the number of its own rank. */
void sst_bar_reserve(sst_seg *s, const sst_bar *bar, sst_point *p);
/* One of those who wait looks for all, and breaks the epoch for the first that cannot come any more. */
void sst_bar_probe(sst_seg *s, const sst_bar *bar, sst_point *p, uint32_t epoch);

#endif
