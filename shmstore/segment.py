"""The life of a segment: made or attached to by name, reaped when its users are dead, unlinked by the last one out.

A segment is the POSIX shared memory `/shmstore.<name>`. Every step of its life (create, attach or reap, leave and
unlink) is serialised by a lock file (`_lifelock`), so that of two creators one attaches, and nobody attaches to what is
just being unlinked. Nothing hot takes it.

    on opening a name that exists, under the lock file         then
    owned by another user (and not shared with our group)      SegmentInvalidError
    this process is attached to it already                     share that attachment
    empty, or half made as only a killed creator leaves it     reap
    dead: its last user died between marking and unlinking     reap
    other magic, layout, engine, or truncated                  SegmentInvalidError; it is not touched
    somebody alive uses it, or persist                         attach
    nobody alive, and a death among those who used it          reap ("stale")
      and all its world has registered once                    reap
      and create=True                                          reap
      and our rank registered once, so that this is a new run  reap
      else: its world is not complete, and we are the late one attach

("reap": remove, and make anew, or with create=False say that nothing is there. "attach": with create=True,
SegmentExistsError.) Who leaves removes it when nobody alive is left, not persist, and all its world has registered.

A process attaches once, however many handles it has: OFD locks belong to the open file, so that two attachments would
take two slots, and each would see the other as another process. Attachments stand in a table of the process, each with
the holds of its handles. A hold is made before what it holds: whatever interrupts an open, something owns what is there
already, and lets go of it. To let go is to queue the hold, which one C call does, and to work off the queue, where each
step of the work may be done again: whatever interrupts a close, the next who closes, opens or exits finishes it. A
forked child inherits table and holds, and has a peer slot of its own from the fork on: it is a user of the segment
whether it calls or not, until it closes its handles or ends.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import posix_ipc

from shmstore import errors
from shmstore._deadline import FOREVER, deadline_after
from shmstore._lifelock import SHM, LockFile, locked_step, out_of_files, step
from shmstore._native import ffi, lib

if TYPE_CHECKING:
    from shmstore._native import CData

NAME_MAX: Final = 240
"""Bytes of a segment's name: with `shmstore.` before it, it must be a file name."""

ENGINES: Final = {"futex": lib.SST_FUTEX, "semaphore": lib.SST_SEMAPHORE}
CAPACITY: Final = 256 << 20
HASH_CAPACITY: Final = 64 << 20
LEAVE_NS: Final = 10_000_000_000
"""How long close waits for the lock file. Without it the segment stays, and the next opener of the name reaps it."""
_TIDY_NS: Final = 100_000_000
"""The same for one who does it in passing: for a collected handle, or one that a signal handler closed."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a name is to be opened; the checked arguments of ShmStore.

    Attributes:
        create: None attach or create, True must be new, False must exist.
        engine: SST_FUTEX or SST_SEMAPHORE; None takes what is there, and makes futex.
        capacity: bytes. persist, world_size, mode: of a segment that is made.
        rank: what the opener will register as; None for none.
    """

    create: bool | None = None
    persist: bool = False
    capacity: int = CAPACITY
    mode: int = 0o600
    engine: int | None = None
    world_size: int = 0
    rank: int | None = None


class Attachment:
    """A segment this process is attached to, shared by its handles; or, for a moment, the place for one.

    Attributes:
        out: where the core puts its `sst_seg *`: there before the segment is, so that no interrupt can lose it. Freed
            when the last reference goes, so that no thread can be inside a call then.
        name: the segment's name, None for an anonymous one. found: what stands under it.
        holds: ids of the holds on it. guard: the step mutex.
        left: its last hold is gone, and no thread of this process is in the segment. guard: the step mutex.
    """

    __slots__ = ("found", "holds", "left", "name", "out")

    def __init__(self, name: str | None, found: os.stat_result | None) -> None:
        self.out = ffi.gc(ffi.new("sst_seg **"), _free)
        self.name = name
        self.found = found
        self.holds: set[int] = set()
        self.left = False

    @property
    def seg(self) -> CData:
        """The core's `sst_seg *`, NULL before it is made."""
        seg: CData = self.out[0]
        return seg

    def info(self) -> CData:
        """The segment's header and peer counts, as an `sst_info *`."""
        info = ffi.new("sst_info *")
        code = lib.sst_stat(self.seg, info)
        if code < 0:
            raise errors.from_code(code, "stat", _label(self.name))
        return info


