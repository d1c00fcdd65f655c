/* test_park.c -- both park engines where parking goes wrong: waiters that are dead or stopped, semaphores full of posts,
 * no slot left, a kernel that refuses futexes; and what a waiter slot holds when it changes hands. */
#include "check.h"
#include "guard.h"
#include "park.h"
#include "waiter.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static twin t;

/* How many slots name the word. */
static int parked(sst_seg *s, const uint32_t *word) {
    int n = 0;
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++)
        n += ld32(&sst_waiter_at(s, i)->word) == sst_offset4(s, word);
    return n;
}

/* Slots that have an owner. Those that have none are wiped. */
static int owned(sst_seg *s) {
    int n = 0;
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++) {
        const sst_waiter_slot *w = sst_waiter_at(s, i);
        if (ld32(&w->owner) != 0)
            n++;
        else
            CHECK(ld32(&w->word) == 0 && ld64(&w->ticket) == 0 && ld32(&w->queue) == 0 && ld32(&w->stripe) == 0 &&
                  ld64(&w->since_ns) == 0);
    }
    return n;
}

/* -- a waiter that does not run takes no wake from the others -------------------------------------------------------- */
static uint32_t done; /* the thread was woken */

static uint32_t *the_word(sst_seg *s) { return &sst_stripe_at(s, 7)->event; }

static void *sleeper(void *arg) {
    sst_seg *s = arg;
    CHECK_IS(s->park->park(s, the_word(s), ld32(the_word(s)), soon(), 0), SST_OK);
    own_st32(&done, 1);
    return NULL;
}

static void wake_one(uint32_t engine, int sig) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(t.fd);
        uint32_t waiter = 0;
        CHECK_IS(sst_waiter_claim(s, the_word(s), &waiter), SST_OK); /* the first slot from the home on */
        (void)s->park->park(s, the_word(s), ld32(the_word(s)), soon(), waiter);
        _exit(0);
    }
    while (owned(t.a) == 0 || (engine == SST_SEMAPHORE && parked(t.a, the_word(t.a)) == 0))
        nap(1);
    CHECK_IS(kill(pid, sig), 0);
    CHECK_IS(waitpid(pid, NULL, WUNTRACED), pid);
    pthread_t id;
    own_st32(&done, 0);
    CHECK_IS(pthread_create(&id, NULL, sleeper, t.b), 0);
    while (engine == SST_SEMAPHORE && parked(t.a, the_word(t.a)) < 2)
        nap(1);
    uint64_t until = in_ms(30000);
    for (int i = 0; i < 2 || engine == SST_FUTEX;
         i++) { /* whoever cannot run swallows one; the next one is the thread's */
        t.a->park->unpark(t.a, the_word(t.a), 0);
        if (i > 0 && ld32(&done))
            break;
        nap(1); /* futex: it may not sleep yet */
        CHECK(sst_now_ns() < until);
    }
    while (!ld32(&done)) {
        nap(1);
        CHECK(sst_now_ns() < until);
    }
    CHECK_IS(pthread_join(id, NULL), 0);
    if (engine == SST_SEMAPHORE)
        CHECK_IS(owned(t.a), sig == SIGSTOP); /* the slot of the dead is free again, that of the living is not */
    if (sig == SIGSTOP) {
        CHECK_IS(kill(pid, SIGKILL), 0);
        CHECK_IS(waitpid(pid, NULL, 0), pid);
    }
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++)
        sst_waiter_bury(t.a, sst_waiter_at(t.a, i));
    CHECK_IS(owned(t.a), 0);
}

/* -- a semaphore that never runs empty ------------------------------------------------------------------------------- */
static void flooded(void) {
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++)
        CHECK_IS(sem_init(&sst_waiter_at(t.a, i)->sem, 1, 0x7fffffff), 0);
    uint64_t began = sst_now_ns();
    for (int i = 0; i < 2; i++) {
        uint64_t until = in_ms(20);
        CHECK_IS(t.b->park->park(t.b, the_word(t.b), ld32(the_word(t.b)), until, 0), SST_ETIMEDOUT);
        CHECK(sst_now_ns() >= until);
    }
    CHECK(sst_now_ns() - began < 15 * SEC); /* two billion posts took 25 s each */
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++)
        CHECK_IS(sem_init(&sst_waiter_at(t.a, i)->sem, 1, 0), 0);
}

/* -- parking is not to be had: the death of a holder is found out all the same ----------------------------------------- */
static void dead_holder(const char *key) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(t.fd);
        CHECK_IS(sst_test_hold(s, 0, key, strlen(key)), SST_OK);
        (void)raise(SIGKILL);
    }
    CHECK_IS(waitpid(pid, NULL, 0), pid);
}

typedef struct {
    uint64_t until;
    int result, late;
} putting;

static void *put_held(void *arg) {
    putting *p = arg;
    p->result = sst_set(t.b, SST_USER, "k", 1, "v", 1, p->until, 0);
    p->late = sst_now_ns() >= p->until;
    return NULL;
}

