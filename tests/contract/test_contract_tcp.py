"""The contract over the wire: our client at torch's servers and at ours. What one does not keep is said below."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import inside
import pytest

from shmstore import PrefixStore, Store, StoreConnectionError
from shmstore.tcp import connection
from shmstore.tcp.client import TCPStore
from shmstore.tcp.codec import Op
from shmstore.testing.contract import VALUE_MAX, Later, StoreContract
from shmstore.testing.contract.support import Parked

KINDS = {
    "tcp-libuv": ("libuv", []),
    "tcp-legacy": ("legacy", []),
    "tcp-ours": ("ours", []),
    "prefix-tcp-ours": ("ours", ["outer", "inner"]),
}


class Server:
    """A server that ends with the test."""

    def __init__(self, kind: str) -> None:
        self._stops: list[Any] = []
        if kind == "ours":
            server = pytest.importorskip("shmstore.tcp.server", reason="shmstore's own server is not built")
            from shmstore import HashStore

            keys = HashStore()
            made = server.TCPStoreServer(keys, "127.0.0.1", 0)
            self._stops += [made.close, keys.close]
            self.port = made.port
            return
        dist = pytest.importorskip("torch.distributed", reason="torch's own server")
        self._torch: Any = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=kind == "libuv"
        )
        self.port = self._torch.port

    def stop(self) -> None:
        for stop in self._stops:
            stop()
        self._torch = None  # it has no close()


class Waiting:
    """Who waits at the server: calls whose request has been sent and not been answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sent: dict[connection.Line, bytes] = {}
        asked_by: dict[connection.Line, Any] = {}
        await_signal, signal = connection.Line.await_signal, connection.Line._signal

        def note_wait(line: connection.Line, asked: Any, deadline: int) -> bool:
            asked_by[line] = asked
            try:
                return await_signal(line, asked, deadline)
            finally:
                self._sent.pop(line, None)

        def note_sent(line: connection.Line, op: Op, deadline: int) -> int:
            self._sent[line] = repr(asked_by[line]).encode()
            return signal(line, op, deadline)

        monkeypatch.setattr(connection.Line, "await_signal", note_wait)
        monkeypatch.setattr(connection.Line, "_signal", note_sent)

    def until(self, key: str, n: int, look: Store) -> None:
        end = time.monotonic() + 20
        while sum(key.encode() in asked for asked in list(self._sent.values())) < n:
            assert time.monotonic() < end, f"nobody came to wait on {key!r} ({n} wanted): {self._sent}"
            time.sleep(0.001)  # a wait at a server wakes nobody: it can only be looked for
        for _ in range(2):  # the server takes what had come before the first of these not later than the second
            look.check(["looked"])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", autouse=True)
def legacy() -> Iterator[Server | None]:
    """One legacy server for all tests: some of them take seconds for their first client.

    And the first torch server of a process opens a pipe that stays: before descriptors are counted.
    """
    try:
        import torch.distributed  # noqa: F401
    except ImportError:
        yield None
        return
    Server("libuv").stop()
    server = Server("legacy")
    TCPStore("127.0.0.1", server.port, timeout=30).close()
    yield server
    server.stop()


class TestTCPStores(StoreContract):
    @pytest.fixture
    def server(self, kind: str, legacy: Server | None) -> Iterator[Server]:
        if legacy is not None and KINDS[kind][0] == "legacy":
            before = descriptors()
            yield legacy
            with TCPStore("127.0.0.1", legacy.port, timeout=30) as sweep:
                for key in sweep.list_keys():
                    sweep.delete_key(key)
            inside.until(lambda: descriptors() <= before)  # the server's ends of the connections
            return
        server = Server(KINDS[kind][0])
        yield server
        server.stop()

    @pytest.fixture
    def store_factory(self, kind: str, server: Server) -> Iterator[Any]:
        handles: list[Any] = []

        def make() -> Any:
            store: Any = TCPStore("127.0.0.1", server.port, timeout=30)
            for prefix in reversed(KINDS[kind][1]):
                store = PrefixStore(prefix, store)
            handles.append(store)
            return store

        yield make
        for handle in handles:
            handle.close()

    @pytest.fixture
    def key_overhead(self, kind: str) -> int:
        return sum(len(prefix) + 1 for prefix in KINDS[kind][1])

    @pytest.fixture
    def parked(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Parked]:
        waiting = Waiting(monkeypatch)
        with TCPStore("127.0.0.1", server.port, timeout=30) as look:
            yield lambda key, n=1: waiting.until(key, n, look)

    # -- what a server does not keep ------------------------------------------------------------------------------

    def test_append_to_the_limit_and_not_beyond(self, store: Store, kind: str) -> None:
        """Torch's servers know no limit here. Ours can refuse only by the end of the connection."""
        store.set("k", b"x" * (VALUE_MAX - 1))
        store.append("k", b"y")
        if KINDS[kind][0] == "ours":
            with pytest.raises(StoreConnectionError):
                store.append("k", b"z")
        else:
            store.append("k", b"z")
        value = store.get("k")
        assert len(value) == VALUE_MAX + (KINDS[kind][0] != "ours")
        assert value[VALUE_MAX - 2 : VALUE_MAX] == b"xy"

    @pytest.mark.parametrize("first", ["wait", "pop"])
    def test_wait_on_a_queue_swallows_no_wake(self, store: Store, parked: Parked, kind: str, first: str) -> None:
        """Torch's server wakes one with each item, the one who came first: a `wait` before a popper takes its wake."""
        if (KINDS[kind][0], first) != ("libuv", "wait"):
            if not store.capabilities.queues:
                pytest.skip("capabilities.queues is False")
            super().test_wait_on_a_queue_swallows_no_wake(store, parked, first)
            return
        waiter = Later(store.wait, ["queue"], 20)
        parked("queue", 1)
        popper = Later(store.queue_pop, "queue")
        parked("queue", 2)
        store.queue_push("queue", b"item")
        waiter.result()
        assert not popper.done and store.queue_len("queue") == 1
        store.queue_push("queue", b"second")
        assert popper.result() == b"item"
