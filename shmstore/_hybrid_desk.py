"""The node's half of a meeting: who of its ranks has come, who leads, and the bell. docs/hybrid.md has the whole.

    hybrid/k/now      the last state of the world that the node knows    moves forward only
    hybrid/k/gather   a Gather, as text                                  compare_set only
    hybrid/k/over/e   the bell of epoch e: OVER, LATE, LOST, and what    set by who moved `now` past e, lost the world
    hybrid/k/v/i      what local rank i brought to an exchange           set by it before its bit
    hybrid/k/data/i   what node i brought                                set by the leader before `now`

`now` moves before the bell, and a bit is set before `now` is looked at: who comes late sees the one or hears the other.
The bell says the state, too: who is woken by it looks at nothing else.
Whether an epoch's ranks were late is decided when `now` moves past it; a later epoch begins here only behind its bell.
"""

# ruff: noqa: SLF001 -- Store's hooks are for just this
from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shmstore.barrier import peers_of_store
from shmstore.errors import StoreError, StoreFullError, StoreTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmstore.store import Store

__all__ = ["NOBODY", "OVER", "Desk", "Gather", "lost_of", "state_of"]

OVER: Final = b"over "
"""The bell: the epoch is over, or broken; the state follows."""
LATE: Final = b"late "
"""The same; and it was so before the node's leader had first looked, so that all who rest here came late."""
NOBODY: Final = -1
"""The leader where the one that was has given up."""
LOST: Final = b"lost "
"""The bell: a rank of the node cannot reach the world; why follows."""


class Gather(NamedTuple):
    """The node's arrivals in one epoch.

    Attributes:
        epoch: which.
        mask: bit i: local rank i has come.
        leader: the local rank that acts in the world, or NOBODY.
        sure: the world was seen in this epoch, by the leader, or one of the node has broken or reset it.
        before: the epoch that was gathered here before this one, or -1.
    """

    epoch: int
    mask: int
    leader: int
    sure: bool = False
    before: int = -1

    @property
    def second(self) -> int:
        """The lowest local rank that has come, beside the leader; NOBODY where there is none."""
        others = self.mask & ~(1 << self.leader) if self.leader != NOBODY else self.mask
        return (others & -others).bit_length() - 1

    def text(self) -> str:
        return f"{self.epoch} {self.mask:x} {self.leader} {int(self.sure)} {self.before}"

    @staticmethod
    def of(raw: bytes) -> Gather:
        epoch, mask, leader, sure, before = raw.split()
        return Gather(int(epoch), int(mask, 16), int(leader), sure == b"1", int(before))


