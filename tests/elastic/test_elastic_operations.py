"""What the elastic functions do to a store, operation by operation, and that torch's do the same.

A `Recorder` is a store that only writes down what is asked of it. Its answers are set by the test: what `add` returns,
and how each `wait` ends (an exception, or None). Values of marker keys are not part of the contract.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest

from shmstore import elastic, errors

OLD = timedelta(seconds=1234)
ANY = "<a marker>"
HOST = "Rank {} host".format


class Recorder:
    def __init__(self, arrived: int = 3, waits: Iterable[BaseException | None] = ()) -> None:
        self.ops: list[tuple[Any, ...]] = []
        self.arrived = arrived
        self.waits = list(waits)

    @property
    def timeout(self) -> timedelta:
        self.ops.append(("timeout",))
        return OLD

    def set_timeout(self, timeout: timedelta) -> None:
        self.ops.append(("set_timeout", timeout))

    def set(self, key: str, value: Any) -> None:
        marker = key.endswith(("/last_member", "/TRACE", "/TRACING_GATE"))
        self.ops.append(("set", key, ANY if marker else value))

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.ops.append(("multi_get", keys))
        return [b"value"] * len(keys)

    def add(self, key: str, n: int) -> int:
        self.ops.append(("add", key, n))
        return self.arrived

    def wait(self, keys: list[str], *timeout: timedelta) -> None:
        self.ops.append(("wait", keys, *timeout))
        end = self.waits.pop(0) if self.waits else None
        if end is not None:
            raise end


def gave_up() -> errors.DistStoreError:
    return errors.DistStoreError("gave up")


EXCHANGE = [
    ("multi_get", ["test/store0", "test/store1", "test/store2"]),
    ("add", "test/store/finished/num_members", 1),
    ("set", "test/store/finished/last_member", ANY),
]
ARRIVE = [("add", "test/store/num_members", 1), ("set", "test/store/last_member", ANY)]
WAIT = ("wait", ["test/store/last_member"])


def within(seconds: float, *ops: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [("timeout",), ("set_timeout", timedelta(seconds=seconds)), *ops]


def restored(seconds: float, *ops: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [*within(seconds, *ops), ("set_timeout", OLD)]


# -- get_all and synchronize


def test_get_all_on_rank_0_returns_last() -> None:
    store = Recorder()
    assert elastic.get_all(store, 0, "test/store", 3) == [b"value"] * 3
    assert store.ops == [*EXCHANGE, ("wait", ["test/store/finished/last_member"])]


def test_get_all_on_another_rank_does_not_wait_for_the_readers() -> None:
    store = Recorder()
    elastic.get_all(store, 1, "test/store", 3)
    assert store.ops == EXCHANGE


def test_get_all_leaves_the_mark_to_the_last_reader() -> None:
    store = Recorder(arrived=2)
    elastic.get_all(store, 1, "test/store", 3)
    assert store.ops == EXCHANGE[:-1]


def test_synchronize() -> None:
    store = Recorder()
    elastic.synchronize(store, b"data0", 0, 3, key_prefix="test/store")
    assert store.ops == restored(
        300, ("set", "test/store0", b"data0"), *EXCHANGE, ("wait", ["test/store/finished/last_member"])
    )


def test_synchronize_with_a_timeout() -> None:
    store = Recorder()
    elastic.synchronize(store, "text", 2, 3, "test/store", timeout=timedelta(milliseconds=7))
    assert store.ops == restored(0.007, ("set", "test/store2", "text"), *EXCHANGE)


# -- barrier


def test_barrier() -> None:
    store = Recorder()
    elastic.barrier(store, 3, key_prefix="test/store")
    assert store.ops == restored(300, *ARRIVE, WAIT)


def test_barrier_by_keywords_takes_the_default_of_its_context() -> None:
    def with_default() -> list[tuple[Any, ...]]:
        elastic.default_barrier_timeout.set(timedelta(seconds=9))
        store = Recorder()
        elastic.barrier(store=store, world_size=3, key_prefix="test/store")
        return store.ops

    assert contextvars.copy_context().run(with_default) == restored(9, *ARRIVE, WAIT)
    assert elastic.default_barrier_timeout.get() == 300


def test_barrier_timeout_given_wins_over_the_context() -> None:
    def given() -> list[tuple[Any, ...]]:
        elastic.default_barrier_timeout.set(9)
        store = Recorder()
        elastic.barrier(store, 3, "test/store", 0.25)
        return store.ops

    assert contextvars.copy_context().run(given) == restored(0.25, *ARRIVE, WAIT)


@pytest.mark.parametrize(("arrived", "opens"), [(2, False), (3, True), (4, True)])
def test_barrier_opens_at_world_size_or_more(arrived: int, opens: bool) -> None:
    store = Recorder(arrived)
    elastic.barrier(store, 3, "test/store")
    assert (ARRIVE[1] in store.ops) is opens


@pytest.mark.parametrize("forever", [math.inf, timedelta.max, 1e300])
def test_an_endless_timeout_is_one_that_every_store_can_hold(forever: Any) -> None:
    store = Recorder()
    elastic.barrier(store, 3, "test/store", forever)
    (_, limit) = store.ops[1]
    assert timedelta(days=365) < limit < timedelta(days=292 * 365)  # int64 nanoseconds


def test_a_barrier_without_a_rank_raises_what_the_store_raised() -> None:
    error = gave_up()
    store = Recorder(waits=[error])
    with pytest.raises(errors.DistStoreError) as caught:
        elastic.barrier(store, 3, "test/store")
    assert caught.value is error
    assert store.ops == within(300, *ARRIVE, WAIT)


def test_another_error_than_a_timeout_is_not_traced() -> None:
    error = RuntimeError("not a DistStoreError")
    store = Recorder(waits=[error])
    with pytest.raises(RuntimeError) as caught:
        elastic.barrier(store, 3, "test/store", rank=0)
    assert caught.value is error
    assert store.ops == within(300, *ARRIVE, WAIT)


# -- tracing


def trace(store: Recorder, rank: int, **options: Any) -> pytest.ExceptionInfo[BaseException]:
    options = {"barrier_timeout": 1, "rank_tracing_decoder": HOST, "trace_timeout": 0.1} | options
    with pytest.raises(Exception) as caught:
        elastic.barrier(store, options.pop("world_size", 3), "test/store", rank=rank, **options)
    return caught


def look(rank: int, seconds: float) -> tuple[Any, ...]:
    return ("wait", [f"test/store{rank}/TRACE"], timedelta(seconds=seconds))


GATE = ("set", "test/store/TRACING_GATE", ANY)


def test_rank_0_looks_for_the_others_and_opens_the_gate() -> None:
    store = Recorder(waits=[gave_up()])
    caught = trace(store, 0)
    assert store.ops == within(1, *ARRIVE, WAIT, ("set", "test/store0/TRACE", ANY), look(1, 0.1), look(2, 0.1), GATE)
    assert isinstance(caught.value, errors.BarrierTimeoutError)
    assert caught.value.missing_ranks == ()
    assert "missing_ranks=[]" in str(caught.value)


def test_rank_0_looks_briefly_once_one_is_missing_and_names_them_in_order() -> None:
    store = Recorder(waits=[gave_up(), None, gave_up(), gave_up(), None])
    caught = trace(store, 0, world_size=5)
    assert [op for op in store.ops if op[0] == "wait"][1:] == [
        look(1, 0.1), look(2, 0.1), look(3, 0.001), look(4, 0.001),
    ]  # fmt: skip
    error = caught.value
    assert isinstance(error, errors.BarrierTimeoutError)
    assert (error.key, error.world_size, error.missing_ranks) == ("test/store", 5, (2, 3))
    assert "missing_ranks=[Rank 2 host, Rank 3 host]" in str(error)
    for part in ("test/store", "rank 0", "world_size=5", "1 s"):
        assert part in str(error)


def test_rank_0_stops_at_16_missing_and_says_so() -> None:
    store = Recorder(waits=[gave_up() for _ in range(100)])
    error = trace(store, 0, world_size=64).value
    assert isinstance(error, errors.BarrierTimeoutError)
    assert error.missing_ranks == tuple(range(1, 17))
    assert "more after rank 16" in str(error)
    assert store.ops[-1] == GATE


def test_another_rank_points_at_rank_0() -> None:
    store = Recorder(waits=[gave_up(), None])
    caught = trace(store, 1)
    assert store.ops == within(
        1, *ARRIVE, WAIT, ("set", "test/store1/TRACE", ANY), ("wait", ["test/store/TRACING_GATE"])
    )
    assert "check rank 0 (Rank 0 host) for missing rank info" in str(caught.value)
    assert isinstance(caught.value, errors.DistStoreError)


def test_when_the_gate_stays_shut_rank_0_is_the_missing_one() -> None:
    store = Recorder(waits=[gave_up(), gave_up()])
    error = trace(store, 1).value
    assert isinstance(error, errors.BarrierTimeoutError)
    assert error.missing_ranks == (0,)
    assert "missing_ranks=[Rank 0 host" in str(error)


def test_without_a_decoder_ranks_are_numbers() -> None:
    store = Recorder(waits=[gave_up(), gave_up()])
    assert "missing_ranks=[1]" in str(trace(store, 0, rank_tracing_decoder=None).value)


def test_a_decoder_that_raises_does_not_keep_the_gate_shut() -> None:
    store = Recorder(waits=[gave_up(), gave_up()])

    def bad(rank: int) -> str:
        raise LookupError(rank)

    assert isinstance(trace(store, 0, rank_tracing_decoder=bad).value, LookupError)
    assert store.ops[-1] == GATE


def test_a_foreign_family_is_known_by_name_and_answered_in_kind() -> None:
    theirs = type("DistStoreError", (RuntimeError,), {})
    timeout = type("TheirTimeout", (theirs,), {})
    store = Recorder(waits=[timeout("t"), None, timeout("t")])
    caught = trace(store, 0)
    assert type(caught.value) is theirs
    assert "missing_ranks=[Rank 2 host]" in str(caught.value)
    assert store.ops[-1] == GATE


def test_what_else_goes_wrong_in_a_trace_comes_through() -> None:
    store = Recorder(waits=[gave_up(), OSError("broken")])
    assert isinstance(trace(store, 0).value, OSError)


# -- what is refused, before anything has happened


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: elastic.barrier(s, 3, "k", rank_tracing_decoder=str), AssertionError),
        (lambda s: elastic.barrier(s, 0, "k"), ValueError),
        (lambda s: elastic.barrier(s, 3, "k", rank=3), ValueError),
        (lambda s: elastic.barrier(s, 3, "k", rank=-1), ValueError),
        (lambda s: elastic.barrier(s, 3, "k", -0.1), ValueError),
        (lambda s: elastic.barrier(s, 3, "k", math.nan), ValueError),
        (lambda s: elastic.barrier(s, 3, "k", -math.inf), ValueError),
        (lambda s: elastic.barrier(s, 3, "k", "1"), TypeError),
        (lambda s: elastic.barrier(s, 3, "k", True), TypeError),
        (lambda s: elastic.barrier(s, 3, "k", 1, 0, str, -1), ValueError),
        (lambda s: elastic.synchronize(s, b"", 3, 3, "k"), ValueError),
        (lambda s: elastic.synchronize(s, b"", 0, 0, "k"), ValueError),
        (lambda s: elastic.synchronize(s, b"", 0, 1, "k", timedelta(-1)), ValueError),
        (lambda s: elastic.get_all(s, -1, "k", 1), ValueError),
    ],
)
def test_refused(call: Callable[[Recorder], object], error: type[Exception]) -> None:
    store = Recorder()
    with pytest.raises(error):
        call(store)
    assert store.ops == []


# -- store_timeout


def test_store_timeout_on_a_foreign_store_stays_when_the_block_fails() -> None:
    store = Recorder()
    with elastic.store_timeout(store, 2):
        pass
    assert store.ops == restored(2)
    store.ops.clear()
    with pytest.raises(KeyError), elastic.store_timeout(store, 2):
        raise KeyError
    assert store.ops == within(2)


# -- torch's functions do the same

Scenario = Callable[[Any, Any], object]
SCENARIOS: dict[str, tuple[Scenario, int, str]] = {
    # what to call; what add answers; how the waits end: "." seen, "x" the store gives up, "!" another error
    "get_all, rank 0": (lambda m, s: m.get_all(s, 0, "p", 3), 3, ""),
    "get_all, rank 2": (lambda m, s: m.get_all(s, 2, "p", 3), 3, ""),
    "get_all, not the last": (lambda m, s: m.get_all(s, 0, "p", 3), 1, ""),
    "get_all, timed out": (lambda m, s: m.get_all(s, 0, "p", 3), 1, "x"),
    "synchronize, rank 0": (lambda m, s: m.synchronize(s, b"d", 0, 4, "p"), 4, ""),
    "synchronize, rank 3": (lambda m, s: m.synchronize(s, b"d", 3, 4, "p", 1.5), 2, ""),
    "synchronize, timed out": (lambda m, s: m.synchronize(s, b"d", 0, 4, "p", timeout=1), 2, "x"),
    "barrier": (lambda m, s: m.barrier(s, 3, "p"), 3, ""),
    "barrier, not the last": (lambda m, s: m.barrier(s, 3, "p", 0.5), 2, ""),
    "barrier, keywords": (lambda m, s: m.barrier(store=s, world_size=3, key_prefix="p"), 3, ""),
    "barrier, timed out": (lambda m, s: m.barrier(s, 3, "p"), 2, "x"),
    "barrier, another error": (lambda m, s: m.barrier(s, 3, "p", rank=0), 2, "!"),
    "barrier, decoder without rank": (lambda m, s: m.barrier(s, 3, "p", 1, None, str), 2, ""),
    "trace, rank 0, none missing": (lambda m, s: m.barrier(s, 3, "p", 1, 0, str, 0.1), 2, "x.."),
    "trace, rank 0, last missing": (lambda m, s: m.barrier(s, 3, "p", 1, 0, str, 0.1), 2, "x.x"),
    "trace, rank 0, some missing": (lambda m, s: m.barrier(s, 6, "p", 1, 0, HOST), 2, "x.x.xx"),
    "trace, rank 0, many missing": (lambda m, s: m.barrier(s, 40, "p", 1, 0, None, 3), 2, "x" * 40),
    "trace, rank 0, another error": (lambda m, s: m.barrier(s, 4, "p", 1, 0, str), 2, "x.!"),
    "trace, rank 1": (lambda m, s: m.barrier(s, 3, "p", 1, 1, str, 0.1), 2, "x."),
    "trace, rank 2, gate shut": (lambda m, s: m.barrier(s, 3, "p", 1, 2), 2, "xx"),
    "trace, rank 2, another error": (lambda m, s: m.barrier(s, 3, "p", 1, 2), 2, "x!"),
    "trace, a world of one": (lambda m, s: m.barrier(s, 1, "p", 1, 0), 1, "x"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says at import that numpy is missing
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_torch_does_the_same(scenario: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's own functions")
    theirs = pytest.importorskip("torch.distributed.elastic.utils.store")
    call, arrived, ends = SCENARIOS[scenario]
    kinds = {".": lambda: None, "x": lambda: torch.distributed.DistStoreError("gave up"), "!": lambda: OSError("io")}

    def run(module: Any) -> tuple[list[tuple[Any, ...]], object]:
        store = Recorder(arrived, [kinds[end]() for end in ends])
        try:
            return store.ops, call(module, store)
        except Exception as error:
            return store.ops, type(error)

    assert run(elastic) == run(theirs)
