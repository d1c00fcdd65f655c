"""What all ranks of a HybridStore do together: values, order, lateness, errors, and how little goes over the wire."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import inside
import pytest
from clusters import LONG, Cluster, clusters
from kinds import warm_torch

from shmstore import (
    BarrierTimeoutError,
    BrokenBarrierError,
    HybridStore,
    PrefixStore,
    ShmStore,
    StoreConnectionError,
    checkpoint,
    elastic,
)
from shmstore import _barrier_hybrid as hybrid
from shmstore._hybrid_once import Once
from shmstore.barrier import Barrier
from shmstore.tcp import connection
from shmstore.testing.contract import Later, in_threads

SHAPES = [(1, 1), (1, 3), (3, 1), (2, 2)]


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    warm_torch()


@pytest.fixture(params=["ours", "hash"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def of(kind: str, name: str) -> Iterator[Callable[[int], Cluster]]:
    with clusters(name, kind) as made:
        yield made


@pytest.fixture
def stores(of: Callable[[int], Cluster], shape: tuple[int, int]) -> list[HybridStore]:
    nodes, size = shape
    return [of(size).open(rank, nodes * size) for rank in range(nodes * size)]


@pytest.mark.parametrize("kind", ["ours", "libuv", "torch", "hash", "prefix"])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_gather_and_broadcast(stores: list[HybridStore], shape: tuple[int, int]) -> None:
    n = len(stores)
    wanted = [bytes([rank]) * rank for rank in range(n)]  # the first one gives nothing

    def rank(i: int) -> None:
        assert stores[i].all_gather("g", wanted[i]) == wanted
        for src in range(n):
            assert stores[i].broadcast(f"b/{src}", "é" if i == src else None, src) == "é".encode()
        stores[i].barrier("b", n)

    in_threads(n, rank)
    assert stores[0].all_gather("g", b"another") == wanted  # late: the same
    stores[-1].barrier("b", n, 0)


@pytest.mark.parametrize("kind", ["ours", "torch", "hash"])
@pytest.mark.parametrize("shape", [(2, 2)])
def test_who_times_out_speaks_for_a_last_arriver_that_is_slow(
    stores: list[HybridStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has set its bit, and not yet told the world: all are there, and the values of its node have to be."""
    through = threading.Event()
    telling = Once._telling

    def slow(self: Once, epoch: int) -> Any:
        if self.rank == 1:
            assert through.wait(LONG)
        return telling(self, epoch)

    monkeypatch.setattr(Once, "_telling", slow)
    leader = Later(stores[0].all_gather, "g", b"0", 0.5)  # less than a slice, after which a leader speaks anyway
    inside.until(lambda: stores[0].node.check(["hybrid/g/all_gather/gather"]))
    others = [Later(stores[i].all_gather, "g", b"%d" % i, LONG) for i in (1, 2, 3)]
    try:
        assert leader.result() == [b"0", b"1", b"2", b"3"]
    finally:
        through.set()
    assert [other.result() for other in others] == [[b"0", b"1", b"2", b"3"]] * 3


@pytest.mark.parametrize("shape", SHAPES)
def test_elastics_own_words(stores: list[HybridStore], shape: tuple[int, int]) -> None:
    n = len(stores)

    def rank(i: int) -> None:
        values = elastic.synchronize(stores[i], f"v{i}", i, n, "sync/1")
        assert values == [f"v{k}".encode() for k in range(n)]
        assert elastic.synchronize(PrefixStore("p", stores[i]), b"x", i, n, "sync/1") == [b"x"] * n
        elastic.barrier(stores[i], n, "bar/1", rank=i)
        elastic.barrier(stores[i], n, "bar/2")

    in_threads(n, rank)


@pytest.mark.parametrize("shape", [(2, 2)])
def test_elastic_among_some_of_them_is_as_ever(stores: list[HybridStore]) -> None:
    def rank(i: int) -> list[bytes]:
        return elastic.synchronize(stores[i], str(i), i, 3, "some")

    assert in_threads(3, rank) == [[b"0", b"1", b"2"]] * 3
    assert stores[3].get("some2") == b"2"


@pytest.mark.parametrize("shape", [(2, 2)])
def test_a_timeout_names_the_missing_and_breaks_nothing(stores: list[HybridStore]) -> None:
    calls = [Later(stores[i].all_gather, "g", b"%d" % i, 0.4) for i in (1, 2)]
    for call in calls:
        with pytest.raises(BarrierTimeoutError) as caught:
            call.result()
        assert caught.value.missing_ranks == (0, 3)
        assert "missing rank 0 (node 0, " in str(caught.value)
        assert " and rank 3 (node 1, " in str(caught.value)
    late = [Later(stores[i].all_gather, "g", b"%d" % i) for i in (0, 3)]
    for call in late:
        assert call.result() == [b"0", b"1", b"2", b"3"]
    assert stores[1].all_gather("g", b"again") == [b"0", b"1", b"2", b"3"]
    with pytest.raises(BarrierTimeoutError) as caught:
        elastic.barrier(stores[0], 4, "bar", 0.3, rank=0, rank_tracing_decoder=lambda rank: f"host{rank}")
    assert caught.value.missing_ranks == (1, 2, 3)
    assert "missing_ranks=[host1, host2, host3]" in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 2)])
