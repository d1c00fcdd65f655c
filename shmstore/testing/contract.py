"""The contract of every store, as pytest tests; needs pytest, which shmstore itself does not.

Subclass `StoreContract` in a test module and say how a handle is made:

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store_factory(self):
            shared = MyServer()
            handles = []
            def make():
                handles.append(MyStore(shared))
                return handles[-1]
            yield make
            for handle in handles:
                handle.close()

Each call of the factory gives one more handle of the same, at first empty store. Override `key_overhead` where the
store spends bytes of the key limit itself (a prefix), and `parked` where it can tell who waits on what. What a store
cannot do it says in its `capabilities`; nothing else makes a difference here.
"""

from __future__ import annotations

import math
import pickle
import threading
import time
from array import array
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shmstore import (
    QueueEmptyError,
    Store,
    StoreClosedError,
    StoreConnectionError,
    StoreTimeoutError,
)

KEY_MAX = 8191
VALUE_MAX = 8 << 20
INT_MAX, INT_MIN = 2**63 - 1, -(2**63)
LONG = 20.0
"""Seconds no test gets near unless something hangs."""

Factory = Callable[[], Store]
Parked = Callable[..., None]


class Later:
    """A call in a thread of its own."""

    def __init__(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._value: Any = None
        self._error: BaseException | None = None

        def body() -> None:
            try:
                self._value = fn(*args, **kwargs)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=body, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(LONG)
        assert self.done, "the call never returned"
        if self._error is not None:
            raise self._error
        return self._value


def missing_names(error: StoreTimeoutError) -> set[str]:
    """The keys of a timeout, without prefixes."""
    return {key.rsplit("/", 1)[-1] for key in error.keys}


class StoreContract:
    """Every row of the verb table with its corner cases."""

    @pytest.fixture(autouse=True)
    def _only_what_it_can(self, request: pytest.FixtureRequest, store: Store) -> None:
        can = store.capabilities
        test = request.node.name
        if ("queue" in test or "verb" in request.fixturenames) and not can.queues:
            pytest.skip("capabilities.queues is False")
        if "list" in test and not can.list_keys:
            pytest.skip("capabilities.list_keys is False")

    @pytest.fixture
    def store_factory(self) -> Any:
        raise NotImplementedError("say how a handle of the store is made")

    @pytest.fixture
    def store(self, store_factory: Factory) -> Store:
        return store_factory()

    @pytest.fixture
    def key_overhead(self) -> int:
        return 0

    @pytest.fixture
    def parked(self) -> Parked:
        """Called with a key and a count (1): returns when that many waits are parked on the key.

        This one is for stores that cannot tell. It gives them time; a test holds in any order, and only meets the one
        that it is about if the time was enough.
        """
        return lambda key, n=1: time.sleep(0.05)

    # -- set and get ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "value",
        [b"", b"\0", b"a\0b\0", b"x", bytes(range(256)), "text", "grün €", "", bytearray(b"ba"), memoryview(b"mv")],
        ids=repr,
    )
    def test_set_keeps_any_value(self, store: Store, value: Any) -> None:
        assert store.set("k", value) is None
        got = store.get("k")
        assert type(got) is bytes
        assert got == (value.encode() if isinstance(value, str) else bytes(value))

    def test_memoryview_of_other_items_is_its_bytes(self, store: Store) -> None:
        numbers = array("i", [1, 2, 3])
        store.set("k", memoryview(numbers))
        assert store.get("k") == numbers.tobytes()

    def test_memoryview_with_strides_is_its_bytes(self, store: Store) -> None:
        store.set("k", memoryview(b"abcdef")[::2])
        assert store.get("k") == b"ace"

    def test_value_is_copied(self, store: Store) -> None:
        value = bytearray(b"before")
        store.set("k", value)
        value[:] = b"after!"
        assert store.get("k") == b"before"

    @pytest.mark.parametrize(
        "size", [1, 7, 8, 63, 64, 65, 255, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20, VALUE_MAX - 1, VALUE_MAX]
    )
    def test_sizes_round_trip(self, store: Store, size: int) -> None:
        value = (bytes(range(251)) * (size // 251 + 1))[:size]
        store.set("k", value)
        assert store.get("k") == value
        store.set("k", b"small")
        assert store.get("k") == b"small"

    @pytest.mark.parametrize(
        "key",
        ["k", "a b", "a/b", "/a", "a/", "/", "\0", "a\0b", "\n", "grün", b"\xff\xfe", b"k\0", "x" * 200],
        ids=repr,
    )
    def test_key_may_hold_anything(self, store: Store, key: Any) -> None:
        store.set("other", b"0")
        store.set(key, b"1")
        assert store.get(key) == b"1"
        assert store.get("other") == b"0"
        assert store.check([key]) is True
        assert user_keys(store) == 2
        assert store.delete_key(key) is True
        assert store.check([key]) is False

    def test_str_and_bytes_name_the_same_key(self, store: Store) -> None:
        store.set("grün", b"1")
        assert store.get("grün".encode()) == b"1"

    def test_keys_do_not_run_into_each_other(self, store: Store) -> None:
        keys = ["a", "a\0", "a\0\0", "aa", "a/a", "a/", "/a"]
        for i, key in enumerate(keys):
            store.set(key, str(i))
        assert [store.get(key) for key in keys] == [str(i).encode() for i in range(len(keys))]

    def test_longest_key(self, store: Store, key_overhead: int) -> None:
        key = "k" * (KEY_MAX - key_overhead)
        store.set(key, b"1")
        assert store.get(key) == b"1"
        assert store.list_keys() == [key]

    def test_key_limit_counts_bytes(self, store: Store, key_overhead: int) -> None:
        with pytest.raises(ValueError):
            store.set("ü" * ((KEY_MAX - key_overhead) // 2 + 1), b"")
        assert user_keys(store) == 0

    def test_overwrite(self, store: Store) -> None:
        for value in (b"first", b"", b"a much longer value " * 50, b"x"):
            store.set("k", value)
            assert store.get("k") == value
        assert user_keys(store) == 1

    def test_empty_value_is_a_key(self, store: Store) -> None:
        store.set("k", b"")
        assert store.check(["k"]) is True
        assert user_keys(store) == 1
        assert store.get("k", 0) == b""

    def test_get_waits_for_the_key(self, store: Store, parked: Parked) -> None:
        call = Later(store.get, "later", LONG)
        parked("later")
        assert not call.done
        store.set("later", b"here")
        assert call.result() == b"here"

    def test_get_waits_across_handles(self, store_factory: Factory, parked: Parked) -> None:
        one, other = store_factory(), store_factory()
        call = Later(one.get, "later", LONG)
        parked("later")
        other.set("later", b"here")
        assert call.result() == b"here"

    def test_get_of_an_empty_value_ends_the_wait(self, store: Store, parked: Parked) -> None:
        call = Later(store.get, "later", LONG)
        parked("later")
        store.set("later", b"")
        assert call.result() == b""

    def test_get_timeout_names_the_key_and_the_time(self, store: Store) -> None:
        start = time.monotonic()
        with pytest.raises(StoreTimeoutError) as caught:
            store.get("nowhere", 0.05)
        took = time.monotonic() - start
        assert took >= 0.05
        assert caught.value.elapsed is not None
        assert 0.05 <= caught.value.elapsed <= took
        assert caught.value.timeout == pytest.approx(0.05)
        assert missing_names(caught.value) == {"nowhere"}
        assert "nowhere" in str(caught.value)
        assert isinstance(caught.value, TimeoutError)

    def test_one_set_wakes_everybody(self, store: Store, parked: Parked) -> None:
        calls = [Later(store.get, "later", LONG) for _ in range(5)]
        parked("later", 5)
        store.set("later", b"here")
        assert [call.result() for call in calls] == [b"here"] * 5

    # -- add ------------------------------------------------------------------------------------------------------

    def test_add_counts(self, store: Store) -> None:
        assert store.add("n", 5) == 5
        assert store.add("n", -7) == -2
        assert store.add("n", 0) == -2
        assert store.get("n") == b"-2"
        assert type(store.get("n")) is bytes

    def test_add_zero_creates(self, store: Store) -> None:
        assert store.add("n", 0) == 0
        assert store.check(["n"]) is True
        assert store.get("n", 0) == b"0"
        assert user_keys(store) == 1

    def test_add_wakes(self, store: Store, parked: Parked) -> None:
        call = Later(store.get, "n", LONG)
        parked("n")
        store.add("n", 3)
        assert call.result() == b"3"

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            (b"12x", 12),
            (b" 7", 7),
            (b"\t\n\v\f\r 9", 9),
            (b"+5", 5),
            (b"-3", -3),
            (b" -3 4", -3),
            (b"0x10", 0),
            (b"007", 7),
            (b"12\x003", 12),
            (b"1.9", 1),
            (b"-0", 0),
            (b"0" * 100 + b"8", 8),
            (b"12" + b"x" * 70000, 12),
            (str(INT_MAX - 1).encode(), INT_MAX - 1),
            (str(INT_MIN).encode(), INT_MIN),
        ],
        ids=lambda v: repr(v)[:20],
    )
    def test_add_reads_like_strtoll(self, store: Store, text: bytes, number: int) -> None:
        store.set("n", text)
        assert store.add("n", 1) == number + 1
        assert store.get("n") == str(number + 1).encode()

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b" ",
            b"abc",
            b"x12",
            b"+",
            b"-",
            b"- 5",
            b"+-5",
            b"\x0012",
            b"\xff",
            "\u0663".encode(),
            str(INT_MAX + 1).encode(),
            str(INT_MIN - 1).encode(),
            b"9" * 50,
            b"-" + b"9" * 50 + b"x",
        ],
        ids=lambda v: repr(v)[:20],
    )
    @pytest.mark.parametrize("n", [0, 1, -1])
    def test_add_to_no_number_keeps_the_value(self, store: Store, text: bytes, n: int) -> None:
        store.set("n", text)
        error = StoreConnectionError if store.capabilities.bad_add_disconnects else ValueError
        with pytest.raises(error):
            store.add("n", n)
        assert store.get("n") == text

    def test_add_wraps(self, store: Store) -> None:
        assert store.add("n", INT_MAX) == INT_MAX
        assert store.add("n", 1) == INT_MIN
        assert store.get("n") == str(INT_MIN).encode()
        assert store.add("n", -1) == INT_MAX
        assert store.add("m", INT_MIN) == INT_MIN

    @pytest.mark.parametrize("n", [INT_MAX + 1, INT_MIN - 1, 10**30])
    def test_add_beyond_int64(self, store: Store, n: int) -> None:
        with pytest.raises(ValueError):
            store.add("n", n)
        assert store.check(["n"]) is False

    @pytest.mark.parametrize("n", ["1", b"1", 1.5, None])
    def test_add_wrong_type(self, store: Store, n: Any) -> None:
        with pytest.raises(TypeError):
            store.add("n", n)
        assert user_keys(store) == 0

    def test_counter_and_text_change_into_each_other(self, store: Store) -> None:
        store.add("n", 5)
        store.set("n", b"70")
        assert store.add("n", 1) == 71
        store.set("n", b"seven")
        assert store.get("n") == b"seven"
        store.delete_key("n")
        assert store.add("n", 2) == 2

    # -- compare_set ----------------------------------------------------------------------------------------------

    def test_compare_set_missing_and_expected_empty_stores(self, store: Store) -> None:
        answer = store.compare_set("k", b"", b"new")
        assert answer == b"new"
        assert type(answer) is bytes
        assert store.get("k", 0) == b"new"

    def test_compare_set_missing_and_expected_not_empty_returns_expected(self, store: Store) -> None:
        answer = store.compare_set("k", "expected", "new")
        assert answer == b"expected"
        assert type(answer) is bytes
        assert store.check(["k"]) is False
        assert user_keys(store) == 0

    def test_compare_set_present(self, store: Store) -> None:
        store.set("k", b"one")
        assert store.compare_set("k", b"wrong", b"two") == b"one"
        assert store.get("k") == b"one"
        assert store.compare_set("k", b"", b"two") == b"one"
        assert store.get("k") == b"one"
        assert store.compare_set("k", b"one", b"two") == b"two"
        assert store.get("k") == b"two"

    def test_compare_set_compares_all_bytes(self, store: Store) -> None:
        store.set("k", b"a\0b")
        assert store.compare_set("k", b"a", b"x") == b"a\0b"
        assert store.compare_set("k", b"a\0c", b"x") == b"a\0b"
        assert store.compare_set("k", b"a\0b\0", b"x") == b"a\0b"
        assert store.compare_set("k", b"a\0b", b"") == b""
        assert store.compare_set("k", b"", b"again") == b"again"
        assert store.get("k") == b"again"

    def test_compare_set_missing_to_empty_creates(self, store: Store) -> None:
        assert store.compare_set("k", b"", b"") == b""
        assert store.check(["k"]) is True

    def test_compare_set_sees_counters_as_text(self, store: Store) -> None:
        store.add("n", 5)
        assert store.compare_set("n", b"05", b"6") == b"5"
        assert store.compare_set("n", b"5", b"6") == b"6"
        assert store.add("n", 1) == 7

    def test_compare_set_wakes_when_it_creates(self, store: Store, parked: Parked) -> None:
        call = Later(store.get, "k", LONG)
        parked("k")
        assert store.compare_set("k", b"wrong", b"x") == b"wrong"
        assert store.compare_set("k", b"", b"made") == b"made"
        assert call.result() == b"made"

    @pytest.mark.parametrize("size", [65535, 65536, 65537, VALUE_MAX])
    def test_compare_set_big(self, store: Store, size: int) -> None:
        one, two = b"1" * size, b"2" * (size - 1)
        assert store.compare_set("k", b"", one) == one
        assert store.compare_set("k", b"small", two) == one
        assert store.compare_set("k", one, two) == two
        assert store.get("k") == two

    def test_compare_set_has_one_winner(self, store: Store) -> None:
        answers = in_threads(8, lambda i: store.compare_set("k", b"", str(i).encode()))
        assert len(set(answers)) == 1
        assert store.get("k") == answers[0]

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

    def test_list_keys_escapes_what_is_not_utf8(self, store: Store) -> None:
        store.set(b"\xff\xfea", b"1")
        assert store.list_keys() == ["\udcff\udcfea"]

    def test_a_listed_key_can_be_used(self, store: Store) -> None:
        store.set(b"\xff\xfea", b"1")
        assert store.get(store.list_keys()[0], 0) == b"1"

    def test_queues_are_not_keys(self, store: Store) -> None:
        store.queue_push("q", b"1")
        assert user_keys(store) == 0
        assert store.list_keys() == []
        store.set("q", b"key")
        assert user_keys(store) == 1
        assert store.list_keys() == ["q"]

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

    # -- append ---------------------------------------------------------------------------------------------------

    def test_append(self, store: Store) -> None:
        assert store.append("k", b"a\0") is None
        store.append("k", "b")
        store.append("k", b"")
        assert store.get("k") == b"a\0b"

    def test_append_nothing_creates(self, store: Store) -> None:
        store.append("k", b"")
        assert store.get("k", 0) == b""

    def test_append_to_a_counter_extends_the_text(self, store: Store) -> None:
        store.add("n", 5)
        store.append("n", b"0")
        assert store.get("n") == b"50"
        assert store.add("n", 1) == 51
        store.append("n", b"x")
        assert store.get("n") == b"51x"
        assert store.add("n", -1) == 50

    def test_append_wakes(self, store: Store, parked: Parked) -> None:
        call = Later(store.get, "k", LONG)
        parked("k")
        store.append("k", b"1")
        assert call.result() == b"1"

    def test_append_grows(self, store: Store) -> None:
        for size in (1, 60, 4000, 61000, 70000, 2 << 20):
            store.append("k", bytes([size % 251]) * size)
        value = store.get("k")
        assert value == b"".join(bytes([s % 251]) * s for s in (1, 60, 4000, 61000, 70000, 2 << 20))

    def test_append_to_the_limit_and_not_beyond(self, store: Store) -> None:
        store.set("k", b"x" * (VALUE_MAX - 1))
        store.append("k", b"y")
        with pytest.raises(ValueError):
            store.append("k", b"z")
        value = store.get("k")
        assert len(value) == VALUE_MAX
        assert value.endswith(b"xy")

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

    # -- queues ---------------------------------------------------------------------------------------------------

    def test_queue_is_fifo(self, store: Store) -> None:
        assert store.queue_len("q") == 0
        items = [str(i).encode() for i in range(100)]
        for item in items:
            assert store.queue_push("q", item) is None
        assert store.queue_len("q") == 100
        assert [store.queue_pop("q") for _ in items] == items
        assert store.queue_len("q") == 0

    def test_queue_again_after_it_was_empty(self, store: Store) -> None:
        for i in range(5):
            store.queue_push("q", str(i))
            assert store.queue_pop("q", block=False) == str(i).encode()

    @pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, VALUE_MAX])
    def test_queue_item_sizes(self, store: Store, size: int) -> None:
        store.queue_push("q", b"x" * size)
        store.queue_push("q", b"y")
        got = store.queue_pop("q", False)
        assert got == b"x" * size
        assert type(got) is bytes
        assert store.queue_pop("q") == b"y"

    def test_queue_empty_without_block(self, store: Store) -> None:
        with pytest.raises(QueueEmptyError):
            store.queue_pop("q", False)
        with pytest.raises(QueueEmptyError):
            store.queue_pop("q", block=False)
        store.queue_push("q", b"")
        assert store.queue_pop("q", block=False) == b""
        with pytest.raises(QueueEmptyError):
            store.queue_pop("q", block=False)

    def test_queue_blocked_too_long(self, store: Store) -> None:
        store.set_timeout(0.05)
        start = time.monotonic()
        with pytest.raises(StoreTimeoutError) as caught:
            store.queue_pop("q-none")
        assert time.monotonic() - start >= 0.05
        assert "q-none" in str(caught.value)
        store.queue_push("q-none", b"for the next one")
        assert store.queue_pop("q-none") == b"for the next one"

    def test_queue_pop_waits(self, store: Store, parked: Parked) -> None:
        call = Later(store.queue_pop, "queue")
        parked("queue")
        store.queue_push("queue", b"item")
        assert call.result() == b"item"
        assert store.queue_len("queue") == 0

    def test_queue_serves_waiters_in_order(self, store: Store, parked: Parked) -> None:
        calls = []
        for n in range(1, 5):
            calls.append(Later(store.queue_pop, "queue"))
            parked("queue", n)
        for n, call in enumerate(calls):
            store.queue_push("queue", str(n))
            assert call.result() == str(n).encode()

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

    def test_get_does_not_see_a_queue(self, store: Store) -> None:
        store.queue_push("q", b"item")
        with pytest.raises(StoreTimeoutError):
            store.get("q", 0.02)
        assert store.queue_len("q") == 1

    def test_add_beside_a_queue(self, store: Store) -> None:
        store.queue_push("q", b"100")
        assert store.add("q", 1) == 1
        assert store.queue_pop("q") == b"100"

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

    def test_queues_keep_apart(self, store: Store) -> None:
        for name in ("q1", "q2", "q1\0"):
            store.queue_push(name, name)
        assert store.queue_pop("q2") == b"q2"
        assert store.queue_pop("q1\0") == b"q1\0"
        assert store.queue_pop("q1") == b"q1"

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

    # -- types and limits: nothing has happened ---------------------------------------------------------------------

    @pytest.mark.parametrize("key", [1, None, 1.5, bytearray(b"k"), memoryview(b"k"), ["k"]], ids=repr)
    def test_wrong_key_types(self, store: Store, key: Any) -> None:
        for call in self._calls_with_key(store, key):
            with pytest.raises(TypeError):
                call()
        assert user_keys(store) == 0

    @pytest.mark.parametrize("which", ["empty", "empty bytes", "long", "very long"])
    def test_wrong_keys(self, store: Store, key_overhead: int, which: str) -> None:
        long = KEY_MAX + 1 - key_overhead
        key: Any = {"empty": "", "empty bytes": b"", "long": "k" * long, "very long": b"k" * 100000}[which]
        for call in self._calls_with_key(store, key):
            with pytest.raises(ValueError):
                call()
        assert user_keys(store) == 0

    def _calls_with_key(self, store: Store, key: Any) -> list[Callable[[], Any]]:
        return [
            lambda: store.set(key, b""),
            lambda: store.get(key, 0),
            lambda: store.add(key, 1),
            lambda: store.compare_set(key, b"", b""),
            lambda: store.check([key]),
            lambda: store.wait([key], 0),
            lambda: store.delete_key(key),
            lambda: store.append(key, b""),
            lambda: store.multi_get([key], 0),
            lambda: store.multi_set([key], [b""]),
            lambda: store.queue_push(key, b""),
            lambda: store.queue_pop(key, False),
            lambda: store.queue_len(key),
            lambda: store.barrier(key, 1, 0),
        ]

    @pytest.mark.parametrize("value", [1, None, 1.5, ["v"], object()], ids=["int", "None", "float", "list", "object"])
    def test_wrong_value_types(self, store: Store, value: Any) -> None:
        for call in (
            lambda: store.set("k", value),
            lambda: store.append("k", value),
            lambda: store.compare_set("k", value, b""),
            lambda: store.compare_set("k", b"", value),
            lambda: store.multi_set(["k"], [value]),
            lambda: store.queue_push("k", value),
        ):
            with pytest.raises(TypeError):
                call()
        assert user_keys(store) == 0
        assert store.queue_len("k") == 0

    def test_value_too_big(self, store: Store) -> None:
        big = bytes(VALUE_MAX + 1)
        for call in (
            lambda: store.set("k", big),
            lambda: store.append("k", big),
            lambda: store.compare_set("k", b"", big),
            lambda: store.multi_set(["k"], [big]),
            lambda: store.queue_push("k", big),
        ):
            with pytest.raises(ValueError):
                call()
        assert user_keys(store) == 0
        assert store.queue_len("k") == 0
        store.set("k", b"kept")
        with pytest.raises(ValueError):
            store.set("k", big)
        assert store.get("k") == b"kept"

    # -- threads ----------------------------------------------------------------------------------------------------

    def test_threads_count_exactly(self, store: Store) -> None:
        n, each = 8, 100
        answers = in_threads(n, lambda _: [store.add("n", 1) for _ in range(each)])
        flat = [value for values in answers for value in values]
        assert sorted(flat) == list(range(1, n * each + 1))
        assert store.get("n") == str(n * each).encode()

    def test_threads_never_see_half_a_value(self, store: Store) -> None:
        sizes = [3, 100, 5000, 70000]
        store.set("k", b"a" * 3)

        def work(i: int) -> None:
            for j in range(40):
                if i < 2:
                    store.set("k", bytes([97 + (i + j) % 26]) * sizes[(i + j) % 4])
                else:
                    value = store.get("k", 0)
                    assert len(value) in sizes
                    assert value == value[:1] * len(value)

        in_threads(4, work)

    def test_threads_append_whole_pieces(self, store: Store) -> None:
        in_threads(4, lambda i: [store.append("k", bytes([97 + i]) * 3) for _ in range(50)])
        value = store.get("k")
        pieces = [value[i : i + 3] for i in range(0, len(value), 3)]
        assert sorted(pieces) == sorted(bytes([97 + i]) * 3 for i in range(4) for _ in range(50))


