/* segment.c -- see segment.h.
 *
 * Two opens of the file. map_fd is mapped and never locked, lock_fd is locked and never mapped: a mapping pins its open
 * file, so a forked child that inherits the mapping would keep its killed parent's lock alive. In a forked child
 * lock_fd is closed (the parent's life must not hang on the child), and the child has one and a slot of its own: peers.c.
 *
 * Creation: sizes and tables first, then layout_id, then magic; until magic is there the file is nobody's segment, and
 * the lock file says that nobody is making it any more. */
#include "segment.h"
#include "clock.h"
#include "errors.h"
#include "liveness.h"
#include "park.h"
#include "peers.h"
#include "views.h"
#include "waiter.h"

#include <errno.h>
#include <sched.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE         UINT64_C(4096)
#define FORMAT_TRIES 1000 /* single pages that signals may have kept from the file */

/* -- the header ---------------------------------------------------------------------------------------------------- */
static uint64_t mix(uint64_t h, uint64_t v) { return (h ^ v) * UINT64_C(0x100000001b3); }

uint64_t sst_layout_id(void) {
    const uint64_t facts[] = {
        SST_MEANING,
        sizeof(sst_header),
        sizeof(sst_heap),
        sizeof(sst_peer_slot),
        sizeof(sst_waiter_slot),
        sizeof(sst_stripe),
        sizeof(sst_entry),
        sizeof(sst_item),
        sizeof(sst_block),
        sizeof(sem_t),
        SST_STRIPES,
        SST_CLASSES,
        SST_SPANS,
        SST_PEERS_MAX,
        SST_RANKS_MAX,
        SST_WAITERS_MAX,
        SST_NOTE_MAX,
        SST_KEY_MAX,
        SST_AT_DIRECTORY,
#if defined(__GLIBC__)
        1, /* glibc's and musl's sem_t differ inside */
#else
        2,
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        1,
#else
        2,
#endif
#if defined(__x86_64__)
        1,
#elif defined(__aarch64__)
        2,
#else
        3,
#endif
    };
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        h = mix(h, facts[i]);
    return h ? h : 1;
}

static uint32_t buckets_for(uint64_t capacity) {
    uint32_t n = 4; /* a bucket for each 256 bytes of capacity: with small values about one entry a chain */
    while ((uint64_t)n * 2 * SST_STRIPES * 256 <= capacity && n < (1u << 20))
        n *= 2;
    return n;
}

static uint64_t first_block(uint32_t buckets) {
    return (SST_AT_DIRECTORY + (uint64_t)SST_STRIPES * buckets * 4 + 15) & ~UINT64_C(15);
}

uint64_t sst_min_capacity(void) {
    return ((SST_AT_DIRECTORY + UINT64_C(4) * SST_STRIPES * 16 + 65536) + 4095) & ~UINT64_C(4095);
}

int sst_header_check(const sst_header *h, uint64_t bytes) {
    if (ld64_acquire(&h->magic) != SST_MAGIC) /* SYNC publish-magic: acquire; pairs with sst_publish */
        return SST_EMAGIC;
    if (ld64(&h->layout_id) != sst_layout_id())
        return SST_ELAYOUT;
    uint64_t capacity = ld64(&h->capacity), size = ld64(&h->size);
    uint32_t buckets = ld32(&h->buckets);
    if (capacity < sst_min_capacity() || capacity > SST_CAPACITY_MAX || capacity % 4096 || size > capacity ||
        buckets != buckets_for(capacity) || ld32(&h->blocks) != first_block(buckets) / 16 ||
        size < first_block(buckets) || ld64(&h->incarnation) == 0)
        return SST_ECORRUPT;
    if (bytes < size)
        return SST_ETRUNC;
    if (sst_park_engine_of(ld32(&h->engine)) == NULL)
        return SST_ENGINE;
    uint32_t state = ld32(&h->state);
    return state == SST_READY ? SST_OK : state == SST_DEAD ? SST_EDEAD : SST_ECORRUPT;
}

/* -- mapping ---------------------------------------------------------------------------------------------------------- */
static uint32_t usable_cpus(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1; /* 1: too many to be asked */
}

