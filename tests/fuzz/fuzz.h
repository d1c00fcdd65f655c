/* fuzz.h -- what the two fuzz targets share: a template segment, inputs that patch it, and verbs that are judged.
 *
 * An input is a byte of flags and a list of records of 8 bytes. A record is a patch (which word, what to make of it) or
 * a verb. The words that matter are named by what they are, not by where they lie, so that an input means the same after
 * a change of the layout: "the link of the first block in hand", "the tag of the block that holds key 3".
 *
 * An execution may end in no way but error codes: FZ_CHECK, a signal, a sanitizer's report or ten seconds end the
 * process. Time is virtual (sst_clock): a wait for a lock of the living takes a look or two, not 50 ms. */
#ifndef FUZZ_H
#define FUZZ_H

#include "layout.h"
#include "sst.h"
#include "view.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define FZ_CHECK(what)                                                                                                 \
    do                                                                                                                 \
        if (!(what)) {                                                                                                 \
            (void)fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #what);                                   \
            abort();                                                                                                   \
        }                                                                                                              \
    while (0)

/* -- the template (template.c) ------------------------------------------------------------------------------------- */
enum { FZ_KEYS = 20, FZ_BLOCKS = 256, FZ_SLOTS = 16 };

typedef struct {
    char name[320];
    uint32_t len, space, stripe, bucket;
    uint32_t entry; /* ref; 0: it is not there */
} fz_key;

/* Refs of blocks of one sort. */
typedef struct {
    uint32_t ref[FZ_BLOCKS], n;
} fz_refs;

enum { FZ_ALL, FZ_FREE, FZ_IN_HAND, FZ_ITEM, FZ_VALUE, FZ_SORTS };

typedef struct {
    int fd;
    size_t size;        /* bytes of the file in the template; the mapping goes on to the capacity, over nothing */
    uint32_t header[1024]; /* the first page as the template and the patches made it */
    char *raw, *copy;   /* a mapping of our own, and the template's bytes */
    sst_seg *a, *b;     /* a: whose verbs the live target runs. b: alive and waiting. A third one is dead */
    uint32_t me, other, dead; /* their owner words */
    fz_key key[FZ_KEYS];
    uint32_t keys; /* of them in the template; the rest is new */
    fz_refs blocks[FZ_SORTS];
    uint32_t slot[FZ_SLOTS], slots; /* waiter slots in use */
    uint32_t point[2];              /* refs of barriers: of three with ranks, of forty without */
} fz_segment;

/* The template of that engine, made at the first call. Without the semaphore engine both are futex. */
fz_segment *fz_template(int semaphore);
/* The segment as it was made: bytes, file size, what the attachments know. */
void fz_restore(fz_segment *f);
/* The verbs wrote nothing into the header but size and state: it is what they would overwrite behind a ref too small. */
void fz_judge_header(const fz_segment *f);
/* The virtual clock goes in small steps again; each look at it makes them larger. */
void fz_tick(void);
/* Parks of this attachment end at once, at their deadlines. */
void fz_hurry(sst_seg *s);

/* -- inputs (patch.c) ---------------------------------------------------------------------------------------------- */
enum { FZ_SEMAPHORE = 1, FZ_VERIFY = 2, FZ_LOOK = 4, FZ_YIELD = 8 }; /* flags */

typedef struct {
    uint8_t where, op; /* FZ_VERB + verb; else FZ_AT_*, FZ_OP_* | bank << 4 */
    uint16_t index;
    uint32_t value;
} fz_record;

#define FZ_VERB 128

