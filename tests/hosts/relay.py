"""A wire between the hosts and a store's server: it delays each direction and knows what has passed.

    hosts  <-- TCP -->  relay  <-- TCP -->  server

Each connection is one on either side. What comes is read at once, however much it is, and goes on its way after the
delay, in order: a delay is no limit of the throughput. The relay goes before all other processes (SCHED_RR, where it
may), as a wire does not wait for a processor; by how much what it sends is late is in the counts (`late_us`).

- A connection is made to the server as soon as a host connects. The host is answered at once, by the relay's kernel; so
  that connecting is not for nothing, its first bytes are held for the round trip that the handshake would have taken.
- An end of one direction is passed on after the delay, and so is a RST. Where the server refuses, the host has been
  accepted already, and gets a RST.
- The relay's kernel answers keepalive probes: behind it nobody notices that a host is gone. That is for direct links.

Counting costs nothing on the way: pieces are kept, and read when the counts are asked for. Requests and answers are
those of c10d's protocol (shmstore.tcp.codec), each by its opcode; of a connection that speaks something else there are
bytes and writes only. A write is a piece as it came out of a socket: as it was sent, where little is under way.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import namespaces as ns

from shmstore.tcp.codec import ANSWER, FrameError, Incoming, Op, Request, Signal, reply_parser, request_parser

PIECE: Final = 1 << 18
HELD_MAX: Final = 64 << 20
"""Bytes of one direction of a connection that the relay holds for a reader who does not read."""
SO_TIMESTAMPNS: Final = 35
AGE_MAX_NS: Final = 5_000_000
SPIN_NS: Final = 60_000
"""The last part of a delay is not slept: a timer wakes some tens of microseconds late."""
IN, OUT, GONE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR
TIMESPEC: Final = struct.Struct("@qq")
END: Final = b""
"""In place of a piece: the end of the direction."""
RST: Final = None
Piece = bytes | None


# -- what is counted --------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What has passed, of one connection, of one host, or in all. Up is towards the server."""

    connections: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    """Requests by name: {"ADD": 2}."""
    answers: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    writes_up: int = 0
    writes_down: int = 0
    unread: int = 0
    """Writes that were no c10d."""

    @property
    def requests(self) -> int:
        return self.ops.total()

    @property
    def messages(self) -> int:
        """Requests and answers."""
        return self.requests + self.answers

    @property
    def writes(self) -> int:
        return self.writes_up + self.writes_down

    @property
    def bytes(self) -> int:
        return self.bytes_up + self.bytes_down

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Counts:
    """Of one span of time: in all, by the host that connected, and by connection, with the address it came from."""

    total: Tally
    by_host: dict[str, Tally]
    by_connection: list[tuple[tuple[str, int], Tally]]
    late_us: list[float]
    """By how much each piece left later than it was due, in order."""


