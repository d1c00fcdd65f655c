/* fault_threads.c -- processes of many threads, which also fork, killed in the middle of it all.
 *
 * A round: three processes attach. Each has four threads in verbs; one thread of the first forks again and again, and
 * its children do a verb and leave. Each process dies at some store of its own, in whichever thread that is, with what
 * all its threads have in hand. A line whose writing ends only they have says when the last of them is gone, orphans too.
 *
 * What each thread began and what was answered it stands in memory that outlives them. So the survivors know for each
 * verb whether it happened wholly or not at all:
 *   a thread's counter, its text and its items    all that was answered, and at most one more, in order and whole
 *   the value that all set                        is whole, and somebody's
 *   the queue that all push to and pop from       what came out or is there was pushed, once; at most one item a killed
 *                                                 pop is missing
 * Where each dies comes from a generator with a fixed seed; how the threads interleave is the scheduler's. */
#include "judge.h"

#include <inttypes.h>
#include <pthread.h>

enum { PROCESSES = 3, THREADS = 4, ALL = PROCESSES * THREADS, ITEMS = 1 << 16 };

/* Of one thread. Each is stored by it alone, and read when it is dead. */
typedef struct {
    uint32_t adds[2], texts[2], pushes[2], pops[2]; /* begun, answered */
} account;
typedef struct {
    account of[ALL];
    uint32_t forks[2];          /* of children's adds */
    unsigned char popped[ITEMS]; /* how often the item came out: its number is thread * ITEMS / ALL + its count */
} book;
static book *books;
static uint64_t here_round, here_seed;
static uint64_t seed = 20240818;

static uint64_t next(uint64_t *x) {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x >> 20;
}

static void say_where(void) {
    if (here_round)
        (void)fprintf(stderr, "in round %" PRIu64 ", with seed %" PRIu64 "\n", here_round, here_seed);
}

/* -- a thread of a victim --------------------------------------------------------------------------------------------- */
typedef struct {
    sst_seg *s;
    int id;
    uint64_t random;
} worker;

static void named(char to[16], const char *what, int id) { (void)snprintf(to, 16, "%s%d", what, id); }

/* What all set: a letter and then as many of it as the letter says. */
static size_t value_of(int letter) { return letter % 3 ? (size_t)letter : (size_t)letter * 500; }

static void set_shared(worker *w) {
    static _Thread_local char text[BIG];
    int letter = 'a' + (int)(next(&w->random) % 26);
    memset(text, letter, value_of(letter));
    int r = sst_set(w->s, SST_USER, "s", 1, text, value_of(letter), soon(), next(&w->random) % 2 ? SST_TRY : 0);
    CHECK(r == SST_OK || r == SST_EAGAIN);
}

static void add_own(worker *w, account *mine) {
    char key[16];
    int64_t v = 0;
    named(key, "n", w->id);
    own_add32(&mine->adds[0], 1);
    CHECK_IS(plus(w->s, key, 1, &v), SST_OK);
    CHECK_IS(own_add32(&mine->adds[1], 1) + 1, v);
}

static void append_own(worker *w, account *mine) {
    char key[16];
    named(key, "t", w->id);
    own_add32(&mine->texts[0], 1);
    CHECK_IS(append(w->s, key, "abc"), SST_OK);
    own_add32(&mine->texts[1], 1);
}

static void push_shared(worker *w, account *mine) {
    uint32_t n = ld32(&mine->pushes[0]), item = (uint32_t)w->id * (ITEMS / ALL) + n;
    char text[16];
    if (n >= ITEMS / ALL)
        return;
    (void)snprintf(text, sizeof text, "%u", item);
    own_add32(&mine->pushes[0], 1);
    CHECK_IS(push(w->s, "q", text), SST_OK);
    own_add32(&mine->pushes[1], 1);
}

static void came_out(const char *text) {
    unsigned long item = strtoul(text, NULL, 10);
    CHECK(item < ITEMS);
    CHECK_IS(__atomic_fetch_add(&books->popped[item], 1, __ATOMIC_RELAXED), 0);
}

