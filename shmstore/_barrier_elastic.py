"""ElasticBarrier: torchelastic's barrier, which serves once, made to serve for ever. TCPStoreBarrier stands on it.

Each call meets by `elastic.barrier` under a name of its own, and what that leaves open is settled by more keys. Who
meets, and which call each rank is in, is in `_elastic_places`: a Place a rank. For a barrier p, the token T of rank 0's
server, a call n and a rank i:

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

A call begins with the compare_set of the rank's place, which fails where the place is another one's. An object that is
stopped between that and its arrival, and goes on after a successor or a new server came, may still count. One that is
stopped later may come to an outcome that is swept, and make it again: so whoever made a "passed" looks at its place
once more, and has passed if that is its own, as then no call after this one was passed.

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
from dataclasses import asdict
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Final

from shmstore import elastic
from shmstore._barrier_keys import ROOM
from shmstore._barrier_words import NAMED_MAX, Break, break_of, named, span_text
from shmstore._checkpoint_base import MENDED_BY
from shmstore._deadline import Timeout, as_timedelta, seconds, span_ns
from shmstore._elastic_places import LOOK_S, Place, Places, differs
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

LOOKS: Final = 3
"""How often who times out looks who is there, until places and count agree: a rank may be between the two."""

PASSED: Final = "passed"
"""What an outcome begins with that is no Break."""


ENDS_WITH_RANK_0: Final = "the server ends with rank 0: make the barrier anew in all ranks"
"""The same where there is no next call."""


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
        self._places = Places(store, self.prefix, self.parties, self.rank)
        if self.rank == 0:
            self._places.found()
        else:
            self._follow(self._places.join())
        store.set_timeout(max(self._timeout, timedelta(seconds=LOOK_S)))

    def _follow(self, found: Place) -> None:
        """Finds out which call is next for a rank whose place was as `found`."""
        self._swept = found.since
        if not found.by:
            return
        last = max(place.call for place in self._places.all())
        if last < 0:
            return
        over = self.store.check([self._key(last, "outcome")])
        if not over and found.call == last:
            self._settle(last, Break("interrupt", self.rank, note="another object took its place"))
        if found.call >= 0:
            self._leave(found.call)  # for the one before: rank 0 would wait for it
        self._next = last if not over and found.call < last else last + 1

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
        self._places.say(number, self._swept)
        for old in self._open[:-1]:
            self._settle(old, Break("overtaken", self.rank))
        self.store.set(f"rank{self.rank}", str(number))
        return number

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
        mine = f"{PASSED} {self._places.me}" if cause is None else json.dumps(asdict(cause))
        key = self._key(number, "outcome")
        said = self.store.compare_set(key, "", mine)
        stands = not differs(said, mine)
        if cause is not None and stands:
            self.store.set(f"{self.prefix}{number}/last_member", "")
        if number in self._open:
            self._open.remove(number)
        if stands:
            if cause is None:
                self._places.keep()
            return cause
        if said.startswith(PASSED.encode()):
            return None
        try:
            return break_of(json.loads(said))
        except (ValueError, TypeError, KeyError) as error:
            raise self._places.nonsense(key, said) from error

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
        ahead = max([self._next, *(place.call + 1 for place in self._places.all())])
        for number in (*self._open, *range(self._next, ahead + 1)):
            self._settle(number, Break("left", self.rank))
        others = [(rank, place) for rank, place in enumerate(self._places.all()) if rank != self.rank]
        there = [self._key(place.call, f"left{rank}") for rank, place in others if place.call >= last]
        self.store.wait(there, LINGER_S)

    def _key(self, number: int, name: str) -> str:
        return f"{self._places.base}/{number}/{name}"

    # -- errors -------------------------------------------------------------------------------------------------------

    def _timeout_break(self, number: int, elapsed: float) -> Break | None:
        """What this rank, whose time is over, says of the call; None: all have arrived after all."""
        for _ in range(LOOKS):
            places = self._places.all()
            missing = [rank for rank, place in enumerate(places) if place.call < number]
            count = self.store.add(f"{self.prefix}{number}/num_members", 0)
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
