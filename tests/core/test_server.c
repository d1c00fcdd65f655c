/* test_server.c -- the server: frames torn anywhere, every operation, waits that local setters end, and abuse. */
#include "atomics.h"
#include "check.h"
#include "view.h"
#include "wire.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static twin t;
static sst_server *server;
static int port;

/* -- a client ------------------------------------------------------------------------------------------------------- */
typedef struct {
    char at[1024];
    size_t n;
} request;

static request r_new(uint8_t op) {
    request r = {.n = 1};
    r.at[0] = (char)op;
    return r;
}
static void r_u64(request *r, uint64_t v) {
    memcpy(r->at + r->n, &v, 8);
    r->n += 8;
}
static void r_u32(request *r, uint32_t v) {
    memcpy(r->at + r->n, &v, 4);
    r->n += 4;
}
static void r_text(request *r, const char *s) {
    r_u64(r, strlen(s));
    memcpy(r->at + r->n, s, strlen(s));
    r->n += strlen(s);
}

static int dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_IS(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    struct timeval limit = {20, 0};
    CHECK_IS(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
    return fd;
}

static void put_bytes(int fd, const void *p, size_t n) { CHECK_IS(send(fd, p, n, MSG_NOSIGNAL), (ssize_t)n); }
static void ask(int fd, const request *r) { put_bytes(fd, r->at, r->n); }

static void get_bytes(int fd, void *p, size_t n) {
    for (size_t i = 0; i < n;) {
        ssize_t k = recv(fd, (char *)p + i, n - i, 0);
        CHECK(k > 0);
        i += (size_t)k;
    }
}
static int64_t get_i64(int fd) {
    int64_t v;
    get_bytes(fd, &v, 8);
    return v;
}
static int get_u8(int fd) {
    uint8_t v;
    get_bytes(fd, &v, 1);
    return v;
}
static int got_text(int fd, const char *want) {
    static char got[1 << 16];
    int64_t n = get_i64(fd);
    CHECK(n >= 0 && n < (int64_t)sizeof got);
    get_bytes(fd, got, (size_t)n);
    return (size_t)n == strlen(want) && memcmp(got, want, (size_t)n) == 0;
}
static int silent(int fd) {
    struct pollfd p = {fd, POLLIN, 0};
    return poll(&p, 1, 30) == 0;
}
/* The server has disconnected it. */
static int gone(int fd) {
    char c;
    ssize_t n = recv(fd, &c, 1, 0);
    return n == 0 || (n < 0 && errno == ECONNRESET);
}

static void greet(int fd) {
    request r = r_new(SST_OP_VALIDATE);
    r_u32(&r, SST_WIRE_MAGIC);
    r.at[r.n++] = SST_OP_PING;
    r_u32(&r, 4711);
    ask(fd, &r);
    uint32_t nonce = 0;
    get_bytes(fd, &nonce, 4);
    CHECK_IS(nonce, 4711);
}
static int client(void) {
    int fd = dial();
    greet(fd);
    return fd;
}

static request one(uint8_t op, const char *key) {
    request r = r_new(op);
    r_text(&r, key);
    return r;
}
static request two(uint8_t op, const char *key, const char *value) {
    request r = one(op, key);
    r_text(&r, value);
    return r;
}
static request number(uint8_t op, const char *key, int64_t n) {
    request r = one(op, key);
    r_u64(&r, (uint64_t)n);
    return r;
}
static request some(uint8_t op, int n, const char *const *keys) {
    request r = r_new(op);
    r_u64(&r, (uint64_t)n);
    for (int i = 0; i < n; i++)
        r_text(&r, keys[i]);
    return r;
}
static void tell(int fd, request r) { ask(fd, &r); }
#define KEYS(...)                                                                                                      \
    (const char *const[]) { __VA_ARGS__ }

static void start(sst_seg *s) {
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t size = sizeof a;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 1024) == 0);
    CHECK_IS(getsockname(fd, (struct sockaddr *)&a, &size), 0);
    port = ntohs(a.sin_port);
    CHECK_IS(sst_server_start(s, fd, &server), SST_OK);
}

static sst_server_info stat_of(void) {
    sst_server_info i;
    CHECK_IS(sst_server_stat(server, &i), SST_OK);
    return i;
}
static void until_waiting(uint64_t n) {
    for (uint64_t end = soon(); stat_of().waiting != n; nap(1))
        CHECK(sst_now_ns() < end);
}
static void until_open(uint64_t n) {
    for (uint64_t end = soon(); stat_of().open != n; nap(1))
        CHECK(sst_now_ns() < end);
}

/* -- frames --------------------------------------------------------------------------------------------------------- */
/* Every split of a request into two, and byte by byte: the walk ends at the same place. */
static void walks(const request *r) {
    sst_frame whole = {0};
    CHECK_IS(sst_frame_walk(&whole, r->at, r->n), SST_OK);
    CHECK_IS(whole.at, r->n);
    for (size_t cut = 0; cut < r->n; cut++) {
        sst_frame f = {0};
        CHECK_IS(sst_frame_walk(&f, r->at, cut), SST_EAGAIN);
        CHECK(f.need > cut && f.need <= r->n);
        CHECK_IS(sst_frame_walk(&f, r->at, r->n), SST_OK);
        CHECK_IS(f.at, r->n);
    }
    sst_frame f = {0};
    for (size_t n = 0; n < r->n; n++)
        CHECK_IS(sst_frame_walk(&f, r->at, n), SST_EAGAIN);
    CHECK_IS(sst_frame_walk(&f, r->at, r->n), SST_OK);
}