static int view_new(int map_fd, int lock_fd, uint64_t capacity, int readonly, sst_seg **out) {
    struct stat st;
    if (fstat(map_fd, &st) != 0)
        return sst_fail_errno(SST_ESYS);
    sst_seg *s = calloc(1, sizeof *s);
    if (s == NULL)
        return sst_fail_with(SST_ESYS, ENOMEM);
    void *base = mmap(NULL, capacity, PROT_READ | (readonly ? 0 : PROT_WRITE), MAP_SHARED | MAP_NORESERVE, map_fd, 0);
    if (base == MAP_FAILED) {
        free(s);
        return sst_fail_errno(SST_ESYS);
    }
    s->base = base;
    s->capacity = capacity;
    s->dev = (uint64_t)st.st_dev;
    s->ino = (uint64_t)st.st_ino;
    s->map_fd = map_fd;
    s->lock_fd = lock_fd;
    s->readonly = (uint32_t)readonly;
    s->cpus = usable_cpus();
    (void)pthread_mutex_init(&s->join, NULL);
    *out = s;
    return SST_OK;
}

static void view_drop(sst_seg *s) {
    (void)munmap(s->base, s->capacity);
    (void)pthread_mutex_destroy(&s->join);
    free(s);
}

static uint64_t first_size(uint64_t capacity) {
    uint64_t size = (first_block(buckets_for(capacity)) + 65536 + 4095) & ~UINT64_C(4095);
    return size > capacity ? capacity : size;
}

static int nothing_or(uint64_t found, uint64_t wanted) { return found == 0 || found == wanted; }

/* Is that what a killed creator leaves? The file has its first size, no magic, and of the words that sst_format and
 * sst_publish store, in their order, each is there or zero. Anything else is not ours to reap. */
static int half_made(const sst_header *h, uint64_t bytes) {
    sst_header rest = *h;
    rest.layout_id = rest.incarnation = rest.capacity = rest.size = rest.seed = 0;
    rest.state = rest.engine = rest.persist = rest.world_size = rest.buckets = rest.blocks = 0;
    static const sst_header none;
    if (memcmp(&rest, &none, sizeof rest) != 0)
        return 0;
    if (h->capacity == 0) { /* it was killed before that word: any capacity's first size will do */
        sst_header early = {.incarnation = h->incarnation};
        uint64_t least = sst_min_capacity(), size = 0;
        for (uint64_t c = least; size < bytes && c <= SST_CAPACITY_MAX; c *= 2)
            size = first_size(c);
        return memcmp(h, &early, sizeof early) == 0 && size == bytes;
    }
    uint32_t buckets = buckets_for(h->capacity);
    return h->capacity >= sst_min_capacity() && h->capacity <= SST_CAPACITY_MAX && h->capacity % 4096 == 0 &&
           bytes == first_size(h->capacity) && h->incarnation != 0 && nothing_or(h->size, bytes) &&
           sst_park_engine_of(h->engine ? h->engine : SST_FUTEX) != NULL && h->persist <= 1 &&
           h->world_size <= SST_RANKS_MAX && nothing_or(h->buckets, buckets) &&
           nothing_or(h->blocks, first_block(buckets) / 16) && nothing_or(h->layout_id, sst_layout_id()) &&
           nothing_or(h->state, SST_READY);
}

/* The header first, then the file's size: it grows before the header says so, so the size read later is the larger. */
static int read_header(int fd, sst_header *h, uint64_t *bytes) {
    struct stat st;
    memset(h, 0, sizeof *h);
    ssize_t n = pread(fd, h, sizeof *h, 0); /* read, not mapped: a short file cannot fault */
    if (n < 0 || fstat(fd, &st) != 0)
        return sst_fail_errno(SST_ESYS);
    *bytes = (uint64_t)st.st_size;
    if (h->magic != SST_MAGIC)
        return n == (ssize_t)sizeof *h && half_made(h, *bytes) ? SST_EDEAD : SST_EMAGIC;
    return n == (ssize_t)sizeof *h ? SST_OK : SST_ETRUNC;
}

int sst_map(int map_fd, int lock_fd, int readonly, sst_seg **out) {
    sst_header h;
    uint64_t bytes = 0;
    int r = read_header(map_fd, &h, &bytes);
    if (r != SST_OK)
        return r;
    r = sst_header_check(&h, bytes);
    if (r != SST_OK && !(readonly && r == SST_EDEAD))
        return r;
    sst_seg *s = NULL;
    r = view_new(map_fd, lock_fd, h.capacity, readonly, &s);
    if (r != SST_OK)
        return r;
    s->buckets = h.buckets;
    s->blocks = h.blocks;
    s->seed = h.seed;
    s->park = sst_park_engine_of(h.engine);
    sst_look(s);
    sst_view_list(s);
    *out = s;
    return SST_OK;
}

/* posix_fallocate, since ftruncate on a full tmpfs succeeds and the touch is a SIGBUS later. An interrupted one may have
 * undone all of its work (tmpfs does, or did), and under a timer that is faster than the work it would never end: so
 * the steps are halved until one fits between two signals. */
