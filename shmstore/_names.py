"""The rules of a name: which names there are, where the file of one lies, whose it may be, and how it is removed.

A segment's name is the POSIX shared memory `/shmstore.<name>`, which on Linux is the file `/dev/shm/shmstore.<name>`.
Names are said by people, and /dev/shm is everybody's: under a name may stand nothing, a segment, or any other file,
today's or tomorrow's. So each step looks at what is open, by fstat, and acts on a name only while it still shows the
file that was looked at.

    under the name                          who may open it                             permissions
    no regular file, or a symbolic link     nobody: SegmentInvalidError                 left as they are
    a file of another user                  nobody: SegmentInvalidError                 left as they are
    a file of ours                          we                                          0600, whatever the umask
    a file shared with its group            its owner, and the members of the group     0660, whatever the umask

Nothing here looks into a file, and nothing locks: which lock files a step on a file takes is said by `locks_of`, since
it follows from whose the file is.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import posix_ipc

from shmstore import errors
from shmstore._lifelock import SHM, LockFile, out_of_files

NAME_MAX: Final = 240
"""Bytes of a segment's name: with `shmstore.` before it, it must be a file name."""


def check_name(name: str) -> None:
    """TypeError or ValueError unless `name` can name a segment."""
    if not isinstance(name, str):
        raise TypeError(f"a segment's name must be str, not {type(name).__name__}")
    if not name or "/" in name or "\0" in name:
        raise ValueError(f"a segment's name must not be empty and hold no slash and no NUL, got {name!r}")
    if len(name.encode()) > NAME_MAX:
        raise ValueError(f"a segment's name has at most {NAME_MAX} bytes, {name[:40]!r}… has {len(name.encode())}")


def listed() -> list[str]:
    """The names that files in /dev/shm have, whatever they are and whosever."""
    begin = "shmstore."
    return sorted(path.name.removeprefix(begin) for path in SHM.glob(f"{begin}*"))


def label(name: str | None) -> str:
    """A segment in an error's text; None is one without a name."""
    return "HashStore" if name is None else f"ShmStore({name!r})"


def _memory(name: str) -> str:
    """As shm_open is told it."""
    return f"/shmstore.{name}"


def _path(name: str) -> Path:
    """As stat is told it."""
    return SHM / f"shmstore.{name}"


# -- whose it may be --------------------------------------------------------------------------------------------------


def _shared(found: os.stat_result) -> bool:
    return found.st_mode & 0o060 == 0o060


def check_ours(name: str, found: os.stat_result) -> None:
    """SegmentInvalidError unless what was found may be this process's segment."""
    if not stat.S_ISREG(found.st_mode):
        raise errors.SegmentInvalidError(f"{label(name)}: not a segment of shmstore: not a regular file")
    if found.st_uid == os.geteuid():
        return
    if _shared(found) and found.st_gid in {os.getegid(), *os.getgroups()}:
        return
    raise errors.SegmentInvalidError(
        f"{label(name)}: foreign owner: it belongs to uid {found.st_uid} and is not shared with a group of ours"
    )


def locks_of(found: os.stat_result) -> set[LockFile]:
    """What a step on that file takes: its owner both files of a shared one, a member of its group the group's."""
    shared = {LockFile(found.st_uid, found.st_gid)} if _shared(found) else set()
    return shared if shared and found.st_uid != os.geteuid() else {LockFile(found.st_uid), *shared}


def locks_to_open(name: str, mode: int) -> set[LockFile]:
    """Those of what is there, and of what may be made in its place with that mode.

    Raises:
        SegmentInvalidError: what is there is not ours; found out before the lock file of another owner is touched.
    """
    owner = os.geteuid()
    ours = {LockFile(owner), LockFile(owner, os.getegid())} if mode & 0o060 else {LockFile(owner)}
    try:
        found = _path(name).lstat()
    except FileNotFoundError:
        return ours
    check_ours(name, found)
    return locks_of(found) | ours if found.st_uid == owner else locks_of(found)


# -- the file ---------------------------------------------------------------------------------------------------------


def open_file(name: str) -> int | None:
    """A descriptor of what stands under the name; None where nothing does. SegmentInvalidError, StoreError."""
    try:
        memory = posix_ipc.SharedMemory(_memory(name), flags=0, mode=0o600, size=0, read_only=False)
    except posix_ipc.ExistentialError:
        return None
    except posix_ipc.PermissionsError:
        raise errors.SegmentInvalidError(f"{label(name)}: belongs to another user") from None
    except ValueError as error:  # posix_ipc makes EINVAL one
        raise errors.SegmentInvalidError(f"{label(name)}: cannot be opened: {error}") from error
    except OSError as error:
        full = out_of_files(error, label(name))
        raise full or errors.SegmentInvalidError(f"{label(name)}: cannot be opened: {error}") from error
    fd: int = memory.fd
    os.set_inheritable(fd, False)
    return fd


def make_file(name: str, mode: int) -> tuple[int, os.stat_result]:
    """A descriptor of a new, empty file with exactly that mode, and its stat.

    Raises:
        FileExistsError: something stands under the name. OSError.
    """
    try:
        memory = posix_ipc.SharedMemory(_memory(name), flags=posix_ipc.O_CREX, mode=mode, size=0)
    except posix_ipc.ExistentialError:
        raise FileExistsError from None
    fd: int = memory.fd
    try:
        os.set_inheritable(fd, False)
        if os.fstat(fd).st_gid != os.getegid():  # the directory's choice; the lock file is our group's
            os.fchown(fd, -1, os.getegid())
        os.fchmod(fd, mode)  # whatever the umask is
        return fd, os.fstat(fd)
    except BaseException:
        os.close(fd)
        raise


def stands(name: str, found: os.stat_result) -> bool:
    """True while the name shows that file: it was not removed by hand, and maybe made anew by others."""
    try:
        now = _path(name).lstat()
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino)


def unlink(name: str, found: os.stat_result) -> bool:
    """Removes the name if it still shows that file; False where /dev/shm's sticky bit forbids it."""
    if not stands(name, found):
        return True
    try:
        posix_ipc.unlink_shared_memory(_memory(name))
    except posix_ipc.ExistentialError:
        return True
    except (posix_ipc.PermissionsError, PermissionError):
        return False
    return True


def unmake(name: str) -> None:
    """Removes what is under a name that was free when this step began."""
    try:
        posix_ipc.unlink_shared_memory(_memory(name))
    except (posix_ipc.Error, OSError):
        pass
