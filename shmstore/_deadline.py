"""Timeouts as people give them, deadlines as the core takes them.

A timeout becomes one absolute deadline in nanoseconds of CLOCK_MONOTONIC, which is what `time.monotonic_ns` reads on
Linux and what the core parks with, as soon as a verb is entered. It is never cut to whole milliseconds.
"""

from __future__ import annotations

import math
from datetime import timedelta
from functools import lru_cache
from time import monotonic_ns
from typing import Final, TypeAlias

Timeout: TypeAlias = timedelta | float
"""A timedelta, or seconds as int or float; `timedelta.max` and `inf` wait for ever."""

FOREVER: Final = 2**64 - 1
"""The deadline, and the length in nanoseconds, that never ends."""

DEFAULT: Final = timedelta(seconds=300)
"""The timeout of a store that is given none; c10d's."""


def span_ns(timeout: Timeout) -> int:
    """The length of a timeout in nanoseconds, rounded up; `FOREVER` when it is infinite or beyond 64 bits.

    Raises:
        TypeError: neither a timedelta nor a number. ValueError: negative or NaN.
    """
    try:
        return _span_ns(timeout)
    except TypeError:  # also of what cannot be a key of the cache
        raise TypeError(f"timeout must be a timedelta or seconds, not {type(timeout).__name__}") from None


@lru_cache(maxsize=64, typed=True)  # a program has a handful of timeouts, and a barrier takes three
def _span_ns(timeout: Timeout) -> int:
    if isinstance(timeout, timedelta):
        if timeout.days < 0:
            raise ValueError(f"timeout must not be negative, got {timeout!r}")
        ns = (timeout.days * 86400 + timeout.seconds) * 1_000_000_000 + timeout.microseconds * 1000
        return min(ns, FOREVER) if timeout != timedelta.max else FOREVER
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError
    if not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds that is not negative, got {timeout!r}")
    if timeout >= FOREVER / 1e9:
        return FOREVER
    return min(math.ceil(timeout * 1_000_000_000), FOREVER)


def as_timedelta(timeout: Timeout) -> timedelta:
    """The timeout as a timedelta; `timedelta.max` for what is longer than that. Raises as `span_ns`."""
    span = span_ns(timeout)
    return timeout if isinstance(timeout, timedelta) else _seconds(timeout, span)


@lru_cache(maxsize=64, typed=True)
def _seconds(timeout: float, span: int) -> timedelta:
    if span == FOREVER:
        return timedelta.max
    return max(timedelta(seconds=timeout), timedelta.resolution) if timeout else timedelta(0)


def deadline_after(ns: int) -> int:
    """The deadline `ns` nanoseconds from now; `FOREVER` when it is beyond 64 bits."""
    return min(monotonic_ns() + ns, FOREVER)


def seconds(ns: int) -> float:
    """Nanoseconds as seconds, `inf` for `FOREVER`."""
    return math.inf if ns >= FOREVER else ns / 1e9
