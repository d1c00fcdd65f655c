"""The job of `shmstore demo`: ranks that share a store count the words, lines and bytes of a directory tree.

It stands for any job that cuts its work into pieces: pieces are claimed by key, partial results exchanged, and a
barrier ends each round. Round R is a slice of the list of files. In it a rank walks the slice from a place of its own,
claims each file that nobody has, counts it, and goes on until every file has been claimed; then `synchronize` gives all
ranks the partial counts of all, and they meet at a barrier. Nothing is sent to anybody and nobody is in charge.

The keys:

    files/pieces, files/I     the list of files, made once, by the launcher: the tree may change meanwhile
    progress                  a queue: how many files a rank has finished since it last said so; the launcher pops it
    start/...                 elastic.barrier, so that all begin together
    round/R/claim/I           who has file I, see below
    round/R/part/...          elastic.synchronize, the partial counts
    round/R/met               Store.barrier; after it rank 0 deletes all keys of round R

A claim:

    missing                   nobody's      -> held, by compare_set("", holder) of any rank
    "RANK PID"                held          -> finished, by compare_set(holder, holder: counts) of the holder
    "RANK PID: COUNTS"        finished      (stays until the round has passed)

A count is made under the claim and becomes part of the result in the one compare_set that ends the claim. So a rank may
be killed anywhere: what it had finished stands in its claims, what it had not is seen to be held by it. A survivor may
take such a claim by compare_set(dead holder, own holder), and of two only one gets it; a holder that was taken for dead
finds its own last compare_set refused and drops the count. No file is lost and none counts twice.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from multiprocessing.connection import Connection

from shmstore import PrefixStore, ShmStore, elastic
from shmstore.store import Store

__all__ = [
    "PROGRESS",
    "WAITS",
    "Plan",
    "Report",
    "Tally",
    "count",
    "list_files",
    "live",
    "publish",
    "published",
    "unfinished",
]

PROGRESS = "progress"
WAITS = ("start", "exchange", "barrier")  # what a rank waits for

_PIECE_BYTES = 4 << 20  # of the list, in one value: half of what a value may hold
_READ_BYTES = 1 << 20
_TELL_S = 0.05  # between two words of a rank about its progress


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted. A file that could not be read to its end counts as skipped, and as nothing else."""

    files: int = 0
    words: int = 0
    lines: int = 0
    size_bytes: int = 0
    skipped: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.files:,} files, {self.words:,} words, {self.lines:,} lines, {self.size_bytes:,} bytes"
            f" and {self.skipped:,} skipped"
        )

    def packed(self) -> bytes:
        """The tally as a value of the store."""
        return " ".join(map(str, astuple(self))).encode()

    @classmethod
    def unpacked(cls, value: bytes) -> Tally:
        """The tally that `packed` made the value of."""
        return cls(*map(int, value.split()))


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
    """What one rank counted itself, what all counted as it knows from them, and how long it waited for them."""

    rank: int
    pid: int
    own: Tally
    total: Tally
    waited_s: dict[str, float]  # for each of WAITS
    begun_s: float  # when all had come, and when the last barrier was passed: CLOCK_MONOTONIC, one for all processes
    ended_s: float


# -- files ------------------------------------------------------------------------------------------------------------


def list_files(root: bytes, leave_out: Collection[bytes] = ()) -> tuple[list[bytes], int]:
    """The regular files below a directory, sorted, relative to it; and how many directories could not be read.

    Symbolic links are not followed, so a loop of them is no loop here. Directories named in `leave_out` are left out.
    """
    files: list[bytes] = []
    unreadable = 0
    todo = [b""]
    while todo:
        folder = todo.pop()
        try:
            with os.scandir(root + b"/" + folder) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        files.append(folder + entry.name)
                    elif entry.is_dir(follow_symlinks=False) and entry.name not in leave_out:
                        todo.append(folder + entry.name + b"/")
        except OSError:
            unreadable += 1
    return sorted(files), unreadable


def count(root: bytes, files: Iterable[bytes]) -> Tally:
    """Counts all of the files, one after the other: what a single process does."""
    return sum((_count_file(root + b"/" + path) for path in files), Tally())


def _count_file(path: bytes) -> Tally:
    """Words are what whitespace separates, lines are newlines, both of the bytes: no encoding is assumed."""
    words = lines = size_bytes = 0
    in_word = False
    try:
        # NONBLOCK: what was listed as a file may be a pipe by now
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while piece := os.read(fd, _READ_BYTES):
                words += len(piece.split()) - (in_word and not piece[:1].isspace())  # a word cut in two is one
                lines += piece.count(b"\n")
                size_bytes += len(piece)
                in_word = not piece[-1:].isspace()
        finally:
            os.close(fd)
    except OSError:
        return Tally(skipped=1)
    return Tally(1, words, lines, size_bytes)


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
    result: Report | str
    try:
        with ShmStore(plan.name, rank=rank, create=False, timeout=plan.timeout_s) as store:
            result = _Rank(plan, rank, store).work()
    except Exception as error:
        result = f"rank {rank} (pid {os.getpid()}): {type(error).__name__}: {error}"
    try:
        pipe.send(result)
    except BrokenPipeError:
        pass  # the launcher was killed: nobody is left to be told


@dataclass(slots=True)
class _Rank:
    plan: Plan
    rank: int
    store: ShmStore
    waited_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WAITS, 0.0))
    untold: int = 0  # files finished since the launcher was last told
    told_s: float = 0.0

    def work(self) -> Report:
        plan = self.plan
        files = published(self.store)
        with self._waiting("start"):
            elastic.barrier(self.store, plan.nproc, "start", plan.timeout_s, self.rank)
        begun_s = time.monotonic()
        own = total = Tally()
        for number in range(plan.rounds):
            part = PrefixStore(f"round/{number}", self.store)
            first, last = (len(files) * n // plan.rounds for n in (number, number + 1))
            mine = self._count_slice(part, files, range(first, last), doomed=self._dies_in(number))
            with self._waiting("exchange"):
                parts = elastic.synchronize(part, mine.packed(), self.rank, plan.nproc, "part/", plan.timeout_s)
            with self._waiting("barrier"):
                part.barrier("met", plan.nproc)
            own += mine
            total = sum(map(Tally.unpacked, parts), total)
            if self.rank == 0:  # all have passed the barrier, so nobody looks at this round's keys any more
                for key in part.list_keys():
                    part.delete_key(key)
        return Report(self.rank, os.getpid(), own, total, self.waited_s, begun_s, time.monotonic())

    def _count_slice(self, part: Store, files: list[bytes], indices: range, *, doomed: bool) -> Tally:
        """Claims and counts until every file of the slice has been claimed; returns what this rank counted."""
        holder = _holder(self.rank, os.getpid())
        tally = Tally()
        start = len(indices) * self.rank // self.plan.nproc  # apart from the others, to meet claimed files late
        for index in (*indices[start:], *indices[:start]):
            claim = f"claim/{index}"
            if part.compare_set(claim, b"", holder) != holder:
                continue
            if doomed:
                os.kill(os.getpid(), signal.SIGKILL)
            counted = count(self.plan.root, [files[index]])
            finished = holder + b": " + counted.packed()
            if part.compare_set(claim, holder, finished) == finished:
                tally += counted
                self._tell(1)
        if doomed:  # the others were quicker, and left it nothing to claim
            os.kill(os.getpid(), signal.SIGKILL)
        self._tell(0)
        return tally

    def _dies_in(self, number: int) -> bool:
        return self.rank == self.plan.kill and number == self.plan.rounds // 2

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
        yield
        self.waited_s[what] += time.monotonic() - start_s
