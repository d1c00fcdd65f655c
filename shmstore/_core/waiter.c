/* waiter.c -- see waiter.h. The owner word is taken by CAS and nothing else guards a slot, so a death at any store
 * leaves either a free slot or one whose owner is dead, which the next claimer in need takes over. */
#include "waiter.h"
#include "clock.h"
#include "liveness.h"

static void widen(sst_seg *s, uint32_t home, uint32_t distance) {
    uint32_t *span = &sst_heap_of(s)->spans[home];
    for (uint32_t old = ld32(span); old < distance + 1; old = ld32(span))
        if (cas32_seq_cst(span, old, distance + 1)) /* relaxed would do: the fence of sem-dekker follows */
            return;
}

static void wipe(sst_waiter_slot *w) {
    st32(&w->word, 0);
    st64(&w->since_ns, 0);
    st64(&w->ticket, 0);
    st32(&w->queue, 0);
    st32(&w->rank, 0);
    st32(&w->note_len, 0);
    st32(&w->stripe, 0);
}

int sst_waiter_claim(sst_seg *s, const uint32_t *word, uint32_t *waiter) {
    uint32_t home = sst_waiter_home(s, word), me = sst_me(s);
    for (int steal = 0; steal < 2; steal++)
        for (uint32_t i = 0; i < SST_WAITERS_MAX; i++) {
            uint32_t at = (home * (SST_WAITERS_MAX / SST_SPANS) + i) % SST_WAITERS_MAX;
            sst_waiter_slot *w = sst_waiter_at(s, at);
            uint32_t owner = ld32(&w->owner);
            if (owner != 0 && (!steal || sst_alive(s, owner)))
                continue;
            if (!cas32_acquire(&w->owner, owner, me)) /* SYNC waiter-slot: acquire; pairs with the release below */
                continue;
            wipe(w);
            widen(s, home, i);
            *waiter = at + 1;
            return SST_OK;
        }
    return SST_EAGAIN;
}

void sst_waiter_note(sst_seg *s, uint32_t waiter, uint32_t rank, const char *key, size_t klen) {
    sst_waiter_slot *w = sst_waiter_at(s, waiter - 1);
    sst_copy_in((char *)w->note, key, klen < SST_NOTE_MAX ? klen : SST_NOTE_MAX);
    st32(&w->note_len, (uint32_t)klen);
    st32(&w->rank, rank);
    st64_release(&w->since_ns, sst_now_ns()); /* SYNC waiter-note: release; pairs with the acquire in sst_waiters */
}

sst_waiter_slot *sst_waiter_mine(sst_seg *s, uint32_t waiter) {
    uint32_t me = sst_me(s);
    if (waiter == 0 || waiter > SST_WAITERS_MAX || me == 0)
        return NULL;
    sst_waiter_slot *w = sst_waiter_at(s, waiter - 1);
    return ld32(&w->owner) == me ? w : NULL;
}

void sst_waiter_free(sst_seg *s, uint32_t *waiter) {
    sst_waiter_slot *w = sst_waiter_mine(s, *waiter);
    *waiter = 0;
    if (w == NULL)
        return;
    wipe(w);
    st32_release(&w->owner, 0); /* SYNC waiter-slot: release; pairs with the acquire of the next claim */
}

void sst_waiter_reap(sst_seg *s, uint32_t slot, uint32_t keep) {
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++) {
        sst_waiter_slot *w = sst_waiter_at(s, i);
        uint32_t owner = ld32(&w->owner);
        if (owner != 0 && owner != keep && SST_OWNER_SLOT(owner) == slot)
            (void)cas32_seq_cst(&w->owner, owner, 0); /* the next claim wipes it */
    }
}

int sst_waiters(sst_seg *s, sst_waiter *out, uint32_t room) {
    uint32_t n = 0;
    if (s->base == NULL)
        return SST_ECLOSED;
    for (uint32_t i = 0; i < SST_WAITERS_MAX && n < room; i++) {
        sst_waiter_slot *w = sst_waiter_at(s, i);
        uint32_t owner = ld32_acquire(&w->owner);
        uint64_t since = ld64_acquire(&w->since_ns); /* SYNC waiter-note: acquire; pairs with the note's release */
        if (owner == 0 || since == 0 || !sst_alive(s, owner))
            continue;
        sst_waiter r = {0};
        r.slot = SST_OWNER_SLOT(owner);
        r.gen = SST_OWNER_GEN(owner);
        r.since_ns = since;
        r.rank = ld32(&w->rank);
        r.note_len = ld32(&w->note_len);
        sst_copy_out(r.note, (const char *)w->note, sizeof r.note);
        fence_acquire();
        if (ld32(&w->owner) == owner && ld64(&w->since_ns) == since)
            out[n++] = r;
    }
    return (int)n;
}
