"""The node's half of a meeting by itself: who was late, and what strangers put under its keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from shmstore import (
    Barrier,
    HashStore,
    HybridStore,
    PrefixStore,
    ShmStore,
    StoreError,
    StoreFullError,
    TCPStore,
    TCPStoreServer,
    elastic,
)
from shmstore._hybrid_desk import Desk
from shmstore._verbs import SegmentStore
from shmstore.testing.contract import in_threads


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
    "raw",
    [
        "",
        "x",
        "0 1 0 0",
        "0 1 0 0 -1 2",
        "0 zz 0 0 -1",
        "-1 1 0 0 -1",
        "0 -1 0 0 -1",
        "0 4 0 0 -1",
        "0 1 9 0 -1",
        "0 1 -2 0 -1",
    ],
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


@pytest.mark.parametrize("said", [b"", b"over", b"over ", b"late x", b"over [4, 0, null, [[0, 0]], null, 2, 2]"])
@pytest.mark.parametrize("local", [0, 1])
def test_bells_of_strangers_are_errors(name: str, node: HashStore, said: bytes, local: int) -> None:
    """Of a leader and of one that rests: neither spins."""
    with (
        ShmStore(name, rank=local) as here,
        HybridStore(here, node, node_rank=0, num_nodes=1 + 1, local_rank=local, local_world_size=2) as store,
    ):
        barrier = Barrier(store, "b", 4, local, timeout=30)
        if local:
            Desk(here, "b", 2).arrive(0, 0)
        here.set("hybrid/b/over/0", said)
        with pytest.raises(StoreError, match=r"changed by others|in use for something else"):
            barrier.wait()


def test_a_full_node_hears_no_bell_and_passes(name: str, node: HashStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        stores = [
            stack.enter_context(
                HybridStore(
                    ShmStore(name, rank=local, world_size=2),
                    node.clone(),
                    node_rank=0,
                    num_nodes=2,
                    local_rank=local,
                    local_world_size=2,
                )
            )
            for local in range(2)
        ]
        barriers = [Barrier(store, "b", 4, rank, timeout=30) for rank, store in enumerate(stores)]
        whole = HashStore.set

        def full(store: SegmentStore, key: Any, value: Any) -> None:
            if "/over/" in str(key):
                raise StoreFullError("no room")
            whole(store, key, value)

        monkeypatch.setattr(SegmentStore, "set", full)
        node.set("b/0/n1", b"1")  # the other node is there
        assert in_threads(2, lambda i: barriers[i].wait()) == [0, 1]


def test_a_world_that_watches_is_not_asked_to(name: str) -> None:
    """Who died there and had come, has come; who had not is the meeting's own to say."""
    with (
        ShmStore(f"{name}.0", rank=0) as here,
        ShmStore(f"{name}.w", watch_peers=True) as world,
        HybridStore(here, world, node_rank=0, num_nodes=2, local_rank=0, local_world_size=1) as store,
    ):
        assert store._signals().store._watch is False  # type: ignore[attr-defined]


def test_each_rank_meets_by_its_own_store(name: str, node: HashStore) -> None:
    with (
        ShmStore(name, rank=0) as here,
        HybridStore(here, node, node_rank=0, num_nodes=2, local_rank=0, local_world_size=2) as store,
    ):
        for rank in (1, 2):
            with pytest.raises(ValueError, match=rf"that of rank 0, and {rank} was given"):
                Barrier(store, "b", 4, rank)
            with pytest.raises(ValueError, match=rf"that of rank 0, and {rank} was given"):
                elastic.synchronize(store, b"v", rank, 4, "k", 1)
            with pytest.raises(ValueError, match=rf"that of rank 0, and {rank} was given"):
                elastic.barrier(store, 4, "k", 1, rank=rank)


def test_keys_that_are_too_long_behind_their_prefixes(name: str) -> None:
    with (
        HashStore() as keys,
        TCPStoreServer(keys, "127.0.0.1", 0) as server,
        ShmStore(name, rank=0) as here,
        HybridStore(
            here,
            PrefixStore("p" * 200, TCPStore("127.0.0.1", server.port)),
            node_rank=0,
            num_nodes=2,
            local_rank=0,
            local_world_size=1,
        ) as store,
    ):
        for call in (
            store.barrier,
            lambda key, n: Barrier(store, key, n, 0),
            lambda key, n: store.all_gather(key, b""),
        ):
            with pytest.raises(ValueError, match="the key of a barrier has 1 to"):
                call("k" * 7950, 2)
