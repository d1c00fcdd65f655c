"""The elastic functions on real stores: ours between threads and between processes, and torch's as a foreign one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from harness import Me, Team

import shmstore
from shmstore import elastic

WORLD = 4
ROUNDS = 20
ENGINES = ["futex", "semaphore"]
HOST = "Rank {} host".format


def in_threads(n: int, call: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(call, range(n)))


def rounds(store: Any, rank: int, world: int) -> list[bytes]:
    """Exchanges, then meets; checks behind each barrier that everybody had arrived before it opened."""
    values: list[bytes] = elastic.synchronize(store, f"data{rank}", rank, world, "test/store", timeout=20)
    for i in range(ROUNDS):
        store.add(f"arrived/{i}", 1)
        elastic.barrier(store, world, f"round/{i}", 20, rank=rank)
        assert int(store.get(f"arrived/{i}")) == world, f"rank {rank} passed round {i} early"
    return values


def outcome(store: Any, rank: int, world: int, seconds: float) -> tuple[str, tuple[int, ...] | None, str, float]:
    """The end of a barrier that times out: its error, and the handle's timeout afterwards."""
    try:
        elastic.barrier(store, world, "test/store", seconds, rank, HOST, seconds / 2)
    except RuntimeError as error:
        missing = getattr(error, "missing_ranks", None)
        return type(error).__name__, missing, str(error), store.timeout.total_seconds()
    raise AssertionError("the barrier opened")


# -- threads


def test_threads_exchange_and_meet() -> None:
    with shmstore.HashStore() as store:
        expected = [f"data{i}".encode() for i in range(WORLD)]
        assert in_threads(WORLD, lambda rank: rounds(store, rank, WORLD)) == [expected] * WORLD


def test_threads_behind_a_prefix() -> None:
    with shmstore.HashStore() as base:
        store = shmstore.PrefixStore("job", base)
        expected = [f"data{i}".encode() for i in range(WORLD)]
        assert in_threads(WORLD, lambda rank: rounds(store, rank, WORLD)) == [expected] * WORLD
        assert "job/test/store0" in base.list_keys()


def test_a_timed_out_barrier_names_the_missing_and_restores_the_timeout() -> None:
    with shmstore.HashStore() as store:

        def come(rank: int) -> tuple[str, tuple[int, ...] | None, str, float]:
            with store.clone() as mine:
                return outcome(mine, rank, 3, 0.2)

        first, second = in_threads(2, come)
    assert first[:2] == ("BarrierTimeoutError", (2,))
    assert "missing_ranks=[Rank 2 host]" in first[2]
    assert "check rank 0 (Rank 0 host) for missing rank info" in second[2]
    assert first[3] == second[3] == 300


def test_when_rank_0_never_comes_it_is_the_missing_one() -> None:
    with shmstore.HashStore() as store:
        name, missing, text, after = outcome(store, 2, 3, 0.02)
    assert (name, missing, after) == ("BarrierTimeoutError", (0,), 300)
    assert "Rank 0 host" in text


def test_a_timeout_of_synchronize_is_the_stores_own_and_restores_the_timeout() -> None:
    with shmstore.HashStore() as store:
        with pytest.raises(shmstore.StoreTimeoutError, match="p1"):
            elastic.synchronize(store, b"x", 0, 2, "p", timeout=0.02)
        assert store.timeout == timedelta(seconds=300)


def test_without_ranks_the_error_is_the_stores_own() -> None:
    with shmstore.HashStore() as store, pytest.raises(shmstore.StoreTimeoutError, match="k/last_member"):
        elastic.barrier(store, 2, "k", 0.02)


def test_one_arrival_too_many_passes_and_a_used_prefix_is_open() -> None:
    with shmstore.HashStore() as store:
        assert in_threads(3, lambda rank: elastic.barrier(store, 2, "k", 20)) == [None] * 3
        elastic.barrier(store, 2, "k", 0)


# -- processes


def take_part(me: Me, name: str) -> list[bytes]:
    with shmstore.ShmStore(name, create=False, timeout=20) as store:
        me.ready()
        return rounds(store, me.index, WORLD)


@pytest.mark.parametrize("how", ["exec", "fork"])
@pytest.mark.parametrize("sync", ENGINES)
def test_processes_exchange_and_meet(name: str, sync: str, how: str) -> None:
    with shmstore.ShmStore(name, create=True, sync=sync) as store, Team() as team:
        expected = [f"data{i}".encode() for i in range(WORLD)]
        assert team.run(WORLD, take_part, name, how=how) == [expected] * WORLD
        assert store.get("round/0/num_members") == b"%d" % WORLD


def take_part_in_vain(me: Me, name: str) -> tuple[str, tuple[int, ...] | None, str, float]:
    with shmstore.ShmStore(name, create=False, timeout=20) as store:
        me.ready()
        return outcome(store, me.index, 3, 1.0)


@pytest.mark.parametrize("how", ["exec", "fork"])
@pytest.mark.parametrize("sync", ENGINES)
def test_processes_name_the_missing(name: str, sync: str, how: str) -> None:
    with shmstore.ShmStore(name, create=True, sync=sync), Team() as team:
        first, second = team.run(2, take_part_in_vain, name, how=how)
    assert first[:2] == ("BarrierTimeoutError", (2,))
    assert "missing_ranks=[Rank 2 host]" in first[2]
    assert "check rank 0 (Rank 0 host) for missing rank info" in second[2]
    assert first[3] == second[3] == 20


def share(me: Me, store: shmstore.HashStore) -> list[bytes]:
    me.ready()
    return rounds(store, me.index, WORLD)


def test_forked_children_share_a_hash_store() -> None:
    with shmstore.HashStore() as store, Team() as team:
        expected = [f"data{i}".encode() for i in range(WORLD)]
        assert team.run(WORLD, share, store, how="fork") == [expected] * WORLD


# -- torch's store as a foreign one


@pytest.fixture
def dist() -> Any:
    return pytest.importorskip("torch.distributed", reason="uses torch's own stores as foreign ones")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says at import that numpy is missing
class TestOnTorch:
    def test_exchange_and_meet(self, dist: Any) -> None:
        store = dist.HashStore()
        expected = [f"data{i}".encode() for i in range(WORLD)]
        assert in_threads(WORLD, lambda rank: rounds(store, rank, WORLD)) == [expected] * WORLD

    def test_a_timed_out_barrier_raises_torchs_error_and_keeps_the_timeout(self, dist: Any) -> None:
        store = dist.HashStore()
        first, second = in_threads(2, lambda rank: outcome(store, rank, 3, 0.2))
        assert "missing_ranks=[Rank 2 host]" in first[2]
        assert "check rank 0 (Rank 0 host) for missing rank info" in second[2]
        assert first[3] == second[3] == 0.2
        with pytest.raises(dist.DistStoreError, match="Rank 1"):
            elastic.barrier(store, 2, "alone", 0.02, 0, HOST, 0.01)

    def test_ranks_of_torchs_functions_and_ours_meet(self, dist: Any) -> None:
        theirs = pytest.importorskip("torch.distributed.elastic.utils.store")
        store = dist.HashStore()

        def call(rank: int) -> list[bytes]:
            module = elastic if rank % 2 else theirs
            values: list[bytes] = module.synchronize(store, f"data{rank}", rank, WORLD, "p")
            module.barrier(store, WORLD, "b", 20)
            return values

        assert in_threads(WORLD, call) == [[f"data{i}".encode() for i in range(WORLD)]] * WORLD
