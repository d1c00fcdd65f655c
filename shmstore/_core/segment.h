/* segment.h -- map, format, check (floor C4); calls in flight, and what the last one out does. */
#ifndef SST_SEGMENT_H
#define SST_SEGMENT_H

#include "view.h"

/* Checks a header against the file's size. SST_OK, or the SST_E* that says what is wrong. */
int sst_header_check(const sst_header *h, uint64_t file_bytes);
/* A view of a formatted segment; on failure both descriptors stay the caller's. */
int sst_map(int map_fd, int lock_fd, int readonly, sst_seg **out);
/* Formats the empty file behind map_fd; state and magic are published by sst_publish. */
int sst_format(int map_fd, int lock_fd, uint64_t capacity, uint32_t engine, uint32_t persist, uint32_t world_size,
               uint64_t incarnation, sst_seg **out);
void sst_publish(sst_seg *s);
/* Gives the file behind fd real bytes from *size, a multiple of 4096, up to `most`, or to `least` at least. *size says
 * how far it came, whatever the answer: SST_OK, SST_ENOSPC, SST_ESYS; SST_EINTR: not even one page came through. */
int sst_file_grow(int fd, uint64_t *size, uint64_t least, uint64_t most);
/* Every verb stands between these two. SST_ECLOSED, SST_ELOST: it may not begin. */
int sst_begin(sst_seg *s);
void sst_end(sst_seg *s);
/* The last call to begin: the closer's own. leaver: SST_LEAVER or 0. Ends with sst_end. SST_ECLOSED: somebody was first. */
int sst_begin_closing(sst_seg *s, uint32_t leaver);
/* The waiter slots free, the peer slot LEFT, lock_fd closed; twice is once. No other thread may be in a call. Whose
 * lock_fd is lost is dead already, and its slot may be another's: it closes and stores nothing. */
void sst_give_back(sst_seg *s);

#endif
