/* test_peers.c -- slots and ranks: claim, generation, LEFT, exhaustion. Deaths: test_liveness.c. */
#include "check.h"
#include "liveness.h"

static uint32_t slot_of(sst_seg *s, uint32_t *gen) {
    uint32_t slot;
    CHECK_IS(sst_self(s, &slot, gen), SST_OK);
    return slot;
}

static void slots(void) {
    twin t;
    uint32_t ga, gb, gc, sb;
    sst_peer p[8];
    twin_open(&t, 2 * MIB, SST_FUTEX);
    CHECK_IS(slot_of(t.a, &ga), 0);
    sb = slot_of(t.b, &gb);
    CHECK_IS(sb, 1);
    CHECK_IS(sst_peers(t.a, p, 8), 2);
    CHECK(p[0].state == SST_PEER_LIVE && p[1].state == SST_PEER_LIVE);
    CHECK(p[0].pid == getpid() && p[0].host[63] == 0);
    for (uint32_t i = 0; i < 20; i++) { /* a slot that was left is claimed again, one generation on */
        sst_seg *c = attach(t.fd);
        CHECK_IS(slot_of(c, &gc), 2);
        CHECK_IS(gc, i + 1);
        let_go(c);
        CHECK_IS(sst_peers(t.b, p, 8), 3);
        CHECK_IS(p[2].state, SST_PEER_LEFT);
    }
    twin_shut(&t);
}

static void generation_wraps(void) {
    twin t;
    uint32_t gen;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    st32(&sst_peer_at(t.a, 2)->gen, 0xfffe);
    sst_seg *c = attach(t.fd);
    (void)slot_of(c, &gen);
    CHECK_IS(gen, 0xffff);
    let_go(c);
    c = attach(t.fd);
    (void)slot_of(c, &gen);
    CHECK_IS(gen, 1); /* never 0 */
    let_go(c);
    twin_shut(&t);
}

/* All bytes locked by one more open file: no slot is left, and the next attach says so; then one is. */
static void exhausted(void) {
    twin t;
    sst_seg *c = NULL;
    uint32_t gen;
    int taken = 0;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    int block = open_again(t.fd);
    for (uint32_t slot = 0; slot < SST_PEERS_MAX; slot++)
        taken += sst_byte_take(block, slot);
    CHECK_IS(taken, SST_PEERS_MAX - 2); /* two belong to the views */
    CHECK_IS(sst_attach(open_again(t.fd), open_again(t.fd), &c), SST_EPEERS);
    sst_byte_drop(block, 1000);
    c = attach(t.fd);
    CHECK_IS(slot_of(c, &gen), 1000);
    CHECK_IS(sst_alive(t.a, SST_OWNER(1000, gen)), 1);
    let_go(c);
    (void)close(block);
    twin_shut(&t);
    (void)printf("exhausted: %d slots\n", taken + 2);
}

static void ranks(void) {
    twin t;
    sst_rank r[8];
    sst_info info;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    CHECK_IS(sst_rank_register(t.a, 5), SST_OK);
    CHECK_IS(sst_rank_register(t.b, 5), SST_EEXIST);
    CHECK_IS(sst_rank_register(t.a, 5), SST_EEXIST); /* one's own, too: two handles of a process are two */
    CHECK_IS(sst_rank_register(t.a, SST_RANKS_MAX), SST_EINVAL);
    CHECK_IS(sst_rank_register(t.a, SST_RANKS_MAX - 1), SST_OK); /* several ranks in one process */
    CHECK_IS(sst_rank_leave(t.b, 5), SST_ENOENT);
    CHECK_IS(sst_ranks(t.b, r, 8), 2);
    CHECK(r[0].rank == 5 && r[0].state == SST_RANK_LIVE && r[0].pid == getpid());
    CHECK_IS(sst_rank_leave(t.a, 5), SST_OK);
    CHECK_IS(sst_ranks(t.b, r, 8), 2);
    CHECK_IS(r[0].state, SST_RANK_LEFT);
    CHECK_IS(sst_rank_register(t.b, 5), SST_OK);
    sst_seg *c = attach(t.fd);
    CHECK_IS(sst_rank_register(c, 7), SST_OK);
    let_go(c); /* leaving the segment leaves its ranks */
    CHECK_IS(sst_ranks(t.a, r, 8), 3);
    CHECK(r[1].rank == 7 && r[1].state == SST_RANK_LEFT);
    CHECK_IS(sst_stat(t.a, &info), SST_OK);
    CHECK_IS(info.ranks_seen, 3);
    CHECK(info.peers_live == 2 && info.peers_left == 1 && info.peers_dead == 0);
    twin_shut(&t);
}

int main(void) {
    slots();
    generation_wraps();
    exhausted();
    ranks();
    return 0;
}
