"""How processes end and go on: exec, os._exit, daemons, and the interpreter's shutdown."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import inside
import pytest
from harness import Team

from shmstore import ShmStore

pytestmark = pytest.mark.shows("process: ends: exec, os._exit, daemons, the interpreter's shutdown")

SHM = Path("/dev/shm")


def until_dead(store: ShmStore, pid: int) -> None:
    """Returns once that process reads as dead: an exec tells nobody when it has closed the descriptors."""
    end = time.monotonic() + 20
    while [peer.state for peer in store.peers() if peer.pid == pid] != ["dead"]:
        assert time.monotonic() < end, f"{pid} is not dead: {store.peers()}"
        time.sleep(0.001)


def hold_and_end(me: Any, name: str, what: str, how: str) -> None:
    """Ends without a word, though other threads are in verbs, while it holds a lock."""
    store = ShmStore(name, timeout=60)
    parked = threading.Thread(target=lambda: store.get("never"), daemon=True)
    parked.start()
    inside.parked(store, "never")
    inside.hold(store, what)
    me.say("holds it")
    me.hear()
    if how == "_exit":
        os._exit(0)
    os.execv("/bin/sleep", ["sleep", "1000"])


@pytest.mark.parametrize("engine", ["futex", "semaphore"])
@pytest.mark.parametrize("how", ["_exit", "exec"])
@pytest.mark.parametrize("what", ["stripe", "heap", "waiter"])
def test_who_ends_without_a_word_holds_nothing(name: str, team: Team, engine: str, how: str, what: str) -> None:
    with ShmStore(name, sync=engine, timeout=20) as store:
        store.set("held", b"before")
        child = team.start(hold_and_end, name, what, how)
        assert child.hear() == "holds it"
        child.say("end")
        store.append("held", b" and after")
        store.set("large", b"x" * 100_000)
        assert store.get("held", 0) == b"before and after"
        until_dead(store, child.pid)
        assert inside.waits(store) == []
        assert inside.verify(store) == []
        if how == "exec":  # the process lives, the peer does not
            assert name not in Path(f"/proc/{child.pid}/maps").read_text()
            child.kill()


def test_a_forked_child_that_execs_takes_nothing_along(name: str, team: Team) -> None:
    """Its parent goes on, killed or not: neither the parent's life nor its own hangs on the program it became."""

    def child(me: Any) -> None:
        store.set("child", b"was here")
        me.say("about to")
        os.execv("/bin/sleep", ["sleep", "1000"])

    with ShmStore(name, timeout=20) as store:
        forked = team.start(child, how="fork")
        assert forked.hear() == "about to"
        until_dead(store, forked.pid)
        links = [os.readlink(f"/proc/{forked.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{forked.pid}/fd")]
        assert not any(name in link for link in links)
        assert store.add("n", 1) == 1
        assert inside.verify(store) == []
        forked.kill()


DAEMON = """
import os, sys
from shmstore import ShmStore
store = ShmStore(sys.argv[1], timeout=60)
store.set("parent", b"was here")
if os.fork():
    sys.exit(0)
os.setsid()
if os.fork():
    os._exit(0)
store.set("daemon", str(os.getpid()))
store.get("go")
for _ in range(100):
    store.add("n", 1)
store.set("done", b"")
store.close()
"""


@pytest.mark.parametrize("engine", ["futex", "semaphore"])
def test_a_daemon_goes_on_with_its_parents_handle(name: str, engine: str) -> None:
    """Forked twice, in a session of its own, its parents gone in good order."""
    with ShmStore(name, sync=engine, timeout=20) as store:
        subprocess.run([sys.executable, "-c", DAEMON, name], check=True, timeout=60)
        pid = int(store.get("daemon"))
        daemon = os.pidfd_open(pid)
        try:
            assert [peer.state for peer in store.peers() if peer.pid == pid] == ["live"]
            assert "dead" not in [peer.state for peer in store.peers()]
            inside.parked(store, "go")
            store.set("go", b"")
            store.wait(["done"])
            assert store.get("n", 0) == b"100"
            assert select.select([daemon], [], [], 20)[0], "it did not end"
        finally:
            os.close(daemon)
        assert "dead" not in [peer.state for peer in store.peers()]
        assert inside.verify(store) == []


SHUTDOWN = """
import atexit, sys, threading
def after():  # registered before the store is imported, so that it runs when its handles are closed
    try:
        store.set("after", b"")
    except StoreClosedError:
        print("closed")
atexit.register(after)
from shmstore import ShmStore, StoreClosedError
sys.path.insert(0, sys.argv[3])
import inside
store = ShmStore(sys.argv[1], sync=sys.argv[2], timeout=60, rank=0)
def before():
    store.set("before", b"")
    print("open")
atexit.register(before)
verbs = [lambda: store.get("never"), lambda: store.queue_pop("never"), lambda: store.barrier("never at all", 3)]
for verb in verbs:
    threading.Thread(target=verb, daemon=True).start()
inside.parked(store, "never", 3)
"""


@pytest.mark.parametrize("engine", ["futex", "semaphore"])
def test_shutdown_with_waits_in_daemon_threads(name: str, engine: str) -> None:
    """Exit handlers that run before the store's own find it open, those after it closed; nothing waits on."""
    with ShmStore(name, sync=engine, timeout=20) as store:
        command = [sys.executable, "-c", SHUTDOWN, name, engine, str(Path(__file__).parent.parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["open", "closed"], done.stdout + done.stderr
        assert store.check(["before"]) is True
        assert store.check(["after"]) is False
        assert [peer.state for peer in store.peers() if peer.rank == 0] == ["left"]
        assert inside.waits(store) == []
        assert inside.verify(store) == []
    assert not (SHM / f"shmstore.{name}").exists()
