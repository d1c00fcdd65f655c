"""One key: set and get, add, compare_set, append."""

from __future__ import annotations

import time
from array import array
from typing import Any

import pytest

from shmstore import Store, StoreConnectionError, StoreTimeoutError
from shmstore.testing.contract.support import (
    INT_MAX,
    INT_MIN,
    KEY_MAX,
    LONG,
    VALUE_MAX,
    Contract,
    Factory,
    Later,
    Parked,
    in_threads,
    missing_names,
    needs_list_keys,
    user_keys,
)


class KeyContract(Contract):
    """See the module."""

    # -- set and get ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "value",
        [b"", b"\0", b"a\0b\0", b"x", bytes(range(256)), "text", "grün €", "", bytearray(b"ba"), memoryview(b"mv")],
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

    @needs_list_keys
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