def _free(out: CData) -> None:
    lib.sst_free(out[0])


class Hold:
    """One handle's share of an attachment; let go of with `release`, or by being collected.

    Attributes:
        attachment: None until there is one. rank: what the handle registered, None for nothing; of the process `pid`.
        open: False once it has been let go of.
    """

    # No __init__, which could be interrupted: a hold is whole from the first.
    attachment: Attachment | None = None
    rank: int | None = None
    pid = 0
    open = True

    def __del__(self) -> None:
        if self.open and self.attachment is not None:
            _dropped.append(self)
            _work_off(deadline_after(_TIDY_NS), 0)


_attached: Final[dict[tuple[int, int], Attachment]] = {}
"""By (st_dev, st_ino): a mapped file's inode is not given out again. guard: the step mutex."""
_dropped: Final[deque[Hold]] = deque()
"""Holds to be let go of. Whoever ends a step works them off, so that those who may not wait only queue theirs."""


def _stepping(run: Callable[..., T], *args: object) -> T:
    try:
        return run(*args)
    finally:
        _work_off(deadline_after(_TIDY_NS))


# -- opening ----------------------------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """TypeError or ValueError unless `name` can name a segment."""
    if not isinstance(name, str):
        raise TypeError(f"a segment's name must be str, not {type(name).__name__}")
    if not name or "/" in name or "\0" in name:
        raise ValueError(f"a segment's name must not be empty and hold no slash and no NUL, got {name!r}")
    if len(name.encode()) > NAME_MAX:
        raise ValueError(f"a segment's name has at most {NAME_MAX} bytes, {name[:40]!r}… has {len(name.encode())}")


def attach(name: str, plan: Plan, wait_ns: int) -> Hold:
    """Attaches to the segment of that name, or makes it, as the plan says; one more hold on a shared attachment.

    Blocks at most `wait_ns` for the lock file.

    Raises:
        SegmentNotFoundError, SegmentExistsError, SegmentInvalidError, StoreFullError, StoreTimeoutError.
    """
    deadline = deadline_after(wait_ns)
    hold = Hold()
    try:
        while True:
            locks = _locks_to_open(name, plan)
            if _stepping(locked_step, sorted(locks), partial(_open_step, hold, name, plan, locks), deadline, wait_ns):
                return hold
    except BaseException as error:
        release(hold, deadline_after(_TIDY_NS))
        if isinstance(error, OSError) and not isinstance(error, errors.StoreError):
            raise _said(error, name) from error
        raise


def _locks_of(found: os.stat_result) -> set[LockFile]:
    """What a step on that segment takes: its owner both files of a shared one, a member of its group the group's."""
    shared = {LockFile(found.st_uid, found.st_gid)} if found.st_mode & 0o060 == 0o060 else set()
    return shared if shared and found.st_uid != os.geteuid() else {LockFile(found.st_uid), *shared}


def _locks_to_open(name: str, plan: Plan) -> set[LockFile]:
    """Those of what is there, and of what may be made in its place."""
    owner = os.geteuid()
    ours = {LockFile(owner), LockFile(owner, os.getegid())} if plan.mode & 0o060 else {LockFile(owner)}
    try:
        found = (SHM / f"shmstore.{name}").lstat()
    except FileNotFoundError:
        return ours
    _check_ours(name, found)  # before the lock file of another owner is touched
    return _locks_of(found) | ours if found.st_uid == owner else _locks_of(found)


