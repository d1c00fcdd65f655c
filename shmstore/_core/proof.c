/* proof.c -- sst_verify (floor C9): takes every lock, then walks (verify.c). */
#include "clock.h"
#include "guard.h"
#include "segment.h"
#include "verify.h"

#define PATIENCE_NS UINT64_C(10000000000) /* a live holder that stands still this long ends the attempt: SST_EBUSY */

/* Ascending stripes, then the heap: nobody waits for a lower stripe while holding a higher one. What is closed
 * (SST_ECORRUPT) is nobody's and stands still: it is walked like what is locked, and what closed it gets its name. */
static int walk_locked(sst_seg *s, char *report, size_t room) {
    uint64_t deadline = sst_after(sst_now_ns(), PATIENCE_NS);
    uint8_t held[SST_STRIPES] = {0};
    int r = SST_OK;
    for (uint32_t i = 0; i < SST_STRIPES && (r == SST_OK || r == SST_ECORRUPT); i++) {
        r = sst_enter(s, i, deadline, 0);
        held[i] = r == SST_OK;
    }
    if (r == SST_OK || r == SST_ECORRUPT) {
        int heap = sst_heap_enter(s, deadline, 0);
        r = heap == SST_OK || heap == SST_ECORRUPT ? sst_walk(s, report, room) : heap;
        if (heap == SST_OK)
            sst_heap_exit(s);
    }
    for (uint32_t i = 0; i < SST_STRIPES; i++)
        if (held[i])
            sst_exit(s, i, 0);
    return r;
}

int sst_verify(sst_seg *s, char *report, size_t room) {
    if (room == 0)
        return SST_EINVAL;
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    int locks = sst_walk_locks(s, report, room);
    size_t used = strlen(report);
    r = s->readonly ? sst_walk(s, report + used, room - used) : walk_locked(s, report + used, room - used);
    sst_end(s);
    return r < 0 ? r : r + locks;
}
