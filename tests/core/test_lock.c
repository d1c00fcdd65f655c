/* test_lock.c -- exclusion under contention, SST_TRY, live holders (stopped ones too), dead ones. */
#include "check.h"
#include "guard.h"

#include <pthread.h>

enum { THREADS = 8, ROUNDS = 5000 };
static twin t;
static uint64_t shared; /* read and written apart: two holders at once lose a count */

static void *contend(void *arg) {
    sst_seg *s = arg;
    for (int i = 0; i < ROUNDS; i++) {
        CHECK_IS(sst_enter(s, 9, soon(), 0), SST_OK);
        uint64_t v = ld64(&shared);
        if (i % 64 == 0)
            sst_pause();
        __atomic_store_n(&shared, v + 1, __ATOMIC_RELAXED);
        sst_exit(s, 9, 0);
    }
    return NULL;
}

static void exclusion(void) {
    pthread_t id[THREADS];
    shared = 0;
    for (int i = 0; i < THREADS; i++)
        CHECK_IS(pthread_create(&id[i], NULL, contend, i % 2 ? t.a : t.b), 0);
    for (int i = 0; i < THREADS; i++)
        CHECK_IS(pthread_join(id[i], NULL), 0);
    CHECK_IS(shared, THREADS * ROUNDS);
}

/* Held by a live peer of this process, or by a thread of the very same peer: never taken for dead. */
static void held(void) {
    uint32_t slot, mine, gen;
    int32_t pid;
    sst_key k;
    CHECK_IS(sst_key_make(t.a, SST_USER, "k", 1, &k), SST_OK);
    CHECK_IS(sst_enter(t.a, k.stripe, soon(), 0), SST_OK);
    for (int same = 0; same < 2; same++) {
        sst_seg *s = same ? t.a : t.b;
        uint64_t until = in_ms(80);
        CHECK_IS(sst_set(s, SST_USER, "k", 1, "v", 1, 0, SST_TRY), SST_EAGAIN);
        CHECK_IS(sst_set(s, SST_USER, "k", 1, "v", 1, until, 0), SST_EBUSY);
        CHECK(sst_now_ns() >= until);
        CHECK_IS(sst_holder(s, &slot, &pid), SST_OK);
        CHECK_IS(sst_self(t.a, &mine, &gen), SST_OK);
        CHECK_IS(slot, mine);
        CHECK_IS(pid, getpid());
    }
    sst_exit(t.a, k.stripe, 0);
    CHECK_IS(put(t.b, "k", "v"), SST_OK);
}

/* A child holds something and is stopped: alive. Then it is killed: whoever comes repairs. */
static void stopped_then_killed(int what) {
    int line[2];
    char c;
    CHECK_IS(pipe(line), 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(t.fd);
        CHECK_IS(sst_test_hold(s, what, "k", 1), SST_OK);
        CHECK_IS(write(line[1], "x", 1), 1);
        for (;;)
            (void)pause();
    }
    CHECK_IS(read(line[0], &c, 1), 1);
    CHECK_IS(kill(pid, SIGSTOP), 0);
    if (what <= 1) {
        uint32_t slot;
        int32_t holder = 0;
        CHECK_IS(sst_set(t.a, SST_USER, "k", 1, "v", 1, in_ms(60), 0), SST_EBUSY);
        CHECK_IS(sst_holder(t.a, &slot, &holder), SST_OK);
        CHECK_IS(holder, pid);
    } else {
        CHECK_IS(put(t.a, "k", "v"), SST_OK); /* what it holds is in nobody's way */
    }
    CHECK_IS(kill(pid, SIGKILL), 0);
    CHECK_IS(waitpid(pid, NULL, 0), pid);
    CHECK_IS(put(t.b, "k", "mine"), SST_OK);
    CHECK(holds(t.a, "k", "mine"));
    clean(t.a);
    (void)close(line[0]);
    (void)close(line[1]);
}

int main(void) {
    EACH_ENGINE(engine) {
        twin_open(&t, 2 * MIB, engine);
        for (int what = 0; what < 4; what++)
            stopped_then_killed(what);
        held();
        exclusion();
        twin_shut(&t);
        (void)printf("%s: %d locks by %d threads, 4 holders stopped and killed\n", engine_name(engine),
                     THREADS * ROUNDS, THREADS);
    }
    return 0;
}
