/* conn.c -- see conn.h: buffers, and the requests of one connection in their order. */
#include "conn.h"
#include "clock.h"

#include <stdlib.h>

#define SMALL      ((size_t)512)  /* a connection's first block; kept while it idles */
#define KEPT       ((size_t)4096) /* an empty block larger than that goes back */
#define NOW_TRIES  8u             /* tries of a busy request without a pause */
#define PAUSE_NS   UINT64_C(1000000)
#define PAUSE_MOST 4u /* doubled so often: 16 ms */

/* -- buffers ---------------------------------------------------------------------------------------------------------- */
static void resize(sst_server *v, sst_buf *b, char *at, size_t room) {
    v->buffered = v->buffered - b->room + room;
    b->at = at;
    b->room = room;
}

int sst_buf_room(sst_server *v, sst_buf *b, size_t n) {
    size_t used = b->end - b->begin;
    if (n <= b->room - b->end)
        return 1;
    if (n > SIZE_MAX / 4 || used > SIZE_MAX / 4)
        return 0;
    if (used + n > b->room) {
        size_t room = b->room ? b->room : SMALL;
        while (room < used + n)
            room *= 2;
        if (v->buffered - b->room + room > SST_SERVER_MOST)
            return 0;
        char *at = malloc(room);
        if (at == NULL)
            return 0;
        if (used)
            memcpy(at, b->at + b->begin, used);
        free(b->at);
        resize(v, b, at, room);
    } else if (used) {
        memmove(b->at, b->at + b->begin, used);
    }
    b->begin = 0;
    b->end = used;
    return 1;
}

void sst_buf_free(sst_server *v, sst_buf *b) {
    free(b->at);
    resize(v, b, NULL, 0);
    b->begin = b->end = 0;
}

void sst_buf_drop(sst_server *v, sst_buf *b, size_t n) {
    b->begin += n;
    if (b->begin < b->end)
        return;
    b->begin = b->end = 0;
    if (b->room > KEPT)
        sst_buf_free(v, b);
}

/* -- answers' bytes --------------------------------------------------------------------------------------------------- */
void sst_conn_say(sst_conn *c, const void *bytes, size_t n) {
    sst_buf *out = &c->out;
    if (c->state == SST_CONN_ENDED || n == 0)
        return;
    if (out->end - out->begin + n > SST_CONN_MOST || !sst_buf_room(c->server, out, n)) {
        sst_conn_end(c);
        return;
    }
    memcpy(out->at + out->end, bytes, n);
    out->end += n;
    if (!sst_linked(&c->dirty))
        sst_link_last(&c->server->dirty, &c->dirty);
}

void sst_conn_say_u8(sst_conn *c, uint8_t v) { sst_conn_say(c, &v, 1); }

void sst_conn_say_i64(sst_conn *c, int64_t v) { sst_conn_say(c, &v, 8); }

void sst_conn_say_text(sst_conn *c, const char *bytes, size_t n) {
    sst_conn_say_i64(c, (int64_t)n);
    sst_conn_say(c, bytes, n);
}

/* -- requests --------------------------------------------------------------------------------------------------------- */
/* SST_EAGAIN from an answer: a lock is held. The same request again, a few times at the end of this pass, then later. */
static void put_off(sst_conn *c) {
    sst_server *v = c->server;
    c->tries++;
    if (c->tries <= NOW_TRIES) {
        c->busy_ns = 1;
    } else {
        uint32_t shift = c->tries - NOW_TRIES - 1;
        c->busy_ns = sst_after(sst_now_ns(), PAUSE_NS << (shift < PAUSE_MOST ? shift : PAUSE_MOST));
    }
    sst_link_last(&v->ready, &c->ready);
}

/* 1: the next request may be looked at. */
static int may_go_on(sst_conn *c) {
    if (c->state == SST_CONN_ENDED || c->out.end - c->out.begin > SST_CONN_HIGH)
        return 0;
    if (c->served < SST_CONN_TURN)
        return 1;
    if (!sst_linked(&c->ready))
        sst_link_last(&c->server->ready, &c->ready);
    return 0;
}

/* The request is done with: what it was told of an item is over once it has asked for something. */
static void finish(sst_conn *c, uint32_t op) {
    sst_server *v = c->server;
    c->served += op == SST_OP_LIST_KEYS ? SST_CONN_TURN : 1; /* that one walks the whole table */
    c->tries = 0;
    c->done = c->done_at = 0;
    sst_count(&v->count.operations, 1);
    if (op == SST_OP_VALIDATE && c->state == SST_CONN_GREETED)
        c->state = SST_CONN_OPEN;
    if (c->grant_ns != 0 && op != SST_OP_WAIT && op != SST_OP_HOLD)
        sst_grant_end(c);
    if (v->lives > 0)
        sst_wants_scan(v); /* it may have set what others wait for, and the next one may delete it */
}

void sst_conn_run(sst_conn *c) {
    sst_server *v = c->server;
    sst_buf *in = &c->in;
    c->busy_ns = 0;
    while (in->begin < in->end && may_go_on(c)) {
        int r = sst_frame_walk(&c->frame, in->at + in->begin, in->end - in->begin);
        if (r == SST_EAGAIN)
            break;
        if (r == SST_OK && c->state == SST_CONN_GREETED && c->frame.op != SST_OP_VALIDATE)
            r = SST_EINVAL;
        if (r == SST_OK)
            r = sst_answer(c, in->at + in->begin);
        if (c->state == SST_CONN_ENDED)
            return;
        if (r == SST_ENOBUFS)
            return; /* full: it goes on where it stopped, once the peer has read; or it holds: once its wait is over */
        if (r == SST_EAGAIN) {
            put_off(c);
            return;
        }
        if (r != SST_OK) {
            if (r != SST_ECLOSED)
                sst_count(&v->count.refused, 1);
            sst_conn_end(c);
            return;
        }
        uint32_t op = c->frame.op;
        size_t size = op == SST_OP_HOLD && c->done == 0 ? SST_CONN_HOLD_HEAD : c->frame.at;
        c->frame = (sst_frame){0};
        sst_buf_drop(v, in, size);
        finish(c, op);
    }
}

/* -- life ------------------------------------------------------------------------------------------------------------- */
sst_conn *sst_conn_new(sst_server *v, int fd) {
    sst_conn *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    c->server = v;
    c->fd = fd;
    c->state = SST_CONN_GREETED;
    sst_link_init(&c->link);
    sst_link_init(&c->ready);
    sst_link_init(&c->dirty);
    sst_link_init(&c->granted);
    sst_link_init(&c->served_by);
    return c;
}

/* The links in `ready` and `dirty` stay: whoever walks those lists takes them out (loop.c). */
void sst_conn_end(sst_conn *c) {
    if (c->state == SST_CONN_ENDED)
        return;
    c->state = SST_CONN_ENDED;
    sst_wants_drop(c);
    sst_grant_end(c);
    if (!sst_linked(&c->dirty))
        sst_link_last(&c->server->dirty, &c->dirty); /* there its socket is closed */
}

void sst_conn_free(sst_conn *c) {
    sst_link_out(&c->link);
    sst_link_out(&c->ready);
    sst_link_out(&c->dirty);
    sst_link_out(&c->granted);
    sst_link_out(&c->served_by);
    sst_buf_free(c->server, &c->in);
    sst_buf_free(c->server, &c->out);
    sst_buf_free(c->server, &c->list);
    free(c);
}
