/* accept.c -- the listening socket (floor C9): who is let in, and what is done where no descriptor is left for that.
 *
 * Then a connection that waits in the queue of the kernel would hang: nobody takes it, and nobody refuses it. So the
 * server keeps a spare descriptor. It is given up for a moment, the connection is accepted and closed, and fails at once.
 * Where not even the spare can be had again the socket is not listened to for ACCEPT_PAUSE_NS.
 *
 * The descriptors change under `table`, which a fork takes first: a child closes what it finds (server.c). */
#include "clock.h"
#include "conn.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { ACCEPTS = 64 }; /* in one pass */
#define ACCEPT_PAUSE_NS UINT64_C(100000000)

static void take_spare(sst_server *v) { v->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC); }

int sst_accept_begin(sst_server *v) {
    take_spare(v);
    int flags = fcntl(v->listen_fd, F_GETFL);
    return v->spare_fd >= 0 && flags >= 0 && fcntl(v->listen_fd, F_SETFL, flags | O_NONBLOCK) == 0 &&
           sst_watch(v, EPOLL_CTL_ADD, v->listen_fd, EPOLLIN, &v->listen_fd) == 0;
}

/* No descriptor is left: the next in the queue is refused, by the one kept for that. 0: not even that. */
static int refuse(sst_server *v) {
    sst_shut(&v->spare_fd);
    int fd = accept4(v->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        (void)close(fd);
    take_spare(v);
    return fd >= 0 && v->spare_fd >= 0;
}

void sst_accept_some(sst_server *v) {
    (void)pthread_mutex_lock(&v->table);
    for (int i = 0; i < ACCEPTS && v->listen_fd >= 0; i++) {
        int fd = accept4(v->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            sst_stream_open(v, fd);
            continue;
        }
        if (errno == EAGAIN)
            break;
        if ((errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) && !refuse(v)) {
            (void)sst_watch(v, EPOLL_CTL_DEL, v->listen_fd, 0, NULL);
            v->accept_ns = sst_after(sst_now_ns(), ACCEPT_PAUSE_NS);
            break;
        }
    } /* other errors are of the one connection that was about to be accepted */
    (void)pthread_mutex_unlock(&v->table);
}

void sst_accept_again(sst_server *v) {
    v->accept_ns = 0;
    (void)pthread_mutex_lock(&v->table);
    if (v->spare_fd < 0)
        take_spare(v);
    if (v->listen_fd >= 0)
        (void)sst_watch(v, EPOLL_CTL_ADD, v->listen_fd, EPOLLIN, &v->listen_fd);
    (void)pthread_mutex_unlock(&v->table);
}

void sst_accept_end(sst_server *v) {
    (void)pthread_mutex_lock(&v->table);
    if (v->listen_fd >= 0) {
        (void)sst_watch(v, EPOLL_CTL_DEL, v->listen_fd, 0, NULL);
        (void)shutdown(v->listen_fd, SHUT_RDWR);
    }
    sst_shut(&v->listen_fd);
    (void)pthread_mutex_unlock(&v->table);
}
