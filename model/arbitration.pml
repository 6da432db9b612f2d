/* Who may run a VM: the protocol of colo_helper/arbiter between an owner, its secondary and the arbiter.
 *
 * Time is in ticks. What lasts counts down with them: the arbiter's lease by its own clock, the owner's right by one that may
 * stand still for SKIP ticks while the other goes on. A host may freeze between any two of its steps and go on later, die, and
 * come back; each way to the arbiter may be cut at any time; an answer may be lost after what was asked was done. That a host
 * hears nothing of the other may be true or not: any of them may believe it at any time.
 *
 * Not modelled: a host that freezes between its look at the clock and the packet that follows (the watchdog's business).
 *
 * An owner may also lose its device model, and with it all that it can do and say; then it gives the VM to its secondary.
 *
 * safety: whenever a copy says something, it is the owner's (assertions). life: an owner that is dead, or that has lost its
 * device model, is succeeded (ltl).
 */
#ifndef LEASE
#define LEASE 4   /* as granted by the arbiter */
#endif
#ifndef RIGHT
#define RIGHT 2   /* how long the owner may speak since it asked for that lease */
#endif
#ifndef SKIP
#define SKIP 1    /* ticks that the owner's clock may lose within one right */
#endif
#ifndef EPOCHS
#define EPOCHS 5  /* changes of the record that are looked at */
#endif
#ifndef ENDED
#define ENDED 0   /* the lease at which the secondary asks for the VM */
#endif
#ifndef GIVES
#define GIVES 1   /* whether an owner without a device model gives the VM away, or asks to go on alone as others do */
#endif
#define NOTHING 255

mtype = { alone, protected };                                   /* the record's mode */
mtype = { starting, sharing, asking, giving, by_itself, aside, dead };  /* the first host */
mtype = { copy, stale, runs };                                  /* the second */

/* What the arbiter keeps. The first host is 0, the second 1. */
byte owner = 0, epoch = 1, lease = 0;
mtype mode = alone;

/* The first host: its right to speak, and the one that it has asked for. NOTHING: no lease is needed, or none was asked. */
byte right = 0, asked = NOTHING, skipped = 0;
mtype first = starting, second = stale;
bool headless = false, frozen = false, first_reaches = true, second_reaches = true, repaired = true;

#define first_works (first != dead && !frozen)
#define permitted (right == NOTHING || right > 0)

inline count_down(what) { if :: what != NOTHING && what > 0 -> what-- :: else fi }

active proctype clock()
{
    do
    :: atomic {
        true ->
        count_down(lease);
        if
        :: skipped < SKIP && right != NOTHING && right > 0 -> skipped++
        :: count_down(right); count_down(asked)
        fi
    }
    od
}

/* The owner takes its secondary's right back, or learns that it is too late. */
inline settle()
{
    if
    :: owner != 0 -> first = aside; right = 0; asked = NOTHING
    :: owner == 0 && mode == alone -> first = by_itself; right = NOTHING; asked = NOTHING
    :: owner == 0 && mode == protected && epoch < EPOCHS ->
        mode = alone; epoch++; lease = 0;
        if
        :: first = by_itself; right = NOTHING; asked = NOTHING
        :: skip /* the answer was lost: it asks again */
        fi
    fi
}

/* An owner that can say nothing any more makes its secondary the owner, as long as it has a right. */
inline give()
{
    if
    :: owner != 0 -> first = aside
    :: owner == 0 && mode == protected && epoch < EPOCHS ->
        owner = 1; mode = alone; epoch++; lease = 0;
        if
        :: first = aside
        :: skip /* the answer was lost: it asks again */
        fi
    fi
}

/* The owner gives its secondary, whose copy is whole, the right to succeed it. */
inline share()
{
    right = RIGHT; skipped = 0; asked = NOTHING;  /* counts from before the arbiter is asked */
    mode = protected; epoch++; lease = LEASE; second = copy;
    if
    :: first = sharing
    :: first = asking /* the answer was lost */
    fi
}

active proctype first_host()
{
    do
    :: atomic { first_works && !headless && (first == sharing || first == asking || first == by_itself) && permitted ->
        assert(owner == 0) /* it says something */ }
    :: atomic { first_works && first == sharing && asked == NOTHING -> asked = RIGHT }
    :: atomic { first_works && first == sharing && asked != NOTHING && first_reaches ->
        if
        :: lease > 0 && owner == 0 -> lease = LEASE; right = asked; skipped = 0; asked = NOTHING
        :: lease > 0 && owner == 0 -> lease = LEASE; asked = NOTHING /* the answer was lost */
        :: lease == 0 && owner == 0 && epoch < EPOCHS -> epoch++; lease = LEASE; right = asked; skipped = 0; asked = NOTHING
        :: owner != 0 -> first = aside; right = 0; asked = NOTHING
        :: lease == 0 && owner == 0 && epoch == EPOCHS -> asked = NOTHING
        fi }
    :: atomic { first_works && first == sharing -> first = asking } /* it believes its secondary lost */
    :: atomic { first_works && first == sharing && !headless -> /* its device model ends: it says and renews nothing */
        headless = true; right = 0; asked = NOTHING;
        if
        :: GIVES -> first = giving
        :: !GIVES -> first = asking
        fi }
    :: atomic { first_works && first == giving && first_reaches && (owner != 0 || epoch < EPOCHS) -> give() }
    :: atomic { first_works && (first == asking || first == starting) && first_reaches &&
        (owner != 0 || mode == alone || epoch < EPOCHS) -> settle() }
    :: atomic { first_works && first == by_itself && !headless && first_reaches && second != runs && epoch < EPOCHS - 1 -> share() }
    :: atomic { !frozen && first != dead && first != aside -> frozen = true }
    :: atomic { frozen -> frozen = false }
    :: atomic { first != dead -> first = dead; frozen = false; right = 0; asked = NOTHING }
    :: atomic { first == dead && repaired && !headless -> repaired = false; first = starting } /* its replicator, or the host: once */
    od
}

active proctype second_host()
{
    do
    :: atomic { second == runs -> assert(owner == 1) /* it says something */ }
    :: atomic { second == copy && second_reaches -> /* it believes its primary lost */
        if
        :: owner == 0 && mode == protected && lease == ENDED && epoch < EPOCHS ->
            owner = 1; mode = alone; epoch++;
            if
            :: second = runs
            :: skip /* the answer was lost: it asks again */
            fi
        :: owner == 0 && mode == alone -> second = stale
        :: owner == 1 -> second = runs
        :: else -> skip /* it waits */
        fi }
    od
}

active proctype network()
{
    do
    :: atomic { first_reaches = !first_reaches }
    :: atomic { second_reaches = !second_reaches }
    od
}

/* A dead owner with a secondary that keeps reaching the arbiter is succeeded, or comes back itself. */
ltl life { []((first == dead && second == copy && owner == 0 && mode == protected && epoch < EPOCHS) ->
    <>(second == runs || first != dead || !second_reaches)) }

/* So is one without a device model, whatever becomes of it meanwhile. */
ltl gives { []((headless && second == copy && owner == 0 && mode == protected && epoch < EPOCHS) ->
    <>(second == runs || !second_reaches)) }
