"""The verbs of a HybridStore: which half a key is in, and calls that ask both.

A key that begins with `node/` stays in the node, every other key goes to the world.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from time import monotonic_ns
from typing import Final

from shmstore._deadline import FOREVER, Timeout, as_timedelta, seconds, span_ns
from shmstore._keys import Key, Keys, Value, Values, key_bytes, key_text, keys_bytes, pairs_bytes
from shmstore.errors import StoreClosedError, StoreTimeoutError
from shmstore.store import Store

__all__ = ["NODE", "HalvedStore"]

NODE: Final = b"node/"
"""What a key begins with that stays in the node."""


class HalvedStore(Store):
    """A store of two."""

    def __init__(self, node: Store, world: Store) -> None:
        self._node: Final = node
        self._world: Final = world
        self._timeout = world.timeout
        self._closed = False
        node.set_timeout(self._timeout)

    @property
    def timeout(self) -> timedelta:
        return self._timeout

    def set_timeout(self, timeout: Timeout) -> None:
        as_given = as_timedelta(timeout)
        for half in (self._node, self._world):
            half.set_timeout(timeout)
        self._timeout = as_given

    # -- one key ------------------------------------------------------------------------------------------------------

    def _half(self, key: Key) -> Store:
        """Where the key is."""
        if self._closed:
            raise StoreClosedError(f"{self!r} is closed")
        return self._node if key_bytes(key).startswith(NODE) else self._world

    def set(self, key: Key, value: Value) -> None:
        self._half(key).set(key, value)

    def get(self, key: Key, timeout: Timeout | None = None) -> bytes:
        return self._half(key).get(key, timeout)

    def add(self, key: Key, n: int) -> int:
        return self._half(key).add(key, n)

    def compare_set(self, key: Key, expected: Value, desired: Value) -> bytes:
        return self._half(key).compare_set(key, expected, desired)

    def append(self, key: Key, value: Value) -> None:
        self._half(key).append(key, value)

    def delete_key(self, key: Key) -> bool:
        return self._half(key).delete_key(key)

    # -- several keys -------------------------------------------------------------------------------------------------

    def _halves(self, keys: Keys) -> tuple[list[bytes], list[bytes]]:
        """The node's keys and the world's."""
        raws = keys_bytes(keys)
        if self._closed:
            raise StoreClosedError(f"{self!r} is closed")
        return [raw for raw in raws if raw.startswith(NODE)], [raw for raw in raws if not raw.startswith(NODE)]

    def check(self, keys: Keys) -> bool:
        near, far = self._halves(keys)
        return (not near or self._node.check(near)) and (not far or self._world.check(far))

    def wait(self, keys: Keys, timeout: Timeout | None = None) -> None:
        self._both(keys, timeout, lambda half, raws, left: half.wait(raws, left))

    def multi_get(self, keys: Keys, timeout: Timeout | None = None) -> list[bytes]:
        found: dict[bytes, bytes] = {}

        def ask(half: Store, raws: list[bytes], left: Timeout) -> None:
            found.update(zip(raws, half.multi_get(raws, left), strict=True))

        self._both(keys, timeout, ask)
        return [found[key_bytes(key)] for key in keys]

    def _both(self, keys: Keys, timeout: Timeout | None, ask: Callable[[Store, list[bytes], Timeout], None]) -> None:
        """Asks each half for its keys, with one deadline; an error of time lists what is missing in both."""
        near, far = self._halves(keys)
        limit = self._timeout if timeout is None else timeout
        span, start = span_ns(limit), monotonic_ns()
        if not (near and far):
            if near or far:
                ask(self._node if near else self._world, near or far, limit)
            return
        try:
            ask(self._node, near, limit)
        except StoreTimeoutError as error:
            away = [key_text(raw) for raw in far if not self._world.check([raw])]
            if not away:
                raise
            raise StoreTimeoutError(
                f"{error}; and in the world {', '.join(map(repr, away[:16]))}",
                keys=[*error.keys, *away],
                elapsed=error.elapsed,
                timeout=error.timeout,
            ) from None
        left = FOREVER if span == FOREVER else max(span - (monotonic_ns() - start), 0)
        ask(self._world, far, seconds(left))

    def multi_set(self, keys: Keys, values: Values) -> None:
        pairs = pairs_bytes(keys, values)
        near, far = self._halves(list(pairs))
        for half, raws in ((self._node, near), (self._world, far)):
            if raws:
                half.multi_set(raws, [pairs[raw] for raw in raws])

    def num_keys(self) -> int:
        self._half(b"k")
        return self._node._count(NODE) + self._world.num_keys()  # noqa: SLF001 -- Store's hook for just this

    def list_keys(self) -> list[str]:
        self._half(b"k")
        return [*self._node._list(NODE), *self._world.list_keys()]  # noqa: SLF001 -- the same

    def _list(self, prefix: bytes) -> list[str]:
        self._half(b"k")
        near = prefix if prefix.startswith(NODE) else NODE
        found = self._node._list(near) if near.startswith(prefix) else []  # noqa: SLF001 -- the same
        return found if prefix.startswith(NODE) else [*found, *self._world._list(prefix)]  # noqa: SLF001

    # -- queues -------------------------------------------------------------------------------------------------------

    def queue_push(self, key: Key, value: Value) -> None:
        self._half(key).queue_push(key, value)

    def queue_pop(self, key: Key, block: bool = True) -> bytes:  # noqa: FBT001, FBT002 -- c10d's signature
        return self._half(key).queue_pop(key, block)

    def queue_len(self, key: Key) -> int:
        return self._half(key).queue_len(key)