static void no_slot_left(void) {
    static uint32_t all[SST_WAITERS_MAX];
    uint32_t extra = 0;
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++)
        CHECK_IS(sst_waiter_claim(t.b, the_word(t.b), &all[i]), SST_OK);
    CHECK_IS(sst_waiter_claim(t.b, the_word(t.b), &extra), SST_EAGAIN);
    CHECK_IS(t.b->park->park(t.b, the_word(t.b), ld32(the_word(t.b)), soon(), 0),
             SST_EAGAIN); /* look, at the owner too */
    int line[2];
    char c;
    sst_key k;
    pthread_t id;
    CHECK_IS(pipe(line), 0);
    CHECK_IS(sst_key_make(t.a, SST_USER, "k", 1, &k), SST_OK);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(t.fd);
        CHECK_IS(sst_test_hold(s, 0, "k", 1), SST_OK);
        CHECK_IS(write(line[1], "x", 1), 1);
        for (;;)
            (void)pause();
    }
    CHECK_IS(read(line[0], &c, 1), 1);
    putting p = {.until = in_ms(20000)};
    CHECK_IS(pthread_create(&id, NULL, put_held, &p), 0);
    while (!(ld32(&sst_stripe_at(t.a, k.stripe)->lock) & SST_WAITERS))
        nap(1);
    nap(300); /* it has napped often, and its slices have grown */
    CHECK_IS(kill(pid, SIGKILL), 0);
    CHECK_IS(waitpid(pid, NULL, 0), pid);
    CHECK_IS(pthread_join(id, NULL), 0);
    CHECK_IS(p.result, SST_OK);
    CHECK(!p.late); /* the death is found out long before the deadline */
    (void)close(line[0]);
    (void)close(line[1]);
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++)
        sst_waiter_free(t.b, &all[i]);
    CHECK_IS(owned(t.a), 0);
}

/* 1: from here on the kernel refuses each futex call of this process with EPERM. */
static int refuse_futexes(void) {
    struct sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                                 BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 0, 1),
                                 BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                                 BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static uint64_t cpu_ns(void) {
    struct timespec used;
    CHECK_IS(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used), 0);
    return (uint64_t)used.tv_sec * SEC + (uint64_t)used.tv_nsec;
}

static void refused(void) {
    dead_holder("dead");
    sst_key live;
    CHECK_IS(sst_key_make(t.a, SST_USER, "live", 4, &live), SST_OK);
    CHECK_IS(sst_enter(t.a, live.stripe, soon(), 0), SST_OK);
    (void)fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(t.fd);
        if (!refuse_futexes())
            _exit(77);
        uint64_t until = in_ms(20000), began = cpu_ns();
        CHECK_IS(sst_set(s, SST_USER, "dead", 4, "v", 1, until, 0), SST_OK);
        CHECK(sst_now_ns() < until);
        CHECK_IS(sst_set(s, SST_USER, "live", 4, "v", 1, in_ms(1000), 0), SST_EBUSY);
        CHECK(cpu_ns() - began < 600 * MS); /* it slept, and did not spin to the deadline */
        _exit(0);
    }
    int status = 0;
    CHECK_IS(waitpid(pid, &status, 0), pid);
    sst_exit(t.a, live.stripe, 0);
    CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77));
    if (WEXITSTATUS(status) == 77)
        (void)printf("no seccomp filters here: refused futexes not tested\n");
}

/* -- a slot whose owner died in a line ----------------------------------------------------------------------------------- */
static void die_in_line(void) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        sst_seg *s = attach(t.fd);
        uint32_t waiter = 0;
        size_t len = 0;
        char text[8];
        CHECK_IS(sst_queue_pop(s, SST_USER, "q", 1, 1, text, sizeof text, &len, &waiter, 0, soon(), MS, 0), SST_EAGAIN);
        (void)raise(SIGKILL);
    }
    CHECK_IS(waitpid(pid, NULL, 0), pid);
    CHECK_IS(owned(t.a), 1);
}

/* The next owner of the dead's peer slot, or the next popper, frees the slot, and wipes it before. */
static void buried(void) {
    char text[8];
    die_in_line();
    for (uint32_t i = 0; i < SST_WAITERS_MAX; i++) {
        uint32_t owner = ld32(&sst_waiter_at(t.a, i)->owner);
        if (owner != 0)
            sst_waiter_reap(t.a, SST_OWNER_SLOT(owner), 0); /* as the next process in that peer slot does */
    }
    CHECK_IS(owned(t.a), 0);
    die_in_line();
    CHECK_IS(push(t.a, "q", "it"), SST_OK);
    CHECK_IS(pop(t.b, "q", text, sizeof text), SST_OK);
    CHECK_IS(owned(t.a), 0);
}

int main(void) {
    EACH_ENGINE(engine) {
        twin_open(&t, 2 * MIB, engine);
        wake_one(engine, SIGKILL);
        wake_one(engine, SIGSTOP);
        if (engine == SST_SEMAPHORE) {
            flooded();
            no_slot_left();
        } else {
            refused();
        }
        buried();
        twin_shut(&t);
        (void)printf("%s: dead and stopped waiters, parks that cannot be had\n", engine_name(engine));
    }
    return 0;
}
