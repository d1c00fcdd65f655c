/* layout.h -- every struct that lies in the segment (floor C1).
 *
 *   offset 0     header      who wrote this, how big, which engine     4096 bytes
 *                heap        lock, undo, free lists, brk               4096
 *                peers       1024 x 96     one a process
 *                ranks       4096 x 8      rank -> peer
 *                waiters     4096 x 128    one a parked thread
 *                stripes     256 x 128     lock, sequence, event, counts
 *                directory   256 x buckets x 4     heads of the chains
 *                blocks      the heap proper, up to capacity
 *
 * Fixed-width integers and offsets only. A `ref` is an offset in units of 16 bytes, 0 for none, so that 32 bits reach
 * 64 GiB. Nothing here is read or written but through atomics.h, with one exception: the semaphores of the waiter slots
 * belong to the libc's sem_* calls. They only park: each value that a death can leave in one is legal (park_sem.c).
 */
#ifndef SST_LAYOUT_H
#define SST_LAYOUT_H

#include "sst.h"

#include <assert.h>
#include <semaphore.h>
#include <stddef.h>
#include <stdint.h>

#define SST_MAGIC        UINT64_C(0x45524f54534d4853) /* "SHMSTORE" in memory */
#define SST_MEANING      5u                         /* raise it when a field keeps its size and changes its meaning */
#define SST_STRIPES      256u
#define SST_CLASSES      75u
#define SST_SPANS        256u
#define SST_BELL_AT      4032u /* bytes into the heap's page */
#define SST_CAPACITY_MAX (UINT64_C(1) << 36) /* 32-bit refs of 16 bytes */

/* Lock and owner words (32 bits): who holds something.
 *
 *   bits  0..10  slot + 1, 0 for nobody     bits 11..26  generation of the slot, never 0 when held
 *   bit   31     WAITERS: somebody may be parked on this word
 *
 * A pid or tid never stands here: two containers may both run as pid 1. */
#define SST_WAITERS          UINT32_C(0x80000000)
#define SST_OWNER_MASK       UINT32_C(0x07ffffff)
#define SST_OWNER(slot, gen) (((uint32_t)(gen) << 11) | ((uint32_t)(slot) + 1u))
#define SST_OWNER_SLOT(w)    (((w) & 0x7ffu) - 1u) /* huge for nobody */
#define SST_OWNER_GEN(w)     (((w) >> 11) & 0xffffu)

/* The header. It never moves and its first six words keep their meaning in every layout, so that any version can say
 * what is wrong with any other's segment. */
typedef struct {
    uint64_t magic;       /* SST_MAGIC, published last: before it the segment is being made */
    uint64_t layout_id;   /* const after publish */
    uint64_t incarnation; /* const after publish; never 0 */
    uint64_t capacity;    /* bytes; const after publish */
    uint64_t size;        /* bytes of the file that may be touched; grows under the heap lock, after fallocate */
    uint32_t state;       /* atomic: 0 -> SST_READY -> SST_DEAD, under the lock file */
    uint32_t engine;      /* const after publish */
    uint32_t persist;     /* const after publish */
    uint32_t world_size;  /* const after publish; 0: none */
    uint32_t buckets;     /* per stripe, a power of two; const after publish */
    uint32_t blocks;      /* ref of the first block; const after publish */
    uint64_t seed;        /* of the key hash; const after publish */
    uint64_t pad[503];
} sst_header;

/* The heap's control block. guard: the heap lock, but where said.
 *
 * The undo record makes each heap operation all or nothing: it is written whole, then `valid` is set (release), the
 * stores follow, then `valid` is cleared. Repair of a dead owner's heap repeats the stores of a valid record, which
 * changes nothing where they had happened. */
