/* table.c -- see table.h; the entry's words stand in layout.h. */
#include "table.h"
#include "heap.h"
#include "sst.h"

/* Multiply-and-fold over 8-byte words: quick on short keys, and seeded per segment. */
static uint64_t fold(uint64_t a, uint64_t b) {
    unsigned __int128 m = (unsigned __int128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

static uint64_t hash_of(uint64_t seed, const char *p, size_t n) {
    uint64_t h = seed ^ (n * UINT64_C(0x9e3779b97f4a7c15)), w;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&w, p, 8);
        h = fold(h ^ w, UINT64_C(0xd6e8feb86659fd93));
    }
    w = 0;
    memcpy(&w, p, n);
    h = fold(h ^ w, UINT64_C(0xa0761d6478bd642f));
    return fold(h ^ UINT64_C(0xe7037ed1a0b428db), UINT64_C(0x8ebc6af09c88c6e3));
}

int sst_key_make(const sst_seg *s, uint32_t space, const char *bytes, size_t len, sst_key *key) {
    if (len == 0 || len > SST_KEY_MAX || space > SST_RAW)
        return SST_EINVAL;
    uint64_t h = hash_of(s->seed, bytes, len);
    key->bytes = bytes;
    key->len = (uint32_t)len;
    key->space = space;
    key->stripe = (uint32_t)h % SST_STRIPES;
    key->bucket = (uint32_t)(h / SST_STRIPES) & (s->buckets - 1);
    key->hash = (uint32_t)(h >> 32);
    key->whole = h ^ ((uint64_t)space << 60);
    return SST_OK;
}

int sst_table_find(sst_seg *s, const sst_key *key, uint32_t kind, sst_place *place) {
    uint32_t *from = sst_bucket_at(s, key->stripe, key->bucket);
    uint32_t meta = SST_META(key->len, key->space, kind);
    uint64_t steps = sst_table_most(s, key->stripe) + 1; /* a loop in a corrupt or torn chain ends */
    for (uint32_t ref = ld32(from); ref != 0; ref = ld32(from)) {
        sst_entry *e = sst_payload(s, ref, sizeof(sst_entry));
        if (e == NULL || steps-- == 0)
            return SST_ECORRUPT;
        if (ld32(&e->hash) == key->hash && ld32(&e->meta) == meta) {
            if (sst_payload(s, ref, sizeof(sst_entry) + key->len) == NULL)
                return SST_ECORRUPT;
            if (sst_same((const char *)(e + 1), key->bytes, key->len)) {
                *place = (sst_place){e, ref, from};
                return SST_OK;
            }
        }
        from = &e->next;
    }
    *place = (sst_place){NULL, 0, from};
    return SST_OK;
}

void sst_table_fill(sst_entry *e, const sst_key *key, uint32_t kind) {
    st32(&e->next, 0);
    st32(&e->hash, key->hash);
    st32(&e->meta, SST_META(key->len, key->space, kind));
    st32(&e->value[0], 0);
    st32(&e->value[1], 0);
    st64(&e->word, 0);
    st64(&e->num, 0);
    sst_copy_in((char *)(e + 1), key->bytes, key->len);
}

uint64_t sst_block_room(sst_seg *s, uint32_t ref) {
    const sst_block *b = sst_block_of(s, ref);
    if (b == NULL)
        return 0;
    uint32_t tag = ld32(&b->tag), cls = SST_TAG_CLS(tag);
    if ((tag & 0xffff0000u) != SST_BLOCK_MARK || cls >= SST_CLASSES)
        return 0;
    return sst_payload(s, ref, sst_heap_room(cls)) ? sst_heap_room(cls) : 0;
}

uint32_t sst_decimal(int64_t n, char *text) {
    char back[24];
    uint32_t i = 0, len = 0;
    uint64_t u = n < 0 ? 0 - (uint64_t)n : (uint64_t)n;
    do
        back[i++] = (char)('0' + u % 10);
    while ((u /= 10) != 0);
    if (n < 0)
        text[len++] = '-';
    while (i > 0)
        text[len++] = back[--i];
    return len;
}

int sst_value_of(sst_seg *s, const sst_entry *e, char *text, sst_value *v) {
    uint64_t w = ld64(&e->word);
    if (SST_WORD_FORM(w) == SST_FORM_COUNTER) {
        v->bytes = text;
        v->len = sst_decimal((int64_t)ld64(&e->num), text);
        return SST_OK;
    }
    v->len = SST_WORD_LEN(w);
    v->bytes = "";
    if (SST_WORD_FORM(w) != SST_FORM_BYTES || v->len > SST_VALUE_MAX)
        return SST_ECORRUPT;
    if (v->len == 0)
        return SST_OK;
    v->bytes = sst_payload(s, ld32(&e->value[SST_WORD_SEL(w)]), v->len);
    return v->bytes ? SST_OK : SST_ECORRUPT;
}
