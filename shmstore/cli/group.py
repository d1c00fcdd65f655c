"""Group: the ranks of a job that still live, and the barrier at which they meet.

    group = Group(store, rank, nproc=8, timeout_s=60)
    do_my_part()
    while not group.meet("at the barrier"):  # somebody died; the group is smaller now
        take_over_from(group.noticed)

At first all ranks are members. Nobody is told of a death: a member that waits at the barrier of the group learns it
there, since a Barrier of the store breaks for all when a rank that it needs has died. Then the survivors regroup: their
next barrier is another one, with fewer parties, named for the dead. One barrier serves all meetings of one group.

The keys:

    group                     Barrier of all ranks, each in the seat of its number
    group/without/2,5         Barrier of all but the ranks 2 and 5, numbered anew in the order of their ranks
    group/without/2,5/RANK    that rank has taken its seat there

Regrouping, in a loop: look who is dead; open the barrier of the others, which takes the seat in it; say so by the key;
wait for the same word of all the others; if one of them turns out to be dead before it said so, begin anew.

Why all of them always agree:

- Deaths are for ever, and whoever looks after one sees it. So each one's members are all that live, and maybe some dead
  ones that it has not seen yet.
- A member gives a barrier up only when that is broken, and nobody mends a broken one. How an epoch ended stands in one
  word of the segment, so all members read the same there. Thus a meeting that passes for one has had the arrivals of
  all that live, and passes for all of them, at this barrier and no other: nobody can be a meeting ahead.
- A barrier that breaks for a death is followed by one with fewer parties. Those who have seen fewer deaths wait for a
  rank that is dead, and find that out. After the last death all see the same dead, so the regrouping ends.

Why nobody waits for the dead: a barrier judges a seat by who took it. In "group" it also knows the rank of a seat that
nobody took, because that barrier is of all ranks of the segment. In a smaller one it cannot, so nobody waits there
before all have a seat; until then the wait is for keys, in slices, with a look at `peers()` between two of them.

A rank that has not attached yet counts as alive. Should it die before it attaches, the store never knew it: the
launcher, who started it, has to end the job.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from shmstore import Barrier, PeerDiedError, ShmStore, StoreTimeoutError

__all__ = ["Group", "Notice"]

_LOOK_S = 0.05  # between two looks at the peers: as long as the slices of the store's own waits


@dataclass(frozen=True, slots=True)
class Notice:
    """How a rank learned that another one is dead."""

    rank: int
    pid: int
    at_s: float  # CLOCK_MONOTONIC
    where: str


class Group:
    """The living among `nproc` ranks, as the one that asks knows them. For one thread.

    Attributes:
        noticed: the dead, by rank, in the order in which this one learned of them.
    """

    def __init__(self, store: ShmStore, rank: int, nproc: int, timeout_s: float) -> None:
        self.noticed: dict[int, Notice] = {}
        self._store = store
        self._rank = rank
        self._nproc = nproc
        self._timeout_s = timeout_s
        self._members = tuple(range(nproc))
        self._barrier = Barrier(store, "group", nproc, rank, timeout_s)

    @property
    def first(self) -> bool:
        """Whether this is the lowest rank of the members."""
        return self._rank == self._members[0]

    def meet(self, where: str) -> bool:
        """Waits for all members. True: all came, and each of them that still lives is told so.

        False: one that was needed had died, and the others have regrouped. To be called again then, when what the dead
        left has been seen to.

        Args:
            where: for the notice of a death.

        Raises:
            BrokenBarrierError: a member timed out or left, this one perhaps: then a BarrierTimeoutError.
            StoreTimeoutError: a member did not come to the regrouping.
        """
        try:
            self._barrier.wait()
        except PeerDiedError:
            if not self.look(where) and not self.noticed.keys() & set(self._members):
                raise  # it blames nobody that is dead: regrouping would bring the same members here
            self._regroup()
            return False
        return True

    def look(self, where: str) -> bool:
        """Looks who is dead. Whether there is a new one."""
        now_s = time.monotonic()
        news = [
            Notice(peer.rank, peer.pid, now_s, where)
            for peer in self._store.peers()
            if peer.rank is not None and peer.state == "dead" and peer.rank not in self.noticed
        ]
        self.noticed.update((notice.rank, notice) for notice in news)
        return bool(news)

    def _regroup(self) -> None:
        formed = False
        while not formed:
            living = tuple(rank for rank in range(self._nproc) if rank not in self.noticed)
            name = f"group/without/{','.join(map(str, sorted(self.noticed)))}"
            self._barrier = Barrier(self._store, name, len(living), living.index(self._rank), self._timeout_s)
            self._members = living
            self._store.set(f"{name}/{self._rank}", b"")
            formed = self._seated([f"{name}/{rank}" for rank in living])

    def _seated(self, words: list[str]) -> bool:
        """Waits until all members have taken their seats; False: one more is dead."""
        deadline_s = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline_s:
            with suppress(StoreTimeoutError):
                self._store.wait(words, _LOOK_S)
                return True
            if self.look("in the regrouping"):
                return False
        self._store.wait(words, 0)  # raises, and names who did not come
        return True
