"""KeyBarrier: the barrier on any store that has c10d's verbs, by keys that are cleaned up behind it.

One key holds the state and changes only by compare_set: whoever's change stands has decided for all. For a barrier `k`
of P parties and an epoch e:

    k/state     [P, e, why it is broken, starts, mended]  changed by compare_set only, never deleted
    k/e/r{i}    rank i has arrived in e                   set by rank i, deleted by it when it leaves e
    k/n         tickets drawn, of parties without ranks   add only, never deleted
    k/e/end     e is over, look at the state              set by who changed the state, deleted when e + 1 has ended

    state of e  changed to           by whom                                  when
    open        e + 1, open          who sees that all have arrived           at its arrival, or at a look after a slice
    open        e, broken, and why   who times out, aborts, is interrupted    not all had arrived when it last looked
    any         e + 1, open          reset(), which adds e + 1 to `starts`

`starts` has the last epochs that began by a reset, and the ticket each began with: so who looks late can tell whether
the epoch it waited in was passed or reset. An epoch from before the list counts as reset. `mended` is why the epoch was
broken that the last reset ended, so that those who wake up after it still learn the reason.

With ranks an arrival is a key, and setting it again changes nothing: a restarted rank joins its own. Without, ticket t
belongs to epoch `e + (t - first) // P` of the last start (e, first) with first <= t, and who draws the last ticket of
an epoch ends it; one party too many arrives in the epoch after. No arrival is taken back; a reset voids the tickets
that are out. P stands in the state as -P where parties have no ranks: who comes with another number is refused.

What a crash leaves, step by step:

    before r, or the ticket         nothing has happened; the others time out and name the rank
    after it                        the arrival counts for this epoch; the next one misses the rank
    all there, state not changed    who waits looks after each slice and at its timeout, and ends the epoch
    state changed, no `end`         the others see the state after their slice
    keys not deleted                its own r and one `end`: gone with its restart's first wait, or with a reset

An `end` that is deleted under a slow reader costs it a slice, as the answer is in the state. That happens only to
parties too many and to second threads of a rank: e + 1 has ended, so all P had arrived in it, so all had left e.

A store without compare_set: who draws ticket 1 for a state may change it; the others wait until it has, at most 5 s,
and then change it themselves. A process that is stopped there for longer may undo what came after. A store without
delete_key: the keys of passed epochs stay. torch's FileStore deletes keys, but its file only grows.

A wait runs in slices of 1 s, doubling up to 10. After each, what others left undone is done, and on torch's stores a
signal handler's exception comes through. They are no shorter because torch's TCPStore writes two lines to stderr for
each. A waiting thread holds its TCPStore client: threads want a `clone()` each. An arrival with a rank asks for all P
keys in one check.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from shmstore._barrier_state import Arrival, State
from shmstore._barrier_words import Break
from shmstore._keys import KEY_MAX, key_text
from shmstore.barrier import Attempt, Barrier, nodes_of, store_home
from shmstore.errors import DistStoreError, PeerDiedError, StoreError, StoreTimeoutError
from shmstore.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmstore._deadline import Timeout

__all__ = ["KeyBarrier"]

VERBS: Final = ("set", "get", "add", "wait", "check")
FIRST_SLICE_NS: Final = 1_000_000_000
LAST_SLICE_NS: Final = 10_000_000_000
GRACE_S: Final = 5.0
ROOM: Final = 48
"""Bytes of the key limit that the names of the keys take."""


@dataclass(slots=True)
class Known:
    """What the store can do, and whether this handle has looked for what a killed rank left behind."""

    swaps: bool
    deletes: bool
    swept: bool = field(default=False)


class KeyBarrier(Barrier):
    """A barrier on a store's keys. See `Barrier` for what it does, the module for how."""

    _at: Any
    """The store of the keys."""
    _base: str
    _first: State
    """The state before anything has happened."""
    _ours: bool
    _known: Known

    @classmethod
    def _takes(cls, store: Any, raw: bytes, parties: int, rank: int | None) -> bool:
        return store_home(store, raw) is None and nodes_of(store, raw, parties, rank) is None

    def _setup(self) -> None:
        lacks = [verb for verb in VERBS if not callable(getattr(self._store, verb, None))]
        if lacks:
            raise TypeError(f"a barrier needs a store that can {', '.join(lacks)}; this is {self._store!r}")
        if len(self._raw) > KEY_MAX - ROOM:
            raise ValueError(
                f"the key of a barrier has 1 to {KEY_MAX - ROOM} bytes here, this one has {len(self._raw)}"
            )
        self._at = self._store
        self._base = key_text(self._raw)
        self._first = State(self._parties if self._rank is not None else -self._parties)
        self._ours = isinstance(self._at, Store)
        self._known = Known(
            swaps=callable(getattr(self._store, "compare_set", None)),
            deletes=callable(getattr(self._store, "delete_key", None)),
        )
        self._read()

    # -- wait ---------------------------------------------------------------------------------------------------------

    def _wait_in(self, epoch: int, timeout: Timeout | None) -> int:
        attempt = Attempt(self._limit(timeout))
        attempt.only = epoch
        return self._run(attempt)

    def _wait(self, attempt: Attempt) -> int:
        state = self._read()
        if attempt.only is not None and attempt.only != state.epoch:
            raise self._not_current(attempt.only, state.epoch)
        if state.cause is not None:
            raise self._broken(state.epoch, state.cause)
        if not self._known.swept:
            self._sweep_own(state.epoch)
        attempt.epoch = state.epoch
        arrival, state = self._arrive(state)
        try:
            index = self._settled(state, arrival)
            slice_ns = FIRST_SLICE_NS
            while index is None:
                place = arrival.place(state, self._rank, self._parties)
                assert place is not None
                attempt.epoch = place[0]
                state = self._watch(attempt, place[0], slice_ns)
                index = self._settled(state, arrival)
                slice_ns = min(2 * slice_ns, LAST_SLICE_NS)
        finally:
            if self._rank is not None:
                self._delete([self._arrived(arrival.epoch, self._rank)])
        return index

    def _arrive(self, state: State) -> tuple[Arrival, State]:
        """Arrives, ends the epoch if it is complete with that; the state afterwards, as far as it was seen."""
        if self._rank is None:
            ticket = int(self._at.add(f"{self._base}/n", 1)) - 1
            while state.cause is None and ticket + 1 >= state.needed():
                state = self._pass(state)
            return Arrival(state.epoch, ticket), state
        arrival = Arrival(state.epoch)
        self._at.set(self._arrived(state.epoch, self._rank), "1")
        return arrival, self._pass(state) if self._complete(state) else state

    def _settled(self, state: State, arrival: Arrival) -> int | None:
        """The index of an arrival whose epoch was passed; None: it is to wait. Raises where there is no hope."""
        place = arrival.place(state, self._rank, self._parties)
        if place is None and state.mended is not None and arrival.epoch == state.starts[-1][0] - 1:
            raise self._broken(arrival.epoch, state.mended)
        if place is None:
            raise self._was_reset(arrival.epoch)
        epoch, index = place
        if state.epoch > epoch:
            return index
        if state.cause is not None:
            raise self._broken(state.epoch, state.cause)
        return None

    def _watch(self, attempt: Attempt, epoch: int, slice_ns: int) -> State:
        """Waits for the end of the epoch for one slice; then does what others left undone. The state afterwards."""
        left = attempt.left_ns()
        rang = self._slept(f"{self._base}/{epoch}/end", min(left, slice_ns), attempt)
        state = self._read()
        if state.epoch > epoch or state.cause is not None:
            if not rang and state.epoch <= epoch + 1:
                self._ring(epoch)
            return state
        if rang and state.epoch == epoch:
            raise StoreError(f"{self!r}: its keys in the store were changed by others")
        if self._complete(state):
            return self._pass(state)
        return self._late(attempt, state) if attempt.left_ns() == 0 else state

    def _late(self, attempt: Attempt, state: State) -> State:
        """This party's time is over: breaks the current epoch, unless all have come; raises if a timeout broke it."""
        arrived, missing = self._absent(state)
        if arrived >= self._parties:
            return self._pass(state)
        elapsed = attempt.elapsed()
        mine = Break("timeout", self._rank, arrived=arrived, missing=tuple(missing), elapsed=elapsed)
        now = self._move(state, replace(state, cause=mine))
        cause = now.cause
        if now.epoch != state.epoch or cause is None or cause.kind != "timeout":
            return now
        arrived = cause.arrived or 0
        raise self._timed_out(
            now.epoch, arrived, cause.missing if self._rank is not None else None, elapsed, attempt.span
        )

    def _slept(self, key: str, ns: int, attempt: Attempt) -> bool:
        """Waits for a key; False when it did not come."""
        if ns <= 0:
            return bool(self._at.check([key]))
        try:
            self._at.wait([key], self._timeout_of(ns))
        except Exception as error:
            died = _the_dead(error)
            if died is not None:
                self._break(attempt.epoch, Break("died", died.rank, died.pid, died.host, waiting_on=died.waiting_on))
            elif not _gave_up(error, ours=self._ours):
                raise
            return False
        return True

    def _timeout_of(self, ns: int) -> Any:
        """What `wait` is given: c10d's stores count whole milliseconds, and 0 is for ever to some of them."""
        if self._ours:
            return ns / 1e9
        return timedelta(milliseconds=max(-(-ns // 1_000_000), 1))

    # -- who is there -------------------------------------------------------------------------------------------------

    def _complete(self, state: State) -> bool:
        """Whether all parties have arrived in the current epoch."""
        if self._rank is None:
            return self._tickets() >= state.needed()
        return bool(self._at.check([self._arrived(state.epoch, rank) for rank in range(self._parties)]))

    def _absent(self, state: State) -> tuple[int, list[int]]:
        """How many have arrived in the current epoch, and with ranks which have not."""
        if self._rank is None:
            there = self._tickets() - state.needed() + self._parties
            return min(max(there, 0), self._parties), []
        ranks = range(self._parties)
        missing = [rank for rank in ranks if not self._at.check([self._arrived(state.epoch, rank)])]
        return self._parties - len(missing), missing

    def _tickets(self) -> int:
        return int(self._at.add(f"{self._base}/n", 0))

    def _arrived(self, epoch: int, rank: int) -> str:
        return f"{self._base}/{epoch}/r{rank}"

    # -- the state ----------------------------------------------------------------------------------------------------

    def _read(self) -> State:
        """The state now; never waits. The first look creates it, where the store has compare_set."""
        key, first = f"{self._base}/state", self._first
        if self._known.swaps:
            return self._parsed(self._at.compare_set(key, "", first.text()))
        return self._parsed(self._at.get(key)) if self._at.check([key]) else first

    def _parsed(self, raw: bytes | str) -> State:
        try:
            state = State.of(raw if isinstance(raw, str) else bytes(raw))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise StoreError(f"{self!r}: the key {self._base}/state is in use for something else: {raw!r}") from error
        if (state.made_for, state.shape) != (self._first.made_for, self._first.shape):
            ranks = "with ranks" if state.made_for > 0 else "without ranks"
            on = f" on {state.shape[0]} nodes of {state.shape[1]}, by a HybridStore" if len(state.shape) > 1 else ""
            raise ValueError(
                f"{self!r} was made for {abs(state.made_for)} parties {ranks}{on}: all that name it give the same "
                "number, all of them a rank or none, and all of them by a HybridStore or none"
            )
        return state

    def _move(self, old: State, new: State) -> State:
        """Changes the state if it is still `old`, and wakes those who wait for that; the state afterwards."""
        now = self._swap(old, new) if self._known.swaps else self._swap_by_ticket(old, new)
        if now == new:
            self._ring(old.epoch)
        elif now == old:  # c10d's answer where the key is gone
            raise StoreError(f"{self!r}: its keys in the store were removed by others")
        return now

    def _swap(self, old: State, new: State) -> State:
        return self._parsed(self._at.compare_set(f"{self._base}/state", old.text(), new.text()))

    def _swap_by_ticket(self, old: State, new: State) -> State:
        """The same on a store without compare_set."""
        ticket, done = self._swap_keys(old.epoch, broken=old.cause is not None)
        if int(self._at.add(ticket, 1)) > 1:
            try:
                self._at.wait([done], timedelta(seconds=GRACE_S))
            except Exception as error:
                if not _gave_up(error, ours=self._ours):
                    raise
        now = self._read()  # the first one, too: it may have been slow, and the tickets swept meanwhile
        if now != old:
            return now
        self._at.set(f"{self._base}/state", new.text())
        self._at.set(done, "1")
        return new

    def _swap_keys(self, epoch: int, *, broken: bool) -> tuple[str, str]:
        name = f"{self._base}/{epoch}/{'broken' if broken else 'open'}"
        return f"{name}/swap", f"{name}/done"

    def _pass(self, state: State) -> State:
        """The current epoch is complete: ends it. The state afterwards."""
        new = state.passed()
        now = self._move(state, new)
        if now == new:
            self._delete(self._keys_of(state.epoch - 1))
        return now

    def _ring(self, epoch: int) -> None:
        self._at.set(f"{self._base}/{epoch}/end", "1")

    # -- what is left behind ------------------------------------------------------------------------------------------

    def _keys_of(self, epoch: int) -> list[str]:
        """The keys of an epoch that belong to no rank."""
        if epoch < 0:
            return []
        keys = [f"{self._base}/{epoch}/end"]
        if not self._known.swaps:
            keys += [*self._swap_keys(epoch, broken=False), *self._swap_keys(epoch, broken=True)]
        return keys

    def _sweep_own(self, epoch: int) -> None:
        """At a handle's first wait: what this rank, before it was killed and restarted, may have left."""
        self._known.swept = True
        self._delete(self._keys_of(epoch - 2))
        if self._rank is not None and epoch > 0:
            self._delete([self._arrived(epoch - 1, self._rank)])

    def _sweep(self, epoch: int) -> None:
        """After the reset of an epoch: all that its parties and those of the one before may have left."""
        self._delete(self._keys_of(epoch - 2) + self._keys_of(epoch - 1))
        if self._rank is not None:
            for over in (epoch - 1, epoch):
                self._delete(self._arrived(over, rank) for rank in range(self._parties) if over >= 0)

    def _delete(self, keys: Iterable[str]) -> None:
        """Deletes what is there; an error changes nothing for the caller, and the next call meets it."""
        if self._known.deletes:
            try:
                for key in keys:
                    self._at.delete_key(key)
            except Exception:  # noqa: S110
                pass

    # -- the rest of the interface ------------------------------------------------------------------------------------

    def _now(self) -> tuple[int, Break | None]:
        state = self._read()
        return state.epoch, state.cause

    def _waiting(self) -> int:
        state = self._read()
        return self._absent(state)[0] if state.cause is None else 0

    def _break(self, epoch: int | None, cause: Break) -> int:
        state = self._read()
        while state.cause is None and (epoch is None or state.epoch <= epoch):
            state = self._move(state, replace(state, cause=cause))
        return state.epoch

    def _reset(self, told: int | None) -> None:
        state = self._read()
        while told is None or state.epoch <= told:
            new = state.reset(self._tickets() if self._rank is None else 0)
            now = self._move(state, new)
            if now == new:
                self._sweep(state.epoch)
                return
            state = now


def _gave_up(error: BaseException, *, ours: bool) -> bool:
    """Whether a wait ended by its timeout: torch's DistStoreError, known by name; of its FileStore a RuntimeError."""
    if ours or isinstance(error, DistStoreError):
        return isinstance(error, StoreTimeoutError)
    if isinstance(error, TimeoutError) or any(kind.__name__ == "DistStoreError" for kind in type(error).__mro__):
        return True
    return type(error) is RuntimeError and "timeout" in str(error).lower()


def _the_dead(error: BaseException) -> PeerDiedError | None:
    """The death that ended a wait, on a store that watches for them."""
    for one in (error, error.__cause__):
        if isinstance(one, PeerDiedError):
            return one
    return None
