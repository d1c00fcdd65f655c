"""TCPStore: a store behind a TCP server, torch's (libuv or legacy) or ours, without torch.

`verbs` says what goes over the wire, `connection` how, `codec` its bytes. Here is the life of a handle: finding the
server, hosting one, counting workers, clones, pickling, the end.
"""

# ruff: noqa: D102 -- what Store describes is described there, and help() shows it here too
from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from shmstore import errors
from shmstore._deadline import DEFAULT, Timeout, deadline_after, seconds, span_ns
from shmstore._keys import check_int, check_world_size
from shmstore.tcp.codec import Op
from shmstore.tcp.connection import PATIENCE_NS
from shmstore.tcp.pool import Pool
from shmstore.tcp.verbs import WORKERS, WireStore

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TCPStore"]

POLL_S: Final = 0.01
PROBE: Final = (Op.QUEUE_LEN, (b"shmstore/probe",))
"""A question that only a server with queues knows; it makes none."""


class TCPStore(WireStore):
    """A store behind a TCP server, for the processes of many hosts.

    Args:
        host_name: the server's name or address, IPv4 or IPv6. Of a name with several, the first that answers serves.
        port: its port. 0, with `is_master` only, takes a free one: `.port` says which.
        world_size: how many clients there will be, the hosting one included; None: nobody knows.
        is_master: host the server in this process, on the address of `host_name`, over a HashStore. It lasts as long as
            this handle: when that is closed, the keys are gone, and the calls of others end with StoreConnectionError.
        timeout: this handle's own, and how long the constructor waits for the server and for workers.
        wait_for_workers: with `world_size`, each client counts itself, and the hosting one waits until all are there;
            the others do not wait.
        multi_tenant: with `is_master`, the stores of this process that are made so for one host and port share a
            server, instead of failing.
        master_listen_fd: with `is_master`, a socket that listens already, for the server to take over.
        use_libuv: of no effect: our server is neither of torch's, and the client finds out which it talks to.

    The arguments are those of torch.distributed.TCPStore. The constructor connects, and tries again, with pauses that
    grow and are random, until `timeout` is over: the server may start later. Later connections are tried once: a server
    that is gone is an error at once. Waits end when the connection does, also when the server's host is gone (a minute
    without a sign of it).

    A handle may be used by many threads, goes on in forked children, which connect anew at their first call, and can be
    pickled: the same host and port, without the server. So is a clone: close the hosting handle last. The protocol has
    neither encryption nor authentication.

    What is different from the other stores comes from the server and the protocol. `add` to no number loses the
    connection (capabilities). Torch's servers refuse no append beyond 8 MiB. Of those who wait for a queue, in
    `queue_pop` or `wait`, torch's server wakes one with each item, and who of them is first to ask gets it.

    Raises:
        StoreConnectionError: no server answered in time, or what answered is none; says what was tried. Hosting, and
            the address cannot be listened on, or is taken.
        StoreTimeoutError: hosting, and fewer than `world_size` workers came in time. TypeError, ValueError.
    """

    def __init__(
        self,
        host_name: str,
        port: int,
        world_size: int | None = None,
        is_master: bool = False,  # noqa: FBT001, FBT002 -- c10d's signature, also below
        timeout: Timeout = DEFAULT,
        wait_for_workers: bool = True,  # noqa: FBT001, FBT002
        multi_tenant: bool = False,  # noqa: FBT001, FBT002
        master_listen_fd: int | None = None,
        use_libuv: bool = True,  # noqa: ARG002, FBT001, FBT002
    ) -> None:
        deadline = deadline_after(span_ns(timeout))
        _check_place(host_name, port, world_size, may_pick=is_master)
        server = _host(host_name, port, multi_tenant, master_listen_fd) if is_master else None
        self._begin(host_name, port if server is None else server.port, timeout, server)
        try:
            self._full = self._meet(deadline)
            if world_size is not None and wait_for_workers:
                self._count_in(world_size, deadline, hosting=is_master)
        except BaseException:
            self.close()
            raise

    def _begin(self, host: str, port: int, timeout: Timeout, server: _Hosted | None, *, full: bool = True) -> None:
        pool = Pool(host, port, f"TCPStore({host!r}, {port})")
        super().__init__(pool, timeout, full=full)
        self._finish = weakref.finalize(self, _end, pool, server)

    def _meet(self, deadline: int) -> bool:
        """Connects to the server; True when it has queues."""
        start = monotonic_ns()
        line = self._pool.dial(deadline, patient=True)
        deadline = max(deadline, deadline_after(PATIENCE_NS))
        try:
            line.exchange([PROBE], deadline)
        except ConnectionError:
            self._pool.drop(line)
            self._pool.give(self._pool.dial(deadline, patient=False))
            return False
        except BaseException as error:
            raise self._ended(error, line, "the constructor", start) from None
        self._pool.give(line)
        return True

    def _count_in(self, world_size: int, deadline: int, *, hosting: bool) -> None:
        """Counts this client; the one that hosts waits for all, and looks every 10 ms: nothing wakes for a number."""
        start = monotonic_ns()
        (count,) = self._ask("counting workers", [(Op.ADD, (WORKERS, 1))])
        while hosting and count < world_size:
            if monotonic_ns() >= deadline:
                elapsed = (monotonic_ns() - start) / 1e9
                raise errors.StoreTimeoutError(
                    f"Wait timeout: {self!r}: {count} of {world_size} clients came in {elapsed:.3f} s",
                    elapsed=elapsed,
                    timeout=seconds(self._span_ns),
                )
            time.sleep(POLL_S)
            (count,) = self._ask("counting workers", [(Op.ADD, (WORKERS, 0))])

    @property
    def host(self) -> str:
        """The server's name or address, as given."""
        return self._pool.host

    @property
    def port(self) -> int:
        """The server's port."""
        return self._pool.port

    def clone(self) -> Self:
        self._open()
        made = object.__new__(type(self))
        made._begin(self.host, self.port, self._timeout, None, full=self._full)
        return made

    def __enter__(self) -> Self:
        self._open()
        return self

    def close(self) -> None:
        """Closes this handle, and with it the server that it hosts. Idempotent.

        Waits of other threads on it end with StoreClosedError. A forked child closes its own connections only.
        """
        self._finish()

    def __repr__(self) -> str:
        return f"TCPStore({self.host!r}, {self.port})"

    def __reduce__(self) -> tuple[Callable[[str, int, timedelta], TCPStore], tuple[str, int, timedelta]]:
        self._open()
        return _at, (self.host, self.port, self._timeout)


