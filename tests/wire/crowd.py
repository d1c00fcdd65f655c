"""A crowd at one server: thousands of idle connections, clients that wait, a barrier of many.

    python -m tests.wire.crowd                                             # 10,000, 1,000 and 1,000: seconds
    python -m tests.wire.crowd --idle 500 --waiters 100 --parties 100      # as in the suite: test_crowd.py

Some processes hold the connections, the server has a process of its own. In this order: the idle ones connect and are
answered once; the waiters wait, each for one key of all and for one of its own, which a local process sets; the parties
meet at a barrier, the last of them locally; the idle ones are asked again; all leave. Whatever does not come to its end
in time ends this with the reason. It says how long each step took, and how many bytes of resident memory the server's
process grew by for an idle connection. The kernel's memory for a socket, some KiB on either side, is not in that.

Each connection is an open file on either side. The limit (`ulimit -n`) is raised up to the hard one; where that is too
low, it says so before it begins.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from shmstore import ShmStore
from shmstore.tcp.server import TCPStoreServer

HELLO = bytes.fromhex("00cef7853c") + b"\x0d" + struct.pack("<I", 4711)
WAIT, PING, BARRIER = 6, 13, 18
HOLDERS = 4
SPARE = 100
"""Open files of a process beside its connections."""
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Size:
    """How many there are of each; parties meet with one more, which is local."""

    idle: int = 10_000
    waiters: int = 1_000
    parties: int = 1_000

    @property
    def all(self) -> int:
        return self.idle + self.waiters + self.parties


def open_files(wanted: int) -> str | None:
    """Raises the limit of this process, and of those that it will start; or says why that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return (
            f"the server needs {wanted} open files, and the hard limit is {hard}. Raise it (root: ulimit -n {wanted}; "
            f"systemd: LimitNOFILE; docker: --ulimit nofile={wanted}), or ask for fewer: --idle, --waiters, --parties"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return None


# -- the server's process ---------------------------------------------------------------------------------------------


def serve(name: str, pipe: Connection) -> None:
    """Serves; answers each message with the counts and the resident bytes, until the pipe ends."""
    with ShmStore(name, create=True) as store, TCPStoreServer(store) as server:
        pipe.send((server.host, server.port))
        try:
            while True:
                pipe.recv()
                pipe.send((server.stats(), resident_bytes()))
        except EOFError:
            pass


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * resource.getpagesize()


# -- those who hold connections ---------------------------------------------------------------------------------------


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def dial(address: tuple[str, int]) -> socket.socket:
    sock = socket.create_connection(address, timeout=PATIENCE_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves no port in TIME_WAIT
    sock.sendall(HELLO)
    return sock


def expect(sock: socket.socket, want: bytes) -> None:
    got = b""
    while len(got) < len(want):
        piece = sock.recv(len(want) - len(got))
        if not piece:
            raise ConnectionError("the server has closed a connection")
        got += piece
    if got != want:
        raise AssertionError(f"{got!r} instead of {want!r}")


def hold(index: int, size: Size, pipe: Connection) -> None:
    """Does a step for its share of the connections at each message, and says when that is done."""
    address = pipe.recv()
    idle: list[socket.socket] = []
    others: list[socket.socket] = []

    def share(of: int) -> range:
        return range(index, of, HOLDERS)

    def connect() -> None:
        for _ in share(size.idle):
            idle.append(dial(address))
            expect(idle[-1], HELLO[6:])

    def begin(frames: list[bytes]) -> None:
        for frame in frames:
            sock = dial(address)
            expect(sock, HELLO[6:])
            sock.sendall(frame)
            others.append(sock)

    def wait() -> None:
        begin([bytes([WAIT]) + struct.pack("<Q", 2) + text(b"/go") + text(b"/own/%d" % i) for i in share(size.waiters)])

    def meet() -> None:
        frame = bytes([BARRIER]) + text(b"/meet") + struct.pack("<q", size.parties + 1)
        begin([frame for _ in share(size.parties)])

    def told() -> None:
        for sock in others:
            expect(sock, b"\0")
            sock.close()
        others.clear()

    def ask() -> None:
        for i, sock in enumerate(idle):
            sock.sendall(bytes([PING]) + struct.pack("<I", i))
        for i, sock in enumerate(idle):
            expect(sock, struct.pack("<I", i))

    def leave() -> None:
        for sock in idle:
            sock.close()

    steps: dict[str, Callable[[], None]] = {each.__name__: each for each in (connect, wait, meet, told, ask, leave)}
    try:
        while True:
            step = pipe.recv()
            try:
                steps[step]()
                pipe.send(None)
            except Exception as error:
                pipe.send(f"{step}: {type(error).__name__}: {error}")
    except EOFError:
        pass


# -- all of it --------------------------------------------------------------------------------------------------------


class Crowd:
    """The processes: their pipes, and what they are told."""

    def __init__(self, name: str, size: Size, stack: ExitStack) -> None:
        self.lines: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        for target, *args in [(serve, name), *((hold, i, size) for i in range(HOLDERS))]:
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(*args, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join, PATIENCE_S)
            self.lines.append(ours)
        for line in self.lines:  # before the joins: the end of its pipe ends a process
            stack.callback(line.close)
        self.server, *self.holders = self.lines
        address = self.hear(self.server)
        for holder in self.holders:
            holder.send(address)

    def hear(self, line: Connection) -> object:
        if not line.poll(PATIENCE_S):
            raise TimeoutError(f"no answer in {PATIENCE_S:g} s; the server: {self.stats()}")
        return line.recv()

    def all(self, step: str) -> None:
        """Has all holders do it."""
        for holder in self.holders:
            holder.send(step)
        for holder in self.holders:
            why = self.hear(holder)
            if why is not None:
                raise AssertionError(f"{why}; the server: {self.stats()}")

    def stats(self) -> tuple[object, int]:
        self.server.send(None)
        if not self.server.poll(PATIENCE_S):
            raise TimeoutError("the server's process gives no answer")
        return self.server.recv()

    def until(self, what: str, count: int) -> None:
        """Until the server has so many of that."""
        end = time.monotonic() + PATIENCE_S
        while getattr(self.stats()[0], what) != count:
            if time.monotonic() > end:
                raise TimeoutError(f"{what} is not {count} after {PATIENCE_S:g} s; the server: {self.stats()}")
            time.sleep(0.005)


def run(size: Size, say: Callable[[str], object]) -> float:
    """All steps; the bytes by idle connection."""
    name = f"crowd-{os.getpid()}"
    with ExitStack() as stack:
        crowd = Crowd(name, size, stack)
        store = stack.enter_context(ShmStore(name, create=False))
        start = time.monotonic()

        def done(what: str) -> None:
            nonlocal start
            now = time.monotonic()
            say(f"{now - start:6.2f} s  {what}")
            start = now

        before = crowd.stats()[1]
        crowd.all("connect")
        crowd.until("open", size.idle)
        each = (crowd.stats()[1] - before) / max(size.idle, 1)
        done(f"{size.idle} connections from {HOLDERS} processes: {each:.0f} bytes each in the server's resident memory")
        crowd.all("wait")
        crowd.until("waiting", size.waiters)
        done(f"{size.waiters} more wait, each for two keys")
        store.set("go", b"")
        for i in range(size.waiters):
            store.set(f"own/{i}", b"")
        crowd.all("told")
        crowd.until("open", size.idle)
        done(f"{size.waiters + 1} local sets, and each waiter was told")
        crowd.all("meet")
        crowd.until("waiting", size.parties)
        done(f"{size.parties} more are at a barrier")
        store.barrier("meet", size.parties + 1, PATIENCE_S)
        crowd.all("told")
        done("a local one was the last, and each was told")
        crowd.all("ask")
        done(f"the {size.idle} idle ones were asked something, all at once, and answered")
        crowd.all("leave")
        crowd.until("open", 0)
        done("all have left")
        stats = crowd.stats()[0]
        assert (stats.connections, stats.waiting, stats.refused) == (size.all, 0, 0), stats  # type: ignore[attr-defined]
    return each


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.wire.crowd", description="A crowd at one server.")
    for name in ("idle", "waiters", "parties"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size(), name), help="[%(default)s]")
    size = Size(**vars(parser.parse_args()))
    why = open_files(size.all + SPARE)
    if why is not None:
        sys.exit(why)
    run(size, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
