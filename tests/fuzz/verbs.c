/* verbs.c -- each verb on a segment that may be anything, and what it may return. */
#include "fuzz.h"
#include "errors.h"

#include <string.h>

enum { ROOM = 1 << 21 }; /* more than the capacity: no value is longer */
static char out[ROOM], in[400000];

static const uint32_t sizes[] = {0, 1, 7, 24, 25, 60, 100, 1000, 5000, 20000, SST_TRY_COPY + 1, 200000, 399999};

static uint32_t size_of(uint32_t value) { return sizes[value % (sizeof sizes / sizeof *sizes)]; }

/* A code that sst.h has, or 0, or a count up to `most`. */
static int judged(int r, int most) {
#define X(code, text) code,
    static const int codes[] = {SST_ERRORS(X)};
#undef X
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (r == codes[i])
            return r;
    FZ_CHECK(r > 0 && r <= most);
    return r;
}

/* A value may be any bytes, but all of them are inside. */
static void judge_bytes(int r, size_t len, size_t room) {
    (void)judged(r, 0);
    FZ_CHECK(r != SST_OK || len <= room);
    FZ_CHECK(r != SST_ENOBUFS || len > room);
}

static uint64_t shortly(void) { return sst_now_ns() + 100000; }

/* -- many keys ------------------------------------------------------------------------------------------------------ */
static void list(sst_seg *s, const fz_key *key, uint32_t value) {
    uint32_t cursor = 0, before;
    size_t used, room = value % 3 ? ROOM : 40;
    int r;
    do {
        used = 0;
        before = cursor;
        r = judged(sst_list_keys(s, key->space, key->name, value / 4 % 2, &cursor, out, room, &used, shortly(),
                                 value >> 16 & (SST_TRY | SST_NOWAIT)),
                   1);
        FZ_CHECK(r < 0 || used <= room);
        FZ_CHECK(r != 1 || cursor > before || used > 0); /* or the caller would ask for ever */
        uint32_t klen;
        for (size_t at = 0; r >= 0 && at < used; at += 4 + klen) {
            FZ_CHECK(at + 4 <= used);
            memcpy(&klen, out + at, 4);
            FZ_CHECK(klen <= used - at - 4);
        }
        if (r == SST_ENOBUFS && room < ROOM)
            room = ROOM;
        else if (r < 0)
            cursor++; /* the next stripe may be whole */
    } while (r != 0 && cursor < SST_STRIPES);
}

static void multi(const fz_segment *f, sst_seg *s, uint32_t key, uint32_t value) {
    char names[1024];
    uint32_t klens[3], vlens[3], used = 0;
    for (uint32_t i = 0; i < 3; i++) {
        const fz_key *k = &f->key[(key + i * (value % 5)) % FZ_KEYS];
        memcpy(names + used, k->name, k->len);
        used += klens[i] = k->len;
        vlens[i] = size_of(value / 8 + i) % 30000;
    }
    (void)judged(
        sst_multi_set(s, value & 1, names, klens, in, vlens, 3, shortly(), value >> 16 & (SST_TRY | SST_NOWAIT)), 0);
}

/* -- people ------------------------------------------------------------------------------------------------------------ */
static void people(sst_seg *s, uint32_t verb, uint32_t value) {
    static sst_peer peers[SST_PEERS_MAX];
    static sst_rank ranks[SST_RANKS_MAX];
    static sst_waiter waiters[SST_WAITERS_MAX];
    sst_info info;
    uint32_t slot, gen;
    int32_t pid;
    int n;
    switch (verb) {
    case FZ_PEERS:
        n = judged(sst_peers(s, peers, SST_PEERS_MAX), SST_PEERS_MAX);
        for (int i = 0; i < n; i++)
            FZ_CHECK(peers[i].slot < SST_PEERS_MAX && memchr(peers[i].host, 0, sizeof peers[i].host) != NULL);
        break;
    case FZ_RANKS:
        n = judged(sst_ranks(s, ranks, SST_RANKS_MAX), SST_RANKS_MAX);
        for (int i = 0; i < n; i++)
            FZ_CHECK(ranks[i].slot < SST_PEERS_MAX && memchr(ranks[i].host, 0, sizeof ranks[i].host) != NULL);
        break;
    case FZ_WAITERS:
        n = judged(sst_waiters(s, waiters, SST_WAITERS_MAX), SST_WAITERS_MAX);
        for (int i = 0; i < n; i++)
            FZ_CHECK(waiters[i].slot < SST_PEERS_MAX);
        break;
    case FZ_STAT:
        (void)judged(sst_stat(s, &info), 0);
        break;
    case FZ_REGISTER:
        (void)judged(sst_rank_register(s, value % 8), 0);
        (void)judged(sst_rank_leave(s, value % 8), 0);
        break;
    case FZ_PROVE:
        (void)fz_verify(s);
        break;
    default:
        (void)judged(sst_wake_self(s), 0);
        (void)judged(sst_self(s, &slot, &gen), 0);
        (void)judged(sst_holder(s, &slot, &pid), 0);
        break;
    }
}

