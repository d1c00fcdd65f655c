/* loop.c -- the thread that serves (floor C9): one epoll set, pass after pass, and the stop.
 *
 * It never blocks but in epoll_wait, and looks for a moment before it does. A pass: what epoll says, then what was put
 * off, then the looks at moved events, then the answers go out; it sleeps only when nothing is left to do now. The order
 * matters at its end: nothing is armed between the last look and the sleep (bell.c).
 *
 *   stop          means                                                                 next
 *   not asked     passes                                                                begun, by sst_server_stop
 *   begun         nobody is let in, nothing new is read; what came is answered; until   over, when no connection is left or
 *                 drain_until                                                           drain_until has come
 *   over          all sockets are closed, the thread ends                               */
#include "clock.h"
#include "conn.h"
#include "errors.h"
#include "event.h"

#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

enum { EVENTS = 256, STUCK_MS = 4 };
#define MS_NS    UINT64_C(1000000)
#define LOOKS_NS UINT64_C(50000) /* as long as a waiter of ops_wait.c yields */
#define TAKEN_NS UINT64_C(3000)  /* a yield that finds nobody takes less */
#define TURN_NS  UINT64_C(300000)

int sst_watch(sst_server *v, int how, int fd, uint32_t events, void *tag) {
    struct epoll_event e = {.events = events, .data.ptr = tag};
    return epoll_ctl(v->epoll_fd, how, fd, &e);
}

int sst_loop_open(sst_server *v) {
    v->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    v->bell.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (v->epoll_fd < 0 || v->bell.fd < 0 || sst_watch(v, EPOLL_CTL_ADD, v->bell.fd, EPOLLIN, &v->bell) != 0 ||
        !sst_accept_begin(v))
        return sst_fail_errno(SST_ESYS);
    return SST_OK;
}

/* -- passes ----------------------------------------------------------------------------------------------------------- */
static void bury(sst_server *v) {
    while (sst_linked(&v->dead))
        sst_conn_free(SST_OF(sst_conn, link, v->dead.next));
}

/* What waits that are over had held back. It may end further waits. */
static void run_freed(sst_server *v) {
    while (sst_linked(&v->freed)) {
        sst_conn *c = SST_OF(sst_conn, ready, v->freed.next);
        sst_link_out(&c->ready);
        if (c->state != SST_CONN_ENDED)
            sst_conn_run(c);
        sst_link_last(&v->dirty, &c->dirty);
    }
}

/* Runs again what was put off, each once. */
static void run_ready(sst_server *v) {
    sst_link todo;
    sst_link_init(&todo);
    while (sst_linked(&v->ready))
        sst_link_last(&todo, v->ready.next);
    uint64_t now = sst_linked(&todo) ? sst_now_ns() : 0;
    while (sst_linked(&todo)) {
        sst_conn *c = SST_OF(sst_conn, ready, todo.next);
        sst_link_out(&c->ready);
        c->served = 0;
        if (c->busy_ns > now)
            sst_link_last(&v->ready, &c->ready);
        else if (c->state != SST_CONN_ENDED)
            sst_conn_run(c);
        sst_link_last(&v->dirty, &c->dirty);
    }
}

static void flush_all(sst_server *v) {
    for (size_t i = 0; sst_linked(&v->dirty); i++) {
        if (i % SST_SENDS_MOST == 0)
            sst_stream_flush_together(v);
        sst_conn *c = SST_OF(sst_conn, dirty, v->dirty.next);
        sst_link_out(&c->dirty);
        c->served = 0;
        sst_stream_flush(c);
    }
}

/* Milliseconds until something is to be done without being told: -1 never. */
static int patience(const sst_server *v, uint64_t now) {
    uint64_t until = SST_FOREVER;
    if (v->owed)
        return 0;
    for (const sst_link *l = v->ready.next; l != &v->ready; l = l->next)
        until = sst_earlier(until, SST_OF(const sst_conn, ready, l)->busy_ns);
    if (sst_linked(&v->grants))
        until = sst_earlier(until, SST_OF(const sst_conn, granted, v->grants.next)->grant_ns);
    if (v->stuck)
        until = sst_earlier(until, sst_after(now, STUCK_MS * MS_NS));
    if (v->accept_ns)
        until = sst_earlier(until, v->accept_ns);
    if (v->drain_until)
        until = sst_earlier(v->drain_until, sst_after(now, STUCK_MS * MS_NS));
    if (until == SST_FOREVER)
        return -1;
    uint64_t ms = until <= now ? 0 : (until - now + MS_NS - 1) / MS_NS;
    return ms > 60000 ? 60000 : (int)ms;
}

