"""TCPStoreServer: a segment on the wire, for torch's clients and ours. The face of the server in `_core`; its story,
with the states of a connection, is docs/server.md.

The core serves on threads of its own, which hold no GIL and know no Python. Here are the address, the handle on the
store that keeps the segment open meanwhile, and the end.
"""

from __future__ import annotations

import multiprocessing.util
import os
import socket
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shmstore import errors
from shmstore._deadline import Timeout, span_ns
from shmstore._doors import Handle
from shmstore._native import ffi, lib

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from shmstore._native import CData

__all__ = ["ServerStats", "TCPStoreServer"]

BACKLOG: Final = 4096
"""Connections that wait to be accepted; the system's own limit (net.core.somaxconn) wins where it is lower."""
DRAIN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What a server has done, and has now.

    Attributes:
        connections: accepted since the start. open: of them now. waiting: of those, waiting for keys or at a barrier.
        operations: requests served. bytes_in, bytes_out: of all connections.
        refused: connections ended by the server, for what they sent or for what the store could not do.
        running: False once it is closed, and in a forked child.
    """

    connections: int
    open: int
    waiting: int
    operations: int
    bytes_in: int
    bytes_out: int
    refused: int
    running: bool


class TCPStoreServer:
    """A ShmStore or HashStore on the wire: torch's TCPStore clients and ours use the same keys as local processes.

    Args:
        store: what is served. The server has a handle of its own on it: closing `store` does not end the server.
        host: the name or address to listen on. Loopback unless given: the protocol has neither authentication nor
            encryption, so whoever reaches the port may read and change every key. "" or "0.0.0.0" is every interface.
        port: 0 takes a free one; `.port` says which.
        listen_fd: a socket that listens already, to take over instead of `host` and `port`. It belongs to the server
            from here on, also when this raises.

    It serves until it is closed, or the process ends; a context manager. Threads of the core do the work, without the
    GIL. A forked child has no server, and its connections are its parent's.

    Raises:
        StoreConnectionError: the address cannot be listened on; says why. StoreClosedError: the store is closed.
        StoreError: no descriptors or threads are left. TypeError, ValueError: not such a store, not a port.
    """

    def __init__(self, store: Handle, host: str = "127.0.0.1", port: int = 0, *, listen_fd: int | None = None) -> None:
        _check(store, host, port, listen_fd)
        sock = _listen(host, port) if listen_fd is None else _taken_over(listen_fd)
        with sock:
            name = sock.getsockname()
            self._host, self._port = (str(name[0]), int(name[1])) if isinstance(name, tuple) else (str(name), 0)
            self._keys = store.clone()
            self._label = f"{store!r} on {self._host}:{self._port}"
            out = ffi.new("sst_server **")
            code = lib.sst_server_start(self._keys._open(), sock.detach(), out)  # noqa: SLF001 -- a part of the handle
        if code < 0:
            error = errors.from_code(code, "starting a server", self._label)
            self._keys.close()
            raise error
        self._server: CData = out[0]
        # Before the segments are left at exit (priority -100), so that no connection is cut in the middle of an answer.
        # Whoever drops the last reference frees it; a forked child has nothing to end.
        self._end = weakref.finalize(self, _end, out, self._keys, os.getpid())
        self._end.atexit = False
        _ends.add(self._end)

    @property
    def host(self) -> str:
        """The address it listens on."""
        return self._host

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    def stats(self) -> ServerStats:
        """What it has done so far; after `close` what it had done. Never waits."""
        if not self._end.alive:
            return self._last
        info = ffi.new("sst_server_info *")
        lib.sst_server_stat(self._server, info)
        return ServerStats(
            connections=info.connections,
            open=info.open,
            waiting=info.waiting,
            operations=info.operations,
            bytes_in=info.bytes_in,
            bytes_out=info.bytes_out,
            refused=info.refused,
            running=bool(info.running),
        )

    def close(self, drain: Timeout = DRAIN_S) -> None:
        """Ends the server: nobody is let in, what has arrived is answered, who waits is disconnected. Idempotent.

        Args:
            drain: how long those who are slow to read may take for their answers; then they are disconnected, too.

        Blocks until its threads have ended: no longer than `drain` says, and at once where nobody is owed an answer.
        """
        if self._end.alive:
            lib.sst_server_stop(self._server, span_ns(drain))
            self._last = self.stats()
            self._end()
            _ends.discard(self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TCPStoreServer({self._label}{'' if self._end.alive else ', closed'})"


# -- the end ----------------------------------------------------------------------------------------------------------

_ends: Final[set[weakref.finalize[..., TCPStoreServer]]] = set()


def _end(out: CData, keys: Handle, pid: int) -> None:
    """Stops and frees the server, then lets go of the store. In a forked child its memory stays: threads had it."""
    if os.getpid() == pid:
        lib.sst_server_free(out[0])
    keys.close()


def _end_all() -> None:
    for end in list(_ends):
        end()
    _ends.clear()


multiprocessing.util.Finalize(None, _end_all, exitpriority=-50)


# -- arguments --------------------------------------------------------------------------------------------------------


def _check(store: object, host: object, port: object, listen_fd: object) -> None:
    if not isinstance(store, Handle):
        raise TypeError(f"store must be a ShmStore or a HashStore, not {type(store).__name__}")
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, not {type(host).__name__}")
    for what, number in (("port", port), ("listen_fd", 0 if listen_fd is None else listen_fd)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{what} must be an int, not {type(number).__name__}")
        if number < 0 or (what == "port" and number > 0xFFFF):
            raise ValueError(f"{what} must be {'0 to 65535' if what == 'port' else '0 or more'}, got {number}")


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; of a name with several addresses, the first that can be had."""
    tried: list[str] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise errors.StoreConnectionError(f"cannot listen on {host!r}, port {port}: {error}") from error
    for family, kind, protocol, _, address in found:
        sock = None
        try:
            sock = socket.socket(family, kind, protocol)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError as error:
            tried.append(f"{address[0]}: {error.strerror or error}")
            if sock is not None:
                sock.close()
        else:
            return sock
    raise errors.StoreConnectionError(f"cannot listen on {host!r}, port {port}: {'; '.join(tried)}")


def _taken_over(listen_fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=listen_fd)
    except OSError as error:
        raise ValueError(f"listen_fd {listen_fd} is no socket: {error.strerror or error}") from error
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.listen(BACKLOG)
    return sock