enum { /* where */
       FZ_AT_WORD, /* any: bank * 65536 + index */
       FZ_AT_HEADER,
       FZ_AT_HEAP,
       FZ_AT_FREE_HEAD,
       FZ_AT_STRIPE, /* of key index / 16: its word index % 16 */
       FZ_AT_BUCKET, /* of key index */
       FZ_AT_ENTRY,  /* of key index / 16; words 0, 1: the block's head */
       FZ_AT_BLOCK,  /* these five: index / 32 of that sort, its word index % 32 */
       FZ_AT_FREE,
       FZ_AT_IN_HAND,
       FZ_AT_ITEM,
       FZ_AT_VALUE,
       FZ_AT_PEER,   /* index / 32, word index % 24 */
       FZ_AT_RANK,   /* word index % 16 */
       FZ_AT_WAITER, /* slot index / 32 of those in use */
       FZ_AT_POINT, /* word index % 32 of the barrier of key 8 or 2, as index / 32 is even or odd; from its block's head */
       FZ_AT_EDGE, /* word index from the end of the file, backwards */
       FZ_PLACES
};

enum { /* op */
       FZ_OP_SET,
       FZ_OP_XOR,
       FZ_OP_ADD,
       FZ_OP_COPY, /* word `value` of the segment */
       FZ_OP_NASTY, /* one of a list */
       FZ_OP_REF, /* of block value */
       FZ_OP_SELF, /* of the block this word is in */
       FZ_OP_FLIP, /* bit value */
       FZ_OP_TAG, /* class value % 256, state value / 256 */
       FZ_OP_ENTRY, /* ref of key value's entry */
       FZ_OP_EDGE, /* ref so many units before the end of the file */
       FZ_OP_OWNER, /* 0 the dead, 1 the caller, 2 another's, alive, 3 closed, 4.. nonsense */
       FZ_OP_EVENT, /* which word is the event of key value, as a waiter slot names it */
       FZ_OPS
};

/* Changes one word. Through our own mapping, so that nothing of the library is in it. */
void fz_patch(fz_segment *f, const fz_record *r);
uint32_t fz_records(const uint8_t *data, size_t size, fz_record *out, uint32_t room);

/* -- verbs (verbs.c) ------------------------------------------------------------------------------------------------ */
enum {
    FZ_SET,
    FZ_GET,
    FZ_ADD,
    FZ_COMPARE,
    FZ_APPEND,
    FZ_CHECK_KEY,
    FZ_DELETE,
    FZ_NUM_KEYS,
    FZ_LIST,
    FZ_MULTI,
    FZ_LINGER,
    FZ_WAIT,
    FZ_BARRIER,
    FZ_PUSH,
    FZ_POP,
    FZ_POP_WAIT,
    FZ_LEN,
    FZ_PEERS,
    FZ_RANKS,
    FZ_WAITERS,
    FZ_STAT,
    FZ_REGISTER,
    FZ_PROVE,
    FZ_MEET,
    FZ_WAKE,
    FZ_VERBS
};
/* Runs one verb and judges what it returns. value: sizes and flags. */
void fz_verb(const fz_segment *f, sst_seg *s, uint32_t verb, uint32_t key, uint32_t value);
/* 1: a verb that reads a whole table, and an input has had its two of them (*left, 2 at first): most of the time went
 * into inputs that asked for the same again and again. */
static inline int fz_enough(uint32_t verb, uint32_t *left) {
    verb %= FZ_VERBS;
    if (verb != FZ_LIST && verb != FZ_NUM_KEYS && verb != FZ_PROVE && (verb < FZ_PEERS || verb > FZ_STAT))
        return 0;
    if (*left == 0)
        return 1;
    --*left;
    return 0;
}
/* Each verb, on each key that there is and on some that are not. Without FZ_LOOK on a third of them, by the number of the
 * input's records: half of the executions then cost a third, and the others leave nothing out. */
void fz_sweep(const fz_segment *f, sst_seg *s, uint32_t flags, uint32_t records);
/* Broken invariants, as sst_verify counts them, or an error code. */
int fz_verify(sst_seg *s);

/* -- inputs made by hand (corpus.c) ---------------------------------------------------------------------------------- */
uint32_t fz_corpus_size(void);
/* Bytes of input `i`; returns how many. name: what it is. */
size_t fz_corpus(uint32_t i, uint8_t *out, size_t room, const char **name);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
