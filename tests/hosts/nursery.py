"""The nursery of a cluster: a fresh interpreter that makes the hosts, forks their processes, and is the switch.

    network namespace of the nursery        a bridge, br0, and a port v{n} of it for each host
    init of a host                          pid 1 of its PID namespace, in namespaces of its own for network (eth0, lo),
                                            mounts (/proc, /dev/shm, /etc/hosts) and the host's name; only waits
    a process of a host                     forked from the nursery into all of these; warm, without torch

Nothing has a name outside: namespaces live by their processes and by the nursery's descriptors. The nursery ends when
the test's end of its socket is closed, or by the death signal of its parent; an init by that of the nursery; and with
an init the kernel kills all processes of its PID namespace. So a test process that is killed leaves nothing.

It answers one request after the other: (verb, arguments), then ("ok", result) or ("error", a traceback). It reaps no
child before the test asks, so that a pid stays what it is.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import signal
import socket
import sys
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import IO, Any, NamedTuple

import harness
import namespaces as ns


class Booted(NamedTuple):
    """A host that is up."""

    init: int  # the pid of its init, as the test sees it
    namespaces: set[str]


@dataclass
class Machine:
    """The nursery's side of a host."""

    init: int
    port: str  # of the bridge
    fds: dict[str, int]
    children: set[int] = field(default_factory=set)


class Nursery:
    def __init__(self, control: Connection, warm: list[str]) -> None:
        self.control = control
        self.machines: dict[int, Machine] = {}
        self.ports = 0
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        ns.unshare(ns.CLONE_NEWNET)
        self.own_net = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        ns.no_ipv6()
        ns.ip("link add br0 type bridge", "link set br0 up")
        for module in warm:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # a collection in a child would copy the pages of all that is warm

    # -- requests -----------------------------------------------------------------------------------------------------

    def boot(self, index: int) -> Booted:
        """A host comes up: its init, its link, its address."""
        ask, told = os.pipe()
        tell, answer = os.pipe()
        ns.unshare(ns.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            try:
                os.close(told)
                os.close(tell)
                self.let_go()
                init(index, ask, answer)
            finally:
                os._exit(1)
        ns.setns(self.own_pids, ns.CLONE_NEWPID)
        os.close(ask)
        os.close(answer)
        with open(told, "wb", buffering=0) as to_init, open(tell, "rb", buffering=0) as from_init:
            expect(from_init, b"apart")
            self.ports += 1
            port = f"v{self.ports}"
            ns.ip(
                f"link add {port} type veth peer name eth0 address {ns.mac(index)} netns {pid}",
                f"link set {port} master br0",
                f"link set {port} up",
            )
            to_init.write(b"linked")
            expect(from_init, b"up")
        fds = {kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ns.KINDS}
        self.machines[index] = Machine(pid, port, fds)
        return Booted(pid, ns.of_process(pid))

    def start(self, index: int, path: str, qualname: str, args: bytes, number: int, stacks: str) -> int:
        """fn(me, *args) in a new process of a host; its pid, as the test sees it. The socket for `me` comes behind."""
        fd = recv_handle(self.control)
        try:
            machine = self.machines[index]
            fn = found(path, qualname)
            ns.setns(machine.fds["pid"], ns.CLONE_NEWPID)
            pid = os.fork()
            if pid == 0:
                try:
                    enter(machine)
                    self.let_go()
                    os._exit(harness._serve(fd, fn, pickle.loads(args), number, stacks))
                finally:
                    os._exit(1)
            ns.setns(self.own_pids, ns.CLONE_NEWPID)
        finally:
            os.close(fd)
        machine.children.add(pid)
        return pid

    def reap(self, pid: int) -> int:
        """The exit code of a process that has ended, or is about to."""
        for machine in self.machines.values():
            machine.children.discard(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def cut(self, index: int) -> None:
        """The switch drops what comes from the host's port and what is to go out there. The host's link stays up."""
        ns.bridge(f"link set dev {self.machines[index].port} state 0")  # disabled

    def restore(self, index: int) -> None:
        ns.bridge(f"link set dev {self.machines[index].port} state 3")  # forwarding

    def drop(self, index: int) -> dict[int, int]:
        """A power cut: silence first, then SIGKILL for all processes of the host; their exit codes by pid."""
        self.cut(index)
        return self.end(index)

    def end(self, index: int) -> dict[int, int]:
        machine = self.machines.pop(index)
        self._forget_orphans(machine)
        os.kill(machine.init, signal.SIGKILL)  # and the kernel kills the others
        codes = {pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in machine.children}
        os.waitpid(machine.init, 0)  # last: it ends when all others have been reaped
        for fd in machine.fds.values():
            os.close(fd)
        return codes

    def _forget_orphans(self, machine: Machine) -> None:
        """A connection whose process has gone and whose FIN nobody answers keeps its network namespace for minutes;
        so, for half a second.
        """
        ns.setns(machine.fds["net"])
        try:
            Path("/proc/sys/net/ipv4/tcp_orphan_retries").write_text("1")
        finally:
            ns.setns(self.own_net)

    # -- its life -----------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        self.control.send(("ok", None))
        while True:
            try:
                verb, args = self.control.recv()
            except (EOFError, OSError):
                return
            try:
                answer = "ok", getattr(self, verb)(*args)
            except BaseException:
                answer = "error", traceback.format_exc()
            self.control.send(answer)

    def let_go(self) -> None:
        """In a forked child: what is the nursery's alone. A namespace lives as long as anybody has it open."""
        self.control.close()
        for fds in ([self.own_pids, self.own_net], *(machine.fds.values() for machine in self.machines.values())):
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        for index in list(self.machines):
            self.end(index)


def enter(machine: Machine) -> None:
    """This process, which is in the host's PID namespace, goes where its others are."""
    here = os.getcwd()
    for kind in ("net", "uts", "mnt"):
        ns.setns(machine.fds[kind])
    os.chdir(here)


def init(index: int, ask: int, answer: int) -> None:
    """Pid 1 of a host: sets it up, and waits for the end."""
    ns.ends_with_parent()
    ns.unshare(ns.CLONE_NEWNET | ns.CLONE_NEWNS | ns.CLONE_NEWUTS)
    ns.own_mounts()
    socket.sethostname(ns.host_name(index))
    ns.no_ipv6()
    os.write(answer, b"apart")
    if os.read(ask, 100) != b"linked":  # the nursery has gone, maybe before it could be watched
        return
    others = [i for i in range(ns.HOSTS_MAX + 1) if i != index]
    ns.ip(
        "link set lo up",
        f"addr add {ns.address(index)}/24 dev eth0",
        "link set eth0 up",
        *(f"neigh replace {ns.address(i)} lladdr {ns.mac(i)} dev eth0 nud permanent" for i in others),
    )
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans of the host are reaped by the kernel
    os.write(answer, b"up")
    os.close(ask)
    os.close(answer)
    while True:
        signal.pause()


def expect(pipe: IO[bytes], word: bytes) -> None:
    got = pipe.read(100)
    if got != word:
        raise OSError(f"the first process of a host said {got!r} instead of {word!r}; what it printed says why")


def found(path: str, qualname: str) -> Any:
    directory, file = os.path.split(path)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    what: Any = importlib.import_module(os.path.splitext(file)[0])
    for part in qualname.split("."):
        what = getattr(what, part)
    return what


def main(fd: int, warm: list[str]) -> None:
    ns.ends_with_parent()
    control = Connection(fd)
    try:
        nursery = Nursery(control, warm)
    except BaseException:
        control.send(("error", traceback.format_exc()))
        return
    try:
        nursery.serve()
    finally:
        nursery.close()