int sst_file_grow(int fd, uint64_t *size, uint64_t least, uint64_t most) {
    uint64_t step = most - *size;
    while (*size < least) {
        int err = posix_fallocate(fd, (off_t)*size, (off_t)step);
        if (err == 0)
            *size += step;
        else if (err == EINTR && step >= 2 * PAGE)
            step = step / 2 & ~(PAGE - 1);
        else if (err == ENOSPC && step > least - *size)
            step = least - *size;
        else if (err == EINTR)
            return SST_EINTR;
        else
            return sst_fail_with(err == ENOSPC || err == EFBIG ? SST_ENOSPC : SST_ESYS, err);
        if (step > most - *size)
            step = most - *size;
    }
    return SST_OK;
}

/* The last page first: with it the file has its size, so that a creator which is killed between two steps of an
 * interrupted growth leaves what half_made() knows. */
static int first_growth(int fd, uint64_t size) {
    uint64_t last = size - PAGE, had = 0;
    int r = SST_EINTR;
    for (int i = 0; i < FORMAT_TRIES && r == SST_EINTR; i++) { /* nobody could go on with a file half made */
        r = sst_file_grow(fd, &last, size, size);
        if (r == SST_OK)
            r = sst_file_grow(fd, &had, size, size);
    }
    return r == SST_EINTR ? sst_fail_with(SST_ESYS, EINTR) : r;
}

static int fill(sst_seg *s, uint32_t engine) {
    for (uint32_t i = 0; engine == SST_SEMAPHORE && i < SST_WAITERS_MAX; i++)
        if (sem_init(&sst_waiter_at(s, i)->sem, 1, 0) != 0)
            return sst_fail_errno(SST_ESYS);
    return SST_OK;
}

int sst_format(int map_fd, int lock_fd, uint64_t capacity, uint32_t engine, uint32_t persist, uint32_t world_size,
               uint64_t incarnation, sst_seg **out) {
    capacity = (capacity + 4095) & ~UINT64_C(4095);
    if (capacity < sst_min_capacity() || capacity > SST_CAPACITY_MAX || incarnation == 0)
        return SST_EINVAL;
    const sst_park_engine *park = sst_park_engine_of(engine);
    if (park == NULL)
        return SST_ENGINE;
    uint32_t buckets = buckets_for(capacity);
    uint64_t blocks = first_block(buckets), size = first_size(capacity);
    int r = first_growth(map_fd, size);
    if (r != SST_OK)
        return r;
    sst_seg *s = NULL;
    r = view_new(map_fd, lock_fd, capacity, 0, &s);
    if (r != SST_OK)
        return r;
    s->buckets = buckets;
    s->blocks = (uint32_t)(blocks / 16);
    s->park = park;
    s->seed = incarnation * UINT64_C(0x9e3779b97f4a7c15);
    sst_look(s);
    r = fill(s, engine);
    if (r != SST_OK) {
        view_drop(s);
        return r;
    }
    sst_header *h = sst_header_of(s);
    st64(&h->incarnation, incarnation);
    st64(&h->capacity, capacity);
    st64(&h->size, size);
    st32(&h->engine, engine);
    st32(&h->persist, persist != 0);
    st32(&h->world_size, world_size);
    st32(&h->buckets, buckets);
    st32(&h->blocks, s->blocks);
    st64(&h->seed, s->seed);
    st64(&sst_heap_of(s)->brk, blocks);
    sst_view_list(s);
    *out = s;
    return SST_OK;
}

void sst_publish(sst_seg *s) {
    sst_header *h = sst_header_of(s);
    st64(&h->layout_id, sst_layout_id());
    st32(&h->state, SST_READY);
    st64_release(&h->magic, SST_MAGIC); /* SYNC publish-magic: release; pairs with sst_header_check. Last of all */
}

/* -- calls in flight, close --------------------------------------------------------------------------------------------- */
/* Once CLOSING stands, nobody adds to the count any more, so it reaches zero once. shut: the bits that refuse. */
static int count_in(sst_seg *s, uint32_t bits, uint32_t shut) {
    for (;;) {
        uint32_t old = ld32(&s->users);
        if (old & shut)
            return old & SST_CLOSING ? SST_ECLOSED : SST_ELOST;
        if (own_cas32(&s->users, old, (old | bits) + 1))
            return SST_OK;
    }
}

int sst_begin(sst_seg *s) { return s ? count_in(s, 0, SST_CLOSING | SST_LOST) : SST_ECLOSED; }