static void frames(void) {
    for (int op = 0; op < SST_OPS; op++) {
        request r = r_new(op == SST_OP_HOLD ? SST_WIRE_HOLD : (uint8_t)op);
        const char *form = sst_frame_form((uint32_t)op);
        int rounds = form[0] == '*' ? 3 : 1;
        if (form[0] == '*')
            r_u64(&r, 3);
        for (int i = 0; i < rounds; i++)
            for (const char *k = form + (form[0] == '*'); *k; k++)
                *k == 'u' ? r_u32(&r, 7) : *k == 'i' ? r_u64(&r, 7) : r_text(&r, *k == 'k' ? "/key" : "");
        walks(&r);
    }
    static const uint64_t nasty[] = {SST_WIRE_KEY_MAX + 1, UINT64_MAX, UINT64_MAX - 8, UINT64_C(1) << 63, 1u << 31};
    for (size_t i = 0; i < sizeof nasty / sizeof *nasty; i++) {
        request r = r_new(SST_OP_GET), many = r_new(SST_OP_CHECK), val = one(SST_OP_SET, "/k");
        sst_frame f = {0}, g = {0}, h = {0};
        r_u64(&r, nasty[i]);
        r_u64(&many, nasty[i] + SST_WIRE_KEYS_MAX < nasty[i] ? nasty[i] : nasty[i] + SST_WIRE_KEYS_MAX);
        r_u64(&val, nasty[i] + SST_VALUE_MAX < nasty[i] ? nasty[i] : nasty[i] + SST_VALUE_MAX);
        CHECK_IS(sst_frame_walk(&f, r.at, r.n), SST_EINVAL);
        CHECK_IS(sst_frame_walk(&g, many.at, many.n), SST_EINVAL);
        CHECK_IS(sst_frame_walk(&h, val.at, val.n), SST_EINVAL);
    }
    sst_frame f = {0};
    CHECK_IS(sst_frame_walk(&f, "\x13", 1), SST_EINVAL);
}

/* -- operations ----------------------------------------------------------------------------------------------------- */
static void operations(void) {
    int fd = client();
    tell(fd, two(SST_OP_SET, "/a", "one"));
    tell(fd, one(SST_OP_GET, "/a"));
    CHECK(got_text(fd, "one") && holds(t.b, "a", "one"));
    CHECK_IS(put(t.b, "b", "local"), SST_OK);
    tell(fd, one(SST_OP_GET, "/b"));
    CHECK(got_text(fd, "local"));
    tell(fd, one(SST_OP_GET, "/none"));
    CHECK(got_text(fd, ""));
    tell(fd, number(SST_OP_ADD, "/n", 5));
    CHECK_IS(get_i64(fd), 5);
    tell(fd, number(SST_OP_ADD, "/n", -7));
    CHECK_IS(get_i64(fd), -2);
    tell(fd, two(SST_OP_APPEND, "/a", "+two"));
    CHECK_IS((tell(fd, some(SST_OP_CHECK, 2, KEYS("/a", "/n"))), get_u8(fd)), 0);
    CHECK_IS((tell(fd, some(SST_OP_CHECK, 2, KEYS("/a", "/none"))), get_u8(fd)), 1);
    CHECK_IS((tell(fd, some(SST_OP_CHECK, 0, KEYS(""))), get_u8(fd)), 0);
    CHECK(holds(t.b, "a", "one+two"));
    request cas = two(SST_OP_COMPARE_SET, "/a", "one+two");
    r_text(&cas, "three");
    ask(fd, &cas);
    CHECK(got_text(fd, "three"));
    ask(fd, &cas);
    CHECK(got_text(fd, "three"));
    request fresh = two(SST_OP_COMPARE_SET, "/cas", "x");
    r_text(&fresh, "y");
    ask(fd, &fresh);
    CHECK(got_text(fd, "x") && !here(t.a, "cas"));
    tell(fd, number(SST_OP_ADD, "init/", 1));
    CHECK_IS(get_i64(fd), 1);
    CHECK(!here(t.b, "init/") && num_keys(t.b, "") == 3);
    tell(fd, r_new(SST_OP_NUM_KEYS));
    CHECK_IS(get_i64(fd), 4);
    tell(fd, r_new(SST_OP_LIST_KEYS));
    CHECK_IS(get_i64(fd), 4);
    int slashes = 0;
    for (int i = 0; i < 4; i++) {
        char key[16] = {0};
        int64_t n = get_i64(fd);
        CHECK(n > 0 && n < 16);
        get_bytes(fd, key, (size_t)n);
        slashes += key[0] == '/';
        CHECK(strstr("/a /b /n init/", key) != NULL);
    }
    CHECK_IS(slashes, 3);
    CHECK_IS((tell(fd, one(SST_OP_DELETE, "/a")), get_i64(fd)), 1);
    CHECK_IS((tell(fd, one(SST_OP_DELETE, "/a")), get_i64(fd)), 0);
    request set = r_new(SST_OP_MULTI_SET);
    r_u64(&set, 3);
    r_text(&set, "/m1"), r_text(&set, "v1"), r_text(&set, "raw"), r_text(&set, "v2"), r_text(&set, "/m3");
    r_text(&set, "");
    ask(fd, &set);
    tell(fd, some(SST_OP_MULTI_GET, 3, KEYS("/m1", "raw", "/m3")));
    CHECK(got_text(fd, "v1") && got_text(fd, "v2") && got_text(fd, ""));
    CHECK(holds(t.b, "m1", "v1") && here(t.b, "m3") && !here(t.b, "raw"));
    tell(fd, two(SST_OP_QUEUE_PUSH, "/q", "i1"));
    tell(fd, two(SST_OP_QUEUE_PUSH, "/q", "i2"));
    CHECK_IS((tell(fd, one(SST_OP_QUEUE_LEN, "/q")), get_i64(fd)), 2);
    CHECK_IS((tell(fd, one(SST_OP_QUEUE_POP, "/q")), get_i64(fd)), 2);
    CHECK(got_text(fd, "i1"));
    CHECK_IS((tell(fd, one(SST_OP_QUEUE_POP, "/q")), get_i64(fd)), 1);
    CHECK(got_text(fd, "i2"));
    CHECK_IS((tell(fd, one(SST_OP_QUEUE_POP, "/q")), get_i64(fd)), 0);
    CHECK_IS((tell(fd, some(SST_OP_WAIT, 2, KEYS("/m1", "/b"))), get_u8(fd)), 0);
    CHECK_IS((tell(fd, some(SST_OP_WAIT, 0, KEYS(""))), get_u8(fd)), 0);
    CHECK_IS((tell(fd, number(SST_OP_BARRIER, "/bar", 1)), get_u8(fd)), 0);
    CHECK_IS((tell(fd, r_new(SST_OP_CANCEL_WAIT)), get_u8(fd)), 1);
    CHECK(holds(t.b, "bar", "1"));
    (void)close(fd);
}

