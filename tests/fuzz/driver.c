/* driver.c -- runs a fuzz target without libFuzzer: the inputs made by hand, then random ones from a fixed seed.
 *
 *   fuzz_live [--runs N] [--seconds S] [--seed X]     the short form; both engines
 *   fuzz_live FILE...                                 these inputs alone, as libFuzzer writes them
 *   fuzz_live --write DIRECTORY                       the inputs made by hand, as files to begin with
 *
 * It knows no coverage: what it finds, it finds because the inputs name words that matter. */
#include "check.h"
#include "fuzz.h"

#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LONGEST = 1 + 20 * sizeof(fz_record), HANG_S = 10 };

static uint8_t data[4096];
static size_t size;
static char what[160];

/* The input under way, in hex: on whatever ends the process. Only calls that a signal handler may make. */
static void confess(void) {
    static const char digits[] = "0123456789abcdef";
    char text[2 * sizeof data + 2];
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        text[n++] = digits[data[i] >> 4];
        text[n++] = digits[data[i] & 15];
    }
    text[n++] = '\n';
    (void)!write(2, what, strlen(what));
    (void)!write(2, text, n);
}

static void on_signal(int sig) {
    static const char hang[] = "no end after 10 s: ";
    if (sig == SIGALRM)
        (void)!write(2, hang, sizeof hang - 1);
    confess();
    (void)signal(sig, SIG_DFL);
    (void)raise(sig);
}

#if defined(__SANITIZE_ADDRESS__)
void __sanitizer_set_death_callback(void (*callback)(void));
static void watch(void) {
    __sanitizer_set_death_callback(confess);
    (void)signal(SIGALRM, on_signal);
    (void)signal(SIGABRT, on_signal);
}
#else
static void watch(void) {
    static const int signals[] = {SIGALRM, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        (void)signal(signals[i], on_signal);
}
#endif

static uint64_t state;
static uint32_t number(uint32_t below) { /* splitmix64 */
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)((z ^ z >> 31) >> 16) % below;
}

static fz_record any_record(void) {
    fz_record r = {0};
    r.index = (uint16_t)number(65536);
    r.value = number(4) ? number(300) : number(UINT32_MAX);
    r.op = (uint8_t)number(256);
    r.where = (uint8_t)(number(4) ? number(FZ_PLACES) : FZ_VERB + number(FZ_VERBS));
    if (number(2)) /* the first words of things matter most */
        r.index = (uint16_t)(r.index & ~UINT32_C(0x1f)) | (uint16_t)number(10);
    return r;
}

static void random_input(void) {
    const char *name;
    size = 1;
    if (number(4) == 0)
        size = fz_corpus(number(fz_corpus_size()), data, sizeof data, &name);
    data[0] = (uint8_t)(number(4) | (number(4) ? 0 : FZ_LOOK) | (number(32) ? 0 : FZ_YIELD) |
                        (number(16) ? 0 : number(16) << 4));
    for (uint32_t n = 1 + number(8); n > 0 && size + sizeof(fz_record) <= LONGEST; n--) {
        fz_record r = any_record();
        memcpy(data + size, &r, sizeof r);
        size += sizeof r;
    }
}

static void run(void) {
    (void)alarm(HANG_S);
    (void)LLVMFuzzerTestOneInput(data, size);
    (void)alarm(0);
}

static uint32_t run_corpus(void) {
    uint32_t runs = 0;
    for (uint32_t i = 0; i < fz_corpus_size(); i++)
        for (uint32_t flags = 0; flags < 8; flags++, runs++) { /* what is done about it: engine, verify, looks */
            const char *name;
            size = fz_corpus(i, data, sizeof data, &name);
            data[0] = (uint8_t)flags;
            (void)snprintf(what, sizeof what, "input by hand '%s', flags %u: ", name, flags);
            run();
        }
    return runs;
}

static double seconds(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int write_corpus(const char *directory) {
    for (uint32_t i = 0; i < fz_corpus_size(); i++) {
        char path[4096];
        const char *name;
        size = fz_corpus(i, data, sizeof data, &name);
        (void)snprintf(path, sizeof path, "%s/hand-%02u", directory, i);
        FILE *to = fopen(path, "wb");
        FZ_CHECK(to != NULL && fwrite(data, 1, size, to) == size && fclose(to) == 0);
    }
    return 0;
}

static int run_files(int n, char **paths) {
    for (int i = 0; i < n; i++) {
        FILE *from = fopen(paths[i], "rb");
        FZ_CHECK(from != NULL);
        size = fread(data, 1, sizeof data, from);
        (void)fclose(from);
        (void)snprintf(what, sizeof what, "%s: ", paths[i]);
        run();
        (void)printf("%s: ended\n", paths[i]);
    }
    return 0;
}

int main(int argc, char **argv) {
    uint64_t runs = 20000, seed = 1, done = 0;
    double most = 60, start = seconds();
    int i = 1;
    watch();
    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        if (strcmp(argv[i], "--write") == 0)
            return write_corpus(argv[i + 1]);
        if (strcmp(argv[i], "--runs") == 0)
            runs = strtoull(argv[i + 1], NULL, 0);
        else if (strcmp(argv[i], "--seconds") == 0)
            most = strtod(argv[i + 1], NULL);
        else if (strcmp(argv[i], "--seed") == 0)
            seed = strtoull(argv[i + 1], NULL, 0);
    }
    if (i < argc)
        return run_files(argc - i, argv + i);
    const char *name = strrchr(argv[0], '/');
    char about[80];
    (void)snprintf(about, sizeof about, "fuzz: %.60s, gcc", name ? name + 1 : argv[0]);
    proof("began", about, "seed=%llu", (unsigned long long)seed);
    uint32_t by_hand = run_corpus();
    state = seed;
    for (; done < runs && seconds() - start < most; done++) {
        random_input();
        (void)snprintf(what, sizeof what, "random input %llu of seed %llu: ", (unsigned long long)done,
                       (unsigned long long)seed);
        run();
    }
    double took = seconds() - start;
    proof("ended", about, "executions=%llu\tby hand=%u\trandom=%llu\tseconds=%.1f",
          (unsigned long long)(done + by_hand), by_hand, (unsigned long long)done, took);
    (void)printf("%u inputs by hand, %llu random ones: each an error or an answer; %.1f s, %.0f a second\n", by_hand,
                 (unsigned long long)done, took, (double)(done + by_hand) / took);
    return 0;
}
