/* views.c -- see views.h.
 *
 * A fork happens while no thread takes or gives back a slot (join) and none lists or ends a view. The child has the
 * mapping and one thread: its lock_fd is the one that was opened for it (peers.c) and never its parent's, whose life
 * must not hang on the child; of the calls in flight it has none.
 *
 * A number that the kernel gives out a second time was closed by somebody else. Where it is an open of the same file again
 * nothing else would tell, so the view that had it gives it away here, and is lost. */
#include "views.h"
#include "liveness.h"
#include "peers.h"

#include <sys/mman.h>
#include <unistd.h>

static pthread_mutex_t views_lock = PTHREAD_MUTEX_INITIALIZER;
static sst_seg *views;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

/* guard: views_lock */
static void give_away(int fd) {
    for (sst_seg *s = views; s && fd >= 0; s = s->next)
        for (int i = 0; i < 2; i++) {
            int *had = i ? &s->map_fd : &s->lock_fd;
            if (own_fd(had) == fd) {
                own_set_fd(had, -1);
                (void)sst_lose(s);
            }
        }
}

static void before_fork(void) {
    (void)pthread_mutex_lock(&views_lock);
    for (sst_seg *s = views; s; s = s->next) {
        (void)pthread_mutex_lock(&s->join);
        sst_peer_before_fork(s);
        if (s->unborn != 0)
            give_away(s->unborn_fd);
    }
}

static void in_parent(void) {
    for (sst_seg *s = views; s; s = s->next) {
        sst_peer_in_parent(s);
        (void)pthread_mutex_unlock(&s->join);
    }
    (void)pthread_mutex_unlock(&views_lock);
}

/* The counts were of the parent's other threads. A leaver's own stays: it may be this very thread, in a signal handler
 * between sst_leave and sst_close. Where nobody is left to count down to 0 the view ends here. LOST goes: where it was
 * lock_fd that the parent lost, the child opens another. */
static void in_child(void) {
    (void)pthread_mutex_unlock(&views_lock); /* this thread, which forked, took them in before_fork */
    for (sst_seg *s = views, *next; s; s = next) {
        next = s->next;
        (void)pthread_mutex_unlock(&s->join);
        sst_peer_in_child(s);
        uint32_t users = ld32(&s->users), bits = users & (SST_CLOSING | SST_LEAVER);
        own_st32(&s->users, bits | (bits & SST_LEAVER ? 1 : 0));
        if (bits == SST_CLOSING)
            sst_view_end(s);
    }
}

static void watch_forks(void) { (void)pthread_atfork(before_fork, in_parent, in_child); }

void sst_view_list(sst_seg *s) {
    (void)pthread_once(&fork_once, watch_forks);
    (void)pthread_mutex_lock(&views_lock);
    give_away(s->map_fd);
    give_away(s->lock_fd);
    s->next = views;
    views = s;
    (void)pthread_mutex_unlock(&views_lock);
}

void sst_view_end(sst_seg *s) {
    (void)pthread_mutex_lock(&views_lock); /* all of it: a child finds the view whole or not at all */
    sst_seg **p = &views;
    while (*p != NULL && *p != s)
        p = &(*p)->next;
    if (*p != NULL)
        *p = s->next;
    sst_fd_close(s, s->lock_fd);
    sst_fd_close(s, s->map_fd);
    s->lock_fd = s->map_fd = -1;
    (void)munmap(s->base, s->capacity); /* last: as long as it is mapped no other file has its number */
    s->base = NULL;
    (void)pthread_mutex_unlock(&views_lock);
}
