"""The start of gloo process groups, and what its times come to: what forked processes do, and who of them counts.

All of a sample's processes are new ones: forked where torch is imported and no thread is there yet, held at the gate of
a team, ended when the sample is taken. So what is timed is the first group of each process, as in a job, and nothing is
left of the sample before: no store, no connection, no thread. Before the gate each gets memory of its own (`pages`), as
the processes of a job have it, which import torch by themselves.

A job is up when each of its processes is back from init_process_group and, as is asked afterwards, has no others in its
group than its own job's. Who meets at another job's store may well come back, and is in the wrong group then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import Final

from bench.clock import clock_ns
from bench.pages import make_own
from bench.records import Sample, Timing
from bench.team import Gate, Team

__all__ = ["LOOKUPS", "Meeting", "Start", "failed", "start_all", "until_up"]

BEGIN, MEET, LEAVE = "begin", "meet", "leave"
PATIENCE = 10
"""A start that fails takes longer than the group's timeout: it has several steps, and gloo tries a connection again,
each time for as long. After so many timeouts a process hangs."""
LOOKUPS: Final = {"GLOO_SOCKET_IFNAME": "lo", "RES_OPTIONS": "timeout:1 attempts:1"}
"""As little of a name server as can be: gloo would look up the host's name to find its interface. A TCPStore server
does look up who connects; where an answer is lost, it waits a second in place of the usual five or ten."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the processes of one job meet: init_process_group's init_method, and the environment it looks into."""

    init_method: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """What came of one job: when each of its processes began and was back, or why the job is not up."""

    timings: tuple[Timing, ...] = ()
    why: str = ""


def start_all(jobs: Sequence[Meeting], each: int, limit_s: float, cpus: Sequence[set[int]]) -> list[Start]:
    """Starts all jobs at once, in processes of their own, and ends them; process i of job j is on cpus[j * each + i].

    Args:
        jobs: where each meets.
        each: processes of a job.
        limit_s: the timeout of each group, in seconds; a job that comes to nothing ends after a few of them.
        cpus: the cores of each process.

    Raises:
        TeamLostError: a process died, or hangs in spite of its timeout.
    """
    limit = timedelta(seconds=limit_s)

    def make(rank: int) -> Callable[[str, Gate], object]:
        return _Process(jobs[rank // each], rank // each, rank % each, each, limit).handle

    with Team(len(jobs) * each, cpus, make, patience_s=PATIENCE * limit_s) as team:
        begun = team.race(BEGIN)
        met = team.ask(MEET)
        team.ask(LEAVE)
    starts = []
    for first in range(0, len(begun), each):
        some = begun[first : first + each]
        why = next(filter(None, [*(one for one in some if isinstance(one, str)), *met[first : first + each]]), "")
        starts.append(Start(why=why) if why else Start(tuple(some)))
    return starts


def until_up(starts: Sequence[Start]) -> Sample:
    """From the gate until the last process of all jobs that are up is back.

    Raises:
        RuntimeError: there is none; with why the first is not.
    """
    timings = [timing for start in starts for timing in start.timings]
    if not timings:
        raise RuntimeError(f"no job came up: {starts[0].why}")
    took_s = (max(each.leave[0] for each in timings) - min(each.enter[0] for each in timings)) / 1e9
    return Sample(took_s, took_s)


def failed(starts: Sequence[Start]) -> Sample:
    """How many jobs are not up."""
    return Sample(sum(bool(start.why) for start in starts), 0.0)


class _Process:
    """One process of a job; a failure of its group is an answer, and nobody waits for it."""

    def __init__(self, meeting: Meeting, job: int, rank: int, world: int, limit: timedelta) -> None:
        self._meeting = meeting
        self._job = job
        self._rank = rank
        self._world = world
        self._limit = limit
        self._why = ""

    def handle(self, message: str, gate: Gate) -> object:
        """A Timing, or why there is none; then whether the group is the right one: "" or why not."""
        if message == BEGIN:
            return self._begin(gate)
        if message == MEET:
            return self._why or self._meet()
        if not self._why:
            import_module("torch.distributed").destroy_process_group()
        return None

    def _begin(self, gate: Gate) -> Timing | str:
        os.environ.update({**LOOKUPS, **self._meeting.environment})
        begin = import_module("torch.distributed").init_process_group
        make_own()
        gate()
        enter = clock_ns()
        try:
            begin(
                "gloo",
                init_method=self._meeting.init_method,
                rank=self._rank,
                world_size=self._world,
                timeout=self._limit,
            )
        except Exception as error:
            self._why = _line(error)
            return self._why
        return Timing((enter,), (clock_ns(),))

    def _meet(self) -> str:
        """Asks everybody in the group which job he is of."""
        torch, dist = import_module("torch"), import_module("torch.distributed")
        found = [torch.full((1,), -1) for _ in range(self._world)]
        try:
            dist.all_gather(found, torch.full((1,), self._job))
        except Exception as error:
            self._why = f"the group is of no use: {_line(error)}"
            return self._why
        others = sorted({int(each) for each in found} - {self._job})
        if others:
            self._why = f"joined job {others[0]} in place of its own"
        return self._why


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no word of why'])[0]}"
