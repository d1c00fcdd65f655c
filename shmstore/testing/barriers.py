"""What every Barrier does, on any store, as pytest tests; needs pytest, which shmstore itself does not.

Subclass `BarrierContract` in a test module and say how a handle of the store is made:

    class TestMyStore(BarrierContract):
        @pytest.fixture
        def store_factory(self):
            shared = MyServer()
            return lambda: MyStore(shared)

Each call gives one more handle of the same, at first empty store; each thread of a test has its own. The fixture closes
them. A kind of barrier that passes `BarrierContract` on one store needs only `BarrierOnStoreContract` on the others on
which it runs the same code. Override `make` to test one kind of barrier, where `shmstore.Barrier` would choose another
for the store.
"""

from __future__ import annotations

import pickle
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shmstore import Barrier, BarrierTimeoutError, BrokenBarrierError, Store
from shmstore.testing.contract import Later, in_threads

LONG = 30.0
"""Seconds no test gets near unless something hangs."""

Make = Callable[..., Barrier]


def until(what: Callable[[], bool], limit_s: float = LONG) -> None:
    """Returns once `what` is true. Who arrives at a barrier wakes nobody: it can only be looked for."""
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


def waiting(barrier: Barrier, n: int) -> None:
    """Returns once n parties have arrived in the current epoch."""
    until(lambda: barrier.n_waiting >= n)


def broken(call: Later) -> BrokenBarrierError:
    """The BrokenBarrierError that a call ended with."""
    with pytest.raises(BrokenBarrierError) as caught:
        call.result()
    return caught.value


