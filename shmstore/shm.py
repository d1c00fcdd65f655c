"""ShmStore and HashStore: one core, two lifetimes.

A ShmStore is a segment with a name: any process that says the name shares it, and the last one out removes it. A
HashStore is the same segment without a name: the threads of this process share it, and its forked children.
"""

# ruff: noqa: D102 -- what Store describes is described there, and help() shows it here too
from __future__ import annotations

import atexit
import multiprocessing.util
import os
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeVar

from shmstore import errors, segment
from shmstore._deadline import DEFAULT, Timeout, deadline_after, span_ns
from shmstore._keys import check_int, key_text
from shmstore._names import listed
from shmstore._native import lib
from shmstore._peers import Peer, dead_rank, peers_of
from shmstore._verbs import SegmentStore
from shmstore.store import Capabilities

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["HashStore", "Peer", "ShmStore", "sweep"]

H = TypeVar("H", bound=SegmentStore)

SWEEP_S: Final = 1.0
_SHM: Final = Capabilities(cross_process=True, picklable=True, fork=True, names_dead=True)
_HASH: Final = Capabilities(fork=True)


class ShmStore(SegmentStore):
    """A store in a named segment of shared memory: no server, no port; processes that say the name share it.

    Args:
        name: 1 to 240 bytes of UTF-8 without slash and NUL; the segment is `/dev/shm/shmstore.<name>`.
        rank: registers this process (or thread) as that rank, so that the others learn of its death; None registers
            none. Below `world_size` if that is given, and below 4096.
        world_size: the segment is not removed before that many ranks have registered once, so that rank 0 may leave
            before rank 1 comes; None removes it with its last user.
        timeout: this handle's own; a timedelta or seconds.
        create: None attaches, or creates where there is nothing; True must create; False must attach.
        persist: the segment stays when its last user leaves.
        capacity: bytes it may grow to; taken from /dev/shm only as it is used.
        mode: permissions, 0o600, or 0o660 to share it with the members of this process's effective group.
        sync: "futex" or "semaphore", how processes park; None is the segment's own, futex for a new one.
        watch_peers: waits and gets of this handle fail with PeerDiedError when a registered rank dies meanwhile, one
            below `world_size` where that is given.

    A forked child shares its parent's handles, and is a user of the segment from the fork on, whether it calls or not:
    the last one out may be the child. It has no rank. One that wants no part in it closes them.

    Of a segment that is there already, its own capacity, mode, persist and world_size stay, and a `sync` that is given
    must be its own. Blocks only for the lock file of a creator or leaver, at most `timeout`.

    Raises:
        SegmentExistsError: create=True, and it is in use. SegmentNotFoundError: create=False, and it is not there.
        SegmentInvalidError: what is there cannot be used; says why. StoreFullError: no room in /dev/shm.
        ValueError: the rank has a live owner; or an argument is out of range. TypeError.
    """

    def __init__(
        self,
        name: str,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        timeout: Timeout = DEFAULT,
        create: bool | None = None,
        persist: bool = False,
        capacity: int = segment.CAPACITY,
        mode: int = 0o600,
        sync: Literal["futex", "semaphore"] | None = None,
        watch_peers: bool = False,
    ) -> None:
        segment.check_name(name)
        check_ranks(rank, world_size)
        for what, flag in (("persist", persist), ("watch_peers", watch_peers)):
            if not isinstance(flag, bool):
                raise TypeError(f"{what} must be a bool, not {type(flag).__name__}")
        if create is not None and not isinstance(create, bool):
            raise TypeError(f"create must be None, True or False, not {type(create).__name__}")
        plan = segment.Plan(
            create=create,
            persist=persist,
            capacity=_checked_capacity(capacity),
            mode=_checked_mode(mode),
            engine=_checked_engine(sync),
            world_size=world_size or 0,
            rank=rank,
        )
        wait_ns = span_ns(timeout)
        self._name = name
        hold = segment.attach(name, plan, wait_ns)
        try:
            super().__init__(hold, timeout)
            self._watch = watch_peers
            self._world = world_size or lib.SST_RANKS_MAX
            _handles.add(self)
            if rank is not None:
                self._register(rank)
        except BaseException:
            segment.release(hold)
            raise

    def _register(self, rank: int) -> None:
        self._hold.rank, self._hold.pid = rank, os.getpid()  # first: a rank of another process is not left with it
        code = lib.sst_rank_register(self._open(), rank)
        if code < 0:
            self._hold.rank = None
            text = repr(self)
            taken = next((peer for peer in self.peers() if peer.rank == rank), None)
            if code == lib.SST_EEXIST:
                by = f" (pid {taken.pid} on {taken.host})" if taken is not None else ""
                raise ValueError(f"{text}: rank {rank} is taken by a live owner{by}")
            raise errors.from_code(code, f"registering rank {rank}", text)

    @property
    def name(self) -> str:
        """The segment's name."""
        return self._name

    @property
    def rank(self) -> int | None:
        """The rank that this handle registered; None in a forked child, which has none."""
        return self._waiter_rank() - 1 if self._waiter_rank() else None

    @property
    def capabilities(self) -> Capabilities:
        return _SHM

    def clone(self) -> Self:
        return _share(self, _name=self._name, _watch=self._watch, _world=self._world)

    def _watching(self) -> ShmStore:
        return _share(self, _name=self._name, _watch=True, _world=self._world)

    def peers(self) -> list[Peer]:
        """Who is and was attached: one record a rank, ascending, then one a process that holds no rank.

        Never waits. Not one snapshot: each record is true of the moment it was read.
        """
        return peers_of(self._open())

    def _watch_peers(self, raw: bytes) -> None:
        dead = dead_rank(self._open(), self._world) if self._watch else None
        if dead is not None:
            last = "" if dead.waiting_on is None else f", waiting on {dead.waiting_on!r}"
            raise errors.PeerDiedError(
                f"{self!r}: rank {dead.rank} (pid {dead.pid} on {dead.host}) died{last}; this process waited on "
                f"{key_text(raw)!r}",
                rank=dead.rank,
                pid=dead.pid,
                host=dead.host,
                waiting_on=dead.waiting_on,
            )

    def __repr__(self) -> str:
        return f"ShmStore({self._name!r})" if self.rank is None else f"ShmStore({self._name!r}, rank={self.rank})"

    def __reduce__(self) -> tuple[Callable[..., ShmStore], tuple[str, timedelta, bool, int]]:
        self._open()  # a closed handle says so
        return _by_name, (self._name, self._timeout, self._watch, self._world)


