"""The clock of all timings, and what several processes' readings of it span."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.records import Timing

__all__ = ["clock_ns", "span_s"]

clock_ns: Callable[[], int] = time.perf_counter_ns
"""CLOCK_MONOTONIC on Linux, in ns: one clock for all processes of a host."""


def span_s(timings: Sequence[Timing]) -> float:
    """From the first beginning to the last end, in seconds."""
    return (max(t.leave[-1] for t in timings) - min(t.enter[0] for t in timings)) / 1e9
