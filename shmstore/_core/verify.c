/* verify.c -- walks every invariant of verify.h and names the broken ones. It repairs nothing. */
#include "verify.h"
#include "heap.h"
#include "queue.h"
#include "segment.h"
#include "table.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct {
    sst_seg *s;
    char *report;
    size_t room, at;
    uint64_t first, units; /* blocks in [first, first + units) refs */
    uint8_t *map;          /* a byte a ref: what was seen of the block there */
    uint32_t broken[SST_INV_COUNT];
    sst_key key;    /* of the entry under the walk */
    uint64_t looks; /* entries that may still be passed in the search for twins */
} walk;

enum { BLOCK = 1, LISTED = 2, REACHED = 4, IN_HAND = 8 };

static const char *const names[] = {
#define X(name, text) text,
    SST_INVARIANTS(X)
#undef X
};

int sst_invariants(void) { return SST_INV_COUNT; }

const char *sst_invariant_name(int index) { return index >= 0 && index < SST_INV_COUNT ? names[index] : NULL; }

static void broke(walk *w, int inv, uint64_t what) {
    if (w->broken[inv]++ != 0) /* one line an invariant, with the first finding */
        return;
    int n = snprintf(w->report + w->at, w->room - w->at, "%s (at %llu)\n", names[inv], (unsigned long long)what);
    w->at += n < 0 ? 0 : (size_t)n < w->room - w->at ? (size_t)n : w->room - w->at - 1;
}

static uint8_t *mark(walk *w, uint32_t ref) {
    return ref >= w->first && ref < w->first + w->units ? &w->map[ref - w->first] : NULL;
}

/* A word whose owner slot is out of range. A dead owner is no breach: its finder repairs. */
static void check_owner(walk *w, uint32_t word, uint64_t what) {
    uint32_t owner = word & SST_OWNER_MASK;
    if ((owner != 0 && (SST_OWNER_SLOT(owner) >= SST_PEERS_MAX || SST_OWNER_GEN(owner) == 0)) ||
        (word & ~(SST_OWNER_MASK | SST_WAITERS)))
        broke(w, SST_INV_OWNER, what);
}

/* -- heap -------------------------------------------------------------------------------------------------------------- */
static void walk_blocks(walk *w) {
    uint64_t at = w->first * 16, brk = ld64(&sst_heap_of(w->s)->brk);
    while (at < brk) {
        sst_block *b = sst_block_of(w->s, (uint32_t)(at / 16));
        uint32_t tag = b ? ld32(&b->tag) : 0, cls = SST_TAG_CLS(tag), state = SST_TAG_STATE(tag);
        if ((tag & 0xffff0000u) != SST_BLOCK_MARK || cls >= SST_CLASSES || state < SST_BLOCK_FREE ||
            state > SST_BLOCK_USED || at + sst_heap_bytes(cls) > brk) {
            broke(w, SST_INV_HEAP_TILES, at);
            return;
        }
        uint8_t *m = mark(w, (uint32_t)(at / 16));
        if (m == NULL) {
            broke(w, SST_INV_HEADER, at); /* brk lies beyond the file */
            return;
        }
        *m |= BLOCK;
        at += sst_heap_bytes(cls);
    }
}

static void walk_free(walk *w) {
    sst_heap *heap = sst_heap_of(w->s);
    for (uint32_t c = 0; c < SST_CLASSES; c++)
        for (uint32_t ref = ld32(&heap->free[c]); ref != 0;) {
            uint8_t *m = mark(w, ref);
            sst_block *b = sst_block_of(w->s, ref);
            if (m == NULL || !(*m & BLOCK) || (*m & LISTED) || b == NULL ||
                ld32(&b->tag) != SST_TAG(c, SST_BLOCK_FREE)) {
                broke(w, SST_INV_FREE_LIST, ref);
                break;
            }
            *m |= LISTED;
            ref = ld32(&b->link);
        }
}

