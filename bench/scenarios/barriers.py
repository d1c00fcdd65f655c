"""Barriers of P processes: torchelastic's and the store's own, back to back and with arrivals spread over 2 ms.

Back to back, everybody comes at once and the figure is how often they can meet. Spread, everybody but the last is
asleep by the time it comes, as after a step of real work, and the figure is how long it takes from the last arrival
until all are on their way. Every barrier has a key of its own; those rivals whose barrier serves again have none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from bench.records import Case, Sample, Session, Timing
from bench.rivals.limits import SKEW
from bench.scenarios.base import Client, Effort, Job, Scenario, clock_ns, span_s
from shmstore import elastic

__all__ = ["Barriers", "meetings", "result"]

SKEW_US = 2000
MOST = 5000
TIMES = 2
"""A sample takes so many times as long as elsewhere: with a spread of 2 ms it would be of a few barriers only."""


class Barriers(Scenario):
    """`elastic.barrier` on every store that can wait for a key, and whatever barrier a rival has of its own."""

    name = "barriers"
    text = (
        "P processes, process i on core i modulo the cores, servers anywhere; a fresh key each time. "
        "elastic: shmstore.elastic.barrier, torchelastic's operations on any store. own: Store.barrier, or a rival's. "
        "back to back: time of one. skewed: arrivals spread over 2 ms; from the last arrival to the last departure."
    )
    axis = "processes"

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """A session for each number of processes."""
        return [
            Session(
                self.name,
                world,
                tuple(
                    Case(
                        f"{kind}, {'skewed' if skew_us else 'back to back'}",
                        {"processes": world, SKEW: skew_us},
                        ("elastic" if kind == "elastic" else "barrier", "processes"),
                        most=MOST,
                    )
                    for kind in ("elastic", "own")
                    for skew_us in (0, SKEW_US)
                ),
                effort.rounds,
                effort.target_s * TIMES,
            )
            for world in ((2, 4) if effort.quick else (2, 4, 8, 16))
        ]

    def work(self, client: Client, job: Job) -> Timing:
        """Meets job.count times, at fresh keys."""
        store, world = client.store, job.world
        keys = [f"bench/{job.fresh}/{i}" for i in range(job.count)]
        meet: Callable[[str], object]
        if job.case.measure.startswith("elastic"):
            meet = lambda key: elastic.barrier(store, world, key)  # noqa: E731 -- as cheap as a call can be
        else:
            barrier = store.barrier
            meet = lambda key: barrier(key, world)  # noqa: E731
        skew_us = int(job.case.params[SKEW])
        job.gate()
        timing = meetings(meet, keys, skew_us, job.rank, world)
        return Timing(timing.enter, timing.leave, skew_us)

    def sample(self, count: int, timings: Sequence[Timing]) -> Sample:
        """See `result`; the skew comes with the timings."""
        del count
        return result(timings, int(timings[0].value or 0))


def meetings(meet: Callable[[str], object], keys: Sequence[str], skew_us: int, rank: int, world: int) -> Timing:
    """Meets once for each key; with a skew, sleeps before each, by turns up to skew_us."""
    enter, leave = [], []
    for i, key in enumerate(keys):
        if skew_us and world > 1:
            time.sleep(skew_us / 1e6 * ((rank + i) % world) / (world - 1))
        enter.append(clock_ns())
        meet(key)
        leave.append(clock_ns())
    return Timing(tuple(enter), tuple(leave))


def result(timings: Sequence[Timing], skew_us: int) -> Sample:
    """Of all ranks' times: a barrier's share of all of it; with a skew, the median from last arrival to last leave."""
    took_s = span_s(timings)
    count = len(timings[0].enter)
    if not skew_us:
        return Sample(took_s / count, took_s)
    opened_ns = [max(t.leave[i] for t in timings) - max(t.enter[i] for t in timings) for i in range(count)]
    return Sample(statistics.median(opened_ns) / 1e9, took_s)
