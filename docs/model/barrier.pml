/* barrier.pml -- the reusable barrier (barrier.c): arrivals, pass, park, wake, and a death anywhere.
 *
 * Three parties pass the barrier EPOCHS times; two of them share an arrivals' word, the third has one of its own, so that
 * the last two may look at each other's word. One of them may be killed at any step. A parked waiter is woken by whoever
 * ends the epoch; its slice ends by itself only once somebody was killed, so that a run without a death is shown to need
 * no slices. After a slice a waiter passes for all if all bits are there, and breaks the epoch if a party that has not
 * arrived is dead.
 *
 * Shown: who passes an epoch does so after all three arrived in it, nobody is told of a death that was none, and every
 * run ends with each of the living through or told (else spin finds an invalid end state).
 *
 * Mutants, each of which must fail:
 *   -DNO_HELP      only who arrives looks whether all bits are there
 *   -DLATE_ARM     a waiter looks at the epoch before it sets WAITERS, and not again
 *   -DNO_SLICE     a parked waiter only ends when it is woken
 *   -DLOOK_FIRST   the last to arrive looks at the other word before it sets its own bit
 *   -DNO_EPOCH     arrivals' words carry no epoch: whoever passes clears them afterwards
 */
#define P      3
#define EPOCHS 3

byte epoch;
bool broken, waiters;
byte word_epoch[2], word_bits[2];
bool parked[P], woken[P], alive[P];
byte deaths, through;
byte came[EPOCHS + 1]; /* ghost: arrivals in each epoch */

#define WORD(i) ((i) / 2)
#define BIT(i)  (1 << ((i) % 2))
#define ALL(w)  (w == 0 -> 3 : 1)
#ifdef NO_EPOCH
#define HAS(w, e, bits) ((word_bits[w] & (bits)) == (bits))
#else
#define HAS(w, e, bits) (word_epoch[w] == (e) && (word_bits[w] & (bits)) == (bits))
#endif

/* Killed before the step, or does it. */
#define STEP(action) \
    if \
    :: atomic { deaths == 0 -> deaths++; alive[me] = false; through++; goto dead } \
    :: action \
    fi

/* The CAS that ends or breaks epoch e, then the wake. */
#define END(breaks) \
    STEP(d_step { \
        moved = (epoch == e && !broken); \
        wake = moved && waiters; \
        if \
        :: moved && breaks -> broken = true \
        :: moved && !breaks -> epoch++ \
        :: else \
        fi; \
        if \
        :: moved -> waiters = false \
        :: else \
        fi }); \
    if \
    :: wake -> STEP(d_step { woken[0] = parked[0]; woken[1] = parked[1]; woken[2] = parked[2] }) \
    :: else \
    fi

#ifdef NO_EPOCH
#define CLEAR \
    if \
    :: moved -> STEP(word_bits[0] = 0); STEP(word_bits[1] = 0) \
    :: else \
    fi
#else
#define CLEAR
#endif

/* All words, one after the other, then the pass. */
#define PASS_IF_COMPLETE \
    STEP(complete = HAS(0, e, 3)); \
    STEP(complete = complete && HAS(1, e, 1)); \
    if \
    :: complete -> END(false); CLEAR \
    :: else \
    fi

proctype party(byte me) {
    byte e, mine, seen;
    bool complete, moved, wake, seen_broken, other, looked;
    for (mine : 1 .. EPOCHS) {
        STEP(d_step { e = epoch; seen_broken = broken });
        if
        :: seen_broken -> goto told
        :: else
        fi;
#ifdef LOOK_FIRST
        other = HAS(1 - WORD(me), e, ALL(1 - WORD(me)));
#endif
        /* arrive: nobody else writes this bit, and the epoch cannot pass without it */
        STEP(d_step {
            word_bits[WORD(me)] = (HAS(WORD(me), e, 0) -> word_bits[WORD(me)] | BIT(me) : BIT(me));
            word_epoch[WORD(me)] = e;
            came[e] = came[e] + 1 });
#ifdef LOOK_FIRST
        STEP(complete = other && HAS(WORD(me), e, ALL(WORD(me))));
        if
        :: complete -> END(false)
        :: else
        fi;
#else
        PASS_IF_COMPLETE;
#endif
        looked = false;
        do
        :: STEP(d_step { moved = epoch != e; seen_broken = broken });
           if
           :: moved -> break
           :: !moved && seen_broken -> goto told
           :: else
           fi;
#ifdef LATE_ARM
           STEP(d_step { waiters = true; seen = epoch; seen_broken = broken });
           STEP(d_step { parked[me] = (epoch == seen && broken == seen_broken && waiters); woken[me] = false });
#else
           STEP(d_step { waiters = true; moved = epoch != e; seen_broken = broken });
           if
           :: moved || seen_broken -> skip /* looks again, above */
           :: else -> STEP(d_step { parked[me] = (epoch == e && !broken && waiters); woken[me] = false })
           fi;
#endif
           if
           :: parked[me] ->
#ifdef NO_SLICE
               woken[me];
#else
               (woken[me] || (deaths > 0 && !looked));
#endif
               parked[me] = false
           :: else
           fi;
           if
           :: deaths > 0 -> /* the slice may be over: look for all. Once: what a second look found, the first had */
               looked = true;
#ifndef NO_HELP
               PASS_IF_COMPLETE;
#endif
               if
               :: (!alive[0] && !HAS(0, e, 1)) || (!alive[1] && !HAS(0, e, 2)) || (!alive[2] && !HAS(1, e, 1)) -> END(true)
               :: else
               fi
           :: else
           fi
        od;
        assert(came[e] == P);
    }
    atomic { through++; goto over }
told:
    assert(deaths > 0);
    atomic { through++; goto over }
dead:
    parked[me] = false;
over:
    skip
}

init {
    atomic {
        alive[0] = true;
        alive[1] = true;
        alive[2] = true;
        run party(0);
        run party(1);
        run party(2)
    }
    (through == P)
}