static void walk_inflight(walk *w, uint32_t stripe) {
    uint64_t steps = w->units + 1;
    for (uint32_t ref = ld32(&sst_stripe_at(w->s, stripe)->inflight); ref != 0;) {
        uint8_t *m = mark(w, ref);
        sst_block *b = sst_block_of(w->s, ref);
        if (m == NULL || b == NULL || steps-- == 0 || (*m & (LISTED | IN_HAND | REACHED)) ||
            SST_TAG_STATE(ld32(&b->tag)) != SST_BLOCK_INFLIGHT) {
            broke(w, SST_INV_INFLIGHT, ref);
            return;
        }
        *m |= IN_HAND;
        ref = ld32(&b->link);
    }
}

static void walk_leaks(walk *w) {
    for (uint64_t i = 0; i < w->units; i++)
        if ((w->map[i] & BLOCK) && !(w->map[i] & (LISTED | REACHED | IN_HAND)))
            broke(w, SST_INV_NO_LEAK, w->first + i);
}

/* -- table ------------------------------------------------------------------------------------------------------------- */
/* 1: go on into the block. */
static int reach(walk *w, uint32_t ref) {
    uint8_t *m = mark(w, ref);
    sst_block *b = sst_block_of(w->s, ref);
    if (m == NULL || b == NULL || !(*m & BLOCK)) {
        broke(w, SST_INV_CHAIN, ref);
        return 0;
    }
    if (*m & REACHED) {
        broke(w, SST_INV_ONCE, ref);
        return 0;
    }
    *m |= REACHED;
    if (SST_TAG_STATE(ld32(&b->tag)) != SST_BLOCK_USED)
        broke(w, SST_INV_USED, ref);
    return sst_block_room(w->s, ref) != 0;
}

static int reach_item(sst_seg *s, uint32_t ref, void *arg) {
    walk *w = arg;
    if (!reach(w, ref))
        return SST_ECORRUPT;
    const sst_item *it = sst_payload(s, ref, sizeof(sst_item));
    if (it == NULL || sizeof(sst_item) + (uint64_t)ld32(&it->len) > sst_block_room(s, ref)) {
        broke(w, SST_INV_VALUE, ref);
        return SST_ECORRUPT;
    }
    return SST_OK;
}

static void walk_queue(walk *w, uint32_t ref, const sst_entry *e) {
    uint32_t count, last;
    int r = sst_queue_walk(w->s, e, reach_item, w, &count, &last);
    if (r != SST_OK || count == 0 || ld64(&e->word) != count || ld32(&e->value[1]) != last)
        broke(w, SST_INV_QUEUE, ref);
}

static void walk_value(walk *w, uint32_t ref, const sst_entry *e) {
    uint64_t word = ld64(&e->word);
    uint32_t form = SST_WORD_FORM(word), cur = ld32(&e->value[SST_WORD_SEL(word)]);
    for (int i = 0; i < 2; i++)
        if (ld32(&e->value[i]) != 0)
            (void)reach(w, ld32(&e->value[i]));
    if (form == SST_FORM_COUNTER)
        return;
    if (form != SST_FORM_BYTES || SST_WORD_LEN(word) > SST_VALUE_MAX ||
        (SST_WORD_LEN(word) != 0 && (cur == 0 || sst_block_room(w->s, cur) < SST_WORD_LEN(word))))
        broke(w, SST_INV_VALUE, ref);
}

/* Arrivals go on meanwhile, without a lock: an arrivals' word is read before the state, which only moves on. */
static void walk_barrier(walk *w, uint32_t ref, const sst_entry *e) {
    uint32_t at = ld32(&e->value[0]), ok = ld32(&e->value[1]) == 0 && reach(w, at);
    const sst_barrier_block *p = ok ? sst_payload(w->s, at, sizeof *p) : NULL;
    uint32_t parties = p ? ld32(&p->parties) : 0, ranked = p ? ld32(&p->ranked) : 0;
    uint64_t state = p ? ld64_acquire(&p->state) : 0;
    ok = parties >= 1 && parties <= SST_PARTIES_MAX && ranked <= 1 &&
         sst_block_room(w->s, at) >= sst_barrier_bytes(parties, ranked) && SST_BAR_CAUSE(state) <= SST_BAR_INTERRUPT &&
         (!ranked || SST_BAR_RANK(state) < parties) && state >> 60 == 0;
    for (uint32_t i = 0; ok && i < sst_barrier_words(parties); i++) {
        uint64_t v = ld64_acquire(sst_barrier_word((sst_barrier_block *)p, i));
        int32_t ahead = (int32_t)((uint32_t)(v >> 32) - SST_BAR_EPOCH(ld64_acquire(&p->state)));
        ok = ahead <= 0 && ((uint32_t)v & ~sst_barrier_mask(parties, i)) == 0;
    }
    for (uint32_t i = 0; ok && ranked && i < parties; i++) {
        uint32_t seat = ld32(sst_barrier_seat((sst_barrier_block *)p, parties, i));
        ok =
            seat == 0 || (seat & SST_SEAT_RANK ? (seat & ~(SST_SEAT_RANK | SST_SEAT_OPENED)) < SST_RANKS_MAX
                                               : (seat & ~SST_OWNER_MASK) == 0 && SST_OWNER_SLOT(seat) < SST_PEERS_MAX);
    }
    if (!ok)
        broke(w, SST_INV_BARRIER, ref);
}

