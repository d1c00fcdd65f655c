/* liveness.c -- see liveness.h. */
#include "liveness.h"

#include <fcntl.h>
#include <unistd.h>

#ifndef F_OFD_GETLK
#error "Linux 3.15 or newer with _GNU_SOURCE is needed: open file description locks are a process's life here"
#endif

static struct flock byte_of(uint32_t slot, short type) {
    struct flock f = {0};
    f.l_type = type;
    f.l_whence = SEEK_SET;
    f.l_start = (off_t)(SST_LIFE + slot);
    f.l_len = 1;
    return f;
}

int sst_byte_locked(int fd, uint32_t slot) {
    struct flock f = byte_of(slot, F_WRLCK);
    if (fcntl(fd, F_OFD_GETLK, &f) != 0)
        return 1; /* cannot tell: never rob the living */
    return f.l_type != F_UNLCK;
}

int sst_byte_take(int fd, uint32_t slot) {
    struct flock f = byte_of(slot, F_WRLCK);
    return fcntl(fd, F_OFD_SETLK, &f) == 0;
}

void sst_byte_drop(int fd, uint32_t slot) {
    struct flock f = byte_of(slot, F_UNLCK);
    (void)fcntl(fd, F_OFD_SETLK, &f); /* unlocking one's own byte cannot fail on an open descriptor */
}

int sst_alive(sst_seg *s, uint32_t owner) {
    owner &= SST_OWNER_MASK;
    if (owner == 0)
        return 0;
    uint32_t me = sst_me(s);
    if (owner == me)
        return 1;
    uint32_t slot = SST_OWNER_SLOT(owner);
    if (slot >= SST_PEERS_MAX || (me != 0 && slot == SST_OWNER_SLOT(me)))
        return 0; /* an older generation of the own slot */
    sst_peer_slot *p = sst_peer_at(s, slot);
    if (ld32_acquire(&p->gen) != SST_OWNER_GEN(owner)) /* SYNC peer-gen: acquire; pairs with the claim's release */
        return 0;
    if (!sst_byte_locked(sst_life_fd(s), slot))
        return 0;
    return ld32_acquire(&p->gen) == SST_OWNER_GEN(owner); /* again: the slot may have changed hands in between */
}
