/* errors.h -- error codes as one list (floor C0): name and sentence. The values stand in sst.h. */
#ifndef SST_ERRORS_H
#define SST_ERRORS_H

#define SST_ERRORS(X)                                                                                                  \
    X(SST_OK, "success")                                                                                               \
    X(SST_EAGAIN, "would block, or a slice of the wait is over")                                                       \
    X(SST_ENOENT, "no such key, item or rank")                                                                         \
    X(SST_EEXIST, "the rank has a live owner")                                                                         \
    X(SST_ETIMEDOUT, "the deadline passed")                                                                            \
    X(SST_EINTR, "interrupted by a signal")                                                                            \
    X(SST_EFULL, "the segment's capacity is used up")                                                                  \
    X(SST_ENOSPC, "the file system of the segment is full")                                                            \
    X(SST_ECORRUPT, "the segment's contents break an invariant")                                                       \
    X(SST_EINVAL, "an argument is out of range")                                                                       \
    X(SST_ENOTINT, "the value has no leading number")                                                                  \
    X(SST_ERANGE, "the number is beyond int64")                                                                        \
    X(SST_ENOBUFS, "the buffer is too small")                                                                          \
    X(SST_ECLOSED, "the attachment is closed")                                                                         \
    X(SST_EBUSY, "a live process held a lock until the deadline")                                                      \
    X(SST_EPEERS, "all peer slots belong to live processes")                                                           \
    X(SST_ESYS, "a system call failed")                                                                                \
    X(SST_EMAGIC, "not a shmstore segment")                                                                            \
    X(SST_ELAYOUT, "a segment of another layout")                                                                      \
    X(SST_ETRUNC, "the file is shorter than its header says")                                                          \
    X(SST_ENGINE, "the segment's park engine is not built in")                                                         \
    X(SST_EDEAD, "the segment is dead or unfinished")                                                                  \
    X(SST_ETOOBIG, "the value would pass the size limit")                                                              \
    X(SST_EBROKEN, "the barrier is broken")                                                                            \
    X(SST_EPARTIES, "the barrier has other parties")                                                                   \
    X(SST_ELOST, "somebody else closed a descriptor of the segment")

/* Keeps errno for sst_errno() and returns code. */
int sst_fail_errno(int code);
/* The same with a given errno. */
int sst_fail_with(int code, int err);

#endif
