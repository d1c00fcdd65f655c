"""What is timed beside what: the two kinds of rivals, and what one has to say about itself.

A `StoreRival` is a store, or a part of one, that Python processes open. The harness times the methods of what `open`
returns, without anything in between, so an adapter is as thin as it can be and its cost is the rival's: whoever uses
that rival has to write it too. A `ProgramRival` is a program that times itself: the bare limits in C, a job under
mpirun.

What a rival can do is said in these words, which a case `needs`:

    set get add check        the verbs, with str keys and bytes values; check takes a list of keys
    elastic                  add, set, wait, timeout and set_timeout: what shmstore.elastic.barrier calls on a store
    barrier                  barrier(key, world_size): a key serves once
    reusable                 `meeting`, or a program: a barrier that serves again and again
    parks                    one that neither spins nor yields
    holds                    what was set is there, in any number and size
    processes                several processes reach the same store
    wait                     wait(keys), until all are there
    local                    `local`: the same keys without the wire
    attach                   opening a store that is already there, more than once in a process
    memory                   what it keeps can be told from what else its processes hold
    alone                    a process group of one job, and no other job beside it

`lacks` says why not for what is known beforehand. A verb that the opened store has no method for is found out, and so
is a store that other processes do not see.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from bench.records import Case, Sample, Session

__all__ = ["METHODS", "Meeting", "Place", "ProgramRival", "Rival", "Run", "StoreRival", "absent"]

METHODS: Mapping[str, tuple[str, ...]] = {
    "set": ("set",),
    "get": ("get",),
    "add": ("add",),
    "check": ("check",),
    "wait": ("wait",),
    "elastic": ("add", "set", "wait", "timeout", "set_timeout"),
    "barrier": ("barrier",),
}
"""The methods that a word stands for."""
Meeting = Callable[[], object]
"""Arrives at a barrier and returns when all have."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rival may put a store.

    Attributes:
        token: letters, digits and dashes, of this store only: a name for it.
        directory: an empty directory of its own, on a tmpfs where there is one.
        processes: how many will open it.
        capacity: bytes that it should be able to hold, or 0 for its own default.
    """

    token: str
    directory: Path
    processes: int
    capacity: int = 0


Run = Callable[[Case, int], Sample]
"""Takes a sample of so many operations."""


class Rival(ABC):
    """Something to time. Instances travel to other processes by pickle, and hold plain values only.

    Attributes:
        name: what tables call it.
        lacks: word -> why it cannot do that.
        first: the first guess of how many operations make a sample; for what is slow to start.
        kind: it takes part in the scenarios of that kind.
    """

    name: str
    lacks: Mapping[str, str] = MappingProxyType({})
    first: ClassVar[int] = 1
    kind: ClassVar[Literal["store", "wire", "group"]] = "store"

    def missing(self) -> str | None:
        """Why it cannot be had on this machine at all, or None. Starts and imports nothing."""
        return None

    def cannot(self, case: Case, processes: int) -> str | None:
        """Why it has no part in this case, as far as that is known beforehand."""
        words = (*case.needs, "processes") if processes > 1 else case.needs
        return next((self.lacks[word] for word in words if word in self.lacks), None)


class StoreRival(Rival):
    """A store that Python processes open.

    Attributes:
        modules: imported before the processes are forked, so that they share what that costs.
    """

    modules: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """Names the first of its modules that is not installed."""
        return next(filter(None, map(absent, self.modules)), None)

    def cannot(self, case: Case, processes: int) -> str | None:
        """Also for want of a `meeting`."""
        if {"reusable", "parks"} & set(case.needs) and type(self).meeting is StoreRival.meeting:
            return "has no barrier that serves again"
        return super().cannot(case, processes)

    def inherit(self, place: Place) -> Any:
        """Makes what forked processes inherit; called before the fork, and must start no thread."""
        del place

    @contextmanager
    def host(self, place: Place, inherited: Any) -> Iterator[Any]:
        """Keeps the store up for the length of a `with` block; gives its address, which travels by pickle.

        Called after the fork. Threads and processes that it starts run where the session's servers run.
        """
        del place, inherited
        yield None

    @abstractmethod
    def open(self, address: Any, inherited: Any, rank: int, world: int) -> Any:
        """Opens the store in one of the `world` processes."""

    def meeting(self, store: Any, rank: int, world: int, *, parks: bool) -> Meeting:
        """A barrier of all `world` processes that serves again and again, for the one that opened `store` as `rank`.

        With `parks` one whose waits park at once, without a spin or a yield before.
        """
        del store, rank, world, parks
        raise NotImplementedError("has no barrier that serves again")

    def local(self, address: Any) -> Any:
        """A store with the same keys that goes without the wire."""
        del address
        raise NotImplementedError("has no other way to its keys")

    def close(self, store: Any) -> None:
        """Closes what `open` returned."""
        close = getattr(store, "close", None)
        if close is not None:
            close()

    def files(self, address: Any) -> Sequence[Path]:
        """The files on tmpfs that hold what is in the store; memory of its processes is counted without being told."""
        del address
        return ()


class ProgramRival(Rival):
    """A program that times itself."""

    @abstractmethod
    def started(self, session: Session, cpus: Sequence[int], directory: Path) -> AbstractContextManager[Run]:
        """Gives what takes the samples of a session, for the length of a `with` block.

        Args:
            session: what is run.
            cpus: process i runs on cpus[i % len(cpus)].
            directory: a directory for its files, whose name is the session's token: what has that in its name, and is
                left in /dev/shm, is removed after the session.
        """


def absent(module: str) -> str | None:
    """Why the module cannot be imported, or None. Only the module's parents are imported to find out."""
    top = module.partition(".")[0]
    return None if importlib.util.find_spec(top) else f"the Python package {top} is not installed"
