"""ElasticBarrier: torchelastic's barrier, which serves once, made to serve for ever. TCPStoreBarrier stands on it.

Each call meets by `elastic.barrier` under a name of its own, and what that leaves open is settled by more keys. For a
barrier p, the token T of rank 0's server, a call n and a rank i:

    p/meeting          the token, and how many meet               set by rank 0, when the server has all ranks; stays
    p/T/rank{i}        rank i's Place: whose object it is, the    made by rank 0 before p/meeting; compare_set by i's
                       call it is in or was in last, and the      object, which begins and calls with it
                       first one of which it may have left keys
    pn/num_members     arrivals, counted                          elastic.barrier
    pn/last_member     look at the outcome: all are there, or     elastic.barrier; who has broken the call
                       it is broken
    p/T/n/outcome      how the call ended, for all: "passed" and  compare_set by whoever knows first; then it stays
                       by whom, or why not (a Break, as JSON)
    p/T/n/left{i}      i has seen the outcome                     set by i at the end of the call; not by rank 0
    rank{i}            the call that i is in                      set by i, as torch's does; never read

All ranks meet so, none by torch's TCPStoreBarrier: that one passes whenever last_member is there, which is how a broken
call wakes those who wait, and it neither gives up nor says that it has left.

Nobody passes or fails alone. Whoever comes back from `elastic.barrier` offers "passed" as the outcome, whoever gives up
offers the reason; the first offer is the outcome, and all act on it. So who comes when the others have given up fails
as they did, although the count is full then.

A call begins with the compare_set of the rank's place, which fails where the place is another one's. So an object that
outlived rank 0's server has no place at a new one, and one whose rank has been started again has lost its place. An
object that is stopped between that and its arrival, and goes on after a successor or a new server came, may still
count. One that is stopped later may come to an outcome that is swept, and make it again: so whoever made a "passed"
looks at its place once more, and has passed if that is its own, as then no call after this one was passed.

A process that dies between two steps:

    before it is attached its Place has no owner: "never attached"; a successor begins with call 0, as it would have
    before num_members    it has begun, but not arrived; the others time out, and the count tells them
    after it              it counts for this call, and the next one misses it
    outcome, no wake      the others learn of it at their timeouts
    left{i} not set       rank 0 waits for it when it leaves, `LINGER_S` at most; a successor sets it

A successor of an object that was attached begins with the call after the last one that anybody was in; or with that
one, if it is not over and the rank was not in it. If the rank was in it, the successor breaks it: an arrival must not
count twice.

Who passes call n knows that all have left the ones before, and deletes its own keys of them, rank 0 the common ones.
Those of failed calls stay until one is passed, by the rank or by its successor.

The store ends with rank 0, which hosts it. So rank 0 departs: it breaks the calls that it will not come to, as far as
anybody is ahead, and waits until those who are there or in its own last one have seen how that ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from shmstore import elastic
from shmstore._barrier_keys import ROOM, break_of
from shmstore._barrier_words import NAMED_MAX, Break, named, span_text
from shmstore._checkpoint_base import MENDED_BY
from shmstore._deadline import Timeout, as_timedelta, seconds, span_ns
from shmstore._keys import KEY_MAX, Key, key_text
from shmstore.barrier import check_party
from shmstore.errors import (
    BrokenBarrierError,
    StoreConnectionError,
    StoreError,
    StoreTimeoutError,
    TimedOutBarrierError,
)

if TYPE_CHECKING:
    from shmstore.tcp.client import TCPStore

__all__ = ["LINGER_S", "ElasticBarrier"]

LINGER_S: Final = 5.0
"""What rank 0, leaving, gives the others to see how the last call ended: a few round trips."""

LOOK_S: Final = 5.0
"""How long a look at keys that are always there may take."""

LOOKS: Final = 3
"""How often who times out looks who is there, until places and count agree: a rank may be between the two."""

PASSED: Final = "passed"
"""What an outcome begins with that is no Break."""


ENDS_WITH_RANK_0: Final = "the server ends with rank 0: make the barrier anew in all ranks"
"""The same where there is no next call."""


@dataclass(frozen=True, slots=True)
class Place:
    """What stands in a rank's key.

    Attributes:
        by: the token of the object that has it; empty: never attached.
        call: the call that it is in or was in last; -1: attached, no call yet.
        since: the first call of which the rank may have left keys.
    """

    by: str = ""
    call: int = -1
    since: int = 0

    def text(self) -> str:
        return json.dumps(asdict(self))


class ElasticBarrier:
    """One rank's part in a barrier that meets by `elastic.barrier`, call after call.

    Args: as of StoreBarrier, and checked here; `begin` gives it its store.

    guard of all fields: the thread that uses the barrier; `depart` may come from another one
    """

    def __init__(self, prefix: Key, parties: int, rank: int, timeout: Timeout) -> None:
        if not isinstance(prefix, (str, bytes)):
            raise TypeError(f"barrier_prefix must be str or bytes, not {type(prefix).__name__}")
        raw = prefix if isinstance(prefix, bytes) else prefix.encode("utf-8", "surrogateescape")
        if not 1 <= len(raw) <= KEY_MAX - ROOM:
            raise ValueError(f"barrier_prefix has 1 to {KEY_MAX - ROOM} bytes, this one has {len(raw)}")
        check_party(parties, rank, ("global_world_size", "global_rank"))
        self.prefix: Final = key_text(raw)
        self.parties: Final = parties
        self.rank: Final = rank
        self._span: Final = span_ns(timeout)
        self._timeout: Final = as_timedelta(timeout)
        self._pid: Final = os.getpid()
        self._me: Final = token_hex(8)
        self._next = 0
        self._open: list[int] = []  # calls of this rank whose outcome it does not know
        self._swept = 0  # the first call of which it may have left keys

    # -- the beginning ------------------------------------------------------------------------------------------------

    def begin(self, store: TCPStore) -> None:
        """Takes the store; rank 0 opens the meeting there, the others wait for that, and find out which call is next.

        That may take the store's timeout. After it the store has the barrier's, or LOOK_S where that is longer: so long
        a server that says nothing is waited for.

        Raises:
            StoreTimeoutError: rank 0 did not, within the store's timeout. ValueError: it is one of another number of
                ranks. StoreError: there is one already, or its keys have been changed. The store's errors.
        """
        self.store = store
        if self.rank == 0:
            self._found()
        else:
            self._join()
        store.set_timeout(max(self._timeout, timedelta(seconds=LOOK_S)))

    def _found(self) -> None:
        token = token_hex(8)
        self._base = f"{self.prefix}/{token}"
        self._place = Place(self._me).text()
        self.store.multi_set(
            [self._rank_key(rank) for rank in range(self.parties)],
            [self._place if rank == self.rank else Place().text() for rank in range(self.parties)],
        )
        mine = json.dumps({"token": token, "parties": self.parties})
        if _differs(self.store.compare_set(f"{self.prefix}/meeting", "", mine), mine):
            raise StoreError(f"barrier {self.prefix!r}: {self.store!r} has one of that name already")

    def _join(self) -> None:
        parties = self._attend()
        if parties != self.parties:
            raise ValueError(
                f"barrier {self.prefix!r}: rank 0 made it for a global_world_size of {parties}, this rank {self.rank} "
                f"for {self.parties}: all ranks give the same"
            )
        found = self._take_place()
        self._swept = found.since
        if not found.by:
            return
        last = max(place.call for place in self._places())
        if last < 0:
            return
        over = self.store.check([self._key(last, "outcome")])
        if not over and found.call == last:
            self._settle(last, Break("interrupt", self.rank, note="another object took its place"))
        if found.call >= 0:
            self._leave(found.call)  # for the one before: rank 0 would wait for it
        self._next = last if not over and found.call < last else last + 1

    def _attend(self) -> int:
        """Waits until rank 0 has opened the meeting; for how many."""
        key = f"{self.prefix}/meeting"
        try:
            raw = self.store.get(key)
        except StoreTimeoutError as error:
            raise StoreTimeoutError(
                f"barrier {self.prefix!r}: rank {self.rank} reached {self.store!r}, where rank 0 did not begin in "
                f"{seconds(span_ns(self.store.timeout)):g} s: are all ranks there, with this class and this "
                "barrier_prefix?",
                keys=[key],
                elapsed=error.elapsed,
                timeout=error.timeout,
            ) from error
        try:
            token, parties = (json.loads(raw)[name] for name in ("token", "parties"))
            if not (isinstance(token, str) and isinstance(parties, int)):
                raise TypeError("no meeting")
        except (ValueError, TypeError, KeyError) as error:
            raise self._nonsense(key, raw) from error
        self._base = f"{self.prefix}/{token}"
        return parties

    def _take_place(self) -> Place:
        """This object has the rank's place; as it was before."""
        key = self._rank_key(self.rank)
        raw = self.store.get(key, LOOK_S)
        while True:
            found = self._place_of(self.rank, raw)
            self._place = Place(self._me, found.call, found.since).text()
            said = self.store.compare_set(key, raw, self._place)
            if said == self._place.encode():
                return found
            if said == raw:
                raise self._gone()
            raw = said  # the one before has begun a call meanwhile

    # -- a call -------------------------------------------------------------------------------------------------------

    def meet(self) -> None:
        """Returns when all ranks have come to this call; see StoreBarrier.execute_barrier."""
        with self._lost():
            self._meet()

    def _meet(self) -> None:
        self._check_process()
        start = monotonic()
        number = self._count()
        try:
            late = self._arrive(number)
            cause = self._settle(number, self._timeout_break(number, monotonic() - start) if late else None)
        except StoreError:
            raise  # the next call settles this one
        except BaseException as error:
            with suppress(StoreError):
                self._settle(number, Break("interrupt", self.rank, note=type(error).__name__))
                self._leave(number)
            raise
        if cause is None:
            self._sweep(number)
        self._leave(number)
        if cause is not None:
            raise self._broken(number, cause, monotonic() - start if late else None)

    def give_up(self) -> None:
        """In place of `meet`: breaks this call for all."""
        self._check_process()
        with self._lost():
            number = self._count()
            self._settle(number, Break("abort", self.rank))
            self._leave(number)

    @contextmanager
    def _lost(self) -> Iterator[None]:
        """Says of a lost connection what it means here."""
        try:
            yield
        except StoreConnectionError as error:
            if str(error).startswith(f"barrier {self.prefix!r}"):
                raise
            raise StoreConnectionError(
                f"barrier {self.prefix!r}: rank {self.rank} has lost the server, which rank 0 hosts: {error}. If rank "
                "0 has ended, make the barrier anew in all ranks"
            ) from error

    def _count(self) -> int:
        """Begins a call. It counts, whatever becomes of it."""
        number = self._next
        self._next += 1
        self._open.append(number)
        self._say(number)
        for old in self._open[:-1]:
            self._settle(old, Break("overtaken", self.rank))
        self.store.set(f"rank{self.rank}", str(number))
        return number

    def _say(self, call: int) -> None:
        """Begins the call in this rank's place.

        Raises:
            StoreConnectionError: this server has no place of it. StoreError: another object has taken it.
        """
        new = Place(self._me, call, self._swept).text()
        while True:
            old = self._place
            said = self._swap_place(new)
            if not _differs(said, new):
                self._place = new
                return
            if said == old.encode():
                raise self._gone()
            if self._place_of(self.rank, said).by != self._me:
                raise self._taken()
            self._place = key_text(said)  # of a call of this object that has not ended

    def _swap_place(self, new: str) -> bytes:
        """What stands in this rank's place; `new`, if that was as this object left it."""
        return self.store.compare_set(self._rank_key(self.rank), self._place, new)

    def _arrive(self, number: int) -> bool:
        """Meets the others; True when the time was over first."""
        token = elastic.default_barrier_timeout.set(self._timeout)
        try:
            elastic.barrier(store=self.store, world_size=self.parties, key_prefix=f"{self.prefix}{number}")
        except StoreTimeoutError:
            return True
        finally:
            elastic.default_barrier_timeout.reset(token)
        return False

    def _settle(self, number: int, cause: Break | None) -> Break | None:
        """How the call ended: by `cause`, if nobody has said otherwise before. None: it was passed."""
        mine = f"{PASSED} {self._me}" if cause is None else json.dumps(asdict(cause))
        key = self._key(number, "outcome")
        said = self.store.compare_set(key, "", mine)
        stands = not _differs(said, mine)
        if cause is not None and stands:
            self.store.set(f"{self.prefix}{number}/last_member", "")
        if number in self._open:
            self._open.remove(number)
        if stands:
            if cause is None and _differs(self._swap_place(self._place), self._place):
                raise self._taken()
            return cause
        if said.startswith(PASSED.encode()):
            return None
        try:
            return break_of(json.loads(said))
        except (ValueError, TypeError, KeyError) as error:
            raise self._nonsense(key, said) from error

    def _leave(self, number: int) -> None:
        """This rank has seen the outcome. Nothing but rank 0's patience depends on that, and rank 0 may be gone."""
        if self.rank:
            with suppress(StoreError):
                self.store.set(self._key(number, f"left{self.rank}"), "")

    def _sweep(self, number: int) -> None:
        """Call `number` was passed: deletes this rank's keys of those before. An error is met by the next call."""
        with suppress(StoreError):
            for old in range(self._swept, number):
                for key in self._own_keys(old):
                    self.store.delete_key(key)
            self._swept = number

    def _own_keys(self, number: int) -> list[str]:
        if self.rank:
            return [self._key(number, f"left{self.rank}")]
        counted = f"{self.prefix}{number}"
        return [f"{counted}/num_members", f"{counted}/last_member", self._key(number, "outcome")]

    # -- the end ------------------------------------------------------------------------------------------------------

    def depart(self) -> None:
        """Before the store ends with this rank: see the module. Blocks, at most `LINGER_S` and a few round trips."""
        if self.parties == 1:
            return
        last = max(self._next - 1, 0)
        ahead = max([self._next, *(place.call + 1 for place in self._places())])
        for number in (*self._open, *range(self._next, ahead + 1)):
            self._settle(number, Break("left", self.rank))
        there = [(rank, one.call) for rank, one in enumerate(self._places()) if rank != self.rank and one.call >= last]
        self.store.wait([self._key(at, f"left{rank}") for rank, at in there], LINGER_S)

    # -- who is where -------------------------------------------------------------------------------------------------

    def _places(self) -> list[Place]:
        """All ranks' places, in order."""
        try:
            raws = self.store.multi_get([self._rank_key(rank) for rank in range(self.parties)], LOOK_S)
        except StoreTimeoutError as error:
            raise self._gone() from error
        return [self._place_of(rank, raw) for rank, raw in enumerate(raws)]

    def _place_of(self, rank: int, raw: bytes) -> Place:
        try:
            place = Place(**json.loads(raw))
            if [type(one) for one in asdict(place).values()] != [str, int, int]:
                raise TypeError("no place")
        except (ValueError, TypeError) as error:
            raise self._nonsense(self._rank_key(rank), raw) from error
        return place

    def _rank_key(self, rank: int) -> str:
        return f"{self._base}/rank{rank}"

    def _key(self, number: int, name: str) -> str:
        return f"{self._base}/{number}/{name}"

    # -- errors -------------------------------------------------------------------------------------------------------

    def _timeout_break(self, number: int, elapsed: float) -> Break | None:
        """What this rank, whose time is over, says of the call; None: all have arrived after all."""
        for _ in range(LOOKS):
            places = self._places()
            missing = [rank for rank, place in enumerate(places) if place.call < number]
            count = int(self.store.add(f"{self.prefix}{number}/num_members", 0))
            begun = self.parties - len(missing) - count
            if begun == 0:
                break
        if begun <= 0 and not missing:
            return None
        notes = []
        if never := [f"rank {rank}" for rank in missing if not places[rank].by]:
            notes.append(f"never attached: {named(never)}")
        if begun > 0:
            who = [rank for rank in range(self.parties) if rank != self.rank and rank not in missing]
            names = named([f"rank {rank}" for rank in who])
            some = names if len(who) == begun else f"{begun} of {names}"
            notes.append(f"{some} began to arrive and did not: died there, is stopped, or comes just now")
            if len(who) == begun:
                missing = sorted(missing + who)
        return Break(
            "timeout",
            self.rank,
            arrived=self.parties - len(missing) if begun <= 0 else count,
            missing=tuple(missing),
            elapsed=elapsed,
            note="; ".join(notes),
        )

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(
                f"barrier {self.prefix!r}: this object is rank {self.rank} in process {self._pid}, not in the forked "
                f"{os.getpid()}, and would count twice: make one in each process, of a rank of its own"
            )

    def _taken(self) -> StoreError:
        return StoreError(
            f"barrier {self.prefix!r}: another object has taken the place of this one as rank {self.rank} "
            f"({self.store!r}): a rank has one, in one process"
        )

    def _gone(self) -> StoreConnectionError:
        return StoreConnectionError(
            f"barrier {self.prefix!r}: {self.store!r} does not know this object of rank {self.rank}: rank 0 was "
            "started again, with a new server, or the keys were deleted; make the barrier anew in all ranks"
        )

    def _nonsense(self, key: str, raw: Any) -> StoreError:
        return StoreError(
            f"barrier {self.prefix!r}: its key {key!r} in {self.store!r} was changed by others: {raw[:80]!r}"
        )

    def _broken(self, number: int, cause: Break, late: float | None) -> Exception:
        """The error of a broken call. `late`: how long this rank has waited, if its own time was over."""
        if cause.kind != "timeout" or late is None:
            mended_by = ENDS_WITH_RANK_0 if cause.kind == "left" else MENDED_BY
            return BrokenBarrierError(
                f"barrier {self.prefix!r}: all gave up call {number}, as {cause.text(self.parties)} "
                f"(rank {self.rank}, {self.store!r}; {mended_by})",
                key=self.prefix,
                epoch=number,
                missing_ranks=cause.missing,
            )
        who = [f"rank {rank}" for rank in cause.missing[:NAMED_MAX]]
        more = len(cause.missing) - len(who)
        texts = ([f"missing {named(who, more)}"] if who else []) + ([cause.note] if cause.note else [])
        absent = "; ".join(texts)
        limit = seconds(self._span)
        return TimedOutBarrierError(
            f"barrier {self.prefix!r} timed out on rank {self.rank} after {span_text(late)}: {cause.arrived} of "
            f"{self.parties} arrived; {absent} (call {number}, limit {limit:g} s, {self.store!r}; {MENDED_BY})",
            key=self.prefix,
            epoch=number,
            arrived=cause.arrived,
            world_size=self.parties,
            missing_ranks=cause.missing,
            elapsed=late,
            timeout=limit,
        )


def _differs(said: bytes, mine: str) -> bool:
    """Whether compare_set found another value than the one it was to set. A mock's answer, no bytes, is none."""
    return isinstance(said, bytes) and said != mine.encode()
