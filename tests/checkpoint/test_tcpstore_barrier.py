"""TCPStoreBarrier with the store that it makes: torch's calls, rank 0 as the host of all, processes and their ends.

What all barriers of checkpoints share is in test_checkpoint_barriers.py.
"""

from __future__ import annotations

import copy
import gc
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from time import monotonic
from typing import Any
from unittest import mock

import pytest
import ranks
from harness import Team

from shmstore import (
    BrokenBarrierError,
    StoreClosedError,
    StoreConnectionError,
    StoreError,
    StoreTimeoutError,
    TCPStore,
    _barrier_elastic,
    elastic,
)
from shmstore._barrier_elastic import ElasticBarrier
from shmstore.checkpoint import BarrierConfig, TCPStoreBarrier, create_barrier_from_config
from shmstore.testing.barriers import until
from shmstore.testing.contract import Later, in_threads


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def pair(port: int) -> Iterator[list[TCPStoreBarrier]]:
    """Two ranks."""
    pair = in_threads(2, lambda rank: ranks.barrier(rank, 2, port))
    yield pair
    for barrier in pair:
        barrier.close()


# -- what is called, and with what: torch's


@pytest.fixture
def calls() -> Iterator[mock.Mock]:
    """Stand-ins for the store's class and for elastic's barrier: .TCPStore, .barrier."""
    calls = mock.Mock()
    with (
        mock.patch("shmstore.checkpoint.TCPStore", new=calls.TCPStore),
        mock.patch("shmstore.elastic.barrier", new=calls.barrier),
    ):
        store = calls.TCPStore.return_value = mock.MagicMock(spec=TCPStore)
        store.get.side_effect = [b'{"token": "t", "parties": 4}', b'{"by": "", "call": -1, "since": 0}']
        store.compare_set.side_effect = lambda _key, _expected, desired: desired.encode()
        yield calls


def test_plain_mocks_will_do() -> None:
    """As in torch's own test: nothing is set up for what they answer."""
    with mock.patch("shmstore.checkpoint.TCPStore") as made, mock.patch("shmstore.elastic.barrier") as barrier:
        saved = made_as_torchs()
        for number in range(2):
            saved.execute_barrier()
            assert made.return_value.set.call_args == mock.call("rank0", str(number))
            assert made.return_value.set.call_count == number + 1
            barrier.assert_called_with(store=made.return_value, world_size=4, key_prefix=f"saved{number}")


def made_as_torchs(rank: int = 0, *, libuv: bool = True) -> Any:
    config = BarrierConfig(
        "tcp_store",
        {
            "global_rank": rank,
            "global_world_size": 4,
            "barrier_prefix": "saved",
            "timeout_barrier_init_secs": 60,
            "use_checkpoint_barrier_tcpstore_libuv": libuv,
            "tcpstore_port": 29555,
            "master_address": "node-0",
            "timeout_secs": 30,
        },
    )
    return create_barrier_from_config(config)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("libuv", [True, False])
def test_the_store_is_made_once_and_rank_0_hosts_it(calls: mock.Mock, rank: int, libuv: bool) -> None:
    assert type(made_as_torchs(rank, libuv=libuv)) is TCPStoreBarrier
    more = {} if libuv else {"use_libuv": False}
    calls.TCPStore.assert_called_once_with(
        "node-0", 29555, world_size=4, timeout=timedelta(seconds=60), is_master=rank == 0, **more
    )


def test_each_call_says_its_number_and_meets_under_a_new_prefix(calls: mock.Mock) -> None:
    barrier = made_as_torchs()
    store = calls.TCPStore.return_value
    for number in range(3):
        store.set.reset_mock()
        calls.barrier.reset_mock()
        barrier.execute_barrier()
        store.set.assert_called_once_with("rank0", str(number))
        calls.barrier.assert_called_once_with(store=store, world_size=4, key_prefix=f"saved{number}")


def test_elastics_barrier_finds_the_timeout_in_its_context(calls: mock.Mock) -> None:
    before = elastic.default_barrier_timeout.get()
    seen = []
    calls.barrier.side_effect = lambda **_: seen.append(elastic.default_barrier_timeout.get())
    made_as_torchs().execute_barrier()
    calls.barrier.side_effect = RuntimeError
    with pytest.raises(RuntimeError):
        made_as_torchs().execute_barrier()
    assert seen == [timedelta(seconds=30)]
    assert elastic.default_barrier_timeout.get() == before


