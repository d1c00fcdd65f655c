"""One life-cycle step at a time: in this process by a mutex, on this host by lock files.

    lock file                            who takes it                                              mode
    /dev/shm/.shmstore.lock.UID          UID, for each step on a segment of its own                0600
    /dev/shm/.shmstore.lock.UID.GID      UID and the members of GID, for a segment shared with it  0660

One file serves all segments of an owner, and is never removed. One a segment would either litter /dev/shm with a file
for every name ever used, or have to be unlinked, and unlinking a lock file breaks exclusion for those who wait on the
old inode. Steps are rare and take well under a millisecond, so that sharing costs nothing. An owner takes its own file
also for what is shared, so that two openers of one name that disagree on its mode exclude each other.

The mutex is held over a fork, so that no child begins in the middle of a step. While the lock file is another's nothing
is held: a waiter tries, lets go of all, sleeps, and tries again; so a fork, or a store that needs no lock file, waits
for work only and never for another process.

Signal handlers run between any two bytecodes of the main thread, and may raise there. So whatever a step holds is owned
from its first moment by something that gives it back: the mutex by a `finally` that begins before it is taken and whose
first call releases it, an open lock file by its FileIO. A FileLock object has states in between, which a Ctrl-C there
leaves behind (its fork bookkeeping for good); `lock_descriptor` is the same lock without them.

/dev/shm is everybody's, and its sticky bit lets nobody remove what is another's. So under the name of a lock file may
stand whatever another user put there: it is opened without following a link and without waiting for a FIFO's other end,
looked at by fstat, and refused with who has to remove it.

What a handler may do in the middle of a step of its own thread: everything but open (`StoreError`); what it closes is
left at the end of the step.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EISDIR, ELOOP, EMFILE, ENFILE, ENXIO
from functools import partial
from io import FileIO
from pathlib import Path
from threading import TIMEOUT_MAX, RLock
from time import monotonic_ns, sleep
from typing import Final, TypeVar

from filelock import lock_descriptor, unlock_descriptor

from shmstore import errors
from shmstore._deadline import FOREVER, seconds

SHM: Final = Path("/dev/shm")  # noqa: S108 -- where shm_open keeps its files on Linux, with glibc and musl
FIRST_POLL_S: Final = 0.0001
POLL_S: Final = 0.002
"""How long who finds a lock file held looks away: at first for less than a step takes: a job's ranks come at once."""

T = TypeVar("T")


def left_s(deadline: int) -> float:
    """Seconds until a deadline, none when it has passed; what a lock's acquire takes, at most its longest."""
    return TIMEOUT_MAX if deadline >= FOREVER else min(max(deadline - monotonic_ns(), 0) / 1e9, TIMEOUT_MAX)


class StepMutex:
    """A mutex that knows its owner: a signal handler or finalizer that runs inside a step must not wait for itself.

    An RLock, since its owner and its count change in one C call: no handler sees or leaves it in between.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        # A handler that forks inside a step of its own thread counts one more, and does not wait for itself. The child
        # has its parent's thread identity, so that it owns what the forking thread owned.
        os.register_at_fork(
            before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._lock.release
        )

    def mine(self) -> bool:
        owned: bool = self._lock._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001 -- what Condition asks too
        return owned

    def run(self, work: Callable[[], T], deadline: int, wait_ns: int) -> T:
        """work() as one step.

        Raises:
            StoreError: a step of this thread is under way. StoreTimeoutError: another thread's is, up to the deadline.
        """
        if self.mine():
            raise errors.StoreError("a signal handler may not open a store in the middle of an open or close")
        try:
            if not self._lock.acquire(timeout=left_s(deadline)):
                raise errors.StoreTimeoutError(
                    f"Wait timeout: another thread was opening or closing a store, or forking, for the whole timeout "
                    f"of {seconds(wait_ns):.3f} s",
                    elapsed=seconds(wait_ns),
                    timeout=seconds(wait_ns),
                )
            return work()
        finally:
            try:
                self._lock.release()  # the first call here: nothing runs between it and an exception
            except RuntimeError:  # it was never got
                pass


step: Final = StepMutex()


class BusyError(Exception):
    """The lock file is another process's, or was replaced while it was opened: let go of everything and try again."""


class _Opening(map):  # type: ignore[type-arg]
    """A name with the way to open it: given `opener=next`, FileIO asks it for the descriptor, and gets os.open's.

    All in C, so that no handler runs between the two; a function as the opener would have bytecodes of its own there.
    """

    path: str

    def __new__(cls, path: Path, flags: int) -> _Opening:  # noqa: PYI034 -- Self is younger than 3.10
        flags |= os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        self = super().__new__(cls, os.open, (path,), (flags,), (0o600,))
        self.path = str(path)
        return self

    def __fspath__(self) -> str:
        return self.path


KINDS: Final = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISREG, "a file"),
)


