"""What the tests of barriers share."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from shmstore import Barrier, BrokenBarrierError
from shmstore.testing.contract import Later

LONG = 30.0
"""Seconds no test gets near unless something hangs."""

Make = Callable[..., Barrier]


def until(what: Callable[[], bool], limit_s: float = LONG) -> None:
    """Returns once `what` is true. Who arrives at a barrier wakes nobody: it can only be looked for."""
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


def waiting(barrier: Barrier, n: int) -> None:
    """Returns once n parties have arrived in the current epoch."""
    until(lambda: barrier.n_waiting >= n)


def broken(call: Later) -> BrokenBarrierError:
    """The BrokenBarrierError that a call ended with."""
    with pytest.raises(BrokenBarrierError) as caught:
        call.result()
    return caught.value
