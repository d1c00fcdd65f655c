/* wire.h -- c10d's TCPStore protocol as bytes (floor C1): which frames there are, and where one ends. No sockets and no
 * segment in here.
 *
 * A request is an opcode and its fields, little-endian, without a length of the whole: to know where it ends is to walk
 * its fields. The walk keeps its place between two calls, so that bytes that come one by one are each walked once. */
#ifndef SST_WIRE_H
#define SST_WIRE_H

#include "sst.h"

#include <string.h>

enum {
    SST_OP_VALIDATE, /* u32 magic                        no reply */
    SST_OP_SET, /* key, value                       no reply */
    SST_OP_COMPARE_SET, /* key, expected, desired           value */
    SST_OP_GET, /* key                              value */
    SST_OP_ADD, /* key, i64                         i64 */
    SST_OP_CHECK, /* n, n keys                        u8: 0 all are there, 1 not */
    SST_OP_WAIT, /* n, n keys                        u8 0, once all have been there */
    SST_OP_NUM_KEYS, /*                                  i64 */
    SST_OP_DELETE, /* key                              i64 0 or 1 */
    SST_OP_APPEND, /* key, value                       no reply */
    SST_OP_MULTI_GET, /* n, n keys                        n values */
    SST_OP_MULTI_SET, /* n, n times (key, value)          no reply */
    SST_OP_CANCEL_WAIT, /*                                  u8 1 */
    SST_OP_PING, /* u32                              the same u32 */
    SST_OP_QUEUE_PUSH, /* key, value                       no reply */
    SST_OP_QUEUE_POP, /* key                              i64 length before the pop; if > 0, then the value */
    SST_OP_QUEUE_LEN, /* key                              i64 */
    SST_OP_LIST_KEYS, /*                                  i64 n, n keys */
    SST_OP_BARRIER, /* key, i64 parties                 u8 0, once that many have come */
    SST_OP_HOLD, /* requests, as a value             theirs, once the connection's wait is over; see below */
    SST_OPS
};

/* HOLD is not c10d's: as a byte of the wire it is far from what c10d may number next, and a client learns that it is known
 * here by a PING of a number of its own, which any other server gives back as it is. */
#define SST_WIRE_HOLD      0xd1
#define SST_WIRE_HOLD_MOST ((size_t)1 << 20) /* bytes of what is held */
#define SST_WIRE_ASKED     UINT32_C(0x53686d73)
#define SST_WIRE_ANSWERED  UINT32_C(0x53686d74)

#define SST_WIRE_MAGIC     UINT32_C(0x3c85f7ce)
#define SST_WIRE_KEY_MAX   ((uint64_t)SST_KEY_MAX + 1) /* a user key and its slash */
#define SST_WIRE_KEYS_MAX  UINT64_C(131072) /* of a request, as torch's server has it */
#define SST_WIRE_FRAME_MAX (UINT64_C(64) << 20) /* a request of many keys, all of it */

/* A walk over one request; all 0 before its first byte. */
typedef struct {
    uint32_t op;
    uint32_t field; /* the next one, in the opcode's form */
    uint64_t left; /* rounds of a form that repeats, this one included */
    size_t at; /* bytes walked */
    size_t need; /* bytes of the request without which the walk cannot go on */
} sst_frame;

/* Walks on over p, the first n bytes of the request (those walked before are the same as they were). SST_OK: it is whole,
 * and f->at bytes long. SST_EAGAIN: f->need bytes are needed. SST_EINVAL: it is none of ours, or beyond a limit. */
int sst_frame_walk(sst_frame *f, const char *p, size_t n);

/* The form of an opcode: k key, b value, i 64 bits, u 32 bits; * a count, and the rest of the form that often. */
const char *sst_frame_form(uint32_t op);

/* Reads the fields of a whole request one after the other. */
typedef struct {
    const char *bytes;
    size_t len;
} sst_text;
static inline uint32_t sst_read_u32(const char **p) {
    uint32_t v;
    memcpy(&v, *p, 4);
    *p += 4;
    return v;
}
static inline uint64_t sst_read_u64(const char **p) {
    uint64_t v;
    memcpy(&v, *p, 8);
    *p += 8;
    return v;
}
static inline sst_text sst_read_text(const char **p) {
    sst_text t;
    t.len = (size_t)sst_read_u64(p);
    t.bytes = *p;
    *p += t.len;
    return t;
}

#endif
