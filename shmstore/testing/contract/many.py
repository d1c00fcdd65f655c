"""Several keys: check and wait, delete, counts and lists, multi_get and multi_set."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest

from shmstore import Store, StoreTimeoutError
from shmstore.testing.contract.support import (
    LONG,
    VALUE_MAX,
    Contract,
    Later,
    Parked,
    missing_names,
    needs_list_keys,
    needs_queues,
    user_keys,
)


class ManyKeysContract(Contract):
    """See the module."""

    # -- check and wait -------------------------------------------------------------------------------------------

    def test_check(self, store: Store) -> None:
        assert store.check([]) is True
        assert store.check(()) is True
        assert store.check(["a"]) is False
        store.set("a", b"")
        store.set("b", b"")
        assert store.check(["a", "b"]) is True
        assert store.check(("a", "b", "a")) is True
        assert store.check(["a", "c", "b"]) is False

    @pytest.mark.parametrize("keys", ["abc", b"abc", None, 3, [1], ["a", None]], ids=repr)
    @pytest.mark.parametrize("verb", ["check", "wait", "multi_get"])
    def test_keys_are_a_list_or_tuple_of_keys(self, store: Store, verb: str, keys: Any) -> None:
        for key in ("a", "b", "c"):
            store.set(key, b"1")
        with pytest.raises(TypeError):
            getattr(store, verb)(keys)

    def test_wait_returns_at_once(self, store: Store) -> None:
        store.set("a", b"")
        assert store.wait([]) is None
        assert store.wait(["a"], 0) is None
        store.wait(("a", "a"), timedelta(0))

    def test_wait_for_several(self, store: Store, parked: Parked) -> None:
        call = Later(store.wait, ["a", "b", "c"], LONG)
        parked("a")
        store.set("c", b"")
        store.set("a", b"")
        parked("b")
        assert not call.done
        store.set("b", b"")
        call.result()

    def test_wait_counts_a_key_once_seen(self, store: Store, parked: Parked) -> None:
        call = Later(store.wait, ["a-seen", "b-next"], LONG)
        parked("a-seen")
        store.set("a-seen", b"")
        parked("b-next")
        store.delete_key("a-seen")
        store.set("b-next", b"")
        call.result()

    def test_wait_error_lists_the_missing(self, store: Store) -> None:
        store.set("there", b"")
        with pytest.raises(StoreTimeoutError) as caught:
            store.wait(["gone1", "there", "gone2"], 0.02)
        assert missing_names(caught.value) == {"gone1", "gone2"}
        assert "gone1" in str(caught.value)
        assert "gone2" in str(caught.value)
        assert "there" not in str(caught.value)

    def test_wait_takes_no_value(self, store: Store) -> None:
        store.add("n", 1)
        store.wait(["n"], 0)
        assert store.add("n", 1) == 2

    # -- delete, num_keys, list_keys ------------------------------------------------------------------------------

    def test_delete(self, store: Store) -> None:
        assert store.delete_key("k") is False
        store.set("k", b"1")
        store.set("other", b"2")
        assert store.delete_key("k") is True
        assert store.delete_key("k") is False
        assert store.check(["k"]) is False
        assert store.get("other") == b"2"
        with pytest.raises(StoreTimeoutError):
            store.get("k", 0)

    def test_delete_a_counter(self, store: Store) -> None:
        store.add("n", 41)
        assert store.delete_key("n") is True
        assert store.add("n", 1) == 1

    def test_delete_does_not_wake(self, store: Store, parked: Parked) -> None:
        call = Later(store.get, "k", LONG)
        parked("k")
        assert store.delete_key("k") is False
        assert not call.done
        store.set("k", b"1")
        assert call.result() == b"1"

    def test_num_keys(self, store: Store) -> None:
        assert user_keys(store) == 0
        store.set("a", b"")
        store.set("a", b"1")
        store.add("n", 1)
        store.append("b", b"x")
        store.compare_set("c", b"", b"x")
        store.multi_set(["d", "e"], [b"", b""])
        assert user_keys(store) == 6
        store.delete_key("a")
        assert user_keys(store) == 5

    @needs_list_keys
    def test_list_keys(self, store: Store) -> None:
        assert store.list_keys() == []
        names = {"a", "grün", "x/y", "n", "nul\0l"}
        for key in names:
            store.add(key, 1)
        listed = store.list_keys()
        assert type(listed) is list
        assert all(type(key) is str for key in listed)
        assert len(listed) == len(names)
        assert set(listed) == names

    @needs_list_keys
    def test_list_keys_escapes_what_is_not_utf8(self, store: Store) -> None:
        store.set(b"\xff\xfea", b"1")
        assert store.list_keys() == ["\udcff\udcfea"]

    @needs_list_keys
    def test_a_listed_key_can_be_used(self, store: Store) -> None:
        store.set(b"\xff\xfea", b"1")
        assert store.get(store.list_keys()[0], 0) == b"1"

    @needs_list_keys
    @needs_queues
    def test_queues_are_not_keys(self, store: Store) -> None:
        store.queue_push("q", b"1")
        assert user_keys(store) == 0
        assert store.list_keys() == []
        store.set("q", b"key")
        assert user_keys(store) == 1
        assert store.list_keys() == ["q"]

    @needs_list_keys
    @needs_queues
    def test_waiting_makes_no_keys(self, store: Store, parked: Parked) -> None:
        call = Later(store.get, "later", LONG)
        popper = Later(store.queue_pop, "queue")
        parked("later")
        parked("queue")
        assert user_keys(store) == 0
        assert store.list_keys() == []
        assert store.check(["later"]) is False
        store.set("later", b"")
        store.queue_push("queue", b"")
        call.result()
        popper.result()

    @needs_list_keys
    def test_many_keys(self, store: Store) -> None:
        model = {f"key-{i}": str(i * i).encode() for i in range(500)}
        for key, value in model.items():
            store.set(key, value)
        for i in range(0, 500, 3):
            assert store.delete_key(f"key-{i}") is True
            del model[f"key-{i}"]
        for i in range(0, 500, 6):
            model[f"key-{i}"] = b"x" * i
            store.set(f"key-{i}", b"x" * i)
        assert user_keys(store) == len(model)
        assert sorted(store.list_keys()) == sorted(model)
        assert {key: store.get(key, 0) for key in model} == model

    # -- multi_get and multi_set ----------------------------------------------------------------------------------

    def test_multi_get(self, store: Store) -> None:
        assert store.multi_get([]) == []
        store.set("a", b"1")
        store.add("n", 2)
        store.set("e", b"")
        got = store.multi_get(["n", "a", "e", "a"])
        assert got == [b"2", b"1", b"", b"1"]
        assert type(got) is list
        assert all(type(value) is bytes for value in got)
        assert store.multi_get(("a",)) == [b"1"]

    def test_multi_get_waits(self, store: Store, parked: Parked) -> None:
        store.set("b", b"2")
        call = Later(store.multi_get, ["a-key", "b", "c-key"], LONG)
        parked("a-key")
        store.set("a-key", b"1")
        parked("c-key")
        store.set("c-key", b"3")
        assert call.result() == [b"1", b"2", b"3"]

    def test_multi_get_timeout(self, store: Store) -> None:
        store.set("there", b"")
        start = time.monotonic()
        with pytest.raises(StoreTimeoutError) as caught:
            store.multi_get(["there", "gone"], 0.03)
        assert time.monotonic() - start >= 0.03
        assert "gone" in missing_names(caught.value)
        assert "there" not in missing_names(caught.value)

    def test_multi_get_big(self, store: Store) -> None:
        values = [b"a" * 65537, b"", b"b" * (2 << 20), b"c"]
        for i, value in enumerate(values):
            store.set(str(i), value)
        assert store.multi_get(["0", "1", "2", "3"]) == values

    def test_multi_set(self, store: Store) -> None:
        assert store.multi_set([], []) is None
        store.add("c", 1)
        store.multi_set(["a", b"b", "c"], [b"1", "2", bytearray(b"")])
        assert store.multi_get(["a", "b", "c"]) == [b"1", b"2", b""]
        store.multi_set(("a",), (memoryview(b"x"),))
        assert store.get("a") == b"x"

    def test_multi_set_duplicates_last_wins(self, store: Store) -> None:
        store.multi_set(["a", "b", "a", "a"], [b"1", b"2", b"3", b"longer than before"])
        assert store.multi_get(["a", "b"]) == [b"longer than before", b"2"]
        assert user_keys(store) == 2

    @pytest.mark.parametrize(
        ("keys", "values"), [(["a"], []), ([], [b"1"]), (["a", "b"], [b"1"]), (["a"], [b"1", b"2"])]
    )
    def test_multi_set_unequal(self, store: Store, keys: list[str], values: list[bytes]) -> None:
        with pytest.raises(ValueError):
            store.multi_set(keys, values)
        assert user_keys(store) == 0

    @pytest.mark.parametrize(
        ("keys", "values", "error"),
        [
            (["a", 1], [b"1", b"2"], TypeError),
            (["a", "b"], [b"1", 2], TypeError),
            (["a", "b"], [b"1", None], TypeError),
            ("ab", [b"1", b"2"], TypeError),
            (["a", ""], [b"1", b"2"], ValueError),
            (["a", "k" * 8192], [b"1", b"2"], ValueError),
            (["a", "b"], [b"1", bytes(VALUE_MAX + 1)], ValueError),
        ],
        ids=["key", "value", "none", "str", "empty", "long", "big"],
    )
    def test_multi_set_is_all_or_nothing(self, store: Store, keys: Any, values: Any, error: type[Exception]) -> None:
        with pytest.raises(error):
            store.multi_set(keys, values)
        assert user_keys(store) == 0

    def test_multi_set_wakes_all(self, store: Store, parked: Parked) -> None:
        calls = [Later(store.get, f"key-{i}", LONG) for i in range(4)]
        for i in range(4):
            parked(f"key-{i}")
        store.multi_set([f"key-{i}" for i in range(4)], [str(i).encode() for i in range(4)])
        assert [call.result() for call in calls] == [b"0", b"1", b"2", b"3"]

    def test_multi_set_many(self, store: Store) -> None:
        keys = [f"k{i}" for i in range(300)]
        values = [b"v" * i for i in range(300)]
        store.multi_set(keys, values)
        assert store.multi_get(keys) == values
        assert user_keys(store) == 300
