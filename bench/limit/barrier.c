/* barrier.c -- the least that a barrier of processes costs: a count and a sense word, each on its own cache line.
 *
 * The last to arrive sets the count back, moves the sense word and wakes all; the others watch the word. How they watch
 * is the policy of our own barrier: a short spin if each has a core, then sched_yield for at most YIELD_NS with feedback
 * (one yield that takes longer than SLOW_NS says that somebody else wants the core, and skips yielding for the next 16,
 * 32, … 8192 waits), then FUTEX_WAIT. It knows neither names nor deaths nor timeouts: what ours costs above this is what
 * those cost.
 *
 *   barrier PROCESSES COUNT SKEW_US CORE...    prints: ns of a barrier, ns that all of it took
 *
 * SKEW_US = 0: back to back, from the first arrival to the last departure by COUNT. Otherwise arrivals spread over SKEW_US
 * by turns, and a barrier's time is from the last arrival to the last departure; the median of COUNT.
 */
#include "limit.h"

enum { SPINS = 40, YIELD_NS = 50000, SLOW_NS = 300000, SKIP_FIRST = 16, SKIP_MOST = 8192, WARM = 100 };

typedef struct {
    _Alignas(64) _Atomic uint32_t count;
    _Alignas(64) _Atomic uint32_t sense;
} barrier_t;

typedef struct {
    uint32_t skip; /* waits that will not yield */
    uint32_t next; /* how many a slow yield skips next time */
} feedback_t;

static barrier_t *barrier;
static int64_t *enter, *leave; /* [process][i] */
static int processes, count, skew_us, cores_count;
static char **cores;

static int moved(uint32_t seen) { return atomic_load_explicit(&barrier->sense, memory_order_acquire) != seen; }

static void watch(uint32_t seen, feedback_t *f) {
    for (int i = 0; processes <= cores_count && i < SPINS; i++) {
        if (moved(seen))
            return;
        relax();
    }
    if (f->skip > 0) {
        f->skip--;
    } else {
        int64_t start = now_ns(), before = start;
        while (before - start < YIELD_NS) {
            sched_yield();
            int64_t after = now_ns();
            int slow = after - before > SLOW_NS;
            if (slow) {
                f->skip = f->next;
                f->next = f->next < SKIP_MOST ? f->next * 2 : SKIP_MOST;
            }
            if (moved(seen)) {
                if (!slow)
                    f->next = SKIP_FIRST;
                return;
            }
            if (slow)
                break;
            before = after;
        }
    }
    while (!moved(seen))
        futex_wait(&barrier->sense, seen);
}

static void meet(feedback_t *f) {
    uint32_t seen = atomic_load_explicit(&barrier->sense, memory_order_relaxed); /* it cannot move before we arrive */
    if (atomic_fetch_add_explicit(&barrier->count, 1, memory_order_acq_rel) + 1 < (uint32_t)processes) {
        watch(seen, f);
        return;
    }
    atomic_store_explicit(&barrier->count, 0, memory_order_relaxed); /* published by the sense word */
    atomic_store_explicit(&barrier->sense, seen + 1, memory_order_release);
    futex_wake_all(&barrier->sense);
}

static void rest(int rank, int i) {
    int64_t ns = processes > 1 ? (int64_t)skew_us * 1000 * ((rank + i) % processes) / (processes - 1) : 0;
    struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    nanosleep(&t, NULL);
}

static void member(int rank) {
    feedback_t f = {0, SKIP_FIRST};
    pin(rank, cores_count, cores);
    for (int i = 0; i < WARM; i++)
        meet(&f);
    for (int i = 0; i < count; i++) {
        if (skew_us)
            rest(rank, i);
        enter[rank * count + i] = now_ns();
        meet(&f);
        leave[rank * count + i] = now_ns();
    }
}

static int64_t extreme(const int64_t *times, int i, int sign) {
    int64_t best = times[i];
    for (int rank = 1; rank < processes; rank++)
        if (sign * (times[rank * count + i] - best) > 0)
            best = times[rank * count + i];
    return best;
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc < 5)
        return 2;
    processes = atoi(argv[1]);
    count = atoi(argv[2]);
    skew_us = atoi(argv[3]);
    cores = argv + 4;
    cores_count = argc - 4;
    if (processes < 1 || count < 1 || skew_us < 0)
        return 2;
    barrier = shared(sizeof *barrier);
    enter = shared((size_t)processes * (size_t)count * sizeof *enter);
    leave = shared((size_t)processes * (size_t)count * sizeof *leave);
    fork_all(processes, member);
    int64_t all = extreme(leave, count - 1, 1) - extreme(enter, 0, -1);
    double one = (double)all / count;
    if (skew_us) {
        int64_t *times = malloc((size_t)count * sizeof *times);
        if (times == NULL)
            die("malloc");
        for (int i = 0; i < count; i++)
            times[i] = extreme(leave, i, 1) - extreme(enter, i, 1);
        qsort(times, (size_t)count, sizeof *times, ascending);
        one = ((double)times[(count - 1) / 2] + (double)times[count / 2]) / 2;
        free(times);
    }
    printf("%.3f %lld\n", one, (long long)all);
    return 0;
}
