"""The two halves of a HybridStore by the place in the job, and how their owners part.

Rank 0 hosts the world's server in its process: gone, it takes answers with it that others have not read. So its `close`
waits until all nodes are through, for 5 s at most. A node is through when all its ranks but the host have closed or
died: the last one says so in the world.

    hybrid/bye        how many of the node's ranks have closed  the node; added to by each but the host
    hybrid/bye/n{i}   node i is through                         the world; set by its last, waited for by the host
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from shmstore.barrier import peers_of_store
from shmstore.errors import StoreError
from shmstore.prefix import PrefixStore
from shmstore.shm import ShmStore, sweep
from shmstore.tcp.client import TCPStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmstore._deadline import Timeout
    from shmstore._job import Place
    from shmstore.store import Store

__all__ = ["Parting", "halves"]

PATIENCE_S: Final = 5.0


class Parting:
    """How this rank leaves: in the process that opened the store, and once."""

    def __init__(self, place: Place) -> None:
        self._nodes = place.world_size // place.local_world_size
        self._size = place.local_world_size
        self._node = place.rank // place.local_world_size
        self._guests = self._size - (self._node == 0)  # the host is rank 0
        self._hosts = place.hosts
        self._pid = os.getpid()
        self._leaving = threading.RLock()  # a signal handler may close what is being closed

    def _dead(self, node: Store) -> int:
        """How many of the node's ranks will never close."""
        peers = peers_of_store(node)
        return 0 if peers is None else sum(one.rank is not None and one.state == "dead" for one in peers())

    def leave(self, halves: Callable[[], tuple[Store, Store]]) -> None:
        """Returns when it has been done, by whichever thread; who has closed a half before tells nobody."""
        if os.getpid() not in (self._pid, -self._pid):
            return
        with self._leaving, suppress(StoreError):
            if self._pid < 0:
                return
            self._pid = -self._pid
            node, world = halves()
            if self._hosts:
                world.wait([f"hybrid/bye/n{i}" for i in range(self._nodes) if i or self._guests], PATIENCE_S)
            elif node.add("hybrid/bye", 1) + self._dead(node) >= self._guests:
                world.set(f"hybrid/bye/n{self._node}", b"1")


def halves(place: Place, name: str | None, timeout: Timeout, options: dict[str, Any]) -> tuple[Store, Store]:
    """The node's segment, with this rank registered, and the world; rank 0 hosts it, unless an agent does."""
    local = place.local_world_size
    if name is None:
        name = place.name
        sweep(place.before)
    node = ShmStore(name, rank=place.rank % local, world_size=local, timeout=timeout, **options)
    try:
        world = TCPStore(place.host, place.port, is_master=place.hosts, timeout=timeout, multi_tenant=True)
        return node, PrefixStore(place.prefix, world) if place.prefix else world
    except BaseException:
        node.close()
        raise
