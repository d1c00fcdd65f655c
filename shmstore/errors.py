"""Every error of shmstore, and the one table that turns the core's codes into them.

    StoreError(RuntimeError)
    ├─ DistStoreError                          what code written for c10d catches
    │  ├─ StoreTimeoutError(TimeoutError)      .keys .elapsed .timeout
    │  │  └─ BarrierTimeoutError               .key .epoch .arrived .world_size .missing_ranks
    │  ├─ PeerDiedError                        .rank .pid .host .waiting_on
    │  ├─ BrokenBarrierError(threading.BrokenBarrierError)   .key .epoch .missing_ranks
    │  │  ├─ TimedOutBarrierError              a BarrierTimeoutError too: what a Barrier raises who timed out
    │  │  └─ PeerAtBarrierDiedError            a PeerDiedError too: what a Barrier raises when it needs the dead
    │  ├─ QueueEmptyError
    │  └─ StoreConnectionError(ConnectionError)
    ├─ StoreFullError                          the segment, its file system or its peer table: says which
    ├─ StoreClosedError
    ├─ SegmentNotFoundError(FileNotFoundError)
    ├─ SegmentExistsError(FileExistsError)
    └─ SegmentInvalidError                     not ours, other layout, truncated, foreign owner, corrupt: says which

Wrong types are TypeError and wrong values ValueError; nothing has happened when they are raised. Every error can be
pickled and keeps its attributes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Final

from shmstore._native import lib

__all__ = [
    "BarrierTimeoutError",
    "BrokenBarrierError",
    "DistStoreError",
    "PeerDiedError",
    "QueueEmptyError",
    "SegmentExistsError",
    "SegmentInvalidError",
    "SegmentNotFoundError",
    "StoreClosedError",
    "StoreConnectionError",
    "StoreError",
    "StoreFullError",
    "StoreTimeoutError",
]


class StoreError(RuntimeError):
    """The root: every error of a store that is not a wrong type or value."""


class DistStoreError(StoreError):
    """What torch.distributed.DistStoreError is to c10d: the store could not do what was asked in time or at all."""


class StoreTimeoutError(DistStoreError, TimeoutError):
    """A wait, or a lock held by another process, outlasted the timeout. Nothing has been changed.

    Attributes:
        keys: the keys still missing, as str (bytes that are not UTF-8 are surrogate-escaped); empty for no key.
        elapsed: seconds waited, or None where unknown.
        timeout: the limit in seconds, `inf` for none, or None where unknown.
    """

    def __init__(
        self,
        message: str = "",
        *,
        keys: Iterable[str] = (),
        elapsed: float | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(message)
        self.keys = tuple(keys)
        self.elapsed = elapsed
        self.timeout = timeout


class BarrierTimeoutError(StoreTimeoutError):
    """Not everybody came to a barrier in time.

    Attributes:
        key: the barrier's key.
        epoch: which use of a reusable barrier it was, or None for one that serves once.
        arrived: how many arrived, or None where unknown.
        world_size: how many were needed, or None where unknown.
        missing_ranks: who is missing, ascending; empty when ranks are not known.
    """

    def __init__(
        self,
        message: str = "",
        *,
        key: str | None = None,
        epoch: int | None = None,
        arrived: int | None = None,
        world_size: int | None = None,
        missing_ranks: Iterable[int] | None = None,
        keys: Iterable[str] | None = None,
        elapsed: float | None = None,
        timeout: float | None = None,
    ) -> None:
        if keys is None:
            keys = () if key is None else (key,)
        super().__init__(message, keys=keys, elapsed=elapsed, timeout=timeout)
        self.key = key
        self.epoch = epoch
        self.arrived = arrived
        self.world_size = world_size
        self.missing_ranks = tuple(missing_ranks or ())


class PeerDiedError(DistStoreError):
    """A registered rank died without leaving, so that what was waited for may never come.

    Attributes:
        rank: the dead rank, or None where only the process is known.
        pid: its process id in its own PID namespace, or None.
        host: the host name it had, or None.
        waiting_on: the key, queue or barrier that it waited for when it died, or None: it waited for nothing, or that
            is not known any more.
    """

    def __init__(
        self,
        message: str = "",
        *,
        rank: int | None = None,
        pid: int | None = None,
        host: str | None = None,
        waiting_on: str | None = None,
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.pid = pid
        self.host = host
        self.waiting_on = waiting_on


class BrokenBarrierError(DistStoreError, threading.BrokenBarrierError):
    """A reusable barrier was broken by a timeout, an abort or a death, for everybody at it, until it is reset.

    Attributes:
        key: the barrier's key, or None.
        epoch: which use of it broke, or None.
        missing_ranks: who was missing when a party timed out, ascending; empty when it broke otherwise, or ranks are
            not known.
    """

    def __init__(
        self,
        message: str = "",
        *,
        key: str | None = None,
        epoch: int | None = None,
        missing_ranks: Iterable[int] = (),
    ) -> None:
        super().__init__(message)
        self.key = key
        self.epoch = epoch
        self.missing_ranks = tuple(missing_ranks)


# The next two are not exported: whoever catches one catches it as one of its bases.


class TimedOutBarrierError(BarrierTimeoutError, BrokenBarrierError):
    """At a reusable barrier, this party's time was over; with that the barrier is broken for all."""


