/* bell.pml -- the bell: how a server, which sleeps in epoll, hears that a key was set (event.c, bell.c, wants.c, loop.c).
 *
 * A process serves: a thread that serves, with a client that waits for the key, and a bell thread. The key is set by a
 * local setter, who rings, or by a request to the server itself, which does not ring where the bell names its own process
 * alone. Another local setter sets another key of the stripe, before or after; one of the two may be killed after its
 * bump, before it takes the names out of the bell or before the wake. (Killed earlier it holds the lock, and whoever
 * repairs bumps and rings in its place: wait.pml.) With -DTWO the request comes to another process that serves, where
 * nobody waits; nobody else sets a key, and nobody is killed. The event word is count << 1 | FORWARD; the bell is who, and
 * whether it has changed since a bell thread named itself there, in place of a count. A read-modify-write is one step, as
 * the processor makes it.
 *
 * A slice of a bell thread's park (50 ms in the code) ends by itself only where a setter was killed, and only if the park
 * has a slice: while nobody waits it has none. So without a death the protocol is shown to lose no wake even with parks
 * that last for ever. A bell thread that is parked at the end is as it should be; a client that waits is not.
 *
 * Shown: no deadlock, so every run can end with the client served: an end in which one still waits is a lost wake, and
 * spin reports it. No livelock: a run that does not end is one of slices that end for ever (pan -l; the end of a slice is
 * the only progress label).
 *
 * Not here: many stripes and keys, of which each has its own event and `armed`; the park itself, on either engine, which
 * is wait.pml's; processors that reorder.
 *
 *   -DTWO          the request comes to another server
 * Mutants, each of which must fail:
 *   -DNO_RELOOK    the server does not look for the key once more after it has set FORWARD
 *   -DBLIND_PARK   the bell thread parks without comparing what is armed after it has named itself in the bell
 *   -DNO_MANY      a bell thread puts its name in the place of another process's (with TWO)
 *   -DNO_SCAN      the server sleeps without comparing what it has armed
 *   -DTOLD_LATE    the server says that it has heard after it has looked, not before
 *   -DNO_NUDGE     who arms leaves a bell thread alone that is parked without a slice
 *   -DSHY_NUDGE    who arms wakes such a one only where the bell names somebody
 *   -DNO_SLICE     a bell thread's park lasts for ever although a setter was killed
 */
#ifdef TWO
#define SERVERS 2
#else
#define SERVERS 1
#endif
#define NAME(i) ((i) + 1)
#define MANY    3

bool key, killed, own_left; /* own_left: server 0 is to set the key */
byte event;                            /* count << 1 | FORWARD */
byte bell_who;
byte served, setters_left = 2;

byte armed[SERVERS]; /* the event that the server's look was of, FORWARD and so never 0; 0: it does not wait */
bool lives[SERVERS]; /* it waits */
bool idle[SERVERS];  /* its bell thread parks without a slice, or is about to */
bool told[SERVERS], readable[SERVERS]; /* readable: the eventfd */
bool parked[SERVERS];
bool stale[SERVERS]; /* the bell is not as its bell thread left it: then it does not park */

#define BUMPED(e) ((((e) >> 1) + 1) << 1)

#ifdef TWO
#define MOVED    stale[0] = true; stale[1] = true
#define WAKE_ALL d_step { parked[0] = false; parked[1] = false }
#else
#define MOVED    stale[0] = true
#define WAKE_ALL parked[0] = false
#endif

/* By who set the key: the bell names somebody? Then nobody, and all who are parked are woken: a CAS, then a call. */
#define UNNAME \
    d_step { \
        named = bell_who != 0; \
        if \
        :: named -> bell_who = 0; MOVED \
        :: else \
        fi \
    }
#define RING \
    UNNAME; \
    if \
    :: named -> named = false; WAKE_ALL \
    :: else \
    fi

/* -- a process that serves ------------------------------------------------------------------------------------------- */
#if defined(NO_NUDGE)
#define NUDGE_IF_IDLE
#elif defined(SHY_NUDGE)
#define NUDGE_IF_IDLE \
    if \
    :: idle[me] -> RING \
    :: else \
    fi
