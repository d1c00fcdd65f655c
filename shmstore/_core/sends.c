/* sends.c -- see sends.h. The kernel's asynchronous I/O: a context is where it leaves results. */
#include "sends.h"
#include "atomics.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A context that nobody uses, or 0. To destroy one takes the kernel 40 ms, to make one 20 us: so one is kept for the next
 * server of the process. atomic */
static uint64_t spare;

static int ready(sst_sends *s) {
    if (s->context == 0 && !s->none) {
        uint64_t kept = ld64_acquire(&spare);
        if (kept != 0 && own_cas64(&spare, kept, 0))
            s->context = (unsigned long)kept;
        else
            s->none = syscall(SYS_io_setup, (unsigned)SST_SENDS_MOST, &s->context) != 0;
    }
    return !s->none;
}

void sst_sends_go(sst_sends *s, sst_send *each, size_t n) {
    struct iocb block[SST_SENDS_MOST], *list[SST_SENDS_MOST];
    struct io_event result[SST_SENDS_MOST];
    for (size_t i = 0; i < n; i++) {
        each[i].sent = 0;
        each[i].unknown = 0;
    }
    if (!ready(s))
        return;
    memset(block, 0, n * sizeof *block);
    for (size_t i = 0; i < n; i++) {
        block[i].aio_data = i;
        block[i].aio_lio_opcode = IOCB_CMD_PWRITE;
        block[i].aio_fildes = (uint32_t)each[i].fd;
        block[i].aio_buf = (uint64_t)(uintptr_t)each[i].at;
        block[i].aio_nbytes = each[i].n;
        list[i] = &block[i];
    }
    long taken = syscall(SYS_io_submit, s->context, (long)n, list);
    if (taken <= 0) {
        s->none = taken < 0 && errno != EAGAIN && errno != EBADF; /* EBADF: of the first socket */
        return;
    }
    for (long i = 0; i < taken; i++)
        each[i].unknown = 1;
    for (long got = 0; got < taken;) {
        long r = syscall(SYS_io_getevents, s->context, taken - got, taken - got, result, NULL);
        if (r < 0 && errno != EINTR) { /* the context is none of ours any more */
            s->none = 1;
            break;
        }
        for (long i = 0; i < r; i++) {
            sst_send *one = &each[result[i].data];
            one->sent = result[i].res > 0 ? (size_t)result[i].res : 0;
            one->unknown = 0;
        }
        got += r > 0 ? r : 0;
    }
}

void sst_sends_end(sst_sends *s) {
    if (s->context != 0 && !own_cas64(&spare, 0, s->context))
        (void)syscall(SYS_io_destroy, s->context);
    *s = (sst_sends){0};
}

void sst_sends_forked(void) { own_st64(&spare, 0); }
