"""Barriers between processes: by keys on a segment and on torch's stores, and as the store chooses."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from harness import Me, Team
from kinds import warm_torch

import shmstore
from shmstore import BarrierTimeoutError, BrokenBarrierError
from shmstore._barrier_keys import KeyBarrier

WORLD = 4
ROUNDS = 100
BARRIERS = {"keys": KeyBarrier, "chosen": shmstore.Barrier}


def opened(kind: str, where: Any, stack: ExitStack) -> Any:
    if kind in ("futex", "semaphore"):
        return stack.enter_context(shmstore.ShmStore(where, create=False, timeout=30))
    import torch.distributed as dist

    if kind == "file":
        store = dist.FileStore(where, -1)
        store.set_timeout(timedelta(seconds=30))
        return store
    return dist.TCPStore("127.0.0.1", where, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))


def rounds(me: Me, kind: str, where: Any, barrier_of: str, ranked: bool, n: int) -> list[int]:
    with ExitStack() as stack:
        store = opened(kind, where, stack)
        barrier = BARRIERS[barrier_of](store, "b", WORLD, me.index if ranked else None)
        me.ready()
        indices = []
        for i in range(n):
            store.add(f"came/{i}", 1)
            indices.append(barrier.wait(30))
            assert int(store.get(f"came/{i}")) == WORLD, f"passed round {i} early"
        return indices


def check(team: Team, *args: Any, how: str = "exec", n: int = ROUNDS) -> None:
    for indices in zip(*team.run(WORLD, rounds, *args, n, how=how), strict=True):
        assert sorted(indices) == list(range(WORLD))


@pytest.mark.parametrize("ranked", [True, False], ids=["ranks", "no ranks"])
@pytest.mark.parametrize("barrier_of", BARRIERS)
@pytest.mark.parametrize("sync", ["futex", "semaphore"])
def test_processes_meet(name: str, team: Team, sync: Any, barrier_of: str, ranked: bool) -> None:
    with shmstore.ShmStore(name, create=True, sync=sync) as store:
        check(team, sync, name, barrier_of, ranked)
        assert len([key for key in store.list_keys() if key.startswith("b/")]) <= 3


def share(me: Me, store: shmstore.HashStore, ranked: bool) -> list[int]:
    me.ready()
    barrier = KeyBarrier(store, "b", WORLD, me.index if ranked else None)
    return [barrier.wait(30) for _ in range(ROUNDS)]


def test_forked_children_meet_on_a_hash_store(team: Team) -> None:
    with shmstore.HashStore() as store:
        for indices in zip(*team.run(WORLD, share, store, True, how="fork"), strict=True):
            assert sorted(indices) == list(range(WORLD))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says at import that numpy is missing
class TestOnTorch:
    @pytest.fixture(autouse=True, scope="class")
    def warm(self) -> None:
        warm_torch()

    @pytest.mark.parametrize("ranked", [True, False], ids=["ranks", "no ranks"])
    def test_on_a_file(self, tmp_path: Path, team: Team, ranked: bool) -> None:
        check(team, "file", str(tmp_path / "store"), "chosen", ranked, how="fork", n=5)

    @pytest.mark.parametrize("ranked", [True, False], ids=["ranks", "no ranks"])
    def test_on_a_server(self, team: Team, ranked: bool) -> None:
        import torch.distributed as dist

        master = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        check(team, "tcp", master.port, "chosen", ranked, how="fork")


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