typedef struct {
    uint32_t lock; /* owner word */
    uint32_t pad0;
    uint64_t brk; /* bytes: blocks lie tightly in [blocks, brk) */
    uint32_t valid;
    uint32_t op;       /* SST_HEAP_* */
    uint32_t block;    /* ref */
    uint32_t cls;      /* size class of block */
    uint32_t stripe;   /* whose inflight list */
    uint32_t next;     /* take: the free list's new head. give: its old head */
    uint32_t inflight; /* take: the inflight list's old head. give: its new head */
    uint32_t pad1;
    uint64_t brk_after; /* cut: brk afterwards */
    uint32_t free[SST_CLASSES];
    uint32_t spans[SST_SPANS]; /* guard: atomic, only grows. How far from its home a waiter was ever placed */
    uint32_t pad2[(SST_BELL_AT - 56 - 4 * SST_CLASSES - 4 * SST_SPANS) / 4];
    uint32_t bell; /* guard: atomic; nothing of the heap's, but a cache line of its own. Argument: event.h */
    uint32_t pad3[(4096 - SST_BELL_AT - 4) / 4];
} sst_heap;

/* The bell, on which servers of the segment park: count << 11 | who.
 *
 *   who             means                                               next, by whom
 *   0               no bell thread is parked                            slot + 1, by CAS of that process's bell thread
 *   slot + 1        that process's may be                               0 by a ringer, who then wakes all; MANY
 *   MANY            those of several processes may be                   0 by a ringer, who then wakes all
 *   count           moves whenever who becomes 0, so that a bell thread that has not parked yet does not; and when a server
 *                   or a close nudges its own, which makes who 0, too, and wakes all whether who was 0 or not
 *
 * It is legal for who to name one that is not parked, or dead: that costs one wake of nobody. It is legal for who to be 0
 * while one is parked: a ringer died before its wake, and the park's slice, or whoever nudges, ends it. */
#define SST_BELL_WHO  0x7ffu
#define SST_BELL_MANY 0x7ffu
#define SST_BELL_ONE  0x800u

enum { SST_HEAP_TAKE = 1, SST_HEAP_CUT = 2, SST_HEAP_GIVE = 3 };

/* A block: 8 bytes of head, then the payload. tag = class | state << 8 | SST_BLOCK_MARK.
 *
 *   state     reached from            may become   by whom
 *   FREE      one free list           INFLIGHT     heap lock (take)
 *   INFLIGHT  one stripe's inflight   USED, FREE   stripe lock; FREE under the heap lock too (give)
 *   USED      the table, once         INFLIGHT     stripe lock (before it is unlinked)
 *
 * A USED block may still stand on its stripe's inflight list while the stripe lock is held. */
typedef struct {
    uint32_t link; /* ref of the next on the free or inflight list */
    uint32_t tag;
} sst_block;

enum { SST_BLOCK_FREE = 1, SST_BLOCK_INFLIGHT = 2, SST_BLOCK_USED = 3 };
#define SST_BLOCK_MARK      UINT32_C(0x5b1c0000)
#define SST_TAG(cls, state) (SST_BLOCK_MARK | ((uint32_t)(state) << 8) | (uint32_t)(cls))
#define SST_TAG_CLS(tag)    ((tag) & 0xffu)
#define SST_TAG_STATE(tag)  (((tag) >> 8) & 0xffu)

/* A table entry: the payload of a block. guard: the stripe lock; readers under the stripe's sequence.
 *
 * KEY: word = form << 40 | sel << 32 | length. The value is the first `length` bytes of block value[sel]; the other
 * block is where the next value is written before word is stored: that one store is the commit. form COUNTER: the
 * value is the decimal text of num. QUEUE: value[0] is the first item, value[1] the last, word the count, never 0: the
 * entry comes with its first item and goes with its last one. BARRIER: value[0] is its block; nothing else is used, and
 * the entry stays as long as the segment. */
typedef struct {
    uint32_t next; /* ref of the chain's next entry */
    uint32_t hash; /* upper half of the key's hash; const after link */
    uint32_t meta; /* key length | space << 16 | kind << 24; const after link */
    uint32_t value[2];
    uint32_t pad;
    uint64_t word;
    uint64_t num;
    /* key bytes */
} sst_entry;