# -- the port and the host


def test_a_port_for_one_alone() -> None:
    with TCPStoreBarrier(0, 1, "p", 20, True, 0, "127.0.0.1", 20) as barrier:
        for _ in range(3):
            barrier.execute_barrier()
        assert barrier.store.port > 0
        assert repr(barrier) == f"TCPStoreBarrier(TCPStore('127.0.0.1', {barrier.store.port}), 'p', 1, rank=0)"


@pytest.mark.parametrize(
    ("rank", "port", "error"),
    [(0, 0, ValueError), (1, 0, ValueError), (0, "x", ValueError), (0, 1 << 16, ValueError), (0, None, TypeError),
     (0, True, TypeError), (0, 1.5, TypeError), (0, "1_0", ValueError), (0, " 80", ValueError), (0, "", ValueError),
     (0, "\u0663\u0663", ValueError), (0, "9" * 5000, ValueError), (0, -1, ValueError)],
)  # fmt: skip
def test_ports_that_are_refused(rank: int, port: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="tcpstore_port"):
        TCPStoreBarrier(rank, 2, "p", 20, True, port, "127.0.0.1", 20)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [((2, 2, "p"), ValueError, "global_rank"), (("0", 2, "p"), TypeError, "global_rank"),
     ((0, 0, "p"), ValueError, "global_world_size"), ((0, 2.0, "p"), TypeError, "global_world_size"),
     ((0, 1, ""), ValueError, "barrier_prefix"), ((0, 1, 3), TypeError, "barrier_prefix"),
     ((0, 1, None), TypeError, "barrier_prefix"), ((0, 1, "x" * 9000), ValueError, "barrier_prefix")],
)  # fmt: skip
def test_errors_name_the_callers_arguments(arguments: tuple[Any, ...], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        TCPStoreBarrier(*arguments, 20, True, 1, "127.0.0.1", 20)


def test_a_port_in_digits(port: int) -> None:
    with TCPStoreBarrier(0, 1, "p", 20, True, str(port), "127.0.0.1") as barrier:
        assert barrier.store.port == port


def test_a_second_barrier_wants_a_port_of_its_own(pair: list[TCPStoreBarrier]) -> None:
    with pytest.raises(StoreConnectionError, match="in use"):
        ranks.barrier(0, 2, pair[0].store.port)
    in_threads(2, lambda rank: pair[rank].execute_barrier())


def test_a_constructor_that_fails_leaves_nothing(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreConnectionError):
        TCPStoreBarrier(1, 2, "p", 0.05, True, port, "127.0.0.1", 20)
    with pytest.raises(StoreTimeoutError, match="1 of 2 clients"):
        TCPStoreBarrier(0, 2, "p", 0.05, True, port, "127.0.0.1", 20)
    with monkeypatch.context() as patch, pytest.raises(StoreConnectionError, match="looking"):
        patch.setattr(ElasticBarrier, "begin", mock.Mock(side_effect=StoreConnectionError("looking")))
        TCPStoreBarrier(0, 1, "p", 20, True, port, "127.0.0.1", 20)
    TCPStoreBarrier(0, 1, "p", 20, True, port, "127.0.0.1", 20).close()


# -- who meets whom


def test_another_prefix_than_rank_0s_times_out(port: int) -> None:
    def party(rank: int) -> None:
        with TCPStoreBarrier(rank, 2, ("one", "two")[rank], 20 if rank == 0 else 0.3, True, port, "127.0.0.1", 20):
            done.wait(20)

    done = threading.Event()
    host = Later(party, 0)
    with pytest.raises(StoreTimeoutError, match=r"'two': rank 1 .*rank 0 did not begin in 0.3 s: .*barrier_prefix"):
        party(1)
    done.set()
    host.result()


def test_another_world_than_rank_0s_is_refused(port: int) -> None:
    def party(rank: int, world: int) -> None:
        with ranks.barrier(rank, world, port):
            done.wait(20)

    done = threading.Event()
    host = Later(party, 0, 2)
    with pytest.raises(ValueError, match="global_world_size of 2, this rank 1 for 3"):
        party(1, 3)
    done.set()
    host.result()


def test_an_object_that_outlived_rank_0_is_refused_by_the_next_server(pair: list[TCPStoreBarrier]) -> None:
    in_threads(2, lambda rank: pair[rank].execute_barrier())
    port = pair[0].store.port
    pair[0].close()
    with pytest.raises(StoreConnectionError):
        pair[1].execute_barrier()
    again = Later(ranks.barrier, 0, 2, port)
    until(lambda: refused(pair[1]))
    new = [again, Later(ranks.barrier, 1, 2, port)]
    with new[0].result() as zero, new[1].result() as one:
        calls = [Later(zero.execute_barrier), Later(one.execute_barrier)]
        for call in (pair[1].execute_barrier, pair[1].abort):
            with pytest.raises(StoreConnectionError, match="rank 0 was started again"):
                call()
        for later in calls:
            later.result()


def refused(barrier: TCPStoreBarrier) -> bool:
    """Whether a new server is there, which does not know the object."""
    with pytest.raises(StoreConnectionError) as caught:
        barrier.execute_barrier()
    return "rank 0 was started again" in str(caught.value)


def test_an_older_object_of_a_rank_is_refused(pair: list[TCPStoreBarrier]) -> None:
    in_threads(2, lambda rank: pair[rank].execute_barrier())
    with ranks.barrier(1, 2, pair[0].store.port) as again:
        for call in (pair[1].execute_barrier, pair[1].abort):
            with pytest.raises(StoreError, match="another object has taken the place"):
                call()
        in_threads(2, lambda rank: (pair[0], again)[rank].execute_barrier())


def test_who_was_stopped_in_a_call_that_failed_does_not_pass_it(
    pair: list[TCPStoreBarrier], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its outcome is swept when it goes on: it must not take it for one that nobody knows yet.
    stopped, goes_on = threading.Event(), threading.Event()
    arrive = pair[1]._meeting._arrive

    def is_stopped(number: int) -> bool:
        late = arrive(number)
        stopped.set()
        assert goes_on.wait(20)
        return late

    monkeypatch.setattr(pair[1]._meeting, "_arrive", is_stopped)
    call = Later(pair[1].execute_barrier)
    pair[0].store.wait(["job0/num_members"])
    pair[0].abort()
    assert stopped.wait(20)
    with ranks.barrier(1, 2, pair[0].store.port) as again:
        in_threads(2, lambda rank: (pair[0], again)[rank].execute_barrier())
        goes_on.set()
        with pytest.raises(StoreError, match="another object has taken the place"):
            call.result()
        in_threads(2, lambda rank: (pair[0], again)[rank].execute_barrier())


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_no_copies(pair: list[TCPStoreBarrier], copied: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="make one in each process"):
        copied(pair[0])


def test_users_keys_are_apart(pair: list[TCPStoreBarrier]) -> None:
    for name in ("rank0", "rank1", "0", "meeting"):
        pair[0].store.set(name, "mine")
    in_threads(2, lambda rank: pair[rank].execute_barrier())


@pytest.mark.parametrize("nonsense", ["mine", "[1]", "3", '{"by": 1, "call": 2, "since": 3}', '{"x": 1}', b"\xff"])
def test_nonsense_in_its_keys_is_told(pair: list[TCPStoreBarrier], nonsense: Any) -> None:
    zero, one = pair
    zero.store.set(one._meeting._places.key(1), nonsense)
    with pytest.raises(StoreError, match="changed by others"):
        one.execute_barrier()
    with pytest.raises(StoreError, match="changed by others"):
        ranks.barrier(1, 2, zero.store.port)
    zero.store.set(zero._meeting._key(0, "outcome"), nonsense)
    with pytest.raises(StoreError, match="changed by others"):
        zero.abort()
    zero.store.set("job/meeting", nonsense)
    with pytest.raises(StoreError, match="changed by others"):
        ranks.barrier(1, 2, zero.store.port)
    zero.close()
    with pytest.raises(StoreClosedError):
        zero.store.num_keys()


def test_a_second_rank_0_at_one_server_is_refused(pair: list[TCPStoreBarrier]) -> None:
    with pytest.raises(StoreError, match="one of that name already"):
        ElasticBarrier("job", 2, 0, 20).begin(pair[0].store)


# -- who leaves first


def test_any_rank_leaves_first() -> None:
    def party(rank: int, port: int) -> None:
        with ranks.barrier(rank, 3, port) as barrier:
            for _ in range(3):
                barrier.execute_barrier()

    for _ in range(10):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        in_threads(3, lambda rank, port=port: party(rank, port))


@pytest.mark.parametrize("how", ["close", "drop"])
def test_rank_0_leaves_when_the_others_have_seen_how_it_ended(pair: list[TCPStoreBarrier], how: str) -> None:
    leaving = threading.Event()
    wait, swap = pair[0].store.wait, pair[1].store.compare_set

    def note_wait(*args: Any) -> None:
        if args[-1] == _barrier_elastic.LINGER_S:
            leaving.set()
        wait(*args)

    def late_swap(key: str, *args: Any) -> bytes:
        if key.endswith("/outcome"):
            leaving.wait(20)
        return swap(key, *args)

    def host(barrier: TCPStoreBarrier) -> None:
        barrier.execute_barrier()
        if how == "close":
            barrier.close()
        del barrier
        gc.collect()
        leaving.set()

    pair[0].store.wait, pair[1].store.compare_set = note_wait, late_swap  # type: ignore[method-assign]
    call = Later(host, pair.pop(0))
    pair[0].execute_barrier()
    call.result()
    with pytest.raises(StoreConnectionError):
        pair[0].execute_barrier()


@pytest.mark.parametrize("how", ["interpreter", "fork", "spawn"])
def test_so_does_rank_0_that_ends_with_its_process(port: int, team: Team, how: str) -> None:
    child = team.start(ranks.end_after_one, port, how)
    with ranks.late_reader(1, port) as one:
        one.execute_barrier()
    assert child.result() == 0


def test_rank_0_that_aborts_and_leaves_is_told_from_one_that_is_gone(port: int) -> None:
    def host() -> None:
        with ranks.barrier(0, 2, port) as barrier:
            barrier.store.wait(["job0/num_members"])
            barrier.abort()

    call = Later(host)
    with ranks.late_reader(1, port) as one, pytest.raises(BrokenBarrierError, match=r"rank 0 called abort\(\)"):
        one.execute_barrier()
    call.result()


def test_who_waits_for_rank_0_learns_that_it_left(pair: list[TCPStoreBarrier]) -> None:
    call = Later(pair[1].execute_barrier)
    pair[0].store.wait(["job0/num_members"])
    pair[0].close()
    with pytest.raises(BrokenBarrierError, match="rank 0 left the store"):
        call.result()
    with pytest.raises(StoreClosedError):
        pair[0].execute_barrier()
    pair[0].close()


def test_who_is_calls_ahead_of_rank_0_learns_that_it_left(pair: list[TCPStoreBarrier]) -> None:
    pair[1].abort()
    pair[1].abort()
    call = Later(pair[1].execute_barrier)
    pair[0].store.wait(["job2/num_members"])
    pair[0].close()
    with pytest.raises(BrokenBarrierError, match="rank 0 left the store"):
        call.result()


def test_rank_0_does_not_wait_for_ever(pair: list[TCPStoreBarrier], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_barrier_elastic, "LINGER_S", 0.05)
    pair[1]._meeting._leave = lambda _: None  # type: ignore[method-assign]  # as one that was killed just then
    in_threads(2, lambda rank: pair[rank].execute_barrier())
    pair[0].close()
    with pytest.raises(StoreConnectionError, match=r"'job': rank 1 has lost the server, .*make the barrier anew"):
        pair[1].execute_barrier()


def test_rank_0_waits_for_those_in_its_last_call(pair: list[TCPStoreBarrier], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_barrier_elastic, "LINGER_S", 0.3)
    monkeypatch.setattr(pair[1]._meeting, "_leave", lambda _: None)
    in_threads(2, lambda rank: pair[rank].execute_barrier())
    start = monotonic()
    pair[0].close()
    assert monotonic() - start >= 0.3


@pytest.mark.parametrize("ends", ["abort", "broken"])
def test_who_left_a_failed_call_is_not_waited_for(
    pair: list[TCPStoreBarrier], monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(_barrier_elastic, "LINGER_S", 60)
    pair[ends == "abort"].abort()
    with pytest.raises(BrokenBarrierError):
        pair[ends == "broken"].execute_barrier()
    Later(pair[0].close).result()


def test_rank_0_breaks_its_own_open_call_too(pair: list[TCPStoreBarrier], monkeypatch: pytest.MonkeyPatch) -> None:
    call = Later(pair[1].execute_barrier)
    pair[0].store.wait(["job0/num_members"])
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="its store failed here"):
        patch.setattr(elastic, "barrier", mock.Mock(side_effect=StoreError("its store failed here")))
        pair[0].execute_barrier()
    pair[0].close()
    with pytest.raises(
        BrokenBarrierError, match=r"rank 0 left the store .*make the barrier anew in all ranks"
    ) as caught:
        call.result()
    assert "meets again" not in str(caught.value)


def test_an_outcome_is_an_outcome_though_rank_0_is_gone(
    pair: list[TCPStoreBarrier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_barrier_elastic, "LINGER_S", 0)
    settle = pair[1]._meeting._settle

    def last_word(*args: Any) -> Any:
        said = settle(*args)
        zero.result()
        pair[0].close()
        return said

    zero = Later(pair[0].execute_barrier)
    monkeypatch.setattr(pair[1]._meeting, "_settle", last_word)
    pair[1].execute_barrier()


def test_rank_0_does_not_wait_for_the_dead_who_have_a_successor(
    pair: list[TCPStoreBarrier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_barrier_elastic, "LINGER_S", 60)
    monkeypatch.setattr(pair[1]._meeting, "_leave", lambda _: None)
    in_threads(2, lambda rank: pair[rank].execute_barrier())
    with ranks.barrier(1, 2, pair[0].store.port):
        Later(pair[0].close).result()


def test_rank_0_does_not_wait_for_who_was_not_there(
    pair: list[TCPStoreBarrier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_barrier_elastic, "LINGER_S", 60)
    pair[0].abort()
    Later(pair[0].close).result()


def test_a_server_that_is_gone_is_no_timeout(pair: list[TCPStoreBarrier]) -> None:
    call = Later(pair[1].execute_barrier)
    pair[0].store.wait(["job0/num_members"])
    pair[0].store.close()
    with pytest.raises(StoreConnectionError):
        call.result()


def test_a_forked_child_ends_nothing(pair: list[TCPStoreBarrier], team: Team) -> None:
    def child(_: Any) -> None:
        for call in (pair[0].execute_barrier, pair[0].abort):
            with pytest.raises(StoreError, match="make one in each process"):
                call()
        pair[0].close()

    team.start(child, how="fork").result()
    in_threads(2, lambda rank: pair[rank].execute_barrier())


# -- a job


def test_a_rank_that_is_killed_is_named_and_its_successor_takes_part(port: int, team: Team) -> None:
    def start(rank: int, timeout: float = 20) -> Any:
        return team.start(ranks.work, port, rank, 4, timeout)

    def tell(turns: range | None, *to: int) -> list[Any]:
        for rank in to:
            crew[rank].say(turns)
        return [] if turns is None else [crew[rank].hear() for rank in to]

    crew = [start(0), start(1), start(2), start(3, timeout=0.5)]
    assert [one.hear() for one in crew] == ["connected"] * 4
    assert tell(range(20), 0, 1, 2, 3) == ["passed"] * 4
    crew[2].kill()
    told = tell(range(20, 21), 0, 1, 3)
    assert told == [("BrokenBarrierError", (2,)), ("BrokenBarrierError", (2,)), ("TimedOutBarrierError", (2,))]
    crew[2] = start(2)
    assert crew[2].hear() == "connected"
    assert tell(range(21, 40), 0, 1, 2, 3) == ["passed"] * 4
    tell(None, 0)  # who ends first takes nobody along
    tell(None, 1, 2, 3)
    assert [one.result() for one in crew] == ["ended"] * 4
