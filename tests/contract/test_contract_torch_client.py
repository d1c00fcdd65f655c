"""The contract over the wire, with torch's own client at our server; its wrapping is in torch_client.py.

What torch's client does otherwise is pinned in `Otherwise`, which runs at torch's own libuv server too: there it is the
same, so it is the client's. What differs between the servers stands below, and in docs/server.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import inside
import pytest
from kinds import torchs, warm_torch
from torch_client import TorchClient

from shmstore import (
    DistStoreError,
    HashStore,
    Store,
    StoreConnectionError,
    StoreTimeoutError,
    TCPStoreServer,
)
from shmstore.testing.contract import VALUE_MAX, Later, StoreContract
from shmstore.testing.contract.support import KEY_MAX, Contract, Parked, missing_names, user_keys

Waits = list[tuple[int, tuple[Any, ...]]]


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    warm_torch()


class Wired(Contract):
    """torch's client, at the server that a class says."""

    @pytest.fixture
    def waits(self) -> Waits:
        """The calls that are waiting: who and for what."""
        return []

    @pytest.fixture
    def store_factory(self, server: Any, waits: Waits) -> Iterator[Callable[[], Store]]:
        handles: list[Store] = []

        def make() -> Store:
            handles.append(TorchClient(server.port, waits=waits))
            return handles[-1]

        yield make
        for handle in handles:
            handle.close()


def lost(store: Store, call: Callable[[], Any]) -> None:
    """The call loses the connection. What has no answer learns it from the next that has; after it all is well."""
    with pytest.raises(StoreConnectionError):
        for _ in range(2):
            call()
            store.check(["looked"])
    assert store.check(["looked"]) is False


