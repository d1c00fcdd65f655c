/* ops.c -- the verbs on keys (floor C9); waits stand in ops_wait.c, queues in ops_queue.c, many keys at once in ops_many.c,
 * c10d's barrier in ops_barrier.c.
 *
 * Each verb: place the key, enter its stripe, find it, prepare blocks (nothing a reader sees), then between write_begin
 * and write_end the one store that commits. Crash story of each store: recover.c. */
#include "ops.h"
#include "heap.h"

int sst_op_begin(sst_op *op, sst_seg *s, uint32_t space, const char *key, size_t klen, uint64_t deadline_ns,
                 uint32_t flags) {
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    op->s = s;
    op->deadline_ns = deadline_ns;
    op->flags = flags;
    op->wake = 0;
    r = sst_key_make(s, space, key, klen, &op->key);
    if (r != SST_OK) {
        sst_end(s);
        return r;
    }
    op->stripe = sst_stripe_at(s, op->key.stripe);
    return SST_OK;
}

int sst_op_enter(sst_op *op, sst_seg *s, uint32_t space, const char *key, size_t klen, uint64_t deadline_ns,
                 uint32_t flags) {
    int r = sst_op_begin(op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    r = s->readonly ? SST_EINVAL : sst_enter(s, op->key.stripe, deadline_ns, flags);
    if (r != SST_OK)
        sst_end(s);
    return r;
}

int sst_op_exit(sst_op *op, int r) {
    sst_exit(op->s, op->key.stripe, op->wake);
    sst_end(op->s);
    return r;
}

/* -- building blocks ------------------------------------------------------------------------------------------------ */
int sst_op_new_entry(sst_op *op, uint32_t kind, uint32_t *ref, sst_entry **e) {
    int r = sst_block_new(op->s, op->key.stripe, sizeof(sst_entry) + op->key.len, op->deadline_ns, op->flags, ref);
    if (r != SST_OK)
        return r;
    *e = sst_payload(op->s, *ref, sizeof(sst_entry) + op->key.len);
    if (*e == NULL)
        return SST_ECORRUPT;
    sst_table_fill(*e, &op->key, kind);
    return SST_OK;
}

int sst_op_new_value(sst_op *op, const char *val, size_t len, uint64_t room, uint32_t *ref) {
    *ref = 0;
    if (room == 0)
        return SST_OK;
    int r = sst_block_new(op->s, op->key.stripe, room, op->deadline_ns, op->flags, ref);
    if (r != SST_OK)
        return r;
    char *to = sst_payload(op->s, *ref, room);
    if (to == NULL)
        return SST_ECORRUPT;
    sst_copy_in(to, val, len);
    return SST_OK;
}

void sst_op_link(sst_op *op, uint32_t *from, uint32_t ref, uint32_t kind) {
    sst_stripe *st = op->stripe;
    st32(from, ref); /* the commit: from here on the entry is there */
    sst_block_keep(op->s, ref);
    st32(&st->entries, ld32(&st->entries) + 1);
    if (kind == SST_KIND_KEY)
        st32(&st->keys[op->key.space], ld32(&st->keys[op->key.space]) + 1);
    op->wake |= sst_event_bump(st);
}

void sst_op_unlink(sst_op *op, const sst_place *place, uint32_t kind) {
    sst_stripe *st = op->stripe;
    st32(place->from, ld32(&place->entry->next)); /* the commit: from here on the entry is gone */
    st32(&st->entries, ld32(&st->entries) - 1);
    if (kind == SST_KIND_KEY)
        st32(&st->keys[op->key.space], ld32(&st->keys[op->key.space]) - 1);
}

static int create(sst_op *op, const sst_place *place, uint64_t word, uint64_t num, const char *val, size_t len) {
    uint32_t ref, value;
    sst_entry *e;
    int r = sst_op_new_value(op, val, len, len, &value);
    if (r == SST_OK)
        r = sst_op_new_entry(op, SST_KIND_KEY, &ref, &e);
    if (r != SST_OK)
        return r; /* sst_exit gives back what was taken */
    st32(&e->value[0], value);
    st64(&e->word, word);
    st64(&e->num, num);
    sst_write_begin(op->stripe);
    sst_op_link(op, place->from, ref, SST_KIND_KEY);
    if (value)
        sst_block_keep(op->s, value);
    sst_write_end(op->stripe);
    return SST_OK;
}

/* Puts the filled block `fresh` (0: none) in the place of value[i], which no reader is to see, and drops the old one. */
static int replace_block(sst_op *op, sst_entry *e, uint32_t i, uint32_t fresh) {
    uint32_t old = ld32(&e->value[i]);
    int r = old ? sst_block_drop(op->s, op->key.stripe, old) : SST_OK;
    if (r != SST_OK)
        return r;
    st32(&e->value[i], fresh); /* one store swaps them; repair tells by reachability which of the two to give back */
    if (fresh)
        sst_block_keep(op->s, fresh);
    return SST_OK;
}

/* A block is kept for the next value unless it is far too large for it; no block will do for no bytes. */
static int suits(sst_seg *s, uint32_t ref, size_t len) {
    uint64_t room = ref ? sst_block_room(s, ref) : 0;
    return room >= len && (room <= 4096 || room <= 4 * (uint64_t)len);
}

int sst_op_put(sst_op *op, const sst_place *place, const char *val, size_t len) {
    sst_entry *e = place->entry;
    if (e == NULL)
        return create(op, place, SST_WORD(SST_FORM_BYTES, 0, len), 0, val, len);
    uint32_t other = 1 - SST_WORD_SEL(ld64(&e->word)), fresh = 0;
    int fits = suits(op->s, ld32(&e->value[other]), len);
    if (!fits) {
        int r = sst_op_new_value(op, val, len, len, &fresh);
        if (r != SST_OK)
            return r;
    }
    sst_write_begin(op->stripe);
    int r = fits ? SST_OK : replace_block(op, e, other, fresh);
    if (r == SST_OK) {
        if (fits && len)
            sst_copy_in(sst_payload(op->s, ld32(&e->value[other]), len), val, len);
        st64(&e->word, SST_WORD(SST_FORM_BYTES, other, len)); /* the commit */
    }
    sst_write_end(op->stripe);
    return r;
}

/* -- set, add, append, compare_set, delete ----------------------------------------------------------------------------- */
static int too_big(size_t len, uint32_t flags) {
    return len > SST_VALUE_MAX ? SST_ETOOBIG : (flags & SST_TRY) && len > SST_TRY_COPY ? SST_EAGAIN : SST_OK;
}

int sst_set(sst_seg *s, uint32_t space, const char *key, size_t klen, const char *val, size_t vlen,
            uint64_t deadline_ns, uint32_t flags) {
    sst_op op;
    sst_place place;
    int r = too_big(vlen, flags);
    if (r == SST_OK)
        r = sst_op_enter(&op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    r = sst_table_find(s, &op.key, SST_KIND_KEY, &place);
    if (r == SST_OK)
        r = sst_op_put(&op, &place, val, vlen);
    return sst_op_exit(&op, r);
}

/* Base 10, as strtoll reads it, on a local copy: no locale, no NUL needed. */
static int parse(const char *p, uint32_t len, int64_t *n) {
    uint32_t i = 0;
    while (i < len && (p[i] == ' ' || (p[i] >= '\t' && p[i] <= '\r')))
        i++;
    int minus = i < len && p[i] == '-';
    if (i < len && (p[i] == '-' || p[i] == '+'))
        i++;
    if (i == len || p[i] < '0' || p[i] > '9')
        return SST_ENOTINT;
    uint64_t u = 0, most = minus ? UINT64_C(1) << 63 : INT64_MAX;
    for (; i < len && p[i] >= '0' && p[i] <= '9'; i++) {
        uint64_t d = (uint64_t)(p[i] - '0');
        if (u > (most - d) / 10)
            return SST_ERANGE;
        u = u * 10 + d;
    }
    *n = (int64_t)(minus ? 0 - u : u);
    return SST_OK;
}

int sst_op_number(sst_seg *s, const sst_entry *e, int64_t *n) {
    char text[24], copy[512];
    sst_value v;
    if (SST_WORD_FORM(ld64(&e->word)) == SST_FORM_COUNTER) {
        *n = (int64_t)ld64(&e->num);
        return SST_OK;
    }
    int r = sst_value_of(s, e, text, &v);
    if (r != SST_OK)
        return r;
    uint32_t len = v.len < sizeof copy ? v.len : (uint32_t)sizeof copy; /* longer than any number but zeros or blanks */
    sst_copy_out(copy, v.bytes, len);
    return parse(copy, len, n);
}

int sst_op_add(sst_op *op, const sst_place *place, int64_t n, int64_t *value) {
    int64_t old = 0;
    sst_entry *e = place->entry;
    int r = e ? sst_op_number(op->s, e, &old) : SST_OK;
    if (r != SST_OK)
        return r;
    uint64_t sum = (uint64_t)old + (uint64_t)n; /* wraps, like c10d's int64 */
    if (e == NULL) {
        r = create(op, place, SST_WORD(SST_FORM_COUNTER, 0, 0), sum, "", 0);
    } else {
        sst_write_begin(op->stripe);
        st64(&e->num, sum); /* the commit where it is a counter; not looked at before the next store where it is not */
        if (SST_WORD_FORM(ld64(&e->word)) != SST_FORM_COUNTER) {
            st64(&e->word, SST_WORD(SST_FORM_COUNTER, SST_WORD_SEL(ld64(&e->word)), 0));
            for (uint32_t i = 0; i < 2 && r == SST_OK; i++) /* a counter changes no block again: large ones go now */
                if (!suits(op->s, ld32(&e->value[i]), 0))
                    r = replace_block(op, e, i, 0);
        }
        sst_write_end(op->stripe);
    }
    if (r == SST_OK)
        *value = (int64_t)sum;
    return r;
}

int sst_add(sst_seg *s, uint32_t space, const char *key, size_t klen, int64_t n, int64_t *value, uint64_t deadline_ns,
            uint32_t flags) {
    sst_op op;
    sst_place place;
    int r = sst_op_enter(&op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    r = sst_table_find(s, &op.key, SST_KIND_KEY, &place);
    if (r == SST_OK)
        r = sst_op_add(&op, &place, n, value);
    return sst_op_exit(&op, r);
}

/* Extends the value of e. In place where its block has room: the bytes behind the length are nobody's until word. */
static int extend(sst_op *op, sst_entry *e, const char *val, size_t vlen) {
    char text[24];
    sst_value old;
    sst_seg *s = op->s;
    int r = sst_value_of(s, e, text, &old);
    if (r != SST_OK)
        return r;
    uint64_t len = (uint64_t)old.len + vlen, word = ld64(&e->word);
    if (len > SST_VALUE_MAX)
        return SST_ETOOBIG;
    if ((op->flags & SST_TRY) && len > SST_TRY_COPY)
        return SST_EAGAIN;
    uint32_t sel = SST_WORD_SEL(word), fresh = 0, cur = ld32(&e->value[sel]);
    uint64_t room = cur ? sst_block_room(s, cur) : 0; /* 0: no block, or none that is sane */
    int in_place = SST_WORD_FORM(word) == SST_FORM_BYTES && room != 0 && room >= len;
    if (!in_place) {
        r = sst_op_new_value(op, "", 0, len + len / 2 + 1, &fresh); /* room to grow: appends stay linear in sum */
        char *to = r == SST_OK ? sst_payload(s, fresh, len) : NULL;
        if (to == NULL)
            return r == SST_OK ? SST_ECORRUPT : r;
        sst_move_in(to, old.bytes, old.len);
        sst_copy_in(to + old.len, val, vlen);
        sel = 1 - sel;
    }
    sst_write_begin(op->stripe);
    if (in_place)
        sst_copy_in((char *)sst_payload(s, cur, len) + old.len, val, vlen);
    else
        r = replace_block(op, e, sel, fresh);
    if (r == SST_OK)
        st64(&e->word, SST_WORD(SST_FORM_BYTES, sel, len)); /* the commit */
    sst_write_end(op->stripe);
    return r;
}

int sst_append(sst_seg *s, uint32_t space, const char *key, size_t klen, const char *val, size_t vlen,
               uint64_t deadline_ns, uint32_t flags) {
    sst_op op;
    sst_place place;
    int r = too_big(vlen, flags);
    if (r == SST_OK)
        r = sst_op_enter(&op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    r = sst_table_find(s, &op.key, SST_KIND_KEY, &place);
    if (r == SST_OK)
        r = place.entry ? extend(&op, place.entry, val, vlen) : sst_op_put(&op, &place, val, vlen);
    return sst_op_exit(&op, r);
}

static int answer(const char *from, size_t n, char *buf, size_t room, size_t *len) {
    *len = n;
    if (n > room)
        return SST_ENOBUFS;
    sst_copy_out(buf, from, n);
    return SST_OK;
}

int sst_compare_set(sst_seg *s, uint32_t space, const char *key, size_t klen, const char *expected, size_t elen,
                    const char *desired, size_t dlen, char *buf, size_t room, size_t *len, uint64_t deadline_ns,
                    uint32_t flags) {
    sst_op op;
    sst_place place;
    sst_value v;
    char text[24];
    int r = too_big(dlen, flags);
    if (r == SST_OK)
        r = sst_op_enter(&op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    r = sst_table_find(s, &op.key, SST_KIND_KEY, &place);
    if (r == SST_OK && place.entry)
        r = sst_value_of(s, place.entry, text, &v);
    if (r != SST_OK)
        return sst_op_exit(&op, r);
    int same = place.entry ? v.len == elen && (v.bytes == text ? memcmp(text, expected, elen) == 0
                                                               : sst_same(v.bytes, expected, elen))
                           : elen == 0;
    if (same) {
        r = answer(desired, dlen, buf, room, len);
        if (r == SST_OK)
            r = sst_op_put(&op, &place, desired, dlen);
    } else if (place.entry) {
        r = (flags & SST_TRY) && v.len > SST_TRY_COPY ? SST_EAGAIN : answer(v.bytes, v.len, buf, room, len);
    } else {
        r = answer(expected, elen, buf, room, len);
    }
    return sst_op_exit(&op, r);
}

int sst_delete(sst_seg *s, uint32_t space, const char *key, size_t klen, uint64_t deadline_ns, uint32_t flags) {
    sst_op op;
    sst_place place;
    int r = sst_op_enter(&op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    r = sst_table_find(s, &op.key, SST_KIND_KEY, &place);
    if (r != SST_OK || place.entry == NULL)
        return sst_op_exit(&op, r);
    sst_entry *e = place.entry;
    r = sst_block_drop(s, op.key.stripe, place.ref);
    for (int i = 0; i < 2 && r == SST_OK; i++)
        if (ld32(&e->value[i]))
            r = sst_block_drop(s, op.key.stripe, ld32(&e->value[i]));
    if (r == SST_OK) {
        sst_write_begin(op.stripe);
        sst_op_unlink(&op, &place, SST_KIND_KEY);
        sst_write_end(op.stripe);
        r = 1;
    }
    return sst_op_exit(&op, r);
}

/* -- reads ------------------------------------------------------------------------------------------------------------------ */
#define READ_TRIES 16

/* What a read does with the place it found; called again when the view was torn. */
typedef struct {
    char *buf;
    size_t room, *len; /* len NULL: check only */
    uint32_t flags;
} sst_read;

static int look(sst_seg *s, const sst_key *key, sst_read *rd) {
    sst_place place;
    int r = sst_table_find(s, key, SST_KIND_KEY, &place);
    if (r != SST_OK)
        return r;
    if (rd->len == NULL) {
        if (place.entry || (rd->flags & SST_KEY_ONLY))
            return place.entry != NULL;
        r = sst_table_find(s, key, SST_KIND_QUEUE, &place);
        return r != SST_OK ? r : place.entry && ld64(&place.entry->word) != 0;
    }
    if (place.entry == NULL)
        return SST_ENOENT;
    char text[24];
    sst_value v;
    r = sst_value_of(s, place.entry, text, &v);
    if (r != SST_OK)
        return r;
    if ((rd->flags & SST_TRY) && v.len > SST_TRY_COPY)
        return SST_EAGAIN;
    if (v.bytes != text)
        return answer(v.bytes, v.len, rd->buf, rd->room, rd->len);
    *rd->len = v.len;
    if (v.len > rd->room)
        return SST_ENOBUFS;
    memcpy(rd->buf, text, v.len);
    return SST_OK;
}

/* Optimistic first; after READ_TRIES torn views under the lock, so that a reader is never starved by writers. */
static int read_key(sst_op *op, sst_read *rd) {
    uint32_t seq;
    for (int i = 0; i < READ_TRIES; i++) {
        if (!sst_read_begin(op->stripe, &seq)) {
            sst_pause();
            continue;
        }
        int r = look(op->s, &op->key, rd);
        if (sst_read_ok(op->stripe, seq))
            return r;
    }
    if (op->s->readonly)
        return SST_EBUSY;
    int r = sst_enter(op->s, op->key.stripe, op->deadline_ns, op->flags);
    if (r != SST_OK)
        return r;
    r = look(op->s, &op->key, rd);
    sst_exit(op->s, op->key.stripe, 0);
    return r;
}

int sst_get(sst_seg *s, uint32_t space, const char *key, size_t klen, char *buf, size_t room, size_t *len,
            uint64_t deadline_ns, uint32_t flags) {
    sst_op op;
    sst_read rd = {buf, room, len, flags};
    int r = sst_op_begin(&op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    r = read_key(&op, &rd);
    sst_end(s);
    return r;
}

int sst_check(sst_seg *s, uint32_t space, const char *key, size_t klen, uint64_t deadline_ns, uint32_t flags) {
    sst_op op;
    sst_read rd = {NULL, 0, NULL, flags};
    int r = sst_op_begin(&op, s, space, key, klen, deadline_ns, flags);
    if (r != SST_OK)
        return r;
    r = read_key(&op, &rd);
    sst_end(s);
    return r;
}
