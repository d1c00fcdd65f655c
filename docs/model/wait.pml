/* wait.pml -- the wait protocol: event word, WAITERS, park, bump, wake (event.h, ops_wait.c, park_*.c, guard.c).
 *
 * Two waiters want one key. Two setters hold the stripe one after the other; one of them sets another key of the
 * stripe, and one may be killed between any two of its steps. A lock that it held then is taken over by a survivor,
 * which repairs, bumps and wakes all, and does its own verb, the same; where it had let go already nobody does anything
 * for it. The event word is count << 1 | WAITERS; a read-modify-write is one step, as the processor makes it.
 *
 * A slice of a park (50 ms in the code) ends by itself only where a setter was killed. So without a death the protocol
 * is shown to lose no wake even with parks that last for ever.
 *
 * Shown: no deadlock, so every run can end with both waiters served: an end state in which one still sleeps is a lost
 * wake, and spin reports it. No livelock: a run that does not end is one of slices that end for ever (pan -l; the end
 * of a slice is the only progress label).
 *
 *   -DSEMAPHORE     parks on a semaphore in a slot that names the word, in place of a futex
 * Mutants, each of which must fail:
 *   -DNO_RECHECK    parks without comparing the word with the value that was armed
 *   -DNO_SLICE      a park lasts for ever although a setter was killed
 *   -DLATE_ARM      looks for the key first and arms afterwards
 *   -DNO_COUNT      a bump takes WAITERS away and counts nothing
 */
#define WAITERS 2

bool key, killed;
byte event; /* count << 1 | WAITERS */
bool lock_held;
byte served, setters_left = 2;

bool parked[WAITERS];  /* futex: in the kernel's queue */
bool names[WAITERS];   /* semaphore: the slot names the word */
byte posts[WAITERS];

inline arm(v) { d_step { event = event | 1; v = event } }

proctype waiter(byte me) {
    byte v;
again:
#ifdef LATE_ARM
    if :: key -> goto out :: else fi;
    arm(v);
#else
    arm(v);
    if :: key -> goto out :: else fi;
#endif
#ifdef SEMAPHORE
    posts[me] = 0;    /* stale posts */
    names[me] = true; /* a sequentially consistent fence follows: steps of this model are in order */
#ifndef NO_RECHECK
    if
    :: event != v -> names[me] = false; goto again
    :: else
    fi;
#endif
    if
    :: d_step { posts[me] > 0 -> posts[me] = posts[me] - 1 }
#ifndef NO_SLICE
    :: killed -> progress_slice: skip
#endif
    fi;
    names[me] = false;
#else
#ifndef NO_RECHECK
    if /* FUTEX_WAIT compares and queues in one step */
    :: d_step { event == v -> parked[me] = true }
    :: event != v -> goto again
    fi;
#else
    parked[me] = true;
#endif
    if
    :: !parked[me]
#ifndef NO_SLICE
    :: killed -> progress_slice: parked[me] = false
#endif
    fi;
#endif
    goto again;
out:
    served++
}

/* A kill may come before any step of the mortal one. */
#define STEP(action) \
    if \
    :: mortal && !killed -> killed = true; goto dead \
    :: action \
    fi

#ifdef NO_COUNT
#define BUMPED(e) ((e) & 254)
#else
#define BUMPED(e) ((((e) >> 1) + 1) << 1)
#endif

#ifdef SEMAPHORE
#define WAKE(i) d_step { if :: names[i] && posts[i] == 0 -> posts[i] = 1 :: else fi }
#else
#define WAKE(i) parked[i] = false
#endif

#define WAKE_ALL \
    i = 0; \
    do \
    :: i < WAITERS -> STEP(WAKE(i)); i++ \
    :: else -> break \
    od

proctype setter(bool mine, mortal) {
    bool wake, held;
    byte i;
    d_step { !lock_held -> lock_held = true; held = true }
verb:
    if
    :: mine -> STEP(key = true)
    :: else
    fi;
    STEP(d_step { wake = event & 1; event = BUMPED(event) });
    STEP(d_step { lock_held = false; held = false });
    if
    :: wake -> WAKE_ALL
    :: else
    fi;
    goto end;
dead:
    if
    :: held -> /* a survivor takes the lock over, in its own verb, which is the same: a job that goes on */
        event = BUMPED(event);
        WAKE_ALL;
        goto verb
    :: else /* nobody does anything for it */
    fi;
end:
    setters_left--
}

init {
    atomic {
        run waiter(0);
        run waiter(1);
        if /* who is mortal */
        :: run setter(true, false); run setter(false, false)
        :: run setter(true, true); run setter(false, false)
        :: run setter(true, false); run setter(false, true)
        fi
    }
    (served == WAITERS && setters_left == 0)
}
