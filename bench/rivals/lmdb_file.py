"""LMDB: a memory-mapped B-tree that processes share through a file, here on tmpfs and without any syncing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.rivals.base import Place, StoreRival

__all__ = ["Lmdb"]

MAP_BYTES = 8 << 30
"""What the map may grow to; address space only, LMDB takes file space as it needs it."""


class LmdbStore:
    """An lmdb.Environment with a store's verbs: a transaction each."""

    def __init__(self, path: str) -> None:
        self._env = import_module("lmdb").open(path, map_size=MAP_BYTES, sync=False, metasync=False, max_readers=512)
        self._begin = self._env.begin
        self.close = self._env.close

    def set(self, key: str, value: bytes) -> None:
        """A write transaction."""
        with self._begin(write=True) as txn:
            txn.put(key.encode(), value)

    def get(self, key: str) -> bytes:
        """A read transaction."""
        with self._begin() as txn:
            return bytes(txn.get(key.encode()))

    def add(self, key: str, n: int) -> int:
        """A write transaction that reads first."""
        raw = key.encode()
        with self._begin(write=True) as txn:
            total = int(txn.get(raw, b"0")) + n
            txn.put(raw, b"%d" % total)
        return total

    def check(self, keys: Sequence[str]) -> bool:
        """A read transaction for all keys."""
        with self._begin() as txn:
            return all(txn.get(key.encode()) is not None for key in keys)

    def has_extended_api(self) -> bool:
        """There is a multi_set."""
        return True

    def multi_set(self, keys: Sequence[str], values: Sequence[bytes]) -> None:
        """A write transaction for all keys."""
        with self._begin(write=True) as txn:
            txn.cursor().putmulti((key.encode(), value) for key, value in zip(keys, values, strict=True))


class Lmdb(StoreRival):
    """LMDB with all its syncing switched off: nothing here is to survive the machine."""

    name = "LMDB"
    lacks = MappingProxyType({"elastic": "cannot wait for a key", "barrier": "cannot wait for anything"})
    modules = ("lmdb",)

    @contextmanager
    def host(self, place: Place, inherited: Any) -> Iterator[str]:
        """A directory for its two files; there is no server."""
        del inherited
        path = place.directory / "lmdb"
        path.mkdir()
        yield str(path)

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> LmdbStore:
        """Opens the environment; once at a time in a process."""
        del inherited, rank, world
        return LmdbStore(address)

    def files(self, address: Any) -> Sequence[Path]:
        """The data; the lock file has a fixed size."""
        return [Path(address) / "data.mdb"]
