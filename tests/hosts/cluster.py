"""Hosts for tests, several on one machine: a network of its own, a /dev/shm, a name and pids of its own for each.

A `Cluster` is a `Team` (tests/harness.py) whose processes run on its hosts. They have the same conversation:

    with Cluster(2) as cluster:
        a, b = cluster.hosts
        server = cluster.serve(a)                    # a TCPStoreServer on host a, at ("10.77.0.1", 41235)
        child = b.start(worker, server.address)      # worker(me, address) on host b
        child.wait_ready()
        b.cut()                                      # silence in both directions, and no sign of it
        b.restore()
        cluster.drop(b)                              # a power cut: all its processes at once, and no FIN
    with Cluster(4) as cluster:
        relay = cluster.relay(cluster.serve(cluster.hosts[0]).address, delay_s=0.001)
        cluster.run(2, meet, relay.address)          # meet(me, rank, address) for 2 ranks on each host
        relay.counts().total.requests

Processes are forked from a nursery (nursery.py) that has imported shmstore, and what `warm` names: torch, for one. So
their functions come from files that can be imported, and their arguments are pickled.

A host's processes are in a PID namespace: the first is pid 3 or so on each host, and `Child.pid` is what the test sees.
Hosts have the addresses 10.77.0.1, … and the names node0, …, which all hosts know.
"""

from __future__ import annotations

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

import namespaces as ns
import relay as relays
from harness import Child, ChildFailed, Team

HERE = os.path.dirname(__file__)
_BOOT = (
    "import sys, pickle; path, fd, warm = pickle.loads(sys.stdin.buffer.read());"
    "sys.path[:] = path; import nursery; nursery.main(fd, warm)"
)
WARM = ("shmstore", "shmstore.elastic", "shmstore.tcp.server", "shmstore.tcp.client")
Address = tuple[str, int]


class Rank(NamedTuple):
    """Which of the ranks of a run a process is."""

    node: int
    local: int
    nodes: int
    per_node: int

    @property
    def number(self) -> int:
        return self.node * self.per_node + self.local

    @property
    def world(self) -> int:
        return self.nodes * self.per_node


@dataclass(eq=False)
class Host:
    """A host of a cluster."""

    cluster: Cluster
    index: int
    init: int = 0
    """The pid of its first process, as the test sees it."""

    @property
    def address(self) -> str:
        return ns.address(self.index)

    @property
    def name(self) -> str:
        return ns.host_name(self.index)

    def start(self, fn: Callable[..., Any], *args: Any) -> Process:
        """fn(me, *args) in a new process of this host."""
        return self.cluster.start_on(self, fn, *args)

    def cut(self) -> None:
        """Nothing comes to this host or leaves it from here on, and it is told nothing: its link stays up."""
        self.cluster.ask("cut", self.index)

    def restore(self) -> None:
        """Ends a cut. TCP goes on with its next retransmission: after a cut of t seconds, within 2t or so."""
        self.cluster.ask("restore", self.index)


class Process(Child):
    """A process of a host."""

    host: Host

    def wait(self) -> int:
        if self._code is None:
            ended = os.pidfd_open(self.pid)
            try:
                if not select.select([ended], [], [], max(0.0, self._team.deadline - time.monotonic()))[0]:
                    self._team.overrun(f"child {self.index} (pid {self.pid}) did not end")
            finally:
                os.close(ended)
            self._code = self.host.cluster.ask("reap", self.pid)
        return self._code

    def ended_with(self, code: int) -> None:
        self._code = code

    def end(self) -> None:
        """Only what is of this process: the nursery ends them all."""
        if self._code is None:
            self._code = -signal.SIGKILL
        super().end()


class Served:
    """The test's end of a TCPStoreServer over a HashStore."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.address: Address = process.hear()

    def stats(self) -> Any:
        """Its ServerStats."""
        self.process.say("stats")
        return self.process.hear()


class Relay:
    """The test's end of a relay (relay.py): what passed, and how it is slowed."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.address: Address = process.hear()

    def _ask(self, verb: str, *args: Any) -> Any:
        self.process.say((verb, args))
        return self.process.hear()

    def counts(self) -> relays.Counts:
        """What has passed since the start or the last reset."""
        counts: relays.Counts = self._ask("counts")
        return counts

    def reset(self) -> None:
        """Counts from 0 again. Connections stay, and so does what is under way: see `quiet`."""
        self._ask("reset")

    def quiet(self, span_s: float = 0.02) -> None:
        """Returns when nothing has come for that long and nothing is under way."""
        self._ask("quiet", span_s)

    def delay(self, delay_s: float) -> None:
        """Another one-way delay, for what comes from here on."""
        self._ask("delay", delay_s)

    def reset_connections(self) -> int:
        """Ends all connections with a RST on both sides; how many there were."""
        return int(self._ask("reset_connections"))


