"""The job of `shmstore demo`: ranks that share a store count the words, lines and bytes of a directory tree.

It stands for any job that cuts its work into pieces: pieces are claimed by key, partial results exchanged, and a
barrier ends each round. Round R is a slice of the list of files. In it a rank walks the slice from a place of its own,
claims each file that nobody has, counts it, and goes on until every file has been claimed; then `synchronize` gives all
ranks the partial counts of all, and they meet at a barrier. Nothing is sent to anybody and nobody is in charge.

The keys:

    files/pieces, files/I     the list of files, made once, by the launcher: the tree may change meanwhile
    progress                  a queue: how many files a rank has finished since it last said so; the launcher pops it
    group, group/...          the barriers, and how those who live find together after a death: group.py
    round/R/claim/I           who has file I, see below
    round/R/part/...          elastic.synchronize, the partial counts; while nobody is known to have died

After the meeting of round R + 1 one rank deletes the keys of round R, since all have read them. Those of the last round
go with the segment, and so do those that a rank was to delete and died.

A claim:

    missing                   nobody's      -> held, by compare_set("", holder) of any rank
    "RANK PID"                held          -> finished, by compare_set(holder, holder: counts) of the holder
                                            -> held by another, by compare_set(dead holder, own holder)
    "RANK PID: COUNTS"        finished      (stays until the round has passed)

A count is made under the claim and becomes part of the result in the one compare_set that ends the claim. So a rank may
be killed anywhere: what it had finished stands in its claims, what it had not is seen to be held by it. Of two that
take such a claim over only one gets it; a holder that was taken for dead finds its own last compare_set refused and
drops the count. No file is lost and none counts twice.

Deaths. A round ends like this, for each rank:

    walk the slice; exchange the parts; until the meeting passes: take over, by walking the slice once more

A round's total is the sum of the parts, or of the claims: both say the same, since a rank gives its part when it holds
no claim any more, and all parts there means all claims finished. Who finds in the exchange that somebody has died goes
on to the meeting without it and sums the claims; the others in the exchange find the same, for who waits there looks.
Nobody exchanges any more once it knows of a death.

The meeting passes for all that live or breaks for all of them (group.py). A rank comes to it when it holds no claim,
and has taken over what those held who died before. So when it has passed, all claims of the slice are finished: a
holder that came had none left, one that did not come is dead, and all who came walked the slice after they knew that.
This holds wherever the kill fell:

    before a claim, or after the compare_set that finished one     nothing is held; the others claim the rest
    with a claim in hand                                           a survivor takes it over
    between the last claim and the meeting, in the exchange        the meeting breaks; nothing is held; it is met again
    in the meeting, having come                                    it passes; the next one breaks
    while the survivors regroup or take over                       they regroup again; the claims in hand of the second
                                                                   one dead are taken over like those of the first

The last survivor counts alone. Rank 0 is like any other.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from shmstore import PeerDiedError, PrefixStore, ShmStore, elastic
from shmstore.cli.group import Group, Notice
from shmstore.cli.tally import Tally, count
from shmstore.store import Store

__all__ = [
    "PROGRESS",
    "WAITS",
    "Plan",
    "Report",
    "live",
    "publish",
    "published",
    "unfinished",
]

PROGRESS = "progress"
WAITS = ("start", "exchange", "barrier")  # what a rank waits for

_PIECE_BYTES = 4 << 20  # of the list, in one value: half of what a value may hold
_TELL_S = 0.05  # between two words of a rank about its progress


@dataclass(frozen=True, slots=True)
class Plan:
    """What every rank is told; all else is in the store."""

    name: str
    root: bytes
    nproc: int
    rounds: int
    timeout_s: float
    kill: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank counted itself, what it knows of the others, and how long it waited for them."""

    rank: int
    pid: int
    own: Tally
    everyone: tuple[Tally, ...]  # by rank, the dead too
    waited_s: dict[str, float]  # for each of WAITS
    begun_s: float  # when all had come, and when the last barrier was passed: CLOCK_MONOTONIC, one for all processes
    ended_s: float
    noticed: tuple[Notice, ...] = ()  # deaths
    taken: tuple[tuple[int, int], ...] = ()  # the dead rank, and the file that this one took over from it and finished

    @property
    def total(self) -> Tally:
        """What all counted, as this rank knows it."""
        return sum(self.everyone, Tally())


