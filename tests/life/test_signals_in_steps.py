"""Signals in the middle of opening and closing: whatever is interrupted, nothing stays held and nothing is lost.

A signal handler runs, and may raise, where the interpreter looks for signals (`places.LOOKS`). The sweeps raise
KeyboardInterrupt, or run a handler, at each of these places.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Team
from places import LOOKS, at_place

from shmstore import HashStore, ShmStore, StoreError, _holds
from shmstore._lifelock import LockFile, step

SHM = Path("/dev/shm")
by_opcodes = pytest.mark.skipif(sys.version_info < (3, 11), reason="opcodes of older interpreters look elsewhere")


# How many places the sweeps go on by: each one with SHMSTORE_LONG=1, else a sample that begins elsewhere each run.
STRIDE = 1 if os.environ.get("SHMSTORE_LONG") else 4


def interrupted_at(n: int, work: Callable[[], object], act: Callable[[], object]) -> bool:
    """Runs work() and act() at the n-th look for signals; False when work() ended before that."""
    return at_place(n, LOOKS, work, lambda _frame: act())


def ctrl_c() -> None:
    raise KeyboardInterrupt


def assert_free(name: str) -> None:
    """Nobody holds the mutex or the lock file, and a fork comes through."""
    got: list[bool] = []

    def other() -> None:
        got.append(step._lock.acquire(timeout=0))
        if got[0]:
            step._lock.release()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert got == [True], "the step mutex is held"
    with LockFile(os.geteuid()).path.open("rb") as file:
        end = time.monotonic() + 20
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # another process of this host in a step of its own, or a hold that never ends
                assert time.monotonic() < end, "the lock file is held"
                time.sleep(0.001)
    assert not _holds.attached
    assert not _holds.dropped
    assert not (SHM / f"shmstore.{name}").exists()


def where(n: int, caught: BaseException | None) -> str:
    frames = traceback.extract_tb(caught.__traceback__) if caught is not None else []
    return f"{n}: " + " > ".join(f"{frame.name}:{frame.lineno}" for frame in frames)


def every_interrupt(name: str, before: Callable[[], Any], work: Callable[[Any], object]) -> int:
    """Ctrl-C at each place of work(before()), which opens or closes; how many places there were."""
    n = os.getpid() % STRIDE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a FileIO that an interrupt drops says that it was not closed
        while True:
            made = before()
            kept: list[Any] = []
            try:
                again = interrupted_at(n, lambda made=made, kept=kept: kept.append(work(made)), ctrl_c)
                caught = None
            except KeyboardInterrupt as error:
                again, caught = True, error  # with its traceback: what only a collection frees is not free
            for store in (made, *kept):
                if store is not None:
                    store.close()  # again: what was interrupted is finished
            assert caught is None or not _holds.attached, where(n, caught)
            try:
                assert_free(name)
            except AssertionError as error:
                raise AssertionError(where(n, caught)) from error
            if not again:
                return n
            n += STRIDE


def child_opens(me: Any, name: str) -> int:
    return every_interrupt(name, lambda: None, lambda _: ShmStore(name))


def child_closes(me: Any, name: str) -> int:
    return every_interrupt(name, lambda: ShmStore(name, rank=0), lambda store: store.close())


def child_clones(me: Any, name: str) -> int:
    return every_interrupt(name, lambda: ShmStore(name), lambda store: store.clone())


@by_opcodes
@pytest.mark.parametrize("child", [child_opens, child_closes, child_clones], ids=lambda child: child.__name__)
def test_ctrl_c_anywhere_in_a_step_leaves_nothing_held(name: str, team: Team, child: Callable[..., int]) -> None:
    assert team.start(child, name, how="fork").result() > 50


def child_handler_closes(me: Any, name: str) -> int:
    """A handler closes another store wherever a step of its own thread is interrupted."""
    n = os.getpid() % STRIDE
    while True:
        other = ShmStore(f"{name}-other")
        again = interrupted_at(n, lambda: ShmStore(name).close(), other.close)
        other.close()
        assert_free(name)
        assert_free(f"{name}-other")
        if not again:
            return n
        n += STRIDE


@by_opcodes
def test_a_handler_may_close_anywhere_in_a_step(name: str, team: Team) -> None:
    assert team.start(child_handler_closes, name, how="fork").result() > 50


def test_a_handler_in_a_step_closes_at_its_end_and_may_not_open(name: str) -> None:
    other = ShmStore(f"{name}-other")

    def work() -> None:
        with pytest.raises(StoreError, match="signal handler"):
            ShmStore(f"{name}-third")
        other.close()
        other.close()
        assert (SHM / f"shmstore.{name}-other").exists()

    _holds.stepping(step.run, work, 0, 0)
    assert not (SHM / f"shmstore.{name}-other").exists()
    assert other._hold.open is False


def test_a_fork_in_a_handler_in_a_step(name: str) -> None:
    """The step is the child's too: it ends there as well, and does not wait for itself."""
    signal.alarm(60)
    pids = []
    step.run(lambda: pids.append(os.fork()), 0, 0)
    if pids[0] == 0:
        code = 1
        try:
            signal.alarm(20)
            ShmStore(name).close()
            with HashStore() as store:
                store.set("k", b"1")
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pids[0], 0)[1] == 0
    signal.alarm(0)
    ShmStore(name).close()


def test_an_interrupted_wait_for_the_lock_file_ends_at_once(name: str) -> None:
    """Ctrl-C while the lock file is another's: the open ends, and holds nothing."""
    lock = LockFile(os.geteuid()).open()
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def on_alarm(_sig: int, _frame: object) -> None:
            raise KeyboardInterrupt

        old = signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            with pytest.raises(KeyboardInterrupt):
                ShmStore(name, timeout=1000)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
    assert_free(name)
