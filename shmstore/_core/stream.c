/* stream.c -- the socket of one connection (floor C9): set up, read, written, watched and closed. Which bytes are a request,
 * and what is done about it, is conn.c's; when it is the turn of which connection, loop.c's. The states: conn.h.
 *
 * Every read and write is one that does not wait. What could not be written is written when epoll says so; a peer that
 * does not read is not read from either, so that it cannot make its answers grow without end. */
#include "clock.h"
#include "conn.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum {
    TOGETHER = 2, /* answers */
    COMPANY = 8 /* reads of one request each until it is one of those who send one at a time */
};
#define SMALL ((size_t)4096) /* answers that are sent together */

/* -- begins and ends -------------------------------------------------------------------------------------------------- */
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

void sst_stream_open(sst_server *v, int fd) {
    sst_conn *c = sst_conn_new(v, fd);
    if (c == NULL || sst_watch(v, EPOLL_CTL_ADD, fd, EPOLLIN, c) != 0) {
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

/* Out of epoll by hand, and shut down by hand: a child that was forked a moment ago may have the same open file, and then
 * close alone would do neither. */
void sst_stream_close(sst_conn *c) {
    sst_server *v = c->server;
    sst_conn_end(c);
    sst_link_out(&c->ready);
    sst_link_out(&c->dirty);
    (void)pthread_mutex_lock(&v->table);
    (void)sst_watch(v, EPOLL_CTL_DEL, c->fd, 0, NULL);
    (void)shutdown(c->fd, SHUT_RDWR);
    sst_shut(&c->fd);
    sst_link_last(&v->dead, &c->link);
    (void)pthread_mutex_unlock(&v->table);
    sst_count(&v->count.open, -1);
}

void sst_stream_last(sst_conn *c) {
    if (c->state != SST_CONN_ENDED)
        c->state = SST_CONN_LAST;
    if (c->wait != NULL)
        c->held = 1; /* a HOLD that is still to come finds no wait, and is not to be done */
    sst_wants_drop(c);
    sst_link_last(&c->server->dirty, &c->dirty); /* sst_stream_flush closes it when nothing is left */
}

/* -- reads and writes ------------------------------------------------------------------------------------------------- */
static size_t unsent(const sst_conn *c) { return c->out.end - c->out.begin; }

/* What the connection is to be woken for. */
static void rewatch(sst_conn *c) {
    uint32_t events = unsent(c) > 0 ? EPOLLOUT : 0;
    if (c->state != SST_CONN_LAST && unsent(c) <= SST_CONN_HIGH && !sst_linked(&c->ready)) /* turn over, or busy */
        events |= EPOLLIN;
    if (events == c->events)
        return;
    c->events = events;
    if (sst_watch(c->server, EPOLL_CTL_MOD, c->fd, events, c) != 0)
        sst_stream_close(c);
}

/* No memory, or no more for all connections together. */
static void refuse(sst_conn *c) {
    sst_count(&c->server->count.refused, 1);
    sst_conn_end(c);
}

/* Takes out of the socket what was looked at. */
static void take(sst_conn *c) {
    while (c->looked > 0) {
        ssize_t n = recv(c->fd, c->server->scratch, c->looked, MSG_DONTWAIT | MSG_TRUNC); /* not even copied */
        if (n > 0)
            c->looked -= (size_t)n;
        else if (n == 0 || errno != EINTR) { /* they are there: the connection is broken */
            c->looked = 0;
            sst_conn_end(c);
        }
    }
}

/* Reads once. What comes is small, or of a request that is long: then it goes to its place, else through the server's block.
 *
 * Where a read empties a socket of the second packet since it sent anything, the kernel acknowledges both at once, with a
 * packet of its own that the answer a moment later would have made needless. So of a peer that has said a SET, which has
 * no answer, or of late said several requests at a time, the bytes are looked at, and taken when the answers are sent. */
static void receive(sst_conn *c) {
    sst_server *v = c->server;
    sst_buf *in = &c->in;
    take(c);
    size_t used = in->end - in->begin, want = c->frame.need > used ? c->frame.need - used : 1;
    int direct = want >= sizeof v->scratch, look = !direct && (c->company > 0 || c->unanswered);
    if (direct && !sst_buf_room(v, in, sizeof v->scratch)) {
        refuse(c);
        return;
    }
    char *to = direct ? in->at + in->end : v->scratch;
    size_t room = direct ? in->room - in->end : sizeof v->scratch;
    ssize_t n = recv(c->fd, to, room, MSG_DONTWAIT | (look ? MSG_PEEK : 0));
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0) {
        sst_conn_end(c);
        return;
    }
    if (n == 0) {
        sst_stream_last(c);
        return;
    }
    sst_count(&v->count.bytes_in, n);
    c->unanswered = 1;
    if (!direct) {
        if (!sst_buf_room(v, in, (size_t)n)) {
            refuse(c);
            return;
        }
        memcpy(in->at + in->end, v->scratch, (size_t)n);
    }
    in->end += (size_t)n;
    c->looked = look ? (size_t)n : 0;
}

/* A socket that is closed while its peer has not taken all may lose the rest: a stop waits for that, too. Nothing tells
 * when the last byte was taken, so the stop asks. */
static int untaken(const sst_conn *c) {
    int n = 0;
    return c->server->drain_until != 0 && ioctl(c->fd, SIOCOUTQ, &n) == 0 && n > 0;
}

/* A stop reads on, as long as it has time: bytes that nobody read would make the kernel reset the connection, and lose the
 * answers. */
static int unread(const sst_conn *c) {
    int n = 0;
    return c->server->drain_until > sst_now_ns() && ioctl(c->fd, SIOCINQ, &n) == 0 && n > 0;
}

static void sent(sst_conn *c, size_t n) {
    if (n == 0)
        return;
    sst_count(&c->server->count.bytes_out, (int64_t)n);
    sst_buf_drop(c->server, &c->out, n);
    c->unanswered = 0;
}

void sst_stream_flush_together(sst_server *v) {
    sst_send each[SST_SENDS_MOST];
    sst_conn *of[SST_SENDS_MOST];
    size_t n = 0;
    for (const sst_link *l = v->dirty.next; l != &v->dirty && n < SST_SENDS_MOST; l = l->next) {
        sst_conn *c = SST_OF(sst_conn, dirty, l);
        if (c->state == SST_CONN_ENDED || unsent(c) == 0 || unsent(c) > SMALL)
            continue;
        each[n] = (sst_send){.fd = c->fd, .at = c->out.at + c->out.begin, .n = unsent(c)};
        of[n++] = c;
    }
    if (n < TOGETHER)
        return;
    sst_sends_go(&v->sends, each, n);
    for (size_t i = 0; i < n; i++) {
        if (each[i].unknown)
            sst_conn_end(of[i]); /* sent again, an answer could come twice */
        sent(of[i], each[i].sent);
    }
}

void sst_stream_flush(sst_conn *c) {
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
        sent(c, (size_t)n);
    }
    take(c);
    if (was_full && unsent(c) <= SST_CONN_HIGH && c->in.begin < c->in.end)
        sst_link_last(&c->server->ready, &c->ready);
    int over = c->state == SST_CONN_LAST && unsent(c) == 0 && !sst_linked(&c->ready);
    if (over && unread(c)) {
        receive(c);
        sst_conn_run(c);
        sst_link_last(&c->server->dirty, &c->dirty);
    } else if (c->state == SST_CONN_ENDED || (over && !untaken(c)))
        sst_stream_close(c);
    else
        rewatch(c);
}

void sst_stream_serve(sst_conn *c, uint32_t events) {
    if (c->state == SST_CONN_ENDED)
        return;
    if ((events & EPOLLIN) && c->state != SST_CONN_LAST && !sst_linked(&c->ready)) { /* first what it said before */
        receive(c);
        uint32_t before = c->served;
        if (c->state != SST_CONN_ENDED)
            sst_conn_run(c);
        c->company = c->served - before > 1 ? COMPANY : c->company - (c->company > 0);
    } else if (events & (EPOLLERR | EPOLLHUP)) {
        sst_conn_end(c);
    }
    sst_link_last(&c->server->dirty, &c->dirty);
}
