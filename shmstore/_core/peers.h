/* peers.h -- peer slots: one a process (floor C4). Ranks are apart from slots: a forked child has a slot and no rank. */
#ifndef SST_PEERS_H
#define SST_PEERS_H

#include "view.h"

/* Makes a slot this process's own: the one that its parent took for it, or one of a new generation. It is CLAIMING then;
 * the caller repairs what older generations of the slot still hold and calls sst_peer_live. SST_EPEERS, SST_ESYS;
 * SST_EDEAD: the segment was unlinked. guard: join */
int sst_peer_claim(sst_seg *s);
void sst_peer_live(sst_seg *s);
/* Ranks and slot LEFT, the byte free. No thread of this process may be in a call. guard: join */
void sst_peer_leave(sst_seg *s);
/* Around a fork, guard: join. Takes a slot for the child; lets go of it in the parent; makes it the child's to claim. */
void sst_peer_before_fork(sst_seg *s);
void sst_peer_in_parent(sst_seg *s);
void sst_peer_in_child(sst_seg *s);
/* State of a slot as SST_PEER_*, deaths told. fd as for sst_byte_locked. */
uint32_t sst_peer_state(sst_seg *s, int fd, uint32_t slot);

#endif
