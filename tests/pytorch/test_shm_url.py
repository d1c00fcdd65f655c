"""init_method="shm://…": groups of real processes, and what is refused."""

from __future__ import annotations

import importlib
import json
import os
import re
from datetime import timedelta
from typing import Any

import inside
import pytest
from harness import Me, Team
from kinds import torchs

import shmstore
from shmstore import ShmStore

dist: Any = torchs("torch.distributed", "shm:// is a rendezvous of torch's")
importlib.import_module("shmstore.torch")  # registers shm://


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


@pytest.mark.parametrize("url", ["shm://", "shm://?sync=futex"])
def test_without_a_name_but_with_rank_and_world_size(name: str, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Torch takes such a URL apart, and puts it together otherwise."""
    for variable, value in (("SHMSTORE_JOB", name), ("RANK", "5"), ("WORLD_SIZE", "6")):
        monkeypatch.setenv(variable, value)
    store, rank, world_size = next(dist.rendezvous(url, 0, 1))
    assert (rank, world_size, store.store.underlying_store.name) == (0, 1, name)
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
    return totals


def test_one_group_after_the_other(name: str, team: Team) -> None:
    assert team.run(3, _meets_again, name, 3) == [[3.0, 3.0, 2.0], [3.0, 3.0, 2.0], [3.0, 3.0]]


def _comes(me: Me, name: str, rank: int, seconds: float) -> bytes:
    """Comes to a round of two, as often as the test says; then says what it finds there."""
    dist = torchs("torch.distributed")
    importlib.import_module("shmstore.torch")
    while me.hear() == "come":
        try:
            store, _, _ = next(dist.rendezvous(f"shm://{name}", rank, 2, timeout=timedelta(seconds=seconds)))
        except dist.DistStoreError as error:
            me.say(str(error))
            continue
        store.set(f"by {rank}", f"{rank}")
        me.say("met")
        return bytes(store.get(f"by {1 - rank}"))
    return b""


def _come(child: Any) -> Any:
    child.say("come")
    return child


@pytest.mark.parametrize("first", [0, 1])
def test_who_gave_up_comes_again(name: str, team: Team, first: int) -> None:
    """Its call before is none of the round's, and the other, who came later, waits for the next one."""
    with ShmStore(name) as keys:
        one = _come(team.start(_comes, name, first, 0.3, how="fork"))
        assert re.search(rf"Wait timeout: .*1 of 2 ranks came .* missing: {1 - first}", one.hear())
        other = _come(team.start(_comes, name, 1 - first, 60, how="fork"))
        inside.until(lambda: f'"{1 - first}"'.encode() in keys.get("shm/2/meeting"))
        _come(one)
        assert (one.hear(), other.hear()) == ("met", "met")
        assert team.results() == [b"%d" % (1 - first), b"%d" % first]


def test_who_was_killed_as_it_waited_is_no_part_of_the_round(name: str, team: Team) -> None:
    killed = _come(team.start(_comes, name, 0, 60, how="fork"))
    with ShmStore(name) as keys:
        inside.until(lambda: keys.check(["shm/2/meeting"]))
        killed.kill()
        one = _come(team.start(_comes, name, 1, 60, how="fork"))
        inside.until(lambda: b'"1"' in keys.get("shm/2/meeting") and b'"0"' not in keys.get("shm/2/meeting"))
        successor = _come(team.start(_comes, name, 0, 60, how="fork"))
        assert (one.hear(), successor.hear()) == ("met", "met")
        assert (one.result(), successor.result()) == (b"0", b"1")


def test_who_formed_the_round_was_killed_before_it_rang(name: str, team: Team) -> None:
    """By hand what it leaves: the round, and no word to the one that waits."""
    waiting = _come(team.start(_comes, name, 0, 60, how="fork"))
    with ShmStore(name) as keys:
        inside.until(lambda: keys.check(["shm/2/meeting"]))
        _, come, _ = json.loads(keys.get("shm/2/meeting"))
        keys.set("shm/2/meeting", json.dumps([1, {}, [come["0"], "1.1.1"]]))
        keys.set("shm/2/0/by 1", "1")
        assert waiting.hear() == "met"
        assert waiting.result() == b"1"


def test_what_is_left_of_a_larger_world_does_not_matter(name: str, team: Team) -> None:
    """A rank was killed, and the others go on without it."""
    with ShmStore(name) as keys:
        third = team.start(_holds, name, 2, how="fork")
        third.hear()
        third.kill()
        inside.until(lambda: any(peer.state == "dead" for peer in keys.peers()))
        pair = [_come(team.start(_comes, name, rank, 60, how="fork")) for rank in range(2)]
        assert [one.hear() for one in pair] == ["met", "met"]
        assert [one.result() for one in pair] == [b"1", b"0"]


def _holds(me: Me, name: str, rank: int) -> None:
    store = ShmStore(name, rank=rank)
    me.say(store.rank)
    me.hear()


def test_the_segment_below(name: str) -> None:
    store, _, _ = next(dist.rendezvous(f"shm://{name}", 0, 1))
    ours = shmstore.torch.group_store()
    assert (ours.name, ours.rank) == (name, 0)
    ours.close()
    after, _, _ = next(dist.rendezvous(f"shm://{name}", 0, 1))  # it came to it anew
    assert shmstore.torch.group_store() is not ours
    for one in (store, after):
        one.close()
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
        ("shm://job?rank=0&world_size=1&timeout=3", "the timeout of a group is init_process_group's"),
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
    assert (rank, world_size, store.store.underlying_store.name) == (0, 1, name)
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
