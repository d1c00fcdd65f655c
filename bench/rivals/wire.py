"""TCP stores: torch's client or ours, at torch's server or ours, each server in a process of its own."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from bench.host import allowed_cpus, pin_to
from bench.rivals.base import Place, StoreRival

__all__ = ["Wire"]

HOST = "127.0.0.1"
LIMIT = timedelta(seconds=120)
START_S = 60.0
END_S = 10.0


class Wire(StoreRival):
    """A client of one side at a server of either. Our server is over a segment with a name, as `serve` has it."""

    kind = "wire"

    def __init__(self, client: Literal["torch", "shmstore"], server: Literal["libuv", "legacy", "shmstore"]) -> None:
        self.name = f"{client} client, {server if server == 'shmstore' else f'torch {server}'} server"
        self.modules = ("shmstore.tcp.client", "shmstore.tcp.server")
        if client == "torch" or server != "shmstore":
            self.modules = ("torch.distributed", *self.modules)
        if server != "shmstore":
            self.lacks = {"local": "its keys are reached over the wire only"}
        self._client = client
        self._server = server

    def inherit(self, place: Place) -> tuple[BaseProcess, Connection]:
        """The server's process, which waits to be told where to run. No thread is there yet: it can be forked."""
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self._server, place.token, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    @contextmanager
    def host(self, place: Place, inherited: Any) -> Iterator[tuple[int, str]]:
        """Starts the server; gives its port and the segment's name."""
        process, pipe = inherited
        try:
            pipe.send(allowed_cpus())
            if not pipe.poll(START_S):
                raise TimeoutError(f"the server did not start in {START_S:g} s")
            yield pipe.recv(), place.token
        finally:
            process.terminate()
            process.join(END_S)
            if process.is_alive():
                process.kill()

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> Any:
        """A client with a connection of its own."""
        del inherited, rank, world
        if self._client == "shmstore":
            return import_module("shmstore.tcp.client").TCPStore(HOST, address[0], timeout=LIMIT)
        return _torch(address[0], is_master=False, use_libuv=self._server != "legacy")

    def local(self, address: Any) -> Any:
        """The segment, without the wire."""
        return import_module("shmstore").ShmStore(address[1], create=False)


def _torch(port: int, *, is_master: bool, use_libuv: bool) -> Any:
    return import_module("torch.distributed").TCPStore(
        HOST, port, None, is_master, LIMIT, wait_for_workers=False, use_libuv=use_libuv
    )


def _serve(kind: str, token: str, pipe: Connection) -> None:
    """The life of a server's process: until it is terminated, or nobody is there any more to do that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    with ExitStack() as stack:
        pin_to(set(pipe.recv()))
        if kind == "shmstore":
            store = stack.enter_context(import_module("shmstore").ShmStore(token, create=True))
            server = stack.enter_context(import_module("shmstore.tcp.server").TCPStoreServer(store))
        else:
            server = _torch(0, is_master=True, use_libuv=kind == "libuv")
        pipe.send(server.port)
        pipe.recv()  # which never comes


def _leave(*_: object) -> None:
    raise SystemExit