/* Large values, both ways: more than a try copies, more than a socket holds. */
static void large(void) {
    size_t n = SST_VALUE_MAX;
    char *value = malloc(n), *got = malloc(n);
    CHECK(value && got);
    for (size_t i = 0; i < n; i++)
        value[i] = (char)(i * 2654435761u >> 13);
    int fd = client();
    request r = one(SST_OP_SET, "/large");
    r_u64(&r, n);
    ask(fd, &r);
    for (size_t i = 0; i < n;) {
        ssize_t k = send(fd, value + i, n - i, MSG_NOSIGNAL);
        CHECK(k > 0);
        i += (size_t)k;
    }
    for (int i = 0; i < 3; i++)
        tell(fd, one(SST_OP_GET, "/large"));
    for (int i = 0; i < 3; i++) {
        CHECK_IS(get_i64(fd), (int64_t)n);
        memset(got, 0, n);
        get_bytes(fd, got, n);
        CHECK(memcmp(got, value, n) == 0);
    }
    CHECK(drop(t.a, "large") == 1);
    (void)close(fd);
    free(value);
    free(got);
}

/* -- waits ---------------------------------------------------------------------------------------------------------- */
enum { RACES = 400 };
static uint32_t race; /* rounds begun */
static uint64_t set_at;

static void *set_late(void *key) {
    until_waiting(1);
    set_at = sst_now_ns();
    CHECK_IS(put(t.b, key, "late"), SST_OK);
    return NULL;
}

/* A local setter in another slot ends the wait: far sooner than the slice that stands in for a ring that was lost. */
static void local_set_wakes(void) {
    int fd = client(), quick = 0;
    for (int i = 0; i < 50; i++) {
        char key[32], wire[33];
        (void)snprintf(key, sizeof key, "late-%d", i);
        (void)snprintf(wire, sizeof wire, "/%s", key);
        tell(fd, some(SST_OP_WAIT, 1, KEYS(wire)));
        pthread_t id;
        CHECK_IS(pthread_create(&id, NULL, set_late, key), 0);
        CHECK_IS(get_u8(fd), 0);
        uint64_t told_at = sst_now_ns();
        CHECK_IS(pthread_join(id, NULL), 0);
        quick += told_at - set_at < 40 * MS;
        CHECK_IS(drop(t.a, key), 1);
    }
    CHECK(quick >= 25); /* a busy machine may be late now and then; a lost ring is late each time */
    (void)close(fd);
}

static void *set_at_once(void *arg) {
    for (int i = 0; i < RACES; i++) {
        char key[32];
        while (ld32_acquire(&race) != (uint32_t)i + 1)
            sched_yield();
        for (int spin = i * 37 % 4000; spin > 0; spin--)
            sst_pause();
        (void)snprintf(key, sizeof key, "race-%d", i);
        CHECK_IS(put(arg, key, ""), SST_OK);
    }
    return NULL;
}

/* Sets that race with the arming of the wait, the park of the bell thread and the sleep of the server: a wake that is
 * lost in any of these takes a slice of 50 ms, or for ever. */
static void races(void) {
    int fd = client(), late = 0;
    pthread_t id;
    race = 0;
    CHECK_IS(pthread_create(&id, NULL, set_at_once, t.b), 0);
    for (int i = 0; i < RACES; i++) {
        char wire[33];
        (void)snprintf(wire, sizeof wire, "/race-%d", i);
        uint64_t start_ns = sst_now_ns();
        own_st32(&race, (uint32_t)i + 1);
        tell(fd, some(SST_OP_WAIT, 1, KEYS(wire)));
        CHECK_IS(get_u8(fd), 0);
        late += sst_now_ns() - start_ns > 45 * MS;
        CHECK_IS(drop(t.a, wire + 1), 1);
    }
    CHECK_IS(pthread_join(id, NULL), 0);
    CHECK(late < RACES / 10); /* a busy machine may be late now and then */
    (void)close(fd);
}

