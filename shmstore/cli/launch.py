"""The processes of `shmstore demo`: started, listened to, ended.

A rank's report comes through a pipe of its own and not through the store that the demo shows: a pipe also says that its
rank is dead. The launcher keeps that to itself. It goes on while one rank lives; only where the ranks cannot learn of
an end from the store (the process had not joined yet, or left without a report) it stops them all.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import TYPE_CHECKING

from shmstore import ShmStore
from shmstore.cli import count
from shmstore.cli.count import Plan, Report

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Death", "Outcome", "Ranks"]


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a rank that had joined the others and sent no report."""

    rank: int
    pid: int
    how: str
    seen_s: float  # CLOCK_MONOTONIC when the launcher had seen that the rank's pipe ended, as its process did


@dataclass(slots=True)
class Outcome:
    """What became of all ranks. With a fault the rest has been stopped."""

    reports: list[Report] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Ranks:
    """Starts a process a rank on entry; when the block ends, none of them is left."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ranks: dict[Connection, tuple[int, SpawnProcess]] = {}
        self._reported: set[int] = set()

    def __enter__(self) -> Self:
        try:
            with _no_interrupt():
                for rank in range(self._plan.nproc):
                    self._start(rank)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def collect(self, store: ShmStore) -> Outcome:
        """Waits until each rank has reported or died, or for the first fault; reports come in rank order."""
        outcome = Outcome()
        pending = set(self._ranks)
        while pending and not outcome.faults:
            for pipe in wait(list(pending)):
                seen_s = time.monotonic()
                assert isinstance(pipe, Connection)
                pending.discard(pipe)
                rank, process = self._ranks[pipe]
                result = _receive(pipe)
                if isinstance(result, Report):
                    self._reported.add(rank)
                    outcome.reports.append(result)
                elif isinstance(result, str):
                    outcome.faults.append(result)
                else:
                    process.join()
                    _judge(store, Death(rank, process.pid or 0, _how(process), seen_s), outcome)
        if not outcome.reports and not outcome.faults:
            outcome.faults.append("no rank is left to finish the work")
        outcome.reports.sort(key=lambda report: report.rank)
        return outcome

    def _start(self, rank: int) -> None:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=count.live, args=(self._plan, rank, theirs), name=f"rank {rank}", daemon=True)
        try:
            process.start()
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()  # the rank holds the only end: its death is an end of file here
        self._ranks[mine] = (rank, process)

    def _end(self) -> None:
        for pipe, (rank, process) in self._ranks.items():
            if rank not in self._reported:
                process.kill()  # the store survives that; also ends a process that is stopped
            process.join()
            pipe.close()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes started in here never see Ctrl-C, which is the launcher's to answer; one that comes meanwhile waits."""
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and unblocks SIGINT then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive(pipe: Connection) -> Report | str | None:
    """What the rank sent; None: it ended, maybe in the middle of its report."""
    try:
        result = pipe.recv()
    except (EOFError, OSError):
        return None
    assert isinstance(result, (Report, str))
    return result


def _how(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _judge(store: ShmStore, death: Death, outcome: Outcome) -> None:
    """A death that the ranks can see is theirs to survive."""
    state = next((peer.state for peer in store.peers() if peer.rank == death.rank), None)
    if state == "dead":
        outcome.deaths.append(death)
        return
    when = "before it joined the others" if state is None else "without a report"
    outcome.faults.append(
        f"rank {death.rank} (pid {death.pid}) ended {when}: {death.how}; the other ranks were stopped"
    )
