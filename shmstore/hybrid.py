"""HybridStore: a ShmStore in each node and a store across the nodes, as one store. docs/hybrid.md has the protocol.

The rule for keys is in sight: a key that begins with `node/` stays in the node, every other key goes to the world.
"""

# ruff: noqa: D102 -- the verbs' docstrings are Store's, and help() shows them here too
from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from shmstore._at_exit import close_at_exit
from shmstore._deadline import Timeout
from shmstore._foreign import ForeignStore
from shmstore._hybrid_once import Once
from shmstore._hybrid_open import Parting, halves
from shmstore._hybrid_verbs import NODE, HalvedStore
from shmstore._hybrid_world import World, unwatched, world_of
from shmstore._job import Place, place_of
from shmstore._keys import Key, Value, key_bytes, shown, value_bytes
from shmstore.barrier import peers_of_store
from shmstore.prefix import PrefixStore
from shmstore.shm import HashStore, ShmStore
from shmstore.store import Capabilities, Store

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["HybridStore"]

RANKS_MAX: Final = 4096


class HybridStore(HalvedStore):
    """A store of two: the memory of a node for what concerns the node, a store across nodes for the rest.

    Args:
        node: a ShmStore that the ranks of this node share, each with its own handle, made with `rank=local_rank` so
            that its death is noticed; or a HashStore, or a PrefixStore over one of them.
        world: a store that reaches all nodes: a TCPStore of ours, at our server or at torch's; any other store of ours;
            or an object with c10d's set, get, add, wait, check, compare_set and delete_key, such as torch's TCPStore.
        node_rank: this node, 0 to num_nodes - 1.
        num_nodes: how many there are.
        local_rank: this rank in its node, 0 to local_world_size - 1.
        local_world_size: how many ranks each node has, the same for all.

    The rank is node_rank * local_world_size + local_rank, the world size num_nodes * local_world_size, at most 4096.

    A key that begins with `node/` is a key of `node`, by that whole name, and each node has its own; every other key is
    a key of `world`. The rule looks at the whole key: under a PrefixStore("p", …) every key begins with `p/` and goes
    to the world, and PrefixStore("node", …) is a store of the node alone. A verb of several keys asks each half for its
    own, with one deadline. multi_set is all or nothing in each half, the node's first. num_keys and list_keys see the
    node's `node/` keys and all of the world's. Keys of `node` that begin with `hybrid/` are the store's own.

    Of a single node nothing that the ranks do together goes over the wire, and its `Barrier`s lie in its segment: who
    is on the world alone cannot take part in them.

    `barrier` of all ranks, `Barrier`s of all ranks with their ranks, `all_gather`, `broadcast`, and elastic's
    `synchronize` and `barrier` go through the node first: the wire carries messages per node, not per rank.

    The store has both halves from then on: its timeout is its own, `close` closes both (an object that is none of ours
    is let go), and a pickled handle opens both again, without registering the rank.

    Raises:
        TypeError, ValueError: a wrong type or value; or `node` has registered another rank than local_rank.
    """

    def __init__(
        self, node: Store, world: Any, *, node_rank: int, num_nodes: int, local_rank: int, local_world_size: int
    ) -> None:
        if not isinstance(_below(node), ShmStore | HashStore):
            raise TypeError(f"node must be a ShmStore, or a HashStore or PrefixStore over one, not {node!r}")
        for what, number, least, limit in (
            ("num_nodes", num_nodes, 1, RANKS_MAX),
            ("local_world_size", local_world_size, 1, RANKS_MAX),
            ("node_rank", node_rank, 0, num_nodes),
            ("local_rank", local_rank, 0, local_world_size),
        ):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{what} must be an int, not {type(number).__name__}")
            most = limit if least else limit - 1
            if not least <= number <= most:
                raise ValueError(f"{what} must be {least} to {most}, got {number}")
        if num_nodes * local_world_size > RANKS_MAX:
            raise ValueError(f"num_nodes * local_world_size must be at most {RANKS_MAX}")
        mine = _registered(node)
        if mine not in (None, local_rank):
            raise ValueError(f"{node!r} has registered rank {mine}, and local_rank is {local_rank}: they are the same")
        super().__init__(node, world if isinstance(world, Store) else ForeignStore(world))
        self.node_rank: Final = node_rank
        self.num_nodes: Final = num_nodes
        self.local_rank: Final = local_rank
        self.local_world_size: Final = local_world_size
        self._rest: list[Store] = []
        self._says: list[World] = []
        self._parting: Parting | None = None

    @classmethod
    def from_env(
        cls, *, name: str | None = None, timeout: Timeout = timedelta(seconds=300), **options: Any
    ) -> HybridStore:
        """The store of a process that torchrun started, or a launcher that sets the same variables.

        RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE say who this is, GROUP_RANK and GROUP_WORLD_SIZE which node of
        how many (without them they follow from the others). The world is a TCPStore at MASTER_ADDR:MASTER_PORT: the
        agent's where TORCHELASTIC_USE_AGENT_STORE is True, else one that rank 0 hosts. Of the agent's store it is the
        part under `shmstore/<run id>/<restart count>`, so that no attempt meets what the one before it left.

        Args:
            name: of the node's segment; None: made of the run id, the port, the restart count and the node's rank.
            timeout: the store's own, and how long this waits for the server.
            options: more of the ShmStore's: capacity, mode, sync.

        Raises:
            ValueError: a variable is missing or wrong, or the nodes have not all the same number of ranks; says which.
            What ShmStore and TCPStore raise.
        """
        place = place_of(os.environ)
        return cls.at(place, name=name, timeout=timeout, **options)

    @classmethod
    def at(cls, place: Place, *, name: str | None = None, timeout: Timeout, **options: Any) -> HybridStore:
        """The store of a process whose place in the job is known: see `from_env`."""
        node, world = halves(place, name, timeout, options)
        size = place.local_world_size
        made = cls(
            node,
            world,
            node_rank=place.rank // size,
            num_nodes=place.world_size // size,
            local_rank=place.rank % size,
            local_world_size=size,
        )
        if not place.prefix:  # a server of the job's own
            made._parting = Parting(place)
        close_at_exit(made)
        return made

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def node(self) -> Store:
        """The store of the node."""
        return self._node

    @property
    def world(self) -> Store:
        """The store across nodes; of an object that is none of ours, what makes it one."""
        return self._world

    @property
    def rank(self) -> int:
        """This rank among all."""
        return self.node_rank * self.local_world_size + self.local_rank

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self.num_nodes * self.local_world_size

    @property
    def capabilities(self) -> Capabilities:
        near, far = self._node.capabilities, self._world.capabilities
        return Capabilities(
            cross_process=near.cross_process and far.cross_process,
            cross_host=near.cross_process and far.cross_host,
            picklable=near.picklable and far.picklable,
            fork=near.fork and far.fork,
            queues=far.queues,
            list_keys=far.list_keys,
            barrier=False,
            names_dead=near.names_dead,
            bad_add_disconnects=far.bad_add_disconnects,
            extra_internal_keys=far.extra_internal_keys,
        )

    # -- together -----------------------------------------------------------------------------------------------------

    def barrier(self, key: Key, world_size: int, timeout: Timeout | None = None) -> None:
        """See `Store`. Of all ranks it goes through the node, and its count is not under the key.

        A name serves once, a later caller passes at once, an arrival that timed out still counts; each rank counts
        once. With another `world_size`, or a key of the node, it is that half's own barrier. A death of a rank that has
        not come fails it for all, for good.

        Raises:
            BarrierTimeoutError: `.missing_ranks` has who was missing. PeerDiedError: names rank, node and pid.
            StoreConnectionError: the world is lost. TypeError, ValueError.
        """
        raw, half = key_bytes(key), self._half(key)
        if half is self._node or world_size != self.world_size or isinstance(world_size, bool):
            half.barrier(key, world_size, timeout)
        else:
            self._once(raw + b"/barrier", None, timeout)

    def all_gather(self, key: Key, value: Value, timeout: Timeout | None = None) -> list[bytes]:
        """Gives a value and gets everybody's; blocks until all ranks have called it with this key.

        Args:
            key: a name of the world, which serves once. A later caller gets the same values.
            value: str (UTF-8) or bytes; those of a node are at most 8 MiB together, 8 bytes more each.
            timeout: of the whole; None is the store's own.

        One blob a node crosses the wire, and all nodes' to each.

        Returns:
            The values of all ranks, in their order.

        Raises:
            BarrierTimeoutError: `.missing_ranks` has who was missing; an arrival stays. PeerDiedError: a rank died that
            had not come, on whichever node; for good. StoreConnectionError: the world is lost. ValueError: the values
            of this node are too long together; BrokenBarrierError: those of another rank's node were. TypeError.
        """
        raw, data = key_bytes(key), value_bytes(value)
        if self._half(raw) is self._node:
            raise ValueError(f"all_gather({shown(raw)}): all nodes take part, and the key stays in the node")
        return self._once(raw + b"/all_gather", data, timeout)

    def broadcast(self, key: Key, value: Value | None, src: int, timeout: Timeout | None = None) -> bytes:
        """Gives one rank's value to all; blocks until all ranks have called it with this key.

        Args:
            key: as of all_gather; a name serves one of the two.
            value: on rank `src` what it gives; on the others None.
            src: the rank that gives, the same for all.
            timeout: as of all_gather.

        Raises:
            As all_gather; ValueError: no such rank, or a value where there should be none.
        """
        if isinstance(src, bool) or not isinstance(src, int):
            raise TypeError(f"src must be an int, not {type(src).__name__}")
        if not 0 <= src < self.world_size:
            raise ValueError(f"src must be 0 to {self.world_size - 1}, got {src}")
        if (value is None) == (src == self.rank):
            raise ValueError(f"rank {self.rank}: rank {src} gives a value, and no other")
        return self.all_gather(key, b"" if value is None else value, timeout)[src]

    def _once(self, raw: bytes, value: bytes | None, timeout: Timeout | None) -> list[bytes]:
        limit = self._timeout if timeout is None else timeout
        return Once(self, raw, self.world_size, self.rank, limit, value).meet()

    def _together(
        self, raw: bytes, rank: int | None, world_size: int, value: bytes | None, timeout: Timeout
    ) -> list[bytes] | None:
        if world_size != self.world_size or raw.startswith(NODE):
            return None
        if rank not in (None, self.rank):
            raise ValueError(f"{self!r} is that of rank {self.rank}, and {rank} was given: each meets by its own")
        self._half(raw)
        return self._once(raw + (b"/meet" if value is None else b"/exchange"), value, timeout)

    # -- the handle ---------------------------------------------------------------------------------------------------

    def _barrier_home(self, raw: bytes) -> tuple[Store, bytes] | None:
        if self.num_nodes == 1 and not raw.startswith(NODE):
            raw = b"hybrid/barrier/" + raw
        elif not raw.startswith(NODE):
            return None
        return self._node._barrier_home(raw)  # noqa: SLF001 -- the same

    def _nodes(self, raw: bytes) -> tuple[Store, bytes] | None:
        return None if raw.startswith(NODE) else (self, raw)

    def _resting(self) -> Store:
        """The node, as meetings park there."""
        if not self._rest:
            self._half(b"k")
            self._rest.append(unwatched(self._node))  # two threads may; the first one's is used
        return self._rest[0]

    def _signals(self) -> World:
        """The world, as meetings speak to it: of a single node its own segment, so that nothing goes over the wire."""
        if not self._says:
            self._half(b"k")
            alone = self.num_nodes == 1
            self._says.append(world_of(PrefixStore("hybrid/world", self._resting()) if alone else self._world))
        return self._says[0]

    def peers(self) -> Sequence[Any]:
        """Who is and was attached to the node's segment, by local rank: `ShmStore.peers`; nobody where unknown."""
        found = peers_of_store(self._node)
        return [] if found is None else found()

    def _watching(self) -> Store:
        return self._made(self._node._watching(), self._world.clone())  # noqa: SLF001 -- Store's hook

    def clone(self) -> Self:
        """See `Store`. A clone is the same rank, though not registered again."""
        self._half(b"k")
        return self._made(self._node.clone(), self._world.clone())

    def _made(self, node: Store, world: Store) -> Self:
        made = type(self)(node, world, **self._places())
        made.set_timeout(self._timeout)
        return made

    def _places(self) -> dict[str, int]:
        return {
            "node_rank": self.node_rank,
            "num_nodes": self.num_nodes,
            "local_rank": self.local_rank,
            "local_world_size": self.local_world_size,
        }

    def close(self) -> None:
        """Closes both halves; the world's server too, where this handle hosts it. Idempotent.

        One that `connect` or `from_env` made host it waits, for 5 s at most, until all other ranks have closed theirs;
        the last one of a node tells it so, and gives a silent server 5 s, too.
        """
        if self._parting is not None and not self._closed:
            self._parting.leave(lambda: (self._node, self._signals().store))
        self._closed = True
        try:
            for world in self._says:
                world.store.close()
            for node in self._rest:
                node.close()
            self._world.close()
        finally:
            self._node.close()

    def __enter__(self) -> Self:
        self._half(b"k")
        return self

    def __repr__(self) -> str:
        return (
            f"HybridStore({self._node!r}, {self._world!r}, node {self.node_rank} of {self.num_nodes}, "
            f"local rank {self.local_rank} of {self.local_world_size})"
        )

    def __reduce__(self) -> tuple[Callable[..., HybridStore], tuple[Store, Store, Mapping[str, int], timedelta]]:
        self._half(b"k")
        return _again, (self._node, self._world, self._places(), self._timeout)


def _again(node: Store, world: Store, places: Mapping[str, int], timeout: timedelta) -> HybridStore:
    made = HybridStore(node, world, **places)
    made.set_timeout(timeout)
    return made


def _registered(store: Any) -> int | None:
    """The rank that the handle has registered in its segment, or None."""
    store = _below(store)
    return store.rank if isinstance(store, ShmStore) else None


def _below(store: Any) -> Any:
    """The store below all prefixes."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return store
