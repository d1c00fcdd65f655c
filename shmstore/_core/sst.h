/* sst.h -- the public C API of the shmstore core (floor C0).
 *
 * The region between the two cffi marks is the only declaration of this API: the cffi build slices it out of this
 * file, so Python and C cannot drift. Inside it stand plain declarations only: no preprocessor, no attributes.
 *
 * Rules of every function here:
 *   - It returns 0 (or a count, where said) or a negative SST_E* code; out-parameters come last.
 *   - To a verb a NULL segment is a closed one: SST_ECLOSED.
 *   - Keys and values are length-counted bytes; NUL is an ordinary byte. A key has 1..SST_KEY_MAX bytes.
 *   - Times are nanoseconds of CLOCK_MONOTONIC. A deadline is absolute; SST_FOREVER never comes.
 *   - flags: 0, or SST_TRY: return SST_EAGAIN whenever the call would park, repair another's lock, allocate file
 *     space or copy more than SST_TRY_COPY bytes. doors.c calls so, with the GIL kept. Or SST_NOWAIT: return SST_EBUSY
 *     at once where somebody alive holds a lock that the call needs, whatever the deadline says; repair, allocate and copy
 *     as ever. The server calls so, whose thread stands still for nobody.
 *   - A call that finds a lock held by a live process waits until the deadline, then SST_EBUSY; sst_holder() names
 *     the process. A signal while waiting is SST_EINTR: nothing has happened, call again with the same deadline.
 */
#ifndef SST_H
#define SST_H

#include <stddef.h>
#include <stdint.h>

/* cffi-begin */
enum {
    SST_OK = 0,
    SST_EAGAIN = -1,    /* would block (SST_TRY), or a slice of a wait is over: call again */
    SST_ENOENT = -2,    /* no such key, queue item or rank */
    SST_EEXIST = -3,    /* the rank has a live owner */
    SST_ETIMEDOUT = -4, /* the deadline passed */
    SST_EINTR = -5,     /* a signal arrived */
    SST_EFULL = -6,     /* the segment's capacity is used up */
    SST_ENOSPC = -7,    /* the file system of the segment is full */
    SST_ECORRUPT = -8,  /* the segment's contents break an invariant */
    SST_EINVAL = -9,    /* an argument is out of range */
    SST_ENOTINT = -10,  /* add: the value has no leading number */
    SST_ERANGE = -11,   /* add: the number is beyond int64 */
    SST_ENOBUFS = -12,  /* the buffer is too small; *len says what is needed */
    SST_ECLOSED = -13,  /* this attachment is closed */
    SST_EBUSY = -14,    /* a live process held a lock until the deadline */
    SST_EPEERS = -15,   /* all peer slots belong to live processes */
    SST_ESYS = -16,     /* a system call failed; sst_errno() says how */
    SST_EMAGIC = -17,   /* not a segment of ours */
    SST_ELAYOUT = -18,  /* a segment of another layout (another version, libc or architecture) */
    SST_ETRUNC = -19,   /* the file is shorter than its header says */
    SST_ENGINE = -20,   /* the segment's park engine is not built into this library */
    SST_EDEAD = -21,    /* the segment was unlinked or was never finished: look the name up again */
    SST_ETOOBIG = -22,  /* the value would pass SST_VALUE_MAX */
    SST_EBROKEN = -23,  /* the barrier is broken */
    SST_EPARTIES = -24, /* the barrier is there with other parties, or with ranks where none were given */
    SST_ELOST = -25     /* somebody else closed a descriptor of the segment: this attachment may only be closed */
};

