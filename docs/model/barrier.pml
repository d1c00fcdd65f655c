/* barrier.pml -- the reusable barrier (barrier.c and its parts): arrivals, pass, park, wake, look for the dead, and a death
 * anywhere.
 *
 * Three parties pass the barrier EPOCHS times; two of them share an arrivals' word, the third has one of its own, so
 * that the last two may look at each other's word. One of them may be killed at any step. A parked waiter is woken by
 * whoever ends the epoch; its slice ends by itself only once somebody was killed, so that a run without a death is
 * shown to need no slices. After a slice a waiter passes for all if all bits are there, and breaks the epoch if a party
 * is dead that has not arrived: two reads, the death first. With -DEARLY slices end at any time, so that a party may
 * arrive and die while another judges it; there is one epoch then.
 *
 * Shown: who passes an epoch does so after all three arrived in it; an epoch is broken only if one of the dead has not
 * arrived in it (asserts). No deadlock: in an end state each of the living is through or told. No livelock: a run that
 * does not end is one of slices that end for ever (pan -l; the end of a slice is the only progress label).
 *
 * Not here: resets, aborts and deadlines, which move the state by the same CAS; barriers without ranks, where a party
 * takes the lowest free bit; whose a seat is; who of the waiters looks, one in PROBE_NS for all; processors that
 * reorder.
 *
 *   -DEARLY        slices end at any time; one epoch
 * Mutants, each of which must fail:
 *   -DNO_HELP      only who arrives looks whether all bits are there
 *   -DLATE_ARM     a waiter looks at the epoch before it sets WAITERS, and not again
 *   -DNO_SLICE     a parked waiter only ends when it is woken
 *   -DLOOK_FIRST   the last to arrive looks at the other word before it sets its own bit
 *   -DNO_EPOCH     arrivals' words carry no epoch: whoever passes clears them afterwards
 *   -DNO_BREAK     nobody looks for the dead
 *   -DCAME_FIRST   reads whether a party arrived, then whether it is dead (with EARLY)
 */
#define P 3
#ifdef EARLY
#define EPOCHS 1
#else
#define EPOCHS 2
#endif

byte epoch;
bool broken, waiters;
byte word_epoch[2], word_bits[2];
bool parked[P], woken[P], alive[P];
byte deaths, through;
byte came[EPOCHS + 1]; /* ghost: arrivals in each epoch */
hidden byte one_is_lost; /* no part of the state */

#define WORD(i) ((i) / 2)
#define BIT(i)  (1 << ((i) % 2))
#define ALL(w)  (w == 0 -> 3 : 1)
#ifdef NO_EPOCH
#define HAS(w, e, bits) ((word_bits[w] & (bits)) == (bits))
#else
#define HAS(w, e, bits) (word_epoch[w] == (e) && (word_bits[w] & (bits)) == (bits))
#endif

#define CAME(i, e) HAS(WORD(i), e, BIT(i))
#define LOST(i, e) (!alive[i] && !CAME(i, e))

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
        :: moved && breaks -> \
            one_is_lost = LOST(0, e) || LOST(1, e) || LOST(2, e); \
            assert(one_is_lost); \
            broken = true \
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

/* A slice ends by itself: here, once after a death, since what a second look found the first had found. */
#ifdef EARLY
#define SLICE_OVER true
#else
#define SLICE_OVER (deaths > 0 && !looked)
#endif

/* Party i, who may be dead: judged, and the epoch broken for it. */
#ifdef CAME_FIRST
#define JUDGE(i) STEP(is_here = CAME(i, e)); STEP(is_dead = !alive[i])
#else
#define JUDGE(i) STEP(is_dead = !alive[i]); STEP(is_here = CAME(i, e))
#endif
#define BREAK_IF_LOST \
    i = 0; \
    do \
    :: i < P && i == me -> i++ \
    :: i < P && i != me -> \
        JUDGE(i); \
        if \
        :: is_dead && !is_here -> END(true); break \
        :: else -> i++ \
        fi \
    :: else -> break \
    od; \
    atomic { i = 0; is_dead = false; is_here = false }

proctype party(byte me) {
    byte e, mine, seen, i;
    bool complete, moved, wake, seen_broken, looked, is_dead, is_here;
#ifdef LOOK_FIRST
    bool other;
#endif
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
        :: STEP(d_step { moved = epoch != e; seen_broken = broken; complete = false; wake = false });
           if
           :: moved -> break
           :: !moved && seen_broken -> goto told
           :: else
           fi;
#ifdef LATE_ARM
           STEP(d_step { waiters = true; seen = epoch; seen_broken = broken });
           STEP(d_step { parked[me] = (epoch == seen && broken == seen_broken && waiters); woken[me] = false });
#else
           STEP(d_step { waiters = true; moved = epoch != e || broken });
           if
           :: moved -> skip /* looks again, above */
           :: else -> STEP(d_step { parked[me] = (epoch == e && !broken && waiters); woken[me] = false })
           fi;
#endif
           if
           :: parked[me] ->
               if
               :: woken[me]
#ifndef NO_SLICE
               :: SLICE_OVER -> progress_slice: skip
#endif
               fi;
               d_step { parked[me] = false; woken[me] = false }
           :: else
           fi;
           if
           :: SLICE_OVER -> /* look for all */
               looked = true;
#ifndef NO_HELP
               PASS_IF_COMPLETE;
#endif
#ifndef NO_BREAK
               BREAK_IF_LOST
#endif
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
