"""Names, handles, threads, resets, what is refused: what a kind of barrier does alike on every store."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shmstore import Barrier, BarrierTimeoutError, BrokenBarrierError, Store
from shmstore.testing.barriers.on_store import BarrierOnStoreContract
from shmstore.testing.barriers.support import LONG, Make, broken, until, waiting
from shmstore.testing.contract import Later, in_threads


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