def _at(host: str, port: int, timeout: timedelta) -> TCPStore:
    return TCPStore(host, port, timeout=timeout)


def _end(pool: Pool, server: _Hosted | None) -> None:
    pool.close()
    if server is not None:
        server.leave()


# -- hosting ----------------------------------------------------------------------------------------------------------


class _Hosted:
    """A server in this process, over keys of its own, for as long as a store holds it.

    guard: _hosting
    """

    def __init__(self, host: str, port: int, listen_fd: int | None) -> None:
        from shmstore.shm import HashStore
        from shmstore.tcp.server import TCPStoreServer

        self._pid = os.getpid()
        self._users = 1
        self._tenants: tuple[str, int] | None = None
        more: dict[str, Any] = {} if listen_fd is None else {"listen_fd": listen_fd}
        self._keys = HashStore()
        try:
            self._server = TCPStoreServer(self._keys, host, port, **more)
        except BaseException:
            self._keys.close()
            raise
        self.port: int = self._server.port

    def shared(self, tenants: tuple[str, int]) -> None:
        """Others of this process may use it too."""
        self._tenants = tenants
        _tenants[tenants] = self

    def join(self) -> None:
        self._users += 1

    def leave(self) -> None:
        """The last one ends it. In a forked child it is not there."""
        if os.getpid() != self._pid:
            return
        with _hosting:
            self._users -= 1
            if self._users:
                return
            if self._tenants is not None:
                del _tenants[self._tenants]
        self._server.close()
        self._keys.close()


_hosting: Final = threading.RLock()
_tenants: Final[dict[tuple[str, int], _Hosted]] = {}


def _host(host: str, port: int, multi_tenant: bool, listen_fd: int | None) -> _Hosted:  # noqa: FBT001 -- as given
    if not multi_tenant:
        return _Hosted(host, port, listen_fd)
    with _hosting:
        found = _tenants.get((host, port))
        if found is not None and found._pid == os.getpid():  # noqa: SLF001 -- a forked child has a copy that serves none
            found.join()
            return found
        made = _Hosted(host, port, listen_fd)
        made.shared((host, made.port))
        return made


# -- arguments --------------------------------------------------------------------------------------------------------


def _check_place(host: str, port: int, world_size: int | None, *, may_pick: bool) -> None:
    if not isinstance(host, str):
        raise TypeError(f"host_name must be a str, not {type(host).__name__}")
    check_int(port, "port")
    if world_size is not None:
        check_int(world_size, "world_size")
    if not host:
        raise ValueError("host_name must not be empty")
    if not (0 if may_pick else 1) <= port < 1 << 16:
        raise ValueError(f"port must be 1 to 65535, or 0 for the one who hosts, got {port}")
    if world_size is not None:
        check_world_size(world_size)
