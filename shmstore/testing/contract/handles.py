"""Handles: timeouts, close, clone, pickle, threads that wait."""

from __future__ import annotations

import math
import pickle
import time
from datetime import timedelta
from typing import Any

import pytest

from shmstore import Store, StoreClosedError, StoreTimeoutError
from shmstore.testing.contract.support import (
    KEY_MAX,
    Contract,
    Factory,
    Later,
    Parked,
    blocked,
    needs_list_keys,
    needs_queues,
    release,
    seconds,
)


class HandleContract(Contract):
    """See the module."""

    # -- handles --------------------------------------------------------------------------------------------------

    def test_clone_is_the_same_store(self, store: Store) -> None:
        other = store.clone()
        try:
            store.set("k", b"1")
            assert other.get("k", 0) == b"1"
            other.add("n", 2)
            assert store.get("n", 0) == b"2"
        finally:
            other.close()
        assert store.get("k", 0) == b"1"

    def test_clone_has_a_timeout_of_its_own(self, store: Store) -> None:
        store.set_timeout(7)
        other = store.clone()
        try:
            assert other.timeout == timedelta(seconds=7)
            other.set_timeout(3)
            assert store.timeout == timedelta(seconds=7)
            store.set_timeout(9)
            assert other.timeout == timedelta(seconds=3)
        finally:
            other.close()

    def test_clone_outlives_its_origin(self, store_factory: Factory) -> None:
        first = store_factory()
        first.set("k", b"1")
        other = first.clone()
        try:
            first.close()
            assert other.get("k", 0) == b"1"
            assert other.add("n", 1) == 1
        finally:
            other.close()

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            (timedelta(seconds=2), timedelta(seconds=2)),
            (5, timedelta(seconds=5)),
            (0.25, timedelta(milliseconds=250)),
            (0.0015, timedelta(microseconds=1500)),
            (0, timedelta(0)),
            (timedelta(0), timedelta(0)),
            (math.inf, timedelta.max),
            (timedelta.max, timedelta.max),
        ],
        ids=repr,
    )
    def test_set_timeout(self, store: Store, given: Any, kept: timedelta) -> None:
        store.set_timeout(given)
        assert type(store.timeout) is timedelta
        assert store.timeout == kept

    @pytest.mark.parametrize("bad", [-1, -0.001, timedelta(microseconds=-1), math.nan, -math.inf], ids=repr)
    def test_bad_timeouts(self, store: Store, bad: Any) -> None:
        before = store.timeout
        store.set("k", b"")
        for call in (
            lambda: store.set_timeout(bad),
            lambda: store.get("k", bad),
            lambda: store.wait(["k"], bad),
            lambda: store.multi_get(["k"], bad),
            lambda: store.barrier("b", 1, bad),
        ):
            with pytest.raises(ValueError):
                call()
        assert store.timeout == before
        assert store.check(["b"]) is False

    @pytest.mark.parametrize("bad", ["5", b"5", [1], object()], ids=["str", "bytes", "list", "object"])
    def test_timeouts_of_wrong_type(self, store: Store, bad: Any) -> None:
        store.set("k", b"")
        for call in (
            lambda: store.set_timeout(bad),
            lambda: store.get("k", bad),
            lambda: store.wait(["k"], bad),
            lambda: store.barrier("b", 1, bad),
        ):
            with pytest.raises(TypeError):
                call()
        assert store.check(["b"]) is False

    @pytest.mark.parametrize(
        "timeout",
        [0, 0.0, timedelta(0), 0.0004, timedelta(microseconds=700), 0.03, timedelta(milliseconds=30)],
        ids=repr,
    )
    def test_timeouts_are_kept_to(self, store: Store, timeout: Any) -> None:
        least = seconds(timeout)
        for call in (
            lambda: store.get("gone", timeout),
            lambda: store.wait(["gone"], timeout),
            lambda: store.multi_get(["gone"], timeout),
            lambda: store.barrier("b", 1000, timeout),
        ):
            start = time.monotonic()
            with pytest.raises(StoreTimeoutError):
                call()
            assert time.monotonic() - start >= least

    @needs_queues
    def test_the_stores_own_timeout(self, store: Store) -> None:
        store.set_timeout(0.04)
        for call in (
            lambda: store.get("gone"),
            lambda: store.get("gone", None),
            lambda: store.wait(["gone"]),
            lambda: store.multi_get(["gone"]),
            lambda: store.queue_pop("gone"),
            lambda: store.barrier("b", 1000),
        ):
            start = time.monotonic()
            with pytest.raises(StoreTimeoutError):
                call()
            assert time.monotonic() - start >= 0.04

    def test_the_shortest_timeouts_are_timeouts(self, store: Store) -> None:
        store.set_timeout(1e-9)
        assert timedelta(0) < store.timeout <= timedelta(microseconds=1)
        with pytest.raises(StoreTimeoutError):
            store.get("gone")

    def test_a_long_key_is_cut_in_the_message_only(self, store: Store, key_overhead: int) -> None:
        key = "k" * (KEY_MAX - key_overhead)
        with pytest.raises(StoreTimeoutError) as caught:
            store.get(key, 0)
        assert len(str(caught.value)) < 1000
        assert [len(name) for name in caught.value.keys] == [KEY_MAX]

    @needs_queues
    def test_zero_timeout_still_does_what_needs_no_wait(self, store: Store) -> None:
        store.set_timeout(0)
        store.set("k", b"1")
        assert store.get("k") == b"1"
        assert store.add("n", 1) == 1
        store.queue_push("q", b"x")
        assert store.queue_pop("q") == b"x"
        store.multi_set(["a", "b"], [b"", b""])
        assert store.multi_get(["a", "b"]) == [b"", b""]
        with pytest.raises(StoreTimeoutError):
            store.get("gone")

    @pytest.mark.parametrize("timeout", [math.inf, timedelta.max, timedelta(days=365000)], ids=repr)
    def test_waiting_for_ever(self, store: Store, parked: Parked, timeout: Any) -> None:
        calls = [Later(store.get, "later", timeout), Later(store.wait, ["later"], timeout)]
        parked("later", 2)
        store.set("later", b"here")
        assert calls[0].result() == b"here"
        calls[1].result()

    def test_has_extended_api(self, store: Store) -> None:
        assert store.has_extended_api() is True

    def test_close_is_idempotent(self, store_factory: Factory) -> None:
        store = store_factory()
        store.close()
        store.close()

    def test_with_closes(self, store_factory: Factory) -> None:
        keeper = store_factory()
        with store_factory() as store:
            store.set("k", b"1")
        with pytest.raises(StoreClosedError):
            store.get("k")
        assert keeper.get("k", 0) == b"1"

    @needs_list_keys
    @needs_queues
    def test_use_after_close(self, store_factory: Factory) -> None:
        store = store_factory()
        store.close()
        for call in (
            lambda: store.set("k", b""),
            lambda: store.get("k", 0),
            lambda: store.add("k", 1),
            lambda: store.compare_set("k", b"", b""),
            lambda: store.check(["k"]),
            lambda: store.wait(["k"], 0),
            lambda: store.delete_key("k"),
            lambda: store.num_keys(),
            lambda: store.list_keys(),
            lambda: store.append("k", b""),
            lambda: store.multi_get(["k"]),
            lambda: store.multi_set(["k"], [b""]),
            lambda: store.queue_push("k", b""),
            lambda: store.queue_pop("k", False),
            lambda: store.queue_len("k"),
            lambda: store.barrier("k", 1),
            lambda: store.clone(),
            lambda: store.__enter__(),
        ):
            with pytest.raises(StoreClosedError):
                call()

    @needs_queues
    @pytest.mark.parametrize("verb", ["get", "wait", "multi_get", "queue_pop", "barrier"])
    def test_close_ends_waits_of_other_threads(self, store_factory: Factory, parked: Parked, verb: str) -> None:
        keeper, store = store_factory(), store_factory()
        call = blocked(store, verb, "later")
        parked("later")
        store.close()
        with pytest.raises(StoreClosedError):
            call.result()
        keeper.set("k", b"still works")
        assert keeper.get("k", 0) == b"still works"

    @needs_queues
    @pytest.mark.parametrize("verb", ["get", "wait", "multi_get", "queue_pop", "barrier"])
    def test_a_blocked_wait_blocks_no_other_verb(self, store: Store, parked: Parked, verb: str) -> None:
        call = blocked(store, verb, "later")
        parked("later")
        store.set("k", b"1")
        assert store.get("k", 0) == b"1"
        assert store.add("n", 1) == 1
        assert store.check(["k"]) is True
        assert store.compare_set("k", b"1", b"2") == b"2"
        store.queue_push("other", b"x")
        assert store.queue_pop("other", False) == b"x"
        assert store.delete_key("k") is True
        with pytest.raises(StoreTimeoutError):
            store.get("gone", 0.01)
        assert not call.done
        release(store, verb, "later")
        call.result()

    def test_pickle(self, store: Store) -> None:
        store.set_timeout(11)
        if not store.capabilities.picklable:
            with pytest.raises(TypeError):
                pickle.dumps(store)
            return
        store.set("k", b"1")
        other = pickle.loads(pickle.dumps(store))
        try:
            assert other.get("k", 0) == b"1"
            assert other.timeout == timedelta(seconds=11)
            other.set("back", b"2")
            assert store.get("back", 0) == b"2"
        finally:
            other.close()
        assert store.get("k", 0) == b"1"
