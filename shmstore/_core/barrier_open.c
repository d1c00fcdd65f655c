/* barrier_open.c -- a reusable barrier found or made (floor C9). It is an entry of a kind of its own beside keys and queues,
 * made under its stripe's lock as a key is, and stays as long as the segment: who holds an sst_bar may come without a
 * lock, and without looking the key up again. */
#include "barrier.h"
#include "ops.h"

/* A fresh block, filled: nothing but parties and ranked differs from 0. The first epoch is 0. */
static int new_point(sst_op *op, uint32_t parties, uint32_t ranked, uint32_t *ref) {
    uint64_t bytes = sst_barrier_bytes(parties, ranked);
    int r = sst_block_new(op->s, op->key.stripe, bytes, op->deadline_ns, op->flags, ref);
    if (r != SST_OK)
        return r;
    sst_point *p = sst_payload(op->s, *ref, bytes);
    if (p == NULL)
        return SST_ECORRUPT;
    st64(&p->state, 0);
    st32(&p->parties, parties);
    st32(&p->ranked, ranked);
    st64(&p->probe_ns, 0);
    st64(&p->culprit, 0);
    st64(&p->reset, 0);
    for (uint32_t i = 0; i < sst_barrier_words(parties); i++)
        st64(sst_barrier_word(p, i), 0);
    for (uint32_t i = 0; ranked && i < parties; i++)
        st32(sst_barrier_seat(p, parties, i), 0);
    return SST_OK;
}

static int create(sst_op *op, const sst_place *place, uint32_t parties, uint32_t ranked, uint32_t *entry) {
    uint32_t block;
    sst_entry *e;
    int r = new_point(op, parties, ranked, &block);
    if (r == SST_OK)
        r = sst_op_new_entry(op, SST_KIND_BARRIER, entry, &e);
    if (r != SST_OK)
        return r; /* sst_exit gives back what was taken */
    st32(&e->value[0], block);
    sst_write_begin(op->stripe);
    sst_op_link(op, place->from, *entry, SST_KIND_BARRIER); /* the commit */
    sst_block_keep(op->s, block);
    sst_write_end(op->stripe);
    return SST_OK;
}

int sst_bar_open(sst_seg *s, uint32_t space, const char *key, size_t klen, uint32_t parties, int32_t rank, uint32_t who,
                 uint64_t deadline_ns, sst_bar *out) {
    sst_op op;
    sst_place place;
    uint32_t ranked = rank != SST_NO_RANK;
    if (parties < 1 || parties > SST_PARTIES_MAX || who > SST_RANKS_MAX ||
        (ranked && (rank < 0 || (uint32_t)rank >= parties)))
        return SST_EINVAL;
    int r = sst_op_enter(&op, s, space, key, klen, deadline_ns, 0);
    if (r != SST_OK)
        return r;
    r = sst_table_find(s, &op.key, SST_KIND_BARRIER, &place);
    uint32_t entry = place.ref;
    if (r == SST_OK && place.entry == NULL)
        r = create(&op, &place, parties, ranked, &entry);
    const sst_entry *e = r == SST_OK ? sst_payload(s, entry, sizeof *e) : NULL;
    uint32_t block = e ? ld32(&e->value[0]) : 0;
    const sst_point *p = e ? sst_payload(s, block, sizeof *p) : NULL;
    if (r == SST_OK)
        r = p == NULL                                                           ? SST_ECORRUPT
            : ld32(&p->parties) != parties || ld32(&p->ranked) != ranked        ? SST_EPARTIES
            : sst_payload(s, block, sst_barrier_bytes(parties, ranked)) == NULL ? SST_ECORRUPT
                                                                                : SST_OK;
    if (r == SST_OK) {
        *out = (sst_bar){block, entry, parties, rank, who, sst_me(s)};
        if (ranked && who != 0)
            sst_bar_reserve(s, out, (sst_point *)sst_payload(s, block, sizeof(sst_point)));
    }
    return sst_op_exit(&op, r);
}