/* A process that serves is killed: what it armed costs a ring of nobody, and the others hear on. */
static void killed_server(void) {
#if defined(__SANITIZE_THREAD__)
    return; /* it knows no threads that a forked child starts */
#endif
    int pipes[2];
    char c;
    CHECK_IS(pipe(pipes), 0);
    pid_t pid = fork();
    if (pid == 0) {
        start(t.b);
        int fd = client();
        tell(fd, some(SST_OP_WAIT, 1, KEYS("/orphan")));
        until_waiting(1);
        nap(20); /* the bell thread has parked */
        CHECK_IS(write(pipes[1], "x", 1), 1);
        for (;;)
            (void)pause();
    }
    CHECK_IS(read(pipes[0], &c, 1), 1);
    CHECK_IS(kill(pid, SIGKILL), 0);
    CHECK_IS(waitpid(pid, NULL, 0), pid);
    int fd = client();
    tell(fd, some(SST_OP_WAIT, 1, KEYS("/orphan")));
    until_waiting(1);
    CHECK_IS(put(t.b, "orphan", ""), SST_OK);
    CHECK_IS(get_u8(fd), 0);
    CHECK_IS(drop(t.a, "orphan"), 1);
    (void)close(fd), (void)close(pipes[0]), (void)close(pipes[1]);
}

/* A ringer that has taken the names out of the bell, and was killed before it woke whom they named. */
static void die_ringing(void) {
    uint32_t *bell = &sst_heap_of(t.b)->bell, old;
    for (uint64_t end = soon(); ((old = ld32(bell)) & SST_BELL_WHO) == 0; nap(1)) /* the bell thread has armed it */
        CHECK(sst_now_ns() < end);
    nap(100); /* a slice at the most, and it has parked without one, as nobody waits */
    CHECK(cas32_seq_cst(bell, old, (old & ~SST_BELL_WHO) + SST_BELL_ONE));
}

/* Found by docs/model/bell.pml: nobody named the bell thread any more, and nobody woke it. */
static void ringer_died(void) {
    int fd = client();
    die_ringing();
    tell(fd, some(SST_OP_WAIT, 1, KEYS("/rung")));
    until_waiting(1);
    CHECK_IS(put(t.b, "rung", ""), SST_OK);
    CHECK_IS(get_u8(fd), 0);
    CHECK_IS(drop(t.a, "rung"), 1);
    (void)close(fd);
    until_open(0);
    die_ringing();
    CHECK_IS(sst_server_stop(server, 0), SST_OK); /* it waits for that thread, too */
    sst_server_free(server);
    start(t.a);
}

static void waits(void) {
    int a = client(), b = client();
    tell(a, some(SST_OP_WAIT, 3, KEYS("/w1", "/w2", "/w1")));
    until_waiting(1);
    tell(b, two(SST_OP_SET, "/w2", ""));
    CHECK_IS((tell(b, one(SST_OP_DELETE, "/w2")), get_i64(b)), 1);
    CHECK(silent(a));
    CHECK_IS(put(t.a, "w1", "x"), SST_OK); /* w2 was seen, and is gone: that counts */
    CHECK_IS(get_u8(a), 0);
    tell(a, some(SST_OP_WAIT, 1, KEYS("/never")));
    until_waiting(1);
    CHECK(silent(a));
    tell(a, r_new(SST_OP_CANCEL_WAIT));
    CHECK_IS(get_u8(a), 1);
    tell(b, two(SST_OP_SET, "/never", "now"));
    tell(b, one(SST_OP_GET, "/never"));
    CHECK(got_text(b, "now") && silent(a));
    tell(a, some(SST_OP_WAIT, 1, KEYS("/gone")));
    until_waiting(1);
    (void)close(a); /* the wait goes with its connection */
    until_waiting(0);
    CHECK(drop(t.a, "never") == 1 && drop(t.a, "w1") == 1);
    (void)close(b);
}

/* One request with others in it. */
static request holding(int n, const request *what) {
    request r = r_new(SST_WIRE_HOLD);
    size_t size = 0;
    for (int i = 0; i < n; i++)
        size += what[i].n;
    r_u64(&r, size);
    for (int i = 0; i < n; i++) {
        memcpy(r.at + r.n, what[i].at, what[i].n);
        r.n += what[i].n;
    }
    return r;
}
static void tell_both(int fd, request first, request second) {
    memcpy(first.at + first.n, second.at, second.n);
    first.n += second.n;
    ask(fd, &first);
}
static request swap(const char *key, const char *expected, const char *desired) {
    request r = two(SST_OP_COMPARE_SET, key, expected);
    r_text(&r, desired);
    return r;
}

