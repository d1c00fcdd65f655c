"""Barriers between processes: by keys on a segment and on torch's stores, and as the store chooses.

What runs where: four processes meet on a segment of each kind of wake-up, by keys and as the store chooses; on torch's
FileStore and TCPStore, as the store chooses; and forked ones on a HashStore. Each team goes through all its cases, with
ranks and without, on one attachment. Deaths and Ctrl-C are those of KeyBarrier on a segment; the segment's own barrier
has test_segment.py and test_segment_deaths.py.

Nothing here forks pytest. What is forked comes of a fresh interpreter while that has one thread: the server of a
TCPStore is a thread that takes locks of glibc (its resolver's, for each client that comes), and a child that was forked
meanwhile waits for such a lock for ever.
"""

from __future__ import annotations

import itertools
import os
import signal
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from harness import Me, Team

import shmstore
from shmstore import BarrierTimeoutError, BrokenBarrierError
from shmstore._barrier_keys import KeyBarrier

WORLD = 4
ROUNDS = 100
LONG = timedelta(seconds=30)
BARRIERS = {"keys": KeyBarrier, "chosen": shmstore.Barrier}

Case = tuple[str, bool]
"""Which of BARRIERS, and whether its parties have ranks."""


def meet(me: Me, store: Any, cases: list[Case], n: int) -> dict[Case, list[int]]:
    """Passes a barrier of each case n times; the indices."""
    return {case: rounds(me, store, *case, n) for case in cases}


def rounds(me: Me, store: Any, barrier_of: str, ranked: bool, n: int) -> list[int]:
    key = f"{barrier_of} {ranked}"
    barrier = BARRIERS[barrier_of](store, key, WORLD, me.index if ranked else None)
    indices = []
    for i in range(n):
        store.add(f"came/{key}/{i}", 1)
        indices.append(barrier.wait(30))
        assert int(store.get(f"came/{key}/{i}")) == WORLD, f"passed round {i} of {key!r} early"
    return indices


def check(results: list[dict[Case, list[int]]], cases: list[Case], n: int) -> None:
    for case in cases:
        turns = list(zip(*(result[case] for result in results), strict=True))
        assert len(turns) == n
        for indices in turns:
            assert sorted(indices) == list(range(WORLD)), case


def in_a_segment(me: Me, name: str, cases: list[Case]) -> dict[Case, list[int]]:
    with shmstore.ShmStore(name, create=False, timeout=30) as store:
        me.ready()
        return meet(me, store, cases, ROUNDS)


@pytest.mark.parametrize("sync", ["futex", "semaphore"])
def test_processes_meet(name: str, team: Team, sync: Any) -> None:
    cases = list(itertools.product(BARRIERS, (True, False)))
    with shmstore.ShmStore(name, create=True, sync=sync) as store:
        check(team.run(WORLD, in_a_segment, name, cases), cases, ROUNDS)
        left = [key for key in store.list_keys() if not key.startswith("came/")]
        assert [key for key in left if key.startswith("chosen")] == []
        for ranked in (True, False):
            assert 1 <= len([key for key in left if key.startswith(f"keys {ranked}/")]) <= 3


def fork_a_team(_me: Me) -> list[dict[Case, list[int]]]:
    """In a fresh interpreter."""
    with Team(60) as team, shmstore.HashStore() as store:
        return team.run(WORLD, in_a_hash_store, store, how="fork")


def in_a_hash_store(me: Me, store: shmstore.HashStore) -> dict[Case, list[int]]:
    me.ready()
    return meet(me, store, [("keys", True)], ROUNDS)


def test_forked_children_meet_on_a_hash_store(team: Team) -> None:
    check(team.start(fork_a_team).result(), [("keys", True)], ROUNDS)


ON_TORCH: list[Case] = [("chosen", True), ("chosen", False)]
IN_A_FILE = 5  # rounds: it only grows, and each look reads it


