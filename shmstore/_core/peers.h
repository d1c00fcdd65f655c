/* peers.h -- peer slots: one a process (floor C4). Ranks are apart from slots: a forked child has a slot and no rank. */
#ifndef SST_PEERS_H
#define SST_PEERS_H

#include "view.h"

/* Claims a slot for this process up to and including its generation, leaving it CLAIMING; *owner_before: nothing.
 * The caller repairs what older generations of the slot still hold and then calls sst_peer_live. SST_EPEERS, SST_ESYS. */
int sst_peer_claim(sst_seg *s);
void sst_peer_live(sst_seg *s);
void sst_peer_leave(sst_seg *s);
/* State of a slot as SST_PEER_*, deaths told. fd as for sst_byte_locked. */
uint32_t sst_peer_state(sst_seg *s, int fd, uint32_t slot);

#endif
