/* fault_life.c -- the life of a segment, its maker, leaver, heir or grower killed at each store.
 *
 *   create     what is left is a file of no bytes, or SST_EDEAD (half made: the next creator reaps it), or whole
 *   leave      and mark dead, as the last one out does: an attacher afterwards is in, or told SST_EDEAD, at once
 *   grow       the file: what is published was allocated before
 *   rank       a dead or left owner is replaced, or not
 *   claim      of a dead process's slot, with the locks it still holds
 *   fork       the slot for the child, taken by the parent: the parent killed, or the child
 *
 * posix_fallocate is no store, but a step like one: it counts before and after, and a signal may interrupt it. */
#include "atomics.h"
#include "check.h"
#include "liveness.h"
#include "view.h"

#include <inttypes.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define BIG 70000
static char big[BIG + 1];

static const char *here_name;
static uint64_t here_n;
static int interruptions; /* that many times what is more than a page is EINTR first */

/* Takes the place of the libc's in this program. */
int posix_fallocate(int fd, off_t at, off_t len) {
    sst_fault_store();
    int signal = interruptions > 0 && len > 4096;
    interruptions -= signal;
    int err = signal ? EINTR : syscall(SYS_fallocate, fd, 0, at, len) == 0 ? 0 : errno;
    sst_fault_store();
    return err;
}

static void say_where(void) {
    if (here_name)
        (void)fprintf(stderr, "in '%s', killed at %llu\n", here_name, (unsigned long long)here_n);
}

/* A case under way: the file, and what its child needs. */
typedef struct {
    int fd;
    uint64_t capacity;
    uint32_t engine, how;
} life;

static int ended(pid_t pid) {
    int status = 0;
    CHECK_IS(waitpid(pid, &status, 0), pid);
    int dead = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    CHECK(dead || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    return dead;
}

/* 1: killed at the n-th store of work, which arms by itself where its stores begin to count; 0: it came through, and is
 * gone without leaving all the same. */
static int killed(void (*work)(const life *l, uint64_t n), const life *l, uint64_t n) {
    (void)fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        here_name = NULL;
        work(l, n);
        _exit(0);
    }
    return ended(pid);
}

static uint64_t file_bytes(int fd) {
    struct stat st;
    CHECK_IS(fstat(fd, &st), 0);
    return (uint64_t)st.st_size;
}

/* In a segment that works all of this does. */
static void works(sst_seg *s) {
    char text[8];
    int64_t v;
    CHECK_IS(put(s, "w", "one"), SST_OK);
    CHECK_IS(append(s, "w", " two"), SST_OK);
    CHECK(holds(s, "w", "one two"));
    CHECK_IS(drop(s, "w"), 1);
    CHECK_IS(plus(s, "w", 3, &v), SST_OK);
    CHECK_IS(drop(s, "w"), 1);
    CHECK_IS(push(s, "w", "item"), SST_OK);
    CHECK_IS(pop(s, "w", text, sizeof text), SST_OK);
    clean(s);
}

/* Runs `one` for n = 1, 2, ... until its child comes through; prints how many stores that were. Each `one` has ended the
 * program where what it must find is not so: what comes back was survived. */
static uint64_t each_store(const char *name, int (*one)(const life *l, uint64_t n), const life *l) {
    char what[80];
    uint64_t survived = 0;
    here_name = name;
    (void)snprintf(what, sizeof what, "core: %s", name);
    proof("began", what, "engine=%s", engine_name(l->engine));
    for (here_n = 1; one(l, here_n); here_n++)
        survived++;
    proof("ended", what, "engine=%s\tstores=%" PRIu64 "\tkills=%" PRIu64 "\tsurvived=%" PRIu64, engine_name(l->engine),
          here_n - 1, here_n - 1, survived);
    (void)printf("%-9s %-32s %4" PRIu64 " stores, as many kills survived\n", engine_name(l->engine), name, survived);
    (void)fflush(stdout);
    here_name = NULL;
    return survived;
}

/* -- create --------------------------------------------------------------------------------------------------------- */
static uint64_t empty, half, whole;

/* how: that many interruptions. */
static void creates(const life *l, uint64_t n) {
    sst_seg *s = NULL;
    int map_fd = open_again(l->fd), lock_fd = open_again(l->fd);
    interruptions = (int)l->how;
    sst_fault_arm(n);
    CHECK_IS(sst_create(map_fd, lock_fd, l->capacity, l->engine, 1, 7, 77, &s), SST_OK);
    sst_fault_arm(0);
}

