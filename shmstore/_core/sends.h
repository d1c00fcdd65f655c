/* sends.h -- small answers to many sockets in one system call (floor C1).
 *
 * A send wakes who waits for it, and on the way back from the call whoever was woken takes the core: with many clients
 * that happens after every other answer, and costs as much as the answer. One call for all answers of a pass has one way
 * back. The call is io_submit, whose writes to a socket are done when it returns; where the kernel has none, or allows
 * none, nothing is sent so. */
#ifndef SST_SENDS_H
#define SST_SENDS_H

#include <stddef.h>
#include <sys/types.h>

#define SST_SENDS_MOST ((size_t)64)

/* One answer. The socket must be non-blocking, and SIGPIPE blocked in the thread that sends. */
typedef struct {
    int fd;
    const char *at;
    size_t n;
    size_t sent; /* out: 0 also where it failed, which the next send() tells */
    int unknown; /* out: 1: the kernel took it and would not say what became of it */
} sst_send;

/* One thread's. All 0 to begin with. */
typedef struct {
    unsigned long context; /* the kernel's; 0: none yet */
    int none;              /* 1: there is none to be had */
} sst_sends;

/* Sends each of them once, n <= SST_SENDS_MOST. */
void sst_sends_go(sst_sends *s, sst_send *each, size_t n);
/* Gives the context back. */
void sst_sends_end(sst_sends *s);
/* In a forked child, which has no contexts. */
void sst_sends_forked(void);

#endif
