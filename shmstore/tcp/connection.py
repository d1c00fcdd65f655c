"""A connection to a TCPStore server: how it is made, and what is said on it.

The protocol has no request ids: an answer belongs to a request by its place in the stream alone. So a connection is
used by one call at a time, and comes back to the pool only when every byte of its answers has been read, or is known to
be owed: then the next call reads it first. Whatever else ends a call, an error, Ctrl-C, an answer that does not come,
ends its connection too: no answer can be taken for another call's.

A wait that has timed out is taken back with CANCEL_WAIT. The server answers that with WAIT_CANCELED always, and where
it had released the wait before, with STOP_WAITING before it: the second byte tells "too late" from "just in time".

Everything here raises OSError (TimeoutError: no answer in time) or FrameError; the store says what it means.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from select import POLLIN, POLLOUT, POLLRDHUP, poll
from time import monotonic_ns
from typing import Any, Final

from shmstore._deadline import FOREVER
from shmstore.tcp.codec import (
    ANSWERED,
    ASKED,
    HELD_MAX,
    HELLO,
    Fields,
    FrameError,
    Op,
    Parser,
    Signal,
    encode,
    encode_reply,
    reply_parser,
)

__all__ = ["PATIENCE_NS", "Asked", "Line", "patience_ns", "ping"]

PATIENCE_NS: Final = 5_000_000_000
"""What a server gets at the least to answer what needs no wait, however short the timeout: it may have much to do."""

HEARS: Final = POLLIN | POLLRDHUP
SLICE_MS: Final = 50.0
LOOK_NS: Final = 100_000_000
DAY_MS: Final = 86_400_000.0
KEEPALIVE: Final = (
    (socket.TCP_KEEPIDLE, 30),
    (socket.TCP_KEEPINTVL, 10),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 60_000),  # there are no probes while something is on its way and not acknowledged
)
"""A host that is gone is found in a minute."""

Asked = tuple[Op, Fields]
Look = Callable[[], bool]


def left_ms(deadline: int) -> float | None:
    """Milliseconds to the deadline, at most a day; None for ever. TimeoutError when it is over."""
    if deadline == FOREVER:
        return None
    left = (deadline - monotonic_ns()) / 1e6
    if left <= 0:
        raise TimeoutError("the time is over")
    return min(left, DAY_MS)


def patience_ns(size: int) -> int:
    """For how long a server may be silent while so many bytes come and go: 5 s, and a second more for each megabyte."""
    return PATIENCE_NS + 1000 * size


def ping() -> Asked:
    """A question that every server answers, with the number asked; torch's client sends its pid too."""
    return Op.PING, (os.getpid() & 0xFFFFFFFF,)


