"""Processes for tests: a start gate, announcements, and a watchdog that shows every stack.

A `Team` starts children, either as fresh processes (the default) or forked from the test process (`how="fork"`), and
talks to each over a socket pair. A fresh one is an interpreter of its own; of a team that has a stem (`stem.py`) it is
forked from that, which is many times faster. A child's function gets a `Me` as its first argument:

    def worker(me, name):
        store = shmstore.ShmStore(name)
        me.ready()                      # the start gate: returns when the test says go()
        me.say("at the point")          # announce; the test reads it with child.hear()
        return store.add("n", 1)        # becomes child.result()

Nothing is timed by sleeping. Whoever overruns the team's budget has the stacks of all its processes printed, is
killed, and fails the test with `Overrun`.
"""

from __future__ import annotations

import faulthandler
import inspect
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stem import Stem

_BOOT = (
    "import sys, pickle; data = sys.stdin.buffer.read(); path, rest = pickle.loads(data);"
    "sys.path[:] = path; import harness; harness._child_main(*pickle.loads(rest))"
)


class Overrun(AssertionError):
    """A process did not get where it should in time; the text holds every process's stacks."""


class ChildFailed(AssertionError):
    """A child raised, or died without being told to; the text holds its traceback."""


class Me:
    """The child's end of the conversation."""

    def __init__(self, conn: Connection, index: int) -> None:
        self._conn = conn
        self.index = index

    def ready(self) -> Any:
        """Waits at the start gate; returns what `go` sent."""
        self._conn.send(("ready", None))
        return self._conn.recv()

    def say(self, what: Any) -> None:
        self._conn.send(("say", what))

    def hear(self) -> Any:
        """Blocks for the next message of the test."""
        return self._conn.recv()