def _open_step(hold: Hold, name: str, plan: Plan, locks: set[LockFile]) -> bool:
    """One try under those lock files; False: the name changed hands, look again."""
    may_make = LockFile(os.geteuid()) in locks
    fd = _open_existing(name)
    if fd is None:
        return may_make and _make(hold, name, plan)
    try:
        found = os.fstat(fd)
        _check_ours(name, found)
        if not _locks_of(found) <= locks:
            return False
        shared = _attached.get((found.st_dev, found.st_ino))
        if shared is not None:
            _check_plan(name, plan, shared.info())
            _take(hold, shared)
            return True
        why = _reap_reason(name, fd, found, plan)
        if why is None:
            fd, mapped = -1, fd
            return _join(hold, name, mapped, found)
    finally:
        if fd >= 0:
            os.close(fd)
    if plan.create is False:
        raise errors.SegmentNotFoundError(f"{_label(name)}: only a stale segment is left of it: {why}")
    if not _unlink(name, found):
        raise errors.SegmentInvalidError(f"{_label(name)}: {why}, and only uid {found.st_uid} may remove it")
    return may_make and _make(hold, name, plan)


def _take(hold: Hold, attachment: Attachment) -> None:
    hold.attachment = attachment
    attachment.holds.add(id(hold))


def _open_existing(name: str) -> int | None:
    try:
        memory = posix_ipc.SharedMemory(f"/shmstore.{name}", flags=0, mode=0o600, size=0, read_only=False)
    except posix_ipc.ExistentialError:
        return None
    except posix_ipc.PermissionsError:
        raise errors.SegmentInvalidError(f"{_label(name)}: belongs to another user") from None
    except ValueError as error:  # posix_ipc makes EINVAL one
        raise errors.SegmentInvalidError(f"{_label(name)}: cannot be opened: {error}") from error
    except OSError as error:
        full = out_of_files(error, _label(name))
        raise full or errors.SegmentInvalidError(f"{_label(name)}: cannot be opened: {error}") from error
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
        how = "is in use" if info.peers_live else "was made with persist=True and is there still"
        raise errors.SegmentExistsError(f"{_label(name)}: {how}, and create=True asks for a new one")
    if plan.engine is not None and plan.engine != info.engine:
        there = next((sync for sync, engine in ENGINES.items() if engine == info.engine), "another")
        raise errors.SegmentInvalidError(f"{_label(name)}: was made with sync={there!r}; give that, or none")


def _reap_reason(name: str, fd: int, found: os.stat_result, plan: Plan) -> str | None:
    """Why what stands under the name is to be reaped, or None when it is to be attached to."""
    if found.st_size == 0:
        return "its creator died before it was finished"
    info = ffi.new("sst_info *")
    code = lib.sst_peek(fd, info)
    if code == lib.SST_EDEAD or (code == 0 and info.state == lib.SST_DEAD):
        return "its creator died before it was finished, or its last user while removing it"
    if code < 0:
        raise errors.from_code(code, "opening", _label(name))
    if not (info.peers_live or info.persist):
        if info.peers_dead:
            return f"nobody uses it, {info.peers_dead} of its processes died"
        if info.ranks_seen >= info.world_size or plan.create is True:
            return "nobody uses it"
        if plan.rank is not None and _registered(fd, plan.rank):
            return f"nobody uses it, and rank {plan.rank}, which is back, was there and left: a new run"
    _check_plan(name, plan, info)
    return None


def _registered(fd: int, rank: int) -> bool:
    """True when that rank ever registered. None of them is alive."""
    out = ffi.gc(ffi.new("sst_seg **"), _free)
    if lib.sst_inspect(fd, out) < 0:
        return False
    room = rank + 1  # ranks come ascending, each once
    ranks = ffi.new("sst_rank[]", room)
    return any(ranks[i].rank == rank for i in range(max(lib.sst_ranks(out[0], ranks, room), 0)))