enum {
    SST_KEY_MAX = 8191,
    SST_VALUE_MAX = 8388608,
    SST_TRY_COPY = 65536,
    SST_PEERS_MAX = 1024,
    SST_RANKS_MAX = 4096,
    SST_WAITERS_MAX = 4096,
    SST_NOTE_MAX = 56, /* bytes kept of what a waiter waits on */
    SST_TRY = 1,       /* flags */
    SST_KEY_ONLY = 2,  /* check and wait: a queue of that name does not count */
    SST_NOWAIT = 4,
    SST_FUTEX = 1,     /* engines */
    SST_SEMAPHORE = 2,
    SST_USER = 0, /* key spaces: what local verbs see */
    SST_RAW = 1,  /* wire keys without the slash; no local verb lists them */
    SST_READY = 1, /* segment states, as sst_peek reports them */
    SST_DEAD = 2,
    SST_PEER_FREE = 0, /* peer states */
    SST_PEER_CLAIMING = 1,
    SST_PEER_LIVE = 2,
    SST_PEER_FORKED = 3, /* never reported: a forked child before its first call is LIVE, a slot it left is FREE */
    SST_PEER_LEFT = 4,
    SST_PEER_DEAD = 5, /* only reported: LIVE or CLAIMING in memory, but its byte is unlocked */
    SST_RANK_FREE = 0, /* rank states */
    SST_RANK_LIVE = 1,
    SST_RANK_LEFT = 2,
    SST_RANK_DEAD = 3, /* only reported */
    SST_NO_RANK = -1,  /* a barrier without ranks */
    SST_BAR_TIMEOUT = 1, /* what ended an epoch of a barrier badly: somebody's deadline passed, */
    SST_BAR_ABORT = 2,   /* somebody called abort, */
    SST_BAR_DEAD = 3,    /* a rank it needs died, */
    SST_BAR_LEFT = 4,    /* or left in good order, */
    SST_BAR_RESET = 5,   /* somebody called reset, */
    SST_BAR_INTERRUPT = 6, /* or gave up waiting: a signal, a close */
    SST_SEAT_ARRIVED = 1, /* who is missing at a barrier: nobody; */
    SST_SEAT_UNKNOWN = 2, /* nobody ever came with that rank, */
    SST_SEAT_LIVE = 3,    /* its process lives, */
    SST_SEAT_LEFT = 4,
    SST_SEAT_DEAD = 5,
    SST_SEAT_GONE = 6     /* its process had no rank, and is not attached any more: left or dead */
};

typedef struct sst_seg sst_seg;

typedef struct {
    uint64_t incarnation, capacity, size; /* bytes */
    uint64_t used, keys;                  /* bytes of the heap handed out (free lists included); user keys */
    uint32_t state, engine, persist, world_size;
    uint32_t peers_live, peers_dead, peers_left; /* peer slots by state */
    uint32_t ranks_seen;                         /* ranks that ever registered */
} sst_info;

typedef struct {
    uint32_t slot, gen, state; /* SST_PEER_* */
    int32_t pid;
    uint64_t start_ns; /* process start, for people */
    char host[64];     /* NUL-terminated */
} sst_peer;

typedef struct {
    uint32_t rank, state; /* SST_RANK_* */
    uint32_t slot, gen;
    int32_t pid;
    char host[64];
} sst_rank;

typedef struct {
    uint32_t slot, gen;
    uint64_t since_ns;     /* CLOCK_MONOTONIC */
    uint32_t rank;         /* rank + 1 of the waiting handle, 0: none */
    uint32_t note_len;     /* full length of what is waited on, at most SST_NOTE_MAX bytes of it in note */
    uint32_t dead;         /* 1: its process died waiting */
    char note[56];
} sst_waiter;

/* A reusable barrier as its users hold it, from sst_bar_open; the same for all their threads. */
typedef struct {
    uint32_t block, entry; /* where it lies */
    uint32_t parties;
    int32_t rank;          /* the user's at this barrier, or SST_NO_RANK */
    uint32_t who, owner;   /* the handle's rank + 1 or 0, and the process that has it */
} sst_bar;

/* One wait at it: all 0 at first, kept between the calls of that wait. With `only` 1 it is for `epoch` alone. */
typedef struct {
    uint32_t arrived, only, epoch;
    uint32_t index;          /* 0 .. parties - 1: how many of the epoch came before */
    uint32_t waiter;         /* as in sst_wait */
    uint32_t cause, rank;    /* with SST_EBROKEN: SST_BAR_*, and whose; rank 4096: not known */
    int32_t pid;             /* with SST_BAR_DEAD: the dead's, 0: not known any more */
} sst_arrival;

typedef struct {
    uint32_t epoch, broken, arrived;
    uint32_t cause, rank; /* of the last epoch that ended badly, as in sst_arrival */
    int32_t pid;
} sst_bar_info;

typedef struct {
    uint32_t state; /* SST_SEAT_* */
    uint32_t rank;  /* rank + 1 in the segment, 0: none */
    uint32_t slot;
    int32_t pid;    /* 0: not known */
} sst_seat;

typedef struct sst_server sst_server;

typedef struct {
    uint64_t connections; /* accepted */
    uint64_t open, waiting; /* now: connections; those of them that wait for a key or at a barrier */
    uint64_t operations;  /* requests served */
    uint64_t bytes_in, bytes_out;
    uint64_t refused;     /* connections ended for what they sent, or for what the store could not do */
    uint64_t running;     /* 1: it serves; 0: it was stopped, or the segment was closed under it */
} sst_server_info;

