"""Passing, running out of time, breaking, and what is left behind: what depends on the store below a barrier."""

from __future__ import annotations

import pickle
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shmstore import Barrier, BarrierTimeoutError, BrokenBarrierError
from shmstore.testing.barriers.support import LONG, Make, broken, until, waiting
from shmstore.testing.contract import Later, in_threads


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
