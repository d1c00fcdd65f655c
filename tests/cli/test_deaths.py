"""The demo's ranks when some of them are killed: the survivors count the same, wherever the kill falls.

The test is the launcher here, and tells the ranks nothing.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inside
import pytest
from harness import Child, ChildFailed, Me, Team

from shmstore import ShmStore
from shmstore._barrier_segment import SegmentBarrier
from shmstore.cli import count, tally
from shmstore.cli.count import Plan, Report
from shmstore.cli.group import Group

VERBS = ("set", "get", "add", "compare_set", "wait", "multi_get", "delete_key", "list_keys", "queue_push")


@pytest.fixture
def files(tmp_path: Path) -> list[bytes]:
    for i in range(7):
        (tmp_path / f"{i}").write_text("word " * (i + 1))
    return tally.list_files(os.fsencode(tmp_path))[0]


class Job:
    """A segment with the list of files in it, and what all must find."""

    def __init__(self, name: str, root: Path, files: list[bytes], nproc: int, rounds: int, sync: str = "futex") -> None:
        self.store = ShmStore(name, create=True, sync=sync)
        self.plan = Plan(name, os.fsencode(root), nproc, rounds, 60.0)
        self.alone = tally.count(self.plan.root, files)
        count.publish(self.store, files)

    def check(self, children: list[Child], dead: set[int]) -> list[Report]:
        """The reports of the survivors, which must agree; all but these are dead."""
        reports = []
        for rank, child in enumerate(children):
            try:
                reports.append(child.result())
            except ChildFailed:
                assert rank in dead, f"rank {rank} was not to die"
                assert child.wait() == -signal.SIGKILL
        for report in reports:
            assert report.everyone == reports[0].everyone
            assert report.everyone[report.rank] == report.own
            assert report.total == self.alone
            assert {notice.rank for notice in report.noticed} <= dead
        assert self.store.verify() == []
        return reports

    def close(self) -> None:
        self.store.close()


@pytest.fixture
def job(name: str, tmp_path: Path, files: list[bytes]) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def make(nproc: int, rounds: int, **more: Any) -> Job:
        jobs.append(Job(f"{name}-{len(jobs)}", tmp_path, files, nproc, rounds, **more))
        return jobs[-1]

    yield make
    for each in jobs:
        each.close()


def work(plan: Plan, rank: int) -> Report:
    with (
        ShmStore(plan.name, rank=rank, create=False, timeout=plan.timeout_s) as store,
        ShmStore(plan.name, create=False, timeout=plan.timeout_s, watch_peers=True) as watching,
    ):
        return count._Rank(plan, rank, store, watching).work()


# -- every place ----------------------------------------------------------------------------------------------------


def mortal(_me: Me, plan: Plan, rank: int, dies_at: int | None) -> Report:
    """A rank that is killed before its verb of that number; the barrier's `wait` is one too."""
    numbers = itertools.count()

    def counted(verb: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if next(numbers) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return verb(*args, **more)

        return call

    for verb in VERBS:
        setattr(ShmStore, verb, counted(getattr(ShmStore, verb)))
    SegmentBarrier.wait = counted(SegmentBarrier.wait)  # type: ignore[method-assign]
    return work(plan, rank)


@pytest.mark.parametrize(("sync", "rank"), [("futex", 0), ("semaphore", 1), ("futex", 2)])
def test_one_killed_before_any_of_its_verbs(job: Callable[..., Job], sync: str, rank: int) -> None:
    """Each verb, until the rank outlives its last one."""
    for at in range(200):
        each = job(3, 2, sync=sync)
        with Team(60) as team:
            children = [team.start(mortal, each.plan, i, at if i == rank else None, how="fork") for i in range(3)]
            reports = each.check(children, {rank})
        each.close()
        if len(reports) == 3:
            break
    assert at > 15, "it has to do that many steps at least"


def test_two_and_three_killed_before_any_of_their_verbs(job: Callable[..., Job]) -> None:
    chance = random.Random(4711)
    for _ in range(15):
        each = job(4, 2)
        fates: list[int | None] = [chance.randrange(45), chance.randrange(45), chance.choice([None, 30]), None]
        chance.shuffle(fates)
        with Team(60) as team:
            children = [team.start(mortal, each.plan, i, fate, how="fork") for i, fate in enumerate(fates)]
            each.check(children, {i for i, fate in enumerate(fates) if fate is not None})
        each.close()


# -- certain places ---------------------------------------------------------------------------------------------------


def hold(me: Me, owner: type, method: str, *numbers: int) -> None:
    """This process says so before its calls of a method that have these numbers, and goes on when it is told to."""
    calls = itertools.count()
    real = getattr(owner, method)

    def call(*args: Any, **more: Any) -> Any:
        if next(calls) in numbers:
            me.say("there")
            me.hear()
        return real(*args, **more)

    setattr(owner, method, call)


def held_at(me: Me, plan: Plan, rank: int, owner: type, method: str, *numbers: int) -> Report:
    hold(me, owner, method, *numbers)
    return work(plan, rank)


def free(_me: Me, plan: Plan, rank: int) -> Report:
    return work(plan, rank)


@pytest.mark.parametrize("rounds", [1, 2])
def test_killed_in_a_meeting_that_it_has_come_to(team: Team, job: Callable[..., Job], rounds: int) -> None:
    """The meeting passes for the others, and the next one does not."""
    each = job(3, rounds)
    children = [
        team.start(held_at, each.plan, 0, Group, "meet", 1, how="fork"),
        team.start(free, each.plan, 1, how="fork"),
        team.start(free, each.plan, 2, how="fork"),
    ]
    assert children[0].hear() == "there"
    inside.parked(each.store, "group", 2)
    children[1].kill()
    children[0].say("go")
    reports = each.check(children, {1})
    assert [len(report.noticed) for report in reports] == ([0, 0] if rounds == 1 else [1, 1])
    assert all(notice.pid == children[1].pid for report in reports for notice in report.noticed)


def test_killed_when_others_have_passed_and_one_has_not_seen_it(team: Team, job: Callable[..., Job]) -> None:
    """A stopped rank wakes when the barrier, which it had passed, is broken for the next meeting."""
    each = job(3, 3)
    children = [
        team.start(held_at, each.plan, 0, Group, "meet", 1, how="fork"),
        team.start(held_at, each.plan, 1, count._Rank, "_exchange", 1, how="fork"),
        team.start(free, each.plan, 2, how="fork"),
    ]
    assert children[0].hear() == "there"
    inside.parked(each.store, "group", 2)
    children[2].signal(signal.SIGSTOP)
    children[0].say("go")
    assert children[1].hear() == "there", "it has passed, too"
    children[1].kill()
    inside.parked(each.store, "group/without/1/2")
    children[2].signal(signal.SIGCONT)
    reports = each.check(children, {1})
    assert [[notice.rank for notice in report.noticed] for report in reports] == [[1], [1]]


@pytest.mark.parametrize("second", [0, 1, 3])
def test_a_second_one_killed_before_it_has_regrouped(team: Team, job: Callable[..., Job], second: int) -> None:
    """The others wait for it in the regrouping, and find out there."""
    each = job(4, 2)
    children = [
        team.start(held_at, each.plan, i, Group, "_regroup", 0, how="fork")
        if i == second
        else team.start(mortal, each.plan, i, 6 if i == 2 else None, how="fork")
        for i in range(4)
    ]
    assert children[second].hear() == "there"
    inside.parked(each.store, f"group/without/2/{second}", 2)
    children[second].kill()
    reports = each.check(children, {2, second})
    assert all({notice.rank for notice in report.noticed} == {2, second} for report in reports)
    assert all(report.noticed[1].where == "in the regrouping" for report in reports)


@pytest.mark.parametrize("second", [0, 1, 3])
def test_a_second_one_killed_after_it_has_regrouped(team: Team, job: Callable[..., Job], second: int) -> None:
    """The others wait for it at the barrier of the smaller group."""
    each = job(4, 2)
    children = [
        team.start(held_at, each.plan, i, Group, "meet", 2, how="fork")
        if i == second
        else team.start(mortal, each.plan, i, 6 if i == 2 else None, how="fork")
        for i in range(4)
    ]
    assert children[second].hear() == "there"
    inside.parked(each.store, "group/without/2", 2)
    children[second].kill()
    reports = each.check(children, {2, second})
    assert all({notice.rank for notice in report.noticed} == {2, second} for report in reports)


def test_what_was_taken_over_by_one_who_died_is_taken_over_again(team: Team, job: Callable[..., Job]) -> None:
    """Rank 2 dies with a file in hand, so does rank 1 that took it, and rank 0 counts alone."""
    each = job(3, 1)
    children = [
        team.start(held_at, each.plan, 0, count._Rank, "_walk", 0, 1, how="fork"),
        team.start(killed_with, each.plan, 1, 2, how="fork"),
        team.start(killed_with, each.plan, 2, None, how="fork"),
    ]
    for child in children[:2]:  # so that rank 2 has a file in hand
        assert child.hear() == "there"
    children[2].wait()
    for child in children[:2]:
        child.say("go")
    assert children[0].hear() == "there", "in the smaller group"
    children[1].wait()
    children[0].say("go")
    (report,) = each.check(children, {1, 2})
    assert [victim for victim, _ in report.taken] == [1], "from rank 1, which had it from rank 2"


def killed_with(me: Me, plan: Plan, rank: int, victim: int | None) -> Report:
    """A rank that is killed when it has taken a file over from that one; None: when it has claimed any."""
    real = ShmStore.compare_set

    def compare_set(self: ShmStore, key: Any, expected: Any, desired: Any) -> bytes:
        value = real(self, key, expected, desired)
        if value == desired and b":" not in value and (victim is None or expected.startswith(b"%d " % victim)):
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    ShmStore.compare_set = compare_set  # type: ignore[method-assign,assignment]
    if victim is not None:
        hold(me, count._Rank, "_walk", 0)
    return work(plan, rank)
