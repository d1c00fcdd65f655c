"""Nodes for tests on one host: a segment each, and a world of any kind that joins them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

import shmstore
from shmstore import HashStore, HybridStore, PrefixStore, ShmStore, TCPStore, TCPStoreServer

LONG = 30.0
WORLDS = ["ours", "libuv", "torch", "hash", "prefix"]
"""Our TCPStore at our server, and at torch's; torch's own; clones of a HashStore; a PrefixStore over the first."""


class World:
    """A world of one kind; `open` gives one more handle."""

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self.kind = kind
        self.keys = stack.enter_context(HashStore(timeout=LONG))
        self.port = 0
        self._torch: list[Any] = []
        if kind in ("ours", "prefix"):
            self.server = stack.enter_context(TCPStoreServer(self.keys, "127.0.0.1", 0))
            self.port = self.server.port
        elif kind in ("libuv", "torch"):
            dist = pytest.importorskip("torch.distributed", reason="torch's own server")
            self._dist = dist
            self._torch.append(dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
            self.port = self._torch[0].port
            stack.callback(self._torch.clear)  # it has no close()

    def open(self) -> Any:
        if self.kind == "hash":
            return self.keys.clone()
        if self.kind == "torch":
            from datetime import timedelta

            limit = timedelta(seconds=LONG)
            return self._dist.TCPStore("127.0.0.1", self.port, is_master=False, wait_for_workers=False, timeout=limit)
        store = TCPStore("127.0.0.1", self.port, timeout=LONG)
        return PrefixStore("job", store) if self.kind == "prefix" else store


class Cluster:
    """Ranks of nodes of one size, which share a world; each node is a segment of this host.

    Clusters of one name share the segments, too: `registered` has the node and local rank of all.
    """

    def __init__(self, name: str, world: World, size: int, stack: ExitStack, registered: set[tuple[int, int]]) -> None:
        self.name, self.world, self.size, self._stack = name, world, size, stack
        self._registered = registered
        self._guard = threading.Lock()

    def open(self, rank: int, ranks: int) -> HybridStore:
        """A handle of that rank; the first of a rank registers it."""
        node, local = divmod(rank, self.size)
        with self._guard:
            first = (node, local) not in self._registered
            self._registered.add((node, local))
        segment = ShmStore(f"{self.name}.{node}", rank=local if first else None, timeout=LONG)
        store = HybridStore(
            segment,
            self.world.open(),
            node_rank=node,
            num_nodes=ranks // self.size,
            local_rank=local,
            local_world_size=self.size,
        )
        self._stack.callback(store.close)
        return store


@contextmanager
def clusters(name: str, kind: str) -> Iterator[Callable[[int], Cluster]]:
    """Called with a size of nodes: the cluster of that size in one world."""
    with ExitStack() as stack:
        world = World(kind, stack)
        made: dict[int, Cluster] = {}
        registered: set[tuple[int, int]] = set()

        def of(size: int) -> Cluster:
            if size not in made:
                made[size] = Cluster(name, world, size, stack, registered)
            return made[size]

        yield of


def width(shape: str, parties: int) -> int:
    """How many ranks a node has: `wide` one, `deep` all, `mixed` the largest part of the parties below their half."""
    if shape == "wide":
        return 1
    if shape == "deep":
        return parties
    return max(size for size in range(1, max(parties // 2, 1) + 1) if parties % size == 0)


__all__ = ["LONG", "WORLDS", "Cluster", "World", "clusters", "shmstore", "width"]
