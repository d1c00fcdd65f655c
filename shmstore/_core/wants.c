/* wants.c -- who waits for what, and the looks at it (floor C9; see conn.h).
 *
 * Each key that a connection waits for is a want in the list of the key's stripe. A stripe with wants is armed: its
 * event carries FORWARD, and the bell knows the event's value (bell.c). A look goes through the wants of one stripe.
 *
 *   want           means                          next
 *   in the list    not seen since it was added    seen, by a look; gone with its connection or CANCEL_WAIT
 *   seen           the key was there              gone with its set, once the set misses nothing
 *
 * The order is arm, look, sleep only when nothing moved. A stripe that is armed when a want is added is not armed again:
 * that would hide a move that the other wants have not been looked at for.
 *
 * Queues. A key that is there wakes all who wait for it, an item of a queue one: c10d's client says WAIT and then
 * QUEUE_POP, and takes an empty pop for an error. So whoever is told of an item has a grant, until it asks for something
 * or GRANT_NS are over, and an item that is granted, or that a local popper stands in line for, is told to nobody else.
 * A grant is a courtesy, no claim: a pop that does not wait may be quicker.
 *
 * Barriers. A connection stands at one as a local caller does, in a waiter slot that the last to arrive marks: whoever that
 * is, here or in another process, and whatever becomes of the key then (ops_barrier.c). */
#include "conn.h"
#include "clock.h"
#include "errors.h"
#include "liveness.h"
#include "waiter.h"

#include <errno.h>
#include <stdlib.h>

#define GRANT_NS UINT64_C(100000000)

/* -- stripes ---------------------------------------------------------------------------------------------------------- */
static void list_want(sst_server *v, sst_want *w) {
    uint32_t i = w->key.stripe;
    sst_link_last(&v->wants[i], &w->link);
    if (v->index[i] == 0) {
        v->live[v->lives++] = i;
        v->index[i] = v->lives;
    }
}

static void unlist_want(sst_server *v, sst_want *w) {
    uint32_t i = w->key.stripe;
    if (w->seen)
        return;
    w->seen = 1;
    sst_link_out(&w->link);
    if (sst_linked(&v->wants[i]) || v->index[i] == 0)
        return;
    uint32_t last = v->live[--v->lives];
    v->live[v->index[i] - 1] = last;
    v->index[last] = v->index[i];
    v->index[i] = 0;
    v->due[i] = 0;
    sst_bell_unwatch(&v->bell, i);
}

static void arm(sst_server *v, uint32_t stripe) {
    if (ld32(&v->bell.armed[stripe]) == 0)
        sst_bell_watch(&v->bell, stripe);
}

/* -- is it there ------------------------------------------------------------------------------------------------------ */
static int later(int r) { return r == SST_EBUSY || r == SST_EINTR ? SST_EAGAIN : r; }

static int check(sst_seg *s, const sst_key *key, uint32_t flags) {
    return later(sst_check(s, key->space, key->bytes, key->len, 0, flags | SST_NOWAIT));
}

static int64_t granted(const sst_server *v, const sst_key *key) {
    int64_t n = 0;
    for (const sst_link *l = v->grants.next; l != &v->grants; l = l->next)
        n += SST_OF(const sst_conn, granted, l)->grant == key->whole;
    return n;
}

/* 1: there; 0: not; 2: an item of a queue is, for one. */
static int there(sst_server *v, const sst_key *key) {
    sst_seg *s = v->seg;
    int r = check(s, key, SST_KEY_ONLY);
    if (r != 0)
        return r;
    r = check(s, key, 0); /* or a queue of that name? */
    if (r <= 0)
        return r;
    int64_t n = 0;
    r = sst_queue_len(s, key->space, key->bytes, key->len, &n, 0, SST_NOWAIT);
    if (r != SST_OK)
        return later(r);
    n -= granted(v, key);
    return n > 0 && (uint64_t)n > sst_op_line(s, key, UINT64_MAX) ? 2 : 0;
}

static void grant(sst_conn *c, const sst_key *key) {
    c->grant = key->whole;
    c->grant_stripe = key->stripe;
    c->grant_ns = sst_after(sst_now_ns(), GRANT_NS);
    sst_link_last(&c->server->grants, &c->granted);
}

void sst_grant_end(sst_conn *c) {
    if (c->grant_ns == 0)
        return;
    c->grant_ns = 0;
    sst_link_out(&c->granted);
    if (c->server->index[c->grant_stripe] != 0) {
        c->server->due[c->grant_stripe] = 1;
        c->server->owed = 1; /* a connection may be closed behind the scan */
    }
}