/* What is held comes after the wait, in its order, or not at all. */
static void held_back(void) {
    int a = client(), b = client();
    request asked = r_new(SST_OP_PING);
    r_u32(&asked, SST_WIRE_ASKED);
    uint32_t known = 0;
    ask(a, &asked);
    get_bytes(a, &known, 4);
    CHECK_IS(known, SST_WIRE_ANSWERED);
    request first = swap("/held", "", "by a"), second = swap("/held", "", "by b"), get = one(SST_OP_GET, "/held");
    tell_both(a, some(SST_OP_WAIT, 2, KEYS("/h1", "/h2")), holding(2, (request[]){first, get}));
    until_waiting(1);
    tell_both(b, some(SST_OP_WAIT, 2, KEYS("/h2", "/h1")), holding(1, &second));
    until_waiting(2);
    CHECK(silent(a) && silent(b) && !here(t.a, "held"));
    CHECK_IS(put(t.a, "h1", "x"), SST_OK);
    CHECK(silent(a) && !here(t.a, "held"));
    CHECK_IS(put(t.a, "h2", "x"), SST_OK);
    CHECK(get_u8(a) == 0 && get_u8(b) == 0);
    char won[8] = "by a";
    size_t n = (size_t)get_i64(b);
    CHECK_IS(n, 4);
    get_bytes(b, won, n); /* who was first decides for both */
    CHECK(got_text(a, won) && got_text(a, won));
    /* the wait is over already; there is none */
    tell_both(a, some(SST_OP_WAIT, 1, KEYS("/h1")), holding(1, &get));
    CHECK(get_u8(a) == 0 && got_text(a, won));
    tell(a, holding(1, &get));
    CHECK(got_text(a, won));
    tell(a, holding(0, NULL));
    /* taken back; and what comes behind it is served */
    request set = two(SST_OP_SET, "/never set", "x");
    tell_both(a, some(SST_OP_WAIT, 1, KEYS("/never")), holding(1, &set));
    until_waiting(1);
    tell(a, r_new(SST_OP_CANCEL_WAIT));
    CHECK_IS(get_u8(a), 1);
    until_waiting(0);
    tell(a, get);
    CHECK(got_text(a, won) && !here(t.a, "never set"));
    /* a key that comes from elsewhere as the wait is taken back: its answer with what was held, or neither */
    for (int i = 0; i < 200; i++) {
        tell_both(a, some(SST_OP_WAIT, 1, KEYS("/race")), holding(1, &get));
        until_waiting(1);
        tell(a, r_new(SST_OP_CANCEL_WAIT));
        CHECK_IS(put(t.a, "race", "x"), SST_OK);
        int cancelled = get_u8(a);
        CHECK(cancelled || (got_text(a, won) && get_u8(a) == 1));
        CHECK_IS(drop(t.a, "race"), 1);
    }
    /* one in the other; what it sets is what the other waits for */
    request inner = some(SST_OP_WAIT, 1, KEYS("/h4")), deep = holding(1, &get), h4 = two(SST_OP_SET, "/h4", "x");
    tell_both(a, some(SST_OP_WAIT, 1, KEYS("/h3")), holding(2, (request[]){inner, deep}));
    tell_both(b, some(SST_OP_WAIT, 1, KEYS("/h3")), holding(1, &h4));
    until_waiting(2);
    CHECK_IS(put(t.a, "h3", "x"), SST_OK);
    CHECK(get_u8(b) == 0 && get_u8(a) == 0 && get_u8(a) == 0 && got_text(a, won));
    /* nothing but CANCEL_WAIT may follow, and it has a limit */
    for (int i = 0; i < 3; i++) {
        int fd = client();
        tell_both(fd, some(SST_OP_WAIT, 1, KEYS("/never")), holding(1, &set));
        until_waiting(1);
        if (i == 0) {
            tell(fd, get);
            CHECK(gone(fd));
        } else if (i == 1) {
            tell_both(fd, r_new(SST_OP_CANCEL_WAIT), get);
            CHECK(get_u8(fd) == 1 && got_text(fd, won));
        }
        (void)close(fd);
        until_waiting(0);
    }
    static char much[SST_WIRE_HOLD_MOST + 1];
    int fd = client();
    request big = r_new(SST_WIRE_HOLD);
    r_u64(&big, sizeof much);
    ask(fd, &big);
    (void)send(fd, much, sizeof much, MSG_NOSIGNAL);
    CHECK(gone(fd));
    (void)close(fd);
    CHECK(!here(t.a, "never set"));
    for (int i = 1; i <= 4; i++) {
        char key[3] = {'h', (char)('0' + i), 0};
        CHECK_IS(drop(t.a, key), 1);
    }
    CHECK_IS(drop(t.a, "held"), 1);
    (void)close(a), (void)close(b);
}

/* An item wakes one waiter, and whoever it woke gets it. */
static void queues(void) {
    enum { N = 8 };
    int fd[N], woken = 0;
    for (int i = 0; i < N; i++) {
        fd[i] = client();
        tell(fd[i], some(SST_OP_WAIT, 1, KEYS("/items")));
    }
    until_waiting(N);
    for (int i = 0; i < N; i++)
        CHECK_IS(push(i % 2 ? t.a : t.b, "items", "x"), SST_OK);
    for (int i = 0; i < N; i++) {
        CHECK_IS(get_u8(fd[i]), 0);
        tell(fd[i], one(SST_OP_QUEUE_POP, "/items"));
        CHECK(get_i64(fd[i]) > 0 && got_text(fd[i], "x"));
    }
    for (int i = 0; i < 2; i++)
        tell(fd[i], some(SST_OP_WAIT, 1, KEYS("/items")));
    until_waiting(2);
    CHECK_IS(push(t.a, "items", "y"), SST_OK);
    for (uint64_t end = soon(); woken != 1; nap(1)) { /* one now; the other when the first takes too long */
        CHECK(sst_now_ns() < end);
        woken = 2 - (int)stat_of().waiting;
        CHECK(woken <= 1);
    }
    until_waiting(0);
    for (int i = 0; i < N; i++)
        (void)close(fd[i]);
    char text[8];
    CHECK_IS(pop(t.a, "items", text, sizeof text), SST_OK);
}

static void *local_barrier(void *arg) {
    uint32_t arrived = 0, waiter = 0;
    int64_t count = 0;
    int r;
    do
        r = sst_barrier(arg, SST_USER, "mixed", 5, 6, &arrived, &count, &waiter, 0, soon(), 30 * SEC);
    while (r == SST_EAGAIN);
    CHECK_IS(r, SST_OK);
    return NULL;
}

