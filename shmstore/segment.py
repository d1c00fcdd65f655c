"""The life of a segment: made or attached to by name, reaped when its users are dead, unlinked by the last one out.

What a name may be and whose is in `_names`; who holds a segment, and its end, in `_holds`; here are the steps of an
open. Every step of a segment's life (create, attach or reap, leave and unlink) is serialised by a lock file
(`_lifelock`), so that of two creators one attaches, and nobody attaches to what is just being unlinked. Nothing hot
takes it.

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
SegmentExistsError.)

Killed between any two steps, an opener leaves one of these rows for the next one, and its lock file free. A name is
there before its segment is made: what is unfinished is told by its size and its magic, which the core stores last.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from errno import EDQUOT, EFBIG, ENOSPC
from functools import partial
from typing import TYPE_CHECKING, Final

from shmstore import _names, errors
from shmstore._deadline import deadline_after
from shmstore._holds import (
    LEAVE_NS,
    TIDY_NS,
    Attachment,
    Hold,
    attached,
    enter,
    new_seg,
    release,
    share,
    stepping,
    take,
)
from shmstore._lifelock import SHM, LockFile, locked_step, out_of_files, step
from shmstore._names import check_name, label
from shmstore._native import ffi, lib

if TYPE_CHECKING:
    from shmstore._native import CData

__all__ = ["CAPACITY", "ENGINES", "LEAVE_NS", "Hold", "Plan", "anonymous", "attach", "check_name", "release", "share"]

ENGINES: Final = {"futex": lib.SST_FUTEX, "semaphore": lib.SST_SEMAPHORE}
CAPACITY: Final = 256 << 20
HASH_CAPACITY: Final = 64 << 20


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
            locks = _names.locks_to_open(name, plan.mode)
            if stepping(locked_step, sorted(locks), partial(_open, hold, name, plan, locks), deadline, wait_ns):
                return hold
    except BaseException as error:
        release(hold, deadline_after(TIDY_NS))
        if isinstance(error, OSError) and not isinstance(error, errors.StoreError):
            raise _said(error, name) from error
        raise


def anonymous(wait_ns: int) -> Hold:
    """Makes a segment without a name, for the threads and forked children of this process.

    Blocks at most `wait_ns` for steps of other threads; no other process has a say in it.
    """
    hold = Hold()
    try:
        stepping(step.run, partial(_make_anonymous, hold), deadline_after(wait_ns), wait_ns)
    except BaseException as error:
        release(hold, deadline_after(TIDY_NS))
        if isinstance(error, OSError) and not isinstance(error, errors.StoreError):
            raise _said(error, None) from error
        raise
    return hold


def _said(error: OSError, name: str | None) -> errors.StoreError:
    return out_of_files(error, label(name)) or errors.StoreError(f"{label(name)}: cannot be opened: {error}")


def _open(hold: Hold, name: str, plan: Plan, locks: set[LockFile]) -> bool:
    """One try under those lock files; False: the name changed hands, look again."""
    may_make = LockFile(os.geteuid()) in locks
    fd = _names.open_file(name)
    if fd is None:
        return may_make and _make(hold, name, plan)
    try:
        found = os.fstat(fd)
        _names.check_ours(name, found)
        if not _names.locks_of(found) <= locks:
            return False
        shared = attached.get((found.st_dev, found.st_ino))
        if shared is not None:
            _check_plan(name, plan, shared.info())
            take(hold, shared)
            return True
        why = _reap_reason(name, fd, found, plan)
        if why is None:
            fd, mapped = -1, fd
            return _join(hold, name, mapped, found)
    finally:
        if fd >= 0:
            os.close(fd)
    if plan.create is False:
        raise errors.SegmentNotFoundError(f"{label(name)}: only a stale segment is left of it: {why}")
    if not _names.unlink(name, found):
        raise errors.SegmentInvalidError(f"{label(name)}: {why}, and only uid {found.st_uid} may remove it")
    return may_make and _make(hold, name, plan)


# -- what is there ----------------------------------------------------------------------------------------------------


def _check_plan(name: str, plan: Plan, info: CData) -> None:
    if plan.create is True:
        how = "is in use" if info.peers_live else "was made with persist=True and is there still"
        raise errors.SegmentExistsError(f"{label(name)}: {how}, and create=True asks for a new one")
    if plan.engine is not None and plan.engine != info.engine:
        there = next((sync for sync, engine in ENGINES.items() if engine == info.engine), "another")
        raise errors.SegmentInvalidError(f"{label(name)}: was made with sync={there!r}; give that, or none")


def _reap_reason(name: str, fd: int, found: os.stat_result, plan: Plan) -> str | None:
    """Why what stands under the name is to be reaped, or None when it is to be attached to."""
    if found.st_size == 0:
        return "its creator died before it was finished"
    info = ffi.new("sst_info *")
    code = lib.sst_peek(fd, info)
    if code == lib.SST_EDEAD or (code == 0 and info.state == lib.SST_DEAD):
        return "its creator died before it was finished, or its last user while removing it"
    if code < 0:
        raise errors.from_code(code, "opening", label(name))
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
    out = new_seg()
    if lib.sst_inspect(fd, out) < 0:
        return False
    room = rank + 1  # ranks come ascending, each once
    ranks = ffi.new("sst_rank[]", room)
    return any(ranks[i].rank == rank for i in range(max(lib.sst_ranks(out[0], ranks, room), 0)))


def _join(hold: Hold, name: str, fd: int, found: os.stat_result) -> bool:
    made = hold.attachment = Attachment(name, found)
    code = lib.sst_attach(fd, _second_open(fd), made.out)
    if code < 0 and code != lib.SST_EDEAD:
        raise errors.from_code(code, "attaching", label(name))
    if code == lib.SST_EDEAD or not _names.stands(name, found):  # removed by hand, past the lock file
        hold.attachment = None
        return False
    enter(hold, made)
    return True


# -- what is made -----------------------------------------------------------------------------------------------------


def _make(hold: Hold, name: str, plan: Plan) -> bool:
    """Makes the segment, or says that it is not there; False: one was made meanwhile, past the lock file."""
    if plan.create is False:
        raise errors.SegmentNotFoundError(f"{label(name)}: no such segment, and create=False does not make one")
    try:
        fd, found = _names.make_file(name, plan.mode)
        hold.attachment = Attachment(name, found)
        _format(hold.attachment, fd, plan)
    except FileExistsError:
        return False
    except BaseException as error:
        _names.unmake(name)
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EFBIG):
            raise errors.StoreFullError(f"{label(name)}: cannot be made in {SHM}: {error}") from error
        raise
    enter(hold, hold.attachment)
    return True


def _make_anonymous(hold: Hold) -> None:
    fd = os.memfd_create("shmstore", os.MFD_CLOEXEC)
    made = hold.attachment = Attachment(None, None)
    _format(made, fd, Plan(capacity=HASH_CAPACITY))
    enter(hold, made)


def _format(made: Attachment, fd: int, plan: Plan) -> None:
    incarnation = int.from_bytes(os.urandom(8), "little") | 1
    engine = plan.engine if plan.engine is not None else lib.SST_FUTEX
    code = lib.sst_create(
        fd, _second_open(fd), plan.capacity, engine, plan.persist, plan.world_size, incarnation, made.out
    )
    if code == lib.SST_ENGINE:
        raise ValueError(f"{label(made.name)}: this sync= is not built into this library")
    if code < 0:
        raise errors.from_code(code, "creating", label(made.name))


def _second_open(fd: int) -> int:
    """Another open file of what `fd` shows, for the OFD locks; through /proc, since the name may be gone."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        os.close(fd)
        raise errors.StoreError(f"a store needs /proc, and it is not mounted here: {error}") from error
    except BaseException:
        os.close(fd)
        raise