def test_a_barrier_names_the_missing_by_node_and_rank(stores: list[HybridStore]) -> None:
    barriers = [Barrier(store, "b", 4, rank) for rank, store in enumerate(stores)]
    call = Later(barriers[2].wait)
    end = Later(barriers[0].wait, 0.5)
    with pytest.raises(BarrierTimeoutError) as caught:
        end.result()
    assert caught.value.missing_ranks == (1, 3)
    assert "missing rank 1 (node 0, pid " in str(caught.value)
    assert "rank 3 (node 1, did not arrive)" in str(caught.value)
    with pytest.raises(Exception, match=r"rank 0 timed out .* missing rank 1 and rank 3"):
        call.result()


@pytest.mark.parametrize("shape", [(2, 1)])
@pytest.mark.parametrize("kind", ["ours"])
def test_what_is_refused(stores: list[HybridStore]) -> None:
    one = stores[0]
    for call, error in (
        (lambda: one.all_gather("node/g", b""), ValueError),
        (lambda: one.all_gather("g", 3), TypeError),
        (lambda: one.all_gather("g", b"", -1), ValueError),
        (lambda: one.broadcast("g", b"", 1), ValueError),
        (lambda: one.broadcast("g", None, 0), ValueError),
        (lambda: one.broadcast("g", None, 2), ValueError),
        (lambda: one.broadcast("g", None, True), TypeError),
        (lambda: Barrier(one, "b", 2, 1), ValueError),
    ):
        with pytest.raises(error):
            call()
    assert one.list_keys() == []


@pytest.mark.parametrize("shape", [(2, 2)])
@pytest.mark.parametrize("kind", ["ours"])
def test_a_lost_world_says_so(stores: list[HybridStore], of: Callable[[int], Cluster]) -> None:
    calls = [Later(stores[i].all_gather, "g", b"") for i in (0, 1, 2)]
    of(2).world.server.close()
    for call in calls:
        with pytest.raises(StoreConnectionError, match="TCPStore"):
            call.result()


