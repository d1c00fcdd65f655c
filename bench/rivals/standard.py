"""multiprocessing: the Manager's dict, and its Barrier."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from bench.rivals.base import Meeting, Place, StoreRival

__all__ = ["Manager", "MpBarrier"]


class _Dict:
    """The dict's proxy with a store's verbs. `add` takes the Manager's lock, for want of anything atomic."""

    def __init__(self, values: Any, lock: Any) -> None:
        self._values = values
        self._lock = lock
        self.set = values.__setitem__
        self.get = values.__getitem__

    def add(self, key: str, n: int) -> int:
        """Four round trips: lock, read, write, unlock."""
        with self._lock:
            total = int(self._values.get(key, 0)) + n
            self._values[key] = total
        return total

    def check(self, keys: Sequence[str]) -> bool:
        """One round trip a key."""
        return all(key in self._values for key in keys)

    def has_extended_api(self) -> bool:
        """There is a multi_set."""
        return True

    def multi_set(self, keys: Sequence[str], values: Sequence[bytes]) -> None:
        """One round trip."""
        self._values.update(zip(keys, values, strict=True))


class Manager(StoreRival):
    """A dict in a Manager's process, over a Unix socket."""

    name = "Manager dict"
    lacks = MappingProxyType(
        {
            "elastic": "a dict cannot wait for a key",
            "barrier": "a dict cannot wait; see multiprocessing.Barrier",
            "attach": "a proxy is inherited or pickled",
        }
    )

    @contextmanager
    def host(self, place: Place, inherited: Any) -> Iterator[tuple[Any, Any]]:
        """The Manager's process; the proxies are the address."""
        del place, inherited
        with multiprocessing.get_context("spawn").Manager() as manager:
            yield manager.dict(), manager.Lock()

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> _Dict:
        """Proxies connect at their first use."""
        del inherited, rank, world
        return _Dict(*address)


class MpBarrier(StoreRival):
    """multiprocessing.Barrier: semaphores, inherited by the fork, reusable."""

    name = "multiprocessing.Barrier"
    lacks = MappingProxyType(
        {
            **dict.fromkeys(
                ("set", "get", "add", "check", "holds", "elastic", "barrier", "attach", "memory"),
                "is a barrier and no store; it is inherited",
            ),
            "parks": "always sleeps in a semaphore",
        }
    )

    def inherit(self, place: Place) -> Any:
        """The barrier, for as many as will be forked."""
        return multiprocessing.get_context("fork").Barrier(place.processes)

    def open(self, address: Any, inherited: Any, rank: int, world: int) -> Any:
        """What was inherited."""
        del address, rank, world
        return inherited

    def meeting(self, store: Any, rank: int, world: int, *, parks: bool) -> Meeting:
        """Its wait."""
        del rank, world, parks
        meet: Meeting = store.wait
        return meet