void sst_grants_expire(sst_server *v, uint64_t now) {
    while (sst_linked(&v->grants)) {
        sst_conn *c = SST_OF(sst_conn, granted, v->grants.next);
        if (c->grant_ns > now)
            return;
        sst_grant_end(c);
    }
}

/* -- barriers --------------------------------------------------------------------------------------------------------- */
/* One look under the lock, and the arrival if it is the first. 1: all have come; 0: not. */
static int meet(sst_seg *s, sst_want *w, uint32_t *arrived) {
    sst_op op;
    int64_t count;
    int r = sst_op_enter(&op, s, w->key.space, w->key.bytes, w->key.len, 0, SST_NOWAIT);
    return r == SST_OK ? sst_op_exit(&op, sst_op_meet(&op, w->parties, arrived, &count, &w->waiter, 0)) : r;
}

static int all_met(sst_seg *s, sst_want *w) {
    uint32_t arrived = 1;
    if (sst_op_passed(s, w->waiter))
        return 1;
    return later(meet(s, w, &arrived));
}

/* -- looks ------------------------------------------------------------------------------------------------------------ */
static int same_key(const sst_want *a, const sst_want *b) {
    return a && a->parties == 0 && a->key.whole == b->key.whole && a->key.len == b->key.len &&
           memcmp(a->key.bytes, b->key.bytes, b->key.len) == 0;
}

/* Looks at each want of the stripe; who misses nothing any more goes into `over`. Nobody is answered meanwhile, so no
 * want goes but those found. SST_EAGAIN: a lock was held, so look again. */
static int look(sst_server *v, uint32_t stripe, sst_link *over) {
    const sst_want *before = NULL;
    int r = 0, stuck = 0;
    for (sst_link *l = v->wants[stripe].next, *next; l != &v->wants[stripe]; l = next) {
        next = l->next;
        sst_want *w = SST_OF(sst_want, link, l);
        sst_conn *c = w->conn;
        if (w->parties > 0)
            r = all_met(v->seg, w);
        else if (!same_key(before, w) || r == 2) /* many wait for one key: one look is enough */
            r = there(v, &w->key);
        before = w->parties > 0 ? NULL : w;
        stuck |= r == SST_EAGAIN;
        if (r == 0 || r == SST_EAGAIN)
            continue;
        unlist_want(v, w);
        c->wait->missing--;
        if (r == 2 && c->wait->n == 1)
            grant(c, &w->key);
        if (r < 0 || c->wait->missing == 0) {
            c->verdict = r < 0 ? r : SST_OK;
            sst_link_last(over, &c->served_by);
        }
    }
    return stuck ? SST_EAGAIN : SST_OK;
}

static void answer_all(sst_link *over) {
    while (sst_linked(over)) {
        sst_conn *c = SST_OF(sst_conn, served_by, over->next);
        sst_link_out(&c->served_by);
        sst_wants_drop(c);
        if (c->verdict == SST_OK)
            sst_conn_say_u8(c, 0);
        else
            sst_conn_end(c);
        if (c->held) {
            c->held = 0;
            sst_link_last(&c->server->freed, &c->ready);
        }
    }
}

static void look_at(sst_server *v, uint32_t stripe) {
    sst_link over;
    sst_link_init(&over);
    v->due[stripe] = 0;
    sst_bell_unwatch(&v->bell, stripe); /* often nobody is left after the look: then it need not be armed */
    int r = look(v, stripe, &over);
    if (sst_linked(&v->wants[stripe])) {
        arm(v, stripe);
        r = look(v, stripe, &over);
    }
    if (r == SST_EAGAIN) {
        v->due[stripe] = 1;
        v->stuck = 1;
    }
    answer_all(&over);
}

void sst_wants_scan(sst_server *v) {
    fence_seq_cst(); /* SYNC bell-armed: seq_cst; what was armed before is seen by the bell thread, or its move here */
    for (uint32_t i = v->lives; i-- > 0;) { /* backwards: a stripe that goes is replaced by the last one */
        uint32_t stripe = i < v->lives ? v->live[i] : SST_STRIPES;
        if (stripe < SST_STRIPES && (v->due[stripe] || sst_bell_moved(&v->bell, stripe)))
            look_at(v, stripe);
    }
}

/* -- waits ------------------------------------------------------------------------------------------------------------ */
static sst_wait_set *new_set(sst_conn *c, uint64_t n, size_t bytes) {
    size_t size = sizeof(sst_wait_set) + (size_t)n * sizeof(sst_want) + bytes;
    if (c->server->buffered + size > SST_SERVER_MOST)
        return NULL;
    sst_wait_set *set = calloc(1, size);
    if (set == NULL)
        return NULL;
    set->n = set->missing = (uint32_t)n;
    return set;
}