static void pass(sst_server *v, const struct epoll_event *events, int n) {
    for (int i = 0; i < n; i++) {
        if (events[i].data.ptr == &v->listen_fd)
            sst_accept_some(v);
        else if (events[i].data.ptr == &v->bell)
            sst_bell_heard(&v->bell);
        else
            sst_stream_serve(events[i].data.ptr, events[i].events);
    }
    run_ready(v);
    uint64_t now = sst_linked(&v->grants) || v->accept_ns ? sst_now_ns() : 0;
    sst_grants_expire(v, now);
    if (v->accept_ns && v->accept_ns <= now)
        sst_accept_again(v);
    v->stuck = 0;
    v->owed = 0;
    sst_wants_scan(v);
    while (sst_linked(&v->freed)) {
        run_freed(v);
        sst_wants_scan(v);
    } /* a scan after the last request of the pass: nothing is armed between it and the sleep */
    flush_all(v);
    bury(v);
}

/* -- the processor, and the sleep ------------------------------------------------------------------------------------- */
/* What epoll says. After a pass that had something to do the next request is often on its way, and to fall asleep and to
 * be woken takes longer than to look: so the thread looks for LOOKS_NS, offering its processor in between. Once somebody
 * took it the thread sleeps: whoever is woken comes to a processor that is free, who yields stays behind those on its own. */
static int await(sst_server *v, struct epoll_event *events, int busy) {
    uint64_t now = sst_now_ns(), until = now + LOOKS_NS;
    int wait_ms = patience(v, now);
    while (busy && wait_ms != 0 && now < until) {
        int n = epoll_wait(v->epoll_fd, events, EVENTS, 0);
        if (n != 0)
            return n;
        uint64_t offered = sst_now_ns();
        (void)sched_yield();
        now = sst_now_ns();
        if (now - offered > TAKEN_NS)
            break;
    }
    return epoll_wait(v->epoll_fd, events, EVENTS, wait_ms);
}

/* What sched_setattr takes, in its first form; not every libc has it. */
typedef struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
} scheduling;

/* Many small turns instead of few long ones: of those who wake Linux prefers who asks for less at a time (from 6.12 on;
 * before that it has no effect). The share of the processor stays what it is. A help, no need: a sandbox may forbid it. */
static void ask_for_short_turns(void) {
    enum { RESET_ON_FORK = 1 };
    scheduling how = {.size = sizeof how};
    if (syscall(SYS_sched_getattr, 0, &how, (unsigned)sizeof how, 0) != 0 ||
        (how.policy != SCHED_OTHER && how.policy != SCHED_BATCH))
        return;
    how.size = sizeof how;
    how.flags &= RESET_ON_FORK;
    how.runtime_ns = TURN_NS;
    (void)syscall(SYS_sched_setattr, 0, &how, 0);
}

/* -- from the first pass to the last ---------------------------------------------------------------------------------- */
/* The first step of a stop. */
static void begin_stop(sst_server *v) {
    v->drain_until = sst_after(sst_now_ns(), v->drain_ns);
    sst_accept_end(v);
    for (sst_link *l = v->conns.next, *next; l != &v->conns; l = next) {
        next = l->next;
        sst_conn *c = SST_OF(sst_conn, link, l);
        if (c->state == SST_CONN_OPEN) /* whether it is full or not: one read */
            sst_stream_serve(c, EPOLLIN);
        sst_stream_last(c);
    }
}

static void end_all(sst_server *v) {
    while (sst_linked(&v->conns))
        sst_stream_close(SST_OF(sst_conn, link, v->conns.next));
    bury(v);
}

void *sst_loop(void *arg) {
    sst_server *v = arg;
    struct epoll_event events[EVENTS];
    int n = 0;
    ask_for_short_turns();
    sst_event_serve(v->seg);
    for (;;) {
        n = await(v, events, n > 0);
        if (sst_begin(v->seg) != SST_OK)
            break;
        if (ld32_acquire(&v->stop) && v->drain_until == 0)
            begin_stop(v);
        pass(v, events, n > 0 ? n : 0);
        sst_end(v->seg);
        if (v->drain_until)
            for (sst_link *l = v->conns.next; l != &v->conns; l = l->next)
                sst_link_last(&v->dirty, &SST_OF(sst_conn, link, l)->dirty);
        if (v->drain_until && (!sst_linked(&v->conns) || sst_now_ns() >= v->drain_until))
            break;
    }
    end_all(v);
    sst_sends_end(&v->sends);
    sst_event_serve(NULL);
    sst_accept_end(v);
    own_st64(&v->count.running, 0);
    return NULL;
}