/* A search costs as many looks as the chain is long. Chains are short: a bucket has 256 bytes of capacity, which hold
 * four entries at most. So LOOKS for each unit of the heap, thrice that for the smallest entry, are far more than a
 * sound segment needs, and one chain of all entries ends the search instead of taking their number squared. */
#define LOOKS 16
static int is_first(walk *w, uint32_t kind, uint32_t ref, uint32_t position) {
    sst_place place;
    if (w->looks < position)
        return 0;
    w->looks -= position;
    return sst_table_find(w->s, &w->key, kind, &place) == SST_OK && place.ref == ref;
}

/* position: how many entries of the chain stand before it. */
static void walk_entry(walk *w, uint32_t stripe, uint32_t bucket, uint32_t ref, sst_entry *e, uint32_t position) {
    uint32_t meta = ld32(&e->meta), klen = SST_META_KLEN(meta), kind = SST_META_KIND(meta);
    char copy[SST_KEY_MAX];
    if (klen == 0 || klen > SST_KEY_MAX || SST_META_SPACE(meta) > SST_RAW || kind < SST_KIND_KEY ||
        kind > SST_KIND_BARRIER || sizeof(sst_entry) + klen > sst_block_room(w->s, ref)) {
        broke(w, SST_INV_ENTRY, ref);
        return;
    }
    sst_copy_out(copy, (const char *)(e + 1), klen);
    if (sst_key_make(w->s, SST_META_SPACE(meta), copy, klen, &w->key) != SST_OK || w->key.stripe != stripe ||
        w->key.bucket != bucket || w->key.hash != ld32(&e->hash)) {
        broke(w, SST_INV_HOME, ref);
    } else if (!is_first(w, kind, ref, position)) {
        broke(w, SST_INV_UNIQUE, ref);
    }
    if (kind == SST_KIND_QUEUE)
        walk_queue(w, ref, e);
    else if (kind == SST_KIND_BARRIER)
        walk_barrier(w, ref, e);
    else
        walk_value(w, ref, e);
}

static void walk_stripe(walk *w, uint32_t stripe) {
    sst_stripe *st = sst_stripe_at(w->s, stripe);
    uint32_t keys[2] = {0, 0}, entries = 0;
    if (ld32(&st->seq) & 1)
        broke(w, SST_INV_STRIPE_STILL, stripe);
    for (uint32_t b = 0; b < w->s->buckets; b++) {
        uint32_t position = 0;
        for (uint32_t ref = ld32(sst_bucket_at(w->s, stripe, b)); ref != 0;) {
            if (!reach(w, ref))
                break; /* a loop reaches a block twice, and ends here */
            sst_entry *e = sst_payload(w->s, ref, sizeof(sst_entry));
            if (e == NULL || sst_block_room(w->s, ref) < sizeof(sst_entry)) {
                broke(w, SST_INV_CHAIN, ref); /* a block, and too small a one */
                break;
            }
            uint32_t meta = ld32(&e->meta);
            entries++;
            if (SST_META_KIND(meta) == SST_KIND_KEY)
                keys[SST_META_SPACE(meta) & 1]++;
            walk_entry(w, stripe, b, ref, e, position++);
            ref = ld32(&e->next);
        }
    }
    if (keys[0] != ld32(&st->keys[0]) || keys[1] != ld32(&st->keys[1]) || entries != ld32(&st->entries))
        broke(w, SST_INV_COUNTS, stripe);
}

