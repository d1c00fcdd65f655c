/* fuzz_wire.c -- hostile bytes on a connection: the walk over a request, and all that is done with it. No sockets.
 *
 * An input is a byte of flags and what a peer sends, cut into pieces of a size that the flags name. Two oracles: each
 * request ends where it ends when it is walked whole, however it was cut; and an answered session leaves a segment that
 * verify finds nothing in, and a server that keeps not a byte. Requests may not lock (nobody else is here), so nothing
 * is ever busy. The segment is small: a list of all keys walks its whole table, and an input is long enough for thousands.
 *
 * It has a driver of its own: random sessions are made of requests and then damaged. libFuzzer's, with SST_FUZZ. */
#include "check.h"
#include "conn.h"
#include "fuzz.h"

#include <signal.h>

enum { LONGEST = 4096, PIECES = 7 };

static sst_seg *seg;

static void open_segment(void) {
    int fd = new_file();
    CHECK_IS(sst_create(open_again(fd), open_again(fd), 4 * MIB, SST_FUTEX, 0, 0, 77, &seg), SST_OK);
    (void)close(fd);
}

/* A server that has no threads and no sockets. */
static sst_server *bare(void) {
    sst_server *v = calloc(1, sizeof *v);
    FZ_CHECK(v != NULL);
    v->seg = v->bell.seg = seg;
    sst_link *const lists[] = {&v->conns, &v->dead, &v->ready, &v->freed, &v->dirty, &v->grants};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        sst_link_init(lists[i]);
    for (uint32_t i = 0; i < SST_STRIPES; i++)
        sst_link_init(&v->wants[i]);
    return v;
}

/* Where the requests end, walked whole. */
static size_t whole(const uint8_t *p, size_t n) {
    sst_frame f = {0};
    return sst_frame_walk(&f, (const char *)p, n) == SST_OK ? f.at : 0;
}

static void walk_cut(const uint8_t *p, size_t n, size_t piece) {
    for (size_t size; n > 0; p += size, n -= size) {
        sst_frame f = {0};
        size_t had = 0;
        size = whole(p, n);
        int r;
        do {
            had = had + piece < n ? had + piece : n;
            r = sst_frame_walk(&f, (const char *)p, had);
            FZ_CHECK(r == SST_OK || r == SST_EINVAL || (r == SST_EAGAIN && f.need > had));
            FZ_CHECK(f.at <= had && f.need <= SST_WIRE_FRAME_MAX);
        } while (r == SST_EAGAIN && had < n);
        FZ_CHECK((r == SST_OK) == (size != 0) && (r != SST_OK || f.at == size));
        if (r != SST_OK)
            return;
    }
}

static void run(sst_conn *c) {
    c->served = 0;
    sst_link_out(&c->ready);
    if (c->state != SST_CONN_ENDED)
        sst_conn_run(c);
    FZ_CHECK(c->busy_ns == 0); /* nobody holds a lock */
    FZ_CHECK(!c->held || c->wait || c->state == SST_CONN_ENDED || sst_linked(&c->ready));
    sst_buf_drop(c->server, &c->out, c->out.end - c->out.begin);
}

/* What a pass of the loop does. */
static void feed(sst_conn *c, const uint8_t *p, size_t n) {
    sst_server *v = c->server;
    if (c->state == SST_CONN_ENDED || !sst_buf_room(v, &c->in, n))
        return;
    memcpy(c->in.at + c->in.end, p, n);
    c->in.end += n;
    run(c);
    sst_wants_scan(v);
    while (sst_linked(&v->freed) || sst_linked(&v->ready)) {
        sst_link *list = sst_linked(&v->freed) ? &v->freed : &v->ready;
        run(SST_OF(sst_conn, ready, list->next));
        sst_wants_scan(v);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const size_t pieces[PIECES] = {1, 2, 3, 8, 13, 64, LONGEST};
    static const uint8_t hello[] = {0, 0xce, 0xf7, 0x85, 0x3c};
    if (size == 0)
        return 0;
    if (seg == NULL)
        open_segment();
    size_t piece = pieces[data[0] % PIECES];
    walk_cut(data + 1, size - 1, piece);
    sst_server *v = bare();
    sst_conn *c = sst_conn_new(v, -1), *other = sst_conn_new(v, -1);
    FZ_CHECK(c && other && sst_begin(seg) == SST_OK);
    if (data[0] < 224) /* else the input is to greet by itself */
        feed(c, hello, sizeof hello);
    feed(other, hello, sizeof hello);
    for (size_t i = 1; i < size; i += piece) {
        size_t n = size - i < piece ? size - i : piece;
        feed(c, data + i, n);
        if (data[0] & 32) /* the same, from another: they wait for each other's keys */
            feed(other, data + i, n);
    }
    FZ_CHECK(v->grants.next == &v->grants || c->grant_ns || other->grant_ns);
    sst_conn_end(c);
    sst_conn_end(other);
    FZ_CHECK(v->lives == 0 && v->count.waiting == 0 && ld32(&v->bell.lives) == 0 && !sst_linked(&v->grants));
    sst_conn_free(c);
    sst_conn_free(other);
    FZ_CHECK(v->buffered == 0);
    free(v);
    sst_end(seg);
    if ((data[0] & 31) == 0) {
        static char report[4096];
        FZ_CHECK(sst_verify(seg, report, sizeof report) == 0);
    }
    sst_info info;
    FZ_CHECK(sst_stat(seg, &info) == SST_OK);
    if (info.used > 2 * MIB || info.keys > 4000) { /* begin anew before it is full */
        sst_free(seg);
        seg = NULL;
    }
    return 0;
}

#ifndef SST_LIBFUZZER
static uint8_t data[LONGEST];
static size_t size;

static void confess(int sig) {
    (void)!write(2, "input: ", 7);
    for (size_t i = 0; i < size; i++) {
        static const char digits[] = "0123456789abcdef";
        char two[2] = {digits[data[i] >> 4], digits[data[i] & 15]};
        (void)!write(2, two, 2);
    }
    (void)!write(2, "\n", 1);
    (void)signal(sig, SIG_DFL);
    (void)raise(sig);
}

static uint64_t state;
static uint32_t number(uint32_t below) { /* splitmix64 */
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)((z ^ z >> 31) >> 16) % below;
}