def user_keys(store: Store) -> int:
    """num_keys without the store's own."""
    return store.num_keys() - store.capabilities.extra_internal_keys


def seconds(timeout: timedelta | float) -> float:
    """A timeout in seconds."""
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


def in_threads(n: int, fn: Callable[[int], Any]) -> list[Any]:
    """fn(0) … fn(n-1) in n threads through one gate; their results, or the first error."""
    gate = threading.Barrier(n)

    def body(i: int) -> Any:
        gate.wait(LONG)
        return fn(i)

    calls = [Later(body, i) for i in range(n)]
    return [call.result() for call in calls]


def blocked(store: Store, verb: str, key: str) -> Later:
    """`verb` in a thread, blocked on `key`."""
    store.set_timeout(LONG)
    calls: dict[str, Callable[[], Any]] = {
        "get": lambda: store.get(key),
        "wait": lambda: store.wait([key]),
        "multi_get": lambda: store.multi_get([key]),
        "queue_pop": lambda: store.queue_pop(key),
        "barrier": lambda: store.barrier(key, 2),
    }
    return Later(calls[verb])


def release(store: Store, verb: str, key: str) -> None:
    """What `blocked` waits for."""
    if verb == "queue_pop":
        store.queue_push(key, b"x")
    elif verb == "barrier":
        store.barrier(key, 2)
    else:
        store.set(key, b"x")