/* -- the library ------------------------------------------------------------------------------------------- */
uint64_t sst_now_ns(void);
int sst_errno(void);                    /* errno of this thread's last SST_ESYS or SST_ENOSPC */
const char *sst_strerror(int code);
const char *sst_error_name(int code);
uint64_t sst_layout_id(void);
int sst_has_engine(uint32_t engine);    /* 1 or 0 */
uint64_t sst_min_capacity(void);

/* -- the life of a segment: the caller holds the lock file around create and attach, and to unlink ------------- */
/* Formats the empty file behind map_fd and becomes its first peer. lock_fd is a second open of the same file.
 * Both descriptors belong to the segment from here on, also when this fails (they are closed then). */
int sst_create(int map_fd, int lock_fd, uint64_t capacity, uint32_t engine, uint32_t persist, uint32_t world_size,
               uint64_t incarnation, sst_seg **out);
/* Checks the header, maps, claims a peer slot. Descriptors as for sst_create. SST_EPEERS, SST_EDEAD, SST_E… */
int sst_attach(int map_fd, int lock_fd, sst_seg **out);
/* Reads the header and counts the peers without joining; fd may be read-only and stays the caller's.
 * Counts of peers need a descriptor that holds no slot of this process; own slots read as free otherwise. */
int sst_peek(int fd, sst_info *out);
/* Maps read-only; only sst_stat, sst_peers, sst_ranks, sst_waiters and sst_verify may follow. fd stays the caller's. */
int sst_inspect(int fd, sst_seg **out);
int sst_stat(sst_seg *s, sst_info *out);
/* Closes the attachment to new calls, wakes those that wait, and lets all in flight end; then frees this process's
 * waiter slots and gives its peer slot back as LEFT. What is mapped stays so until sst_close, for sst_stat. SST_OK:
 * nobody of this process is left in the segment. SST_EINTR: a signal came, call again. SST_EBUSY: a call did not end in 10 s; the last
 * of them gives the slot back. SST_ECLOSED: it is closed. */
int sst_leave(sst_seg *s);
/* Between sst_leave and sst_close, else SST_EINVAL. Marks the segment dead, so that an attacher that already opened the
 * file looks the name up again. */
int sst_mark_dead(sst_seg *s);
/* Marks the attachment closed; calls in flight end with SST_ECLOSED, and waits are woken to do so. The last one out
 * gives the peer slot back, if sst_leave has not, and unmaps. Never waits; idempotent. */
int sst_close(sst_seg *s);
/* Frees the handle itself; no thread may be inside a call or make one after it. Closes first if needed. */
void sst_free(sst_seg *s);
/* Wakes every wait of this process in this segment: it returns SST_EAGAIN. */
int sst_wake_self(sst_seg *s);
/* This process's slot and generation; joins first where a forked child has no slot yet. */
int sst_self(sst_seg *s, uint32_t *slot, uint32_t *gen);
int sst_holder(sst_seg *s, uint32_t *slot, int32_t *pid); /* the live holder behind this thread's last SST_EBUSY */

/* -- peers and ranks -------------------------------------------------------------------------------------------- */
int sst_rank_register(sst_seg *s, uint32_t rank); /* SST_EEXIST: it has a live owner */
int sst_rank_leave(sst_seg *s, uint32_t rank);
int sst_peers(sst_seg *s, sst_peer *out, uint32_t room);     /* returns how many were written */
int sst_ranks(sst_seg *s, sst_rank *out, uint32_t room);     /* ranks ever registered, ascending */
int sst_waiters(sst_seg *s, sst_waiter *out, uint32_t room); /* waits in progress, and what the dead died waiting for */

/* -- verbs ------------------------------------------------------------------------------------------------------ */
int sst_set(sst_seg *s, uint32_t space, const char *key, size_t klen, const char *val, size_t vlen,
            uint64_t deadline_ns, uint32_t flags);
/* *len is the value's length, also with SST_ENOBUFS. SST_ENOENT: no such key (never waits for one). */
int sst_get(sst_seg *s, uint32_t space, const char *key, size_t klen, char *buf, size_t room, size_t *len,
            uint64_t deadline_ns, uint32_t flags);
int sst_add(sst_seg *s, uint32_t space, const char *key, size_t klen, int64_t n, int64_t *value, uint64_t deadline_ns,
            uint32_t flags);
/* The c10d rules; the answer goes to buf (size it for the larger of desired and expected first, then as *len says:
 * SST_ENOBUFS changes nothing). */