class BarrierOnStoreContract:
    """threading.Barrier's interface, with names for the missing: what depends on the store below.

    Each verb and each way that a wait ends: woken, out of time, by a signal; many threads, and what is left behind.
    """

    @pytest.fixture
    def store_factory(self) -> Any:
        raise NotImplementedError("say how a handle of the store is made")

    @pytest.fixture
    def make(self, store_factory: Callable[[], Any]) -> Make:
        """A barrier on a handle of its own."""

        def make(key: str = "b", parties: int = 2, rank: int | None = None, timeout: Any = LONG) -> Barrier:
            return Barrier(store_factory(), key, parties, rank, timeout)

        return make

    @pytest.fixture(params=[True, False], ids=["ranks", "no ranks"])
    def ranked(self, request: pytest.FixtureRequest) -> bool:
        return bool(request.param)

    @pytest.fixture
    def team(self, make: Make, ranked: bool) -> Callable[[int], list[Barrier]]:
        """Called with n: n barriers of n parties, each on a handle of its own."""
        return lambda n: [make("b", n, rank if ranked else None) for rank in range(n)]

    # -- passing ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_all_pass_when_all_have_come_again_and_again(
        self, team: Callable[[int], list[Barrier]], n: int, rounds: int
    ) -> None:
        barriers = team(n)
        came = [[0] * n for _ in range(rounds)]

        def party(i: int) -> list[int]:
            indices = []
            for row in came:
                row[i] = 1
                indices.append(barriers[i].wait())
                assert sum(row) == n, "passed before all had come"
            return indices

        for indices in zip(*in_threads(n, party), strict=True):
            assert sorted(indices) == list(range(n))
        assert barriers[0].epoch == rounds

    @pytest.fixture
    def rounds(self) -> int:
        return 50

    def test_one_handle_for_all_threads(self, make: Make) -> None:
        barrier = make("b", 3)
        assert sorted(in_threads(3, lambda _: barrier.wait())) == [0, 1, 2]

    def test_a_handle_that_is_made_late_begins_with_the_current_epoch(
        self, make: Make, team: Callable[[int], list[Barrier]], ranked: bool
    ) -> None:
        for _ in range(3):
            barriers = team(2)
            in_threads(2, lambda i: [barriers[i].wait() for _ in range(2)])  # noqa: B023 -- it ends with this turn
        late = make("b", 2, 1 if ranked else None)
        assert late.epoch == 6
        other = Later(barriers[0].wait)
        late.wait()
        other.result()

    def test_a_rank_that_comes_twice_joins_its_own_arrival(self, make: Make) -> None:
        first = Later(make("b", 2, 0).wait)
        waiting(make("b", 2, 0), 1)
        second = make("b", 2, 0)
        with pytest.raises(BarrierTimeoutError) as caught:
            second.wait(0.05)
        assert caught.value.missing_ranks == (1,)
        assert caught.value.arrived == 1
        broken(first)
        second.reset()
        call = Later(second.wait)
        waiting(make("b", 2, 0), 1)
        assert not call.done, "passed with two arrivals of one rank"
        make("b", 2, 1).wait()
        call.result()

    def test_one_too_many_waits_for_the_next(self, make: Make) -> None:
        calls = [Later(make("b", 2).wait) for _ in range(3)]
        until(lambda: sum(call.done for call in calls) == 2)
        look = make("b", 2)
        waiting(look, 1)
        assert look.epoch == 1
        fourth = make("b", 2).wait()
        assert sorted([fourth, *(call.result() for call in calls)]) == [0, 0, 1, 1]

    # -- time ---------------------------------------------------------------------------------------------------------

    def test_a_timeout_names_the_missing_in_order(self, make: Make) -> None:
        barriers = {rank: make("b", 5, rank) for rank in (1, 3, 4)}
        calls = [Later(barriers[rank].wait) for rank in (1, 3)]
        waiting(barriers[4], 2)
        start = time.monotonic()
        with pytest.raises(BarrierTimeoutError) as caught:
            barriers[4].wait(0.2)
        assert time.monotonic() - start >= 0.2
        error = caught.value
        assert isinstance(error, BrokenBarrierError)
        assert isinstance(error, threading.BrokenBarrierError)
        assert isinstance(error, TimeoutError)
        assert error.missing_ranks == (0, 2)
        assert (error.key, error.epoch, error.arrived, error.world_size, error.timeout) == ("b", 0, 3, 5, 0.2)
        assert error.elapsed is not None
        assert error.elapsed >= 0.2
        assert "'b' timed out on rank 4 after " in str(error)
        assert "3 of 5 arrived; missing rank 0 (" in str(error)
        assert ") and rank 2 (" in str(error)
        for call in calls:
            other = broken(call)
            assert not isinstance(other, BarrierTimeoutError)
            assert other.missing_ranks == (0, 2)
            assert "rank 4 timed out" in str(other)
            assert (other.key, other.epoch) == ("b", 0)
        copy = pickle.loads(pickle.dumps(error))
        assert copy.__dict__ == error.__dict__
        assert str(copy) == str(error)

    def test_without_ranks_a_timeout_counts_the_missing(self, make: Make) -> None:
        with pytest.raises(BarrierTimeoutError, match=r"1 of 3 arrived; missing 2") as caught:
            make("b", 3).wait(0.02)
        assert (caught.value.arrived, caught.value.missing_ranks) == (1, ())

    def test_no_time_at_all(self, team: Callable[[int], list[Barrier]]) -> None:
        one, two = team(2)
        with pytest.raises(BarrierTimeoutError):
            one.wait(0)
        assert two.broken
        two.reset()
        call = Later(one.wait)
        waiting(two, 1)
        two.wait(0)
        call.result()

    def test_the_stores_own_timeout_counts_and_stays(self, store_factory: Callable[[], Any]) -> None:
        store = store_factory()
        if not hasattr(store, "set_timeout"):
            pytest.skip("the store has no timeout")
        store.set_timeout(timedelta(milliseconds=100))
        barrier = Barrier(store, "b", 2, 0)
        with pytest.raises(BarrierTimeoutError) as caught:
            barrier.wait()
        assert caught.value.timeout == 0.1
        assert store.timeout == timedelta(milliseconds=100)
        barrier.reset()
        with pytest.raises(BarrierTimeoutError):
            barrier.wait(0.02)
        assert store.timeout == timedelta(milliseconds=100)

    # -- breaking and mending -----------------------------------------------------------------------------------------

    def test_abort_breaks_it_for_who_waits_and_who_comes(
        self, team: Callable[[int], list[Barrier]], ranked: bool
    ) -> None:
        one, two, three = team(3)
        call = Later(one.wait)
        waiting(two, 1)
        two.abort()
        who = "rank 1" if ranked else "a party without a rank"
        assert f"{who} called abort()" in str(broken(call))
        assert (three.broken, three.n_waiting, three.epoch) == (True, 0, 0)
        with pytest.raises(BrokenBarrierError, match=r"called abort\(\)"):
            three.wait()
        two.abort()  # of a broken one: nothing
        assert three.epoch == 0

    def test_reset_breaks_off_who_waits_and_makes_it_whole(self, team: Callable[[int], list[Barrier]]) -> None:
        one, two = team(2)
        call = Later(one.wait)
        waiting(two, 1)
        two.reset()
        assert "was reset" in str(broken(call))
        assert (one.broken, one.epoch, one.n_waiting) == (False, 1, 0)
        call = Later(one.wait)
        two.wait()
        call.result()
        assert two.epoch == 2

    def test_all_who_were_told_may_reset_and_meet_again(self, team: Callable[[int], list[Barrier]]) -> None:
        barriers = team(4)

        def party(i: int) -> int:
            for turn in range(5):
                if i == turn % 4:
                    waiting(barriers[i], 3)
                    barriers[i].abort()
                else:
                    with pytest.raises(BrokenBarrierError):
                        barriers[i].wait()
                barriers[i].reset()
                barriers[i].wait()
            return barriers[i].epoch

        assert in_threads(4, party) == [10] * 4

    def test_an_interrupt_breaks_it_for_the_others(self, team: Callable[[int], list[Barrier]], ranked: bool) -> None:
        mine, other, look = team(3)

        def stop(_number: int, _frame: Any) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGUSR1, stop)
        main = threading.main_thread().ident
        assert main == threading.get_ident()
        try:

            def shoot() -> None:
                waiting(look, 2)
                signal.pthread_kill(main, signal.SIGUSR1)

            waits = Later(other.wait)
            waiting(look, 1)
            gun = Later(shoot)
            with pytest.raises(KeyboardInterrupt):
                mine.wait()
        finally:
            signal.signal(signal.SIGUSR1, before)
        gun.result()
        who = "rank 0" if ranked else "a party without a rank"
        assert f"{who} was interrupted while it waited" in str(broken(waits))
        other.reset()
        calls = [Later(barrier.wait) for barrier in (mine, other)]
        look.wait()
        for call in calls:
            call.result()

    # -- what is left behind ------------------------------------------------------------------------------------------

    @pytest.fixture
    def uses(self) -> int:
        """How often `test_keys_do_not_pile_up` passes the barrier."""
        return 1000

    def keys_left(self, n: int, ranked: bool) -> int:
        """How many keys a barrier of n parties may have at rest."""
        return 4

    def test_keys_do_not_pile_up(
        self, team: Callable[[int], list[Barrier]], store_factory: Callable[[], Any], ranked: bool, uses: int
    ) -> None:
        store = store_factory()
        barriers = team(2)
        most = [0]

        def party(i: int) -> None:
            for turn in range(uses):
                barriers[i].wait()
                if i == 0 and turn % 50 == 0:
                    most[0] = max(most[0], store.num_keys())

        in_threads(2, party)
        for _ in range(20):
            with pytest.raises(BrokenBarrierError):
                barriers[0].wait(0)
            barriers[1].reset()
        in_threads(2, lambda i: barriers[i].wait())
        assert store.num_keys() <= self.keys_left(2, ranked)
        assert most[0] <= self.keys_left(2, ranked) + 2 * 2

    # -- what is refused ----------------------------------------------------------------------------------------------

    def test_others_than_it_was_made_for(self, make: Make) -> None:
        barrier = make("b", 3, 0)
        barrier.abort()
        barrier.reset()  # on a store without compare_set it is written down with the first change only
        for parties, rank in ((2, 0), (3, None)):
            with pytest.raises(ValueError, match="was made for"):
                make("b", parties, rank)
        assert (barrier.n_waiting, barrier.broken) == (0, False)


