/* judge.h -- what the survivors of a kill find, and what they do: shared by the crash tests of verbs. */
#ifndef JUDGE_H
#define JUDGE_H

#include "scenarios.h"

/* -- what a segment holds, as text: one for each key, compared each for itself ------------------------------------- */
enum { KEYS = 5, WATCHED = KEYS + 1 };
typedef struct {
    char of[WATCHED][2 * BIG + 200];
} state;

static inline void read_value(sst_seg *s, const char *key, char *to) {
    static char buf[2 * BIG + 100];
    size_t len = 0;
    int r = sst_get(s, SST_USER, key, strlen(key), buf, sizeof buf, &len, in_ms(10000), 0);
    CHECK(r == SST_OK || r == SST_ENOENT);
    if (r == SST_OK) {
        to[0] = '=';
        memcpy(to + 1, buf, len);
        to[len + 1] = 0;
    } else {
        (void)strcpy(to, "absent");
    }
}

/* Empties the queue to read it. */
static inline void read_state(sst_seg *s, state *st) {
    static const char *const keys[] = {KEY, OTHER, THIRD};
    sst_waiter_release(s, &standing); /* else the last item is kept for it */
    st->of[KEYS][0] = 0;
    for (int i = 0; i < KEYS; i++)
        read_value(s, i < 3 ? keys[i] : neighbour(s, i - 3), st->of[i]);
    static char text[BIG + 1];
    for (int64_t n = queue_len(s, KEY); n > 0; n--) {
        CHECK_IS(pop(s, KEY, text, sizeof text), SST_OK);
        (void)strcat(strcat(st->of[KEYS], text), ";");
    }
    CHECK_IS(pop(s, KEY, text, sizeof text), SST_ENOENT);
}

/* Each key of `found` is as in one of the n states that are allowed. */
static inline void one_of(const char *name, const state *found, const state *const *allowed, int n) {
    for (int i = 0; i < WATCHED; i++) {
        int same = 0;
        for (int k = 0; k < n; k++)
            same |= strcmp(found->of[i], allowed[k]->of[i]) == 0;
        if (!same) {
            (void)fprintf(stderr, "%s: key %d is '%.40s'; allowed are", name, i, found->of[i]);
            for (int k = 0; k < n; k++)
                (void)fprintf(stderr, " '%.40s'", allowed[k]->of[i]);
            (void)fprintf(stderr, "\n");
            CHECK(same);
        }
    }
}

/* -- what is done next ------------------------------------------------------------------------------------------------ */
/* Each verb on the same key once, within a deadline. */
static inline void go_on(sst_seg *s) {
    static char text[BIG + 1];
    CHECK_IS(put(s, KEY, "7"), SST_OK);
    CHECK_IS(plus(s, KEY, 3, &sum), SST_OK);
    CHECK_IS(sum, 10);
    CHECK_IS(append(s, KEY, "!"), SST_OK);
    CHECK(holds(s, KEY, "10!"));
    CHECK_IS(push(s, KEY, "mine"), SST_OK);
    for (int64_t n = queue_len(s, KEY); n > 0; n--) /* mine is the last one */
        CHECK_IS(pop(s, KEY, text, sizeof text), SST_OK);
    CHECK(strcmp(text, "mine") == 0);
    CHECK_IS(put(s, KEY, big), SST_OK);
    CHECK_IS(drop(s, KEY), 1);
    CHECK_IS(here(s, KEY), 0);
}

/* Takes every lock that a scenario may die with, and gives it back: what it stores is the repair, and a few stores for
 * each lock. */
static inline void mend(sst_seg *s) {
    static const char *const keys[] = {KEY, OTHER, THIRD};
    for (int i = 0; i < 3; i++) {
        sst_key k;
        CHECK_IS(sst_key_make(s, SST_USER, keys[i], strlen(keys[i]), &k), SST_OK);
        CHECK_IS(sst_enter(s, k.stripe, soon(), 0), SST_OK);
        sst_exit(s, k.stripe, 0);
    }
    CHECK_IS(sst_heap_enter(s, soon(), 0), SST_OK);
    sst_heap_exit(s);
}

/* A child that does the verb. 1: killed at its n-th store; 0: it came through. n 0: never killed. */
static inline int child(const twin *t, const scenario *sc, uint64_t n, uint64_t *stores) {
    victim v = victim_start(t->fd, sc, n);
    victim_go(&v);
    return victim_end(&v, stores);
}

/* A dead process's slot is the only one left: its next owner inherits what the dead still held, before anybody repairs. */
static inline void inherit(twin *t) {
    int block = open_again(t->fd);
    sst_peer peers[8];
    int n = sst_peers(t->a, peers, 8), dead = -1;
    for (int i = 0; i < n; i++)
        if (peers[i].state == SST_PEER_DEAD)
            dead = (int)peers[i].slot;
    if (dead >= 0) {
        for (uint32_t slot = 0; slot < SST_PEERS_MAX; slot++)
            if ((int)slot != dead)
                (void)sst_byte_take(block, slot);
        sst_seg *heir = attach(t->fd);
        uint32_t slot = 0, gen = 0;
        CHECK_IS(sst_self(heir, &slot, &gen), SST_OK);
        CHECK_IS(slot, dead);
        CHECK_IS(gen, 2);
        let_go(heir);
    }
    (void)close(block);
}

/* Is it asleep in the kernel? */
static inline int sleeps(pid_t pid) {
    char path[64], text[512] = {0};
    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK(read(fd, text, sizeof text - 1) > 0);
    (void)close(fd);
    const char *p = strrchr(text, ')');
    return p && p[1] == ' ' && p[2] == 'S';
}

#endif
