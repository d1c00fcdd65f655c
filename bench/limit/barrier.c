/* barrier.c -- the least that a barrier of processes costs: a count and a sense word, each on its own cache line.
 *
 * The last to arrive sets the count back, moves the sense word and wakes all, if one sleeps; the others watch the word.
 *
 *   sense word, bit 0    one sleeps, or is about to: set by who parks, gone when the word moves
 *               bit 1…   how often the barrier was passed
 *
 * How they watch, by HOW:
 *   yield    the policy of our own barrier (_core/barrier.c, sst_yield): a short spin if each has a core, then
 *            sched_yield until YIELD_NS of idle yields or YIELD_MOST_NS have gone by, then FUTEX_WAIT. Feedback: a
 *            yield that takes longer than SLOW_NS says that somebody else wants the core, and skips yielding for the
 *            next 16, 32, … 8192 waits.
 *   park     FUTEX_WAIT at once: what parking alone gives.
 * It knows neither names nor deaths nor timeouts: what ours costs above this is what those cost, and Python.
 *
 *   barrier PROCESSES COUNT SKEW_US HOW CORE...    prints: ns of a barrier, ns that all of it took
 *
 * SKEW_US = 0: back to back, COUNT periods, from the last departure of the warm-up's last barrier to the last departure
 * of all. Otherwise arrivals spread over SKEW_US by turns, and a barrier's time is from the last arrival to the last
 * departure; the median of COUNT. The warm-up is as long as what is timed, WARM at most.
 */
#include "limit.h"
#include <string.h>

enum { SPINS = 40, YIELD_NS = 50000, QUICK_NS = 2000, YIELD_MOST_NS = 500000, SLOW_NS = 1000000 };
enum { SKIP_FIRST = 16, SKIP_MOST = 8192, WARM = 100, SLEEPER = 1, PASSED = 2 };

typedef struct {
    _Alignas(64) _Atomic uint32_t count;
    _Alignas(64) _Atomic uint32_t sense;
} barrier_t;

typedef struct {
    uint32_t skip; /* waits that will not yield */
    uint32_t cost; /* how many the last slow yield skipped; 0: yields are quick */
} feedback_t;

static barrier_t *barrier;
static int64_t *enter, *leave; /* [process][i], i < stamps */
static int processes, count, stamps, skew_us, only_parks, cores_count;
static char **cores;

static int moved(uint32_t seen) {
    return (atomic_load_explicit(&barrier->sense, memory_order_acquire) ^ seen) >= PASSED;
}

static int spin(uint32_t seen) {
    for (int i = 0; processes <= cores_count && i < SPINS; i++) {
        if (moved(seen))
            return 1;
        relax();
    }
    return 0;
}

static int yield(uint32_t seen, feedback_t *f) {
    if (f->skip > 0) {
        f->skip--;
        return 0;
    }
    int64_t start = now_ns(), last = start, now = start, idle = 0;
    while (idle < YIELD_NS && now - start < YIELD_MOST_NS) {
        sched_yield();
        int done = moved(seen);
        now = now_ns();
        if (now - last > SLOW_NS) {
            f->cost = f->cost == 0 ? SKIP_FIRST : f->cost < SKIP_MOST ? f->cost * 2 : SKIP_MOST;
            f->skip = f->cost;
            return done;
        }
        if (done) {
            f->cost = 0;
            return 1;
        }
        idle += now - last < QUICK_NS ? now - last : QUICK_NS;
        last = now;
    }
    return 0;
}

static void park(uint32_t seen) {
    uint32_t value = atomic_fetch_or_explicit(&barrier->sense, SLEEPER, memory_order_acq_rel) | SLEEPER;
    /* Who comes too late leaves the bit to the next barrier: one wake for nothing. */
    while ((value ^ seen) < PASSED) {
        futex_wait(&barrier->sense, value);
        value = atomic_load_explicit(&barrier->sense, memory_order_acquire);
    }
}

static void meet(feedback_t *f) {
    uint32_t seen = atomic_load_explicit(&barrier->sense, memory_order_relaxed) & ~(uint32_t)SLEEPER;
    /* The word cannot move before we arrive. */
    if (atomic_fetch_add_explicit(&barrier->count, 1, memory_order_acq_rel) + 1 < (uint32_t)processes) {
        if (only_parks || (!spin(seen) && !yield(seen, f)))
            park(seen);
        return;
    }
    atomic_store_explicit(&barrier->count, 0, memory_order_relaxed); /* published by the sense word */
    if (atomic_exchange_explicit(&barrier->sense, seen + PASSED, memory_order_acq_rel) & SLEEPER)
        futex_wake_all(&barrier->sense);
}

static void rest(int rank, int i) {
    int64_t ns = processes > 1 ? (int64_t)skew_us * 1000 * ((rank + i) % processes) / (processes - 1) : 0;
    struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    nanosleep(&t, NULL);
}

static void spread(int rank, feedback_t *f) {
    for (int i = 0; i < count; i++) {
        rest(rank, i);
        enter[rank * stamps + i] = now_ns();
        meet(f);
        leave[rank * stamps + i] = now_ns();
    }
}

static void member(int rank) {
    feedback_t f = {0, 0};
    pin(rank, cores_count, cores);
    for (int i = 0; i < WARM && i < count; i++)
        meet(&f);
    if (skew_us) {
        spread(rank, &f);
        return;
    }
    enter[rank] = now_ns();
    for (int i = 0; i < count; i++)
        meet(&f);
    leave[rank] = now_ns();
}

static int64_t extreme(const int64_t *times, int i, int sign) {
    int64_t best = times[i];
    for (int rank = 1; rank < processes; rank++)
        if (sign * (times[rank * stamps + i] - best) > 0)
            best = times[rank * stamps + i];
    return best;
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* The median, from the last arrival to the last departure. */
static double opened(void) {
    int64_t *times = malloc((size_t)count * sizeof *times);
    if (times == NULL)
        die("malloc");
    for (int i = 0; i < count; i++)
        times[i] = extreme(leave, i, 1) - extreme(enter, i, 1);
    qsort(times, (size_t)count, sizeof *times, ascending);
    double median = ((double)times[(count - 1) / 2] + (double)times[count / 2]) / 2;
    free(times);
    return median;
}

int main(int argc, char **argv) {
    if (argc < 6 || (strcmp(argv[4], "yield") != 0 && strcmp(argv[4], "park") != 0))
        return 2;
    processes = atoi(argv[1]);
    count = atoi(argv[2]);
    skew_us = atoi(argv[3]);
    only_parks = strcmp(argv[4], "park") == 0;
    cores = argv + 5;
    cores_count = argc - 5;
    if (processes < 1 || count < 1 || skew_us < 0)
        return 2;
    stamps = skew_us ? count : 1;
    barrier = shared(sizeof *barrier);
    enter = shared((size_t)processes * (size_t)stamps * sizeof *enter);
    leave = shared((size_t)processes * (size_t)stamps * sizeof *leave);
    fork_all(processes, member);
    int64_t end = extreme(leave, stamps - 1, 1);
    double one = skew_us ? opened() : (double)(end - extreme(enter, 0, 1)) / count;
    printf("%.3f %lld\n", one, (long long)(end - extreme(enter, 0, -1)));
    return 0;
}
