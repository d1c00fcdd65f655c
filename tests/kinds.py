"""Every store a barrier may stand on: ours, torch's, and the least that will do. One handle more with each call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import shmstore

SEGMENT = ["hash", "futex", "semaphore", "prefix-hash", "prefix-futex"]
TORCH = ["torch-hash", "torch-file", "torch-tcp", "torch-prefix"]
DUCKS = ["duck", "duck-swap", "duck-plain"]
LONG = timedelta(seconds=30)


class Plain:
    """A store with the five verbs that a barrier cannot do without, for the threads of one process."""

    def __init__(self, shared: Plain | None = None) -> None:
        self._keys: dict[str, bytes] = {} if shared is None else shared._keys
        self._changed: threading.Condition = threading.Condition() if shared is None else shared._changed

    def set(self, key: str, value: str) -> None:
        with self._changed:
            self._keys[key] = value.encode()
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        self.wait([key], LONG)
        with self._changed:
            return self._keys[key]

    def add(self, key: str, n: int) -> int:
        with self._changed:
            total = int(self._keys.get(key, b"0")) + n
            self._keys[key] = b"%d" % total
            self._changed.notify_all()
            return total

    def check(self, keys: list[str]) -> bool:
        with self._changed:
            return all(key in self._keys for key in keys)

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: all(key in self._keys for key in keys), timeout.total_seconds()):
                raise TimeoutError

    def num_keys(self) -> int:
        with self._changed:
            return len(self._keys)


class Swapping(Plain):
    """The same with compare_set."""

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        with self._changed:
            if self._keys.get(key, b"") == expected.encode():
                self._keys[key] = desired.encode()
                self._changed.notify_all()
            return self._keys.get(key, expected.encode())


class Duck(Swapping):
    """The same with delete_key."""

    def delete_key(self, key: str) -> bool:
        with self._changed:
            return self._keys.pop(key, None) is not None


@contextmanager
def handles(kind: str, name: str, folder: Path) -> Iterator[Callable[[], Any]]:
    """A function that gives one more handle of the same store at each call; all are closed at the end."""
    with ExitStack() as stack:
        yield _FACTORIES[kind.split("-")[0]](kind, name, folder, stack)


def _hash(kind: str, name: str, folder: Path, stack: ExitStack) -> Callable[[], Any]:
    first = stack.enter_context(shmstore.HashStore(timeout=LONG))
    return lambda: stack.enter_context(first.clone())


def _shm(kind: str, name: str, folder: Path, stack: ExitStack) -> Callable[[], Any]:
    return lambda: stack.enter_context(shmstore.ShmStore(name, sync=kind, timeout=LONG))  # type: ignore[arg-type]


def _prefix(kind: str, name: str, folder: Path, stack: ExitStack) -> Callable[[], Any]:
    below = kind.partition("-")[2]
    make = _FACTORIES[below](below, name, folder, stack)
    return lambda: shmstore.PrefixStore("job", make())


def _duck(kind: str, name: str, folder: Path, stack: ExitStack) -> Callable[[], Any]:
    made = {"duck": Duck, "duck-swap": Swapping, "duck-plain": Plain}[kind]
    first = made()
    return lambda: made(first)


def _torch(kind: str, name: str, folder: Path, stack: ExitStack) -> Callable[[], Any]:
    dist = torchs("torch.distributed")
    if kind == "torch-hash":
        one = dist.HashStore()
        one.set_timeout(LONG)
        return lambda: one
    if kind == "torch-prefix":
        below = dist.HashStore()
        below.set_timeout(LONG)
        return lambda: dist.PrefixStore("job", below)
    if kind == "torch-file":
        path = str(folder / "store")

        def file() -> Any:
            store = dist.FileStore(path, -1)
            store.set_timeout(LONG)
            return store

        return file
    master = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LONG)]
    stack.callback(master.clear)  # it has no close()

    def client() -> Any:
        port = master[0].port
        return dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=LONG)

    return client


def torchs(module: str, reason: str = "one of torch's own stores") -> Any:
    """A module of torch's; skips the test where torch is missing."""
    return pytest.importorskip(module, reason=reason)


def warm_torch() -> None:
    """The first TCPStore of a process opens a pipe that stays: to be called before descriptors are counted."""
    torchs("torch.distributed").TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


class OnTorch:
    """For a suite whose fixture `kind` says which store: torch's own."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def warm(cls) -> None:
        warm_torch()

    @pytest.fixture(params=TORCH)
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)


_FACTORIES: dict[str, Callable[[str, str, Path, ExitStack], Callable[[], Any]]] = {
    "hash": _hash,
    "futex": _shm,
    "semaphore": _shm,
    "prefix": _prefix,
    "duck": _duck,
    "torch": _torch,
}