# -- the list ---------------------------------------------------------------------------------------------------------


def publish(store: Store, files: list[bytes]) -> None:
    """Puts the list into the store, cut to what a value may hold. No path has a NUL, so that separates them."""
    text = b"\0".join(files)
    pieces = [text[at : at + _PIECE_BYTES] for at in range(0, len(text), _PIECE_BYTES)]
    store.multi_set(
        ["files/pieces", *(f"files/{i}" for i in range(len(pieces)))],
        [str(len(pieces)), *pieces],
    )


def published(store: Store) -> list[bytes]:
    """The list that `publish` has put into the store, or will."""
    pieces = int(store.get("files/pieces"))
    text = b"".join(store.multi_get([f"files/{i}" for i in range(pieces)]))
    return text.split(b"\0") if text else []


# -- claims -----------------------------------------------------------------------------------------------------------


def _holder(rank: int, pid: int) -> bytes:
    return b"%d %d" % (rank, pid)  # the pid too: a rank that is started anew does not take its old claims for its own


def _finished(holder: bytes, counted: Tally) -> bytes:
    return holder + b": " + counted.packed()


def unfinished(store: Store, rank: int, pid: int) -> list[int]:
    """The files, by their place in the list, that this rank had claimed and not finished. For one that is dead."""
    found = []
    for key in store.list_keys():
        place, _, index = key.rpartition("/claim/")
        if place and store.get(key) == _holder(rank, pid):
            found.append(int(index))
    return sorted(found)


# -- a rank -----------------------------------------------------------------------------------------------------------


def live(plan: Plan, rank: int, pipe: Connection) -> None:
    """The life of one rank, in a process of its own; sends a Report, or a text that says what went wrong."""
    try:
        with (
            ShmStore(plan.name, rank=rank, create=False, timeout=plan.timeout_s) as store,
            ShmStore(plan.name, create=False, timeout=plan.timeout_s, watch_peers=True) as watching,
        ):
            result: Report | str
            try:
                result = _Rank(plan, rank, store, watching).work()
            except Exception as error:
                result = _fault(rank, error)
            _send(pipe, result)  # before it leaves: the others would see that, and call it the fault
    except Exception as error:
        _send(pipe, _fault(rank, error))


def _fault(rank: int, error: Exception) -> str:
    return f"rank {rank} (pid {os.getpid()}): {type(error).__name__}: {error}"


def _send(pipe: Connection, result: Report | str) -> None:
    try:
        pipe.send(result)
    except BrokenPipeError:
        pass  # the launcher was killed: nobody is left to be told


