"""KeyBarrier beyond the suite: each crash point, restarts, slow readers, lesser stores, and what is cleaned up."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from typing import Any

import pytest
from kinds import Duck, Plain, Swapping

import shmstore
from shmstore import BarrierTimeoutError, BrokenBarrierError, PeerDiedError, StoreError, _barrier_keys, _barrier_state
from shmstore._barrier_keys import KeyBarrier
from shmstore._barrier_state import Arrival, State
from shmstore.testing.barriers import waiting
from shmstore.testing.contract import Later, in_threads

VERBS = ("set", "get", "add", "check", "wait", "compare_set", "delete_key")


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_barrier_keys, "FIRST_SLICE_NS", 5_000_000)
    monkeypatch.setattr(_barrier_keys, "LAST_SLICE_NS", 20_000_000)
    monkeypatch.setattr(_barrier_keys, "GRACE_S", 0.05)


class Killed(BaseException):
    """What stands for SIGKILL: nothing of the party runs on in the store."""


class Mortal:
    """A handle whose user dies once its n-th call has happened: also before the next one. All later calls die too."""

    def __init__(self, store: Any, n: int) -> None:
        self._store = store
        self._left = n
        self.died = False

    def __getattr__(self, verb: str) -> Any:
        real = getattr(self._store, verb)
        if verb not in VERBS:
            return real

        def call(*args: Any) -> Any:
            self._left -= 1
            if self.died:
                raise Killed
            try:
                return real(*args)
            finally:
                if self._left == 0:  # also where the call raised
                    self.died = True
                    raise Killed

        return call


class Stepped:
    """A handle that stops before each call of one verb on a key that ends so, until it is let go on."""

    def __init__(self, store: Any, verb: str, end: str) -> None:
        self._store = store
        self._verb = verb
        self._end = end
        self.there = threading.Event()
        self.go = threading.Event()

    def __getattr__(self, verb: str) -> Any:
        real = getattr(self._store, verb)
        if verb != self._verb:
            return real

        def call(key: Any, *args: Any) -> Any:
            if (key if isinstance(key, str) else key[0]).endswith(self._end):
                self.there.set()
                assert self.go.wait(20)
            return real(key, *args)

        return call


def outcome(barrier: KeyBarrier, timeout: float) -> str:
    try:
        barrier.wait(timeout)
    except BrokenBarrierError:
        barrier.reset()
        return "broken"
    return "passed"


# -- a crash at each step


@pytest.mark.parametrize("ranked", [True, False], ids=["ranks", "no ranks"])
@pytest.mark.parametrize("kind", [Duck, Swapping, Plain])
def test_a_party_dies_at_each_of_its_steps(kind: type[Plain], ranked: bool) -> None:
    """The others pass or learn of it in time, all alike; with a restarted one they meet again; little is left."""
    points = 0
    for n in range(1, 100):
        if die_at(kind, n, ranked=ranked):
            points = n
        else:
            break
    assert points >= 8


def die_at(kind: type[Plain], n: int, *, ranked: bool, patience: float = 0.06) -> bool:
    """Whether the victim died: its n-th call is one that it makes."""
    store = kind()

    def rank(i: int) -> int | None:
        return i if ranked else None

    survivors = [KeyBarrier(store, "b", 3, rank(i)) for i in range(2)]
    mortal = Mortal(store, n)

    def victim() -> bool:
        try:
            barrier = KeyBarrier(mortal, "b", 3, rank(2))
            for _ in range(3):
                barrier.wait(10)
        except Killed:
            return True
        except BrokenBarrierError:
            pass
        return mortal.died

    def survivor(i: int) -> list[str]:
        outcomes = []
        for _ in range(3):
            outcomes.append(outcome(survivors[i], patience))
            if outcomes[-1] == "broken":
                break
        return outcomes

    def party(i: int) -> Any:
        return victim() if i == 2 else survivor(i)

    one, two, died = in_threads(3, party)
    assert one == two, f"{n}: the survivors disagree: {one}, {two}"
    if not died and one != ["passed"] * 3:  # the machine was busy, and the victim was given up alive
        assert patience < 10
        return die_at(kind, n, ranked=ranked, patience=8 * patience)
    if not died:
        return False
    restarted = [*survivors, KeyBarrier(store, "b", 3, rank(2))]
    epoch = restarted[0].epoch
    in_threads(3, lambda i: [restarted[i].wait(10) for _ in range(3)])
    assert restarted[0].epoch == epoch + 3
    if kind is Duck:
        assert store.num_keys() <= 3, f"{n}: {sorted(store._keys)}"
    return True


def test_who_died_after_its_arrival_counts_for_this_epoch_and_is_missing_in_the_next() -> None:
    store = Duck()
    one, two = KeyBarrier(store, "b", 3, 0), KeyBarrier(store, "b", 3, 1)
    mortal = Mortal(store, 4)  # makes it; reads, sweeps, arrives; dies
    with pytest.raises(Killed):
        KeyBarrier(mortal, "b", 3, 2).wait()
    assert one.n_waiting == 1
    in_threads(2, lambda i: (one, two)[i].wait(10))
    with pytest.raises(BarrierTimeoutError) as caught:
        one.wait(0.02)
    assert caught.value.missing_ranks == (1, 2)


def test_what_the_one_who_should_have_ended_it_left_undone_is_done_by_who_waits() -> None:
    """Two are there, the second of which died before it changed the state: the first passes long before its time."""
    store = Duck()
    barrier = KeyBarrier(store, "b", 2, 0)
    call = Later(barrier.wait, 1000)
    waiting(barrier, 1)
    store.set("b/0/r1", "1")
    assert call.result() == 0


def test_who_changed_the_state_died_before_it_woke_the_others() -> None:
    store = Duck()
    barrier = KeyBarrier(store, "b", 2, 0)
    call = Later(barrier.wait, 1000)
    waiting(barrier, 1)
    store._keys["b/state"] = State(2).passed().text().encode()
    assert call.result() == 0


# -- races, step by step


def test_a_slow_reader_whose_end_is_gone_still_learns_that_it_passed() -> None:
    """Of three parties without ranks at a barrier of two, one sleeps through the epoch after its own."""
    store = Duck()
    slow_store = Stepped(store, "wait", "/end")
    slow, two, three = KeyBarrier(slow_store, "b", 2), KeyBarrier(store, "b", 2), KeyBarrier(store, "b", 2)
    call = Later(slow.wait, 20)
    assert slow_store.there.wait(20)
    assert two.wait(20) == 1
    for _ in range(3):
        in_threads(2, lambda i: (two, three)[i].wait(20))
    assert not store.check(["b/0/end"])
    slow_store.go.set()
    assert call.result() == 0


def test_a_slow_reader_learns_of_a_reset_that_is_long_over() -> None:
    store = Duck()
    slow_store = Stepped(store, "wait", "/end")
    slow, two, three = KeyBarrier(slow_store, "b", 2), KeyBarrier(store, "b", 2), KeyBarrier(store, "b", 2)
    call = Later(slow.wait, 20)
    assert slow_store.there.wait(20)
    two.reset()
    for _ in range(3):
        in_threads(2, lambda i: (two, three)[i].wait(20))
    slow_store.go.set()
    with pytest.raises(BrokenBarrierError, match="was reset"):
        call.result()


@pytest.mark.parametrize("ranked", [True, False], ids=["ranks", "no ranks"])
def test_who_wakes_after_the_reset_still_learns_why_it_broke(ranked: bool) -> None:
    store = Duck()
    slow_store = Stepped(store, "wait", "/end")
    slow = KeyBarrier(slow_store, "b", 3, 0 if ranked else None)
    other = KeyBarrier(store, "b", 3, 1 if ranked else None)
    call = Later(slow.wait, 20)
    assert slow_store.there.wait(20)
    with pytest.raises(BarrierTimeoutError):
        other.wait(0)
    other.reset()
    slow_store.go.set()
    with pytest.raises(BrokenBarrierError, match=r"timed out after .*2 of 3 had arrived"):
        call.result()
    slow.reset()
    assert slow.epoch == 1


def test_a_reset_that_nobody_remembers_counts_as_one() -> None:
    store = Duck()
    slow_store = Stepped(store, "wait", "/end")
    slow, other = KeyBarrier(slow_store, "b", 2, 0), KeyBarrier(store, "b", 2, 1)
    call = Later(slow.wait, 20)
    assert slow_store.there.wait(20)
    for _ in range(2 * _barrier_state.STARTS_KEPT):
        other.reset()
    assert len(json.loads(store.get("b/state"))[3]) == _barrier_state.STARTS_KEPT
    slow_store.go.set()
    with pytest.raises(BrokenBarrierError, match="was reset"):
        call.result()


@pytest.mark.parametrize("ranked", [True, False], ids=["ranks", "no ranks"])
def test_an_arrival_between_the_look_and_the_break_passes_or_is_broken_for_both(ranked: bool) -> None:
    store = Duck()
    late_store = Stepped(store, "compare_set", "/state")
    late_store.go.set()
    late = KeyBarrier(late_store, "b", 2, 0 if ranked else None)
    other = KeyBarrier(store, "b", 2, 1 if ranked else None)
    late.reset()
    real = store.compare_set

    def swap(key: str, expected: str, desired: str) -> bytes:
        if '"timeout"' in desired:  # the other one comes just now
            store.compare_set = real  # type: ignore[method-assign]
            assert other.wait(20) == 1
        return real(key, expected, desired)

    store.compare_set = swap  # type: ignore[method-assign]
    assert late.wait(0.01) == 0
    assert (late.epoch, late.broken) == (2, False)


def test_arrivals_and_timeouts_at_the_same_time_end_alike_for_all() -> None:
    for turn in range(300):
        store = Duck()
        barriers = [KeyBarrier(store, "b", 3, i if turn % 2 else None) for i in range(3)]
        outcomes = in_threads(3, lambda i: outcome(barriers[i], 0.0005 * (turn % 7)))  # noqa: B023 -- it ends here
        assert len(set(outcomes)) == 1, outcomes


def test_an_extra_party_that_is_interrupted_breaks_the_epoch_before_its_own() -> None:
    """Its ticket is one of a later epoch, which must not open with it."""
    store = Duck()
    barriers = [KeyBarrier(store, "b", 2) for _ in range(2)]
    store.add("b/n", 2)  # two that arrived in epoch 0 and have not ended it yet
    extra_store = Mortal(store, 99)
    extra = KeyBarrier(extra_store, "b", 2)
    call = Later(extra.wait, 0.02)
    with pytest.raises(BrokenBarrierError):
        call.result()
    assert barriers[0].broken
    barriers[0].reset()
    assert sorted(in_threads(2, lambda i: barriers[i].wait(20))) == [0, 1]


# -- which epoch a ticket belongs to


def test_tickets_by_hand() -> None:
    state = State(-2, 9, None, ((0, 0), (3, 7), (4, 7), (8, 12)))
    expected: dict[int, tuple[int, int] | None] = {
        0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (1, 1),  # passed
        4: None, 5: None, 6: None,                   # epoch 2 was reset, and what had come for later ones is void
        7: (4, 0), 8: (4, 1), 9: (5, 0), 10: (5, 1), 11: (6, 0),
        12: (8, 0), 13: (8, 1), 14: (9, 0), 15: (9, 1), 16: (10, 0),
    }  # fmt: skip
    assert {ticket: Arrival(0, ticket).place(state, None, 2) for ticket in expected} == expected


def test_epochs_of_ranks_by_hand() -> None:
    state = State(2, 9, None, ((2, 0), (3, 0), (8, 0)))
    places = [Arrival(epoch).place(state, 1, 2) for epoch in range(12)]
    passed = [None if place is None else place[0] for place in places]
    assert passed == [None, None, None, 3, 4, 5, 6, None, 8, 9, None, None]


# -- what a store says


def test_a_restarted_rank_cleans_up_after_the_one_it_replaces() -> None:
    store = Duck()
    store.set("b/0/r0", "1")  # it died between its pass and the deletion
    store.set("b/state", State(2).passed().text())
    barriers = [KeyBarrier(store, "b", 2, i) for i in range(2)]
    in_threads(2, lambda i: barriers[i].wait(20))
    assert sorted(store._keys) == ["b/1/end", "b/state"]


def test_a_store_that_cannot_delete_after_all() -> None:
    class Fussy(Duck):
        def delete_key(self, key: str) -> bool:
            raise NotImplementedError

    store = Fussy()
    barriers = [KeyBarrier(store, "b", 2, i) for i in range(2)]
    in_threads(2, lambda i: [barriers[i].wait(20) for _ in range(5)])


@pytest.mark.parametrize("text", ["", "x", "{}", "[1]", "[2, 0, {}, [], null]", "7"])
def test_a_key_that_is_in_use_for_something_else(text: str) -> None:
    store = Duck()
    store.set("b/state", text or '""')
    with pytest.raises(StoreError, match="in use for something else"):
        KeyBarrier(store, "b", 2, 0)


def test_keys_that_vanish_are_an_error() -> None:
    store = Duck()
    one, two = KeyBarrier(store, "b", 2, 0), KeyBarrier(store, "b", 2, 1)
    call = Later(one.wait, 0.5)
    waiting(two, 1)
    real = store.compare_set

    def swap(key: str, expected: str, desired: str) -> bytes:
        if expected:
            store._keys.clear()
        return real(key, expected, desired)

    store.compare_set = swap  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="were removed"):
        two.wait(20)
    store.compare_set = real  # type: ignore[method-assign]
    with pytest.raises(BrokenBarrierError):
        call.result()


def gives(error: Exception) -> Duck:
    class Giving(Duck):
        def wait(self, keys: list[str], timeout: timedelta) -> None:
            raise error

    return Giving()


def named(name: str, *bases: type[Exception]) -> Exception:
    return type(name, bases or (RuntimeError,), {})("Wait timeout")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "error",
    [named("DistStoreError"), named("Sub", type(named("DistStoreError"))), TimeoutError(), RuntimeError("Wait timeout"),
     RuntimeError("Timeout waiting for key: b after 300 ms"), shmstore.StoreTimeoutError("late")],
)  # fmt: skip
def test_what_is_a_timeout_of_a_foreign_store(error: Exception) -> None:
    with pytest.raises(BarrierTimeoutError):
        KeyBarrier(gives(error), "b", 2, 0).wait(0.01)


@pytest.mark.parametrize("error", [OSError("io"), RuntimeError("oops"), shmstore.StoreConnectionError("gone")])
def test_other_errors_come_through_and_break_it(error: Exception) -> None:
    barrier = KeyBarrier(gives(error), "b", 2, 0)
    with pytest.raises(type(error)) as caught:
        barrier.wait(20)
    assert caught.value is error
    assert barrier.broken
    with pytest.raises(BrokenBarrierError, match=rf"rank 0 was interrupted .*\({type(error).__name__}\)"):
        barrier.wait()


def test_a_death_that_the_store_tells_of_breaks_it_for_all() -> None:
    wrapped = named("DistStoreError")
    wrapped.__cause__ = PeerDiedError("x", rank=1, pid=77, host="h", waiting_on="data/7")
    store = gives(wrapped)
    barrier = KeyBarrier(store, "b", 2, 0)
    with pytest.raises(PeerDiedError) as caught:
        barrier.wait(20)
    error = caught.value
    assert isinstance(error, BrokenBarrierError)
    assert (error.rank, error.pid, error.host, error.waiting_on) == (1, 77, "h", "data/7")
    assert "rank 1 (pid 77 on h) died" in str(error)
    with pytest.raises(PeerDiedError):
        KeyBarrier(store, "b", 2, 1).wait()


def test_a_store_that_watches_its_ranks(name: str) -> None:
    """The states of the missing come from the store, where its ranks are the barrier's."""
    with shmstore.ShmStore(name, rank=0) as store, shmstore.ShmStore(name, rank=2) as _other:
        under = shmstore.PrefixStore("p", store)
        with pytest.raises(BarrierTimeoutError) as caught:
            KeyBarrier(under, "b", 3, 0).wait(0.01)
        assert "rank 1 (never attached) and rank 2 (pid " in str(caught.value)
        assert "alive, not waiting)" in str(caught.value)
        with pytest.raises(BarrierTimeoutError, match=r"rank 0 \(did not arrive\)"):
            KeyBarrier(store, "c", 4, 3).wait(0.01)


