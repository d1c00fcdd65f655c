"""Who in this process holds a segment, and what happens when nobody does any more: leave, and unlink as the last one.

A process attaches once, however many handles it has: OFD locks belong to the open file, so that two attachments would
take two slots, and each would see the other as another process. Attachments stand in a table of the process, each with
the holds of its handles. A hold is made before what it holds: whatever interrupts an open, something owns what is there
already, and lets go of it. To let go is to queue the hold, which one C call does, and to work off the queue, where each
step of the work may be done again: whatever interrupts a close, the next who closes, opens or exits finishes it. A
forked child inherits table and holds, and has a peer slot of its own from the fork on: it is a user of the segment
whether it calls or not, until it closes its handles or ends.

    the last hold of a process is let go of            then
    other processes are alive in the segment           it leaves; the name stays
    nobody is, but persist, or its world is not whole  it leaves; the name stays for who comes later
    nobody is                                          it leaves, marks the segment dead, and unlinks it

It leaves before it takes the lock file, so that nobody waits for its calls in flight, and looks for others under the
lock file, so that nobody attaches meanwhile. Killed between marking and unlinking it leaves a segment that every opener
reaps; without the lock file, which it waits for no longer than it is told to, one that nobody uses.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from shmstore import _names, errors
from shmstore._deadline import FOREVER, deadline_after
from shmstore._lifelock import locked_step, step
from shmstore._native import ffi, lib

if TYPE_CHECKING:
    from shmstore._native import CData

LEAVE_NS: Final = 10_000_000_000
"""How long close waits for the lock file. Without it the segment stays, and the next opener of the name reaps it."""
TIDY_NS: Final = 100_000_000
"""The same for one who does it in passing: for a collected handle, or one that a signal handler closed."""

T = TypeVar("T")


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
        self.out = new_seg()
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
            raise errors.from_code(code, "stat", _names.label(self.name))
        return info


def new_seg() -> CData:
    """A place for the core's `sst_seg *`, which it frees with itself."""
    return ffi.gc(ffi.new("sst_seg **"), _free)


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
            dropped.append(self)
            _work_off(deadline_after(TIDY_NS), 0)


attached: Final[dict[tuple[int, int], Attachment]] = {}
"""By (st_dev, st_ino): a mapped file's inode is not given out again. guard: the step mutex."""
dropped: Final[deque[Hold]] = deque()
"""Holds to be let go of. Whoever ends a step works them off, so that those who may not wait only queue theirs."""


# -- holding ----------------------------------------------------------------------------------------------------------


def stepping(run: Callable[..., T], *args: object) -> T:
    """run(*args), a step, and what was queued meanwhile."""
    try:
        return run(*args)
    finally:
        _work_off(deadline_after(TIDY_NS))


def take(hold: Hold, attachment: Attachment) -> None:
    """The hold is one of the attachment's. guard: the step mutex."""
    hold.attachment = attachment
    attachment.holds.add(id(hold))


def enter(hold: Hold, made: Attachment) -> None:
    """The first hold of a new attachment, which stands in the table from now on. guard: the step mutex."""
    take(hold, made)
    if made.found is not None:
        attached[made.found.st_dev, made.found.st_ino] = made


def share(attachment: Attachment, wait_ns: int) -> Hold:
    """One more hold on it; StoreClosedError when the last one is gone."""
    hold = Hold()
    try:
        stepping(step.run, partial(_share, hold, attachment), deadline_after(wait_ns), wait_ns)
    except BaseException:
        release(hold, deadline_after(TIDY_NS))
        raise
    return hold


def _share(hold: Hold, attachment: Attachment) -> None:
    if not attachment.holds:
        raise errors.StoreClosedError(f"{_names.label(attachment.name)} is closed")
    take(hold, attachment)


# -- letting go -------------------------------------------------------------------------------------------------------


def release(hold: Hold, deadline: int = 0) -> None:
    """Lets go of a hold: with the last one of the process it leaves, and the last process unlinks.

    Waits for the lock file up to the deadline, or 10 s. In a signal handler in the middle of a step of its own thread
    it is done at the end of that step. After an exception it is done as far as that goes without a long wait.
    """
    if not hold.open:
        return
    dropped.append(hold)
    try:
        deadline = deadline or deadline_after(LEAVE_NS)
        _work_off(deadline, deadline)
    finally:
        _work_off(deadline_after(TIDY_NS))


def _work_off(deadline: int, mutex_deadline: int | None = None) -> None:
    """Lets go of what is queued; what another thread's step is in the way of stays for the end of that step.

    The deadlines are for the lock file and for the step mutex; None is the same.
    """
    while dropped and not step.mine():
        try:
            hold = dropped[0]
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
            dropped.remove(hold)


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
    if found is not None and attached.get((found.st_dev, found.st_ino)) is attachment:
        del attached[found.st_dev, found.st_ino]
    attachment.left = _leave(attachment.seg)
    return attachment


def _leave(seg: CData) -> bool:
    """True when no thread of this process is in the segment any more, and its peer slot is given back.

    Calls in flight in other threads end first, with SST_ECLOSED where they wait. Before the lock file is taken: nobody
    else is kept waiting for them.
    """
    while True:
        code = lib.sst_leave(seg)
        if code != lib.SST_EINTR:
            return code == lib.SST_OK


def _remove(attachment: Attachment, deadline: int) -> None:
    """Unlinks an attachment's segment if nobody is left in it, and closes the attachment."""
    name, found = attachment.name, attachment.found
    try:
        if name is not None and found is not None and attachment.left:
            unlink = partial(_unlink_if_last, attachment, name, found)
            locked_step(sorted(_names.locks_of(found)), unlink, deadline, LEAVE_NS)
    except (errors.StoreError, OSError):
        pass  # the next opener of the name finds nobody there, and reaps
    step.run(partial(lib.sst_close, attachment.seg), FOREVER, FOREVER)  # in no finally: what is interrupted is redone


def _unlink_if_last(attachment: Attachment, name: str, found: os.stat_result) -> None:
    """guard: the lock file. This process has left: whoever is alive in there is another.

    It looks through its own mapping and by name, and so needs no descriptor: there may be none left.
    """
    if not _names.stands(name, found):
        return  # what was removed by hand may live on under another name
    info = ffi.new("sst_info *")
    if lib.sst_stat(attachment.seg, info) < 0 or info.peers_live or info.persist or info.ranks_seen < info.world_size:
        return
    lib.sst_mark_dead(attachment.seg)
    _names.unlink(name, found)
