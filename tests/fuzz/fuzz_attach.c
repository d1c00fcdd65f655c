/* fuzz_attach.c -- a file that is hostile before anybody attaches: patches, then peek, inspect, attach, verbs, out. */
#include "fuzz.h"

#include <fcntl.h>
#include <unistd.h>

static int open_again(const fz_segment *f, int mode) {
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", f->fd);
    int fd = open(path, mode | O_CLOEXEC);
    FZ_CHECK(fd >= 0);
    return fd;
}

/* Some verbs, as an inspector may or may not; those that write say that they may not. */
static void inspect(const fz_segment *f, uint32_t flags) {
    sst_seg *s = NULL;
    sst_info info;
    int fd = open_again(f, O_RDONLY), peeked = sst_peek(fd, &info), r = sst_inspect(fd, &s);
    (void)close(fd);
    FZ_CHECK(peeked == r && r <= 0 && r >= SST_ETOOBIG);
    if (r != SST_OK)
        return;
    for (uint32_t verb = FZ_PEERS; verb <= FZ_STAT; verb++)
        fz_verb(f, s, verb, 0, 0);
    fz_verb(f, s, FZ_GET, 0, 1 << 17);
    fz_verb(f, s, FZ_SET, 0, 1);
    fz_verb(f, s, FZ_POP, 9, 1 << 17);
    if (flags & FZ_VERIFY)
        (void)fz_verify(s);
    sst_free(s);
}

static int use(const fz_segment *f, const fz_record *records, uint32_t n, uint32_t flags) {
    sst_seg *s = NULL;
    int r = sst_attach(open_again(f, O_RDWR), open_again(f, O_RDWR), &s);
    FZ_CHECK(r <= 0 && r >= SST_ETOOBIG);
    if (r != SST_OK)
        return r;
    uint32_t left = 2;
    fz_hurry(s);
    s->yields.skip = s->barrier_yields.skip = flags & FZ_YIELD ? 0 : 1000;
    for (uint32_t i = 0; i < n; i++)
        if (records[i].where >= FZ_VERB && !fz_enough(records[i].where - FZ_VERB, &left))
            fz_verb(f, s, records[i].where - FZ_VERB, records[i].index, records[i].value);
    if (flags & FZ_LOOK)
        fz_sweep(f, s, flags, n);
    else if (flags & FZ_VERIFY)
        (void)fz_verify(s);
    FZ_CHECK(s->users == 0);
    r = sst_leave(s);
    FZ_CHECK(r == SST_OK);
    FZ_CHECK(sst_mark_dead(s) == SST_OK);
    FZ_CHECK(sst_close(s) == SST_OK);
    sst_free(s);
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int lowest[2];
    fz_record records[64];
    if (size == 0)
        return 0;
    uint32_t flags = data[0], n = fz_records(data, size, records, 64), patches = 0;
    fz_segment *f = fz_template(flags & FZ_SEMAPHORE);
    fz_restore(f);
    for (uint32_t i = 0; i < n; i++)
        if (records[i].where < FZ_VERB) {
            fz_patch(f, &records[i]);
            patches++;
        }
    uint32_t shorter = flags >> 4; /* and a file that is cut before anybody attaches: so many sixteenths */
    if (shorter != 0)
        FZ_CHECK(ftruncate(f->fd, (off_t)(f->size - shorter * (f->size / 16) + (shorter & 1))) == 0);
    inspect(f, flags);
    int r = use(f, records, n, flags);
    FZ_CHECK(patches != 0 || r == (shorter ? SST_ETRUNC : SST_OK));
    fz_judge_header(f);
    int *before = &lowest[flags & FZ_SEMAPHORE], now = dup(f->fd); /* the lowest that is free */
    (void)close(now);
    FZ_CHECK(*before == 0 || now <= *before + 16); /* the other template is made between two; a leak adds up */
    if (*before == 0)
        *before = now;
    return 0;
}
