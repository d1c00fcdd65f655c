/* heap.c -- see heap.h; the undo record and the block states stand in layout.h.
 *
 * A block is at each moment on a free list, on an inflight list, or in the table, never nowhere: it moves between the
 * first two under the undo record, between the last two by one store that the stripe's repair can tell. */
#include "heap.h"
#include "liveness.h"
#include "segment.h"
#include "sst.h"

#include <unistd.h>

#define GROW_BYTES UINT64_C(1048576) /* the file grows in steps of this, where there is room */

/* Classes 0..6: 32, 48, ... 128 bytes; then four to each doubling, so that at most a fifth is lost, up to 16 MiB. */
uint64_t sst_heap_bytes(uint32_t cls) {
    if (cls < 7)
        return 32 + 16 * (uint64_t)cls;
    uint32_t octave = (cls - 7) / 4, step = (cls - 7) % 4 + 1;
    return (UINT64_C(128) << octave) + step * (UINT64_C(32) << octave);
}

uint64_t sst_heap_room(uint32_t cls) { return cls < SST_CLASSES ? sst_heap_bytes(cls) - sizeof(sst_block) : 0; }

uint32_t sst_heap_class(uint64_t payload) {
    uint64_t need = payload + sizeof(sst_block);
    if (need <= 32)
        return 0;
    if (need <= 128)
        return (uint32_t)((need - 32 + 15) / 16);
    if (need > sst_heap_bytes(SST_CLASSES - 1))
        return SST_CLASSES;
    uint32_t octave = 56u - (uint32_t)__builtin_clzll(need - 1); /* 128 << octave < need <= 256 << octave */
    uint64_t over = need - 1 - (UINT64_C(128) << octave);
    return 7 + 4 * octave + (uint32_t)(over / (UINT64_C(32) << octave));
}

void sst_look(sst_seg *s) {
    struct stat st;
    if (!sst_fd_stat(s, own_fd(&s->map_fd), &st)) {
        (void)sst_lose(s); /* what is in hand ends well: the header alone is believed, and nothing looks corrupt */
        own_st64(&s->seen, s->capacity);
    } else if (st.st_size > 0) {
        own_st64(&s->seen, (uint64_t)st.st_size < s->capacity ? (uint64_t)st.st_size : s->capacity);
    }
}

/* Makes the first `need` bytes of the segment touchable. Killed between the file's growth and the store of size: the
 * file is longer than published, and the next growth allocates the same bytes again. A growth that signals or a full
 * file system cut short is published as far as it came: so the next one goes on, whatever ended this one. Whether it is
 * our file that grows is looked at before, and again before its size is published. */
static int grow(sst_seg *s, uint64_t need) {
    sst_header *h = sst_header_of(s);
    uint64_t size = ld64(&h->size), had = size;
    if (need <= size)
        return SST_OK;
    if (need > s->capacity)
        return SST_EFULL;
    uint64_t want = need + GROW_BYTES < s->capacity ? need + GROW_BYTES : s->capacity;
    int r = sst_whole(s);
    if (r == SST_OK)
        r = sst_file_grow(own_fd(&s->map_fd), &size, (need + 4095) & ~UINT64_C(4095), want & ~UINT64_C(4095));
    if (size > had && sst_whole(s) != SST_OK)
        return SST_ELOST;
    if (size > had) {
        st64_release(&h->size,
                     size); /* SYNC publish-size: release; pairs with sst_limit: the bytes exist before they count */
        sst_look(s);
    }
    return r;
}

/* The block of the undo record; NULL: the record describes nothing that could be done. */
static sst_block *described(sst_seg *s) {
    const sst_heap *heap = sst_heap_of(s);
    uint32_t op = ld32(&heap->op), ref = ld32(&heap->block), cls = ld32(&heap->cls);
    if (op < SST_HEAP_TAKE || op > SST_HEAP_GIVE || cls >= SST_CLASSES || ld32(&heap->stripe) >= SST_STRIPES ||
        sst_payload(s, ref, sst_heap_room(cls)) == NULL)
        return NULL;
    return sst_block_of(s, ref);
}