static int create_killed(const life *plan, uint64_t n) {
    life l = *plan;
    sst_seg *s = NULL;
    sst_info info;
    l.fd = new_file();
    int dead = killed(creates, &l, n);
    int r = sst_attach(open_again(l.fd), open_again(l.fd), &s);
    if (file_bytes(l.fd) == 0) { /* nobody's file yet: shmstore/segment.py takes it for what it is by its size */
        CHECK_IS(r, SST_EMAGIC);
        empty++;
    } else if (r == SST_OK) {
        works(s);
        CHECK_IS(sst_stat(s, &info), SST_OK);
        CHECK(info.capacity == l.capacity && info.persist == 1 && info.world_size == 7 && info.incarnation == 77);
        let_go(s);
        whole++;
    } else {
        CHECK_IS(r, SST_EDEAD);
        CHECK(dead);
        CHECK_IS(sst_peek(l.fd, &info), SST_EDEAD);
        half++;
    }
    (void)close(l.fd);
    return dead;
}

static void creations(uint32_t engine) {
    const uint64_t capacities[] = {sst_min_capacity(), MIB, 3 * MIB + 4096, 64 * MIB, 1024 * MIB};
    empty = half = whole = 0;
    for (size_t i = 0; i < sizeof capacities / sizeof *capacities; i++)
        (void)each_store("create", create_killed, &(life){.capacity = capacities[i], .engine = engine});
    for (uint32_t how = 1; how < 4; how++)
        (void)each_store("create, growth interrupted", create_killed,
                         &(life){.capacity = 2 * MIB, .engine = engine, .how = how});
    CHECK(empty > 0 && half > 0 && whole > 0);
    (void)printf("%-9s files: %llu empty, %llu half made, %llu whole\n", engine_name(engine), (unsigned long long)empty,
                 (unsigned long long)half, (unsigned long long)whole);
}

/* -- the last one out ------------------------------------------------------------------------------------------------- */
static void goes(const life *l, uint64_t n) {
    sst_seg *s = attach(l->fd);
    uint32_t waiter = 0;
    CHECK_IS(sst_rank_register(s, 5), SST_OK);
    CHECK_IS(sst_wait(s, SST_USER, "never", 5, &waiter, 0, soon(), MS, 0), SST_EAGAIN); /* a waiter slot is kept */
    sst_fault_arm(n);
    CHECK_IS(sst_leave(s), SST_OK);
    CHECK_IS(sst_mark_dead(s), SST_OK);
    CHECK_IS(sst_close(s), SST_OK);
    sst_fault_arm(0);
}

static int leave_killed(const life *plan, uint64_t n) {
    life l = *plan;
    twin t;
    sst_seg *s = NULL;
    sst_info info;
    twin_open(&t, l.capacity, l.engine);
    l.fd = t.fd;
    CHECK_IS(put(t.a, "k", "v"), SST_OK);
    let_go(t.b);
    let_go(t.a);
    int dead = killed(goes, &l, n);
    uint64_t from = sst_now_ns();
    int r = sst_attach(open_again(t.fd), open_again(t.fd), &s);
    CHECK(sst_now_ns() - from < 10 * SEC);
    CHECK_IS(sst_peek(t.fd, &info), SST_OK);
    CHECK(info.peers_dead <= 1);
    if (r == SST_OK) {
        CHECK(dead);
        CHECK(holds(s, "k", "v"));
        works(s);
        CHECK_IS(sst_rank_register(s, 5), SST_OK); /* dead or left */
        let_go(s);
    } else {
        CHECK_IS(r, SST_EDEAD);
        CHECK(!dead); /* the mark is the last store of all */
        CHECK_IS(info.state, SST_DEAD);
    }
    (void)close(t.fd);
    return dead;
}

/* -- growth ---------------------------------------------------------------------------------------------------------------- */
static void grows(const life *l, uint64_t n) {
    sst_seg *s = attach(l->fd);
    interruptions = (int)l->how;
    sst_fault_arm(n);
    CHECK_IS(put(s, "k", big), SST_OK);
    sst_fault_arm(0);
}

static int grow_killed(const life *plan, uint64_t n) {
    static char got[BIG];
    life l = *plan;
    twin t;
    sst_info info;
    size_t len = 0;
    twin_open(&t, l.capacity, l.engine);
    l.fd = t.fd;
    CHECK_IS(put(t.a, "k", "v"), SST_OK);
    CHECK_IS(sst_stat(t.a, &info), SST_OK);
    uint64_t before = info.size;
    int dead = killed(grows, &l, n);
    CHECK_IS(sst_stat(t.a, &info), SST_OK);
    CHECK(info.size >= before && info.size % 4096 == 0 && info.size <= file_bytes(t.fd));
    CHECK(dead || info.size > before);
    CHECK_IS(sst_get(t.b, SST_USER, "k", 1, got, sizeof got, &len, soon(), 0), SST_OK);
    CHECK(len == BIG ? memcmp(got, big, BIG) == 0 : dead && len == 1 && got[0] == 'v');
    works(t.a);
    CHECK_IS(put(t.b, "k", big), SST_OK);
    CHECK_IS(put(t.a, "other", big), SST_OK);
    CHECK_IS(sst_stat(t.a, &info), SST_OK);
    CHECK(info.size > before && info.size <= file_bytes(t.fd));
    twin_shut(&t);
    return dead;
}