static void add_bytes(const void *p, size_t n) {
    if (size + n <= LONGEST) {
        memcpy(data + size, p, n);
        size += n;
    }
}
static void put_u64(uint64_t v) { add_bytes(&v, 8); }

static void put_text(int key) {
    static const char *const keys[] = {"/a", "/b", "/queue", "init/", "/", "/bar", "raw", ""};
    char value[200];
    if (key) {
        const char *k = keys[number(sizeof keys / sizeof *keys - (number(8) ? 1 : 0))];
        put_u64(strlen(k));
        add_bytes(k, strlen(k));
        return;
    }
    size_t n = number(number(4) ? 8 : sizeof value);
    for (size_t i = 0; i < n; i++)
        value[i] = (char)(number(2) ? '0' + number(10) : number(256));
    put_u64(n);
    add_bytes(value, n);
}

static void put_request(void) {
    uint8_t op = (uint8_t)number(SST_OPS), byte = op == SST_OP_HOLD ? SST_WIRE_HOLD : op;
    const char *form = sst_frame_form(op);
    uint64_t rounds = 1;
    add_bytes(&byte, 1);
    if (op == SST_OP_HOLD && number(2)) { /* the next request, or a part of it */
        put_u64(number(40));
        return;
    }
    if (*form == '*') {
        put_u64(rounds = number(5));
        form++;
    }
    for (; rounds > 0; rounds--)
        for (const char *k = form; *k; k++) {
            static const uint64_t numbers[] = {0, 1, 2, 3, UINT64_MAX, UINT64_C(1) << 63, 1000};
            uint32_t magic = SST_WIRE_MAGIC;
            if (*k == 'u')
                add_bytes(&magic, 4);
            else if (*k == 'i')
                put_u64(numbers[number(7)]);
            else
                put_text(*k == 'k');
        }
}

static void damage(void) {
    static const uint64_t nasty[] = {UINT64_MAX, 8192, 8193, 131072, 131073, SST_VALUE_MAX + 1, UINT64_C(1) << 63, 0};
    size_t at = 1 + number((uint32_t)(size > 9 ? size - 9 : 1));
    switch (number(4)) {
    case 0:
        data[at] ^= (uint8_t)(1u << number(8));
        break;
    case 1:
        if (at + 8 <= size)
            memcpy(data + at, &nasty[number(8)], 8);
        break;
    case 2:
        size = at;
        break;
    default:
        data[at] = (uint8_t)number(256);
    }
}

/* These inputs alone, as libFuzzer writes them. What came before them in its run is not there: a segment that others filled. */
static int run_files(int n, char **paths) {
    for (int i = 0; i < n; i++) {
        FILE *from = fopen(paths[i], "rb");
        FZ_CHECK(from != NULL);
        size = fread(data, 1, sizeof data, from);
        (void)fclose(from);
        (void)alarm(10);
        (void)LLVMFuzzerTestOneInput(data, size);
        (void)alarm(0);
        (void)printf("%s: ended\n", paths[i]);
    }
    return 0;
}

int main(int argc, char **argv) {
    uint64_t runs = 20000, done = 0;
    state = 1;
    int i = 1;
    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        if (strcmp(argv[i], "--runs") == 0)
            runs = strtoull(argv[i + 1], NULL, 0);
        else if (strcmp(argv[i], "--seed") == 0)
            state = strtoull(argv[i + 1], NULL, 0);
    }
    static const int signals[] = {SIGALRM, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    for (size_t k = 0; k < sizeof signals / sizeof *signals; k++)
        (void)signal(signals[k], confess);
    if (i < argc)
        return run_files(argc - i, argv + i);
    proof("began", "fuzz: fuzz_wire, gcc", "seed=%llu", (unsigned long long)state);
    for (; done < runs; done++) {
        data[0] = (uint8_t)number(256);
        size = 1;
        for (uint32_t n = 1 + number(12); n > 0; n--)
            put_request();
        for (uint32_t n = number(3); n > 0; n--)
            damage();
        (void)alarm(10);
        (void)LLVMFuzzerTestOneInput(data, size);
    }
    (void)alarm(0);
    if (seg)
        sst_free(seg);
    proof("ended", "fuzz: fuzz_wire, gcc", "executions=%llu", (unsigned long long)done);
    (void)printf("%llu sessions: each answered or ended\n", (unsigned long long)done);
    return 0;
}
#endif