int sst_begin_closing(sst_seg *s, uint32_t leaver) { return count_in(s, SST_CLOSING | leaver, SST_CLOSING); }

void sst_end(sst_seg *s) {
    /* SYNC last-out: release and acquire; what each call did in the segment comes before the byte is free */
    if ((own_add32(&s->users, UINT32_MAX) & ~SST_LOST) != (SST_CLOSING | 1))
        return;
    sst_give_back(s);
    sst_view_end(s);
}

void sst_give_back(sst_seg *s) {
    (void)pthread_mutex_lock(&s->join); /* a fork finds the slot here or gone */
    int fd = own_fd(&s->lock_fd);
    if (sst_me(s) != 0 && sst_fd_ours(s, fd)) {
        sst_waiter_reap(s, SST_OWNER_SLOT(sst_me(s)), 0);
        sst_peer_leave(s);
    }
    own_st32(&s->me, 0);
    own_st32(&s->born, 0); /* closing the open file frees the byte of a slot that was never claimed */
    sst_fd_close(s, fd);
    own_set_fd(&s->lock_fd, -1); /* SYNC left: release; all of the above is done */
    (void)pthread_mutex_unlock(&s->join);
}

/* -- looking in ---------------------------------------------------------------------------------------------------------- */
static void count_peers(sst_seg *s, int fd, sst_info *out) {
    for (uint32_t slot = 0; slot < SST_PEERS_MAX; slot++)
        switch (sst_peer_state(s, fd, slot)) {
        case SST_PEER_LIVE:
        case SST_PEER_CLAIMING:
            out->peers_live++;
            break;
        case SST_PEER_DEAD:
            out->peers_dead++;
            break;
        case SST_PEER_LEFT:
            out->peers_left++;
            break;
        default:
            break;
        }
    for (uint32_t r = 0; r < SST_RANKS_MAX; r++)
        out->ranks_seen += SST_RANK_STATE(ld64(sst_rank_at(s, r))) != SST_RANK_FREE;
}

static void stat_view(sst_seg *s, int fd, sst_info *out) {
    const sst_header *h = sst_header_of(s);
    uint64_t first = (uint64_t)s->blocks * 16, brk = ld64(&sst_heap_of(s)->brk);
    *out = (sst_info){.incarnation = ld64(&h->incarnation),
                      .capacity = s->capacity,
                      .size = ld64(&h->size),
                      .used = brk > first ? brk - first : 0, /* a corrupt brk is for sst_verify to name */
                      .state = ld32(&h->state),
                      .engine = ld32(&h->engine),
                      .persist = ld32(&h->persist),
                      .world_size = ld32(&h->world_size)};
    for (uint32_t i = 0; i < SST_STRIPES; i++)
        out->keys += ld32(&sst_stripe_at(s, i)->keys[SST_USER]);
    count_peers(s, fd, out);
}

/* Like sst_begin, and also lets in who has left: until sst_close the leaver's count keeps everything mapped. */
static int begin_or_left(sst_seg *s) {
    if (sst_begin(s) == SST_OK)
        return SST_OK;
    for (uint32_t old; s != NULL && ((old = ld32(&s->users)) & SST_LEAVER);)
        if (own_cas32(&s->users, old, old + 1)) {
            if (own_fd(&s->lock_fd) < 0) /* SYNC left: acquire; pairs with sst_give_back */
                return SST_OK;
            sst_end(s); /* it is leaving and has not left */
            break;
        }
    return SST_ECLOSED;
}

int sst_stat(sst_seg *s, sst_info *out) {
    int r = begin_or_left(s);
    if (r != SST_OK)
        return r;
    stat_view(s, sst_life_fd(s), out);
    sst_end(s);
    return SST_OK;
}

int sst_inspect(int fd, sst_seg **out) {
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0)
        return sst_fail_errno(SST_ESYS);
    int r = sst_map(own, -1, 1, out);
    if (r != SST_OK)
        (void)close(own);
    return r;
}

int sst_peek(int fd, sst_info *out) {
    sst_seg *s = NULL;
    int r = sst_inspect(fd, &s);
    if (r != SST_OK)
        return r;
    stat_view(s, s->map_fd, out);
    sst_free(s);
    return SST_OK;
}

int sst_mark_dead(sst_seg *s) {
    if ((ld32(&s->users) & SST_LEAVER) == 0)
        return SST_EINVAL;
    st32_release(&sst_header_of(s)->state, SST_DEAD); /* mapped still: the leaver's count is the caller's */
    return SST_OK;
}
