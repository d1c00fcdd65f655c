"""The start of gloo process groups: of one job, and of many jobs on one host at the same moment.

Of one job the figure is how long it takes. Of many it is first of all whether they come up: jobs that are told the same
port get into each other's way, and a port that was free when it was picked may be gone when it is bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.records import Aim, Bound, Case, Session, Timing
from bench.rivals.groups import FAILED, JOBS, LIMIT, UP, Group
from bench.scenarios.base import Client, Effort, Job, Scenario

__all__ = ["Groups", "Jobs"]

OURS: Final = Group("shm").name
THEIRS: Final = Group("env").name
PICKED: Final = Group("picked").name
UP_BEFORE: Final = Group("agent").name

WORLDS: Final = (8, 16)
TIMES = 3
"""So many times as many rounds as elsewhere: a sample is one start, of a few dozen milliseconds."""
MOST_TIME = 1.1

MANY, FEW = 20, 4
EACH = 2
"""Processes of a job: the fewest that have to meet. What is asked for is how jobs get on with each other."""
LIMIT_S, QUICK_LIMIT_S = 5, 2
"""Many times what a start takes that comes to something, and no more: those that fail wait for it, several times."""


class Groups(Scenario):
    """One job."""

    name = "group"
    kind = "group"
    text = (
        "P new processes that have imported torch, and shmstore.torch, make a gloo process group by "
        "init_process_group; anywhere. From the start of all until the last is back. env://: rank 0 hosts a TCPStore, "
        "or joins with the others one that is up before; shm://: a new segment; file://: a new FileStore on tmpfs."
    )
    axis = "processes"
    reference = THEIRS

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """A session for each number of processes."""
        return [
            Session(self.name, world, (_group(world),), effort.rounds * TIMES, effort.target_s, pin="free")
            for world in _worlds(effort)
        ]

    def aims(self, effort: Effort) -> Sequence[Aim]:
        """shm:// against env://, at each number of processes; without an aim also where the server is up before."""
        found = []
        for theirs, at_most in ((THEIRS, MOST_TIME), (UP_BEFORE, 0.0)):
            for world in _worlds(effort):
                case = _group(world)
                of, to = ((rival, case.measure, case.params) for rival in (OURS, theirs))
                found.append(Aim(self.name, f"{OURS} over {theirs}", f"{world} processes", 0.0, of, to, at_most))
        return found

    def work(self, client: Client, job: Job) -> Timing:
        """Never called: all rivals of the kind time themselves."""
        raise NotImplementedError


class Jobs(Scenario):
    """Many jobs."""

    name = "jobs"
    kind = "group"
    text = (
        f"Jobs of {EACH} processes each, all started at once; each makes a gloo process group, anywhere. failed jobs: "
        "those of which a process came back with an error, or in a group with another job. until the last is up: from "
        "the start until the last process of the jobs that did not fail is back. env://: one port for all jobs; one "
        "each, picked free before; a server each, up before. shm://, file://: a new name each."
    )
    reference = PICKED

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """One session, of few rounds: jobs that fail take half a minute."""
        rounds = max(3, effort.rounds // 2)
        return [Session(self.name, _many(effort) * EACH, _jobs(effort), rounds, effort.target_s, pin="free")]

    def bounds(self, effort: Effort) -> Sequence[Bound]:
        """No job of ours fails."""
        failed = _jobs(effort)[0]
        label = f"{OURS}, {failed.measure} of {_many(effort)}"
        return [Bound(self.name, label, (OURS, failed.measure, failed.params), 0.0)]

    def work(self, client: Client, job: Job) -> Timing:
        """Never called: all rivals of the kind time themselves."""
        raise NotImplementedError


def _worlds(effort: Effort) -> Sequence[int]:
    return WORLDS[:1] if effort.quick else WORLDS


def _group(world: int) -> Case:
    return Case("group", {"processes": world}, ("alone",), most=1)


def _many(effort: Effort) -> int:
    return FEW if effort.quick else MANY


def _jobs(effort: Effort) -> tuple[Case, ...]:
    jobs, limit_s = _many(effort), QUICK_LIMIT_S if effort.quick else LIMIT_S
    params = {JOBS: jobs, "processes": jobs * EACH, LIMIT: limit_s}
    return (Case(FAILED, params, (), fixed=1, unit="n"), Case(UP, params, (), fixed=1))
