/* lock.pml -- the owner-word lock with claim, death and repair (lock.c, liveness.c, peers.c, guard.c).
 *
 * Three processes, each with a slot of its own, take the lock, are inside, and let go. Twice in a run one of them is
 * killed, anywhere, and its byte lock falls. Then either nobody ever replaces it, so that only others can repair what
 * it held; or a new process claims the slot: it locks the byte, moves the generation, takes over what the word still
 * says of the slot, and goes on. The word is (slot, generation) or free; a CAS compares both. Judging the owner is
 * three reads: generation, byte, generation. Who waits is parked until the word changes or a look would find the owner
 * dead: slices that end in between are left out, as they find nothing.
 *
 * Shown: never two living processes inside (assert). No deadlock: an end state in which a living one still waits is a
 * lock that nobody repairs, and spin reports it. No livelock: no run goes on for ever (pan -l; there is no progress
 * label here, so each cycle would be one). So in every run all who live are through.
 *
 *   -DLAZY           a claim takes nothing over, as where guard.c's INHERIT_NS is over: repaired on demand
 * Mutants, each of which must fail:
 *   -DNO_GENERATION  the word and the judgement know the slot only
 *   -DBLIND_SEIZE    who has judged the owner dead stores itself, without comparing with what it judged
 *   -DNO_JUDGEMENT   nobody asks whether the owner of another slot is alive: only who claims the slot repairs
 *   -DNO_TAKEOVER    an older generation of the own slot is neither taken over at the claim nor taken for dead
 *   -DNO_SEIZE       who has judged the owner dead looks again, and leaves the word to whoever claims the slot
 */
#define P      3
#define DEATHS 2
#define FREE   255

byte owner = FREE, owner_gen; /* the lock word */
byte gen[P];
bool byte_locked[P];
bool inside[P];
byte deaths, through;

#ifdef NO_GENERATION
#define SAME(s, g) (owner == (s))
#define BORN_AS(s, g) true
#else
#define SAME(s, g) (owner == (s) && owner_gen == (g))
#define BORN_AS(s, g) (gen[s] == (g))
#endif

/* What the judgement of (s, g) finds, in one step: who is parked looks again once this is so. */
#if defined(NO_JUDGEMENT)
#define SEEN_DEAD(s, g) (s == me && !BORN_AS(s, g))
#elif defined(NO_TAKEOVER)
#define SEEN_DEAD(s, g) (s != me && (!byte_locked[s] || !BORN_AS(s, g)))
#else
#define SEEN_DEAD(s, g) ((s != me && !byte_locked[s]) || !BORN_AS(s, g))
#endif

#define ALONE (inside[0] + inside[1] + inside[2] == 1)
#define FORGET s = 0; g = 0; dead = false /* no use any more: fewer states */
#define ENTER  inside[me] = true; assert(ALONE); FORGET

/* Killed before the step, or does it. */
#define STEP(action) \
    if \
    :: deaths < DEATHS -> atomic { \
           deaths++; \
           inside[me] = false; \
           byte_locked[me] = false; \
           FORGET; \
           if \
           :: goto born \
           :: goto gone \
           fi } \
    :: action \
    fi

proctype process(byte me) {
    byte s, g, mine;
    bool dead;
born:
    /* claim: the byte, then the generation, then what an older generation of the slot still holds */
    byte_locked[me] = true;
    d_step { gen[me] = gen[me] + 1; mine = gen[me] }
#if !defined(NO_GENERATION) && !defined(NO_TAKEOVER) && !defined(LAZY)
    STEP(d_step { s = owner; g = owner_gen });
    if
    :: s == me && g != mine ->
        STEP(atomic {
            if
            :: SAME(s, g) -> owner_gen = mine; ENTER
            :: else -> goto want
            fi
        });
        goto leave /* repaired */
    :: else
    fi;
#endif
want:
    STEP(d_step { s = owner; g = owner_gen });
    if
    :: s == FREE ->
        STEP(atomic {
            if
            :: owner == FREE -> owner = me; owner_gen = mine; ENTER
            :: else -> goto want
            fi
        });
        goto leave
    :: s == me -> /* nobody's byte to ask for: an older generation is dead, and this one would be a thread of ours */
#ifdef NO_TAKEOVER
        dead = false
#else
        dead = !BORN_AS(s, g)
#endif
    :: else ->
#ifdef NO_JUDGEMENT
        dead = false
#else
        dead = !BORN_AS(s, g);
        if
        :: !dead -> STEP(dead = !byte_locked[s]); STEP(dead = dead || !BORN_AS(s, g))
        :: else
        fi
#endif
    fi;
    if
    :: dead ->
#if defined(NO_SEIZE)
        goto want;
#elif defined(BLIND_SEIZE)
        STEP(atomic { owner = me; owner_gen = mine; ENTER });
#else
        STEP(atomic {
            if
            :: SAME(s, g) -> owner = me; owner_gen = mine; ENTER
            :: else -> goto want
            fi
        });
#endif
        goto leave
    :: else ->
        atomic { (!SAME(s, g) || SEEN_DEAD(s, g)) -> FORGET } /* parked */
        goto want
    fi;
leave:
    STEP(skip);
    STEP(atomic { inside[me] = false; owner = FREE });
    /* done; it stays alive, and may not be killed any more */
gone:
    through++
}

init {
    atomic {
        run process(0);
        run process(1);
        run process(2)
    }
    (through == P)
}
