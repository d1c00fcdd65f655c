/* segment.h -- map, format, check, unmap (floor C4); calls in flight; fork. */
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
/* Every verb stands between these two. SST_ECLOSED: it may not begin. */
int sst_begin(sst_seg *s);
void sst_end(sst_seg *s);

#endif