static int arrived_at_mixed(int64_t n) {
    char text[8];
    (void)snprintf(text, sizeof text, "%lld", (long long)n);
    return holds(t.a, "mixed", text);
}

/* Local callers and connections meet, whoever comes last; nobody is lost when the key goes straight away. */
static void barriers(void) {
    for (int last_is_local = 0; last_is_local < 2; last_is_local++) {
        pthread_t id[3];
        int fd[3];
        for (int i = 0; i < 3; i++)
            fd[i] = client();
        for (int i = 0; i < 2; i++)
            CHECK_IS(pthread_create(&id[i], NULL, local_barrier, i % 2 ? t.a : t.b), 0);
        for (int i = 0; i < 2; i++)
            tell(fd[i], number(SST_OP_BARRIER, "/mixed", 6));
        for (uint64_t end = soon(); !arrived_at_mixed(4); nap(1))
            CHECK(sst_now_ns() < end);
        if (last_is_local) {
            tell(fd[2], number(SST_OP_BARRIER, "/mixed", 6));
            until_waiting(3);
            (void)local_barrier(t.b);
        } else {
            CHECK_IS(pthread_create(&id[2], NULL, local_barrier, t.b), 0);
            for (uint64_t end = soon(); !arrived_at_mixed(5); nap(1))
                CHECK(sst_now_ns() < end);
            tell(fd[2], number(SST_OP_BARRIER, "/mixed", 6));
        }
        CHECK_IS(get_u8(fd[2]), 0);
        CHECK_IS(drop(t.a, "mixed"), 1);
        for (int i = 0; i < 2; i++)
            CHECK_IS(get_u8(fd[i]), 0);
        for (int i = 0; i < 2 + !last_is_local; i++)
            CHECK_IS(pthread_join(id[i], NULL), 0);
        for (int i = 0; i < 3; i++)
            (void)close(fd[i]);
    }
    until_open(0);
    sst_waiter out[4];
    CHECK_IS(sst_waiters(t.a, out, 4), 0);
}

/* -- abuse ---------------------------------------------------------------------------------------------------------- */
static void rude(void) {
    int good = client();
    static const char *const bad[] = {"\x13", "\x01", "\x0d____", "GET / HTTP/1.0\r\n\r\n", "\x00____"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) { /* first operations that are none */
        int fd = dial();
        put_bytes(fd, bad[i], i == 1 ? 1 : i == 4 ? 5 : strlen(bad[i]));
        if (i == 1) { /* SET first: known only when it is whole */
            request r = two(SST_OP_SET, "/rude", "x");
            put_bytes(fd, r.at + 1, r.n - 1);
        }
        CHECK(gone(fd));
        (void)close(fd);
    }
    request r[6] = {r_new(SST_OP_GET),   r_new(SST_OP_CHECK), two(SST_OP_SET, "/text", "words"),
                    one(SST_OP_GET, ""), r_new(99),           one(SST_OP_SET, "/k")};
    r_u64(&r[0], UINT64_MAX);
    r_u64(&r[1], SST_WIRE_KEYS_MAX + 1);
    request add = number(SST_OP_ADD, "/text", 1);
    memcpy(r[2].at + r[2].n, add.at, add.n);
    r[2].n += add.n;
    r_u64(&r[5], SST_VALUE_MAX + 1);
    for (int i = 0; i < 6; i++) {
        int fd = client();
        ask(fd, &r[i]);
        CHECK(gone(fd));
        (void)close(fd);
    }
    for (size_t cut = 1; cut < 40; cut++) { /* resets in the middle of a frame */
        request set = two(SST_OP_SET, "/torn", "0123456789012345678901234567890123456789");
        int fd = client();
        struct linger hard = {1, 0};
        CHECK_IS(setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard), 0);
        put_bytes(fd, set.at, cut);
        (void)close(fd);
    }
    int two_waits = client();
    tell(two_waits, some(SST_OP_WAIT, 1, KEYS("/never")));
    tell(two_waits, some(SST_OP_WAIT, 1, KEYS("/never")));
    CHECK(gone(two_waits));
    (void)close(two_waits);
    tell(good, one(SST_OP_GET, "/torn"));
    CHECK(got_text(good, "") && !here(t.a, "rude"));
    CHECK(drop(t.a, "text") == 1);
    (void)close(good);
    until_open(0);
}

/* A byte at a time, while another is served. */
static void slow(void) {
    int fd = client(), other = client();
    request r = two(SST_OP_SET, "/slow", "value"), get = one(SST_OP_GET, "/slow");
    for (size_t i = 0; i < r.n; i++) {
        put_bytes(fd, r.at + i, 1);
        CHECK_IS((tell(other, one(SST_OP_QUEUE_LEN, "/slow")), get_i64(other)), 0);
    }
    ask(fd, &get);
    CHECK(got_text(fd, "value"));
    (void)close(fd);
    (void)close(other);
}

