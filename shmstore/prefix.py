"""PrefixStore: a part of another store, under a prefix."""

# ruff: noqa: D102 -- the verbs' docstrings are Store's, and help() shows them here too
from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from shmstore._deadline import Timeout
from shmstore._keys import Key, Keys, Value, Values, check_sequence, key_bytes, key_text
from shmstore.store import Capabilities, Store

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PrefixStore"]


class PrefixStore(Store):
    """A view of another store in which every key `k` is the key `prefix/k` of that store.

    Args:
        prefix: str or bytes; may hold slashes, and may be empty.
        store: any store, also another PrefixStore. The view is no handle of its own: timeout, set_timeout and close
            are the store's (c10d's rule), and the key limit counts all prefixes.

    num_keys and list_keys see the view's own keys only; list_keys gives them without the prefix. Errors name keys as
    the store below knows them.

    Raises:
        TypeError: prefix or store is none.
    """

    def __init__(self, prefix: Key, store: Store) -> None:
        if not isinstance(prefix, str | bytes):
            raise TypeError(f"a prefix must be str or bytes, not {type(prefix).__name__}")
        if not isinstance(store, Store):
            raise TypeError(f"a PrefixStore needs a Store below, not {type(store).__name__}")
        self._prefix: Final = key_text(prefix) if isinstance(prefix, bytes) else prefix
        self._before: Final = self._prefix + "/"
        self._before_raw: Final = self._before.encode("utf-8", "surrogateescape")
        self._store: Final = store

    @property
    def underlying_store(self) -> Store:
        """The store below."""
        return self._store

    @property
    def prefix(self) -> str:
        """The prefix, without the slash."""
        return self._prefix

    @property
    def capabilities(self) -> Capabilities:
        return self._store.capabilities

    @property
    def timeout(self) -> timedelta:
        return self._store.timeout

    def set_timeout(self, timeout: Timeout) -> None:
        self._store.set_timeout(timeout)

    def _join(self, key: Key) -> Key:
        if type(key) is str and key:
            return self._before + key
        return self._before_raw + key_bytes(key)

    def _join_all(self, keys: Keys) -> list[Key]:
        check_sequence(keys, "keys")
        return [self._join(key) for key in keys]

    def set(self, key: Key, value: Value) -> None:
        self._store.set(self._join(key), value)

    def get(self, key: Key, timeout: Timeout | None = None) -> bytes:
        return self._store.get(self._join(key), timeout)

    def add(self, key: Key, n: int) -> int:
        return self._store.add(self._join(key), n)

    def compare_set(self, key: Key, expected: Value, desired: Value) -> bytes:
        return self._store.compare_set(self._join(key), expected, desired)

    def append(self, key: Key, value: Value) -> None:
        self._store.append(self._join(key), value)

    def delete_key(self, key: Key) -> bool:
        return self._store.delete_key(self._join(key))

    def check(self, keys: Keys) -> bool:
        return self._store.check(self._join_all(keys))

    def wait(self, keys: Keys, timeout: Timeout | None = None) -> None:
        self._store.wait(self._join_all(keys), timeout)

    def multi_get(self, keys: Keys, timeout: Timeout | None = None) -> list[bytes]:
        return self._store.multi_get(self._join_all(keys), timeout)

    def multi_set(self, keys: Keys, values: Values) -> None:
        self._store.multi_set(self._join_all(keys), values)

    def num_keys(self) -> int:
        return self._count(b"")

    def list_keys(self) -> list[str]:
        return self._list(b"")

    def _peek(self, key: Key) -> bytes | None:
        return self._store._peek(self._join(key))  # noqa: SLF001 -- Store's hook for just this

    def _count(self, prefix: bytes) -> int:
        return self._store._count(self._before_raw + prefix)  # noqa: SLF001 -- the same

    def _list(self, prefix: bytes) -> list[str]:
        cut = len(self._before)
        return [key[cut:] for key in self._store._list(self._before_raw + prefix)]  # noqa: SLF001

    def _watching(self) -> Store:
        return PrefixStore(self._prefix, self._store._watching())  # noqa: SLF001 -- the same

    def _barrier_home(self, raw: bytes) -> tuple[Store, bytes] | None:
        return self._store._barrier_home(self._before_raw + raw)  # noqa: SLF001 -- the same

    def _nodes(self, raw: bytes) -> tuple[Store, bytes] | None:
        return self._store._nodes(self._before_raw + raw)  # noqa: SLF001 -- the same

    def _together(
        self, raw: bytes, rank: int | None, world_size: int, value: bytes | None, timeout: Timeout
    ) -> list[bytes] | None:
        return self._store._together(self._before_raw + raw, rank, world_size, value, timeout)  # noqa: SLF001

    def queue_push(self, key: Key, value: Value) -> None:
        self._store.queue_push(self._join(key), value)

    def queue_pop(self, key: Key, block: bool = True) -> bytes:  # noqa: FBT001, FBT002 -- c10d's signature
        return self._store.queue_pop(self._join(key), block)

    def queue_len(self, key: Key) -> int:
        return self._store.queue_len(self._join(key))

    def barrier(self, key: Key, world_size: int, timeout: Timeout | None = None) -> None:
        self._store.barrier(self._join(key), world_size, timeout)

    def clone(self) -> Self:
        return type(self)(self._prefix, self._store.clone())

    def __enter__(self) -> Self:
        self._store.__enter__()
        return self

    def close(self) -> None:
        self._store.close()

    def has_extended_api(self) -> bool:
        return self._store.has_extended_api()

    def __repr__(self) -> str:
        return f"PrefixStore({self._prefix!r}, {self._store!r})"
