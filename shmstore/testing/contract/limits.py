"""What is refused, and that nothing has happened then; and threads at work together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shmstore import Store
from shmstore.testing.contract.support import KEY_MAX, VALUE_MAX, Contract, in_threads, needs_queues, user_keys


class LimitsContract(Contract):
    """See the module."""

    # -- types and limits: nothing has happened ---------------------------------------------------------------------

    @pytest.mark.parametrize("key", [1, None, 1.5, bytearray(b"k"), memoryview(b"k"), ["k"]])
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

    @needs_queues
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

    @needs_queues
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
