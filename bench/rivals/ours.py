"""This library's stores: a segment with a name on either engine, and the one without a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from bench.host import SHM
from bench.rivals.base import Meeting, Place, StoreRival
from shmstore import HashStore, ShmStore
from shmstore._barrier_segment import SegmentBarrier
from shmstore._native import ffi
from shmstore.barrier import Attempt, Barrier
from shmstore.segment import CAPACITY

__all__ = ["Anonymous", "Named"]


class Named(StoreRival):
    """ShmStore, recovery on as always; its engine by name."""

    modules = ("shmstore",)

    def __init__(self, sync: Literal["futex", "semaphore"]) -> None:
        self.name = f"shmstore {sync}"
        self._sync: Literal["futex", "semaphore"] = sync

    @contextmanager
    def host(self, place: Place, inherited: Any) -> Iterator[str]:
        """Holds the segment; there is no server."""
        del inherited
        capacity = place.capacity or CAPACITY
        with ShmStore(place.token, create=True, sync=self._sync, capacity=capacity):
            yield place.token

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> ShmStore:
        """Attaches by name; as one of several processes with its rank, so that its death would be noticed."""
        del inherited
        return ShmStore(address, create=False, rank=rank if world > 1 else None)

    def meeting(self, store: Any, rank: int, world: int, *, parks: bool) -> Meeting:
        """The reusable Barrier, which looks after the ranks it needs."""
        return _meeting(store, rank, world, parks=parks)

    def files(self, address: Any) -> Sequence[Path]:
        """The segment."""
        return [SHM / f"shmstore.{address}"]


class Anonymous(StoreRival):
    """HashStore: made before the fork, reached by the children."""

    name = "shmstore HashStore"
    lacks = MappingProxyType({"attach": "has no name to attach by: it is inherited"})
    modules = ("shmstore",)

    def inherit(self, place: Place) -> HashStore:
        """The store itself; it starts no thread. It has a capacity of its own, and says so when that is used up."""
        del place
        return HashStore()

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> HashStore:
        """Another handle."""
        del address, rank, world
        assert isinstance(inherited, HashStore)
        return inherited.clone()

    def meeting(self, store: Any, rank: int, world: int, *, parks: bool) -> Meeting:
        """The reusable Barrier."""
        return _meeting(store, rank, world, parks=parks)


def _meeting(store: Any, rank: int, world: int, *, parks: bool) -> Meeting:
    """A Barrier's wait, as users call it; or its long way, which begins where the yields are used up."""
    barrier = Barrier(store, f"bench/barrier{'/parks' * parks}", world, rank=rank)
    if not parks:
        return barrier.wait
    assert isinstance(barrier, SegmentBarrier)
    go_on = barrier._park  # noqa: SLF001 -- there is no public way to leave the yields out
    limit = int(store.timeout.total_seconds() * 1e9)
    return lambda: go_on(Attempt(limit), ffi.new("sst_arrival *"))
