"""The timed loops of barriers, and what their times come to: for the members of a team and the ranks of an MPI job.

Back to back, nothing but the barrier is in the loop, and the clock is read before and after it: at 64 processes on two
cores every reading in it would count 32 times. The time is of whole periods, from the last departure of the warm-up to
the last departure of all, so that a few barriers make as true a figure as many.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import TypeVar

from bench.clock import clock_ns, span_s
from bench.records import Sample, Timing

__all__ = ["WARM", "again", "at_keys", "result", "spread", "warm"]

T = TypeVar("T")
WARM = 10
"""So many barriers at most, and not more than are timed, come before: whoever woke last from the gate has come then."""


def warm(count: int) -> int:
    """How many barriers come before `count` that are timed."""
    return min(WARM, count)


def again(meet: Callable[[], object], count: int, skew_us: int, rank: int, world: int) -> Timing:
    """Meets count times at a barrier that serves again and again."""
    for _ in repeat(None, warm(count)):
        meet()
    if skew_us:
        return spread(lambda _: meet(), range(count), skew_us, rank, world)
    start = clock_ns()
    for _ in repeat(None, count):
        meet()
    return Timing((start,), (clock_ns(),))


def at_keys(
    meet: Callable[[str], object], keys: Sequence[str], count: int, skew_us: int, rank: int, world: int
) -> Timing:
    """Meets once for each key, of which the last `count` are timed."""
    for key in keys[:-count]:
        meet(key)
    timed = keys[-count:]
    if skew_us:
        return spread(meet, timed, skew_us, rank, world)
    start = clock_ns()
    for key in timed:
        meet(key)
    return Timing((start,), (clock_ns(),))


def spread(meet: Callable[[T], object], each: Iterable[T], skew_us: int, rank: int, world: int) -> Timing:
    """Meets once for each; sleeps before, by turns up to skew_us."""
    enter, leave = [], []
    for i, one in enumerate(each):
        if world > 1:
            time.sleep(skew_us / 1e6 * ((rank + i) % world) / (world - 1))
        enter.append(clock_ns())
        meet(one)
        leave.append(clock_ns())
    return Timing(tuple(enter), tuple(leave))


def result(timings: Sequence[Timing], count: int, skew_us: int) -> Sample:
    """Of all ranks' times: a barrier's period; with a skew, the median from last arrival to last departure."""
    if not skew_us:
        took_ns = max(t.leave[0] for t in timings) - max(t.enter[0] for t in timings)
        return Sample(took_ns / 1e9 / count, span_s(timings))
    opened_ns = [max(t.leave[i] for t in timings) - max(t.enter[i] for t in timings) for i in range(count)]
    return Sample(statistics.median(opened_ns) / 1e9, span_s(timings))
