"""The verbs beside a busy Python thread, which is what a training loop's process looks like to its store.

Whoever gives the GIL up around a call has to wait for it afterwards, and a busy thread keeps it for a whole switch
interval (5 ms unless set). So each call is timed by itself here: the median says what a call usually takes, the mean
what the share of the processor comes to. The reading of the clock is in every call of everybody; the row of the empty
call shows how much that is at most. A store that waits for another process may come in two kinds of rounds: those in
which the answer is there before the thread has woken up to take the GIL, and those in which it is not.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import TypeVar

from bench.records import Case, Contrast, Sample, Session, Timing
from bench.scenarios.base import Client, Effort, Job, Scenario, clock_ns, span_s
from bench.scenarios.verbs import VALUE, VERBS, WARM, fill_if_able, keys_of, settle

__all__ = ["Busy"]

T = TypeVar("T")
KEYS = 1000
MOST = 50_000
THREAD = "thread"
IDLE, BUSY = "none", "busy"
BY: dict[str, Callable[[Sequence[int]], float]] = {"median": statistics.median, "mean": statistics.fmean}
TIMES = 2
"""A sample takes so many times as long as elsewhere: it should span many switch intervals."""


class Busy(Scenario):
    """Each verb with and without the thread, by turns."""

    name = "busy"
    text = (
        "One client beside a thread of its own process that computes in pure Python, and without it; on any core. Each "
        "call is timed by itself; their median, and for get their mean."
    )

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """One session; get only when quick."""
        measures = [f"{verb}, median" for verb in (["get"] if effort.quick else VERBS)]
        cases = tuple(
            Case(measure, {THREAD: thread}, (measure.partition(",")[0],), most=MOST)
            for measure in [*measures, "get, mean"]
            for thread in (IDLE, BUSY)
        )
        rounds = max(3, effort.rounds // 3)  # long samples: fewer do
        return [Session(self.name, 1, cases, rounds, effort.target_s * TIMES, pin="free")]

    def contrasts(self, effort: Effort) -> Sequence[Contrast]:
        """Beside the thread against without."""
        measures = dict.fromkeys(case.measure for session in self.sessions(effort) for case in session.cases)
        return [
            Contrast(self.name, f"{measure}: busy / idle", (measure, {THREAD: BUSY}), (measure, {THREAD: IDLE}))
            for measure in measures
        ]

    def prepare(self, case: Case, client: Client, rank: int, world: int) -> None:
        """Sets the keys."""
        del rank, world
        verb = case.measure.partition(",")[0]
        if verb != "add":
            fill_if_able(client.store, keys_of("busy", KEYS))

    def work(self, client: Client, job: Job) -> Timing:
        """Calls the verb, each call between two readings of the clock."""
        verb, _, by = job.case.measure.partition(", ")
        keys = list(islice(cycle(keys_of(f"busy/{verb}" if verb == "add" else "busy", KEYS)), WARM + job.count))
        with busy_thread(run=job.case.params[THREAD] == BUSY):
            if verb in ("set", "add"):
                timing, times = _of_two(getattr(client.store, verb), keys, VALUE if verb == "set" else 1, job)
            else:
                timing, times = _of_one(
                    getattr(client.store, verb), keys if verb == "get" else [[k] for k in keys], job
                )
        settle(client.store, keys[0])
        return Timing(timing.enter, timing.leave, BY[by](times))

    def sample(self, count: int, timings: Sequence[Timing]) -> Sample:
        """What the process said."""
        del count
        value = timings[0].value
        assert value is not None
        return Sample(value / 1e9, span_s(timings))


def _of_one(call: Callable[[T], object], arguments: Sequence[T], job: Job) -> tuple[Timing, list[int]]:
    """When it was, and how long each call with one argument took, in ns."""
    times: list[int] = []
    for argument in arguments[:WARM]:
        call(argument)
    job.gate()
    start = clock_ns()
    for argument in arguments[WARM:]:
        before = clock_ns()
        call(argument)
        times.append(clock_ns() - before)
    return Timing((start,), (clock_ns(),)), times


def _of_two(call: Callable[[str, T], object], keys: Sequence[str], other: T, job: Job) -> tuple[Timing, list[int]]:
    """The same with two."""
    times: list[int] = []
    for key in keys[:WARM]:
        call(key, other)
    job.gate()
    start = clock_ns()
    for key in keys[WARM:]:
        before = clock_ns()
        call(key, other)
        times.append(clock_ns() - before)
    return Timing((start,), (clock_ns(),)), times


@contextmanager
def busy_thread(*, run: bool) -> Iterator[None]:
    """Has a thread compute in pure Python for the length of the block; it runs when the block begins."""
    if not run:
        yield
        return
    running = threading.Event()
    stop: list[bool] = []

    def spin() -> None:
        running.set()
        while not stop:
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    running.wait()
    try:
        yield
    finally:
        stop.append(True)
        thread.join()
