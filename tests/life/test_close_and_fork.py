"""Closing amid calls, and forking: who is a user of the segment, from when on, until when."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import inside
import pytest
from harness import Team

from shmstore import QueueEmptyError, ShmStore, StoreClosedError, StoreError, StoreFullError

pytestmark = pytest.mark.shows("life: closing amid calls, forking")

SHM = Path("/dev/shm")
BIG = b"b" * (6 << 20)


# -- closing amid calls -----------------------------------------------------------------------------------------------


def push_and_pop(store: ShmStore, inside_now: threading.Semaphore) -> None:
    """Until the store is closed."""
    sizes = (4 << 20, 6 << 20, 100, 5 << 20)
    turn = 0
    try:
        while True:
            turn += 1
            try:
                store.queue_push("q", BIG[: sizes[turn % 4]])
            except StoreFullError:
                pass
            inside_now.release()
            try:
                store.queue_pop("q", block=False)
            except QueueEmptyError:
                pass
    except StoreClosedError:
        pass


def open_and_close(me: Any, name: str, times: int) -> int:
    me.ready()
    for turn in range(times):
        store = ShmStore(name, timeout=60)
        calls = threading.Semaphore(0)
        threads = [threading.Thread(target=push_and_pop, args=(store, calls)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(1 + turn % 4):
            calls.acquire()
        store.close()
        for thread in threads:
            thread.join()
        with ShmStore(name, timeout=60) as drain:  # a close between push and pop leaves an item
            while drain.queue_len("q") > 4:
                try:
                    drain.queue_pop("q", block=False)
                except QueueEmptyError:
                    break
    return times


def test_closing_amid_calls_breaks_nothing(name: str, team: Team) -> None:
    with ShmStore(name, timeout=60, capacity=256 << 20) as store:
        assert team.run(2, open_and_close, name, 40) == [40, 40]
        assert inside.verify(store) == []
        assert {peer.state for peer in store.peers()} <= {"live", "left"}


def look_while_closing(me: Any, name: str, times: int) -> int:
    me.ready()
    for _ in range(times):
        store = ShmStore(name, timeout=60, rank=1)
        looks = threading.Semaphore(0)

        def look(store: ShmStore = store, looks: threading.Semaphore = looks) -> None:
            try:
                while True:
                    assert store.peers()
                    looks.release()
            except StoreError:
                pass

        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        looks.acquire()
        store.close()
        for thread in threads:
            thread.join()
    return times


def test_closing_amid_looks(name: str, team: Team) -> None:
    with ShmStore(name):
        assert team.run(1, look_while_closing, name, 150) == [150]


def hold_and_stop(me: Any, name: str) -> None:
    store = ShmStore(name, timeout=60)
    inside.hold(store, "stripe", b"held")
    me.say("holds it")
    signal.pause()


def test_close_waits_for_no_stopped_process(name: str, team: Team) -> None:
    looks = threading.Semaphore(0)

    class Watched(ShmStore):
        def _open(self) -> Any:  # at the begin of each slice
            looks.release()
            return super()._open()

    holder = team.start(hold_and_stop, name)
    assert holder.hear() == "holds it"
    holder.signal(signal.SIGSTOP)
    store = Watched(name, timeout=60)
    ended: list[type[BaseException]] = []

    def work() -> None:
        try:
            store.set("held", b"1")
        except BaseException as error:
            ended.append(type(error))

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(3):
        looks.acquire()
    store.close()
    thread.join(40)
    assert ended == [StoreClosedError]
    holder.kill()
    with ShmStore(name, timeout=60) as again:
        assert inside.verify(again) == []


EXIT_AMID_CALLS = """
import sys, threading
from shmstore import ShmStore
store = ShmStore(sys.argv[1], timeout=60)
calls = threading.Semaphore(0)
def work(i):
    while True:
        store.set(f"k{i % 2}", b"v" * (4 << 20))
        store.add("n", 1)
        calls.release()
for i in range(3):
    threading.Thread(target=work, args=(i,), daemon=True).start()
for _ in range(5):
    calls.acquire()
"""


def test_exit_amid_the_calls_of_daemon_threads(name: str) -> None:
    with ShmStore(name, timeout=60) as store:
        for _ in range(5):
            done = subprocess.run([sys.executable, "-c", EXIT_AMID_CALLS, name], stderr=subprocess.DEVNULL, timeout=60)
            assert done.returncode == 0
            assert inside.verify(store) == []
            assert {peer.state for peer in store.peers()} <= {"live", "left"}


# -- forks ------------------------------------------------------------------------------------------------------------


def test_a_child_registers_a_rank_before_anything_else(name: str, team: Team) -> None:
    with ShmStore(name) as store:

        def child(me: Any) -> None:
            with ShmStore(name, rank=3):
                me.say("registered")
                me.hear()

        first = team.start(child, how="fork")
        first.hear()
        assert [(peer.state, peer.pid) for peer in store.peers() if peer.rank == 3] == [("live", first.pid)]
        with pytest.raises(ValueError):
            ShmStore(name, rank=3)
        assert inside.verify(store) == []
        first.say("go")
        first.result()
        assert [peer.state for peer in store.peers() if peer.rank == 3] == ["left"]


def test_a_parent_that_closes_first_takes_nothing_from_its_child(name: str, path: Path, team: Team) -> None:
    store = ShmStore(name)
    store.set("a", b"1")

    def child(me: Any) -> bytes:
        me.hear()
        value = store.get("a", 0)
        store.set("child", b"here")
        me.say("called")
        me.hear()
        store.close()
        return value

    forked = team.start(child, how="fork")
    store.close()
    assert path.exists()
    forked.say("the parent has closed")
    forked.hear()
    with ShmStore(name, create=False) as other:
        assert other.get("child", 0) == b"here"
        assert inside.verify(other) == []
    forked.say("close")
    assert forked.result() == b"1"
    assert not path.exists(), "the last one out was the child"


def test_a_silent_child_is_no_death(name: str, path: Path, team: Team) -> None:
    with ShmStore(name, world_size=2, rank=0) as store:

        def child(me: Any) -> None:
            me.say("forked")
            me.hear()

        silent = team.start(child, how="fork")
        silent.hear()
        assert [p.pid for p in store.peers() if p.rank is None and p.state == "live"] == [silent.pid]
        silent.kill()
        subprocess.run(["/bin/true"], check=True, close_fds=False, preexec_fn=lambda: None)
        assert [p for p in store.peers() if p.rank is None] == []
    with ShmStore(name, world_size=2, rank=1) as late:  # no death: not stale
        assert [(p.rank, p.state) for p in late.peers()] == [(0, "left"), (1, "live")]
    assert not path.exists()


DAEMON = """
import multiprocessing, signal, sys
from shmstore import ShmStore
store = ShmStore(sys.argv[1])
child = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
child.start()
"""


def test_an_idle_daemonic_child_does_not_outlive_the_exit(name: str, path: Path) -> None:
    subprocess.run([sys.executable, "-c", DAEMON, name], check=True, timeout=60)
    assert not path.exists()
