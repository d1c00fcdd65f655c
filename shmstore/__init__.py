"""Processes of one job on one host find each other, share small values and wait for each other.

There is no server and no port: a store is a named piece of shared memory.

    store = shmstore.ShmStore("job-7", rank=rank, world_size=8)
    store.set(f"ready/{rank}", b"")
    store.wait([f"ready/{i}" for i in range(8)], timeout=30)
"""

from shmstore import (
    _barrier_hybrid,  # noqa: F401 -- a kind that Barrier(...) makes
    _barrier_keys,  # noqa: F401 -- the same
    _barrier_segment,  # noqa: F401 -- the same
    checkpoint,
    elastic,
    log,
)
from shmstore.barrier import Barrier
from shmstore.connect import connect
from shmstore.errors import (
    BarrierTimeoutError,
    BrokenBarrierError,
    DistStoreError,
    PeerDiedError,
    QueueEmptyError,
    SegmentExistsError,
    SegmentInvalidError,
    SegmentNotFoundError,
    StoreClosedError,
    StoreConnectionError,
    StoreError,
    StoreFullError,
    StoreTimeoutError,
)
from shmstore.hybrid import HybridStore
from shmstore.prefix import PrefixStore
from shmstore.shm import HashStore, Peer, ShmStore
from shmstore.store import Capabilities, Store
from shmstore.tcp.client import TCPStore
from shmstore.tcp.server import TCPStoreServer

__all__ = [
    "Barrier",
    "BarrierTimeoutError",
    "BrokenBarrierError",
    "Capabilities",
    "DistStoreError",
    "HashStore",
    "HybridStore",
    "Peer",
    "PeerDiedError",
    "PrefixStore",
    "QueueEmptyError",
    "SegmentExistsError",
    "SegmentInvalidError",
    "SegmentNotFoundError",
    "ShmStore",
    "Store",
    "StoreClosedError",
    "StoreConnectionError",
    "StoreError",
    "StoreFullError",
    "StoreTimeoutError",
    "TCPStore",
    "TCPStoreServer",
    "checkpoint",
    "connect",
    "elastic",
    "log",
]

__version__ = "0.1.0"
