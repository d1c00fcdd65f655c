/* test_verify.c -- each invariant, broken alone, is named by sst_verify, through a live view and an inspector. */
#include "check.h"

static void furnish(sst_seg *s) {
    int64_t v;
    char key[32];
    for (int i = 0; i < 40; i++) {
        (void)snprintf(key, sizeof key, "key/%d", i);
        CHECK_IS(put(s, key, "a value of some length"), SST_OK);
        CHECK_IS(put(s, key, "another"), SST_OK);
    }
    CHECK_IS(drop(s, "key/3"), 1);
    CHECK_IS(plus(s, "counter", 3, &v), SST_OK);
    CHECK_IS(push(s, "queue", "one"), SST_OK);
    CHECK_IS(push(s, "queue", "two"), SST_OK);
    CHECK_IS(sst_rank_register(s, 2), SST_OK);
}

/* 1: the report has a line that starts with the invariant's name. */
static int named(const char *report, const char *name) {
    const char *at = strstr(report, name);
    return at != NULL && (at == report || at[-1] == '\n');
}

int main(void) {
    static char report[8192];
    int both = 0;
    CHECK_IS(sst_verify(NULL, report, 0), SST_EINVAL);
    CHECK(sst_invariant_name(-1) == NULL && sst_invariant_name(sst_invariants()) == NULL);
    for (int i = 0; i < sst_invariants(); i++) {
        twin t;
        sst_seg *looker = NULL;
        twin_open(&t, 2 * MIB, SST_FUTEX);
        furnish(t.a);
        clean(t.b);
        CHECK_IS(sst_inspect(t.fd, &looker), SST_OK);
        clean(looker);
        CHECK_IS(sst_test_break(t.a, i), SST_OK);
        int seen = 0;
        for (int live = 0; live < 2; live++) { /* the inspector first: it heals nothing */
            int n = sst_verify(live ? t.b : looker, report, sizeof report);
            if (n < 1 || !named(report, sst_invariant_name(i))) {
                (void)fprintf(stderr, "%s view: '%s' broken, verify says %d:\n%s", live ? "live" : "inspecting",
                              sst_invariant_name(i), n, report);
                CHECK(0);
            }
            seen++;
        }
        both += seen == 2;
        sst_free(looker);
        let_go(t.b);
        let_go(t.a);
        (void)close(t.fd);
    }
    (void)printf("verify: %d of %d invariants broken and named\n", both, sst_invariants());
    return 0;
}
