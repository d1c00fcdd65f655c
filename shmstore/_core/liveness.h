/* liveness.h -- is the process behind an owner word alive (floor C2).
 *
 * Alive <=> the slot's generation is the word's, and the slot's byte is locked. The kernel drops the byte lock when the
 * last descriptor of that open file goes, at SIGKILL too, whatever the pid namespace; a pid could be anybody's. */
#ifndef SST_LIVENESS_H
#define SST_LIVENESS_H

#include "view.h"

int sst_alive(sst_seg *s, uint32_t owner); /* 1 or 0; own words are alive without asking */
/* 1: somebody else's open file locks the slot's byte. fd must be this process's own lock_fd, or one that locks
 * nothing. */
int sst_byte_locked(int fd, uint32_t slot);
/* Locks the byte; 1: it is ours now. */
int sst_byte_take(int fd, uint32_t slot);
void sst_byte_drop(int fd, uint32_t slot);

#endif
