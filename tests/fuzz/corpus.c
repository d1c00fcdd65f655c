/* corpus.c -- hostile segments made by hand, each a way to read outside, to go in circles, or to give a block twice.
 * One a line: its name, then its records. Run by both targets, under both engines, with and without verify. */
#include "fuzz.h"

#include <string.h>

#define AT(where, index, op, value) {FZ_AT_##where, FZ_OP_##op, (uint16_t)(index), (uint32_t)(value)}
#define DO(verb, key, value)        {FZ_VERB + FZ_##verb, 0, key, value}
#define U(member)                   ((uint32_t)offsetof(sst_heap, member) / 4) /* a word of the heap's block */
#define E(key, word)                ((key) * 16 + (word))                        /* a word of key's block */
#define B(block, word)              ((block) * 32 + (word))
#define S(key, word)                ((key) * 16 + (word)) /* a word of key's stripe */

enum { MOST = 8 };
typedef struct {
    const char *name;
    fz_record record[MOST];
    uint32_t n;
} input;

#define IN(name, ...) {name, {__VA_ARGS__}, sizeof((fz_record[]){__VA_ARGS__}) / sizeof(fz_record)}

/* Words of an entry's block: link, tag, next, hash, meta, value 0, value 1, pad, word (2), num (2). */
enum { LINK, TAG, NEXT, HASH, META, VALUE0, VALUE1, PAD, WORD, WORD_HI };
/* Of an item's: link, tag, next, len. */
enum { ITEM_NEXT = 2, ITEM_LEN };
/* Of a stripe. */
enum { LOCK, SEQ, EVENT, INFLIGHT, KEYS0, KEYS1, ENTRIES };

/* Of a barrier's block: its head, then state (2), parties, ranked, probe (2), culprit (2); arrivals, seats. */
enum { STATE = 2, STATE_HI, PARTIES, RANKED, PROBE, ARRIVALS = 16, ARRIVED_IN, SEATS };
enum { RANKS_MEET = 0, COUNTS_MEET = 32 };

/* Of a waiter slot. */
enum { OWNER, PARKED, TICKET = 4, QUEUE = 6, RANK, NOTE_LEN, STRIPE, SEM };

