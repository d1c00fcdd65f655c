"""The bare limits as rivals: the barrier and the cache line in C, and the empty call through cffi."""

from __future__ import annotations

import subprocess
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.limit import build
from bench.records import Case, Sample, Session
from bench.rivals.base import Place, ProgramRival, Run, StoreRival

__all__ = ["HOGS", "PARKS", "SKEW", "WAY", "EmptyCall", "FutexBarrier", "PingPong"]

SKEW = "skew_us"
"""The parameter of a barrier's case that says over how many µs its arrivals spread."""
WAY = "way"
"""The parameter that says which barrier; PARKS is the way of one that neither spins nor yields."""
PARKS = "Barrier, parking only"
HOGS = "hogs"
"""The parameter of a case beside CPU hogs."""

_ALL = ("set", "get", "add", "check", "holds", "elastic", "barrier", "attach", "memory")


class _Limit(ProgramRival):
    """A program of limit/, started for each sample."""

    def missing(self) -> str | None:
        """No compiler."""
        return build.cannot_compile()

    @contextmanager
    def started(self, session: Session, cpus: Sequence[int], directory: Path) -> Iterator[Run]:
        """Nothing runs in between."""
        del directory
        yield lambda case, count: _timed([*self.command(case, session.processes, count), *cpus])

    @abstractmethod
    def command(self, case: Case, processes: int, count: int) -> list[Any]:
        """What is run; the cores come last."""


class FutexBarrier(_Limit):
    """A count and a sense word in shared memory: limit/barrier.c, which can do without yields."""

    name = "limit: futex barrier (C)"
    lacks = dict.fromkeys(_ALL, "is a barrier and no store")
    first = 10

    def command(self, case: Case, processes: int, count: int) -> list[Any]:
        """`count` barriers."""
        how = "park" if case.params.get(WAY) == PARKS else "yield"
        return [build.program("barrier"), processes, count, case.params.get(SKEW, 0), how]


class PingPong(_Limit):
    """A cache line between two processes, there and back: limit/pingpong.c."""

    name = "limit: cache line, there and back (C)"
    lacks = dict.fromkeys((*_ALL, "parks"), "is a cache line that goes there and back")
    first = 1000

    def cannot(self, case: Case, processes: int) -> str | None:
        """Two sides, no skew, and nobody else on its cores."""
        if processes != 2 or case.params.get(SKEW) or HOGS in case.params:
            return "has two sides, which play without a pause"
        return super().cannot(case, processes)

    def command(self, case: Case, processes: int, count: int) -> list[Any]:
        """`count` round trips."""
        del case, processes
        return [build.program("pingpong"), count]


def _timed(command: list[Any]) -> Sample:
    done = subprocess.run(  # noqa: S603 -- compiled from our own source
        [str(word) for word in command], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
    one_ns, took_ns = map(float, done.stdout.split())
    return Sample(one_ns / 1e9, took_ns / 1e9)


class _Nothing:
    """A store whose every verb is a Python method that makes one empty call."""

    def __init__(self, nothing: Any) -> None:
        self._nothing = nothing

    def set(self, key: str, value: bytes) -> None:  # noqa: ARG002 -- a store's signatures, and nothing behind them
        """Nothing."""
        self._nothing()

    def get(self, key: str) -> None:  # noqa: ARG002
        """Nothing."""
        self._nothing()

    def add(self, key: str, n: int) -> None:  # noqa: ARG002
        """Nothing."""
        self._nothing()

    def check(self, keys: Sequence[str]) -> None:  # noqa: ARG002
        """Nothing."""
        self._nothing()


class EmptyCall(StoreRival):
    """A method that calls an empty C function by cffi (API mode), which gives the GIL up around the call."""

    name = "limit: empty cffi call"
    lacks = dict.fromkeys(
        ("holds", "elastic", "barrier", "reusable", "parks", "processes", "attach", "memory"),
        "is no store: it does nothing",
    )
    modules = ("cffi",)

    def missing(self) -> str | None:
        """No cffi, or no compiler."""
        return super().missing() or build.cannot_compile()

    def inherit(self, place: Place) -> Any:
        """The compiled module, once for all processes."""
        del place
        return build.empty_module().nothing

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> _Nothing:
        """The empty methods."""
        del address, rank, world
        return _Nothing(inherited)
