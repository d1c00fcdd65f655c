"""The contract on HybridStores: keys of the world over every kind of it, keys of the node, and both in one call."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from clusters import LONG, WORLDS, Cluster, clusters
from kinds import warm_torch

from shmstore import (
    Barrier,
    HashStore,
    HybridStore,
    PrefixStore,
    ShmStore,
    Store,
    StoreClosedError,
    StoreConnectionError,
    StoreTimeoutError,
)
from shmstore.testing.contract import VALUE_MAX, Later, StoreContract

RANKS = 64
"""More than the contract's barriers have: those are the world's own."""


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    warm_torch()


@pytest.fixture
def cluster(kind: str, name: str) -> Iterator[Cluster]:
    with clusters(name, kind) as of:
        yield of(2)


class Hybrid(StoreContract):
    @pytest.fixture
    def store_factory(self, cluster: Cluster) -> Callable[[], Store]:
        return lambda: cluster.open(0, RANKS)


class TestInTheWorld(Hybrid):
    @pytest.fixture
    def kind(self) -> str:
        return "ours"

    def test_append_to_the_limit_and_not_beyond(self, store: Store) -> None:
        store.set("k", b"x" * VALUE_MAX)
        with pytest.raises(StoreConnectionError):  # the server's way to refuse
            store.append("k", b"z")
        assert len(store.get("k")) == VALUE_MAX


class TestInTheNode(Hybrid):
    """Through PrefixStore("node", …) every key is the node's."""

    @pytest.fixture
    def kind(self) -> str:
        return "hash"  # over the wire, Capabilities say of `add` what is the world's alone

    @pytest.fixture
    def store_factory(self, cluster: Cluster) -> Callable[[], Store]:
        return lambda: PrefixStore("node", cluster.open(0, RANKS))

    @pytest.fixture
    def key_overhead(self) -> int:
        return len("node/")


class TestOverTorchsOwn(Hybrid):
    """torch's own TCPStore as the world. What it does not keep is said below."""

    @pytest.fixture
    def kind(self) -> str:
        return "torch"

    @pytest.mark.parametrize("text", [b"", b"abc"])
    @pytest.mark.parametrize("n", [0, 1])
    def test_add_to_no_number_keeps_the_value(self, cluster: Cluster, store: Store, text: bytes, n: int) -> None:
        """torch's client does not connect again."""
        store.set("n", text)
        with pytest.raises(StoreConnectionError):
            store.add("n", n)
        assert cluster.open(1, RANKS).get("n") == text

    def test_append_to_the_limit_and_not_beyond(self, store: Store) -> None:
        """There is no limit."""

    def test_a_wake_for_nothing_holds_up_nobody(self, store: Store) -> None:
        """Torch's server wakes who waits for a key with a compare_set that makes nothing."""
        call = Later(store.get, "k", LONG)
        while not call.done and not store.check(["made"]):
            for _ in range(50):
                assert store.compare_set("k", b"wrong", b"x") == b"wrong"
            store.set("made", b"")
        store.set("k", b"1")
        assert call.result() == b"1"

    def test_get_does_not_see_a_queue(self, store: Store) -> None:
        """It takes one for an empty value."""
        store.queue_push("q", b"x")
        assert store.get("q", 0.01) == b""

    def test_list_keys_escapes_what_is_not_utf8(self, store: Store) -> None:
        """It cannot list them."""

    test_a_listed_key_can_be_used = test_list_keys_escapes_what_is_not_utf8

    @pytest.mark.parametrize("key", ["k", "a/b", "with space", "gr\xfcn", b"k\0"])
    def test_key_may_hold_anything(self, store: Store, key: str | bytes) -> None:
        super().test_key_may_hold_anything(store, key)


# -- both halves --------------------------------------------------------------------------------------------------


