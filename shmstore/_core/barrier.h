/* barrier.h -- what a close needs of the reusable barriers (floor C9). */
#ifndef SST_BARRIER_H
#define SST_BARRIER_H

#include "view.h"

/* Ends the parks at the barrier in that block, for a moment: each looks again. Nothing, where there is no barrier. */
void sst_bar_nudge(sst_seg *s, uint32_t block);

#endif
