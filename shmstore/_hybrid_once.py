"""What all ranks of a HybridStore do together under a name that serves once: meet, and give each other a value.

It is the first epoch of a HybridBarrier, with three differences that c10d's and elastic's functions ask for. An arrival
that times out stays, and breaks nothing. Who comes late passes at once, and gets the same values. And what the ranks
bring travels with their arrival: one blob a node, its last arriver's announcement, and all of them come back with the
decision.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from shmstore._barrier_hybrid import HybridBarrier
from shmstore._barrier_words import NAMED_MAX, Break, named, span_text
from shmstore._deadline import seconds
from shmstore._keys import VALUE_MAX, key_text
from shmstore.barrier import Attempt
from shmstore.errors import BarrierTimeoutError, StoreError
from shmstore.tcp.connection import patience_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from shmstore._barrier_state import State
    from shmstore._deadline import Timeout

__all__ = ["Once"]

SIZE: Final = struct.Struct("<Q")


class Once(HybridBarrier):
    """One meeting of all ranks.

    Args: as of Barrier; and `value`, what this rank brings: None for a meeting at which nothing is exchanged.
    """

    _mended_by = "a name serves once: use another"
    _mark = (1,)
    _ended_by = ("dead",)  # who left may come again, as on a flat store: it has not come

    def __init__(
        self, store: Any, key: bytes, parties: int, rank: int, timeout: Timeout | None, value: bytes | None
    ) -> None:
        self._value: Final = value
        super().__init__(store, key, parties, rank, timeout)

    def __new__(cls, *_: Any) -> Self:
        return object.__new__(cls)

    def _setup(self) -> None:
        self._place()

    def meet(self) -> list[bytes]:
        """Returns when all have come: what each of them brought, in rank order; nothing where nothing was exchanged.

        Raises:
            BarrierTimeoutError: not all came in time. PeerDiedError: one of them died, and cannot. The store's errors.
        """
        attempt = Attempt(self._limit(None))
        if self._value is not None:
            self._desk.bring(self._local, self._value)
        self._wait(attempt)
        if self._value is None:
            return []
        blobs = self._desk.kept(self._home.num_nodes)
        if blobs is None:
            raise StoreError(f"{self!r}: its keys in the node were removed by others")
        return [value for blob in blobs for value in self._parts(blob)]

    @property
    def key(self) -> str:
        """The name that the caller gave."""
        return key_text(self._raw.rpartition(b"/")[0])

    def _begin(self, attempt: Attempt) -> int:  # noqa: ARG002 -- the barrier's
        state = self._here()
        if state is not None and state.cause is not None:
            raise self._broken(0, state.cause)
        if self._desk.lost(0) is not None:  # what was said to those who were here then; now it may be there again
            self._desk.unlose(0)
        return 0

    # -- what travels -------------------------------------------------------------------------------------------------

    def _brought(self) -> bytes:
        if self._value is None:
            return b"1"
        blob = _packed(self._desk.brought())
        if len(blob) > VALUE_MAX:
            self._break(0, Break("abort", self._rank, note="the values of its node are too long"))
            raise ValueError(f"{self.key!r}: the values of a node have {len(blob)} bytes together, at most {VALUE_MAX}")
        return blob

    def _size(self) -> int:
        if self._value is None:
            return 0
        nodes = self._home.num_nodes  # each gets the values of all, as if they were as long as this one
        return len(self._value) * self._parties * (nodes + 1)

    def _again_ns(self) -> int:
        """What is exchanged may take long on its way, and is not to be sent or fetched twice."""
        return super()._again_ns() if self._value is None else patience_ns(self._size())

    def _wanted(self, epoch: int) -> list[str]:
        return self._nodes(epoch) if self._value is not None else []

    def _post(self, state: State, before: State | None = None) -> None:
        """See HybridBarrier. Where this node did not decide, its values are still to come, before it is told."""
        if state.epoch > 0 and self._value is not None and self._desk.kept(self._home.num_nodes) is None:
            self._got(self._world.values(self._nodes(0), self._size()))
        super()._post(state, before)

    def _got(self, values: list[bytes]) -> None:
        if values:
            for value in values:
                self._parts(value)  # before anybody is told
            self._desk.keep(values)

    def _parts(self, blob: bytes) -> list[bytes]:
        """The values of a node's ranks."""
        at, values = 0, []
        while at + SIZE.size <= len(blob):
            (size,) = SIZE.unpack_from(blob, at)
            at += SIZE.size
            values.append(blob[at : at + size])
            at += size
        if at != len(blob) or len(values) != self._home.local_world_size:
            raise StoreError(f"{self!r}: its keys in the store are in use for something else: {blob[:80]!r}")
        return values

    # -- what ends it -------------------------------------------------------------------------------------------------

    def _late(self, attempt: Attempt, state: State) -> State:
        arrived, missing = self._absent(state)
        if arrived >= self._parties:
            return self._pass(state)
        states = self._states(missing[:NAMED_MAX])
        names = [f"rank {one.rank} ({one.state})" for one in states]
        elapsed = attempt.elapsed()
        raise BarrierTimeoutError(
            f"Wait timeout: {self.key!r} timed out on rank {self._rank} after {span_text(elapsed)}: {arrived} of "
            f"{self._parties} arrived; missing {named(names, len(missing) - len(names))} "
            f"(limit {seconds(attempt.span):g} s, {self._store!r})",
            key=self.key,
            arrived=arrived,
            world_size=self._parties,
            missing_ranks=missing,
            elapsed=elapsed,
            timeout=seconds(attempt.span),
        )


def _packed(values: Sequence[bytes]) -> bytes:
    """The values as one, each behind its length."""
    return b"".join(piece for value in values for piece in (SIZE.pack(len(value)), value))