/* -- ranks -------------------------------------------------------------------------------------------------------------- */
/* how: the rank's first owner 0 dies, 1 leaves the rank, 2 leaves the segment. */
static void owns(const life *l, uint64_t n) {
    sst_seg *s = attach(l->fd);
    CHECK_IS(sst_rank_register(s, 3), SST_OK);
    if (l->how == 1)
        CHECK_IS(sst_rank_leave(s, 3), SST_OK);
    if (l->how == 2)
        CHECK_IS(sst_leave(s), SST_OK);
    (void)n;
}

static void replaces(const life *l, uint64_t n) {
    sst_seg *s = attach(l->fd);
    sst_fault_arm(n);
    CHECK_IS(sst_rank_register(s, 3), SST_OK);
    sst_fault_arm(0);
}

static int rank_killed(const life *plan, uint64_t n) {
    life l = *plan;
    twin t;
    sst_rank r[4];
    twin_open(&t, l.capacity, l.engine);
    l.fd = t.fd;
    CHECK_IS(killed(owns, &l, 0), 0);
    int dead = killed(replaces, &l, n);
    CHECK_IS(sst_ranks(t.a, r, 4), 1);
    CHECK(r[0].rank == 3 && r[0].state == (dead && l.how ? SST_RANK_LEFT : SST_RANK_DEAD));
    CHECK_IS(sst_rank_register(t.b, 3), SST_OK);
    CHECK_IS(sst_rank_register(t.a, 3), SST_EEXIST);
    CHECK_IS(sst_ranks(t.a, r, 4), 1);
    CHECK(r[0].state == SST_RANK_LIVE && r[0].pid == getpid());
    works(t.a);
    twin_shut(&t);
    return dead;
}

/* -- the claim of a dead slot with its locks ------------------------------------------------------------------------- */
enum { DEAD_SLOT = 4 }; /* behind our two, and two that are lent to our forked child */

static void inherits(const life *l, uint64_t n) {
    uint32_t slot = 0, gen = 0;
    sst_fault_arm(n);
    sst_seg *s = attach(l->fd);
    sst_fault_arm(0);
    CHECK_IS(sst_self(s, &slot, &gen), SST_OK);
    CHECK(slot == DEAD_SLOT && gen == 2);
}

/* how: at which store of a `set` that grows the slot's owner was killed. */
static int claim_killed(const life *plan, uint64_t n) {
    life l = *plan;
    twin t;
    static char got[BIG];
    size_t len = 0;
    sst_info info;
    twin_open(&t, l.capacity, l.engine);
    l.fd = t.fd;
    CHECK_IS(put(t.a, "k", "v"), SST_OK);
    life first = l;
    first.how = 0;
    CHECK_IS(killed(grows, &first, plan->how), 1);
    int block = open_again(t.fd);
    for (uint32_t slot = 0; slot < SST_PEERS_MAX; slot++)
        if (slot != DEAD_SLOT)
            (void)sst_byte_take(block, slot);
    int dead = killed(inherits, &l, n);
    (void)close(block);
    CHECK_IS(sst_stat(t.a, &info), SST_OK);
    CHECK(info.peers_live == 2 && info.peers_dead == 1);
    if (n % 2)
        clean(t.b);
    CHECK_IS(sst_get(t.b, SST_USER, "k", 1, got, sizeof got, &len, soon(), 0), SST_OK);
    CHECK(len == BIG ? memcmp(got, big, BIG) == 0 : len == 1 && got[0] == 'v');
    works(t.a);
    CHECK_IS(put(t.b, "k", big), SST_OK);
    sst_seg *next = attach(t.fd);
    works(next);
    let_go(next);
    twin_shut(&t);
    return dead;
}

/* -- fork ------------------------------------------------------------------------------------------------------------------- */
/* The family: a process with a slot, and its child, which begins with a verb. The count goes on in the child. */
static void forks(const life *l, uint64_t n) {
    sst_seg *s = attach(l->fd);
    sst_fault_arm(n);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK_IS(put(s, "k", "child"), SST_OK);
        if (l->how == 1) /* else its exit is a death */
            CHECK_IS(sst_leave(s), SST_OK);
        sst_fault_arm(0);
        _exit(0);
    }
    sst_fault_arm(0);
    int dead = ended(pid);
    CHECK_IS(put(s, "parent", "here"), SST_OK);
    clean(s);
    CHECK_IS(sst_leave(s), SST_OK); /* so that the one death there may be is the child's */
    _exit(dead ? 7 : 0);
}

