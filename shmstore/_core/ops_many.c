/* ops_many.c -- verbs on many keys (floor C9): multi_set, num_keys, list_keys. */
#include "ops.h"
#include "heap.h"
#include "errors.h"

#include <errno.h>
#include <stdlib.h>

/* -- multi_set: all stripes concerned are locked, ascending; everything is prepared; then everything is linked ------- */
typedef struct {
    sst_key key;
    const char *val;
    uint32_t vlen, value, entry; /* value, entry: the prepared blocks */
    uint32_t first, next; /* fold's hash table: index + 1 of this bucket's first pair, of the next in its bucket */
    uint32_t overridden; /* a later pair sets the same key */
} pair;

static int same_key(const sst_key *a, const sst_key *b) {
    return a->whole == b->whole && a->len == b->len && memcmp(a->bytes, b->bytes, a->len) == 0;
}

/* Of the pairs with one key the last one counts: no entry is touched twice, so no block is dropped that was taken under
 * the same lock and still stands on the list in hand. */
static void fold(pair *pairs, uint32_t n) {
    for (uint32_t i = n; i-- > 0;) {
        pair *p = &pairs[i];
        uint32_t *bucket = &pairs[p->key.whole % n].first;
        for (uint32_t j = *bucket; j != 0 && !p->overridden; j = pairs[j - 1].next)
            p->overridden = (uint32_t)same_key(&pairs[j - 1].key, &p->key);
        if (p->overridden)
            continue;
        p->next = *bucket;
        *bucket = i + 1;
    }
}

static int prepare(sst_op *op, pair *p) {
    op->key = p->key;
    op->stripe = sst_stripe_at(op->s, p->key.stripe);
    sst_place place;
    sst_entry *e;
    int r = sst_op_new_value(op, p->val, p->vlen, p->vlen, &p->value);
    if (r == SST_OK)
        r = sst_table_find(op->s, &p->key, SST_KIND_KEY, &place);
    if (r == SST_OK && place.entry == NULL)
        r = sst_op_new_entry(op, SST_KIND_KEY, &p->entry, &e);
    return r;
}

/* Cannot fail for want of room. */
static int commit(sst_op *op, pair *p) {
    op->key = p->key;
    op->stripe = sst_stripe_at(op->s, p->key.stripe);
    sst_place place;
    int r = sst_table_find(op->s, &p->key, SST_KIND_KEY, &place);
    if (r != SST_OK)
        return r;
    sst_entry *e = place.entry ? place.entry : sst_payload(op->s, p->entry, sizeof(sst_entry));
    if (e == NULL)
        return SST_ECORRUPT;
    uint32_t sel = place.entry ? 1 - SST_WORD_SEL(ld64(&e->word)) : 0, old = ld32(&e->value[sel]);
    if (old)
        r = sst_block_drop(op->s, p->key.stripe, old);
    if (r != SST_OK)
        return r;
    st32(&e->value[sel], p->value);
    st64(&e->word, SST_WORD(SST_FORM_BYTES, sel, p->vlen)); /* the commit where the entry was there */
    if (place.entry == NULL)
        sst_op_link(op, place.from, p->entry, SST_KIND_KEY); /* the commit where it was not */
    if (p->value) /* only now: USED means reached, and a repair gives back what is INFLIGHT and unreached */
        sst_block_keep(op->s, p->value);
    return SST_OK;
}

static int all_pairs(sst_op *op, pair *pairs, uint32_t n, const uint8_t *touched) {
    int r = SST_OK;
    for (uint32_t i = 0; i < n && r == SST_OK; i++)
        if (!pairs[i].overridden)
            r = prepare(op, &pairs[i]);
    if (r != SST_OK)
        return r;
    for (uint32_t i = 0; i < SST_STRIPES; i++)
        if (touched[i])
            sst_write_begin(sst_stripe_at(op->s, i));
    for (uint32_t i = 0; i < n && r == SST_OK; i++)
        if (!pairs[i].overridden)
            r = commit(op, &pairs[i]);
    for (uint32_t i = 0; i < SST_STRIPES; i++)
        if (touched[i])
            sst_write_end(sst_stripe_at(op->s, i));
    return r;
}

