"""The barriers of checkpoints: torch's names and registry, and on every store what a checkpoint needs of them.

The whole suite runs on every store in a segment, and by keys on the least that will do; on torch's stores that part of
it which depends on the store. TCPStoreBarrier, which meets in another way, takes all of it too, at a server of ours.
"""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from kinds import DUCKS, LONG, SEGMENT, OnTorch, handles, torchs

import shmstore
from shmstore import BarrierTimeoutError, BrokenBarrierError, ShmStore, _barrier_elastic, checkpoint
from shmstore._barrier_keys import KeyBarrier
from shmstore.checkpoint import (
    BARRIER_REGISTRY,
    BarrierConfig,
    RankInfo,
    ShmStoreBarrier,
    StoreBarrier,
    TCPStoreBarrier,
    create_barrier_from_config,
    register_barrier,
)
from shmstore.testing.barriers import until
from shmstore.testing.contract import Later, in_threads

Make = Callable[..., Any]


class OnStore:
    """What depends on the store."""

    @pytest.fixture
    def factory(self, kind: str, name: str, tmp_path: Path) -> Iterator[Callable[[], Any]]:
        with handles(kind, name, tmp_path) as factory:
            yield factory

    @pytest.fixture
    def make(self, factory: Callable[[], Any]) -> Make:
        def make(rank: int, world: int = 2, prefix: str = "checkpoint", timeout: Any = LONG) -> StoreBarrier:
            return StoreBarrier(factory(), rank, world, prefix, timeout)

        return make

    def arrived(self, looks: Any, waits: Any, n: int) -> None:
        """Returns once n ranks have come to the call that the rank of `waits` is in."""
        until(lambda: looks._barrier.n_waiting == n)

    def test_all_meet_again_and_again(self, make: Make) -> None:
        barriers = [make(rank, 3) for rank in range(3)]
        came = [[0] * 3 for _ in range(10)]

        def party(rank: int) -> None:
            for row in came:
                row[rank] = 1
                assert barriers[rank].execute_barrier() is None
                assert sum(row) == 3

        in_threads(3, party)

    def test_timeout_secs_counts_and_the_missing_are_named_in_order(self, make: Make) -> None:
        with pytest.raises(BarrierTimeoutError) as caught:
            make(2, 4, timeout=0.05).execute_barrier()
        assert caught.value.missing_ranks == (0, 1, 3)
        assert caught.value.timeout == 0.05
        assert "1 of 4 arrived" in str(caught.value)
        assert "the next call of each meets again" in str(caught.value)

    def test_a_failure_leaves_the_stores_timeout(self, factory: Callable[[], Any]) -> None:
        store = factory()
        if not hasattr(store, "set_timeout"):
            pytest.skip("the store has no timeout")
        store.set_timeout(timedelta(seconds=17))
        barrier = StoreBarrier(store, 0, 2, "checkpoint", 0.02)
        for _ in range(2):
            with pytest.raises(BarrierTimeoutError):
                barrier.execute_barrier()
        assert store.timeout == timedelta(seconds=17)

    def test_a_rank_that_is_late_fails_too_and_is_not_counted_in_for_the_next(self, make: Make) -> None:
        one, two = make(0), make(1)
        one.abort()
        again = Later(one.execute_barrier)
        self.arrived(two, one, 1)
        with pytest.raises(BrokenBarrierError, match="gave up"):
            two.execute_barrier()
        assert not again.done
        two.execute_barrier()
        again.result()

    def test_a_rank_that_failed_says_so_at_once(self, make: Make) -> None:
        barriers = [make(rank, 3) for rank in range(3)]
        for _ in range(3):
            calls = [Later(barriers[rank].execute_barrier) for rank in (0, 1)]
            self.arrived(barriers[2], barriers[0], 2)
            barriers[2].abort()
            for call in calls:
                with pytest.raises(BrokenBarrierError, match=r"rank 2 called abort\(\)"):
                    call.result()
            in_threads(3, lambda rank: barriers[rank].execute_barrier())

    def test_passed_ones_leave_nothing(self, make: Make, factory: Callable[[], Any], kind: str) -> None:
        store = factory()
        if kind in ("duck-swap", "duck-plain"):
            pytest.skip("the store cannot delete keys")
        barriers = [make(rank) for rank in range(2)]
        in_threads(2, lambda rank: barriers[rank].execute_barrier())
        before = store.num_keys()
        in_threads(2, lambda rank: [barriers[rank].execute_barrier() for _ in range(50)])
        assert store.num_keys() <= before + 1