class TestTheWire:
    """What all ranks of all nodes write to the world, in one use."""

    @pytest.fixture
    def kind(self) -> str:
        return "ours"

    @pytest.fixture
    def writes(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        sizes: list[int] = []
        send = connection.Line._send

        def count(line: connection.Line, data: bytes, deadline: int) -> None:
            sizes.append(len(data))
            send(line, data, deadline)

        monkeypatch.setattr(connection.Line, "_send", count)
        return sizes

    def counted(self, writes: list[int], n: int, use: Callable[[int, int], Any]) -> tuple[int, int]:
        """The fewest writes of some uses, and their bytes: who is slow says so in the meantime, ten times a second."""
        found = []
        for turn in range(12):
            writes.clear()
            in_threads(n, lambda i: use(i, turn))  # noqa: B023 -- it ends with this turn
            found.append((len(writes), sum(writes)))
        return min(found[2:])

    def test_a_barrier_costs_the_same_for_any_number_of_ranks(
        self, of: Callable[[int], Cluster], writes: list[int]
    ) -> None:
        found = {}
        for nodes, size in ((2, 2), (2, 4), (2, 8), (3, 4)):
            n = nodes * size
            barriers = [Barrier(of(size).open(rank, n), f"b{nodes}.{size}", n, rank) for rank in range(n)]
            found[nodes, size] = self.counted(writes, n, lambda i, _, barriers=barriers: barriers[i].wait(LONG))
        for (nodes, _), (writes_of_one, _) in found.items():
            assert nodes <= writes_of_one <= 3 * nodes, found

    def test_synchronize_moves_one_blob_a_node(self, of: Callable[[int], Cluster], writes: list[int]) -> None:
        found = {}
        value = b"x" * 1000
        for nodes, size in ((2, 2), (2, 8)):
            n = nodes * size
            stores = [of(size).open(rank, n) for rank in range(n)]
            found[size] = self.counted(
                writes, n, lambda i, turn, s=stores, n=n: elastic.synchronize(s[i], value, i, n, f"{n}/{turn}", LONG)
            )
        assert max(found[2][0], found[8][0]) <= 3 * 2
        for size, (_, count) in found.items():
            assert 2 * size * 1000 < count < 2 * size * 1000 + 2000 + 2 * size * 8

    def test_a_blob_goes_once_however_long_the_others_take(
        self, of: Callable[[int], Cluster], writes: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody says again what has been said, or is on its way, slice by slice."""
        monkeypatch.setattr(hybrid, "SLICE_NS", 20_000_000)
        monkeypatch.setattr(hybrid, "REST_NS", 10_000_000)
        stores = [of(2).open(rank, 4) for rank in range(4)]
        value = b"x" * 10_000
        early = [Later(store.all_gather, "g", value, LONG) for store in stores[:3]]
        inside.until(lambda: sum(size > 20_000 for size in writes) == 1)
        looks = len(writes)
        inside.until(lambda: len(writes) > looks + 10)
        assert stores[3].all_gather("g", value, LONG) == [value] * 4
        for call in early:
            call.result()
        assert sum(size > 20_000 for size in writes) == 2


def test_names_of_meetings_are_not_names_of_barriers(of: Callable[[int], Cluster]) -> None:
    stores = [of(1).open(rank, 2) for rank in range(2)]
    barriers = [Barrier(store, "init/barrier", 2, rank) for rank, store in enumerate(stores)]
    in_threads(2, lambda i: barriers[i].wait(LONG))
    with pytest.raises(ValueError, match="was made for"):
        stores[0].barrier("init", 2, 1)


@pytest.mark.parametrize("shape", [(2, 2)])
@pytest.mark.parametrize("kind", ["ours"])
def test_keys_do_not_pile_up_in_either_half(stores: list[HybridStore]) -> None:
    barriers = [Barrier(store, "b", 4, rank) for rank, store in enumerate(stores)]

    def counts() -> list[int]:
        return [stores[0].world.num_keys(), stores[0].node.num_keys(), stores[2].node.num_keys()]

    def rank(i: int) -> None:
        for _ in range(30):
            barriers[i].wait()

    in_threads(4, rank)
    first = counts()
    in_threads(4, rank)
    for turn in range(20):  # broken and mended by one, with others there or not
        calls = [Later(barriers[i].wait) for i in range(1, 1 + turn % 3)]
        for call in [None, *calls]:
            while call is None or not call.done:  # one that was slow comes to the epoch after the reset
                barriers[0].abort()
                barriers[0].reset()
                if call is None:
                    break
                call._thread.join(0.2)
        for call in calls:
            try:
                call.result()
            except BrokenBarrierError:
                continue
            raise AssertionError("it passed without all")
        in_threads(4, lambda i: barriers[i].wait())
    in_threads(4, rank)
    assert counts()[0] <= first[0] + 2  # who has come is said when it takes long
    assert counts()[1:] == first[1:]
    assert max(first) <= 10


@pytest.mark.parametrize("shape", [(2, 2)])
def test_the_checkpoint_barrier_of_any_store(stores: list[HybridStore]) -> None:
    def rank(i: int) -> None:
        barrier = checkpoint.StoreBarrier(stores[i], i, 4, "c", LONG)
        for _ in range(3):
            barrier.execute_barrier()

    in_threads(4, rank)


@pytest.mark.parametrize("shape", [(2, 2)])
@pytest.mark.parametrize("kind", ["ours"])
def test_under_torch(stores: list[HybridStore]) -> None:
    """A HybridStore in torch's C++: the verbs reach both halves."""
    from shmstore.torch import C10dStore

    made = [C10dStore(store) for store in stores]
    made[0].set("node/k", b"near")
    made[0].set("k", b"far")
    assert (made[1].get("node/k"), made[3].get("k")) == (b"near", b"far")
    assert not made[2].check(["node/k"])
    in_threads(4, lambda i: elastic.barrier(made[i], 4, "bar", 20))
    for one in made:
        one.close()


@pytest.mark.parametrize("shape", [(2, 2)])
def test_calls_of_one_name_are_meetings_of_their_own(stores: list[HybridStore]) -> None:
    """As on a flat store: the verb, elastic's barrier, all_gather and synchronize."""
    calls: list[Callable[[int], Any]] = [
        lambda i: stores[i].barrier("n", 4, LONG),
        lambda i: elastic.barrier(stores[i], 4, "n", LONG, rank=i),
        lambda i: stores[i].all_gather("n", b"a%d" % i, LONG),
        lambda i: elastic.synchronize(stores[i], b"s%d" % i, i, 4, "n", LONG),
    ]
    for call in calls:
        with pytest.raises(BarrierTimeoutError):
            alone(call, stores)
        results = in_threads(4, call)
        if results[0] is not None:
            assert len(set(map(tuple, results))) == 1
    assert stores[0].all_gather("n", b"") == [b"a0", b"a1", b"a2", b"a3"]


def alone(call: Callable[[int], Any], stores: list[HybridStore]) -> None:
    """The call by rank 0 alone, who is not let through."""
    whole = Once._limit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Once, "_limit", lambda once, timeout: min(whole(once, timeout), 50_000_000))
        call(0)


@pytest.mark.parametrize("shape", [(2, 2)])
def test_who_left_is_missing_and_may_come_again(of: Callable[[int], Cluster], stores: list[HybridStore]) -> None:
    stores[1].close()
    with pytest.raises(BarrierTimeoutError, match=r"rank 1 \(node 0, .*left"):
        stores[0].barrier("n", 4, 0.3)
    again = HybridStore(
        ShmStore(stores[0].node.name, rank=1),  # type: ignore[attr-defined]
        of(2).world.open(),
        node_rank=0,
        num_nodes=2,
        local_rank=1,
        local_world_size=2,
    )
    with again:
        ranks = [stores[0], again, *stores[2:]]
        in_threads(4, lambda i: ranks[i].barrier("n", 4, LONG))
