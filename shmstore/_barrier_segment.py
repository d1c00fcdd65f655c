"""SegmentBarrier: a Barrier in shared memory, where the core has one (`_core/barrier.c`).

A wait is one call into the core as long as yielding is enough: `door_barrier` answers with the index, or with the
arrival so far, and the call goes on from there with parks of 50 ms. Between two of them signal handlers run, a closed
handle is noticed, and one of those who wait looks, for all, who cannot come any more.
"""

# ruff: noqa: SLF001 -- the barrier of a store is a part of it
from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from shmstore import errors
from shmstore._barrier_words import Break, Kind, Missing, peer_text
from shmstore._deadline import Timeout
from shmstore._doors import AGAIN, OK, SLICE_NS, TIMED_OUT, USER
from shmstore._keys import shown
from shmstore._native import door_barrier, ffi, lib
from shmstore._peers import Peer, peers_of
from shmstore._verbs import SegmentStore
from shmstore.barrier import Attempt, Barrier, store_home

if TYPE_CHECKING:
    from shmstore._native import CData

_CAUSES: Final[dict[Kind, int]] = {
    "timeout": lib.SST_BAR_TIMEOUT,
    "abort": lib.SST_BAR_ABORT,
    "interrupt": lib.SST_BAR_INTERRUPT,
    "left": lib.SST_BAR_LEFT,
    "died": lib.SST_BAR_DEAD,
}
_KINDS: Final[dict[int, Kind]] = {code: kind for kind, code in _CAUSES.items()}


_ARRIVAL_BYTES: Final = ffi.sizeof("sst_arrival")


def _arrival(memory: bytearray) -> CData:
    return ffi.from_buffer("sst_arrival *", memory, require_writable=True)