/* -- the other tables ---------------------------------------------------------------------------------------------------- */
static void walk_header(walk *w) {
    const sst_header *h = sst_header_of(w->s);
    uint64_t brk = ld64(&sst_heap_of(w->s)->brk);
    int r = sst_header_check(h, UINT64_MAX);
    if ((r != SST_OK && r != SST_EDEAD) || brk % 16 || brk < (uint64_t)w->s->blocks * 16 || brk > ld64(&h->size))
        broke(w, SST_INV_HEADER, brk);
    if (ld32(&sst_heap_of(w->s)->valid) != 0)
        broke(w, SST_INV_HEAP_IDLE, ld32(&sst_heap_of(w->s)->block));
}

static void walk_people(walk *w) {
    for (uint32_t i = 0; i < SST_PEERS_MAX; i++) {
        const sst_peer_slot *p = sst_peer_at(w->s, i);
        uint32_t state = ld32(&p->state), gen = ld32(&p->gen);
        if (state > SST_PEER_LEFT || gen > 0xffff || (state != SST_PEER_FREE && state != SST_PEER_CLAIMING && gen == 0))
            broke(w, SST_INV_PEER, i);
    }
    for (uint32_t i = 0; i < SST_RANKS_MAX; i++) {
        uint64_t v = ld64(sst_rank_at(w->s, i));
        uint32_t owner = SST_RANK_OWNER(v), state = SST_RANK_STATE(v);
        if (state > SST_RANK_LEFT || (state == SST_RANK_FREE) != (v == 0) ||
            (v != 0 &&
             (SST_OWNER_SLOT(owner) >= SST_PEERS_MAX || SST_OWNER_GEN(owner) == 0 || owner & ~SST_OWNER_MASK)))
            broke(w, SST_INV_RANK, i);
    }
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++) {
        const sst_waiter_slot *p = sst_waiter_at(w->s, i);
        uint32_t owner = ld32(&p->owner);
        if ((owner != 0 && (SST_OWNER_SLOT(owner) >= SST_PEERS_MAX || owner & ~(SST_OWNER_MASK | SST_WIPING))) ||
            (uint64_t)ld32(&p->word) * 4 >= ld64(&sst_header_of(w->s)->size))
            broke(w, SST_INV_WAITER, i);
    }
}

static int walk_all(walk *w) {
    w->first = w->s->blocks;
    sst_look(w->s); /* others may have grown the file since this process last looked */
    uint64_t limit = sst_limit(w->s), brk = ld64(&sst_heap_of(w->s)->brk);
    if (brk > limit)
        brk = limit;
    w->units = brk > w->first * 16 ? brk / 16 - w->first : 0;
    w->looks = LOOKS * (w->units + 256);
    w->map = calloc(w->units + 1, 1);
    if (w->map == NULL)
        return SST_ESYS;
    walk_header(w);
    walk_people(w);
    walk_blocks(w);
    walk_free(w);
    for (uint32_t i = 0; i < SST_STRIPES; i++)
        walk_stripe(w, i);
    for (uint32_t i = 0; i < SST_STRIPES; i++)
        walk_inflight(w, i);
    walk_leaks(w);
    free(w->map);
    int n = 0;
    for (int i = 0; i < SST_INV_COUNT; i++)
        n += w->broken[i] != 0;
    return n;
}

int sst_walk(sst_seg *s, char *report, size_t room) {
    walk w = {.s = s, .report = report, .room = room};
    report[0] = 0;
    return walk_all(&w);
}

int sst_walk_locks(sst_seg *s, char *report, size_t room) {
    walk w = {.s = s, .report = report, .room = room};
    report[0] = 0;
    for (uint32_t i = 0; i < SST_STRIPES; i++)
        check_owner(&w, ld32(&sst_stripe_at(s, i)->lock), i);
    check_owner(&w, ld32(&sst_heap_of(s)->lock), SST_STRIPES);
    return w.broken[SST_INV_OWNER] != 0;
}
