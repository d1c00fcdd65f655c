/* errors.c -- names and sentences of the error codes, and the errno behind them. */
#include "errors.h"
#include "sst.h"

#include <errno.h>

static _Thread_local int last_errno;

int sst_fail_with(int code, int err) {
    last_errno = err;
    return code;
}

int sst_fail_errno(int code) { return sst_fail_with(code, errno); }

int sst_errno(void) { return last_errno; }

const char *sst_strerror(int code) {
    switch (code) {
#define X(name, text)                                                                                                  \
    case name:                                                                                                         \
        return text;
        SST_ERRORS(X)
#undef X
    default:
        return "unknown code";
    }
}

const char *sst_error_name(int code) {
    switch (code) {
#define X(name, text)                                                                                                  \
    case name:                                                                                                         \
        return #name;
        SST_ERRORS(X)
#undef X
    default:
        return "SST_E?";
    }
}