def _join(hold: Hold, name: str, fd: int, found: os.stat_result) -> bool:
    made = hold.attachment = Attachment(name, found)
    code = lib.sst_attach(fd, _second_open(fd), made.out)
    if code < 0 and code != lib.SST_EDEAD:
        raise errors.from_code(code, "attaching", _label(name))
    if code == lib.SST_EDEAD or not _stands(SHM / f"shmstore.{name}", found):  # removed by hand, past the lock file
        hold.attachment = None
        return False
    _enter(hold, made)
    return True


def _make(hold: Hold, name: str, plan: Plan) -> bool:
    """Makes the segment, or says that it is not there; False: one was made meanwhile, past the lock file."""
    if plan.create is False:
        raise errors.SegmentNotFoundError(f"{_label(name)}: no such segment, and create=False does not make one")
    try:
        fd, found = _empty_file(name, plan.mode)
        hold.attachment = Attachment(name, found)
        _format(hold.attachment, fd, plan)
    except posix_ipc.ExistentialError:
        return False
    except BaseException as error:
        _unmake(name)
        if isinstance(error, OSError) and not isinstance(error, errors.StoreError):
            raise (
                out_of_files(error, _label(name))
                or errors.StoreFullError(f"{_label(name)}: cannot be made in {SHM}: {error}")
            ) from error
        raise
    _enter(hold, hold.attachment)
    return True


def _empty_file(name: str, mode: int) -> tuple[int, os.stat_result]:
    memory = posix_ipc.SharedMemory(f"/shmstore.{name}", flags=posix_ipc.O_CREX, mode=mode, size=0)
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


def _unmake(name: str) -> None:
    """Removes what is under a name that was free when this step began."""
    with suppress(posix_ipc.Error, OSError):
        posix_ipc.unlink_shared_memory(f"/shmstore.{name}")


def _format(made: Attachment, fd: int, plan: Plan) -> None:
    label = _label(made.name)
    incarnation = int.from_bytes(os.urandom(8), "little") | 1
    engine = plan.engine if plan.engine is not None else lib.SST_FUTEX
    code = lib.sst_create(
        fd, _second_open(fd), plan.capacity, engine, plan.persist, plan.world_size, incarnation, made.out
    )
    if code == lib.SST_ENGINE:
        raise ValueError(f"{label}: this sync= is not built into this library")
    if code < 0:
        raise errors.from_code(code, "creating", label)