/* Asks for far more than it reads: what is kept for it is bounded, and others are served. */
static void deaf(void) {
    static char value[65536];
    CHECK_IS(sst_set(t.a, SST_USER, "big", 3, value, sizeof value, soon(), 0), SST_OK);
    int fd = dial(), other = client(), asked = 0;
    int small = 262144; /* smaller than a segment of the loopback, a window opens by timers alone */
    CHECK_IS(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
    greet(fd);
    request r = one(SST_OP_GET, "/big");
    uint64_t before = stat_of().operations;
    for (struct pollfd p = {fd, POLLOUT, 0}; asked < 20000 && poll(&p, 1, 200) == 1; asked++)
        if (send(fd, r.at, r.n, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)r.n)
            break;
    nap(50);
    CHECK(asked > 2000 && stat_of().operations - before < 1000); /* it stopped serving the deaf */
    tell(other, one(SST_OP_GET, "/big"));
    CHECK_IS(get_i64(other), (int64_t)sizeof value);
    get_bytes(other, value, sizeof value);
    for (int i = 0; i < 100; i++) { /* it goes on when its peer reads */
        CHECK_IS(get_i64(fd), (int64_t)sizeof value);
        get_bytes(fd, value, sizeof value);
    }
    (void)close(fd);
    (void)close(other);
    CHECK_IS(drop(t.a, "big"), 1);
}

/* While it is told to be strict this view parks on the bell alone: the thread that serves parks nowhere. */
static const sst_park_engine *real;
static sst_park_engine watched;
static uint32_t strict;
static int watch_parks(sst_seg *s, uint32_t *word, uint32_t value, uint64_t deadline_ns, uint32_t waiter) {
    CHECK(!ld32(&strict) || word == &sst_heap_of(s)->bell);
    return real->park(s, word, value, deadline_ns, waiter);
}

/* A live process that stopped holding a lock delays who needs that lock, and nobody else; a dead one nobody. */
static void stopped_holder(void) {
    for (int dies = 0; dies < 2; dies++) {
        int fd = client(), other = client(), pipes[2];
        char c;
        CHECK_IS(put(t.a, "held", "x"), SST_OK);
        CHECK_IS(pipe(pipes), 0);
        pid_t pid = fork();
        if (pid == 0) {
            if (sst_test_hold(t.b, 0, "held", 4) == SST_OK && write(pipes[1], "x", 1) == 1)
                for (;;)
                    (void)pause();
            _exit(1);
        }
        CHECK_IS(read(pipes[0], &c, 1), 1);
        own_st32(&strict, 1);
        if (dies) {
            CHECK_IS(kill(pid, SIGKILL), 0);
            CHECK_IS(waitpid(pid, NULL, 0), pid);
        }
        tell(fd, two(SST_OP_SET, "/held", "y"));
        tell(fd, one(SST_OP_GET, "/held"));
        uint64_t start_ns = sst_now_ns();
        for (int i = 0; i < 200; i++) {
            tell(other, number(SST_OP_ADD, "/free", 1));
            (void)get_i64(other);
        }
        CHECK(dies || sst_now_ns() - start_ns < 10 * SEC); /* 200 times the patience for a lock would be 40 s */
        if (!dies) {
            CHECK(silent(fd));
            tell(other, r_new(SST_OP_LIST_KEYS)); /* needs all locks */
            tell(fd, one(SST_OP_QUEUE_POP, "/held")); /* behind what waits for that lock already */
            CHECK(silent(other));
            CHECK_IS(kill(pid, SIGKILL), 0);
            CHECK_IS(waitpid(pid, NULL, 0), pid);
            for (int64_t n = get_i64(other); n > 0; n--) {
                char key[64];
                int64_t len = get_i64(other);
                CHECK(len > 0 && len < 64);
                get_bytes(other, key, (size_t)len);
            }
        }
        CHECK(got_text(fd, "y"));
        if (!dies)
            CHECK_IS(get_i64(fd), 0);
        own_st32(&strict, 0);
        CHECK(drop(t.a, "held") == 1 && drop(t.a, "free") == 1);
        (void)close(fd), (void)close(other), (void)close(pipes[0]), (void)close(pipes[1]);
    }
}

/* As many connections as there are descriptors, and more: the rest is refused, nobody is hurt. */
static void crowd(void) {
    struct rlimit was, less;
    CHECK_IS(getrlimit(RLIMIT_NOFILE, &was), 0);
    less = was;
    less.rlim_cur = 120;
    int good = client(), fd[200], n = 0, refused = 0;
    CHECK_IS(setrlimit(RLIMIT_NOFILE, &less), 0);
    while (n < 200 && (fd[n] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) >= 0)
        n++;
    for (int i = 0; i < 5; i++) /* of all there were this leaves a few to the server */
        (void)close(fd[--n]);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < n; i++)
        CHECK_IS(connect(fd[i], (struct sockaddr *)&a, sizeof a), 0);
    CHECK_IS((tell(good, number(SST_OP_ADD, "/crowd", 1)), get_i64(good)), 1);
    for (int i = 0; i < n; i++) {
        struct pollfd p = {fd[i], POLLIN, 0};
        refused += poll(&p, 1, 20) == 1;
        (void)close(fd[i]);
    }
    CHECK_IS(setrlimit(RLIMIT_NOFILE, &was), 0);
    CHECK(refused > 0);
    int after = client();
    CHECK_IS((tell(after, number(SST_OP_ADD, "/crowd", 1)), get_i64(after)), 2);
    CHECK_IS(drop(t.a, "crowd"), 1);
    (void)close(after);
    (void)close(good);
    until_open(0);
}

