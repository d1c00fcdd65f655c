"""Somebody else's store: `--store module:callable` or a URL.

The callable gets, by keyword, those of these arguments that it takes, or all of them if it takes any:

    name        str: the store's, of letters, digits and dashes; the same in all processes, another one each time
    rank        int: 0 to world_size - 1 in the processes that work; None in the process that stays until they are gone
    world_size  int: how many processes work
    directory   str: an empty directory, on tmpfs where there is one
    capacity    int: bytes that the store should hold; given only where that is much

and returns an object with the verbs (rivals/base.py lists them). It is called first with rank None, in a process that
works on nothing and closes it last: the place to start a server. The arguments are the same otherwise, so that several
processes can find the same store; a callable without arguments must know by itself. What `close()` there is, is called.

URLs: shm://[NAME][?sync=futex|semaphore&capacity=BYTES] · hash:// · tcp://HOST:PORT (a running torch TCPStore server) ·
file:///PATH (torch FileStore) · unix:///PATH (a running Redis).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from bench.rivals.base import Place, StoreRival, absent

__all__ = ["Given"]


class Given(StoreRival):
    """A store by its specification, as it was typed.

    Raises:
        ValueError: it is neither a URL of the known schemes nor module:callable.
    """

    def __init__(self, spec: str) -> None:
        self.name = spec
        self.spec = spec
        scheme, found, _ = spec.partition("://")
        if found and scheme not in URLS:
            raise ValueError(f"{spec!r}: known URLs begin with {', '.join(f'{each}://' for each in URLS)}")
        if not found and not (scheme.partition(":")[0] and scheme.partition(":")[2]):
            raise ValueError(f"{spec!r} is neither module:callable nor a URL")
        if found:
            self.modules = (URLS[scheme][0],)
            if scheme == "hash":
                self.lacks = dict.fromkeys(("attach", "processes"), "has no name: each process has its own")
        else:
            self.modules = (spec.partition(":")[0],)

    def missing(self) -> str | None:
        """Names its module, if that is not to be found."""
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        return absent(self.modules[0])

    @contextmanager
    def host(self, place: Place, inherited: Any) -> Iterator[dict[str, Any]]:
        """Calls it with rank None and keeps what it returns."""
        del inherited
        said: dict[str, Any] = {
            "name": place.token,
            "world_size": place.processes,
            "directory": str(place.directory),
        }
        if place.capacity:
            said["capacity"] = place.capacity
        held = self._make({**said, "rank": None})
        try:
            yield said
        finally:
            self.close(held)

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> Any:
        """Calls it with a rank."""
        del inherited, world
        return self._make({**address, "rank": rank})

    def _make(self, said: dict[str, Any]) -> Any:
        scheme, found, _ = self.spec.partition("://")
        return URLS[scheme][1](self.spec, said) if found else _call(_resolve(self.spec), said)


def _resolve(spec: str) -> Callable[..., Any]:
    module, _, path = spec.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{spec} is not callable")
    made: Callable[..., Any] = found
    return made


def _call(make: Callable[..., Any], said: dict[str, Any]) -> Any:
    """Calls it with those arguments that it takes by keyword."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError:  # a class in C that does not say
        return make()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return make(**said)
    by_keyword = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    return make(**{name: value for name, value in said.items() if name in by_keyword})


def _shm(url: str, said: dict[str, Any]) -> Any:
    parts = urlsplit(url)
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if "capacity" in options or "capacity" in said:
        options["capacity"] = int(options.get("capacity") or said["capacity"])
    return import_module("shmstore").ShmStore(parts.netloc or said["name"], **options)


def _hash(url: str, said: dict[str, Any]) -> Any:
    del url, said
    return import_module("shmstore").HashStore()


def _tcp(url: str, said: dict[str, Any]) -> Any:
    del said
    parts = urlsplit(url)
    store = import_module("torch.distributed").TCPStore
    return store(parts.hostname, parts.port, is_master=False, timeout=timedelta(seconds=120), wait_for_workers=False)


def _file(url: str, said: dict[str, Any]) -> Any:
    return import_module("torch.distributed").FileStore(urlsplit(url).path, said["world_size"])


def _unix(url: str, said: dict[str, Any]) -> Any:
    del said
    client = import_module("redis").Redis(unix_socket_path=urlsplit(url).path)
    return import_module("bench.rivals.redis_unix").RedisStore(client)


URLS: dict[str, tuple[str, Callable[[str, dict[str, Any]], Any]]] = {
    "shm": ("shmstore", _shm),
    "hash": ("shmstore", _hash),
    "tcp": ("torch.distributed", _tcp),
    "file": ("torch.distributed", _file),
    "unix": ("redis", _unix),
}
"""Scheme -> the module it needs, and what opens it."""