int sst_multi_set(sst_seg *s, uint32_t space, const char *keys, const uint32_t *klens, const char *vals,
                  const uint32_t *vlens, uint32_t n, uint64_t deadline_ns, uint32_t flags) {
    uint8_t touched[SST_STRIPES] = {0};
    uint64_t bytes = 0;
    if (n == 0)
        return SST_OK;
    if (s->readonly)
        return SST_EINVAL;
    pair *pairs = calloc(n, sizeof *pairs);
    if (pairs == NULL)
        return sst_fail_with(SST_ESYS, ENOMEM);
    int r = sst_begin(s);
    if (r != SST_OK) {
        free(pairs);
        return r;
    }
    for (uint32_t i = 0; i < n && r == SST_OK; keys += klens[i], vals += vlens[i], i++) {
        pairs[i].val = vals;
        pairs[i].vlen = vlens[i];
        r = vlens[i] > SST_VALUE_MAX ? SST_ETOOBIG : sst_key_make(s, space, keys, klens[i], &pairs[i].key);
        touched[pairs[i].key.stripe] = 1;
        bytes += (uint64_t)klens[i] + vlens[i];
    }
    if (r == SST_OK && (flags & SST_TRY) && bytes > SST_TRY_COPY)
        r = SST_EAGAIN;
    if (r == SST_OK)
        fold(pairs, n);
    uint32_t locked = 0;
    for (; locked < SST_STRIPES && r == SST_OK; locked++)
        if (touched[locked]) {
            r = sst_enter(s, locked, deadline_ns, flags);
            if (r != SST_OK)
                break;
        }
    sst_op op = {.s = s, .deadline_ns = deadline_ns, .flags = flags};
    if (r == SST_OK)
        r = all_pairs(&op, pairs, n, touched);
    for (uint32_t i = 0; i < locked; i++)
        if (touched[i])
            sst_exit(s, i, op.wake);
    free(pairs);
    sst_end(s);
    return r;
}

/* -- counting and listing -------------------------------------------------------------------------------------------------- */
typedef struct {
    uint32_t space;
    const char *prefix;
    size_t plen;
} filter;

/* Calls visit for each key of the stripe that passes; the stripe is locked, or the segment still. */
static int each_key(sst_seg *s, uint32_t stripe, const filter *f,
                    void (*visit)(const char *key, uint32_t klen, void *arg), void *arg) {
    uint64_t steps = sst_table_most(s, stripe) + 1;
    for (uint32_t b = 0; b < s->buckets; b++)
        for (uint32_t ref = ld32(sst_bucket_at(s, stripe, b)); ref != 0;) {
            sst_entry *e = sst_payload(s, ref, sizeof(sst_entry));
            if (e == NULL || steps-- == 0)
                return SST_ECORRUPT;
            uint32_t meta = ld32(&e->meta), klen = SST_META_KLEN(meta);
            if (sst_payload(s, ref, sizeof(sst_entry) + klen) == NULL)
                return SST_ECORRUPT;
            const char *key = (const char *)(e + 1);
            if (SST_META_KIND(meta) == SST_KIND_KEY && SST_META_SPACE(meta) == f->space && klen >= f->plen &&
                sst_same(key, f->prefix, f->plen))
                visit(key, klen, arg);
            ref = ld32(&e->next);
        }
    return SST_OK;
}

static void count_one(const char *key, uint32_t klen, void *arg) {
    (void)key;
    (void)klen;
    ++*(int64_t *)arg;
}

int sst_num_keys(sst_seg *s, uint32_t space, const char *prefix, size_t plen, int64_t *n, uint64_t deadline_ns,
                 uint32_t flags) {
    filter f = {space, prefix, plen};
    int64_t sum = 0;
    if (space > SST_RAW)
        return SST_EINVAL;
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    for (uint32_t i = 0; i < SST_STRIPES && r == SST_OK; i++) {
        if (plen == 0) {
            sum += ld32(&sst_stripe_at(s, i)->keys[space]);
            continue;
        }
        r = sst_enter(s, i, deadline_ns, flags);
        if (r == SST_OK) {
            r = each_key(s, i, &f, count_one, &sum);
            sst_exit(s, i, 0);
        }
    }
    sst_end(s);
    if (r == SST_OK)
        *n = sum;
    return r;
}

typedef struct {
    char *buf;
    size_t room, used; /* used counts on beyond room: what would be needed */
} sink;

static void list_one(const char *key, uint32_t klen, void *arg) {
    sink *to = arg;
    if (to->used + 4 + klen <= to->room) {
        memcpy(to->buf + to->used, &klen, 4);
        sst_copy_out(to->buf + to->used + 4, key, klen);
    }
    to->used += 4 + klen;
}

int sst_list_keys(sst_seg *s, uint32_t space, const char *prefix, size_t plen, uint32_t *cursor, char *buf, size_t room,
                  size_t *used, uint64_t deadline_ns, uint32_t flags) {
    filter f = {space, prefix, plen};
    int r = sst_begin(s);
    if (r != SST_OK)
        return r;
    if ((flags & SST_TRY) && room > SST_TRY_COPY)
        room = SST_TRY_COPY;
    *used = 0;
    while (r == SST_OK && *cursor < SST_STRIPES) {
        sink to = {buf, room, *used};
        r = sst_enter(s, *cursor, deadline_ns, flags);
        if (r == SST_OK) {
            r = each_key(s, *cursor, &f, list_one, &to);
            sst_exit(s, *cursor, 0);
        }
        if (r == SST_OK && to.used > room)
            r = (flags & SST_TRY) && to.used > SST_TRY_COPY ? SST_EAGAIN : SST_ENOBUFS;
        if (r != SST_OK && *used > 0) {
            r = 1; /* what is in the buffer goes out first; the next call meets the same stripe */
            break;
        }
        if (r == SST_OK || r == SST_ENOBUFS)
            *used = to.used;
        *cursor += r == SST_OK;
    }
    sst_end(s);
    return r;
}