def _second_open(fd: int) -> int:
    """Another open file of what `fd` shows, for the OFD locks; through /proc, since the name may be gone."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except BaseException:
        os.close(fd)
        raise


def _enter(hold: Hold, made: Attachment) -> None:
    _take(hold, made)
    if made.found is not None:
        _attached[made.found.st_dev, made.found.st_ino] = made


def anonymous(wait_ns: int) -> Hold:
    """Makes a segment without a name, for the threads and forked children of this process.

    Blocks at most `wait_ns` for steps of other threads; no other process has a say in it.
    """
    hold = Hold()
    try:
        _stepping(step.run, partial(_make_anonymous, hold), deadline_after(wait_ns), wait_ns)
    except BaseException as error:
        release(hold, deadline_after(_TIDY_NS))
        if isinstance(error, OSError) and not isinstance(error, errors.StoreError):
            raise _said(error, None) from error
        raise
    return hold


def _make_anonymous(hold: Hold) -> None:
    fd = os.memfd_create("shmstore", os.MFD_CLOEXEC)
    made = hold.attachment = Attachment(None, None)
    _format(made, fd, Plan(capacity=HASH_CAPACITY))
    _enter(hold, made)


def _said(error: OSError, name: str | None) -> errors.StoreError:
    label = _label(name)
    return out_of_files(error, label) or errors.StoreError(f"{label}: cannot be opened: {error}")


# -- closing ----------------------------------------------------------------------------------------------------------


def share(attachment: Attachment, wait_ns: int) -> Hold:
    """One more hold on it; StoreClosedError when the last one is gone."""
    hold = Hold()
    try:
        _stepping(step.run, partial(_share, hold, attachment), deadline_after(wait_ns), wait_ns)
    except BaseException:
        release(hold, deadline_after(_TIDY_NS))
        raise
    return hold


def _share(hold: Hold, attachment: Attachment) -> None:
    if not attachment.holds:
        raise errors.StoreClosedError(f"{_label(attachment.name)} is closed")
    _take(hold, attachment)


def release(hold: Hold, deadline: int = 0) -> None:
    """Lets go of a hold: with the last one of the process it leaves, and the last process unlinks.

    Waits for the lock file up to the deadline, or 10 s. In a signal handler in the middle of a step of its own thread
    it is done at the end of that step. After an exception it is done as far as that goes without a long wait.
    """
    if not hold.open:
        return
    _dropped.append(hold)
    try:
        deadline = deadline or deadline_after(LEAVE_NS)
        _work_off(deadline, deadline)
    finally:
        _work_off(deadline_after(_TIDY_NS))


def _work_off(deadline: int, mutex_deadline: int | None = None) -> None:
    """Lets go of what is queued; what another thread's step is in the way of stays for the end of that step.

    The deadlines are for the lock file and for the step mutex; None is the same.
    """
    while _dropped and not step.mine():
        try:
            hold = _dropped[0]
        except IndexError:  # another thread's work
            return
        try:
            last = step.run(partial(_let_go, hold), deadline if mutex_deadline is None else mutex_deadline, 0)
        except errors.StoreTimeoutError:
            return
        if last is not None:
            _remove(last, deadline)
        hold.open = False
        with suppress(ValueError):
            _dropped.remove(hold)


def _let_go(hold: Hold) -> Attachment | None:
    """The attachment if that was its last hold, and it has left. guard: the step mutex."""
    attachment = hold.attachment
    if attachment is None or attachment.seg == ffi.NULL:
        return None
    if id(hold) in attachment.holds and hold.rank is not None and hold.pid == os.getpid():
        lib.sst_rank_leave(attachment.seg, hold.rank)
    attachment.holds.discard(id(hold))
    if attachment.holds:
        lib.sst_wake_self(attachment.seg)  # the closed handle's waits look up and find it closed
        return None
    found = attachment.found
    if found is not None and _attached.get((found.st_dev, found.st_ino)) is attachment:
        del _attached[found.st_dev, found.st_ino]
    attachment.left = _leave(attachment.seg)
    return attachment


def _remove(attachment: Attachment, deadline: int) -> None:
    """Unlinks an attachment's segment if nobody is left in it, and closes the attachment."""
    name, found = attachment.name, attachment.found
    try:
        if name is not None and found is not None and attachment.left:
            unlink = partial(_unlink_if_last, attachment, name, found)
            locked_step(sorted(_locks_of(found)), unlink, deadline, LEAVE_NS)
    except (errors.StoreError, OSError):
        pass  # the next opener of the name finds nobody there, and reaps
    step.run(partial(lib.sst_close, attachment.seg), FOREVER, FOREVER)  # in no finally: what is interrupted is redone


def _leave(seg: CData) -> bool:
    """True when no thread of this process is in the segment any more, and its peer slot is given back.

    Calls in flight in other threads end first, with SST_ECLOSED where they wait. Before the lock file is taken: nobody
    else is kept waiting for them.
    """
    while True:
        code = lib.sst_leave(seg)
        if code != lib.SST_EINTR:
            return code == lib.SST_OK


def _unlink_if_last(attachment: Attachment, name: str, found: os.stat_result) -> None:
    """guard: the lock file. This process has left: whoever is alive in there is another.

    It looks through its own mapping and by name, and so needs no descriptor: there may be none left.
    """
    if not _stands(SHM / f"shmstore.{name}", found):
        return  # removed by hand, and maybe made anew by others
    info = ffi.new("sst_info *")
    if lib.sst_stat(attachment.seg, info) < 0 or info.peers_live or info.persist or info.ranks_seen < info.world_size:
        return
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
