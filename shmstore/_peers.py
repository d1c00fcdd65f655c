"""Who is attached to a segment, which ranks registered, and who waits for what: the core's records as ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from shmstore import errors
from shmstore._keys import key_text
from shmstore._native import ffi, lib

if TYPE_CHECKING:
    from shmstore._native import CData


@dataclass(frozen=True, slots=True)
class Peer:
    """A rank that registered, or a process that is attached without one.

    Attributes:
        rank: its rank, or None.
        slot: the peer slot of its process.
        pid: its process id, in its own PID namespace.
        host: its host name (a container's own).
        state: live; left, in good order; or dead: gone without a word.
        waiting_on: the key, queue or barrier it waits for, or, dead, waited for when it died: its first 56 bytes. None
            when that is nothing, or not known any more.
        waiting_s: for how many seconds it has waited; None for nothing, and for the dead.
    """

    rank: int | None
    slot: int
    pid: int
    host: str
    state: Literal["live", "left", "dead"]
    waiting_on: str | None = None
    waiting_s: float | None = None


_RANK_STATES: Final[dict[int, Literal["live", "left", "dead"]]] = {
    lib.SST_RANK_LIVE: "live",
    lib.SST_RANK_LEFT: "left",
    lib.SST_RANK_DEAD: "dead",
}
_PEER_STATES: Final[dict[int, Literal["live", "left", "dead"]]] = {
    lib.SST_PEER_CLAIMING: "live",
    lib.SST_PEER_LIVE: "live",
    lib.SST_PEER_LEFT: "left",
    lib.SST_PEER_DEAD: "dead",
}


def _records(seg: CData, kind: str, read: Callable[[CData, CData, int], int], most: int) -> list[CData]:
    """All records of a kind; the core is asked with more room until some of it is left."""
    room = 16
    while True:
        out = ffi.new(f"{kind}[]", room)
        count = read(seg, out, room)
        if count < 0:
            raise errors.from_code(count, "peers", "the segment")
        if count < room or room >= most:
            # the array owns the memory of its records: copies outlive it
            return [ffi.new(f"{kind} *", out[i])[0] for i in range(count)]
        room = min(room * 8, most)


def _ranks(seg: CData) -> list[CData]:
    return _records(seg, "sst_rank", lib.sst_ranks, lib.SST_RANKS_MAX)


def peers_of(seg: CData) -> list[Peer]:
    """One record a rank, ascending, then one a process that holds no rank.

    Args:
        seg: `sst_seg *`, attached or of an inspector.
    """
    waits: dict[tuple[int, int, int], CData] = {}
    for waiter in _records(seg, "sst_waiter", lib.sst_waiters, lib.SST_WAITERS_MAX):
        place = (waiter.slot, waiter.gen, waiter.rank)
        if place not in waits or waiter.since_ns < waits[place].since_ns:
            waits[place] = waiter
    ranks = _ranks(seg)
    held: dict[tuple[int, int], int] = {}
    for rank in ranks:
        if rank.state == lib.SST_RANK_LIVE:
            held[rank.slot, rank.gen] = held.get((rank.slot, rank.gen), 0) + 1
    found = []
    for rank in ranks:
        where = (rank.slot, rank.gen)
        wait = waits.get((*where, rank.rank + 1))
        if wait is None and held.get(where) == 1:  # a clone, or a server, of the only rank of its process
            wait = waits.get((*where, 0))
        found.append(_peer(rank.rank, rank, _RANK_STATES[rank.state], wait))
    known = {(rank.slot, rank.gen) for rank in ranks}
    found.extend(
        _peer(None, peer, _PEER_STATES[peer.state], waits.get((peer.slot, peer.gen, 0)))
        for peer in _records(seg, "sst_peer", lib.sst_peers, lib.SST_PEERS_MAX)
        if peer.state != lib.SST_PEER_FREE and (peer.slot, peer.gen) not in known
    )
    return found


def dead_rank(seg: CData, world_size: int) -> Peer | None:
    """The lowest rank below world_size that died without leaving, or None."""
    if any(rank.state == lib.SST_RANK_DEAD for rank in _ranks(seg)):
        for peer in peers_of(seg):
            if peer.rank is not None and peer.rank < world_size and peer.state == "dead":
                return peer
    return None


def _peer(rank: int | None, record: CData, state: Literal["live", "left", "dead"], waiter: CData | None) -> Peer:
    host = ffi.string(record.host).decode("utf-8", "replace")
    if waiter is None or state == "left":
        return Peer(rank, record.slot, record.pid, host, state)
    note = ffi.buffer(waiter.note)[: min(waiter.note_len, lib.SST_NOTE_MAX)]
    waited = max(lib.sst_now_ns() - waiter.since_ns, 0) / 1e9 if state == "live" else None
    return Peer(rank, record.slot, record.pid, host, state, key_text(note), waited)
