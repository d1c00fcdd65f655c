"""HybridBarrier: a Barrier of all ranks of a HybridStore, by messages per node. docs/hybrid.md says how, and why so.

What is known of a meeting is in `_hybrid_state`. Here is how the ranks come to move it: gathered in the node
(`_hybrid_desk`), their leaders and whoever has failed in the world (`_hybrid_world`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from shmstore._barrier_state import Arrival, State
from shmstore._barrier_words import Break
from shmstore._deadline import FOREVER
from shmstore._hybrid_desk import NOBODY, OVER, lost_of, state_of
from shmstore._hybrid_state import HybridState, age
from shmstore.barrier import Attempt, nodes_of, store_home
from shmstore.errors import StoreConnectionError, StoreError

if TYPE_CHECKING:
    from shmstore._hybrid_desk import Gather
    from shmstore._hybrid_world import Decision, Told

__all__ = ["HybridBarrier"]

REST_NS: Final = 100_000_000
"""How long a rank parks in the segment before it looks who lives."""
SLICE_NS: Final = 1_000_000_000
"""How long a leader waits in the world before it looks at the state: who broke it may have been killed before it woke
the leaders."""


@dataclass(slots=True)
class Stay:
    """A rank in an epoch.

    Attributes:
        gather: the node's arrivals, as it last saw them.
        told: what it has still to tell the world.
        since_ns: when it last looked after what others were to say.
    """

    gather: Gather
    told: Told | None
    since_ns: int

    def over(self, ns: int) -> bool:
        """Whether that is so long ago; then it is now."""
        now = monotonic_ns()
        due = now - self.since_ns >= ns
        if due:
            self.since_ns = now
        return due


class HybridBarrier(HybridState):
    """A barrier of all ranks of a HybridStore. See `Barrier` for what it does, the module for how."""

    @classmethod
    def _takes(cls, store: Any, raw: bytes, parties: int, rank: int | None) -> bool:
        return store_home(store, raw) is None and nodes_of(store, raw, parties, rank) is not None

    # -- wait ---------------------------------------------------------------------------------------------------------

    def _wait(self, attempt: Attempt) -> int:
        index = None
        while index is None:  # it came to an epoch that was over already: again, to the current one
            attempt.epoch = None
            index = self._meet(attempt)
        return index

    def _meet(self, attempt: Attempt) -> int | None:
        """One arrival; None: its epoch was over before anybody here could know."""
        epoch = attempt.epoch = self._begin(attempt)
        try:
            gather = self._desk.arrive(epoch, self._local)
            if gather is None:
                if (self._here() or State(0)).epoch <= epoch:
                    raise StoreError(f"{self!r}: its keys in the node were changed by others")
                return None
            arrival = Arrival(epoch)
            told = self._telling(epoch) if gather.mask == self._desk.full else None
            index = self._follow(attempt, arrival, gather, told)
            if index is None and told is not None:  # of an epoch in which nobody counts it
                self._delete([told[0]])
        except StoreConnectionError as error:
            why = str(error)
            with suppress(StoreError):
                if self._desk.lost(epoch) is None:
                    why += self._and_who_died()
                    self._desk.lose(epoch, f"rank {self._rank} (node {self._home.node_rank}): {why}")
                self._desk.resign(epoch, self._local)
            raise StoreConnectionError(why) from error.__cause__
        except BaseException:
            with suppress(StoreError):  # its own handle may be closed
                self._desk.resign(epoch, self._local)
            raise
        return index

    def _and_who_died(self) -> str:
        """Of this node, for the error of a world that is lost: maybe by that."""
        gone = sorted(self._desk.gone().items())
        dead = [f"rank {self._numbered(local)} (pid {one.pid})" for local, one in gone if one.state == "dead"]
        return f"; of this node died: {', '.join(dead)}" if dead else ""

    def _begin(self, attempt: Attempt) -> int:
        """The epoch to arrive in, as far as the node knows. Raises where it is broken, or not the one wanted."""
        state = self._here()
        if state is None:
            return 0 if attempt.only is None else self._only(attempt.only)
        why = self._desk.lost(state.epoch)
        if why is not None or state.cause is not None or attempt.only not in (None, state.epoch):
            state = self._since(state.epoch, self._look())
        if attempt.only is not None and attempt.only != state.epoch:
            raise self._not_current(attempt.only, state.epoch)
        if why is not None and state.cause is None and self._desk.lost(state.epoch) is not None:
            note = f"its node had lost the world: {why}"
            self._break(state.epoch, Break("interrupt", self._rank, note=note, node=self._home.node_rank))
            state = self._look()
        if state.cause is not None:
            raise self._broken(state.epoch, state.cause)
        return state.epoch

    def _only(self, epoch: int) -> int:
        now = self._look().epoch
        if now != epoch:
            raise self._not_current(epoch, now)
        return epoch

    def _follow(self, attempt: Attempt, arrival: Arrival, gather: Gather, told: Told | None) -> int | None:
        """Until the epoch is over: leads where it is this rank's turn, and rests otherwise."""
        epoch, stay = arrival.epoch, Stay(gather, told, monotonic_ns())
        state, lost = self._here(), self._desk.lost(epoch)
        while True:
            if state is not None and age(state) > (epoch, False):
                late = state.epoch > epoch and arrival.place(state, self._rank, self._parties) is None
                if late and attempt.only is None and self._desk.late(epoch):
                    return None
                return self._settled(state, arrival)
            if lost is not None:
                attempt.epoch = None  # there is nobody to tell
                raise StoreConnectionError(f"barrier {self.key!r}: the world is lost to this node: {lost}")
            leads = stay.gather.leader == self._local
            if stay.told is not None and (not leads or attempt.left_ns() == 0):
                unsure = None if stay.gather.sure else self._state_key()
                self._world.tell(stay.told, unsure, lambda raw: age(self._seen(epoch, raw)) > (epoch, False))
                stay.told = None
            rang = None
            if attempt.left_ns() == 0:
                state = self._since(epoch, self._look())
                if age(state) == (epoch, False):
                    self._late(attempt, state)
            elif leads:
                if self._lead(attempt, epoch, state or self._first, stay):
                    return self._rank
            else:
                foreseen = self._foresee(state or self._first, epoch)
                rang = self._rest(attempt, epoch, stay)
                if rang == foreseen:  # as a rule, and all that follows would say the same
                    return self._rank
            if rang is None:
                stay.gather = self._around(epoch) or stay.gather
                rang = self._desk.rang(epoch)
            if rang is None:
                state = self._here()
            else:
                state, lost = self._heard(epoch, rang)

    def _again_ns(self) -> int:
        """After how long what should have come from the world, or have come there, is looked after."""
        return SLICE_NS

    def _rest(self, attempt: Attempt, epoch: int, stay: Stay) -> bytes | None:
        """Parks for a slice; what the bell says. One of the node looks at the state, too: its leader may be stopped."""
        rang = self._desk.rest(epoch, min(attempt.left_ns(), REST_NS))
        if rang is None and stay.gather.second == self._local and stay.over(self._again_ns()):
            with suppress(StoreConnectionError):  # that is for the leader to say
                self._since(epoch, self._look())
        return rang

    def _heard(self, epoch: int, rang: bytes) -> tuple[State | None, str | None]:
        """What a bell says: a state behind the epoch, or why the world cannot be reached."""
        raw, lost = state_of(rang), lost_of(rang)
        state = None if raw is None else self._parsed(raw)
        if lost is None and (state is None or age(state) <= (epoch, False)):
            raise StoreError(f"{self!r}: its keys in the node were changed by others: {rang[:80]!r}")
        return state, lost

    def _lead(self, attempt: Attempt, epoch: int, known: State, stay: Stay) -> bool:
        """One slice in the world, and the decision when all nodes have come. True: it is over, and as it was foreseen.

        `known`: the state, as far as the node knows.
        """
        desk, seen_mask = self._desk, 0

        def look() -> bool:
            nonlocal seen_mask
            gather = desk.gather()
            if gather is None or gather.epoch != epoch or desk.rang(epoch) is not None or self._missed(epoch):
                return True
            if gather.mask not in (seen_mask, desk.full):
                seen_mask = gather.mask
                self._at.set(self._who(self._home.node_rank), f"{epoch} {gather.mask:x}")
            return False

        told, stay.told = stay.told or self._lost_words(epoch, stay), None
        found: list[State] = []

        def seen(raw: bytes) -> bool:
            found.append(self._seen(epoch, raw))
            self._foresee(found[0], epoch)
            return age(found[0]) > (epoch, False)

        deadline = min(monotonic_ns() + min(attempt.left_ns(), SLICE_NS), FOREVER)
        nodes, then = self._nodes(epoch), self._decision(known)
        met, decided = self._world.meet(told, self._state_key(), nodes, then, deadline, seen, look, self._size())
        if not met or age(found[0]) != (epoch, False):
            return False
        state = found[0]
        if state is not known and state != known:
            decided = None
        elif decided is not None and decided[0] == then[2].encode() and self._passed(epoch, then, decided[1]):
            return True
        self._pass(state, decided)
        return False

    def _lost_words(self, epoch: int, stay: Stay) -> Told | None:
        """What announces the node, where somebody else was to say it and it has not come: who was to may be dead."""
        if not self._complete_here(epoch):
            stay.since_ns = monotonic_ns()
        elif stay.over(SLICE_NS if self._desk.gone() else self._again_ns()):
            told = self._telling(epoch)
            return None if self._world.there([told[0]])[0] else told
        return None

    def _passed(self, epoch: int, then: Decision, values: list[bytes]) -> bool:
        """`_pass` in the fewest steps, where all went as foreseen; False: the node did not know what it should have."""
        _, old, new, _ = then
        self._got(values)
        told = self._desk.move(old.encode(), new) == new.encode()
        if told:
            self._desk.ring(epoch, new.encode(), sure=True)
        return told

    def _seen(self, epoch: int, raw: bytes) -> State:
        """The state as this rank finds it in the world."""
        state = self._since(epoch, self._parsed(raw))
        if age(state) == (epoch, False):
            self._desk.make_sure(epoch)
        self._post(state)
        return state

    def _foresee(self, state: State, epoch: int) -> bytes:
        """Before a rank waits: what the bell says when all have come. All that takes time of it is made now."""
        if age(state) != (epoch, False):
            return b""
        raw = state.passed().text().encode()
        State.of(raw)
        return OVER + raw

    def _around(self, epoch: int) -> Gather | None:
        """Looks who lives: breaks the epoch for one who cannot come, and takes the place of a leader that is gone."""
        missed = self._missed(epoch)
        if missed is not None:
            self._break(epoch, missed)
            return None
        gather = self._desk.gather()
        if gather is None or gather.epoch != epoch or gather.leader == self._local:
            return gather
        if gather.leader == NOBODY or gather.leader in self._desk.gone():
            self._desk.take_over(gather, self._local)
            return self._desk.gather()
        return gather

    def _missed(self, epoch: int) -> Break | None:
        """Who of the node has not come and never will; read in this order: who died may have come before."""
        gone = self._desk.gone()
        gather = self._desk.gather() if gone else None
        if gather is None or gather.epoch != epoch:
            return None
        for local, peer in sorted(gone.items()):
            if 1 << local & self._desk.full & ~gather.mask and peer.state in self._ended_by:
                node, rank = self._home.node_rank, self._numbered(local)
                if peer.state == "left":
                    return Break("left", rank, node=node)
                return Break("died", rank, peer.pid, peer.host, waiting_on=peer.waiting_on, node=node)
        return None
