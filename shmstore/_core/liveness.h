/* liveness.h -- is the process behind an owner word alive (floor C2).
 *
 * Alive <=> the slot's generation is the word's, and the slot's byte is locked. The kernel drops the byte lock when the
 * last descriptor of that open file goes, at SIGKILL too, whatever the pid namespace; a pid could be anybody's. */
#ifndef SST_LIVENESS_H
#define SST_LIVENESS_H

#include "view.h"

#include <sys/stat.h>

/* -- is a descriptor still ours -------------------------------------------------------------------------------------
 *
 * Descriptors belong to the process: a daemoniser closes them all, and what it opens next gets their numbers. So before
 * the file grows, is opened again, is asked about the living or is closed, its descriptor is compared with what was
 * mapped. None of that is on a path that neither grows, waits nor ends. */
int sst_fd_ours(const sst_seg *s, int fd);                   /* 1 or 0 */
int sst_fd_stat(const sst_seg *s, int fd, struct stat *out); /* the same; 1: *out is the file's */
/* SST_OK: map_fd and, where there is one, lock_fd are ours. Else the view is lost from here on: SST_ELOST. */
int sst_whole(sst_seg *s);
int sst_lose(sst_seg *s); /* SST_ELOST */
/* Closes what is ours, and nothing else. */
void sst_fd_close(const sst_seg *s, int fd);

/* -- is somebody alive --------------------------------------------------------------------------------------------- */
int sst_alive(sst_seg *s, uint32_t owner); /* 1 or 0; own words without asking, and all where the view is lost */
/* 1: somebody else's open file locks the slot's byte. fd must be this process's own lock_fd, or one that locks
 * nothing. */
int sst_byte_locked(int fd, uint32_t slot);
/* Locks the byte; 1: it is ours now. */
int sst_byte_take(int fd, uint32_t slot);
void sst_byte_drop(int fd, uint32_t slot);

#endif
