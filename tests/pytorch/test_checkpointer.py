"""Torch's experimental checkpointer with our barriers: a save ends when all have written, and names who will not.

The first processes are fresh interpreters, as a user's would be; the others are forked, as importing torch takes long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import inside
import pytest
from kinds import torchs

import shmstore
from shmstore import ShmStore

torch = torchs("torch", "the checkpointer is torch's")
dist = torchs("torch.distributed")
torchs("torch.distributed.checkpoint._experimental.builder", "a torch with experimental checkpointers")

from torch.distributed.checkpoint._experimental import barriers  # noqa: E402 -- not before torch is known to be there
from torch.distributed.checkpoint._experimental.barriers import BarrierConfig  # noqa: E402
from torch.distributed.checkpoint._experimental.builder import make_sync_checkpointer  # noqa: E402
from torch.distributed.checkpoint._experimental.checkpoint_writer import WriterHook  # noqa: E402
from torch.distributed.checkpoint._experimental.config import CheckpointerConfig  # noqa: E402
from torch.distributed.checkpoint._experimental.types import RankInfo  # noqa: E402

import shmstore.torch.checkpoint  # noqa: E402
from shmstore.torch import C10dStore  # noqa: E402

PREFIX = "checkpoint"
LIMIT_S = 60


class Told(WriterHook):
    """Tells the test where torch's writer stands: written, or past the barrier. Who is held goes on when told to."""

    def __init__(self, me: Any, held: bool) -> None:
        self._me = me
        self._held = held

    def pre_commit(self, path: str, **_: Any) -> None:
        self._me.say(("written", Path(path).name))
        if self._held:
            self._me.hear()

    def post_commit(self, path: str, **_: Any) -> None:
        self._me.say(("committed", Path(path).name))


def state_of(rank: int, step: int) -> dict[str, Any]:
    return {"weights": torch.arange(5.0) * (rank + 1), "step": step, "nested": {"rank": torch.tensor(rank)}}


def checkpointer(rank: int, world: int, kind: str, arguments: dict[str, Any], hook: Any = None) -> Any:
    common = {"global_rank": rank, "global_world_size": world, "barrier_prefix": PREFIX, "timeout_secs": LIMIT_S}
    config = CheckpointerConfig(barrier_config=BarrierConfig(kind, {**common, **arguments}))
    return make_sync_checkpointer(config, RankInfo(global_rank=rank, global_world_size=world), hook)


def in_segment(rank: int, world: int, name: str, hook: Any = None) -> Any:
    return checkpointer(rank, world, "shm_store", {"store_name": name, "timeout_barrier_init_secs": LIMIT_S}, hook)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (
        one.keys() == other.keys()
        and torch.equal(one["weights"], other["weights"])
        and torch.equal(one["nested"]["rank"], other["nested"]["rank"])
        and one["step"] == other["step"]
    )


# -- children ---------------------------------------------------------------------------------------------------------


def save_twice_and_load(me: Any, rank: int, world: int, name: str, folder: Path) -> bool:
    made = in_segment(rank, world, name, Told(me, held=rank == 1))
    me.ready()
    for step in (1, 2):
        made.save(str(folder / f"step-{step}"), state_of(rank, step))
    loaded = made.load(str(folder / "step-2"), {"weights": torch.zeros(5), "step": 0, "nested": {"rank": None}})
    whole = same(made.load(str(folder / "step-1")), state_of(rank, 1)) and same(loaded, state_of(rank, 2))
    made.close()
    return whole  # the barrier is left with the process: torch's close() does not close it


def save_with_one_who_dies(me: Any, rank: int, world: int, name: str, folder: Path) -> tuple[str, Any, Any, bool]:
    made = in_segment(rank, world, name, Told(me, held=rank == 2))
    me.ready()
    try:
        made.save(str(folder), state_of(rank, 1))
    except shmstore.PeerDiedError as error:
        return str(error), error.rank, error.pid, isinstance(error, shmstore.BrokenBarrierError)
    finally:
        made._writer._barrier.close()
    raise AssertionError("saved")


