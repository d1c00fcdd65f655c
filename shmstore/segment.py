"""The life of a segment: made or attached to by name, reaped when its users are dead, unlinked by the last one out.

A segment is the POSIX shared memory `/shmstore.<name>`. Every step of its life (create, attach or reap, leave and
unlink) is serialised by a lock file (`_lifelock`), so that of two creators one attaches, and nobody attaches to what is
just being unlinked. Nothing hot takes it.

    on opening a name that exists, under the lock file         then
    owned by another user (and not shared with our group)      SegmentInvalidError
    this process is attached to it already                     share that attachment
    empty, or magic still 0: its creator died                  reap
    dead: its last user died between marking and unlinking     reap
    nobody alive, not persist, and a death among them, or      reap ("stale")
      all its world has registered once
    other magic, layout, engine, or truncated                  SegmentInvalidError; it is not touched
    else                                                       attach

A process attaches once, however many handles it has: OFD locks belong to the open file, so that two attachments would
take two slots, and each would see the other as another process. Attachments are counted in a table of the process. A
forked child inherits table and counts; the core gives it a peer slot of its own at its first call.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import posix_ipc

from shmstore import errors
from shmstore._lifelock import SHM, life_lock, step
from shmstore._native import ffi, lib

if TYPE_CHECKING:
    from shmstore._native import CData

NAME_MAX: Final = 240
"""Bytes of a segment's name: with `shmstore.` before it, it must be a file name."""

ENGINES: Final = {"futex": lib.SST_FUTEX, "semaphore": lib.SST_SEMAPHORE}
CAPACITY: Final = 256 << 20
HASH_CAPACITY: Final = 64 << 20
_LEAVE_NS: Final = 10_000_000_000
"""How long close waits for the lock file. Without it the segment stays, and the next opener of the name reaps it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a name is to be opened; the checked arguments of ShmStore.

    Attributes:
        create: None attach or create, True must be new, False must exist.
        engine: SST_FUTEX or SST_SEMAPHORE; None takes what is there, and makes futex.
        capacity: bytes. persist, world_size, mode: of a segment that is made.
    """

    create: bool | None = None
    persist: bool = False
    capacity: int = CAPACITY
    mode: int = 0o600
    engine: int | None = None
    world_size: int = 0


class Attachment:
    """A segment this process is attached to, shared by its handles.

    Attributes:
        seg: the core's `sst_seg *`, freed when the last reference goes, so that no thread can be inside a call then.
        name: the segment's name, None for an anonymous one.
        handles: how many handles of this process use it. guard: the step mutex.
    """

    __slots__ = ("handles", "inode", "name", "owner", "seg")

    def __init__(self, seg: CData, name: str | None, found: os.stat_result | None) -> None:
        self.seg = seg
        self.name = name
        self.handles = 1
        self.inode = (found.st_dev, found.st_ino) if found is not None else None
        self.owner = found.st_uid if found is not None else os.geteuid()

    def info(self) -> CData:
        """The segment's header and peer counts, as an `sst_info *`."""
        info = ffi.new("sst_info *")
        code = lib.sst_stat(self.seg, info)
        if code < 0:
            raise errors.from_code(code, "stat", _label(self.name))
        return info


_attached: Final[dict[tuple[int, int], Attachment]] = {}
"""By (st_dev, st_ino): a mapped file's inode is not given out again. guard: the step mutex."""
_dropped: Final[deque[Attachment]] = deque()
"""Attachments of handles that were collected, to be left by whoever next holds the step mutex."""


@contextmanager
def _stepping() -> Iterator[None]:
    step.acquire()
    try:
        yield
    finally:
        step.release()
        _leave_dropped()


def _leave_dropped() -> None:
    """Leaves what collected handles left over; if a step is under way, whoever takes it does so at its end."""
    while _dropped and step.try_acquire():
        try:
            while _dropped:
                _drop(_dropped.popleft())
        finally:
            step.release()


# -- opening ----------------------------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """TypeError or ValueError unless `name` can name a segment."""
    if not isinstance(name, str):
        raise TypeError(f"a segment's name must be str, not {type(name).__name__}")
    if not name or "/" in name or "\0" in name:
        raise ValueError(f"a segment's name must not be empty and hold no slash and no NUL, got {name!r}")
    if len(name.encode()) > NAME_MAX:
        raise ValueError(f"a segment's name has at most {NAME_MAX} bytes, {name[:40]!r}… has {len(name.encode())}")


