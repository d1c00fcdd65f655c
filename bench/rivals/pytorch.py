"""torch.distributed's stores: the server on either of its loops, the file, and the one inside a process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.rivals.base import Place, StoreRival

__all__ = ["File", "Hash", "Tcp"]

LIMIT = timedelta(seconds=120)
HOST = "127.0.0.1"


class Tcp(StoreRival):
    """TCPStore: a server thread in C++, and clients over TCP on the loopback."""

    modules = ("torch.distributed",)

    def __init__(self, *, use_libuv: bool) -> None:
        self.name = f"torch TCPStore {'libuv' if use_libuv else 'legacy'}"
        self._use_libuv = use_libuv

    @contextmanager
    def host(self, place: Place, inherited: Any) -> Iterator[tuple[str, int]]:
        """The server, in a thread of the session's process, which needs no GIL."""
        del place, inherited
        server = self._store(0, is_master=True)
        yield HOST, server.port
        del server

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> Any:
        """A client."""
        del inherited, rank, world
        return self._store(address[1], is_master=False)

    def _store(self, port: int, *, is_master: bool) -> Any:
        return import_module("torch.distributed").TCPStore(
            HOST, port, None, is_master, LIMIT, wait_for_workers=False, use_libuv=self._use_libuv
        )


class File(StoreRival):
    """FileStore: every write appended to one file, which each reader follows. The file is on tmpfs here."""

    name = "torch FileStore"
    modules = ("torch.distributed",)

    @contextmanager
    def host(self, place: Place, inherited: Any) -> Iterator[str]:
        """The name of a file in an empty directory."""
        del inherited
        yield str(place.directory / "filestore")

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> Any:
        """Opens the file, or creates it."""
        del inherited, rank
        store = import_module("torch.distributed").FileStore(address, world)
        store.set_timeout(LIMIT)
        return store

    def files(self, address: Any) -> Sequence[Path]:
        """The file."""
        return [Path(address)]


class Hash(StoreRival):
    """HashStore: an unordered_map and a mutex in the process."""

    name = "torch HashStore"
    lacks = MappingProxyType(
        {
            "processes": "only for threads of one process",
            "attach": "only for threads of one process",
        }
    )
    modules = ("torch.distributed",)

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> Any:
        """A new store: there is one process only."""
        del address, inherited, rank, world
        return import_module("torch.distributed").HashStore()
