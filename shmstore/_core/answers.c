/* answers.c -- the operations of the wire on the segment (floor C9), one function each.
 *
 * Nobody may hold up the thread that serves: each verb is called with SST_NOWAIT, which waits for no lock that somebody
 * alive holds. Where it would have to the connection is busy, and its request is tried again later; others go on. What is
 * of many keys goes on where it stopped: `done` says where.
 *
 * A user's key travels as "/key" and is the key that local verbs see; a key without a slash lives in SST_RAW. A slash
 * alone would be the empty key, which no store has: it is raw, too. */
#include "conn.h"
#include "errors.h"

#include <errno.h>
#include <stdlib.h>

/* -- keys -------------------------------------------------------------------------------------------------------------- */
int sst_wire_key(sst_seg *s, sst_text wire, sst_key *key) {
    int user = wire.len > 1 && wire.bytes[0] == '/';
    return sst_key_make(s, user ? SST_USER : SST_RAW, wire.bytes + user, wire.len - (size_t)user, key);
}

/* The key of a request that has one. */
#define KEY(key, p)                                                                                                    \
    sst_key key;                                                                                                       \
    {                                                                                                                  \
        int made_ = sst_wire_key(c->server->seg, sst_read_text(p), &(key));                                            \
        if (made_ != SST_OK)                                                                                           \
            return made_;                                                                                              \
    }
#define AT(key) c->server->seg, (key).space, (key).bytes, (key).len

/* Room behind the answers for n bytes, to be counted in with said(). NULL: the connection has ended. */
static char *room_for(sst_conn *c, size_t n) {
    if (c->out.end - c->out.begin + n > SST_CONN_MOST || !sst_buf_room(c->server, &c->out, n)) {
        sst_conn_end(c);
        return NULL;
    }
    return c->out.at + c->out.end;
}

/* The value at `at` + 8, in that room, becomes an answer. */
static void said(sst_conn *c, char *at, size_t n) {
    uint64_t len = n;
    memcpy(at, &len, 8);
    c->out.end += 8 + n;
    if (!sst_linked(&c->dirty))
        sst_link_last(&c->server->dirty, &c->dirty);
}

/* -- one key ---------------------------------------------------------------------------------------------------------- */
static int answer_set(sst_conn *c, const char *p) {
    KEY(key, &p)
    sst_text value = sst_read_text(&p);
    return sst_set(AT(key), value.bytes, value.len, 0, SST_NOWAIT);
}

static int answer_append(sst_conn *c, const char *p) {
    KEY(key, &p)
    sst_text value = sst_read_text(&p);
    return sst_append(AT(key), value.bytes, value.len, 0, SST_NOWAIT);
}

static int answer_push(sst_conn *c, const char *p) {
    KEY(key, &p)
    sst_text value = sst_read_text(&p);
    return sst_queue_push(AT(key), value.bytes, value.len, 0, SST_NOWAIT);
}

/* A missing key is an empty value: torch's clients wait for it first. */
static int say_value(sst_conn *c, const sst_key *key) {
    char *scratch = c->server->scratch;
    size_t len = 0;
    int r = sst_get(AT(*key), scratch, sizeof c->server->scratch, &len, 0, SST_NOWAIT);
    if (r == SST_OK || r == SST_ENOENT)
        sst_conn_say_text(c, scratch, r == SST_OK ? len : 0);
    while (r == SST_ENOBUFS) {
        size_t room = len;
        char *at = room_for(c, 8 + room);
        if (at == NULL)
            return SST_OK;
        r = sst_get(AT(*key), at + 8, room, &len, 0, SST_NOWAIT);
        if (r == SST_OK)
            said(c, at, len);
    }
    return r == SST_ENOENT ? SST_OK : r;
}

static int answer_get(sst_conn *c, const char *p) {
    KEY(key, &p)
    return say_value(c, &key);
}