class Suite(OnStore):
    """The whole: also what StoreBarrier counts and refuses, with the same calls of its store."""

    def test_rank_0_names_the_missing_too(self, make: Make) -> None:
        with pytest.raises(BarrierTimeoutError) as caught:
            make(0, 4, timeout=0.01).execute_barrier()
        assert caught.value.missing_ranks == (1, 2, 3)

    def test_prefixes_are_apart(self, make: Make) -> None:
        call = Later(make(0, 2, "one").execute_barrier)
        make(0, 1, "two").execute_barrier()
        assert not call.done
        make(1, 2, "one").execute_barrier()
        call.result()

    def test_who_was_late_by_some_catches_up_and_meets_the_others_again(self, make: Make) -> None:
        one, two = make(0, timeout=0.01), make(1)
        for _ in range(3):
            with pytest.raises(BarrierTimeoutError):
                one.execute_barrier()
        for _ in range(3):
            with pytest.raises(BrokenBarrierError):
                two.execute_barrier()
        call = Later(two.execute_barrier)
        self.arrived(one, two, 1)
        one.execute_barrier()
        call.result()

    def test_abort_before_the_others_come(self, make: Make) -> None:
        one, two = make(0), make(1)
        one.abort()
        with pytest.raises(BrokenBarrierError, match=r"rank 0 called abort\(\)"):
            two.execute_barrier()
        in_threads(2, lambda i: (one, two)[i].execute_barrier())

    def test_a_new_object_takes_part_in_the_next_call(self, make: Make) -> None:
        one, two = make(0), make(1)
        in_threads(2, lambda i: (one, two)[i].execute_barrier())
        again = make(1)
        in_threads(2, lambda i: (one, again)[i].execute_barrier())
        one.abort()
        again = make(1)
        in_threads(2, lambda i: (one, again)[i].execute_barrier())

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [((None, 2), TypeError), ((2, 2), ValueError), ((-1, 2), ValueError), ((0, 0), ValueError),
         (("0", 2), TypeError), ((0, 2, "p", -1), ValueError), ((0, 2, "p", "1"), TypeError), ((0, 2, ""), ValueError)],
    )  # fmt: skip
    def test_refused(self, make: Make, arguments: tuple[Any, ...], error: type[Exception]) -> None:
        with pytest.raises(error):
            make(*arguments)


class TestOnOurs(Suite):
    @pytest.fixture(params=SEGMENT)
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)


class TestByKeys(Suite):
    @pytest.fixture(params=DUCKS)
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def test_it_is_by_keys(self, make: Make) -> None:
        assert type(make(0)._barrier) is KeyBarrier


class TestOnTorch(OnTorch, OnStore):
    pass


# -- over a TCPStore, by torchelastic's barrier


def make_patient(one: TCPStoreBarrier) -> TCPStoreBarrier:
    one._meeting._timeout = LONG
    return one


def lefts(one: TCPStoreBarrier) -> list[tuple[int, int]]:
    """Which calls which ranks have left, as far as there are keys of it."""
    found = (re.search(r"/(\d+)/left(\d+)$", key) for key in one.store.list_keys())
    return sorted((int(match[1]), int(match[2])) for match in found if match)


