/* test_sends.c -- answers to many sockets in one call: each whole and its own, beside peers that are gone or do not read;
 * and a context that comes and goes, across a fork, too. */
#include "check.h"
#include "sends.h"

#include <sys/socket.h>

enum { MOST = 64 };

static int ours[MOST], theirs[MOST];

static void open_all(void) {
    for (int i = 0; i < MOST; i++) {
        int pair[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
        ours[i] = pair[0];
        theirs[i] = pair[1];
    }
}

static void close_all(void) {
    for (int i = 0; i < MOST; i++) {
        (void)close(ours[i]);
        if (theirs[i] >= 0)
            (void)close(theirs[i]);
    }
}

/* Each gets i + 1 bytes of its own number. Peer 3 is gone, peer 5 has no room left. */
static void one_round(sst_sends *sends, size_t n) {
    static char bytes[MOST][MOST];
    sst_send each[MOST];
    for (size_t i = 0; i < n; i++) {
        memset(bytes[i], (int)i, sizeof bytes[i]);
        each[i] = (sst_send){.fd = ours[i], .at = bytes[i], .n = i + 1, .sent = 99};
    }
    sst_sends_go(sends, each, n);
    for (size_t i = 0; i < n; i++) {
        if (i == 3 || i == 5) {
            CHECK_IS(each[i].sent, 0);
            continue;
        }
        CHECK_IS(each[i].sent, i + 1);
        char got[2 * MOST];
        CHECK_IS(recv(theirs[i], got, sizeof got, 0), i + 1);
        CHECK(memcmp(got, bytes[i], i + 1) == 0);
    }
}

int main(void) {
    (void)signal(SIGPIPE, SIG_IGN); /* the server's thread has it blocked */
    sst_sends sends = {0};
    open_all();
    (void)close(theirs[3]);
    theirs[3] = -1;
    static char full[1 << 16];
    while (send(ours[5], full, sizeof full, MSG_DONTWAIT) > 0)
        continue;
    while (send(ours[5], full, 1, MSG_DONTWAIT) > 0)
        continue;

    sst_send one = {.fd = ours[0], .at = "x", .n = 1};
    sst_sends_go(&sends, &one, 1);
    if (sends.none) { /* no asynchronous I/O here: nothing is sent so, and each answer has its send() */
        CHECK_IS(one.sent, 0);
        return 0;
    }
    char got;
    CHECK(one.sent == 1 && recv(theirs[0], &got, 1, 0) == 1 && got == 'x');

    for (int round = 0; round < 100; round++)
        one_round(&sends, round % 2 ? MOST : 7);
    unsigned long context = sends.context;
    sst_sends_end(&sends);
    CHECK(sends.context == 0);
    one_round(&sends, MOST);
    CHECK_IS(sends.context, context); /* the one that was kept */
    sst_sends_end(&sends);

    pid_t child = fork();
    if (child == 0) {
        sst_sends_forked();
        one_round(&sends, MOST); /* in one of its own */
        sst_sends_end(&sends);
        exit(0);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK_IS(status, 0);
    one_round(&sends, MOST);
    sst_sends_end(&sends);
    close_all();
    return 0;
}
