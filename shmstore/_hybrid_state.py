"""HybridState: what a meeting of all ranks knows: its keys, the state in the world and its copy here, who has come.

The state is KeyBarrier's, one key of the world that changes by compare_set only; so are its resets, and what is told of
a broken epoch. Whoever learns of a newer state tells the node (`_post`): the copy first, then the bell.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from shmstore._barrier_keys import ROOM, KeyBarrier, Known
from shmstore._barrier_state import State
from shmstore._barrier_words import Break, Missing, peer_text
from shmstore._hybrid_desk import Desk
from shmstore._keys import KEY_MAX, key_text
from shmstore.barrier import nodes_of, peers_of_store
from shmstore.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shmstore._hybrid_world import Decided, Decision, Told, World
    from shmstore.store import Store

__all__ = ["Home", "HybridState", "age"]


class Home(Protocol):
    """What a meeting needs of its HybridStore."""

    rank: int
    node_rank: int
    num_nodes: int
    local_world_size: int

    def _resting(self) -> Store: ...
    def _signals(self) -> World: ...


class HybridState(KeyBarrier):
    """The part of a HybridBarrier that waits for nobody."""

    _home: Home
    _desk: Desk
    _local: int
    _ended_by: ClassVar[tuple[str, ...]] = ("dead", "left")
    """As what a rank that has not come ends the epoch for all."""
    _mark: ClassVar[tuple[int, ...]] = ()
    """What the shape of its states ends with, so that no other kind of meeting takes them for its own."""

    def _setup(self) -> None:
        self._place()
        self._now()

    def _place(self) -> None:
        """Finds its keys; asks nobody."""
        found = nodes_of(self._store, self._raw, self._parties, self._rank)
        if found is None or self._rank is None:
            raise ValueError(f"{self!r}: not all ranks of a HybridStore: shmstore.Barrier(…) makes the kind that fits")
        home: Home
        home, raw = found
        size = home.local_world_size
        if self._rank != home.rank:
            raise ValueError(
                f"{self!r}: this store is that of rank {home.rank}, and {self._rank} was given: each meets by its own"
            )
        self._local = self._rank % size
        self._world = home._signals()  # noqa: SLF001 -- a part of the store
        most = KEY_MAX - 2 * ROOM - self._world.prefix_size
        if len(raw) > most:
            raise ValueError(f"the key of a barrier has 1 to {most} bytes here, this one has {len(raw)}")
        self._base = key_text(raw)
        self._home = home
        self._first = State(self._parties, shape=(home.num_nodes, size, *self._mark))
        self._at = self._world.store
        self._ours = True
        self._known = Known(swaps=True, deletes=True)
        self._desk = Desk(home._resting(), self._base, size)  # noqa: SLF001 -- the same

    def _numbered(self, local_rank: int) -> int:
        """A rank of this node by its number among all."""
        return self._home.node_rank * self._home.local_world_size + local_rank

    # -- the keys -----------------------------------------------------------------------------------------------------

    def _state_key(self) -> tuple[str, str]:
        return f"{self._base}/state", self._first.text()

    def _arrived(self, epoch: int, rank: int) -> str:
        """The key of a node, which is whom `rank` means in a world."""
        return f"{self._base}/{epoch}/n{rank}"

    def _nodes(self, epoch: int) -> list[str]:
        return [self._arrived(epoch, node) for node in range(self._home.num_nodes)]

    def _who(self, node: int) -> str:
        return f"{self._base}/seen/n{node}"

    def _telling(self, epoch: int) -> Told:
        """What announces the node: its ranks have all come."""
        node = self._home.node_rank
        return self._arrived(epoch, node), self._brought(), self._arrived(epoch - 2, node) if epoch >= 2 else None

    def _brought(self) -> bytes:
        return b"1"

    def _size(self) -> int:
        """About how many bytes all nodes send and get for it."""
        return 0

    def _complete_here(self, epoch: int) -> bool:
        return self._here_so_far(epoch) == self._desk.full

    # -- the state ----------------------------------------------------------------------------------------------------

    def _here(self) -> State | None:
        """The state as the node knows it."""
        raw = self._desk.now()
        return None if raw is None else self._parsed(raw)

    def _look(self) -> State:
        """The state now."""
        state = self._read()
        self._post(state)
        return state

    def _since(self, epoch: int, state: State) -> State:
        """The state, as the world has it now: not older than the epoch that this node has seen before."""
        if state.epoch < epoch:
            raise StoreError(f"{self!r}: its keys in the world were lost: it is another server, or was started again")
        return state

    def _post(self, state: State, before: State | None = None) -> None:
        """Tells the node, where it does not know better already; `before` is what it is expected to know."""
        raw = self._desk.now() if before is None else before.text().encode()
        while raw is None or age(self._parsed(raw)) < age(state):
            now = self._desk.move(raw, state.text())
            if now == state.text().encode():
                break
            raw = now if now != raw else None  # c10d's answer where the key is missing
        gather = self._desk.gather()
        if gather is not None and age(state) > (gather.epoch, False):
            self._desk.ring(gather.epoch, state.text().encode(), sure=gather.sure)

    def _decision(self, state: State) -> Decision:
        """That its epoch is over: all have come."""
        return self._state_key()[0], state.text(), state.passed().text(), self._wanted(state.epoch)

    def _pass(self, state: State, decided: Decided | None = None) -> State:
        raw, values = self._world.decide(self._decision(state), self._size()) if decided is None else decided
        now = self._parsed(raw)
        if now == state:
            raise StoreError(f"{self!r}: its keys in the store were removed by others")
        if now.epoch > state.epoch:
            self._got(values)
        self._post(now, state)
        return now

    def _wanted(self, epoch: int) -> list[str]:  # noqa: ARG002 -- for those that exchange something
        """Keys whose values come with the decision."""
        return []

    def _got(self, values: list[bytes]) -> None:
        """Their values."""

    def _move(self, old: State, new: State) -> State:
        self._desk.make_sure(old.epoch)
        now = super()._move(old, new)
        self._post(now)
        return now

    def _ring(self, epoch: int) -> None:
        keys = self._nodes(epoch)
        self._at.multi_set(keys, [b"1"] * len(keys))

    def _sweep(self, epoch: int) -> None:
        self._delete(key for over in (epoch - 2, epoch - 1) if over >= 0 for key in self._nodes(over))

    def _now(self) -> tuple[int, Break | None]:
        state = self._look()
        return state.epoch, state.cause

    def _break(self, epoch: int | None, cause: Break) -> int:
        if cause.rank == self._rank:
            cause = replace(cause, node=self._home.node_rank)
        self._look()  # the node learns what the world says, also where nothing is to break
        return super()._break(epoch, cause)

    # -- who is there -------------------------------------------------------------------------------------------------

    def _complete(self, state: State) -> bool:
        return bool(self._at.check(self._nodes(state.epoch)))

    def _absent(self, state: State) -> tuple[int, list[int]]:
        missing: list[int] = []
        size, mine = self._home.local_world_size, self._home.node_rank
        here = self._here_so_far(state.epoch)
        there = self._world.there(self._nodes(state.epoch))
        away = [node for node, came in enumerate(there) if not came]
        if mine in away and here == self._desk.full:  # whose last arriver has not said so yet
            self._world.say(self._telling(state.epoch))
            away.remove(mine)
        for node, mask in zip(away, self._masks(state.epoch, away, here), strict=True):
            missing += [node * size + local for local in range(size) if not mask >> local & 1]
        return self._parties - len(missing), missing

    def _here_so_far(self, epoch: int) -> int:
        """Who of this node has come, as a mask."""
        gather = self._desk.gather()
        return gather.mask if gather is not None and gather.epoch == epoch else 0

    def _masks(self, epoch: int, nodes: Sequence[int], here: int) -> Iterable[int]:
        """Who of the nodes has come, as far as it is known here."""
        seen = self._world.read([self._who(node) for node in nodes])
        for node, raw in zip(nodes, seen, strict=True):
            if node == self._home.node_rank:
                yield here
            else:
                yield self._seen_mask(raw, epoch)

    def _seen_mask(self, raw: bytes | None, epoch: int) -> int:
        """What a node's leader said of its ranks; it is for people, so that nothing else may follow from it.

        That all have come is none of it: that is said by the node's own key, which is not there.
        """
        at, _, bits = (raw or b"").partition(b" ")
        try:
            mask = int(bits, 16) if int(at) == epoch else 0
        except ValueError:
            return 0
        return mask if 0 <= mask < self._desk.full else 0

    def _states(self, ranks: Sequence[int]) -> list[Missing]:
        size, mine = self._home.local_world_size, self._home.node_rank
        peers = peers_of_store(self._home._resting())  # noqa: SLF001
        known = {} if peers is None else {one.rank: one for one in peers() if one.rank is not None}
        return [
            Missing(
                rank,
                f"node {rank // size}, {peer_text(known.get(rank % size))}"
                if rank // size == mine and known
                else f"node {rank // size}, did not arrive",
            )
            for rank in ranks
        ]


def age(state: State) -> tuple[int, bool]:
    """What grows with each change."""
    return state.epoch, state.cause is not None
