"""The verbs under several processes at once: each on keys of its own, and all on one."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records import Case, Session, Timing
from bench.scenarios.base import Client, Effort, Job, Scenario
from bench.scenarios.verbs import LOOPS, NEEDS, SEEN, VALUE, fill_if_able, keys_of

__all__ = ["Hot", "Processes"]

KEYS = 1000


def _worlds(effort: Effort) -> Sequence[int]:
    return (2,) if effort.quick else (2, 4, 8)


class Processes(Scenario):
    """Strangers' keys: what they share is the store."""

    name = "processes"
    text = (
        f"P processes, each on {KEYS} keys of its own, 32-byte values; process i on core i modulo the cores, servers "
        "anywhere. Time by operations of all processes together."
    )
    axis = "processes"

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """A session for each number of processes."""
        return [
            Session(
                self.name,
                world,
                tuple(
                    Case(verb, {"processes": world}, (*NEEDS[verb], "processes"))
                    for verb in (SEEN, "get", "add", "check")
                ),
                effort.rounds,
                effort.target_s,
            )
            for world in _worlds(effort)
        ]

    def prepare(self, case: Case, client: Client, rank: int, world: int) -> None:
        """Sets this process's keys."""
        del world
        client.notes[case.measure] = keys = keys_of(f"own/{rank}", KEYS)
        if case.measure != "add":
            fill_if_able(client.store, keys)

    def work(self, client: Client, job: Job) -> Timing:
        """The verb's loop."""
        return LOOPS[job.case.measure](client.store, client.notes[job.case.measure], VALUE, job)


class Hot(Scenario):
    """Everybody's key: all contend for the same lock and cache lines."""

    name = "hot"
    text = (
        "P processes on one and the same key, a 32-byte value or a counter; process i on core i modulo the cores, "
        "servers anywhere. Time by operations of all processes together."
    )
    axis = "processes"

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """A session for each number of processes."""
        return [
            Session(
                self.name,
                world,
                tuple(Case(verb, {"processes": world}, (*NEEDS[verb], "processes")) for verb in ("add", "get", SEEN)),
                effort.rounds,
                effort.target_s,
            )
            for world in _worlds(effort)
        ]

    def prepare(self, case: Case, client: Client, rank: int, world: int) -> None:
        """Sets the key."""
        del world
        if rank == 0 and case.measure != "add":
            fill_if_able(client.store, keys_of("hot", 1))

    def work(self, client: Client, job: Job) -> Timing:
        """The verb's loop."""
        return LOOPS[job.case.measure](client.store, keys_of("hot", 1), VALUE, job)