enum { SST_KIND_KEY = 1, SST_KIND_QUEUE = 2, SST_KIND_BARRIER = 3 };
enum { SST_FORM_BYTES = 1, SST_FORM_COUNTER = 2 };
#define SST_META(klen, space, kind) ((uint32_t)(klen) | ((uint32_t)(space) << 16) | ((uint32_t)(kind) << 24))
#define SST_META_KLEN(m)            ((m) & 0xffffu)
#define SST_META_SPACE(m)           (((m) >> 16) & 0xffu)
#define SST_META_KIND(m)            ((m) >> 24)
#define SST_WORD(form, sel, len)    (((uint64_t)(form) << 40) | ((uint64_t)(sel) << 32) | (uint64_t)(len))
#define SST_WORD_LEN(w)             ((uint32_t)(w))
#define SST_WORD_SEL(w)             ((uint32_t)((w) >> 32) & 1u)
#define SST_WORD_FORM(w)            ((uint32_t)((w) >> 40))

/* A queue item: the payload of a block. */
typedef struct {
    uint32_t next;
    uint32_t len;
    /* bytes */
} sst_item;

/* A reusable barrier: the payload of a block. Behind it come the arrivals, a word for each 32 parties, and, where they
 * are ranked, a seat for each. guard: CAS, no lock; but parties and ranked, const after link. Argument: barrier.c.
 *
 * state = history << 52 | rank << 40 | epoch << 8 | nudges << 5 | cause << 2 | BROKEN << 1 | WAITERS
 *   WAITERS  somebody may be parked on the lower half; who takes it away wakes all
 *   BROKEN   the epoch has ended badly: nobody passes before a reset
 *   cause, rank   of the last break or reset: what (SST_BAR_*) and by whom
 *   nudges   moves to stop a park that a close must end
 *   history  how the last eight epochs ended, the youngest lowest: 0 all passed, 1 reset
 * An arrivals' word = epoch << 32 | a bit for each that arrived in that epoch. A word of an older epoch counts as empty.
 *
 * A seat: who came last with that rank: SEAT_RANK | a rank of the segment's, which tells left from dead for good, or an
 * owner word. A process does not take the seat of a rank that lives: it may be a child of that rank's process.
 * SEAT_OPENED beside SEAT_RANK: a process of that rank has opened the barrier for this party, which has not come yet. It
 * may be the party, or its parent: its death counts, its leaving does not. */
typedef struct {
    uint64_t state;
    uint32_t parties;
    uint32_t ranked;   /* 0 or 1 */
    uint64_t probe_ns; /* CLOCK_MONOTONIC: when somebody last began to look for the dead */
    uint64_t culprit;  /* for people, written before the break: epoch's low 22 bits << 42 | pid << 12 | rank */
    uint64_t reset; /* RESET | the last epoch that a reset was begun for, 0: none. For who missed more than eight */
    uint64_t pad[2];
} sst_barrier_block;

#define SST_PARTIES_MAX         SST_RANKS_MAX
#define SST_BAR_WAITERS         UINT64_C(1)
#define SST_BAR_BROKEN          UINT64_C(2)
#define SST_BAR_NUDGE           UINT64_C(0x20)
#define SST_BAR_NUDGES          UINT64_C(0xe0)
#define SST_BAR_EPOCH_ONE       UINT64_C(0x100)
#define SST_BAR_EPOCH(st)       ((uint32_t)((st) >> 8))
#define SST_BAR_CAUSE(st)       ((uint32_t)((st) >> 2) & 7u)
#define SST_BAR_RANK(st)        ((uint32_t)((st) >> 40) & 0xfffu)
#define SST_BAR_HISTORY(st)     ((uint32_t)((st) >> 52) & 0xffu)
#define SST_BAR_BLAME(why, who) (((uint64_t)(why) << 2) | ((uint64_t)(who) << 40))
#define SST_BAR_BLAMED          SST_BAR_BLAME(7, 0xfff)
#define SST_BAR_WORD(e, bits)   (((uint64_t)(e) << 32) | (bits))
#define SST_BAR_CULPRIT(e, pid, rank)                                                                                  \
    (((uint64_t)((e) & 0x3fffffu) << 42) | ((uint64_t)((pid) & 0x3fffffffu) << 12) | (uint64_t)(rank))