static int fork_killed(const life *plan, uint64_t n) {
    life l = *plan;
    twin t;
    sst_info info;
    int status = 0;
    twin_open(&t, l.capacity, l.engine);
    l.fd = t.fd;
    CHECK_IS(put(t.a, "k", "before"), SST_OK);
    (void)fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        here_name = NULL;
        CHECK_IS(sst_close(t.a) + sst_close(t.b), SST_OK); /* of the views that it has of us, none */
        forks(&l, n);
    }
    CHECK_IS(waitpid(pid, &status, 0), pid);
    int parent = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    CHECK(parent || (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 7)));
    int dead = parent || WEXITSTATUS(status) == 7;
    CHECK_IS(sst_stat(t.a, &info), SST_OK);
    CHECK_IS(info.peers_live, 2);
    CHECK(parent ? info.peers_dead == 1 : info.peers_dead <= (dead || l.how == 0));
    CHECK(holds(t.b, "k", "child") || (dead && holds(t.b, "k", "before")));
    CHECK_IS(here(t.b, "parent"), !parent);
    works(t.b);
    for (int i = 0; i < 3; i++) { /* the slots in between are used again */
        sst_seg *s = attach(t.fd);
        uint32_t slot = 0, gen = 0;
        CHECK_IS(sst_self(s, &slot, &gen), SST_OK);
        CHECK(slot < 6);
        works(s);
        let_go(s);
    }
    works(t.a);
    twin_shut(&t);
    return dead;
}

/* The parent killed at once: its child is alive all the time, and goes on. */
static void orphan(uint32_t engine) {
    twin t;
    sst_info info;
    int line[2], up[2];
    char x = 'x';
    here_name = "orphan";
    twin_open(&t, 2 * MIB, engine);
    CHECK_IS(pipe(line) + pipe(up), 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK_IS(sst_close(t.a) + sst_close(t.b), SST_OK);
        sst_seg *s = attach(t.fd);
        if (fork() == 0) {
            CHECK_IS(write(up[1], &x, 1) + read(line[0], &x, 1), 2); /* the parent is dead */
            CHECK_IS(put(s, "child", "here"), SST_OK);
            CHECK_IS(sst_leave(s), SST_OK);
            CHECK_IS(write(up[1], &x, 1), 1);
            _exit(0);
        }
        for (;;)
            (void)pause();
    }
    CHECK_IS(read(up[0], &x, 1), 1);
    CHECK_IS(kill(pid, SIGKILL), 0);
    CHECK_IS(ended(pid), 1);
    CHECK_IS(sst_stat(t.a, &info), SST_OK);
    CHECK(info.peers_live == 3 && info.peers_dead == 1);
    CHECK_IS(write(line[1], &x, 1) + read(up[0], &x, 1), 2);
    CHECK(holds(t.a, "child", "here"));
    CHECK_IS(sst_stat(t.a, &info), SST_OK);
    CHECK(info.peers_live == 2 && info.peers_dead == 1);
    for (int i = 0; i < 2; i++)
        (void)close(line[i]), (void)close(up[i]);
    twin_shut(&t);
    here_name = NULL;
}

/* fault_life [ENGINE]: without one, both. */
int main(int argc, char **argv) {
    memset(big, 'B', BIG);
    CHECK_IS(atexit(say_where), 0);
    const uint32_t step = getenv("SST_LONG") ? 1 : 2;
    EACH_ENGINE(engine) {
        if (argc > 1 && strcmp(argv[1], engine_name(engine)) != 0)
            continue;
        creations(engine);
        life l = {.capacity = 4 * MIB, .engine = engine};
        (void)each_store("last one out, marks it dead", leave_killed, &l);
        uint64_t stores = each_store("grow", grow_killed, &l);
        for (l.how = 1; l.how < 4; l.how++)
            (void)each_store("grow, interrupted", grow_killed, &l);
        for (l.how = 0; l.how < 3; l.how++)
            (void)each_store(l.how == 0 ? "rank of the dead" : "rank of one who left", rank_killed, &l);
        for (l.how = 2; l.how <= stores; l.how += step)
            (void)each_store("claim a dead slot and its locks", claim_killed, &l);
        for (l.how = 0; l.how < 2; l.how++)
            (void)each_store(l.how ? "fork, child leaves" : "fork", fork_killed, &l);
        orphan(engine);
    }
    return 0;
}