int fz_verify(sst_seg *s) {
    static char report[8192];
    int n = judged(sst_verify(s, report, sizeof report), 64);
    FZ_CHECK(memchr(report, 0, sizeof report) != NULL);
    FZ_CHECK(n <= 0 || strchr(report, '\n') != NULL);
    return n;
}

/* -- what parks -------------------------------------------------------------------------------------------------------- */
static void park(sst_seg *s, const fz_key *k, uint32_t verb, uint32_t value) {
    uint32_t waiter = 0, arrived = value & 1;
    int64_t count;
    size_t len = 0;
    for (int slice = 0; slice < 3; slice++) {
        uint64_t until = shortly();
        int r = verb == FZ_WAIT ? sst_wait(s, k->space, k->name, k->len, &waiter, 1, until, 1000, 0)
                : verb == FZ_BARRIER
                    ? sst_barrier(s, k->space, k->name, k->len, value % 4, &arrived, &count, &waiter, 0, until, 1000)
                    : sst_queue_pop(s, k->space, k->name, k->len, 1, out, ROOM, &len, &waiter, 2, until, 1000, 0);
        if (verb == FZ_POP_WAIT)
            judge_bytes(r, len, ROOM);
        if (judged(r, 0) != SST_EAGAIN)
            break;
    }
    sst_waiter_release(s, &waiter);
}

/* -- reusable barriers ------------------------------------------------------------------------------------------------- */
/* value: which parties and rank the caller says there are, right or wrong. */
static void meet(sst_seg *s, const fz_key *k, uint32_t value) {
    static const uint32_t of[] = {3, 40, 1, SST_PARTIES_MAX};
    static sst_seat seats[SST_PARTIES_MAX];
    uint32_t parties = of[value % 4];
    int32_t rank = value % 4 == 1 ? SST_NO_RANK : (int32_t)(value / 4 % 4);
    sst_bar bar;
    sst_bar_info info;
    sst_arrival a = {0};
    int r = judged(sst_bar_open(s, k->space, k->name, k->len, parties, rank, value / 16 % 3, shortly(), &bar), 0);
    if (r != SST_OK)
        return;
    (void)judged(sst_bar_look(s, &bar, &info), 0);
    r = judged(sst_bar_arrive(s, &bar, &a, value >> 6 & SST_TRY), 0);
    if (r == SST_EAGAIN && value >> 7 & 1)
        r = judged(sst_bar_linger(s, &bar, &a, shortly()), 0);
    for (int slice = 0; r == SST_EAGAIN && slice < 3; slice++)
        r = judged(sst_bar_wait(s, &bar, &a, slice == 2 ? 0 : SST_FOREVER, 1000), 0);
    FZ_CHECK(r != SST_EAGAIN); /* its time was over */
    FZ_CHECK(r != SST_OK || a.index < parties);
    sst_waiter_release(s, &a.waiter);
    if (rank != SST_NO_RANK)
        (void)judged(sst_bar_seats(s, &bar, a.epoch, seats), 0);
    (void)judged(sst_bar_break(s, &bar, value >> 8 & 1, a.epoch, SST_BAR_ABORT, 0), 1);
    (void)judged(sst_bar_reset(s, &bar, value >> 9 & 1, a.epoch), 1);
}

