/* fault_corrupt.c -- a process killed at each store of a repair that meets corruption.
 *
 * Whatever it leaves, the next one stops at the same place: the stripe, or the heap, is SST_ECORRUPT for all, nothing of
 * it is given to others, and the rest goes on. */
#include "check.h"
#include "guard.h"
#include "lock.h"

#include <inttypes.h>

static uint32_t entry_at(sst_seg *s, const char *name, sst_key *k, sst_entry **e) {
    sst_place place;
    CHECK_IS(sst_key_make(s, SST_USER, name, strlen(name), k), SST_OK);
    CHECK_IS(sst_table_find(s, k, SST_KIND_KEY, &place), SST_OK);
    *e = place.entry;
    return place.ref;
}

/* The stripe: a value in hand and reached, behind a link out of the heap. The heap: a record of nothing. */
static void ruin(sst_seg *s, int heap) {
    sst_key k;
    sst_entry *e;
    uint32_t ref = entry_at(s, "k", &k, &e);
    CHECK_IS(sst_enter(s, k.stripe, soon(), 0), SST_OK);
    if (heap) {
        CHECK_IS(sst_heap_enter(s, soon(), 0), SST_OK);
        st32(&sst_heap_of(s)->op, 99);
        st32(&sst_heap_of(s)->valid, 1);
        return;
    }
    CHECK_IS(sst_block_drop(s, k.stripe, ref), SST_OK);
    CHECK_IS(sst_block_drop(s, k.stripe, ld32(&e->value[0])), SST_OK);
    st32(&e->value[1], 0x0fffffff);
    sst_write_begin(sst_stripe_at(s, k.stripe));
}

/* 1: killed at its n-th store, or (n 0) where it ends. */
static int child(const twin *t, int heap, uint64_t n, int ruins) {
    int status = 0;
    (void)fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(t->fd);
        if (ruins) {
            ruin(s, heap);
            (void)raise(SIGKILL);
        }
        sst_fault_arm(n);
        CHECK_IS(put(s, "k", "v"), SST_ECORRUPT);
        _exit(0);
    }
    CHECK_IS(waitpid(pid, &status, 0), pid);
    int dead = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    CHECK(dead || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    return dead;
}

static uint64_t enumerate(uint32_t engine, int heap) {
    for (uint64_t n = 1;; n++) {
        twin t;
        sst_key k;
        sst_entry *e;
        static char report[8192];
        twin_open(&t, 2 * MIB, engine);
        CHECK_IS(put(t.a, "k", "v"), SST_OK);
        CHECK_IS(put(t.a, "other", "one"), SST_OK);
        CHECK_IS(put(t.a, "other", "two"), SST_OK);
        uint32_t ref = entry_at(t.a, "k", &k, &e);
        CHECK(child(&t, heap, 0, 1));
        int dead = child(&t, heap, n, 0);
        for (int i = 0; i < 2; i++) {
            CHECK_IS(put(i ? t.a : t.b, "k", "w"), SST_ECORRUPT);
            CHECK_IS(here(i ? t.a : t.b, "k"), SST_ECORRUPT);
            CHECK_IS(put(i ? t.a : t.b, "other", "new"), SST_OK);
            CHECK_IS(put(i ? t.a : t.b, "fresh", "new"), heap ? SST_ECORRUPT : SST_OK);
        }
        CHECK_IS(ld32(&sst_stripe_at(t.a, k.stripe)->lock), SST_LOCK_CORRUPT);
        CHECK_IS(ld32(&sst_heap_of(t.a)->lock), heap ? SST_LOCK_CORRUPT : 0);
        CHECK(SST_TAG_STATE(ld32(&sst_block_of(t.a, ref)->tag)) != SST_BLOCK_FREE);
        CHECK(sst_verify(t.b, report, sizeof report) > 0);
        let_go(t.b);
        let_go(t.a);
        (void)close(t.fd);
        if (!dead)
            return n - 1;
    }
}

/* fault_corrupt [ENGINE]: without one, both. */
int main(int argc, char **argv) {
    static const char *const what[] = {"core: repair of a corrupt stripe", "core: repair of a corrupt heap"};
    EACH_ENGINE(engine)
    if (argc < 2 || strcmp(argv[1], engine_name(engine)) == 0)
        for (int heap = 0; heap < 2; heap++) {
            proof("began", what[heap], "engine=%s", engine_name(engine));
            uint64_t n = enumerate(engine, heap); /* each has ended the program where it was not survived */
            proof("ended", what[heap], "engine=%s\tstores=%" PRIu64 "\tkills=%" PRIu64 "\tsurvived=%" PRIu64,
                  engine_name(engine), n, n, n);
            (void)printf("%-9s %s: %" PRIu64 " stores, as many kills survived\n", engine_name(engine), what[heap], n);
        }
    return 0;
}
