/* test_segment.c -- what may stand behind a name: nothing, garbage, a cut file, another layout, a dead segment. */
#include "check.h"
#include "layout.h"

static int refused; /* how many files */

/* Both doors refuse, attach closes its descriptors. */
static void refuse(int fd, int code) {
    sst_seg *s = NULL;
    sst_info info;
    int map_fd = open_again(fd), lock_fd = open_again(fd);
    CHECK_IS(sst_attach(map_fd, lock_fd, &s), code);
    CHECK(s == NULL);
    CHECK(fcntl(map_fd, F_GETFD) == -1 && fcntl(lock_fd, F_GETFD) == -1);
    if (code != SST_EDEAD) { /* a dead one may be looked at */
        CHECK_IS(sst_peek(fd, &info), code);
        CHECK_IS(sst_inspect(fd, &s), code);
    }
    refused++;
}

static void poke(int fd, size_t at, const void *what, size_t n) { CHECK_IS(pwrite(fd, what, n, (off_t)at), n); }

static void no_segments(void) {
    static char junk[8192];
    const uint64_t magic = SST_MAGIC;
    int fd = new_file();
    refuse(fd, SST_EMAGIC); /* empty */
    memset(junk, 0x5a, sizeof junk);
    poke(fd, 0, junk, 5);
    refuse(fd, SST_EMAGIC);
    poke(fd, 0, junk, sizeof junk);
    refuse(fd, SST_EMAGIC);
    poke(fd, 0, &magic, 8); /* the magic and garbage */
    refuse(fd, SST_ELAYOUT);
    CHECK_IS(ftruncate(fd, 100), 0);
    refuse(fd, SST_ETRUNC);
    (void)close(fd);
}

/* A good segment with one word changed. */
static void changed(size_t at, const void *what, size_t n, int code) {
    twin t;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    poke(t.fd, at, what, n);
    refuse(t.fd, code);
    let_go(t.a);
    let_go(t.b);
    (void)close(t.fd);
}

static void changed_words(void) {
    const uint64_t big = UINT64_MAX, zero = 0, other = sst_layout_id() ^ 1;
    const uint32_t engine = 9, state = 7, odd = 3;
    changed(offsetof(sst_header, layout_id), &other, 8, SST_ELAYOUT);
    changed(offsetof(sst_header, magic), &zero, 8, SST_EDEAD); /* as a creator leaves it that is killed at the end */
    changed(offsetof(sst_header, magic), &big, 8, SST_EMAGIC);
    changed(offsetof(sst_header, capacity), &big, 8, SST_ECORRUPT);
    changed(offsetof(sst_header, size), &big, 8, SST_ECORRUPT);
    changed(offsetof(sst_header, size), &zero, 8, SST_ECORRUPT);
    changed(offsetof(sst_header, buckets), &odd, 4, SST_ECORRUPT);
    changed(offsetof(sst_header, blocks), &odd, 4, SST_ECORRUPT);
    changed(offsetof(sst_header, incarnation), &zero, 8, SST_ECORRUPT);
    changed(offsetof(sst_header, engine), &engine, 4, SST_ENGINE);
    changed(offsetof(sst_header, state), &state, 4, SST_ECORRUPT);
}

static void cut_and_dead(void) {
    twin t;
    sst_info info;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    CHECK_IS(sst_stat(t.a, &info), SST_OK);
    CHECK_IS(sst_mark_dead(t.a), SST_EINVAL); /* not before one has left */
    CHECK_IS(sst_leave(t.a), SST_OK);
    CHECK_IS(sst_stat(t.a, &info), SST_OK); /* who has left may still ask whether anybody is in */
    CHECK(info.peers_live == 1 && info.peers_left == 1 && put(t.a, "k", "v") == SST_ECLOSED);
    CHECK_IS(sst_mark_dead(t.a), SST_OK);
    refuse(t.fd, SST_EDEAD);
    CHECK_IS(sst_peek(t.fd, &info), SST_OK);
    CHECK_IS(info.state, SST_DEAD);
    let_go(t.a);
    let_go(t.b);
    CHECK_IS(ftruncate(t.fd, (off_t)info.size - 1), 0);
    refuse(t.fd, SST_ETRUNC);
    (void)close(t.fd);
}

static void cannot(uint64_t capacity, uint32_t engine, uint64_t incarnation, int code) {
    sst_seg *s = NULL;
    int fd = new_file(), map_fd = open_again(fd), lock_fd = open_again(fd);
    CHECK_IS(sst_create(map_fd, lock_fd, capacity, engine, 0, 0, incarnation, &s), code);
    CHECK(fcntl(map_fd, F_GETFD) == -1 && fcntl(lock_fd, F_GETFD) == -1);
    (void)close(fd);
}

static void creation(void) {
    uint64_t least = sst_min_capacity();
    CHECK_IS(least % 4096, 0);
    cannot(0, SST_FUTEX, 1, SST_EINVAL);
    cannot(least - 4096, SST_FUTEX, 1, SST_EINVAL);
    cannot(SST_CAPACITY_MAX + 1, SST_FUTEX, 1, SST_EINVAL);
    cannot(least, SST_FUTEX, 0, SST_EINVAL);
    cannot(least, 9, 1, SST_ENGINE);
    static const uint64_t sizes[] = {1 * MIB, 2 * MIB, 3 * MIB + 1, 64 * MIB, 1024 * MIB};
    int made = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i] < least)
            continue;
        twin t;
        sst_info info;
        twin_open(&t, sizes[i], SST_FUTEX);
        CHECK(t.a != t.b && put(t.a, "k", "v") == SST_OK && holds(t.b, "k", "v"));
        CHECK_IS(sst_stat(t.b, &info), SST_OK);
        CHECK_IS(info.capacity, (sizes[i] + 4095) / 4096 * 4096);
        CHECK(info.size <= info.capacity && info.incarnation == 77 && info.engine == SST_FUTEX);
        twin_shut(&t);
        made++;
    }
    (void)printf("segments: %d made, %d files refused\n", made, refused);
}

/* An inspector sees, is no peer, and changes nothing. */
static void inspector(void) {
    twin t;
    sst_info info;
    sst_seg *s = NULL;
    twin_open(&t, 2 * MIB, SST_FUTEX);
    CHECK_IS(put(t.a, "k", "v"), SST_OK);
    CHECK_IS(sst_peek(t.fd, &info), SST_OK);
    CHECK(info.peers_live == 2 && info.keys == 1 && info.state == SST_READY);
    CHECK_IS(sst_inspect(t.fd, &s), SST_OK);
    CHECK_IS(sst_set(s, SST_USER, "k", 1, "w", 1, soon(), 0), SST_EINVAL);
    clean(s);
    sst_free(s);
    CHECK_IS(sst_peek(t.fd, &info), SST_OK);
    CHECK_IS(info.peers_live, 2);
    twin_shut(&t);
}

int main(void) {
    no_segments();
    changed_words();
    cut_and_dead();
    inspector();
    creation();
    return 0;
}
