/* patch.c -- one word of the segment, named by what it is, changed. */
#include "fuzz.h"

#include <string.h>

static uint32_t pick(const fz_refs *from, uint32_t i) { return from->ref[i % from->n]; }

/* Offset in words of a block's word; of word 0 where it is beyond the file. */
static uint32_t in_block(const fz_segment *f, uint32_t ref, uint32_t word) {
    uint32_t at = ref * 4 + word;
    return at < f->size / 4 ? at : 0;
}

static uint32_t place(const fz_segment *f, const fz_record *r) {
    uint32_t i = r->index;
    const fz_key *key = &f->key[i / 16 % f->keys];
    switch (r->where % FZ_PLACES) {
    case FZ_AT_HEADER:
        return i % 24;
    case FZ_AT_HEAP:
        return (uint32_t)SST_AT_HEAP / 4 + i % (14 + SST_CLASSES + SST_SPANS);
    case FZ_AT_FREE_HEAD:
        return (uint32_t)(SST_AT_HEAP + offsetof(sst_heap, free)) / 4 + i % SST_CLASSES;
    case FZ_AT_STRIPE:
        return (uint32_t)(SST_AT_STRIPES + key->stripe * sizeof(sst_stripe)) / 4 + i % 16;
    case FZ_AT_BUCKET:
        key = &f->key[i % FZ_KEYS];
        return (uint32_t)SST_AT_DIRECTORY / 4 + key->stripe * f->a->buckets + key->bucket;
    case FZ_AT_ENTRY:
        return in_block(f, key->entry, i % 16);
    case FZ_AT_BLOCK:
        return in_block(f, pick(&f->blocks[FZ_ALL], i / 32), i % 32);
    case FZ_AT_FREE:
        return in_block(f, pick(&f->blocks[FZ_FREE], i / 32), i % 32);
    case FZ_AT_IN_HAND:
        return in_block(f, pick(&f->blocks[FZ_IN_HAND], i / 32), i % 32);
    case FZ_AT_ITEM:
        return in_block(f, pick(&f->blocks[FZ_ITEM], i / 32), i % 32);
    case FZ_AT_VALUE:
        return in_block(f, pick(&f->blocks[FZ_VALUE], i / 32), i % 32);
    case FZ_AT_PEER:
        return (uint32_t)(SST_AT_PEERS + i / 32 % 8 * sizeof(sst_peer_slot)) / 4 + i % 24;
    case FZ_AT_RANK:
        return (uint32_t)SST_AT_RANKS / 4 + i % 16;
    case FZ_AT_WAITER:
        return (uint32_t)SST_AT_WAITERS / 4 + f->slot[i / 32 % f->slots] * 32 + i % 32;
    case FZ_AT_POINT:
        return in_block(f, f->point[i / 32 % 2], i % 32);
    case FZ_AT_EDGE:
        return (uint32_t)f->size / 4 - 1 - i % 1024;
    default:
        return ((uint32_t)(r->op >> 4) * 65536 + i) % (uint32_t)(f->size / 4);
    }
}

/* The block that a word is in, or some block where it is in none. */
static uint32_t around(const fz_segment *f, uint32_t word) {
    const fz_refs *all = &f->blocks[FZ_ALL];
    uint32_t i = 0;
    while (i + 1 < all->n && all->ref[i + 1] * 4 <= word)
        i++;
    return all->ref[i];
}

static uint32_t nasty(const fz_segment *f, uint32_t i) {
    const uint32_t words[] = {0,
                              1,
                              2,
                              UINT32_MAX,
                              INT32_MAX,
                              UINT32_C(1) << 31,
                              UINT32_MAX - 15,
                              8191,
                              8192,
                              0xffff,
                              SST_VALUE_MAX,
                              SST_VALUE_MAX + 1,
                              1023,
                              4096,
                              (uint32_t)f->size,
                              (uint32_t)f->size - 1,
                              (uint32_t)f->size - 24,
                              (uint32_t)f->size / 16,
                              (uint32_t)f->size / 16 - 1,
                              (uint32_t)f->a->capacity,
                              (uint32_t)f->a->capacity / 16,
                              f->a->blocks,
                              f->a->blocks - 1,
                              f->a->buckets,
                              SST_STRIPES,
                              SST_WAITERS_MAX + 1,
                              SST_CLASSES,
                              SST_CLASSES - 1,
                              UINT32_C(0x0fffffff)};
    return words[i % (sizeof words / sizeof *words)];
}

static uint32_t owner(const fz_segment *f, uint32_t i) {
    const uint32_t words[] = {f->dead,
                              f->me,
                              f->other,
                              SST_OWNER_MASK,
                              f->dead | SST_WAITERS,
                              SST_OWNER(SST_PEERS_MAX, 1),
                              SST_OWNER(SST_OWNER_SLOT(f->me), 7),
                              SST_OWNER(900, 1),
                              SST_WAITERS,
                              UINT32_MAX};
    return words[i % (sizeof words / sizeof *words)];
}

void fz_patch(fz_segment *f, const fz_record *r) {
    uint32_t at = place(f, r), v = r->value, *word = (uint32_t *)(void *)(f->raw + (size_t)at * 4), other;
    switch ((r->op & 15) % FZ_OPS) {
    case FZ_OP_XOR:
        v ^= *word;
        break;
    case FZ_OP_ADD:
        v += *word;
        break;
    case FZ_OP_COPY:
        memcpy(&other, f->raw + v % (f->size / 4) * 4, 4);
        v = other;
        break;
    case FZ_OP_NASTY:
        v = nasty(f, v);
        break;
    case FZ_OP_REF:
        v = pick(&f->blocks[FZ_ALL], v);
        break;
    case FZ_OP_SELF:
        v = around(f, at);
        break;
    case FZ_OP_FLIP:
        v = *word ^ UINT32_C(1) << v % 32;
        break;
    case FZ_OP_TAG:
        v = SST_TAG(v % 256, v / 256 % 4);
        break;
    case FZ_OP_ENTRY:
        v = f->key[v % f->keys].entry;
        break;
    case FZ_OP_EDGE:
        v = (uint32_t)(f->size / 16) - v % 64;
        break;
    case FZ_OP_OWNER:
        v = owner(f, v);
        break;
    case FZ_OP_EVENT:
        v = (uint32_t)(SST_AT_STRIPES + f->key[v % FZ_KEYS].stripe * sizeof(sst_stripe)) / 4 + 2;
        break;
    default:
        break;
    }
    __atomic_store_n(word, v, __ATOMIC_RELAXED);
    if (at < 1024)
        f->header[at] = v;
}

uint32_t fz_records(const uint8_t *data, size_t size, fz_record *out, uint32_t room) {
    uint32_t n = 0;
    for (size_t at = 1; at + sizeof *out <= size && n < room; at += sizeof *out)
        memcpy(&out[n++], data + at, sizeof *out);
    return n;
}