/* The stores of the undo record; done twice they change nothing. */
static int apply(sst_seg *s) {
    sst_heap *heap = sst_heap_of(s);
    sst_block *b = described(s);
    if (b == NULL)
        return SST_ECORRUPT;
    uint32_t op = ld32(&heap->op), ref = ld32(&heap->block), cls = ld32(&heap->cls);
    uint32_t next = ld32(&heap->next), inflight = ld32(&heap->inflight);
    sst_stripe *st = sst_stripe_at(s, ld32(&heap->stripe));
    if (op == SST_HEAP_GIVE) {
        st32(&b->tag, SST_TAG(cls, SST_BLOCK_FREE));
        st32(&b->link, next);
        st32(&heap->free[cls], ref);
        st32(&st->inflight, inflight);
    } else {
        if (op == SST_HEAP_CUT)
            st64(&heap->brk, ld64(&heap->brk_after));
        else
            st32(&heap->free[cls], next);
        st32(&b->tag, SST_TAG(cls, SST_BLOCK_INFLIGHT));
        st32(&b->link, inflight);
        st32(&st->inflight, ref);
    }
    st32_release(&heap->valid, 0); /* SYNC heap-undo: release; after all that it describes */
    return SST_OK;
}

static int journal(sst_seg *s, uint32_t op, uint32_t ref, uint32_t cls, uint32_t stripe, uint32_t next,
                   uint32_t inflight) {
    sst_heap *heap = sst_heap_of(s);
    st32(&heap->op, op);
    st32(&heap->block, ref);
    st32(&heap->cls, cls);
    st32(&heap->stripe, stripe);
    st32(&heap->next, next);
    st32(&heap->inflight, inflight);
    if (described(s) == NULL) /* before it counts: a valid record that cannot be done would close the heap */
        return SST_ECORRUPT;
    st32_release(&heap->valid, 1); /* SYNC heap-undo: release; the record is whole before it counts */
    return apply(s);
}

static int take_free(sst_seg *s, uint32_t stripe, uint32_t cls, uint32_t *ref) {
    sst_heap *heap = sst_heap_of(s);
    *ref = ld32(&heap->free[cls]);
    sst_block *b = sst_block_of(s, *ref);
    if (b == NULL || ld32(&b->tag) != SST_TAG(cls, SST_BLOCK_FREE))
        return SST_ECORRUPT;
    return journal(s, SST_HEAP_TAKE, *ref, cls, stripe, ld32(&b->link), ld32(&sst_stripe_at(s, stripe)->inflight));
}

int sst_heap_take(sst_seg *s, uint32_t stripe, uint64_t payload, int may_grow, uint32_t *ref) {
    sst_heap *heap = sst_heap_of(s);
    uint32_t cls = sst_heap_class(payload);
    if (cls >= SST_CLASSES)
        return SST_ETOOBIG;
    if (ld32(&heap->free[cls]) != 0)
        return take_free(s, stripe, cls, ref);
    uint64_t brk = ld64(&heap->brk), after = brk + sst_heap_bytes(cls);
    if (brk < (uint64_t)s->blocks * 16 || brk > s->capacity || brk % 16)
        return SST_ECORRUPT;
    int r = SST_OK;
    if (after > sst_limit(s)) {
        sst_look(s);
        if (after > sst_limit(s))
            r = may_grow ? grow(s, after) : SST_EAGAIN;
    }
    if (r == SST_EFULL || r == SST_ENOSPC) /* nothing left to cut: a larger free block serves as well */
        for (uint32_t c = cls + 1; c < SST_CLASSES && c <= cls + 8; c++)
            if (ld32(&heap->free[c]) != 0)
                return take_free(s, stripe, c, ref);
    if (r != SST_OK)
        return r;
    *ref = (uint32_t)(brk / 16);
    st64(&heap->brk_after, after);
    return journal(s, SST_HEAP_CUT, *ref, cls, stripe, 0, ld32(&sst_stripe_at(s, stripe)->inflight));
}

int sst_heap_give(sst_seg *s, uint32_t stripe) {
    sst_stripe *st = sst_stripe_at(s, stripe);
    uint32_t ref = ld32(&st->inflight);
    sst_block *b = sst_block_of(s, ref);
    if (b == NULL)
        return SST_ECORRUPT;
    uint32_t tag = ld32(&b->tag), cls = SST_TAG_CLS(tag);
    if (cls >= SST_CLASSES || tag != SST_TAG(cls, SST_BLOCK_INFLIGHT))
        return SST_ECORRUPT;
    return journal(s, SST_HEAP_GIVE, ref, cls, stripe, ld32(&sst_heap_of(s)->free[cls]), ld32(&b->link));
}

int sst_heap_repair(sst_seg *s) {
    if (ld32_acquire(&sst_heap_of(s)->valid) == 0) /* SYNC heap-undo: acquire; pairs with both releases */
        return SST_OK;
    return apply(s);
}
