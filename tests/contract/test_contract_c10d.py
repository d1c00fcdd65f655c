"""The contract through torch's C++: PrefixStore("p", C10dStore(ShmStore)), which nothing else in Python refers to.

What C++ does not forward to a store of Python is pinned at the end; docs/torch.md has the table.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import inside
import pytest
from kinds import torchs
from torch_client import FOREVER, UNIT, TorchClient

from shmstore import Capabilities, ShmStore, Store, StoreTimeoutError
from shmstore._deadline import as_timedelta
from shmstore.testing.contract import StoreContract
from shmstore.testing.contract.support import Parked

dist: Any = torchs("torch.distributed", "C10dStore is one of torch's stores")

from shmstore.torch import C10dStore  # noqa: E402 -- torch is there

CAN = Capabilities(cross_process=True, fork=True, queues=False, list_keys=False, barrier=False, names_dead=True)


class Through(TorchClient):
    """A torch PrefixStore for each thread that comes, over a C10dStore of its own."""

    def __init__(self, name: str, timeout: Any = 30, waits: list[Any] | None = None) -> None:
        super().__init__(0, timeout, waits)
        self._name = name
        self._ours: list[Any] = []
        self._client()
        gc.collect()  # what nobody holds is gone now

    @property
    def capabilities(self) -> Capabilities:
        return CAN

    def _connect(self) -> Any:
        made = C10dStore(ShmStore(self._name))
        self._ours.append(made.close)
        return dist.PrefixStore("p", made)

    def _call(self, call: Callable[[Any], Any]) -> Any:
        return call(self._client())

    def _waiting(self, keys: Sequence[Any], timeout: Any, call: Callable[[Any, timedelta], Any]) -> Any:
        limit = -(-min(self._timeout if timeout is None else as_timedelta(timeout), FOREVER) // UNIT) * UNIT
        client = self._client()
        client.set_timeout(limit)
        return call(client, limit)

    def barrier(self, key: Any, world_size: int, timeout: Any = None) -> None:
        self._waiting([key], timeout, lambda client, limit: client.barrier(key, world_size, limit))

    def clone(self) -> Through:
        return Through(self._name, self._timeout, self._waits)

    def close(self) -> None:
        super().close()
        for close in self._ours:
            close()


PINNED = {
    "test_wrong_key_types": "test_what_is_no_key_is_a_type_error",
    "test_wrong_keys": "test_nothing_is_a_key, test_long_keys",
    "test_key_may_hold_anything": "test_keys_are_text",
    "test_multi_set_is_all_or_nothing": "test_nothing_is_a_key",
    "test_add_beyond_int64": "test_an_addend_beyond_int64_is_a_type_error",
    "test_barrier_everybody_passes_at_world_size": "test_barrier_is_torchs_own",
    "test_barrier_timed_out_arrival_counts": "test_barrier_is_torchs_own",
}
"""What C++ does otherwise before anything reaches us, and where it is said what. Keys: UTF-8 only, and "p/" is one."""

ONLY = {"test_key_may_hold_anything": r"\xff", "test_multi_set_is_all_or_nothing": "empty"}
"""Of these, the cases whose id has that; the others pass."""


class TestThroughTorch(StoreContract):
    """All that C++ forwards."""

    @pytest.fixture(autouse=True)
    def pinned(self, request: pytest.FixtureRequest) -> None:
        name = request.node.originalname
        if name in PINNED and ONLY.get(name, "") in request.node.name:
            pytest.skip(f"torch's C++ does otherwise: {PINNED[name]}")

    @pytest.fixture
    def store_factory(self, name: str) -> Iterator[Callable[[], Store]]:
        handles: list[Store] = []

        def make() -> Store:
            handles.append(Through(name))
            return handles[-1]

        yield make
        for handle in handles:
            handle.close()

    @pytest.fixture
    def key_overhead(self) -> int:
        return len("p/")

    @pytest.fixture
    def parked(self, name: str) -> Iterator[Parked]:
        with ShmStore(name) as watcher:
            yield lambda key, n=1: inside.parked(watcher, key, n)

    # -- what is otherwise --------------------------------------------------------------------------------------------

    FORWARDED: tuple[Callable[[Any, Any], Any], ...] = (
        lambda store, key: store.set(key, b""),
        lambda store, key: store.get(key, 0),
        lambda store, key: store.add(key, 1),
        lambda store, key: store.compare_set(key, b"", b""),
        lambda store, key: store.check([key]),
        lambda store, key: store.wait([key], 0),
        lambda store, key: store.delete_key(key),
        lambda store, key: store.append(key, b""),
        lambda store, key: store.multi_get([key], 0),
        lambda store, key: store.multi_set([key], [b""]),
    )

    @pytest.mark.parametrize("key", [1, None, 1.5, memoryview(b"k"), ["k"]])
    def test_what_is_no_key_is_a_type_error(self, store: Store, key: Any) -> None:
        for call in self.FORWARDED:
            with pytest.raises(TypeError):
                call(store, key)
        assert store.num_keys() == 0

    @pytest.mark.parametrize("length", [8190, 100_000])
    def test_long_keys(self, store: Store, length: int) -> None:
        for call in self.FORWARDED:
            with pytest.raises(ValueError, match="8191"):
                call(store, "k" * length)
        assert store.num_keys() == 0

    def test_nothing_is_a_key(self, store: Store) -> None:
        store.multi_set(["", b""], [b"1", b"2"])
        assert (store.add("", 1), store.get(b""), store.num_keys()) == (3, b"3", 1)

    def test_keys_are_text(self, store: Store) -> None:
        """C++ hands them on as str."""
        for call in self.FORWARDED:
            with pytest.raises(UnicodeDecodeError):
                call(store, b"\xff\xfe")
        assert store.num_keys() == 0

    @pytest.mark.parametrize("n", [2**63, -(2**63) - 1, 10**30])
    def test_an_addend_beyond_int64_is_a_type_error(self, store: Store, n: int) -> None:
        with pytest.raises(TypeError):
            store.add("n", n)
        assert store.check(["n"]) is False

    def test_barrier_is_torchs_own(self, store: Store) -> None:
        """Never forwarded: C++ adds and waits, under keys of its own."""
        with pytest.raises(StoreTimeoutError, match="b/last_member"):
            store.barrier("b", 2, 0.02)
        assert (store.get("b/num_members"), store.check(["b"])) == (b"1", False)
        store.barrier("b", 2, 20)
        assert (store.get("b/num_members"), store.check(["b/last_member"])) == (b"2", True)

    def test_queues_and_list_keys_are_not_forwarded(self, store: Store) -> None:
        for call in (
            lambda: store.queue_push("q", b"item"),
            lambda: store.queue_pop("q", block=False),
            lambda: store.queue_len("q"),
            store.list_keys,
        ):
            with pytest.raises((NotImplementedError, RuntimeError), match=r"not implemented|not support|list"):
                call()
