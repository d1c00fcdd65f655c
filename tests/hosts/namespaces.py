"""The system's part of a host: namespaces, mounts, addresses; whether they can be had here; who still holds them.

iproute2 makes the links. All addresses and MACs are known beforehand, and every host knows those of all others
for good (permanent neighbours): nobody asks for an address over the network, so that a host that has gone is silence to
the others, as it is behind a router, and no "no route to host" after the three seconds that an ARP request gets.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
MS_NOSUID, MS_BIND, MS_REC, MS_PRIVATE = 2, 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG: Final = 1
PR_SET_TIMERSLACK: Final = 29

HOSTS_MAX: Final = 16
WIRE: Final = HOSTS_MAX
"""The place of the relay, which is no host: the name `wire`, and an address of its own."""
KINDS: Final = ("net", "mnt", "uts", "pid")

libc = ctypes.CDLL(None, use_errno=True)


def address(index: int) -> str:
    return f"10.77.0.{index + 1}"


def mac(index: int) -> str:
    return f"02:00:00:77:00:{index + 1:02x}"


def host_name(index: int) -> str:
    return "wire" if index == WIRE else f"node{index}"


def names() -> str:
    """What /etc/hosts says on each host."""
    rows = [f"{address(i)} {host_name(i)}" for i in range(HOSTS_MAX + 1)]
    return "\n".join(["127.0.0.1 localhost", "::1 localhost", *rows, ""])


def checked(done: int, what: str) -> None:
    if done:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    checked(libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, kind: int = 0) -> None:
    checked(libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    raw = [None if text is None else text.encode() for text in (source, target, kind, data)]
    checked(libc.mount(raw[0], raw[1], raw[2], flags, raw[3]), f"mount {source} at {target}")


def ends_with_parent() -> None:
    """SIGKILL for this process when its parent ends."""
    checked(libc.prctl(PR_SET_PDEATHSIG, 9), "prctl")


def ip(*lines: str) -> None:
    """Commands of iproute2, in this process's network namespace."""
    _iproute2("ip", lines)


def bridge(*lines: str) -> None:
    _iproute2("bridge", lines)


def _iproute2(tool: str, lines: tuple[str, ...]) -> None:
    done = subprocess.run([tool, "-batch", "-"], input="\n".join(lines), capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(f"{tool}: {(done.stderr or done.stdout).strip()}")


def own_mounts() -> None:
    """A /proc, a /dev/shm and an /etc/hosts of this process's own, which is the first one of its namespaces."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID)
    mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=1g")
    if Path("/etc/hosts").exists():
        file = Path("/dev/shm/hosts")
        file.write_text(names())
        mount(str(file), "/etc/hosts", None, MS_BIND)
        file.unlink()  # what is mounted stays


def no_ipv6() -> None:
    """On the links of this network namespace that are still to come: they are quiet then. The loopback keeps it."""
    knob = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    if knob.exists():
        knob.write_text("1")


PROBE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import namespaces as ns
try:
    ns.unshare(ns.CLONE_NEWNET | ns.CLONE_NEWNS | ns.CLONE_NEWUTS)
    ns.mount("none", "/", None, ns.MS_REC | ns.MS_PRIVATE)
    ns.mount("tmpfs", "/dev/shm", "tmpfs")
    ns.ip("link add br0 type bridge", "link set br0 up", "link add v0 type veth peer name v1")
    ns.ip("link set v0 master br0 up", "link set v1 up")
    ns.bridge("link set dev v0 state 0")
    ns.unshare(ns.CLONE_NEWPID)
except OSError as error:
    sys.exit(str(error))
"""


@functools.cache
def why_not() -> str:
    """Why there can be no hosts here; "" where there can."""
    for tool in ("ip", "bridge"):
        if shutil.which(tool) is None:
            return f"there is no `{tool}` (iproute2)"
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=30)
    if done.returncode == 0:
        return ""
    who = "" if os.geteuid() == 0 else f"uid {os.geteuid()} is not root: "
    return who + (done.stderr.strip() or "no reason given")


def before_others(priority: int) -> str:
    """This process, and what it starts, goes before the others of the machine, and before less of this; how it got so.

    In turns with those of the same priority: one that spins holds them up, and not for ever.
    """
    checked(libc.prctl(PR_SET_TIMERSLACK, 1), "prctl")
    ways: list[tuple[str, Callable[[], object]]] = [
        ("SCHED_RR", lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))),
        ("nice", lambda: os.nice(-10 * priority)),
    ]
    for name, way in ways:
        try:
            way()
        except OSError:
            continue
        return name
    return "not at all"


def turn(priority: int) -> Callable[[], object]:
    """What gives this process that priority, where `before_others` got one: who has a higher one goes first, at once.

    Made beforehand, as it is called while others wait for the processor.
    """
    change = functools.partial(os.sched_setparam, 0, os.sched_param(priority))
    return change if os.sched_getscheduler(0) == os.SCHED_RR else int


def of_process(pid: int) -> set[str]:
    """The namespaces of a process, as the kernel names them: net:[4026532321]."""
    return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS}


def is_dead(process: Path) -> bool:
    """A zombie, whom its parent, the system's init by now, has not reaped yet: it holds a number and no more."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def of_other_tests(pid: int) -> bool:
    """Whether it belongs to those that run tests beside this process (pytest-xdist), or has just ended.

    The kernel soon gives the number of a namespace that is gone to another one, and that may be theirs.
    """
    me = os.environ.get("PYTEST_XDIST_WORKER")
    if me is None:
        return False
    try:
        told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if any(one.startswith(b"PYTEST_XDIST_WORKER=") for one in told):
            return f"PYTEST_XDIST_WORKER={me}".encode() not in told
        line = [pid]  # up to who started the processes that run tests
        while line[-1] > 1 and line[-1] != os.getppid():
            line.append(int(Path(f"/proc/{line[-1]}/stat").read_text().rpartition(")")[2].split()[1]))
    except OSError:
        return True
    return len(line) > 1 and line[-1] == os.getppid() and line[-2] != os.getpid()


def holders(namespaces: set[str]) -> list[str]:
    """Who on this machine is in one of them, or holds one open: processes that live, descriptors, mounts."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or is_dead(process):
            continue
        for folder in ("ns", "fd"):
            try:
                links = list((process / folder).iterdir())
            except OSError:  # it has ended, or is a kernel thread
                continue
            for link in links:
                try:
                    target = os.readlink(link)
                except OSError:
                    continue
                if target in namespaces and not of_other_tests(int(process.name)):
                    found.append(f"{link} -> {target}")
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    return found + [line for line in table.splitlines() if any(name in line for name in namespaces)]