static int answer_compare_set(sst_conn *c, const char *p) {
    KEY(key, &p)
    sst_text expected = sst_read_text(&p), desired = sst_read_text(&p);
    size_t room = expected.len > desired.len ? expected.len : desired.len, len = 0;
    for (;;) {
        char *at = room_for(c, 8 + room);
        if (at == NULL)
            return SST_OK;
        int r = sst_compare_set(AT(key), expected.bytes, expected.len, desired.bytes, desired.len, at + 8, room, &len,
                                0, SST_NOWAIT);
        if (r == SST_OK)
            said(c, at, len);
        if (r != SST_ENOBUFS)
            return r;
        room = len;
    }
}

static int answer_add(sst_conn *c, const char *p) {
    KEY(key, &p)
    int64_t sum = 0;
    int r = sst_add(AT(key), (int64_t)sst_read_u64(&p), &sum, 0, SST_NOWAIT);
    if (r == SST_OK)
        sst_conn_say_i64(c, sum);
    return r;
}

static int answer_delete(sst_conn *c, const char *p) {
    KEY(key, &p)
    int r = sst_delete(AT(key), 0, SST_NOWAIT);
    if (r < 0)
        return r;
    sst_conn_say_i64(c, r);
    return SST_OK;
}

static int answer_queue_len(sst_conn *c, const char *p) {
    KEY(key, &p)
    int64_t n = 0;
    int r = sst_queue_len(AT(key), &n, 0, SST_NOWAIT);
    if (r == SST_OK)
        sst_conn_say_i64(c, n);
    return r;
}

/* "The length before the pop": another may have popped between the two, so it is 1 at least where an item came. */
static int answer_queue_pop(sst_conn *c, const char *p) {
    KEY(key, &p)
    int64_t n = 0;
    int r = sst_queue_len(AT(key), &n, 0, SST_NOWAIT);
    if (r == SST_OK && n == 0)
        sst_conn_say_i64(c, 0);
    if (r != SST_OK || n == 0)
        return r;
    for (size_t room = 256, len = 0;; room = len) {
        uint32_t waiter = 0;
        char *at = room_for(c, 16 + room);
        if (at == NULL)
            return SST_OK;
        r = sst_queue_pop(AT(key), 0, at + 16, room, &len, &waiter, 0, 0, 0, SST_NOWAIT);
        if (r == SST_OK) {
            memcpy(at, &n, 8);
            c->out.end += 8;
            said(c, at + 8, len);
        } else if (r == SST_ENOENT) { /* those who stand in line here are to have it */
            sst_conn_say_i64(c, 0);
            r = SST_OK;
        }
        if (r != SST_ENOBUFS)
            return r;
    }
}

/* -- many keys -------------------------------------------------------------------------------------------------------- */
static int answer_check(sst_conn *c, const char *p) {
    for (uint64_t n = sst_read_u64(&p); n > 0; n--) {
        KEY(key, &p)
        int r = sst_check(AT(key), 0, SST_NOWAIT);
        if (r < 0)
            return r;
        if (r == 0) {
            sst_conn_say_u8(c, 1);
            return SST_OK;
        }
    }
    sst_conn_say_u8(c, 0);
    return SST_OK;
}

static int answer_wait(sst_conn *c, const char *p) {
    uint64_t n = sst_read_u64(&p);
    return sst_wants_add(c, p, n, c->frame.at - 9);
}

static int answer_barrier(sst_conn *c, const char *p) {
    sst_text key = sst_read_text(&p);
    return sst_wants_meet(c, key, (int64_t)sst_read_u64(&p));
}

/* Key by key: each is answered once, and when the peer has much unread the next ones wait until it has read. */
static int answer_multi_get(sst_conn *c, const char *p) {
    const char *from = p, *end = p + c->frame.at - 1;
    uint64_t n = sst_read_u64(&p);
    if (c->done > 0)
        p = from + c->done_at;
    while (c->done < n && p < end) {
        if (c->out.end - c->out.begin > SST_CONN_HIGH)
            return SST_ENOBUFS;
        KEY(key, &p)
        int r = say_value(c, &key);
        if (r != SST_OK || c->state == SST_CONN_ENDED)
            return r;
        c->done++;
        c->done_at = (size_t)(p - from);
    }
    return SST_OK;
}