class HashStore(SegmentStore):
    """A store without a name: for the threads of this process, and for its forked children.

    Args:
        timeout: this handle's own; a timedelta or seconds.

    It cannot be pickled (TypeError): a process that is not a child has no way to it. `clone` gives more handles.

    Raises:
        StoreFullError: no memory. TypeError, ValueError: not a timeout.
    """

    def __init__(self, timeout: Timeout = DEFAULT) -> None:
        super().__init__(segment.anonymous(span_ns(timeout)), timeout)
        _handles.add(self)

    @property
    def capabilities(self) -> Capabilities:
        return _HASH

    def clone(self) -> Self:
        return _share(self)

    def __repr__(self) -> str:
        return "HashStore()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a HashStore cannot be pickled: it has no name another process could open; use a ShmStore")


# -- handles ----------------------------------------------------------------------------------------------------------

_handles: weakref.WeakSet[SegmentStore] = weakref.WeakSet()


def _share(origin: H, **more: Any) -> H:
    """Another handle on the origin's attachment, without its rank."""
    origin._open()  # noqa: SLF001 -- a closed handle says so
    hold = segment.share(origin._attachment, span_ns(origin.timeout))  # noqa: SLF001
    try:
        made = object.__new__(type(origin))
        SegmentStore.__init__(made, hold, origin.timeout)
        made.__dict__.update(more)
        _handles.add(made)
    except BaseException:
        segment.release(hold)
        raise
    return made


def _by_name(name: str, timeout: timedelta, watch_peers: bool, world: int) -> ShmStore:  # noqa: FBT001 -- pickle's call
    return ShmStore(name, timeout=timeout, create=False, watch_peers=watch_peers, world_size=world)


def _close_all() -> None:
    """Leaves every segment in good order: at exit, so that LEFT is written and the last process unlinks.

    All of them, whatever one raises, and within the time of one: who holds up one may hold up them all.
    """
    deadline = deadline_after(segment.LEAVE_NS)
    with ExitStack() as stack:
        for handle in list(_handles):
            stack.callback(handle._close, deadline)  # noqa: SLF001


def _close_in_forked_child() -> None:
    if os.getpid() != _imported_by:
        _close_all()


_imported_by: Final = os.getpid()
# The process that imported this closes at its exit, once multiprocessing has ended its daemonic children and joined the
# others: a forked child is a user of the segment, and the last one out unlinks.
multiprocessing.util.Finalize(None, _close_all, exitpriority=-100)
atexit.register(_close_in_forked_child)  # finalizers run in the process that made them only


def _in_multiprocessing_child(_: object) -> None:
    # multiprocessing's forked children end with os._exit: no atexit, but its own finalizers, of which a child starts
    # with none.
    multiprocessing.util.Finalize(None, _close_all, exitpriority=100)


multiprocessing.util.register_after_fork(_handles, _in_multiprocessing_child)


def sweep(names: Iterable[str]) -> None:
    """Removes, of segments whose time is over, those that nobody alive uses: a new one in its place goes at its close.

    One that is in use stays as it is, and one that cannot be opened is for whoever comes to it next.
    """
    for name in set(names).intersection(listed()):
        with suppress(errors.StoreError, OSError):
            ShmStore(name, create=True, timeout=SWEEP_S).close()


# -- arguments --------------------------------------------------------------------------------------------------------


def check_ranks(rank: int | None, world_size: int | None) -> None:
    if world_size is not None:
        check_int(world_size, "world_size")
        if not 1 <= world_size <= lib.SST_RANKS_MAX:
            raise ValueError(f"world_size must be 1 to {lib.SST_RANKS_MAX}, got {world_size}")
    if rank is not None:
        check_int(rank, "rank")
        limit = world_size if world_size is not None else lib.SST_RANKS_MAX
        if not 0 <= rank < limit:
            raise ValueError(f"rank must be 0 to {limit - 1}, got {rank}")


def _checked_capacity(capacity: int) -> int:
    check_int(capacity, "capacity")
    least = lib.sst_min_capacity()
    if not least <= capacity < 1 << 63:
        raise ValueError(f"capacity must be {least} bytes or more, got {capacity}")
    return capacity


def _checked_mode(mode: int) -> int:
    check_int(mode, "mode")
    if mode not in (0o600, 0o660):  # who reads takes locks in the segment, and so has to write
        raise ValueError(f"mode must be 0o600, or 0o660 to share it with the group, got {mode:#o}")
    return mode


def _checked_engine(sync: str | None) -> int | None:
    if sync is None:
        return None
    if not isinstance(sync, str):
        raise TypeError(f"sync must be a str, not {type(sync).__name__}")
    if sync not in segment.ENGINES:
        raise ValueError(f"sync must be one of {', '.join(map(repr, segment.ENGINES))}, got {sync!r}")
    return segment.ENGINES[sync]
