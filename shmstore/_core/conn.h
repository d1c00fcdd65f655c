/* conn.h -- what the parts of the server share (floor C9): server, connection, wait. The story: docs/server.md.
 *
 * All of it belongs to the thread that serves, but where said. Of the bytes of others nothing is trusted: wire.c bounds
 * each request before it is looked into.
 *
 *   server.c    start and stop, forks
 *   loop.c      the thread that serves: epoll, passes, the stop
 *   accept.c    the listening socket
 *   stream.c    the socket of a connection
 *   conn.c      buffers, and the requests of a connection in their order
 *   answers.c   one function an operation
 *   wants.c     who waits for what, and the looks at it
 *   bell.c      the thread that hears the setters
 *   sends.c     small answers to many sockets in one system call */
#ifndef SST_CONN_H
#define SST_CONN_H

#include "bell.h"
#include "ops.h"
#include "sends.h"
#include "wire.h"

#include <unistd.h>

/* Bytes [begin, end) of a block of `room`. */
typedef struct {
    char *at;
    size_t begin, end, room;
} sst_buf;

typedef struct sst_conn sst_conn;

/* A place in a doubly linked list; the list's head is one, too. */
typedef struct sst_link {
    struct sst_link *next, *prev;
} sst_link;

/* One key that somebody waits for, in the list of its stripe, oldest first. */
typedef struct {
    sst_link link;
    sst_conn *conn; /* whose */
    sst_key key;
    int64_t parties; /* of a barrier; 0: a wait for the key */
    uint32_t waiter; /* of a barrier: the segment's waiter slot that is marked when all have come, or 0 */
    uint32_t seen;   /* 1: in no list any more */
} sst_want;

/* The wait of a connection. The keys' bytes stand behind the wants. */
typedef struct {
    uint32_t n, missing;
    sst_want want[];
} sst_wait_set;

/* A connection.
 *
 *   state    means                             next
 *   GREETED  its first request is to come      OPEN by VALIDATE; ENDED
 *   OPEN     requests are served               LAST by end of file, or when the server stops; ENDED
 *   LAST     nothing is read; what was asked   ENDED when all is written, or cannot be
 *            for is answered and written
 *   ENDED    its socket is closed              freed at the end of the pass
 *
 * Beside OPEN or LAST it may wait (`wait` is set: WAIT or BARRIER, to be answered later), be busy (a lock is held: the
 * request at the beginning of `in` is tried again at busy_ns), be full (more than HIGH bytes of answers are unsent:
 * nothing is read or served until the peer has read some), or hold (`held`: nothing is served until its wait is over). */
struct sst_conn {
    sst_link link;  /* in server.conns, or server.dead. guard: server.table */
    sst_link ready; /* in server.ready: to be run again; in server.freed: what it held may go on, in this pass */
    sst_link dirty; /* in server.dirty: it has something to send */
    sst_link granted; /* in server.grants */
    sst_link served_by; /* in the list of one look: its wait is over */
    int verdict;        /* and how: SST_OK, or why it is to end */
    sst_server *server;
    int fd;
    uint32_t state, events; /* events: what epoll watches for */
    uint32_t tries;         /* of a busy request */
    uint32_t company;       /* not 0: of late a read had several requests in it */
    uint32_t unanswered;    /* 1: something was read since the last answer was sent */
    uint32_t held; /* 1: a HOLD is at the beginning of `in`, and its wait not over; or a stop has dropped the wait */
    size_t looked; /* bytes that are in `in`, and still in the socket */
    uint32_t served; /* in this pass; a list of all keys counts as a whole turn */
    uint64_t busy_ns; /* 0: not busy */
    sst_buf in, out;
    sst_frame frame;
    uint64_t done; /* what of the request at the beginning of `in` is done: keys, or stripes; else 0 */
    size_t done_at; /* and where the next key stands, or how many are listed */
    sst_buf list; /* of LIST_KEYS, so far */
    sst_wait_set *wait;
    uint64_t grant; /* whole hash of the queue key that it was told of, while granted */
    uint64_t grant_ns; /* until then */
    uint32_t grant_stripe;
};
enum { SST_CONN_GREETED, SST_CONN_OPEN, SST_CONN_LAST, SST_CONN_ENDED };

#define SST_CONN_HIGH      ((size_t)1 << 20) /* bytes unsent beyond which nothing more is served */
#define SST_CONN_MOST      ((size_t)64 << 20) /* bytes unsent beyond which the peer is dropped: one giant list */
#define SST_CONN_HOLD_HEAD ((size_t)9) /* of a HOLD, before what is held: opcode and length */
#define SST_CONN_TURN      128u /* requests of one connection before others have their turn */
#define SST_SERVER_MOST    ((uint64_t)1 << 30) /* bytes buffered for all connections */

struct sst_server {
    sst_seg *seg;
    sst_bell bell;
    int listen_fd, epoll_fd, spare_fd; /* guard: table. spare: given up to refuse where no descriptor is left */
    pthread_t thread;
    pthread_mutex_t table; /* the descriptors, for fork: a child closes them */
    pthread_mutex_t end; /* one stops */
    sst_server *next; /* all servers of the process, for fork */
    uint32_t ended, forked; /* guard: end; forked: set in a child */
    uint32_t stop; /* atomic */
    uint64_t drain_ns; /* const once stop is set */
    uint64_t drain_until; /* 0: not stopping */
    uint64_t accept_ns; /* 0: accepting; else not before then */
    sst_link conns, dead, ready, freed, dirty, grants;
    sst_link wants[SST_STRIPES];
    int owed; /* 1: due was set since the last scan */
    uint8_t due[SST_STRIPES]; /* 1: look there, whether its event has moved or not */
    uint32_t live[SST_STRIPES], lives; /* stripes with wants: which, how many */
    uint32_t index[SST_STRIPES]; /* of each in live, + 1; 0: none */
    uint32_t stuck; /* a look met a held lock: look again soon */
    uint64_t buffered; /* bytes of all buffers */
    sst_server_info count; /* atomic: others read it */
    sst_sends sends;
    char scratch[SST_TRY_COPY];
};