def attach(name: str, plan: Plan, wait_ns: int) -> Attachment:
    """Attaches to the segment of that name, or makes it, as the plan says; one more handle of a shared attachment.

    Blocks at most `wait_ns` for the lock file.

    Raises:
        SegmentNotFoundError, SegmentExistsError, SegmentInvalidError, StoreFullError, StoreTimeoutError.
    """
    path = SHM / f"shmstore.{name}"
    while True:
        try:
            found = path.lstat()
        except FileNotFoundError:
            owner = os.geteuid()
        else:
            _check_ours(name, found)  # before the lock file of another owner is touched
            owner = found.st_uid
        with _stepping(), life_lock(owner, wait_ns, bool(plan.mode & 0o060)):
            made = _open_step(name, path, plan, owner)
        if made is not None:
            return made


def _open_step(name: str, path: Path, plan: Plan, owner: int) -> Attachment | None:
    """One try under the lock file; None: the name changed hands, look again."""
    fd = _open_existing(name)
    if fd is None:
        return _absent(name, plan) if owner == os.geteuid() else None
    try:
        found = os.fstat(fd)
        _check_ours(name, found)
        if found.st_uid != owner:
            return None
        shared = _attached.get((found.st_dev, found.st_ino))
        if shared is not None:
            _check_plan(name, plan, shared.info())
            shared.handles += 1
            return shared
        why = _reap_reason(name, fd, found, plan)
        if why is None:
            fd, mapped = -1, fd
            return _join(name, path, mapped, found)
    finally:
        if fd >= 0:
            os.close(fd)
    if plan.create is False:
        raise errors.SegmentNotFoundError(f"{_label(name)}: only a stale segment is left of it: {why}")
    if not _unlink(name, found):
        raise errors.SegmentInvalidError(f"{_label(name)}: {why}, and only uid {owner} may remove it")
    return _absent(name, plan) if owner == os.geteuid() else None


def _open_existing(name: str) -> int | None:
    try:
        memory = posix_ipc.SharedMemory(f"/shmstore.{name}", flags=0, mode=0o600, size=0, read_only=False)
    except posix_ipc.ExistentialError:
        return None
    except posix_ipc.PermissionsError:
        raise errors.SegmentInvalidError(f"{_label(name)}: belongs to another user") from None
    except (OSError, ValueError) as error:  # posix_ipc makes EINVAL a ValueError
        raise errors.SegmentInvalidError(f"{_label(name)}: cannot be opened: {error}") from error
    fd: int = memory.fd
    os.set_inheritable(fd, False)
    return fd