#else /* whether the bell names anybody or not: who took the name away may have died before the wake */
#define NUDGE_IF_IDLE \
    if \
    :: idle[me] -> d_step { bell_who = 0; MOVED }; WAKE_ALL \
    :: else \
    fi
#endif

#define WATCH \
    d_step { event = event | 1; v = event }; \
    d_step { lives[me] = true; armed[me] = v; v = 0 }; \
    NUDGE_IF_IDLE

/* A set that came over the wire. */
#define OWN_SET \
    key = true; \
    d_step { v = event & 1; event = BUMPED(event) }; \
    if \
    :: v == 1 && bell_who != NAME(me) -> v = 0; RING \
    :: else -> v = 0 \
    fi

proctype serving(byte me) {
    byte v;
    bool named;
    if
    :: key -> goto out
    :: else
    fi;
    WATCH;
#ifndef NO_RELOOK
    if
    :: key -> goto out
    :: else
    fi;
#endif
scan:
#ifndef NO_SCAN
    if
    :: event != armed[me] ->
        d_step { armed[me] = 0; lives[me] = false };
        if
        :: key -> goto out
        :: else
        fi;
        WATCH;
#ifndef NO_RELOOK
        if
        :: key -> goto out
        :: else
        fi;
#endif
        goto scan
    :: else
    fi;
#endif
#ifdef TOLD_LATE
    told[me] = false;
#endif
    if /* epoll_wait */
    :: readable[me] ->
        readable[me] = false;
#ifndef TOLD_LATE
        told[me] = false;
#endif
#ifdef NO_SCAN
        if /* what it was woken for it looks at */
        :: key -> goto out
        :: else -> WATCH
        fi
#endif
    :: own_left -> own_left = false; OWN_SET
    fi;
    goto scan;
out:
    armed[me] = 0;
    d_step { lives[me] = false; served++ }
}

#ifdef TWO
proctype asked(byte me) { /* a server for which nobody waits */
    byte v;
    bool named;
    OWN_SET
}
#endif

proctype bell(byte me) {
    byte a;
    bool slice;
    do
    :: d_step {
#ifdef TWO
           stale[1 - me] = stale[1 - me] || (bell_who != NAME(me) && bell_who != MANY);
#endif
#ifdef NO_MANY
           bell_who = NAME(me);
#else
           bell_who = (bell_who == 0 || bell_who == NAME(me) -> NAME(me) : MANY);
#endif
           stale[me] = false
       };
#ifndef BLIND_PARK
       a = armed[me];
       if
       :: a != 0 && event != a ->
           if
           :: d_step { !told[me] -> told[me] = true }; readable[me] = true
           :: told[me]
           fi
       :: else
       fi;
       a = 0;
#endif
       idle[me] = true;
       if
       :: lives[me] -> slice = true; idle[me] = false
       :: else
       fi;
       parked[me] = !stale[me];
end_parked:
       if
       :: !parked[me]
#ifndef NO_SLICE
       :: killed && slice -> progress_slice: parked[me] = false
#endif
       fi;
       d_step { idle[me] = false; slice = false }
    od
}

/* -- local setters --------------------------------------------------------------------------------------------------- */
/* The mortal one may be killed before the step. */
#define STEP(action) \
    if \
    :: mortal -> killed = true; goto end \
    :: action \
    fi

proctype setter(bool mine, mortal) {
    bool ring, named;
    if
    :: mine -> key = true
    :: else
    fi;
    d_step { ring = event & 1; event = BUMPED(event) };
    if
    :: ring ->
        STEP(UNNAME);
        if
        :: named -> STEP(WAKE_ALL)
        :: else
        fi
    :: else
    fi;
end:
    setters_left--
}

init {
    atomic {
        run bell(0);
#ifdef TWO
        run bell(1);
        run serving(1);
        run asked(0);
        setters_left = 0;
#else
        run serving(0);
        if /* who sets the key; who sets another one, and who is mortal, which says that he may be killed */
        :: own_left = true; run setter(false, false); setters_left--
        :: run setter(true, true); run setter(false, false)
        :: run setter(true, false); run setter(false, true)
        fi
#endif
    }
    (served == 1 && setters_left == 0)
}