class PeerAtBarrierDiedError(PeerDiedError, BrokenBarrierError):
    """A party that a reusable barrier needs died; with that the barrier is broken for all."""

    def __init__(
        self,
        message: str = "",
        *,
        rank: int | None = None,
        pid: int | None = None,
        host: str | None = None,
        waiting_on: str | None = None,
        key: str | None = None,
        epoch: int | None = None,
    ) -> None:
        PeerDiedError.__init__(self, message, rank=rank, pid=pid, host=host, waiting_on=waiting_on)
        self.key = key
        self.epoch = epoch


class QueueEmptyError(DistStoreError):
    """`queue_pop(key, block=False)` found no item that is free for the caller."""


class StoreConnectionError(DistStoreError, ConnectionError):
    """The connection to a store on the wire was refused, lost or broken off."""


class StoreFullError(StoreError):
    """No room: in the segment, in its file system, or for one more process. The message says which and what to do."""


class StoreClosedError(StoreError):
    """This handle was closed."""


class SegmentNotFoundError(StoreError, FileNotFoundError):
    """No live segment of that name, and it was not to be made."""


class SegmentExistsError(StoreError, FileExistsError):
    """A segment of that name is in use, and a new one was asked for."""


class SegmentInvalidError(StoreError):
    """What stands under the name cannot be used: not a segment, another layout, truncated, foreign owner, corrupt."""


_CODES: Final[dict[int, tuple[type[Exception], str]]] = {
    lib.SST_EFULL: (
        StoreFullError,
        "the segment is full: its capacity is used up; delete keys, or make the segment with a larger capacity=",
    ),
    lib.SST_ENOSPC: (
        StoreFullError,
        "the file system of the segment is full; free space in /dev/shm, or mount it larger (docker: --shm-size)",
    ),
    lib.SST_EPEERS: (
        StoreFullError,
        f"all {lib.SST_PEERS_MAX} peer slots belong to live processes; close the store in some of them",
    ),
    lib.SST_ECORRUPT: (SegmentInvalidError, "corrupt: the segment's contents break an invariant"),
    lib.SST_EMAGIC: (SegmentInvalidError, "not a segment of shmstore"),
    lib.SST_ELAYOUT: (
        SegmentInvalidError,
        "a segment of another layout: made by another version of shmstore, on another libc or architecture",
    ),
    lib.SST_ETRUNC: (SegmentInvalidError, "truncated: the file is shorter than its header says"),
    lib.SST_ENGINE: (SegmentInvalidError, "the segment's way to park (sync=) is not built into this library"),
    lib.SST_EDEAD: (SegmentNotFoundError, "the segment was unlinked, or never finished: open it again by name"),
    lib.SST_ECLOSED: (StoreClosedError, "the store is closed"),
    lib.SST_ELOST: (
        StoreClosedError,
        "a descriptor of the segment was closed by somebody else (a daemoniser? closerange?); this process counts as "
        "dead there; close the store, and open it after that",
    ),
    lib.SST_EINVAL: (ValueError, "an argument is out of range"),
    lib.SST_ENOTINT: (ValueError, "the present value has no leading number; it is kept"),
    lib.SST_ERANGE: (ValueError, "the present value's number is beyond int64; it is kept"),
    lib.SST_ETOOBIG: (ValueError, f"the value would be longer than {lib.SST_VALUE_MAX} bytes"),
    lib.SST_EEXIST: (ValueError, "the rank is taken by a live owner"),
}


def from_code(code: int, doing: str, store: str) -> Exception:
    """The exception for a negative code of the core, to be raised by the caller in the thread that got the code.

    Args:
        code: SST_E*; those that mean "call again" or "waited too long" are the caller's to handle.
        doing: the verb and its key, for the text.
        store: the store, for the text.
    """
    if code == lib.SST_ESYS:
        return StoreError(f"{doing} on {store}: a system call failed: {os.strerror(lib.sst_errno())}")
    kind, reason = _CODES.get(code, (StoreError, f"the core answered with code {code}"))
    return kind(f"{doing} on {store}: {reason}")
