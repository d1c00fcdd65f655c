"""Barriers of P processes: the reusable one, torchelastic's and the store's own, and those that others have.

Back to back, everybody comes at once and the figure is how often they can meet. Skewed, everybody but the last is
asleep by the time it comes, as after a step of real work, and the figure is how long it takes from the last arrival
until all are on their way. Beside hogs, back to back again, whoever offers its core to others may have it back
milliseconds later. The hogs have sessions of their own: barriers remember that yields were slow, and would take that
with them to where there is no hog.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from bench.meetings import again, at_keys, result, warm
from bench.records import Aim, Case, Sample, Session, Timing
from bench.rivals.limits import HOGS, PARKS, SKEW, WAY, FutexBarrier
from bench.rivals.ours import Named
from bench.rivals.standard import MpBarrier
from bench.scenarios.base import Client, Effort, Job, Scenario
from shmstore import elastic

__all__ = ["Barriers"]

AGAIN, ELASTIC, OWN = "Barrier", "elastic", "Store.barrier"
NEEDS: Final = {AGAIN: "reusable", ELASTIC: "elastic", OWN: "barrier", PARKS: "parks"}
BACK_TO_BACK, SKEWED, BESIDE_HOGS = "back to back", "skewed", "beside hogs"
PATTERNS: Final[Mapping[str, Mapping[str, int | str]]] = {
    BACK_TO_BACK: {SKEW: 0},
    SKEWED: {SKEW: 2000},
    BESIDE_HOGS: {SKEW: 0, HOGS: "one a core"},
}
WORLDS = (2, 4, 8, 16, 32, 64)
MOST = 1_000_000
MOST_KEYS = 5000
"""A key stays in its store, and so does what waiting for it took."""
TIMES = 2
"""A sample takes so many times as long as elsewhere: with a skew of 2 ms it would be of a few barriers only."""
TIMES_BESIDE_HOGS = 5
"""A hog has a core for milliseconds at a time. Fewer rounds make up for it."""
OF_THE_LIMIT: Final = {4: 0.35, 8: 0.35, 16: 0.3, 32: 0.3, 64: 0.3}
OF_MULTIPROCESSING = 10.0
OF_PARKING = 0.5
"""With yields beside hogs, against the same barrier without: what the yields cost where they cannot help."""


class Barriers(Scenario):
    """`Barrier`, `elastic.barrier` and `Store.barrier` on every store that can, and whatever barrier a rival has."""

    name = "barriers"
    text = (
        "P processes, process i on core i modulo the cores, servers anywhere. Barrier: one that serves again, "
        "ours with ranks and death checks, or a rival's; parking only: without spins and yields. elastic: "
        "shmstore.elastic.barrier, torchelastic's operations on any store; Store.barrier: the store's own; both with a "
        "fresh key each time. back to back: time of one. skewed: arrivals spread over 2 ms; from the last arrival to "
        "the last departure. beside hogs: back to back, with a process on each core that only computes."
    )
    axis = "processes"
    beside = WAY

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """For each number of processes a session without hogs and one with them."""
        found = []
        for world in _worlds(effort):
            calm = tuple(_case(way, pattern, world) for pattern in (BACK_TO_BACK, SKEWED) for way in NEEDS)
            hogged = tuple(_case(way, BESIDE_HOGS, world) for way in NEEDS)
            found.append(Session(self.name, world, calm, effort.rounds, effort.target_s * TIMES))
            rounds, target_s = max(3, effort.rounds * 2 // 3), effort.target_s * TIMES_BESIDE_HOGS
            found.append(Session(self.name, world, hogged, rounds, target_s, hogs=True))
        return found

    def aims(self, effort: Effort) -> Sequence[Aim]:
        """What the reusable barrier, from Python and with death checks, was to reach; see docs/bench.md."""
        ours, limit, theirs = Named("futex").name, FutexBarrier.name, MpBarrier.name
        found = []
        for pattern, against, way, least in (
            (BACK_TO_BACK, limit, AGAIN, OF_THE_LIMIT),
            (BACK_TO_BACK, theirs, AGAIN, dict.fromkeys(WORLDS, OF_MULTIPROCESSING)),
            (BESIDE_HOGS, ours, PARKS, dict.fromkeys(WORLDS, OF_PARKING)),
            (BESIDE_HOGS, limit, PARKS, dict.fromkeys(WORLDS, 0.0)),
        ):
            label = f"{pattern}: {ours}: {AGAIN} over {against}{'' if against == theirs else f': {way}'}"
            for world in (each for each in _worlds(effort) if each in least):
                of, to = (_case(each, pattern, world) for each in (AGAIN, way))
                rows = (ours, of.measure, of.params), (against, to.measure, to.params)
                found.append(Aim(self.name, label, f"{world} processes", least[world], *rows))
        return found

    def prepare(self, case: Case, client: Client, rank: int, world: int) -> None:
        """Makes the barrier that serves again and again."""
        del rank, world
        way = case.params[WAY]
        if way in (AGAIN, PARKS) and way not in client.notes:
            client.notes[str(way)] = client.meeting(parks=way == PARKS)

    def work(self, client: Client, job: Job) -> Timing:
        """Meets job.count times, after a warm-up."""
        way, skew_us = str(job.case.params[WAY]), int(job.case.params[SKEW])
        if way in client.notes:
            job.gate()
            timing = again(client.notes[way], job.count, skew_us, job.rank, job.world)
        else:
            keys = [f"bench/{job.fresh}/{i}" for i in range(warm(job.count) + job.count)]
            meet = _at_key(way, client.store, job.world)
            job.gate()
            timing = at_keys(meet, keys, job.count, skew_us, job.rank, job.world)
        return Timing(timing.enter, timing.leave, skew_us)

    def sample(self, count: int, timings: Sequence[Timing]) -> Sample:
        """See `result`; the skew comes with the timings."""
        return result(timings, count, int(timings[0].value or 0))


def _worlds(effort: Effort) -> Sequence[int]:
    return WORLDS[:2] if effort.quick else WORLDS


def _case(way: str, pattern: str, world: int) -> Case:
    params = {"processes": world, WAY: way, **PATTERNS[pattern]}
    return Case(pattern, params, (NEEDS[way], "processes"), most=MOST_KEYS if way in (ELASTIC, OWN) else MOST)


def _at_key(way: str, store: Any, world: int) -> Callable[[str], object]:
    """What meets once at a key."""
    if way == ELASTIC:
        return partial(elastic.barrier, store, world)
    barrier = store.barrier
    return lambda key: barrier(key, world)