def save_on(me: Any, kind: str, rank: int, name: str, folder: Path) -> bool:
    """Saves with the barrier on a store that is given; who has written waits for the other there."""
    store: Any = dist.FileStore(str(folder / "store"), 2) if kind == "torch" else ShmStore(name, rank=rank)
    given = C10dStore(store) if kind == "c10d" else store
    try:
        made = checkpointer(rank, 2, "store", {"store": given}, Told(me, held=False))
        me.ready()
        made.save(str(folder / "saved"), state_of(rank, 1))
        return same(made.load(str(folder / "saved")), state_of(rank, 1))
    finally:
        for one in (given, store):
            if hasattr(one, "close"):
                one.close()


# -- tests ------------------------------------------------------------------------------------------------------------


def waiting(store: ShmStore, ranks: set[int]) -> bool:
    return {peer.rank for peer in store.peers() if peer.waiting_on is not None and PREFIX in peer.waiting_on} == ranks


def test_a_save_holds_at_our_barrier_until_all_have_written(team: Any, name: str, tmp_path: Path) -> None:
    early, late = (team.start(save_twice_and_load, rank, 2, name, tmp_path) for rank in range(2))
    team.go()
    with ShmStore(name, create=False) as store:
        for step in ("step-1", "step-2"):
            for rank, child in enumerate((early, late)):
                assert child.hear() == ("written", step)
                assert (tmp_path / step / f"checkpoint_{rank}.pt").exists()
            inside.until(lambda: waiting(store, {0}), LIMIT_S)
            assert not early._conn.poll(0), "it went past the barrier"
            late.say("go on")
            assert early.hear() == ("committed", step)
            assert late.hear() == ("committed", step)
        assert waiting(store, set())
    assert team.results() == [True, True]


def test_a_rank_killed_before_the_barrier_fails_the_save_of_all_others(team: Any, name: str, tmp_path: Path) -> None:
    children = [team.start(save_with_one_who_dies, rank, 3, name, tmp_path, how="fork") for rank in range(3)]
    team.go()
    victim = children[2]
    assert [child.hear() for child in children] == [("written", tmp_path.name)] * 3
    with ShmStore(name, create=False) as store:
        inside.until(lambda: waiting(store, {0, 1}), LIMIT_S)
        victim.kill()
        for child in children[:2]:
            text, rank, pid, broken = child.result()  # nobody was told that it committed
            assert (rank, pid, broken) == (2, victim.pid, True)
            assert f"rank 2 (pid {victim.pid}" in text
        assert {peer.rank: peer.state for peer in store.peers()}[2] == "dead"


@pytest.mark.parametrize("kind", ["shm", "c10d", "torch"])
def test_on_a_store_that_is_given(team: Any, name: str, tmp_path: Path, kind: str) -> None:
    children = [team.start(save_on, kind, rank, name, tmp_path, how="fork") for rank in range(2)]
    team.go()
    for child in children:
        assert child.hear() == ("written", "saved")
        assert child.hear() == ("committed", "saved")
    assert team.results() == [True, True]


def test_what_stands_in_torchs_registry() -> None:
    ours = shmstore.checkpoint
    assert barriers.BARRIER_REGISTRY == {
        "dist_barrier": barriers.DistBarrier,
        "tcp_store": barriers.TCPStoreBarrier,
        "store": ours.StoreBarrier,
        "shm_store": ours.ShmStoreBarrier,
        "hybrid_store": ours.HybridStoreBarrier,
    }
    assert barriers.TCPStoreBarrier is not ours.TCPStoreBarrier


def test_ours_are_torchs_barriers(name: str) -> None:
    with ShmStore(name) as store:
        common = {"global_rank": 0, "global_world_size": 1, "barrier_prefix": PREFIX}
        made = barriers.create_barrier_from_config(BarrierConfig("store", {**common, "store": store}))
        assert type(made) is shmstore.checkpoint.StoreBarrier
        assert isinstance(made, barriers.Barrier)
        made.execute_barrier()
    assert all(issubclass(kind, barriers.Barrier) for kind in shmstore.checkpoint.BARRIER_REGISTRY.values())


def test_a_configuration_that_is_wrong_says_so_at_once(name: str) -> None:
    with pytest.raises(TypeError, match="store_name"):
        checkpointer(0, 1, "shm_store", {"timeout_barrier_init_secs": LIMIT_S})
    with pytest.raises(ValueError, match="Unknown barrier type: shm"):
        checkpointer(0, 1, "shm", {"store_name": name})