def test_times_of_foreign_stores_are_whole_milliseconds_and_never_0() -> None:
    seen: list[timedelta] = []

    class Watching(Duck):
        def wait(self, keys: list[str], timeout: timedelta) -> None:
            seen.append(timeout)
            super().wait(keys, timeout)

    with pytest.raises(BarrierTimeoutError):
        KeyBarrier(Watching(), "b", 2, 0).wait(0.0101)
    assert seen
    assert all(time >= timedelta(milliseconds=1) and time.microseconds % 1000 == 0 for time in seen)


@pytest.mark.parametrize("length", [8191 - 48, 8191 - 47])
def test_the_longest_key(length: int) -> None:
    with shmstore.HashStore() as store:
        key = "k" * length
        if length > 8191 - 48:
            with pytest.raises(ValueError, match="8143"):
                KeyBarrier(store, key, 2, 0)
        else:
            barrier = KeyBarrier(store, key, 4096, 4095)
            assert barrier.reset() is None
            with pytest.raises(BarrierTimeoutError):
                barrier.wait(0)


def test_bytes_that_are_not_text_name_a_barrier(short_slices: None) -> None:
    with shmstore.HashStore() as store:
        barriers = [KeyBarrier(store, b"\xff/b", 2, i) for i in range(2)]
        in_threads(2, lambda i: barriers[i].wait(20))
        assert barriers[0].key == "\udcff/b"


def test_a_handle_that_is_closed_says_so_and_its_arrival_stays() -> None:
    with shmstore.HashStore() as store:
        mine = store.clone()
        barrier, other = KeyBarrier(mine, "b", 2, 0), KeyBarrier(store, "b", 2, 1)
        call = Later(barrier.wait, 20)
        waiting(other, 1)
        mine.close()
        with pytest.raises(shmstore.StoreClosedError):
            call.result()
        assert other.wait(20) == 1
        with pytest.raises(BarrierTimeoutError, match="rank 0"):
            other.wait(0.01)
