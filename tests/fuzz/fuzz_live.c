/* fuzz_live.c -- a segment that turns hostile under a process that is attached to it: patches between verbs. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fz_record records[64];
    if (size == 0)
        return 0;
    uint32_t flags = data[0], n = fz_records(data, size, records, 64), patches = 0, left = 2;
    fz_segment *f = fz_template(flags & FZ_SEMAPHORE);
    fz_restore(f);
    f->a->yields.skip = f->a->barrier_yields.skip = flags & FZ_YIELD ? 0 : 1000;
    for (uint32_t i = 0; i < n; i++) {
        if (records[i].where >= FZ_VERB) {
            if (!fz_enough(records[i].where - FZ_VERB, &left))
                fz_verb(f, f->a, records[i].where - FZ_VERB, records[i].index, records[i].value);
        } else {
            fz_patch(f, &records[i]);
            patches++;
        }
    }
    fz_sweep(f, f->a, flags, n);
    if (patches == 0) /* then it was not hostile */
        FZ_CHECK(fz_verify(f->a) == 0);
    fz_judge_header(f);
    FZ_CHECK(f->a->me == f->me && f->a->users == 0);
    return 0;
}
