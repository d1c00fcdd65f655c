"""PID namespaces: two processes that are both pid 1 share a segment; nobody is taken for dead, or alive, by its pid.

Each `Member` is the first process of a PID namespace of its own, with a /proc of its own, as in two containers
that share /dev/shm.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import inside
import pytest
from harness import Child, Team

from shmstore import ShmStore, StoreTimeoutError
from shmstore._native import ffi, lib

pytestmark = pytest.mark.shows("crash: two pid 1 in one segment")

CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
MS_REC, MS_PRIVATE, MS_NOSUID = 0x4000, 0x40000, 2
PR_SET_PDEATHSIG = 1

ENTER = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare({CLONE_NEWPID | CLONE_NEWNS}) or libc.mount(b"none", b"/", None, {MS_REC | MS_PRIVATE}, None):
    sys.exit(os.strerror(ctypes.get_errno()))
pid = os.fork()
if pid == 0:
    os._exit(bool(libc.mount(b"proc", b"/proc", b"proc", {MS_NOSUID}, None)) or os.getpid() != 1)
sys.exit("no /proc of one's own" if os.waitpid(pid, 0)[1] else 0)
"""


@functools.cache
def why_not() -> str:
    """Why there can be no PID namespace here; "" where there can."""
    done = subprocess.run([sys.executable, "-c", ENTER], capture_output=True, text=True, timeout=30)
    if done.returncode == 0:
        return ""
    who = "" if os.geteuid() == 0 else f"uid {os.geteuid()} is not root: "
    return who + (done.stderr.strip() or "no reason given")


@pytest.fixture(autouse=True)
def allowed() -> None:
    if why_not():
        pytest.skip(f"no PID namespaces here, so that two pid 1 in one segment are not tested: {why_not()}")


@pytest.fixture(params=["futex", "semaphore"])
def store(request: pytest.FixtureRequest, name: str) -> Iterator[ShmStore]:
    with ShmStore(name, sync=request.param, timeout=20) as store:
        yield store


class Member:
    """The test's end of a pid 1 of another namespace."""

    def __init__(self, team: Team, name: str) -> None:
        self.child: Child = team.start(as_pid_1, name)
        self.pid: int = self.child.hear()  # as we see it
        pid, self.slot = self.child.hear()
        assert pid == 1, "and as it sees itself"

    def ask(self, what: str, *args: Any) -> Any:
        self.begin(what, *args)
        return self.child.hear()

    def begin(self, what: str, *args: Any) -> None:
        self.child.say((what, args))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.child.wait() == signal.SIGKILL, "its parent reaps it, and says how it ended"

    def refused(self, what: str, *args: Any) -> str:
        """The text of the timeout in which that ends."""
        self.ask("set_timeout", 0.2)
        how, text = self.ask(what, *args)
        assert how == "timeout"
        self.ask("set_timeout", 20)
        return str(text)


def as_pid_1(me: Any, name: str) -> None:
    """Forks the first process of a new namespace, which serves; ends as that ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWPID | CLONE_NEWNS) == 0
    assert libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(tell)
            os.read(told, 1)
            assert libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) == 0
            assert libc.mount(b"proc", b"/proc", b"proc", MS_NOSUID, None) == 0
            serve(me, name)
            code = 0
        except BaseException as error:
            me.say(f"failed: {error!r}")
        finally:
            os._exit(code)
    me.say(pid)
    os.close(tell)
    status = os.waitpid(pid, 0)[1]
    os._exit(os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status))


def serve(me: Any, name: str) -> None:
    """Verbs on request, until the test's end of the socket is closed."""
    assert os.readlink("/proc/self") == "1"
    with ShmStore(name, timeout=20) as store:
        me.say((os.getpid(), slot_of(store)))
        while True:
            what, args = me.hear()
            try:
                if what == "hold":
                    me.say(inside.hold(store, *args))
                elif what == "count":
                    me.say([store.add(args[0], 1) for _ in range(args[1])])
                elif what == "fill":  # as long as there are blocks at hand
                    me.say([store.set(f"new-{i}", b"x" * 20_000) for i in range(args[0])])
                else:
                    me.say(getattr(store, what)(*args))
            except StoreTimeoutError as error:
                me.say(("timeout", str(error)))


