"""HybridStoreBarrier: a StoreBarrier over a HybridStore of its own, made from a rank, node sizes and an address."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from shmstore._checkpoint_base import Closing, port_number
from shmstore._checkpoint_store import StoreBarrier
from shmstore._job import Place
from shmstore._keys import check_int
from shmstore.barrier import check_party
from shmstore.hybrid import HybridStore

if TYPE_CHECKING:
    from shmstore._deadline import Timeout
    from shmstore._keys import Key

__all__ = ["HybridStoreBarrier"]


class HybridStoreBarrier(StoreBarrier, Closing):
    """The barrier of a checkpoint among all processes of many nodes: in the node's memory, then across the nodes.

    Args:
        global_rank: this rank, 0 to global_world_size - 1, node by node. Rank 0 hosts the TCPStore's server.
        global_world_size: how many ranks there are, 1 to 4096; a multiple of local_world_size.
        local_world_size: how many ranks each node has.
        barrier_prefix: the barrier's name.
        timeout_barrier_init_secs: how long the constructor may wait for rank 0's server, and for others that create or
            leave the segment; seconds or a timedelta.
        store_name: names the nodes' segments: node i's is `{store_name}.{i}`.
        tcpstore_port: the server's port, an int or its ASCII digits.
        master_address: rank 0's host name or address, on which it listens; the protocol has neither authentication nor
            encryption.
        timeout_secs: how long `execute_barrier` waits for the others; seconds or a timedelta, `inf` for ever.

    The wire carries messages per node, not per rank. A rank's death fails the call for all, and names it; also a
    leader's. Any rank may leave first: rank 0's `close` waits, for 5 s at most, until all other nodes have closed.

    Raises:
        As ShmStore and TCPStore. TypeError, ValueError: a wrong type or value, and nothing was opened.
    """

    barrier_type: ClassVar[str] = "hybrid_store"

    def __init__(
        self,
        global_rank: int,
        global_world_size: int,
        local_world_size: int,
        barrier_prefix: Key,
        timeout_barrier_init_secs: Timeout,
        store_name: str,
        tcpstore_port: int | str,
        master_address: str,
        timeout_secs: Timeout = 300,
    ) -> None:
        check_int(global_rank, "global_rank")  # the check below knows parties without ranks
        check_party(global_world_size, global_rank, ("global_world_size", "global_rank"))
        check_party(local_world_size, None, ("local_world_size", "global_rank"))
        if global_world_size % local_world_size:
            raise ValueError(
                f"global_world_size {global_world_size} is no multiple of local_world_size {local_world_size}"
            )
        port, name = port_number(tcpstore_port), f"{store_name}.{global_rank // local_world_size}"
        hosts = global_rank == 0
        place = Place(global_rank, global_world_size, local_world_size, master_address, port, hosts, "", name)
        store = HybridStore.at(place, timeout=timeout_barrier_init_secs)
        self._store: Final = store
        try:
            super().__init__(store, global_rank, global_world_size, barrier_prefix, timeout_secs)
        except BaseException:
            store.close()
            raise

    @property
    def store(self) -> HybridStore:
        """The store, for more than the barrier."""
        return self._store

    def close(self) -> None:
        """Leaves; rank 0 when all others have closed, after 5 s at most. Idempotent."""
        self._store.close()