#define SST_BAR_RESET_OF(e) (UINT64_C(1) << 32 | (uint64_t)(e))
#define SST_SEAT_RANK       UINT32_C(0x80000000)
#define SST_SEAT_OPENED     UINT32_C(0x40000000)

/* A stripe: a 256th of the table with its lock, on cache lines of its own.
 *
 * event = count << 2 | FORWARD << 1 | WAITERS
 *   WAITERS  set by a waiter before it looks; cleared by the setter that wakes all. Legal to be set for nobody.
 *   FORWARD  set by a server before it looks; taken off by the setter, who then rings the bell. Legal to be set for
 *            nobody: that costs one ring.
 *   count    moves with every creation and push; a waiter parks on the whole word. */
typedef struct {
    uint32_t lock; /* owner word */
    uint32_t seq; /* odd while a holder of the lock changes what readers see */
    uint32_t event; /* guard: atomic */
    uint32_t inflight; /* ref: blocks that the holder's operation has in hand. guard: the lock; and the heap undo */
    uint32_t keys[2]; /* keys of each space. guard: the lock; readers atomic */
    uint32_t entries; /* keys and queues. guard: the lock */
    uint32_t pad0;
    uint64_t tickets; /* the last one given in a queue's line. guard: the lock */
    uint32_t pad[22];
} sst_stripe;
#define SST_EVENT_WAITERS 1u
#define SST_EVENT_FORWARD 2u
#define SST_EVENT_ONE     4u

/* A peer slot: a process. Its life is an OFD write lock on byte SST_LIFE + slot of the file, not a word in here.
 *
 *   state     byte     means                         next
 *   FREE      free     never used                    CLAIMING (claim), FORKED (by a parent, before it forks)
 *   CLAIMING  locked   being claimed                 LIVE; a death reads as DEAD
 *   LIVE      locked   a process                     LEFT (leave); a death reads as DEAD
 *   FORKED    locked   a forked child, no call yet   CLAIMING, by the child
 *   FORKED    free     it is gone and touched        as FREE
 *                      nothing, or never came to be
 *   LEFT      free     left in good order            as FREE
 *   CLAIMING or LIVE, byte free: dead                CLAIMING, by whoever locks the byte
 *
 * guard: the holder of the byte lock. */
typedef struct {
    uint32_t gen; /* moves with every claim, never 0 once claimed, 16 bits */
    uint32_t state;
    uint32_t pid;
    uint32_t pad;
    uint64_t start_ns;
    uint64_t host[8]; /* NUL-padded text */
    uint64_t pad1;
} sst_peer_slot;
#define SST_LIFE (UINT64_C(1) << 40)

/* A rank: owner word | pid << 32 | state << 62, moved by CAS alone. */
#define SST_RANK(owner, pid, state)                                                                                    \
    ((uint64_t)(owner) | ((uint64_t)((pid) & 0x3fffffffu) << 32) | ((uint64_t)(state) << 62))
#define SST_RANK_OWNER(w) ((uint32_t)(w))
#define SST_RANK_PID(w)   ((uint32_t)((w) >> 32) & 0x3fffffffu)
#define SST_RANK_STATE(w) ((uint32_t)((w) >> 62))

/* A waiter slot: a parked thread. guard: its owner, but `owner` itself (CAS) and sem (posted by setters).
 *
 *   state         owner                 word  ticket        next, by whom
 *   FREE          0                     0     0             WIPING, by CAS of anybody
 *   WIPING        slot, gen, WIPING     any   any           CLAIMED or FREE, by that process once all is 0
 *   CLAIMED       slot, gen             0     0             the next three; FREE, by the owner (all 0 first)
 *   PARKED        slot, gen             of a  any           CLAIMED or what it was, by the owner. Semaphore engine only;
 *                                       word                it may be IN LINE or AT A BARRIER besides
 *   IN LINE       slot, gen             any   1 .. 2^62-1   CLAIMED or FREE, by the owner
 *   AT A BARRIER  slot, gen             any   BARRIER, hash + PASSED, by whoever finds the count full; FREE, by the owner
 *   DEAD          not alive (+ WIPING)  any   any           WIPING, by CAS from exactly this owner, of whoever meets it
 *
 * WIPING is nobody's yet: a reader loads owner before the other words and passes over such a slot, so that it never
 * takes the dead's ticket for the new owner's. */
