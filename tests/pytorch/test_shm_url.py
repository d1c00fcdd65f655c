"""init_method="shm://…": groups of real processes, and what is refused."""

from __future__ import annotations

import importlib
import os
from datetime import timedelta
from typing import Any

import pytest
from harness import Me, Team
from kinds import torchs

import shmstore
from shmstore import ShmStore

dist: Any = torchs("torch.distributed", "shm:// is a rendezvous of torch's")
importlib.import_module("shmstore.torch")  # registers shm://


@pytest.fixture
def team() -> Any:
    """A longer one: each child imports torch."""
    with Team(80) as team:
        yield team


def _meets(me: Me, url: str, given: bool, world: int) -> list[Any]:
    dist, torch = torchs("torch.distributed"), torchs("torch")
    importlib.import_module("shmstore.torch")
    os.environ.update(RANK=str(me.index), WORLD_SIZE=str(world))
    who = {"rank": me.index, "world_size": world} if given else {}
    me.ready()
    dist.init_process_group("gloo", init_method=url.format(rank=me.index), **who)
    tensor = torch.full((4,), float(dist.get_rank() + 1))
    dist.all_reduce(tensor)
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, {"rank": dist.get_rank()})
    pair = dist.new_group([0, 1])
    if dist.get_rank() < 2:
        dist.barrier(pair)
    ranks = sorted(peer.rank for peer in ShmStore(_segment(url), create=False).peers() if peer.rank is not None)
    dist.barrier()
    dist.destroy_process_group()
    return [tensor.tolist(), gathered, ranks]


def _segment(url: str) -> str:
    return url.removeprefix("shm://").partition("?")[0] or os.environ["SHMSTORE_JOB"]


WHOLE = [[6.0] * 4, [{"rank": i} for i in range(3)], [0, 1, 2]]


@pytest.mark.parametrize(
    ("query", "given"),
    [("?rank={rank}&world_size=3", False), ("?sync=semaphore", True)],
    ids=["in the url", "given"],
)
def test_a_group(name: str, team: Team, query: str, given: bool) -> None:
    assert team.run(3, _meets, f"shm://{name}{query}", given, 3) == [WHOLE] * 3


def test_without_a_name(name: str, team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMSTORE_JOB", name)
    assert team.run(3, _meets, "shm://", False, 3) == [WHOLE] * 3


@pytest.mark.parametrize("url", ["shm://", "shm://?timeout=9"])
def test_without_a_name_but_with_rank_and_world_size(name: str, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Torch takes such a URL apart, and puts it together otherwise."""
    for variable, value in (("SHMSTORE_JOB", name), ("RANK", "5"), ("WORLD_SIZE", "6")):
        monkeypatch.setenv(variable, value)
    store, rank, world_size = next(dist.rendezvous(url, 0, 1))
    assert (rank, world_size, store.store.name) == (0, 1, name)
    store.close()


def _meets_again(me: Me, name: str, world: int) -> list[Any]:
    """Groups one after the other under one name; the last with fewer ranks."""
    dist, torch = torchs("torch.distributed"), torchs("torch")
    importlib.import_module("shmstore.torch")
    me.ready()
    totals = []
    for size in (world, world, world - 1):
        if me.index < size:
            dist.init_process_group("gloo", init_method=f"shm://{name}", rank=me.index, world_size=size)
            total = torch.ones(1)
            dist.all_reduce(total)
            totals.append(total.item())
            dist.destroy_process_group()
    with ShmStore(name, create=False) as keys:
        rounds = [keys.get(f"shm/{number}") for number in range(2)]
    me.say("done")
    me.hear()  # the segment lasts until all have looked
    return [totals, rounds]


def test_one_group_after_the_other(name: str, team: Team) -> None:
    ranks = [team.start(_meets_again, name, 3) for _ in range(3)]
    team.go()
    for rank in ranks:
        assert rank.hear() == "done"
    for rank in ranks:
        rank.say("go")
    several = [[3.0, 3.0, 2.0], [b"3", b"3"]]
    assert team.results() == [several, several, [[3.0, 3.0], [b"3", b"3"]]]


def test_who_gave_up_is_expected_in_the_same_round(name: str) -> None:
    def come(rank: int) -> Any:
        store, _, _ = next(dist.rendezvous(f"shm://{name}", rank, 2))
        return store

    first, again = come(0), come(0)
    ours = shmstore.torch.group_store()
    assert (ours.name, ours.rank) == (name, 0)
    first.set("k", "1")
    assert again.get("k") == b"1"
    again.set_timeout(timedelta(milliseconds=1))
    other = ShmStore(name, create=False)
    other.set("shm/0/1", b"")  # as rank 1 does, in another process
    after = come(0)
    assert after.check(["k"]) is False
    assert shmstore.torch.group_store() is ours  # the rank that came first
    assert [peer.rank for peer in other.peers() if peer.state == "live" and peer.rank is not None] == [0]
    del ours
    ShmStore(name, rank=1).close()  # with that the segment's world has come, and the last one out removes it
    for store in (first, again, after, other):
        store.close()
    with pytest.raises(RuntimeError, match="no group was begun with shm://"):
        shmstore.torch.group_store()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("shm://", "the environment speaks of no job"),
        ("shm://job?world_size=1", "RANK is not in the environment"),
        ("shm://job?rank=0", "WORLD_SIZE is not in the environment"),
        ("shm://job?rank=0&world_size=1&port=3", "no option 'port'"),
        ("shm://job?rank=2&world_size=2", "rank must be 0 to 1"),
    ],
)
def test_refused(url: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SHMSTORE_JOB", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=said):
        dist.init_process_group("gloo", init_method=url)
    assert not dist.is_initialized()


def test_there_is_no_second_round(name: str) -> None:
    rounds = dist.rendezvous(f"shm://{name}?rank=0&world_size=1")
    store, rank, world_size = next(rounds)
    assert (rank, world_size, store.store.name) == (0, 1, name)
    with pytest.raises(RuntimeError, match="one round"):
        next(rounds)
    store.close()


def test_a_timeout_that_is_given_is_the_stores(name: str) -> None:
    store, _, _ = next(dist.rendezvous(f"shm://{name}?rank=0&world_size=1", timeout=timedelta(seconds=9)))
    assert store.timeout == timedelta(seconds=9)
    store.close()


def test_a_rank_that_is_there_already(name: str) -> None:
    with ShmStore(name, rank=0), pytest.raises(ValueError, match="rank 0 is taken by a live owner"):
        dist.init_process_group("gloo", init_method=f"shm://{name}?rank=0&world_size=1")
