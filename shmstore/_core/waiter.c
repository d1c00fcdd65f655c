/* waiter.c -- see waiter.h; the slot's states stand in layout.h. The owner word is taken by CAS and nothing else guards a
 * slot, so a death at any store leaves either a free slot or one whose owner is dead. Freed it is by whoever meets it: a
 * popper that counts the line, a setter that posted it before, the next owner of the dead's peer slot, and a claimer
 * where no slot is free. */
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

/* Takes the slot from exactly `owner`, 0 or one judged dead, and wipes it. 0: somebody else was first. */
static int take(sst_seg *s, sst_waiter_slot *w, uint32_t owner) {
    if (!cas32_acquire(&w->owner, owner, sst_me(s) | SST_WIPING)) /* SYNC waiter-slot: acquire; pairs with give */
        return 0;
    wipe(w);
    return 1;
}

static void give(sst_waiter_slot *w, uint32_t owner) {
    st32_release(&w->owner,
                 owner); /* SYNC waiter-slot: release; who sees this owner sees none of the last one's words */
}

int sst_waiter_claim(sst_seg *s, const uint32_t *word, uint32_t *waiter) {
    uint32_t home = sst_waiter_home(s, word);
    for (int steal = 0; steal < 2; steal++)
        for (uint32_t i = 0; i < SST_WAITERS_MAX; i++) {
            sst_waiter_slot *w = sst_waiter_near(s, home, i);
            uint32_t owner = ld32(&w->owner);
            if ((owner != 0 && (!steal || sst_alive(s, owner))) || !take(s, w, owner))
                continue;
            give(w, sst_me(s));
            widen(s, home, i);
            *waiter = (home * (SST_WAITERS_MAX / SST_SPANS) + i) % SST_WAITERS_MAX + 1;
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
    give(w, 0);
}

void sst_waiter_bury(sst_seg *s, sst_waiter_slot *w) {
    uint32_t owner = ld32(&w->owner);
    if (owner != 0 && !sst_alive(s, owner) && take(s, w, owner))
        give(w, 0);
}

void sst_waiter_reap(sst_seg *s, uint32_t slot, uint32_t keep) {
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++) {
        sst_waiter_slot *w = sst_waiter_at(s, i);
        uint32_t owner = ld32(&w->owner);
        if (owner != 0 && (owner & SST_OWNER_MASK) != keep && SST_OWNER_SLOT(owner) == slot && take(s, w, owner))
            give(w, 0);
    }
}
