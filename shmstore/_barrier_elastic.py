"""ElasticBarrier: torchelastic's barrier, which serves once, made to serve for ever. TCPStoreBarrier stands on it.

Each call meets by `elastic.barrier` under a name of its own, with the keys of torch's TCPStoreBarrier: its ranks may
take part. What that leaves open is settled by more keys. For a barrier p, its call n and a rank i:

    rank{i}           the call that i is in, or was in last           set by i, which begins the call with it
    p{n}/num_members  arrivals, counted                               elastic.barrier
    p{n}/last_member  look at the outcome: all are there, or it is    elastic.barrier; who has broken the call
                      broken
    p{n}/outcome      how the call ended, for all: "passed", or why   compare_set by whoever knows first; then it stays
                      not (a Break, as JSON)
    p{n}/left{i}      i has seen the outcome                          set by i at the end of the call; not by rank 0

Nobody passes or fails by himself: who comes back from `elastic.barrier` says "passed", who gives up says why, and all
do what was said first. So who comes after the others gave up fails as they did, although with him the count is full.

A process that dies between two steps:

    before num_members    it has not arrived; the others time out, and name it if its rank{i} is missing, too
    after it              it counts for this call, and the next one misses it
    outcome, no wake      the others learn of it at their timeouts
    left{i} not set       rank 0 waits for it when it leaves, `LINGER_S` at most

A new object for a rank that was there before begins with the call after the last one that anybody was in; or with that
one, if it is not over and the rank was not in it. Was it in it, then it breaks it: an arrival must not count twice.

Who passes call n knows that all have left the ones before, and deletes its own keys of them, rank 0 the common ones.
Those of failed calls stay until one is passed.

The store ends with rank 0, which hosts it. So rank 0 departs: it breaks the call that it will not come to, and waits
until those who are in that one or in its own last one have seen how it ended.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING, Final

from shmstore import elastic
from shmstore._barrier_keys import ROOM, break_of
from shmstore._barrier_words import NAMED_MAX, Break, named, span_text
from shmstore._deadline import Timeout, as_timedelta, seconds, span_ns
from shmstore._keys import KEY_MAX, Key, key_bytes, key_text
from shmstore.barrier import check_party
from shmstore.errors import BrokenBarrierError, StoreError, StoreTimeoutError, TimedOutBarrierError

if TYPE_CHECKING:
    from shmstore.tcp.client import TCPStore

__all__ = ["LINGER_S", "ElasticBarrier"]

LINGER_S: Final = 5.0
"""What rank 0, leaving, gives the others to see how the last call ended: a few round trips."""

PASSED: Final = "passed"

MENDED_BY: Final = "the next call of each meets again"
"""What ends a break of a checkpoint barrier, for its text."""


class ElasticBarrier:
    """One rank's part in a barrier that meets by `elastic.barrier`, call after call.

    Args: as of StoreBarrier, and checked here; `begin` gives it its store.

    guard of all fields: the thread that uses the barrier; `depart` may come from another one
    """

    def __init__(self, prefix: Key, parties: int, rank: int, timeout: Timeout) -> None:
        raw = key_bytes(prefix)
        if len(raw) > KEY_MAX - ROOM:
            raise ValueError(f"barrier_prefix has 1 to {KEY_MAX - ROOM} bytes, this one has {len(raw)}")
        check_party(parties, rank)
        self.prefix: Final = key_text(raw)
        self.parties: Final = parties
        self.rank: Final = rank
        self._span: Final = span_ns(timeout)
        self._timeout: Final = as_timedelta(timeout)
        self._next = 0
        self._open: list[int] = []  # calls of this rank whose outcome it does not know
        self._swept = 0  # the first call of which it may have left keys

    def begin(self, store: TCPStore, *, new: bool) -> None:
        """Takes the store, and finds out which call is next.

        Args:
            store: where the others are, too.
            new: nobody has used it yet.
        """
        self.store = store
        mine = -1 if new else self._last_of(self.rank)
        if mine < 0:
            return
        self._swept = mine
        last = max(self._lasts())
        over = store.check([self._key(last, "outcome")])
        if not over and mine == last:
            self._settle(last, Break("interrupt", self.rank, note="another object took its place"))
        self._next = last if not over and mine < last else last + 1

    # -- a call -------------------------------------------------------------------------------------------------------

    def meet(self) -> None:
        """Returns when all ranks have come to this call; see StoreBarrier.execute_barrier."""
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
        number = self._count()
        self._settle(number, Break("abort", self.rank))
        self._leave(number)

    def _count(self) -> int:
        """Begins a call. It counts, whatever becomes of it."""
        number = self._next
        self._next += 1
        self._open.append(number)
        for old in self._open[:-1]:
            self._settle(old, Break("interrupt", self.rank, note="its store failed"))
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
        mine = PASSED if cause is None else json.dumps(asdict(cause))
        said = self.store.compare_set(self._key(number, "outcome"), "", mine)
        if cause is not None and said == mine.encode():
            self.store.set(self._key(number, "last_member"), "")
        if number in self._open:
            self._open.remove(number)
        return break_of(json.loads(said)) if said[:1] == b"{" else None

    def _leave(self, number: int) -> None:
        """This rank has seen the outcome. Nothing but rank 0's patience depends on that, and rank 0 may be gone."""
        if self.rank:
            with suppress(StoreError):
                self.store.set(self._key(number, f"left{self.rank}"), "")

    def _sweep(self, number: int) -> None:
        """Call `number` was passed: deletes this rank's keys of those before. An error is met by the next call."""
        names = [f"left{self.rank}"] if self.rank else ["num_members", "last_member", "outcome"]
        with suppress(StoreError):
            for old in range(self._swept, number):
                for name in names:
                    self.store.delete_key(self._key(old, name))
            self._swept = number

    # -- the end ------------------------------------------------------------------------------------------------------

    def depart(self) -> None:
        """Before the store ends with this rank: see the module. Blocks, at most `LINGER_S` and a few round trips."""
        if self.parties == 1:
            return
        last = max(self._next - 1, 0)
        for number in (*self._open, self._next):
            self._settle(number, Break("left", self.rank))
        there = [(rank, at) for rank, at in enumerate(self._lasts()) if rank != self.rank and at >= last]
        self.store.wait([self._key(at, f"left{rank}") for rank, at in there], LINGER_S)

    # -- who is where -------------------------------------------------------------------------------------------------

    def _last_of(self, rank: int) -> int:
        """The call that a rank is in or was in last, -1 for none."""
        key = f"rank{rank}"
        return int(self.store.get(key)) if self.store.check([key]) else -1

    def _lasts(self) -> list[int]:
        return [self._last_of(rank) for rank in range(self.parties)]

    def _key(self, number: int, name: str) -> str:
        return f"{self.prefix}{number}/{name}"

    # -- errors -------------------------------------------------------------------------------------------------------

    def _timeout_break(self, number: int, elapsed: float) -> Break:
        missing = tuple(rank for rank, last in enumerate(self._lasts()) if last < number)
        return Break("timeout", self.rank, arrived=self.parties - len(missing), missing=missing, elapsed=elapsed)

    def _broken(self, number: int, cause: Break, late: float | None) -> Exception:
        """The error of a broken call. `late`: how long this rank has waited, if its own time was over."""
        if cause.kind != "timeout" or late is None:
            return BrokenBarrierError(
                f"barrier {self.prefix!r}: all gave up call {number}, as {cause.text(self.parties)} "
                f"(rank {self.rank}, {self.store!r}; {MENDED_BY})",
                key=self.prefix,
                epoch=number,
                missing_ranks=cause.missing,
            )
        who = [f"rank {rank}" for rank in cause.missing[:NAMED_MAX]]
        more = len(cause.missing) - len(who)
        text = f"missing {named(who, more)}" if who else "the last of them just after that"
        limit = seconds(self._span)
        return TimedOutBarrierError(
            f"barrier {self.prefix!r} timed out on rank {self.rank} after {span_text(late)}: {cause.arrived} of "
            f"{self.parties} arrived; {text} (call {number}, limit {limit:g} s, {self.store!r}; {MENDED_BY})",
            key=self.prefix,
            epoch=number,
            arrived=cause.arrived,
            world_size=self.parties,
            missing_ranks=cause.missing,
            elapsed=late,
            timeout=limit,
        )