class Reader:
    """Counts the frames of one connection."""

    def __init__(self, peer: tuple[str, int]) -> None:
        self.peer = peer
        self.tally = Tally(connections=1)
        self._due: deque[Request] = deque()
        self._up: Incoming | None = Incoming(request_parser)
        self._down: Incoming | None = Incoming(self._next_answer)

    def read(self, upward: bool, data: bytes) -> None:
        if upward:
            self.tally.bytes_up += len(data)
            self.tally.writes_up += 1
        else:
            self.tally.bytes_down += len(data)
            self.tally.writes_down += 1
        stream = self._up if upward else self._down
        if stream is None:
            self.tally.unread += 1
            return
        try:
            frames = stream.feed(data)
        except FrameError:
            self._up = self._down = None
            self.tally.unread += 1
            return
        if not upward:
            self.tally.answers += len(frames)
            return
        self._asked(frames)

    def _asked(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.tally.ops[request.op.name] += 1
            if request.op is Op.HOLD:
                self._asked(Incoming(request_parser).feed(request.fields[0]))
            elif reply_parser(request.op, request.fields) is not None:
                self._due.append(request)

    def _next_answer(self) -> Generator[int, bytes, Any]:
        if not self._due:
            raise FrameError("an answer, and nobody asked")
        return self._answer(self._due.popleft())

    def _answer(self, request: Request) -> Generator[int, bytes, Any]:
        parser = reply_parser(request.op, request.fields, ANSWER)
        assert parser is not None
        answer = yield from parser
        if request.op in (Op.WAIT, Op.BARRIER) and answer == Signal.WAIT_CANCELED:
            while self._due.popleft().op is not Op.CANCEL_WAIT:  # of the two this is the one answer
                pass  # held back, and taken back with the wait
        return answer


# -- a connection -----------------------------------------------------------------------------------------------------


class Direction:
    """From one socket to the other."""

    __slots__ = (
        "born_ns",
        "deaf",
        "ended",
        "held",
        "link",
        "pending",
        "reading",
        "source",
        "target",
        "upward",
        "wanted",
    )

    def __init__(self, link: Link, source: socket.socket, target: socket.socket, *, upward: bool, born_ns: int) -> None:
        self.link = link
        self.source = source
        self.target = target
        self.upward = upward
        self.born_ns = born_ns  # nothing leaves before
        self.pending: deque[bytes] = deque()  # due, and the target took no more
        self.held = 0  # bytes that were read and not yet sent
        self.reading = True
        self.wanted = IN if upward else OUT  # of the source's events
        self.ended = False  # the source said so
        self.deaf = False  # the source has nothing more to tell: it is not looked at


class Link:
    """A host's connection and the one to the server."""

    def __init__(self, host: socket.socket, server: socket.socket, peer: tuple[str, int], born_ns: int) -> None:
        self.reader = Reader(peer)
        self.up = Direction(self, host, server, upward=True, born_ns=born_ns)
        self.down = Direction(self, server, host, upward=False, born_ns=0)
        self.connected = False
        self.finished = 0  # directions whose end was passed on
        self.closed = False


def age_ns(told: list[tuple[int, int, bytes]]) -> int:
    """How long ago the kernel had it: a delay begins when something comes, not when this process has woken up."""
    for level, kind, data in told:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, ns = TIMESPEC.unpack(data)
            return min(max(0, time.time_ns() - seconds * 1_000_000_000 - ns), AGE_MAX_NS)  # somebody may set the clock
    return 0


class Timer:
    """A timerfd: epoll's own timeout is one of whole milliseconds."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.fd >= 0
        self._spec = (ctypes.c_int64 * 4)()
        self._at = 0

    def set(self, at_ns: int) -> None:
        """Fires at that time; 0: never."""
        if at_ns != self._at:
            self._at = at_ns
            self._spec[2], self._spec[3] = divmod(at_ns, 1_000_000_000)
            assert self._libc.timerfd_settime(self.fd, 1, self._spec, None) == 0  # TFD_TIMER_ABSTIME

    def fired(self) -> None:
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass
        self._at = 0


# -- the relay --------------------------------------------------------------------------------------------------------


class Wire:
    """One process, one loop."""

    def __init__(self, me: Any, host: str, to: tuple[str, int], delay_s: float) -> None:
        self.me = me
        self.to = to
        self.delay_ns = int(delay_s * 1e9)
        self.listener = socket.create_server((host, 0), backlog=4096)
        self.listener.setblocking(False)
        self.control: int = me._conn.fileno()
        self.timer = Timer()
        self.epoll = select.epoll()
        for fd in (self.listener.fileno(), self.control, self.timer.fd):
            self.epoll.register(fd, IN)
        self.links: dict[int, tuple[Link, Direction]] = {}
        """By each descriptor: its connection, and the direction that comes from it."""
        self.way: deque[tuple[int, Direction, Piece]] = deque()
        """What is under way, by the time when it is due. guard: first come, first due; see `delay`."""
        self.last_due = 0
        self.last_came = 0
        self.log: deque[tuple[Reader, bool, bytes]] = deque()
        self.logged = 0  # bytes
        self.readers: list[Reader] = []
        self.late: list[int] = []
        self.quiet_ns = 0  # asked for: 0, nobody waits

    def run(self) -> None:
        self.me.say(self.listener.getsockname())
        while True:
            soon = self.forward()
            for fd, event in self.epoll.poll(0 if soon else None):
                if fd == self.timer.fd:
                    self.timer.fired()
                elif fd == self.control:
                    self.hear()
                elif fd == self.listener.fileno():
                    self.accept()
                elif fd in self.links:
                    self.see(fd, event)

    # -- on the way ---------------------------------------------------------------------------------------------------

    def forward(self) -> bool:
        """Sends what is due; sets the timer for what is next, or says that it is so soon that it is not worth it."""
        way = self.way
        now = time.monotonic_ns()
        while way and way[0][0] <= now:
            due, direction, piece = way.popleft()
            if piece:
                self.late.append(now - due)
            self.deliver(direction, piece)
            now = time.monotonic_ns()
        if way:
            at = way[0][0] - SPIN_NS
            if at <= now:
                return True
        elif self.quiet_ns:
            at = self.last_came + self.quiet_ns
            if at <= now:
                self.quiet_ns = at = 0
                self.me.say(None)
        else:
            at = 0
        self.timer.set(at)
        return False

    def take(self, direction: Direction, piece: Piece, age_ns: int = 0) -> None:
        """Something came, so long ago: it is due after the delay, and after what came before it."""
        now = time.monotonic_ns()
        self.last_came = now
        due = max(now - age_ns + self.delay_ns, self.last_due)
        if direction.born_ns > due:  # the handshake takes its time, which holds up this connection only
            due = direction.born_ns
        else:
            self.last_due = due
        way = self.way
        at = len(way)
        while at and way[at - 1][0] > due:  # only beside a new connection
            at -= 1
        way.insert(at, (due, direction, piece))

    def deliver(self, direction: Direction, piece: Piece) -> None:
        link = direction.link
        if link.closed:
            return
        if piece is RST:
            self.close(link, reset=True)
        else:
            direction.pending.append(piece)
            self.push(direction)

    def push(self, direction: Direction) -> None:
        """As much of what is due as the target takes."""
        link, pending = direction.link, direction.pending
        if direction.upward and not link.connected:
            return
        while pending:
            piece = pending[0]
            try:
                if piece:
                    sent = direction.target.send(piece)
                else:
                    direction.target.shutdown(socket.SHUT_WR)
                    sent = 0
                    link.finished += 1
            except BlockingIOError:
                break
            except OSError:
                self.close(link, reset=True)
                return
            direction.held -= sent
            pending.popleft()
            if sent < len(piece):
                pending.appendleft(piece[sent:])
        if link.finished == 2:
            self.close(link, reset=False)
            return
        if not direction.reading and not direction.ended and direction.held < HELD_MAX // 2:
            direction.reading = True
            self.look(direction.source)
        self.look(direction.target)

    def look(self, sock: socket.socket) -> None:
        """Registers what of this socket is of interest now."""
        link, comes = self.links[sock.fileno()]
        if comes.deaf:
            return
        goes = link.down if comes is link.up else link.up
        wanted = IN if comes.reading and not comes.ended else 0
        if goes.pending or (goes is link.up and not link.connected):
            wanted |= OUT
        if wanted != comes.wanted:
            comes.wanted = wanted
            self.epoll.modify(sock.fileno(), wanted)

    # -- events -------------------------------------------------------------------------------------------------------

    def accept(self) -> None:
        while True:
            try:
                host, peer = self.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue
                raise
            server = socket.socket()
            for sock in (host, server):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            server.connect_ex(self.to)
            link = Link(host, server, peer, time.monotonic_ns() + 3 * self.delay_ns)
            self.readers.append(link.reader)
            self.links[host.fileno()] = link, link.up
            self.links[server.fileno()] = link, link.down
            self.epoll.register(host, IN)
            self.epoll.register(server, OUT)

    def see(self, fd: int, event: int) -> None:
        link, comes = self.links[fd]
        goes = link.down if comes is link.up else link.up
        if comes is link.down and not link.connected:
            if not event & (OUT | GONE):
                return
            if comes.source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.no_more(comes, reset=True)
                return
            link.connected = True
            self.push(link.up)
            return
        if event & OUT:
            self.push(goes)
        if link.closed or not event & (IN | GONE):
            return
        if comes.ended:
            if event & GONE:  # both directions have ended, or a RST
                self.no_more(comes, reset=bool(event & select.EPOLLERR))
            return
        try:
            piece, told, _, _ = comes.source.recvmsg(PIECE, 64)
        except BlockingIOError:
            return
        except OSError:
            self.no_more(comes, reset=True)
            return
        self.take(comes, piece, age_ns(told))
        if not piece:
            comes.ended = True
            self.look(comes.source)
            return
        self.log.append((link.reader, comes.upward, piece))
        self.logged += len(piece)
        if self.logged > HELD_MAX:
            self._read()
        comes.held += len(piece)
        if comes.held > HELD_MAX:
            comes.reading = False
            self.look(comes.source)

    def no_more(self, comes: Direction, *, reset: bool) -> None:
        """The source is done with, and would say so for ever."""
        comes.ended = comes.deaf = True
        self.epoll.unregister(comes.source)
        if reset:
            self.take(comes, RST)

    def close(self, link: Link, *, reset: bool) -> None:
        """Both sides; with `reset`, both get a RST."""
        link.closed = True
        for sock in (link.up.source, link.down.source):
            del self.links[sock.fileno()]
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()  # epoll forgets it

    # -- the test asks ------------------------------------------------------------------------------------------------

    def hear(self) -> None:
        verb, args = self.me.hear()
        getattr(self, f"on_{verb}")(*args)

    def on_counts(self) -> None:
        self._read()
        by_host: dict[str, Tally] = {}
        total = Tally()
        for reader in self.readers:
            total.add(reader.tally)
            by_host.setdefault(reader.peer[0], Tally()).add(reader.tally)
        each = [(reader.peer, reader.tally) for reader in self.readers]
        self.me.say(Counts(total, by_host, each, [ns / 1e3 for ns in self.late]))

    def on_reset(self) -> None:
        """Connections that are open stay in the list, with nothing counted; so `connections` is that of new ones."""
        self._read()
        open_ones = {link.reader for link, _ in self.links.values()}
        self.readers = [reader for reader in self.readers if reader in open_ones]
        for reader in self.readers:
            reader.tally = Tally()
        self.late.clear()
        self.me.say(None)

    def on_quiet(self, span_s: float) -> None:
        self.quiet_ns = max(1, int(span_s * 1e9))
        self.last_came = max(self.last_came, time.monotonic_ns())

    def on_delay(self, delay_s: float) -> None:
        self.delay_ns = int(delay_s * 1e9)
        self.me.say(None)

    def on_reset_connections(self) -> None:
        links = {link for link, _ in self.links.values()}
        for link in links:
            self.close(link, reset=True)
        self.me.say(len(links))

    def _read(self) -> None:
        while self.log:
            reader, upward, piece = self.log.popleft()
            reader.read(upward, piece)
        self.logged = 0


def main(me: Any, host: str, to: tuple[str, int], delay_s: float) -> None:
    ns.before_others(3)
    Wire(me, host, to, delay_s).run()