/* The pairs of one key space, in one call: all or nothing. */
static int set_space(sst_conn *c, const char *p, uint64_t n, uint32_t space, char *block) {
    uint32_t *klens = (uint32_t *)(void *)block, *vlens = klens + n, m = 0;
    char *keys = (char *)(vlens + n), *vals, *k = keys, *v;
    const char *from = p;
    for (int values = 0; values < 2; values++) { /* all keys, then all values */
        p = from;
        m = 0;
        v = vals = k;
        for (uint64_t i = 0; i < n; i++) {
            KEY(key, &p)
            sst_text value = sst_read_text(&p);
            if (key.space != space)
                continue;
            if (!values) {
                memcpy(k, key.bytes, key.len);
                k += key.len;
                klens[m] = key.len;
            } else {
                memcpy(v, value.bytes, value.len);
                v += value.len;
                vlens[m] = (uint32_t)value.len;
            }
            m++;
        }
    }
    return m == 0 ? SST_OK : sst_multi_set(c->server->seg, space, keys, klens, vals, vlens, m, 0, SST_NOWAIT);
}

static int answer_multi_set(sst_conn *c, const char *p) {
    uint64_t n = sst_read_u64(&p);
    if (n == 0)
        return SST_OK;
    char *block = malloc((size_t)n * 8 + c->frame.at);
    if (block == NULL)
        return sst_fail_with(SST_ESYS, ENOMEM);
    int r = SST_OK;
    for (uint32_t space = (uint32_t)c->done; space <= SST_RAW && r == SST_OK; space++) {
        r = set_space(c, p, n, space, block);
        if (r == SST_OK)
            c->done = space + 1;
    }
    free(block);
    return r;
}

/* -- all keys --------------------------------------------------------------------------------------------------------- */
static int answer_num_keys(sst_conn *c, const char *p) {
    (void)p;
    int64_t user = 0, raw = 0;
    int r = sst_num_keys(c->server->seg, SST_USER, "", 0, &user, 0, SST_NOWAIT);
    if (r == SST_OK)
        r = sst_num_keys(c->server->seg, SST_RAW, "", 0, &raw, 0, SST_NOWAIT);
    if (r == SST_OK)
        sst_conn_say_i64(c, user + raw);
    return r;
}

/* Adds the keys of `used` bytes of records to the list, as they travel. */
static int list_more(sst_conn *c, const char *p, size_t used, uint32_t space) {
    sst_buf *list = &c->list;
    for (const char *end = p + used; p < end; c->done_at++) {
        uint32_t klen = sst_read_u32(&p);
        uint64_t len = klen + (space == SST_USER);
        if (list->end + 8 + len > SST_CONN_MOST || !sst_buf_room(c->server, list, 8 + len))
            return SST_EFULL;
        memcpy(list->at + list->end, &len, 8);
        list->at[list->end + 8] = '/';
        memcpy(list->at + list->end + 8 + (space == SST_USER), p, klen);
        list->end += 8 + len;
        p += klen;
    }
    return SST_OK;
}

/* Stripe by stripe, `done` of those of both spaces; `done_at` keys stand in the list. Where a lock is held it is kept. */
static int answer_list_keys(sst_conn *c, const char *p) {
    (void)p;
    sst_server *v = c->server;
    sst_buf part = {0};
    int r = sst_buf_room(v, &part, SST_TRY_COPY) ? SST_OK : SST_EFULL;
    while (r == SST_OK && c->done < 2 * SST_STRIPES) {
        uint32_t space = (uint32_t)(c->done / SST_STRIPES), cursor = (uint32_t)(c->done % SST_STRIPES);
        size_t used = 0;
        r = sst_list_keys(v->seg, space, "", 0, &cursor, part.at, part.room, &used, 0, SST_NOWAIT);
        if (r == SST_ENOBUFS) {
            r = sst_buf_room(v, &part, used) ? SST_OK : SST_EFULL;
        } else if (r >= 0) {
            r = list_more(c, part.at, used, space);
            c->done = (uint64_t)space * SST_STRIPES + cursor;
        }
    }
    sst_buf_free(v, &part);
    if (r == SST_OK) {
        sst_conn_say_i64(c, (int64_t)c->done_at);
        sst_conn_say(c, c->list.at, c->list.end);
        sst_buf_free(v, &c->list);
    }
    return r;
}