static void pop_shared(worker *w, account *mine) {
    char text[16];
    own_add32(&mine->pops[0], 1);
    int r = pop(w->s, "q", text, sizeof text);
    CHECK(r == SST_OK || r == SST_ENOENT);
    if (r == SST_OK)
        came_out(text);
    own_add32(&mine->pops[1], 1);
}

static void fork_one(worker *w) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        int64_t v;
        own_add32(&books->forks[0], 1);
        CHECK_IS(plus(w->s, "f", 1, &v), SST_OK);
        own_add32(&books->forks[1], 1);
        if (next(&w->random) % 2)
            CHECK_IS(sst_leave(w->s), SST_OK); /* else its exit is a death */
        _exit(0);
    }
    CHECK_IS(waitpid(pid, NULL, 0), pid);
}

static void *work(void *arg) {
    worker *w = arg;
    account *mine = &books->of[w->id];
    char text[16];
    for (;;)
        switch (next(&w->random) % 8) {
        case 0:
            set_shared(w);
            break;
        case 1:
            CHECK(drop(w->s, "s") >= 0);
            break;
        case 2:
            add_own(w, mine);
            break;
        case 3:
            append_own(w, mine);
            break;
        case 4:
        case 5:
            push_shared(w, mine);
            break;
        case 6:
            pop_shared(w, mine);
            break;
        default:
            if (w->id == 0)
                fork_one(w);
            else
                (void)pop(w->s, "none", text, sizeof text);
        }
    return NULL;
}

/* Never ends but by its n-th store. */
static void victim_of_threads(int fd, int process, uint64_t n, uint64_t random) {
    static worker workers[THREADS];
    pthread_t id;
    here_round = 0;
    sst_seg *s = attach(fd);
    sst_fault_arm(n);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){s, process * THREADS + i, random + (uint64_t)i * 7919};
        if (i > 0)
            CHECK_IS(pthread_create(&id, NULL, work, &workers[i]), 0);
    }
    (void)work(&workers[0]);
}

/* -- what is left -------------------------------------------------------------------------------------------------------- */
static void between(const char *what, uint64_t least, uint64_t is, uint64_t most) {
    if (is < least || is > most) {
        (void)fprintf(stderr, "%s: %" PRIu64 ", not %" PRIu64 " to %" PRIu64 "\n", what, is, least, most);
        CHECK(0);
    }
}

static uint64_t number_of(sst_seg *s, const char *key) {
    int64_t v = 0;
    CHECK_IS(plus(s, key, 0, &v), SST_OK);
    return (uint64_t)v;
}

static void judge_own(twin *t, int id) {
    static char text[1 << 20];
    account *a = &books->of[id];
    char key[16];
    size_t len = 0;
    named(key, "n", id);
    between(key, a->adds[1], number_of(t->a, key), a->adds[0]);
    named(key, "t", id);
    int r = sst_get(t->b, SST_USER, key, strlen(key), text, sizeof text, &len, soon(), 0);
    CHECK(r == SST_OK || (r == SST_ENOENT && a->texts[1] == 0));
    len = r == SST_OK ? len : 0;
    CHECK_IS(len % 3, 0);
    between(key, a->texts[1], len / 3, a->texts[0]);
    for (size_t i = 0; i < len; i++)
        CHECK_IS(text[i], "abc"[i % 3]);
}