@dataclass(frozen=True, slots=True, order=True)
class LockFile:
    """The lock file of an owner's segments, or of those it shares with a group.

    Attributes:
        owner: the uid. group: the gid, -1 for the owner's own file.
    """

    owner: int
    group: int = -1

    @property
    def path(self) -> Path:
        return SHM / f".shmstore.lock.{self.owner}{f'.{self.group}' if self.group >= 0 else ''}"

    def open(self) -> FileIO:
        """The open file; made where its owner finds none.

        Raises:
            BusyError: it was made or replaced meanwhile. SegmentInvalidError: it is not ours to lock. OSError.
        """
        try:
            file = self._open(0)  # without O_CREAT: a sticky /dev/shm refuses that on another's file
        except FileNotFoundError:
            if self.owner != os.geteuid():  # made by us, it would shut the owner out
                raise errors.SegmentInvalidError(
                    f"{self.path} is missing: uid {self.owner} has to open the segment once more"
                ) from None
            try:
                file = self._open(os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                raise BusyError from None
        except OSError as error:
            if isinstance(error, PermissionError) or error.errno in (EISDIR, ELOOP, ENXIO):
                raise self._refused(error.strerror or "") from error
            raise
        try:
            self._check(file.fileno())
        except BaseException:
            file.close()
            raise
        return file

    def _open(self, flags: int) -> FileIO:
        return FileIO(_Opening(self.path, flags), "r+", opener=next)  # type: ignore[arg-type]  # next(it, ignored)

    def _refused(self, why: str) -> errors.SegmentInvalidError:
        """What to say of what stands there."""
        try:
            named = self.path.lstat()
        except FileNotFoundError:
            return errors.SegmentInvalidError(f"{self.path}: not ours to lock: {why}; it is gone by now: try again")
        kind = next((said for is_kind, said in KINDS if is_kind(named.st_mode)), "a device")
        if named.st_uid == os.geteuid():
            remedy = "remove it"
        elif named.st_uid == self.owner and stat.S_ISREG(named.st_mode):
            remedy = f"have uid {self.owner} open the segment once more"
        else:
            remedy = f"have uid {named.st_uid} or root remove it"
        return errors.SegmentInvalidError(
            f"{self.path}: not ours to lock: {kind} of uid {named.st_uid}, mode {stat.S_IMODE(named.st_mode):04o}, in "
            f"place of the lock file of uid {self.owner} ({why}): {remedy}"
        )

    def _check(self, fd: int) -> None:
        found = os.fstat(fd)
        try:
            named = self.path.lstat()
        except FileNotFoundError:
            raise BusyError from None
        if found.st_uid != self.owner or not stat.S_ISREG(found.st_mode) or stat.S_ISLNK(named.st_mode):
            raise self._refused("not a file of that user")
        if (found.st_dev, found.st_ino) != (named.st_dev, named.st_ino):
            raise BusyError
        if self.owner == os.geteuid():  # whatever the umask, and whoever died between making it and this
            if self.group >= 0 and found.st_gid != self.group:
                os.fchown(fd, -1, self.group)
            mode = 0o660 if self.group >= 0 else 0o600
            if stat.S_IMODE(found.st_mode) != mode:
                os.fchmod(fd, mode)


def _holding(files: Sequence[LockFile], work: Callable[[], T]) -> T:
    """work() with all those files locked; BusyError where one is another's."""
    if not files:
        return work()
    with files[0].open() as file:  # closing it unlocks it, but where a child of subprocess has a copy until its exec
        try:
            if not lock_descriptor(file.fileno(), blocking=False):
                raise BusyError
            return _holding(files[1:], work)
        finally:
            unlock_descriptor(file.fileno())


def locked_step(files: Sequence[LockFile], work: Callable[[], T], deadline: int, wait_ns: int) -> T:
    """work() as one step of this process and of all who use those lock files; tried at least once.

    Raises:
        StoreTimeoutError: another process held one of them, or another thread was in a step, up to the deadline.
        SegmentInvalidError: they are not ours to lock.
    """
    pause = FIRST_POLL_S
    while True:
        try:
            return step.run(partial(_holding, files, work), deadline, wait_ns)
        except BusyError:
            pass
        except PermissionError as error:
            path = error.filename or files[-1].path
            raise errors.SegmentInvalidError(f"{path}: not ours to lock: {error.strerror}") from error
        if monotonic_ns() >= deadline:
            paths = " or ".join(str(file.path) for file in files)
            raise errors.StoreTimeoutError(
                f"Wait timeout: the lock file {paths} was held by another process (maybe stopped) for the whole "
                f"timeout of {seconds(wait_ns):.3f} s; see `fuser {files[0].path}`",
                elapsed=seconds(wait_ns),
                timeout=seconds(wait_ns),
            )
        sleep(min(pause, left_s(deadline)))
        pause = min(2 * pause, POLL_S)


def out_of_files(error: OSError, label: str) -> errors.StoreError | None:
    """What to say when a process or the system has no descriptor left; None for any other failure."""
    if error.errno not in (EMFILE, ENFILE) and (error.errno is not None or "files" not in str(error)):
        return None  # posix_ipc gives a text and no errno
    return errors.StoreError(f"{label}: no file descriptor left: {error}; close some, or raise the limit (`ulimit -n`)")
