"""What the tests of the contract share: their fixtures, calls in threads of their own, limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shmstore import Store, StoreTimeoutError

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


needs_queues = pytest.mark.usefixtures("queues")
needs_list_keys = pytest.mark.usefixtures("list_keys")
"""What a test is skipped without."""


class Contract:
    """What each part of the contract stands on: the fixtures a store fills in."""

    @pytest.fixture
    def queues(self, store: Store) -> None:
        if not store.capabilities.queues:
            pytest.skip("capabilities.queues is False")

    @pytest.fixture
    def list_keys(self, store: Store) -> None:
        if not store.capabilities.list_keys:
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
