"""How long it takes a process to open a store that is there, up to its first answer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.records import Case, Sample, Session, Timing
from bench.scenarios.base import Client, Effort, Job, Scenario, clock_ns

__all__ = ["Attach"]

MOST = 20


class Attach(Scenario):
    """Open, one check, close; closing is not timed."""

    name = "attach"
    text = (
        "One process opens a store that another one holds, and asks it for one key; on any core. Median time of both "
        "together."
    )
    opens = False

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """One session."""
        case = Case("open and check", {"processes": 1}, ("attach", "check"), most=MOST)
        return [Session(self.name, 1, (case,), effort.rounds, effort.target_s, pin="free")]

    def work(self, client: Client, job: Job) -> Timing:
        """Opens and closes job.count times; the value is the median: one connection in many may take seconds."""
        job.gate()
        start, spent_ns = clock_ns(), []
        for _ in range(job.count):
            before = clock_ns()
            store = client.open()
            store.check(["bench/none"])
            spent_ns.append(clock_ns() - before)
            client.close(store)
            del store
        return Timing((start,), (clock_ns(),), statistics.median(spent_ns))

    def sample(self, count: int, timings: Sequence[Timing]) -> Sample:
        """What the process said."""
        del count
        timing = timings[0]
        assert timing.value is not None
        return Sample(timing.value / 1e9, (timing.leave[0] - timing.enter[0]) / 1e9)
