"""The barriers of checkpoint writers: every rank has written its part, or nobody goes on as if.

The names, the registry and the configuration are those of torch.distributed.checkpoint._experimental.barriers (and
RankInfo of its types), so that code moves by changing an import:

    config = BarrierConfig("shm_store", {"global_rank": rank, "global_world_size": n, "barrier_prefix": "checkpoint",
                                         "store_name": "job-7", "timeout_barrier_init_secs": 60, "timeout_secs": 600})
    barrier = create_barrier_from_config(config)
    write_my_part()
    barrier.execute_barrier()
    if rank == 0:
        publish()

    class               type          stands on                                               file
    StoreBarrier        store         any store, by `shmstore.Barrier`                        _checkpoint_store
    ShmStoreBarrier     shm_store     a segment of its own, by the same                       _checkpoint_store
    HybridStoreBarrier  hybrid_store  a segment a node and a TCPStore across, by the same     _checkpoint_hybrid
    TCPStoreBarrier     tcp_store     a TCPStore that rank 0 hosts, by `elastic.barrier`      here, _barrier_elastic

What differs from torch's TCPStoreBarrier, which has `timeout_secs` and ignores it, leaves its keys, names nobody, after
a failure counts an arrival twice, and whose rank 0 may take the last answers with it:

- `timeout_secs` is how long `execute_barrier` waits. The store keeps its own timeout, also when that fails.
- Passed ones leave nothing behind, and errors name the missing ranks, rank 0 among them, in order.
- Any rank may leave first.
- The n-th call of a rank meets the n-th call of all others, or fails. So a rank that is late for a checkpoint which
  the others gave up fails too, and is not counted in for the next one, of which it has written nothing. The next call
  of all meets again.
- A rank whose own part has failed calls `abort()` in place of `execute_barrier()`: the others learn it at once.

So all ranks of a barrier use this class, none torch's, which would take a call that the others gave up for passed.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeVar

from shmstore._at_exit import close_at_exit
from shmstore._barrier_elastic import ElasticBarrier
from shmstore._checkpoint_base import Barrier, Closing, port_number
from shmstore._checkpoint_hybrid import HybridStoreBarrier
from shmstore._checkpoint_store import ShmStoreBarrier, StoreBarrier
from shmstore._deadline import as_timedelta
from shmstore._keys import check_int
from shmstore.errors import StoreError
from shmstore.tcp.client import TCPStore

if TYPE_CHECKING:
    from shmstore._deadline import Timeout
    from shmstore._keys import Key

__all__ = [
    "BARRIER_REGISTRY",
    "Barrier",
    "BarrierConfig",
    "HybridStoreBarrier",
    "RankInfo",
    "ShmStoreBarrier",
    "StoreBarrier",
    "TCPStoreBarrier",
    "create_barrier_from_config",
    "register_barrier",
]

C = TypeVar("C", bound=type)

BARRIER_REGISTRY: Final[dict[str, type]] = {}
"""The classes that `create_barrier_from_config` knows, by their `barrier_type`."""


@dataclass
class RankInfo:
    """Who this process is in its job; torch's fields.

    Attributes:
        global_rank: 0 to global_world_size - 1.
        global_world_size: how many ranks there are.
    """

    global_rank: int
    global_world_size: int


@dataclass
class BarrierConfig:
    """Which barrier to make, and from what; torch's fields.

    Attributes:
        barrier_type: a key of BARRIER_REGISTRY ("store", "shm_store", "tcp_store", "hybrid_store"); None is no barrier.
        barrier_args: the keyword arguments of its class.
    """

    barrier_type: str | None = None
    barrier_args: dict[str, Any] = field(default_factory=dict)


def register_barrier(barrier_class: C) -> C:
    """Makes a class known to `create_barrier_from_config` under its `barrier_type`; a class decorator.

    A later class of the same type takes the place of the earlier one; a class without `barrier_type` is left alone.
    Both as torch's does.

    Returns:
        The class.
    """
    name = getattr(barrier_class, "barrier_type", None)
    if name is not None:
        BARRIER_REGISTRY[name] = barrier_class
    return barrier_class


def create_barrier_from_config(barrier_config: BarrierConfig) -> Barrier | None:
    """Makes the configured barrier.

    Returns:
        The barrier, or None where `barrier_type` is None.

    Raises:
        ValueError: nobody registered that type; the text lists those that are. What the class raises.
    """
    name = barrier_config.barrier_type
    if name is None:
        return None
    if name not in BARRIER_REGISTRY:
        raise ValueError(f"Unknown barrier type: {name}. Available types: {sorted(BARRIER_REGISTRY)}")
    made: Barrier = BARRIER_REGISTRY[name](**barrier_config.barrier_args)
    return made


for _public in (Barrier, StoreBarrier, ShmStoreBarrier, HybridStoreBarrier):
    _public.__module__ = __name__  # what pickles, help() and reprs name: the private files may change
    register_barrier(_public)  # all but Barrier, which has no type


# It is in this file because it makes its store by this module's name TCPStore: tests written after torch's own one put
# a stand-in there.
@register_barrier
class TCPStoreBarrier(Barrier, Closing):
    """The barrier of a checkpoint among the processes of many hosts, over a TCPStore of its own; torch's constructor.

    Args:
        global_rank: this rank, 0 to global_world_size - 1. Rank 0 hosts the store's server, in its own process.
        global_world_size: how many ranks there are, 1 to 4096.
        barrier_prefix: the barrier's name, str or bytes, the same for all ranks; one barrier a port.
        timeout_barrier_init_secs: how long the constructor may wait: rank 0 for all others to connect, the others for
            rank 0's server, and then as long again for all to be there; seconds or a timedelta. After it the store's
            own timeout is `timeout_secs`, or 5 s where that is longer.
        use_checkpoint_barrier_tcpstore_libuv: False is handed to TCPStore as `use_libuv=False`, True is what it does
            anyway. It changes nothing for the server of ours that rank 0 hosts. (torch's barrier ignores it.)
        tcpstore_port: the server's port, an int or its ASCII digits; 0, for any free one, with one rank only, as nobody
            would tell it to the others.
        master_address: rank 0's host name or address, on which it listens: any address that is not the loopback's is
            open to whoever reaches it, and the protocol has neither authentication nor encryption.
        timeout_secs: how long `execute_barrier` waits for the others; seconds or a timedelta, `inf` for ever.

    All ranks use this class, none torch's of the same name: that one takes a call that the others gave up for passed,
    and cannot say that it gives up or has left. Names, arguments and calls are torch's: code moves by its import.

    The constructor blocks until all ranks are there; that of a rank which is started again, until the server is. Such
    a rank takes part in the next call of the others, and an older object of its rank can do no more. Rank 0 cannot be
    started again alone: the server ends with it, and all make the barrier anew; older objects fail at a new server.

    Its methods are called by one thread at a time, `close` by any, in the process that made it: a forked child can only
    close it, which closes nothing of its parent's. It can be neither pickled nor copied: a copy would count twice.

    Any rank may leave first, once it has returned from `execute_barrier`. Where rank 0 closes, ends or drops the
    object, it stays until those who were in its last call have seen how that ended, or for 5 s: so long it takes where
    one of them died in that call, and none has taken its place. Who waits for rank 0 in the next call learns that it
    left. Killed, it takes the server with it at once.

    Raises:
        StoreConnectionError: no server came in time, or the port is taken on rank 0. StoreTimeoutError: not all came in
            time; on another rank than 0 also: rank 0 has another `barrier_prefix`. TypeError, ValueError: a wrong type
            or value, and nothing was opened; or rank 0 has another `global_world_size`.
    """

    barrier_type: ClassVar[str] = "tcp_store"

    def __init__(
        self,
        global_rank: int,
        global_world_size: int,
        barrier_prefix: Key,
        timeout_barrier_init_secs: Timeout,
        use_checkpoint_barrier_tcpstore_libuv: bool,  # noqa: FBT001 -- torch's signature
        tcpstore_port: int | str,
        master_address: str,
        timeout_secs: Timeout = 300,
    ) -> None:
        check_int(global_rank, "global_rank")  # the check below knows parties without ranks
        self._meeting: Final = ElasticBarrier(barrier_prefix, global_world_size, global_rank, timeout_secs)
        port = port_number(tcpstore_port)
        if port == 0 and global_world_size > 1:
            raise ValueError("tcpstore_port 0 takes any free port, which the other ranks would not know: give a number")
        store = TCPStore(
            master_address,
            port,
            world_size=global_world_size,
            timeout=as_timedelta(timeout_barrier_init_secs),
            is_master=global_rank == 0,
            **({} if use_checkpoint_barrier_tcpstore_libuv else {"use_libuv": False}),
        )
        try:
            self._meeting.begin(store)
        except BaseException:
            store.close()
            raise
        self._end: Final = weakref.finalize(self, _end, self._meeting, os.getpid())
        close_at_exit(self)

    def execute_barrier(self) -> None:
        """Returns when all ranks have called it as often as this one; blocks meanwhile, at most `timeout_secs`.

        Each call counts, whether it fails or not. When it fails for one it fails for all, now or when they come; the
        next call of each meets the others again, unless rank 0 has left.

        Raises:
            BarrierTimeoutError: not all came in time: `.missing_ranks` has them in order. Also a BrokenBarrierError.
            BrokenBarrierError: another rank timed out (`.missing_ranks` has who was missing then), aborted or was
                interrupted, or rank 0 left; or the others gave up this call before this rank came. The text says which.
            StoreConnectionError: the server, and with it rank 0, is gone, or there is a new one; or it says nothing,
                for `timeout_secs`, or 5 s where that is longer. StoreClosedError.
            StoreError: another object has taken this rank's place; this is a forked child; the barrier's keys in the
                store were changed.

        A death is a timeout, and rank 0's a StoreConnectionError.
        """
        self._meeting.meet()

    def abort(self) -> None:
        """In place of `execute_barrier`, where this rank has failed: fails the call for all others. Does not block.

        Raises:
            The store's errors.
        """
        self._meeting.give_up()

    @property
    def store(self) -> TCPStore:
        """The store, for more than the barrier; its `.port` is where the server listens.

        The barrier's own are the keys `rank0`, `rank1`, … (torch's name; written and never read), those that begin with
        `{barrier_prefix}/`, and for each call `{barrier_prefix}{number}/num_members` and `…/last_member`.
        """
        return self._meeting.store

    def close(self) -> None:
        """Leaves; rank 0 when the others have seen the end of its last call, after 5 s at most. Idempotent."""
        self._end()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} can be neither pickled nor copied, as the copy would count as the same rank: make one in each "
            "process, with a global_rank of its own"
        )

    def __repr__(self) -> str:
        one = self._meeting
        return f"TCPStoreBarrier({one.store!r}, {one.prefix!r}, {one.parties}, rank={one.rank})"


# -- the end of a TCPStoreBarrier -------------------------------------------------------------------------------------


def _end(meeting: ElasticBarrier, pid: int) -> None:
    """Closes the store; rank 0, in its own process, when the others are done with it."""
    try:
        if meeting.rank == 0 and os.getpid() == pid:
            with suppress(StoreError):
                meeting.depart()
    finally:
        meeting.store.close()