class BarrierContract(BarrierOnStoreContract):
    """All of it: also what a barrier does with the same calls of its store, and what it refuses before any."""

    # -- passing ------------------------------------------------------------------------------------------------------

    def test_who_comes_alone_passes_at_once_also_without_time(self, make: Make, ranked: bool) -> None:
        barrier = make("b", 1, 0 if ranked else None)
        assert [barrier.wait(0) for _ in range(3)] == [0, 0, 0]

    def test_an_old_handle_joins_where_a_newer_one_of_its_rank_is(self, make: Make) -> None:
        old, new, other = make("b", 2, 0), make("b", 2, 0), make("b", 2, 1)
        for mine in (old, new, new, old, new):
            call = Later(other.wait)
            assert sorted([mine.wait(), call.result()]) == [0, 1]

    def test_barriers_of_other_names_are_apart(self, make: Make) -> None:
        call = Later(make("a", 2, 0).wait)
        waiting(make("a", 2, 0), 1)
        assert make("b", 1, 0).wait() == 0
        assert not call.done
        make("a", 2, 1).wait()
        call.result()

    def test_both_of_a_rank_pass(self, make: Make) -> None:
        calls = [Later(make("b", 2, 0).wait) for _ in range(2)]
        other = make("b", 2, 1)
        other.wait()

        def done() -> bool:
            return all(call.done for call in calls)

        while not done():  # one that came after the others had passed is in the next epoch
            until(lambda: done() or other.n_waiting > 0)
            if not done():
                other.wait()
        for call in calls:
            call.result()

    # -- what can be asked --------------------------------------------------------------------------------------------

    def test_properties(self, make: Make) -> None:
        barrier = make("b", 3, 1, 2)
        assert (barrier.key, barrier.parties, barrier.rank) == ("b", 3, 1)
        assert barrier.timeout == timedelta(seconds=2)
        assert make("b", 3, 2, None).timeout is None
        assert (barrier.epoch, barrier.n_waiting, barrier.broken) == (0, 0, False)
        assert "'b', 3, rank=1" in repr(barrier)
        assert isinstance(barrier, Barrier)

    def test_n_waiting_counts_who_has_come(self, team: Callable[[int], list[Barrier]]) -> None:
        barriers = team(3)
        calls = []
        for n in range(2):
            calls.append(Later(barriers[n].wait))
            waiting(barriers[2], n + 1)
        assert barriers[2].n_waiting == 2
        barriers[2].wait()
        for call in calls:
            call.result()
        assert barriers[2].n_waiting == 0

    def test_pickle_gives_the_same_barrier(self, make: Make, store_factory: Callable[[], Any]) -> None:
        store = store_factory()
        if not (isinstance(store, Store) and store.capabilities.picklable):
            pytest.skip("the store cannot be pickled")
        barrier = make("b", 2, 1, 5)
        again = pickle.loads(pickle.dumps(barrier))
        assert type(again) is type(barrier)
        assert (again.key, again.parties, again.rank, again.timeout) == ("b", 2, 1, timedelta(seconds=5))
        call = Later(make("b", 2, 0).wait)
        assert sorted([again.wait(), call.result()]) == [0, 1]
        again._store.close()

    # -- time ---------------------------------------------------------------------------------------------------------

    def test_a_timeout_of_its_own_goes_before_the_stores(self, make: Make, store_factory: Callable[[], Any]) -> None:
        with pytest.raises(BarrierTimeoutError) as caught:
            make("b", 2, 0, timedelta(milliseconds=30)).wait()
        assert caught.value.timeout == 0.03
        make("b", 2, 0).reset()
        with pytest.raises(BarrierTimeoutError) as caught:
            make("b", 2, 0, LONG).wait(0.04)
        assert caught.value.timeout == 0.04

    # -- breaking and mending -----------------------------------------------------------------------------------------

    def test_abort_of_the_next_epoch_leaves_who_passed(self, team: Callable[[int], list[Barrier]]) -> None:
        one, two = team(2)
        in_threads(2, lambda i: (one, two)[i].wait())
        one.abort()
        assert (two.broken, two.epoch) == (True, 1)

    def test_threads_that_share_a_handle_may_all_reset(self, make: Make) -> None:
        barrier = make("b", 3)

        def party(i: int) -> int:
            if i == 0:
                waiting(barrier, 2)
                barrier.abort()
            else:
                with pytest.raises(BrokenBarrierError):
                    barrier.wait()
            barrier.reset()
            return barrier.wait()

        assert sorted(in_threads(3, party)) == [0, 1, 2]
        assert barrier.epoch == 2

    def test_another_thread_may_reset_for_one_that_was_told(self, make: Make) -> None:
        one, two = make("b", 2, 0), make("b", 2, 1)
        for barrier in (one, two):
            with pytest.raises(BrokenBarrierError):
                Later(barrier.wait, 0).result()
        one.reset()
        two.reset()
        assert one.epoch == 1

    def test_any_further_reset_acts(self, team: Callable[[int], list[Barrier]]) -> None:
        one, two = team(2)
        with pytest.raises(BrokenBarrierError):
            one.wait(0)
        two.reset()
        assert two.epoch == 1
        one.reset()
        assert two.epoch == 1
        one.reset()
        assert two.epoch == 2

    def test_what_was_there_before_a_reset_counts_for_nothing(self, team: Callable[[int], list[Barrier]]) -> None:
        barriers = team(3)
        for turn in range(4):
            with pytest.raises(BrokenBarrierError):
                barriers[turn % 3].wait(0)
            barriers[0].reset()
        with pytest.raises(BarrierTimeoutError) as caught:
            barriers[1].wait(0.02)
        assert caught.value.arrived == 1

    # -- what is refused ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            (("b", 0), ValueError),
            (("b", 4097), ValueError),
            (("b", -1), ValueError),
            (("b", 2, 2), ValueError),
            (("b", 2, -1), ValueError),
            (("", 2), ValueError),
            (("b", 2.0), TypeError),
            (("b", True), TypeError),
            (("b", "2"), TypeError),
            (("b", 2, "0"), TypeError),
            (("b", 2, False), TypeError),
            ((3, 2), TypeError),
            (("b", 2, 0, -1), ValueError),
            (("b", 2, 0, "1"), TypeError),
            (("b", 2, 0, float("nan")), ValueError),
        ],
    )
    def test_refused(self, make: Make, arguments: tuple[Any, ...], error: type[Exception]) -> None:
        with pytest.raises(error):
            make(*arguments)
        assert make("b", 2, 0).n_waiting == 0

    @pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), ("1", TypeError), (float("nan"), ValueError)])
    def test_a_wait_that_is_refused_has_not_arrived(self, make: Make, timeout: Any, error: type[Exception]) -> None:
        barrier = make("b", 2, 0)
        with pytest.raises(error):
            barrier.wait(timeout)
        assert (barrier.n_waiting, barrier.broken) == (0, False)


__all__ = ["BarrierContract", "BarrierOnStoreContract", "broken", "until", "waiting"]
