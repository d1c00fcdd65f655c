from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from bench.host import allowed_cpus
from bench.team import MemberError, Team, TeamLostError


def team(size: int, handle, **more) -> Team:
    """A team whose members handle messages as `handle(rank, message, gate)` does."""
    cpus = [set(allowed_cpus())] * size
    return Team(size, cpus, lambda rank: lambda message, gate: handle(rank, message, gate), **more)


def test_answers_come_in_rank_order() -> None:
    with team(3, lambda rank, message, _: (rank, message, os.getpid())) as members:
        answers = members.ask("hello")
        assert [answer[:2] for answer in answers] == [(0, "hello"), (1, "hello"), (2, "hello")]
        assert len({pid for *_, pid in answers} - {os.getpid()}) == 3


def test_nobody_starts_before_all_are_ready() -> None:
    def handle(rank: int, message: str, gate) -> tuple[int, int]:
        if message == "reverse" and rank == 0:
            time.sleep(0.05)  # the last to be ready
        ready = time.perf_counter_ns()
        gate()
        return ready, time.perf_counter_ns()

    with team(3, handle) as members:
        for message in ("reverse", "at once"):
            times = members.race(message)
            assert max(ready for ready, _ in times) <= min(started for _, started in times)


def test_a_failure_is_told_and_the_team_goes_on() -> None:
    def handle(rank: int, message: str, gate) -> str:
        if message == "bad" and rank == 1:
            raise ValueError("no such thing")
        return message

    with team(2, handle) as members:
        with pytest.raises(MemberError, match="rank 1: ValueError: no such thing"):
            members.ask("bad")
        assert members.ask("good") == ["good", "good"]


def test_the_dead_are_named() -> None:
    def handle(rank: int, message: str, gate) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TeamLostError, match="rank 1 died: SIGKILL"), team(2, handle) as members:
        members.ask("die")


def test_who_hangs_is_named() -> None:
    def handle(rank: int, message: str, gate) -> None:
        if rank == 0:
            threading.Event().wait()

    with pytest.raises(TeamLostError, match=r"rank 0: no answer in 0.2 s"), team(2, handle, patience_s=0.2) as members:
        members.ask("hang")


def test_who_waits_for_one_that_failed_is_not_waited_for() -> None:
    def handle(rank: int, message: str, gate) -> None:
        gate()
        if rank == 0:
            raise RuntimeError("gave up")
        threading.Event().wait()

    with (
        pytest.raises(TeamLostError, match="gave up, and rank 1 waits for it"),
        team(2, handle, grace_s=0.2) as members,
    ):
        members.race("go")
