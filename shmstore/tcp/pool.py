"""The connections of one handle: how one is made, and lent to a call.

A wait keeps its connection for as long as it lasts, and the calls of other threads take others, so that none holds up
another; a pool has as many as there were calls at once, and keeps up to `KEPT` of them.

Raises StoreConnectionError and StoreClosedError.
"""

from __future__ import annotations

import os
import random
import socket
import weakref
from contextlib import suppress
from time import monotonic_ns, sleep
from typing import Any, Final

from shmstore.errors import StoreClosedError, StoreConnectionError
from shmstore.tcp.codec import FrameError
from shmstore.tcp.connection import Line

__all__ = ["Pool"]

KEPT: Final = 16
"""Idle connections of a pool."""

ATTEMPT_NS: Final = 5_000_000_000
"""What one address gets to answer the handshake, doubled with each try; and what it gets at the least."""
LEAST_NS: Final = 200_000_000

BACKOFF_S: Final = (0.01, 1.0)
"""The pause after the first try, doubled with each, and the longest; each is cut by a random part, at most half."""

STALE_NS: Final = 50_000_000
"""A connection that was idle for longer is looked at before it is used: the server may have gone meanwhile."""


class Pool:
    """The connections of one handle.

    A signal handler may call the store in the middle of a call, so nothing here takes a lock: each step is one call of
    a list or set. `_busy` gets a connection before `closed` is looked at, and `close` sets `closed` before it looks at
    `_busy`, so that one of the two sees the other.

    guard of all fields: the GIL
    """

    def __init__(self, host: str, port: int, who: str) -> None:
        self.host, self.port = host, port
        self.closed = False
        self._who = who
        self._idle: list[Line] = []
        self._busy: set[Line] = set()
        _pools.add(self)

    def check(self) -> None:
        """StoreClosedError when it is closed."""
        if self.closed:
            raise StoreClosedError(f"{self._who} is closed")

    # -- connecting ---------------------------------------------------------------------------------------------------

    def dial(self, deadline: int, *, patient: bool) -> Line:
        """A new connection, for the caller's use, to the first of the host's addresses that takes it.

        Args:
            deadline: for all of it; an address is given 0.2 s at the least.
            patient: try again until the deadline, for a server that is still to come; else only while an address is
                silent, and not where all refuse.

        Raises:
            StoreConnectionError: none did, with what each said at last; or somebody answered who is no TCPStore server.
            StoreClosedError: the pool was closed meanwhile.
        """
        start = monotonic_ns()
        failures: dict[str, str] = {}
        delay, attempt, tries = BACKOFF_S[0], ATTEMPT_NS, 0
        while True:
            tries += 1
            silent = False
            for family, address in self._addresses(failures):
                now = monotonic_ns()
                until = max(min(deadline, now + attempt), now + LEAST_NS)
                try:
                    return self._try_address(family, address, until)
                except FrameError as error:
                    raise StoreConnectionError(
                        f"{self._who}: {address[0]} port {self.port} is no TCPStore server: {error}"
                    ) from None
                except TimeoutError:
                    failures.setdefault(address[0], "no answer")
                    silent = True
                except OSError as error:
                    failures[address[0]] = error.strerror or str(error)
                self.check()
            left = (deadline - monotonic_ns()) / 1e9
            if left <= 0 or not (patient or silent):
                took = (monotonic_ns() - start) / 1e9
                said = "; ".join(f"{address}: {reason}" for address, reason in failures.items())
                raise StoreConnectionError(
                    f"{self._who}: no connection to {self.host} port {self.port} in {took:.3f} s "
                    f"({'one try' if tries == 1 else f'{tries} tries'}; {said})"
                )
            sleep(min(left, delay * random.uniform(0.5, 1.0)))  # noqa: S311 -- spreads clients, hides nothing
            delay, attempt = min(delay * 2, BACKOFF_S[1]), attempt * 2

    def _addresses(self, failures: dict[str, str]) -> list[tuple[int, Any]]:
        """Families and addresses; none, and a failure more, where the name is not known now."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            failures[self.host] = error.strerror or str(error)
            return []
        return [(family, address) for family, _, _, _, address in found]

    def _try_address(self, family: int, address: Any, deadline: int) -> Line:
        """A connection that has greeted."""
        line = Line(family)
        self._busy.add(line)
        try:
            self.check()
            line.connect(address, deadline, self.check)
            line.greet(deadline)
        except BaseException:
            self.drop(line)
            raise
        return line

    # -- lending ------------------------------------------------------------------------------------------------------

    def take(self, deadline: int) -> Line:
        """A connection for one call: to be given back, or dropped."""
        self.check()
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                return self.dial(deadline, patient=False)
            self._busy.add(line)
            if self.closed:
                self.drop(line)
                self.check()
            if monotonic_ns() - line.given_ns < STALE_NS or not line.stale():
                return line
            self.drop(line)

    def give(self, line: Line) -> None:
        """Takes a connection back whose answers have all been read, or are owed."""
        self._busy.discard(line)
        line.given_ns = monotonic_ns()
        if len(self._idle) >= KEPT:
            line.close()
            return
        self._idle.append(line)
        if self.closed:
            self._close_idle()

    def drop(self, line: Line) -> None:
        """Ends a connection."""
        self._busy.discard(line)
        line.close()

    def close(self) -> None:
        """Ends all of them; calls in other threads meet the end of theirs."""
        self.closed = True
        for line in list(self._busy):
            line.hang_up()
        self._close_idle()

    def _close_idle(self) -> None:
        with suppress(IndexError):  # others may pop meanwhile
            while True:
                self._idle.pop().close()

    def forget(self) -> None:
        """In a forked child: its copies of the parent's sockets go, the parent's connections stay."""
        for line in (*self._idle, *self._busy):
            line.close()
        self._idle, self._busy = [], set()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _in_forked_child() -> None:
    for pool in list(_pools):
        pool.forget()


os.register_at_fork(after_in_child=_in_forked_child)