class SegmentBarrier(Barrier):
    """A barrier on a ShmStore or HashStore. It notices the deaths of ranks, and stays for good."""

    @classmethod
    def _takes(cls, store: Any, raw: bytes, parties: int, rank: int | None) -> bool:  # noqa: ARG003
        return store_home(store, raw) is not None

    def _setup(self) -> None:
        found = store_home(self._store, self._raw)
        assert found is not None
        home, raw = found
        assert isinstance(home, SegmentStore)
        self._home = home
        self._bar = ffi.new("sst_bar *")
        rank = lib.SST_NO_RANK if self._rank is None else self._rank
        code = home._run(
            "Barrier",
            raw,
            lambda seg, until: lib.sst_bar_open(
                seg, USER, raw, len(raw), self._parties, rank, home._waiter_rank(), until, self._bar
            ),
        )
        if code == lib.SST_EPARTIES:
            given = "without ranks" if self._rank is None else "with ranks"
            raise ValueError(
                f"barrier {shown(self._raw)} on {home!r} was made for other parties: not for {self._parties} {given}; "
                "all that name it give the same number, and all of them a rank or none"
            )
        if code < 0:
            raise errors.from_code(code, f"Barrier({shown(self._raw)})", repr(home))
        self._given = bytes(ffi.buffer(self._bar, ffi.sizeof("sst_bar")))

    # -- waiting ------------------------------------------------------------------------------------------------------

    def wait(self, timeout: Timeout | None = None) -> int:
        home = self._home
        span = home._span_ns if timeout is None and self._span is None else self._limit(timeout)
        arrival = bytearray(_ARRIVAL_BYTES)
        if self._told:
            self._told.pop(get_ident(), None)
        try:
            index = door_barrier(home._door, self._given, arrival, span)
            return self._go_on(span, _arrival(arrival)) if index is None else index
        except errors.BrokenBarrierError:
            raise
        except BaseException as error:
            self._given_up(_arrival(arrival), error)
            raise

    def _wait_in(self, epoch: int, timeout: Timeout | None) -> int:
        arrival = ffi.new("sst_arrival *", {"only": 1, "epoch": epoch})
        try:
            return self._go_on(self._limit(timeout), arrival)
        except errors.BrokenBarrierError:
            raise
        except BaseException as error:
            self._given_up(arrival, error)
            raise

    def _go_on(self, span: int, arrival: CData) -> int:
        """The parks. Gives the waiter slot back, also where the handle was closed meanwhile: the segment stays."""
        seg = self._home._open()
        try:
            return self._park(Attempt(span), arrival)
        except errors.StoreClosedError:
            if arrival.arrived:  # in vain where that was the last handle of this process, which has left then
                lib.sst_bar_break(seg, self._bar, 0, arrival.epoch, lib.SST_BAR_INTERRUPT, self._rank or 0)
            raise
        finally:
            if arrival.waiter:
                lib.sst_waiter_release(seg, ffi.addressof(arrival[0], "waiter"))

    def _given_up(self, arrival: CData, error: BaseException) -> None:
        if arrival.arrived:  # where the epoch has passed after all, nothing is broken
            self._interrupted(arrival.epoch, error)

    def _park(self, attempt: Attempt, arrival: CData) -> int:
        home = self._home
        while True:
            code = lib.sst_bar_wait(home._open(), self._bar, arrival, attempt.deadline, SLICE_NS)
            if code == OK:
                return int(arrival.index)
            if code == TIMED_OUT:
                arrived, missing = self._who_came(arrival.epoch)
                raise self._timed_out(arrival.epoch, arrived, missing, attempt.elapsed(), attempt.span)
            if code == lib.SST_EBROKEN:
                if arrival.cause == lib.SST_BAR_RESET:
                    raise self._was_reset(arrival.epoch)
                raise self._broken(arrival.epoch, self._break_of(arrival))
            if code == lib.SST_ENOENT:
                raise self._not_current(arrival.epoch, self._look().epoch)
            if code not in AGAIN:
                raise errors.from_code(code, f"wait at barrier {shown(self._raw)}", repr(home))
            if self._rank is None:
                self._watch(arrival.epoch)

    def _watch(self, epoch: int) -> None:
        """Parties without ranks: a store that watches its ranks breaks the barrier for a dead one.

        Where the epoch is over or was broken before, the next look tells how.
        """
        try:
            self._home._watch_peers(self._raw)
        except errors.PeerDiedError as dead:
            cause = Break("died", dead.rank, dead.pid, dead.host, waiting_on=dead.waiting_on)
            if self._break_in(epoch, cause):
                raise self._broken(epoch, cause) from dead

    # -- who is missing, and why --------------------------------------------------------------------------------------

    def _seats(self, epoch: int) -> CData:
        seats = ffi.new("sst_seat[]", self._parties)
        self._must(lib.sst_bar_seats(self._home._open(), self._bar, epoch, seats))
        return seats

    def _look(self) -> CData:
        info = ffi.new("sst_bar_info *")
        self._must(lib.sst_bar_look(self._home._open(), self._bar, info))
        return info

    def _must(self, code: int) -> int:
        if code < 0:
            raise errors.from_code(code, f"barrier {shown(self._raw)}", repr(self._home))
        return code

    def _who_came(self, epoch: int) -> tuple[int, list[int] | None]:
        """How many arrived in that epoch, which is broken, and which ranks did not.

        None for the ranks, where there are none, or where others have arrived in a later epoch: then nobody knows.
        """
        if self._rank is None:
            info = self._look()
            return (info.arrived if info.epoch == epoch else 0), None
        seats = self._seats(epoch)
        missing = [rank for rank in range(self._parties) if seats[rank].state != lib.SST_SEAT_ARRIVED]
        info = self._look()
        if info.epoch != epoch and info.arrived:
            return 0, None
        return self._parties - len(missing), missing

    def _break_of(self, record: CData) -> Break:
        """The cause that an sst_arrival or sst_bar_info tells of."""
        kind = _KINDS.get(record.cause, "abort")
        known = record.rank < self._parties and self._rank is not None
        if kind == "died":
            return self._death(record.epoch, record.rank, record.pid)
        if kind == "timeout":
            arrived, missing = self._who_came(record.epoch)
            return Break(kind, record.rank if known else None, arrived=arrived or None, missing=tuple(missing or ()))
        return Break(kind, record.rank if known else None)

    def _death(self, epoch: int, rank: int, pid: int) -> Break:
        """With host and last wait, as long as the dead one's record is there."""
        at, slot = rank, None
        if self._rank is not None:
            if rank >= self._parties:
                raise errors.from_code(lib.SST_ECORRUPT, f"barrier {shown(self._raw)}", repr(self._home))
            seat = self._seats(epoch)[rank]
            at, slot = seat.rank - 1, seat.slot
        dead = [peer for peer in peers_of(self._home._open()) if peer.state == "dead"]
        for peer in dead:
            if (peer.rank == at if at >= 0 else peer.slot == slot) and pid in (0, peer.pid):
                return Break("died", rank, peer.pid, peer.host, waiting_on=peer.waiting_on)
        return Break("died", rank, pid or None)

    def _states(self, ranks: Sequence[int]) -> list[Missing]:
        seats = self._seats(self._look().epoch)
        people = peers_of(self._home._open())
        by_rank = {peer.rank: peer for peer in people if peer.rank is not None}
        by_slot = {peer.slot: peer for peer in people}  # a clone, or a child's handle, sits by its process
        by_slot.update({peer.slot: peer for peer in people if peer.rank is None})
        return [Missing(rank, self._state_of(seats[rank], by_rank, by_slot)) for rank in ranks]

    def _state_of(self, seat: CData, by_rank: dict[int, Peer], by_slot: dict[int, Peer]) -> str:
        if seat.state == lib.SST_SEAT_UNKNOWN:
            return "never attached" if seat.rank else "never came to this barrier"
        if seat.state == lib.SST_SEAT_ARRIVED:
            return "arrived just now"
        if seat.state == lib.SST_SEAT_GONE:
            return "not attached any more"
        peer = by_rank.get(seat.rank - 1) if seat.rank else by_slot.get(seat.slot)
        if peer is None or peer.pid != seat.pid:  # it went, or its slot has another owner, between the two looks
            return f"pid {seat.pid}, {'left' if seat.state == lib.SST_SEAT_LEFT else 'gone'}"
        return peer_text(peer)

    # -- the rest of Barrier's hooks ----------------------------------------------------------------------------------

    def _now(self) -> tuple[int, Break | None]:
        info = self._look()
        return info.epoch, self._break_of(info) if info.broken else None

    @property
    def epoch(self) -> int:
        return int(self._look().epoch)

    @property
    def broken(self) -> bool:
        return bool(self._look().broken)

    def _waiting(self) -> int:
        info = self._look()
        return 0 if info.broken else int(info.arrived)

    def _break(self, epoch: int | None, cause: Break) -> int:
        self._break_in(epoch, cause)
        return int(self._look().epoch)

    def _break_in(self, epoch: int | None, cause: Break) -> bool:
        """True where this call broke it."""
        seg, why, rank = self._home._open(), _CAUSES[cause.kind], cause.rank or 0
        return self._must(lib.sst_bar_break(seg, self._bar, epoch is None, epoch or 0, why, rank)) == 1

    def _reset(self, told: int | None) -> None:
        self._must(lib.sst_bar_reset(self._home._open(), self._bar, told is None, told or 0))
