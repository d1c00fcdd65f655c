/* liveness.c -- see liveness.h. */
#include "liveness.h"

#include <fcntl.h>
#include <unistd.h>

#ifndef F_OFD_GETLK
#error "Linux 3.15 or newer with _GNU_SOURCE is needed: open file description locks are a process's life here"
#endif

int sst_fd_stat(const sst_seg *s, int fd, struct stat *out) {
    return fstat(fd, out) == 0 && (uint64_t)out->st_dev == s->dev && (uint64_t)out->st_ino == s->ino;
}

int sst_fd_ours(const sst_seg *s, int fd) {
    struct stat st;
    return sst_fd_stat(s, fd, &st);
}

int sst_lose(sst_seg *s) {
    for (;;) {
        uint32_t old = ld32(&s->users);
        if ((old & SST_LOST) || own_cas32(&s->users, old, old | SST_LOST))
            return SST_ELOST;
    }
}

int sst_whole(sst_seg *s) {
    int fd = own_fd(&s->lock_fd);
    return sst_fd_ours(s, own_fd(&s->map_fd)) && (fd < 0 || sst_fd_ours(s, fd)) ? SST_OK : sst_lose(s);
}

void sst_fd_close(const sst_seg *s, int fd) {
    if (sst_fd_ours(s, fd))
        (void)close(fd);
}

static struct flock byte_of(uint32_t slot, short type) {
    struct flock f = {0};
    f.l_type = type;
    f.l_whence = SEEK_SET;
    f.l_start = (off_t)(SST_LIFE + slot);
    f.l_len = 1;
    return f;
}

/* 1, 0; -1: it cannot be told. */
static int ask(int fd, uint32_t slot) {
    struct flock f = byte_of(slot, F_WRLCK);
    return fcntl(fd, F_OFD_GETLK, &f) != 0 ? -1 : f.l_type != F_UNLCK;
}

int sst_byte_locked(int fd, uint32_t slot) { return ask(fd, slot) != 0; /* cannot tell: never rob the living */ }

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
    int fd = sst_life_fd(s), locked = ask(fd, slot);
    if (locked < 1 && !sst_fd_ours(s, fd)) { /* that was another file's byte */
        (void)sst_lose(s);
        return 1;
    }
    if (locked == 0)
        return 0;
    return ld32_acquire(&p->gen) == SST_OWNER_GEN(owner); /* again: the slot may have changed hands in between */
}