class _Rank:
    """One rank at work.

    Args:
        plan: the job.
        rank: which.
        store: registered as that rank.
        watching: another handle; its waits end with PeerDiedError when any rank is dead.
    """

    def __init__(self, plan: Plan, rank: int, store: ShmStore, watching: ShmStore) -> None:
        self.plan = plan
        self.rank = rank
        self.store = store
        self.watching = watching
        self.holder = _holder(rank, os.getpid())
        self.group = Group(store, rank, plan.nproc, plan.timeout_s)
        self.waited_s = dict.fromkeys(WAITS, 0.0)
        self.taken: list[tuple[int, int]] = []
        self.untold = 0  # files finished since the launcher was last told
        self.told_s = 0.0

    def work(self) -> Report:
        plan = self.plan
        files = published(self.store)
        while not self._meets("start"):
            pass
        begun_s = time.monotonic()
        own = Tally()
        everyone = (Tally(),) * plan.nproc
        for number in range(plan.rounds):
            slice_ = range(len(files) * number // plan.rounds, len(files) * (number + 1) // plan.rounds)
            mine, all_ = self._round(number, files, slice_)
            own += mine
            everyone = tuple(so_far + more for so_far, more in zip(everyone, all_, strict=True))
        return Report(
            self.rank,
            os.getpid(),
            own,
            everyone,
            self.waited_s,
            begun_s,
            time.monotonic(),
            tuple(self.group.noticed.values()),
            tuple(self.taken),
        )

    def _round(self, number: int, files: list[bytes], indices: range) -> tuple[Tally, list[Tally]]:
        """What this rank counted in the round, and what each rank did."""
        part = PrefixStore(f"round/{number}", self.store)
        doomed = self.rank == self.plan.kill and number == self.plan.rounds // 2
        mine = self._walk(part, files, indices, doomed=doomed)
        parts = self._exchange(number, mine)
        while not self._meets("barrier"):
            mine += self._walk(part, files, indices)
        if number > 0 and self.group.first:
            before = PrefixStore(f"round/{number - 1}", self.store)
            for key in before.list_keys():
                before.delete_key(key)
        return mine, parts or self._claimed(part, indices)

    def _walk(self, part: Store, files: list[bytes], indices: range, *, doomed: bool = False) -> Tally:
        """Claims and counts until every file is claimed by somebody not known dead; returns what this rank counted."""
        dead = {_holder(notice.rank, notice.pid): notice.rank for notice in self.group.noticed.values()}
        tally = Tally()
        start = len(indices) * self.rank // self.plan.nproc  # apart from the others, to meet claimed files late
        for index in (*indices[start:], *indices[:start]):
            claim = f"claim/{index}"
            there = part.compare_set(claim, b"", self.holder)
            if there in dead:
                victim = dead[there]
                there = part.compare_set(claim, there, self.holder)
            else:
                victim = None
            if there != self.holder:
                continue
            if doomed:
                os.kill(os.getpid(), signal.SIGKILL)
            counted = count(self.plan.root, [files[index]])
            finished = _finished(self.holder, counted)
            if part.compare_set(claim, self.holder, finished) == finished:
                tally += counted
                self._tell(1)
                if victim is not None:
                    self.taken.append((victim, index))
        if doomed:  # the others were quicker, and left it nothing to claim
            os.kill(os.getpid(), signal.SIGKILL)
        self._tell(0)
        return tally

    def _exchange(self, number: int, mine: Tally) -> list[Tally] | None:
        """The part of each rank; None: somebody has died."""
        if self.group.noticed:
            return None
        part = PrefixStore(f"round/{number}", self.watching)
        try:
            with self._waiting("exchange"):
                parts = elastic.synchronize(
                    part, mine.packed(), self.rank, self.plan.nproc, "part/", self.plan.timeout_s
                )
        except PeerDiedError:
            self.group.look("in the exchange")
            return None
        return list(map(Tally.unpacked, parts))

    def _claimed(self, part: Store, indices: range) -> list[Tally]:
        """What each rank counted in a round that is over, by the claims."""
        tallies = [Tally()] * self.plan.nproc
        for value in part.multi_get([f"claim/{index}" for index in indices]):
            holder, ended, counts = value.partition(b": ")
            if not ended:
                raise ValueError(f"a claim that is not finished, after the meeting: {value!r}")
            tallies[int(holder.split()[0])] += Tally.unpacked(counts)
        return tallies

    def _meets(self, what: str) -> bool:
        with self._waiting(what):
            return self.group.meet(f"at the {what}")

    def _tell(self, finished: int) -> None:
        """Tells the launcher how many files were finished: now and then, and with 0 at a round's end, at once."""
        self.untold += finished
        now_s = time.monotonic()
        if self.untold and (not finished or now_s - self.told_s > _TELL_S):
            self.store.queue_push(PROGRESS, str(self.untold))
            self.untold, self.told_s = 0, now_s

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        start_s = time.monotonic()
        try:
            yield
        finally:
            self.waited_s[what] += time.monotonic() - start_s