class TestOnTCPStore(Suite):
    """At one server for all: that rank 0 hosts it is for test_tcpstore_barrier.py."""

    @pytest.fixture
    def kind(self) -> str:
        return "tcp-ours"

    @pytest.fixture
    def factory(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
        with shmstore.HashStore() as keys, shmstore.TCPStoreServer(keys) as server, ExitStack() as stack:

            def client(*_: Any, timeout: timedelta = LONG, **__: Any) -> shmstore.TCPStore:
                return stack.enter_context(shmstore.TCPStore("127.0.0.1", server.port, timeout=timeout))

            monkeypatch.setattr(checkpoint, "TCPStore", client)
            yield client

    @pytest.fixture
    def make(self, factory: Callable[[], Any]) -> Iterator[Make]:
        """Makes rank 0 first where a test does without: the others wait for it."""
        opened = set()
        with ExitStack() as stack:

            def make(rank: int, world: int = 2, prefix: str = "checkpoint", timeout: Any = LONG) -> TCPStoreBarrier:
                if rank and prefix not in opened:
                    make(0, world, prefix)
                made = TCPStoreBarrier(rank, world, prefix, 17, True, 1, "127.0.0.1", timeout)
                opened.add(prefix)
                return stack.enter_context(made)

            yield make

    def arrived(self, looks: Any, waits: Any, n: int) -> None:
        def count() -> int:
            key = f"checkpoint{waits._meeting._open[-1]}/num_members" if waits._meeting._open else "none"
            return int(looks.store.get(key)) if looks.store.check([key]) else 0

        until(lambda: count() == n)

    def test_a_failure_leaves_the_stores_timeout(self, make: Make) -> None:
        barrier = make(0, timeout=0.02)
        assert barrier.store.timeout == timedelta(seconds=5)  # no longer the 17 s that the constructor may take
        for _ in range(2):
            with pytest.raises(BarrierTimeoutError):
                barrier.execute_barrier()
        assert barrier.store.timeout == timedelta(seconds=5)

    def test_failed_ones_are_gone_with_the_next_that_is_passed(self, make: Make, factory: Callable[[], Any]) -> None:
        store = factory()
        barriers = [make(rank) for rank in range(2)]
        for n in range(6):
            if n:
                barriers[n % 2].abort()
                with pytest.raises(BrokenBarrierError):
                    barriers[1 - n % 2].execute_barrier()
            in_threads(2, lambda rank: barriers[rank].execute_barrier())
        base = barriers[0]._meeting._places.base
        assert sorted(store.list_keys()) == sorted(
            [
                "checkpoint/meeting",
                f"{base}/rank0",
                f"{base}/rank1",
                "checkpoint10/last_member",
                "checkpoint10/num_members",
                f"{base}/10/left1",
                f"{base}/10/outcome",
                "rank0",
                "rank1",
            ]
        )

    def test_a_new_object_joins_the_call_that_the_others_are_in(self, make: Make) -> None:
        one, two = make(0), make(1)
        in_threads(2, lambda i: (one, two)[i].execute_barrier())
        call = Later(one.execute_barrier)
        self.arrived(two, one, 1)
        again = make(1)
        again.execute_barrier()
        call.result()
        in_threads(2, lambda i: (one, again)[i].execute_barrier())
        assert lefts(one) == [(2, 1)]

    def test_an_arrival_does_not_count_twice(self, make: Make) -> None:
        """A rank that died in a call, and is started again, was not there for it."""
        one, two = make(0, 3), make(1, 3)
        call = Later(one.execute_barrier)
        self.arrived(two, one, 1)
        number = two._meeting._count()
        two.store.add(f"checkpoint{number}/num_members", 1)
        again, three = make(1, 3), make(2, 3)
        with pytest.raises(BrokenBarrierError, match="another object took its place"):
            call.result()
        with pytest.raises(BrokenBarrierError):
            three.execute_barrier()
        in_threads(3, lambda i: (one, again, three)[i].execute_barrier())

    def test_a_rank_that_died_before_its_first_call_is_not_behind_for_ever(self, make: Make) -> None:
        one, two = make(0, timeout=0.05), make(1)
        for _ in range(2):
            with pytest.raises(BarrierTimeoutError):
                one.execute_barrier()
        again = make(1)
        assert again._meeting._next == 2
        one = make_patient(one)
        in_threads(2, lambda i: (one, again)[i].execute_barrier())
        assert two._meeting._next == 0

    def test_a_rank_that_began_to_arrive_and_did_not_is_missing(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_barrier_elastic, "LINGER_S", 0)
        one, two = make(0, timeout=0.05), make(1)
        two._meeting._count()  # as one that is killed then
        with pytest.raises(
            BarrierTimeoutError, match=r"1 of 2 arrived; missing rank 1; rank 1 began to arrive"
        ) as caught:
            one.execute_barrier()
        assert caught.value.missing_ranks == (1,)

    def test_where_one_of_several_did_not_arrive_none_is_accused(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_barrier_elastic, "LINGER_S", 0)
        ranks = [make(0, 4, timeout=0.2), make(1, 4), make(2, 4), make(3, 4)]
        call = Later(ranks[1].execute_barrier)
        self.arrived(ranks[0], ranks[1], 1)
        ranks[2]._meeting._count()
        with pytest.raises(
            BarrierTimeoutError, match="2 of 4 arrived; missing rank 3; 1 of rank 1 and rank 2"
        ) as caught:
            ranks[0].execute_barrier()
        assert caught.value.missing_ranks == (3,)
        with pytest.raises(BrokenBarrierError, match="1 of rank 1 and rank 2 began to arrive"):
            call.result()

    def test_who_was_never_attached_is_told(self, make: Make) -> None:
        with pytest.raises(BarrierTimeoutError, match=r"missing rank 1 and rank 2; never attached: rank 1 and rank 2"):
            make(0, 3, timeout=0.01).execute_barrier()

    def test_all_have_arrived_when_the_time_is_over(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody has said yet how it ended: who is late finds the count full, and says that it was passed."""
        one, two = make(0), make(1)
        meet = shmstore.elastic.barrier

        def late(**args: Any) -> None:
            meet(**args)
            raise shmstore.StoreTimeoutError

        monkeypatch.setattr(shmstore.elastic, "barrier", late)
        in_threads(2, lambda i: (one, two)[i].execute_barrier())

    def test_a_successor_deletes_what_failed_calls_left(self, make: Make) -> None:
        one, two = make(0), make(1)
        for _ in range(10):
            two.abort()
            with pytest.raises(BrokenBarrierError):
                one.execute_barrier()
        assert len(lefts(one)) == 10
        again = make(1)
        in_threads(2, lambda i: (one, again)[i].execute_barrier())
        assert lefts(one) == [(10, 1)]

    def test_places_are_read_at_once(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        one = make(0, 64, timeout=0.01)
        asked = mock.Mock(wraps=one.store._ask)
        monkeypatch.setattr(one.store, "_ask", asked)
        with pytest.raises(BarrierTimeoutError):
            one.execute_barrier()
        assert asked.call_count < 20

    def test_an_interrupt_is_told(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        one, two = make(0), make(1)
        call = Later(one.execute_barrier)
        self.arrived(two, one, 1)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shmstore.elastic, "barrier", mock.Mock(side_effect=KeyboardInterrupt))
            two.execute_barrier()
        with pytest.raises(BrokenBarrierError, match=r"rank 1 was interrupted .*\(KeyboardInterrupt\)"):
            call.result()
        in_threads(2, lambda i: (one, two)[i].execute_barrier())

    def test_a_call_that_the_store_failed_counts_too(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        one, two = make(0), make(1)
        call = Later(one.execute_barrier)
        with monkeypatch.context() as patch, pytest.raises(shmstore.StoreConnectionError):
            patch.setattr(two.store, "set", mock.Mock(side_effect=shmstore.StoreConnectionError))
            two.execute_barrier()
        assert not call.done
        second = Later(two.execute_barrier)
        with pytest.raises(BrokenBarrierError, match="its store failed"):
            call.result()
        one.execute_barrier()
        second.result()

    def test_who_times_out_as_the_last_arrives_passes(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was said first holds for all, whatever a rank has seen itself."""
        one, two = make(0), make(1)
        call = Later(two.execute_barrier)
        self.arrived(one, two, 1)
        meet = shmstore.elastic.barrier

        def late(**args: Any) -> None:
            meet(**args)
            call.result()
            raise shmstore.StoreTimeoutError

        with monkeypatch.context() as patch:
            patch.setattr(shmstore.elastic, "barrier", lambda **a: (late if a["store"] is one.store else meet)(**a))
            one.execute_barrier()


# -- in a segment of its own


class TestShmStoreBarrier:
    def test_meets_and_any_rank_leaves_first(self, name: str) -> None:
        def party(rank: int) -> None:
            with ShmStoreBarrier(rank, 3, "checkpoint", 20, name, 20) as barrier:
                for _ in range(10):
                    barrier.execute_barrier()

        for _ in range(5):
            in_threads(3, party)

    def test_what_it_opens(self, name: str) -> None:
        with ShmStoreBarrier(
            global_rank=1,
            global_world_size=2,
            barrier_prefix="p",
            timeout_barrier_init_secs=7,
            store_name=name,
            timeout_secs=0.02,
        ) as barrier:
            assert isinstance(barrier.store, ShmStore)
            assert (barrier.store.name, barrier.store.rank) == (name, 1)
            with pytest.raises(BarrierTimeoutError, match=r"missing rank 0 \(never attached\)"):
                barrier.execute_barrier()
            assert barrier.store.timeout == timedelta(seconds=7)
            assert f"ShmStoreBarrier(Barrier(ShmStore('{name}', rank=1), 'p', 2, rank=1))" == repr(barrier)
            with pytest.raises(ValueError, match="taken by a live owner"):
                ShmStoreBarrier(1, 2, "p", 7, name, 1)
        barrier.close()
        with pytest.raises(shmstore.StoreClosedError):
            barrier.execute_barrier()
        with ShmStoreBarrier(0, 2, "q", 7, name):
            pass
        shmstore.ShmStore(name).close()

    def test_a_constructor_that_fails_leaves_nothing(self, name: str) -> None:
        with pytest.raises(ValueError, match="1 to 8191 bytes"):
            ShmStoreBarrier(0, 1, "", 7, name)
        with pytest.raises(shmstore.SegmentNotFoundError):
            ShmStore(name, create=False)


# -- names, registry, configuration: torch's


def test_the_registry_knows_ours() -> None:
    assert BARRIER_REGISTRY["store"] is StoreBarrier
    assert BARRIER_REGISTRY["shm_store"] is ShmStoreBarrier
    assert BARRIER_REGISTRY["tcp_store"] is TCPStoreBarrier
    assert BARRIER_REGISTRY["hybrid_store"] is checkpoint.HybridStoreBarrier


def test_users_see_one_module() -> None:
    for name in checkpoint.__all__:
        one = getattr(checkpoint, name)
        if inspect.isclass(one):
            assert one.__module__ == "shmstore.checkpoint"
            assert pickle.loads(pickle.dumps(one)) is one


def test_no_type_is_no_barrier() -> None:
    assert create_barrier_from_config(BarrierConfig()) is None


def test_a_config_makes_a_barrier() -> None:
    with shmstore.HashStore() as store:
        rank = asdict(RankInfo(global_rank=0, global_world_size=1))
        config = BarrierConfig("store", {"store": store, "barrier_prefix": "p", "timeout_secs": 3, **rank})
        barrier = create_barrier_from_config(config)
        assert type(barrier) is StoreBarrier
        barrier.execute_barrier()


def test_an_unknown_type_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"Unknown barrier type: nope. Available types: .*'shm_store'"):
        create_barrier_from_config(BarrierConfig("nope"))


def test_register_a_class_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "BARRIER_REGISTRY", {})

    @register_barrier
    class Mine(checkpoint.Barrier):
        barrier_type = "mine"

        def __init__(self, n: int = 0) -> None:
            self.n = n

        def execute_barrier(self) -> None:
            self.n += 1

    class Nameless:
        pass

    made = create_barrier_from_config(BarrierConfig("mine", {"n": 3}))
    assert isinstance(made, Mine)
    assert made.n == 3
    assert register_barrier(Nameless) is Nameless
    assert {"mine": Mine} == checkpoint.BARRIER_REGISTRY


