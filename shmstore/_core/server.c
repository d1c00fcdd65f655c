/* server.c -- a segment on the wire (floor C9): sockets, epoll, start and stop. The story and the states: docs/server.md;
 * the parts: conn.h.
 *
 * One thread serves all connections and never blocks but in epoll_wait. A pass: what epoll says, then what was put off,
 * then the looks at moved events, then the answers go out; it sleeps only when nothing is left to do now.
 *
 * A forked child has none of the threads. It closes the descriptors, so that a connection ends when the parent ends it,
 * and leaves the rest alone: a server there is one that has stopped. */
#include "clock.h"
#include "conn.h"
#include "errors.h"
#include "event.h"
#include "waiter.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <linux/sockios.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { EVENTS = 256, ACCEPTS = 64, STUCK_MS = 4 };
#define ACCEPT_PAUSE_NS UINT64_C(100000000) /* where not even the spare descriptor could be had */
#define MS_NS           UINT64_C(1000000)

/* What epoll tells of, beside connections. */
static char listener_tag, bell_tag;

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

static void shut_fd(int *fd) {
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

static void shut_all(sst_server *v) {
    shut_fd(&v->listen_fd);
    shut_fd(&v->epoll_fd);
    shut_fd(&v->spare_fd);
    shut_fd(&v->bell.fd);
    for (sst_link *l = v->conns.next; l != &v->conns; l = l->next)
        shut_fd(&SST_OF(sst_conn, link, l)->fd);
}

static void in_child(void) {
    for (sst_server *v = servers; v; v = v->next) {
        shut_all(v);
        own_st32(&v->forked, 1);
        (void)pthread_mutex_init(&v->table, NULL);
        (void)pthread_mutex_init(&v->end, NULL);
    }
    servers = NULL;
    (void)pthread_mutex_init(&servers_lock, NULL);
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

/* -- connections ------------------------------------------------------------------------------------------------------ */
static void set_up(int fd) {
    static const struct {
        int level, name, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},   {SOL_SOCKET, SO_KEEPALIVE, 1}, /* a host that is gone is found in 2 min */
        {IPPROTO_TCP, TCP_KEEPIDLE, 60}, {IPPROTO_TCP, TCP_KEEPINTVL, 15},
        {IPPROTO_TCP, TCP_KEEPCNT, 4},   {IPPROTO_TCP, TCP_USER_TIMEOUT, 120000},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) /* each a help, none a need */
        (void)setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
}

static int watch(sst_server *v, int how, int fd, uint32_t events, void *tag) {
    struct epoll_event e = {.events = events, .data.ptr = tag};
    return epoll_ctl(v->epoll_fd, how, fd, &e);
}

static void admit(sst_server *v, int fd) {
    sst_conn *c = sst_conn_new(v, fd);
    if (c == NULL || watch(v, EPOLL_CTL_ADD, fd, EPOLLIN, c) != 0) {
        if (c)
            sst_conn_free(c);
        (void)close(fd);
        return;
    }
    c->events = EPOLLIN;
    set_up(fd);
    sst_link_last(&v->conns, &c->link);
    sst_count(&v->count.connections, 1);
    sst_count(&v->count.open, 1);
}

/* No descriptor is left: the next in the queue is refused, by the one kept for that. 0: not even that. */
static int refuse(sst_server *v) {
    shut_fd(&v->spare_fd);
    int fd = accept4(v->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        (void)close(fd);
    v->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return fd >= 0 && v->spare_fd >= 0;
}

static void accept_some(sst_server *v) {
    (void)pthread_mutex_lock(&v->table);
    for (int i = 0; i < ACCEPTS && v->listen_fd >= 0; i++) {
        int fd = accept4(v->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            admit(v, fd);
            continue;
        }
        if (errno == EAGAIN)
            break;
        if ((errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) && !refuse(v)) {
            (void)watch(v, EPOLL_CTL_DEL, v->listen_fd, 0, NULL);
            v->accept_ns = sst_after(sst_now_ns(), ACCEPT_PAUSE_NS);
            break;
        }
    } /* other errors are of the one connection that was about to be accepted */
    (void)pthread_mutex_unlock(&v->table);
}

/* Out of epoll by hand, and shut down by hand: a child that was forked a moment ago may have the same open file, and then
 * close alone would do neither. */
static void close_conn(sst_conn *c) {
    sst_server *v = c->server;
    sst_conn_end(c);
    sst_link_out(&c->ready);
    sst_link_out(&c->dirty);
    (void)pthread_mutex_lock(&v->table);
    (void)watch(v, EPOLL_CTL_DEL, c->fd, 0, NULL);
    (void)shutdown(c->fd, SHUT_RDWR);
    shut_fd(&c->fd);
    sst_link_last(&v->dead, &c->link);
    (void)pthread_mutex_unlock(&v->table);
    sst_count(&v->count.open, -1);
}

static void bury(sst_server *v) {
    while (sst_linked(&v->dead))
        sst_conn_free(SST_OF(sst_conn, link, v->dead.next));
}

/* Nothing more is read. What is asked for is answered, but for waits. */
static void last_of(sst_conn *c) {
    if (c->state != SST_CONN_ENDED)
        c->state = SST_CONN_LAST;
    sst_wants_drop(c);
    sst_link_last(&c->server->dirty, &c->dirty); /* flush() closes it when nothing is left */
}

static size_t unsent(const sst_conn *c) { return c->out.end - c->out.begin; }

/* What the connection is to be woken for. */
static void rewatch(sst_conn *c) {
    uint32_t events = unsent(c) > 0 ? EPOLLOUT : 0;
    if (c->state != SST_CONN_LAST && unsent(c) <= SST_CONN_HIGH && c->busy_ns == 0)
        events |= EPOLLIN;
    if (events == c->events)
        return;
    c->events = events;
    if (watch(c->server, EPOLL_CTL_MOD, c->fd, events, c) != 0)
        close_conn(c);
}

/* Reads once: into the connection's own block, and what does not fit there into the server's. */
static void receive(sst_conn *c) {
    sst_server *v = c->server;
    sst_buf *in = &c->in;
    size_t used = in->end - in->begin, want = c->frame.need > used ? c->frame.need - used : 1;
    if (!sst_buf_room(v, in, want < sizeof v->scratch ? want : sizeof v->scratch)) {
        sst_count(&v->count.refused, 1);
        sst_conn_end(c);
        return;
    }
    struct iovec parts[2] = {{in->at + in->end, in->room - in->end}, {v->scratch, sizeof v->scratch}};
    ssize_t n = readv(c->fd, parts, 2);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0) {
        sst_conn_end(c);
        return;
    }
    if (n == 0) {
        last_of(c);
        return;
    }
    sst_count(&v->count.bytes_in, n);
    size_t own = (size_t)n < parts[0].iov_len ? (size_t)n : parts[0].iov_len;
    in->end += own;
    if ((size_t)n > own) {
        if (!sst_buf_room(v, in, (size_t)n - own)) {
            sst_conn_end(c);
            return;
        }
        memcpy(in->at + in->end, v->scratch, (size_t)n - own);
        in->end += (size_t)n - own;
    }
}

/* A socket that is closed while its peer has not taken all may lose the rest: a stop waits for that, too. Nothing tells
 * when the last byte was taken, so the stop asks. */
static int untaken(const sst_conn *c) {
    int n = 0;
    return c->server->drain_until != 0 && ioctl(c->fd, SIOCOUTQ, &n) == 0 && n > 0;
}

/* A stop reads once more: bytes that arrived since would make the kernel reset the connection, and lose the answers. */
static int unread(const sst_conn *c) {
    int n = 0;
    return c->server->drain_until != 0 && ioctl(c->fd, SIOCINQ, &n) == 0 && n > 0;
}

/* Sends what there is to send, and closes what is over. */
static void flush(sst_conn *c) {
    int was_full = unsent(c) > SST_CONN_HIGH;
    while (c->state != SST_CONN_ENDED && unsent(c) > 0) {
        ssize_t n = send(c->fd, c->out.at + c->out.begin, unsent(c), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0) {
            sst_conn_end(c);
            break;
        }
        sst_count(&c->server->count.bytes_out, n);
        sst_buf_drop(c->server, &c->out, (size_t)n);
    }
    if (was_full && unsent(c) <= SST_CONN_HIGH && c->in.begin < c->in.end)
        sst_link_last(&c->server->ready, &c->ready);
    int over = c->state == SST_CONN_LAST && unsent(c) == 0 && !sst_linked(&c->ready);
    if (over && unread(c)) {
        receive(c);
        sst_conn_run(c);
        sst_link_last(&c->server->dirty, &c->dirty);
    } else if (c->state == SST_CONN_ENDED || (over && !untaken(c)))
        close_conn(c);
    else
        rewatch(c);
}

static void serve(sst_conn *c, uint32_t events) {
    if (c->state == SST_CONN_ENDED)
        return;
    if ((events & EPOLLIN) && c->state != SST_CONN_LAST) {
        receive(c);
        if (c->state != SST_CONN_ENDED && c->busy_ns == 0 && !sst_linked(&c->ready))
            sst_conn_run(c);
    } else if (events & (EPOLLERR | EPOLLHUP)) {
        sst_conn_end(c);
    }
    sst_link_last(&c->server->dirty, &c->dirty);
}

/* -- passes ----------------------------------------------------------------------------------------------------------- */
/* Runs again what was put off, each once. */
static void run_ready(sst_server *v) {
    sst_link todo;
    sst_link_init(&todo);
    while (sst_linked(&v->ready))
        sst_link_last(&todo, v->ready.next);
    uint64_t now = sst_linked(&todo) ? sst_now_ns() : 0;
    while (sst_linked(&todo)) {
        sst_conn *c = SST_OF(sst_conn, ready, todo.next);
        sst_link_out(&c->ready);
        c->served = 0;
        if (c->busy_ns > now)
            sst_link_last(&v->ready, &c->ready);
        else if (c->state != SST_CONN_ENDED)
            sst_conn_run(c);
        sst_link_last(&v->dirty, &c->dirty);
    }
}

static void flush_all(sst_server *v) {
    while (sst_linked(&v->dirty)) {
        sst_conn *c = SST_OF(sst_conn, dirty, v->dirty.next);
        sst_link_out(&c->dirty);
        c->served = 0;
        flush(c);
    }
}

/* Milliseconds until something is to be done without being told: -1 never. */
static int patience(const sst_server *v, uint64_t now) {
    uint64_t until = SST_FOREVER;
    for (const sst_link *l = v->ready.next; l != &v->ready; l = l->next)
        until = sst_earlier(until, SST_OF(const sst_conn, ready, l)->busy_ns);
    if (sst_linked(&v->grants))
        until = sst_earlier(until, SST_OF(const sst_conn, granted, v->grants.next)->grant_ns);
    if (v->stuck)
        until = sst_earlier(until, sst_after(now, STUCK_MS * MS_NS));
    if (v->accept_ns)
        until = sst_earlier(until, v->accept_ns);
    if (v->drain_until)
        until = sst_earlier(v->drain_until, sst_after(now, STUCK_MS * MS_NS));
    if (until == SST_FOREVER)
        return -1;
    uint64_t ms = until <= now ? 0 : (until - now + MS_NS - 1) / MS_NS;
    return ms > 60000 ? 60000 : (int)ms;
}

static void pass(sst_server *v, const struct epoll_event *events, int n) {
    for (int i = 0; i < n; i++) {
        if (events[i].data.ptr == &listener_tag)
            accept_some(v);
        else if (events[i].data.ptr == &bell_tag)
            sst_bell_heard(&v->bell);
        else
            serve(events[i].data.ptr, events[i].events);
    }
    run_ready(v);
    uint64_t now = sst_linked(&v->grants) || v->accept_ns ? sst_now_ns() : 0;
    sst_grants_expire(v, now);
    if (v->accept_ns && v->accept_ns <= now) {
        v->accept_ns = 0;
        if (v->spare_fd < 0)
            v->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (v->listen_fd >= 0)
            (void)watch(v, EPOLL_CTL_ADD, v->listen_fd, EPOLLIN, &listener_tag);
    }
    v->stuck = 0;
    sst_wants_scan(v); /* after the last request of the pass: nothing is armed between here and the sleep */
    flush_all(v);
    bury(v);
}

static void shut_listener(sst_server *v) {
    (void)pthread_mutex_lock(&v->table);
    if (v->listen_fd >= 0) {
        (void)watch(v, EPOLL_CTL_DEL, v->listen_fd, 0, NULL);
        (void)shutdown(v->listen_fd, SHUT_RDWR);
    }
    shut_fd(&v->listen_fd);
    (void)pthread_mutex_unlock(&v->table);
}

/* The first step of a stop. */
static void begin_stop(sst_server *v) {
    v->drain_until = sst_after(sst_now_ns(), v->drain_ns);
    shut_listener(v);
    for (sst_link *l = v->conns.next, *next; l != &v->conns; l = next) {
        next = l->next;
        sst_conn *c = SST_OF(sst_conn, link, l);
        if (c->state == SST_CONN_OPEN) /* whether it is full or not: one read */
            serve(c, EPOLLIN);
        last_of(c);
    }
}

static void end_all(sst_server *v) {
    while (sst_linked(&v->conns))
        close_conn(SST_OF(sst_conn, link, v->conns.next));
    bury(v);
}

static void *loop(void *arg) {
    sst_server *v = arg;
    struct epoll_event events[EVENTS];
    sst_event_serve(v->seg);
    for (;;) {
        int n = epoll_wait(v->epoll_fd, events, EVENTS, patience(v, sst_now_ns()));
        if (sst_begin(v->seg) != SST_OK)
            break;
        if (ld32_acquire(&v->stop) && v->drain_until == 0)
            begin_stop(v);
        pass(v, events, n > 0 ? n : 0);
        sst_end(v->seg);
        if (v->drain_until)
            for (sst_link *l = v->conns.next; l != &v->conns; l = l->next)
                sst_link_last(&v->dirty, &SST_OF(sst_conn, link, l)->dirty);
        if (v->drain_until && (!sst_linked(&v->conns) || sst_now_ns() >= v->drain_until))
            break;
    }
    end_all(v);
    sst_event_serve(NULL);
    shut_listener(v);
    own_st64(&v->count.running, 0);
    return NULL;
}

/* -- start and stop --------------------------------------------------------------------------------------------------- */
static int open_all(sst_server *v) {
    v->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    v->bell.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    v->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int flags = fcntl(v->listen_fd, F_GETFL);
    if (v->epoll_fd < 0 || v->bell.fd < 0 || v->spare_fd < 0 || flags < 0 ||
        fcntl(v->listen_fd, F_SETFL, flags | O_NONBLOCK) != 0 ||
        watch(v, EPOLL_CTL_ADD, v->listen_fd, EPOLLIN, &listener_tag) != 0 ||
        watch(v, EPOLL_CTL_ADD, v->bell.fd, EPOLLIN, &bell_tag) != 0)
        return sst_fail_errno(SST_ESYS);
    return SST_OK;
}

/* Signals are the other threads'. */
static int start_threads(sst_server *v) {
    sigset_t all, old;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = sst_bell_start(&v->bell, v->seg);
    if (r == SST_OK) {
        int failed = pthread_create(&v->thread, NULL, loop, v);
        if (failed) {
            sst_bell_stop(&v->bell);
            r = sst_fail_with(SST_ESYS, failed);
        }
    }
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    return r;
}

static void discard(sst_server *v) {
    shut_all(v);
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
    sst_link *const lists[] = {&v->conns, &v->dead, &v->ready, &v->dirty, &v->grants};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        sst_link_init(lists[i]);
    for (uint32_t i = 0; i < SST_STRIPES; i++)
        sst_link_init(&v->wants[i]);
    (void)pthread_mutex_init(&v->table, NULL);
    (void)pthread_mutex_init(&v->end, NULL);
    v->count.running = 1;
    r = open_all(v);
    if (r == SST_OK)
        r = start_threads(v);
    if (r != SST_OK) {
        discard(v);
        return r;
    }
    enlist(v);
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
        delist(v);
        shut_all(v);
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