static void judge_shared(twin *t) {
    static char text[BIG];
    size_t len = 0;
    int r = sst_get(t->a, SST_USER, "s", 1, text, sizeof text, &len, soon(), 0);
    CHECK(r == SST_OK || r == SST_ENOENT);
    if (r == SST_OK) {
        CHECK(len > 0 && len == value_of(text[0]));
        for (size_t i = 0; i < len; i++)
            CHECK_IS(text[i], text[0]);
    }
    between("f", books->forks[1], number_of(t->b, "f"), books->forks[0]);
    while (pop(t->b, "q", text, sizeof text) == SST_OK)
        came_out(text);
    uint64_t missing = 0, open_pops = 0;
    for (int id = 0; id < ALL; id++) {
        const account *a = &books->of[id];
        const unsigned char *out = &books->popped[id * (ITEMS / ALL)];
        open_pops += a->pops[0] - a->pops[1];
        for (uint32_t n = 0; n < ITEMS / ALL; n++) {
            CHECK(out[n] <= (n < a->pushes[0]));
            missing += n < a->pushes[1] && !out[n];
        }
    }
    between("items that went with a killed pop", 0, missing, open_pops);
}

/* -- a round ------------------------------------------------------------------------------------------------------------- */
typedef struct {
    uint64_t rounds, kills, survived, verbs;
    double worst_ms;
} tally;

static void one_round(uint32_t engine, tally *sums) {
    twin t;
    int line[2];
    char rest;
    pid_t pids[PROCESSES];
    memset(books, 0, sizeof *books);
    here_seed = seed;
    twin_open(&t, 16 * MIB, engine);
    CHECK_IS(pipe(line), 0);
    (void)fflush(NULL);
    for (int i = 0; i < PROCESSES; i++) {
        uint64_t n = 200 + next(&seed) % 12000, random = next(&seed) | 1;
        pids[i] = fork();
        CHECK(pids[i] >= 0);
        if (pids[i] == 0)
            victim_of_threads(t.fd, i, n, random);
    }
    (void)close(line[1]);
    for (int i = 0; i < PROCESSES; i++) {
        int status = 0;
        CHECK_IS(waitpid(pids[i], &status, 0), pids[i]);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        sums->kills++;
    }
    CHECK_IS(read(line[0], &rest, 1), 0); /* the last of their children, too */
    (void)close(line[0]);
    uint64_t since = sst_now_ns();
    go_on(t.a);
    CHECK_IS(push(t.b, "q2", "x"), SST_OK);
    double ms = (double)(sst_now_ns() - since) / 1e6;
    sums->worst_ms = ms > sums->worst_ms ? ms : sums->worst_ms;
    clean(t.b);
    for (int id = 0; id < ALL; id++) {
        judge_own(&t, id);
        sums->verbs += books->of[id].adds[1] + books->of[id].texts[1] + books->of[id].pushes[1] + books->of[id].pops[1];
    }
    judge_shared(&t);
    go_on(t.b);
    twin_shut(&t);
    sums->survived += PROCESSES;
    sums->rounds++;
}

static void all(uint32_t engine) {
    static const char what[] = "core: processes of many threads";
    const uint64_t rounds = getenv("SST_LONG") ? 5000 : 200;
    tally sums = {0};
    proof("began", what, "engine=%s", engine_name(engine));
    for (here_round = 1; here_round <= rounds; here_round++)
        one_round(engine, &sums);
    here_round = 0;
    proof("ended", what,
          "engine=%s\trounds=%" PRIu64 "\tkills=%" PRIu64 "\tsurvived=%" PRIu64 "\tverbs answered=%" PRIu64
          "\tevery verb after it, max ms=%.1f",
          engine_name(engine), sums.rounds, sums.kills, sums.survived, sums.verbs, sums.worst_ms);
    (void)printf("%s: %" PRIu64 " rounds, %" PRIu64 " processes of %d threads killed and survived, %" PRIu64
                 " verbs answered; every verb after it %.1f ms at most\n",
                 engine_name(engine), sums.rounds, sums.survived, (int)THREADS, sums.verbs, sums.worst_ms);
}

/* fault_threads [ENGINE]: without one, both. */
int main(int argc, char **argv) {
    memset(big, 'B', BIG);
    CHECK_IS(atexit(say_where), 0);
    books = mmap(NULL, sizeof *books, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(books != MAP_FAILED);
    EACH_ENGINE(engine)
    if (argc < 2 || strcmp(argv[1], engine_name(engine)) == 0)
        all(engine);
    return 0;
}