def slot_of(store: ShmStore) -> int:
    slot, gen = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    assert lib.sst_self(inside.seg(store), slot, gen) == 0
    return int(slot[0])


def free_key(store: ShmStore, prefix: str) -> str:
    """A key in a stripe that nobody holds; its value is "0"."""
    store.set_timeout(0)
    for i in range(50):
        try:
            store.set(f"{prefix}-{i}", b"0")
        except StoreTimeoutError:
            continue
        store.set_timeout(20)
        return f"{prefix}-{i}"
    raise AssertionError("every stripe is held")


@pytest.mark.parametrize("what", ["stripe", "heap", "waiter"])
def test_one_is_killed_and_the_other_is_not_robbed(store: ShmStore, name: str, team: Team, what: str) -> None:
    """Both are pid 1 and hold a lock. The killed one's is taken over, the living one's is not."""
    victim, living = Member(team, name), Member(team, name)
    living.ask("hold", "stripe", b"kept")
    key = free_key(store, "held")
    victim.ask("hold", what, key.encode())
    victim.kill()
    assert store.add(key, 1) == 1
    heir = Member(team, name)  # the third pid 1, maybe in the slot of the first
    assert heir.ask("add", key, 1) == 2
    assert heir.ask("fill", 0) == []
    for text in (heir.refused("set", "kept", b"robbed"), heir.refused("add", "kept", 1)):
        assert "process 1 " in text
        assert f"peer slot {living.slot})" in text
    store.set_timeout(0.2)
    with pytest.raises(StoreTimeoutError, match=rf"process 1 .*peer slot {living.slot}\)"):
        store.set("kept", b"robbed")
    store.set_timeout(20)
    assert [peer.state for peer in store.peers() if peer.slot == living.slot] == ["live"]
    living.kill()
    assert heir.ask("set", "kept", b"free") is None
    assert store.get("kept", 0) == b"free"
    assert inside.verify(store) == []
    heir.kill()


@pytest.mark.parametrize("what", ["stripe", "heap", "waiter"])
def test_one_is_killed_and_the_other_goes_on(store: ShmStore, name: str, team: Team, what: str) -> None:
    """The other is in the middle of its verbs, on the key that is held."""
    victim, other = Member(team, name), Member(team, name)
    victim.ask("hold", what, b"n")
    other.begin("count", "n", 500)
    victim.kill()
    assert other.child.hear() == list(range(1, 501))
    other.ask("fill", 50)
    assert inside.verify(store) == []
    other.kill()
    assert store.get("n", 0) == b"500"
    assert inside.verify(store) == []


@pytest.mark.parametrize("how", ["alive", "stopped"])
@pytest.mark.parametrize("what", ["stripe", "heap"])
def test_what_the_living_holds_is_never_taken(store: ShmStore, name: str, team: Team, what: str, how: str) -> None:
    holder, other = Member(team, name), Member(team, name)
    holder.ask("hold", what, b"held")
    if how == "stopped":
        os.kill(holder.pid, signal.SIGSTOP)
    for _ in range(2):
        text = other.refused("set", "held", b"robbed") if what == "stripe" else other.refused("fill", 1000)
        assert "process 1 " in text
        assert f"peer slot {holder.slot})" in text
        assert holder.slot != other.slot
    assert [peer.state for peer in store.peers() if peer.slot == holder.slot] == ["live"]
    assert other.ask("check", [free_key(store, "free")] if what == "stripe" else ["held"]) is (what == "stripe")
    holder.kill()
    assert other.ask("set", "held", b"mine now") is None
    other.ask("fill", 50)
    assert store.get("held", 0) == b"mine now"
    assert inside.verify(store) == []
    other.kill()


def test_a_killed_popper_takes_nothing_from_the_other(store: ShmStore, name: str, team: Team) -> None:
    first, second = Member(team, name), Member(team, name)
    for n, member in enumerate((first, second), 1):
        member.begin("queue_pop", "queue")
        inside.parked(store, "queue", n)
    first.kill()
    store.queue_push("queue", b"item")
    assert second.child.hear() == b"item"
    second.kill()
    assert inside.waits(store) == []
    assert inside.verify(store) == []