typedef struct {
    uint32_t owner;
    uint32_t word; /* offset / 4 of the word it is parked on, 0: not parked. Read by setters (semaphore engine) */
    uint64_t since_ns;
    uint64_t ticket; /* its place in a queue's line, or SST_TICKET_BARRIER and more; 0: neither. guard: stripe lock */
    uint32_t queue; /* which queue of the stripe, by the key's hash; at a barrier: how many are to come */
    uint32_t rank; /* rank + 1 of the handle, 0: none */
    uint32_t note_len;
    uint32_t stripe; /* whose event it waits on, + 1; 0: none; AT_REUSABLE: at the barrier whose block `queue` is */
    sem_t sem; /* process-shared, made once when the segment is; only parks, never holds */
    uint64_t note[SST_NOTE_MAX / 8];
} sst_waiter_slot;

#define SST_AT_REUSABLE (SST_STRIPES + 1u)

/* Beside the owner in a waiter slot's owner word, in the place of a lock's WAITERS. */
#define SST_WIPING SST_WAITERS

/* The ticket of a thread at a barrier: BARRIER | the key's hash, then PASSED beside them, by CAS, by who saw all come. */
#define SST_TICKET_BARRIER (UINT64_C(1) << 63)
#define SST_TICKET_PASSED  (UINT64_C(1) << 62)
#define SST_TICKET_HASH    (SST_TICKET_PASSED - 1)

static_assert(sizeof(sst_header) == 4096, "header");
static_assert(offsetof(sst_header, magic) == 0 && offsetof(sst_header, layout_id) == 8, "header head");
static_assert(offsetof(sst_header, size) == 32 && offsetof(sst_header, state) == 40, "header words");
static_assert(sizeof(sst_heap) == 4096, "heap");
static_assert(offsetof(sst_heap, brk) == 8 && offsetof(sst_heap, free) == 56, "heap words");
static_assert(offsetof(sst_heap, bell) == SST_BELL_AT && SST_BELL_AT % 64 == 0, "bell");
static_assert(SST_PEERS_MAX < SST_BELL_MANY, "a bell names a slot");
static_assert(sizeof(sst_block) == 8, "block");
static_assert(sizeof(sst_entry) == 40 && offsetof(sst_entry, word) == 24, "entry");
static_assert(sizeof(sst_item) == 8, "item");
static_assert(sizeof(sst_barrier_block) == 56, "barrier");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a park on the lower half of a word");
static_assert(sizeof(sst_stripe) == 128 && offsetof(sst_stripe, event) == 8, "stripe");
static_assert(offsetof(sst_stripe, tickets) == 32, "stripe tickets");
static_assert(sizeof(sst_peer_slot) == 96 && offsetof(sst_peer_slot, host) == 24, "peer slot");
static_assert(sizeof(sem_t) <= 32, "sem_t");
static_assert(sizeof(sst_waiter_slot) <= 128 && offsetof(sst_waiter_slot, sem) == 40, "waiter slot");

/* Where the tables lie, bytes. */
#define SST_AT_HEAP      UINT64_C(4096)
#define SST_AT_PEERS     UINT64_C(8192)
#define SST_AT_RANKS     (SST_AT_PEERS + SST_PEERS_MAX * sizeof(sst_peer_slot))
#define SST_AT_WAITERS   (SST_AT_RANKS + SST_RANKS_MAX * sizeof(uint64_t))
#define SST_AT_STRIPES   (SST_AT_WAITERS + SST_WAITERS_MAX * UINT64_C(128))
#define SST_AT_DIRECTORY (SST_AT_STRIPES + SST_STRIPES * sizeof(sst_stripe))

#endif