class Cluster(Team):
    """Hosts and their processes under one time budget; a context manager that leaves nothing behind."""

    made: ClassVar[set[str]] = set()
    """The namespaces of all clusters of this process: whoever looks for what was left behind looks for these."""

    def __init__(self, hosts: int, budget: float = 60.0, warm: Sequence[str] = ()) -> None:
        super().__init__(budget)
        assert 1 <= hosts <= ns.HOSTS_MAX, f"1 to {ns.HOSTS_MAX} hosts"
        self.hosts = [Host(self, i) for i in range(hosts)]
        self._wire: Host | None = None
        self._services: list[Process] = []
        self._warm = [*WARM, *warm]

    # -- the nursery --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        ours, theirs = socket.socketpair()
        with theirs:
            self._nursery = subprocess.Popen(
                [sys.executable, "-c", _BOOT], stdin=subprocess.PIPE, pass_fds=[theirs.fileno()], close_fds=True
            )
            path = [HERE, os.path.dirname(HERE), *(p for p in sys.path if p)]
            assert self._nursery.stdin is not None
            with self._nursery.stdin as stdin:
                stdin.write(pickle.dumps((path, theirs.fileno(), self._warm)))
        self._control = Connection(ours.detach())
        try:
            self._answer("the start")
            for host in self.hosts:
                self._boot(host)
        except BaseException:
            self._end_nursery()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._end_nursery()
        for child in (*self._services, *self.children):
            child.end()

    def _end_nursery(self) -> None:
        """It ends all hosts, and with them all processes, before it ends itself."""
        self._control.close()
        try:
            self._nursery.wait(20)
        except subprocess.TimeoutExpired:
            self._nursery.kill()  # the inits follow it
            self._nursery.wait()
            raise AssertionError("the nursery did not end") from None

    def ask(self, verb: str, *args: Any, fd: int | None = None) -> Any:
        """A request to the nursery, and its answer."""
        self._control.send((verb, args))
        if fd is not None:
            send_handle(self._control, fd, self._nursery.pid)
        return self._answer(verb)

    def _answer(self, verb: str) -> Any:
        if not self._control.poll(max(0.0, self.deadline - time.monotonic())):
            self.overrun(f"the nursery (pid {self._nursery.pid}) did not answer {verb!r}")
        try:
            how, what = self._control.recv()
        except (EOFError, ConnectionResetError):
            raise ChildFailed(f"the nursery died in {verb!r}: {self._nursery.wait()}") from None
        if how == "error":
            raise ChildFailed(f"the nursery could not do {verb!r}:\n{what}")
        return what

    def _boot(self, host: Host) -> None:
        host.init, namespaces = self.ask("boot", host.index)
        self.made |= namespaces

    # -- processes ----------------------------------------------------------------------------------------------------

    def start_on(self, host: Host, fn: Callable[..., Any], *args: Any) -> Process:
        """fn(me, *args) in a new process of that host; one of `children`, which `go` and `results` are about."""
        child = self._start_on(host, fn, *args)
        self.children.append(child)
        return child

    def _start_on(self, host: Host, fn: Callable[..., Any], *args: Any) -> Process:
        index = len(self.children) + len(self._services)
        ours, theirs = socket.socketpair()
        fd, stacks = tempfile.mkstemp(prefix="stacks-")
        os.close(fd)
        with ours, theirs:
            path = os.path.abspath(inspect.getfile(fn))
            request = (host.index, path, fn.__qualname__, pickle.dumps(args), index, stacks)
            try:
                pid = self.ask("start", *request, fd=theirs.fileno())
            except BaseException:
                os.unlink(stacks)
                raise
            child = Process(self, index, pid, Connection(ours.detach()), stacks)
        child.host = host
        return child

    def start(self, fn: Callable[..., Any], *args: Any, how: str = "exec") -> Child:
        raise TypeError("which host? host.start(fn, ...)")

    def run(self, n: int, fn: Callable[..., Any], *args: Any, how: str = "exec") -> list[Any]:
        """fn(me, rank, *args) for n ranks on each host, through the gate at once; their results, in rank order."""
        self.start_ranks(n, fn, *args)
        self.go()
        return self.results()

    def start_ranks(
        self, n: int, fn: Callable[..., Any], *args: Any, hosts: Sequence[Host] | None = None
    ) -> list[Process]:
        """fn(me, rank, *args) for n ranks on each host, or on each of some; in rank order."""
        nodes = self.hosts if hosts is None else hosts
        ranks = [Rank(node, local, len(nodes), n) for node in range(len(nodes)) for local in range(n)]
        return [self.start_on(nodes[rank.node], fn, rank, *args) for rank in ranks]

    def drop(self, host: Host) -> None:
        """A power cut of that host: all its processes at once, and nothing of it reaches the others."""
        self._dropped(self.ask("drop", host.index))

    def boot(self, host: Host) -> None:
        """A dropped host comes up again, with its name and address and nothing else of before."""
        self._boot(host)

    def _dropped(self, codes: dict[int, int]) -> None:
        for child in (*self._services, *self.children):
            if isinstance(child, Process) and child.alive and child.pid in codes:
                child.ended_with(codes[child.pid])

    # -- services -----------------------------------------------------------------------------------------------------

    def serve(self, host: Host, port: int = 0, *, before_others: bool = False) -> Served:
        """A TCPStoreServer over a HashStore, in a process of its own on that host."""
        process = self._start_on(host, _serve_store, host.address, port, before_others)
        self._services.append(process)
        return Served(process)

    def relay(self, to: Address, delay_s: float = 0.001) -> Relay:
        """A relay before `to`, at an address of its own, that delays each direction and counts."""
        if self._wire is None:
            self._wire = Host(self, ns.WIRE)
            self._boot(self._wire)
        process = self._start_on(self._wire, relays.main, self._wire.address, to, delay_s)
        self._services.append(process)
        return Relay(process)

    def overrun(self, why: str) -> None:
        self.children[:0] = self._services  # their stacks too
        self._services = []
        super().overrun(why)


def _serve_store(me: Any, host: str, port: int, before_others: bool) -> None:
    from shmstore import HashStore
    from shmstore.tcp.server import TCPStoreServer

    if before_others:
        ns.before_others(3)
    with HashStore() as keys, TCPStoreServer(keys, host, port) as server:
        me.say((host, server.port))
        while me.hear():  # for ever: it ends with its host
            me.say(server.stats())
