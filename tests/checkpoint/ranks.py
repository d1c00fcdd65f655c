"""What the processes of test_tcpstore_barrier.py run; imported by fresh interpreters, so it imports little."""

from __future__ import annotations

import multiprocessing
from typing import Any

from shmstore.checkpoint import TCPStoreBarrier

LONG = 20
KEPT: list[TCPStoreBarrier] = []
"""Barriers that nobody closes or drops: they end with their process."""


def barrier(rank: int, world: int, port: int, timeout: Any = LONG) -> TCPStoreBarrier:
    return TCPStoreBarrier(rank, world, "job", LONG, True, port, "127.0.0.1", timeout)


def late_reader(rank: int, port: int) -> TCPStoreBarrier:
    """One of two ranks, who learns how its first call ended only when rank 0 is about to leave."""
    made = barrier(rank, 2, port)
    swap = made.store.compare_set

    def held(key: str, expected: str, desired: str) -> bytes:
        if key.endswith("/outcome"):
            made.store.wait([made._meeting._key(1, "outcome")])  # what rank 0 says as it leaves
        return swap(key, expected, desired)

    made.store.compare_set = held  # type: ignore[method-assign]
    return made


def meet_once(rank: int, world: int, port: int) -> None:
    KEPT.append(barrier(rank, world, port))
    KEPT[-1].execute_barrier()


def end_after_one(me: Any, port: int, how: str) -> int | None:
    """Rank 0 of two in a process that ends after one call; its own, or one of multiprocessing's with its exit code."""
    if how == "interpreter":
        meet_once(0, 2, port)
        return 0
    process = multiprocessing.get_context(how).Process(target=meet_once, args=(0, 2, port))
    process.start()
    process.join()
    return process.exitcode


def work(me: Any, port: int, rank: int, world: int, timeout: float) -> str:
    """Meets as often as it is told, saying before each time which it is; then ends, and closes nothing."""
    KEPT.append(mine := barrier(rank, world, port, timeout))
    me.say("connected")
    while (turns := me.hear()) is not None:
        me.say(meet(mine, rank, world, turns))
    return "ended"


def meet(mine: TCPStoreBarrier, rank: int, world: int, turns: range) -> Any:
    for turn in turns:
        mine.store.set(f"at/{rank}", str(turn))
        try:
            mine.execute_barrier()
        except Exception as error:
            return type(error).__name__, getattr(error, "missing_ranks", None)
        assert all(int(mine.store.get(f"at/{other}")) >= turn for other in range(world))
    return "passed"
