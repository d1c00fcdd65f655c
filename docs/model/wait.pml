/* wait.pml -- the wait protocol: event word, WAITERS, park, bump, wake (event.h, ops_wait.c, park_*.c).
 *
 * Two waiters want one key. Two setters hold the stripe one after the other; one of them sets another key of the
 * stripe, and one may be killed between any two of its steps. The event word is count << 1 | WAITERS; a read-modify-
 * write is one step, as the processor makes it. Every run must end with both waiters served: an end state in which one
 * still sleeps is a lost wake, and spin reports it.
 *
 * A slice of a park (50 ms in the code) ends by itself only where a setter was killed. So without a death the protocol
 * is shown to lose no wake even with parks that last for ever.
 *
 *   -DSEMAPHORE     parks on a semaphore in a slot that names the word, in place of a futex
 * Mutants, each of which must fail:
 *   -DNO_RECHECK    parks without comparing the word with the value that was armed
 *   -DNO_SLICE      a park lasts for ever although a setter was killed
 *   -DLATE_ARM      looks for the key first and arms afterwards
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
    :: killed
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
    :: killed -> parked[me] = false
#endif
    fi;
#endif
    goto again;
out:
    served++
}

/* A kill may come before any step of the mortal one. Its lock is taken over from the dead: here, let go. */
#define STEP(action) \
    if \
    :: mortal && !killed -> killed = true; goto dead \
    :: action \
    fi

proctype setter(bool mine, mortal) {
    bool wake;
    byte i;
    d_step { !lock_held -> lock_held = true }
    if
    :: mine -> STEP(key = true)
    :: else
    fi;
    STEP(d_step { wake = event & 1; event = ((event >> 1) + 1) << 1 });
    STEP(lock_held = false);
    if
    :: wake ->
        i = 0;
        do
        :: i < WAITERS ->
#ifdef SEMAPHORE
            STEP(d_step { if :: names[i] && posts[i] == 0 -> posts[i] = 1 :: else fi });
#else
            STEP(parked[i] = false);
#endif
            i++
        :: else -> break
        od
    :: else
    fi;
    goto end;
dead:
    /* Whoever takes the lock over repairs the stripe, bumps and wakes. The key may never have been set by the dead: the
     * survivors' own verb sets it, which stands for a job that goes on. */
    if :: mine -> key = true :: else fi;
    lock_held = false;
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