class Line:
    """One connection. Its methods are for one thread at a time, `hang_up` for any.

    guard: the call that took it from the pool
    """

    __slots__ = ("_owed", "_posted", "_ready", "_rest", "_sock", "given_ns", "holds")

    def __init__(self, family: int) -> None:
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._ready = poll()
        self._rest = b""
        self._owed: list[Asked] = []
        """What was asked, and its answers were not waited for."""
        self._posted = 0
        """Bytes that were sent since the last answer, and may still be on their way."""
        self.given_ns = 0
        self.holds = False
        """Whether the server knows HOLD."""

    def connect(self, address: Any, deadline: int, check: Callable[[], None]) -> None:
        """Connects. Looks with `check` every 50 ms whether it is still wanted: nothing else wakes a connect."""
        sock = self._sock
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            self._ready.register(sock, POLLOUT)
            while not self._ready.poll(min(left_ms(deadline) or DAY_MS, SLICE_MS)):
                check()
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        self._ready.register(sock, HEARS)
        if sock.getsockname() == sock.getpeername():  # a retry may meet its own port where nobody listens
            raise ConnectionRefusedError("nobody listens: the port was given to the connecting socket itself")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a server whose host is gone ends a wait
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _send(self, data: bytes, deadline: int) -> None:
        """A server that takes some of it has 5 s more for the rest."""
        left = memoryview(data)
        while left:
            try:
                left = left[self._sock.send(left) :]
            except BlockingIOError:  # noqa: PERF203 -- once a call, as a rule
                self._ready.modify(self._sock, POLLOUT)
                if self._ready.poll(left_ms(deadline)):
                    deadline = max(deadline, monotonic_ns() + PATIENCE_NS)
                self._ready.modify(self._sock, HEARS)

    def _take(self, size: int, deadline: int) -> bytes:
        """The next `size` bytes; each piece gives the server 5 s more for the rest."""
        data = self._rest
        if len(data) < size:
            pieces, have = [data], len(data)
            while have < size:
                piece = self._receive(max(size - have, 4096), deadline)
                pieces.append(piece)
                have += len(piece)
                deadline = max(deadline, monotonic_ns() + PATIENCE_NS)
            data = b"".join(pieces)
        self._rest = data[size:]
        return data[:size]

    def _receive(self, size: int, deadline: int) -> bytes:
        while True:
            self._ready.poll(left_ms(deadline))
            try:
                data = self._sock.recv(size)
            except BlockingIOError:
                continue  # a day may have passed, and not the deadline
            if not data:
                raise ConnectionResetError("the server closed the connection")
            return data

    def _read(self, parser: Parser, deadline: int) -> Any:
        try:
            need = next(parser)
            while True:
                need = parser.send(self._take(need, deadline))
                deadline = max(deadline, monotonic_ns() + PATIENCE_NS)
        except StopIteration as end:
            return end.value

    # -- calls --------------------------------------------------------------------------------------------------------

    def exchange(self, asked: Sequence[Asked], deadline: int) -> list[Any]:
        """Sends the requests in one write and returns their answers, in order; None where there is none to come."""
        self._send(b"".join([encode(op, *fields) for op, fields in asked]), deadline)
        answers = self._answers(asked, deadline)
        self._whole()
        return answers

    def post(self, asked: Sequence[Asked], deadline: int) -> None:
        """Sends the requests in one write. Their answers are read by the next call, before its own."""
        data = b"".join([encode(op, *fields) for op, fields in asked])
        self._send(data, deadline)
        self._answers((), deadline)
        self._posted += len(data)
        self._owed = [one for one in asked if reply_parser(*one) is not None]

    def _answers(self, asked: Sequence[Asked], deadline: int) -> list[Any]:
        """Those of the requests, in order, behind what is owed: None where there is none to come.

        The server has 5 s at the least, also where it took long to send the requests, and more behind what was posted.
        """
        deadline = max(deadline, monotonic_ns() + patience_ns(self._posted))
        owed, self._owed = self._owed, []
        if owed:
            self._answers(owed, deadline)
        answers = []
        for op, fields in asked:
            parser = reply_parser(op, fields)
            answer = None if parser is None else self._read(parser, deadline)
            if op is Op.PING and answer != fields[0]:
                raise FrameError(f"{answer:#010x} for a PING of {fields[0]:#010x}")
            self._posted = 0
            answers.append(answer)
        return answers

    def await_signal(self, asked: Asked, deadline: int) -> bool:
        """Sends a WAIT or BARRIER and waits until it is released; False when the deadline came first.

        Raises TimeoutError when the server does not even answer that the wait is taken back.
        """
        patience = monotonic_ns() + PATIENCE_NS
        self._send(encode(asked[0], *asked[1]), patience)
        self._answers((), patience)
        try:
            released = self._released(asked[0], deadline)
        except TimeoutError as error:
            if error.errno is not None:  # not the deadline: the system gave the connection up
                raise
            released, _ = self._taken_back(asked[0])
        self._whole()
        return released

    def ask_and_await(
        self,
        first: Sequence[Asked],
        asked: Asked,
        then: Sequence[Asked],
        deadline: int,
        seen: Callable[[list[Any]], bool],
        look: Look,
        hoped: Sequence[Any] = (),
        size: int = 0,
    ) -> tuple[bool, list[Any] | None]:
        """Sends requests and a WAIT behind them in one write, and waits as `await_signal` does.

        Args:
            first: requests whose answers, if any, come at once; the server gets `patience_ns` for them.
            asked: the WAIT.
            then: requests to be done as soon as the wait is released, where the server holds them.
            deadline: of the wait.
            seen: gets the answers to `first`, in order; True: the wait is to end.
            look: called every 0.1 s of the wait, which sends nothing; True: the same.
            hoped: the answers to `then` that come as a rule, or nothing. They are known by their bytes as a whole: who
                is woken by them reads nothing.
            size: about how many bytes come and go, with other calls' on the same link.

        Returns:
            Whether it was released; and the answers to `then`, or None where they were not asked for or not done.
        """
        held = b"".join([encode(op, *fields) for op, fields in then]) if self.holds else b""
        hold = [(Op.HOLD, (held,))] if 0 < len(held) <= HELD_MAX else []
        silence = patience_ns(size)
        patience = monotonic_ns() + silence
        self._send(b"".join([encode(op, *fields) for op, fields in (*first, asked, *hold)]), patience)
        rule = b""
        if hold and hoped:
            rule = encode_reply(asked[0], Signal.STOP_WAITING)
            rule += b"".join([encode_reply(op, answer) for (op, _), answer in zip(then, hoped, strict=True)])
        over = seen(self._answers(first, patience))
        released = False
        while not released:
            until = min(deadline, monotonic_ns() + LOOK_NS)
            try:
                if rule and not self._rest and not over:
                    self._rest = self._receive(4096, until)
                    if self._rest == rule:
                        self._rest = b""
                        return True, list(hoped)
                released = self._released(asked[0], 0 if over else until)
            except TimeoutError as error:
                if error.errno is not None:
                    raise
                over = over or until == deadline or look()
                if over:
                    break
        behind = then if hold else ()
        answers: list[Any] | None
        if released:
            answers = self._answers(behind, monotonic_ns() + silence)
        else:
            released, answers = self._taken_back(asked[0], behind, silence)
        self._whole()
        return released, answers if hold else None

    def _released(self, op: Op, deadline: int) -> bool:
        if self._signal(op, deadline) != Signal.STOP_WAITING:
            raise FrameError("a wait was answered as taken back, and it was not")
        return True

    def _taken_back(
        self, op: Op, then: Sequence[Asked] = (), silence: int | None = None
    ) -> tuple[bool, list[Any] | None]:
        """Ends a wait; True when it was released just before, with the answers to what it held back."""
        patience = monotonic_ns() + (PATIENCE_NS if silence is None else silence)
        self._send(encode(Op.CANCEL_WAIT), patience)
        if self._signal(op, patience) != Signal.STOP_WAITING:
            return False, None
        answers = self._answers(then, patience)
        self._signal(Op.CANCEL_WAIT, patience)
        return True, answers

    def _signal(self, op: Op, deadline: int) -> int:
        parser = reply_parser(op)
        assert parser is not None
        return int(self._read(parser, deadline))

    def _whole(self) -> None:
        if self._rest:
            raise FrameError(f"{len(self._rest)} bytes more than the answer")

    def greet(self, deadline: int) -> None:
        """The handshake: VALIDATE and PING in one write, and the PING's answer."""
        self._send(HELLO + encode(Op.PING, ASKED), deadline)
        parser = reply_parser(Op.PING)
        assert parser is not None
        answer = self._read(parser, deadline)
        if answer not in (ASKED, ANSWERED):
            raise FrameError(f"{answer:#010x} for a PING of {ASKED:#010x}")
        self._whole()
        self.holds = answer == ANSWERED

    # -- the end ------------------------------------------------------------------------------------------------------

    def stale(self) -> bool:
        """True when the server has closed it, or said what nobody asked for, while it was idle."""
        return any(not self._owed or event != POLLIN for _, event in self._ready.poll(0))

    def hang_up(self) -> None:
        """Ends it under the call that uses it, which gets an OSError. From any thread."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Lets go of the socket. In a forked child the parent's connection goes on."""
        self._sock.close()
