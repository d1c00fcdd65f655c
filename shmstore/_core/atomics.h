/* atomics.h -- the only way to store into the segment (floor C0).
 *
 * Every shared word is a plain uint32_t or uint64_t in layout.h and is touched through these wrappers alone; each is
 * named after its memory order. Bytes go in through sst_copy_in and come out through sst_copy_out, word by word and
 * relaxed: a seqlock reader may race with a writer and must then only see stale words, never undefined behaviour.
 *
 * Fault build (-DSST_FAULT): each store counts, and the process dies with SIGKILL just before its n-th, when
 * sst_fault_arm(n) asked for that. Crash tests enumerate n. One kind of store hides from the count: what sem_init, sem_post and the
 * semaphore waits write. That is sound, as a semaphore only parks: a death beside such a call leaves a post too many (a
 * look for nothing) or one too few (a slice slept through), and the words that decide are stored through here.
 */
#ifndef SST_ATOMICS_H
#define SST_ATOMICS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef SST_FAULT
void sst_fault_arm(uint64_t nth); /* 0 disarms; resets the count */
uint64_t sst_fault_count(void);   /* stores since the last arm */
void sst_fault_store(void);
#else
static inline void sst_fault_store(void) {}
#endif

static inline uint32_t ld32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint64_t ld64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint32_t ld32_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t ld64_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t ld64_seq_cst(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }

static inline void st32(uint32_t *p, uint32_t v) {
    sst_fault_store();
    __atomic_store_n(p, v, __ATOMIC_RELAXED);
}
static inline void st64(uint64_t *p, uint64_t v) {
    sst_fault_store();
    __atomic_store_n(p, v, __ATOMIC_RELAXED);
}
static inline void st32_release(uint32_t *p, uint32_t v) {
    sst_fault_store();
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
static inline void st64_release(uint64_t *p, uint64_t v) {
    sst_fault_store();
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
/* 1 when *p was old and is now new; 0 leaves it alone. */
static inline int cas32_acquire(uint32_t *p, uint32_t old, uint32_t desired) {
    sst_fault_store();
    return __atomic_compare_exchange_n(p, &old, desired, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}
static inline int cas32_seq_cst(uint32_t *p, uint32_t old, uint32_t desired) {
    sst_fault_store();
    return __atomic_compare_exchange_n(p, &old, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
static inline int cas64_acq_rel(uint64_t *p, uint64_t old, uint64_t desired) {
    sst_fault_store();
    return __atomic_compare_exchange_n(p, &old, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}
static inline int cas64_seq_cst(uint64_t *p, uint64_t old, uint64_t desired) {
    sst_fault_store();
    return __atomic_compare_exchange_n(p, &old, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
static inline uint32_t xchg32_release(uint32_t *p, uint32_t v) {
    sst_fault_store();
    return __atomic_exchange_n(p, v, __ATOMIC_RELEASE);
}
static inline uint32_t or32_seq_cst(uint32_t *p, uint32_t bits) {
    sst_fault_store();
    return __atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST);
}

static inline uint64_t or64_seq_cst(uint64_t *p, uint64_t bits) {
    sst_fault_store();
    return __atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST);
}

/* Words private to the process (call counts, what was seen of the file): the same wrappers, uncounted. */
static inline uint32_t own_add32(uint32_t *p, uint32_t n) { return __atomic_fetch_add(p, n, __ATOMIC_ACQ_REL); }
static inline uint64_t own_add64(uint64_t *p, uint64_t n) { return __atomic_fetch_add(p, n, __ATOMIC_ACQ_REL); }
static inline int own_cas32(uint32_t *p, uint32_t old, uint32_t desired) {
    return __atomic_compare_exchange_n(p, &old, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}
static inline int own_cas64(uint64_t *p, uint64_t old, uint64_t desired) {
    return __atomic_compare_exchange_n(p, &old, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline void own_st32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void own_st64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline int own_fd(const int *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void own_set_fd(int *p, int fd) { __atomic_store_n(p, fd, __ATOMIC_RELEASE); }

/* A fence of gcc's that ThreadSanitizer does not model; the words around each are atomic all the same, so that it sees
 * no race, and each use says which store-load it orders. */
#if defined(__SANITIZE_THREAD__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wtsan"
#endif
static inline void fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
static inline void fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static inline void fence_seq_cst(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static inline void sst_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

/* Copies n bytes into the segment, relaxed. Callers publish them with a release store afterwards. The fault build
 * counts three stores: before the first byte, in the middle, and before the last word. */
static inline void sst_copy_in(char *to, const char *from, size_t n) {
    sst_fault_store();
    size_t i = 0;
    for (; i < n && ((uintptr_t)(to + i) & 7u); i++)
        __atomic_store_n(to + i, from[i], __ATOMIC_RELAXED);
    for (size_t half = n / 2; i + 8 <= n; i += 8) {
        uint64_t w;
        memcpy(&w, from + i, 8);
        if (i <= half && half < i + 8)
            sst_fault_store();
        __atomic_store_n((uint64_t *)(void *)(to + i), w, __ATOMIC_RELAXED);
    }
    sst_fault_store();
    for (; i < n; i++)
        __atomic_store_n(to + i, from[i], __ATOMIC_RELAXED);
}

/* Copies n bytes out of the segment, relaxed; what races with a writer is torn, and the seqlock says so. */
static inline void sst_copy_out(char *to, const char *from, size_t n) {
    size_t i = 0;
    for (; i < n && ((uintptr_t)(from + i) & 7u); i++)
        to[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
    for (; i + 8 <= n; i += 8) {
        uint64_t w = __atomic_load_n((const uint64_t *)(const void *)(from + i), __ATOMIC_RELAXED);
        memcpy(to + i, &w, 8);
    }
    for (; i < n; i++)
        to[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
}

/* Copies n bytes from one place of the segment (or a local text) to another; both 8-aligned or the source local. */
static inline void sst_move_in(char *to, const char *from, size_t n) {
    char part[512];
    for (size_t i = 0; i < n; i += sizeof part) {
        size_t k = n - i < sizeof part ? n - i : sizeof part;
        sst_copy_out(part, from + i, k);
        sst_copy_in(to + i, part, k);
    }
}

/* 1 when the n bytes at p (in the segment, 8-aligned) equal those at q. */
static inline int sst_same(const char *p, const char *q, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t w;
        memcpy(&w, q + i, 8);
        if (__atomic_load_n((const uint64_t *)(const void *)(p + i), __ATOMIC_RELAXED) != w)
            return 0;
    }
    for (; i < n; i++)
        if (__atomic_load_n(p + i, __ATOMIC_RELAXED) != q[i])
            return 0;
    return 1;
}

#endif