/* -- the end -------------------------------------------------------------------------------------------------------- */
static void forked(void) {
    int fd = client(), pipes[2];
    CHECK_IS(pipe(pipes), 0);
    pid_t holder = (pid_t)syscall(SYS_clone, (unsigned long)SIGCHLD, NULL, NULL, NULL, 0UL);
    if (holder == 0) { /* no fork handler has run: it has all descriptors, as for a moment every child has */
        char c;
        (void)close(pipes[1]);
        (void)!read(pipes[0], &c, 1);
        _exit(0);
    }
    int bye = client();
    (void)close(bye); /* the holder has none of this one, */
    tell(fd, r_new(99));
    CHECK(gone(fd)); /* but of this one, which ends all the same, and is heard of no more */
    (void)close(fd);
    fd = client();
    CHECK_IS((tell(fd, number(SST_OP_ADD, "/held open", 1)), get_i64(fd)), 1);
    CHECK_IS(drop(t.a, "held open"), 1);
    (void)close(pipes[0]), (void)close(pipes[1]);
    CHECK_IS(waitpid(holder, NULL, 0), holder);
    pid_t pid = fork();
    if (pid == 0) {
        sst_server_info i;
        CHECK(sst_server_stat(server, &i) == SST_OK && i.running == 0);
        CHECK_IS(sst_server_stop(server, SEC), SST_OK);
        CHECK_IS(put(t.a, "from the child", "x"), SST_OK);
        _exit(0);
    }
    int status = 1;
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK_IS(status, 0);
    tell(fd, one(SST_OP_GET, "/from the child"));
    CHECK(got_text(fd, "x"));
    CHECK_IS(drop(t.a, "from the child"), 1);
    (void)close(fd);
    until_open(0);
}

/* What has arrived whole is answered; who waits is disconnected; nobody is let in any more. */
static void stops(void) {
    static char value[65536];
    CHECK_IS(sst_set(t.a, SST_USER, "big", 3, value, sizeof value, soon(), 0), SST_OK);
    int asker = client(), waiter = client(), idle = client(), torn = client();
    request get = one(SST_OP_GET, "/big");
    for (int i = 0; i < 64; i++)
        ask(asker, &get);
    request set = two(SST_OP_SET, "/never set", "x");
    tell_both(waiter, some(SST_OP_WAIT, 1, KEYS("/never")), holding(1, &set));
    put_bytes(torn, get.at, 3);
    until_waiting(1);
    nap(50); /* what was sent has arrived */
    sst_server_info before = stat_of();
    CHECK(before.open == 4 && before.running == 1 && before.operations > 0 && before.bytes_in > 0);
    /* 64 answers fit in no socket: the stop waits for the reader */
    pid_t pid = fork();
    if (pid == 0) {
        nap(50);
        for (int i = 0; i < 64; i++) {
            CHECK_IS(get_i64(asker), (int64_t)sizeof value);
            get_bytes(asker, value, sizeof value);
        }
        CHECK(gone(asker));
        _exit(0);
    }
    CHECK_IS(sst_server_stop(server, 20 * SEC), SST_OK);
    CHECK_IS(sst_server_stop(server, 0), SST_OK);
    int status = 1;
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK_IS(status, 0);
    CHECK(gone(waiter) && gone(idle) && gone(torn));
    CHECK(stat_of().open == 0 && stat_of().running == 0 && stat_of().waiting == 0 && !here(t.a, "never set"));
    sst_server_free(server);
    (void)close(asker), (void)close(waiter), (void)close(idle), (void)close(torn);
    CHECK_IS(drop(t.a, "big"), 1);
    /* one that does not read is given its time and no more */
    start(t.a);
    CHECK_IS(sst_set(t.a, SST_USER, "big", 3, value, sizeof value, soon(), 0), SST_OK);
    int deaf_one = client();
    for (int i = 0; i < 256; i++)
        ask(deaf_one, &get);
    nap(50);
    uint64_t start_ns = sst_now_ns();
    CHECK_IS(sst_server_stop(server, 100 * MS), SST_OK);
    CHECK(sst_now_ns() - start_ns < 20 * SEC);
    sst_server_free(server);
    (void)close(deaf_one);
    CHECK_IS(drop(t.a, "big"), 1);
}

/* One that only looks in, while a bell thread is parked, writes nothing. */
static void inspected(void) {
    sst_info info;
    sst_seg *s = NULL;
    CHECK_IS(sst_peek(t.fd, &info), SST_OK);
    CHECK_IS(sst_inspect(t.fd, &s), SST_OK);
    sst_free(s);
}

/* The segment is closed under the server: it drops its connections and ends. */
static void closed_under(void) {
    sst_seg *s = attach(t.fd);
    start(s);
    int fd = client();
    tell(fd, number(SST_OP_BARRIER, "/under", 2));
    until_waiting(1);
    CHECK_IS(sst_leave(s), SST_OK);
    CHECK(gone(fd));
    for (uint64_t end = soon(); stat_of().running; nap(1))
        CHECK(sst_now_ns() < end);
    CHECK_IS(sst_close(s), SST_OK);
    sst_server_free(server);
    sst_free(s);
    (void)close(fd);
    CHECK_IS(drop(t.a, "under"), 1);
}

int main(void) {
    frames();
    EACH_ENGINE(engine) {
        twin_open(&t, 64 * MIB, engine);
        real = t.a->park;
        watched = (sst_park_engine){watch_parks, real->unpark};
        t.a->park = &watched;
        start(t.a);
        operations();
        large();
        local_set_wakes();
        races();
        killed_server();
        ringer_died();
        waits();
        held_back();
        queues();
        barriers();
        rude();
        slow();
        deaf();
        stopped_holder();
        crowd();
        forked();
        inspected();
        stops();
        closed_under();
        twin_shut(&t);
        (void)printf("%s: served\n", engine_name(engine));
    }
    return 0;
}