/* -- the connection itself -------------------------------------------------------------------------------------------- */
static int answer_validate(sst_conn *c, const char *p) {
    (void)c;
    return sst_read_u32(&p) == SST_WIRE_MAGIC ? SST_OK : SST_EINVAL;
}

static int answer_ping(sst_conn *c, const char *p) {
    static const uint32_t known = SST_WIRE_ANSWERED;
    const char *number = p;
    sst_conn_say(c, sst_read_u32(&p) == SST_WIRE_ASKED ? (const char *)&known : number, 4);
    return SST_OK;
}

/* What is in the value comes after the wait that the connection is in: until that is over this request stays where it is,
 * then its head goes, and the rest is requests like any others (conn.c). Taken back with the wait by a CANCEL_WAIT, which
 * is all that may come next meanwhile; and gone with the wait where the server stops. */
static int answer_hold(sst_conn *c, const char *p) {
    const sst_buf *in = &c->in;
    size_t size = c->frame.at, behind = in->end - in->begin - size;
    (void)p;
    if (size - SST_CONN_HOLD_HEAD > SST_WIRE_HOLD_MOST)
        return SST_EINVAL;
    if (c->wait == NULL)
        return c->held ? SST_ECLOSED : SST_OK;
    c->held = behind == 0;
    if (c->held)
        return SST_ENOBUFS;
    c->done = 1; /* none of it */
    sst_wants_drop(c); /* a scan before the CANCEL_WAIT would answer the wait without it */
    return in->at[in->begin + size] == SST_OP_CANCEL_WAIT ? SST_OK : SST_EINVAL;
}

static int answer_cancel(sst_conn *c, const char *p) {
    (void)p;
    sst_wants_drop(c);
    sst_conn_say_u8(c, 1);
    return SST_OK;
}

/* -- which ------------------------------------------------------------------------------------------------------------ */
static int (*const answers[SST_OPS])(sst_conn *c, const char *p) = {
    [SST_OP_VALIDATE] = answer_validate,
    [SST_OP_SET] = answer_set,
    [SST_OP_COMPARE_SET] = answer_compare_set,
    [SST_OP_GET] = answer_get,
    [SST_OP_ADD] = answer_add,
    [SST_OP_CHECK] = answer_check,
    [SST_OP_WAIT] = answer_wait,
    [SST_OP_NUM_KEYS] = answer_num_keys,
    [SST_OP_DELETE] = answer_delete,
    [SST_OP_APPEND] = answer_append,
    [SST_OP_MULTI_GET] = answer_multi_get,
    [SST_OP_MULTI_SET] = answer_multi_set,
    [SST_OP_CANCEL_WAIT] = answer_cancel,
    [SST_OP_PING] = answer_ping,
    [SST_OP_QUEUE_PUSH] = answer_push,
    [SST_OP_QUEUE_POP] = answer_queue_pop,
    [SST_OP_QUEUE_LEN] = answer_queue_len,
    [SST_OP_LIST_KEYS] = answer_list_keys,
    [SST_OP_BARRIER] = answer_barrier,
    [SST_OP_HOLD] = answer_hold,
};

int sst_answer(sst_conn *c, const char *p) {
    int r = answers[c->frame.op](c, p + 1);
    return r == SST_EBUSY || r == SST_EINTR ? SST_EAGAIN : r;
}