class Desk:
    """One meeting's keys in a node.

    Args:
        node: the store of the node; not one that watches.
        base: the meeting's name.
        size: how many ranks the node has.
    """

    def __init__(self, node: Store, base: str, size: int) -> None:
        self._node = node
        self._base = f"hybrid/{base}"
        self.full = (1 << size) - 1

    # -- the copy of the state ----------------------------------------------------------------------------------------

    def now(self) -> bytes | None:
        """The last state that the node knows, as the world has it."""
        return self._node._peek(f"{self._base}/now")

    def move(self, old: bytes | None, new: str) -> bytes:
        """Puts `new` for `old`; what stands there then."""
        return self._node.compare_set(f"{self._base}/now", old or b"", new)

    # -- arrivals -----------------------------------------------------------------------------------------------------

    def gather(self) -> Gather | None:
        raw = self._node._peek(f"{self._base}/gather")
        if raw is None:
            return None
        try:
            found = Gather.of(raw)
            if found.epoch >= 0 and 0 <= found.mask <= self.full and NOBODY <= found.leader < self.full.bit_length():
                return found
        except ValueError:
            pass
        raise StoreError(f"{self._node!r}: the key {self._base}/gather is in use for something else: {raw[:80]!r}")

    def _change(self, old: Gather | None, new: Gather) -> bool:
        text = new.text()
        return self._node.compare_set(f"{self._base}/gather", "" if old is None else old.text(), text) == text.encode()

    def arrive(self, epoch: int, local_rank: int) -> Gather | None:
        """Sets the rank's bit; the arrivals with it. The first leads. None: a later epoch has begun here."""
        bit = 1 << local_rank
        while True:
            old = self.gather()
            if old is not None and old.epoch > epoch:
                return None
            if old is None:
                new = Gather(epoch, bit, local_rank)
            elif old.epoch < epoch:
                new = Gather(epoch, bit, local_rank, before=old.epoch)
            elif old.mask & bit and old.leader != NOBODY:
                return old
            else:
                new = old._replace(mask=old.mask | bit, leader=local_rank if old.leader == NOBODY else old.leader)
            if old is not None and old.epoch < epoch and not self._node.check([self._bell(old.epoch)]):
                # Whoever moved `now` may not have come to it, and would not find it any more.
                self.ring(old.epoch, self.now() or b"", sure=old.sure)
            if self._change(old, new):
                if old is not None and old.epoch < epoch and old.before >= 0:
                    self._node.delete_key(self._bell(old.before))
                return new

    def make_sure(self, epoch: int) -> None:
        """Who has come to this epoch so far counts as having been there before it ended."""
        while True:
            old = self.gather()
            if old is None or old.epoch != epoch or old.sure or self._change(old, old._replace(sure=True)):
                return

    def resign(self, epoch: int, local_rank: int) -> None:
        """The rank gives up and leads no more, if it did: the next one to look does."""
        old = self.gather()
        while old is not None and (old.epoch, old.leader) == (epoch, local_rank):
            if self._change(old, old._replace(leader=NOBODY)):
                return
            old = self.gather()

    def take_over(self, old: Gather, local_rank: int) -> None:
        """Puts this rank in the place of a leader that is gone, unless another was faster."""
        self._change(old, old._replace(leader=local_rank))

    # -- the bell -----------------------------------------------------------------------------------------------------

    def _bell(self, epoch: int) -> str:
        return f"{self._base}/over/{epoch}"

    def ring(self, epoch: int, state: bytes, *, sure: bool) -> None:
        """Wakes those who rest in this epoch: `now` is past it, as this state is.

        Where the node is full nobody hears it: who rests looks at `now` in a while.
        """
        with suppress(StoreFullError):
            self._node.set(self._bell(epoch), (OVER if sure else LATE) + state)

    def late(self, epoch: int) -> bool:
        """Of an epoch that `now` is past: whether its ranks here came late, as its bell says or is about to say."""
        rang = self.rang(epoch)
        if rang is None:
            gather = self.gather()
            if gather is not None and gather.epoch == epoch:
                return not gather.sure  # which changes no more
            rang = self.rang(epoch)  # a later epoch has begun here: then it was rung before
        return rang is not None and rang.startswith(LATE)

    def lose(self, epoch: int, why: str) -> None:
        """Wakes them, as the world cannot be reached; unless it rang before. Of a full node: as `ring`."""
        with suppress(StoreFullError):
            self._node.compare_set(self._bell(epoch), "", LOST + why.encode("utf-8", "replace"))

    def rang(self, epoch: int) -> bytes | None:
        """What the bell said, or None."""
        return self._node._peek(self._bell(epoch))

    def lost(self, epoch: int) -> str | None:
        """Why the world cannot be reached, where the bell said so."""
        return lost_of(self.rang(epoch))

    def unlose(self, epoch: int) -> None:
        self._node.delete_key(self._bell(epoch))

    def rest(self, epoch: int, ns: int) -> bytes | None:
        """Parks until the bell rings, or for that long; what it says, None for the latter."""
        try:
            return self._node.get(self._bell(epoch), ns / 1e9)
        except StoreTimeoutError:
            return None

    # -- who lives ----------------------------------------------------------------------------------------------------

    def gone(self) -> dict[int, Any]:
        """The local ranks that died or left, with their records; none on a store that knows nobody."""
        peers = peers_of_store(self._node)
        gone = [] if peers is None else [one for one in peers() if one.state in ("dead", "left")]
        return {one.rank: one for one in gone if one.rank is not None}

    # -- what they bring ----------------------------------------------------------------------------------------------

    def bring(self, local_rank: int, value: bytes) -> None:
        self._node.set(f"{self._base}/v/{local_rank}", value)

    def brought(self) -> list[bytes]:
        """What each local rank brought; all have come."""
        return self._node.multi_get([f"{self._base}/v/{i}" for i in range(self.full.bit_length())])

    def _data(self, nodes: int) -> list[str]:
        return [f"{self._base}/data/{node}" for node in range(nodes)]

    def keep(self, data: Sequence[bytes]) -> None:
        """What each node brought."""
        self._node.multi_set(self._data(len(data)), list(data))

    def kept(self, nodes: int) -> list[bytes] | None:
        keys = self._data(nodes)
        return self._node.multi_get(keys, 0) if self._node.check(keys) else None


def lost_of(rang: bytes | None) -> str | None:
    """Why the world cannot be reached, where a bell says so."""
    return rang[len(LOST) :].decode("utf-8", "replace") if rang is not None and rang.startswith(LOST) else None


def state_of(rang: bytes) -> bytes | None:
    """The state that a bell tells of, where it does."""
    return rang[len(OVER) :] if rang.startswith((OVER, LATE)) else None
