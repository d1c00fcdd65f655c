"""StoreBarrier and ShmStoreBarrier: the checkpoint's count of calls, over a `shmstore.Barrier`.

That one has epochs, which anybody may break and reset. Here each call of a rank is for one of them: the first for the
one that it finds, or the next where that is broken, and each later one for the next, whatever became of the call
before. So a call ends the epochs before its own, and then waits in that one or fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from shmstore import barrier
from shmstore._barrier_words import Break
from shmstore._checkpoint_base import MENDED_BY, Barrier, Closing
from shmstore.shm import ShmStore

if TYPE_CHECKING:
    from shmstore._deadline import Timeout
    from shmstore._keys import Key

__all__ = ["ShmStoreBarrier", "StoreBarrier"]


class StoreBarrier(Barrier):
    """The barrier of a checkpoint over any store: of ours, or with c10d's verbs (torch's).

    Args:
        store: any store that `shmstore.Barrier` takes. It stays the caller's: its timeout is not touched.
        global_rank: this rank, 0 to global_world_size - 1; each is one process, or thread.
        global_world_size: how many ranks there are, 1 to 4096.
        barrier_prefix: the barrier's name, str or bytes; barriers of different names are independent.
        timeout_secs: how long `execute_barrier` waits for the others; seconds or a timedelta, `inf` for ever.

    It is made in all ranks before the first of them uses it: a rank begins with what it finds, so that a restarted one
    takes part in the next call of the others. Its methods are called by one thread at a time.

    Raises:
        TypeError, ValueError: a wrong type or value. The store's errors.
    """

    barrier_type: ClassVar[str] = "store"

    def __init__(
        self, store: Any, global_rank: int, global_world_size: int, barrier_prefix: Key, timeout_secs: Timeout = 300
    ) -> None:
        if global_rank is None:  # the barrier below takes parties without ranks too
            raise TypeError("global_rank must be an int, not NoneType")
        self._barrier: Final = barrier.Barrier(store, barrier_prefix, global_world_size, global_rank, timeout_secs)
        self._barrier._mended_by = MENDED_BY  # noqa: SLF001 -- a part of the barrier
        epoch, broken = self._barrier._now()  # noqa: SLF001
        self._next = epoch if broken is None else epoch + 1

    def execute_barrier(self) -> None:
        """Returns when all ranks have called it as often as this one; blocks meanwhile, at most `timeout_secs`.

        Each call counts, whether it fails or not. When it fails for one it fails for all that have not returned, now or
        when they come; the next call of each meets the others again.

        Raises:
            BarrierTimeoutError: not all came in time: `.missing_ranks` has them in order. Also a BrokenBarrierError.
            PeerDiedError: a rank died; on stores that notice deaths. Also a BrokenBarrierError.
            BrokenBarrierError: another rank timed out (`.missing_ranks` has who was missing then), aborted, left or was
                interrupted; or the others gave up this call before this rank came. The text says which.
            The store's errors.
        """
        epoch = self._count()
        self._barrier._wait_in(epoch, None)  # noqa: SLF001

    def abort(self) -> None:
        """In place of `execute_barrier`, where this rank has failed: fails the call for all others. Does not block.

        Raises:
            The store's errors.
        """
        epoch = self._count()
        self._barrier._break(epoch, Break("abort", self._barrier.rank))  # noqa: SLF001

    def _count(self) -> int:
        """The epoch of this call; the ones before it are over afterwards."""
        meeting = self._barrier
        epoch = self._next
        self._next += 1
        now, broken = meeting._now()  # noqa: SLF001
        while now < epoch:  # a call that failed has left its epoch broken; or open, where the store did
            if broken is None:
                meeting._break(now, Break("abort", meeting.rank))  # noqa: SLF001
            meeting._reset(now)  # noqa: SLF001
            now, broken = meeting._now()  # noqa: SLF001
        return epoch

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._barrier!r})"


class ShmStoreBarrier(StoreBarrier, Closing):
    """The barrier of a checkpoint among the processes of one host, in a segment of shared memory of its own.

    Args:
        global_rank: this rank, 0 to global_world_size - 1; registered in the segment, so that its death is noticed.
        global_world_size: how many ranks there are, 1 to 4096.
        barrier_prefix: the barrier's name in the segment.
        timeout_barrier_init_secs: how long the constructor may wait for others that create or leave the segment;
            seconds or a timedelta. It does not wait for the other ranks, unlike torch's.
        store_name: the segment's name, as of ShmStore. A rank registers once in a segment: ranks that have a ShmStore
            of that name already use StoreBarrier on it.
        timeout_secs: how long `execute_barrier` waits for the others; seconds or a timedelta, `inf` for ever.

    Any rank may close first, once it has returned from `execute_barrier`; the last one removes the segment.

    Raises:
        As ShmStore: a ValueError where the rank has a live owner, SegmentInvalidError, StoreFullError. TypeError.
    """

    barrier_type: ClassVar[str] = "shm_store"

    def __init__(
        self,
        global_rank: int,
        global_world_size: int,
        barrier_prefix: Key,
        timeout_barrier_init_secs: Timeout,
        store_name: str,
        timeout_secs: Timeout = 300,
    ) -> None:
        store = ShmStore(store_name, rank=global_rank, world_size=global_world_size, timeout=timeout_barrier_init_secs)
        self._store: Final = store
        try:
            super().__init__(store, global_rank, global_world_size, barrier_prefix, timeout_secs)
        except BaseException:
            store.close()
            raise

    @property
    def store(self) -> ShmStore:
        """The segment, for more than the barrier."""
        return self._store

    def close(self) -> None:
        """Leaves the segment: others that wait for this rank learn that it left. Idempotent."""
        self._store.close()