/* Arms, looks, and lists what is not there. */
static void begin_wait(sst_conn *c) {
    sst_server *v = c->server;
    sst_link over;
    sst_link_init(&over);
    for (uint32_t i = 0; i < c->wait->n; i++) {
        sst_want *w = &c->wait->want[i];
        int r = there(v, &w->key);
        if (r <= 0) {
            arm(v, w->key.stripe);
            r = there(v, &w->key);
        }
        if (r == 1 || r == 2) {
            if (v->index[w->key.stripe] == 0)
                sst_bell_unwatch(&v->bell, w->key.stripe);
            w->seen = 1;
            c->wait->missing--;
            if (r == 2 && c->wait->n == 1)
                grant(c, &w->key);
            continue;
        }
        list_want(v, w);
        if (r < 0) {
            v->due[w->key.stripe] = 1;
            v->stuck = 1;
        }
    }
    if (c->wait->missing == 0) {
        c->verdict = SST_OK;
        sst_link_last(&over, &c->served_by);
        answer_all(&over);
    }
}

/* The usual case, of a get: all keys are there. */
static int all_there(sst_seg *s, const char *keys, uint64_t n) {
    sst_key key;
    for (const char *p = keys; n > 0; n--)
        if (sst_wire_key(s, sst_read_text(&p), &key) != SST_OK || check(s, &key, SST_KEY_ONLY) != 1)
            return 0;
    return 1;
}

int sst_wants_add(sst_conn *c, const char *keys, uint64_t n, size_t size) {
    sst_seg *s = c->server->seg;
    if (c->wait != NULL)
        return SST_EINVAL; /* one at a time: the answers could not be told apart */
    sst_grant_end(c);
    if (all_there(s, keys, n)) {
        sst_conn_say_u8(c, 0);
        return SST_OK;
    }
    sst_wait_set *set = new_set(c, n, size);
    if (set == NULL)
        return sst_fail_with(SST_ESYS, ENOMEM);
    char *copy = (char *)&set->want[n];
    memcpy(copy, keys, size);
    const char *p = copy;
    for (uint64_t i = 0; i < n; i++) {
        sst_want *w = &set->want[i];
        sst_link_init(&w->link);
        w->conn = c;
        int r = sst_wire_key(s, sst_read_text(&p), &w->key);
        if (r != SST_OK) {
            free(set);
            return r;
        }
    }
    c->wait = set;
    sst_count(&c->server->count.waiting, 1);
    begin_wait(c);
    return SST_OK;
}

int sst_wants_meet(sst_conn *c, sst_text key, int64_t parties) {
    sst_server *v = c->server;
    if (c->wait != NULL)
        return SST_EINVAL;
    sst_wait_set *set = new_set(c, 1, key.len);
    if (set == NULL)
        return sst_fail_with(SST_ESYS, ENOMEM);
    sst_want *w = set->want;
    char *copy = (char *)&set->want[1];
    memcpy(copy, key.bytes, key.len);
    sst_link_init(&w->link);
    w->conn = c;
    w->parties = parties < 1 ? 1 : parties; /* 0 or less: the count is there at once */
    int r = sst_wire_key(v->seg, (sst_text){copy, key.len}, &w->key);
    if (r == SST_OK) {
        arm(v, w->key.stripe); /* before the arrival: the last one may come straight after it */
        uint32_t arrived = 0;
        r = meet(v->seg, w, &arrived);
        if (r != 0 && v->index[w->key.stripe] == 0)
            sst_bell_unwatch(&v->bell, w->key.stripe);
    }
    if (r < 0) {
        free(set);
        return r;
    }
    c->wait = set;
    sst_count(&v->count.waiting, 1);
    if (r == 0) {
        list_want(v, w);
    } else {
        w->seen = 1;
        sst_wants_drop(c);
        sst_conn_say_u8(c, 0);
    }
    return SST_OK;
}

void sst_wants_drop(sst_conn *c) {
    sst_server *v = c->server;
    sst_wait_set *set = c->wait;
    if (set == NULL)
        return;
    c->wait = NULL;
    sst_count(&v->count.waiting, -1);
    for (uint32_t i = 0; i < set->n; i++) {
        unlist_want(v, &set->want[i]);
        sst_waiter_release(v->seg, &set->want[i].waiter);
    }
    free(set);
}
