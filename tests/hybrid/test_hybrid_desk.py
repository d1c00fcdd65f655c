"""The node's half of a meeting by itself: who was late, and what strangers put under its keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmstore import Barrier, HashStore, HybridStore, ShmStore, StoreError
from shmstore._hybrid_desk import Desk


@pytest.fixture
def node() -> Iterator[HashStore]:
    with HashStore(timeout=5) as node:
        yield node


@pytest.mark.parametrize("sure", [False, True])
def test_whether_they_were_late_is_known_before_the_bell_and_after_the_next_epoch(node: HashStore, sure: bool) -> None:
    desk = Desk(node, "b", 2)
    assert desk.arrive(0, 0) is not None
    if sure:
        desk.make_sure(0)
    assert desk.late(0) is not sure, "now has moved, and nobody has rung"
    assert desk.arrive(1, 1) is not None, "somebody comes to the next epoch before that"
    assert desk.late(0) is not sure
    assert desk.rest(0, 1_000_000), "who rests in the one before hears of it"
    assert desk.arrive(2, 0) is not None
    assert desk.arrive(3, 0) is not None
    assert not node.check(["hybrid/b/over/0"])


@pytest.mark.parametrize(
    "raw", ["", "x", "0 1 0 0", "0 1 0 0 -1 2", "0 zz 0 0 -1", "-1 1 0 0 -1", "0 -1 0 0 -1", "0 4 0 0 -1", "0 1 9 0 -1"]
)
def test_gathers_of_strangers_are_errors(node: HashStore, raw: str) -> None:
    node.set("hybrid/b/gather", raw)
    with pytest.raises(StoreError, match="hybrid/b/gather is in use for something else"):
        Desk(node, "b", 2).gather()


@pytest.mark.parametrize(
    "raw",
    [
        "no",
        "[2, 0, null, [[Infinity, 0]], null, 2, 1]",
        "[" * 100_000,
        '[2, 0, {"kind": "abort", "missing": [], "note": 5}, [[0, 0]], null, 2, 1]',
        '[2, 0, {"kind": "timeout", "missing": ["x"], "elapsed": 1.0}, [[0, 0]], null, 2, 1]',
        '[2, 0, {"kind": "sleep", "missing": []}, [[0, 0]], null, 2, 1]',
    ],
)
def test_states_of_strangers_are_errors(name: str, node: HashStore, raw: str) -> None:
    with (
        ShmStore(name, rank=0) as here,
        HybridStore(here, node, node_rank=0, num_nodes=2, local_rank=0, local_world_size=1) as store,
    ):
        node.set("b/state", raw)
        with pytest.raises(StoreError, match="b/state is in use for something else"):
            Barrier(store, "b", 2, 0, timeout=1)


@pytest.mark.parametrize("said", [b"0 1", b"0 3", b"0 -1", b"0 " + b"f" * 40, b"hello", b"\xff\xfe", b""])
def test_what_a_stranger_says_of_who_has_come_passes_nothing(name: str, node: HashStore, said: bytes) -> None:
    with (
        ShmStore(name, rank=0) as here,
        HybridStore(here, node, node_rank=0, num_nodes=2, local_rank=0, local_world_size=2) as store,
    ):
        barrier = Barrier(store, "b", 4, 0, timeout=0.05)
        node.set("b/seen/n1", said)
        with pytest.raises(TimeoutError, match=r"missing rank 1 .*, rank"):
            barrier.wait()


@pytest.mark.parametrize("blob", [b"", b"\xff" * 20, b"\0" * 7, b"\1" + b"\0" * 7, b"\0" * 16])
def test_values_of_strangers_are_errors(name: str, node: HashStore, blob: bytes) -> None:
    with (
        ShmStore(name, rank=0) as here,
        HybridStore(here, node, node_rank=0, num_nodes=2, local_rank=0, local_world_size=1) as store,
    ):
        node.set("g/all_gather/0/n1", blob)
        with pytest.raises(StoreError, match="in use for something else"):
            store.all_gather("g", b"x", 5)


def test_a_hybrid_store_is_no_node(name: str, node: HashStore) -> None:
    with (
        ShmStore(name, rank=0) as here,
        HybridStore(here, node, node_rank=0, num_nodes=1, local_rank=0, local_world_size=1) as store,
        pytest.raises(TypeError, match="node must be a ShmStore"),
    ):
        HybridStore(store, node, node_rank=0, num_nodes=1, local_rank=0, local_world_size=1)
