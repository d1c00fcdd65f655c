/* ops_queue.c -- the queues (floor C9).
 *
 * The line of a queue: each blocked popper holds a waiter slot with a ticket. The p-th living ticket may pop when the
 * queue has p items or more; a pop and its ticket go together under the stripe lock; a ticket of the dead is skipped and
 * its slot freed; whoever leaves the line without an item bumps and wakes, as those behind it may now be served
 * (sst_waiter_release).
 *
 * The line needs no entry in the table, so that a queue's entry comes with its first item and goes with its last one. A
 * ticket is numbered by the stripe and names its queue by 32 bits of the key's hash beside the stripe's 8: two queues
 * that agree in all 40 and are waited on at once would share a line, where one's popper may have to wait for the other's. */
#include "ops.h"
#include "clock.h"
#include "liveness.h"
#include "queue.h"
#include "waiter.h"

int sst_queue_push(sst_seg *s, uint32_t space, const char *key, size_t klen, const char *val, size_t vlen,
                   uint64_t deadline_ns, uint32_t flags) {
    sst_op op;
    sst_place place;
    if (vlen > SST_VALUE_MAX)
        return SST_ETOOBIG;
    if ((flags & SST_TRY) && vlen > SST_TRY_COPY)
        return SST_EAGAIN;
    int r = sst_op_enter(&op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    uint32_t item = 0, entry = 0;
    sst_entry *q = NULL;
    r = sst_table_find(s, &op.key, SST_KIND_QUEUE, &place);
    if (r == SST_OK)
        r = sst_block_new(s, op.key.stripe, sizeof(sst_item) + vlen, deadline_ns, flags, &item);
    if (r == SST_OK && (q = place.entry) == NULL)
        r = sst_op_new_entry(&op, SST_KIND_QUEUE, &entry, &q);
    sst_item *it = r == SST_OK ? sst_payload(s, item, sizeof(sst_item) + vlen) : NULL;
    if (it == NULL)
        return sst_op_exit(&op, r == SST_OK ? SST_ECORRUPT : r);
    st32(&it->next, 0);
    st32(&it->len, (uint32_t)vlen);
    sst_copy_in((char *)(it + 1), val, vlen);
    sst_write_begin(op.stripe);
    r = sst_queue_link(s, q, item); /* the commit where the queue was there */
    if (entry && r == SST_OK)
        sst_op_link(&op, place.from, entry, SST_KIND_QUEUE); /* the commit where it was not */
    if (r == SST_OK)
        sst_block_keep(s, item);
    op.wake |= sst_event_bump(op.stripe);
    sst_write_end(op.stripe);
    return sst_op_exit(&op, r);
}

/* The queue's name in a waiter slot: hash and space. */
static uint32_t line_of(const sst_key *key) { return (uint32_t)(key->whole >> 32); }

/* Under the stripe lock nobody gets a ticket here meanwhile. A server asks without it: what it is told is a hint. */
uint64_t sst_op_line(sst_seg *s, const sst_key *key, uint64_t mine) {
    uint32_t home = sst_waiter_home(s, &sst_stripe_at(s, key->stripe)->event), span = sst_waiter_span(s, home);
    uint64_t n = 0;
    for (uint32_t i = 0; i < span; i++) {
        sst_waiter_slot *w = sst_waiter_near(s, home, i);
        uint32_t owner =
            ld32_acquire(&w->owner); /* SYNC waiter-slot: acquire; the ticket is this owner's, or younger */
        uint64_t ticket = ld64(&w->ticket);
        if (ticket == 0 || ticket >= mine || (ticket & SST_TICKET_BARRIER) || (owner & SST_WIPING) ||
            ld32(&w->queue) != line_of(key) || ld32(&w->stripe) != key->stripe + 1)
            continue;
        if (sst_alive(s, owner))
            n++;
        else
            sst_waiter_bury(s, w);
    }
    return n;
}

/* The last item takes the queue's entry with it, and one store unlinks the two. */
static int take_first(sst_op *op, const sst_place *place, char *buf, size_t room, size_t *len) {
    uint32_t ref, size = 0;
    sst_item *item;
    int r = sst_queue_first(op->s, place->entry, &ref, &item, &size);
    if (r != SST_OK)
        return r;
    *len = size;
    if ((op->flags & SST_TRY) && *len > SST_TRY_COPY)
        return SST_EAGAIN;
    if (*len > room)
        return SST_ENOBUFS;
    sst_copy_out(buf, (const char *)(item + 1), *len);
    int last = ld32(&item->next) == 0;
    r = sst_block_drop(op->s, op->key.stripe, ref);
    if (r == SST_OK && last)
        r = sst_block_drop(op->s, op->key.stripe, place->ref);
    if (r != SST_OK)
        return r;
    sst_write_begin(op->stripe);
    if (last)
        sst_op_unlink(op, place, SST_KIND_QUEUE); /* the commit */
    else
        sst_queue_unlink(place->entry, item); /* the commit */
    sst_write_end(op->stripe);
    return SST_OK;
}

/* Stands in the line: a slot and a ticket. Under the stripe lock. Without a slot the popper waits beside the line, and
 * is served when nobody in it is. */
static void stand(sst_op *op, uint32_t *waiter, uint32_t rank) {
    sst_op_announce(op, waiter, rank);
    sst_waiter_slot *w = sst_waiter_mine(op->s, *waiter);
    if (w && ld64(&w->ticket) == 0) {
        uint64_t number = ld64(&op->stripe->tickets) + 1;
        st32(&w->queue, line_of(&op->key));
        st64(&op->stripe->tickets, number);
        st64(&w->ticket, number);
    }
}

/* One look under the lock: SST_OK with the item, SST_ENOENT with the value to park on, or an error. */
static int pop_once(sst_op *op, int block, char *buf, size_t room, size_t *len, uint32_t *waiter, uint32_t rank,
                    uint32_t *value) {
    sst_seg *s = op->s;
    sst_place place;
    int r = sst_enter(s, op->key.stripe, op->deadline_ns, op->flags);
    if (r != SST_OK)
        return r;
    r = sst_table_find(s, &op->key, SST_KIND_QUEUE, &place);
    if (r == SST_OK) {
        sst_waiter_slot *w = sst_waiter_mine(s, *waiter);
        uint64_t mine = w && ld64(&w->ticket) ? ld64(&w->ticket) : UINT64_MAX;
        uint64_t items = place.entry ? ld64(&place.entry->word) : 0;
        if (items > 0 && items > sst_op_line(s, &op->key, mine)) {
            r = take_first(op, &place, buf, room, len);
            if (r == SST_OK)
                sst_waiter_free(s, waiter); /* its ticket goes with the item, under the same lock */
        } else {
            r = SST_ENOENT;
            if (block)
                stand(op, waiter, rank);
        }
    }
    *value = sst_event_arm(op->stripe);
    sst_exit(s, op->key.stripe, op->wake);
    op->wake = 0;
    return r;
}

int sst_queue_pop(sst_seg *s, uint32_t space, const char *key, size_t klen, int block, char *buf, size_t room,
                  size_t *len, uint32_t *waiter, uint32_t rank, uint64_t deadline_ns, uint64_t slice_ns,
                  uint32_t flags) {
    sst_op op;
    int r = sst_op_begin(&op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    if (s->readonly || (block && flags != 0)) {
        sst_end(s);
        return SST_EINVAL;
    }
    for (int parked = 0;; parked = 1) {
        uint32_t value = 0;
        r = pop_once(&op, block, buf, room, len, waiter, rank, &value);
        if (r != SST_ENOENT || !block)
            break;
        r = sst_now_ns() >= deadline_ns                                    ? SST_ETIMEDOUT
            : parked                                                       ? SST_EAGAIN
            : sst_yield(&s->yields, &op.stripe->event, value, deadline_ns) ? SST_OK
                                                                           : sst_op_park(&op, value, *waiter, slice_ns);
        if (r != SST_OK)
            break;
    }
    if (r == SST_ETIMEDOUT)
        sst_waiter_release(s, waiter);
    sst_end(s);
    return r;
}

int sst_queue_len(sst_seg *s, uint32_t space, const char *key, size_t klen, int64_t *n, uint64_t deadline_ns,
                  uint32_t flags) {
    sst_op op;
    sst_place place;
    int r = sst_op_enter(&op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    r = sst_table_find(s, &op.key, SST_KIND_QUEUE, &place);
    if (r == SST_OK)
        *n = place.entry ? (int64_t)ld64(&place.entry->word) : 0;
    return sst_op_exit(&op, r);
}
