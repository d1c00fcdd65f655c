/* table.h -- the hash table (floor C6): stripes of buckets of chained entries. A key and a queue of the same name share
 * a bucket, so that one event word and one lock serve both. */
#ifndef SST_TABLE_H
#define SST_TABLE_H

#include "heap.h"
#include "view.h"

/* A key as a verb sees it. */
typedef struct {
    const char *bytes;
    uint32_t len, space;
    uint32_t stripe, bucket, hash; /* where it lives */
    uint64_t whole; /* all of the hash, and the space: tells the keys of a stripe apart */
} sst_key;

/* Fills the key's place in. SST_EINVAL: length or space out of range. */
int sst_key_make(const sst_seg *s, uint32_t space, const char *bytes, size_t len, sst_key *key);

/* What a walk found: the entry, and the word that refers to it. */
typedef struct {
    sst_entry *entry; /* NULL: not there */
    uint32_t ref;
    uint32_t *from; /* bucket head or the previous entry's next */
} sst_place;

/* No walk over a stripe's entries meets more of them: as many as it says, or, where that is a lie, as the heap holds. */
static inline uint64_t sst_table_most(const sst_seg *s, uint32_t stripe) {
    uint64_t said = ld32(&sst_stripe_at(s, stripe)->entries), most = sst_heap_most(s);
    return said < most ? said : most;
}

/* Walks the key's chain. Under the stripe lock, SST_ECORRUPT is what it says; under the sequence only, it may be a
 * torn view: check the sequence and try again. */
int sst_table_find(sst_seg *s, const sst_key *key, uint32_t kind, sst_place *place);
/* Writes a fresh entry's payload (not yet linked). */
void sst_table_fill(sst_entry *e, const sst_key *key, uint32_t kind);

/* The value under an entry of kind KEY, checked. text: 24 bytes for a counter's decimal text. */
typedef struct {
    const char *bytes; /* into the segment, or text */
    uint32_t len;
} sst_value;
int sst_value_of(sst_seg *s, const sst_entry *e, char *text, sst_value *v);
/* Payload bytes of a block that a stripe may hold; 0: not a sane block. */
uint64_t sst_block_room(sst_seg *s, uint32_t ref);
/* A barrier's block: how many arrivals' words it has, the bits of each, and where they and the seats lie. */
static inline uint32_t sst_barrier_words(uint32_t parties) { return (parties + 31) / 32; }
static inline uint32_t sst_barrier_mask(uint32_t parties, uint32_t word) {
    uint32_t rest = parties - 32 * word;
    return rest >= 32 ? UINT32_MAX : (UINT32_C(1) << rest) - 1;
}
static inline uint64_t sst_barrier_bytes(uint32_t parties, uint32_t ranked) {
    return sizeof(sst_barrier_block) + 8 * (uint64_t)sst_barrier_words(parties) + (ranked ? 4 * (uint64_t)parties : 0);
}
static inline uint64_t *sst_barrier_word(sst_barrier_block *p, uint32_t i) { return (uint64_t *)(void *)(p + 1) + i; }
static inline uint32_t *sst_barrier_seat(sst_barrier_block *p, uint32_t parties, uint32_t i) {
    return (uint32_t *)(void *)sst_barrier_word(p, sst_barrier_words(parties)) + i;
}

uint32_t sst_decimal(int64_t n, char *text); /* length; text has 24 bytes */

#endif