int sst_compare_set(sst_seg *s, uint32_t space, const char *key, size_t klen, const char *expected, size_t elen,
                    const char *desired, size_t dlen, char *buf, size_t room, size_t *len, uint64_t deadline_ns,
                    uint32_t flags);
int sst_append(sst_seg *s, uint32_t space, const char *key, size_t klen, const char *val, size_t vlen,
               uint64_t deadline_ns, uint32_t flags);
/* 1: the key, or (without SST_KEY_ONLY) a non-empty queue of that name, is there; 0: not. */
int sst_check(sst_seg *s, uint32_t space, const char *key, size_t klen, uint64_t deadline_ns, uint32_t flags);
int sst_delete(sst_seg *s, uint32_t space, const char *key, size_t klen, uint64_t deadline_ns,
               uint32_t flags); /* 1/0 */
int sst_num_keys(sst_seg *s, uint32_t space, const char *prefix, size_t plen, int64_t *n, uint64_t deadline_ns,
                 uint32_t flags);
/* Keys with that prefix, from stripe *cursor on, as (u32 length, bytes) records, *used bytes of them; *cursor moves to
 * the next unread stripe; returns 1 while stripes are left, 0 at the end. SST_ENOBUFS: the next stripe alone needs
 * *used bytes. No error loses a key: call again with that *cursor. Each stripe is one snapshot. */
int sst_list_keys(sst_seg *s, uint32_t space, const char *prefix, size_t plen, uint32_t *cursor, char *buf, size_t room,
                  size_t *used, uint64_t deadline_ns, uint32_t flags);
/* Sets n pairs. keys, vals: concatenated bytes; klens, vlens: n lengths each. Of a key given more than once the last value
 * counts. All stripes concerned are locked first; SST_EFULL or SST_ENOSPC: nothing was set. */
int sst_multi_set(sst_seg *s, uint32_t space, const char *keys, const uint32_t *klens, const char *vals,
                  const uint32_t *vlens, uint32_t n, uint64_t deadline_ns, uint32_t flags);
/* As sst_check, but before it says 0 it yields the processor for a while, at most to the deadline: whoever is to set the
 * key is often about to. Nothing parks, and no waiter is to be seen. */
int sst_linger(sst_seg *s, uint32_t space, const char *key, size_t klen, uint64_t deadline_ns, uint32_t flags);
/* Parks until sst_check would say 1, at most to the deadline and at most slice_ns. 0: it is there. SST_EAGAIN: the
 * slice is over or something changed. *waiter: 0 at first; kept between the slices of one wait; 0 again when the wait
 * ends (0 or SST_ETIMEDOUT); give up early with sst_waiter_release. rank: rank + 1 of the handle or 0, for people.
 * flags: SST_KEY_ONLY or 0. */
int sst_wait(sst_seg *s, uint32_t space, const char *key, size_t klen, uint32_t *waiter, uint32_t rank,
             uint64_t deadline_ns, uint64_t slice_ns, uint32_t flags);
void sst_waiter_release(sst_seg *s, uint32_t *waiter);
/* c10d's barrier: adds 1 to the key, once (*arrived is 0 before that and 1 afterwards; a timeout does not take it
 * back), then waits until it was `parties` (1 or more) or more at some moment. *count: what the key held at the last
 * look. *waiter, rank, slices: as in sst_wait. */
int sst_barrier(sst_seg *s, uint32_t space, const char *key, size_t klen, uint32_t parties, uint32_t *arrived,
                int64_t *count, uint32_t *waiter, uint32_t rank, uint64_t deadline_ns, uint64_t slice_ns);

/* -- reusable barriers: verbs too, but none takes a lock or waits, where that is not said ------------------------ */
/* Finds the barrier of that key or makes it, for 1 .. SST_RANKS_MAX parties, and takes the seat of `rank` (or
 * SST_NO_RANK). who: rank + 1 of the handle, or 0. It stays as long as the segment; a key and a queue of that name are
 * other things. SST_EPARTIES: it is there and other. Waits for a lock as every verb does. */
int sst_bar_open(sst_seg *s, uint32_t space, const char *key, size_t klen, uint32_t parties, int32_t rank, uint32_t who,
                 uint64_t deadline_ns, sst_bar *out);
/* Arrives, once. SST_OK: all have. SST_EAGAIN: not yet, or (arrived still 0, with SST_TRY) a forked child's first call.
 * SST_EBROKEN. SST_ENOENT: the only epoch that it was for is not the current one. Who has arrived counts, whatever
 * becomes of him. */
