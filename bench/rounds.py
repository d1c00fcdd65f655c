"""The order of the measurements: warm-up, then one sample of each in turn, round after round.

A B C, A B C, … and never A A A, B B B: a slow minute of the machine hits all alike, and the i-th samples of any two
were taken next to each other. The warm-up finds how many operations fill a sample, so that a call of 0.1 µs and one of
10 ms are both timed for about as long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from bench.records import Sample

__all__ = ["Turn", "calibrate", "interleave", "play"]

T = TypeVar("T")
GROWTH = 50
"""A next guess is at most so many times the last one: a first call may be slow for reasons of its own."""


class Turn(Generic[T]):
    """One case of one rival: how it is run, and what came of it.

    Attributes:
        of: what it stands for; the caller's.
        run: operations -> sample; raises when the rival fails.
        first, most: the first guess and the upper bound of the operations of a sample.
        fixed: so many operations and no warm-up; 0 to find the number.
    """

    def __init__(self, of: T, run: Callable[[int], Sample], *, first: int = 1, most: int, fixed: int = 0) -> None:
        self.of = of
        self.run = run
        self.first = min(first, most)
        self.most = most
        self.fixed = fixed
        self.operations = 0
        self.samples: list[float] = []
        self.at_s: list[float] = []
        self.why = ""


def interleave(turns: Sequence[T], rounds: int) -> Iterator[T]:
    """A B C, A B C, …: each once a round, always in the order given."""
    for _ in range(rounds):
        yield from turns


def calibrate(run: Callable[[int], Sample], target_s: float, first: int, most: int) -> int:
    """How many operations take about target_s seconds, `most` at most. Runs them, and so warms up too.

    Whether a number is enough is asked twice: one slow call, of a core that has to be woken, is not believed.
    """
    count = first
    while True:
        took_s = run(count).took_s
        if took_s >= target_s / 2 or count >= most:
            took_s = min(took_s, run(count).took_s)
        took_s = max(took_s, 1e-9)
        fitting = math.ceil(count * target_s / took_s)
        if took_s > 2 * target_s:
            return min(count, fitting)
        if took_s >= target_s / 2 or count >= most:
            return count
        count = min(most, max(count + 1, min(count * GROWTH, fitting)))


def play(turns: Iterable[Turn[T]], rounds: int, target_s: float, failed: Callable[[BaseException], str]) -> None:
    """Warms all turns up, then takes `rounds` samples of each, interleaved.

    Args:
        turns: those of one measure of all rivals next to each other: neighbours are the closest in time.
        rounds: samples of each.
        target_s: how long one sample should take, in seconds.
        failed: what to note of an exception that ended a turn; raises it again where all must end.
    """
    start = time.perf_counter()
    ready = [turn for turn in turns if _tried(turn, failed, lambda turn: _warm_up(turn, target_s))]
    for turn in interleave(ready, rounds):
        if not turn.why and not _tried(turn, failed, lambda turn: _take(turn, start)):
            turn.samples.clear()  # half a row is none: pairs would not match
            turn.at_s.clear()


def _warm_up(turn: Turn[T], target_s: float) -> None:
    turn.operations = turn.fixed or calibrate(turn.run, target_s, turn.first, turn.most)


def _take(turn: Turn[T], start: float) -> None:
    turn.samples.append(turn.run(turn.operations).value)
    turn.at_s.append(time.perf_counter() - start)


def _tried(turn: Turn[T], failed: Callable[[BaseException], str], step: Callable[[Turn[T]], None]) -> bool:
    try:
        step(turn)
    except Exception as error:
        turn.why = failed(error)
    return not turn.why