/* One thread writes the counts, others read them. */
static inline void sst_count(uint64_t *count, int64_t by) { own_st64(count, ld64(count) + (uint64_t)by); }

/* -- lists ------------------------------------------------------------------------------------------------------------ */
#define SST_OF(type, member, place) ((type *)(void *)((char *)(place) - offsetof(type, member)))
static inline void sst_link_init(sst_link *l) { l->next = l->prev = l; }
static inline int sst_linked(const sst_link *l) { return l->next != l; }
static inline void sst_link_out(sst_link *l) {
    l->next->prev = l->prev;
    l->prev->next = l->next;
    sst_link_init(l);
}
/* At the end of the list; moves it there if it is in one. */
static inline void sst_link_last(sst_link *list, sst_link *l) {
    sst_link_out(l);
    l->prev = list->prev;
    l->next = list;
    list->prev->next = l;
    list->prev = l;
}

static inline void sst_shut(int *fd) {
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

/* -- loop.c ----------------------------------------------------------------------------------------------------------- */
int sst_loop_open(sst_server *v); /* the descriptors that it needs beside listen_fd. SST_OK, or SST_ESYS */
void *sst_loop(void *server); /* all of the thread */
/* epoll_ctl. What `tag` points at says of what an event is: v->listen_fd, v->bell, or else a connection. */
int sst_watch(sst_server *v, int how, int fd, uint32_t events, void *tag);

/* -- accept.c --------------------------------------------------------------------------------------------------------- */
int sst_accept_begin(sst_server *v); /* 1, or 0 with errno */
void sst_accept_some(sst_server *v);
void sst_accept_again(sst_server *v); /* accept_ns has come */
void sst_accept_end(sst_server *v);

/* -- stream.c --------------------------------------------------------------------------------------------------------- */
void sst_stream_open(sst_server *v, int fd); /* a connection of it, or closes it. guard: table */
void sst_stream_serve(sst_conn *c, uint32_t events);
/* Small answers to many, in one call; what it does not send sst_stream_flush does. */
void sst_stream_flush_together(sst_server *v);
void sst_stream_flush(sst_conn *c); /* sends what there is to send, and closes what is over */
/* Nothing more is read. What is asked for is answered, but for waits. */
void sst_stream_last(sst_conn *c);
void sst_stream_close(sst_conn *c);

/* -- conn.c ----------------------------------------------------------------------------------------------------------- */
/* Room for n bytes more. 0: no memory, or beyond the limits. */
int sst_buf_room(sst_server *v, sst_buf *b, size_t n);
void sst_buf_drop(sst_server *v, sst_buf *b, size_t n); /* the first n bytes; an empty large block goes */
void sst_buf_free(sst_server *v, sst_buf *b);

sst_conn *sst_conn_new(sst_server *v, int fd); /* NULL: no memory */
/* Its requests, in order, until one is not whole or cannot go on. Ends it where it breaks the rules. */
void sst_conn_run(sst_conn *c);
/* Everything of it but the socket and itself: stream.c closes, and loop.c frees. */
void sst_conn_end(sst_conn *c);
void sst_conn_free(sst_conn *c);
/* Adds to the answers. What does not fit ends the connection. */
void sst_conn_say(sst_conn *c, const void *bytes, size_t n);
void sst_conn_say_u8(sst_conn *c, uint8_t v);
void sst_conn_say_i64(sst_conn *c, int64_t v);
void sst_conn_say_text(sst_conn *c, const char *bytes, size_t n);

/* -- answers.c -------------------------------------------------------------------------------------------------------- */
/* Serves the whole request at p. SST_OK: done. SST_EAGAIN: a lock is held by somebody alive; SST_ENOBUFS: too much is
 * unsent; nothing has happened, or as much as c->done says. Anything else: the connection is to end. */
int sst_answer(sst_conn *c, const char *p);
/* A wire key in the segment. SST_EINVAL: it can be none. */
int sst_wire_key(sst_seg *s, sst_text wire, sst_key *key);

/* -- wants.c ---------------------------------------------------------------------------------------------------------- */
/* The connection waits for these n keys (wire form, `size` bytes) from now on. SST_OK: it is answered, or will be. */
int sst_wants_add(sst_conn *c, const char *keys, uint64_t n, size_t size);
/* The same for a barrier, at which it arrives. SST_EAGAIN: not arrived, try again. */
int sst_wants_meet(sst_conn *c, sst_text key, int64_t parties);
void sst_wants_drop(sst_conn *c);
/* Looks at every stripe whose event has moved since it was armed. */
void sst_wants_scan(sst_server *v);
/* A connection that was told of an item has asked for something, ended, or was too slow: others may be told. */
void sst_grant_end(sst_conn *c);
void sst_grants_expire(sst_server *v, uint64_t now);

#endif