/* -- all of them ------------------------------------------------------------------------------------------------------ */
void fz_verb(const fz_segment *f, sst_seg *s, uint32_t verb, uint32_t key, uint32_t value) {
    const fz_key *k = &f->key[key % FZ_KEYS];
    uint32_t flags = value >> 16 & (SST_TRY | SST_NOWAIT), inside = ld32(&s->users);
    size_t n = size_of(value), len = 0, room = value >> 17 & 1 ? ROOM : 24;
    int64_t number;
    int r;
    fz_tick();
    switch (verb % FZ_VERBS) {
    case FZ_SET:
        (void)judged(sst_set(s, k->space, k->name, k->len, in, n, shortly(), flags), 0);
        break;
    case FZ_GET:
        r = sst_get(s, k->space, k->name, k->len, out, room, &len, shortly(), flags);
        judge_bytes(r, len, room);
        break;
    case FZ_ADD:
        (void)judged(sst_add(s, k->space, k->name, k->len, (int32_t)value, &number, shortly(), flags), 0);
        break;
    case FZ_COMPARE:
        r = sst_compare_set(s, k->space, k->name, k->len, in, size_of(value >> 8), in, n, out, ROOM, &len, shortly(),
                            flags);
        judge_bytes(r, len, ROOM);
        break;
    case FZ_APPEND:
        (void)judged(sst_append(s, k->space, k->name, k->len, in, n, shortly(), flags), 0);
        break;
    case FZ_CHECK_KEY:
        (void)judged(sst_check(s, k->space, k->name, k->len, shortly(), flags | (value & SST_KEY_ONLY)), 1);
        break;
    case FZ_DELETE:
        (void)judged(sst_delete(s, k->space, k->name, k->len, shortly(), flags), 1);
        break;
    case FZ_NUM_KEYS:
        (void)judged(sst_num_keys(s, k->space, k->name, value % 2, &number, shortly(), flags), 0);
        break;
    case FZ_LIST:
        list(s, k, value);
        break;
    case FZ_MULTI:
        multi(f, s, key, value);
        break;
    case FZ_LINGER:
        (void)judged(sst_linger(s, k->space, k->name, k->len, shortly(), 0), 1);
        break;
    case FZ_PUSH:
        (void)judged(sst_queue_push(s, k->space, k->name, k->len, in, n, shortly(), flags), 0);
        break;
    case FZ_POP: {
        uint32_t waiter = 0;
        r = sst_queue_pop(s, k->space, k->name, k->len, 0, out, room, &len, &waiter, 0, shortly(), 1000, flags);
        judge_bytes(r, len, room);
        break;
    }
    case FZ_LEN:
        (void)judged(sst_queue_len(s, k->space, k->name, k->len, &number, shortly(), flags), 0);
        break;
    case FZ_MEET:
        meet(s, k, value);
        break;
    case FZ_WAIT:
    case FZ_BARRIER:
    case FZ_POP_WAIT:
        park(s, k, verb % FZ_VERBS, value);
        break;
    default:
        people(s, verb % FZ_VERBS, value);
        break;
    }
    FZ_CHECK(ld32(&s->users) == inside); /* each call that went in came out */
}

void fz_sweep(const fz_segment *f, sst_seg *s, uint32_t flags, uint32_t records) {
    enum { LARGE = (1 << 17) + 7, SMALL = 9 }; /* a large buffer; one of the first sizes, which let the file not grow */
    static const uint32_t verbs[] = {FZ_CHECK_KEY, FZ_GET,  FZ_LEN, FZ_APPEND, FZ_SET,  FZ_POP,    FZ_COMPARE,
                                     FZ_PUSH,      FZ_WAIT, FZ_GET, FZ_ADD,    FZ_PUSH, FZ_DELETE, FZ_POP};
    for (uint32_t key = flags & FZ_LOOK ? 0 : records % 3; key < FZ_KEYS; key += flags & FZ_LOOK ? 1 : 3)
        for (uint32_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
            if (verbs[i] != FZ_DELETE || key % 3 != 2)
                fz_verb(f, s, verbs[i], key, LARGE + (key + i) % SMALL);
    fz_verb(f, s, FZ_MULTI, 1, 9);
    fz_verb(f, s, FZ_BARRIER, 7, 2);
    fz_verb(f, s, FZ_POP_WAIT, 16, 0);
    fz_verb(f, s, FZ_MEET, 8, 1 << 9);
    fz_verb(f, s, FZ_MEET, 2, 1 + (1 << 7));
    if (flags & FZ_LOOK) {
        fz_verb(f, s, FZ_LIST, 0, 1);
        fz_verb(f, s, FZ_NUM_KEYS, 0, 1);
        for (uint32_t verb = FZ_PEERS; verb < FZ_VERBS; verb++)
            if (verb != FZ_PROVE && verb != FZ_MEET)
                fz_verb(f, s, verb, 0, 4);
    }
    if (flags & FZ_VERIFY)
        fz_verb(f, s, FZ_PROVE, 0, 0);
}