def fork_a_team_on_torch(_me: Me, path: str) -> list[Any]:
    """In a fresh interpreter: imports torch once, forks the ranks, and only then starts the server."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy, which torch imports where it is there, starts threads too
    import torch.distributed as dist

    assert os.listdir("/proc/self/task") == [str(os.getpid())], "there is a thread more: this must not fork"
    with Team(60) as team:
        for _ in range(WORLD):
            team.start(on_torch, path, how="fork")
        master = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        team.go(master.port)
        return team.results()


def on_torch(me: Me, path: str) -> list[Any]:
    import torch.distributed as dist

    port = me.ready()
    file = dist.FileStore(path, -1)
    file.set_timeout(LONG)
    client = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=LONG)
    return [meet(me, file, ON_TORCH, IN_A_FILE), meet(me, client, ON_TORCH, ROUNDS)]


def test_processes_meet_on_torchs_file_and_on_its_server(tmp_path: Path, team: Team) -> None:
    if find_spec("torch") is None:
        pytest.skip("torch's own stores")
    in_file, on_server = zip(*team.start(fork_a_team_on_torch, str(tmp_path / "store")).result(), strict=True)
    check(list(in_file), ON_TORCH, IN_A_FILE)
    check(list(on_server), ON_TORCH, ROUNDS)


# -- death, Ctrl-C


def loop(me: Me, name: str, timeout: float) -> Any:
    """Passes until it fails; then what the error says, and another round with who is there then."""
    with shmstore.ShmStore(name, create=False, timeout=30) as store:
        barrier = KeyBarrier(store, "b", 3, me.index if me.index < 3 else 1)
        passed = 0
        me.say("there")
        try:
            while True:
                barrier.wait(timeout)
                passed += 1
                if passed == 20:
                    me.say("on the way")
        except BrokenBarrierError as error:
            told = error.missing_ranks, isinstance(error, BarrierTimeoutError)
        barrier.reset()
        me.say(told)
        me.hear()
        barrier.wait(30)
        return barrier.epoch


def join(me: Me, name: str) -> int:
    """A restarted rank 1."""
    with shmstore.ShmStore(name, create=False, timeout=30) as store:
        barrier = KeyBarrier(store, "b", 3, 1)
        barrier.wait(30)
        return barrier.epoch


def test_a_killed_rank_is_named_and_its_successor_meets_the_others(name: str, team: Team) -> None:
    with shmstore.ShmStore(name, create=True) as store:
        zero, one, two = (team.start(loop, name, 1.0) for _ in range(3))
        for child in (zero, one, two):
            assert child.hear() == "there"
        for child in (zero, one, two):
            assert child.hear() == "on the way"
        one.kill()
        told = [zero.hear(), two.hear()]
        assert [missing for missing, _ in told] == [(1,), (1,)]
        assert any(timed_out for _, timed_out in told)
        again = team.start(join, name)
        for child in (zero, two):
            child.say("go")
        assert len({child.result() for child in (zero, two, again)}) == 1
        assert len([key for key in store.list_keys() if key.startswith("b/")]) <= 3


def wait_for_ever(me: Me, name: str) -> str:
    with shmstore.ShmStore(name, create=False, timeout=1000) as store:
        barrier = KeyBarrier(store, "b", 3, me.index)
        me.say("there")
        try:
            barrier.wait()
        except KeyboardInterrupt:
            return "interrupted"
        except BrokenBarrierError as error:
            return str(error)
    raise AssertionError("passed")


def test_ctrl_c_in_one_process_ends_the_waits_of_all(name: str, team: Team) -> None:
    with shmstore.ShmStore(name, create=True, timeout=30) as store:
        one, two = (team.start(wait_for_ever, name) for _ in range(2))
        for child in (one, two):
            assert child.hear() == "there"
        store.wait(["b/0/r0", "b/0/r1"])
        one.signal(signal.SIGINT)
        assert one.result() == "interrupted"
        assert "rank 0 was interrupted while it waited (KeyboardInterrupt)" in two.result()
