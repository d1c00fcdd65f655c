/* limit.h -- what the bare limits share: time, cores, the futex, and a page that forked processes share. */
#ifndef BENCH_LIMIT_H
#define BENCH_LIMIT_H

#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    if (syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0) && errno != EAGAIN && errno != EINTR)
        die("futex");
}

static inline void futex_wake_all(_Atomic uint32_t *word) {
    if (syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0) < 0)
        die("futex");
}

static inline void *shared(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        die("mmap");
    return p;
}

/* Cores arrive as the last arguments; process i runs on the (i mod their number)-th. */
static inline void pin(int i, int count, char **cores) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)atoi(cores[i % count]), &set);
    if (sched_setaffinity(0, sizeof set, &set))
        die("sched_setaffinity");
}

/* Forks n processes that run body(i) and ends with failure when one of them does. A child dies with its parent. */
static inline void fork_all(int n, void (*body)(int)) {
    for (int i = 0; i < n; i++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            body(i);
            _exit(0);
        }
    }
    for (int status, i = 0; i < n; i++)
        if (wait(&status) < 0 || status != 0)
            exit(1);
}

#endif