def _check_ours(name: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise errors.SegmentInvalidError(f"{_label(name)}: not a segment of shmstore: not a regular file")
    if found.st_uid == os.geteuid():
        return
    if found.st_mode & 0o060 == 0o060 and found.st_gid in {os.getegid(), *os.getgroups()}:
        return
    raise errors.SegmentInvalidError(
        f"{_label(name)}: foreign owner: it belongs to uid {found.st_uid} and is not shared with a group of ours"
    )


def _check_plan(name: str, plan: Plan, info: CData) -> None:
    if plan.create is True:
        raise errors.SegmentExistsError(f"{_label(name)}: is in use, and create=True asks for a new one")
    if plan.engine is not None and plan.engine != info.engine:
        there = next((sync for sync, engine in ENGINES.items() if engine == info.engine), "another")
        raise errors.SegmentInvalidError(f"{_label(name)}: was made with sync={there!r}; give that, or none")


def _reap_reason(name: str, fd: int, found: os.stat_result, plan: Plan) -> str | None:
    """Why what stands under the name is to be reaped, or None when it is to be attached to."""
    if found.st_size == 0 or os.pread(fd, 8, 0) == bytes(8):
        return "its creator died before it was finished"
    info = ffi.new("sst_info *")
    code = lib.sst_peek(fd, info)
    if code == lib.SST_EDEAD or (code == 0 and info.state == lib.SST_DEAD):
        return "its last user died while removing it"
    if code < 0:
        raise errors.from_code(code, "opening", _label(name))
    if finished(info):
        return f"nobody uses it, {info.peers_dead} of its processes died" if info.peers_dead else "nobody uses it"
    _check_plan(name, plan, info)
    return None


def finished(info: CData) -> bool:
    """True when nobody alive uses the segment, and nobody is meant to come.

    Args:
        info: `sst_info *`, from a descriptor that holds no slot.
    """
    if info.peers_live or info.persist:
        return False
    return bool(info.peers_dead or info.ranks_seen >= info.world_size)


def _join(name: str, path: Path, fd: int, found: os.stat_result) -> Attachment | None:
    out = ffi.new("sst_seg **")
    code = lib.sst_attach(fd, _second_open(fd), out)
    if code == lib.SST_EDEAD:
        return None
    if code < 0:
        raise errors.from_code(code, "attaching", _label(name))
    seg = ffi.gc(out[0], lib.sst_free)
    if not _stands(path, found):  # removed by hand meanwhile, past the lock file
        lib.sst_leave(seg)
        lib.sst_close(seg)
        return None
    return _enter(seg, name, found)


def _absent(name: str, plan: Plan) -> Attachment:
    """Makes the segment, or says that it is not there."""
    if plan.create is False:
        raise errors.SegmentNotFoundError(f"{_label(name)}: no such segment, and create=False does not make one")
    try:
        memory = posix_ipc.SharedMemory(f"/shmstore.{name}", flags=posix_ipc.O_CREX, mode=0o600, size=0)
    except OSError as error:
        raise errors.StoreFullError(f"{_label(name)}: cannot be made in {SHM}: {error.strerror}") from error
    fd: int = memory.fd
    os.set_inheritable(fd, False)
    found = os.fstat(fd)
    try:
        os.fchmod(fd, plan.mode)
        seg = _format(fd, plan, _label(name))
    except BaseException:
        _unlink(name, found)
        raise
    return _enter(seg, name, found)


def _format(fd: int, plan: Plan, label: str) -> CData:
    out = ffi.new("sst_seg **")
    incarnation = int.from_bytes(os.urandom(8), "little") | 1
    engine = plan.engine if plan.engine is not None else lib.SST_FUTEX
    code = lib.sst_create(fd, _second_open(fd), plan.capacity, engine, plan.persist, plan.world_size, incarnation, out)
    if code == lib.SST_ENGINE:
        raise ValueError(f"{label}: this sync= is not built into this library")
    if code < 0:
        raise errors.from_code(code, "creating", label)
    return ffi.gc(out[0], lib.sst_free)


def _second_open(fd: int) -> int:
    """Another open file of what `fd` shows, for the OFD locks; through /proc, since the name may be gone."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except BaseException:
        os.close(fd)
        raise


def _enter(seg: CData, name: str | None, found: os.stat_result | None) -> Attachment:
    made = Attachment(seg, name, found)
    if made.inode is not None:
        _attached[made.inode] = made
    return made


def anonymous() -> Attachment:
    """Makes a segment without a name, for the threads and forked children of this process."""
    fd = os.memfd_create("shmstore", os.MFD_CLOEXEC)
    with _stepping():
        return _enter(_format(fd, Plan(capacity=HASH_CAPACITY), "HashStore"), None, None)


# -- closing ----------------------------------------------------------------------------------------------------------


def share(attachment: Attachment) -> None:
    """Counts one more handle."""
    with _stepping():
        attachment.handles += 1


def release(attachment: Attachment) -> None:
    """One handle less; the last one of the process leaves, and the last process unlinks."""
    with _stepping():
        _drop(attachment)


def release_later(attachment: Attachment) -> None:
    """The same for a handle that is being collected, perhaps in the middle of a step of this very thread."""
    _dropped.append(attachment)
    _leave_dropped()


def _drop(attachment: Attachment) -> None:
    """guard: the step mutex."""
    attachment.handles -= 1
    if attachment.handles:
        lib.sst_wake_self(attachment.seg)  # the closed handle's waits look up and find it closed
        return
    if attachment.inode is None or attachment.name is None:
        lib.sst_leave(attachment.seg)
    else:
        _attached.pop(attachment.inode, None)
        try:
            with life_lock(attachment.owner, _LEAVE_NS):
                _leave_named(attachment, attachment.name, attachment.inode)
        except (errors.StoreError, OSError):
            lib.sst_leave(attachment.seg)  # the next opener of the name finds nobody there, and reaps
    lib.sst_close(attachment.seg)


def _leave_named(attachment: Attachment, name: str, inode: tuple[int, int]) -> None:
    lib.sst_leave(attachment.seg)
    fd = _open_existing(name)
    if fd is None:
        return
    try:
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != inode:
            return  # removed by hand, and made anew by others
        info = ffi.new("sst_info *")
        if lib.sst_peek(fd, info) < 0 or info.peers_live or info.persist or info.ranks_seen < info.world_size:
            return
    finally:
        os.close(fd)
    lib.sst_mark_dead(attachment.seg)
    _unlink(name, found)


def _unlink(name: str, found: os.stat_result) -> bool:
    """Unlinks the name if it still shows that file; False where /dev/shm's sticky bit forbids it."""
    if not _stands(SHM / f"shmstore.{name}", found):
        return True
    try:
        posix_ipc.unlink_shared_memory(f"/shmstore.{name}")
    except posix_ipc.ExistentialError:
        return True
    except (posix_ipc.PermissionsError, PermissionError):
        return False
    return True


def _stands(path: Path, found: os.stat_result) -> bool:
    try:
        now = path.lstat()
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino)


def _label(name: str | None) -> str:
    return "HashStore" if name is None else f"ShmStore({name!r})"