@pytest.fixture(params=WORLDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_rule_is_the_keys_beginning(cluster: Cluster) -> None:
    one, two, far = cluster.open(0, 4), cluster.open(1, 4), cluster.open(2, 4)
    one.set("node/k", b"near")
    one.set("k", b"far")
    one.set("nodes", b"far too")
    assert two.get("node/k", 0) == two.node.get("node/k", 0) == b"near"
    assert not far.check(["node/k"])
    assert far.get("k") == far.world.get("k") == b"far"
    assert sorted(one.list_keys()) == ["k", "node/k", "nodes"]
    assert (one.num_keys(), far.num_keys()) == (3, 2)
    below = PrefixStore("node", two)
    assert (below.get("k"), below.list_keys(), below.num_keys()) == (b"near", ["k"], 1)
    assert PrefixStore("p", one).list_keys() == []
    PrefixStore("p", one).set("node/x", b"1")
    assert far.get("p/node/x") == b"1"


def test_keys_of_both_halves_in_one_call(cluster: Cluster) -> None:
    store, far = cluster.open(0, 4), cluster.open(2, 4)
    store.multi_set(["node/a", "b", "node/c"], [b"1", b"2", b"3"])
    assert store.multi_get(["b", "node/c", "node/a", "b"]) == [b"2", b"3", b"1", b"2"]
    assert store.check(["b", "node/a"])
    assert not store.check(["b", "node/z"])
    store.wait(["node/a", "b"], 0)
    start = time.monotonic()
    with pytest.raises(StoreTimeoutError) as caught:
        store.wait(["node/x", "y", "node/a", "b"], 0.2)
    assert time.monotonic() - start >= 0.2
    assert sorted(key.removeprefix("job/") for key in caught.value.keys) == ["node/x", "y"]
    with pytest.raises(StoreTimeoutError) as caught:
        store.multi_get(["node/a", "y"], 0.05)
    assert [key.removeprefix("job/") for key in caught.value.keys] == ["y"]
    far.set("y", b"")
    store.set("node/x", b"")
    store.wait(["node/x", "y"], 0)


def test_a_clone_a_pickle_and_the_end(cluster: Cluster, kind: str) -> None:
    store = cluster.open(1, 4)
    store.set("k", b"1")
    store.set("node/k", b"2")
    store.set_timeout(7)
    clone = store.clone()
    assert (clone.rank, clone.world_size, clone.timeout) == (1, 4, timedelta(seconds=7))
    assert store.capabilities.picklable == (kind not in ("torch", "hash"))
    if store.capabilities.picklable:
        with pickle.loads(pickle.dumps(store)) as again:
            assert (again.get("k"), again.get("node/k"), again.timeout) == (b"1", b"2", timedelta(seconds=7))
            assert (again.node_rank, again.num_nodes, again.local_rank, again.local_world_size) == (0, 2, 1, 2)
    else:
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(store)
    store.close()
    store.close()
    for call in (
        lambda: store.check([]),
        lambda: store.barrier("b", 4),
        lambda: store.all_gather("g", b""),
        lambda: store.clone(),
    ):
        with pytest.raises(StoreClosedError):
            call()
    assert clone.get("node/k") == b"2"
    clone.close()


def test_a_barrier_of_the_node(cluster: Cluster) -> None:
    barrier = Barrier(cluster.open(0, 4), "node/b", 1, 0)
    assert type(barrier).__name__ == "SegmentBarrier"
    assert barrier.wait(0) == 0
    cluster.open(0, 4).barrier("node/once", 1, 0)


@pytest.mark.parametrize("kind", ["hash"])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"node_rank": 2}, ValueError),
        ({"node_rank": -1}, ValueError),
        ({"local_rank": 2}, ValueError),
        ({"num_nodes": 0}, ValueError),
        ({"num_nodes": 4096}, ValueError),
        ({"local_world_size": True}, TypeError),
        ({"local_world_size": 2.0}, TypeError),
        ({"local_rank": 0}, ValueError),
        ({"world": object()}, TypeError),
        ({"node": object()}, TypeError),
    ],
)
def test_refused(cluster: Cluster, name: str, change: dict[str, Any], error: type[Exception]) -> None:
    with ShmStore(f"{name}-r", rank=1) as node, HashStore() as world:
        good: dict[str, Any] = {
            "node": node,
            "world": world,
            "node_rank": 0,
            "num_nodes": 2,
            "local_rank": 1,
            "local_world_size": 2,
        }
        with HybridStore(**good) as made:
            assert made.rank == 1
    with ShmStore(f"{name}-r", rank=1) as node, HashStore() as world, pytest.raises(error):
        HybridStore(**{**good, "node": node, "world": world, **change})