class Child:
    """The test's end: one process."""

    def __init__(self, team: Team, index: int, pid: int, conn: Connection, stacks: str) -> None:
        self._team = team
        self.index = index
        self.pid = pid
        self._conn = conn
        self._stacks = stacks
        self._code: int | None = None
        self._closed = False

    def _next(self) -> tuple[str, Any]:
        left = self._team.deadline - time.monotonic()
        if left <= 0 or not self._conn.poll(left):
            self._team.overrun(f"child {self.index} (pid {self.pid}) was silent for too long")
        try:
            kind, what = self._conn.recv()
        except (EOFError, ConnectionResetError):
            raise ChildFailed(f"child {self.index} (pid {self.pid}) died: exit code {self.wait()}") from None
        if kind == "error":
            raise ChildFailed(f"child {self.index} (pid {self.pid}) raised\n{what}")
        return kind, what

    def hear(self) -> Any:
        """The child's next announcement."""
        kind, what = self._next()
        assert kind == "say", f"child {self.index} sent {kind} {what!r}, an announcement was due"
        return what

    def wait_ready(self) -> None:
        kind, what = self._next()
        assert kind == "ready", f"child {self.index} sent {kind} {what!r}, it should have come to the gate"

    def say(self, what: Any) -> None:
        self._conn.send(what)

    def result(self) -> Any:
        """What the child's function returned; waits for its end."""
        kind, what = self._next()
        assert kind == "result", f"child {self.index} sent {kind} {what!r}, its result was due"
        code = self.wait()
        assert code == 0, f"child {self.index} ended with {code} after its result"
        return what

    def signal(self, sig: int) -> None:
        assert self._code is None, "the child has already been reaped"
        os.kill(self.pid, sig)

    def kill(self) -> None:
        """SIGKILL, and waits until it is dead."""
        self.signal(signal.SIGKILL)
        self.wait()

    def kill_when(self, marker: Any) -> None:
        """SIGKILL as soon as the child has announced `marker`."""
        heard = self.hear()
        assert heard == marker, f"announced {heard!r}, not {marker!r}"
        self.kill()

    def wait(self) -> int:
        """Reaps the process; its exit code, negative for a signal."""
        if self._code is None:
            ended = os.pidfd_open(self.pid)
            try:
                if not select.select([ended], [], [], max(0.0, self._team.deadline - time.monotonic()))[0]:
                    self._team.overrun(f"child {self.index} (pid {self.pid}) did not end")
            finally:
                os.close(ended)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    @property
    def alive(self) -> bool:
        return self._code is None

    def dump(self) -> str:
        """Asks for the stacks of all the process's threads; works on one that is stuck in C or stopped."""
        if self._code is not None:
            return f"--- child {self.index} (pid {self.pid}): ended with {self._code}\n"
        before = os.path.getsize(self._stacks)
        os.kill(self.pid, signal.SIGCONT)
        os.kill(self.pid, signal.SIGUSR1)
        end = time.monotonic() + 1.0
        while os.path.getsize(self._stacks) == before and time.monotonic() < end:
            time.sleep(0.01)  # faulthandler tells nobody when it is done: only what is printed depends on it
        time.sleep(0.05)
        with open(self._stacks) as file:
            return f"--- child {self.index} (pid {self.pid}):\n{file.read()}\n"

    def end(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
        if not self._closed:
            self._closed = True
            self._conn.close()
            os.unlink(self._stacks)


class Team:
    """Children under one time budget; a context manager that leaves nothing behind."""

    def __init__(self, budget: float = 30.0, stem: Stem | None = None) -> None:
        self.deadline = time.monotonic() + budget
        self.stem = stem
        self.children: list[Child] = []

    def start(self, fn: Callable[..., Any], *args: Any, how: str = "fresh") -> Child:
        """Starts fn(me, *args) in another process: a "fresh" one, or a "fork" of this one."""
        index = len(self.children)
        ours, theirs = socket.socketpair()
        fd, stacks = tempfile.mkstemp(prefix="stacks-")
        os.close(fd)
        try:
            if how == "fork":
                pid = self._fork(fn, args, index, ours, theirs, stacks)
            elif self.stem is not None:
                pid = self.stem.start(theirs.fileno(), *_named(fn), args, index, stacks)
            else:
                pid = self._exec(fn, args, index, theirs, stacks)
        finally:
            theirs.close()
        child = Child(self, index, pid, Connection(ours.detach()), stacks)
        self.children.append(child)
        return child

    def _fork(
        self, fn: Callable[..., Any], args: Any, index: int, ours: socket.socket, theirs: socket.socket, stacks: str
    ) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                ours.close()
                for other in self.children:
                    other._conn.close()
                code = _serve(theirs.detach(), fn, args, index, stacks)
            finally:
                os._exit(code)
        return pid

    def _exec(self, fn: Callable[..., Any], args: Any, index: int, theirs: socket.socket, stacks: str) -> int:
        rest = pickle.dumps((theirs.fileno(), *_named(fn), args, index, stacks))
        proc = subprocess.Popen(
            [sys.executable, "-c", _BOOT], stdin=subprocess.PIPE, pass_fds=[theirs.fileno()], close_fds=True
        )
        assert proc.stdin is not None
        path = [os.path.dirname(__file__), *(p for p in sys.path if p)]
        with proc.stdin as stdin:
            stdin.write(pickle.dumps((path, rest)))
        proc.returncode = 0  # reaped by Child.wait, not by Popen
        return proc.pid

    def go(self, what: Any = None) -> None:
        """Waits until every child stands at the gate, then opens it."""
        for child in self.children:
            child.wait_ready()
        for child in self.children:
            child.say(what)

    def run(self, n: int, fn: Callable[..., Any], *args: Any, how: str = "fresh") -> list[Any]:
        """n children of fn through the gate at once; their results."""
        for _ in range(n):
            self.start(fn, *args, how=how)
        self.go()
        return self.results()

    def results(self) -> list[Any]:
        return [child.result() for child in self.children]

    def overrun(self, why: str) -> None:
        text = "".join(child.dump() for child in self.children)
        for child in self.children:
            if child.alive:
                os.kill(child.pid, signal.SIGKILL)
        print(text, file=sys.stderr)
        raise Overrun(f"{why}\n{text}")

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for child in self.children:
            child.end()


def _named(fn: Callable[..., Any]) -> tuple[str, str]:
    """Where another process finds it."""
    return inspect.getfile(fn), fn.__qualname__


def _child_main(fd: int, path: str, qualname: str, args: Any, index: int, stacks: str) -> None:
    import importlib

    directory, file = os.path.split(path)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    fn: Any = importlib.import_module(os.path.splitext(file)[0])
    for part in qualname.split("."):
        fn = getattr(fn, part)
    sys.exit(_serve(fd, fn, args, index, stacks))


def _serve(fd: int, fn: Callable[..., Any], args: Any, index: int, stacks: str) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = open(stacks, "w")  # noqa: SIM115 - must outlive this frame for faulthandler
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
    conn = Connection(fd)
    try:
        conn.send(("result", fn(Me(conn, index), *args)))
    except BaseException:
        conn.send(("error", traceback.format_exc()))
    return 0
