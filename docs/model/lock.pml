/* lock.pml -- the owner-word lock with claim, death and repair (lock.c, liveness.c, peers.c, guard.c).
 *
 * Three processes, each with a slot of its own, take the lock, are inside, and let go. Twice in a run one of them is
 * killed, anywhere; its byte lock falls, and a new process claims the slot: it locks the byte, moves the generation,
 * takes over what the word still says of the slot, and goes on. The word is (slot, generation) or free; a CAS compares
 * both. Judging the owner is three reads: generation, byte, generation.
 *
 * Shown: never two living processes inside (assert), and every run ends with all of them through: an end state in which
 * one still waits is a lock that nobody repairs, and spin reports it.
 *
 * Mutants, each of which must fail:
 *   -DNO_GENERATION  the word and the judgement know the slot only
 *   -DBLIND_SEIZE    who has judged the owner dead stores itself, without comparing with what it judged
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

#define ALONE (inside[0] + inside[1] + inside[2] == 1)

/* Killed before the step, or does it. */
#define STEP(action) \
    if \
    :: deaths < DEATHS -> atomic { deaths++; inside[me] = false; byte_locked[me] = false; goto born } \
    :: action \
    fi

proctype process(byte me) {
    byte s, g, mine;
    bool dead;
born:
    /* claim: the byte, then the generation, then what an older generation of the slot still holds */
    byte_locked[me] = true;
    d_step { gen[me] = gen[me] + 1; mine = gen[me] }
#ifndef NO_GENERATION
    STEP(d_step { s = owner; g = owner_gen });
    if
    :: s == me && g != mine ->
        STEP(atomic {
            if
            :: SAME(s, g) -> owner_gen = mine; inside[me] = true; assert(ALONE)
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
            :: owner == FREE -> owner = me; owner_gen = mine; inside[me] = true; assert(ALONE)
            :: else -> goto want
            fi
        });
        goto leave
    :: s == me -> skip /* one's own slot is alive without asking: of this generation it would be a thread of ours */
    :: else
    fi;
    dead = !BORN_AS(s, g);
    if
    :: !dead && s != me -> STEP(dead = !byte_locked[s]); STEP(dead = dead || !BORN_AS(s, g))
    :: else
    fi;
    if
    :: dead ->
#ifdef BLIND_SEIZE
        STEP(atomic { owner = me; owner_gen = mine; inside[me] = true; assert(ALONE) });
#else
        STEP(atomic {
            if
            :: SAME(s, g) -> owner = me; owner_gen = mine; inside[me] = true; assert(ALONE)
            :: else -> goto want
            fi
        });
#endif
        goto leave
    :: else ->
        /* parked: until the word changes, or a look finds the owner dead */
        (!SAME(s, g) || (s != me && !byte_locked[s]) || !BORN_AS(s, g));
        goto want
    fi;
leave:
    STEP(skip);
    STEP(atomic { inside[me] = false; owner = FREE });
    /* done; it stays alive, and may not be killed any more */
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