def test_configs_are_plain_records() -> None:
    one, two = BarrierConfig(), BarrierConfig()
    assert one == two
    one.barrier_args["x"] = 1
    assert two.barrier_args == {}
    assert pickle.loads(pickle.dumps(one)) == one
    assert RankInfo(1, 2) == RankInfo(global_rank=1, global_world_size=2)


def test_the_abstract_one_wants_execute_barrier() -> None:
    with pytest.raises(TypeError, match="execute_barrier"):
        checkpoint.Barrier()  # type: ignore[abstract]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_names_and_fields_are_torchs() -> None:
    theirs = torchs("torch.distributed.checkpoint._experimental.barriers", "compares with torch's")
    types = torchs("torch.distributed.checkpoint._experimental.types", "compares with torch's")
    for name in ("Barrier", "BarrierConfig", "create_barrier_from_config", "register_barrier", "BARRIER_REGISTRY"):
        assert hasattr(theirs, name)
        assert hasattr(checkpoint, name)
    for ours, other in ((BarrierConfig, theirs.BarrierConfig), (RankInfo, types.RankInfo)):
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(other).parameters)
    shape = list(inspect.signature(theirs.TCPStoreBarrier).parameters)
    mine = list(inspect.signature(ShmStoreBarrier).parameters)
    assert [name for name in shape if "tcpstore" not in name and name != "master_address"] == [
        name for name in mine if name != "store_name"
    ]
    assert list(inspect.signature(TCPStoreBarrier).parameters) == shape
    assert theirs.BARRIER_REGISTRY[TCPStoreBarrier.barrier_type] is theirs.TCPStoreBarrier
    for module in (checkpoint, theirs):
        with pytest.raises(ValueError, match=r"Unknown barrier type: nope\. Available types: "):
            module.create_barrier_from_config(module.BarrierConfig("nope"))
