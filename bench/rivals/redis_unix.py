"""Redis, over a Unix socket, with its Python client (and hiredis, where that is installed)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import MappingProxyType
from typing import Any

from bench.rivals.base import Place, StoreRival

__all__ = ["Redis", "RedisStore"]

SERVER = "redis-server"
LIMIT_S = 120


class RedisStore:
    """A redis.Redis with a store's verbs."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.set = client.set
        self.get = client.get
        self.add = client.incrby
        self.close = client.close

    def check(self, keys: Sequence[str]) -> bool:
        """One round trip."""
        return bool(self._client.exists(*keys) == len(keys))

    def has_extended_api(self) -> bool:
        """There is a multi_set."""
        return True

    def multi_set(self, keys: Sequence[str], values: Sequence[bytes]) -> None:
        """One round trip."""
        self._client.mset(dict(zip(keys, values, strict=True)))

    def barrier(self, key: str, world: int) -> None:
        """Counts arrivals; the last one pushes a token for each of the others, who block for one."""
        if self._client.incr(key) == world:
            if world > 1:
                self._client.rpush(f"{key}/open", *[b""] * (world - 1))
        elif self._client.blpop(f"{key}/open", timeout=LIMIT_S) is None:
            raise TimeoutError(f"barrier {key!r} did not open in {LIMIT_S} s")


class Redis(StoreRival):
    """redis-server without any saving to disk."""

    name = "Redis (unix socket)"
    lacks = MappingProxyType({"elastic": "cannot wait for a key, only for a list's item"})
    modules = ("redis",)

    def missing(self) -> str | None:
        """The client, or the server's program."""
        found = super().missing()
        if found is None and shutil.which(SERVER) is None:
            found = f"the program {SERVER} is not installed"
        return found

    @contextmanager
    def host(self, place: Place, inherited: Any) -> Iterator[str]:
        """A server of our own; up when its log says so."""
        del inherited
        path = str(place.directory / "socket")
        command = [SERVER, "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
        with subprocess.Popen(  # noqa: S603 -- nothing of it comes from outside
            [*command, "--dir", str(place.directory)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as server:
            assert server.stdout is not None
            try:
                line = next((line for line in server.stdout if "eady to accept connections" in line), None)
                if line is None:
                    raise RuntimeError(f"{SERVER} ended before it was ready")
                yield path
            finally:
                server.terminate()

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> RedisStore:
        """A client; it connects at its first use."""
        del inherited, rank, world
        return RedisStore(import_module("redis").Redis(unix_socket_path=address))
