"""One life-cycle step at a time: in this process by a mutex, on this host by a lock file.

The lock file is `/dev/shm/.shmstore.lock.<uid>`, one for all segments of an owner, and is never removed. One a segment
would either litter /dev/shm with a file for every name ever used, or have to be unlinked, and unlinking a lock file
breaks exclusion for those who wait on the old inode. Steps are rare and take well under a millisecond, so that sharing
costs nothing. `uid` is the owner of the segment, also when a member of its group attaches (mode 0o660).

The mutex comes first and is held over a fork, so that no child begins in the middle of a step.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock
from filelock import Timeout as LockTimeout

from shmstore import errors
from shmstore._deadline import FOREVER, seconds

SHM: Final = Path("/dev/shm")  # noqa: S108 -- where shm_open keeps its files on Linux, with glibc and musl


class StepMutex:
    """A mutex that knows its owner: a signal handler or finalizer that runs inside a step must not wait for itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def acquire(self) -> None:
        if self.mine():
            raise errors.StoreError("a signal handler may not open or close a segment in the middle of that")
        self._lock.acquire()
        self._owner = threading.get_ident()

    def try_acquire(self) -> bool:
        if not self._lock.acquire(blocking=False):
            return False
        self._owner = threading.get_ident()
        return True

    def release(self) -> None:
        self._owner = None
        self._lock.release()

    def mine(self) -> bool:
        return self._owner == threading.get_ident()


step: Final = StepMutex()
_forking: Final[list[bool]] = []


def _before_fork() -> None:
    inside = step.mine()  # a signal handler forks inside a step of its own thread: it cannot wait for itself
    if not inside:
        step.acquire()
    _forking.append(not inside)


def _after_fork() -> None:
    if _forking.pop():
        step.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _refuse_foreign_lock(fd: int, owner: int, path: Path) -> None:
    found = os.fstat(fd)
    if found.st_uid != owner or not stat.S_ISREG(found.st_mode):
        raise errors.SegmentInvalidError(f"{path} belongs to uid {found.st_uid}, not to uid {owner}: remove it")


@contextmanager
def life_lock(owner: int, wait_ns: int, shared: bool = False) -> Iterator[None]:  # noqa: FBT001, FBT002 -- internal
    """Holds the lock file of that owner's segments; `shared` opens it to the owner's group.

    Raises:
        StoreTimeoutError: another process held it all the time.
    """
    path = SHM / f".shmstore.lock.{owner}"

    def acquired(fd: int) -> None:
        _refuse_foreign_lock(fd, owner, path)
        if shared and owner == os.geteuid():
            os.fchmod(fd, 0o660)

    if owner != os.geteuid() and not path.exists():  # made by us, it would shut the owner out
        raise errors.SegmentInvalidError(f"{path} is missing: uid {owner} has to open the segment once more")
    lock = FileLock(
        path,
        mode=0o600,
        thread_local=False,
        poll_interval=0.002,
        fallback_to_soft=False,
        preserve_lock_file=True,
        on_acquired=acquired,
    )
    try:
        lock.acquire(timeout=-1 if wait_ns >= FOREVER else wait_ns / 1e9)
    except LockTimeout:
        raise errors.StoreTimeoutError(
            f"Wait timeout: the lock file {path} was held by another process (maybe stopped) for the whole timeout of "
            f"{seconds(wait_ns):.3f} s; see `fuser {path}`",
            elapsed=seconds(wait_ns),
            timeout=seconds(wait_ns),
        ) from None
    except PermissionError as error:
        raise errors.SegmentInvalidError(f"{path}: not ours to lock: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
