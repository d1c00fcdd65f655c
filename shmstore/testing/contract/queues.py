"""Queues, and c10d's barrier."""

from __future__ import annotations

import time

import pytest

from shmstore import QueueEmptyError, Store, StoreTimeoutError
from shmstore.testing.contract.support import (
    LONG,
    VALUE_MAX,
    Contract,
    Factory,
    Later,
    Parked,
    in_threads,
    needs_queues,
)


class QueueContract(Contract):
    """See the module."""

    # -- queues ---------------------------------------------------------------------------------------------------

    @needs_queues
    def test_queue_is_fifo(self, store: Store) -> None:
        assert store.queue_len("q") == 0
        items = [str(i).encode() for i in range(100)]
        for item in items:
            assert store.queue_push("q", item) is None
        assert store.queue_len("q") == 100
        assert [store.queue_pop("q") for _ in items] == items
        assert store.queue_len("q") == 0

    @needs_queues
    def test_queue_again_after_it_was_empty(self, store: Store) -> None:
        for i in range(5):
            store.queue_push("q", str(i))
            assert store.queue_pop("q", block=False) == str(i).encode()

    @needs_queues
    @pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, VALUE_MAX])
    def test_queue_item_sizes(self, store: Store, size: int) -> None:
        store.queue_push("q", b"x" * size)
        store.queue_push("q", b"y")
        got = store.queue_pop("q", False)
        assert got == b"x" * size
        assert type(got) is bytes
        assert store.queue_pop("q") == b"y"

    @needs_queues
    def test_queue_empty_without_block(self, store: Store) -> None:
        with pytest.raises(QueueEmptyError):
            store.queue_pop("q", False)
        with pytest.raises(QueueEmptyError):
            store.queue_pop("q", block=False)
        store.queue_push("q", b"")
        assert store.queue_pop("q", block=False) == b""
        with pytest.raises(QueueEmptyError):
            store.queue_pop("q", block=False)

    @needs_queues
    def test_queue_blocked_too_long(self, store: Store) -> None:
        store.set_timeout(0.05)
        start = time.monotonic()
        with pytest.raises(StoreTimeoutError) as caught:
            store.queue_pop("q-none")
        assert time.monotonic() - start >= 0.05
        assert "q-none" in str(caught.value)
        store.queue_push("q-none", b"for the next one")
        assert store.queue_pop("q-none") == b"for the next one"

    @needs_queues
    def test_queue_pop_waits(self, store: Store, parked: Parked) -> None:
        call = Later(store.queue_pop, "queue")
        parked("queue")
        store.queue_push("queue", b"item")
        assert call.result() == b"item"
        assert store.queue_len("queue") == 0

    @needs_queues
    def test_queue_serves_waiters_in_order(self, store: Store, parked: Parked) -> None:
        calls = []
        for n in range(1, 5):
            calls.append(Later(store.queue_pop, "queue"))
            parked("queue", n)
        for n, call in enumerate(calls):
            store.queue_push("queue", str(n))
            assert call.result() == str(n).encode()

    @needs_queues
    def test_queue_waiter_that_gives_up_passes_its_place_on(self, store_factory: Factory, parked: Parked) -> None:
        hasty, patient = store_factory(), store_factory()
        hasty.set_timeout(0.3)
        first = Later(hasty.queue_pop, "queue")
        parked("queue")
        second = Later(patient.queue_pop, "queue")
        with pytest.raises(StoreTimeoutError):
            first.result()
        patient.queue_push("queue", b"item")
        assert second.result() == b"item"

    @needs_queues
    def test_queue_and_key_of_one_name(self, store: Store) -> None:
        store.set("both", b"key")
        store.queue_push("both", b"item")
        assert store.get("both") == b"key"
        assert store.queue_len("both") == 1
        assert store.delete_key("both") is True
        assert store.queue_len("both") == 1
        assert store.delete_key("both") is False
        assert store.check(["both"]) is True
        assert store.queue_pop("both") == b"item"
        assert store.check(["both"]) is False

    @needs_queues
    def test_get_does_not_see_a_queue(self, store: Store) -> None:
        store.queue_push("q", b"item")
        with pytest.raises(StoreTimeoutError):
            store.get("q", 0.02)
        assert store.queue_len("q") == 1

    @needs_queues
    def test_add_beside_a_queue(self, store: Store) -> None:
        store.queue_push("q", b"100")
        assert store.add("q", 1) == 1
        assert store.queue_pop("q") == b"100"

    @needs_queues
    def test_check_and_wait_count_a_queue_with_items(self, store: Store) -> None:
        assert store.check(["q"]) is False
        store.queue_push("q", b"")
        assert store.check(["q"]) is True
        store.wait(["q"], 0)
        assert store.queue_len("q") == 1
        store.queue_pop("q")
        assert store.check(["q"]) is False
        with pytest.raises(StoreTimeoutError):
            store.wait(["q"], 0)

    @needs_queues
    @pytest.mark.parametrize("first", ["wait", "pop"])
    def test_wait_on_a_queue_swallows_no_wake(self, store: Store, parked: Parked, first: str) -> None:
        def start(what: str) -> Later:
            return Later(store.wait, ["queue"], LONG) if what == "wait" else Later(store.queue_pop, "queue")

        one = start(first)
        parked("queue", 1)
        other = start("pop" if first == "wait" else "wait")
        parked("queue", 2)
        store.queue_push("queue", b"item")
        popper = one if first == "pop" else other
        waiter = other if first == "pop" else one
        assert popper.result() == b"item"
        if not waiter.done:  # it may have looked only after the pop: a second item must reach it
            store.queue_push("queue", b"second")
        waiter.result()

    @needs_queues
    def test_queues_keep_apart(self, store: Store) -> None:
        for name in ("q1", "q2", "q1\0"):
            store.queue_push(name, name)
        assert store.queue_pop("q2") == b"q2"
        assert store.queue_pop("q1\0") == b"q1\0"
        assert store.queue_pop("q1") == b"q1"

    @needs_queues
    def test_queue_each_item_to_one_popper(self, store: Store) -> None:
        n, each = 4, 50

        def work(i: int) -> list[bytes]:
            if i % 2:
                for j in range(each):
                    store.queue_push("q", f"{i}:{j}")
                return []
            return [store.queue_pop("q") for _ in range(each)]

        got = in_threads(n, work)
        flat = [item for items in got for item in items]
        assert sorted(flat) == sorted(f"{i}:{j}".encode() for i in (1, 3) for j in range(each))
        for items in got:
            for producer in (b"1", b"3"):
                seen = [int(item.split(b":")[1]) for item in items if item.startswith(producer + b":")]
                assert seen == sorted(seen)
        assert store.queue_len("q") == 0

    # -- barrier --------------------------------------------------------------------------------------------------

    def test_barrier_of_one(self, store: Store) -> None:
        assert store.barrier("b", 1, 0) is None

    def test_barrier_everybody_passes_at_world_size(self, store: Store, parked: Parked) -> None:
        calls = [Later(store.barrier, "barrier", 3, LONG) for _ in range(2)]
        parked("barrier", 2)
        assert not any(call.done for call in calls)
        store.barrier("barrier", 3, LONG)
        for call in calls:
            call.result()
        assert store.get("barrier", 0) == b"3"

    def test_barrier_key_serves_once(self, store: Store) -> None:
        in_threads(2, lambda _: store.barrier("b", 2, LONG))
        store.barrier("b", 2, 0)

    def test_barrier_timed_out_arrival_counts(self, store: Store) -> None:
        start = time.monotonic()
        with pytest.raises(StoreTimeoutError) as caught:
            store.barrier("b-late", 2, 0.05)
        assert time.monotonic() - start >= 0.05
        assert "b-late" in str(caught.value)
        assert store.get("b-late", 0) == b"1"
        store.barrier("b-late", 2, 0)