static const input inputs[] = {
    {"as it was made", {{0, 0, 0, 0}}, 0},
    /* free lists */
    IN("a free block that is its own next", AT(FREE, B(0, LINK), SELF, 0), AT(FREE, B(1, LINK), SELF, 0)),
    IN("free blocks in a circle", AT(FREE, B(0, LINK), REF, 1), AT(FREE, B(1, LINK), REF, 0)),
    IN("a free list into the header", AT(FREE, B(0, LINK), SET, 1), AT(FREE_HEAD, 0, SET, 1)),
    IN("free lists out of the file", AT(FREE_HEAD, 0, EDGE, 0), AT(FREE_HEAD, 1, SET, -1), AT(FREE_HEAD, 2, EDGE, 1)),
    IN("a class 0 block whose end is the file's", AT(FREE_HEAD, 0, EDGE, 2), AT(EDGE, 6, TAG, 256)),
    IN("a class 0 block across the file's end", AT(FREE_HEAD, 0, EDGE, 1), AT(EDGE, 2, TAG, 256)),
    IN("a large free block at the file's end", AT(FREE_HEAD, 4, EDGE, 1), AT(EDGE, 2, TAG, 256 + 4)),
    IN("a free block that is used", AT(FREE_HEAD, 3, ENTRY, 2), AT(ENTRY, E(2, TAG), TAG, 256 + 3)),
    IN("free blocks of no class", AT(FREE, B(0, TAG), TAG, 256 + 75), AT(FREE, B(1, TAG), TAG, 256 + 255)),
    /* brk */
    IN("brk odd", AT(HEAP, U(brk), ADD, 1)),
    IN("brk 0", AT(HEAP, U(brk), SET, 0)),
    IN("brk at the end", AT(HEAP, U(brk), NASTY, 14)),
    IN("brk one block before the end", AT(HEAP, U(brk), NASTY, 14), AT(HEAP, U(brk), ADD, -16)),
    IN("brk at the capacity", AT(HEAP, U(brk), NASTY, 19)),
    IN("brk beyond everything", AT(HEAP, U(brk) + 1, SET, -1)),
    IN("brk negative", AT(HEAP, U(brk), SET, -16), AT(HEAP, U(brk) + 1, SET, -1)),
    /* the undo record */
    IN("a record of no operation", AT(HEAP, U(lock), OWNER, 0), AT(HEAP, U(valid), SET, 1), AT(HEAP, U(op), SET, 9)),
    IN("a record of a block outside", AT(HEAP, U(lock), OWNER, 0), AT(HEAP, U(valid), SET, 1),
       AT(HEAP, U(block), SET, -1)),
    IN("a record of a block at the edge", AT(HEAP, U(lock), OWNER, 0), AT(HEAP, U(valid), SET, 1),
       AT(HEAP, U(block), EDGE, 1)),
    IN("a record of class 255", AT(HEAP, U(lock), OWNER, 0), AT(HEAP, U(valid), SET, 1), AT(HEAP, U(cls), SET, 255),
       AT(HEAP, U(op), SET, 1)),
    IN("a record of stripe 256", AT(HEAP, U(lock), OWNER, 0), AT(HEAP, U(valid), SET, 1),
       AT(HEAP, U(stripe), SET, 256)),
    IN("a record of a stripe far away", AT(HEAP, U(lock), OWNER, 0), AT(HEAP, U(valid), SET, 1),
       AT(HEAP, U(stripe), SET, 0x00ffffff)),
    IN("a cut to nowhere", AT(HEAP, U(lock), OWNER, 0), AT(HEAP, U(valid), SET, 1), AT(HEAP, U(op), SET, 2),
       AT(HEAP, U(brk_after) + 1, SET, -1)),
    /* in hand */
    IN("in hand, its own next", AT(IN_HAND, B(0, LINK), SELF, 0), AT(IN_HAND, B(1, LINK), SELF, 0)),
    IN("in hand, used, its own next", AT(IN_HAND, B(0, LINK), SELF, 0), AT(IN_HAND, B(0, TAG), TAG, 768)),
    IN("in hand, used, a circle", AT(IN_HAND, B(0, TAG), TAG, 768), AT(IN_HAND, B(1, TAG), TAG, 768),
       AT(IN_HAND, B(2, TAG), TAG, 768), AT(STRIPE, S(0, INFLIGHT), ENTRY, 1), AT(ENTRY, E(1, LINK), ENTRY, 0),
       AT(ENTRY, E(0, LINK), ENTRY, 1)),
    IN("in hand of nobody, a circle", AT(STRIPE, S(0, INFLIGHT), ENTRY, 1), AT(ENTRY, E(1, LINK), ENTRY, 1),
       AT(ENTRY, E(1, TAG), TAG, 512 + 3)),
    IN("in hand, outside", AT(STRIPE, S(14, INFLIGHT), SET, -1), AT(STRIPE, S(0, INFLIGHT), EDGE, 0)),
    IN("in hand, at the edge", AT(STRIPE, S(14, INFLIGHT), EDGE, 1), AT(EDGE, 2, TAG, 512)),
    IN("in hand, of class 255", AT(IN_HAND, B(0, TAG), TAG, 512 + 255), AT(IN_HAND, B(1, TAG), TAG, 512 + 75)),
    IN("in hand, a table", AT(STRIPE, S(14, INFLIGHT), SET, 512), AT(STRIPE, S(2, INFLIGHT), SET, 0)),
    /* chains */
    IN("an entry that is its own next", AT(ENTRY, E(0, NEXT), SELF, 0)),
    IN("the same, and as many entries as can be said", AT(ENTRY, E(5, NEXT), SELF, 0),
       AT(STRIPE, S(0, ENTRIES), SET, -2)),
    IN("a circle of the chain, many entries", AT(ENTRY, E(5, NEXT), ENTRY, 0), AT(STRIPE, S(0, ENTRIES), SET, -2),
       AT(STRIPE, S(0, LOCK), OWNER, 0)),
    IN("a circle under a dead owner", AT(ENTRY, E(3, NEXT), ENTRY, 1), AT(STRIPE, S(0, LOCK), OWNER, 0)),
    IN("a chain out of the file", AT(ENTRY, E(1, NEXT), EDGE, 0), AT(ENTRY, E(4, NEXT), SET, -1)),
    IN("a chain to the edge", AT(BUCKET, 0, EDGE, 1), AT(BUCKET, 6, EDGE, 2), AT(BUCKET, 16, EDGE, 3)),
    IN("a chain into the header", AT(BUCKET, 0, SET, 1), AT(BUCKET, 16, NASTY, 22)),
    IN("heads out of the file", AT(BUCKET, 0, SET, -1), AT(BUCKET, 7, EDGE, 0), AT(BUCKET, 9, SET, 0x0fffffff)),
    IN("an entry at the edge with our key's words", AT(BUCKET, 16, EDGE, 3), AT(EDGE, 6, SET, 0x01000003)),
    IN("heads that lead to values", AT(BUCKET, 0, REF, 2), AT(BUCKET, 16, REF, 3), AT(BUCKET, 17, REF, 40)),
    IN("no entries, it says", AT(STRIPE, S(0, ENTRIES), SET, 0), AT(STRIPE, S(6, ENTRIES), SET, -1)),
    /* entries */
    IN("a key of 65535 bytes", AT(ENTRY, E(0, META), SET, 0x0100ffff), AT(ENTRY, E(15, META), SET, 0x0100ffff)),
    IN("a key of 9000 bytes in a block that says it holds them", AT(ENTRY, E(0, META), SET, 0x01000000 + 9000),
       AT(ENTRY, E(0, TAG), TAG, 768 + 31)),
    IN("a key of no bytes, of kind 0 and 255", AT(ENTRY, E(0, META), SET, 0), AT(ENTRY, E(1, META), SET, 0xff00ffff)),
    IN("values longer than their blocks", AT(ENTRY, E(0, WORD), SET, 60000), AT(ENTRY, E(6, WORD), SET, 262144)),
    IN("values as long as can be", AT(ENTRY, E(0, WORD), SET, SST_VALUE_MAX), AT(ENTRY, E(6, WORD), SET, -1)),
    IN("a text number that is longer", AT(ENTRY, E(8, WORD), SET, 70000), DO(ADD, 8, 1), DO(APPEND, 8, 3)),
    IN("values of no form", AT(ENTRY, E(0, WORD_HI), SET, 0), AT(ENTRY, E(1, WORD_HI), SET, -1)),
    IN("values at the edge", AT(ENTRY, E(0, VALUE0), EDGE, 1), AT(ENTRY, E(0, VALUE1), EDGE, 1),
       AT(ENTRY, E(6, VALUE0), EDGE, 2), AT(ENTRY, E(6, VALUE1), EDGE, 2)),
    IN("the block for the next value is at the edge", AT(ENTRY, E(0, VALUE0), EDGE, 1),
       AT(ENTRY, E(0, VALUE1), EDGE, 1), AT(EDGE, 2, TAG, 768 + 10)),
    IN("values outside", AT(ENTRY, E(0, VALUE0), SET, -1), AT(ENTRY, E(0, VALUE1), SET, 1),
       AT(ENTRY, E(6, VALUE0), EDGE, 0), AT(ENTRY, E(6, VALUE1), EDGE, 0)),
    IN("an empty value in no block, and nothing appended", AT(ENTRY, E(13, VALUE0), SET, -1),
       AT(ENTRY, E(13, VALUE1), SET, -1), DO(APPEND, 13, 0)),
    IN("a value that is its entry", AT(ENTRY, E(2, VALUE0), SELF, 0), AT(ENTRY, E(2, VALUE1), SELF, 0),
       AT(ENTRY, E(2, TAG), TAG, 768 + 40)),
    IN("a block of class 255 for the next value", AT(VALUE, B(0, TAG), TAG, 768 + 255),
       AT(VALUE, B(1, TAG), TAG, 768 + 74), AT(VALUE, B(2, TAG), TAG, 768 + 75)),
    /* queues */
    IN("an item that is its own next", AT(ITEM, B(2, ITEM_NEXT), SELF, 0), AT(STRIPE, S(10, LOCK), OWNER, 0)),
    IN("items in a circle", AT(ITEM, B(5, ITEM_NEXT), REF, 3), AT(ENTRY, E(10, VALUE1), REF, 9)),
    IN("items longer than their blocks", AT(ITEM, B(1, ITEM_LEN), SET, 60000), AT(ITEM, B(2, ITEM_LEN), SET, 262144)),
    IN("items as long as can be", AT(ITEM, B(0, ITEM_LEN), SET, -1), AT(ITEM, B(1, ITEM_LEN), SET, -8),
       AT(ITEM, B(2, ITEM_LEN), SET, SST_VALUE_MAX)),
    IN("a queue's last item outside", AT(ENTRY, E(9, VALUE1), SET, -1), AT(ENTRY, E(10, VALUE1), EDGE, 0)),
    IN("a queue's items at the edge", AT(ENTRY, E(9, VALUE0), EDGE, 1), AT(ENTRY, E(10, VALUE1), EDGE, 1),
       AT(EDGE, 2, TAG, 768)),
    IN("a queue's first item one unit before the edge", AT(ENTRY, E(9, VALUE0), EDGE, 2), AT(EDGE, 4, SET, 1),
       AT(EDGE, 6, TAG, 768)),
    IN("a queue's last item in the header", AT(ENTRY, E(9, VALUE1), SET, 1), AT(ENTRY, E(10, VALUE1), SET, 8)),
    IN("a queue of no items that has many", AT(ENTRY, E(10, VALUE0), SET, 0), AT(ENTRY, E(10, WORD_HI), SET, -1)),
    IN("a queue's entry as its item", AT(ENTRY, E(10, VALUE0), SELF, 0), AT(ENTRY, E(10, VALUE1), SELF, 0)),
    /* the header */
    IN("size 0", AT(HEADER, 8, SET, 0)),
    IN("size odd", AT(HEADER, 8, ADD, -13)),
    IN("size huge", AT(HEADER, 9, SET, -1)),
    IN("size the capacity", AT(HEADER, 8, NASTY, 19), AT(BUCKET, 0, EDGE, 0), AT(BUCKET, 6, NASTY, 18)),
    IN("size ends in the first block", AT(HEADER, 8, SET, 0), AT(HEADER, 8, NASTY, 15), AT(HEADER, 8, ADD, -65536)),
    IN("capacity larger", AT(HEADER, 6, ADD, 4096)),
    IN("capacity largest", AT(HEADER, 6, SET, 0), AT(HEADER, 7, SET, 16)),
    IN("capacity odd", AT(HEADER, 6, ADD, 1)),
    IN("buckets", AT(HEADER, 14, SET, 1 << 20)),
    IN("blocks", AT(HEADER, 15, SET, 1)),
    IN("another seed", AT(HEADER, 16, XOR, 1)),
    IN("another engine", AT(HEADER, 11, XOR, 3)),
    IN("no engine", AT(HEADER, 11, SET, 7)),
    IN("dead", AT(HEADER, 10, SET, SST_DEAD)),
    IN("no magic, half made", AT(HEADER, 0, SET, 0), AT(HEADER, 1, SET, 0)),
    IN("another layout", AT(HEADER, 2, XOR, 1)),
    IN("no incarnation", AT(HEADER, 4, SET, 0)),
    /* locks, sequences, events */
    IN("locks of the dead", AT(STRIPE, S(0, LOCK), OWNER, 0), AT(STRIPE, S(9, LOCK), OWNER, 4),
       AT(HEAP, U(lock), OWNER, 0)),
    IN("locks of the living", AT(STRIPE, S(0, LOCK), OWNER, 2), AT(STRIPE, S(14, LOCK), OWNER, 2)),
    IN("the heap's lock of the living", AT(HEAP, U(lock), OWNER, 2)),
    IN("locks of the caller", AT(STRIPE, S(0, LOCK), OWNER, 1), AT(HEAP, U(lock), OWNER, 1)),
    IN("locks of nobody", AT(STRIPE, S(0, LOCK), OWNER, 5), AT(STRIPE, S(6, LOCK), OWNER, 9),
       AT(STRIPE, S(9, LOCK), OWNER, 8), AT(STRIPE, S(7, LOCK), OWNER, 7)),
    IN("closed", AT(STRIPE, S(0, LOCK), OWNER, 3), AT(HEAP, U(lock), OWNER, 3)),
    IN("sequences odd", AT(STRIPE, S(0, SEQ), SET, -1), AT(STRIPE, S(6, SEQ), SET, 1)),
    IN("events at their end", AT(STRIPE, S(0, EVENT), SET, -1), AT(STRIPE, S(6, EVENT), SET, -2)),
    /* people */
    IN("generations", AT(PEER, B(0, 0), SET, 0), AT(PEER, B(1, 0), SET, -1), AT(PEER, B(2, 0), ADD, 1)),
    IN("states", AT(PEER, B(0, 1), SET, 9), AT(PEER, B(1, 1), SET, -1), AT(PEER, B(2, 1), SET, SST_PEER_CLAIMING)),
    IN("host names without an end", AT(PEER, B(0, 6), SET, -1), AT(PEER, B(0, 21), SET, -1)),
    IN("ranks of nobody", AT(RANK, 2, SET, -1), AT(RANK, 3, SET, -1), AT(RANK, 4, OWNER, 5), AT(RANK, 6, SET, 2047)),
    IN("spans", AT(HEAP, 14 + SST_CLASSES + 1, SET, -1), AT(HEAP, 14 + SST_CLASSES + 9, SET, 4097)),
    IN("slots of others' stripes", AT(WAITER, B(0, STRIPE), SET, -1), AT(WAITER, B(1, STRIPE), SET, 257),
       AT(WAITER, B(2, PARKED), SET, -1), AT(WAITER, B(1, OWNER), OWNER, 1)),
    IN("slots with the caller's name", AT(WAITER, B(0, OWNER), OWNER, 1), AT(WAITER, B(0, STRIPE), SET, -1),
       DO(WAKE, 0, 0)),
    IN("notes as long as can be", AT(WAITER, B(0, NOTE_LEN), SET, -1), AT(WAITER, B(0, RANK), SET, -1)),
    IN("semaphores that the libc aborts over", AT(WAITER, B(0, PARKED), EVENT, 16), AT(WAITER, B(0, SEM + 1), SET, 1),
       AT(WAITER, B(0, SEM + 2), SET, 0x96), AT(WAITER, B(1, PARKED), EVENT, 16), AT(WAITER, B(1, SEM + 1), SET, -1),
       AT(WAITER, B(1, SEM + 2), SET, -1), DO(PUSH, 16, 3)),
    IN("semaphores at their end", AT(WAITER, B(0, PARKED), EVENT, 16), AT(WAITER, B(0, SEM), SET, -1),
       AT(WAITER, B(1, PARKED), EVENT, 16), AT(WAITER, B(1, SEM), SET, INT32_MAX), DO(PUSH, 16, 3)),
    IN("tickets", AT(WAITER, B(1, TICKET), SET, -1), AT(WAITER, B(1, TICKET + 1), SET, -1),
       AT(WAITER, B(2, TICKET + 1), SET, 0), DO(PUSH, 16, 3), DO(BARRIER, 16, 1)),
    /* reusable barriers */
    IN("arrivals of an epoch to come", AT(POINT, RANKS_MEET + ARRIVED_IN, SET, 7),
       AT(POINT, COUNTS_MEET + ARRIVED_IN, SET, 9)),
    IN("arrivals of more than there are", AT(POINT, RANKS_MEET + ARRIVALS, SET, -1),
       AT(POINT, COUNTS_MEET + ARRIVALS, SET, -1), AT(POINT, COUNTS_MEET + ARRIVALS + 2, SET, -1)),
    IN("no parties", AT(POINT, RANKS_MEET + PARTIES, SET, 0), AT(POINT, COUNTS_MEET + PARTIES, SET, 0)),
    IN("more parties than fit", AT(POINT, RANKS_MEET + PARTIES, SET, SST_PARTIES_MAX), DO(MEET, 8, 3),
       AT(POINT, COUNTS_MEET + PARTIES, SET, SST_PARTIES_MAX), AT(POINT, COUNTS_MEET + RANKED, SET, 1), DO(MEET, 2, 3)),
    IN("a barrier outside", AT(ENTRY, E(9, META), SET, SST_META(3, SST_USER, SST_KIND_BARRIER)),
       AT(ENTRY, E(9, VALUE0), EDGE, 1), DO(MEET, 9, 0), AT(ENTRY, E(9, VALUE0), SET, -1), DO(MEET, 9, 0)),
    IN("a key that says it is a barrier", AT(ENTRY, E(9, META), SET, SST_META(3, SST_USER, SST_KIND_BARRIER)),
       DO(MEET, 9, 0), DO(MEET, 9, 1), DO(MEET, 9, 3)),
    IN("states", AT(POINT, RANKS_MEET + STATE, SET, -1), AT(POINT, COUNTS_MEET + STATE_HI, SET, -1), DO(MEET, 8, 0),
       DO(MEET, 2, 1)),
    IN("seats of nobody", AT(POINT, RANKS_MEET + SEATS, SET, -1), AT(POINT, RANKS_MEET + SEATS + 1, OWNER, 5),
       AT(POINT, RANKS_MEET + SEATS + 2, OWNER, 7), AT(POINT, RANKS_MEET + PROBE, SET, 0), DO(MEET, 8, 0)),
    IN("seats of the dead", AT(POINT, RANKS_MEET + SEATS, OWNER, 0), AT(POINT, RANKS_MEET + SEATS + 1, OWNER, 0),
       AT(POINT, RANKS_MEET + ARRIVALS, SET, 0), DO(MEET, 8, 8)),
    IN("slots at barriers that are none", AT(WAITER, B(0, OWNER), OWNER, 1), AT(WAITER, B(0, STRIPE), SET, 257),
       AT(WAITER, B(1, OWNER), OWNER, 1), AT(WAITER, B(1, STRIPE), SET, 257), AT(WAITER, B(0, QUEUE), SET, -1),
       AT(WAITER, B(1, QUEUE), ENTRY, 6), DO(WAKE, 0, 0)),
};

uint32_t fz_corpus_size(void) { return (uint32_t)(sizeof inputs / sizeof *inputs); }

size_t fz_corpus(uint32_t i, uint8_t *out, size_t room, const char **name) {
    const input *in = &inputs[i];
    size_t n = 1 + in->n * sizeof(fz_record);
    FZ_CHECK(n <= room);
    out[0] = FZ_VERIFY | FZ_LOOK;
    memcpy(out + 1, in->record, n - 1);
    *name = in->name;
    return n;
}
