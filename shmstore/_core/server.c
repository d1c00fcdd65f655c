/* server.c -- a server's life (floor C9): start, stop, what it has served; and forks. The story and the states:
 * docs/server.md; the parts: conn.h.
 *
 * A forked child has none of the threads. It closes the descriptors, so that a connection ends when the parent ends it,
 * and leaves the rest alone: a server there is one that has stopped. */
#include "conn.h"
#include "errors.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

/* -- forks ------------------------------------------------------------------------------------------------------------ */
static pthread_mutex_t servers_lock = PTHREAD_MUTEX_INITIALIZER;
static sst_server *servers;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void before_fork(void) {
    (void)pthread_mutex_lock(&servers_lock);
    for (sst_server *v = servers; v; v = v->next)
        (void)pthread_mutex_lock(&v->table);
}

static void in_parent(void) {
    for (sst_server *v = servers; v; v = v->next)
        (void)pthread_mutex_unlock(&v->table);
    (void)pthread_mutex_unlock(&servers_lock);
}

static void shut_all(sst_server *v) {
    sst_shut(&v->listen_fd);
    sst_shut(&v->epoll_fd);
    sst_shut(&v->spare_fd);
    sst_shut(&v->bell.fd);
    for (sst_link *l = v->conns.next; l != &v->conns; l = l->next)
        sst_shut(&SST_OF(sst_conn, link, l)->fd);
}

static void in_child(void) {
    sst_sends_forked();
    for (sst_server *v = servers; v; v = v->next) {
        shut_all(v);
        own_st32(&v->forked, 1);
        (void)pthread_mutex_unlock(&v->table);   /* this thread, which forked, took it in before_fork */
        (void)pthread_mutex_init(&v->end, NULL); /* another may have had that one */
    }
    servers = NULL;
    (void)pthread_mutex_unlock(&servers_lock);
}

static void watch_forks(void) { (void)pthread_atfork(before_fork, in_parent, in_child); }

static void enlist(sst_server *v) {
    (void)pthread_once(&fork_once, watch_forks);
    (void)pthread_mutex_lock(&servers_lock);
    v->next = servers;
    servers = v;
    (void)pthread_mutex_unlock(&servers_lock);
}

static void delist(sst_server *v) {
    (void)pthread_mutex_lock(&servers_lock);
    sst_server **p = &servers;
    while (*p != NULL && *p != v)
        p = &(*p)->next;
    if (*p != NULL)
        *p = v->next;
    (void)pthread_mutex_unlock(&servers_lock);
}

/* -- start and stop --------------------------------------------------------------------------------------------------- */
/* Signals are the other threads'. */
static int start_threads(sst_server *v) {
    sigset_t all, old;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = sst_bell_start(&v->bell, v->seg);
    if (r == SST_OK) {
        int failed = pthread_create(&v->thread, NULL, sst_loop, v);
        if (failed) {
            sst_bell_stop(&v->bell);
            r = sst_fail_with(SST_ESYS, failed);
        }
    }
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    return r;
}

/* Nobody serves: nothing is left for a child to close. */
static void retire(sst_server *v) {
    (void)pthread_mutex_lock(&v->table);
    shut_all(v);
    (void)pthread_mutex_unlock(&v->table);
    delist(v);
}

static void discard(sst_server *v) {
    retire(v);
    (void)pthread_mutex_destroy(&v->table);
    (void)pthread_mutex_destroy(&v->end);
    free(v);
}

int sst_server_start(sst_seg *s, int listen_fd, sst_server **out) {
    uint32_t slot, gen;
    sst_server *v = calloc(1, sizeof *v);
    int r = v == NULL ? sst_fail_with(SST_ESYS, ENOMEM) : sst_self(s, &slot, &gen); /* joins, in a forked child */
    if (r != SST_OK) {
        free(v);
        (void)close(listen_fd);
        return r;
    }
    v->seg = s;
    v->listen_fd = listen_fd;
    v->epoll_fd = v->spare_fd = v->bell.fd = -1;
    sst_link *const lists[] = {&v->conns, &v->dead, &v->ready, &v->freed, &v->dirty, &v->grants};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        sst_link_init(lists[i]);
    for (uint32_t i = 0; i < SST_STRIPES; i++)
        sst_link_init(&v->wants[i]);
    (void)pthread_mutex_init(&v->table, NULL);
    (void)pthread_mutex_init(&v->end, NULL);
    v->count.running = 1;
    enlist(v); /* from here on a child closes what is open */
    (void)pthread_mutex_lock(&v->table);
    r = sst_loop_open(v);
    (void)pthread_mutex_unlock(&v->table);
    if (r == SST_OK)
        r = start_threads(v);
    if (r != SST_OK) {
        discard(v);
        return r;
    }
    *out = v;
    return SST_OK;
}

int sst_server_stop(sst_server *v, uint64_t drain_ns) {
    (void)pthread_mutex_lock(&v->end);
    if (!v->ended && !ld32(&v->forked)) {
        v->drain_ns = drain_ns;
        own_st32(&v->stop, 1);
        sst_bell_tell(&v->bell);
        (void)pthread_join(v->thread, NULL);
        sst_bell_stop(&v->bell);
        retire(v);
    }
    v->ended = 1;
    (void)pthread_mutex_unlock(&v->end);
    return SST_OK;
}

int sst_server_stat(sst_server *v, sst_server_info *out) {
    *out = (sst_server_info){.connections = ld64(&v->count.connections),
                             .open = ld64(&v->count.open),
                             .waiting = ld64(&v->count.waiting),
                             .operations = ld64(&v->count.operations),
                             .bytes_in = ld64(&v->count.bytes_in),
                             .bytes_out = ld64(&v->count.bytes_out),
                             .refused = ld64(&v->count.refused),
                             .running = ld32(&v->forked) ? 0 : ld64(&v->count.running)};
    return SST_OK;
}

void sst_server_free(sst_server *v) {
    if (v == NULL)
        return;
    (void)sst_server_stop(v, 0);
    discard(v);
}
