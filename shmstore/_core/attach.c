/* attach.c -- the doors of a segment's life (floor C9): create, attach, leave. The caller holds the lock file.
 *
 * attach = map, claim a peer slot, repair what that slot's dead still hold, and look at the state once more: whoever
 * unlinked the segment meanwhile has marked it dead first. */
#include "guard.h"
#include "peers.h"
#include "segment.h"
#include "waiter.h"

#include <unistd.h>

int sst_attach(int map_fd, int lock_fd, sst_seg **out) {
    sst_seg *s = NULL;
    int r = sst_map(map_fd, lock_fd, 0, &s);
    if (r != SST_OK) {
        (void)close(map_fd);
        (void)close(lock_fd);
        return r;
    }
    r = sst_join(s, 0);
    if (r == SST_OK && ld32(&sst_header_of(s)->state) != SST_READY)
        r = SST_EDEAD;
    if (r != SST_OK) {
        (void)sst_leave(s);
        sst_free(s);
        return r;
    }
    *out = s;
    return SST_OK;
}

int sst_create(int map_fd, int lock_fd, uint64_t capacity, uint32_t engine, uint32_t persist, uint32_t world_size,
               uint64_t incarnation, sst_seg **out) {
    sst_seg *s = NULL;
    int r = sst_format(map_fd, lock_fd, capacity, engine, persist, world_size, incarnation, &s);
    if (r != SST_OK) {
        (void)close(map_fd);
        (void)close(lock_fd);
        return r;
    }
    r = sst_join(s, 0);
    if (r != SST_OK) {
        sst_free(s);
        return r;
    }
    sst_publish(s);
    *out = s;
    return SST_OK;
}

int sst_leave(sst_seg *s) {
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    (void)pthread_mutex_lock(&s->join);
    uint32_t me = sst_me(s);
    s->left = 1;
    if (me != 0) {
        sst_waiter_reap(s, SST_OWNER_SLOT(me), 0);
        sst_peer_leave(s);
    }
    if (s->lock_fd >= 0)
        (void)close(s->lock_fd);
    s->lock_fd = -1;
    (void)pthread_mutex_unlock(&s->join);
    sst_end(s);
    return SST_OK;
}

int sst_self(sst_seg *s, uint32_t *slot, uint32_t *gen) {
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    r = sst_me(s) ? SST_OK : sst_join(s, 0);
    *slot = SST_OWNER_SLOT(sst_me(s));
    *gen = SST_OWNER_GEN(sst_me(s));
    sst_end(s);
    return r;
}
