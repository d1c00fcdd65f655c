/* pingpong.c -- what it costs two cores to tell each other something: one cache line goes there and back.
 *
 * Nothing between processes is faster than this. Each side spins; where both have to share one core, it yields, and the
 * figure is that of a switch of context.
 *
 *   pingpong COUNT CORE...    prints: ns of a round trip, ns that all of it took
 */
#include "limit.h"

enum { WARM = 1000 };

typedef struct {
    _Alignas(64) _Atomic uint32_t ball;
    _Alignas(64) int64_t took_ns;
} table_t;

static table_t *table;
static int count, cores_count;
static char **cores;

static void await(uint32_t value) {
    while (atomic_load_explicit(&table->ball, memory_order_acquire) != value) {
        if (cores_count < 2)
            sched_yield();
        else
            relax();
    }
}

/* Side 0 makes the ball odd, side 1 makes it even again. */
static void side(int me) {
    pin(me, cores_count, cores);
    int64_t start = 0;
    for (int i = 0; i < WARM + count; i++) {
        if (i == WARM)
            start = now_ns();
        await(2 * (uint32_t)i + (uint32_t)me);
        atomic_store_explicit(&table->ball, 2 * (uint32_t)i + (uint32_t)me + 1, memory_order_release);
    }
    if (me == 1)
        table->took_ns = now_ns() - start;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    count = atoi(argv[1]);
    cores = argv + 2;
    cores_count = argc - 2;
    if (count < 1)
        return 2;
    table = shared(sizeof *table);
    fork_all(2, side);
    printf("%.3f %lld\n", (double)table->took_ns / count, (long long)table->took_ns);
    return 0;
}
