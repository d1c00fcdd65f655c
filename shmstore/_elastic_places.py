"""The places of an ElasticBarrier's ranks: whose object each rank is, and the call that it is in. `_barrier_elastic`
has the calls.

For a barrier p, the token T of rank 0's server and a rank i:

    p/meeting          the token, and how many meet               set by rank 0, when the server has all ranks; stays
    p/T/rank{i}        rank i's Place: whose object it is, the    made by rank 0 before p/meeting; compare_set by i's
                       call it is in or was in last, and the      object, which begins and calls with it
                       first one of which it may have left keys

Each server has a token of its own, and each object: an object that outlived rank 0's server has no place at a new one,
and one whose rank has been started again has lost its place. Its next compare_set of the place says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from shmstore._deadline import seconds, span_ns
from shmstore._keys import key_text
from shmstore.errors import StoreConnectionError, StoreError, StoreTimeoutError

if TYPE_CHECKING:
    from shmstore.tcp.client import TCPStore

__all__ = ["LOOK_S", "Place", "Places", "differs"]

LOOK_S: Final = 5.0
"""How long a look at keys that are always there may take."""


@dataclass(frozen=True, slots=True)
class Place:
    """What stands in a rank's key.

    Attributes:
        by: the token of the object that has it; empty: never attached.
        call: the call that it is in or was in last; -1: attached, no call yet.
        since: the first call of which the rank may have left keys.
    """

    by: str = ""
    call: int = -1
    since: int = 0

    def text(self) -> str:
        return json.dumps(asdict(self))


class Places:
    """All ranks' places at one server, and this rank's own, which it takes by `found` or `join`.

    guard of all fields: the thread that uses the barrier; `all` may come from another one
    """

    def __init__(self, store: TCPStore, prefix: str, parties: int, rank: int) -> None:
        self.me: Final = token_hex(8)
        self._store: Final = store
        self._prefix: Final = prefix
        self._parties: Final = parties
        self._rank: Final = rank
        self._meeting: Final = f"{prefix}/meeting"

    # -- the beginning ------------------------------------------------------------------------------------------------

    def found(self) -> None:
        """Rank 0: makes all places, takes its own and opens the meeting."""
        token = token_hex(8)
        self.base = f"{self._prefix}/{token}"
        self._mine = Place(self.me).text()
        self._store.multi_set(
            [self.key(rank) for rank in range(self._parties)],
            [self._mine if rank == self._rank else Place().text() for rank in range(self._parties)],
        )
        opened = json.dumps({"token": token, "parties": self._parties})
        if differs(self._store.compare_set(self._meeting, "", opened), opened):
            raise StoreError(f"barrier {self._prefix!r}: {self._store!r} has one of that name already")

    def join(self) -> Place:
        """The others: waits until rank 0 has opened the meeting, and takes this rank's place; as it was before."""
        parties = self._attend()
        if parties != self._parties:
            raise ValueError(
                f"barrier {self._prefix!r}: rank 0 made it for a global_world_size of {parties}, this rank "
                f"{self._rank} for {self._parties}: all ranks give the same"
            )
        return self._take()

    def _attend(self) -> int:
        """Waits for the meeting; for how many it is."""
        try:
            raw = self._store.get(self._meeting)
        except StoreTimeoutError as error:
            raise StoreTimeoutError(
                f"barrier {self._prefix!r}: rank {self._rank} reached {self._store!r}, where rank 0 did not begin in "
                f"{seconds(span_ns(self._store.timeout)):g} s: are all ranks there, with this class and this "
                "barrier_prefix?",
                keys=[self._meeting],
                elapsed=error.elapsed,
                timeout=error.timeout,
            ) from error
        try:
            token, parties = (json.loads(raw)[name] for name in ("token", "parties"))
            if not (isinstance(token, str) and isinstance(parties, int)):
                raise TypeError("no meeting")
        except (ValueError, TypeError, KeyError) as error:
            raise self.nonsense(self._meeting, raw) from error
        self.base = f"{self._prefix}/{token}"
        return parties

    def _take(self) -> Place:
        key = self.key(self._rank)
        raw = self._store.get(key, LOOK_S)
        while True:
            found = self._place_of(self._rank, raw)
            self._mine = Place(self.me, found.call, found.since).text()
            said = self._swap(raw, self._mine)
            if said == self._mine.encode():
                return found
            if said == raw:
                raise self._gone()
            raw = said  # the one before has begun a call meanwhile

    # -- this rank's own ----------------------------------------------------------------------------------------------

    def say(self, call: int, since: int) -> None:
        """Begins the call in this rank's place.

        Raises:
            StoreConnectionError: this server has no place of it. StoreError: another object has taken it.
        """
        new = Place(self.me, call, since).text()
        while True:
            said = self._swap(self._mine, new)
            if not differs(said, new):
                self._mine = new
                return
            if said == self._mine.encode():
                raise self._gone()
            if self._place_of(self._rank, said).by != self.me:
                raise self._taken()
            self._mine = key_text(said)  # of a call of this object that has not ended

    def keep(self) -> None:
        """StoreError where the place is not as this object left it: another one has taken it."""
        if differs(self._swap(self._mine, self._mine), self._mine):
            raise self._taken()

    def _swap(self, old: str | bytes, new: str) -> bytes:
        """What stands in this rank's place; `new`, if that was `old`."""
        return self._store.compare_set(self.key(self._rank), old, new)

    # -- who is where -------------------------------------------------------------------------------------------------

    def all(self) -> list[Place]:
        """All ranks' places, in order."""
        try:
            raws = self._store.multi_get([self.key(rank) for rank in range(self._parties)], LOOK_S)
        except StoreTimeoutError as error:
            raise self._gone() from error
        return [self._place_of(rank, raw) for rank, raw in enumerate(raws)]

    def _place_of(self, rank: int, raw: bytes) -> Place:
        try:
            place = Place(**json.loads(raw))
            if [type(one) for one in asdict(place).values()] != [str, int, int]:
                raise TypeError("no place")
        except (ValueError, TypeError) as error:
            raise self.nonsense(self.key(rank), raw) from error
        return place

    def key(self, rank: int) -> str:
        return f"{self.base}/rank{rank}"

    # -- errors -------------------------------------------------------------------------------------------------------

    def nonsense(self, key: str, raw: bytes) -> StoreError:
        return StoreError(
            f"barrier {self._prefix!r}: its key {key!r} in {self._store!r} was changed by others: {raw[:80]!r}"
        )

    def _taken(self) -> StoreError:
        return StoreError(
            f"barrier {self._prefix!r}: another object has taken the place of this one as rank {self._rank} "
            f"({self._store!r}): a rank has one, in one process"
        )

    def _gone(self) -> StoreConnectionError:
        return StoreConnectionError(
            f"barrier {self._prefix!r}: {self._store!r} does not know this object of rank {self._rank}: rank 0 was "
            "started again, with a new server, or the keys were deleted; make the barrier anew in all ranks"
        )


def differs(said: bytes, mine: str) -> bool:
    """Whether compare_set found another value than the one it was to set.

    What is no bytes is no other value: torch's test of its TCPStoreBarrier, which ours is to pass too, gives it a plain
    MagicMock for a store.
    """
    return isinstance(said, bytes) and said != mine.encode()