class Otherwise(Wired):
    """What torch's client does otherwise than the contract says, at any server."""

    @pytest.mark.parametrize("key", [1, None, 1.5, memoryview(b"k"), ["k"]])
    def test_wrong_key_types(self, store: Store, key: Any) -> None:
        for call in StoreContract()._calls_with_key(store, key):
            with pytest.raises(TypeError):
                call()
        assert user_keys(store) == 0

    def test_a_bytearray_is_a_key(self, store: Store) -> None:
        store.set(bytearray(b"k"), b"1")  # type: ignore[arg-type]
        assert store.get("k") == b"1"

    @pytest.mark.parametrize("key", ["", b""])
    def test_nothing_is_a_key(self, store: Store, key: Any) -> None:
        """On the wire it is the slash before it."""
        store.set(key, b"1")
        assert store.add(key, 1) == 2
        assert (store.get(key), user_keys(store), store.list_keys()) == (b"2", 1, [""])
        store.multi_set(["a", key], [b"1", b"3"])
        assert store.multi_get([key, "a"]) == [b"3", b"1"]
        assert store.delete_key(key) is True

    @pytest.mark.parametrize("key", ["k" * (KEY_MAX + 1), b"k" * 100_000, "ü" * (KEY_MAX // 2 + 1)], ids=len)
    def test_long_keys_lose_the_connection(self, store: Store, key: Any) -> None:
        """It does not look, and the server refuses them."""
        for call in StoreContract()._calls_with_key(store, key)[::4]:
            lost(store, call)
        assert user_keys(store) == 0

    def test_value_too_big(self, store: Store) -> None:
        big = bytes(VALUE_MAX + 1)
        store.set("k", b"kept")
        lost(store, lambda: store.set("k", big))
        lost(store, lambda: store.compare_set("k", b"kept", big))
        lost(store, lambda: store.queue_push("k", big))
        assert (store.get("k"), user_keys(store), store.queue_len("k")) == (b"kept", 1, 0)

    @pytest.mark.parametrize("n", [2**63, -(2**63) - 1, 10**30])
    def test_add_beyond_int64(self, store: Store, n: int) -> None:
        with pytest.raises(TypeError):
            store.add("n", n)
        assert store.check(["n"]) is False

    @pytest.mark.parametrize(
        ("keys", "values"), [(["a"], []), ([], [b"1"]), (["a", "b"], [b"1"]), (["a"], [b"1", b"2"])]
    )
    def test_multi_set_unequal(self, store: Store, keys: list[str], values: list[bytes]) -> None:
        with pytest.raises(DistStoreError, match="same size"):
            store.multi_set(keys, values)
        assert user_keys(store) == 0

    @pytest.mark.parametrize("verb", ["wait", "multi_get"])
    def test_a_timeout_names_all_keys_there_or_not(self, store: Store, verb: str) -> None:
        store.set("there", b"")
        with pytest.raises(
            StoreTimeoutError, match=r"wait timeout after 20ms, keys: /gone1, /there, /gone2$"
        ) as caught:
            getattr(store, verb)(["gone1", "there", "gone2"], 0.02)
        assert missing_names(caught.value) == {"gone1", "there", "gone2"}

    def test_a_timeout_names_a_long_key_whole(self, store: Store) -> None:
        with pytest.raises(StoreTimeoutError) as caught:
            store.get("k" * KEY_MAX, 0.001)
        assert str(caught.value) == f"wait timeout after 1ms, keys: /{'k' * KEY_MAX}"

    def test_get_timeout_names_the_key_and_the_time(self, store: Store) -> None:
        with pytest.raises(StoreTimeoutError, match=r"^wait timeout after 50ms, keys: /nowhere$"):
            store.get("nowhere", 0.05)

    def test_get_takes_a_queue_for_an_empty_value(self, store: Store) -> None:
        store.queue_push("q", b"item")
        assert store.get("q") == b""
        assert store.multi_get(["q"]) == [b""]
        assert store.queue_len("q") == 1

    def test_keys_that_are_not_utf8_cannot_be_listed(self, store: Store) -> None:
        store.set(b"\xff\xfea", b"1")
        with pytest.raises(UnicodeDecodeError):
            store.list_keys()
        assert (store.get(b"\xff\xfea"), user_keys(store)) == (b"1", 1)


PINNED = {
    "test_wrong_keys": "test_nothing_is_a_key, test_long_keys_lose_the_connection",
    "test_key_limit_counts_bytes": "test_long_keys_lose_the_connection",
    "test_wait_error_lists_the_missing": "test_a_timeout_names_all_keys_there_or_not",
    "test_multi_get_timeout": "test_a_timeout_names_all_keys_there_or_not",
    "test_a_long_key_is_cut_in_the_message_only": "test_a_timeout_names_a_long_key_whole",
    "test_get_does_not_see_a_queue": "test_get_takes_a_queue_for_an_empty_value",
    "test_list_keys_escapes_what_is_not_utf8": "test_keys_that_are_not_utf8_cannot_be_listed",
    "test_a_listed_key_can_be_used": "test_keys_that_are_not_utf8_cannot_be_listed",
}
"""Tests of the contract that torch's client cannot pass, and where it is said what it does."""


class TestAtOurServer(Otherwise, StoreContract):
    """The whole contract."""

    @pytest.fixture(autouse=True)
    def pinned(self, request: pytest.FixtureRequest) -> None:
        name = request.node.originalname
        if name in PINNED:
            pytest.skip(f"torch's client does otherwise: {PINNED[name]}")

    @pytest.fixture
    def server(self) -> Iterator[TCPStoreServer]:
        with HashStore() as keys, TCPStoreServer(keys) as server:
            yield server

    @pytest.fixture
    def parked(self, server: TCPStoreServer, waits: Waits) -> Parked:
        def parked(key: str, n: int = 1) -> None:
            inside.until(lambda: sum(key in keys for _, keys in waits) >= n)
            inside.until(lambda: server.stats().waiting >= len(waits))

        return parked

    def test_close_ends_waits_of_other_threads(self) -> None:
        pytest.skip("torch's client has no close(), and its waits end with their time")

    @pytest.mark.parametrize(
        ("keys", "values"),
        [(["a", 1], [b"1", b"2"]), (["a", "b"], [b"1", 2]), (["a", "b"], [b"1", None]), ("ab", [b"1", b"2"])],
        ids=["key", "value", "none", "str"],
    )
    def test_multi_set_is_all_or_nothing(self, store: Store, keys: Any, values: Any) -> None:
        """For types; for what is too long or too big see Otherwise."""
        super().test_multi_set_is_all_or_nothing(store, keys, values, TypeError)

    def test_append_to_the_limit_and_not_beyond(self, store: Store) -> None:
        store.set("k", b"x" * (VALUE_MAX - 1))
        store.append("k", b"y")
        lost(store, lambda: store.append("k", b"z"))
        value = store.get("k")
        assert len(value) == VALUE_MAX and value.endswith(b"xy")

    @pytest.mark.parametrize("last", [("k" * (KEY_MAX + 1), b""), ("b", bytes(VALUE_MAX + 1))], ids=["key", "value"])
    def test_a_refused_multi_set_sets_nothing(self, store: Store, last: tuple[str, bytes]) -> None:
        lost(store, lambda: store.multi_set(["a", last[0]], [b"1", last[1]]))
        assert user_keys(store) == 0

    def test_an_item_whose_waiter_hung_up_goes_to_the_next(
        self, store_factory: Callable[[], Store], parked: Parked
    ) -> None:
        waits, pops, pushes = (store_factory() for _ in range(3))
        waiter = Later(lambda: (waits.wait(["queue"], 20), waits.close()))
        parked("queue")
        popper = Later(pops.queue_pop, "queue")
        parked("queue", 2)
        pushes.queue_push("queue", b"item")
        waiter.result()
        popper._thread.join(1)
        handed_on = popper.done
        pushes.queue_push("queue", b"another")
        popper.result()
        assert handed_on


class TestAtTorchsServer(Otherwise):
    """That what is otherwise is the client's; and what is different at its server."""

    @pytest.fixture
    def server(self) -> Iterator[Any]:
        server = torchs("torch.distributed").TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        yield SimpleNamespace(port=server.port)  # pytest keeps what a fixture gave, and the server has no close()
        del server

    def test_append_knows_no_limit(self, store: Store) -> None:
        store.set("k", b"x" * VALUE_MAX)
        store.append("k", b"z")
        assert len(store.get("k")) == VALUE_MAX + 1

    @pytest.mark.parametrize("last", [("k" * (KEY_MAX + 1), b""), ("b", bytes(VALUE_MAX + 1))], ids=["key", "value"])
    def test_a_refused_multi_set_sets_what_stands_before(self, store: Store, last: tuple[str, bytes]) -> None:
        lost(store, lambda: store.multi_set(["a", last[0]], [b"1", last[1]]))
        assert store.list_keys() == ["a"]

    def test_a_compare_set_that_creates_nothing_ends_a_get(self, store: Store) -> None:
        """With no bytes, as for an empty value."""
        call = Later(store.get, "k", 20)
        inside.until(lambda: store.compare_set("k", b"wrong", b"x") == b"wrong" and call.done)
        assert call.result() == b""
        assert store.check(["k"]) is False
