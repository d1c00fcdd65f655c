"""What stands in the one key that decides a barrier on a store's keys, and what an arrival is as of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Final

from shmstore._barrier_words import Break, break_of

__all__ = ["Arrival", "State"]

STARTS_KEPT: Final = 16
KNOWN: Final = 64
"""States whose text is remembered: JSON takes longer than all else that ends an epoch."""


@dataclass(frozen=True, slots=True)
class State:
    """What stands in k/state.

    Attributes:
        made_for: parties, negative without ranks.
        epoch: the current one.
        cause: why it is broken, or None.
        starts: (epoch, first ticket) of the last epochs that began by a reset, ascending; the first begins with (0, 0).
        mended: why the epoch before the last start was broken; None where it was not.
        shape: of a HybridStore's, how many nodes, how many ranks on each, 1 of a name that serves once; else nothing.
    """

    made_for: int
    epoch: int = 0
    cause: Break | None = None
    starts: tuple[tuple[int, int], ...] = ((0, 0),)
    mended: Break | None = None
    shape: tuple[int, ...] = ()

    @lru_cache(maxsize=KNOWN)  # noqa: B019 -- a value, and a small one
    def text(self) -> str:
        cause, mended = (None if why is None else asdict(why) for why in (self.cause, self.mended))
        return json.dumps([self.made_for, self.epoch, cause, self.starts, mended, *self.shape])

    @staticmethod
    @lru_cache(maxsize=KNOWN)
    def of(raw: bytes | str) -> State:
        """What `text` wrote. ValueError, TypeError, KeyError: something else."""
        made_for, epoch, cause, starts, mended, *shape = json.loads(raw)
        starts = tuple((int(at), int(ticket)) for at, ticket in starts)
        if type(made_for) is not int or type(epoch) is not int or not starts:
            raise ValueError("no state of a barrier")
        state = State(made_for, epoch, break_of(cause), starts, break_of(mended), tuple(shape))
        hash(state)  # TypeError, for what is no part of one
        return state

    def passed(self) -> State:
        return replace(self, epoch=self.epoch + 1, cause=None)

    def reset(self, ticket: int) -> State:
        epoch = self.epoch + 1
        starts = (*self.starts, (epoch, ticket))[-STARTS_KEPT:]
        return replace(self, epoch=epoch, cause=None, starts=starts, mended=self.cause)

    def needed(self) -> int:
        """How many tickets have been drawn when the current epoch is complete."""
        epoch, ticket = self.starts[-1]
        return ticket + (self.epoch - epoch + 1) * abs(self.made_for)


@dataclass(slots=True)
class Arrival:
    """What a party holds while it waits: with a rank its epoch, without one its ticket."""

    epoch: int
    ticket: int | None = None

    def place(self, state: State, rank: int | None, parties: int) -> tuple[int, int] | None:
        """The epoch it belongs to and its index there, as of a state; None: a reset has voided it."""
        if self.ticket is None:
            assert rank is not None
            starts = [epoch for epoch, _ in state.starts]
            known = starts[0] <= self.epoch <= state.epoch
            return (self.epoch, rank) if known and self.epoch + 1 not in starts else None
        at = max((i for i, (_, first) in enumerate(state.starts) if first <= self.ticket), default=None)
        if at is None:
            return None
        epoch, first = state.starts[at]
        epoch += (self.ticket - first) // parties
        over = at + 1 < len(state.starts) and epoch >= state.starts[at + 1][0] - 1
        return None if over else (epoch, (self.ticket - first) % parties)
