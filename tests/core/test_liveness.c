/* test_liveness.c -- who is alive: a death is seen, also while a forked child with the same mapping lives on. */
#include "check.h"
#include "liveness.h"

static uint32_t state_of(sst_seg *s, uint32_t slot) {
    static sst_peer p[16];
    int n = sst_peers(s, p, 16);
    for (int i = 0; i < n; i++)
        if (p[i].slot == slot)
            return p[i].state;
    return SST_PEER_FREE;
}

static void own(void) {
    twin t;
    uint32_t slot, gen;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    CHECK_IS(sst_self(t.a, &slot, &gen), SST_OK);
    for (int i = 0; i < 2; i++) { /* through the own view without asking, through the other by the byte */
        sst_seg *s = i ? t.a : t.b;
        CHECK_IS(sst_alive(s, SST_OWNER(slot, gen)), 1);
        CHECK_IS(sst_alive(s, SST_OWNER(slot, gen) | SST_WAITERS), 1);
        CHECK_IS(sst_alive(s, SST_OWNER(slot, gen + 1)), 0);
        CHECK_IS(sst_alive(s, SST_OWNER(900, 1)), 0);
        CHECK_IS(sst_alive(s, SST_OWNER(SST_PEERS_MAX, 1)), 0);
        CHECK_IS(sst_alive(s, 0), 0);
    }
    twin_shut(&t);
}

typedef struct {
    uint32_t slot, gen;
    pid_t pid;
} who;

/* A middle process attaches and forks; it is killed, its child lives on and keeps using the inherited view. */
static void parent_dies(void) {
    twin t;
    int up[2], down[2];
    who middle, child;
    sst_rank r[4];
    char c;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    CHECK_IS(pipe(up) + pipe(down), 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(t.fd);
        CHECK_IS(sst_rank_register(s, 1), SST_OK);
        middle.pid = getpid();
        CHECK_IS(sst_self(s, &middle.slot, &middle.gen), SST_OK);
        CHECK_IS(write(up[1], &middle, sizeof middle), sizeof middle);
        (void)close(down[1]);
        pid_t grand = fork();
        CHECK(grand >= 0);
        if (grand > 0)
            for (;;)
                (void)pause();
        child.pid = getpid();
        CHECK_IS(put(s, "from", "child"), SST_OK); /* the first call takes a slot of its own */
        CHECK_IS(sst_self(s, &child.slot, &child.gen), SST_OK);
        CHECK_IS(write(up[1], &child, sizeof child), sizeof child);
        (void)read(down[0], &c, 1); /* until the test is over */
        CHECK_IS(put(s, "still", "here"), SST_OK);
        CHECK_IS(sst_leave(s), SST_OK);
        CHECK_IS(write(up[1], "x", 1), 1);
        _exit(0);
    }
    (void)close(down[0]);
    CHECK_IS(read(up[0], &middle, sizeof middle), sizeof middle);
    CHECK_IS(read(up[0], &child, sizeof child), sizeof child);
    CHECK(middle.slot != child.slot);
    CHECK_IS(state_of(t.a, middle.slot), SST_PEER_LIVE);
    CHECK_IS(state_of(t.a, child.slot), SST_PEER_LIVE);
    CHECK_IS(kill(pid, SIGKILL), 0);
    CHECK_IS(waitpid(pid, NULL, 0), pid);
    CHECK_IS(state_of(t.a, middle.slot), SST_PEER_DEAD);
    CHECK_IS(state_of(t.b, child.slot), SST_PEER_LIVE);
    CHECK_IS(sst_alive(t.a, SST_OWNER(middle.slot, middle.gen)), 0);
    CHECK_IS(sst_alive(t.a, SST_OWNER(child.slot, child.gen)), 1);
    CHECK_IS(sst_ranks(t.a, r, 4), 1);
    CHECK_IS(r[0].state, SST_RANK_DEAD);
    CHECK_IS(sst_rank_register(t.b, 1), SST_OK); /* a dead owner is replaced */
    CHECK(holds(t.a, "from", "child"));
    CHECK_IS(write(down[1], "x", 1), 1);
    CHECK_IS(read(up[0], &c, 1), 1);
    CHECK(holds(t.b, "still", "here"));
    CHECK_IS(state_of(t.a, child.slot), SST_PEER_LEFT);
    (void)close(up[0]);
    (void)close(up[1]);
    (void)close(down[1]);
    twin_shut(&t);
}

int main(void) {
    own();
    parent_dies();
    (void)printf("liveness: own words, and a parent's death beside a living child\n");
    return 0;
}
