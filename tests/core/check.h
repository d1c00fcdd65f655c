/* check.h -- what the C tests share: CHECK, and one segment mapped twice at different addresses.
 *
 * Each view has a lock_fd of its own, so each is a peer with a slot of its own, as two processes would be. Whatever a
 * test does through one view it reads through the other: an address that leaked into the segment cannot hide. */
#ifndef CHECK_H
#define CHECK_H

#include "sst.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB UINT64_C(1048576)
#define MS  UINT64_C(1000000)
#define SEC UINT64_C(1000000000)

/* Ends the test, and of a forked child only the child. */
#define CHECK(what)                                                                                                    \
    do                                                                                                                 \
        if (!(what)) {                                                                                                 \
            (void)fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #what);                                   \
            exit(1);                                                                                                   \
        }                                                                                                              \
    while (0)

/* got == want, of any integer type; both are printed where they differ. */
#define CHECK_IS(got, want)                                                                                            \
    do {                                                                                                               \
        long long got_ = (long long)(got), want_ = (long long)(want);                                                  \
        if (got_ != want_) {                                                                                           \
            (void)fprintf(stderr, "%s:%d: %s is %lld, not %s = %lld\n", __FILE__, __LINE__, #got, got_, #want, want_); \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* -- records for tests/proofs.py ----------------------------------------------------------------------------------- */
#if defined(__SANITIZE_ADDRESS__)
#define BUILD "sanitized"
#else
#define BUILD "plain"
#endif

/* Appends "state TAB what TAB figures" to the file of this process in $SHMSTORE_PROOFS; does nothing without that.
 *
 *   proof("began", "core: set new", "engine=%s", "futex")        before
 *   proof("ended", "core: set new", "engine=%s	kills=%d", ...)  after, when all of it was found to be so
 *
 * What began and did not end, with the same engine and build, is a finding. */
__attribute__((format(printf, 3, 4))) static inline void proof(const char *state, const char *what, const char *figures,
                                                               ...) {
    const char *directory = getenv("SHMSTORE_PROOFS");
    char path[PATH_MAX], line[1024];
    va_list args;
    if (directory == NULL || *directory == 0)
        return;
    int n = snprintf(line, sizeof line, "%s\t%s\tbuild=" BUILD "\t", state, what);
    va_start(args, figures);
    n += vsnprintf(line + n, sizeof line - (size_t)n, figures, args);
    va_end(args);
    CHECK(n + 2 < (int)sizeof line);
    line[n++] = '\n';
    CHECK(snprintf(path, sizeof path, "%s/c-%d", directory, (int)getpid()) < (int)sizeof path);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_IS(write(fd, line, (size_t)n), n);
    (void)close(fd);
}

typedef struct {
    int fd; /* the memfd: a third open, neither mapped nor locked */
    sst_seg *a, *b;
} twin;

/* Another open of the same file. */
static inline int open_again(int fd) {
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int other = open(path, O_RDWR | O_CLOEXEC);
    CHECK(other >= 0);
    return other;
}

static inline int new_file(void) {
    int fd = memfd_create("sst-test", MFD_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static inline sst_seg *attach(int fd) {
    sst_seg *s = NULL;
    CHECK_IS(sst_attach(open_again(fd), open_again(fd), &s), SST_OK);
    return s;
}

static inline void twin_open(twin *t, uint64_t capacity, uint32_t engine) {
    t->fd = new_file();
    CHECK_IS(sst_create(open_again(t->fd), open_again(t->fd), capacity, engine, 0, 0, 77, &t->a), SST_OK);
    t->b = attach(t->fd);
}

/* Leaves, then frees: what close does in a process. */
static inline void let_go(sst_seg *s) {
    if (s == NULL)
        return;
    (void)sst_leave(s);
    sst_free(s);
}

/* sst_verify finds nothing. */
static inline void clean(sst_seg *s) {
    static char report[8192];
    int n = sst_verify(s, report, sizeof report);
    if (n != 0)
        (void)fprintf(stderr, "verify says %d (%s):\n%s", n, n < 0 ? sst_error_name(n) : "broken", report);
    CHECK_IS(n, 0);
}

static inline void twin_shut(twin *t) {
    clean(t->b);
    clean(t->a);
    let_go(t->b);
    let_go(t->a);
    (void)close(t->fd);
}

static inline uint64_t in_ms(uint64_t ms) { return sst_now_ns() + ms * MS; }
/* A deadline far beyond what any call here takes, that still ends a test that hangs. */
static inline uint64_t soon(void) { return in_ms(60000); }

static inline void nap(uint64_t ms) {
    struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000 * 1000000)};
    (void)nanosleep(&t, NULL);
}

/* -- verbs on NUL-terminated user keys ------------------------------------------------------------------------------ */
static inline int put(sst_seg *s, const char *key, const char *val) {
    return sst_set(s, SST_USER, key, strlen(key), val, strlen(val), soon(), 0);
}
/* 1: the key holds exactly this text. */
static inline int holds(sst_seg *s, const char *key, const char *val) {
    char buf[4096];
    size_t len = 0;
    int r = sst_get(s, SST_USER, key, strlen(key), buf, sizeof buf, &len, soon(), 0);
    return r == SST_OK && len == strlen(val) && memcmp(buf, val, len) == 0;
}
static inline int here(sst_seg *s, const char *key) { return sst_check(s, SST_USER, key, strlen(key), soon(), 0); }
static inline int drop(sst_seg *s, const char *key) { return sst_delete(s, SST_USER, key, strlen(key), soon(), 0); }
static inline int plus(sst_seg *s, const char *key, int64_t n, int64_t *v) {
    return sst_add(s, SST_USER, key, strlen(key), n, v, soon(), 0);
}
static inline int append(sst_seg *s, const char *key, const char *val) {
    return sst_append(s, SST_USER, key, strlen(key), val, strlen(val), soon(), 0);
}
static inline int push(sst_seg *s, const char *key, const char *val) {
    return sst_queue_push(s, SST_USER, key, strlen(key), val, strlen(val), soon(), 0);
}
/* Pops without blocking; text is NUL-terminated. */
static inline int pop(sst_seg *s, const char *key, char *text, size_t room) {
    uint32_t waiter = 0;
    size_t len = 0;
    int r = sst_queue_pop(s, SST_USER, key, strlen(key), 0, text, room - 1, &len, &waiter, 0, soon(), 50 * MS, 0);
    text[r == SST_OK ? len : 0] = 0;
    return r;
}
static inline int64_t queue_len(sst_seg *s, const char *key) {
    int64_t n = -1;
    CHECK_IS(sst_queue_len(s, SST_USER, key, strlen(key), &n, soon(), 0), SST_OK);
    return n;
}
static inline int64_t num_keys(sst_seg *s, const char *prefix) {
    int64_t n = -1;
    CHECK_IS(sst_num_keys(s, SST_USER, prefix, strlen(prefix), &n, soon(), 0), SST_OK);
    return n;
}

/* The engines this library has: both, or futex alone. */
static inline uint32_t next_engine(uint32_t engine) {
    return engine == 0 ? SST_FUTEX : engine == SST_FUTEX && sst_has_engine(SST_SEMAPHORE) ? SST_SEMAPHORE : 0;
}
#define EACH_ENGINE(engine) for (uint32_t engine = next_engine(0); engine != 0; engine = next_engine(engine))
static inline const char *engine_name(uint32_t engine) { return engine == SST_FUTEX ? "futex" : "semaphore"; }

#endif