int sst_bar_arrive(sst_seg *s, const sst_bar *bar, sst_arrival *a, uint32_t flags);
/* Arrives, then yields for a while, at most to the deadline; as sst_bar_arrive. */
int sst_bar_linger(sst_seg *s, const sst_bar *bar, sst_arrival *a, uint64_t deadline_ns);
/* Arrives, then parks, at most to the deadline and at most slice_ns. SST_OK: all have arrived, and what each did before
 * is seen. SST_EAGAIN: the slice is over. SST_ETIMEDOUT: the deadline is, and this call broke the barrier for that.
 * SST_EBROKEN, SST_ENOENT. After each slice one of those who wait looks, for all, whether a rank that has not arrived died or left;
 * then that breaks it. Give up early with sst_bar_break and sst_waiter_release. */
int sst_bar_wait(sst_seg *s, const sst_bar *bar, sst_arrival *a, uint64_t deadline_ns, uint64_t slice_ns);
/* Breaks the epoch `epoch`, or with any 1 whichever it is. 1: it was unbroken; 0: not, or it is over. */
int sst_bar_break(sst_seg *s, const sst_bar *bar, int any, uint32_t epoch, uint32_t cause, uint32_t rank);
/* Ends the epoch `epoch` if it is broken, or with any 1 whichever it is, so that the next begins; who waits in it gets
 * SST_EBROKEN. 1: done; 0: that epoch is over. */
int sst_bar_reset(sst_seg *s, const sst_bar *bar, int any, uint32_t epoch);
int sst_bar_look(sst_seg *s, const sst_bar *bar, sst_bar_info *out);
/* Of a barrier with ranks: parties records, in their order; who had arrived in that epoch, as far as it is still known. */
int sst_bar_seats(sst_seg *s, const sst_bar *bar, uint32_t epoch, sst_seat *out);

int sst_queue_push(sst_seg *s, uint32_t space, const char *key, size_t klen, const char *val, size_t vlen,
                   uint64_t deadline_ns, uint32_t flags);
/* *waiter as in sst_wait: it is this popper's place in the line. block 0: SST_ENOENT when no item is free for it.
 * SST_TRY and SST_NOWAIT: with block 0 only, else SST_EINVAL. */
int sst_queue_pop(sst_seg *s, uint32_t space, const char *key, size_t klen, int block, char *buf, size_t room,
                  size_t *len, uint32_t *waiter, uint32_t rank, uint64_t deadline_ns, uint64_t slice_ns,
                  uint32_t flags);
int sst_queue_len(sst_seg *s, uint32_t space, const char *key, size_t klen, int64_t *n, uint64_t deadline_ns,
                  uint32_t flags);

/* -- the segment on the wire: c10d's TCPStore protocol ------------------------------------------------------------- */
/* Serves what connects to listen_fd, a listening stream socket, on a thread of its own, until sst_server_stop. The socket
 * belongs to the server from here on, also when this fails (it is closed then). The segment must stay open meanwhile: a
 * server whose segment is closed drops its connections and ends. */
int sst_server_start(sst_seg *s, int listen_fd, sst_server **out);
/* Takes no more connections; answers what has arrived whole; disconnects who waits; gives the rest drain_ns to take its
 * answers; then disconnects all. Idempotent; waits for the threads. In a forked child it closes the descriptors. */
int sst_server_stop(sst_server *v, uint64_t drain_ns);
int sst_server_stat(sst_server *v, sst_server_info *out);
void sst_server_free(sst_server *v); /* stops it first; NULL is fine */

/* -- proof -------------------------------------------------------------------------------------------------------- */
/* Walks every invariant. Writes one line a broken invariant ("NAME (at PLACE)\n") into report, NUL-terminated
 * and cut at room; returns how many are broken. It locks what it reads; an inspector's cannot lock and needs a still
 * segment. */
int sst_verify(sst_seg *s, char *report, size_t room);
int sst_invariants(void); /* how many sst_verify walks */
const char *sst_invariant_name(int index); /* 0 <= index < sst_invariants() */
/* Tests only. Breaks invariant `index` in a live segment; SST_ENOENT where the segment holds nothing to break it on. */
int sst_test_break(sst_seg *s, int index);
/* Tests only. Takes a lock and keeps it: what 0: the stripe of key, 1: the heap, 2: a waiter slot, 3: another peer
 * slot left CLAIMING. The process is expected to be killed. */
int sst_test_hold(sst_seg *s, int what, const char *key, size_t klen);
/* cffi-end */

#define SST_FOREVER UINT64_MAX

#endif
